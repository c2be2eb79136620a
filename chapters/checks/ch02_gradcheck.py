"""The checks of chapter 2's exercises, and their hints.

The functions have gradients known from calculus, so the references need no measurement.
"""

import numpy as np

from minires.course.exercises import Exercise

# ---- 2.1: sums of powers, for which the central difference is known exactly


def sum_of_squares(x):
    return float((x * x).sum())


def sum_of_cubes(x):
    return float((x * x * x).sum())


def slope_cases():
    rng = np.random.default_rng(0)
    x, v = rng.uniform(1, 2, (2, 3)), rng.uniform(-1, 1, (2, 3))
    yield "along one axis", (sum_of_squares, x, np.eye(3)[:2])
    yield "along a direction", (sum_of_squares, x, v)
    yield "a large step, h = 0.5", (sum_of_cubes, x, v, 0.5)
    yield "a long direction", (sum_of_squares, x, 10 * v)
    yield "a float32 array", (sum_of_squares, x.astype(np.float32), v)
    yield "array and direction in float32", (sum_of_squares, x.astype(np.float32), v.astype(np.float32))


def exact_slope(f, x, v, h=1e-6):
    x = x.astype(np.float64)
    if f is sum_of_squares:  # ((x + hv)^2 - (x - hv)^2) / 2h = 2 x v
        return float((2 * x * v).sum())
    return float((3 * x * x * v + h * h * v * v * v).sum())  # and for cubes, 3 x^2 v + h^2 v^3


# ---- 2.2


