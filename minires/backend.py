"""NumPy or CuPy: where arrays live, and how a batch is shared among the cores.

This is the only file that names CuPy. Everything above it works on *arrays*, asks `array_module(x)` for the library
that made them, and calls functions of that library:

    xp = array_module(x)        # numpy for a NumPy array, cupy for a CuPy array
    y = xp.maximum(x, 0)

On a CPU the heavy operations walk over the batch in chunks small enough for the cache, and several threads ("lanes")
share the chunks. An operation writes that as an ordinary loop and hands it to `in_lanes`:

    def lane(chunks):
        for s in chunks:                    # s is a slice of the batch
            out[s] = heavy(x[s])
    in_lanes(lane, x, item_bytes)

On a GPU, which is parallel by itself, the same loop runs once, over one slice that holds the whole batch.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

Array = Any  # a NumPy array, or one of a registered array module


# ---- which library made this array? ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    """An array library: its functions, and how arrays cross to it and back."""

    name: str
    xp: ModuleType | Any
    array_type: type
    to_device: Callable[[np.ndarray], Array]
    to_host: Callable[[Array], np.ndarray]


_backends = {"cpu": Backend("cpu", np, np.ndarray, np.asarray, np.asarray)}


def register(backend: Backend) -> None:
    """Add an array library, so that `array_module` knows its arrays and `to_device` its name."""
    _backends[backend.name] = backend


def _backend_of(x: Array) -> Backend:
    for backend in _backends.values():
        if isinstance(x, backend.array_type):
            return backend
    return _backends["cpu"]  # numbers and lists: NumPy can take them


def array_module(x: Array) -> Any:
    """The library whose functions work on `x`: `numpy`, `cupy`, or one that was registered."""
    return _backend_of(x).xp


def device_of(x: Array) -> str:
    """The name of the device that holds `x`: "cpu", "gpu", or a registered one."""
    return _backend_of(x).name


def to_device(x: Array, device: str) -> Array:
    """`x` on `device` ("cpu" or "gpu"); the same array where it is there already."""
    if device == "gpu" and "gpu" not in _backends:
        _register_cupy()
    if device not in _backends:
        raise ValueError(f"device: wanted one of {', '.join(sorted({'gpu', *_backends}))}, got {device!r}")
    if device_of(x) == device and not np.isscalar(x):
        return x
    return _backends[device].to_device(to_host(x))


def to_host(x: Array) -> np.ndarray:
    """`x` as a NumPy array; the same array where it is one already."""
    return _backend_of(x).to_host(x)


def _register_cupy() -> None:
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError("device 'gpu' needs CuPy: pip install -e '.[gpu]'") from error
    if not cupy.is_available():
        raise RuntimeError("device 'gpu': CuPy is installed but finds no usable GPU (driver missing or too old?)")
    register(Backend("gpu", cupy, cupy.ndarray, cupy.asarray, cupy.asnumpy))


# ---- memory ---------------------------------------------------------------------------------------------------------


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next array. Returns whether it could be asked (Linux with glibc).

    A training step frees some hundred megabytes and wants them again at once. Handed back to the system in between,
    every page is fetched and zeroed anew: a fifth of a step. CuPy keeps a pool of memory on a GPU for the same reason.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 2**30))


keep_freed_memory()


# ---- chunks of the batch, shared among threads ----------------------------------------------------------------------

CHUNK_BYTES = 2 * 1024 * 1024  # small enough for the cache, large enough that Python's share of the time is small
LANE_BYTES = 128 * 1024  # with less than this, waking another thread costs more than it brings
SHARES = 8  # more slices than most machines have cores

_blas = ThreadpoolController()
_blas_lock = threading.RLock()
_threads = 0
_pool: ThreadPoolExecutor | None = None


def threads() -> int:
    """The number of threads that share a batch: `set_threads`, else `MINIRES_THREADS`, else one a core."""
    return _threads or _threads_from_environment()


def _threads_from_environment() -> int:
    text = os.environ.get("MINIRES_THREADS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"MINIRES_THREADS: wanted a whole number from 1 on, got {text!r}")
    return int(text)


def set_threads(n: int) -> None:
    """Let `n` threads share each batch. Results are the same, bit for bit, for any `n`."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"threads: wanted a whole number from 1 on, got {n!r}")
    global _threads
    _threads = n
    _forget_pool()


def _forget_pool() -> None:
    global _pool
    _pool = None


def _after_fork() -> None:
    """A forked child has the pool's object but none of its threads, and perhaps a lock that nobody will open."""
    global _blas_lock
    _blas_lock = threading.RLock()
    _forget_pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def in_lanes(lane: Callable[[Iterator[slice]], object], x: Array, item_bytes: int) -> None:
    """Run `lane(chunks)` in every thread at once, until all of the batch `x` has been handed out.

    `chunks` yields slices of the first axis of `x`, of about CHUNK_BYTES / `item_bytes` items, the longer ones first.
    All lanes draw from the same supply, so that none waits for a slower one. Where the slices end depends on `x` and
    `item_bytes` alone: a lane that files its results by slice, and leaves adding them up in order to its caller, gives
    the same bits with any number of threads. While lanes run, BLAS keeps to one thread each.
    """
    n = len(x)
    if array_module(x) is not np:
        lane(iter([slice(0, n)]))
        return
    slices = split(n, item_bytes)
    chunks = iter(slices)
    with one_blas_thread():
        # a copy of the context carries np.errstate into the other threads
        others = [_threads_pool().submit(copy_context().run, lane, chunks)
                  for _ in range(min(threads(), len(slices)) - 1)]  # fmt: skip
        try:
            lane(chunks)
        finally:  # also when a lane fails: none may outlive the call
            wait(others)
        for other in others:
            other.result()


def split(n: int, item_bytes: int) -> list[slice]:
    """`n` items as slices of at most CHUNK_BYTES (or one item), as few and as equal as can be; but at least SHARES of
    them, where there is work for that, so that threads can share."""
    most = max(1, CHUNK_BYTES // max(1, item_bytes))  # items in a slice; those of an empty batch may have no bytes
    count = max(1, -(-n // most), min(n, SHARES, n * item_bytes // LANE_BYTES))
    size, longer = divmod(n, count)  # the first `longer` slices have one item more
    edges = [size * i + min(i, longer) for i in range(count + 1)]
    return [slice(lo, hi) for lo, hi in zip(edges, edges[1:], strict=False)]


def sum_in_order(parts: dict[int, Array]) -> Array:
    """The sum over all chunks of what lanes filed under each slice's start, from first to last."""
    return sum(parts[start] for start in sorted(parts))


def add(a: Array, b: Array) -> Array:
    """a + b for two arrays of one shape; large ones in lanes."""
    if a.nbytes < LANE_BYTES:
        return a + b
    out = array_module(a).empty(a.shape, a.dtype)

    def lane(chunks: Iterator[slice]) -> None:
        for s in chunks:
            array_module(a).add(a[s], b[s], out=out[s])

    in_lanes(lane, a, 3 * a[:1].nbytes)
    return out


def _threads_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, threads() - 1), thread_name_prefix="minires")
    return _pool


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread, for one caller at a time: the limit is the process's, and the thread that set it must
    set it back (threadpoolctl ignores all others)."""
    with _blas_lock, _blas.limit(limits=1, user_api="blas"):
        yield
