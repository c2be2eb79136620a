"""The checks of chapter 7's exercises, and their hints."""

import numpy as np

from minires import Tensor
from minires.conv import conv2d
from minires.course.compare import Mistake
from minires.course.exercises import Exercise
from minires.functional import relu, subsample_and_pad
from minires.nn import Conv2d
from minires.norm import batch_norm_simple
from minires.resnet import SubsampleAndPad, projection


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


# ---- 7.1


def residual_backward_cases():
    def arrays(n, c, d, dtype=np.float64):
        return tuple(normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(n, c), (c, d), (d, c), (n, c)]))

    yield "one example, as wide inside as outside", arrays(1, 6, 6)
    yield "wider inside", arrays(1, 3, 7)
    yield "several examples", arrays(5, 4, 3)
    x, w1, w2, grad = arrays(4, 3, 5)
    yield "F is zero, w2 = 0", (x, w1, 0 * w2, grad)
    yield "float32", arrays(6, 3, 4, np.float32)


def residual_backward_reference(x, w1, w2, grad):
    """By the engine."""
    x, w1, w2 = (Tensor(a, requires_grad=True) for a in (x, w1, w2))
    (relu(x @ w1) @ w2 + x).backward(grad)
    return x.grad, w1.grad, w2.grad


# ---- 7.2 and 7.3


def shortcut_cases():
    """Words, shape of x, stride, channels, dtype."""
    yield "nothing changes", (1, 4, 4, 2), 1, 2, np.float64
    yield "twice the channels", (1, 3, 3, 2), 1, 4, np.float64
    yield "several images, not square", (4, 3, 5, 2), 1, 4, np.float64
    yield "stride 2", (1, 4, 4, 3), 2, 3, np.float64
    yield "stride 2 and twice the channels", (3, 4, 6, 4), 2, 8, np.float64
    yield "stride 2, an odd number of pixels", (2, 5, 7, 2), 2, 4, np.float64
    yield "three channels more", (2, 4, 3, 2), 1, 5, np.float64
    yield "stride 3", (2, 7, 5, 2), 3, 6, np.float64
    yield "float32", (2, 4, 6, 3), 2, 6, np.float32


def option_a_cases():
    for words, shape, stride, channels, dtype in shortcut_cases():
        yield words, (normal(*shape, dtype=dtype), stride, channels)


