"""Every operation: its gradient, its slow twin, PyTorch, and what it says to inputs that are wrong.

Most tests run on several devices: the inputs are made on the host, and `there(op)` does the rest on the device.
"""

# mypy: disable-error-code="union-attr, arg-type, call-arg, misc"

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minires import parallel
from minires.backend import device_of, to_device, to_host
from minires.conv import (
    avg_pool2d,
    col2im,
    conv2d,
    conv2d_naive,
    conv2d_simple,
    global_avg_pool,
    im2col,
    max_pool2d,
    pool2d_naive,
)
from minires.functional import (
    cross_entropy,
    dropout,
    linear,
    log_softmax,
    relu,
    subsample_and_pad,
)
from minires.gradcheck import away_from_kinks, gradcheck
from minires.norm import batch_norm, batch_norm_simple, layer_norm, layer_norm_simple
from minires.tensor import Tensor


def draw(*shape, seed=1):
    return away_from_kinks(np.random.default_rng(seed), shape)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


IN_ONE_CHUNK, IN_MANY = "cpu, one chunk", "cpu, a chunk for each image, in three lanes"


@pytest.fixture(params=[IN_ONE_CHUNK, IN_MANY, "strict", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, usable, monkeypatch):
    """The CPU twice: with the whole batch in one piece, and cut up as finely as can be."""
    monkeypatch.setattr(parallel, "MIN_PARALLEL_BYTES", 1)
    if request.param == IN_MANY:
        monkeypatch.setattr(parallel, "CHUNK_BYTES", 1)
    parallel.set_num_threads(3 if request.param == IN_MANY else 1)
    return usable(request.param.split(",")[0])


def beside(x, *arrays):
    """The arrays, on the device that tensor x is on."""
    return tuple(to_device(a, device_of(x.data)) for a in arrays)


def running(c, x):
    return beside(x, np.zeros(c), np.ones(c))


def statistics(c, x):
    """A running mean and variance, as evaluation finds them."""
    return beside(x, draw(c, seed=9).astype(x.dtype), np.abs(draw(c, seed=10)).astype(x.dtype))


def constant(array, x):
    return Tensor(*beside(x, array))


LABELS = np.array([2, 0, 1, 2, 4])

# x, w, stride, padding: odd sizes, H != W, C != F, kernels of all forms, strides that leave pixels over
CONVOLUTIONS = [
    ((2, 5, 7, 3), (3, 3, 3, 4), 1, 1),
    ((5, 4, 3, 2), (3, 3, 2, 3), 1, 0),
    ((3, 6, 5, 2), (3, 2, 2, 3), 1, 0),
    ((2, 6, 5, 1), (5, 3, 1, 2), 1, 2),
    ((4, 7, 6, 3), (3, 3, 3, 2), 2, 1),
    ((4, 5, 5, 3), (1, 1, 3, 4), 1, 0),
    ((2, 5, 6, 3), (1, 1, 3, 2), 2, 0),
    ((2, 3, 4, 2), (1, 1, 2, 3), 1, 1),
    ((3, 8, 7, 2), (2, 2, 2, 3), 3, 0),
    ((2, 4, 5, 2), (3, 3, 2, 2), 1, 2),
    ((2, 4, 5, 2), (3, 3, 2, 2), 1, 3),
    ((4, 3, 3, 2), (3, 3, 2, 5), 1, 0),
    ((3, 9, 4, 2), (3, 3, 2, 2), 3, 2),
    ((1, 7, 5, 2), (4, 4, 2, 3), 2, 1),
    ((2, 4, 5, 2), (1, 2, 2, 3), 1, 0),
]
POOLINGS = [  # x, kernel, stride, padding
    ((3, 6, 4, 2), 2, None, 0),
    ((2, 7, 5, 3), 2, None, 0),
    ((2, 7, 6, 2), 3, 2, 1),
    ((1, 5, 6, 2), 3, 1, 1),
    ((2, 8, 7, 1), 2, 3, 0),
    ((2, 4, 4, 3), 4, 1, 2),
]
OPERATIONS: dict[str, Any] = {  # name: the operation on tensors, and its inputs
    "relu": (relu, [draw(3, 5)]),
    "add and relu": (lambda x, shortcut: relu(x + shortcut), [draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=2)]),
    "log_softmax": (log_softmax, [draw(3, 5)]),
    "log_softmax of rows of rows": (log_softmax, [draw(2, 3, 4)]),
    "cross_entropy": (lambda x: cross_entropy(x, LABELS), [draw(5, 6)]),
    "cross_entropy, smoothed": (lambda x: cross_entropy(x, LABELS, label_smoothing=0.1), [draw(5, 6)]),
    "dropout": (lambda x: dropout(x, 0.4, np.random.default_rng(0)), [draw(5, 6)]),
    "linear": (linear, [draw(4, 3), draw(3, 5, seed=2), draw(5, seed=3)]),
    "linear without bias": (linear, [draw(4, 3), draw(3, 5, seed=2)]),
    "subsample, odd sizes": (lambda x: subsample_and_pad(x, 2, 6), [draw(2, 5, 7, 3)]),
    "subsample, even sizes": (lambda x: subsample_and_pad(x, 2, 4), [draw(2, 4, 6, 2)]),
    "only pad": (lambda x: subsample_and_pad(x, 1, 5), [draw(2, 3, 2, 2)]),
    "global_avg_pool": (global_avg_pool, [draw(2, 3, 5, 4)]),
    "batch_norm": (
        lambda x, g, b: batch_norm(x, g, b, *running(3, x)),
        [draw(4, 3, 2, 3), draw(3, seed=2), draw(3, seed=3)],
    ),
    "batch_norm of (N, C)": (
        lambda x, g, b: batch_norm(x, g, b, *running(4, x)),
        [draw(5, 4), draw(4, seed=2), draw(4, seed=3)],
    ),
    "batch_norm and relu": (
        lambda x, g, b: relu(batch_norm(x, g, b, *running(3, x))),
        [draw(4, 3, 2, 3), draw(3, seed=2), draw(3, seed=3)],
    ),
    "batch_norm, evaluation": (
        lambda x, g, b: batch_norm(x, g, b, *statistics(3, x), training=False),
        [draw(4, 3, 2, 3), draw(3, seed=2), draw(3, seed=3)],
    ),
    "batch_norm and relu, evaluation": (
        lambda x, g, b: relu(batch_norm(x, g, b, *statistics(3, x), training=False)),
        [draw(4, 3, 2, 3), draw(3, seed=2), draw(3, seed=3)],
    ),
    "batch_norm_simple": (batch_norm_simple, [draw(4, 3, 2, 3), draw(3, seed=2), draw(3, seed=3)]),
    "layer_norm": (layer_norm, [draw(2, 3, 2, 5), draw(5, seed=2), draw(5, seed=3)]),
    "layer_norm of (N, C)": (layer_norm, [draw(3, 5), draw(5, seed=2), draw(5, seed=3)]),
    "layer_norm_simple": (layer_norm_simple, [draw(2, 3, 2, 5), draw(5, seed=2), draw(5, seed=3)]),
    "conv2d": (lambda x, w, b: conv2d(x, w, b, 2, 1), [draw(4, 5, 6, 2), draw(3, 3, 2, 4, seed=2), draw(4, seed=3)]),
    "conv2d_simple": (
        lambda x, w, b: conv2d_simple(x, w, b, 2, 1),
        [draw(4, 5, 6, 2), draw(3, 3, 2, 4, seed=2), draw(4, seed=3)],
    ),
    "conv2d, stride 1": (lambda x, w: conv2d(x, w, None, 1, 1), [draw(4, 4, 3, 2), draw(3, 3, 2, 3, seed=2)]),
    "conv2d, 1x1": (lambda x, w: conv2d(x, w), [draw(4, 3, 5, 2), draw(1, 1, 2, 3, seed=2)]),
    "max_pool2d": (lambda x: max_pool2d(x, 3, 2, 1), [draw(2, 5, 6, 2)]),
    "avg_pool2d": (lambda x: avg_pool2d(x, 2), [draw(2, 4, 6, 2)]),
}


