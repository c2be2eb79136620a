"""Batch norm and layer norm: first step by step, then as one operation with a backward pass derived by hand.

Both make numbers standard, then let the net choose scale and shift again:

    xhat = (x - mean) / sqrt(var + eps)          y = gamma xhat + beta

Batch norm takes mean and var of each channel over the whole batch (N, H, W); layer norm takes them of each position
over its channels. Sources: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; Ba et al. 2016,
https://arxiv.org/abs/1607.06450.
"""

from __future__ import annotations

from minires.backend import Array, array_module, in_lanes
from minires.tensor import Gradients, Tensor


def batch_norm_slow(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch norm in training, in atomic steps; the engine finds the gradient. x: (..., C); gamma, beta: (C,)."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)  # (C,)
    centred = x - mean
    var = (centred * centred).mean(axes)  # (C,)
    xhat = centred / (var + eps).sqrt()
    return gamma * xhat + beta


def layer_norm_slow(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
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
    c, m = x.shape[-1], x.size // max(1, x.shape[-1])
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running.shape != (c,):
            raise ValueError(f"batch_norm: {name} has shape {running.shape}, wanted ({c},) for x {x.shape}")
    xp, x_data = array_module(x.data), x.data
    if training:
        if m < 2:
            raise ValueError(f"batch_norm: training needs at least 2 numbers a channel, x is {x.shape}; "
                             "use a larger batch, or net.eval()")  # fmt: skip
        mean, var = _moments(x_data)
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (var * (m / (m - 1)) - running_var)
    else:
        mean, var = running_mean.copy(), running_var.copy()
    s = 1 / xp.sqrt(var + eps)  # (C,)
    scale, centre, shift = _tile(gamma.data * s, x), _tile(mean, x), _tile(beta.data - mean * gamma.data * s, x)
    out_data = xp.empty(x.shape, x.dtype)
    rows, out = _rows(x_data), _rows(out_data)

    def forward(chunks: list[slice]) -> None:
        for i in chunks:
            y = xp.multiply(rows[i], scale, out=out[i])
            y += shift
            if relu:
                xp.maximum(y, 0, out=y)

    in_lanes(forward, rows, 2 * rows[:1].nbytes)

    def backward(grad: Array) -> Gradients:
        dx = xp.empty(x.shape, x.dtype)
        grad, g = _rows(grad), _rows(dx)

        def sums(chunks: list[slice]) -> Array:
            total = xp.zeros((2, c), x.dtype)  # of g, and of g (x - mean)
            for i in chunks:
                xp.multiply(grad[i], out[i] > 0 if relu else 1, out=g[i])
                total[0] += _column_sums(g[i], c)
                total[1] += _column_sums_of_product(g[i], rows[i] - centre, c)
            return total

        dbeta, dgamma = sum(in_lanes(sums, rows, 4 * rows[:1].nbytes))
        dgamma = dgamma * s
        if training:  # dx = scale g + a x + b: the terms of the formula, gathered by what they multiply
            a = -gamma.data * s * s * dgamma / m
            b = _tile(-gamma.data * s * dbeta / m - a * mean, x)
            a = _tile(a, x)

        def input_gradient(chunks: list[slice]) -> None:
            for i in chunks:
                dx_i = g[i]
                dx_i *= scale
                if training:
                    dx_i += rows[i] * a
                    dx_i += b

        in_lanes(input_gradient, rows, 3 * rows[:1].nbytes)
        return dx, dgamma, dbeta

    return Tensor.from_op(out_data, (x, gamma, beta), backward, "batch_norm")


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

    Each chunk gives its own mean m_i and squared deviations from it; then, with n_i numbers in chunk i,
        mean = sum n_i m_i / M        var = (sum of squared deviations + sum n_i (m_i - mean)^2) / M.
    E[x^2] - mean^2 would be shorter and loses every digit when the mean is large.
    """
    c, rows = x.shape[-1], _rows(x)

    def lane(chunks: list[slice]) -> list[tuple[int, Array, Array]]:
        found = []
        for i in chunks:
            n = rows[i].size // c
            mean = _column_sums(rows[i], c) / n
            centred = rows[i] - _tile(mean, x)
            found.append((n, mean, _column_sums_of_product(centred, centred, c)))
        return found

    found = [chunk for lane_found in in_lanes(lane, rows, 2 * rows[:1].nbytes) for chunk in lane_found]
    m = sum(n for n, _, _ in found)
    mean = sum(n * chunk_mean for n, chunk_mean, _ in found) / m
    var = sum(squares + n * (chunk_mean - mean) ** 2 for n, chunk_mean, squares in found) / m
    return mean, var


# Channels are few and rows are many, so loops over (N*H*W, C) would be all overhead. Seen as (N*H, W*C), the same
# memory has long rows; a vector over the channels is repeated W times to match.


def _rows(x: Array) -> Array:
    """A view of x (N, H, W, C) as (N*H, W*C); of x (N, C) as it is."""
    return x.reshape(-1, x.shape[-2] * x.shape[-1]) if x.ndim > 2 else x


def _tile(v: Array, x: Tensor | Array) -> Array:
    """v (C,) repeated to the row length of _rows(x)."""
    return array_module(v).tile(v, x.shape[-2]) if x.ndim > 2 else v


def _column_sums(a: Array, c: int) -> Array:
    """(rows, W*C) -> (C,): sums over everything but the channel."""
    return (array_module(a).ones(len(a), a.dtype) @ a).reshape(-1, c).sum(0)


def _column_sums_of_product(a: Array, b: Array, c: int) -> Array:
    """The same for a times b."""
    return array_module(a).einsum("ij,ij->j", a, b).reshape(-1, c).sum(0)


def _check_norm(name: str, x: Tensor, gamma: Tensor, beta: Tensor) -> None:
    for which, t in (("gamma", gamma), ("beta", beta)):
        if x.ndim < 2 or t.shape != x.shape[-1:]:
            raise ValueError(f"{name}: {which} has shape {t.shape}, wanted one number for each channel of x {x.shape}")
        if t.dtype != x.dtype:
            raise TypeError(f"{name}: {which} is {t.dtype}, x is {x.dtype}; convert one of them")
