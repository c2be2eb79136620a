# Write your answers here, then run: python -m minires check
"""Exercises of chapter 4, "Convolution is a matrix product".

4.1 output_size         in how many places a kernel fits
4.2 im2col              every patch as a row
4.3 conv_forward        a convolution as one product
4.4 weight_gradients    backward to the weights and the bias
4.5 input_gradient      backward to the images
4.6 winograd_row        two outputs from four products

The letters: N images, H W C height, width, channels in, F filters, KH KW kernel, OH OW output size. All arrays are
NumPy arrays. Each exercise may use what minires has for the ones before it: library.output_size, library.im2col.
"""

from __future__ import annotations

import numpy as np

from minires import conv as library


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """4.1: in how many places a kernel of `kernel` pixels fits on a row of `size` pixels.

    The row has `padding` zeros on each side. The kernel starts at the left end and moves by `stride` pixels; it must
    never reach beyond the last zero. Returns a whole number.

    Level 1, about 1 line.
    """
    raise NotImplementedError("exercise 4.1")


def im2col(x: np.ndarray, kh: int, kw: int, stride: int = 1, padding: int = 0) -> np.ndarray:
    """4.2: every patch of the images as a row.

    x: (N, H, W, C)  ->  (N*OH*OW, KH*KW*C), dtype of x; x must not change.

    Rows: image by image, in each image from top to bottom, in each line from left to right. In a row: the patch from
    top to bottom, from left to right, the C channels of a pixel side by side. The border is zero.

        row (n, i, j), column (a, b, c)  =  x[n, stride*i + a - padding, stride*j + b - padding, c]

    Level 3, about 9 lines.
    """
    raise NotImplementedError("exercise 4.2")


def conv_forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, padding: int = 0
) -> np.ndarray:
    """4.3: a convolution, y = im2col(x) w + bias, with library.im2col.

    x: (N, H, W, C), w: (KH, KW, C, F), bias: (F,) or None  ->  y: (N, OH, OW, F), dtype of x.

        y[n, i, j, f] = bias[f] + sum over a, b, c of
                            x[n, stride*i + a - padding, stride*j + b - padding, c] w[a, b, c, f]

    Level 2, about 8 lines.
    """
    raise NotImplementedError("exercise 4.3")


def weight_gradients(
    x: np.ndarray, grad: np.ndarray, kh: int, kw: int, stride: int = 1, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """4.4: the gradients of a convolution for its weights and its bias, with library.im2col.

    x: (N, H, W, C), grad = dL/dy: (N, OH, OW, F)  ->  dw: (KH, KW, C, F), dbias: (F,), dtype of x.

        dw[a, b, c, f] = sum over n, i, j of  grad[n, i, j, f] x[n, stride*i + a - padding, stride*j + b - padding, c]
        dbias[f]       = sum over n, i, j of  grad[n, i, j, f]

    Level 2, about 6 lines.
    """
    raise NotImplementedError("exercise 4.4")


def input_gradient(
    grad: np.ndarray, w: np.ndarray, shape: tuple[int, int, int, int], stride: int = 1, padding: int = 0
) -> np.ndarray:
    """4.5: the gradient of a convolution for its images. Write col2im yourself.

    grad = dL/dy: (N, OH, OW, F), w: (KH, KW, C, F), shape: x's, (N, H, W, C)  ->  dx of that shape, dtype of grad.

        dx[n, r, s, c] = sum of  grad[n, i, j, f] w[a, b, c, f]  over all filters f and over all i, j, a, b with
                         stride*i + a - padding = r  and  stride*j + b - padding = s

    Level 3, about 10 lines.
    """
    raise NotImplementedError("exercise 4.5")


def winograd_row(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """4.6: a kernel of three weights on a row by Winograd's F(2, 3), four products for every two outputs.

    x: (L,), L at least 3, w: (3,)  ->  m: (T, 4), the products, and y: (L - 2,), dtype of x.

    The row is cut into T tiles of four numbers, of which each begins two after the one before, T just large enough for
    all outputs. Where the row has ended, a tile has zeros. From the tile d = x[2t], x[2t+1], x[2t+2], x[2t+3]:

        m[t, 0] = (d0 - d2) w0                           y[2t]     = m[t, 0] + m[t, 1] + m[t, 2]
        m[t, 1] = (d1 + d2) (w0 + w1 + w2) / 2           y[2t + 1] = m[t, 1] - m[t, 2] - m[t, 3]
        m[t, 2] = (d2 - d1) (w0 - w1 + w2) / 2
        m[t, 3] = (d1 - d3) w2

    Level 2, about 10 lines.
    """
    raise NotImplementedError("exercise 4.6")
