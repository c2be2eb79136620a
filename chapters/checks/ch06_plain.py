"""The checks of chapter 6's exercises, and their hints."""

import numpy as np

from minires import Tensor, build, cross_entropy
from minires.conv import conv2d_naive
from minires.course.compare import Mistake
from minires.course.exercises import Exercise
from minires.nn import Conv2d
from minires.norm import batch_norm

# ---- 6.1


def plain_layers_cases():
    yield "depth 8, one block a stage", (8,)
    yield "depth 20", (20,)
    yield "depth 56", (56,)
    yield "a narrow net", (14, 4)
    yield "images of 64 pixels", (14, 8, 64)


def plain_layers_reference(depth, width=16, size=32):
    """Read off the library's net."""
    net, layers = build(f"plain{depth}", width=width), []
    for _, module in net.modules():
        if isinstance(module, Conv2d):
            size //= module.stride
            layers.append((*module.weight.shape[2:], module.stride, size))
    return layers


# ---- 6.2


def verdict_cases():
    yield "worse on both, the test error more so", ((10.0, 14.0), (12.0, 18.0))
    yield "better in training, worse on the test images", ((10.0, 14.0), (3.0, 16.0))
    yield "better on both", ((10.0, 14.0), (6.0, 9.0))
    yield "worse in training, better on the test images", ((10.0, 14.0), (11.0, 13.0))
    yield "better on both, the gap between them wider", ((10.0, 12.0), (1.0, 9.0))
    yield "worse on both, the gap between them narrower", ((10.0, 16.0), (15.0, 17.0))
    yield "errors below one percent", ((0.002, 0.09), (0.001, 0.11))
    yield "equal in training, worse on the test images", ((10.0, 14.0), (10.0, 15.0))
    yield "equal on both", ((10.0, 14.0), (10.0, 14.0))


def verdict_reference(shallow, deep):
    worse_in_training, worse_in_test = np.array(deep) > np.array(shallow)
    return {(False, False): "no harm", (False, True): "overfitting"}.get(
        (worse_in_training, worse_in_test), "degradation"
    )


# ---- 6.3


def batch(n, size, seed=0):
    rng = np.random.default_rng([seed, n, size])
    return rng.standard_normal((n, size, size, 3)).astype(np.float32), rng.integers(0, 10, n)


def net_for(name, **options):
    """A net with a last layer that is not tiny, so that no gradient is."""
    net = build(name, width=2, **options)
    net.fc.weight.data *= 50
    return net


def used(net):
    """The net with the gradients of another batch still in it."""
    x, y = batch(3, 8, seed=1)
    cross_entropy(net(Tensor(x)), y).backward()
    return net


def gradient_norms_cases():
    yield "a plain net", (net_for("plain8"), *batch(4, 8))
    yield "a residual net", (net_for("resnet14"), *batch(4, 8))
    yield "a net with projections", (net_for("resnet14", shortcut="B"), *batch(3, 12))
    yield "a net in evaluation mode", (net_for("plain8").eval(), *batch(2, 8))
    yield "a net with gradients of another batch", (used(net_for("plain8")), *batch(4, 8))


def gradient_norms_reference(net, x, y):
    """By module, after forgetting old gradients."""
    net.zero_grad()
    cross_entropy(net(Tensor(x)), y).backward()
    return np.array([np.linalg.norm(m.weight.grad) for _, m in net.modules() if isinstance(m, Conv2d)], np.float64)


# ---- 6.4


def identity_kernel_cases():
    yield "1x1, one channel", (1, 1)
    yield "3x3, one channel", (1, 3)
    yield "3x3, four channels", (4, 3)
    yield "5x5, two channels", (2, 5)
    yield "1x1, three channels", (3, 1)


def identity_kernel_reference(channels, size):
    """By its definition: weight [a, b, c, f] takes pixel (i + a - p, j + b - p) of channel c to pixel (i, j) of f."""
    p = (size - 1) // 2
    places = np.ndindex(size, size, channels, channels)
    weights = [float(a == p and b == p and c == f) for a, b, c, f in places]
    kernel = np.array(weights, np.float32).reshape(size, size, channels, channels)
    x = np.random.default_rng(0).standard_normal((2, 6, 5, channels)).astype(np.float32)
    assert np.array_equal(conv2d_naive(x, kernel, None, 1, p), x)
    return kernel


# ---- 6.5


def identity_norm_cases():
    def x(*shape, dtype=np.float64, scale=1.0):
        rng = np.random.default_rng(shape)
        spread = np.linspace(0.5, 3, shape[-1])
        return (scale * (2 + spread * np.abs(rng.standard_normal(shape)))).astype(dtype)

    yield "one image, one channel", (x(1, 4, 4, 1),)
    yield "several images, not square", (x(3, 2, 5, 1),)
    yield "three channels", (x(2, 3, 4, 3),)
    yield "a large eps", (x(2, 2, 3, 2), 0.5)
    yield "few numbers a channel", (x(2, 1, 2, 3),)
    yield "a channel that is the same everywhere", (x(2, 3, 3, 2) * np.array([1, 0]) + np.array([0, 4]),)
    yield "float32", (x(2, 4, 3, 2, dtype=np.float32), 0.1)


