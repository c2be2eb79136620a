"""Convolution as a matrix product, and pooling.

Images are (N, H, W, C), weights (KH, KW, C, F). "Convolution" means cross-correlation, as everywhere in deep learning:

    y[n, oh, ow, f] = sum over kh, kw, c of  x[n, oh*stride + kh - padding, ow*stride + kw - padding, c] w[kh, kw, c, f]

`im2col` copies the patch under each output pixel into a row of a matrix; one product with the weights, seen as a
(KH*KW*C, F) matrix, is then the whole sum. Each operation has a slow twin beside it that is nothing but its formula.
"""

from __future__ import annotations

from collections.abc import Iterator

from minires.backend import Array, array_module, in_blocks, in_lanes, sum_in_order
from minires.tensor import Gradients, Tensor


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """How many places a kernel has along an axis: floor((size + 2 padding - kernel) / stride) + 1."""
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
    """A view of the picture without its border."""
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

    Channel last, so KW*C numbers in a patch's row lie side by side and are copied as one. 1x1 patches at stride 1
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


class Im2col:
    """im2col for one chunk of a batch after another, into the same memory: fresh memory is what im2col spends most on.

    The first chunk must be the longest. A result is good until the next call.
    """

    def __init__(self, kh: int, kw: int, stride: int, padding: int):
        self.kernel, self.stride, self.padding = (kh, kw), stride, padding
        self.cols: Array = None  # (n, OH, OW, KH, KW, C), copied from the patches of a picture with a zero border

    def __call__(self, x: Array) -> Array:
        n, h, w, c = x.shape
        if self.kernel == (1, 1) and self.padding == 0:
            return x[:, :: self.stride, :: self.stride].reshape(-1, c)
        if self.cols is None:
            xp = array_module(x)
            self.padded = xp.zeros((n, h + 2 * self.padding, w + 2 * self.padding, c), x.dtype)
            self.inside = _inside(self.padded, self.padding)
            self.patches = patches(self.padded, *self.kernel, self.stride)
            self.cols = xp.empty(self.patches.shape, x.dtype)
        self.inside[:n] = x
        self.cols[:n] = self.patches[:n]
        return self.cols[:n].reshape(-1, self.kernel[0] * self.kernel[1] * c)


