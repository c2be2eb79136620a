"""The engine: what every operator computes and what its gradient is, and how the walk back behaves."""

# mypy: disable-error-code="union-attr, operator, arg-type"

import gc
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.backend import to_device
from minires.gradcheck import away_from_kinks, gradcheck
from minires.tensor import Tensor, concatenate, grad_enabled, no_grad, pad, unbroadcast


def draw(*shape, seed=1):
    return away_from_kinks(np.random.default_rng(seed), shape)


def leaf(*shape, seed=1, dtype=np.float64):
    return Tensor(draw(*shape, seed=seed).astype(dtype), requires_grad=True)


def positive(*shape, seed=1):
    return np.abs(draw(*shape, seed=seed))


# ---- every operator: forward against NumPy, gradient against finite differences

ROWS = np.array([2, 0, 2, 2])
BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
}
SHAPES = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((), (2, 3)),
    ((2, 3), ()),
    ((), ()),
    ((3, 1), (1, 4)),
    ((1, 1), (5, 3)),
    ((2, 3, 5), (3, 1)),
    ((1,), (2, 1, 3)),
    ((4, 1, 5), (2, 1)),
]
UNARY = {  # of Tensor x; the same of array x; an input
    "neg": (lambda x: -x, np.negative, draw(3, 5)),
    "number + x": (lambda x: 2.0 + x, lambda x: 2 + x, draw(3)),
    "number - x": (lambda x: 2 - x, lambda x: 2 - x, draw(3)),
    "number * x": (lambda x: 3 * x, lambda x: 3 * x, draw(3)),
    "number / x": (lambda x: 3 / x, lambda x: 3 / x, draw(3)),
    "array - x": (lambda x: np.ones(3) - x, lambda x: 1 - x, draw(2, 3)),
    "x / number": (lambda x: x / 3, lambda x: x / 3, draw(3)),
    "x + x": (lambda x: x + x, lambda x: 2 * x, draw(3)),
    "x * x": (lambda x: x * x, np.square, draw()),
    "pow 3": (lambda x: x**3, lambda x: x**3, draw(2, 3)),
    "pow -2": (lambda x: x**-2, lambda x: x**-2.0, draw(2, 3)),
    "pow 0.5": (lambda x: x**0.5, np.sqrt, positive(5)),
    "pow 0": (lambda x: x**0, lambda x: x**0, draw(5)),
    "exp": (lambda x: x.exp(), np.exp, draw(2, 1, 3)),
    "log": (lambda x: x.log(), np.log, positive(7)),
    "sqrt": (lambda x: x.sqrt(), np.sqrt, positive(3, 3)),
    "sum": (lambda x: x.sum(), np.sum, draw(3, 5)),
    "sum of a number": (lambda x: x.sum(), np.sum, draw()),
    "sum, axis 0": (lambda x: x.sum(0), lambda x: x.sum(0), draw(3, 5)),
    "sum, kept": (lambda x: x.sum(-1, keepdims=True), lambda x: x.sum(-1, keepdims=True), draw(3, 2)),
    "sum, two axes": (lambda x: x.sum((0, -1)), lambda x: x.sum((0, -1)), draw(3, 2, 5)),
    "mean": (lambda x: x.mean(), np.mean, draw(3, 5)),
    "mean, two axes": (lambda x: x.mean((0, 2)), lambda x: x.mean((0, 2)), draw(3, 2, 5)),
    "mean, kept": (lambda x: x.mean(1, keepdims=True), lambda x: x.mean(1, keepdims=True), draw(3, 2, 5)),
    "max": (lambda x: x.max(), np.max, draw(3, 5)),
    "max of a number": (lambda x: x.max(), np.max, draw()),
    "max, axis 1": (lambda x: x.max(1), lambda x: x.max(1), draw(3, 5, 2)),
    "max, two axes, kept": (
        lambda x: x.max((0, 2), keepdims=True),
        lambda x: x.max((0, 2), keepdims=True),
        draw(3, 5, 2),
    ),
    "reshape": (lambda x: x.reshape(5, -1), lambda x: x.reshape(5, -1), draw(3, 5, 2)),
    "reshape to a number": (lambda x: x.reshape(()), lambda x: x.reshape(()), draw(1, 1)),
    "T": (lambda x: x.T, np.transpose, draw(3, 5)),
    "T of a number": (lambda x: x.T, np.transpose, draw()),
    "transpose": (lambda x: x.transpose(2, 0, 3, 1), lambda x: x.transpose(2, 0, 3, 1), draw(2, 3, 4, 5)),
    "transpose, negative": (lambda x: x.transpose(-1, 0, 1), lambda x: x.transpose(-1, 0, 1), draw(2, 3, 4)),
    "slice": (lambda x: x[1:, ::-2], lambda x: x[1:, ::-2], draw(3, 5)),
    "entry": (lambda x: x[1, 2], lambda x: x[1, 2], draw(3, 5)),
    "new axis": (lambda x: x[:, None, ..., 0], lambda x: x[:, None, ..., 0], draw(3, 5, 2)),
    "rows, repeated": (lambda x: x[ROWS], lambda x: x[ROWS], draw(3, 5)),
    "rows and columns, repeated": (lambda x: x[ROWS, ROWS], lambda x: x[ROWS, ROWS], draw(3, 5)),
    "mask": (lambda x: x[np.array([True, False, True])], lambda x: x[[0, 2]], draw(3, 5)),
    "pad": (lambda x: pad(x, [(1, 2), (0, 3)]), lambda x: np.pad(x, [(1, 2), (0, 3)]), draw(3, 5)),
    "pad, a slice, overlapping": (lambda x: pad(x[1:], [(1, 0)]) * x, lambda x: np.r_[0, x[1:]] * x, draw(5)),
}


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary_operators_broadcast(name, shapes, there):
    op, a, b = BINARY[name], draw(*shapes[0]), draw(*shapes[1], seed=2)
    out = there(op)(Tensor(a), Tensor(b)).data
    assert out.dtype == np.float64 and out.shape == np.broadcast_shapes(*shapes)
    np.testing.assert_array_equal(out, op(a, b))
    assert gradcheck(there(op), [a, b])