def identity_norm_reference(x, eps=1e-5):
    """The library's own batch norm finds mean and variance: with momentum 1 its running ones are the batch's."""
    c, m = x.shape[-1], x.size // x.shape[-1]
    mean, var = np.zeros(c, x.dtype), np.zeros(c, x.dtype)
    one, zero = Tensor(np.ones(c, x.dtype)), Tensor(np.zeros(c, x.dtype))
    batch_norm(Tensor(x), one, zero, mean, var, momentum=1.0, eps=eps)
    var *= (m - 1) / m  # it keeps the unbiased variance
    gamma, beta = np.sqrt(var + x.dtype.type(eps)), mean.copy()
    for training in (True, False):
        y = batch_norm(Tensor(x), Tensor(gamma), Tensor(beta), mean.copy(), var.copy(), training, eps=eps)
        assert np.allclose(y.data, x, atol=1e-5)
    return gamma, beta, mean, var


def identity_norm_run(answer, x, eps=1e-5):
    """The four arrays, and what batch norm does with them."""
    got = answer(x, eps)
    if isinstance(got, tuple | list) and len({id(part) for part in got}) < len(got):
        raise Mistake("two of the four are the same array: a change of one would change the other, so return a copy")
    return got


EXERCISES = [
    Exercise(
        number="6.1",
        name="plain_layers",
        title="the convolutions of a plain net",
        level=2,
        lines=11,
        hints=(
            "Start with plain-8: n = 1. Write down its seven convolutions by hand, line by line, before any code: "
            "channels in, channels out, stride, height of the output.",
            "depth = 6n + 2, so n = (depth - 2) // 6. A stage has n blocks of two convolutions: 2n. The output "
            "channels of one layer are the input channels of the next, from stage to stage too.",
            "    layers = [(3, width, 1, size)]\n"
            "    for each of the three stages:\n"
            "        for each of its 2n convolutions:\n"
            "            stride is 2 for the very first of the second and of the third stage, else 1\n"
            "            size = size // stride\n"
            "            append (c_in, c_out, stride, size), then c_in = c_out",
        ),
        cases=plain_layers_cases,
        reference=plain_layers_reference,
        outputs=("the list",),
    ),
    Exercise(
        number="6.2",
        name="verdict",
        title="overfitting, degradation, or neither",
        level=1,
        lines=5,
        hints=(
            "Which of the four numbers says whether a net can fit the images that it is shown? Ask that first.",
            "Degradation is about training errors alone. If the training error went up with depth, the test error "
            "no longer matters: a net that can't fit its training images has not overfitted them.",
            "    if deep's training error > shallow's: ...\n"
            "    if deep's test error > shallow's: ...\n"
            "    otherwise ...\n\n"
            "Compare deep with shallow, never training with test: a test error above the training error is normal.",
        ),
        cases=verdict_cases,
        reference=verdict_reference,
        outputs=("the verdict",),
    ),
    Exercise(
        number="6.3",
        name="gradient_norms",
        title="how much gradient arrives in each layer",
        level=2,
        lines=4,
        hints=(
            "Four steps: forget old gradients, loss, backward, and then read each layer's gradient.",
            "The norm is that of all the numbers of the layer's gradient, as if they were one long vector: square, "
            "sum, root. A mean would hide that layers differ in size.",
            "    net.zero_grad()\n"
            "    cross_entropy(net(Tensor(x)), y).backward()\n"
            "    [... p.grad ... for p in net.parameters() if p.ndim == 4]\n\n"
            "np.array(list_of_numbers, np.float64) makes the array.",
        ),
        cases=gradient_norms_cases,
        reference=gradient_norms_reference,
        outputs=("the norms",),
        rtol=1e-5,
    ),
    Exercise(
        number="6.4",
        name="identity_kernel",
        title="a convolution that changes nothing",
        level=2,
        lines=3,
        hints=(
            "An output pixel is a sum over its window, weight times number. Which weights must be 1, and which 0, for "
            "the sum to be the pixel in the middle of the window, of the same channel?",
            "All is 0 but the middle of the kernel. In the middle is a matrix from channels in to channels out that "
            "maps each channel to itself.",
            "    kernel = np.zeros((size, size, channels, channels), np.float32)\n"
            "    kernel[middle, middle] = ...     # np.eye makes the identity matrix",
        ),
        cases=identity_kernel_cases,
        reference=identity_kernel_reference,
        outputs=("the kernel",),
    ),
    Exercise(
        number="6.5",
        name="identity_norm",
        title="a batch norm that changes nothing",
        level=2,
        lines=5,
        hints=(
            "Batch norm subtracts the mean and divides by a root. gamma and beta can undo both.",
            "Set y = x in the formula and solve: what must gamma be so that it cancels the division, what must beta be "
            "so that it restores the mean?",
            "gamma = sqrt(var + eps), eps and all; beta = mean; and the running statistics are mean and var, so that "
            "evaluation does what training does.",
            "mean and var of each channel run over the axes (0, 1, 2). x.var() is the biased variance. "
            "np.sqrt(...).astype(x.dtype) keeps float32.",
        ),
        cases=identity_norm_cases,
        reference=identity_norm_reference,
        run=identity_norm_run,
        outputs=("gamma", "beta", "running mean", "running variance"),
    ),
]
