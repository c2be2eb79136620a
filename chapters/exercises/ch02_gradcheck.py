# Write your answers here, then run: python -m minires check
"""Exercises of chapter 2, "Trust, but check".

2.1 slope_along         the central difference, along a direction
2.2 relative_error      how far apart two gradients are
2.3 numerical_gradient  every entry nudged, with a random upstream gradient
2.4 kinks               where a measurement cannot be trusted
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def slope_along(f: Callable[[np.ndarray], float], x: np.ndarray, v: np.ndarray, h: float = 1e-6) -> float:
    """2.1: how fast f grows when x moves along v, measured by a central difference.

    (f(x + h v) - f(x - h v)) / 2h

    f: takes an array, returns a number. x, v: arrays of one shape; x may be float32.

    Returns a number. Whatever the dtype of x, the nudged arrays are float64: in float32 a nudge of 1e-6 drowns in
    rounding errors. x and v must not change.

    Level 1, about 2 lines.
    """
    raise NotImplementedError("exercise 2.1")


def relative_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """2.2: how far apart two gradients are, entry by entry.

    |a - b| / max(|a|, |b|),   and 0 where both are 0

    a, b: float64 arrays of one shape; neither may change. Returns an array of that shape.

    Level 1, about 2 lines.
    """
    raise NotImplementedError("exercise 2.2")


def numerical_gradient(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, grad: np.ndarray, h: float = 1e-6
) -> np.ndarray:
    """2.3: the gradient of L = sum of (grad * f(x)) with respect to x, by central differences.

    dL/dx_i = sum of grad * (f(x + h e_i) - f(x - h e_i)) / 2h,   where e_i is 1 at entry i and 0 elsewhere

    f: takes an array of x's shape and returns an array of grad's shape. It may return a view of the array that it was
    given, as lambda x: x.T does. x: float64, any number of axes. grad: the upstream gradient.

    Returns a float64 array of x's shape. x and grad must not change. `for index in np.ndindex(x.shape)` visits the
    entries of x, whatever its shape.

    Level 2, about 7 lines.
    """
    raise NotImplementedError("exercise 2.3")


def kinks(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """2.4: at which entries of x has f a kink?

    With the slopes on both sides of entry i,

    above = (f(x + h e_i) - f(x)) / h,     below = (f(x) - f(x - h e_i)) / h,

    entry i is at a kink if |above - below| > 0.001 max(1, |above|, |below|).

    f: takes an array of x's shape, returns a number. x: float64; it must not change.

    Returns an array of x's shape and dtype bool: True where there is a kink.

    Level 2, about 8 lines.
    """
    raise NotImplementedError("exercise 2.4")
