"""The checks of chapter 4's exercises, and their hints."""

import numpy as np

from minires import conv as library
from minires.course.exercises import Exercise
from minires.tensor import Tensor


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


# ---- 4.1


def output_size_cases():
    yield "a kernel on a row, nothing else", (5, 3)
    yield "a kernel as long as the row", (4, 4)
    yield "padding 1", (32, 3, 1, 1)
    yield "padding 3, a kernel of 7", (9, 7, 1, 3)
    yield "stride 2, which fits exactly", (7, 3, 2)
    yield "stride 2, a pixel left over", (32, 3, 2, 1)
    yield "stride 3, two pixels left over", (11, 3, 3)
    yield "stride 2 and padding 3", (224, 7, 2, 3)
    yield "stride larger than the kernel", (10, 1, 4, 1)


def output_size_reference(size, kernel, stride=1, padding=0):
    return library.output_size(size, kernel, stride, padding)


# ---- 4.2


def im2col_cases():
    yield "one square image, one channel", (normal(1, 4, 4, 1), 3, 3)
    yield "an image that is not square", (normal(1, 4, 6, 1), 3, 3)
    yield "a kernel that is not square", (normal(1, 5, 5, 1), 3, 2)
    yield "three channels", (normal(1, 5, 4, 3), 2, 2)
    yield "several images", (normal(3, 4, 5, 2), 2, 2)
    yield "stride 2", (normal(2, 7, 5, 2), 3, 3, 2)
    yield "padding 1", (normal(2, 4, 5, 2), 3, 3, 1, 1)
    yield "stride 2 and padding 1, pixels left over", (normal(2, 6, 8, 2), 3, 3, 2, 1)
    yield "float32", (normal(2, 5, 4, 2, dtype=np.float32), 3, 2, 1, 1)


