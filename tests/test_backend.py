"""Which library made an array, and how arrays cross between devices."""

import numpy as np
import pytest

from minires import backend
from minires.backend import array_module, device_of, to_device, to_host


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
