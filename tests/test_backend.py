"""Chunks, lanes, the BLAS limit, and how many threads there are."""

# mypy: disable-error-code="attr-defined"

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from minires import backend
from minires.backend import (
    array_module,
    device_of,
    in_lanes,
    one_blas_thread,
    set_num_threads,
    sum_in_order,
    get_num_threads,
    to_device,
    to_host,
)


@pytest.fixture(autouse=True)
def lanes_for_any_work(monkeypatch):
    monkeypatch.setattr(backend, "LANE_BYTES", 1)


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


# ---- lanes


def drawn(n, item_bytes):
    """The slices that each lane drew, a list for each lane that ran."""
    shares = []
    in_lanes(lambda chunks: shares.append(list(chunks)), np.empty(n), item_bytes)
    return shares


@settings(deadline=None, max_examples=200)
@given(n=st.integers(0, 300), item_bytes=st.integers(0, 10**6), lanes=st.integers(1, 7))
def test_lanes_cover_every_item_once(n, item_bytes, lanes):
    set_num_threads(lanes)
    shares = drawn(n, item_bytes)
    slices = sorted((s for share in shares for s in share), key=lambda s: s.start)
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(n))
    assert 1 <= len(shares) <= lanes
    lengths = [s.stop - s.start for s in slices]
    assert max(lengths) <= max(1, backend.CHUNK_BYTES // max(1, item_bytes))
    assert lengths == sorted(lengths, reverse=True) and max(lengths) - min(lengths) <= 1
    if n * item_bytes >= backend.SHARES and n >= backend.SHARES:
        assert len(slices) >= backend.SHARES


def test_where_slices_end_does_not_depend_on_the_number_of_threads():
    found = []
    for lanes in (1, 2, 5):
        set_num_threads(lanes)
        found.append(sorted((s.start, s.stop) for share in drawn(1000, 30_000) for s in share))
    assert found[0] == found[1] == found[2] and len(found[0]) > 8


def test_a_lane_that_is_slow_leaves_the_rest_to_the_others():
    set_num_threads(2)
    counts = []

    def lane(chunks):
        mine = 0
        for _ in chunks:
            mine += 1
            time.sleep(0.2 if threading.current_thread() is threading.main_thread() else 0.001)
        counts.append(mine)

    in_lanes(lane, np.empty(20), 10**9)
    assert sum(counts) == 20 and min(counts) <= 2


def test_sum_in_order_goes_by_the_start_of_the_slice():
    parts = {}
    for start, value in ((2, -1e8), (0, 1e8), (1, 1.0)):  # in float32 the order shows
        parts[start] = np.float32(value)
    assert sum_in_order(parts) == np.float32(1e8) + np.float32(1.0) - np.float32(1e8) == 0.0
    assert sum_in_order({0: parts[0], 1: parts[2], 2: parts[1]}) == 1.0


def test_lanes_run_at_the_same_time():
    set_num_threads(3)
    barrier = threading.Barrier(3, timeout=10)  # breaks unless all three are there at once
    names = []
    in_lanes(lambda chunks: (barrier.wait(), names.append(threading.current_thread().name)), np.empty(3), 1)
    assert len(set(names)) == 3 and threading.current_thread().name in names


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_exception_in_a_lane_comes_out_and_blas_is_set_back(failing):
    set_num_threads(3)
    before = blas_threads()

    def lane(chunks):
        for s in chunks:
            if s.start == failing:
                raise ArithmeticError(f"item {failing}")

    with pytest.raises(ArithmeticError, match=f"item {failing}"):
        in_lanes(lane, np.empty(3), 1)
    assert blas_threads() == before
    assert sum(len(share) for share in drawn(3, 1)) == 3


def test_no_lane_outlives_the_call_when_others_fail():
    set_num_threads(3)
    barrier, finished = threading.Barrier(3, timeout=10), []

    def lane(chunks):
        start = next(chunks).start
        barrier.wait()
        if start < 2:
            raise ArithmeticError
        time.sleep(0.1)
        finished.append(start)

    with pytest.raises(ArithmeticError):
        in_lanes(lane, np.empty(3), 1)
    assert finished == [2]


def test_lanes_see_the_callers_errstate():
    set_num_threads(3)
    seen = []
    with np.errstate(over="ignore", divide="call"):
        in_lanes(lambda chunks: seen.append((np.geterr()["over"], np.geterr()["divide"])), np.empty(3), 1)
    assert seen == [("ignore", "call")] * 3


def test_lanes_called_from_several_threads_do_not_mix():
    set_num_threads(2)
    results = {}

    def total(x):
        parts = {}

        def lane(chunks):
            for s in chunks:
                parts[s.start] = x[s].sum()

        in_lanes(lane, x, 10**5)
        return sum_in_order(parts)

    def work(k):
        results[k] = [total(np.full(50, float(k))) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert results == {k: [50.0 * k] * 20 for k in range(4)}


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
    in_lanes(lambda chunks: inside.append(set(blas_threads())), np.empty(2), 1)
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
    monkeypatch.setattr(backend, "_threads", 0)
    monkeypatch.setenv("MINIRES_THREADS", "3")
    assert get_num_threads() == 3
    monkeypatch.delenv("MINIRES_THREADS")
    assert 1 <= get_num_threads() <= (os.cpu_count() or 1)
    monkeypatch.setenv("MINIRES_THREADS", "3")
    set_num_threads(5)
    assert get_num_threads() == 5


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " ", "+2", "1e3"])
def test_a_bad_number_of_threads_in_the_environment_is_named(monkeypatch, text):
    monkeypatch.setattr(backend, "_threads", 0)
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
        assert len(drawn(8, 1)) == n


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_lanes_work_in_a_forked_child():
    """A child has the parent's pool object but none of its threads, and would wait for them for ever."""
    set_num_threads(2)  # a pool of one thread: with more, the child may start one that does all the work
    drawn(6, 1)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(len(drawn(6, 1))))
    child.start()
    try:
        assert receive.poll(20), "the forked child hangs"
        assert receive.recv() == 2
    finally:
        child.kill()
        child.join()


