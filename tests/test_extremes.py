"""Numbers at the edge of float32, and two trainings in two threads: nothing overflows, nothing is disturbed."""

import threading
import warnings

import numpy as np
import pytest

import minires as mr
from minires.functional import cross_entropy, log_softmax
from minires.norm import batch_norm
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
