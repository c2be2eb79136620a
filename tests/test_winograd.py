"""Winograd's convolution: the same numbers as im2col's, used where the rule says, and how much work it does."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minires as mr
from minires import conv, parallel, winograd
from minires.conv import conv2d, conv2d_simple, conv_method
from minires.parallel import over_batch, scratch, split
from minires.tensor import Tensor

SHAPES = [  # x (N, H, W, C), F, padding
    ((2, 8, 8, 3), 5, 1),
    ((3, 7, 9, 4), 2, 1),  # sizes that 4 does not divide
    ((2, 14, 14, 2), 3, 1),
    ((1, 3, 3, 2), 2, 0),  # one output
    ((2, 5, 4, 1), 1, 2),
    ((2, 4, 6, 3), 2, 3),  # more padding than the kernel can see
    ((70, 6, 5, 2), 3, 1),  # several chunks
    ((0, 8, 8, 2), 3, 1),
]


@pytest.fixture
def everywhere(monkeypatch):
    monkeypatch.setattr(conv, "WINOGRAD_CHANNELS", 1)


@pytest.fixture
def calls(monkeypatch):
    """The weights' shapes of the convolutions that are done by Winograd's algorithm."""
    shapes, convolve = [], winograd.convolve

    def counted(x, w, *rest):
        shapes.append(w.shape)
        convolve(x, w, *rest)

    monkeypatch.setattr(winograd, "convolve", counted)
    return shapes


def draw(shape, f, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(dtype) for s in (shape, (3, 3, shape[-1], f), (f,))]


def results(op, arrays, padding, grad=None):
    """y, and its gradients for x, w and bias with a random upstream gradient."""
    tensors = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    y = op(*tensors, padding=padding)
    y.backward(np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype) if grad is None else grad)
    return [y.data, *(t.grad for t in tensors)]


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(a - b).max(initial=0) <= tolerance * max(1, np.abs(b).max(initial=0))


# ---- values


@pytest.mark.parametrize(("shape", "f", "padding"), SHAPES)
def test_it_is_the_simple_convolution(shape, f, padding, everywhere, calls):
    arrays = draw(shape, f)
    found = results(conv2d, arrays, padding)
    assert calls or shape[0] == 0
    assert_close(found, results(conv2d_simple, arrays, padding), 1e-10)
    with conv_method("im2col"):
        assert_close(found, results(conv2d, arrays, padding), 1e-10)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.integers(1, 9), st.integers(1, 13), st.integers(1, 13), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2)
)
def test_any_shape(n, h, w, c, f, padding):
    h, w = max(h, 3 - 2 * padding), max(w, 3 - 2 * padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "WINOGRAD_CHANNELS", 1)
        arrays = draw((n, h, w, c), f)
        assert_close(results(conv2d, arrays, padding), results(conv2d_simple, arrays, padding), 1e-10)


def test_its_gradients_are_those_of_finite_differences(everywhere):
    x, w, b = (Tensor(a, requires_grad=True) for a in draw((2, 5, 6, 2), 3))
    mr.gradcheck(lambda x, w, b: conv2d(x, w, b, padding=1), [x, w, b])


def test_without_bias_and_without_a_gradient_for_x(everywhere):
    x, w, _ = draw((2, 6, 6, 2), 3)
    wt = Tensor(w, requires_grad=True)
    y = conv2d(Tensor(x), wt, padding=1)
    y.backward(np.ones(y.shape))
    expected = results(conv2d_simple, [x, w, np.zeros(3)], 1, np.ones(y.shape))
    assert_close([y.data, wt.grad], [expected[0], expected[2]], 1e-10)


def test_the_transforms_are_exact_in_rational_numbers():
    """A^T (G w * B^T d) is the correlation of d and w, for whole numbers."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        d, w = rng.integers(-9, 10, 6), rng.integers(-9, 10, 3)
        y = winograd.A_T @ (np.rint(24 * winograd.G).astype(int) @ w * (winograd.B_T @ d))
        assert (y == 24 * np.correlate(d, w, "valid")).all()


@pytest.mark.parametrize("channels", [32, 128, 512])
def test_the_error_of_float32(channels):
    """Ten times im2col's, and no more with many channels."""
    arrays = draw((2, 8, 8, channels), 32, np.float32)
    grad = np.random.default_rng(1).standard_normal((2, 8, 8, 32)).astype(np.float32)
    exact = results(conv2d_simple, [a.astype(np.float64) for a in arrays], 1, grad.astype(np.float64))
    found = results(conv2d, arrays, 1, grad)
    for a, b in zip(found[:3], exact[:3], strict=True):
        assert np.abs(a - b).max() <= 3e-5 * np.abs(b).max()


def test_pytorch_agrees_on_a_wide_layer(calls):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; pip install torch==2.13.0")
    x, w, b = draw((2, 14, 14, 64), 96, np.float32)
    y, dx, dw, db = results(conv2d, [x, w, b], 1)
    grad = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    theirs = [torch.tensor(a, requires_grad=True) for a in (x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), b)]
    out = torch.nn.functional.conv2d(*theirs, padding=1)
    out.backward(torch.tensor(grad.transpose(0, 3, 1, 2)))
    tx, tw, tb = (t.grad.numpy() for t in theirs)
    expected = [out.detach().numpy().transpose(0, 2, 3, 1), tx.transpose(0, 2, 3, 1), tw.transpose(2, 3, 1, 0), tb]
    assert calls == [(3, 3, 64, 96)]
    assert_close([y, dx, dw, db], expected, 3e-5)


