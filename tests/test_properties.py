"""Hostile arguments: every public operation, driven with random shapes, dtypes, layouts in memory and settings.

An operation may do one of two things: give what a slow twin, written down here in plain NumPy, gives, values and
gradients; or raise the error that its docstring promises, where the twin's rules say that the arguments are wrong. It
never changes what it was given, never hands out memory that it shares with its inputs, and never warns.

The gradient's twin is the slope of the twin: for random u and v,  <grad, v> = d/dt <twin(x + t v), u>  at t = 0.
"""

# mypy: disable-error-code="arg-type, assignment, misc, operator, union-attr"

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from minires import conv, functional, norm, optim, parallel, tensor
from minires.data import augment
from minires.tensor import Tensor, no_grad

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=75,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module", autouse=True)
def tiny_chunks():
    """A chunk for each image and two threads, so that even these small batches are cut up and shared."""
    patch = pytest.MonkeyPatch()
    patch.setattr(parallel, "MIN_PARALLEL_BYTES", 1)
    patch.setattr(parallel, "CHUNK_BYTES", 1)
    before = parallel._num_threads
    parallel.set_num_threads(2)
    yield
    patch.undo()
    parallel.set_num_threads(before or 1)
    parallel._num_threads = before


# ---- one example of a call -----------------------------------------------------------------------------------------


@dataclass
class Example:
    """Arrays, the call of the operation on them as tensors, and what the slow twin makes of them."""

    arrays: list[np.ndarray]  # the inputs that may want a gradient; float64 numbers, not yet laid out in memory
    call: Callable[..., Any]  # (operation, *tensors) -> Tensor
    twin: Callable[..., np.ndarray]  # (*float64 arrays) -> float64 array
    wrong: bool = False  # whether these arguments are to be refused
    kinks: bool = False  # whether the twin has no slope where numbers are equal or zero
    positive: bool = False  # all numbers must be above 0
    after: Callable[[], None] = field(default=lambda: None)  # further checks


@dataclass
class Operation:
    """How to draw examples of one public operation."""

    draw: Callable[[Callable[..., Any]], Example]
    told: str  # what its errors begin with (a pattern); "" where NumPy's own words are passed on
    view: bool = False  # whether the output may be a view of the input


OPERATIONS: dict[str, Operation] = {}


def operation(name: str, told: str | None = None, view: bool = False) -> Callable[..., Any]:
    def note(draw: Callable[..., Example]) -> Callable[..., Example]:
        OPERATIONS[name] = Operation(draw, f"{name}: " if told is None else told, view)
        return draw

    return note


RNG = np.random.default_rng


def numbers(draw, shape):
    """Generic float64 numbers of either sign: none near 0, no two alike."""
    n = math.prod(shape)
    rng = RNG(draw(st.integers(0, 2**32)))
    magnitudes = (rng.permutation(n) + rng.uniform(0.6, 1.4, n)) * 2 / max(n, 1) + 0.1
    return (magnitudes * rng.choice([-1.0, 1.0], n)).reshape(shape)


# hypothesis prefers the first of several choices, so what is usual comes first
SIDE = st.sampled_from([2, 3, 1, 4, 5, 2, 3, 0])
SHAPE = st.sampled_from([2, 3, 4, 1, 0]).flatmap(lambda n: st.tuples(*[SIDE] * n))


def rarely(draw):
    return draw(st.sampled_from([False] * 7 + [True]))


# ---- layouts in memory -------------------------------------------------------------------------------------------

DTYPES = ["f4", "f8", "f4", "f8", ">f8", "f2", "i8", "u1", "?"]
LAYOUTS = ["C", "F", "every second", "backwards", "axes in another order", "repeated", "read-only", "unaligned"]


def laid_out(a, layout):
    """The numbers of `a` in another layout, and the memory that they lie in. What lies between them is a trap."""
    if layout == "F":
        a = np.array(a, order="F")
    elif layout == "every second":
        memory = np.full([2 * n + 1 for n in a.shape], np.nan if a.dtype.kind == "f" else 1).astype(a.dtype)
        view = memory[(slice(1, None, 2),) * a.ndim] if a.ndim else memory
        view[...] = a
        return view, memory
    elif layout == "backwards":
        a = np.ascontiguousarray(np.flip(a))[(slice(None, None, -1),) * a.ndim] if a.ndim else a
    elif layout == "axes in another order" and a.ndim:
        order = np.roll(np.arange(a.ndim), 1)
        a = np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
    elif layout == "repeated" and a.ndim and a.shape[0]:
        a = np.broadcast_to(a[:1].copy(), a.shape)  # stride 0, and read-only
    elif layout == "unaligned":
        memory = np.zeros(a.nbytes + 1, np.uint8)
        view = memory[1:].view(a.dtype).reshape(a.shape)
        view[...] = a
        return view, memory
    elif layout == "read-only":
        a = a.copy()
        a.setflags(write=False)
    return a, a


def as_dtype(a, dtype, positive):
    """`a`'s numbers in a dtype, and safely above 0 where asked."""
    a = np.abs(a) + 0.5 if positive else a
    if dtype in ("i8", "u1", "?"):
        a = np.ceil(np.abs(2 * a) if dtype != "i8" or positive else 2 * a)
    return a.astype(dtype)


# ---- the property ------------------------------------------------------------------------------------------------


def close(got, wanted, tolerance, scale=0.0):
    """Equal in shape and, up to rounding, in every entry."""
    assert got.shape == wanted.shape
    scale = max(scale, np.abs(wanted).max(initial=0.0), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * scale)


def run(f, example, tensors, upstream):
    """The output and the gradients, with a gradient wanted of every input."""
    out = example.call(f, *tensors)
    assert isinstance(out, Tensor) and type(out.data) is np.ndarray
    u = upstream(out.shape)
    before = u.copy()
    out.backward(u)
    np.testing.assert_array_equal(u, before)  # the upstream gradient is as it was
    return out.data, [t.grad for t in tensors], u


def find(name):
    """The public operation of that name: a method of Tensor, or a function of its module."""
    if hasattr(Tensor, name):
        return getattr(Tensor, name).fget if isinstance(getattr(Tensor, name), property) else getattr(Tensor, name)
    return next(getattr(m, name) for m in (tensor, functional, conv, norm) if hasattr(m, name))


