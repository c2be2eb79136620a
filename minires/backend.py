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

The authors have never run minires on a GPU. What was checked instead: every operation, nets, training and resuming on
a stand-in that refuses what CuPy refuses (strict.py); every CuPy name and keyword in use against the real package; and
that NVRTC, NVIDIA's compiler, takes the fused kernels. A tiny net is slower on a GPU than on a CPU: each operation
costs the host about 7 microseconds before the GPU sees it, however few numbers it works on.
"""

from __future__ import annotations

import ctypes
import operator
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial, reduce, wraps
from queue import SimpleQueue
from types import ModuleType
from typing import Any, NamedTuple

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


_on_first_use: dict[str, Callable[[], object]] = {}


def register_on_first_use(device: str, load: Callable[[], object]) -> None:
    """Let `load()`, which registers the library of `device`, wait until somebody asks for that device."""
    _on_first_use[device] = load


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
    """`x` on `device` ("cpu", "gpu" or "strict"); the same array where it is there already."""
    if device not in _backends and device in _on_first_use:
        _on_first_use[device]()
    if device not in _backends:
        known = ", ".join(sorted({*_backends, *_on_first_use}))
        raise ValueError(f"device: expected one of {known}, got {device!r}")
    if device_of(x) == device and not np.isscalar(x):
        return x
    return _backends[device].to_device(to_host(x))


def to_host(x: Array) -> np.ndarray:
    """`x` as a NumPy array; the same array where it is one already."""
    return _backend_of(x).to_host(x)


def fuse(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make one GPU kernel, called `name`, of a function that is a chain of ufuncs; with NumPy it stays as it is.

        @fuse("scale_and_shift")
        def scale_and_shift(xp, x, scale, shift, out):
            xp.multiply(x, scale, out=out)
            out += shift

        scale_and_shift(x, scale, shift, out)          # xp, the library of x, is put in front

    CuPy calls the function once, with stand-ins for its arguments, and writes down what it does to them. So it may use
    operators and ufuncs, and ask whether an argument is None; but no shape, index, reduction, or value of a number.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kernels: dict[Any, Callable[..., Any]] = {}  # one for each library

        @wraps(function)
        def call(*arguments: Any) -> Any:
            xp = array_module(arguments[0])
            if xp is np:
                return function(np, *arguments)
            if xp not in kernels:
                kernels[xp] = xp.fuse(kernel_name=name)(partial(function, xp))
            return kernels[xp](*arguments)

        return call

    return decorate


def _register_cupy() -> None:
    status = gpu_status()
    if status.state != "ready":
        raise RuntimeError(f"device 'gpu': {status.sentence}")
    import cupy

    # blocking: the host's array may be written into again as soon as this returns
    register(Backend("gpu", cupy, cupy.ndarray, partial(cupy.asarray, blocking=True), cupy.asnumpy))


register_on_first_use("gpu", _register_cupy)


# ---- is there a GPU? ------------------------------------------------------------------------------------------------

GPU_STATES = {  # what `gpu_status` may find, and what mends it
    "not installed": 'CuPy is not installed; on Linux or Windows with an NVIDIA GPU: pip install -e ".[gpu]"',
    "no driver": "CuPy is installed, but no NVIDIA driver; install one, until the command nvidia-smi shows the GPU: "
    "https://www.nvidia.com/drivers",
    "driver too old": "the NVIDIA driver serves CUDA {driver} at most, CuPy needs {needed} or later; install a newer "
    "driver: https://www.nvidia.com/drivers",
    "no device": "the NVIDIA driver finds no GPU; see what nvidia-smi says, whether CUDA_VISIBLE_DEVICES hides it, and "
    "in a container whether it was started with --gpus all",
    "broken": "CuPy is installed, but can't compute on the GPU ({reason}); if NVRTC or cuBLAS is missing, this brings "
    'it: pip install -e ".[gpu]"',
    "ready": "{name} is ready (driver for CUDA {driver}, CuPy {cupy})",
}


class GpuStatus(NamedTuple):
    state: str  # one of GPU_STATES
    sentence: str  # for the user


def gpu_status() -> GpuStatus:
    """Whether device "gpu" can be used here, and if not, why."""
    try:
        import cupy
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        return _status("not installed") if missing else _broken(error)
    runtime = cupy.cuda.runtime
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        driver = runtime.driverGetVersion()
        if driver == 0:  # the error is the same as for an old driver
            return _status("no driver")
        if error.status == 35:  # cudaErrorInsufficientDriver
            needed = runtime.runtimeGetVersion() // 1000 * 1000
            return _status("driver too old", driver=_version(driver), needed=_version(needed))
        if error.status != 100:  # cudaErrorNoDevice
            return _broken(error)
        devices = 0
    if devices == 0:
        return _status("no device")
    try:  # only a computation finds a missing cuBLAS (the product) or NVRTC (the + 1)
        a = cupy.ones((2, 2), np.float32)
        float((a @ a + 1).sum())
        name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    except Exception as error:  # of many kinds, and with any of them the GPU can't be used
        return _broken(error)
    return _status("ready", name=name, driver=_version(runtime.driverGetVersion()), cupy=cupy.__version__)


def _status(state: str, **facts: str) -> GpuStatus:
    return GpuStatus(state, GPU_STATES[state].format(**facts))


def _broken(error: Exception) -> GpuStatus:
    return _status("broken", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _version(number: int) -> str:
    """CUDA's number for a version, 12040, as people write it: 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


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
    most = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # older versions refuse more than 32 MiB
    return bool(most and mallopt(trim_threshold, 2**31 - 1))