def im2col_reference(x, kh, kw, stride=1, padding=0):
    """Patch by patch, from the definition."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    tops = range(0, x.shape[1] - kh + 1, stride)
    lefts = range(0, x.shape[2] - kw + 1, stride)
    return np.stack([image[t : t + kh, s : s + kw].ravel() for image in x for t in tops for s in lefts])


# ---- 4.3


def conv_cases():
    yield "one square image, one channel, one filter", (normal(1, 5, 5, 1), normal(3, 3, 1, 1, seed=1))
    yield "images and kernels that are not square", (normal(1, 4, 6, 1), normal(3, 2, 1, 1, seed=1))
    yield "three channels", (normal(1, 5, 4, 3), normal(2, 2, 3, 1, seed=1))
    yield "four filters", (normal(1, 5, 4, 3), normal(2, 2, 3, 4, seed=1))
    yield "several images", (normal(3, 5, 4, 2), normal(3, 2, 2, 4, seed=1))
    yield "a bias", (normal(2, 5, 4, 2), normal(3, 2, 2, 3, seed=1), normal(3, seed=2))
    yield "stride 2", (normal(2, 7, 5, 2), normal(3, 3, 2, 3, seed=1), None, 2)
    yield "padding 1", (normal(2, 4, 6, 2), normal(3, 3, 2, 3, seed=1), None, 1, 1)
    yield "stride 2, padding 1 and a bias", (normal(2, 6, 8, 2), normal(3, 3, 2, 3, seed=1), normal(3, seed=2), 2, 1)
    yield "float32", tuple(normal(*shape, dtype=np.float32) for shape in ((2, 5, 4, 2), (3, 2, 2, 3), (3,)))


def conv_reference(x, w, bias=None, stride=1, padding=0):
    return library.conv2d_naive(x, w, bias, stride, padding)


# ---- 4.4 and 4.5


def gradient_cases():
    """Words, shape of x, shape of w, stride, padding, dtype."""
    yield "one square image, one channel, one filter", (1, 5, 5, 1), (3, 3, 1, 1), 1, 0, np.float64
    yield "images and kernels that are not square", (1, 4, 6, 1), (3, 2, 1, 1), 1, 0, np.float64
    yield "three channels, two filters", (1, 5, 4, 3), (2, 2, 3, 2), 1, 0, np.float64
    yield "several images", (4, 5, 4, 2), (3, 2, 2, 4), 1, 0, np.float64
    yield "stride 2", (2, 7, 5, 2), (3, 3, 2, 3), 2, 0, np.float64
    yield "padding 1", (2, 4, 6, 2), (3, 3, 2, 3), 1, 1, np.float64
    yield "stride 2 and padding 1, pixels left over", (2, 6, 8, 2), (3, 3, 2, 3), 2, 1, np.float64
    yield "a 1x1 kernel, stride 2", (2, 5, 4, 3), (1, 1, 3, 2), 2, 0, np.float64
    yield "float32", (2, 5, 4, 2), (3, 2, 2, 3), 1, 1, np.float32


def arrays(x_shape, w_shape, stride, padding, dtype):
    x, w = normal(*x_shape, dtype=dtype), normal(*w_shape, seed=1, dtype=dtype)
    grad = normal(*library.conv2d_naive(x, w, None, stride, padding).shape, seed=2, dtype=dtype)
    return x, w, grad


def weight_gradient_cases():
    for words, x_shape, w_shape, stride, padding, dtype in gradient_cases():
        x, _, grad = arrays(x_shape, w_shape, stride, padding, dtype)
        yield words, (x, grad, *w_shape[:2], stride, padding)


def weight_gradient_reference(x, grad, kh, kw, stride=1, padding=0):
    w = Tensor(np.zeros((kh, kw, x.shape[3], grad.shape[3]), x.dtype), requires_grad=True)
    bias = Tensor(np.zeros(grad.shape[3], x.dtype), requires_grad=True)
    library.conv2d(Tensor(x), w, bias, stride, padding).backward(grad)
    return w.grad, bias.grad


def input_gradient_cases():
    for words, x_shape, w_shape, stride, padding, dtype in gradient_cases():
        _, w, grad = arrays(x_shape, w_shape, stride, padding, dtype)
        yield words, (grad, w, x_shape, stride, padding)


def input_gradient_reference(grad, w, shape, stride=1, padding=0):
    x = Tensor(np.zeros(shape, grad.dtype), requires_grad=True)
    library.conv2d(x, Tensor(w), None, stride, padding).backward(grad)
    return x.grad


# ---- 4.6


def winograd_cases():
    yield "one tile", (normal(4), normal(3, seed=1))
    yield "three tiles", (normal(8), normal(3, seed=1))
    yield "a row of odd length", (normal(7), normal(3, seed=1))
    yield "three numbers, one output", (normal(3), normal(3, seed=1))
    yield "a long row", (normal(101), normal(3, seed=1))
    yield "float32", (normal(9, dtype=np.float32), normal(3, seed=1, dtype=np.float32))


def winograd_reference(x, w):
    padded = np.append(x, [0, 0]).astype(x.dtype)
    m = [
        [
            (a - c) * w[0],
            (b + c) * (w[0] + w[1] + w[2]) / 2,
            (c - b) * (w[0] - w[1] + w[2]) / 2,
            (b - d) * w[2],
        ]
        for a, b, c, d in (padded[t : t + 4] for t in range(0, len(x) - 2, 2))
    ]
    return np.array(m, x.dtype), np.correlate(x, w, "valid")


EXERCISES = [
    Exercise(
        number="4.1",
        name="output_size",
        title="in how many places a kernel fits",
        level=1,
        lines=1,
        hints=(
            "Draw a row of 5 pixels and a kernel of 3, and count. Then with a zero on each side. Then with stride 2. "
            "What is the last place for the kernel's left end?",
            "The row is size + 2 padding long. The left end can be at 0, stride, 2 stride, ... as long as it is at "
            "most size + 2 padding - kernel.",
            "Divide that by the stride and round down: //. Then add one place, because the first is at 0:\n\n"
            "    (... + 2 * ... - ...) // ... + 1",
        ),
        cases=output_size_cases,
        reference=output_size_reference,
        outputs=("the number of places",),
    ),
    Exercise(
        number="4.2",
        name="im2col",
        title="every patch as a row",
        level=3,
        lines=9,
        hints=(
            "Forget speed. For each image and each place, cut out the patch and flatten it: that is a row. Get that "
            "right on paper for a 3x3 image and a 2x2 kernel first.",
            "With padded = x and a border of zeros, the patch of place (i, j) is\n\n"
            "    padded[n, stride * i : stride * i + kh, stride * j : stride * j + kw]\n\n"
            "and flattening it gives the right order: channels side by side.",
            "Faster: fill an array with six axes (N, OH, OW, KH, KW, C), one place in the kernel at a time. For (a, b) "
            "it gets, from all images at once, every pixel that weight (a, b) meets:\n\n"
            "    cols[:, :, :, a, b] = padded[:, a : a + stride * oh : stride, b : ...]\n\n"
            "At the end, reshape to (N*OH*OW, KH*KW*C).",
            "np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))) adds the zeros; "
            "np.zeros(shape, x.dtype) makes the array in x's own dtype.",
        ),
        cases=im2col_cases,
        reference=im2col_reference,
        outputs=("the matrix",),
    ),
    Exercise(
        number="4.3",
        name="conv_forward",
        title="a convolution as one product",
        level=2,
        lines=8,
        hints=(
            "Patches are rows, filters are columns; the product of the two matrices has every sum of products. What "
            "remains is to give it its four axes again.",
            "library.im2col(x, kh, kw, stride, padding) is (N*OH*OW, KH*KW*C). w has the axes (KH, KW, C, F), in the "
            "same order as a row: a reshape makes it (KH*KW*C, F).",
            "    y = library.im2col(...) @ w.reshape(-1, f)\n"
            "    (then + bias, if there is one; it has one number for each column)\n"
            "    return y.reshape(number of images, oh, ow, f)\n\n"
            "library.output_size gives oh and ow: height with kh, width with kw.",
        ),
        cases=conv_cases,
        reference=conv_reference,
        outputs=("y",),
    ),
    Exercise(
        number="4.4",
        name="weight_gradients",
        title="backward to the weights and the bias",
        level=2,
        lines=6,
        hints=(
            "One weight is used at every place of every image. Each use adds: the upstream gradient there, times the "
            "number under the weight there.",
            "As matrices the forward pass is Y = P W. Then dW = P^T G: the columns of P are what each weight met, and "
            "the product sums over the rows.",
            "P is library.im2col(x, kh, kw, stride, padding), (N*OH*OW, KH*KW*C). G is grad.reshape(-1, f), "
            "(N*OH*OW, F). Multiply, then reshape to (KH, KW, C, F).",
            "The bias is added to every row of Y, so dbias is the sum of the rows of G: axis 0.",
        ),
        cases=weight_gradient_cases,
        reference=weight_gradient_reference,
        outputs=("dw", "dbias"),
    ),
    Exercise(
        number="4.5",
        name="input_gradient",
        title="backward to the images",
        level=3,
        lines=10,
        hints=(
            "Two steps. First the gradient of the matrix of patches; then take each entry back to the pixel it was "
            "copied from. A pixel that was copied nine times gets the sum of nine.",
            "As matrices Y = P W, so dP = G W^T: (N*OH*OW, F) times (F, KH*KW*C). See it as (N, OH, OW, KH, KW, C).",
            "Start with zeros of the padded size. For each place (a, b) in the kernel, the entries dP[:, :, :, a, b] "
            "belong to the pixels\n\n"
            "    padded[:, a : a + stride * oh : stride, b : b + stride * ow : stride]\n\n"
            "Add them there: +=.",
            "At the end cut off the border, `padding` pixels on each side. With padding 0 the slice padding:-padding "
            "is empty; padding : padding + h is safe.",
        ),
        cases=input_gradient_cases,
        reference=input_gradient_reference,
        outputs=("dx",),
    ),
    Exercise(
        number="4.6",
        name="winograd_row",
        title="two outputs from four products",
        level=2,
        lines=10,
        hints=(
            "Take a row of six numbers. Its four outputs need two tiles: numbers 0 to 3, and numbers 2 to 5. How many "
            "tiles do five outputs need, and how long must the row be then?",
            "Put the row into zeros of length 2 T + 2. The first numbers of all tiles are then padded[0::2], the "
            "second ones padded[1::2], and so on, T of each: no loop over the tiles is needed.",
            "    d0, d1, d2, d3 = (padded[i : i + 2 * tiles : 2] for i in range(4))\n"
            "    d = np.stack([d0 - d2, ..., ..., ...], axis=1)     # (T, 4)\n"
            "    u = four numbers from w\n"
            "    m = d * u\n\n"
            "The outputs of a tile stand side by side in an array (T, 2); reshape it to one row, and cut off what is "
            "beyond L - 2.",
        ),
        cases=winograd_cases,
        reference=winograd_reference,
        outputs=("m", "y"),
    ),
]