# ---- gradients, by finite differences


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients(name, there):
    op, inputs = OPERATIONS[name]
    assert gradcheck(there(op), inputs)


@pytest.mark.parametrize("x, w, stride, padding", CONVOLUTIONS, ids=str)
def test_conv2d_gradients(x, w, stride, padding, there):
    inputs = [draw(*x), draw(*w, seed=2), draw(w[3], seed=3)]
    assert gradcheck(there(lambda x, w, bias: conv2d(x, w, bias, stride, padding)), inputs)
    assert gradcheck(there(lambda x, w, bias: conv2d_simple(x, w, bias, stride, padding)), inputs)


@pytest.mark.parametrize("x, kernel, stride, padding", POOLINGS, ids=str)
def test_pooling_gradients(x, kernel, stride, padding, there):
    assert gradcheck(there(lambda x: max_pool2d(x, kernel, stride, padding)), [draw(*x)])
    assert gradcheck(there(lambda x: avg_pool2d(x, kernel, stride, padding)), [draw(*x)])


# ---- the same numbers, however they lie in memory


@pytest.mark.parametrize("name", OPERATIONS)
def test_inputs_and_upstream_gradients_may_lie_in_memory_in_any_order(name, there):
    op, inputs = OPERATIONS[name]

    def results(arrays, order):
        tensors = [Tensor(a, requires_grad=True) for a in arrays]
        out = there(op)(*tensors)
        upstream = draw(*out.shape, seed=7)
        out.backward(upstream.copy(order=order))
        return [out.data, *(t.grad for t in tensors)]

    backwards = [np.asfortranarray(a) for a in inputs]
    for a, b in zip(results(backwards, "F"), results(inputs, "C"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_read_only_upstream_gradient_will_do(name, there):
    """That is what comes back from sum()."""
    op, inputs = OPERATIONS[name]
    by_sum, by_ones = ([Tensor(a, requires_grad=True) for a in inputs] for _ in range(2))
    there(op)(*by_sum).sum().backward()
    out = there(op)(*by_ones)
    out.backward(np.ones(out.shape))
    for a, b in zip(by_sum, by_ones, strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_float32_stays_float32(name, there):
    op, inputs = OPERATIONS[name]
    tensors = [Tensor(a.astype(np.float32), requires_grad=True) for a in inputs]
    out = there(op)(*tensors)
    out.sum().backward()
    assert [out.dtype, *(t.grad.dtype for t in tensors)] == [np.float32] * (len(inputs) + 1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_without_a_wanted_gradient_no_graph(name, there):
    op, inputs = OPERATIONS[name]
    op = there(op)
    assert op(*map(Tensor, inputs)).node is None
    for wanted in range(len(inputs)):  # one at a time
        tensors = [Tensor(a, requires_grad=i == wanted) for i, a in enumerate(inputs)]
        op(*tensors).sum().backward()
        assert [t.grad is not None for t in tensors] == [i == wanted for i in range(len(inputs))]


# ---- slow twins

SIDE, KERNEL = st.integers(1, 7), st.integers(1, 4)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 3),
    h=SIDE,
    w=SIDE,
    c=st.integers(1, 3),
    f=st.integers(1, 3),
    kh=KERNEL,
    kw=KERNEL,
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
)
def test_conv2d_equals_its_slow_twin(n, h, w, c, f, kh, kw, stride, padding):
    x, weights, bias = draw(n, h, w, c), draw(kh, kw, c, f, seed=2), draw(f, seed=3)
    if h + 2 * padding < kh or w + 2 * padding < kw:
        with pytest.raises(ValueError, match="larger than x"):
            conv2d(Tensor(x), Tensor(weights), Tensor(bias), stride, padding)
        return
    slow = conv2d_naive(x, weights, bias, stride, padding)
    fast = conv2d(Tensor(x), Tensor(weights), Tensor(bias), stride, padding).data
    simple = conv2d_simple(Tensor(x), Tensor(weights), Tensor(bias), stride, padding).data
    np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(simple, slow, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(h=SIDE, w=SIDE, kernel=KERNEL, stride=st.integers(1, 3), padding=st.integers(0, 2))
def test_pooling_equals_its_slow_twin(h, w, kernel, stride, padding):
    if min(h, w) + 2 * padding < kernel or padding > kernel // 2:
        return
    x = draw(2, h, w, 3)
    for kind, pool in (("max", max_pool2d), ("mean", avg_pool2d)):
        fast = pool(Tensor(x), kernel, stride, padding).data
        slow = pool2d_naive(x, kernel, stride, padding, kind)
        np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 5, 3, 2), (6, 3), (2, 1, 1, 4), (1, 4, 5, 1), (3, 2, 4)], ids=str)
