"""Numbers at the edge of float32, and two trainings in two threads: nothing overflows, nothing is disturbed."""

import threading
import warnings

import numpy as np
import pytest

import minires as mr
from minires.conv import conv2d, max_pool2d
from minires.functional import cross_entropy, log_softmax, relu
from minires.norm import batch_norm, layer_norm
from minires.tensor import Tensor


def exact_log_softmax(x):
    """In long double and with the largest taken away: the slow, safe way."""
    x = x.astype(np.longdouble)
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


ROWS = {
    "large": [[1e4, -1e4, 0.0], [1e4, 1e4, 1e4]],
    "huge": [[1e38, -1e38, 0.0], [3e38, 3e38, 1.0]],
    "tiny": [[1e-30, -1e-30, 0.0], [1e-38, 2e-38, 3e-38]],
    "all equal": [[7.0, 7.0, 7.0], [0.0, 0.0, 0.0]],
    "one class": [[5.0], [-1e4]],
}


@pytest.mark.parametrize("kind", ROWS)
def test_log_softmax_and_cross_entropy_at_extreme_logits(kind):
    x = np.array(ROWS[kind], np.float32)
    with np.errstate(all="raise", under="ignore"):
        logits = Tensor(x, requires_grad=True)
        y = log_softmax(logits)
        loss = cross_entropy(logits, np.zeros(len(x), int))
        loss.backward()
    wanted = exact_log_softmax(x)
    np.testing.assert_allclose(y.data, wanted.astype(np.float32), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(loss.item(), float(-wanted[:, 0].mean()), rtol=1e-6, atol=1e-7)
    target = np.zeros_like(x)
    target[:, 0] = 1
    np.testing.assert_allclose(logits.grad, (np.exp(wanted) - target).astype(np.float32) / len(x), rtol=1e-5, atol=1e-7)


def standardised(x, eps=1e-5):
    x = x.astype(np.float64).reshape(-1, x.shape[-1])
    return x.mean(0), x.var(0), (x - x.mean(0)) / np.sqrt(x.var(0) + eps)


@pytest.mark.parametrize("offset, size", [(0, 1), (1e4, 1), (-1e4, 0.1), (0, 1e4), (0, 1e-30), (1e4, 0)])
def test_variance_keeps_its_digits_whatever_the_mean(offset, size):
    rng = np.random.default_rng(0)
    x = (offset + size * rng.standard_normal((16, 8, 8, 3))).astype(np.float32)
    mean, var = np.zeros(3, np.float32), np.zeros(3, np.float32)
    gamma, beta = Tensor(np.ones(3, np.float32)), Tensor(np.zeros(3, np.float32))
    with np.errstate(all="raise", under="ignore"):
        y = batch_norm(Tensor(x), gamma, beta, mean, var, momentum=1.0)
    wanted_mean, wanted_var, wanted = standardised(x)
    n = x.size // 3
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-5, atol=1e-6 * size)
    np.testing.assert_allclose(var, wanted_var * n / (n - 1), rtol=1e-3, atol=1e-37)
    # one unit in the last place of x, in standard deviations, is the best that float32 can do
    grain = np.spacing(np.float32(abs(offset) + size)) / np.sqrt(wanted_var.max() + 1e-5)
    assert np.abs(y.data.reshape(-1, 3) - wanted).max() < 1e-4 + 4 * grain


def test_variance_when_the_first_image_is_unlike_the_others():
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal((32, 4, 4, 2))).astype(np.float32)
    x[0] = 0
    mean, var = np.zeros(2, np.float32), np.zeros(2, np.float32)
    batch_norm(Tensor(x), Tensor(np.ones(2, np.float32)), Tensor(np.zeros(2, np.float32)), mean, var, momentum=1.0)
    wanted_mean, wanted_var, _ = standardised(x)
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-5)
    np.testing.assert_allclose(var, wanted_var * 512 / 511, rtol=1e-4)