def check(name, data):
    f, op = find(name), OPERATIONS[name]
    example = op.draw(data.draw)
    dtypes = [data.draw(st.sampled_from(DTYPES))] * len(example.arrays)
    if "f8" in dtypes[0] and len(dtypes) > 1 and rarely(data.draw):  # two dtypes that don't mix
        dtypes[-1], example.wrong = "f4", True
    given_arrays, memories = [], []
    for a, dtype in zip(example.arrays, dtypes, strict=True):
        view, memory = laid_out(as_dtype(a, dtype, example.positive), data.draw(st.sampled_from(LAYOUTS)))
        given_arrays.append(view)
        memories.append(memory)
    before = [m.tobytes() for m in memories]
    tensors = [Tensor(a, requires_grad=True) for a in given_arrays]
    layout, seed = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.integers(0, 99))

    def upstream(shape):
        return laid_out(RNG(seed).standard_normal(shape).astype(tensors[0].dtype), layout)[0]

    if example.wrong:
        with pytest.raises((ValueError, TypeError, IndexError), match=f"^{op.told}"):
            example.call(f, *tensors)
        assert [m.tobytes() for m in memories] == before
        return

    out, grads, u = run(f, example, tensors, upstream)
    example.after()
    assert [m.tobytes() for m in memories] == before, "an input was changed"

    # What came out belongs to the caller alone.
    results = [out, *grads]
    for i, result in enumerate(results):
        if i == 0 and op.view:
            continue
        others = [*memories, u, *(t.data for t in tensors), *results[:i], *results[i + 1 :]]
        assert not any(np.shares_memory(result, other) for other in others), "memory is shared"
    assert all(g.flags.writeable for g in grads)
    wanted_dtype = np.float64 if "f8" in dtypes[0] else np.float32
    assert {r.dtype for r in results} == {np.dtype(wanted_dtype)}

    # Values: the slow twin on the same numbers. Gradients: in float64 its slope, in any layout those of float64.
    exact = [t.data.astype(np.float64) for t in tensors]
    with no_grad():
        np.testing.assert_array_equal(example.call(f, *(Tensor(a) for a in given_arrays)).data, out)
    value = np.asarray(example.twin(*exact))
    close(out, value, 1e-11 if wanted_dtype == np.float64 else 1e-4)
    exact_tensors = [Tensor(a.copy(), requires_grad=True) for a in exact]
    exact_out, exact_grads, exact_u = run(f, example, exact_tensors, lambda shape: np.array(u, np.float64))
    close(exact_out, value, 1e-11)
    for grad, wanted in zip(grads, exact_grads, strict=True):
        close(grad, wanted, 1e-10 if wanted_dtype == np.float64 else 2e-3)
    generic = dtypes[0] in ("f4", "f8", ">f8") and all(0 not in a.strides for a in given_arrays)
    if generic or not example.kinks:
        v, h = [RNG(seed + 1).standard_normal(a.shape) for a in exact], 1e-6
        up, down = (example.twin(*(a + t * w for a, w in zip(exact, v, strict=True))) for t in (h, -h))
        change = np.asarray(up - down) / (2 * h)
        slope, size = (exact_u * change).sum(), np.abs(exact_u * change).sum()
        parts = [(g * w).sum() for g, w in zip(exact_grads, v, strict=True)]
        size += sum(np.abs(g * w).sum() for g, w in zip(exact_grads, v, strict=True))
        assert abs(sum(parts) - slope) <= 1e-6 * (size + 1e-2), (sum(parts), slope)


# ---- arithmetic --------------------------------------------------------------------------------------------------


def pair_of_shapes(draw):
    """Two shapes that broadcast; rarely, any two."""
    shape = draw(SHAPE)
    if rarely(draw):
        return shape, draw(SHAPE)
    other = [1 if draw(st.sampled_from([False, False, True])) else n for n in shape]
    pair = [shape, tuple(other[draw(st.integers(0, len(shape))) :])]
    return pair[:: draw(st.sampled_from([1, -1]))]


def broadcast(a, b):
    try:
        np.broadcast_shapes(a, b)
    except ValueError:
        return False
    return True


NO_NUMBERS = [None, "3", 1j, np.array([1j, 2]), object(), [None, None], np.array(["a"]), np.datetime64("2016-06-27")]


def binary(method, word, formula, of_number=False):
    """x op y for two tensors, and for a tensor and a number, an array or a list."""

    @operation(method, f"{word}: ")
    def draw_example(draw):
        a, b = pair_of_shapes(draw)
        positive = word == "div"
        kind = "other" if of_number else draw(st.sampled_from(["tensor", "tensor", "other"]))
        if kind == "tensor":
            return Example(
                [numbers(draw, a), numbers(draw, b)],
                lambda f, x, y: f(x, y),
                formula,
                wrong=not broadcast(a, b),
                positive=positive,
            )
        y = np.abs(numbers(draw, b)) + 0.5
        other = draw(st.sampled_from([y, y.tolist(), 2, 0.3, True, np.float32(0.5), y.astype(np.float16)]))
        bad = rarely(draw)
        if bad:
            other = draw(st.sampled_from(NO_NUMBERS))

        def twin(x):
            z = np.asarray(other).astype(np.float64)
            return formula(x, z)

        wrong = bad or not broadcast(a, np.shape(other))
        return Example([numbers(draw, a)], lambda f, x: f(x, other), twin, wrong=wrong, positive=positive)

    return draw_example


binary("__add__", "add", lambda x, y: x + y)
binary("__sub__", "sub", lambda x, y: x - y)
binary("__mul__", "mul", lambda x, y: x * y)
binary("__truediv__", "div", lambda x, y: x / y)
binary("__radd__", "add", lambda x, y: y + x, of_number=True)
binary("__rsub__", "sub", lambda x, y: y - x, of_number=True)
binary("__rmul__", "mul", lambda x, y: y * x, of_number=True)
binary("__rtruediv__", "div", lambda x, y: y / x, of_number=True)


def unary(method, formula, positive=False):
    @operation(method)
    def draw_example(draw):
        return Example([numbers(draw, draw(SHAPE))], lambda f, x: f(x), formula, positive=positive)


unary("__neg__", lambda x: 0 - x)
unary("exp", lambda x: math.e**x)
unary("log", lambda x: np.log2(x) * math.log(2), positive=True)
unary("sqrt", lambda x: x**0.5, positive=True)


@operation("__pow__", "pow: ")
def draw_pow(draw):
    bad = rarely(draw)
    p = draw(st.sampled_from([None, "2", 1j, np.ones(2)] if bad else [0, 1, 2, 3, 0.5, -1, -2.5, True, np.float32(2)]))
    return Example(
        [numbers(draw, draw(SHAPE))],
        lambda f, x: f(x, p),
        lambda x: np.exp(np.log(x) * float(p)),
        wrong=bad,
        positive=True,
    )