@pytest.mark.parametrize("with_relu", [False, True])
def test_batch_norm_equals_its_slow_twin(shape, with_relu, there):
    c = shape[-1]
    arrays, upstream = [draw(*shape), draw(c, seed=2), draw(c, seed=3)], draw(*shape, seed=4)
    fast, slow = ([Tensor(a, requires_grad=True) for a in arrays] for _ in range(2))
    activation = relu if with_relu else lambda x: x
    out_fast = there(lambda x, g, b: activation(batch_norm(x, g, b, *running(c, x))))(*fast)
    out_slow = activation(batch_norm_simple(*slow))
    out_fast.backward(upstream)
    out_slow.backward(upstream)
    np.testing.assert_allclose(out_fast.data, out_slow.data, rtol=1e-10, atol=1e-12)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_layer_norm_equals_its_slow_twin(there):
    arrays, upstream = [draw(3, 2, 4, 5), draw(5, seed=2), draw(5, seed=3)], draw(3, 2, 4, 5, seed=4)
    fast, slow = ([Tensor(a, requires_grad=True) for a in arrays] for _ in range(2))
    out_fast, out_slow = there(layer_norm)(*fast), layer_norm_simple(*slow)
    out_fast.backward(upstream)
    out_slow.backward(upstream)
    np.testing.assert_allclose(out_fast.data, out_slow.data, rtol=1e-10, atol=1e-12)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 3),
    h=SIDE,
    w=SIDE,
    c=st.integers(1, 3),
    kh=KERNEL,
    kw=KERNEL,
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
)
def test_col2im_is_the_adjoint_of_im2col(n, h, w, c, kh, kw, stride, padding):
    """<im2col(x), c> = <x, col2im(c)> for every x and c."""
    if h + 2 * padding < kh or w + 2 * padding < kw:
        return
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, h, w, c))
    cols = im2col(x, kh, kw, stride, padding)
    other = rng.standard_normal(cols.shape)
    back = col2im(other, x.shape, kh, kw, stride, padding)
    assert back.shape == x.shape
    np.testing.assert_allclose((cols * other).sum(), (x * back).sum(), rtol=1e-10, atol=1e-10)


