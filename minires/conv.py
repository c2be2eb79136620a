"""Convolution as a matrix product, and pooling.

Images are (N, H, W, C), weights (KH, KW, C, F). "Convolution" means cross-correlation, as everywhere in deep learning:

    y[n, oh, ow, f] = sum over kh, kw, c of  x[n, oh*stride + kh - padding, ow*stride + kw - padding, c] w[kh, kw, c, f]

`im2col` copies the patch under each output pixel into a row of a matrix; one product with the weights, seen as a
(KH*KW*C, F) matrix, is then the entire sum. Convolution is written three times: as its formula (`conv2d_naive`), as an
operation that is easy to read (`conv2d_simple`), and as the same operation made fast (`conv2d`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minires import winograd
from minires.backend import Array, array_module
from minires.parallel import over_batch, product, transposed_product
from minires.tensor import Gradients, Tensor, add_up, check_tensors


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Output length along an axis: floor((size + 2 padding - kernel) / stride) + 1."""
    return (size + 2 * padding - kernel) // stride + 1


def pad2d(x: Array, padding: int, value: float = 0.0) -> Array:
    """(N, H, W, C) -> (N, H + 2p, W + 2p, C) with `value` in the border."""
    if padding == 0:
        return x
    n, h, w, c = x.shape
    out = array_module(x).full((n, h + 2 * padding, w + 2 * padding, c), value, x.dtype)
    _inside(out, padding)[...] = x
    return out


def _inside(x: Array, padding: int) -> Array:
    """A view of the image without its border."""
    return x[:, padding : x.shape[1] - padding, padding : x.shape[2] - padding]


def patches(x: Array, kh: int, kw: int, stride: int) -> Array:
    """A view, nothing copied, of each patch of x (N, H, W, C):  (N, OH, OW, KH, KW, C)."""
    n, h, w, c = x.shape
    oh, ow = output_size(h, kh, stride, 0), output_size(w, kw, stride, 0)
    step_n, step_h, step_w, step_c = x.strides
    strides = (step_n, step_h * stride, step_w * stride, step_h, step_w, step_c)
    return array_module(x).lib.stride_tricks.as_strided(x, (n, oh, ow, kh, kw, c), strides)


def im2col(x: Array, kh: int, kw: int, stride: int = 1, padding: int = 0) -> Array:
    """Each patch of x (N, H, W, C) as a row:  (N*OH*OW, KH*KW*C).

    Channel last, so KW*C numbers of a patch's row are adjacent and copied as one. 1x1 patches at stride 1
    copy nothing.
    """
    return patches(pad2d(x, padding), kh, kw, stride).reshape(-1, kh * kw * x.shape[3])


def col2im(cols: Array, shape: tuple[int, ...], kh: int, kw: int, stride: int = 1, padding: int = 0) -> Array:
    """The adjoint of im2col: every entry of cols (N*OH*OW, KH*KW*C) is added to the pixel it came from -> (N, H, W, C).

    A pixel lies under up to KH*KW patches, so the entries must add up:  <im2col(x), c> = <x, col2im(c)>.
    """
    n, h, w, c = shape
    oh, ow = output_size(h, kh, stride, padding), output_size(w, kw, stride, padding)
    cols = cols.reshape(n, oh, ow, kh, kw, c)
    out = array_module(cols).zeros((n, h + 2 * padding, w + 2 * padding, c), cols.dtype)
    for i in range(kh):
        for j in range(kw):
            out[:, i : i + stride * oh : stride, j : j + stride * ow : stride] += cols[:, :, :, i, j]
    return _inside(out, padding)


def conv2d_naive(x: Array, w: Array, bias: Array | None = None, stride: int = 1, padding: int = 0) -> Array:
    """The formula at the top of this file, one output pixel at a time, on plain arrays."""
    xp, (n, h, width, _), (kh, kw, _, f) = array_module(x), x.shape, w.shape
    oh, ow = output_size(h, kh, stride, padding), output_size(width, kw, stride, padding)
    x = pad2d(x, padding)
    y = xp.zeros((n, oh, ow, f), x.dtype)
    for i in range(oh):
        for j in range(ow):
            patch = x[:, i * stride : i * stride + kh, j * stride : j * stride + kw]  # (N, KH, KW, C)
            for k in range(f):
                y[:, i, j, k] = (patch * w[:, :, :, k]).sum(axis=(1, 2, 3))
    return y if bias is None else y + bias