@operation("__matmul__", "matmul: ")
def draw_matmul(draw):
    lead = [(), ()] if draw(st.booleans()) else [s[:2] for s in pair_of_shapes(draw)]
    n, k, m = (draw(SIDE) for _ in range(3))
    a, b = (*lead[0], n, k), (*lead[1], draw(SIDE) if rarely(draw) else k, m)
    if rarely(draw):
        a, b = draw(st.sampled_from([(a, b[1:]), (a[1:], b), ((k,), b), (a, ())]))
    wrong = len(a) < 2 or len(b) < 2 or a[-1] != b[-2] or not broadcast(a[:-2], b[:-2])

    def twin(x, y):
        shape = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        x = np.broadcast_to(x, shape + x.shape[-2:])
        y = np.broadcast_to(y, shape + y.shape[-2:])
        z = np.zeros((*shape, x.shape[-2], y.shape[-1]))
        for i in range(z.shape[-2]):
            for j in range(z.shape[-1]):
                z[..., i, j] = (x[..., i, :] * y[..., :, j]).sum(-1)
        return z

    if draw(st.booleans()):
        return Example([numbers(draw, a), numbers(draw, b)], lambda f, x, y: f(x, y), twin, wrong)
    y = numbers(draw, b)
    return Example([numbers(draw, a)], lambda f, x: f(x, y), lambda x: twin(x, y), wrong)


@operation("__rmatmul__", "matmul: ")
def draw_rmatmul(draw):
    n, k, m = (draw(SIDE) for _ in range(3))
    wrong = rarely(draw)
    y = numbers(draw, (n, k + wrong))

    def twin(x):
        z = np.zeros((n, m))
        for i, j in np.ndindex(n, m):
            z[i, j] = (y[i] * x[:, j]).sum()
        return z

    return Example([numbers(draw, (k, m))], lambda f, x: f(x, y), twin, wrong)


# ---- reductions and shapes ---------------------------------------------------------------------------------------


def reduction(name, formula, of_nothing):
    @operation(name)
    def draw_example(draw):
        shape = draw(SHAPE)
        kinks = name == "max"
        some = [st.none()]
        if shape:
            one = st.integers(-len(shape), len(shape) - 1)
            several = st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=4)
            some += [one, one.map(np.int64), several.map(tuple)]
        if rarely(draw):
            some = [st.sampled_from([len(shape), -len(shape) - 1])]
        axis, keepdims = draw(st.one_of(some)), draw(st.booleans())
        axes = range(len(shape)) if axis is None else (axis,) if np.ndim(axis) == 0 else axis
        wrong = any(not -len(shape) <= i < len(shape) for i in axes)
        if not wrong and not of_nothing:
            wrong = 0 in [shape[i] for i in axes]
        return Example(
            [numbers(draw, shape)],
            lambda f, x: f(x, axis, keepdims),
            lambda x: formula(x, axis, keepdims),
            wrong,
            kinks=kinks,
        )


def slow_sum(x, axis, keepdims):
    """One axis after another, one slice after another."""
    axes = range(x.ndim) if axis is None else (axis,) if np.ndim(axis) == 0 else axis
    for i in sorted((i % x.ndim for i in axes), reverse=True):
        total = np.zeros(x.shape[:i] + x.shape[i + 1 :])
        for part in np.moveaxis(x, i, 0):
            total = total + part
        x = np.expand_dims(total, i) if keepdims else total
    return x


def slow_mean(x, axis, keepdims):
    return slow_sum(x, axis, keepdims) / (slow_sum(np.ones(x.shape), axis, keepdims))


reduction("sum", slow_sum, of_nothing=True)
reduction("mean", slow_mean, of_nothing=False)
reduction("max", lambda x, axis, keepdims: np.amax(x, axis=axis, keepdims=keepdims), of_nothing=False)


@operation("reshape", told="cannot reshape|can only specify", view=True)
def draw_reshape(draw):
    shape = draw(SHAPE)
    n = math.prod(shape)
    choices = [(n,), (n, 1), (1, n), shape[::-1]] + ([(-1,), (-1, 1), (1, -1)] if n else [])
    choices = [(7, 2), (-1, -1)] if rarely(draw) else choices
    new = draw(st.sampled_from(choices))
    try:
        wrong = np.zeros(shape).reshape(new) is None
    except ValueError:
        wrong = True
    return Example([numbers(draw, shape)], lambda f, x: f(x, *new), lambda x: x.ravel().reshape(new), wrong)


@operation("transpose", view=True)
def draw_transpose(draw):
    shape = draw(SHAPE)
    axes = draw(st.permutations(range(len(shape))))
    if rarely(draw):
        axes = draw(st.lists(st.integers(-4, 4), max_size=4))
    order = tuple(axes) or tuple(range(len(shape)))[::-1]
    wrong = not all(-len(shape) <= i < len(shape) for i in order)
    wrong = wrong or sorted(i % len(shape) for i in order) != list(range(len(shape)))

    def twin(x):
        out = np.zeros([x.shape[i] for i in order])
        for index in np.ndindex(*x.shape):
            out[tuple(index[i] for i in order)] = x[index]
        return out

    return Example([numbers(draw, shape)], lambda f, x: f(x, *axes), twin, wrong)


@operation("T", view=True)
def draw_t(draw):
    return Example([numbers(draw, draw(SHAPE))], lambda f, x: f(x), lambda x: np.einsum("...->...", x).transpose())


@operation("__getitem__", told="", view=True)
def draw_getitem(draw):
    shape = draw(SHAPE)
    kinds = [hnp.basic_indices(shape, allow_newaxis=True), st.just((slice(None, None, -1),) * len(shape))]
    if shape and 0 not in shape:
        repeated = st.lists(st.integers(-shape[0], shape[0] - 1), max_size=5)
        kinds += [repeated.map(lambda rows: np.array(rows, int)), repeated.filter(len)]
        kinds += [hnp.integer_array_indices(shape), hnp.arrays(bool, shape), st.booleans()]
        if rarely(draw):
            kinds = [st.sampled_from([shape[0], -shape[0] - 1, 1.0, "a", (0,) * (len(shape) + 1)])]
    index = draw(st.one_of(kinds))
    try:
        wrong = np.zeros(shape)[index] is None
    except IndexError:
        wrong = True
    return Example([numbers(draw, shape)], lambda f, x: f(x, index), lambda x: np.array(x[index]), wrong)


