"""Chunks of the batch, threads, the BLAS limit, products in blocks, and how many threads there are."""

# mypy: disable-error-code="attr-defined"

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from minires import backend, parallel
from minires.functional import linear
from minires.parallel import get_num_threads, in_threads, one_blas_thread, over_batch, set_num_threads
from minires.tensor import Tensor


@pytest.fixture(autouse=True)
def threads_for_any_work(monkeypatch):
    monkeypatch.setattr(parallel, "MIN_PARALLEL_BYTES", 1)


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


# ---- chunks and threads


def shares(n, item_bytes):
    """The chunks, as (first, last + 1), that `over_batch` hands out for n items: those of each thread that took any."""
    taken = {}

    def take(items):
        bounds = (int(items[0]), int(items[-1]) + 1) if len(items) else (0, 0)
        taken.setdefault(threading.current_thread().name, []).append(bounds)

    over_batch(take, np.arange(n), item_bytes=item_bytes)
    return list(taken.values())


@settings(deadline=None, max_examples=200)
@given(n=st.integers(0, 300), item_bytes=st.integers(1, 10**6), threads=st.integers(1, 7))
def test_every_item_is_in_one_chunk(n, item_bytes, threads):
    set_num_threads(threads)
    found = shares(n, item_bytes)
    chunks = sorted(chunk for share in found for chunk in share)
    assert [i for lo, hi in chunks for i in range(lo, hi)] == list(range(n))
    assert 1 <= len(found) <= threads
    lengths = [hi - lo for lo, hi in chunks]
    assert max(lengths) <= max(1, parallel.CHUNK_BYTES // item_bytes)
    assert lengths == sorted(lengths, reverse=True) and max(lengths) - min(lengths) <= 1
    if n * item_bytes >= parallel.MIN_CHUNKS and n >= parallel.MIN_CHUNKS:
        assert len(chunks) >= parallel.MIN_CHUNKS


def test_chunks_do_not_depend_on_the_number_of_threads():
    found = []
    for threads in (1, 2, 5):
        set_num_threads(threads)
        found.append(sorted(chunk for share in shares(1000, 30_000) for chunk in share))
    assert found[0] == found[1] == found[2] and len(found[0]) > 8


def test_the_size_of_an_item_is_that_in_all_arrays(monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 100)
    lengths = []
    over_batch(lambda a, b, c: lengths.append((len(a), len(b), c)), np.empty((40, 2)), np.empty((40, 3), np.int8), None)
    assert lengths[0] == (5, 5, None) and sum(a for a, _, _ in lengths) == 40  # 19 bytes an item


def test_a_function_writes_into_its_part_of_the_arrays():
    set_num_threads(3)
    x, out = np.arange(50.0), np.zeros(50)

    def double(x, out):
        np.multiply(x, 2, out=out)

    assert over_batch(double, x, out, item_bytes=10**6) is None
    np.testing.assert_array_equal(out, 2 * np.arange(50.0))


def test_a_single_number_has_no_batch():
    out = np.zeros(())
    over_batch(lambda x, out: np.add(x, 1, out=out), np.array(2.0), out)
    assert out == 3


def test_eight_threads_take_each_chunk_once():
    """Also where threads change places after nearly every step of Python, as without the interpreter's lock."""
    set_num_threads(8)
    interval, taken = sys.getswitchinterval(), []
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            over_batch(lambda items: taken.append(int(items[0])), np.arange(9), item_bytes=10**9)
            assert sorted(taken) == list(range(9))
            taken.clear()
    finally:
        sys.setswitchinterval(interval)


def test_the_last_chunk_may_go_to_another_thread_between_the_look_and_the_grasp(monkeypatch):
    class LooksFull(deque):
        def __bool__(self):
            return True

    monkeypatch.setattr(parallel, "deque", LooksFull)
    for threads in (1, 3):
        set_num_threads(threads)
        assert over_batch(np.sum, np.arange(9), item_bytes=10**9) == 36


def test_a_slow_thread_leaves_the_rest_to_the_others():
    set_num_threads(2)
    counts = {}

    def work(items):
        name = threading.current_thread().name
        counts[name] = counts.get(name, 0) + 1
        time.sleep(0.2 if threading.current_thread() is threading.main_thread() else 0.001)

    over_batch(work, np.empty(20), item_bytes=10**9)
    assert sum(counts.values()) == 20 and min(counts.values()) <= 2


def test_results_are_added_in_the_order_of_the_batch():
    set_num_threads(3)
    values = np.array([1e8, 1.0, -1e8], np.float32)  # in float32 the order shows

    def late(x):
        time.sleep(0.05 if x[0] == 1e8 else 0)
        return x.sum()

    for _ in range(5):
        assert over_batch(late, values, item_bytes=10**9) == (values[0] + values[1]) + values[2] == 0.0
        assert over_batch(late, values[[0, 2, 1]], item_bytes=10**9) == 1.0


def test_threads_run_at_the_same_time():
    set_num_threads(3)
    barrier = threading.Barrier(3, timeout=10)  # breaks unless all three are there at once
    names = []
    in_threads(lambda: (barrier.wait(), names.append(threading.current_thread().name)), 3)
    assert len(set(names)) == 3 and threading.current_thread().name in names


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_exception_in_a_thread_comes_out_and_blas_is_set_back(failing):
    set_num_threads(3)
    before = blas_threads()

    def work(items):
        if items[0] == failing:
            raise ArithmeticError(f"item {failing}")

    with pytest.raises(ArithmeticError, match=f"item {failing}"):
        over_batch(work, np.arange(3), item_bytes=10**9)
    assert blas_threads() == before
    assert sum(len(share) for share in shares(3, 10**9)) == 3


def test_no_thread_outlives_the_call_when_others_fail():
    set_num_threads(3)
    barrier, finished = threading.Barrier(3, timeout=10), []

    def work(items):
        barrier.wait()
        if items[0] < 2:
            raise ArithmeticError
        time.sleep(0.1)
        finished.append(items[0])

    with pytest.raises(ArithmeticError):
        over_batch(work, np.arange(3), item_bytes=10**9)
    assert finished == [2]


def test_threads_see_the_callers_errstate():
    set_num_threads(3)
    seen = []
    with np.errstate(over="ignore", divide="call"):
        in_threads(lambda: seen.append((np.geterr()["over"], np.geterr()["divide"])), 3)
    assert seen == [("ignore", "call")] * 3


def test_calls_from_several_threads_do_not_mix():
    set_num_threads(2)
    results = {}

    def work(k):
        results[k] = [over_batch(np.sum, np.full(50, float(k)), item_bytes=10**5) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert results == {k: [50.0 * k] * 20 for k in range(4)}


class Elsewhere:
    """An array of another library, on a pretend device."""

    ndim = 1


def test_another_device_gets_the_entire_batch_at_once(monkeypatch):
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
    monkeypatch.setattr(backend, "_backends", dict(backend._backends))
    backend.register(backend.Backend("elsewhere", "its functions", Elsewhere, Elsewhere, Elsewhere))
    x, calls = Elsewhere(), []
    assert over_batch(lambda x, y: calls.append((x, y)) or "result", x, None, item_bytes=1) == "result"
    assert calls == [(x, None)]


# ---- the BLAS limit


@pytest.fixture
def before():
    """The number of threads of each BLAS library, before anything limits it."""
    found = blas_threads()
    if not found or min(found) < 2:
        pytest.skip(f"a limit of one would show nothing: the BLAS libraries here have {found} threads")
    return found


def test_blas_is_held_to_one_thread_inside_and_set_back(before):
    with one_blas_thread():
        assert set(blas_threads()) == {1}
        with one_blas_thread():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}, "the inner block must not lift the outer one's limit"
    assert blas_threads() == before
    set_num_threads(2)
    inside = []
    in_threads(lambda: inside.append(set(blas_threads())), 2)
    assert inside == [{1}, {1}]
    assert blas_threads() == before


def test_blas_is_set_back_after_an_exception(before):
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        raise ZeroDivisionError
    assert blas_threads() == before


def test_blas_is_limited_in_every_thread_that_asks_and_set_back_when_they_overlap(before):
    seen = []

    def work():
        for _ in range(20):
            with one_blas_thread():
                time.sleep(0.001)
                seen.extend(blas_threads())

    workers = [threading.Thread(target=work) for _ in range(3)]
    for w in workers:
        w.start()
    work()
    for w in workers:
        w.join()
    assert set(seen) <= {1}
    assert blas_threads() == before


# ---- how many threads


def test_threads_come_from_the_environment(monkeypatch):
    monkeypatch.setattr(parallel, "_num_threads", 0)
    monkeypatch.setenv("MINIRES_THREADS", "3")
    assert get_num_threads() == 3
    monkeypatch.delenv("MINIRES_THREADS")
    assert 1 <= get_num_threads() <= (os.cpu_count() or 1)
    monkeypatch.setenv("MINIRES_THREADS", "3")
    set_num_threads(5)
    assert get_num_threads() == 5


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " ", "+2", "1e3"])
def test_a_bad_number_of_threads_in_the_environment_is_named(monkeypatch, text):
    monkeypatch.setattr(parallel, "_num_threads", 0)
    monkeypatch.setenv("MINIRES_THREADS", text)
    with pytest.raises(ValueError, match="MINIRES_THREADS: expected a positive integer, got '"):
        get_num_threads()


