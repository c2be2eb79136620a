"""SGD against PyTorch and by hand, schedules at the steps where they turn, clipping."""

import math

import numpy as np
import pytest

from minires.backend import to_device, to_host
from minires.optim import SGD, clip_grad_norm, cosine, multistep, one_cycle, warmup
from minires.parallel import set_num_threads
from minires.tensor import Tensor


def parameters(rng, device):
    shapes = ((3, 4), (4,), ())
    return [Tensor(to_device(np.asarray(rng.standard_normal(s)), device), requires_grad=True) for s in shapes]


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_pytorchs(momentum, nesterov, weight_decay, device):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    ours = parameters(rng, device)
    theirs = [torch.tensor(to_host(p.data).copy(), requires_grad=True) for p in ours]
    a = SGD(ours, 0.1, momentum, weight_decay, nesterov)
    b = torch.optim.SGD(theirs, 0.1, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    for step in range(5):
        a.lr = b.param_groups[0]["lr"] = 0.1 / (step + 1)
        for p, q in zip(ours, theirs, strict=True):
            grad = np.asarray(rng.standard_normal(p.shape))
            p.grad, q.grad = to_device(grad.copy(), device), torch.tensor(grad)
        a.step()
        b.step()
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(to_host(p.data), q.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_two_steps_by_hand(device):
    p = Tensor(to_device(np.array([[1.0]]), device), requires_grad=True)
    opt = SGD([p], lr=0.5, momentum=0.5, weight_decay=0.1)
    p.grad = to_device(np.array([[2.0]]), device)
    opt.step()  # g = 2 + 0.1 = 2.1, v = 2.1, w = 1 - 1.05
    np.testing.assert_allclose(to_host(p.data), [[-0.05]])
    opt.step()  # g = 2 - 0.005, v = 1.05 + 1.995 = 3.045, w = -0.05 - 1.5225
    np.testing.assert_allclose(to_host(p.data), [[-1.5725]])


def test_decay_may_leave_vectors_out():
    matrix, vector = (Tensor(np.ones(s), requires_grad=True) for s in ((2, 2), (2,)))
    opt = SGD([matrix, vector], lr=0.5, weight_decay=0.2, decay_bias_and_norm=False)
    matrix.grad, vector.grad = np.zeros((2, 2)), np.zeros(2)
    opt.step()
    np.testing.assert_allclose(matrix.data, 0.9)
    np.testing.assert_array_equal(vector.data, 1.0)


def test_a_step_leaves_gradients_alone_and_skips_parameters_without_one():
    p, q = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    grad = np.array([1.0, 2.0, 3.0])
    grad.setflags(write=False)
    p.grad = grad
    opt = SGD([q, p], lr=1.0, momentum=0.9, weight_decay=0.1, nesterov=True)
    opt.step()
    np.testing.assert_array_equal(p.grad, [1.0, 2.0, 3.0])
    assert (p.data < 1).all()
    np.testing.assert_array_equal(q.data, 1.0)
    opt.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(
    "options, told",
    [
        ({"lr": -0.1}, "expected lr >= 0"),
        ({"lr": math.nan}, "expected lr >= 0"),
        ({"lr": 0.1, "weight_decay": -1}, "expected weight_decay >= 0"),
        ({"lr": 0.1, "momentum": 1.0}, "expected 0 <= momentum < 1"),
        ({"lr": 0.1, "momentum": -0.1}, "expected 0 <= momentum < 1"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs a momentum"),
    ],
)
def test_wrong_settings_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        SGD([Tensor(np.ones(1), requires_grad=True)], **options)


def test_a_net_may_have_hundreds_of_parameters():
    assert len(SGD([Tensor(np.ones(1), requires_grad=True) for _ in range(300)], lr=0.1).params) == 300


def test_no_parameters_is_an_error():
    with pytest.raises(ValueError, match="params is empty"):
        SGD([], lr=0.1)


# ---- clipping


def test_clipping_scales_all_gradients_together(device):
    p, q = (Tensor(to_device(np.zeros(2), device), requires_grad=True) for _ in range(2))
    p.grad, q.grad = (to_device(np.array(g), device) for g in ([3.0, 0.0], [0.0, 4.0]))
    before = p.grad
    assert float(clip_grad_norm([p, q], 1.0)) == pytest.approx(5.0)
    np.testing.assert_allclose(to_host(p.grad), [0.6, 0.0])
    np.testing.assert_allclose(to_host(q.grad), [0.0, 0.8])
    np.testing.assert_array_equal(to_host(before), [3.0, 0.0])  # the old array may be another tensor's too
    assert float(clip_grad_norm([p, q], 10.0)) == pytest.approx(1.0)
    np.testing.assert_allclose(to_host(p.grad), [0.6, 0.0])


def test_clipping_knows_what_it_needs():
    p = Tensor(np.zeros(2), requires_grad=True)
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        clip_grad_norm([p], 1.0)
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        clip_grad_norm([p], 0.0)


# ---- schedules


def test_steps_falls_at_its_milestones():
    rate = multistep(0.1, [48_000, 32_000])
    assert [rate(s) for s in (0, 31_999, 32_000, 47_999, 48_000, 63_999)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_cosine_is_half_a_wave():
    rate = cosine(0.2, 100)
    assert [rate(s) for s in (0, 25, 50, 75, 100, 120)] == pytest.approx(
        [0.2, 0.1 + 0.1 * math.sqrt(0.5), 0.1, 0.1 - 0.1 * math.sqrt(0.5), 0.0, 0.0]
    )


def test_one_cycle_rises_and_falls_in_straight_lines():
    rate = one_cycle(1.0, 100, pct_start=0.2, start_factor=0.1)
    assert [rate(s) for s in (0, 10, 20, 60, 99, 100, 101)] == pytest.approx([0.1, 0.55, 1.0, 0.5, 1 / 80, 0.0, 0.0])


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_of_a_few_steps_stays_in_range(total):
    rate = one_cycle(0.2, total)
    assert all(0 <= rate(s) <= 0.2 for s in range(total + 2))
    assert rate(total) == 0


def test_warm_up_comes_first_and_the_schedule_keeps_its_own_count():
    rate = warmup(multistep(0.1, [500]), 400, 0.01)
    assert [rate(s) for s in (0, 399, 400, 499, 500)] == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01])


def test_one_tensor_is_no_list_of_parameters():
    w = Tensor(np.ones((2, 3)), requires_grad=True)
    with pytest.raises(TypeError, match=r"SGD: expected a list of tensors, got one tensor; write \[tensor\]"):
        SGD(w, lr=0.1)
    for wrong in (w[0], w * 2, Tensor(np.ones(3))):
        with pytest.raises(ValueError, match="SGD: expected parameters, tensors made with requires_grad=True, got"):
            SGD([wrong], lr=0.1)


@pytest.mark.parametrize("threads", [1, 3])
def test_large_and_transposed_parameters_take_the_same_step(threads):
    """Large ones are shared among threads, a part of the elements each."""
    set_num_threads(threads)
    rng = np.random.default_rng(0)
    data, grads = rng.standard_normal((300, 700)), rng.standard_normal((2, 300, 700))
    p, v = data.copy(), np.zeros_like(data)
    straight, transposed = Tensor(data.copy(), requires_grad=True), Tensor(data.T.copy().T, requires_grad=True)
    opt = SGD([straight, transposed], 0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for g in grads:
        straight.grad = transposed.grad = g.copy()
        opt.step()
        g = g + 0.01 * p
        v = 0.9 * v + g
        p = p - 0.1 * (g + 0.9 * v)
    assert straight.data == pytest.approx(p, rel=1e-13) and transposed.data == pytest.approx(p, rel=1e-13)
