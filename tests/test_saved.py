"""What an operation saved and what changes before the backward pass: the old values' gradient or an error, never
another number. And tensors where arrays are wanted, arrays where tensors are wanted: one clear answer."""

import numpy as np
import pytest

import minires as mr
from minires.conv import avg_pool2d, conv2d, conv2d_simple, global_avg_pool, max_pool2d
from minires.functional import dropout, linear, log_softmax, subsample_and_pad
from minires.norm import batch_norm, layer_norm
from minires.tensor import Tensor, concatenate, no_grad, pad

RNG = np.random.default_rng


def leaf(*shape, seed=0):
    return Tensor(RNG([seed, 5]).standard_normal(shape) + 0.1, requires_grad=True)


# ---- what was saved changes -----------------------------------------------------------------------------------------


def test_a_step_between_two_backward_passes():
    w = Tensor(np.array(2.0), requires_grad=True)
    opt = mr.SGD([w], lr=0.1)
    y, z = (w * w).sum(), (w * w * w).sum()
    y.backward()
    opt.step()
    opt.zero_grad()
    assert w.item() == pytest.approx(1.6)
    z.backward()
    assert w.grad == pytest.approx(12)  # 3 w^2 at the old w = 2


def running(c):
    return np.zeros(c), np.ones(c)


