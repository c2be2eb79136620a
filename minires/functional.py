"""Operations without parameters of their own: activations, the loss, dropout, and the shortcut of option A."""

from __future__ import annotations

import numpy as np

from minires.backend import Array, array_module, device_of, to_device
from minires.kernels import relu_gradient
from minires.parallel import over_batch
from minires.tensor import Gradients, Tensor, check_tensors


def relu(x: Tensor) -> Tensor:
    """y = max(0, x);  dx = dy where x > 0, else 0 (so relu'(0) = 0)."""
    check_tensors("relu", x=x)
    xp = array_module(x.data)
    out = xp.empty(x.shape, x.dtype)
    zero = np.zeros(x.shape[1:], x.dtype) if xp is np else 0  # NumPy compares faster with an array than with a number

    def forward(x: Array, out: Array) -> None:  # a few items of the batch
        xp.maximum(x, zero, out=out)

    over_batch(forward, x.data, out)

    def backward(grad: Array) -> Gradients:
        dx = xp.empty(grad.shape, grad.dtype)
        over_batch(relu_gradient, grad, out, dx)
        return (dx,)

    return Tensor.from_op(out, (x,), backward, "relu")


def log_softmax(x: Tensor) -> Tensor:
    """y_k = x_k - ln sum_j e^(x_j) over the last axis;  dx = dy - softmax(x) sum_j dy_j.

    Subtracting max(x) first changes nothing mathematically and prevents overflow.
    """
    _check_log_softmax(x)
    xp = array_module(x.data)
    shifted = x.data - x.data.max(axis=-1, keepdims=True)
    out = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))

    def backward(grad: Array) -> Gradients:
        return (grad - xp.exp(out) * grad.sum(axis=-1, keepdims=True),)

    return Tensor.from_op(out, (x,), backward, "log_softmax")


def cross_entropy(logits: Tensor, labels: Array, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of  -sum_k t_k ln softmax(logits)_k.

    logits: (N, K); labels: (N,) integers in 0..K-1, see `check_labels`. The target t puts 1 - label_smoothing on the
    label and spreads `label_smoothing` evenly over all K classes (Szegedy et al. 2016, section 7).
    """
    labels = _check_cross_entropy(logits, labels, label_smoothing)
    n, k, xp = len(logits), int(logits.shape[1]), array_module(logits.data)
    log_p = log_softmax(logits)  # (N, K)
    # picked, not multiplied by zeros and ones: a class masked by -inf would make 0 * -inf
    of_label = log_p[xp.arange(n), to_device(labels, device_of(logits.data))].sum()
    if label_smoothing == 0:
        return of_label * (-1 / n)
    return of_label * ((label_smoothing - 1) / n) + log_p.sum() * (-label_smoothing / (n * k))


def check_labels(labels: Array, classes: int) -> Array:
    """The labels, if they are integers (N,) in 0..classes-1; else ValueError.

    Labels on a GPU are not range-checked, since that would synchronise: check them on the host.
    """
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected integers of shape (N,), got {labels.dtype} of shape {labels.shape}")
    if device_of(labels) == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels: expected 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    return labels


def dropout(x: Tensor, p: float, rng: np.random.Generator) -> Tensor:
    """y = x mask / (1 - p), mask 0 with probability p, else 1, drawn on the host by `rng`;  dx = dy mask / (1 - p)."""
    check_tensors("dropout", x=x)
    _check_fraction("dropout", "p", p)
    host_mask = (rng.random(x.shape) >= p) / (1 - p)
    mask = to_device(host_mask.astype(x.dtype), device_of(x.data))
    return Tensor.from_op(x.data * mask, (x,), lambda grad: (grad * mask,), "dropout")


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x w + bias. x: (N, C); w: (C, F); bias: (F,) or None; y: (N, F)."""
    _check_linear(x, w, bias)
    y = x @ w
    return y if bias is None else y + bias


def subsample_and_pad(x: Tensor, stride: int, channels: int) -> Tensor:
    """The shortcut of option A: every `stride`-th pixel, and zeros for the missing channels, half on each side.

    x: (N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), channels). No parameters (He et al. 2016, section 3.3).
    Backward: the gradient of what was kept goes back to where it came from; the pixels left out get 0.
    """
    _check_subsample(x, stride, channels)
    extra = channels - x.shape[-1]
    xp, shape, before = array_module(x.data), x.shape, extra // 2
    pixels = (slice(None), slice(None, None, stride), slice(None, None, stride))
    channels_of_x = (..., slice(before, before + x.shape[-1]))
    kept = x.data[pixels]
    out = xp.zeros((*kept.shape[:3], channels), x.dtype)
    out[channels_of_x] = kept

    def backward(grad: Array) -> Gradients:
        dx = xp.zeros(shape, grad.dtype)
        dx[pixels] = grad[channels_of_x]
        return (dx,)

    return Tensor.from_op(out, (x,), backward, "subsample_and_pad")


# ---- argument checks ------------------------------------------------------------------------------------------------


def _check_fraction(op: str, name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{op}: expected 0 <= {name} < 1, got {value}")


def _check_log_softmax(x: Tensor) -> None:
    check_tensors("log_softmax", x=x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"log_softmax: expected x (..., K) with K at least 1, got {x.shape}")


def _check_cross_entropy(logits: Tensor, labels: Array, label_smoothing: float) -> Array:
    check_tensors("cross_entropy", logits=logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"cross_entropy: expected logits (N, K) with N and K at least 1, got {logits.shape}")
    _check_fraction("cross_entropy", "label_smoothing", label_smoothing)
    labels = check_labels(labels, logits.shape[1])
    if len(labels) != len(logits):
        raise ValueError(f"cross_entropy: expected {len(logits)} labels, one for each row of logits, got {len(labels)}")
    return labels


def _check_linear(x: Tensor, w: Tensor, bias: Tensor | None) -> None:
    check_tensors("linear", x=x, w=w, **({} if bias is None else {"bias": bias}))
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise ValueError(f"linear: expected x (N, C) and w (C, F), got x {x.shape} and w {w.shape}")
    if bias is not None and bias.shape != w.shape[1:]:
        raise ValueError(f"linear: expected bias {w.shape[1:]} (w is {w.shape}), got {bias.shape}")


def _check_subsample(x: Tensor, stride: int, channels: int) -> None:
    check_tensors("subsample_and_pad", x=x)
    if x.ndim != 4 or stride < 1:
        raise ValueError(f"subsample_and_pad: expected x (N, H, W, C) and stride >= 1, got {x.shape} and {stride}")
    if channels < x.shape[-1]:
        raise ValueError(f"subsample_and_pad: expected channels >= {x.shape[-1]}, those of x, got {channels}")