@operation("concatenate")
def draw_concatenate(draw):
    shape = draw(SHAPE)
    axis = draw(st.integers(-4, 4)) if rarely(draw) or not shape else draw(st.integers(-len(shape), len(shape) - 1))
    shapes = []
    for _ in range(draw(st.sampled_from([2, 3, 1]))):
        other = list(shape)
        if -len(shape) <= axis < len(shape):
            other[axis] = draw(SIDE)
        shapes.append(draw(SHAPE) if rarely(draw) else tuple(other))
    ndim = len(shapes[0])
    wrong = any(len(s) != ndim for s in shapes) or not -ndim <= axis < ndim
    wrong = wrong or len({s[: axis % ndim] + s[axis % ndim + 1 :] for s in shapes}) > 1

    def twin(*arrays):
        rows = [row for a in arrays for row in np.moveaxis(a, axis, 0)]
        rest = np.moveaxis(arrays[0], axis, 0).shape[1:]
        return np.moveaxis(np.array(rows).reshape(len(rows), *rest), 0, axis)

    return Example([numbers(draw, s) for s in shapes], lambda f, *tensors: f(tensors, axis), twin, wrong)


@operation("pad")
def draw_pad(draw):
    shape = draw(SHAPE)
    least = -1 if rarely(draw) else 0
    widths = [(draw(st.integers(least, 2)), draw(st.integers(least, 2))) for _ in shape]
    wrong = any(min(pair) < 0 for pair in widths)
    if rarely(draw):
        widths, wrong = [*widths, (0, 0)], True

    def twin(x):
        out = np.zeros([before + n + after for (before, after), n in zip(widths, x.shape, strict=True)])
        for index in np.ndindex(*x.shape):
            out[tuple(i + before for i, (before, _) in zip(index, widths, strict=True))] = x[index]
        return out

    return Example([numbers(draw, shape)], lambda f, x: f(x, widths), twin, wrong)


# ---- functional.py -----------------------------------------------------------------------------------------------


@operation("relu")
def draw_relu(draw):
    return Example([numbers(draw, draw(SHAPE))], lambda f, x: f(x), lambda x: (x + abs(x)) / 2, kinks=True)


def slow_log_softmax(x):
    return np.log(np.exp(x) / np.exp(x).sum(-1, keepdims=True))


@operation("log_softmax")
def draw_log_softmax(draw):
    shape = draw(SHAPE)
    return Example([numbers(draw, shape)], lambda f, x: f(x), slow_log_softmax, wrong=not shape or shape[-1] == 0)


INTEGERS = st.sampled_from(["i8", "i4", "u1", "u8", ">i4"])


@operation("cross_entropy", told="(cross_entropy|labels): ")
def draw_cross_entropy(draw):
    shape = draw(SHAPE) if rarely(draw) else (draw(SIDE), draw(SIDE))
    n, k = shape if len(shape) == 2 else (1, 1)
    smoothing = draw(st.sampled_from([1.0, -0.1, math.nan] if rarely(draw) else [0.0, 0.1, 0.9]))
    labels = np.array([draw(st.integers(0, max(0, k - 1))) for _ in range(n)], draw(INTEGERS))
    wrong = len(shape) != 2 or 0 in shape or not 0 <= smoothing < 1
    fault = draw(st.sampled_from([None] * 15 + ["kind", "range", "below", "count", "column"]))
    if fault == "kind":
        labels = labels.astype(draw(st.sampled_from(["f8", "?", "O", "S1"])))
    elif fault == "range":
        labels = labels + k
    elif fault == "below":
        labels = labels.astype("i8") - k
    elif fault == "count":
        labels = np.append(labels, labels[:1]) if n else np.zeros(1, int)
    elif fault == "column":
        labels = labels[:, None]
    labels = laid_out(labels, draw(st.sampled_from(["C", "every second", "backwards", "read-only"])))[0]
    before = labels.copy()

    def twin(x):
        total = 0.0
        for row, label in zip(slow_log_softmax(x), labels, strict=True):
            for j in range(k):
                total -= ((1 - smoothing) * (j == label) + smoothing / k) * row[j]
        return np.array(total / n)

    def after():
        np.testing.assert_array_equal(labels, before)

    return Example(
        [numbers(draw, shape)], lambda f, x: f(x, labels, smoothing), twin, wrong or bool(fault), after=after
    )


@operation("dropout")
def draw_dropout(draw):
    shape, seed = draw(SHAPE), draw(st.integers(0, 9))
    p = draw(st.sampled_from([1.0, -0.1, math.nan] if rarely(draw) else [0.3, 0.0, 0.99]))
    return Example(
        [numbers(draw, shape)],
        lambda f, x: f(x, p, RNG(seed)),
        lambda x: x * (RNG(seed).random(x.shape) >= p) / (1 - p),
        wrong=not 0 <= p < 1,
    )


@operation("linear", told="(linear|matmul|add): ")
def draw_linear(draw):
    n, c, k = (draw(SIDE) for _ in range(3))
    with_bias = draw(st.booleans())
    x, w, b = (draw(SHAPE), draw(SHAPE), draw(SHAPE)) if rarely(draw) else ((n, c), (c, k), (k,))
    b = (1,) if rarely(draw) else b
    wrong = len(x) != 2 or len(w) != 2 or x[1] != w[0] or (with_bias and b != w[1:])
    shapes = [x, w, b] if with_bias else [x, w]

    def twin(x, w, *bias):
        out = np.zeros((len(x), w.shape[1]))
        for j in range(w.shape[1]):
            out[:, j] = (x * w[:, j]).sum(1) + (bias[0][j] if bias else 0)
        return out

    return Example([numbers(draw, s) for s in shapes], lambda f, *tensors: f(*tensors), twin, wrong)


@operation("subsample_and_pad")
def draw_subsample_and_pad(draw):
    shape = draw(SHAPE) if rarely(draw) else tuple(draw(SIDE) for _ in range(4))
    stride = draw(st.sampled_from([0, -1] if rarely(draw) else [2, 1, 3]))
    channels = draw(st.integers(0, 7)) if rarely(draw) or not shape else shape[-1] + draw(st.integers(0, 4))
    wrong = len(shape) != 4 or stride < 1 or channels < shape[-1]

    def twin(x):
        n, h, w, c = x.shape
        out = np.zeros((n, math.ceil(h / stride), math.ceil(w / stride), channels))
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                for k in range(c):
                    out[:, i, j, (channels - c) // 2 + k] = x[:, i * stride, j * stride, k]
        return out

    return Example([numbers(draw, shape)], lambda f, x: f(x, stride, channels), twin, wrong)


# ---- conv.py -----------------------------------------------------------------------------------------------------


def picture(draw):
    """The shape of a batch of pictures; rarely, of something else."""
    if rarely(draw):
        return draw(SHAPE)
    side = st.sampled_from([5, 4, 3, 6, 7, 2, 1])
    return draw(st.sampled_from([2, 1, 3, 0])), draw(side), draw(side), draw(st.sampled_from([2, 1, 3]))


def window(draw):
    """Stride and padding; rarely, impossible ones."""
    if rarely(draw):
        return draw(st.sampled_from([(0, 0), (-1, 1), (1, -1)]))
    return draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 0, 2, 3]))


