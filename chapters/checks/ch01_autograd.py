"""The checks of chapter 1's exercises, and their hints."""

import numpy as np

from minires.course.compare import Mistake, kind
from minires.course.exercises import Exercise
from minires.tensor import Tensor

# ---- 1.1

EXPRESSIONS = {
    "a + b": lambda a, b: a + b,
    "a * b": lambda a, b: a * b,
    "a + a": lambda a, b: a + a,
    "a * a": lambda a, b: a * a,
    "(a + b) * (a + b)": lambda a, b: (a + b) * (a + b),
    "a * b + a * b": lambda a, b: a * b + a * b,
    "(a + b) * b": lambda a, b: (a + b) * b,
    "(a * b) * b": lambda a, b: (a * b) * b,
    "(a + b) * a + b * (a * b + b)": lambda a, b: (a + b) * a + b * (a * b + b),
}


def value_cases():
    yield "a sum", ("a + b", 2.0, -3.0)
    yield "a product", ("a * b", 2.0, -3.0)
    yield "a sum that uses a twice", ("a + a", 0.7, 5.0)
    yield "a product that uses a twice", ("a * a", 0.7, 5.0)
    yield "the same sum written twice", ("(a + b) * (a + b)", 0.7, 5.0)
    yield "the same product written twice", ("a * b + a * b", 0.7, 5.0)
    yield "a sum inside a product", ("(a + b) * b", 0.7, 5.0)
    yield "a product inside a product", ("(a * b) * b", 0.7, 5.0)
    yield "many uses of both, a + b = 0", ("(a + b) * a + b * (a * b + b)", 0.4, -0.4)


def run_value(Value, expression, a, b):
    """Compute the expression, then call every `give`, later values first."""
    a, b = Value(a), Value(b)
    z = EXPRESSIONS[expression](a, b)
    order = []

    def visit(value):
        if value not in order:
            for parent in value.parents:
                visit(parent)
            order.append(value)

    visit(z)
    z.grad = 1.0
    for value in reversed(order):
        value.give()
    return z.data, a.grad, b.grad


def value_reference(expression, a, b):
    a, b = (Tensor(np.float64(x), requires_grad=True) for x in (a, b))
    z = EXPRESSIONS[expression](a, b)
    z.backward()
    return z.item(), *(0.0 if x.grad is None else x.grad.item() for x in (a, b))


# ---- 1.2


class Knot:
    """A value of a graph: its name, its parents, and how often those have been asked for."""

    def __init__(self, name, *parents):
        self.name, self._parents, self.asked = name, parents, 0

    @property
    def parents(self):
        self.asked += 1
        if self.asked > 1000:
            raise Mistake(
                f"it asks 1,000 times for the parents of {self.name!r}: every path to a value is followed again"
            )
        return self._parents

    def __repr__(self):
        return self.name


def a_given_value():
    return [Knot("x")]


def a_chain():
    x = Knot("x")
    y = Knot("y", x)
    return [x, y, Knot("z", y)]


def a_sum_of_two():
    x, y = Knot("x"), Knot("y")
    return [x, y, Knot("z", x, y)]


def a_square():
    x = Knot("x")
    return [x, Knot("z", x, x)]


def a_diamond():
    x = Knot("x")
    u, v = Knot("u", x), Knot("v", x)
    return [x, u, v, Knot("z", u, v)]


def a_shortcut_first():
    x = Knot("x")
    u = Knot("u", x)
    v = Knot("v", u)
    return [x, u, v, Knot("z", x, v)]


def a_shortcut_last():
    x = Knot("x")
    u = Knot("u", x)
    v = Knot("v", u)
    return [x, u, v, Knot("z", v, x)]


def a_shortcut_around_two():
    """One path from z to w is one step long, the other three: meeting w early must not list it, or x, too early."""
    x = Knot("x")
    w = Knot("w", x)
    u = Knot("u", w)
    v = Knot("v", u)
    return [x, w, u, v, Knot("z", w, v)]


def sixty_doublings():
    knots = [Knot("x")]
    for i in range(60):
        knots.append(Knot(f"x{i + 1}", knots[-1], knots[-1]))
    return knots