LEAVES = {  # an operation on leaves x and w, both of which its backward pass may need
    "mul": (lambda x, w: x * w, (3, 4), (3, 4)),
    "div": (lambda x, w: x / w, (3, 4), (4,)),
    "pow": (lambda x, w: x**3 + w, (3, 4), (4,)),
    "log": (lambda x, w: (x * x).log() + w, (3, 4), (4,)),
    "exp": (lambda x, w: x.exp() + w, (3, 4), (4,)),
    "max": (lambda x, w: x.max(0) + w, (3, 4), (4,)),
    "matmul": (lambda x, w: x @ w, (3, 4), (4, 2)),
    "a view of a leaf": (lambda x, w: x.T.reshape(3, 4) * w.reshape(12).reshape(3, 4), (3, 4), (3, 4)),
    "linear": (lambda x, w: linear(x, w), (3, 4), (4, 2)),
    "conv2d": (lambda x, w: conv2d(x, w, padding=1), (2, 5, 5, 3), (3, 3, 3, 2)),
    "conv2d, stride 2": (lambda x, w: conv2d(x, w, stride=2), (2, 5, 5, 3), (3, 3, 3, 2)),
    "conv2d, 1x1": (lambda x, w: conv2d(x, w), (2, 5, 5, 3), (1, 1, 3, 2)),
    "conv2d_simple": (lambda x, w: conv2d_simple(x, w, padding=1), (2, 5, 5, 3), (3, 3, 3, 2)),
    "conv2d_simple, 1x1": (lambda x, w: conv2d_simple(x, w), (2, 5, 5, 3), (1, 1, 3, 2)),
    "batch_norm": (lambda x, w: batch_norm(x, w, w, *running(4)), (6, 4), (4,)),
    "layer_norm": (lambda x, w: layer_norm(x, w, w), (6, 4), (4,)),
    "max_pool2d": (lambda x, w: max_pool2d(x, 2) * w, (2, 4, 4, 3), (3,)),
    "relu": (lambda x, w: mr.relu(x) * w, (3, 4), (4,)),
    "log_softmax": (lambda x, w: log_softmax(x) * w, (3, 4), (4,)),
}


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("change", ["in place", "a new array"])
def test_leaves_that_change_before_the_backward_pass(name, change):
    op, *shapes = LEAVES[name]
    wanted = []
    for changes in (False, True):
        x, w = (leaf(*shape, seed=i) for i, shape in enumerate(shapes))
        y = op(x, w)
        if changes and change == "in place":
            x.data *= 5
            w.data[...] = -7
        elif changes:
            x.data, w.data = x.data * 5, w.data - 7
        y.backward(RNG(9).standard_normal(y.shape))
        wanted.append((x.grad, w.grad))
    for before, after in zip(*wanted, strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_batch_array_that_is_filled_again():
    batch, w = RNG(1).standard_normal((4, 6, 6, 3)), leaf(3, 3, 3, 2)
    y = conv2d(Tensor(batch), w)
    first = batch.copy()
    batch[...] = 0
    y.backward(np.ones(y.shape))
    again = leaf(3, 3, 3, 2)
    conv2d(Tensor(first), again).backward(np.ones(y.shape))
    assert np.abs(w.grad).min() > 0
    np.testing.assert_array_equal(w.grad, again.grad)


@pytest.mark.parametrize("as_index", [lambda i: i, lambda i: (i,), lambda i: (i, slice(1))])
def test_an_index_array_that_changes(as_index):
    x, index = leaf(4, 2), np.array([0, 2, 2])
    y = x[as_index(index)]
    index[:] = 3
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(x.grad[:, 0], [1, 0, 2, 0])


def test_labels_that_change():
    logits, labels = leaf(2, 3), np.array([0, 2])
    loss = mr.cross_entropy(logits, labels)
    labels[:] = 1
    loss.backward()
    softmax = np.exp(logits.data) / np.exp(logits.data).sum(1, keepdims=True)
    np.testing.assert_allclose(logits.grad, (softmax - [[1, 0, 0], [0, 0, 1]]) / 2, rtol=1e-12)


@pytest.mark.parametrize("op", [lambda x: x.exp(), mr.relu, lambda x: x * 2, lambda x: x.reshape(-1)])
def test_what_an_operation_made_is_read_only(op):
    y = op(leaf(3, 4))
    with pytest.raises(ValueError, match="read-only"):
        y.data *= 5
    with no_grad():
        y = op(leaf(3, 4))
    y.data *= 5  # nobody saved it


# ---- tensors and arrays ---------------------------------------------------------------------------------------------

X, W, V = np.ones((2, 6, 6, 3), np.float32), np.ones((3, 3, 3, 4), np.float32), np.ones(3, np.float32)
T = Tensor
WITH_ARRAYS = {
    "relu": lambda: mr.relu(X),
    "log_softmax": lambda: log_softmax(X),
    "cross_entropy": lambda: mr.cross_entropy(X[:, 0, 0], [0, 1]),
    "dropout": lambda: dropout(X, 0.5, RNG(0)),
    "linear, x": lambda: linear(X[:, 0, 0], T(W[0, 0])),
    "linear, w": lambda: linear(T(X[:, 0, 0]), W[0, 0]),
    "linear, bias": lambda: linear(T(X[:, 0, 0]), T(W[0, 0]), np.ones(4)),
    "subsample_and_pad": lambda: subsample_and_pad(X, 2, 4),
    "conv2d, x": lambda: conv2d(X, T(W)),
    "conv2d, w": lambda: conv2d(T(X), W),
    "conv2d, bias": lambda: conv2d(T(X), T(W), np.ones(4)),
    "max_pool2d": lambda: max_pool2d(X, 2),
    "avg_pool2d": lambda: avg_pool2d(X, 2),
    "global_avg_pool": lambda: global_avg_pool(X),
    "batch_norm, x": lambda: batch_norm(X, T(V), T(V), V, V),
    "batch_norm, gamma": lambda: batch_norm(T(X), V, T(V), V, V),
    "layer_norm, beta": lambda: layer_norm(T(X), T(V), V),
    "concatenate": lambda: concatenate([T(V), V]),
    "pad": lambda: pad(V, [(1, 1)]),
    "SGD": lambda: mr.SGD([V], lr=0.1),
}


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_an_array_where_a_tensor_is_wanted(name):
    with pytest.raises(TypeError, match=rf"^{name.partition(',')[0]}: expected \w+ to be a Tensor, got ndarray; write"):
        WITH_ARRAYS[name]()


def test_a_net_of_an_array():
    with pytest.raises(TypeError, match=r"conv2d: expected x to be a Tensor, got ndarray; write mr.Tensor\(x\)"):
        mr.build("resnet8", width=4)(np.ones((1, 32, 32, 3), np.float32))


@pytest.mark.parametrize("convert", [np.asarray, np.array, lambda t: np.stack([t, t])])
def test_a_tensor_where_an_array_is_wanted(convert):
    with pytest.raises(TypeError, match=r"a Tensor is not an array: use its \.data"):
        convert(leaf(2, 3))


def test_comparing_tensors():
    a, b = leaf(2), leaf(2)
    for compare in (lambda: a == b, lambda: a != b, lambda: b in [a]):
        with pytest.raises(TypeError, match="compare their arrays"):
            compare()
    assert a in [a] and {a: 1}[a] == 1 and len({a, b}) == 2


def test_a_tensor_of_one_number():
    loss = (leaf(3) * 0 + 2.5).sum()
    assert float(loss) == 7.5 and f"{loss:.2f}" == "7.50" and f"{loss:6.1f}" == "   7.5" and bool(loss)
    assert not Tensor(0.0) and f"{Tensor(2.0)}" == "Tensor(2.0)"
    for wrong in (float, bool, lambda t: f"{t:.2f}"):
        with pytest.raises(ValueError):
            wrong(leaf(3))


def test_axes_and_shapes_as_a_tuple():
    x = leaf(2, 3, 4)
    for y in (x.transpose((2, 0, 1)), x.transpose([2, 0, 1])):
        np.testing.assert_array_equal(y.data, x.data.transpose(2, 0, 1))
    np.testing.assert_array_equal(x.reshape((6, -1)).data, x.data.reshape(6, 4))
    for wrong in ((0, 1), (0, 1, 1), ("a", 1, 2)):
        with pytest.raises(ValueError, match=r"transpose: expected each axis of shape \(2, 3, 4\) once"):
            x.transpose(wrong)


@pytest.mark.parametrize(
    "call",
    [
        lambda: conv2d(T(X), T(W), stride=(1, 2)),
        lambda: conv2d(T(X), T(W), padding=(1, 1)),
        lambda: conv2d(T(X), T(W), padding="same"),
        lambda: max_pool2d(T(X), (2, 2)),
        lambda: avg_pool2d(T(X), 2, 1.5),
    ],
)
def test_windows_are_integers(call):
    with pytest.raises(TypeError, match=r"(conv2d|_pool2d): expected integers, one for both axes, got kernel"):
        call()


class OtherLibrary:
    dtype = "float32"


def test_an_array_of_another_library():
    with pytest.raises(TypeError, match=r"Tensor: expected an array, got a .*OtherLibrary; convert it first"):
        Tensor(OtherLibrary())
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(TypeError, match="Tensor: expected an array, got a torch Tensor; convert it first"):
        Tensor(torch.ones(2))


def test_array_at_tensor():
    x = leaf(3, 2)
    y = RNG(3).standard_normal((4, 3)) @ x
    np.testing.assert_allclose(y.data, RNG(3).standard_normal((4, 3)) @ x.data, rtol=1e-14)
    y.backward(np.ones(y.shape))
    np.testing.assert_allclose(x.grad, RNG(3).standard_normal((4, 3)).T @ np.ones((4, 2)), rtol=1e-14)
