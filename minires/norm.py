"""Batch norm and layer norm: first step by step, then as one operation with a backward pass derived by hand.

Both make numbers standard, then let the net choose scale and shift again:

    xhat = (x - mean) / sqrt(var + eps)          y = gamma xhat + beta

Batch norm takes mean and var of each channel over the whole batch (N, H, W); layer norm takes them of each position
over its channels. Sources: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; Ba et al. 2016,
https://arxiv.org/abs/1607.06450.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minires.backend import Array, array_module, fuse, in_lanes, sum_in_order
from minires.tensor import Gradients, Tensor


def batch_norm_simple(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch norm in training, in atomic steps; the engine finds the gradient. x: (..., C); gamma, beta: (C,)."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)  # (C,)
    centred = x - mean
    var = (centred * centred).mean(axes)  # (C,)
    xhat = centred / (var + eps).sqrt()
    return gamma * xhat + beta


def layer_norm_simple(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm in atomic steps. x: (..., C); gamma, beta: (C,)."""
    mean = x.mean(-1, keepdims=True)  # (..., 1)
    centred = x - mean
    var = (centred * centred).mean(-1, keepdims=True)
    return gamma * (centred / (var + eps).sqrt()) + beta


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Array,
    running_var: Array,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
) -> Tensor:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, and with `relu` max(0, y) in the same pass over memory.

    x: (..., C), usually (N, H, W, C); gamma, beta, running_mean, running_var: (C,).

    Training: mean and var are the batch's, and the running ones move towards them in place,
        running = (1 - momentum) running + momentum batch        (with the unbiased variance, as in PyTorch).
    Evaluation: mean and var are the running ones, constants.

    Backward, with g = dL/dy, sums over the M = N*H*W numbers of a channel and s = 1 / sqrt(var + eps):
        dbeta = sum g           dgamma = sum g xhat
        dx = gamma s (g - dbeta / M - xhat dgamma / M)
    The last two terms are there because mean and var depend on x too; in evaluation they are not.
    """
    _check_norm("batch_norm", x, gamma, beta)
    c, m = x.shape[-1], max(1, x.size // x.shape[-1])  # 1 for an empty batch, so that nothing divides by 0
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running.shape != (c,):
            raise ValueError(f"batch_norm: {name} has shape {running.shape}, expected ({c},) for x {x.shape}")
    xp, x_data = array_module(x.data), x.data
    if training:
        if m < 2:
            raise ValueError(
                f"batch_norm: training needs at least 2 numbers a channel, x is {x.shape}; "
                "use a larger batch, or net.eval()"
            )
        mean, var = _moments(x_data)
        _move(running_mean, running_var, mean, var, momentum, m / (m - 1))
    else:
        mean, var = running_mean.astype(x.dtype), running_var.astype(x.dtype)
    s, scale, shift = _constants(gamma.data, beta.data, mean, var, eps)
    scale, shift = _tile(scale, x), _tile(shift, x)
    zero = xp.zeros_like(scale) if relu else None  # NumPy compares with a row much faster than with a single number
    out_data = xp.empty(x.shape, x.dtype)
    rows, out = _rows(x_data), _rows(out_data)

    def forward(chunks: Iterator[slice]) -> None:
        for i in chunks:
            _scale_and_shift(rows[i], scale, shift, zero, out[i])

    in_lanes(forward, rows, 2 * rows[:1].nbytes)

    def backward(grad: Array) -> Gradients:
        dx = xp.empty(x.shape, x.dtype)
        grad, g = _rows(grad), _rows(dx)

        parts: dict[int, Array] = {}  # of each chunk, the sums of g and of g x

        def sums(chunks: Iterator[slice]) -> None:
            for i in chunks:
                _through_relu(grad[i], out[i] if relu else None, g[i])
                parts[i.start] = xp.stack([_column_sums(g[i]), _column_sums_of_product(g[i], rows[i])])

        in_lanes(sums, rows, 2 * rows[:1].nbytes)
        dbeta, gx = _per_channel(sum_in_order(parts), c)
        dgamma, a, b = _gradient_constants(gx, dbeta, gamma.data, mean, s, m)
        a, b = (_tile(a, x), _tile(b, x)) if training else (None, None)

        def input_gradient(chunks: Iterator[slice]) -> None:
            for i in chunks:
                _input_gradient(rows[i], scale, a, b, g[i])

        in_lanes(input_gradient, rows, 2 * rows[:1].nbytes)
        return dx, dgamma, dbeta

    return Tensor.from_op(out_data, (x, gamma, beta), backward, "batch_norm")


# The formulas of batch norm, on arrays: each is one kernel on a GPU.


@fuse("batch_norm_moments")
def _mean_and_variance(xp: Any, k: Array, first: Array, second: Array, m: int) -> tuple[Array, Array]:
    """Both from k and the sums of x - k and of its square, see `_moments`."""
    first, second = first / m, second / m
    return k + first, xp.maximum(second - first * first, 0)


@fuse("batch_norm_running")
def _move(
    xp: Any, running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: float, unbiased: float
) -> None:
    """The running statistics move towards the batch's, in place."""
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * unbiased - running_var)


@fuse("batch_norm_constants")
def _constants(xp: Any, gamma: Array, beta: Array, mean: Array, var: Array, eps: float) -> tuple[Array, Array, Array]:
    """s, and scale and shift, which make y = scale x + shift. All are (C,)."""
    s = 1 / xp.sqrt(var + eps)
    return s, gamma * s, beta - mean * gamma * s