def a_deep_net():
    knots = [Knot("x")]
    for i in range(2500):  # a residual net's backbone: a block, and the sum with what went into it
        knots.append(Knot(f"block {i + 1}", knots[-1]))
        knots.append(Knot(f"sum {i + 1}", knots[-1], knots[-2]))
    return knots


def run_order(topological_order, graph):
    knots = graph()
    order = topological_order(knots[-1])
    if not isinstance(order, list):
        raise Mistake(f"wrong type: {kind(order)}, expected a list")
    place = {}
    for i, knot in enumerate(order):
        if not isinstance(knot, Knot):
            raise Mistake(f"entry {i} of the list is {kind(knot)}, expected a value of the graph")
        if knot in place:
            raise Mistake(f"{knot.name!r} is in the list more than once")
        place[knot] = i
    missing = [knot.name for knot in knots if knot not in place]
    if missing:
        raise Mistake(f"{len(missing)} of {len(knots)} values are missing from the list, first {missing[0]!r}")
    for knot in knots:
        for parent in knot.parents:
            if place[parent] > place[knot]:
                raise Mistake(f"{parent.name!r} comes after {knot.name!r}, which was made from it")
    return True


def order_cases():
    for words, graph in {
        "a value that was given": a_given_value,
        "three in a row": a_chain,
        "a sum of two": a_sum_of_two,
        "a square, z = x x": a_square,
        "a diamond": a_diamond,
        "a shortcut as first parent": a_shortcut_first,
        "a shortcut as last parent": a_shortcut_last,
        "a shortcut around two": a_shortcut_around_two,
        "60 doublings, 2^60 paths": sixty_doublings,
        "5,001 values deep": a_deep_net,
    }.items():
        yield words, (graph,)


def every_value_once_inputs_first(graph):
    return True


# ---- 1.3


def unbroadcast_cases():
    rng = np.random.default_rng(0)
    yield "no broadcasting", (rng.standard_normal((2, 3)), (2, 3))
    yield "a new axis in front", (rng.standard_normal((4, 3)), (3,))
    yield "an axis stretched", (rng.standard_normal((4, 3)), (4, 1))
    yield "the first axis stretched", (rng.standard_normal((4, 3)), (1, 3))
    yield "two new axes, float32", (rng.standard_normal((2, 5, 3)).astype(np.float32), (3,))
    yield "a new axis and one stretched", (rng.standard_normal((2, 4, 3)), (4, 1))
    yield "an axis of length 1 that was not stretched", (rng.standard_normal((4, 1, 3)), (1, 3))
    yield "all to one number", (rng.standard_normal((4, 3)), ())
    yield "a new axis as long as the old one", (rng.standard_normal((3, 3)), (3,))
    yield "a square, an axis stretched", (rng.standard_normal((3, 3)), (3, 1))


def unbroadcast_slowly(grad, shape):
    """Each place of z, one by one, gives its gradient to the entry of x that was copied there."""
    out = np.zeros(shape, grad.dtype)
    for place, g in np.ndenumerate(grad):
        own = place[len(place) - len(shape) :]
        out[tuple(0 if n == 1 else i for i, n in zip(own, shape, strict=True))] += g
    return out


# ---- 1.4


def run_tanh(tanh, x, grad):
    x = Tensor(x, requires_grad=True)
    before, upstream = x.data.copy(), grad.copy()
    z = tanh(x)
    if not isinstance(z, Tensor):
        raise Mistake(f"wrong type: it returns {kind(z)}, expected a Tensor")
    if not np.array_equal(x.data, before):
        raise Mistake("input modified: the forward pass changed x.data")
    if z.node is None or z.node.parents != (x.node,):
        raise Mistake("z was not made from x in one operation: end with Tensor.from_op(z, (x,), backward, 'tanh')")
    value = z.data
    z.backward(upstream)
    if not np.array_equal(upstream, grad):
        raise Mistake("input modified: backward changed the gradient that it was given")
    if not np.array_equal(x.data, before):
        raise Mistake("input modified: backward changed x.data")
    return value, x.grad


def tanh_reference(x, grad):
    big = np.exp(np.minimum(2 * np.abs(x.astype(np.float64)), 100))
    value = np.sign(x) * (big - 1) / (big + 1)
    slope = 4 * big / (big + 1) ** 2
    return value.astype(x.dtype), (grad * slope).astype(x.dtype)