keep_freed_memory()


# ---- chunks of the batch, shared among threads ----------------------------------------------------------------------

CHUNK_BYTES = 2 * 1024 * 1024  # small enough for the cache, large enough that Python's share of the time is small
LANE_BYTES = 128 * 1024  # with less than this, waking another thread costs more than it brings
SHARES = 8  # more slices than most machines have cores
SMALL_PRODUCT = 1_000_000  # up to so many multiply-adds OpenBLAS may multiply without arranging its operands first
MIN_BLOCK = 64  # rows

_blas = ThreadpoolController()
_blas_lock = threading.RLock()
_threads = 0
_jobs: SimpleQueue | None = None  # what the other threads wait at


def get_num_threads() -> int:
    """The number of threads that share a batch: `set_num_threads`, else `MINIRES_THREADS`, else one a core."""
    return _threads or _threads_from_environment()


def _threads_from_environment() -> int:
    text = os.environ.get("MINIRES_THREADS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"MINIRES_THREADS: expected a positive integer, got {text!r}")
    return int(text)


def set_num_threads(n: int) -> None:
    """Let `n` threads share each batch. Results are the same, bit for bit, for any `n`."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"threads: expected a positive integer, got {n!r}")
    _start_over(n)


def _start_over(n: int) -> None:
    """Send the other threads home; `n` will be wanted from now on (0: what `get_num_threads` finds)."""
    global _threads, _jobs
    with _blas_lock:  # nothing is running
        if _jobs is not None:
            for _ in range(get_num_threads() - 1):
                _jobs.put(None)
        _threads, _jobs = n, None


def _after_fork() -> None:
    """A forked child has none of the other threads, and perhaps a lock that nobody will open."""
    global _blas_lock, _jobs
    _blas_lock, _jobs = threading.RLock(), None


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
        ended: SimpleQueue = SimpleQueue()
        others = min(get_num_threads(), len(slices)) - 1
        for _ in range(others):  # a copy of the context carries np.errstate into the other threads
            _queue().put((copy_context(), lane, chunks, ended))
        try:
            lane(chunks)
        finally:  # also when a lane fails: none may outlive the call
            failures = [failure for failure in (ended.get() for _ in range(others)) if failure]
        if failures:
            raise failures[0]


def _queue() -> SimpleQueue:
    """Where other threads wait for lanes to run."""
    global _jobs
    if _jobs is None:
        _jobs = SimpleQueue()
        for i in range(get_num_threads() - 1):
            threading.Thread(target=_run_lanes, args=(_jobs,), name=f"minires-{i}", daemon=True).start()
    return _jobs


def _run_lanes(jobs: SimpleQueue) -> None:
    for context, lane, chunks, ended in iter(jobs.get, None):
        try:
            context.run(lane, chunks)
            ended.put(None)
        except BaseException as failure:
            ended.put(failure)
        del context, lane, chunks, ended  # or the arrays of a lane would live until the next


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
    return reduce(operator.add, (parts[start] for start in sorted(parts)))


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


def in_blocks(rows: Array, columns: int) -> Array:
    """Rows (R, K) as (blocks, R / blocks, K), for a product of each block with a (K, `columns`) matrix.

    Before a large product, BLAS copies its operands into an order of its own, and with few columns that costs as much
    as multiplying. On processors with AVX-512, OpenBLAS multiplies small matrices as they lie.
    """
    r, k = rows.shape
    block = r
    while block * k * columns > SMALL_PRODUCT and block % 2 == 0:
        block //= 2
    if array_module(rows) is not np or block < MIN_BLOCK:
        block = r
    return rows.reshape(r // max(1, block), block, k)  # a batch may be empty


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread, for one caller at a time: the limit is the process's, and the thread that set it must
    set it back (threadpoolctl ignores all others)."""
    with _blas_lock, _blas.limit(limits=1, user_api="blas"):
        yield
