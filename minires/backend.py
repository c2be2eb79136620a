"""Array libraries and devices: NumPy on a CPU, CuPy on a GPU; and random generators, which are always NumPy's.

Only this file and the doctor, which reports why a GPU can't be used, name CuPy. All others work on *arrays*, ask
`array_module(x)` for the library that made them, and call functions of that library:

    xp = array_module(x)        # numpy for a NumPy array, cupy for a CuPy array
    y = xp.maximum(x, 0)

Other libraries can be registered, as the pretend GPU in devices/strict.py is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Array = Any  # a NumPy array, or one of a registered library


@dataclass(frozen=True)
class Backend:
    """An array library: its functions, and how arrays are copied to it and back."""

    name: str  # of its device
    xp: Any
    array_type: type
    to_device: Callable[[np.ndarray], Array]
    to_host: Callable[[Array], np.ndarray]


CPU = Backend("cpu", np, np.ndarray, np.asarray, np.asarray)

_backends = {"cpu": CPU}
_by_type: dict[type, Backend] = {}  # anything else belongs to the CPU: NumPy takes numbers and lists, too
_on_first_use: dict[str, Callable[[], object]] = {}


def register(backend: Backend) -> None:
    """Add an array library, so that `array_module` knows its arrays and `to_device` its name."""
    _backends[backend.name] = backend
    _by_type[backend.array_type] = backend


def register_on_first_use(device: str, load: Callable[[], object]) -> None:
    """Call `load()`, which registers the library of `device`, when that device is first asked for."""
    _on_first_use[device] = load


def array_module(x: Array) -> Any:
    """The library whose functions work on `x`: `numpy`, `cupy`, or one that was registered."""
    return _by_type.get(type(x), CPU).xp


def device_of(x: Array) -> str:
    """The name of the device that holds `x`: "cpu", "gpu", or a registered one."""
    return _by_type.get(type(x), CPU).name


def to_device(x: Array, device: str) -> Array:
    """`x` on `device` ("cpu", "gpu" or "strict"); the same array if it is already there."""
    if device not in _backends and device in _on_first_use:
        _on_first_use[device]()
    if device not in _backends:
        known = ", ".join(sorted({*_backends, *_on_first_use}))
        raise ValueError(f"device: expected one of {known}, got {device!r}")
    if device_of(x) == device and not np.isscalar(x):
        return x
    return _backends[device].to_device(to_host(x))


def to_host(x: Array) -> np.ndarray:
    """`x` as a NumPy array; the same array if it already is one."""
    return _by_type.get(type(x), CPU).to_host(x)


# What random numbers are drawn for. 0 is for a net's first weights: NumPy pads `default_rng(seed)` to [seed, 0, 0, 0].
PURPOSES = {"shuffle": 1, "augment": 2, "dropout": 3}


def generator(seed: int, purpose: str, first: int = 0, second: int = 0) -> np.random.Generator:
    """A generator for one draw, on the host; its key says what the draw is for and which it is: (epoch, step).

    No state is carried from draw to draw, so each can be repeated alone. The key always has four numbers: since NumPy
    pads shorter ones with zeros, keys of different lengths can be the same stream, as `seed` and `[seed, 0]` are.
    """
    return np.random.default_rng([seed, PURPOSES[purpose], first, second])


def _register_cupy() -> None:
    try:
        import cupy

        a = cupy.ones((2, 2), np.float32)
        float((a @ a + 1).sum())  # only a computation finds a missing driver, cuBLAS (product) or NVRTC (sum)
    except Exception as error:  # of many kinds; with any of them the GPU can't be used
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RuntimeError(
            f"device 'gpu' can't be used ({reason[:200]}); how to fix it: python -m minires doctor"
        ) from error
    # blocking: the host's array may be overwritten as soon as this returns
    register(Backend("gpu", cupy, cupy.ndarray, partial(cupy.asarray, blocking=True), cupy.asnumpy))


register_on_first_use("gpu", _register_cupy)