@pytest.mark.parametrize("n", [0, -2, 1.5, "2", None])
def test_a_bad_number_of_threads_is_named(n):
    with pytest.raises(ValueError, match="threads: expected a positive integer"):
        set_num_threads(n)


def test_more_threads_may_be_set_later():
    for n in (1, 4, 2):
        set_num_threads(n)
        names = set()
        barrier = threading.Barrier(n, timeout=10)
        in_threads(lambda: (barrier.wait(), names.add(threading.current_thread().name)), n)  # noqa: B023
        assert len(names) == n


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_work_in_a_forked_child():
    """A child has the parent's pool object but none of its threads, and would wait for them for ever."""
    set_num_threads(2)  # a pool of one thread: with more, the child may start one that does all the work
    in_threads(lambda: None, 2)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(sum(map(len, shares(6, 10**9)))))
    child.start()
    try:
        assert receive.poll(20), "the forked child hangs"
        assert receive.recv() == 6
    finally:
        child.kill()
        child.join()


def test_python_ends_while_a_pool_stands():
    code = (
        "from minires.parallel import in_threads, set_num_threads; set_num_threads(3); calls = []; "
        "in_threads(lambda: calls.append(1), 3); print(len(calls))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("3", 0), done.stderr


@pytest.mark.parametrize("most", [0, 1, 2])
def test_threads_that_cannot_be_started(most, monkeypatch):
    """An error each time, no wait for workers that don't exist; and all is well when the system has threads again."""
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) >= most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    set_num_threads(4)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="threads: can't start new thread; use fewer, MINIRES_THREADS=1"):
                in_threads(lambda: None, 4)
            for thread in started:
                thread.join(10)
                assert not thread.is_alive(), "a worker that did start is ended"
            started.clear()
    calls = []
    in_threads(lambda: calls.append(1), 4)
    assert len(calls) == 4