@pytest.mark.parametrize("name", UNARY)
def test_unary_operators(name, there):
    op, same_in_numpy, x = UNARY[name]
    out = there(op)(Tensor(x))
    assert isinstance(out.data, np.ndarray) and out.dtype == np.float64
    np.testing.assert_allclose(out.data, same_in_numpy(x), rtol=1e-14, strict=False)
    assert out.shape == np.shape(same_in_numpy(x))
    assert gradcheck(there(op), [x])


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 5), (5, 2)),
        ((1, 1), (1, 1)),
        ((3, 1), (1, 4)),
        ((2, 3, 5), (5, 4)),
        ((3, 5), (2, 5, 4)),
        ((2, 1, 3, 5), (4, 5, 2)),
    ],
    ids=str,
)
def test_matmul(shapes, there):
    op, a, b = there(lambda x, y: x @ y), draw(*shapes[0]), draw(*shapes[1], seed=2)
    np.testing.assert_allclose(op(Tensor(a), Tensor(b)).data, a @ b, rtol=1e-14)
    assert gradcheck(op, [a, b])


@pytest.mark.parametrize(
    "axis, shapes",
    [
        (0, [(2, 3), (1, 3), (4, 3)]),
        (1, [(2, 3), (2, 5)]),
        (-1, [(2, 1, 3), (2, 1, 1)]),
    ],
)
def test_concatenate(axis, shapes, there):
    op, arrays = there(lambda *tensors: concatenate(tensors, axis)), [draw(*s, seed=i) for i, s in enumerate(shapes)]
    np.testing.assert_array_equal(op(*map(Tensor, arrays)).data, np.concatenate(arrays, axis))
    assert gradcheck(op, arrays)


def test_the_same_tensor_twice_in_one_concatenation(there):
    assert gradcheck(there(lambda x: concatenate([x, x * 2.0, x])), [draw(2, 3)])


