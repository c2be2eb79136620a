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
    build: Any = np.show_config(mode="dicts")  # type: ignore[call-overload]
    return ", ".join(found) or str(build["Build Dependencies"]["blas"]["name"])


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