def test_im2col_by_hand(device):
    x, ones = (to_device(a, device) for a in (np.arange(12.0).reshape(1, 3, 4, 1), np.ones((6, 4))))
    np.testing.assert_array_equal(to_host(im2col(x, 2, 2, 2)), [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(to_host(im2col(x, 2, 2, 2, 1))[1], [0, 0, 1, 2])  # half of it lies in the border
    np.testing.assert_array_equal(
        to_host(col2im(ones, x.shape, 2, 2))[0, :, :, 0], [[1, 2, 2, 1], [2, 4, 4, 2], [1, 2, 2, 1]]
    )


def test_the_slow_twins_run_on_the_device_too(device):
    x, w = draw(2, 4, 5, 2), draw(3, 2, 2, 3, seed=2)
    for twin in (
        lambda x, w: conv2d_naive(x, w, None, 2, 1),
        lambda x, w: pool2d_naive(x, 3, 2, 1, "max"),
        lambda x, w: pool2d_naive(x, 2, 2, 0, "mean"),
    ):
        here = to_host(twin(to_device(x, device), to_device(w, device)))
        np.testing.assert_allclose(here, twin(x, w), rtol=1e-12, atol=1e-12)


# ---- PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")


def agree(ours, theirs, upstream_seed=9):
    """Assert that outputs and gradients are within 1e-4 of PyTorch's, relative to the array's largest entry.

    ours: the output and the leaves; theirs: the same and two functions, from their layout to ours and back.
    """
    (out, leaves), (out_torch, leaves_torch, to_ours, from_ours) = ours, theirs
    upstream = normal(*out.shape, seed=upstream_seed)
    out.backward(upstream)
    out_torch.backward(from_ours(upstream))
    pairs = [(out.data, to_ours(out_torch.detach()))]
    pairs += [(ours.grad, theirs.grad) for ours, theirs in zip(leaves, leaves_torch, strict=True)]
    for our, their in pairs:
        their = their.numpy()
        assert our.shape == their.shape and our.dtype == np.float32
        assert np.abs(our - their).max() <= 1e-4 * np.abs(their).max()


def nchw(t):
    return t.permute(0, 3, 1, 2)


def nhwc(t):
    return t.permute(0, 2, 3, 1)


def same(t):
    return t


LARGER = [
    ((4, 17, 15, 8), (3, 3, 8, 16), 1, 1),
    ((3, 16, 18, 8), (3, 3, 8, 12), 2, 1),
    ((2, 23, 21, 3), (7, 7, 3, 16), 2, 3),
]


@pytest.mark.parametrize("x, w, stride, padding", CONVOLUTIONS + LARGER, ids=str)
def test_conv2d_agrees_with_pytorch(x, w, stride, padding, torch, there):
    arrays = [normal(*x), normal(*w, seed=2), normal(w[3], seed=3)]
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in arrays)
    out = torch.nn.functional.conv2d(nchw(tx), tw.permute(3, 2, 0, 1), tb, stride, padding)
    agree((there(conv2d)(*leaves, stride, padding), leaves), (out, [tx, tw, tb], nhwc, lambda g: nchw(torch.tensor(g))))


@pytest.mark.parametrize("x, kernel, stride, padding", POOLINGS, ids=str)
def test_pooling_agrees_with_pytorch(x, kernel, stride, padding, torch, there):
    f = torch.nn.functional
    for ours, theirs in ((max_pool2d, f.max_pool2d), (avg_pool2d, f.avg_pool2d)):
        leaf, tx = Tensor(normal(*x), requires_grad=True), torch.tensor(normal(*x), requires_grad=True)
        agree(
            (there(ours)(leaf, kernel, stride, padding), [leaf]),
            (theirs(nchw(tx), kernel, stride, padding), [tx], nhwc, lambda g: nchw(torch.tensor(g))),
        )


def test_max_pool_sends_the_gradient_of_a_tie_where_pytorch_does(torch, there):
    x = np.ones((1, 3, 4, 1), np.float32)
    leaf, tx = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    agree(
        (there(max_pool2d)(leaf, 2, 1), [leaf]),
        (torch.nn.functional.max_pool2d(nchw(tx), 2, 1), [tx], nhwc, lambda g: nchw(torch.tensor(g))),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 5, 7, 3), (9, 4)], ids=str)