def test_an_expression_of_everything_agrees_with_pytorch(there):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    a, b, w = draw(4, 3), positive(4, 1, seed=2), draw(3, 5, seed=3)

    def by_minires(a, b, w):
        y = (a / b - 0.5 * a**2) @ w
        first = (y.exp().mean(0) + (b.log() * b.sqrt()).sum()).max()
        return first * y[ROWS].transpose(1, 0).reshape(2, 10).max(1)

    def by_torch(a, b, w):
        y = (a / b - 0.5 * a**2) @ w
        first = (y.exp().mean(0) + (b.log() * b.sqrt()).sum()).max()
        return first * y[torch.tensor(ROWS)].permute(1, 0).reshape(2, 10).max(1).values

    ours = [Tensor(v, requires_grad=True) for v in (a, b, w)]
    theirs = [torch.tensor(v, requires_grad=True) for v in (a, b, w)]
    out, out_torch = there(by_minires)(*ours), by_torch(*theirs)
    np.testing.assert_allclose(out.data, out_torch.detach().numpy(), rtol=1e-12)
    out.backward(np.array([1.5, -0.7]))
    out_torch.backward(torch.tensor([1.5, -0.7], dtype=torch.float64))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our.grad, their.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_ties_of_a_maximum_share_its_gradient(there):
    x = Tensor(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), requires_grad=True)
    there(lambda x: x.max(1))(x).backward(np.array([1.0, 6.0]))
    np.testing.assert_array_equal(x.grad, [[0, 0.5, 0.5], [2, 2, 2]])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=4), st.integers(0, 2))
def test_unbroadcast_is_the_adjoint_of_broadcasting(axes, leading):
    """<broadcast(x), g> = <x, unbroadcast(g)> for every x and g."""
    large = (2,) * leading + tuple(n for n, _ in axes)
    small = tuple(1 if stretched else n for n, stretched in axes)
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal(small), rng.standard_normal(large)
    back = unbroadcast(g, small)
    assert back.shape == small
    np.testing.assert_allclose((np.broadcast_to(x, large) * g).sum(), (x * back).sum(), atol=1e-12)


# ---- dtypes


def join(x, y):
    return concatenate([x, y])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_operator_keeps_the_dtype(dtype, there):
    for name, op in [*BINARY.items(), ("matmul", lambda x, y: x @ y.T), ("concatenate", join)]:
        x, y = leaf(3, 4, dtype=dtype), leaf(1, 4, seed=2, dtype=dtype)
        out = there(op)(x, y)
        out.backward(np.ones(out.shape))
        assert {out.dtype, x.grad.dtype, y.grad.dtype} == {np.dtype(dtype)}, name
    for name, (op_of_one, _, array) in UNARY.items():
        x = Tensor(array.astype(dtype), requires_grad=True)
        out = there(op_of_one)(x)
        out.backward(np.ones(out.shape))
        assert {out.dtype, x.grad.dtype} == {np.dtype(dtype)}, name


def test_what_is_not_float_becomes_float32():
    for data in ([1, 2], 3, 2.5, [[0.5], [1]], np.arange(3), np.array([True]), np.float16(1), np.uint8(3)):
        assert Tensor(data).dtype == np.float32
        assert isinstance(Tensor(data).data, np.ndarray)


def test_float_arrays_are_not_copied():
    for dtype in (np.float32, np.float64):
        array = np.ones(3, dtype)
        assert Tensor(array).data is array


@pytest.mark.parametrize("op", [*BINARY.values(), lambda x, y: x @ y.T, join])
def test_mixing_dtypes_raises(op, there):
    with pytest.raises(TypeError, match="float32.*float64.*convert one"):
        there(op)(leaf(2, 3, dtype=np.float32), leaf(2, 3))


