"""The checks of chapter 5's exercises, and their hints."""

import numpy as np

from minires import norm, optim
from minires.course.compare import Mistake
from minires.course.exercises import Exercise
from minires.tensor import Tensor


def normal(*shape, seed=0, mean=0.0, std=1.0, dtype=np.float64):
    return (mean + std * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)


# ---- 5.1


def clip_cases():
    yield "one gradient that is too long", ([np.array([3.0, 4.0])], 1.0)
    yield "one gradient that is short enough", ([np.array([0.3, 0.4])], 1.0)
    yield "several gradients, too long together", ([normal(3, 4), normal(5, seed=1), normal(2, 2, 3, seed=2)], 1.5)
    yield "each short enough, too long together", ([np.full(3, 0.5), np.full((2, 2), 0.4)], 1.0)
    yield "several gradients, short enough together", ([normal(3, 4, std=0.1), normal(5, seed=1, std=0.1)], 2.0)
    yield "all zero", ([np.zeros((2, 3)), np.zeros(4)], 1.0)
    yield "float32", ([normal(3, 4, dtype=np.float32), normal(5, seed=1, dtype=np.float32)], 0.5)


def run_clip(clip_by_norm, gradients, max_norm):
    before = [g.copy() for g in gradients]
    got = clip_by_norm(gradients, max_norm)
    unchanged = len(before) == len(gradients) and all(map(np.array_equal, before, gradients))
    if unchanged and isinstance(got, tuple | list) and got and isinstance(got[0], tuple | list):
        if any(new is old for new, old in zip(got[0], gradients, strict=False)):
            raise Mistake(
                "it returns an array that it was given; expected new arrays, even where nothing is clipped: "
                "g * 1.0 is a new one"
            )
    return got