def option_a_reference(x, stride, channels):
    """Number by number, from the definition."""
    n, h, w, c = x.shape
    front = (channels - c) // 2
    y = np.zeros((n, -(-h // stride), -(-w // stride), channels), x.dtype)
    for i, j, k in np.ndindex(*y.shape[1:3], c):
        y[:, i, j, front + k] = x[:, stride * i, stride * j, k]
    return y


def option_a_run(answer, x, stride, channels):
    """The result; it must not be a view of x, into which somebody may write."""
    y = answer(x, stride, channels)
    if isinstance(y, np.ndarray) and np.shares_memory(x, y):
        raise Mistake("the result is a view of x, not a new array: writing into one would change the other")
    return y


def option_a_backward_cases():
    for words, shape, stride, channels, dtype in shortcut_cases():
        y = option_a_reference(np.zeros(shape), stride, channels)
        yield words, (normal(*y.shape, seed=1, dtype=dtype), shape, stride)


def option_a_backward_reference(grad, shape, stride):
    x = Tensor(np.zeros(shape, grad.dtype), requires_grad=True)
    subsample_and_pad(x, stride, grad.shape[3]).backward(grad)
    return x.grad


# ---- 7.4


def projection_cases():
    def arrays(shape, f, stride, dtype=np.float64, eps=1e-5):
        return (
            1 + normal(*shape, dtype=dtype),
            normal(shape[3], f, seed=1, dtype=dtype),
            2 + 0.5 * normal(f, seed=2, dtype=dtype),
            normal(f, seed=3, dtype=dtype),
            stride,
            eps,
        )

    yield "one square image, as many channels as before", arrays((1, 4, 4, 3), 3, 1)
    yield "twice the channels", arrays((1, 4, 4, 2), 4, 1)
    yield "stride 2", arrays((1, 6, 6, 3), 3, 2)
    yield "several images, not square", arrays((3, 4, 6, 2), 4, 2)
    yield "stride 2, an odd number of pixels", arrays((2, 5, 7, 3), 6, 2)
    yield "a large eps", arrays((2, 4, 4, 2), 3, 2, eps=0.5)
    yield "float32", arrays((2, 6, 4, 3), 5, 2, np.float32)


def projection_reference(x, w, gamma, beta, stride, eps=1e-5):
    z = conv2d(Tensor(x), Tensor(w[None, None]), stride=stride)
    return batch_norm_simple(z, Tensor(gamma), Tensor(beta), eps).data


# ---- 7.5


class Counted:
    """A layer that knows how often it was called, and whose gammas and betas are not those of a new one."""

    def __init__(self, layer, name):
        self.layer, self.name, self.calls = layer, name, 0

    def __call__(self, x, **options):
        self.calls += 1
        return self.layer(x, **options)

    def __repr__(self):
        return f"the layer {self.name}"


def norm(channels, seed):
    gamma, beta = 1.5 + 0.3 * normal(channels, seed=seed), 0.5 * normal(channels, seed=seed + 1)

    def layer(x):
        return batch_norm_simple(x, Tensor(gamma), Tensor(beta))

    return layer


def conv(c_in, c_out, stride, seed):
    layer = Conv2d(c_in, c_out, 3, stride, padding=1, rng=np.random.default_rng(seed))
    return layer.astype(np.float64)


def block(shape, c_out, stride, shortcut):
    """The arguments of a case: x with numbers below zero too, the four layers, and a shortcut."""
    layers = (conv(shape[3], c_out, stride, 0), norm(c_out, 1), conv(c_out, c_out, 1, 3), norm(c_out, 4))
    names = ("conv1", "bn1", "conv2", "bn2")
    counted = [Counted(layer, name) for layer, name in zip(layers, names, strict=True)]
    return Tensor(normal(*shape)), *counted, Counted(shortcut, "shortcut") if shortcut else None


def block_cases():
    yield "x itself on the shortcut", block((1, 4, 4, 3), 3, 1, None)
    yield "several images, not square", block((3, 4, 6, 2), 2, 1, None)
    yield "option A on the shortcut", block((2, 6, 4, 2), 4, 2, SubsampleAndPad(4, 2))
    way = projection(2, 4, 2, True, np.random.default_rng(9)).astype(np.float64)
    yield "a projection on the shortcut", block((2, 4, 6, 2), 4, 2, way)


def block_reference(x, conv1, bn1, conv2, bn2, shortcut=None):
    """With arrays, the sum last."""
    h = np.maximum(bn1(conv1(x)).data, 0)
    f = bn2(conv2(Tensor(h))).data
    return Tensor(np.maximum((shortcut(x) if shortcut else x).data + f, 0))


def block_run(answer, x, *layers):
    """The result, after checks that each layer was called once and that a gradient reaches the first."""
    given = [layer for layer in layers if layer]
    for layer in given:
        layer.calls = 0
    y = answer(x, *layers)
    for layer in given:
        if layer.calls != 1:
            raise Mistake(f"{layer.name} was called {layer.calls} times, expected once")
    if isinstance(y, Tensor):
        if y.requires_grad:
            y.backward(np.ones(y.shape))
        if layers[0].layer.weight.grad is None:
            raise Mistake(
                "no gradient gets back from y to conv1: an array (.data) was taken out of a Tensor, "
                "so that the layers before it would never learn"
            )
    return y


EXERCISES = [
    Exercise(
        number="7.1",
        name="residual_backward",
        title="the backward pass of y = x + F(x)",
        level=2,
        lines=7,
        hints=(
            "x is used twice: once in the sum, once in F. Two gradients arrive at x. What happens to gradients that "
            "meet?",
            "Compute forward again, and keep a = x w1 and h = relu(a). Then go backward from y: y = x + h w2. The sum "
            "passes grad to both sides.",
            "    dw2 = h^T grad          dh = grad w2^T          da = dh where a > 0, else 0\n"
            "    dw1 = x^T da            and F's share for x: da w1^T",
            "    dx = grad + da @ w1.T\n\n"
            "The shortcut's share is grad itself, untouched by any weight. Write it as a new array: grad += ... would "
            "change what you were given.",
        ),
        cases=residual_backward_cases,
        reference=residual_backward_reference,
        outputs=("dx", "dw1", "dw2"),
    ),
    Exercise(
        number="7.2",
        name="option_a",
        title="a shortcut without parameters",
        level=2,
        lines=5,
        hints=(
            "Two steps: leave pixels out, then make room for channels. Neither needs a number that is learned.",
            "A slice start:stop:step takes every step-th entry: x[:, ::stride, ::stride]. It also rounds up.",
            "Start with an array of zeros of the final shape, in x's dtype, and write the pixels that were kept into "
            "the middle channels.",
            "    front = (channels - C) // 2\n    y[..., front : front + C] = kept",
        ),
        cases=option_a_cases,
        reference=option_a_reference,
        run=option_a_run,
    ),
    Exercise(
        number="7.3",
        name="option_a_backward",
        title="option A, backward",
        level=2,
        lines=4,
        hints=(
            "Each number of x that was kept is in the result once, unchanged. So its gradient is ... ? And that of a "
            "number that was left out?",
            "Forward: y[..., front : front + C] = x[:, ::stride, ::stride]. Backward is the same line read from right "
            "to left, into an array of zeros.",
            "    dx = zeros of the given shape, dtype of grad\n"
            "    dx[:, ::stride, ::stride] = grad[..., front : front + C]\n\n"
            "C is shape[3], and grad.shape[3] is the number of channels after the padding.",
        ),
        cases=option_a_backward_cases,
        reference=option_a_backward_reference,
        outputs=("dx",),
    ),
    Exercise(
        number="7.4",
        name="projection",
        title="a shortcut with parameters",
        level=2,
        lines=4,
        hints=(
            "A 1x1 convolution looks at one pixel at a time and mixes its channels. With a stride it looks at every "
            "stride-th pixel only.",
            "Mixing the channels of every pixel is one product with the matrix w, over the last axis: @ does it for "
            "all pixels and images at once.",
            "    z = x[:, ::stride, ::stride] @ w\n\n"
            "Then batch norm: mean and variance of z (not of x) over the axes (0, 1, 2).",
        ),
        cases=projection_cases,
        reference=projection_reference,
    ),
    Exercise(
        number="7.5",
        name="block_forward",
        title="a basic block, put together",
        level=1,
        lines=4,
        hints=(
            "Write F first, from the inside out. Then the shortcut. Then the sum. What comes last?",
            "There are two ReLUs: one between the two convolutions, one after the sum. There is none on F just before "
            "the sum: F must be able to go below zero.",
            "    h = relu(bn1(conv1(x)))\n"
            "    h = bn2(conv2(h))\n"
            "    s = x if shortcut is None else shortcut(x)\n"
            "    and the ReLU of the sum",
        ),
        cases=block_cases,
        reference=block_reference,
        run=block_run,
        outputs=("y",),
    ),
]