def conv2d(x: Tensor, w: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """y = im2col(x) @ w + bias.

    x: (N, H, W, C); w: (KH, KW, C, F); bias: (F,) or None; y: (N, OH, OW, F).

    With the rows of `cols = im2col(x)` and `g = dL/dy`, both as matrices:
        dw = cols^T g          dx = col2im(g w^T)          dbias = sum of g over its rows
    At stride 1, dx is itself a convolution of g, padded until the size fits, with w turned by half a turn and its
    channels in and out swapped; and the patches of g that it needs give dw as well. One im2col then serves both.
    """
    _check_conv(x, w, bias, stride, padding)
    n, h, width, c = x.shape
    kh, kw, _, f = w.shape
    oh, ow = output_size(h, kh, stride, padding), output_size(width, kw, stride, padding)
    xp, x_data, w_matrix = array_module(x.data), x.data, w.data.reshape(-1, f)  # (KH*KW*C, F)
    out = xp.empty((n, oh, ow, f), x.dtype)

    def forward(chunks: Iterator[slice]) -> None:
        im2col = Im2col(kh, kw, stride, padding)
        for s in chunks:
            cols = in_blocks(im2col(x_data[s]), f)  # (blocks, rows, KH*KW*C), n*OH*OW rows in all
            xp.matmul(cols, w_matrix, out=out[s].reshape(*cols.shape[:2], f))
            if bias is not None:
                out[s] += bias.data

    in_lanes(forward, x_data, oh * ow * kh * kw * c * x_data.itemsize)

    def backward(grad: Array) -> Gradients:
        dx: Array = xp.empty(x.shape, x.dtype) if x.requires_grad else None
        parts: dict[int, Array] = {}  # dw of each chunk

        def stride_1(chunks: Iterator[slice]) -> None:
            w_turned = w.data[::-1, ::-1].swapaxes(2, 3).reshape(-1, c)  # (KH*KW*F, C)
            im2col = Im2col(kh, kw, 1, kh - 1 - padding)
            for s in chunks:
                cols = in_blocks(im2col(grad[s]), c)  # (blocks, rows, KH*KW*F), n*H*W rows in all
                xp.matmul(cols, w_turned, out=dx[s].reshape(*cols.shape[:2], c))
                parts[s.start] = _sum_of_products(cols, x_data[s])  # (KH*KW*F, C), the kernel turned

        def any_stride(chunks: Iterator[slice]) -> None:
            im2col = Im2col(kh, kw, stride, padding)
            for s in chunks:
                cols = in_blocks(im2col(x_data[s]), f)  # (blocks, rows, KH*KW*C), n*OH*OW rows in all
                parts[s.start] = _sum_of_products(cols, grad[s])  # (KH*KW*C, F)
                if dx is not None:
                    dx[s] = col2im(grad[s].reshape(-1, f) @ w_matrix.T, x_data[s].shape, kh, kw, stride, padding)

        one_im2col = dx is not None and stride == 1 and kh == kw and padding < kh
        in_lanes(stride_1 if one_im2col else any_stride, grad, oh * ow * kh * kw * max(c, f) * grad.itemsize)
        dw = sum_in_order(parts)
        dw = dw.reshape(kh, kw, f, c)[::-1, ::-1].swapaxes(2, 3) if one_im2col else dw.reshape(w.shape)
        return (dx, dw) if bias is None else (dx, dw, grad.sum(axis=(0, 1, 2)))

    parents = (x, w) if bias is None else (x, w, bias)
    return Tensor.from_op(out, parents, backward, "conv2d")


def _sum_of_products(cols: Array, y: Array) -> Array:
    """cols^T y, block by block, for cols (blocks, rows, K) and y, which has as many rows of F numbers:  (K, F)."""
    return (cols.swapaxes(1, 2) @ y.reshape(*cols.shape[:2], y.shape[-1])).sum(axis=0)


def conv2d_naive(x: Array, w: Array, bias: Array | None = None, stride: int = 1, padding: int = 0) -> Array:
    """The formula at the top of this file, a pixel of the output at a time, on plain arrays."""
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


# ---- pooling --------------------------------------------------------------------------------------------------------


def max_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The largest of each kernel x kernel patch:  (N, H, W, C) -> (N, OH, OW, C). stride: `kernel` by default.

    Backward: the gradient goes to the entry that was the largest, to the first of equals. The border counts as
    minus infinity.
    """
    stride = kernel if stride is None else stride
    _check_window("max_pool2d", x, kernel, kernel, stride, padding)
    if padding > kernel // 2:
        raise ValueError(f"max_pool2d: padding may be at most half the kernel, {kernel // 2}, got {padding}")
    xp = array_module(x.data)
    padded = pad2d(x.data, padding, -xp.inf)
    offsets = _offsets(x.shape, kernel, stride, padding)
    views = [padded[rows_columns] for rows_columns in offsets]
    out, winner = views[0].copy(), xp.zeros(views[0].shape, xp.int32)
    for k, view in enumerate(views):
        higher = view > out
        out = xp.where(higher | xp.isnan(view), view, out)
        winner = xp.where(higher, k, winner)

    def backward(grad: Array) -> Gradients:
        dx = xp.zeros(padded.shape, x.dtype)
        for k, rows_columns in enumerate(offsets):
            dx[rows_columns] += grad * (winner == k)
        return (_inside(dx, padding),)

    return Tensor.from_op(out, (x,), backward, "max_pool2d")


def avg_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The mean of each kernel x kernel patch, zeros of the border counted:  (N, H, W, C) -> (N, OH, OW, C).

    Backward: every entry of a patch gets 1/kernel^2 of its gradient. stride: `kernel` by default.
    """
    stride = kernel if stride is None else stride
    _check_window("avg_pool2d", x, kernel, kernel, stride, padding)
    xp = array_module(x.data)
    padded = pad2d(x.data, padding)
    offsets = _offsets(x.shape, kernel, stride, padding)
    out = sum(padded[rows_columns] for rows_columns in offsets) * (1 / kernel**2)

    def backward(grad: Array) -> Gradients:
        dx = xp.zeros(padded.shape, x.dtype)
        for rows_columns in offsets:
            dx[rows_columns] += grad * (1 / kernel**2)
        return (_inside(dx, padding),)

    return Tensor.from_op(out, (x,), backward, "avg_pool2d")


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean of each channel over the whole picture:  (N, H, W, C) -> (N, C)."""
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
    """For each place (i, j) in the kernel: the index of the pixels that lie there, in the padded picture."""
    oh, ow = output_size(shape[1], kernel, stride, padding), output_size(shape[2], kernel, stride, padding)
    return [
        (slice(None), slice(i, i + stride * oh, stride), slice(j, j + stride * ow, stride))
        for i in range(kernel)
        for j in range(kernel)
    ]


# ---- what came is not what was wanted -------------------------------------------------------------------------------


def _check_window(name: str, x: Tensor, kh: int, kw: int, stride: int, padding: int) -> None:
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (N, H, W, C), of which only N may be 0")
    if min(kh, kw) < 1 or stride < 1 or padding < 0:
        raise ValueError(
            f"{name}: kernel and stride must be 1 or more, padding 0 or more; "
            f"got kernel ({kh}, {kw}), stride {stride}, padding {padding}"
        )
    if x.shape[1] + 2 * padding < kh or x.shape[2] + 2 * padding < kw:
        raise ValueError(f"{name}: the kernel ({kh}, {kw}) is larger than x {x.shape} with padding {padding}")


def _check_conv(x: Tensor, w: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
    if w.ndim != 4 or 0 in w.shape:
        raise ValueError(f"conv2d: w has shape {w.shape}, expected (KH, KW, C, F), each at least 1")
    _check_window("conv2d", x, w.shape[0], w.shape[1], stride, padding)
    if x.shape[3] != w.shape[2]:
        raise ValueError(f"conv2d: x has {x.shape[3]} channels, w wants {w.shape[2]} (w is {w.shape})")
    if bias is not None and bias.shape != w.shape[3:]:
        raise ValueError(f"conv2d: bias has shape {bias.shape}, expected {w.shape[3:]} (w is {w.shape})")
    for name, t in (("w", w), ("bias", bias)):
        if t is not None and t.dtype != x.dtype:
            raise TypeError(f"conv2d: {name} is {t.dtype}, x is {x.dtype}; convert one of them")
