"""Work shared among threads: a batch is cut into chunks that fit into the cache, and every thread takes chunks.

An operation writes a function for a few items of the batch, exactly as it would for all of them, and hands it to
`over_batch` together with the arrays that it reads and writes:

    def forward(x, out):                    # x: a few images, out: their outputs
        out[...] = heavy(x)

    over_batch(forward, x, out)

A GPU is parallel by itself: there the function is called once, with the whole batch.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import reduce
from queue import SimpleQueue
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from minires.backend import Array, array_module

CHUNK_BYTES = 3 * 1024 * 1024  # small enough for the cache, large enough that Python's share of the time is small
MIN_PARALLEL_BYTES = 1024 * 1024  # less than this is not worth waking another thread
MIN_CHUNKS = 8  # more than most machines have cores


def over_batch(function: Callable[..., Array | None], *arrays: Array, item_bytes: int = 0, min_items: int = 1) -> Array:
    """Call `function` on a few items of the batch at a time, on every thread, until all are done.

    arrays: what `function` takes, all with the batch as their first axis (None is passed on as it is).
    item_bytes: the memory that `function` needs for an item; by default the size of an item in all arrays.
    min_items: the fewest items that are worth a call.

    Returns the sum of what `function` returns, added in the batch's order, or None. Chunks depend on the arrays alone,
    so the result is the same, bit for bit, for any number of threads. BLAS is limited to one thread in each of ours.
    An `over_batch` inside `function` calls its function once, unless there is only one chunk.
    """
    first = arrays[0]
    if array_module(first) is not np or first.ndim == 0 or getattr(_this_thread, "has_chunk", False):
        return function(*arrays)
    item_bytes = item_bytes or sum(a[:1].nbytes for a in arrays if a is not None)
    chunks = split(len(first), item_bytes, min_items)
    todo, results = deque(enumerate(chunks)), [None] * len(chunks)

    def work() -> None:
        _this_thread.has_chunk = len(chunks) > 1
        try:
            while todo:
                try:
                    i, s = todo.popleft()
                except IndexError:  # another thread took the last one
                    return
                results[i] = function(*[None if a is None else a[s] for a in arrays])
        finally:
            _this_thread.has_chunk = False

    in_threads(work, min(get_num_threads(), len(chunks)))
    return None if results[0] is None else reduce(np.add, results)


def split(n: int, item_bytes: int, min_items: int = 1) -> list[slice]:
    """`n` items as slices of at most CHUNK_BYTES (or `min_items`), as few and as even as possible; but at least
    MIN_CHUNKS of them where there is enough work, so that threads can share."""
    most = max(1, CHUNK_BYTES // max(1, item_bytes))  # items in a slice; an item may have no bytes
    count = max(1, -(-n // most), min(n, MIN_CHUNKS, n * item_bytes // MIN_PARALLEL_BYTES))
    count = min(count, max(1, n // min_items))
    size, longer = divmod(n, count)  # the first `longer` slices have one item more
    edges = [size * i + min(i, longer) for i in range(count + 1)]
    return [slice(lo, hi) for lo, hi in zip(edges, edges[1:], strict=False)]


def over_elements(function: Callable[..., None], *arrays: Array) -> None:
    """Call `function`, which works on each element by itself, on a part of the elements at a time. The arrays have one
    shape."""
    if array_module(arrays[0]) is np and all(a.flags.c_contiguous for a in arrays):
        over_batch(function, *[a.reshape(-1) for a in arrays])
    else:
        function(*arrays)


def add(a: Array, b: Array) -> Array:
    """a + b for two arrays of one shape."""
    if a.nbytes < MIN_PARALLEL_BYTES:
        return a + b
    xp = array_module(a)
    out = xp.empty(a.shape, a.dtype)

    def forward(a: Array, b: Array, out: Array) -> None:
        xp.add(a, b, out=out)

    over_batch(forward, a, b, out)
    return out


# ---- matrix products ------------------------------------------------------------------------------------------------


def matmul(a: Array, b: Array) -> Array:
    """a @ b, shared among threads by the rows of `a` if `b` is a matrix."""
    xp = array_module(a)
    if xp is not np:
        return a @ b
    if b.ndim > 2:
        with one_blas_thread():
            return a @ b
    out = np.empty((*a.shape[:-1], b.shape[1]), a.dtype)

    def forward(a: Array, out: Array) -> None:
        np.matmul(a, b, out=out)

    over_batch(forward, a, out, min_items=MIN_BLOCK if a.ndim == 2 else 1)
    return out


UNPACKED_PRODUCT = 1_000_000  # multiply-adds of a product whose operands OpenBLAS need not pack
MIN_BLOCK = 64  # rows


def product(rows: Array, w: Array, out: Array) -> None:
    """out = rows @ w, for rows (R, K), w (K, F) and out contiguous, with R rows of F numbers."""
    blocks = _in_blocks(rows, w.shape[1])
    array_module(rows).matmul(blocks, w, out=out.reshape(*blocks.shape[:2], w.shape[1]))


def transposed_product(rows: Array, y: Array) -> Array:
    """rows^T y, for rows (R, K) and y with R rows of F numbers:  (K, F)."""
    blocks = _in_blocks(rows, y.shape[-1])
    products = blocks.swapaxes(1, 2) @ y.reshape(*blocks.shape[:2], y.shape[-1])  # (blocks, K, F)
    return products[0] if len(products) == 1 else products.sum(axis=0)


def _in_blocks(rows: Array, columns: int) -> Array:
    """Rows (R, K) as (blocks, R / blocks, K), for a product of each block with a matrix of `columns` columns.

    Before a large product, BLAS packs its operands, and with few columns that costs as much as multiplying. On
    processors with AVX-512, OpenBLAS multiplies small matrices unpacked, so blocks are made that small; below
    MIN_BLOCK rows the number of calls would cost more.
    """
    r, k = rows.shape
    block = r
    while block * k * columns > UNPACKED_PRODUCT and block % 2 == 0:
        block //= 2
    if block < MIN_BLOCK or array_module(rows) is not np:
        block = r
    return rows.reshape(r // max(1, block), block, k)  # a batch may be empty


# ---- threads --------------------------------------------------------------------------------------------------------

_num_threads = 0  # 0: not set
_jobs: SimpleQueue[Any] | None = None  # what the workers wait for
_blas = ThreadpoolController()
_blas_lock = threading.RLock()
_this_thread = threading.local()  # has_chunk: whether it works on one of several chunks; buffers: its scratch arrays


def get_num_threads() -> int:
    """The number of threads that share a batch: `set_num_threads`, else `MINIRES_THREADS`, else one for each core."""
    if _num_threads:
        return _num_threads
    text = os.environ.get("MINIRES_THREADS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"MINIRES_THREADS: expected a positive integer, got {text!r}")
    return int(text)


def set_num_threads(n: int) -> None:
    """Share each batch among `n` threads. Results are the same, bit for bit, for any `n`."""
    global _num_threads, _jobs
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"threads: expected a positive integer, got {n!r}")
    with _blas_lock:  # every job holds it, so none is running
        if _jobs is not None:
            for _ in range(get_num_threads() - 1):
                _jobs.put(None)
        _num_threads, _jobs = n, None


def in_threads(work: Callable[[], object], n: int) -> None:
    """Call `work()` in `n` threads at once, this one included; return when all calls have returned."""
    with one_blas_thread():
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for _ in range(n - 1):  # a copy of the context carries np.errstate into the other threads
            _job_queue().put((copy_context(), work, done))
        try:
            work()
        finally:  # also when this thread's call fails: no other one may outlive us
            failures = [failure for failure in (done.get() for _ in range(n - 1)) if failure]
        if failures:
            raise failures[0]


def scratch(name: str, shape: tuple[int, ...], like: Array) -> Array:
    """Memory for an array of this shape, with the dtype and device of `like`; valid until this thread asks for the same
    name again. To allocate memory, and touch it for the first time, takes as long as to work on it."""
    xp = array_module(like)
    if xp is not np:
        return xp.empty(shape, like.dtype)
    size = math.prod(shape)
    buffers = vars(_this_thread).setdefault("buffers", {})
    if len(buffers.get((name, like.dtype), ())) < size:
        buffers[name, like.dtype] = np.empty(size, like.dtype)
    return buffers[name, like.dtype][:size].reshape(shape)


def _job_queue() -> SimpleQueue[Any]:
    global _jobs
    if _jobs is None:
        jobs: SimpleQueue[Any] = SimpleQueue()
        for i in range(get_num_threads() - 1):
            try:
                threading.Thread(target=_worker, args=(jobs,), name=f"minires-{i}", daemon=True).start()
            except RuntimeError as error:
                for _ in range(i):
                    jobs.put(None)  # end those that did start
                raise RuntimeError(f"threads: {error}; use fewer, MINIRES_THREADS=1") from error
        _jobs = jobs
    return _jobs


def _worker(jobs: SimpleQueue[Any]) -> None:
    for context, work, done in iter(jobs.get, None):
        try:
            context.run(work)
            done.put(None)
        except BaseException as failure:
            done.put(failure)
        del context, work, done  # or the arrays of this job would live until the next one


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread. The limit is that of the entire process, so callers take turns: with two at once, the
    first to finish would lift it under the other."""
    with _blas_lock, _blas.limit(limits=1, user_api="blas"):
        yield


def _after_fork() -> None:
    """A forked child has no worker threads, and may have inherited a lock that is never released."""
    global _blas_lock, _jobs
    _blas_lock, _jobs = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