def clip_reference(gradients, max_norm):
    params = [Tensor(g, requires_grad=True) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = g
    before = optim.clip_grad_norm(params, max_norm)
    return [p.grad.astype(g.dtype) for p, g in zip(params, gradients, strict=True)], float(before)


# ---- 5.2, 5.4 and 5.5


def shapes():
    """Words, shape of x, mean of x, dtype, eps."""
    yield "gamma 1 and beta 0", (5, 3), 0.0, np.float64, 1e-5
    yield "other gamma and beta", (5, 3), 0.0, np.float64, 1e-5
    yield "as many examples as channels", (4, 4), 0.0, np.float64, 1e-5
    yield "images", (2, 3, 4, 5), 0.0, np.float64, 1e-5
    yield "numbers far from zero", (3, 2, 4, 3), 4.0, np.float64, 1e-5
    yield "a large eps", (2, 3, 2, 3), 1.0, np.float64, 0.5
    yield "one image", (1, 3, 4, 2), 1.0, np.float64, 1e-5
    yield "float32", (3, 4, 2, 3), 1.0, np.float32, 1e-5


def norm_cases():
    for words, shape, mean, dtype, eps in shapes():
        x, c = normal(*shape, mean=mean, std=2, dtype=dtype), shape[-1]
        gamma, beta = normal(c, seed=1, mean=2, dtype=dtype), normal(c, seed=2, dtype=dtype)
        if words.startswith("gamma 1"):
            gamma, beta = np.ones(c), np.zeros(c)
        yield words, (x, gamma, beta, eps)


def batch_norm_reference(x, gamma, beta, eps=1e-5):
    axes = tuple(range(x.ndim - 1))
    y = norm.batch_norm_simple(Tensor(x), Tensor(gamma), Tensor(beta), eps).data
    return y, x.mean(axis=axes), x.var(axis=axes)


def layer_norm_reference(x, gamma, beta, eps=1e-5):
    return norm.layer_norm_simple(Tensor(x), Tensor(gamma), Tensor(beta), eps).data


def backward_cases():
    for words, shape, mean, dtype, eps in shapes():
        x = normal(*shape, mean=mean, std=2, dtype=dtype)
        grad, gamma = normal(*shape, seed=3, mean=0.5, dtype=dtype), normal(shape[-1], seed=1, mean=2, dtype=dtype)
        if words.startswith("gamma 1"):
            words, gamma = "gamma 1", np.ones_like(gamma)
        yield words.replace(" and beta", ""), (grad, x, gamma, eps)


def run_backward(answer, grad, x, gamma, eps=1e-5):
    """Name the three most common mistakes."""
    got = answer(grad, x, gamma, eps)
    axes = tuple(range(x.ndim - 1))
    s = 1 / np.sqrt(x.var(axis=axes) + eps)
    xhat = (x - x.mean(axis=axes)) * s
    mean, along = grad.mean(axis=axes), xhat * (grad * xhat).mean(axis=axes)
    places = x.size // x.shape[-1] // len(x)
    for what, dx in (
        ("the third term of dx is missing, the one with xhat: the variance depends on x too", grad - mean),
        ("the second and third term of dx are missing: mean and variance depend on x too", grad),
        ("dx is divided by N where M = N*H*W numbers were summed", grad - places * (mean + along)),
    ):
        wrong = gamma * s * dx
        if (places > 1 or "divided" not in what) and isinstance(got, tuple) and np.shape(got[0]) == x.shape:
            if np.allclose(got[0], wrong, rtol=1e-4, atol=1e-6):
                raise Mistake(what)
    return got


def backward_reference(grad, x, gamma, eps=1e-5):
    x, gamma, beta = Tensor(x, True), Tensor(gamma, True), Tensor(np.zeros_like(gamma), True)
    norm.batch_norm_simple(x, gamma, beta, eps).backward(grad)
    return x.grad, gamma.grad, beta.grad


# ---- 5.3


def running_cases():
    """Batches to train on, a batch to test on, momentum; in the last cases eps, gamma and beta too."""
    yield "one batch, then evaluation", ([normal(4, 3, mean=2)], normal(2, 3, seed=9), 0.1)
    yield "several batches", ([normal(4, 3, seed=k, mean=k) for k in range(3)], normal(2, 3, seed=9), 0.1)
    yield "another momentum", ([normal(4, 3, seed=k, mean=k) for k in range(3)], normal(2, 3, seed=9), 0.4)
    yield "images", ([normal(2, 3, 4, 3, seed=k, std=3) for k in range(2)], normal(2, 3, 4, 3, seed=9), 0.1)
    batches = [normal(3, 2, 2, 3, seed=k, mean=1) for k in range(2)]
    yield "one image to test on", (batches, normal(1, 2, 2, 3, seed=9), 0.1)
    test = normal(2, 2, 2, 3, seed=9)
    yield "other gamma and beta", (batches, test, 0.1, 1e-5, normal(3, seed=1, mean=2), normal(3, seed=2))
    yield "a large eps", (batches, test, 0.1, 0.5)


def run_running(BatchNorm, batches, test, momentum, eps=1e-5, gamma=None, beta=None):
    """Train on the batches, then evaluate; the running statistics must not move in evaluation."""
    layer = BatchNorm(test.shape[-1], momentum, eps)
    if gamma is not None:
        layer.gamma, layer.beta = gamma, beta
    trained = [layer.forward(x) for x in batches]
    mean, var = np.array(layer.running_mean), np.array(layer.running_var)
    layer.training = False
    evaluated = layer.forward(test)
    if not (np.array_equal(mean, layer.running_mean) and np.array_equal(var, layer.running_var)):
        raise Mistake("the running statistics changed in evaluation mode, where they are constants")
    return trained[-1], mean, var, evaluated


def running_reference(batches, test, momentum, eps=1e-5, gamma=None, beta=None):
    """The batches, the batch to test on, momentum, eps, gamma and beta (None: 1 and 0)."""
    c = test.shape[-1]
    gamma, beta = Tensor(np.ones(c) if gamma is None else gamma), Tensor(np.zeros(c) if beta is None else beta)
    mean, var = np.zeros(c), np.ones(c)
    for x in batches:
        y = norm.batch_norm(Tensor(x), gamma, beta, mean, var, True, momentum, eps).data
    return y, mean, var, norm.batch_norm(Tensor(test), gamma, beta, mean, var, False, eps=eps).data


EXERCISES = [
    Exercise(
        number="5.1",
        name="clip_by_norm",
        title="gradient clipping by the norm of all gradients",
        level=1,
        lines=3,
        hints=(
            "Think of all gradients as one long vector. It keeps its direction, so every number in it is multiplied by "
            "the same factor.",
            "The norm is the root of the sum of all squares, over all arrays. (The sum of the arrays' norms is "
            "not the same.) The factor is max_norm / norm, but never more than 1: clipping does not make gradients "
            "longer.",
            "    norm = float(np.sqrt(sum((g * g).sum() for g in gradients)))\n"
            "    scale = ... if norm > max_norm else 1.0\n"
            "    return [g * scale for g in gradients], norm\n\n"
            "With the `if`, a norm of 0 is never divided by. g * scale is a new array; g *= scale is not.",
        ),
        cases=clip_cases,
        reference=clip_reference,
        run=run_clip,
        outputs=("the clipped gradients", "the norm before"),
    ),
    Exercise(
        number="5.2",
        name="batch_norm_training",
        title="batch norm, forward",
        level=2,
        lines=6,
        hints=(
            "Write the table of section 4 for a (5, 3) array first: each column gets its own mean and variance. Then "
            "ask which axes are averaged for (N, H, W, C).",
            "All axes but the last: axes = tuple(range(x.ndim - 1)). x.mean(axis=axes) is (C,), and (C,) broadcasts "
            "over the last axis of x by itself.",
            "    centred = x - x.mean(axis=axes)\n"
            "    var = (centred * centred).mean(axis=axes)\n"
            "    xhat = centred / np.sqrt(... + eps)\n\n"
            "eps is inside the root. Return three things: y, mean, var.",
        ),
        cases=norm_cases,
        reference=batch_norm_reference,
        outputs=("y", "mean", "var"),
        rtol=1e-4,
    ),
    Exercise(
        number="5.3",
        name="BatchNorm",
        title="running statistics, training and evaluation mode",
        level=2,
        lines=9,
        hints=(
            "Two modes, two sources of mean and variance: the batch in training, memory in evaluation. Only training "
            "changes the memory.",
            "Evaluation is one line: self.normalise(x, self.running_mean, self.running_var). In training, compute mean "
            "and var over all axes but the last, as in 5.2, and normalise with them.",
            "Then move the memory a step towards the batch:\n\n"
            "    self.running_mean = self.running_mean + self.momentum * (mean - self.running_mean)\n\n"
            "For the variance, the target is var * m / (m - 1), with m = x.size // x.shape[-1] numbers a channel.",
        ),
        cases=running_cases,
        reference=running_reference,
        run=run_running,
        outputs=("y in training", "running_mean", "running_var", "y in evaluation"),
    ),
    Exercise(
        number="5.4",
        name="batch_norm_backward",
        title="batch norm, backward, in one formula",
        level=2,
        lines=8,
        hints=(
            "The formula is in the docstring; find out what each letter is as an array. Which have the shape of x, "
            "which are (C,)?",
            "s, dgamma, dbeta and gamma are (C,). xhat and grad have the shape of x. Sums run over all axes but the "
            "last, and M = x.size // x.shape[-1] is how many numbers they have: N*H*W, not N.",
            "    axes = tuple(range(x.ndim - 1))\n"
            "    s = 1 / np.sqrt(x.var(axis=axes) + eps)\n"
            "    xhat = (x - x.mean(axis=axes)) * s\n"
            "    dgamma = (grad * xhat).sum(axis=axes)\n\n"
            "Then dbeta, then dx with its three terms.",
        ),
        cases=backward_cases,
        reference=backward_reference,
        run=run_backward,
        outputs=("dx", "dgamma", "dbeta"),
    ),
    Exercise(
        number="5.5",
        name="layer_norm",
        title="layer norm, forward",
        level=1,
        lines=4,
        hints=(
            "The same formula as batch norm's, along the other axis: each row of the table, not each column.",
            "Mean and variance are taken over axis -1, the channels. There is one of each for every position, so they "
            "have the shape of x without its last axis.",
            "To subtract them from x they must keep that axis, with length 1:\n\n"
            "    mean = x.mean(axis=-1, keepdims=True)\n\n"
            "The same for the variance of x - mean. gamma and beta are (C,) and broadcast as they are.",
        ),
        cases=norm_cases,
        reference=layer_norm_reference,
        outputs=("y",),
        rtol=1e-4,
    ),
]
