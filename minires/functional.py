"""Operations without parameters of their own: activations, losses, dropout, and the add that makes a net residual."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minires.backend import Array, array_module, device_of, in_lanes, to_device
from minires.tensor import Gradients, Tensor


def relu(x: Tensor) -> Tensor:
    """y = max(0, x);  dx = dy where x > 0, else 0 (so relu'(0) = 0)."""
    xp = array_module(x.data)
    out = xp.maximum(x.data, 0)
    return Tensor.from_op(out, (x,), lambda grad: (grad * (out > 0),), "relu")


def add_relu(x: Tensor, shortcut: Tensor) -> Tensor:
    """y = max(0, x + shortcut): the end of a residual block, y = relu(F(x) + x) (He et al. 2016, equation 1).

    Both have the same shape. Backward: g = dy where y > 0, else 0, and an add hands its gradient on to both sides:
        dx = g        dshortcut = g
    The shortcut's part reaches the layers below without meeting a single weight on the way.
    """
    if x.shape != shortcut.shape or x.ndim == 0:
        raise ValueError(
            f"add_relu: x has shape {x.shape}, shortcut {shortcut.shape}; expected (N, ...), both the same"
        )
    if x.dtype != shortcut.dtype:
        raise TypeError(f"add_relu: x is {x.dtype}, shortcut {shortcut.dtype}; convert one of them")
    xp, a, b = array_module(x.data), x.data, shortcut.data
    out, zero = xp.empty_like(a), xp.zeros_like(a[:1])

    def forward(chunks: Iterator[slice]) -> None:
        for s in chunks:
            y = xp.add(a[s], b[s], out=out[s])
            xp.maximum(y, zero, out=y)  # faster than with the number 0

    in_lanes(forward, a, 3 * a[:1].nbytes)

    def backward(grad: Array) -> Gradients:
        g = xp.empty_like(out)

        def lane(chunks: Iterator[slice]) -> None:
            for s in chunks:
                xp.multiply(grad[s], out[s] > 0, out=g[s])

        in_lanes(lane, out, 3 * out[:1].nbytes)
        return g, g

    return Tensor.from_op(out, (x, shortcut), backward, "add_relu")


def log_softmax(x: Tensor) -> Tensor:
    """y_k = x_k - ln sum_j e^(x_j) over the last axis;  dx = dy - softmax(x) sum_j dy_j.

    The largest x is taken away first: it changes nothing in exact numbers, and e^x can't overflow.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"log_softmax: x has shape {x.shape}, expected (..., K) with K at least 1")
    xp = array_module(x.data)
    shifted = x.data - x.data.max(axis=-1, keepdims=True)
    out = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))

    def backward(grad: Array) -> Gradients:
        return (grad - xp.exp(out) * grad.sum(axis=-1, keepdims=True),)

    return Tensor.from_op(out, (x,), backward, "log_softmax")


def cross_entropy(logits: Tensor, labels: Array, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of  -sum_k t_k ln softmax(logits)_k.

    logits: (N, K); labels: (N,) integers in 0..K-1, see `check_labels`. The target t puts 1 - label_smoothing on the label
    and spreads `label_smoothing` evenly over all K classes (Szegedy et al. 2016, section 7).
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"cross_entropy: logits have shape {logits.shape}, expected (N, K) with N and K at least 1")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing must be in 0 <= label_smoothing < 1, got {label_smoothing}")
    (n, k), xp = logits.shape, array_module(logits.data)
    labels = to_device(check_labels(labels, k), device_of(logits.data))
    if len(labels) != n:
        raise ValueError(f"cross_entropy: {n} rows of logits, but {len(labels)} labels")
    targets = (labels[:, None] == xp.arange(k)).astype(logits.dtype)  # (N, K), a single 1 in each row
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / k
    return (log_softmax(logits) * Tensor(targets)).sum() * (-1 / n)


def check_labels(labels: Array, classes: int) -> Array:
    """The labels, if they are integers (N,) in 0..classes-1; else ValueError.

    Labels on a GPU are not looked at, which would wait for it: check them before they go there.
    """
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected integers of shape (N,), got {labels.dtype} of shape {labels.shape}")
    if device_of(labels) == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels: expected 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    return labels


def dropout(x: Tensor, p: float, rng: np.random.Generator) -> Tensor:
    """y = x mask / (1 - p), mask 0 with probability p, else 1, drawn on the host by `rng`;  dx = dy mask / (1 - p)."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in 0 <= p < 1, got {p}")
    mask = (rng.random(x.shape) >= p) / (1 - p)
    return x * Tensor(to_device(mask.astype(x.dtype), device_of(x.data)))


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x w + bias. x: (N, C); w: (C, F); bias: (F,) or None; y: (N, F)."""
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise ValueError(f"linear: expected x (N, C) and w (C, F), got x {x.shape} and w {w.shape}")
    if bias is not None and bias.shape != w.shape[1:]:
        raise ValueError(f"linear: bias has shape {bias.shape}, expected {w.shape[1:]} (w is {w.shape})")
    y = x @ w
    return y if bias is None else y + bias


def subsample_and_pad(x: Tensor, stride: int, channels: int) -> Tensor:
    """The shortcut of option A: every `stride`-th pixel, and zeros for the channels that x lacks, half on each side.

    x: (N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), channels). No parameters (He et al. 2016, section 3.3).
    Backward: the gradient of what was kept goes back to where it stood; the pixels left out get 0.
    """
    if x.ndim != 4 or stride < 1:
        raise ValueError(
            f"subsample_and_pad: expected x (N, H, W, C) and a stride from 1 on, got {x.shape} and {stride}"
        )
    extra = channels - x.shape[-1]
    if extra < 0:
        raise ValueError(f"subsample_and_pad: x has {x.shape[-1]} channels already, expected at most {channels}")
    xp, before = array_module(x.data), extra // 2
    pixels = (slice(None), slice(None, None, stride), slice(None, None, stride))
    channels_of_x = (..., slice(before, before + x.shape[-1]))
    kept = x.data[pixels]
    out = xp.zeros((*kept.shape[:3], channels), x.dtype)
    out[channels_of_x] = kept

    def backward(grad: Array) -> Gradients:
        dx = xp.zeros(x.shape, x.dtype)
        dx[pixels] = grad[channels_of_x]
        return (dx,)

    return Tensor.from_op(out, (x,), backward, "subsample_and_pad")
