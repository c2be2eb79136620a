"""3x3 convolution with a quarter of the multiplications: Winograd's F(4x4, 3x3).

In one dimension first. Four outputs of a kernel (w0, w1, w2) over six inputs d0 .. d5 take 4 * 3 = 12 multiplications:

    y_i = d_i w0 + d_(i+1) w1 + d_(i+2) w2,        i = 0 .. 3

They are also the product of two polynomials in disguise, and a polynomial with six coefficients is known from its
values at six points. So transform both sides to values, multiply value by value, and transform back: 6 multiplications,

    y = A^T ((G w) * (B^T d))                      points 0, 1, -1, 2, -2 and infinity

In two dimensions the transforms act on rows and on columns: a 4x4 tile of the output takes 36 multiplications for each
pair of channels, where the sums take 144. Written as vectors, a transform of rows and columns is one product with a
Kronecker product, (B^T x B^T) d; so everything here is matrix products:

    V = (B^T x B^T) D       D (36, T*C): the 6x6 tiles of the image, which overlap by 2, the place in the tile first
    U = (G x G) w           w (9, C*F)
    M_k = V_k U_k           (T, C) times (C, F), for each of the 36 values k
    Y = (A^T x A^T) M       (16, T*F): the 4x4 tiles of the output

Each line is linear in each of its inputs, so backward it is the transposed product, from the last line to the first.

Sources: Winograd 1980, "Arithmetic Complexity of Computations"; for convolution Lavin and Gray, CVPR 2016,
https://arxiv.org/abs/1509.09308.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from minires.backend import Array, array_module, device_of, to_device
from minires.parallel import over_batch, scratch

B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
A_T = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
MIN_TILES = 64  # in a chunk: each chunk reads all of U


def convolve(x: Array, w: Array, padding: int, out: Array, finish: Callable[[Array], None]) -> None:
    """out = x convolved with w at stride 1. x: (N, H, W, C); w: (3, 3, C, F); out: (N, OH, OW, F).

    finish: called with each part of `out` while that is in the cache.
    """
    xp, (_, _, c, f), u = array_module(x), w.shape, transform_kernel(w)

    def forward(images: Array, out: Array) -> None:
        v = _transform_tiles(images, padding, out.shape)  # (36, T, C)
        m = scratch("products", (36, v.shape[1], f), v)
        over_batch(_multiply, v, u, m)
        y = scratch("tiles", (16, v.shape[1] * f), v)
        xp.matmul(_matrix("A_T", v), m.reshape(36, -1), out=y)
        _lay(y, out)
        finish(out)

    over_batch(forward, x, out, **_chunks(out, c))


def gradients(grad: Array, x: Array, w: Array, padding: int, dx: Array | None) -> Array:
    """Write dx, if it is wanted, and return dw. grad: (N, OH, OW, F).

    dM = (A x A) g       dU_k = V_k^T dM_k       dw = (G x G)^T dU
                         dV_k = dM_k U_k^T       dD = (B x B) dV      dx: the tiles dD, added where they overlap
    """
    xp, (_, _, c, f) = array_module(x), w.shape
    u_transposed = transform_kernel(w).swapaxes(1, 2)

    def backward(g: Array, images: Array, dx: Array | None) -> Array:  # returns dU
        v = _transform_tiles(images, padding, g.shape)  # (36, T, C)
        dm = _transform_gradient(g)  # (36, T, F)
        du = xp.empty((36, c, f), g.dtype)
        over_batch(_multiply, v.swapaxes(1, 2), dm, du)
        if dx is not None:
            over_batch(_multiply, dm, u_transposed, v)  # dV, in the memory of V
            dd = scratch("tiles", (36, v[0].size), v)
            xp.matmul(_matrix("B_T", v).T, v.reshape(36, -1), out=dd)
            _add_tiles(dd, padding, g.shape, dx)
        return du

    du = over_batch(backward, grad, x, dx, **_chunks(grad, c))
    return _transform_columns(_matrix("G", du).T, du.reshape(36, c * f)).reshape(w.shape)


def transform_kernel(w: Array) -> Array:
    """U = (G x G) w, for w (3, 3, C, F):  (36, C, F)."""
    _, _, c, f = w.shape
    return _transform_columns(_matrix("G", w), w.reshape(9, c * f)).reshape(36, c, f)


def _transform_columns(matrix: Array, columns: Array) -> Array:
    """matrix @ columns, some columns at a time."""
    xp = array_module(columns)
    out = xp.empty((len(matrix), columns.shape[1]), columns.dtype)

    def forward(rows: Array, out: Array) -> None:
        xp.matmul(matrix, rows.T, out=out.T)

    over_batch(forward, columns.T, out.T)
    return out


def _multiply(a: Array, b: Array, out: Array) -> None:
    array_module(a).matmul(a, b, out=out)


# ---- images and tiles: N*TH*TW = T -----------------------------------------------------------------------------------


def _transform_tiles(x: Array, padding: int, out_shape: tuple[int, ...]) -> Array:
    """V = (B^T x B^T) D, for a few images x:  (36, T, C)."""
    (n, h, w, c), (th, tw), xp = x.shape, _grid(out_shape), array_module(x)
    padded = scratch("padded", (n, 4 * th + 2, 4 * tw + 2, c), x)
    padded[...] = 0
    padded[:, padding : padding + h, padding : padding + w] = x
    step_n, step_h, step_w, step_c = padded.strides
    tiles = xp.lib.stride_tricks.as_strided(
        padded, (6, 6, n, th, tw, c), (step_h, step_w, step_n, 4 * step_h, 4 * step_w, step_c)
    )
    d, v = scratch("tiles", tiles.shape, x), scratch("values", (36, n * th * tw, c), x)
    d[...] = tiles
    xp.matmul(_matrix("B_T", x), d.reshape(36, -1), out=v.reshape(36, -1))
    return v


def _add_tiles(d: Array, padding: int, out_shape: tuple[int, ...], dx: Array) -> None:
    """The adjoint of cutting an image into 6x6 tiles: write into dx the sums of the tiles d (36, T*C)."""
    (n, h, w, c), (th, tw) = dx.shape, _grid(out_shape)
    d = d.reshape(6, 6, n, th, tw, c).transpose(2, 3, 0, 4, 1, 5)  # (N, TH, 6, TW, 6, C)
    cells = scratch("padded", (n, th + 1, 4, tw + 1, 4, c), d)
    cells[...] = 0
    cells[:, :-1, :, :-1, :] = d[:, :, :4, :, :4]
    cells[:, 1:, :2, :-1, :] += d[:, :, 4:, :, :4]  # what reaches into the next cells
    cells[:, :-1, :, 1:, :2] += d[:, :, :4, :, 4:]
    cells[:, 1:, :2, 1:, :2] += d[:, :, 4:, :, 4:]
    padded = cells.reshape(n, 4 * th + 4, 4 * tw + 4, c)
    dx[...] = padded[:, padding : padding + h, padding : padding + w]


def _transform_gradient(g: Array) -> Array:
    """dM = (A x A) g, for the 4x4 tiles of a few images' gradients g:  (36, T, F)."""
    (n, oh, ow, f), (th, tw) = g.shape, _grid(g.shape)
    if (oh, ow) != (4 * th, 4 * tw):
        padded = scratch("padded", (n, 4 * th, 4 * tw, f), g)
        padded[...] = 0
        padded[:, :oh, :ow] = g
        g = padded
    d, dm = scratch("tiles", (4, 4, n, th, tw, f), g), scratch("products", (36, n * th * tw, f), g)
    d[...] = g.reshape(n, th, 4, tw, 4, f).transpose(2, 4, 0, 1, 3, 5)
    array_module(g).matmul(_matrix("A_T", g).T, d.reshape(16, -1), out=dm.reshape(36, -1))
    return dm


