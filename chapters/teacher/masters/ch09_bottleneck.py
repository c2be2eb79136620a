"""Exercises of chapter 9, "Bottlenecks".

9.1 multiply_adds           the multiply-adds of a convolution
9.2 block_parameters        the parameters of a bottleneck
9.3 bottleneck_forward      a bottleneck from its layers
9.4 from_torch              a weight from PyTorch's layout to ours
9.5 fold                    a norm folded into the convolution before it

The letters: N images, H W C height, width, channels in, F channels out, KH KW kernel. Images are (N, H, W, C).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.conv import output_size
from minires.functional import relu
from minires.tensor import Tensor


def multiply_adds(h: int, w: int, c: int, f: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """9.1: how many multiply-adds a convolution takes for one image.

    The image is h x w pixels with c channels; the kernel is kernel x kernel; f channels come out. Each number of the
    output is a sum over its patch, and each product in that sum counts one. Products with the border's zeros count too.
    Returns a whole number. Use output_size(size, kernel, stride, padding).
    """
    ### BEGIN SOLUTION
    oh = output_size(h, kernel, stride, padding)
    ow = output_size(w, kernel, stride, padding)
    return oh * ow * f * kernel * kernel * c
    ### END SOLUTION


def block_parameters(c_in: int, width: int, stride: int = 1) -> int:
    """9.2: how many parameters a bottleneck has, with a projection where the shape changes (option B).

        1x1  c_in  -> width             3x3  width -> width             1x1  width -> 4 width
        1x1  c_in  -> 4 width           on the shortcut, where the stride is not 1 or c_in is not 4 width

    No convolution has a bias. A norm follows each of them, with a gamma and a beta for each of its channels. Returns a
    whole number.
    """
    ### BEGIN SOLUTION
    c_out = 4 * width
    weights = c_in * width + 9 * width * width + width * c_out
    norms = 2 * (width + width + c_out)
    if stride != 1 or c_in != c_out:
        weights += c_in * c_out
        norms += 2 * c_out
    return weights + norms
    ### END SOLUTION


def bottleneck_forward(x: Tensor, block: Any) -> Tensor:
    """9.3: a bottleneck, from its layers:  y = relu(F(x) + shortcut(x)).

    F is 1x1, norm, ReLU, 3x3, norm, ReLU, 1x1, norm: the layers block.conv1, block.bn1, block.conv2, block.bn2,
    block.conv3, block.bn3. Each is called with a Tensor and returns one. So is block.shortcut, which returns x itself
    where no shape changes. relu is imported above.

    x: Tensor (N, H, W, C). Call each layer once: a norm in training moves its running statistics with every call.
    """
    ### BEGIN SOLUTION
    h = relu(block.bn1(block.conv1(x)))
    h = relu(block.bn2(block.conv2(h)))
    h = block.bn3(block.conv3(h))
    return relu(h + block.shortcut(x))
    ### END SOLUTION


def from_torch(w: np.ndarray) -> np.ndarray:
    """9.4: a parameter from PyTorch's layout to ours. Every number keeps its channels and its pixel.

        convolution   (F, C, KH, KW)  ->  (KH, KW, C, F)
        linear        (F, C)          ->  (C, F)
        all others    (C,)            ->  (C,)

    dtype of w.
    """
    ### BEGIN SOLUTION
    if w.ndim == 4:
        return w.transpose(2, 3, 1, 0)
    if w.ndim == 2:
        return w.T
    return w
    ### END SOLUTION


def fold(
    w: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """9.5: fold a norm into the convolution before it.

    In evaluation, a batch norm is a scale and a shift of each channel. So there are a weight w2 and a bias b2 with

        conv(x, w2) + b2  =  gamma (conv(x, w) - mean) / sqrt(var + eps) + beta        for every x

    w: (KH, KW, C, F); gamma, beta, mean, var: (F,)  ->  w2: (KH, KW, C, F), b2: (F,), dtype of w; w must not change.
    """
    ### BEGIN SOLUTION
    scale = gamma / np.sqrt(var + eps)  # (F,)
    return w * scale, beta - mean * scale
    ### END SOLUTION