def no_window(shape, kh, kw, stride, padding):
    """Whether a kernel can't be laid on pictures of that shape."""
    return (
        len(shape) != 4
        or 0 in shape[1:]
        or min(kh, kw, stride) < 1
        or padding < 0
        or shape[1] + 2 * padding < kh
        or shape[2] + 2 * padding < kw
    )


def places(size, kernel, stride, padding):
    """How often a kernel fits: by trying."""
    return sum(start + kernel <= size + 2 * padding for start in range(0, size + 2 * padding, stride))


def slow_conv(x, w, bias, stride, padding):
    """The formula at the top of conv.py, entry by entry."""
    (n, h, width, _), (kh, kw, _, f) = x.shape, w.shape
    y = np.zeros((n, places(h, kh, stride, padding), places(width, kw, stride, padding), f))
    for _, i, j, k in np.ndindex(1, *y.shape[1:]):
        y[:, i, j, k] = bias[k] if bias is not None else 0
        for a, b in np.ndindex(kh, kw):
            row, column = i * stride + a - padding, j * stride + b - padding
            if 0 <= row < h and 0 <= column < width:
                y[:, i, j, k] += x[:, row, column] @ w[a, b, :, k]
    return y


def convolution(draw):
    shape, (stride, padding) = picture(draw), window(draw)
    side = st.sampled_from([3, 2, 1, 4])
    kh = draw(side)
    kw = kh if draw(st.booleans()) else draw(side)
    w = (kh, kw, shape[-1] if shape else 1, draw(st.sampled_from([2, 1, 3])))
    return shape, w, w[3:], stride, padding


@operation("conv2d_simple")
@operation("conv2d")
def draw_conv2d(draw):
    shape, w, b, stride, padding = convolution(draw)
    fault = draw(st.sampled_from([None] * 15 + ["channels", "no channels", "axes", "bias"]))
    with_bias = draw(st.booleans()) or fault == "bias"
    w = {"channels": (*w[:2], w[2] + 1, w[3]), "no channels": (*w[:3], 0), "axes": w[:3]}.get(fault, w)
    b = (*b, 1) if fault == "bias" else b
    wrong = bool(fault) or no_window(shape, w[0], w[1], stride, padding)
    shapes = [shape, w, b] if with_bias else [shape, w]
    return Example(
        [numbers(draw, s) for s in shapes],
        lambda f, x, w, b=None: f(x, w, b, stride, padding),
        lambda x, w, b=None: slow_conv(x, w, b, stride, padding),
        wrong,
    )


def pooling(draw, most_padding):
    shape, (stride, padding) = picture(draw), window(draw)
    kernel = draw(st.sampled_from([2, 3, 1, 4, 0]))
    padding = padding if rarely(draw) else min(padding, most_padding(kernel))
    given_stride = None if draw(st.booleans()) else stride
    stride = kernel if given_stride is None else stride
    wrong = no_window(shape, kernel, kernel, stride, padding) or padding > most_padding(kernel)
    return shape, kernel, given_stride, stride, padding, wrong


def slow_pool(x, kernel, stride, padding, reduce, border):
    n, h, w, c = x.shape
    y = np.zeros((n, places(h, kernel, stride, padding), places(w, kernel, stride, padding), c))
    for index in np.ndindex(*y.shape):
        entries = []
        for a, b in np.ndindex(kernel, kernel):
            i, j = index[1] * stride + a - padding, index[2] * stride + b - padding
            entries.append(x[index[0], i, j, index[3]] if 0 <= i < h and 0 <= j < w else border)
        y[index] = reduce(entries)
    return y