# ---- errors


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x: x + leaf(3, 4), ValueError, r"add: shapes \(2, 3\) and \(3, 4\) do not broadcast"),
        (lambda x: x - leaf(4), ValueError, r"sub: shapes \(2, 3\) and \(4,\)"),
        (lambda x: x * np.ones(4), ValueError, r"mul: shapes \(2, 3\) and \(4,\)"),
        (lambda x: x / leaf(4), ValueError, r"div: shapes \(2, 3\) and \(4,\)"),
        (lambda x: x @ x, ValueError, r"matmul: expected .*, got \(2, 3\) @ \(2, 3\)"),
        (lambda x: x @ leaf(4, 2), ValueError, r"matmul: expected .*, got \(2, 3\) @ \(4, 2\)"),
        (lambda x: x @ leaf(3), ValueError, r"matmul: expected .*, got \(2, 3\) @ \(3,\)"),
        (lambda x: x**x, TypeError, "pow: the exponent must be a number"),
        (lambda x: x.sum(2), ValueError, r"sum: axis 2 is not one of an array of shape \(2, 3\)"),
        (lambda x: x.mean((0, -3)), ValueError, "mean: axis -3"),
        (lambda x: x.max(5), ValueError, "max: axis 5"),
        (lambda x: pad(x, [(1, 1)]), ValueError, "pad: x has 2 axes, widths names 1"),
        (lambda x: concatenate([]), ValueError, "concatenate: expected at least one tensor"),
        (lambda x: Tensor(x), TypeError, r"Tensor already; use data.detach\(\)"),
        (lambda x: Tensor(np.array([1j])), TypeError, "expected real numbers, got dtype complex128"),
        (lambda x: Tensor(["a"]), TypeError, "expected real numbers"),
        (lambda x: x.backward(), ValueError, r"expected grad for a tensor of shape \(2, 3\)"),
        (
            lambda x: (x * 2).backward(np.ones(2)),
            ValueError,
            r"expected grad of the tensor's shape \(2, 3\), got \(2,\)",
        ),
        (lambda x: x.detach().backward(), RuntimeError, "backward: this tensor requires no gradient"),
        (lambda x: x.detach().retain_grad(), RuntimeError, "retain_grad: this tensor requires no gradient"),
    ],
)
def test_errors_say_what_was_wanted_and_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call(leaf(2, 3))


@pytest.mark.parametrize(
    "returned, words",
    [
        (lambda g: (g[:1],), r"backward of mine: expected a gradient of shape \(2, 3\), got shape \(1, 3\)"),
        (lambda g: (None,), r"backward of mine: expected a gradient of shape \(2, 3\), got None"),
        (lambda g: (g, g), "backward of mine: expected a tuple of 1 gradients, got 2"),
        (lambda g: g, "backward of mine: expected a tuple of 1 gradients, got ndarray"),
    ],
)
def test_a_wrong_backward_is_named(returned, words):
    x = leaf(2, 3)
    with pytest.raises(RuntimeError, match=words):
        Tensor.from_op(x.data, (x,), returned, "mine").sum().backward()


# ---- the walk back


def test_a_chain_of_5000_operations_needs_no_recursion():
    x = Tensor(np.ones(2), requires_grad=True)
    y = x
    for _ in range(5000):
        y = y + x
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [5001, 5001])


def test_a_chain_that_is_never_walked_is_freed_without_recursion():
    code = (
        "from minires.tensor import Tensor\n"
        "y = Tensor([1.0], requires_grad=True)\n"
        "for _ in range(100_000): y = y * 1.0\n"
        "del y; print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "alive", done.stderr


def test_a_ladder_of_2_to_the_40_paths_visits_each_node_once():
    calls = 0

    def double(x):
        def backward(grad):
            nonlocal calls
            calls += 1
            return grad, grad

        return Tensor.from_op(x.data + x.data, (x, x), backward, "double")

    x = Tensor(np.ones(1), requires_grad=True)
    y = x
    for _ in range(40):
        y = double(y)
    start = time.perf_counter()
    y.backward()
    assert time.perf_counter() - start < 0.5
    assert calls == 40 and x.grad.item() == 2.0**40


def test_a_diamond_of_unequal_arms_adds_up(there):
    assert gradcheck(there(lambda x: (lambda y: y * y.exp() + (y + x) * x)(x * 3.0)), [draw(3)])


def test_gradients_handed_to_two_parents_are_never_written_into():
    """add hands one array to x and z; what x gathers from elsewhere must not show up in z."""
    x, z, upstream = leaf(3), leaf(3, seed=2), np.array([1.0, 2.0, 3.0])
    y = x + z
    out = y + x * 5.0 + y
    out.backward(upstream)
    np.testing.assert_array_equal(upstream, [1, 2, 3])
    np.testing.assert_array_equal(x.grad, 7 * upstream)
    np.testing.assert_array_equal(z.grad, 2 * upstream)


def test_a_gradient_shared_by_two_leaves_stays_right_when_one_gathers_more():
    """After x + z, x.grad and z.grad may be one array, and the caller's upstream gradient too."""
    x, z, upstream = leaf(3), leaf(3, seed=2), np.array([1.0, 2.0, 3.0])
    (x + z).backward(upstream)
    (x * 1.0).backward(np.ones(3))
    np.testing.assert_array_equal(x.grad, [2, 3, 4])
    np.testing.assert_array_equal(z.grad, [1, 2, 3])
    np.testing.assert_array_equal(upstream, [1, 2, 3])


def test_two_backward_calls_on_fresh_graphs_accumulate_and_zero_grad_forgets():
    x = leaf(3)
    (x * 2.0).sum().backward()
    (x * 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [5, 5, 5])
    x.zero_grad()
    assert x.grad is None
    (x * 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 3, 3])