def test_the_stand_in_for_a_gpu_computes_the_same(everywhere):
    x, w, b = draw((3, 7, 6, 2), 3)
    there = [mr.backend.to_device(a, "strict") for a in (x, w, b)]
    grad = np.ones((3, 7, 6, 3))
    tensors = [Tensor(a, requires_grad=True) for a in there]
    y = conv2d(*tensors, padding=1)
    y.backward(mr.backend.to_device(grad, "strict"))
    found = [mr.backend.to_host(a) for a in (y.data, *(t.grad for t in tensors))]
    assert_close(found, results(conv2d, [x, w, b], 1, grad), 1e-12)


# ---- the rule


@pytest.mark.parametrize(
    ("net", "size", "expected"), [("resnet20", 32, 5 + 5), ("resnet18", 64, 4 + 3 + 3 + 3), ("bottleneck29", 32, 2 + 2)]
)
def test_which_layers_use_it(net, size, expected, calls):
    """The 3x3 convolutions of stride 1 with 32 channels and more."""
    mr.build(net)(Tensor(np.zeros((2, size, size, 3), np.float32)))
    assert len(calls) == expected and min(min(shape[2:]) for shape in calls) >= 32


@pytest.mark.parametrize(
    ("kernel", "stride", "c", "f"), [(1, 1, 64, 64), (5, 1, 64, 64), (3, 2, 64, 64), (3, 1, 31, 64), (3, 1, 64, 31)]
)
def test_which_do_not(kernel, stride, c, f, calls):
    conv2d(Tensor(np.zeros((1, 8, 8, c))), Tensor(np.zeros((kernel, kernel, c, f))), stride=stride, padding=1)
    assert calls == []


def test_im2col_can_be_asked_for(calls):
    x, w = Tensor(np.zeros((1, 8, 8, 32))), Tensor(np.zeros((3, 3, 32, 32)))
    with pytest.raises(KeyError), conv_method("im2col"):
        conv2d(x, w)
        other = threading.Thread(target=conv2d, args=(x, w))  # another thread chooses for itself
        other.start()
        other.join()
        assert len(calls) == 1
        with conv_method("auto"):
            conv2d(x, w)
        assert len(calls) == 2
        raise KeyError
    conv2d(x, w)
    assert len(calls) == 3
    with pytest.raises(ValueError, match='conv_method: expected "auto" or "im2col", got'), conv_method("fft"):
        pass


# ---- work


@pytest.fixture
def fixed_work(monkeypatch):
    mr.set_num_threads(1)
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 2**20)


def test_number_of_products_and_size_of_their_results(fixed_work, everywhere, monkeypatch):
    sizes, matmul = [], np.matmul

    def counted(a, b, out):
        sizes.append(out.nbytes)
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", counted)
    arrays = draw((32, 16, 16, 32), 32, np.float32)
    results(conv2d, arrays, 1)
    # An image has 16 tiles, 36 x 16 x (32 + 32 + 32) numbers: 216 KiB, so a chunk of 1 MiB would have 4 images;
    # 64 tiles are 4 images too: 8 chunks. Forward each has 3 products, backward 5; and U twice, and dw.
    assert len(sizes) == 8 * (3 + 5) + 2 + 1
    assert max(sizes) <= 36 * 64 * 32 * 4


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(threads):
    arrays = draw((20, 9, 9, 32), 40, np.float32)
    mr.set_num_threads(1)
    one = results(conv2d, arrays, 1)
    mr.set_num_threads(threads)
    for a, b in zip(results(conv2d, arrays, 1), one, strict=True):
        assert a.tobytes() == b.tobytes()


# ---- what it needs of parallel.py


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 500), st.integers(0, 10**7), st.integers(1, 300))
def test_slices_have_enough_items_and_every_item_is_in_one(n, item_bytes, min_items):
    slices = split(n, item_bytes, min_items)
    assert [i for s in slices for i in range(n)[s]] == list(range(n))
    assert len(slices) == 1 or min(s.stop - s.start for s in slices) >= min_items


@pytest.mark.parametrize("threads", [1, 4])
def test_over_batch_inside_a_chunk_calls_its_function_once(threads):
    mr.set_num_threads(threads)
    x, seen = np.zeros((64, 10_000)), []

    def outer(x):
        over_batch(lambda a: seen.append((threading.get_ident(), len(a))), x)
        over_batch(lambda a: seen.append((threading.get_ident(), len(a))), np.zeros((32, 100_000)))

    over_batch(outer, x)
    assert sum(n for _, n in seen) == 64 + 32 * len(split(64, 80_000))
    assert len({n for _, n in seen if n != 32}) <= 2 and (threads > 1 or len({t for t, _ in seen}) == 1)
    seen.clear()
    over_batch(outer, x, min_items=64)  # one chunk: what is inside is shared
    assert len(seen) == len(split(64, 80_000)) + len(split(32, 800_000)) > 2


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_inside_leaves_over_batch_as_it_was(threads):
    mr.set_num_threads(threads)
    x, calls = np.zeros((64, 10_000)), []

    def inner(a):
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        over_batch(lambda x: over_batch(inner, x), x)
    over_batch(lambda a: calls.append(len(a)), x)
    assert len(calls) == len(split(64, 80_000)) > 1


def test_scratch_memory():
    like = np.zeros(1, np.float32)
    a = scratch("a", (2, 3), like)
    a[...] = 7
    assert scratch("a", (3,), like).base is a.base or np.shares_memory(scratch("a", (3,), like), a)
    assert not np.shares_memory(scratch("b", (2, 3), like), a)
    assert not np.shares_memory(scratch("a", (2, 3), like.astype(np.float64)), a)
    larger = scratch("a", (5, 5), like)
    assert larger.shape == (5, 5) and larger.dtype == np.float32
    others = []
    thread = threading.Thread(target=lambda: others.append(scratch("a", (5, 5), like)))
    thread.start()
    thread.join()
    assert not np.shares_memory(others[0], larger)