@operation("max_pool2d")
def draw_max_pool2d(draw):
    shape, kernel, given_stride, stride, padding, wrong = pooling(draw, lambda kernel: kernel // 2)
    return Example(
        [numbers(draw, shape)],
        lambda f, x: f(x, kernel, given_stride, padding),
        lambda x: slow_pool(x, kernel, stride, padding, max, -math.inf),
        wrong,
        kinks=True,
    )


@operation("avg_pool2d")
def draw_avg_pool2d(draw):
    shape, kernel, given_stride, stride, padding, wrong = pooling(draw, lambda kernel: math.inf)
    return Example(
        [numbers(draw, shape)],
        lambda f, x: f(x, kernel, given_stride, padding),
        lambda x: slow_pool(x, kernel, stride, padding, np.mean, 0.0),
        wrong,
    )


@operation("global_avg_pool")
def draw_global_avg_pool(draw):
    shape = picture(draw)

    def twin(x):
        n, h, w, c = x.shape
        return np.array(
            [[sum(x[i, a, b, k] for a in range(h) for b in range(w)) / (h * w) for k in range(c)] for i in range(n)]
        ).reshape(n, c)

    return Example([numbers(draw, shape)], lambda f, x: f(x), twin, wrong=len(shape) != 4 or 0 in shape[1:3])


# ---- norm.py -----------------------------------------------------------------------------------------------------


def normed(draw):
    """Shapes of x, gamma and beta, and whether they do not fit together."""
    side = st.sampled_from([3, 2, 4, 1])
    shape = draw(st.sampled_from([4, 3, 2, 1, 0])), *(draw(side) for _ in range(draw(st.sampled_from([3, 1, 2]))))
    shape = draw(SHAPE) if rarely(draw) else shape
    vector = shape[-1:]
    fault = draw(st.sampled_from([None] * 15 + ["gamma", "beta"]))
    shapes = [shape, (*vector, 1) if fault == "gamma" else vector, (*vector, 1) if fault == "beta" else vector]
    return shapes, bool(fault) or len(shape) < 2 or 0 in shape[1:]


def slow_norm(x, gamma, beta, axis, eps=1e-5):
    """Of every group of numbers the same: take the mean away, divide by the deviation."""
    mean = slow_mean(x, axis, True)
    var = slow_mean((x - mean) ** 2, axis, True)
    return gamma * ((x - mean) / (var + eps) ** 0.5) + beta


@operation("batch_norm")
def draw_batch_norm(draw):
    shapes, wrong = normed(draw)
    shape = shapes[0]
    training = draw(st.booleans())
    momentum, eps = draw(st.sampled_from([0.1, 0.0, 1.0])), draw(st.sampled_from([1e-5, 0.1]))
    c = shape[-1] if shape else 1
    count = math.prod(shape[:-1])
    statistics = numbers(draw, (c,)), np.abs(numbers(draw, (c,))) + 0.5
    if rarely(draw):
        statistics, wrong = (statistics[0], np.ones(c + 1)), True
    wrong = wrong or (training and count < 2)
    axes = tuple(range(len(shape) - 1))
    kept = []

    def call(f, x, gamma, beta):
        mean, var = (laid_out(s.astype(x.dtype), "every second")[0] for s in statistics)
        kept[:] = [x.data, mean.copy(), var.copy()]
        out = f(x, gamma, beta, mean, var, training, momentum, eps)
        kept[1:] = [mean.copy(), var.copy()]
        mean[...] = var[...] = np.nan  # as a later batch would change them, before this one's backward pass
        return out

    def twin(x, gamma, beta):
        if training:
            return slow_norm(x, gamma, beta, axes, eps)
        mean, var = (s.astype(x.dtype) for s in statistics)
        return gamma * (x - mean) / (var + eps) ** 0.5 + beta

    def after():
        x, *found = kept
        x = x.astype(np.float64)
        mean, var = slow_mean(x, axes, False), slow_mean((x - slow_mean(x, axes, True)) ** 2, axes, False)
        batch = mean, var * count / max(1, count - 1)
        for old, new, got in zip(statistics, batch, found, strict=True):
            wanted = old + momentum * (new - old) if training else old
            close(got, wanted, 1e-3 if got.dtype == np.float32 else 1e-10)

    if wrong or not training:
        after = lambda: None  # noqa: E731
    return Example([numbers(draw, s) for s in shapes], call, twin, wrong, after=after)


@operation("layer_norm")
def draw_layer_norm(draw):
    shapes, wrong = normed(draw)
    eps = draw(st.sampled_from([1e-5, 0.1]))
    return Example(
        [numbers(draw, s) for s in shapes],
        lambda f, x, g, b: f(x, g, b, eps),
        lambda x, g, b: slow_norm(x, g, b, -1, eps),
        wrong,
    )


def slow_twin_of_norm(name, axes):
    @operation(name, told="(add|sub|mul): ")
    def draw_example(draw):
        shapes, wrong = normed(draw)
        assume(not wrong and math.prod(shapes[0]))
        return Example(
            [numbers(draw, s) for s in shapes],
            lambda f, x, g, b: f(x, g, b),
            lambda x, g, b: slow_norm(x, g, b, axes(x.ndim)),
        )


slow_twin_of_norm("batch_norm_simple", lambda ndim: tuple(range(ndim - 1)))
slow_twin_of_norm("layer_norm_simple", lambda ndim: -1)


# ---- functions of plain arrays: no gradient, but the same promises -------------------------------------------------

Plain = tuple[list[np.ndarray], Callable[..., Any], Callable[..., np.ndarray], bool]
PLAIN: dict[str, tuple[Callable[..., Plain], bool]] = {}  # how to draw arrays, the call, the twin; may it be a view?


def plain(name: str, view: bool = False) -> Callable[..., Any]:
    def note(draw: Callable[..., Plain]) -> Callable[..., Plain]:
        PLAIN[name] = draw, view
        return draw

    return note


@plain("output_size")
def draw_output_size(draw):
    size, kernel, (stride, padding) = draw(st.integers(1, 9)), draw(st.sampled_from([3, 2, 1, 4])), window(draw)
    assume(stride > 0 and padding >= 0 and size + 2 * padding >= kernel)
    return (
        [],
        lambda f: np.array(f(size, kernel, stride, padding)),
        lambda: np.array(places(size, kernel, stride, padding)),
        False,
    )


@plain("pad2d", view=True)
def draw_pad2d(draw):
    shape, padding, value = tuple(draw(SIDE) for _ in range(4)), draw(st.integers(0, 3)), draw(st.floats(-9, 9))

    def twin(x):
        n, h, w, c = x.shape
        out = np.full((n, h + 2 * padding, w + 2 * padding, c), value)
        for i, j in np.ndindex(h, w):
            out[:, i + padding, j + padding] = x[:, i, j]
        return out

    return [numbers(draw, shape)], lambda f, x: f(x, padding, value), twin, False


@plain("add_up")
def draw_add_up(draw):
    shape = tuple(draw(SIDE) for _ in range(draw(st.integers(1, 3))))
    axes = tuple(draw(st.lists(st.integers(0, len(shape) - 1), unique=True)))
    keepdims = draw(st.booleans())

    def twin(x):
        out = np.zeros([1 if i in axes else n for i, n in enumerate(shape)])
        for place in np.ndindex(shape):
            out[tuple(0 if i in axes else p for i, p in enumerate(place))] += x[place]
        return out if keepdims else out.reshape([n for i, n in enumerate(shape) if i not in axes])

    return [numbers(draw, shape)], lambda f, x: f(x, axes, keepdims), twin, False


def windowed(draw):
    shape, w, _, stride, padding = convolution(draw)
    assume(not no_window(shape, *w[:2], stride, padding))
    return shape, *w[:2], stride, padding


def slow_im2col(x, kh, kw, stride, padding):
    n, h, w, c = x.shape
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    rows = [
        x[k, i * stride : i * stride + kh, j * stride : j * stride + kw].ravel()
        for k in range(n)
        for i in range(places(h, kh, stride, padding))
        for j in range(places(w, kw, stride, padding))
    ]
    return np.array(rows).reshape(len(rows), kh * kw * c)


@plain("im2col", view=True)
def draw_im2col(draw):
    shape, kh, kw, stride, padding = windowed(draw)
    return (
        [numbers(draw, shape)],
        lambda f, x: f(x, kh, kw, stride, padding),
        lambda x: slow_im2col(x, kh, kw, stride, padding),
        False,
    )


@plain("patches", view=True)
def draw_patches(draw):
    shape, kh, kw, stride, _ = windowed(draw)
    assume(kh <= shape[1] and kw <= shape[2])
    n, h, w, c = shape
    full = n, places(h, kh, stride, 0), places(w, kw, stride, 0), kh, kw, c
    return (
        [numbers(draw, shape)],
        lambda f, x: f(x, kh, kw, stride),
        lambda x: slow_im2col(x, kh, kw, stride, 0).reshape(full),
        False,
    )


@plain("col2im")
def draw_col2im(draw):
    shape, kh, kw, stride, padding = windowed(draw)
    n, h, w, c = shape
    oh, ow = places(h, kh, stride, padding), places(w, kw, stride, padding)

    def twin(cols):
        out = np.zeros((n, h + 2 * padding, w + 2 * padding, c))
        for row, (k, i, j) in zip(cols, np.ndindex(n, oh, ow), strict=True):
            for entry, (a, b, channel) in zip(row, np.ndindex(kh, kw, c), strict=True):
                out[k, i * stride + a, j * stride + b, channel] += entry
        return out[:, padding : padding + h, padding : padding + w]

    return (
        [numbers(draw, (n * oh * ow, kh * kw * c))],
        lambda f, cols: f(cols, shape, kh, kw, stride, padding),
        twin,
        False,
    )


@plain("conv2d_naive")
def draw_conv2d_slow(draw):
    shape, w, b, stride, padding = convolution(draw)
    assume(not no_window(shape, *w[:2], stride, padding))
    shapes = [shape, w, b] if draw(st.booleans()) else [shape, w]
    return (
        [numbers(draw, s) for s in shapes],
        lambda f, x, w, b=None: f(x, w, b, stride, padding),
        lambda x, w, b=None: slow_conv(x, w, b, stride, padding),
        False,
    )


@plain("pool2d_naive")
def draw_pool2d_slow(draw):
    shape, kernel, _, stride, padding, wrong = pooling(draw, lambda kernel: kernel // 2)
    assume(not wrong)
    kind, reduce, border = draw(st.sampled_from([("max", max, -math.inf), ("mean", np.mean, 0.0)]))
    return (
        [numbers(draw, shape)],
        lambda f, x: f(x, kernel, stride, padding, kind),
        lambda x: slow_pool(x, kernel, stride, padding, reduce, border),
        False,
    )


@plain("check_labels", view=True)
def draw_check_labels(draw):
    n, k, dtype = draw(SIDE), draw(st.integers(0, 5)), draw(INTEGERS)
    labels = np.array([draw(st.integers(0, 6)) for _ in range(n)], dtype)
    wrong = any(label >= k for label in labels.tolist())
    return [], lambda f: f(labels, k), lambda: np.array(labels.tolist()), wrong


@plain("unbroadcast", view=True)
def draw_unbroadcast(draw):
    small, large = pair_of_shapes(draw)
    assume(broadcast(small, large))
    large = np.broadcast_shapes(small, large)

    def twin(grad):
        out = np.zeros(small)
        places_of = np.broadcast_to(np.arange(out.size).reshape(small), large)
        for index in np.ndindex(*large):
            out.reshape(-1)[places_of[index]] += grad[index]
        return out

    return [numbers(draw, large)], lambda f, grad: f(grad, small), twin, False


# ---- the tests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
@SETTINGS
@given(data=st.data())
def test_an_operation_agrees_with_its_slow_twin_or_says_what_is_wrong(name, data):
    check(name, data)


@pytest.mark.parametrize("name", PLAIN)
@SETTINGS
@given(data=st.data())
def test_a_function_of_arrays_agrees_with_its_slow_twin_or_says_what_is_wrong(name, data):
    draw, view = PLAIN[name]
    arrays, call, twin, wrong = draw(data.draw)
    dtype = data.draw(st.sampled_from(["f4", "f8"]))
    pairs = [laid_out(a.astype(dtype), data.draw(st.sampled_from(LAYOUTS))) for a in arrays]
    before = [memory.tobytes() for _, memory in pairs]
    if wrong:
        with pytest.raises(ValueError, match=": expected .*, got"):
            call(find(name))
        return
    out = call(find(name), *(a for a, _ in pairs))
    wanted = np.asarray(twin(*(a.astype(np.float64) for a, _ in pairs)))
    close(out, wanted, 1e-11 if dtype == "f8" else 1e-4)
    assert [memory.tobytes() for _, memory in pairs] == before
    assert view or not any(np.shares_memory(out, a) for a, _ in pairs)


NO_OPERATIONS = {  # public, but they change no numbers; test_tensor.py holds what they do
    "from_op",
    "saved",
    "check_tensors",
    "__array__",
    "__bool__",
    "__eq__",
    "__float__",
    "__format__",
    "__hash__",
    "shape",
    "dtype",
    "ndim",
    "size",
    "item",
    "detach",
    "retain_grad",
    "zero_grad",
    "requires_grad",
    "grad",
    "backward",
    "__init__",
    "__len__",
    "__repr__",
    "grad_enabled",
    "no_grad",
    "grad_mode",
    "conv_method",
    "topological_order",
}


def public_operations():
    def public(name, value):
        return callable(inspect.unwrap(value)) and not inspect.isclass(value) and not name.startswith("_")

    members = {name: getattr(value, "fget", getattr(value, "__func__", value)) for name, value in vars(Tensor).items()}
    found = {name for name, value in members.items() if callable(value) and not name.startswith("_")}
    found |= {name for name, value in members.items() if callable(value) and name.startswith("__")}
    for module in (tensor, functional, conv, norm):
        found |= {
            name
            for name, value in vars(module).items()
            if public(name, value) and getattr(value, "__module__", "") == module.__name__
        }
    return found - NO_OPERATIONS


def test_every_public_operation_is_driven():
    assert public_operations() == set(OPERATIONS) | set(PLAIN)


# ---- where numbers are equal or zero -----------------------------------------------------------------------------


def slow_ties(name, x, u):
    """The gradient by the rule in the docstring."""
    grad = np.zeros(x.shape)
    if name == "relu":
        grad = u * (x > 0)
    elif name == "max":  # over axis 1: shared equally
        for i, row in enumerate(x):
            for j in range(len(row)):
                grad[i, j] = u[i] / list(row).count(max(row)) if row[j] == max(row) else 0
    elif name == "max_pool2d":  # 2x2, stride 1: to the first
        for n, i, j, c in np.ndindex(*u.shape):
            patch = [(x[n, i + a, j + b, c], -a, -b) for a, b in np.ndindex(2, 2)]
            _, a, b = max(patch)
            grad[n, i - a, j - b, c] += u[n, i, j, c]
    return grad


@pytest.mark.parametrize("name", ["relu", "max", "max_pool2d"])
@SETTINGS
@given(data=st.data())
def test_equal_numbers_and_zeros(name, data):
    shape = (2, 3, 4, 2) if name == "max_pool2d" else (3, 4)
    x = data.draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([-1.0, -0.0, 0.0, 1.0])))
    arguments = {"relu": (), "max": (1,), "max_pool2d": (2, 1)}[name]
    leaf = Tensor(x, requires_grad=True)
    out = find(name)(leaf, *arguments)
    u = RNG(0).standard_normal(out.shape)
    out.backward(u)
    np.testing.assert_allclose(leaf.grad, slow_ties(name, x, u), atol=1e-15)
    both = Tensor(x, requires_grad=True), Tensor(np.zeros(shape), requires_grad=True)
    functional.relu(both[0] + both[1]).backward(RNG(1).standard_normal(shape))
    for side in both:
        np.testing.assert_array_equal(side.grad, RNG(1).standard_normal(shape) * (x > 0))


