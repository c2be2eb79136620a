"""The checks of chapter 9's exercises, and their hints."""

from types import SimpleNamespace

import numpy as np

from minires.conv import conv2d
from minires.course.compare import Mistake
from minires.course.exercises import Exercise
from minires.nn import Conv2d
from minires.norm import batch_norm
from minires.resnet import Bottleneck
from minires.summary import summarise
from minires.tensor import Tensor


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


# ---- 9.1


def multiply_adds_cases():
    yield "one pixel, one channel in, one out", (1, 1, 1, 1, 1)
    yield "a 1x1 kernel", (4, 4, 3, 5, 1)
    yield "a 3x3 kernel with padding 1", (8, 8, 3, 5, 3, 1, 1)
    yield "an image that is not square", (8, 6, 3, 5, 3, 1, 1)
    yield "no padding", (9, 7, 3, 5, 3)
    yield "stride 2", (32, 24, 16, 32, 3, 2, 1)
    yield "stride 2, a pixel left over", (7, 5, 16, 32, 1, 2)
    yield "the first layer of an ImageNet net", (224, 224, 3, 64, 7, 2, 3)


def multiply_adds_reference(h, w, c, f, kernel, stride=1, padding=0):
    layer = Conv2d(c, f, kernel, stride, padding, rng=np.random.default_rng(0))
    return summarise(layer, (h, w, c)).total.multiply_adds


# ---- 9.2


def block_parameters_cases():
    yield "the identity on the shortcut", (64, 16)
    yield "another width", (256, 64)
    yield "channels change", (64, 64)
    yield "the stride is 2 and channels change", (256, 128, 2)
    yield "the stride is 2 and channels stay", (64, 16, 2)
    yield "a width of 3", (5, 3)


def block_parameters_reference(c_in, width, stride=1):
    block = Bottleneck(c_in, width, stride, "B", np.random.default_rng(0))
    return sum(p.size for p in block.parameters())


# ---- 9.3


def bottleneck_cases():
    yield "the identity on the shortcut", (normal(4, 4, 4, 8), 2, 1, "B", True)
    yield "one image", (normal(1, 4, 4, 8), 2, 1, "B", True)
    yield "images that are not square", (normal(3, 4, 6, 8), 2, 1, "B", True)
    yield "channels change, a projection", (normal(3, 4, 6, 5), 2, 1, "B", True)
    yield "stride 2, a projection", (normal(3, 4, 6, 5), 2, 2, "B", True)
    yield "stride 2, option A", (normal(3, 4, 6, 5), 2, 2, "A", True)
    yield "evaluation", (normal(3, 4, 6, 5), 2, 2, "B", False)
    yield "float32", (normal(3, 4, 6, 5, dtype=np.float32), 2, 2, "B", True)


def made(x, width, stride, option, training):
    """A block whose norms differ from each other and from new ones."""
    block = Bottleneck(x.shape[-1], width, stride, option, np.random.default_rng(1)).astype(x.dtype)
    rng = np.random.default_rng(2)
    for name, module in block.modules():
        if name.startswith("bn"):
            size = module.running_mean.shape
            module.weight.data[...] = rng.uniform(0.5, 2, size)
            module.bias.data[...] = rng.normal(size=size)
            module.running_mean[...] = rng.normal(size=size)
            module.running_var[...] = rng.uniform(0.5, 2, size)
    return block.train(training)


def forward_and_backward(forward, x, block):
    """The output, the gradients for x and for the first weight, and a norm's running mean afterwards."""
    image = Tensor(x, requires_grad=True)
    y = forward(image, block)
    if isinstance(y, Tensor):
        if not y.requires_grad:
            raise Mistake("no gradient gets back from y: an array (.data) was taken out of a Tensor")
        y.backward(normal(*y.shape, seed=3, dtype=y.dtype))
    return y, image.grad, block.conv1.weight.grad, block.bn3.running_mean


def bottleneck_reference(x, width, stride, option, training):
    return forward_and_backward(lambda image, block: block(image), x, made(x, width, stride, option, training))


def run_bottleneck(answer, x, width, stride, option, training):
    block = made(x, width, stride, option, training)
    names = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "shortcut")
    return forward_and_backward(answer, x, SimpleNamespace(**{name: getattr(block, name) for name in names}))


# ---- 9.4


def from_torch_cases():
    yield "a bias", (normal(5),)
    yield "a linear layer", (normal(3, 5),)
    yield "a linear layer, as many features in as out", (normal(4, 4),)
    yield "a 1x1 convolution", (normal(2, 3, 1, 1),)
    yield "a 3x3 convolution", (normal(5, 2, 3, 3),)
    yield "a 3x3 convolution, as many channels in as out", (normal(3, 3, 3, 3),)
    yield "a kernel that is not square", (normal(2, 4, 3, 5),)
    yield "float32", (normal(4, 3, 2, 2, dtype=np.float32),)


def from_torch_reference(w):
    """Number by number."""
    if w.ndim == 4:
        f, c, kh, kw = w.shape
        ours = np.empty((kh, kw, c, f), w.dtype)
        for k, m, i, j in np.ndindex(w.shape):
            ours[i, j, m, k] = w[k, m, i, j]
        return ours
    return np.array([[w[k, m] for k in range(w.shape[0])] for m in range(w.shape[1])]) if w.ndim == 2 else w


# ---- 9.5