def _lay(y: Array, out: Array) -> None:
    """Write the 4x4 tiles y (16, T*F) into out (N, OH, OW, F)."""
    (n, oh, ow, f), (th, tw) = out.shape, _grid(out.shape)
    y = y.reshape(4, 4, n, th, tw, f).transpose(2, 3, 0, 4, 1, 5)  # (N, TH, 4, TW, 4, F)
    if (oh, ow) == (4 * th, 4 * tw):
        out.reshape(y.shape)[...] = y
    else:
        out[...] = y.reshape(n, 4 * th, 4 * tw, f)[:, :oh, :ow]


def _grid(out_shape: tuple[int, ...]) -> tuple[int, int]:
    """TH and TW, the rows and columns of 4x4 tiles that cover the output."""
    return -(-out_shape[1] // 4), -(-out_shape[2] // 4)


def _chunks(out: Array, channels: int) -> dict[str, Any]:
    """How `over_batch` should cut the batch."""
    th, tw = _grid(out.shape)
    item_bytes = 36 * th * tw * (2 * channels + out.shape[3]) * out.itemsize
    return {"item_bytes": item_bytes, "min_items": -(-MIN_TILES // (th * tw))}


def _matrix(name: str, like: Array) -> Array:
    return _matrices(device_of(like), like.dtype)[name]


@cache
def _matrices(device: str, dtype: np.dtype[Any]) -> dict[str, Array]:
    return {name: to_device(np.kron(m, m).astype(dtype), device) for name, m in (("A_T", A_T), ("B_T", B_T), ("G", G))}