@fuse("batch_norm")
def _scale_and_shift(xp: Any, x: Array, scale: Array, shift: Array, least: Array | None, out: Array) -> None:
    """out = scale x + shift, and nowhere below `least`."""
    xp.multiply(x, scale, out=out)
    out += shift
    if least is not None:
        xp.maximum(out, least, out=out)


@fuse("batch_norm_relu_gradient")
def _through_relu(xp: Any, grad: Array, y: Array | None, out: Array) -> None:
    """out = the gradient where y > 0, else 0; all of the gradient where no ReLU gave y."""
    xp.multiply(grad, 1 if y is None else y > 0, out=out)


@fuse("batch_norm_gradient_constants")
def _gradient_constants(
    xp: Any, gx: Array, dbeta: Array, gamma: Array, mean: Array, s: Array, m: int
) -> tuple[Array, Array, Array]:
    """dgamma, and a and b, which make dx = scale g + a x + b: the formula's terms, gathered by what they multiply.

    gx: the sums of g x. All are (C,).
    """
    dgamma = (gx - mean * dbeta) * s
    a = -gamma * s * s * dgamma / m
    return dgamma, a, -gamma * s * dbeta / m - a * mean


@fuse("batch_norm_input_gradient")
def _input_gradient(xp: Any, x: Array, scale: Array, a: Array | None, b: Array | None, g: Array) -> None:
    """g becomes dx."""
    g *= scale
    if a is not None:
        g += x * a
        g += b


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, mean and var over the last axis. x: (..., C); gamma, beta: (C,).

    Backward, with h = gamma dL/dy and means over C:   dx = (h - mean(h) - xhat mean(h xhat)) / sqrt(var + eps)
    The same formula as batch norm's, along the other axis; nothing is shared between the examples of a batch.
    """
    _check_norm("layer_norm", x, gamma, beta)
    xp, x_data = array_module(x.data), x.data
    centred = x_data - x_data.mean(-1, keepdims=True)
    s = 1 / xp.sqrt((centred * centred).mean(-1, keepdims=True) + eps)  # (..., 1)
    xhat = centred * s
    axes = tuple(range(x.ndim - 1))

    def backward(grad: Array) -> Gradients:
        h = grad * gamma.data
        dx = (h - h.mean(-1, keepdims=True) - xhat * (h * xhat).mean(-1, keepdims=True)) * s
        return dx, (grad * xhat).sum(axes), grad.sum(axes)

    return Tensor.from_op(gamma.data * xhat + beta.data, (x, gamma, beta), backward, "layer_norm")


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and (biased) variance of each channel of x (..., C), in one pass over memory.

    With any constant k,   mean = k + E[x - k]   and   var = E[(x - k)^2] - E[x - k]^2.   k = 0 loses every digit of
    the variance when the mean is large. The mean of one image as k loses hardly any: k is then the mean of one N-th of
    the numbers, and so (mean - k)^2 is at most N times the variance.
    """
    xp, c, rows = array_module(x), x.shape[-1], _rows(x)
    k = x[0].reshape(-1, c).mean(axis=0)
    k_row = _tile(k, x)

    parts: dict[int, Array] = {}  # of each chunk, the sums of x - k and of its square

    def lane(chunks: Iterator[slice]) -> None:
        for i in chunks:
            shifted = rows[i] - k_row
            parts[i.start] = xp.stack([_column_sums(shifted), _column_sums_of_product(shifted, shifted)])

    in_lanes(lane, rows, 2 * rows[:1].nbytes)
    first, second = _per_channel(sum_in_order(parts), c)
    return _mean_and_variance(k, first, second, x.size // c)


# Channels are few and rows are many, so loops over (N*H*W, C) would be all overhead. Seen as (N*H, W*C), the same
# memory has long rows; a vector over the channels is repeated W times to match.


def _rows(x: Array) -> Array:
    """A view of x (N, H, W, C) as (N*H, W*C); of x (N, C) as it is."""
    return x.reshape(-1, x.shape[-2] * x.shape[-1]) if x.ndim > 2 else x


def _tile(v: Array, x: Tensor | Array) -> Array:
    """v (C,) repeated to the row length of _rows(x)."""
    return array_module(v).broadcast_to(v, x.shape[-2:]).reshape(-1) if x.ndim > 2 else v


def _column_sums(a: Array) -> Array:
    """(rows, columns) -> (columns,). A product with ones is the quickest sum NumPy has."""
    return array_module(a).ones(len(a), a.dtype) @ a


def _column_sums_of_product(a: Array, b: Array) -> Array:
    """The same for a times b."""
    return array_module(a).einsum("ij,ij->j", a, b)


def _per_channel(total: Array, c: int) -> Array:
    """(..., W*C) -> (..., C): the sum over W."""
    return total.reshape(*total.shape[:-1], -1, c).sum(axis=-2)


def _check_norm(name: str, x: Tensor, gamma: Tensor, beta: Tensor) -> None:
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (N, ..., C), of which only N may be 0")
    for which, t in (("gamma", gamma), ("beta", beta)):
        if t.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: {which} has shape {t.shape}, expected one number for each channel of x {x.shape}"
            )
        if t.dtype != x.dtype:
            raise TypeError(f"{name}: {which} is {t.dtype}, x is {x.dtype}; convert one of them")