def tanh_cases():
    rng = np.random.default_rng(0)
    yield "upstream gradient 1", (rng.standard_normal((2, 3)), np.ones((2, 3)))
    yield "a random upstream gradient", (rng.standard_normal((2, 3)), rng.standard_normal((2, 3)))
    yield "float32", tuple(rng.standard_normal((2, 3, 3, 4)).astype(np.float32) for _ in range(2))
    yield (
        "large numbers, float32",
        (
            np.array([-800, -30, 0, 30, 800], np.float32),
            rng.standard_normal(5).astype(np.float32),
        ),
    )


EXERCISES = [
    Exercise(
        number="1.1",
        name="Value",
        title="the gradients of + and *",
        level=1,
        lines=4,
        hints=(
            "Each operation knows only its own local derivative. The rest of the world is in z.grad: how much the "
            "loss grows when z grows a little. Multiply the two: that is the chain rule.",
            "If x grows by a little h, x + y grows by h, and x y grows by h y. And remember that x may be used "
            "elsewhere too: what its other uses have added must stay.",
            "In __add__, self gets z.grad and other gets z.grad. In __mul__:\n\n"
            "    self.grad += (what self was multiplied with) * z.grad\n\n"
            "and the same for other. Is it = or += ? Try a + a on paper.",
        ),
        cases=value_cases,
        reference=value_reference,
        run=run_value,
        outputs=("the value", "gradient for a", "gradient for b"),
    ),
    Exercise(
        number="1.2",
        name="topological_order",
        title="the order of the backward pass",
        level=3,
        lines=12,
        hints=(
            "A value may enter the list when all of its parents are in it. So you meet a value first, go to its "
            "parents, and must come back to it later. A recursive function does this by itself; here the stack is "
            "yours, so put on it what you have to come back to.",
            "Let the stack hold pairs (value, ready). ready is False when a value is met on the way down, and True "
            "when you come back to it and all of its parents have been listed. A set holds the values met so far.",
            "Take a pair from the end of the stack:\n\n"
            "    ready:              append the value to the list\n"
            "    not ready, seen:    nothing\n"
            "    not ready, new:     remember it as seen, put (value, True) on the stack,\n"
            "                        and on top of that (parent, False) for each parent",
        ),
        cases=order_cases,
        reference=every_value_once_inputs_first,
        run=run_order,
        outputs=("the list",),
    ),
    Exercise(
        number="1.3",
        name="unbroadcast",
        title="the backward pass of broadcasting",
        level=2,
        lines=4,
        hints=(
            "Copying forward is adding backward. Which axes of grad did x not have? Which did it have with length 1? "
            "Over those, sum; over no others.",
            "First the new axes: there are grad.ndim - len(shape) of them, all in front, and they vanish. After that, "
            "grad has as many axes as shape, and the axes where shape has a 1 are summed and kept with length 1.",
            "grad.sum(axis=(0, 1)) sums over two axes at once; axis=() sums over none.\n\n"
            "    grad = grad.sum(axis=tuple(range(number of new axes)))\n"
            "    return grad.sum(axis=(where shape has a 1), keepdims=True)",
        ),
        cases=unbroadcast_cases,
        reference=unbroadcast_slowly,
        outputs=("gradient for x",),
    ),
    Exercise(
        number="1.4",
        name="tanh",
        title="a new operation for arrays",
        level=1,
        lines=4,
        hints=(
            "An operation has two parts. Forward computes numbers from x.data. Backward multiplies the upstream "
            "gradient by the slope at each place. Read `exp` in minires/tensor.py: it is made the same way.",
            "The slope is 1 - z^2: it needs the result z, not x. backward is written inside tanh, so it sees z; "
            "nothing has to be computed again.",
            "    z = np.tanh(x.data)\n\n"
            "    def backward(grad):\n"
            "        return (grad times the slope,)\n\n"
            '    return Tensor.from_op(z, (x,), backward, "tanh")\n\n'
            "Mind the comma: backward returns a tuple, one gradient for each input.",
        ),
        cases=tanh_cases,
        reference=tanh_reference,
        run=run_tanh,
        outputs=("z", "gradient for x"),
    ),
]
