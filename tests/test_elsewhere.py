"""The page of what words mean elsewhere: its form, and its numbers for minires and PyTorch, computed again."""

import numpy as np
import pytest

import minires as mr
from minires.course.elsewhere import differences, topics
from minires.functional import cross_entropy
from minires.nn import BatchNorm2d, Conv2d, LayerNorm, Linear
from minires.optim import SGD, clip_grad_norm, cosine, one_cycle
from minires.resnet import build
from minires.tensor import Tensor

PAGE = {topic.title: topic for topic in topics()}
WEIGHTS = (1.0, 2.0, -0.5, 0.3), (0.1, 0.1, 0.01, 0.01)  # gradients and rates of the page's steps


def cell(title, framework, column):
    """A cell of the page; "same" is what minires does."""
    rows = PAGE[title].rows
    found = rows[framework][column]
    return rows["minires"][column] if found == "same" else found


# ---- the form


def test_every_topic_has_minires_first_and_some_advice():
    assert len(PAGE) == 11
    for topic in PAGE.values():
        assert next(iter(topic.rows)) == "minires" and "pytorch" in topic.rows
        assert len(topic.advice) > 40 and "same" not in topic.rows["minires"].values()


def test_the_lines_that_differ():
    text = differences("Keras")
    assert "Batch norm\n  eps: 1e-3  (minires: 1e-5)\n  momentum as written: 0.99  (minires: 0.1)" in text
    assert "SGD with momentum\n  momentum: .9 .61 .354 .1206  (minires: .9 .61 .5889 .56691)" in text
    assert "same" not in [line.split(": ")[1] for line in text.splitlines() if ": " in line]
    assert "Batch norm" not in differences("tinygrad")  # it is the same there
    for name in ("pytorch", "flax", "paddle", "mindspore", "jittor", "onnx", "dezero"):
        assert differences(name).count("->") >= 3


def test_the_command(status_of, capsys):
    assert status_of("elsewhere", "paddle") == 0
    assert "  linear weights: (in, out)" in capsys.readouterr().out
    assert status_of("elsewhere", "caffe") == 2
    assert "expected one of dezero, flax, jittor, keras, " in capsys.readouterr().err


# ---- the numbers


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def as_numbers(text):
    return [float(number) for number in text.split()]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov, torch):
    w = Tensor(np.array([1.0]), requires_grad=True)
    opt = SGD([w], 0.1, momentum=0.9, nesterov=nesterov)
    v = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    theirs = torch.optim.SGD([v], 0.1, momentum=0.9, nesterov=nesterov)
    found = []
    for g, lr in zip(*WEIGHTS, strict=True):
        w.grad, v.grad = np.array([g]), torch.tensor([g], dtype=torch.float64)
        opt.lr = theirs.param_groups[0]["lr"] = lr
        opt.step()
        theirs.step()
        found.append((w.data[0], v.item()))
    column = "Nesterov" if nesterov else "momentum"
    for framework, numbers in zip(("minires", "pytorch"), zip(*found, strict=True), strict=True):
        assert numbers == pytest.approx(as_numbers(cell("SGD with momentum", framework, column)), abs=5e-5)


def test_the_form_with_the_rate_inside_takes_the_steps_of_keras():
    """The rule itself, v = 0.9 v + lr g, w = w - v, gives the numbers that were measured."""
    w, v, found = 1.0, 0.0, []
    for g, lr in zip(*WEIGHTS, strict=True):
        v = 0.9 * v + lr * g
        w -= v
        found.append(w)
    assert found == pytest.approx(as_numbers(cell("SGD with momentum", "keras", "momentum")), abs=5e-5)
    ours = as_numbers(cell("SGD with momentum", "minires", "momentum"))
    assert found[1] - found[2] == pytest.approx(0.256) and ours[1] - ours[2] == pytest.approx(0.0211)


def test_batch_norm(torch):
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 5, 3)).astype(np.float32)
    ours, theirs = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    ours(Tensor(x))
    theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    for framework, module, running in (
        ("minires", ours, (ours.running_mean, ours.running_var)),
        ("pytorch", theirs, (theirs.running_mean.numpy(), theirs.running_var.numpy())),
    ):
        weight = float(cell("Batch norm", framework, "weight of the new batch"))
        assert running[0] == pytest.approx(weight * mean, rel=1e-5)
        assert running[1] == pytest.approx((1 - weight) + weight * var, rel=1e-5)  # unbiased
        assert module.eps == float(cell("Batch norm", framework, "eps"))
    assert LayerNorm(3).eps == torch.nn.LayerNorm(3).eps == float(cell("Layer norm", "minires", "eps"))