def fold_cases():
    w, f = normal(3, 2, 2, 4), 4
    rng = np.random.default_rng(0)
    gamma, var = rng.uniform(0.5, 2, f), rng.uniform(0.5, 2, f)
    beta, mean = rng.normal(size=f), 3 + rng.normal(size=f)
    one, zero = np.ones(f), np.zeros(f)
    yield "a shift alone", (w, one, beta, zero, one, 0.0)
    yield "a mean too", (w, one, beta, mean, one, 0.0)
    yield "a variance too", (w, one, beta, mean, var, 0.0)
    yield "a gamma too", (w, gamma, beta, mean, var, 0.0)
    yield "an eps of 0.1 too", (w, gamma, beta, mean, var, 0.1)
    yield "as many channels in as out", (normal(3, 3, 4, 4), gamma, beta, mean, var, 0.1)
    yield "float32", (*(a.astype(np.float32) for a in (w, gamma, beta, mean, var)), 0.1)


def fold_reference(w, gamma, beta, mean, var, eps):
    """From the layers themselves: their output for zeros, and for a 1 in one place."""
    kh, kw, c, _ = w.shape

    def layers(x):
        return batch_norm(conv2d(Tensor(x), Tensor(w)), Tensor(gamma), Tensor(beta), mean, var, False, eps=eps).data

    bias = layers(np.zeros((1, kh, kw, c), w.dtype))[0, 0, 0]
    ones = np.eye(kh * kw * c, dtype=w.dtype).reshape(-1, kh, kw, c)  # an image for each weight
    return (layers(ones)[:, 0, 0] - bias).reshape(w.shape), bias


EXERCISES = [
    Exercise(
        number="9.1",
        name="multiply_adds",
        title="the multiply-adds of a convolution",
        level=1,
        lines=3,
        hints=(
            "How many numbers come out? And how many products is each of them the sum of?",
            "oh * ow * f numbers come out. Each looks at a patch of kernel * kernel pixels, and at all c channels of "
            "each pixel.",
            "oh = output_size(h, kernel, stride, padding), and ow the same with w. The rest is one product:\n\n"
            "    return oh * ow * f * (products in each)",
        ),
        cases=multiply_adds_cases,
        reference=multiply_adds_reference,
        outputs=("the number of multiply-adds",),
    ),
    Exercise(
        number="9.2",
        name="block_parameters",
        title="the parameters of a bottleneck",
        level=2,
        lines=7,
        hints=(
            "Write the shape (KH, KW, C, F) of each of the three weights, and count their numbers. Then the norms: two "
            "numbers for each output channel of a convolution.",
            "    c_in * width + 3 * 3 * width * width + width * (4 * width)\n    2 * (width + width + 4 * width)",
            "The shortcut has a convolution and a norm of its own if stride != 1 or c_in != 4 * width. Its weight is "
            "(1, 1, c_in, 4 * width); the stride changes nothing about the number of weights.",
            "    if stride != 1 or c_in != 4 * width:\n        total += c_in * 4 * width + 2 * 4 * width",
        ),
        cases=block_parameters_cases,
        reference=block_parameters_reference,
        outputs=("the number of parameters",),
    ),
    Exercise(
        number="9.3",
        name="bottleneck_forward",
        title="a bottleneck from its layers",
        level=1,
        lines=4,
        hints=(
            "Three times convolution and norm. A ReLU follows the first and the second norm at once, the third only "
            "when the shortcut has been added.",
            "h = relu(block.bn1(block.conv1(x))), and so on. The last norm has no ReLU of its own: its numbers must be "
            "able to lower what the shortcut adds.",
            "The shortcut starts at x, not at h.",
            "    h = block.bn3(block.conv3(h))\n    return relu(h + ...)",
        ),
        cases=bottleneck_cases,
        reference=bottleneck_reference,
        run=run_bottleneck,
        outputs=("y", "the gradient for x", "the gradient for conv1's weight", "bn3's running mean"),
    ),
    Exercise(
        number="9.4",
        name="from_torch",
        title="a weight from PyTorch's layout to ours",
        level=2,
        lines=5,
        hints=(
            "No number changes; each gets a new address. The number at [f, c, i, j] in PyTorch goes to [i, j, c, f] in "
            "ours.",
            "That is what transpose does. A reshape gives the right shape as well, but fills it in the order of "
            "memory.",
            "    w.transpose(a, b, c, d)\n\nputs old axis a first. Ours starts with KH, which is PyTorch's axis 2.",
            "Two axes: w.T. One axis: w as it is. Ask w.ndim.",
        ),
        cases=from_torch_cases,
        reference=from_torch_reference,
        outputs=("the weight",),
    ),
    Exercise(
        number="9.5",
        name="fold",
        title="a norm folded into the convolution before it",
        level=2,
        lines=2,
        hints=(
            "With s = gamma / sqrt(var + eps), the right side is s (conv(x, w) - mean) + beta. Multiply out: what "
            "multiplies x, and what is left over?",
            "A convolution is linear in its weight: s conv(x, w) = conv(x, s w), channel by channel. What is left over "
            "is the bias.",
            "    w2 = w * s        (the last axis of w is F, so the shapes fit as they are)\n    b2 = beta - ... * s",
        ),
        cases=fold_cases,
        reference=fold_reference,
        outputs=("w2", "b2"),
    ),
]