def trained(seed):
    """The weights of a small net after a few steps, with evaluation without a graph in between."""
    rng = np.random.default_rng(seed)
    net = mr.build("resnet8", seed=seed, width=4)
    opt = mr.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        x, y = rng.standard_normal((24, 32, 32, 3), np.float32), rng.integers(0, 10, 24)
        loss = mr.cross_entropy(net(mr.Tensor(x)), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        with mr.no_grad():
            assert not net.eval()(mr.Tensor(x[:2])).requires_grad
        net.train()
    return net.state_dict()


def test_two_models_trained_in_two_threads_do_not_disturb_each_other():
    alone = [trained(seed) for seed in (0, 1)]
    together: dict[int, dict[str, np.ndarray]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workers = [threading.Thread(target=lambda s=seed: together.update({s: trained(s)})) for seed in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for seed in (0, 1):
        for name, array in alone[seed].items():
            assert together[seed][name].tobytes() == array.tobytes(), name


# ---- infinities and NaN in pooling, ReLU and cross-entropy


def test_the_gradient_of_a_window_of_minus_infinity_stays_in_the_image():
    x = Tensor(np.full((1, 4, 4, 1), -np.inf), requires_grad=True)
    max_pool2d(x, 3, 2, 1).backward(np.arange(1.0, 5).reshape(1, 2, 2, 1))
    assert x.grad.sum() == 10
    np.testing.assert_array_equal(x.grad[0, :, :, 0], [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("place", range(9))
def test_the_gradient_goes_where_nan_came_from(place):
    images = np.random.default_rng(0).standard_normal((1, 3, 3, 1))
    images.flat[place] = np.nan
    x = Tensor(images, requires_grad=True)
    y = max_pool2d(x, 3)
    y.backward(np.full(y.shape, 7.0))
    assert np.isnan(y.data).all()
    assert x.grad.flat[place] == 7 and np.count_nonzero(x.grad) == 1


def test_the_first_of_two_nans_wins():
    x = Tensor(np.array([[1.0, np.nan], [np.nan, 9.0]]).reshape(1, 2, 2, 1), requires_grad=True)
    max_pool2d(x, 2).backward(np.full((1, 1, 1, 1), 5.0))
    np.testing.assert_array_equal(x.grad[0, :, :, 0], [[0, 5], [0, 0]])


def test_relu_passes_the_gradient_where_its_value_is_nan():
    x = Tensor(np.array([[-1.0, 0.0, -0.0, 2.0, np.nan, np.inf, -np.inf]]), requires_grad=True)
    y = relu(x)
    y.backward(np.arange(1.0, 8)[None])
    np.testing.assert_array_equal(y.data, [[0, 0, 0, 2, np.nan, np.inf, 0]])
    np.testing.assert_array_equal(x.grad, [[0, 0, 0, 4, 5, 6, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_masked_classes(dtype):
    logits = np.array([[0.0, -np.inf, 1.0], [-np.inf, 2.0, -np.inf], [np.finfo(dtype).max, 0, -np.finfo(dtype).max]])
    x = Tensor(logits.astype(dtype), requires_grad=True)
    with np.errstate(over="ignore"):  # in the third row
        loss = cross_entropy(x, np.array([2, 1, 0]))
    loss.backward()
    p = 1 / (1 + np.e)  # of class 0 in the first row
    assert loss.item() == pytest.approx(-np.log(1 - p) / 3, rel=1e-6)
    np.testing.assert_allclose(x.grad, [[p / 3, 0, -p / 3], [0, 0, 0], [0, 0, 0]], rtol=1e-6, atol=1e-12)


def test_cross_entropy_of_a_label_that_is_masked_is_infinite():
    assert cross_entropy(Tensor(np.array([[0.0, -np.inf]])), np.array([1])).item() == np.inf
    smooth = cross_entropy(Tensor(np.array([[0.0, -np.inf]])), np.array([0]), label_smoothing=0.1)
    assert smooth.item() == np.inf, "smoothing asks for the masked class too"


# ---- many addends, and means far from 0, in float32


def relative(found, exact):
    return np.abs(found.astype(np.float64) / exact - 1).max()


def many(*shape):
    return np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(131_072, 3), (128, 32, 32, 3)], ids=str)
def test_sums_over_leading_axes_keep_their_digits(shape):
    x, axes = many(*shape), tuple(range(len(shape) - 1))
    exact = x.astype(np.float64)
    assert relative(Tensor(x).sum(axes).data, exact.sum(axes)) < 1e-6
    assert relative(Tensor(x).mean(axes).data, exact.mean(axes)) < 1e-6
    bias = Tensor(np.zeros(3, np.float32), requires_grad=True)
    (Tensor(np.zeros_like(x)) + bias).backward(x)
    assert relative(bias.grad, exact.sum(axes)) < 1e-6


def test_the_gradients_of_bias_and_beta_keep_their_digits():
    x, g = many(128, 32, 32, 3), many(128, 32, 32, 2)
    exact = g.astype(np.float64).sum((0, 1, 2))
    w, bias = Tensor(many(1, 1, 3, 2)), Tensor(np.zeros(2, np.float32), requires_grad=True)
    conv2d(Tensor(x), w, bias).backward(g)
    assert relative(bias.grad, exact) < 1e-6
    gamma, beta = (Tensor(np.full(2, v, np.float32), requires_grad=True) for v in (1, 0))
    h = many(128, 32, 32, 2)
    layer_norm(Tensor(h), gamma, beta).backward(g)
    assert relative(beta.grad, exact) < 1e-6
    h = h.astype(np.float64)
    xhat = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    dgamma = (g * xhat).sum((0, 1, 2))
    np.testing.assert_allclose(gamma.grad, dgamma, atol=1e-6 * np.abs(g * xhat).sum())


@pytest.mark.parametrize(("mean", "error"), [(1, 1e-6), (100, 5e-6), (1000, 1e-4)])
def test_dgamma_of_batch_norm_far_from_zero(mean, error):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 8, 8, 16)) + mean).astype(np.float32)
    g = rng.standard_normal(x.shape).astype(np.float32)
    gamma, beta = (Tensor(np.full(16, v, np.float32), requires_grad=True) for v in (1, 0))
    batch_norm(Tensor(x), gamma, beta, np.zeros(16, np.float32), np.ones(16, np.float32)).backward(g)
    x = x.astype(np.float64)
    xhat = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    exact = (g * xhat).sum((0, 1, 2))
    assert np.abs(gamma.grad - exact).max() < error * np.abs(exact).max()
