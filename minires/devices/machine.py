"""Facts about this machine: processor, memory, BLAS and versions, for results and error reports to quote."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info


def environment(*packages: str) -> dict[str, Any]:
    """Everything besides its settings that a result may depend on; versions also of `packages` that are installed."""
    return {
        "versions": versions("minires", "numpy", *packages),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "blas": blas(),
        "git": git_revision(),
    }


def versions(*packages: str) -> dict[str, str]:
    """The version of Python and of each package that is installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name as the system reports it."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def blas() -> str:
    """The library behind NumPy's matrix products, and the processor type whose kernels it chose."""
    found = [
        f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".strip()
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    show_config: Any = np.show_config  # typed differently by different versions of NumPy
    return ", ".join(found) or str(show_config(mode="dicts")["Build Dependencies"]["blas"]["name"])


def memory_bytes() -> tuple[int, int]:
    """Bytes in total and bytes available; 0 where unknown."""
    info = Path("/proc/meminfo")
    if info.exists():  # Linux
        kib = dict(re.findall(r"(\w+): +(\d+) kB", info.read_text(encoding="utf-8")))
        return int(kib["MemTotal"]) * 1024, int(kib["MemAvailable"]) * 1024
    if sys.platform == "win32":
        status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its own size, bytes in total, bytes available, and more
        return (status[1], status[2]) if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else (0, 0)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0
    except (ValueError, OSError):
        return 0, 0


def peak_memory() -> int:
    """The most bytes that this process has used so far; 0 where unknown (Windows)."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def git_revision() -> str | None:
    """The revision of the checkout that this package is in, with "-dirty" if files have changed; None outside git."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):  # no git program, or a slow disk
        return None


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next array. Returns whether it could be asked (Linux with glibc).

    A training step frees several hundred megabytes and allocates them again immediately. If they went back to the
    system, every page would be mapped and zeroed again: a fifth of a step. CuPy keeps a pool for the same reason.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    most = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # older versions refuse more than 32 MiB
    return bool(most and mallopt(trim_threshold, 2**31 - 1))
