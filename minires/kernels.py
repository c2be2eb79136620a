"""Inner formulas of batch norm, ReLU and SGD: each is one pass over memory, and one kernel on a GPU.

Starting a kernel takes about 7 microseconds, so a formula of six ufuncs costs six starts. CuPy can *fuse* them: it
calls the function once with stand-ins for its arguments and compiles what the function does to them. Such a function
may use operators and ufuncs and ask whether an argument is None; but no shape, index, reduction or value of a number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numpy as np

from minires.backend import Array, array_module


def fuse(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make one GPU kernel, called `name`, of a function that is a chain of ufuncs; with NumPy it stays as it is.

    @fuse("scale_and_shift")
    def scale_and_shift(xp, x, scale, shift, out):
        xp.multiply(x, scale, out=out)
        out += shift

    scale_and_shift(x, scale, shift, out)          # xp, the library of x, is put in front
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: dict[Any, Callable[..., Any]] = {}  # one for each library

        @wraps(function)
        def kernel(*arguments: Any) -> Any:
            xp = array_module(arguments[0])
            if xp is np:
                return function(np, *arguments)
            if xp not in compiled:
                compiled[xp] = xp.fuse(kernel_name=name)(partial(function, xp))
            return compiled[xp](*arguments)

        return kernel

    return decorate


# ---- ReLU


@fuse("relu_gradient")
def relu_gradient(xp: Any, grad: Array, y: Array, out: Array) -> None:
    """out = grad where y > 0, else 0; y = max(0, x) is never below 0, but may be NaN, where grad passes."""
    xp.multiply(grad, y != 0, out=out)


# ---- batch norm: all arrays of one number per channel are (C,)


@fuse("batch_norm_mean_and_variance")
def mean_and_variance(xp: Any, k: Array, sum1: Array, sum2: Array, m: int) -> tuple[Array, Array]:
    """Mean and variance of m numbers x, from any k, the sum of x - k, and the sum of its square:
    mean = k + E[x - k],  var = E[(x - k)^2] - E[x - k]^2."""
    mean1, mean2 = sum1 / m, sum2 / m
    return k + mean1, xp.maximum(mean2 - mean1 * mean1, 0)


@fuse("batch_norm_update_running")
def update_running_statistics(
    xp: Any, running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: float, unbiased: float
) -> None:
    """running = (1 - momentum) running + momentum batch, in place. unbiased: m / (m - 1), which corrects `var`."""
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * unbiased - running_var)


@fuse("batch_norm_fold")
def fold_into_scale_and_shift(
    xp: Any, gamma: Array, beta: Array, mean: Array, var: Array, eps: float
) -> tuple[Array, Array, Array]:
    """s, scale and shift, with which y = gamma (x - mean) s + beta = scale x + shift."""
    s = 1 / xp.sqrt(var + eps)
    return s, gamma * s, beta - mean * gamma * s


@fuse("batch_norm")
def scale_and_shift(xp: Any, x: Array, scale: Array, shift: Array, out: Array) -> None:
    """out = scale x + shift."""
    xp.multiply(x, scale, out=out)
    out += shift


@fuse("batch_norm_gradient_terms")
def gradient_terms(xp: Any, sum_gc: Array, dbeta: Array, mean: Array, s: Array, m: int) -> tuple[Array, Array, Array]:
    """dgamma, and the slope and offset of  mean_term + variance_term = slope x + offset.

    sum_gc: the sums of g (x - mean). The formulas are in `batch_norm`, norm.py.
    """
    dgamma = sum_gc * s  # the sum of g xhat, since xhat = (x - mean) s
    mean_term = dbeta / m
    slope = s * dgamma / m  # variance_term = xhat dgamma / m = slope (x - mean)
    return dgamma, slope, mean_term - slope * mean


@fuse("batch_norm_input_gradient")
def input_gradient(xp: Any, grad: Array, x: Array, scale: Array, slope: Array, offset: Array, out: Array) -> None:
    """out = scale (grad - (mean_term + variance_term)), the terms together being slope x + offset."""
    xp.multiply(x, slope, out=out)
    out += offset
    xp.subtract(grad, out, out=out)
    out *= scale


# ---- SGD


@fuse("sgd")
def sgd(
    xp: Any, p: Array, v: Array, g: Array, lr: float, momentum: float, decay: float | None, nesterov: bool | None
) -> None:
    """A step of SGD, see optim.py: changes a parameter p and its velocity v in place. None: without it."""
    if decay is not None:
        g = g + decay * p
    v *= momentum
    v += g
    p -= lr * (v if nesterov is None else g + momentum * v)