def test_a_second_backward_raises_and_changes_nothing():
    x = leaf(3)
    loss = (x * 2.0).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="this graph was already freed"):
        loss.backward()
    np.testing.assert_array_equal(x.grad, [2, 2, 2])


def test_two_losses_over_a_shared_subgraph_raise():
    x = leaf(3)
    shared = x * 2.0
    first, second = shared.sum(), (shared * shared).sum()
    first.backward()
    with pytest.raises(RuntimeError, match="add them first"):
        second.backward()
    np.testing.assert_array_equal(x.grad, [2, 2, 2])


def test_two_losses_added_first_are_fine(there):
    assert gradcheck(there(lambda x: (lambda y: y.sum() + (y * y).sum())(x * 2.0)), [draw(3)])


def test_activations_are_let_go_during_the_walk():
    """Each backward step sees that the later part of the graph has been freed already."""
    x, alive = leaf(1), []

    class Held:
        count = 0

        def __init__(self):
            Held.count += 1

        def __del__(self):
            Held.count -= 1

    def op(x):
        held = Held()

        def backward(grad):
            alive.append(Held.count)
            return (grad * (held is not None),)

        return Tensor.from_op(x.data, (x,), backward, "op")

    gc.disable()
    try:
        op(op(op(op(x)))).backward(np.ones(1))
    finally:
        gc.enable()
    assert alive == [4, 3, 2, 1] and Held.count == 0


def test_no_gradient_is_computed_for_what_needs_none():
    x, constant = leaf(3), Tensor(draw(3, seed=2))
    y = x * constant + constant
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, constant.data)
    assert constant.grad is None and y.grad is None


def test_retain_grad_keeps_interior_gradients():
    x = leaf(3)
    y = (x * 2.0).retain_grad()
    z = y * y
    (z * 3.0).sum().backward()
    np.testing.assert_allclose(y.grad, 6 * y.data)
    np.testing.assert_allclose(x.grad, 2 * y.grad)
    assert z.grad is None
    y.zero_grad()
    assert y.grad is None


def test_retain_grad_of_the_loss_itself():
    loss = leaf(3).sum().retain_grad()
    loss.backward()
    assert loss.grad == 1


def test_backward_of_a_leaf_is_its_own_gradient():
    x = leaf(2)
    x.backward(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(x.grad, [1, 2])


def test_detach_cuts_the_graph_and_shares_the_array():
    x = leaf(3)
    y = x * 2.0
    cut = y.detach()
    assert cut.data is y.data and cut.node is None and not cut.requires_grad
    (cut * x).sum().backward()
    np.testing.assert_array_equal(x.grad, cut.data)


# ---- no_grad


def test_no_grad_builds_nothing():
    x = leaf(3)
    with no_grad():
        assert not grad_enabled()
        for out in (x + x, x.reshape(1, 3) @ x.reshape(3, 1), x.exp().sum(), x[1:], concatenate([x, x])):
            assert out.node is None and not out.requires_grad
    assert grad_enabled() and (x + x).node is not None


def test_no_grad_as_a_decorator_nested_and_after_an_exception():
    @no_grad()
    def double(x):
        return x + x

    x = leaf(3)
    for _ in range(2):  # a decorated function can be called again
        assert double(x).node is None and grad_enabled()
    with no_grad():
        with no_grad():
            pass
        assert not grad_enabled()
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert grad_enabled()


def test_no_grad_holds_for_its_own_thread_only():
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((grad_enabled(), (leaf(2) * 2.0).requires_grad)))
        thread.start()
        thread.join()
        assert not grad_enabled()
    assert seen == [(True, True)]