# ---- products and elements


MATRICES = [((500, 60), (60, 900)), ((3, 4), (4, 5)), ((40, 30, 70), (70, 50)), ((6, 9, 8), (6, 8, 7))]


@pytest.mark.parametrize(("a", "b"), MATRICES)
def test_matmul_is_numpys_with_the_same_bits_for_any_number_of_threads(a, b):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(a), rng.standard_normal(b)
    set_num_threads(1)
    one = parallel.matmul(a, b)
    assert one == pytest.approx(a @ b, rel=1e-12, abs=1e-12)
    for threads in (2, 5):
        set_num_threads(threads)
        assert parallel.matmul(a, b).tobytes() == one.tobytes()


@pytest.mark.parametrize("op", [Tensor.__matmul__, linear])
def test_products_do_not_depend_on_the_threads_of_blas(op):
    rng, found = np.random.default_rng(0), []
    x, w = (Tensor(rng.standard_normal(s, np.float32), requires_grad=True) for s in ((64, 2048), (2048, 1000)))
    for threads in (1, 2):
        x.zero_grad()
        w.zero_grad()
        with threadpool_limits(threads, "blas"):
            y = op(x, w)
            y.backward(np.ones_like(y.data))
        found.append([a.tobytes() for a in (y.data, x.grad, w.grad)])
    assert found[0] == found[1]


def test_over_elements_changes_arrays_of_any_layout():
    for threads in (1, 3):
        set_num_threads(threads)
        for x in (np.zeros((3, 100_000)), np.zeros((100_000, 3)).T, np.zeros((6, 9))[::2, ::3], np.zeros(())):
            parallel.over_elements(lambda x, y: np.add(x, y, out=x), x, np.ones(x.shape))
            assert (x == 1).all()