def conv2d_simple(x: Tensor, w: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """y = im2col(x) @ w + bias, on the entire batch at once.

    x: (N, H, W, C); w: (KH, KW, C, F), in the product as a matrix (KH*KW*C, F); bias: (F,) or None; y: (N, OH, OW, F).

    Backward, with cols = im2col(x) and g = dL/dy as a matrix (N*OH*OW, F):
        dw = cols^T g          dx = col2im(g w^T)          dbias = sum of g over its rows
    """
    _check_conv("conv2d_simple", x, w, bias, stride, padding)
    (n, h, width, _), (kh, kw, _, f) = x.shape, w.shape
    oh, ow = output_size(h, kh, stride, padding), output_size(width, kw, stride, padding)
    cols = im2col(x.saved, kh, kw, stride, padding)  # (N*OH*OW, KH*KW*C)
    w_matrix = w.saved.reshape(-1, f)  # (KH*KW*C, F)

    def backward(grad: Array) -> Gradients:
        g = grad.reshape(-1, f)  # (N*OH*OW, F)
        dx = col2im(g @ w_matrix.T, x.shape, kh, kw, stride, padding)
        dw = cols.T @ g  # (KH*KW*C, F)
        return dx, dw.reshape(w.shape)

    y = Tensor.from_op((cols @ w_matrix).reshape(n, oh, ow, f), (x, w), backward, "conv2d_simple")
    return y if bias is None else y + bias


def conv2d(x: Tensor, w: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """y = im2col(x) @ w + bias: `conv2d_simple`, a few images at a time, so that the columns stay in the cache.

    Shapes and gradients are those of `conv2d_simple`. At stride 1, dx is itself a convolution of g, padded until the
    size fits, with w rotated by 180 degrees and its channels in and out swapped. Row p of its columns holds the g of
    every output that pixel p takes part in, the last place of the kernel first, so (columns of g)^T x is dw with its
    places reversed: one im2col serves both.

    3x3 kernels at stride 1 with many channels take another way, with a quarter of the multiplications: winograd.py.
    """
    _check_conv("conv2d", x, w, bias, stride, padding)
    (n, h, width, c), (kh, kw, _, f) = x.shape, w.shape
    oh, ow = output_size(h, kh, stride, padding), output_size(width, kw, stride, padding)
    xp, x_saved, w_saved = array_module(x.data), x.saved, w.saved
    w_matrix = w_saved.reshape(-1, f)  # (KH*KW*C, F)
    out = xp.empty((n, oh, ow, f), x.dtype)
    bias_row = None if bias is None else xp.broadcast_to(bias.data, (ow, f)).reshape(-1)  # long, as adding is fast then
    by_winograd = _winograd_pays(x, w, stride)

    def add_bias(out: Array) -> None:
        if bias_row is not None:
            rows = out.reshape(-1, ow * f)
            rows += bias_row

    def forward(images: Array, out: Array) -> None:  # a few of x, and their part of `out`
        product(_im2col(images, kh, kw, stride, padding), w_matrix, out)
        add_bias(out)

    if by_winograd:
        winograd.convolve(x_saved, w_saved, padding, out, add_bias)
    else:
        over_batch(forward, x_saved, out, item_bytes=oh * ow * kh * kw * c * out.itemsize)

    def backward(grad: Array) -> Gradients:
        dx = xp.empty(x.shape, x.dtype) if x.requires_grad else None
        dbias = () if bias is None else (add_up(grad, (0, 1, 2)),)
        if by_winograd:
            return dx, winograd.gradients(grad, x_saved, w_saved, padding, dx), *dbias
        w_rotated = w_saved[::-1, ::-1].swapaxes(2, 3).reshape(-1, c)  # (KH*KW*F, C)

        def gradients(g: Array, images: Array, dx: Array | None) -> Array:  # writes dx, returns dw (KH*KW*C, F)
            if dx is not None:
                dx[...] = col2im(g.reshape(-1, f) @ w_matrix.T, images.shape, kh, kw, stride, padding)
            return transposed_product(_im2col(images, kh, kw, stride, padding), g)

        def gradients_at_stride_1(g: Array, images: Array, dx: Array) -> Array:  # returns the rotated dw (KH*KW*F, C)
            cols = _im2col(g, kh, kw, 1, kh - 1 - padding)  # (N*H*W, KH*KW*F)
            product(cols, w_rotated, dx)
            return transposed_product(cols, images)

        item_bytes = oh * ow * kh * kw * max(c, f) * grad.itemsize
        # one padding of g, kh - 1 - padding, must suit both axes and not be negative
        if dx is not None and stride == 1 and kh == kw and padding < kh:
            dw = over_batch(gradients_at_stride_1, grad, x_saved, dx, item_bytes=item_bytes)
            return dx, dw.reshape(kh, kw, f, c)[::-1, ::-1].swapaxes(2, 3), *dbias
        return dx, over_batch(gradients, grad, x_saved, dx, item_bytes=item_bytes).reshape(w.shape), *dbias

    return Tensor.from_op(out, (x, w) if bias is None else (x, w, bias), backward, "conv2d")


WINOGRAD_CHANNELS = 32  # with fewer, copying tiles takes longer than the multiplications that it saves
_method = threading.local()


@contextmanager
def conv_method(name: str) -> Iterator[None]:
    """`with conv_method("im2col"):` makes `conv2d` use im2col always, in this thread; "auto", the default, uses
    Winograd's algorithm where that is faster."""
    if name not in ("auto", "im2col"):
        raise ValueError(f'conv_method: expected "auto" or "im2col", got {name!r}')
    before = getattr(_method, "name", "auto")
    _method.name = name
    try:
        yield
    finally:
        _method.name = before


def _winograd_pays(x: Tensor, w: Tensor, stride: int) -> bool:
    """Whether `conv2d` uses Winograd's algorithm: measured, see benchmarks/README.md."""
    fits = w.shape[:2] == (3, 3) and stride == 1 and len(x) > 0
    return fits and min(w.shape[2:]) >= WINOGRAD_CHANNELS and getattr(_method, "name", "auto") == "auto"


_scratch = threading.local()


def _im2col(x: Array, kh: int, kw: int, stride: int, padding: int) -> Array:
    """im2col into memory that this thread reuses, valid until its next call: allocating is most of im2col's time."""
    n, h, w, c = x.shape
    if (kh, kw, padding) == (1, 1, 0):
        return x[:, ::stride, ::stride].reshape(-1, c)
    if array_module(x) is not np:
        return im2col(x, kh, kw, stride, padding)
    key = (h, w, c, kh, kw, stride, padding, x.dtype)
    if getattr(_scratch, "key", None) != key or len(_scratch.cols) < n:
        # two views of `padded`: what is written inside shows in the patches; its border stays zero
        padded = np.zeros((n, h + 2 * padding, w + 2 * padding, c), x.dtype)
        _scratch.inside, _scratch.patches = _inside(padded, padding), patches(padded, kh, kw, stride)
        _scratch.cols, _scratch.key = np.empty(_scratch.patches.shape, x.dtype), key
    _scratch.inside[:n] = x
    _scratch.cols[:n] = _scratch.patches[:n]
    return _scratch.cols[:n].reshape(-1, kh * kw * c)


# ---- pooling --------------------------------------------------------------------------------------------------------


def max_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The largest of each kernel x kernel patch:  (N, H, W, C) -> (N, OH, OW, C). stride: `kernel` by default.

    Backward: the gradient goes to the entry that was the largest, to the first of equals; NaN counts as the largest.
    The border counts as minus infinity, and is never picked.
    """
    stride = kernel if stride is None else stride
    _check_window("max_pool2d", x, kernel, kernel, stride, padding)
    if padding > kernel // 2:
        raise ValueError(f"max_pool2d: padding may be at most half the kernel, {kernel // 2}, got {padding}")
    xp, (n, h, w, c) = array_module(x.data), x.shape
    offsets = _offsets(x.shape, kernel, stride, padding)
    oh, ow = output_size(h, kernel, stride, padding), output_size(w, kernel, stride, padding)
    out, winner = xp.empty((n, oh, ow, c), x.dtype), xp.empty((n, oh, ow, c), np.int16)
    # the largest's place i * kernel + j in its patch; at first the first one that is not in the border
    i, j = (xp.maximum(padding - stride * xp.arange(size), 0) for size in (oh, ow))
    first = (i[:, None] * kernel + j)[:, :, None]

    def forward(images: Array, out: Array, winner: Array) -> None:
        padded = pad2d(images, padding, -xp.inf)
        out[...], winner[...] = padded[offsets[0]], first
        for k, rows_columns in enumerate(offsets[1:], start=1):
            view = padded[rows_columns]
            higher = ~(view <= out) & (out == out)  # also where NaN is met for the first time
            xp.maximum(out, view, out=out)  # is NaN if one of both is
            winner += higher * (np.int16(k) - winner)

    over_batch(forward, x.data, out, winner, item_bytes=6 * h * w * c * x.data.itemsize)

    def backward(grad: Array) -> Gradients:
        dx = xp.empty(x.shape, grad.dtype)

        def gradient(grad: Array, winner: Array, dx: Array) -> None:
            padded = xp.zeros((len(dx), h + 2 * padding, w + 2 * padding, c), dx.dtype)
            for k, rows_columns in enumerate(offsets):
                padded[rows_columns] += grad * (winner == k)
            dx[...] = _inside(padded, padding)

        over_batch(gradient, grad, winner, dx, item_bytes=6 * h * w * c * dx.itemsize)
        return (dx,)

    return Tensor.from_op(out, (x,), backward, "max_pool2d")


def avg_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The mean of each kernel x kernel patch, zeros of the border counted:  (N, H, W, C) -> (N, OH, OW, C).

    Backward: every entry of a patch gets 1/kernel^2 of its gradient. stride: `kernel` by default.
    """
    stride = kernel if stride is None else stride
    _check_window("avg_pool2d", x, kernel, kernel, stride, padding)
    xp = array_module(x.data)
    padded, weight = pad2d(x.data, padding), 1 / kernel**2
    shape, offsets = padded.shape, _offsets(x.shape, kernel, stride, padding)
    out = sum(padded[rows_columns] for rows_columns in offsets) * weight

    def backward(grad: Array) -> Gradients:
        dx = xp.zeros(shape, grad.dtype)
        for rows_columns in offsets:
            dx[rows_columns] += grad * weight
        return (_inside(dx, padding),)

    return Tensor.from_op(out, (x,), backward, "avg_pool2d")


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean of each channel over the entire image:  (N, H, W, C) -> (N, C)."""
    check_tensors("global_avg_pool", x=x)
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"global_avg_pool: x has shape {x.shape}, expected (N, H, W, C), H and W at least 1")
    return x.mean((1, 2))


def pool2d_naive(x: Array, kernel: int, stride: int, padding: int, kind: str) -> Array:
    """Pooling an output pixel at a time, on plain arrays; kind: "max" or "mean"."""
    xp, (n, h, w, c) = array_module(x), x.shape
    oh, ow = output_size(h, kernel, stride, padding), output_size(w, kernel, stride, padding)
    x = pad2d(x, padding, -xp.inf if kind == "max" else 0.0)
    y = xp.empty((n, oh, ow, c), x.dtype)
    for i in range(oh):
        for j in range(ow):
            patch = x[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel]  # (N, kernel, kernel, C)
            y[:, i, j] = patch.max(axis=(1, 2)) if kind == "max" else patch.mean(axis=(1, 2))
    return y


def _offsets(shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> list[tuple[slice, ...]]:
    """For each place (i, j) in the kernel, the index of the pixels there in the padded image."""
    oh, ow = output_size(shape[1], kernel, stride, padding), output_size(shape[2], kernel, stride, padding)
    return [
        (slice(None), slice(i, i + stride * oh, stride), slice(j, j + stride * ow, stride))
        for i in range(kernel)
        for j in range(kernel)
    ]


# ---- argument checks ------------------------------------------------------------------------------------------------


def _check_window(name: str, x: Tensor, kh: int, kw: int, stride: int, padding: int) -> None:
    check_tensors(name, x=x)
    if not all(isinstance(i, int | np.integer) for i in (kh, kw, stride, padding)):
        raise TypeError(
            f"{name}: expected integers, one for both axes, got kernel {kh}, stride {stride}, padding {padding}"
        )
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (N, H, W, C), of which only N may be 0")
    if min(kh, kw) < 1 or stride < 1 or padding < 0:
        raise ValueError(
            f"{name}: kernel and stride must be 1 or more, padding 0 or more; "
            f"got kernel ({kh}, {kw}), stride {stride}, padding {padding}"
        )
    if x.shape[1] + 2 * padding < kh or x.shape[2] + 2 * padding < kw:
        raise ValueError(f"{name}: the kernel ({kh}, {kw}) is larger than x {x.shape} with padding {padding}")


def _check_conv(op: str, x: Tensor, w: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
    check_tensors(op, x=x, w=w, **({} if bias is None else {"bias": bias}))
    if w.ndim != 4 or 0 in w.shape:
        raise ValueError(f"{op}: w has shape {w.shape}, expected (KH, KW, C, F), each at least 1")
    _check_window(op, x, w.shape[0], w.shape[1], stride, padding)
    if x.shape[3] != w.shape[2]:
        raise ValueError(f"{op}: x has {x.shape[3]} channels, w expects {w.shape[2]} (w is {w.shape})")
    if bias is not None and bias.shape != w.shape[3:]:
        raise ValueError(f"{op}: bias has shape {bias.shape}, expected {w.shape[3:]} (w is {w.shape})")
    for name, t in (("w", w), ("bias", bias)):
        if t is not None and t.dtype != x.dtype:
            raise TypeError(f"{op}: {name} is {t.dtype}, x is {x.dtype}; convert one of them")