# ---- how it looks, and small things


def test_looks(device):
    x = Tensor(to_device(np.array([[1, 2]], np.float32), device), requires_grad=True)
    assert (x.shape, x.ndim, x.size, len(x), x.dtype) == ((1, 2), 2, 2, 1, np.float32)
    assert repr(x) == "Tensor([[1. 2.]], requires_grad)"
    assert repr(x + x) == "Tensor([[2. 4.]], requires_grad, from add)"
    assert x.sum().item() == 3.0 and isinstance(x.sum().item(), float)


def test_an_array_on_the_left_leaves_the_operation_to_the_tensor():
    out = np.ones((2, 3)) * Tensor(np.ones(3), requires_grad=True)
    assert isinstance(out, Tensor) and out.shape == (2, 3) and out.node.name == "mul"


# ---- memory, imports


def test_200_training_steps_leave_memory_flat_without_the_garbage_collector():
    """The graph holds no reference cycles: each step's arrays are gone at its end, without the collector."""
    rng = np.random.default_rng(0)
    x, target = Tensor(rng.standard_normal((64, 20))), Tensor(rng.standard_normal((64, 1)))
    weights = [Tensor(rng.standard_normal(s) * 0.1, requires_grad=True) for s in ((20, 50), (50, 1))]

    def step():
        hidden = x @ weights[0]
        error = hidden * (1 / ((-hidden).exp() + 1.0)) @ weights[1] - target
        loss = (error * error).mean()
        loss.backward()
        for w in weights:
            w.data = w.data - 0.05 * w.grad
            w.zero_grad()
        return loss.item()

    first = step()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    in_use, cycles = [], 0
    try:
        for _ in range(3):
            last = [step() for _ in range(100)][-1]
            cycles += gc.collect()
            in_use.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        gc.enable()
    assert cycles == 0
    # a step's arrays are 100 kB; one small array left behind by each step would be 20 kB; some kB come and go
    assert in_use[2] - in_use[0] < 16_000, f"bytes in use after 100, 200 and 300 steps: {in_use}"
    assert last < 0.9 * first


def test_import_minires_is_light():
    heavy = "matplotlib typer pooch safetensors tqdm torch requests PIL cupy nbclient jupytext scipy".split()
    code = f"import minires, sys; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# ---- nodes


def test_an_activation_that_no_backward_needs_is_freed_at_once():
    x = Tensor(np.ones((256, 1024), np.float32), requires_grad=True)  # 1 MiB
    tracemalloc.start()
    y = (x + x).exp()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.9 * 2**20 < kept < 1.1 * 2**20 and peak > 1.9 * 2**20  # exp keeps its output; the sum is gone
    y.sum().backward()
    np.testing.assert_allclose(x.grad, 2 * np.exp(2.0) * np.ones(x.shape), rtol=1e-6)


def test_a_leaf_can_be_frozen_and_thawed():
    x, y = leaf(3), leaf(3, seed=2)
    x.requires_grad = False
    assert not x.requires_grad and x.grad is None
    (x * y).sum().backward()
    assert x.grad is None and y.grad is not None
    x.requires_grad = True
    (x * y).sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)


def test_a_gradient_can_be_replaced_or_forgotten_but_not_given_to_a_constant():
    x = leaf(3)
    x.grad = np.ones(3)
    (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 3.0))
    x.zero_grad()
    assert x.grad is None
    constant = Tensor(np.zeros(3))
    constant.grad = None
    with pytest.raises(RuntimeError, match="grad: this tensor requires no gradient"):
        constant.grad = np.ones(3)
