"""The loader: keyed draws, one batch ahead, no thread left behind; augmentation against a naive loop."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.data import Loader, Normalise, augment

RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(50)


def plain(images):
    return images.astype(np.float32)


def loader(batch_size=8, **options):
    return Loader(IMAGES, LABELS, batch_size, **{"normalise": plain, **options})


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("minires-loader")]


def test_in_order():
    batches = list(loader().epoch())
    assert [len(y) for _, y in batches] == [8] * 6 + [2] and len(loader()) == 7
    x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_array_equal(x, IMAGES)
    np.testing.assert_array_equal(y, LABELS)


def test_drop_last():
    assert [len(y) for _, y in loader(drop_last=True).epoch()] == [8] * 6 and len(loader(drop_last=True)) == 6
    assert len(loader(10, drop_last=True)) == 5 == len(loader(10))


def test_shuffle():
    one = loader(shuffle=True, seed=3)
    orders = [np.concatenate([y for _, y in one.epoch(e)]) for e in (0, 1, 0)]
    other = np.concatenate([y for _, y in loader(shuffle=True, seed=4).epoch(0)])
    np.testing.assert_array_equal(np.sort(orders[0]), LABELS)
    np.testing.assert_array_equal(orders[0], orders[2])
    for different in (orders[1], other, LABELS):
        assert not np.array_equal(orders[0], different)
    for x, y in one.epoch(1):
        np.testing.assert_array_equal(x, IMAGES[y])


@settings(deadline=None, max_examples=25)
@given(epoch=st.integers(0, 200), start=st.integers(0, 7), seed=st.integers(0, 2**32))
def test_start_equals_replay(epoch, start, seed):
    options = {"shuffle": True, "augment": True, "seed": seed}
    complete, resumed = list(loader(**options).epoch(epoch)), list(loader(**options).epoch(epoch, start=start))
    assert len(resumed) == 7 - start
    for (x, y), (x2, y2) in zip(complete[start:], resumed, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)


def test_every_step_and_epoch_has_its_own_draws():
    images = np.repeat(IMAGES[:1], 16, axis=0)
    one = Loader(images, np.zeros(16, int), 8, normalise=plain, augment=True)
    drawn = [x.tobytes() for epoch in (0, 1) for x, _ in one.epoch(epoch)]
    assert len(set(drawn)) == 4


# ---- augmentation ----


def augment_naive(x, rng):
    n = len(x)
    (top, left), flip = rng.integers(0, 9, (2, n)), rng.random(n) < 0.5
    out = np.zeros_like(x)
    for i in range(n):
        for row in range(32):
            for column in range(32):
                r, c = row + top[i] - 4, (31 - column if flip[i] else column) + left[i] - 4
                if 0 <= r < 32 and 0 <= c < 32:
                    out[i, row, column] = x[i, r, c]
    return out


def test_augment_equals_the_naive_loop():
    x = RNG.standard_normal((12, 32, 32, 3), dtype=np.float32)
    before = x.copy()
    got = augment(x, np.random.default_rng(1))
    np.testing.assert_array_equal(got, augment_naive(x, np.random.default_rng(1)))
    np.testing.assert_array_equal(x, before)
    assert got.dtype == np.float32 and got.flags.c_contiguous


def test_augment_reaches_every_crop_and_both_sides():
    """A bright pixel lands on each of 9 rows, and on 9 columns for each side, about equally often."""
    x = np.zeros((6000, 32, 32, 1), np.float32)
    x[:, 16, 12] = 1
    _, row, column, _ = np.nonzero(augment(x, np.random.default_rng(0)))
    rows, columns = np.bincount(row - 12, minlength=9), np.bincount(column - 8, minlength=16)
    assert set(row) == set(range(12, 21)) and set(column) == set(range(8, 17)) | set(range(15, 24))
    assert rows.min() > 540 and rows.max() < 800  # 667 expected, 25 the standard deviation
    np.testing.assert_array_less(260, columns)  # 333 expected; 667 where both sides meet


# ---- normalisation ----


def test_pixel_mean():
    fit = Normalise.pixel_mean(IMAGES)
    exact = (IMAGES.astype(np.float64) - IMAGES.astype(np.float64).mean(axis=0)) / 255
    got = fit(IMAGES)
    assert got.dtype == np.float32 and fit.mean.shape == (32, 32, 3)
    np.testing.assert_allclose(got, exact, atol=1e-6)
    np.testing.assert_array_equal(Normalise(fit.mean, fit.scale)(IMAGES), got)


def test_channels():
    images = np.concatenate([IMAGES] * 41)  # more than a thousand: summed a thousand at a time
    got = Normalise.channels(images)(images).astype(np.float64)
    assert Normalise.channels(images)(images).dtype == np.float32
    np.testing.assert_allclose(got.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(axis=(0, 1, 2)), 1, atol=1e-5)
    flat = np.full((3, 32, 32, 3), 7, np.uint8)
    np.testing.assert_array_equal(Normalise.channels(flat)(flat), 0)


# ---- threads ----


def test_one_batch_ahead():
    """While the consumer holds batch k, batch k + 1 is made, and no other."""
    made = []

    def slow(images):
        time.sleep(0.02)
        made.append(len(images))
        return plain(images)

    for step, _ in enumerate(loader(normalise=slow).epoch()):
        time.sleep(0.1)
        assert len(made) == min(step + 2, 7)
    assert loader_threads() == []


def test_leaving_early_ends_the_thread():
    for step, _ in enumerate(loader().epoch()):
        if step == 2:
            break
    deadline = time.monotonic() + 5
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loader_threads() == []
    epoch = loader().epoch()
    next(epoch)
    assert len(loader_threads()) == 1
    epoch.close()
    assert loader_threads() == []


def test_a_thread_that_cannot_be_started_is_an_error_each_time(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                next(loader().epoch())
    assert len(list(loader().epoch())) == 7


def test_error_reaches_the_consumer():
    calls = []

    def broken(images):
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("in the background")
        return plain(images)

    steps = 0
    with pytest.raises(ZeroDivisionError, match="in the background"):
        for _ in loader(normalise=broken).epoch():
            steps += 1
    assert steps == 2 and loader_threads() == []


@pytest.mark.parametrize(
    "images, labels, batch_size, message",
    [
        (IMAGES.astype(np.float32), LABELS, 8, "uint8 .* got float32"),
        (IMAGES[0], LABELS, 8, r"got uint8 \(32, 32, 3\)"),
        (IMAGES, LABELS[:-1], 8, r"labels: expected 50 integers, got int64 \(49,\)"),
        (IMAGES, LABELS / 2, 8, "got float64"),
        (IMAGES, LABELS, 0, "batch_size: expected 1 to 50, got 0"),
        (IMAGES, LABELS, 51, "got 51"),
    ],
)
def test_bad_arguments(images, labels, batch_size, message):
    with pytest.raises(ValueError, match=message):
        Loader(images, labels, batch_size, normalise=plain)


def test_batch_costs_little():
    """A batch of 128 takes a few milliseconds, and a training step 300. The bound is loose."""
    images = np.concatenate([IMAGES] * 3)
    one = Loader(images, np.zeros(150, int), 128, normalise=Normalise.channels(images), augment=True)
    times = []
    for step in range(15):
        start = time.perf_counter()
        one._batch(np.arange(150), step, 0)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.009