# ---- the optimiser ---------------------------------------------------------------------------------------------------


@SETTINGS
@given(data=st.data())
def test_a_step_of_sgd_is_its_formula_entry_by_entry(data):
    lr, wd = data.draw(st.sampled_from([0.0, 0.1, 1.5])), data.draw(st.sampled_from([0.0, 0.01]))
    m, nesterov = data.draw(st.sampled_from([(0.0, False), (0.9, False), (0.9, True)]))
    decay_bias_and_norm, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(["f4", "f8"]))
    params, memories, wanted = [], [], []
    for _ in range(data.draw(st.integers(1, 3))):
        a = numbers(data.draw, data.draw(SHAPE)).astype(dtype)
        view, memory = laid_out(a, data.draw(st.sampled_from(["C", "F", "every second", "backwards", "unaligned"])))
        params.append(Tensor(view, requires_grad=True))
        memories.append(memory)
        wanted.append([a.astype(np.float64), np.zeros(a.shape)])
    memory_before = [np.array(memory) for memory in memories]
    opt = optim.SGD(params, lr, m, wd, nesterov, decay_bias_and_norm)
    for _ in range(3):
        for p, (w, v) in zip(params, wanted, strict=True):
            if rarely(data.draw):
                p.grad = None
                continue
            p.grad = laid_out(numbers(data.draw, p.shape).astype(dtype), data.draw(st.sampled_from(LAYOUTS)))[0]
            for i in np.ndindex(*p.shape):
                g = float(p.grad[i]) + wd * w[i] * (decay_bias_and_norm or w.ndim > 1)
                v[i] = m * v[i] + g
                w[i] -= lr * (g + m * v[i] if nesterov else v[i])
        grads = [None if p.grad is None else p.grad.copy() for p in params]
        opt.step()
        for p, grad in zip(params, grads, strict=True):
            assert (grad is None) == (p.grad is None)
            np.testing.assert_array_equal(p.grad if grad is not None else 0, grad if grad is not None else 0)
    for p, (w, v), velocity in zip(params, wanted, opt.velocity, strict=True):
        assert p.dtype == velocity.dtype == np.dtype(dtype)
        close(p.data, w, 1e-12 if dtype == "f8" else 1e-5)
        close(velocity, v, 1e-12 if dtype == "f8" else 1e-5)
    for p, memory, before in zip(params, memories, memory_before, strict=True):
        if memory.dtype == p.dtype and memory.size > p.size:  # what lies between the numbers is not touched
            inside = np.zeros(memory.shape, bool)
            inside[(slice(1, None, 2),) * memory.ndim] = True
            np.testing.assert_array_equal(memory[~inside], before[~inside])