def test_batch_norm_agrees_with_pytorch(shape, training, torch, there, device):
    c = shape[-1]
    arrays = [normal(*shape) * 3 + 5, normal(c, seed=2), normal(c, seed=3)]
    mean, var = normal(c, seed=4), np.abs(normal(c, seed=5)) + 0.1
    mean_torch, var_torch = torch.tensor(mean), torch.tensor(var)
    mean, var = to_device(mean, device), to_device(var, device)
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    tx, tg, tb = (torch.tensor(a, requires_grad=True) for a in arrays)
    into, back = (nchw, nhwc) if len(shape) == 4 else (same, same)
    out = torch.nn.functional.batch_norm(into(tx), mean_torch, var_torch, tg, tb, training, momentum=0.3)
    agree(
        (there(batch_norm)(*leaves, mean, var, training, momentum=0.3), leaves),
        (out, [tx, tg, tb], back, lambda g: into(torch.tensor(g))),
    )
    np.testing.assert_allclose(to_host(mean), mean_torch.numpy(), rtol=1e-4)
    np.testing.assert_allclose(to_host(var), var_torch.numpy(), rtol=1e-4)


def test_layer_norm_agrees_with_pytorch(torch, there):
    arrays = [normal(4, 3, 5, 6), normal(6, seed=2), normal(6, seed=3)]
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = torch.nn.functional.layer_norm(ts[0], (6,), ts[1], ts[2])
    agree((there(layer_norm)(*leaves), leaves), (out, ts, same, torch.tensor))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_agrees_with_pytorch(smoothing, torch, there):
    x, labels = normal(7, 10) * 5, np.arange(7)
    leaf, tx = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out = torch.nn.functional.cross_entropy(tx, torch.tensor(labels), label_smoothing=smoothing)
    agree((there(cross_entropy)(leaf, labels, smoothing), [leaf]), (out, [tx], same, torch.tensor))


def test_linear_and_log_softmax_agree_with_pytorch(torch, there):
    arrays = [normal(5, 6), normal(6, 4, seed=2), normal(4, seed=3)]
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = torch.log_softmax(torch.nn.functional.linear(ts[0], ts[1].T, ts[2]), -1)
    agree((there(lambda *a: log_softmax(linear(*a)))(*leaves), leaves), (out, ts, same, torch.tensor))


def test_the_shortcut_of_option_a_agrees_with_pytorch(torch, there):
    x = normal(2, 7, 6, 4)
    leaf, tx = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out = torch.nn.functional.pad(nchw(tx)[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    agree((there(subsample_and_pad)(leaf, 2, 8), [leaf]), (out, [tx], nhwc, lambda g: nchw(torch.tensor(g))))


# ---- what must hold besides


def test_relu_at_zero_has_gradient_zero(there):
    for op in (relu, lambda x: relu(x + constant(np.zeros(3), x))):
        x = Tensor(np.array([-1.0, 0.0, 1.0]), requires_grad=True)
        there(op)(x).backward(np.array([5.0, 5.0, 5.0]))
        np.testing.assert_array_equal(x.grad, [0, 0, 5])


def test_large_logits_do_not_overflow(there):
    with np.errstate(all="raise", under="ignore"):
        loss = there(cross_entropy)(Tensor([[1e4, 0, -1e4], [0, 0, 0]]), np.array([0, 1]))
    assert loss.item() == pytest.approx(np.log(3) / 2)


def test_cross_entropy_of_equal_logits_is_ln_of_the_classes(there):
    for smoothing in (0.0, 0.3):
        loss = there(cross_entropy)(Tensor(np.full((4, 10), 7.0)), np.array([0, 1, 2, 9]), smoothing)
        assert loss.item() == pytest.approx(np.log(10))


def test_batch_norm_keeps_its_digits_far_from_zero(there, device):
    """E[x^2] - E[x]^2 in float32 would lose every digit of a variance of 1 around a mean of 10,000."""
    x = (normal(64, 5, 6, 3) + 10_000).astype(np.float32)
    ones, zeros, mean, var = (np.full(3, v, np.float32) for v in (1, 0, 0, 0))
    mean, var = to_device(mean, device), to_device(var, device)
    out = there(batch_norm)(Tensor(x), Tensor(ones), Tensor(zeros), mean, var, momentum=1.0)
    exact, mean, var = x.astype(np.float64), to_host(mean), to_host(var)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2), ddof=1), rtol=1e-3)
    np.testing.assert_allclose(out.data.std((0, 1, 2)), 1, rtol=1e-2)


