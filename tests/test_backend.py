"""Which library made an array, how arrays cross between devices, and which random numbers are drawn for what."""

from itertools import product

import numpy as np
import pytest

from minires import backend, nn
from minires.backend import PURPOSES, array_module, device_of, generator, to_device, to_host
from minires.data.loader import Loader
from minires.resnet import build
from minires.tensor import Tensor


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
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
    backend.register(backend.Backend("elsewhere", "its functions", Elsewhere, Elsewhere, lambda x: x.array))


def test_a_registered_library_is_known_by_its_arrays(elsewhere):
    x = np.ones(3)
    there = to_device(x, "elsewhere")
    assert isinstance(there, Elsewhere)
    assert array_module(there) == "its functions" and device_of(there) == "elsewhere"
    assert to_device(there, "elsewhere") is there
    assert to_host(there) is x and to_device(there, "cpu") is x


# ---- random generators -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2, 2**32 - 1, 2**40])
def test_no_two_purposes_of_a_seed_share_their_first_ten_numbers(seed):
    keys = list(product(PURPOSES, range(4), range(4)))
    streams = [np.random.default_rng(seed), *(generator(seed, *key) for key in keys)]
    numbers = {number for stream in streams for number in stream.random(10)}
    assert len(numbers) == 10 * len(streams) == 10 * (1 + 3 * 16)


def test_what_a_run_draws_from_never_coincides(monkeypatch):
    real, drawn = np.random.default_rng, []

    def spy(key):
        drawn.append(tuple(real(key).random(10)))
        return real(key)

    monkeypatch.setattr(np.random, "default_rng", spy)
    build("resnet8", seed=0)
    dropout = nn.Dropout(0.5, seed=0)
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, int)
    loader = Loader(images, labels, 2, normalise=np.float32, seed=0, shuffle=True, augment=True)
    for epoch in range(3):
        for _ in loader.epoch(epoch):
            dropout(Tensor(np.ones((2, 3))))
    assert len(drawn) == 1 + 3 + 6 + 6
    assert len(set(drawn)) == len(drawn)


def test_the_recorded_runs_would_draw_the_same_again():
    for draws, key in (
        (generator(7, "shuffle", 3), [7, 1, 3]),
        (generator(7, "augment", 3, 5), [7, 2, 3, 5]),
        (generator(0, "augment"), [0, 2, 0, 0]),
    ):
        assert np.array_equal(draws.random(10), np.random.default_rng(key).random(10))
