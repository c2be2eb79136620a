"""Batch norm and layer norm: first step by step, then as one operation with a backward pass derived by hand.

Both standardise, then apply a learned scale and shift:

    xhat = (x - mean) / sqrt(var + eps)          y = gamma xhat + beta

Batch norm takes mean and var of each channel over the entire batch (N, H, W); layer norm takes them of each position
over its channels. Sources: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; Ba et al. 2016,
https://arxiv.org/abs/1607.06450.
"""

from __future__ import annotations

from minires import kernels
from minires.backend import Array, array_module
from minires.parallel import over_batch, scratch
from minires.tensor import Gradients, Tensor, add_up, check_tensors


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
) -> Tensor:
    """y = gamma xhat + beta, xhat = (x - mean) s, s = 1 / sqrt(var + eps).

    x: (..., C), usually (N, H, W, C); gamma, beta, running_mean, running_var: (C,).

    Training: mean and var are the batch's, and the running ones move towards them in place,
        running = (1 - momentum) running + momentum batch        (with the unbiased variance, as in PyTorch).
    Evaluation: mean and var are the running ones, constants.

    Backward, with g = dL/dy and sums over the M = N*H*W numbers of a channel:
        dbeta = sum g           dgamma = sum g xhat
        dx = gamma s (g - mean_term - variance_term),    mean_term = dbeta / M,    variance_term = xhat dgamma / M
    The two terms are there because mean and var depend on x too; in evaluation they don't, and the terms are 0.
    """
    _check_batch_norm(x, gamma, beta, running_mean, running_var, training)
    # m is 1 for an empty batch in evaluation, so that nothing divides by 0
    x_data, m = x.saved, max(1, x.size // x.shape[-1])
    if training:
        mean, var = _mean_and_variance(x_data)
        kernels.update_running_statistics(running_mean, running_var, mean, var, momentum, m / (m - 1))
    else:
        mean, var = running_mean.astype(x.dtype), running_var.astype(x.dtype)
    s, scale, shift = kernels.fold_into_scale_and_shift(gamma.data, beta.data, mean, var, eps)
    out = _apply_scale_and_shift(x_data, scale, shift)  # gamma xhat + beta = scale x + shift, in one pass over memory

    def backward(grad: Array) -> Gradients:
        dbeta, sum_gc = _channel_sums(grad, x_data, mean)  # sum g, sum g (x - mean)
        dgamma, slope, offset = kernels.gradient_terms(sum_gc, dbeta, mean, s, m)
        if not training:
            return grad * scale, dgamma, dbeta
        # dx = gamma s (g - mean_term - variance_term), where gamma s is scale and both terms add up to slope x + offset
        return _input_gradient(grad, x_data, scale, slope, offset), dgamma, dbeta

    return Tensor.from_op(out, (x, gamma, beta), backward, "batch_norm")


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """y = gamma xhat + beta, xhat = (x - mean) s, mean and var over the last axis. x: (..., C); gamma, beta: (C,).

    Backward, with h = gamma dL/dy and means over C:   dx = s (h - mean(h) - xhat mean(h xhat)).
    The same formula as batch norm's, along the other axis; nothing is shared between the examples of a batch.
    """
    _check_gamma_and_beta("layer_norm", x, gamma, beta)
    centred = x.data - x.data.mean(-1, keepdims=True)
    s = 1 / array_module(x.data).sqrt((centred * centred).mean(-1, keepdims=True) + eps)  # (..., 1)
    xhat, gamma_saved = centred * s, gamma.saved
    axes = tuple(range(x.ndim - 1))

    def backward(grad: Array) -> Gradients:
        h = grad * gamma_saved
        dx = s * (h - h.mean(-1, keepdims=True) - xhat * (h * xhat).mean(-1, keepdims=True))
        return dx, add_up(grad * xhat, axes), add_up(grad, axes)

    return Tensor.from_op(gamma_saved * xhat + beta.data, (x, gamma, beta), backward, "layer_norm")


# ---- batch norm's passes over memory --------------------------------------------------------------------------------
#
# Channels are few and pixels are many, so loops over (N*H*W, C) would be all overhead. Seen as (N*H, W*C), the same
# memory has long rows; a vector over the channels is repeated W times to match. These rows are `over_batch`'s items.


def _apply_scale_and_shift(x: Array, scale: Array, shift: Array) -> Array:
    """scale x + shift, for x (..., C), scale and shift (C,)."""
    out = array_module(x).empty(x.shape, x.dtype)
    scale, shift = _repeat(scale, x), _repeat(shift, x)

    def forward(x: Array, out: Array) -> None:
        kernels.scale_and_shift(x, scale, shift, out)

    over_batch(forward, _long_rows(x), _long_rows(out))
    return out


def _input_gradient(grad: Array, x: Array, scale: Array, slope: Array, offset: Array) -> Array:
    """scale (grad - (slope x + offset)), for grad and x (..., C), the others (C,)."""
    out = array_module(x).empty(x.shape, x.dtype)
    scale, slope, offset = _repeat(scale, x), _repeat(slope, x), _repeat(offset, x)

    def gradient(grad: Array, x: Array, out: Array) -> None:
        kernels.input_gradient(grad, x, scale, slope, offset, out)

    over_batch(gradient, _long_rows(grad), _long_rows(x), _long_rows(out))
    return out


def _channel_sums(g: Array, x: Array, mean: Array) -> Array:
    """For each channel the sums of g and of g (x - mean):  (2, C)."""
    xp, mean = array_module(x), _repeat(mean, x)

    def sums(g: Array, x: Array) -> Array:
        centred = xp.subtract(x, mean, out=scratch("centred", x.shape, x))
        return xp.stack([_column_sums(g), xp.einsum("ij,ij->j", g, centred)])

    return _sum_over_width(over_batch(sums, _long_rows(g), _long_rows(x)), x)


def _mean_and_variance(x: Array) -> tuple[Array, Array]:
    """Mean and (biased) variance of each channel of x (..., C), in one pass over memory.

    With any constant k,   mean = k + E[x - k]   and   var = E[(x - k)^2] - E[x - k]^2.   k = 0 loses every digit of
    the variance when the mean is large. The mean of one image as k loses hardly any: k is then the mean of one N-th of
    the numbers, which contributes (mean - k)^2 / N or more to the variance, so (mean - k)^2 is at most N times it and
    the subtraction loses about log10 N digits.
    """
    xp, c = array_module(x), x.shape[-1]
    k = x[0].reshape(-1, c).mean(axis=0)
    k_row = _repeat(k, x)

    def sums(x: Array) -> Array:
        shifted = xp.subtract(x, k_row, out=scratch("centred", x.shape, x))
        return xp.stack([_column_sums(shifted), xp.einsum("ij,ij->j", shifted, shifted)])

    sum1, sum2 = _sum_over_width(over_batch(sums, _long_rows(x)), x)
    mean, var = kernels.mean_and_variance(k, sum1, sum2, x.size // c)
    return mean, var


def _long_rows(x: Array) -> Array:
    """A view of x (N, H, W, C) as (N*H, W*C); of x (N, C) as it is."""
    return x.reshape(-1, x.shape[-2] * x.shape[-1]) if x.ndim > 2 else x


def _repeat(v: Array, x: Array) -> Array:
    """v (C,) repeated to the row length of _long_rows(x)."""
    return array_module(v).broadcast_to(v, x.shape[-2:]).reshape(-1) if x.ndim > 2 else v


def _column_sums(a: Array) -> Array:
    """(rows, columns) -> (columns,). A product with ones is NumPy's fastest column sum."""
    return array_module(a).ones(len(a), a.dtype) @ a


def _sum_over_width(total: Array, x: Array) -> Array:
    """(..., W*C) -> (..., C), C the channels of x."""
    return total.reshape(*total.shape[:-1], -1, x.shape[-1]).sum(axis=-2)


# ---- argument checks ------------------------------------------------------------------------------------------------


def _check_gamma_and_beta(op: str, x: Tensor, gamma: Tensor, beta: Tensor) -> None:
    check_tensors(op, x=x, gamma=gamma, beta=beta)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"{op}: expected x (N, ..., C), of which only N may be 0, got {x.shape}")
    for name, t in (("gamma", gamma), ("beta", beta)):
        if t.shape != x.shape[-1:]:
            raise ValueError(
                f"{op}: expected {name} {x.shape[-1:]}, one number for each channel of x {x.shape}, got {t.shape}"
            )
        if t.dtype != x.dtype:
            raise TypeError(f"{op}: {name} is {t.dtype}, x is {x.dtype}; convert one of them")


def _check_batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Array, running_var: Array, training: bool
) -> None:
    _check_gamma_and_beta("batch_norm", x, gamma, beta)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running.shape != x.shape[-1:]:
            raise ValueError(f"batch_norm: expected {name} {x.shape[-1:]} for x {x.shape}, got {running.shape}")
    if training and x.size < 2 * x.shape[-1]:
        raise ValueError(
            f"batch_norm: training needs at least 2 numbers for each channel, got x {x.shape}; "
            "use a larger batch, or net.eval()"
        )