def test_batch_norm_in_evaluation_keeps_its_dtype():
    x, gamma, beta = (Tensor(np.ones(shape, np.float32), requires_grad=True) for shape in ((4, 3), 3, 3))
    batch_norm(x, gamma, beta, np.zeros(3), np.ones(3), training=False).sum().backward()
    assert {p.grad.dtype for p in (x, gamma, beta)} == {np.dtype(np.float32)}


def test_batch_norm_in_evaluation_leaves_the_running_statistics_alone(there, device):
    x = draw(4, 2, 2, 3)
    mean, var = statistics(3, Tensor(x))
    moved = to_device(mean.copy(), device), to_device(var.copy(), device)
    out = there(batch_norm)(Tensor(x), Tensor(np.ones(3)), Tensor(np.zeros(3)), *moved, training=False)
    np.testing.assert_array_equal(mean, to_host(moved[0]))
    np.testing.assert_array_equal(var, to_host(moved[1]))
    np.testing.assert_allclose(out.data, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-12)


def test_global_average_pooling_is_the_mean_of_each_channel(there):
    x = draw(2, 3, 5, 4)
    np.testing.assert_allclose(there(global_avg_pool)(Tensor(x)).data, x.mean((1, 2)), rtol=1e-12)


def test_dropout_scales_what_it_keeps_and_repeats_for_a_seed(there):
    """On every device what it would be on the CPU."""
    x = Tensor(np.ones((100, 100)), requires_grad=True)
    out = there(dropout)(x, 0.25, np.random.default_rng(0))
    assert set(np.unique(out.data)) == {0.0, 1 / 0.75}
    assert abs((out.data == 0).mean() - 0.25) < 0.02
    out.sum().backward()
    np.testing.assert_array_equal(x.grad, out.data)  # the mask that went forward goes back
    np.testing.assert_array_equal(dropout(x, 0.25, np.random.default_rng(0)).data, out.data)
    assert not np.array_equal(dropout(x, 0.25, np.random.default_rng(1)).data, out.data)
    np.testing.assert_array_equal(dropout(x, 0.0, np.random.default_rng(0)).data, x.data)


def test_dropout_of_probability_0_drops_nothing_even_at_a_draw_of_0():
    class Draws:
        def random(self, shape):
            return np.array([0.0, 0.5])

    np.testing.assert_array_equal(dropout(Tensor(np.ones(2)), 0.0, Draws()).data, [1, 1])
    np.testing.assert_array_equal(dropout(Tensor(np.ones(2)), 0.5, Draws()).data, [0, 2])


def test_a_convolution_of_300_channels(there):
    """Python makes a new object of each number above 256, so that `is` would not do for `==`."""
    x, w = draw(1, 2, 2, 300), draw(1, 1, 300, 2, seed=2)
    np.testing.assert_allclose(there(conv2d)(Tensor(x), Tensor(w)).data, x @ w[0, 0], rtol=1e-10)


def test_option_a_puts_half_of_its_zeros_on_each_side(there):
    out = there(subsample_and_pad)(Tensor(np.ones((1, 3, 5, 2))), 2, 5).data
    assert out.shape == (1, 2, 3, 5)
    np.testing.assert_array_equal(out[0, 0, 0], [0, 1, 1, 0, 0])
    out = there(subsample_and_pad)(Tensor(np.ones((1, 3, 5, 2))), 2, 6).data
    np.testing.assert_array_equal(out[0, 0, 0], [0, 0, 1, 1, 0, 0])


def test_no_operation_writes_into_its_inputs(device):
    """Neither going forward nor back, also where a batch goes in many chunks."""
    shapes = [(x, w, s, p) for x, w, s, p in CONVOLUTIONS]
    for x, w, stride, padding in shapes:
        before = [draw(*x), draw(*w, seed=2)]
        arrays = [to_device(a.copy(), device) for a in before]
        out = conv2d(*[Tensor(a, requires_grad=True) for a in arrays], stride=stride, padding=padding)
        upstream = to_device(draw(*out.shape), device)
        out.backward(upstream)
        for a, b in zip([*arrays, upstream], [*before, draw(*out.shape)], strict=True):
            np.testing.assert_array_equal(to_host(a), b)


