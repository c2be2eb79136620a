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
    """
    ### BEGIN SOLUTION
    return (size + 2 * padding - kernel) // stride + 1
    ### END SOLUTION


def im2col(x: np.ndarray, kh: int, kw: int, stride: int = 1, padding: int = 0) -> np.ndarray:
    """4.2: every patch of the images as a row.

    x: (N, H, W, C)  ->  (N*OH*OW, KH*KW*C), dtype of x; x must not change.

    Rows: image by image, in each image from top to bottom, in each line from left to right. In a row: the patch from
    top to bottom, from left to right, the C channels of a pixel side by side. The border is zero.

        row (n, i, j), column (a, b, c)  =  x[n, stride*i + a - padding, stride*j + b - padding, c]
    """
    ### BEGIN SOLUTION
    n, h, w, c = x.shape
    oh = library.output_size(h, kh, stride, padding)
    ow = library.output_size(w, kw, stride, padding)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    cols = np.zeros((n, oh, ow, kh, kw, c), x.dtype)
    for a in range(kh):
        for b in range(kw):
            cols[:, :, :, a, b] = padded[:, a : a + stride * oh : stride, b : b + stride * ow : stride]
    return cols.reshape(n * oh * ow, kh * kw * c)
    ### END SOLUTION


def conv_forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, padding: int = 0
) -> np.ndarray:
    """4.3: a convolution, y = im2col(x) w + bias, with library.im2col.

    x: (N, H, W, C), w: (KH, KW, C, F), bias: (F,) or None  ->  y: (N, OH, OW, F), dtype of x.

        y[n, i, j, f] = bias[f] + sum over a, b, c of
                            x[n, stride*i + a - padding, stride*j + b - padding, c] w[a, b, c, f]
    """
    ### BEGIN SOLUTION
    kh, kw, c, f = w.shape
    oh = library.output_size(x.shape[1], kh, stride, padding)
    ow = library.output_size(x.shape[2], kw, stride, padding)
    cols = library.im2col(x, kh, kw, stride, padding)  # (N*OH*OW, KH*KW*C)
    y = cols @ w.reshape(kh * kw * c, f)  # (N*OH*OW, F)
    if bias is not None:
        y = y + bias
    return y.reshape(len(x), oh, ow, f)
    ### END SOLUTION


def weight_gradients(
    x: np.ndarray, grad: np.ndarray, kh: int, kw: int, stride: int = 1, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """4.4: the gradients of a convolution for its weights and its bias, with library.im2col.

    x: (N, H, W, C), grad = dL/dy: (N, OH, OW, F)  ->  dw: (KH, KW, C, F), dbias: (F,), dtype of x.

        dw[a, b, c, f] = sum over n, i, j of  grad[n, i, j, f] x[n, stride*i + a - padding, stride*j + b - padding, c]
        dbias[f]       = sum over n, i, j of  grad[n, i, j, f]
    """
    ### BEGIN SOLUTION
    c, f = x.shape[3], grad.shape[3]
    cols = library.im2col(x, kh, kw, stride, padding)  # (N*OH*OW, KH*KW*C)
    g = grad.reshape(-1, f)  # (N*OH*OW, F)
    dw = cols.T @ g  # (KH*KW*C, F)
    dbias = g.sum(axis=0)
    return dw.reshape(kh, kw, c, f), dbias
    ### END SOLUTION


def input_gradient(
    grad: np.ndarray, w: np.ndarray, shape: tuple[int, int, int, int], stride: int = 1, padding: int = 0
) -> np.ndarray:
    """4.5: the gradient of a convolution for its images. Write col2im yourself.

    grad = dL/dy: (N, OH, OW, F), w: (KH, KW, C, F), shape: x's, (N, H, W, C)  ->  dx of that shape, dtype of grad.

        dx[n, r, s, c] = sum of  grad[n, i, j, f] w[a, b, c, f]  over all filters f and over all i, j, a, b with
                         stride*i + a - padding = r  and  stride*j + b - padding = s
    """
    ### BEGIN SOLUTION
    n, h, width, c = shape
    kh, kw, _, f = w.shape
    oh, ow = grad.shape[1:3]
    cols = grad.reshape(-1, f) @ w.reshape(-1, f).T  # (N*OH*OW, KH*KW*C)
    cols = cols.reshape(n, oh, ow, kh, kw, c)
    padded = np.zeros((n, h + 2 * padding, width + 2 * padding, c), grad.dtype)
    for a in range(kh):
        for b in range(kw):
            padded[:, a : a + stride * oh : stride, b : b + stride * ow : stride] += cols[:, :, :, a, b]
    return padded[:, padding : padding + h, padding : padding + width]
    ### END SOLUTION


def winograd_row(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """4.6: a kernel of three weights on a row by Winograd's F(2, 3), four products for every two outputs.

    x: (L,), L at least 3, w: (3,)  ->  m: (T, 4), the products, and y: (L - 2,), dtype of x.

    The row is cut into T tiles of four numbers, of which each begins two after the one before, T just large enough for
    all outputs. Where the row has ended, a tile has zeros. From the tile d = x[2t], x[2t+1], x[2t+2], x[2t+3]:

        m[t, 0] = (d0 - d2) w0                           y[2t]     = m[t, 0] + m[t, 1] + m[t, 2]
        m[t, 1] = (d1 + d2) (w0 + w1 + w2) / 2           y[2t + 1] = m[t, 1] - m[t, 2] - m[t, 3]
        m[t, 2] = (d2 - d1) (w0 - w1 + w2) / 2
        m[t, 3] = (d1 - d3) w2
    """
    ### BEGIN SOLUTION
    tiles = (len(x) - 2 + 1) // 2
    padded = np.zeros(2 * tiles + 2, x.dtype)
    padded[: len(x)] = x
    d0, d1, d2, d3 = (padded[i : i + 2 * tiles : 2] for i in range(4))  # (T,) each
    d = np.stack([d0 - d2, d1 + d2, d2 - d1, d1 - d3], axis=1)  # (T, 4)
    u = np.array([w[0], (w[0] + w[1] + w[2]) / 2, (w[0] - w[1] + w[2]) / 2, w[2]], w.dtype)
    m = d * u
    m0, m1, m2, m3 = m.T
    y = np.stack([m0 + m1 + m2, m1 - m2 - m3], axis=1)  # (T, 2)
    return m, y.reshape(-1)[: len(x) - 2]
    ### END SOLUTION