def test_a_parameter_that_can_not_be_changed_or_comes_twice_is_refused():
    p = Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(ValueError, match="SGD: params holds a tensor twice"):
        optim.SGD([p, p], lr=0.1)
    frozen = Tensor(np.broadcast_to(np.ones(1), 3), requires_grad=True)
    frozen.grad = np.ones(3)
    opt = optim.SGD([frozen], lr=0.1)
    with pytest.raises(ValueError, match="read-only"):
        opt.step()
    np.testing.assert_array_equal(frozen.data, 1)


@SETTINGS
@given(data=st.data())
def test_clipping_is_its_formula(data):
    shapes, most = data.draw(st.lists(SHAPE, min_size=1, max_size=3)), data.draw(st.sampled_from([0.1, 1.0, 1e9]))
    params = [Tensor(np.zeros(s), requires_grad=True) for s in shapes]
    for p in params:
        p.grad = laid_out(numbers(data.draw, p.shape), data.draw(st.sampled_from(LAYOUTS)))[0]
    before = [np.array(p.grad) for p in params]
    norm_before = math.sqrt(sum(float(entry) ** 2 for g in before for entry in g.ravel()))
    old = [p.grad for p in params]
    assert optim.clip_grad_norm(params, most) == pytest.approx(norm_before)
    for p, g, kept in zip(params, before, old, strict=True):
        np.testing.assert_allclose(p.grad, g * min(1, most / max(norm_before, 1e-12)), rtol=1e-9)
        np.testing.assert_array_equal(kept, g)  # the old array may be another tensor's too


# ---- augmentation ----------------------------------------------------------------------------------------------------


@SETTINGS
@given(data=st.data())
def test_augment_is_a_crop_and_a_flip_of_each_image(data):
    n, h, w, c = (data.draw(st.integers(0, 3)), *(data.draw(st.integers(1, 7)) for _ in range(2)), 2)
    dtype, seed = data.draw(st.sampled_from(["f4", "f8", "u1"])), data.draw(st.integers(0, 99))
    x, memory = laid_out(numbers(data.draw, (n, h, w, c)).astype(dtype), data.draw(st.sampled_from(LAYOUTS)))
    before = memory.tobytes()
    out = augment(x, RNG(seed))
    rng = RNG(seed)
    (top, left), flip = rng.integers(0, 9, (2, n)), rng.random(n) < 0.5
    wanted = np.zeros((n, h, w, c), dtype)
    for k, i, j in np.ndindex(n, h, w):
        row, column = i + top[k] - 4, (w - 1 - j if flip[k] else j) + left[k] - 4
        if 0 <= row < h and 0 <= column < w:
            wanted[k, i, j] = x[k, row, column]
    np.testing.assert_array_equal(out, wanted)
    assert out.dtype == x.dtype and out.flags.writeable and not np.shares_memory(out, memory)
    assert memory.tobytes() == before


@pytest.mark.parametrize("shape", [(), (4,), (2, 8, 8), (1, 2, 8, 8, 3)], ids=str)
def test_augment_refuses_what_is_no_batch_of_pictures(shape):
    with pytest.raises(ValueError, match=r"augment: x: expected \(N, H, W, C\)"):
        augment(np.zeros(shape, np.float32), RNG(0))