def test_a_convolution_never_holds_the_patches_of_a_whole_batch():
    """They would take nine times the memory of the images: 75 MB here. It works through the batch in chunks."""
    images, w = (Tensor(normal(*shape), requires_grad=True) for shape in ((128, 32, 32, 16), (3, 3, 16, 16)))
    x = images + 0  # as in a net: what an operation made is not copied
    upstream, peaks = normal(*x.shape), []
    parallel.set_num_threads(1)  # each thread has a chunk of its own
    tracemalloc.start()
    try:
        out = conv2d(x, w, padding=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        out.backward(upstream)
        peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    # the images take 8 MiB, and so does the output; going back there are their gradient and the copy in x.grad too
    assert peaks[0] < 16 * 2**20 and peaks[1] < 32 * 2**20


@pytest.mark.parametrize(
    "op",
    [
        relu,
        lambda x: relu(x + x),
        lambda x: max_pool2d(x, 2),
        lambda x: avg_pool2d(x, 2),
        global_avg_pool,
        lambda x: subsample_and_pad(x, 2, 4),
        lambda x: layer_norm(x, constant(np.ones(2), x), constant(np.ones(2), x)),
        lambda x: batch_norm(x, constant(np.ones(2), x), constant(np.ones(2), x), *running(2, x), training=False),
        lambda x: conv2d(x, constant(np.ones((3, 3, 2, 4)), x), None, 2, 1),
        lambda x: conv2d(x, constant(np.ones((3, 3, 2, 4)), x), None, 1, 1),
    ],
)
def test_a_batch_of_one_and_an_empty_batch(op, there):
    op = there(op)
    both, one, empty = draw(2, 4, 6, 2), draw(2, 4, 6, 2)[:1], np.zeros((0, 4, 6, 2))
    np.testing.assert_allclose(op(Tensor(one)).data, op(Tensor(both)).data[:1], rtol=1e-12, atol=1e-12)
    x = Tensor(empty, requires_grad=True)
    out = op(x)
    assert out.shape == (0, *op(Tensor(both)).shape[1:])
    out.sum().backward()
    assert x.grad.shape == empty.shape


def test_an_empty_batch_gives_weights_a_gradient_of_zero(there):
    w, b = Tensor(draw(3, 3, 2, 4), requires_grad=True), Tensor(draw(4), requires_grad=True)
    there(conv2d)(Tensor(np.zeros((0, 5, 5, 2))), w, b, 1, 1).sum().backward()
    assert w.grad.shape == w.shape and not w.grad.any() and not b.grad.any()


# ---- errors

X, W = Tensor(draw(2, 5, 6, 3)), Tensor(draw(3, 3, 3, 4))
ONES3, ZEROS3 = Tensor(np.ones(3)), Tensor(np.zeros(3))
LOGITS = Tensor(draw(3, 4))


def as32(t):
    return Tensor(t.data.astype(np.float32))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (
            lambda: conv2d(Tensor(draw(2, 5, 6, 2)), W),
            ValueError,
            r"conv2d: x has 2 channels, w expects 3 \(w is \(3, 3, 3, 4\)\)",
        ),
        (
            lambda: conv2d(Tensor(draw(5, 6, 3)), W),
            ValueError,
            r"conv2d: x has shape \(5, 6, 3\), expected \(N, H, W, C\)",
        ),
        (lambda: conv2d(X, Tensor(draw(3, 4))), ValueError, r"conv2d: w has shape \(3, 4\), expected \(KH, KW, C, F\)"),
        (lambda: conv2d(X, W, Tensor(draw(3))), ValueError, r"conv2d: bias has shape \(3,\), expected \(4,\)"),
        (lambda: conv2d(X, W, stride=0), ValueError, "conv2d: .*stride 0"),
        (lambda: conv2d(X, W, padding=-1), ValueError, "conv2d: .*padding -1"),
        (lambda: conv2d(Tensor(draw(1, 2, 9, 3)), W), ValueError, r"conv2d: the kernel \(3, 3\) is larger than x"),
        (lambda: conv2d(as32(X), W), TypeError, "conv2d: w is float64, x is float32; convert one of them"),
        (lambda: conv2d(X, W, as32(Tensor(draw(4)))), TypeError, "conv2d: bias is float32, x is float64"),
        (lambda: max_pool2d(Tensor(draw(5, 6)), 2), ValueError, r"max_pool2d: x has shape \(5, 6\)"),
        (lambda: max_pool2d(X, 0), ValueError, "max_pool2d: kernel"),
        (lambda: max_pool2d(X, 7), ValueError, r"max_pool2d: the kernel \(7, 7\) is larger"),
        (lambda: max_pool2d(X, 2, 1, 2), ValueError, "max_pool2d: padding may be at most half the kernel, 1, got 2"),
        (
            lambda: max_pool2d(Tensor(draw(1, 1, 9, 3)), 4, 1, 1),
            ValueError,
            r"max_pool2d: the kernel \(4, 4\) is larger",
        ),
        (lambda: avg_pool2d(X, 2, 0), ValueError, "avg_pool2d: .*stride 0"),
        (lambda: global_avg_pool(Tensor(draw(2, 3))), ValueError, r"global_avg_pool: x has shape \(2, 3\)"),
        (
            lambda: batch_norm(X, Tensor(np.ones(4)), ZEROS3, *running(3, X)),
            ValueError,
            r"batch_norm: expected gamma \(3,\).*got \(4,\)",
        ),
        (
            lambda: batch_norm(X, ONES3, Tensor(np.zeros(1)), *running(3, X)),
            ValueError,
            r"batch_norm: expected beta \(3,\).*got \(1,\)",
        ),
        (
            lambda: batch_norm(X, ONES3, ZEROS3, *running(4, X)),
            ValueError,
            r"batch_norm: expected running_mean \(3,\).*got \(4,\)",
        ),
        (
            lambda: batch_norm(X, as32(ONES3), ZEROS3, *running(3, X)),
            TypeError,
            "batch_norm: gamma is float32, x is float64",
        ),
        (
            lambda: batch_norm(Tensor(draw(1, 3)), ONES3, ZEROS3, *running(3, X)),
            ValueError,
            r"batch_norm: training needs at least 2 numbers for each channel.*net\.eval\(\)",
        ),
        (
            lambda: batch_norm(Tensor(np.zeros((0, 3))), ONES3, ZEROS3, *running(3, X)),
            ValueError,
            "batch_norm: training needs",
        ),
        (lambda: layer_norm(X, ONES3, as32(ZEROS3)), TypeError, "layer_norm: beta is float32"),
        (
            lambda: layer_norm(X, Tensor(np.ones(6)), ZEROS3),
            ValueError,
            r"layer_norm: expected gamma \(3,\).*got \(6,\)",
        ),
        (
            lambda: linear(Tensor(draw(2, 3)), Tensor(draw(4, 5))),
            ValueError,
            r"linear: .*got x \(2, 3\) and w \(4, 5\)",
        ),
        (lambda: linear(Tensor(draw(2, 4, 4)), Tensor(draw(4, 5))), ValueError, "linear: expected x"),
        (lambda: log_softmax(Tensor(1.0)), ValueError, r"log_softmax: expected x.*got \(\)"),
        (lambda: log_softmax(Tensor(np.zeros((2, 0)))), ValueError, r"log_softmax: expected x.*got \(2, 0\)"),
        (lambda: dropout(X, 1.0, np.random.default_rng(0)), ValueError, "dropout: expected 0 <= p < 1, got 1.0"),
        (lambda: subsample_and_pad(Tensor(draw(2, 3, 4)), 2, 8), ValueError, "subsample_and_pad: expected x"),
        (lambda: subsample_and_pad(X, 0, 8), ValueError, "subsample_and_pad: expected .* and 0"),
        (lambda: subsample_and_pad(X, 2, 2), ValueError, "subsample_and_pad: expected channels >= 3"),
        (lambda: cross_entropy(LOGITS, np.array([0, 1, 4])), ValueError, r"labels: expected 0\.\.3, got 0\.\.4"),
        (lambda: cross_entropy(LOGITS, np.array([0, 1, -1])), ValueError, r"labels: expected 0\.\.3, got -1\.\.1"),
        (lambda: cross_entropy(LOGITS, np.array([0, 1])), ValueError, "cross_entropy: expected 3 labels.*got 2"),
        (
            lambda: cross_entropy(LOGITS, np.array([0, 1, 2, 3])),
            ValueError,
            "cross_entropy: expected 3 labels.*got 4",
        ),
        (lambda: cross_entropy(LOGITS, np.array([0.0, 1, 2])), ValueError, "labels: expected integers .*float64"),
        (lambda: cross_entropy(LOGITS, np.eye(3, dtype=int)), ValueError, r"labels: expected integers of shape \(N,\)"),
        (
            lambda: cross_entropy(LOGITS, np.array([0, 1, 2]), 1.5),
            ValueError,
            "cross_entropy: expected 0 <= label_smoothing < 1, got 1.5",
        ),
        (
            lambda: cross_entropy(Tensor(np.zeros((0, 4))), np.zeros(0, int)),
            ValueError,
            r"cross_entropy: expected logits.*got \(0, 4\)",
        ),
        (
            lambda: cross_entropy(Tensor(draw(4)), np.array([1])),
            ValueError,
            r"cross_entropy: expected logits.*got \(4,\)",
        ),
    ],
)
def test_errors_name_the_argument_what_was_wanted_and_what_came(call, error, words):
    with pytest.raises(error, match=words):
        call()
