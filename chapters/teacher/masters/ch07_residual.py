"""Exercises of chapter 7, "Learn the difference".

7.1 residual_backward      the backward pass of y = x + F(x)
7.2 option_a               a shortcut that fits x to a new shape, without parameters
7.3 option_a_backward      option A, backward
7.4 projection             a shortcut with parameters: options B and C
7.5 block_forward          a basic block, put together

The letters: N images, H W C height, width, channels in, F channels out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minires import Tensor
from minires.functional import relu


def residual_backward(
    x: np.ndarray, w1: np.ndarray, w2: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """7.1: the gradients of a residual block.

        y = x + F(x)          F(x) = relu(x w1) w2          no ReLU after the sum

    x: (N, C), w1: (C, D), w2: (D, C), grad = dL/dy: (N, C). Arrays; relu(t) is the larger of t and 0.
    Returns dL/dx (N, C), dL/dw1 (C, D), dL/dw2 (D, C), of the dtype of x. The arguments must not change.
    """
    ### BEGIN SOLUTION
    a = x @ w1  # (N, D)
    h = np.maximum(a, 0)
    dw2 = h.T @ grad
    da = (grad @ w2.T) * (a > 0)  # (N, D)
    dw1 = x.T @ da
    dx = grad + da @ w1.T
    return dx, dw1, dw2
    ### END SOLUTION


def option_a(x: np.ndarray, stride: int, channels: int) -> np.ndarray:
    """7.2: the shortcut of option A: every stride-th pixel, and zeros for the missing channels.

    x: (N, H, W, C), channels: C or more  ->  (N, ceil(H / stride), ceil(W / stride), channels), dtype of x, a new
    array. Pixel (i, j) of the result is pixel (stride*i, stride*j) of x. Of the channels - C zeros, half go before x's
    channels and half after; if their number is odd, the extra one goes after.
    """
    ### BEGIN SOLUTION
    kept = x[:, ::stride, ::stride]
    front = (channels - x.shape[3]) // 2
    y = np.zeros((*kept.shape[:3], channels), x.dtype)
    y[..., front : front + x.shape[3]] = kept
    return y
    ### END SOLUTION


def option_a_backward(grad: np.ndarray, shape: tuple[int, int, int, int], stride: int) -> np.ndarray:
    """7.3: the backward pass of exercise 7.2.

    grad: the gradient of its result, shape: x's, (N, H, W, C)  ->  dL/dx of that shape, dtype of grad. Pixels that
    were kept get their gradient back; those that were left out had no influence and get 0.
    """
    ### BEGIN SOLUTION
    front = (grad.shape[3] - shape[3]) // 2
    dx = np.zeros(shape, grad.dtype)
    dx[:, ::stride, ::stride] = grad[..., front : front + shape[3]]
    return dx
    ### END SOLUTION


def projection(
    x: np.ndarray, w: np.ndarray, gamma: np.ndarray, beta: np.ndarray, stride: int, eps: float = 1e-5
) -> np.ndarray:
    """7.4: the shortcut of options B and C: a 1x1 convolution with a stride, and batch norm in training.

    x: (N, H, W, C), w: (C, F), the kernel without its two axes of length 1, gamma and beta: (F,)
    ->  (N, ceil(H / stride), ceil(W / stride), F), dtype of x.

        z[n, i, j, f] = sum over c of  x[n, stride*i, stride*j, c] w[c, f]
        y = gamma (z - mean) / sqrt(var + eps) + beta        mean, var of each channel of z, over N, H and W (biased)
    """
    ### BEGIN SOLUTION
    z = x[:, ::stride, ::stride] @ w  # (N, OH, OW, F)
    mean = z.mean(axis=(0, 1, 2))
    var = z.var(axis=(0, 1, 2))
    return (gamma * (z - mean) / np.sqrt(var + eps) + beta).astype(x.dtype)
    ### END SOLUTION


Layer = Callable[[Tensor], Tensor]


def block_forward(
    x: Tensor, conv1: Layer, bn1: Layer, conv2: Layer, bn2: Layer, shortcut: Layer | None = None
) -> Tensor:
    """7.5: the basic block (the paper's Figure 2), made of layers that are given.

        y = relu(F(x) + shortcut(x))          F(x) = bn2(conv2(relu(bn1(conv1(x)))))

    Each layer is called with a Tensor and returns one. shortcut None: x itself is added. relu is imported above; two
    Tensors are added by +. Each layer is called once: batch norm counts its calls, in its running statistics.
    """
    ### BEGIN SOLUTION
    h = relu(bn1(conv1(x)))
    h = bn2(conv2(h))
    s = x if shortcut is None else shortcut(x)
    return relu(h + s)
    ### END SOLUTION
