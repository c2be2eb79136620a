# Write your answers here, then run: python -m minires check
"""Exercises of chapter 6, "Plain nets stop improving".

6.1 plain_layers       the convolutions of a plain net of depth 6n + 2
6.2 verdict            overfitting, degradation, or neither
6.3 gradient_norms     how much gradient arrives in each layer
6.4 identity_kernel    a convolution that changes nothing
6.5 identity_norm      a batch norm that changes nothing

The letters: N images, H W C height, width, channels in, F channels out, KH KW kernel.
"""

from __future__ import annotations

import numpy as np

from minires import Tensor, cross_entropy
from minires.nn import Module


def plain_layers(depth: int, width: int = 16, size: int = 32) -> list[tuple[int, int, int, int]]:
    """6.1: every convolution of the plain net of this depth, as (c_in, c_out, stride, output size), in order.

    The net: a convolution from the 3 colours to `width` channels; three stages of n blocks each, with `width`,
    2 `width` and 4 `width` channels; a block is two convolutions; then pooling and one linear layer. All kernels are
    3x3 with padding 1. The first convolution of the second and of the third stage has stride 2, all others stride 1.
    The depth counts convolutions and the linear layer: depth = 6n + 2. `size` is the height of the images, a
    multiple of 4.

    Returns a list of depth - 1 tuples of four whole numbers: the linear layer is not in it.

    Level 2, about 11 lines.
    """
    raise NotImplementedError("exercise 6.1")


def verdict(shallow: tuple[float, float], deep: tuple[float, float]) -> str:
    """6.2: what happened when a net was made deeper.

    shallow, deep: (training error, test error) of two nets, trained in the same way. Returns one of

        "degradation"    the deep net is worse on the very images that it learned from
        "overfitting"    it is at least as good on those, but worse on the test images
        "no harm"        it is worse on neither

    Equal is not worse.

    Level 1, about 5 lines.
    """
    raise NotImplementedError("exercise 6.2")


def gradient_norms(net: Module, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """6.3: the norm of the loss's gradient for the weights of each convolution, in the order of the layers.

    net: a plain or residual net; keep its mode. It may still have gradients of earlier batches, which must not count.
    x: images (N, H, W, 3), y: labels (N,), integers.

        norm of layer l  =  sqrt(sum of the squares of all entries of dL/dw_l),     L = cross_entropy(net(x), y)

    Returns float64, (number of convolutions,). Of the parameters, net.parameters(), in order, a convolution's weights
    are those with four axes. p.grad is the gradient of parameter p.

    Level 2, about 4 lines.
    """
    raise NotImplementedError("exercise 6.3")


def identity_kernel(channels: int, size: int) -> np.ndarray:
    """6.4: the kernel of a convolution that outputs its input.

    With stride 1 and padding (size - 1) / 2, conv2d(x, identity_kernel(C, size)) is x, for every x (N, H, W, C).
    size: odd. Returns float32, (size, size, C, C): rows, columns, channels in, channels out.

    Level 2, about 3 lines.
    """
    raise NotImplementedError("exercise 6.4")


def identity_norm(x: np.ndarray, eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """6.5: gamma, beta and running statistics with which batch norm returns x.

    Batch norm, in training with the batch's mean and (biased) variance of each channel, in evaluation with the running
    ones:

        y = gamma (x - mean) / sqrt(var + eps) + beta

    x: (N, H, W, C)  ->  gamma, beta, running mean, running variance, each (C,), of the dtype of x, such that y = x in
    training and in evaluation. Four separate arrays: training will write into each of them. x must not change.

    Level 2, about 5 lines.
    """
    raise NotImplementedError("exercise 6.5")