def test_python_ends_while_a_pool_stands():
    code = (
        "import numpy as np; from minires.backend import in_lanes, set_num_threads; set_num_threads(3); lanes = []; "
        "in_lanes(lambda chunks: lanes.append(1), np.empty(6), 10**6); print(len(lanes))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("3", 0), done.stderr


# ---- where arrays live


def test_numpy_arrays_and_numbers_live_on_the_cpu():
    x = np.ones(3)
    assert array_module(x) is np and device_of(x) == "cpu"
    assert array_module(1.0) is np and device_of([1.0]) == "cpu"
    assert to_device(x, "cpu") is x and to_host(x) is x


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match="device: expected one of cpu, gpu.*got 'tpu'"):
        to_device(np.ones(3), "tpu")


class Elsewhere:
    """A pretend device: it holds an array and refuses to be taken for one."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(backend, "_backends", dict(backend._backends))
    backend.register(backend.Backend("elsewhere", "its functions", Elsewhere, Elsewhere, lambda x: x.array))


def test_a_registered_library_is_known_by_its_arrays(elsewhere):
    x = np.ones(3)
    there = to_device(x, "elsewhere")
    assert isinstance(there, Elsewhere)
    assert array_module(there) == "its functions" and device_of(there) == "elsewhere"
    assert to_device(there, "elsewhere") is there
    assert to_host(there) is x and to_device(there, "cpu") is x


def test_another_device_gets_the_whole_batch_at_once(elsewhere):
    set_num_threads(4)
    shares = []
    in_lanes(lambda chunks: shares.append(list(chunks)), Elsewhere(np.empty(100)), 10**6)
    assert shares == [[slice(0, 100)]]


@pytest.mark.parametrize("most, asked", [(2**30, [2**30]), (2**25, [2**30, 2**25]), (0, [2**30, 2**25])])
def test_freed_memory_is_kept_up_to_the_size_that_the_c_library_allows(most, asked, monkeypatch):
    class Library:
        thresholds = []

        def __init__(self, name):
            pass

        def mallopt(self, option, value):
            if option == -1:  # from what size on free memory at the end goes back
                return 1
            self.thresholds.append(value)
            return int(value <= most)

    monkeypatch.setattr(backend.ctypes, "CDLL", Library)
    assert backend.keep_freed_memory() == (most > 0) and Library.thresholds == asked
