"""The checks of chapter 3's exercises, and their hints."""

import numpy as np

from minires import functional
from minires.course.compare import Mistake
from minires.course.exercises import Exercise
from minires.nn import Conv2d, Linear
from minires.optim import SGD
from minires.tensor import Tensor

# ---- 3.1


def log_softmax_cases():
    rng = np.random.default_rng(0)
    yield "several images", (rng.standard_normal((4, 3)) * 2 + 1,)
    yield "one image", (rng.standard_normal((1, 3)),)
    yield "as many images as classes", (rng.standard_normal((5, 5)),)
    yield "float32", (rng.standard_normal((3, 10)).astype(np.float32),)
    yield "large scores", (rng.standard_normal((3, 4)) + 5000,)
    yield "very negative scores", (rng.standard_normal((3, 4)) - 5000,)
    yield "rows of very different size", (rng.standard_normal((3, 4)) + np.array([[-9000.0], [0.0], [9000.0]]),)
    yield "a class that is nearly impossible", (np.array([[0.0, 1.0, -2000.0]]),)
    yield "very different scores in a row", (np.array([[0.0, 9000.0, -9000.0], [-9000.0, -8999.0, 9000.0]]),)


def library_log_softmax(scores):
    return functional.log_softmax(Tensor(scores)).data


# ---- 3.2


def cross_entropy_cases():
    rng = np.random.default_rng(0)
    yield "several images", (rng.standard_normal((4, 3)) * 2, np.array([2, 0, 1, 1]))
    yield "one image", (rng.standard_normal((1, 3)), np.array([2]))
    yield "all of one class", (rng.standard_normal((5, 4)), np.array([3, 3, 3, 3, 3]))
    yield "as many images as classes", (rng.standard_normal((4, 4)), np.array([1, 3, 0, 2]))
    yield "float32", (rng.standard_normal((6, 10)).astype(np.float32), np.arange(6) % 3)
    yield "large scores", (100 * rng.standard_normal((4, 5)) + 3000, np.array([1, 0, 4, 2]))
    yield "a right class that seemed impossible", (np.array([[0.0, 2000.0, 1.0]]), np.array([2]))


def library_cross_entropy(scores, labels):
    tensor = Tensor(scores, requires_grad=True)
    loss = functional.cross_entropy(tensor, labels)
    loss.backward()
    return loss.item(), tensor.grad


# ---- 3.3

STEPS = 3


def sgd_cases():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape), rng.standard_normal((STEPS, *shape))

    yield "plain descent", (*draw(4), (0.1, 0.1, 0.1), 0.0, 0.0)
    yield "momentum", (*draw(4), (0.1, 0.1, 0.1), 0.9, 0.0)
    yield "weight decay", (*draw(4), (0.1, 0.1, 0.1), 0.0, 0.5)
    yield "both", (*draw(3, 4), (0.1, 0.1, 0.1), 0.9, 0.5)
    yield "a learning rate that falls", (*draw(3, 4), (0.5, 0.1, 0.02), 0.9, 0.0)
    w, grads = draw(2, 3, 2)
    yield "float32", (w.astype(np.float32), grads.astype(np.float32), (0.1, 0.1, 0.1), 0.5, 0.25)


def run_sgd(sgd_step, start, grads, rates, momentum, weight_decay):
    """A few steps on the same arrays, as a net takes them."""
    w, velocity = start.copy(), np.zeros_like(start)
    for grad, lr in zip(grads, rates, strict=True):
        before, given = w.copy(), grad.copy()
        if sgd_step(w, given, velocity, lr, momentum, weight_decay) is not None:
            raise Mistake("it returns something; expected no return value, since w and velocity themselves change")
        if not np.array_equal(given, grad):
            raise Mistake("it writes into grad: build grad + weight_decay w as a new array")
        for name, array, old in (("w", w, before), ("velocity", velocity, 0 * before)):
            if np.array_equal(array, old):
                order = "; or does w move before velocity, which starts at zero?" if name == "w" else ""
                raise Mistake(
                    f"the array {name} has not changed: {name} = ... makes a new array, {name} -= or += or *= "
                    f"or [...] = writes into this one{order}"
                )
    return velocity, w


def library_sgd(start, grads, rates, momentum, weight_decay):
    w = Tensor(start.copy(), requires_grad=True)
    optimiser = SGD([w], rates[0], momentum, weight_decay)
    for w.grad, optimiser.lr in zip(grads, rates, strict=True):
        optimiser.step()
    return optimiser.velocity[0], w.data


# ---- 3.4