def relative_error_cases():
    rng = np.random.default_rng(0)
    a, noise = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    yield "the same twice", (np.array([1.0, -2.0]), np.array([1.0, -2.0]))
    yield "first larger", (np.array([2.0, 4.0]), np.array([1.0, 3.0]))
    yield "second larger", (np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    yield "opposite signs", (np.array([1.0, -2.0]), np.array([-1.0, 1.0]))
    yield "large and small entries", (a * 10.0 ** np.arange(-3, 9).reshape(4, 3), noise)
    yield "both zero", (np.array([0.0, 0.0, 3.0]), np.array([0.0, 1.0, 3.0]))
    yield "tiny numbers, down to 1e-300", (np.array([2e-12, 2e-300]), np.array([1e-12, 1e-300]))


def relative_error_slowly(a, b):
    out = np.zeros(a.shape)
    for i, x in np.ndenumerate(a):
        y = b[i]
        if x != 0 or y != 0:
            out[i] = abs(x - y) / max(abs(x), abs(y))
    return out


# ---- 2.3: for each function, its gradient by calculus


def double(x):
    return 2 * x


def square(x):
    return x * x


def cube(x):
    return x * x * x


def row_sums(x):
    return x.sum(axis=1)


def normalised(x):
    """Each row divided by its sum: the entries of a row always add up to 1."""
    return x / x.sum(axis=1, keepdims=True)


def transposed(x):
    return x.T


GRADIENTS = {
    double: lambda x, grad: 2 * grad,
    square: lambda x, grad: 2 * x * grad,
    cube: lambda x, grad: 3 * x * x * grad,
    row_sums: lambda x, grad: np.repeat(grad[:, None], x.shape[1], axis=1),
    normalised: lambda x, grad: (grad - (grad * normalised(x)).sum(axis=1, keepdims=True)) / x.sum(axis=1)[:, None],
    transposed: lambda x, grad: grad.T,
}


def gradient_cases():
    rng = np.random.default_rng(0)
    yield "a vector", (double, rng.standard_normal(3), rng.standard_normal(3))
    yield "a matrix", (square, rng.standard_normal((2, 3)), rng.standard_normal((2, 3)))
    yield "fewer outputs than inputs", (row_sums, rng.standard_normal((2, 3)), rng.standard_normal(2))
    yield "outputs with a fixed sum", (normalised, rng.uniform(1, 2, (2, 3)), rng.standard_normal((2, 3)))
    yield "a large step, h = 0.01", (square, rng.uniform(1, 2, (2, 2, 3)), rng.standard_normal((2, 2, 3)), 0.01)
    yield "strong curvature", (cube, rng.uniform(900, 1000, 4), rng.standard_normal(4))
    yield "f returns a view", (transposed, rng.standard_normal((2, 3)), rng.standard_normal((3, 2)))
    yield "a cube and a large step, h = 0.5", (cube, rng.uniform(1, 2, 4), rng.standard_normal(4), 0.5)


def gradient_by_calculus(f, x, grad, h=1e-6):
    extra = h * h * grad if f is cube else 0  # ((x + h)^3 - (x - h)^3) / 2h = 3 x^2 + h^2
    return GRADIENTS[f](x, grad) + extra


# ---- 2.4: where the kinks are is known


def sum_of_relus(x):
    return float(np.maximum(x, 0).sum())


def sum_of_sizes(x):
    return float(np.abs(x).sum())


def steep(x):
    return float(1e5 * (x * x).sum())


def steep_kink(x):
    """Slope 1000 along the entries before the last; all have the same kink."""
    return float(1000 * x[:-1].sum() + 0.75 * np.abs(x).sum())


def shallow(x):
    return float(0.0008 * np.abs(x).sum())


def largest(x):
    return float(x.max())


def kinks_cases():
    yield "a smooth function", (sum_of_squares, np.array([0.0, 1.0, -2.0]))
    yield "ReLU", (sum_of_relus, np.array([[1.0, 0.0, -1.0], [0.5, -2.0, 3.0]]))
    yield "within one step above", (sum_of_sizes, np.array([3.0, 4e-7, -1.0]))
    yield "within one step below", (sum_of_sizes, np.array([-4e-7, 2.0]))
    yield "a large step, h = 0.1", (sum_of_relus, np.array([0.05, -0.05, 0.2, -0.2]), 0.1)
    yield "steep but smooth", (steep, np.array([1.0, -2.0]))
    yield "a shallow kink", (shallow, np.array([0.0, 1.0]))
    yield "a tie of the maximum", (largest, np.array([1.0, 2.0, 2.0]))
    yield "a small kink on a steep slope", (steep_kink, np.array([0.0, 1.0, 0.0]))


def kinks_by_reasoning(f, x, h=1e-6):
    if f is largest:
        return (x == x.max()) & (np.sum(x == x.max()) > 1)
    kinked = f in (sum_of_relus, sum_of_sizes, shallow, steep_kink)
    return np.abs(x) < h if kinked else np.zeros(x.shape, bool)


EXERCISES = [
    Exercise(
        number="2.1",
        name="slope_along",
        title="the central difference, along a direction",
        level=1,
        lines=2,
        hints=(
            "Stand at x and look along v. Go a little forward, measure f; go just as far back, measure f. The slope is "
            "the difference in height divided by the distance between the two places.",
            "The places are x + h v and x - h v, and the distance is 2h (v keeps its length). Both "
            "places are new arrays; x does not change.",
            "    x = x as float64: x.astype(np.float64)\n"
            "    return (f(one place) - f(the other)) / (2 * h)\n\n"
            "Mind the brackets around 2 * h.",
        ),
        cases=slope_cases,
        reference=exact_slope,
        outputs=("the slope",),
    ),
    Exercise(
        number="2.2",
        name="relative_error",
        title="how far apart two gradients are",
        level=1,
        lines=2,
        hints=(
            "An error of 0.001 is small next to 1000 and large next to 0.002. So divide it by the size of the numbers "
            "compared: the larger of the two.",
            "np.maximum(p, q) is the larger of two arrays, entry by entry. Where it is 0, both entries are 0 and so "
            "is their difference: divide by anything else there, such as 1.",
            "    size = np.maximum(np.abs(a), np.abs(b))\n"
            "    return np.abs(a - b) / (size, but 1 where size is 0)\n\n"
            "np.where(condition, p, q) takes p where the condition holds and q elsewhere.",
        ),
        cases=relative_error_cases,
        reference=relative_error_slowly,
        outputs=("the error",),
    ),
    Exercise(
        number="2.3",
        name="numerical_gradient",
        title="every entry nudged, with a random upstream gradient",
        level=2,
        lines=7,
        hints=(
            "Exercise 2.1 once for each entry of x, with v = 1 at that entry. The function now returns an array; "
            "grad says how much each of its entries counts.",
            "For each index: two copies of x, one entry moved up in one of them and down in the other. f of both, "
            "subtract, multiply by grad, add everything up, divide by 2h.",
            "    out = np.zeros(x.shape)\n"
            "    for index in np.ndindex(x.shape):\n"
            "        up, down = x.copy(), x.copy()\n"
            "        ...\n"
            "        out[index] = (grad * (f(up) - f(down))).sum() / (2 * h)\n"
            "    return out\n\n"
            "Two copies for each entry, because f may return your own array.",
        ),
        cases=gradient_cases,
        reference=gradient_by_calculus,
        outputs=("gradient for x",),
        rtol=1e-5,
    ),
    Exercise(
        number="2.4",
        name="kinks",
        title="where a measurement cannot be trusted",
        level=2,
        lines=8,
        hints=(
            "A smooth function has one slope at each point. At a kink the slope to the right differs from the slope to "
            "the left. Measure both.",
            "Each is a one-sided difference with f(x) itself: forward (f(x + h e_i) - f(x)) / h, backward "
            "(f(x) - f(x - h e_i)) / h. How much may they differ? A thousandth of their size, or 0.001 where they are "
            "smaller than 1.",
            "As in exercise 2.3, with one more value in the middle:\n\n"
            "    above, below = (f(up) - f(x)) / h, (f(x) - f(down)) / h\n"
            "    out[index] = abs(above - below) > 0.001 * max(1, abs(above), abs(below))\n\n"
            "and out = np.zeros(x.shape, bool) before the loop.",
        ),
        cases=kinks_cases,
        reference=kinks_by_reasoning,
        outputs=("the mask",),
    ),
]