def test_initial_weights(torch):
    rng = np.random.default_rng(0)
    convs = [Conv2d(16, 32, 3, rng=rng).weight.data for _ in range(20)]
    linears = [Linear(64, 10, rng=rng).weight.data for _ in range(50)]
    assert np.var(convs) == pytest.approx(2 / 144, rel=0.03) and np.var(linears) == pytest.approx(2 / 64, rel=0.03)
    with torch.no_grad():
        convs = [torch.nn.Conv2d(16, 32, 3).weight.numpy() for _ in range(20)]
        linears = [torch.nn.Linear(64, 10).weight.numpy() for _ in range(50)]
    assert np.var(convs) == pytest.approx(1 / 432, rel=0.03) and np.var(linears) == pytest.approx(1 / 192, rel=0.03)
    assert cell("Initial weights", "pytorch", "variance of the convolution").startswith("1/432")
    assert cell("Initial weights", "minires", "variance of the linear layer").startswith("2/64")


def test_same_padding_of_keras_is_not_ours():
    """padding=1 at stride 2 and even sizes reads one zero before and none after: SAME_LOWER."""
    x, w = np.arange(1.0, 9.0).reshape(1, 1, 8, 1), np.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    y = mr.conv2d(Tensor(padded), Tensor(w), stride=2).data.ravel()
    assert y[0] == 0 + 10 * 1 + 100 * 2 and y[-1] == 6 + 10 * 7 + 100 * 8  # the last zero is not read


def test_pooling(torch):
    x = -np.ones((1, 4, 4, 1), np.float32)
    t = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    assert (mr.max_pool2d(Tensor(x), 3, 2, 1).data == -1).all()
    assert (torch.nn.functional.max_pool2d(t, 3, 2, 1) == -1).all()
    assert mr.avg_pool2d(Tensor(x), 3, 2, 1).data[0, 0, 0, 0] == pytest.approx(-4 / 9)  # zeros of the border count
    assert torch.nn.functional.avg_pool2d(t, 3, 2, 1)[0, 0, 0, 0].item() == pytest.approx(-4 / 9)
    assert mr.max_pool2d(Tensor(x), 2).shape[1] == torch.nn.functional.max_pool2d(t, 2).shape[2] == 2
    for place in range(4):  # NaN comes out wherever it stands
        numbers = np.array([1, 3, 2, 0], np.float32)
        numbers[place] = np.nan
        assert np.isnan(mr.max_pool2d(Tensor(numbers.reshape(1, 2, 2, 1)), 2).data).all()


def test_label_smoothing_and_schedules(torch):
    logits, labels = np.random.default_rng(0).standard_normal((6, 10)), np.arange(6)
    ours = cross_entropy(Tensor(logits), labels, 0.1).item()
    theirs = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), label_smoothing=0.1)
    assert ours == pytest.approx(theirs.item(), rel=1e-9)
    assert cosine(1.0, 10)(15) == one_cycle(1.0, 10)(10) == one_cycle(1.0, 10)(11) == 0
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 1.0, total_steps=10)
    rates, momenta = [], []
    for _ in range(10):
        rates.append(opt.param_groups[0]["lr"])
        momenta.append(opt.param_groups[0]["momentum"])
        opt.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.04) and rates.index(max(rates)) == 2 and rates[9] == pytest.approx(4e-6)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.0495, abs=5e-5)
    assert min(momenta) == pytest.approx(0.85) and max(momenta) == pytest.approx(0.95)


def test_clipping(torch):
    for bad, expected in ((np.nan, [np.nan, np.nan]), (np.inf, [0, np.nan])):
        p = [Tensor(np.zeros(1), requires_grad=True) for _ in range(2)]
        t = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        for i, g in enumerate((1.0, bad)):
            p[i].grad, t[i].grad = np.array([g]), torch.tensor([g])
        with np.errstate(invalid="ignore"):
            clip_grad_norm(p, 1.0)
        torch.nn.utils.clip_grad_norm_(t, 1.0)
        for found in ([q.grad[0] for q in p], [q.grad.item() for q in t]):
            assert np.array_equal(found, expected, equal_nan=True)


def test_the_shipped_resnet50():
    count = sum(p.size for p in build("resnet50").parameters())
    assert f"{count:,}" == cell("The shipped ResNet-50", "minires", "parameters")
    running = sum(buffer.size for _, buffer in build("resnet50").named_buffers())
    assert f"{count + running:,}" in cell("The shipped ResNet-50", "paddle", "parameters")