def he_cases():
    yield "a square linear layer", ((6, 6),)
    yield "a linear layer with more outputs", ((5, 40),)
    yield "a linear layer with fewer outputs", ((40, 5),)
    yield "a convolution 3x3", ((3, 3, 8, 4),)
    yield "a convolution 1x1", ((1, 1, 6, 24),)
    yield "a convolution that is not square", ((5, 1, 3, 7),)


def run_he(he_init, shape):
    return he_init(shape, np.random.default_rng(7))


def library_he(shape):
    rng = np.random.default_rng(7)
    if len(shape) == 2:
        return Linear(*shape, rng=rng).weight.data
    kh, kw, c, f = shape
    if kh == kw:
        return Conv2d(c, f, kh, rng=rng).weight.data
    return (rng.standard_normal(shape) * np.sqrt(2 / (kh * kw * c))).astype(np.float32)


EXERCISES = [
    Exercise(
        number="3.1",
        name="log_softmax",
        title="logarithms of probabilities, safely",
        level=2,
        lines=2,
        hints=(
            "The plain formula fails for scores of 1,000, because e^1000 is too large for a float. But you may choose "
            "the numbers in the exponent: subtract the same number from all scores of a row, and the result stays "
            "the same. Which number makes sure that no exponent is above 0?",
            "Subtract each row's own largest score: s' = s - max(s). Then e^(s') lies between 0 and 1, one of "
            "them is exactly 1, and the sum lies between 1 and K: its logarithm is harmless. Don't compute the "
            "probabilities and then their logarithms: a probability of 0 would give minus infinity.",
            "With keepdims=True the row's maximum and sum have the shape (N, 1) and broadcast against (N, K):\n\n"
            "    shifted = scores - scores.max(axis=1, keepdims=True)\n"
            "    return shifted - (the log of the sum of e^shifted, per row)",
        ),
        cases=log_softmax_cases,
        reference=library_log_softmax,
    ),
    Exercise(
        number="3.2",
        name="cross_entropy",
        title="the loss of a batch and its gradient",
        level=2,
        lines=6,
        hints=(
            "The loss asks for one number of each row: ln p of the right class. The gradient has a number for every "
            "class: the probability that the net gives, minus the one that it should have given (1 for the right "
            "class, 0 for the others).",
            "log_p[np.arange(n), labels] picks one entry of each row. The loss is a mean over the N images; so its "
            "gradient has a factor 1/N as well, or a batch of 128 would push 128 times as hard.",
            "    log_p = library_log_softmax(scores)\n"
            "    loss = -(the mean of the picked entries)\n"
            "    grad = np.exp(log_p)\n"
            "    grad[np.arange(n), labels] -= 1\n"
            "    return float(loss), (grad, divided by what?)",
        ),
        cases=cross_entropy_cases,
        reference=library_cross_entropy,
        outputs=("the loss", "gradient for scores"),
    ),
    Exercise(
        number="3.3",
        name="sgd_step",
        title="a step with momentum and weight decay",
        level=1,
        lines=3,
        hints=(
            "Three lines, in the order of the formulas. The difficulty is which array each line may write into: the "
            "net and the next step look at the arrays that you were given, not at new ones.",
            "`w = w - x` makes a new array and forgets the old one; `w -= x` writes into the array itself. The same "
            "goes for velocity. Don't write into the gradient: build grad + weight_decay * w as a new array.",
            "    velocity *= momentum\n"
            "    velocity += (the gradient with weight decay)\n"
            "    w -= (the learning rate times what?)\n\n"
            "The learning rate is in the last line only, so that a new rate acts at once.",
        ),
        cases=sgd_cases,
        reference=library_sgd,
        run=run_sgd,
        outputs=("velocity after 3 steps", "w after 3 steps"),
    ),
    Exercise(
        number="3.4",
        name="he_init",
        title="first weights that keep a signal's size",
        level=1,
        lines=2,
        hints=(
            "fan_in is the number of terms in the sum that makes one output. For a linear layer it is C. How many "
            "numbers does a convolution add up for one output?",
            "A 3x3 convolution over C channels adds up 9 C products: all the numbers of the shape but the last, "
            "multiplied. That holds for the linear layer too. The 2 makes up for the half that ReLU sets to 0, and the "
            "formula gives a standard deviation: mind the root.",
            "    fan_in = np.prod(shape[:-1])\n"
            "    weights = rng.standard_normal(shape) * (the standard deviation)\n"
            "    return (the weights as float32)",
        ),
        cases=he_cases,
        reference=library_he,
        run=run_he,
    ),
]
