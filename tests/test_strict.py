"""The pretend GPU: what it refuses, allows and counts, and what a training step may cost on a GPU."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from minires.backend import array_module, device_of, to_device, to_host
from minires.data import Normalise, shapes10
from minires.devices.strict import StrictArray, counting
from minires.functional import cross_entropy, dropout
from minires.kernels import fuse
from minires.optim import SGD
from minires.resnet import build
from minires.tensor import Tensor
from minires.training import config
from minires.training.config import Config, read_config
from minires.training.loop import evaluate, fit


def arrays(device):
    """The device's array module, an array on it, and one on the host."""
    host = np.random.default_rng(0).uniform(0.5, 2, (4, 3)).astype(np.float32)
    x = to_device(host.copy(), device)
    return array_module(x), x, host


def rng():
    return np.random.default_rng(0)


def assign(x, index, value):
    x[index] = value


def add_to(x, index, value):
    x[index] += value


def grow(x, y):
    x += y


def fill(host, x):
    host[0] = x[0]


def print_mean(x):
    mean = x.mean(dtype=np.float64)
    assert isinstance(mean, float)
    return f"{mean}"


# ---- mistakes: each works with NumPy, none with CuPy

MISTAKES = {  # of the array module xp, an array x of the device, an array h of the host
    "a host array added": lambda xp, x, h: x + h,
    "added to a host array": lambda xp, x, h: h + x,
    "a host array added in place": lambda xp, x, h: grow(x, h),
    "added in place to a host array": lambda xp, x, h: grow(h, x),
    "a product with a host array": lambda xp, x, h: x @ h.T,
    "a number as a host array": lambda xp, x, h: x * np.array(2.0, np.float32),
    "a mask drawn on the host": lambda xp, x, h: x * (rng().random(x.shape) < 0.5),
    "a host array as a condition": lambda xp, x, h: xp.where(h > 1, x, 0),
    "a host array among others": lambda xp, x, h: xp.concatenate([x, h]),
    "a host array to fill with": lambda xp, x, h: xp.full((4, 3), h),
    "a result into a host array": lambda xp, x, h: xp.multiply(x, 2, out=h),
    "np.multiply into new host memory": lambda xp, x, h: np.multiply(x, 2, out=np.empty((4, 3), np.float32)),
    "a host array assigned": lambda xp, x, h: assign(x, 0, h[0]),
    "a list assigned": lambda xp, x, h: assign(x, 0, [1, 2, 3]),
    "assigned to a part of a host array": lambda xp, x, h: fill(h, x),
    "a list in a ufunc": lambda xp, x, h: xp.add(x, [1, 2, 3]),
    "np.asarray": lambda xp, x, h: np.asarray(x),
    "np.mean of a list": lambda xp, x, h: np.mean([x, x]),
    "np.array of sums": lambda xp, x, h: np.array([x.sum(), x.sum()]),
    "np.testing": lambda xp, x, h: np.testing.assert_array_equal(x, h),
    "shuffled by the host's generator": lambda xp, x, h: rng().permutation(x),
    "np.lib.stride_tricks": lambda xp, x, h: np.lib.stride_tricks.as_strided(x, (2, 2), (4, 4)),
    "a reduction taken for a float": lambda xp, x, h: print_mean(x),
    "a reduction rounded": lambda xp, x, h: round(x.sum(), 2),
    "a reduction as a key": lambda xp, x, h: {x.sum(): "best"},
    "a reduction as a length": lambda xp, x, h: range(x.argmax()),
    "a reduction as an index of a list": lambda xp, x, h: list(range(12))[x.argmax()],
    "a ufunc with where=": lambda xp, x, h: xp.divide(x, x, out=xp.zeros_like(x), where=x > 1),
    "a ufunc with order=": lambda xp, x, h: xp.exp(x, order="C"),
    "a sum with initial=": lambda xp, x, h: x.sum(initial=1.0),
    "a maximum with where=": lambda xp, x, h: xp.max(x, where=x > 0, initial=0),
    "var with mean=": lambda xp, x, h: x.var(axis=0, mean=x.mean(axis=0, keepdims=True)),
    "einsum with out=": lambda xp, x, h: xp.einsum("ij->j", x, out=xp.empty(3, np.float32)),
    "as_strided with writeable=": lambda xp, x, h: xp.lib.stride_tricks.as_strided(x, (2,), (4,), writeable=False),
    "windows to write to": lambda xp, x, h: xp.lib.stride_tricks.sliding_window_view(x, 2, axis=0, writeable=True),
    "windows of a subclass": lambda xp, x, h: xp.lib.stride_tricks.sliding_window_view(x, 2, axis=0, subok=True),
    "zeros_like with subok=": lambda xp, x, h: xp.zeros_like(x, subok=True),
    "maximum.reduce": lambda xp, x, h: xp.maximum.reduce(x),
    "logaddexp.reduce": lambda xp, x, h: xp.logaddexp.reduce(x),
    "multiply.at": lambda xp, x, h: xp.multiply.at(x, 0, 2),
    "errstate": lambda xp, x, h: xp.errstate(over="ignore"),
    "block": lambda xp, x, h: xp.block([[x, x]]),
    "insert": lambda xp, x, h: xp.insert(x, 0, 1.0),
    "setflags": lambda xp, x, h: x.setflags(write=False),
    "flat": lambda xp, x, h: x.flat[0],
    "Generator.normal": lambda xp, x, h: xp.random.default_rng(0).normal(size=3),
    "Generator.permutation": lambda xp, x, h: xp.random.default_rng(0).permutation(3),
    "Generator.choice": lambda xp, x, h: xp.random.default_rng(0).choice(3),
    "Generator.shuffle": lambda xp, x, h: xp.random.default_rng(0).shuffle(x),
    "assigned twice to one entry": lambda xp, x, h: assign(x, np.array([0, 0]), x[1:3]),
    "added twice to one entry": lambda xp, x, h: add_to(x, ([1, 1], [2, 2]), 1.0),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_that_numpy_forgives_is_caught(name):
    MISTAKES[name](*arrays("cpu"))
    with pytest.raises((TypeError, ValueError, AttributeError, NotImplementedError, AssertionError)):
        MISTAKES[name](*arrays("strict"))


# ---- what must work, with NumPy's result

IDIOMS = {
    "numbers": lambda xp, x, h: (2 * x - 1.5) / 3 + True,
    "NumPy's numbers": lambda xp, x, h: np.float32(2) * x + np.int64(1),
    "in place": lambda xp, x, h: (grow(x, x), grow(x, 1.0), x)[-1],
    "comparisons and masks": lambda xp, x, h: ~(x > 1) | (x == x) & (x < 2),
    "power and division": lambda xp, x, h: x**2 // 0.3 % 0.7,
    "products": lambda xp, x, h: x @ x.T @ x,
    "ufuncs of NumPy": lambda xp, x, h: np.exp(-np.sqrt(x)),
    "functions of NumPy": lambda xp, x, h: np.concatenate([np.pad(x, 1), np.pad(x, ((1, 1), (0, 2)))]),
    "into its own memory": lambda xp, x, h: xp.maximum(x, 1, out=x),
    "a product into memory": lambda xp, x, h: xp.matmul(x, x.T, out=xp.empty((4, 4), x.dtype)),
    "reductions": lambda xp, x, h: x.sum(axis=(0, 1), keepdims=True) + x.mean() + x.max(axis=0) - x.std(axis=0, ddof=1),
    "a reduction as a number": lambda xp, x, h: f"{x.sum():.2f} {math.sqrt(x.sum()):.2f} {float(x[0, 0]):.2f}",
    "views": lambda xp, x, h: x[1:, ::-1].T.reshape(3, -1)[None, ..., 0],
    "swapped axes": lambda xp, x, h: x.reshape(2, 2, 3).swapaxes(0, 1).transpose(2, 0, 1),
    "an index of the host": lambda xp, x, h: x[np.array([3, 0, 0])],
    "an index that is a list": lambda xp, x, h: x[[3, 0, 0]],
    "an index of the device": lambda xp, x, h: x[x.argmax(axis=0)],
    "a mask of the host": lambda xp, x, h: x[h > 1],
    "a mask of the device": lambda xp, x, h: x[x > 1],
    "a number assigned": lambda xp, x, h: (assign(x, (slice(None), 1), 7.0), x)[1],
    "a number of the host assigned": lambda xp, x, h: (assign(x, 0, np.array(7.0)), x)[1],
    "an array assigned": lambda xp, x, h: (assign(x, 0, x[1]), x)[1],
    "assigned at indices": lambda xp, x, h: (assign(x, np.array([2, 0]), x[:2] * 2), x)[1],
    "added to a part": lambda xp, x, h: (add_to(x, slice(0, 3, 2), 1.0), x)[1],
    "to the device": lambda xp, x, h: xp.asarray(h) + xp.array([1.0, 2, 3]) + xp.asarray(x),
    "an array of arrays": lambda xp, x, h: xp.array([x, x]),
    "new arrays": lambda xp, x, h: xp.zeros((4, 3), np.float32) + xp.full((3,), 2.5) + xp.arange(3) + xp.ones_like(x),
    "where": lambda xp, x, h: xp.where(x > 1, x, 0),
    "einsum": lambda xp, x, h: xp.einsum("ij,ij->j", x, x),
    "joined and cut": lambda xp, x, h: xp.split(xp.stack([x, x], axis=1), [1, 3]),
    "add.at, twice at one entry": lambda xp, x, h: (xp.add.at(x, np.array([0, 0, 2]), 1.0), x)[1],
    "maximum.at": lambda xp, x, h: (xp.maximum.at(x, [1, 1], 9.0), x)[1],
    "add.reduce": lambda xp, x, h: xp.add.reduce(x, axis=0),
    "along an axis": lambda xp, x, h: xp.take_along_axis(x, x.argmax(axis=1, keepdims=True), 1),
    "strides": lambda xp, x, h: xp.lib.stride_tricks.as_strided(x, (3, 2), (12, 4)),
    "windows": lambda xp, x, h: xp.lib.stride_tricks.sliding_window_view(x, 2, axis=0),
    "windows to read": lambda xp, x, h: xp.lib.stride_tricks.sliding_window_view(x, 2, axis=0, writeable=False),
    "broadcasting": lambda xp, x, h: xp.broadcast_to(x[0], (5, 3)),
    "conversions": lambda xp, x, h: x.astype(np.float64) + x.astype(np.float32, copy=False).copy(),
    "is it finite": lambda xp, x, h: bool(xp.isfinite(x).all()) and bool(xp.allclose(x, x)),
    "dtypes": lambda xp, x, h: xp.zeros(3, xp.result_type(x, xp.float64)) + xp.inf,
    "loops over rows": lambda xp, x, h: sum(row * k for k, row in enumerate(x)) * len(x),
    "norms": lambda xp, x, h: xp.linalg.norm(x, axis=0),
    "overflow, in silence": lambda xp, x, h: xp.exp(x * 1000) if xp is not np else np.full((4, 3), np.inf, np.float32),
}


@pytest.mark.parametrize("name", IDIOMS)
def test_what_cupy_can_do_works_and_gives_numpys_result(name):
    expected, found = IDIOMS[name](*arrays("cpu")), IDIOMS[name](*arrays("strict"))
    for a, b in zip(*((r if isinstance(r, list) else [r]) for r in (expected, found)), strict=True):
        if isinstance(a, str | bool):
            assert a == b
        else:
            assert isinstance(b, StrictArray) and (b.dtype, b.shape) == (a.dtype, a.shape)
            np.testing.assert_array_equal(to_host(b), a)


def test_it_never_exposes_its_memory():
    _, x, host = arrays("strict")
    for copy in (to_host(x), x.get()):
        copy[:] = 0
    uploaded = np.ones(3)
    on_device = to_device(uploaded, "strict")
    uploaded[:] = 0
    np.testing.assert_array_equal(to_host(x), host)
    np.testing.assert_array_equal(to_host(on_device), 1)
    assert to_device(x, "strict") is x and device_of(x) == "strict"


def test_the_message_says_what_cupy_lacks():
    xp, x, host = arrays("strict")
    with pytest.raises(TypeError, match=r"cupy.ndarray.sum\(axis=, dtype=, out=, keepdims=\).*'initial'"):
        x.sum(initial=0)
    with pytest.raises(AttributeError, match="cupy has no errstate"):
        xp.errstate  # noqa: B018
    with pytest.raises(
        TypeError, match=r"expected arrays of the device, got a host array of shape \(4, 3\); convert it with to_device"
    ):
        x + host
    with pytest.raises(NotImplementedError, match="cupy.maximum.reduce is not supported"):
        xp.maximum.reduce(x)


# ---- what is counted

WAITS = {
    "float": lambda xp, x: float(x[0, 0]),
    "int": lambda xp, x: int(x[0, 0]),
    "bool": lambda xp, x: bool(x[0, 0]),
    "if": lambda xp, x: 1 if x.sum() > 3 else 2,
    "max of Python": lambda xp, x: max(x.sum(), x.mean()),
    "item": lambda xp, x: x.sum().item(),
    "tolist": lambda xp, x: x.tolist(),
    "print": lambda xp, x: str(x),
    "repr": lambda xp, x: repr(x),
    "an f-string": lambda xp, x: f"{x.sum():.1f}",
    "to_host": lambda xp, x: to_host(x),
    "a mask": lambda xp, x: x[x > 1],
    "nonzero": lambda xp, x: xp.nonzero(x),
    "where of one argument": lambda xp, x: xp.where(x > 1),
    "bincount": lambda xp, x: xp.bincount(xp.arange(3)),
    "unique": lambda xp, x: xp.unique(x),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_for_the_device_is_counted_once(name):
    xp, x, _ = arrays("strict")
    with counting() as made:
        WAITS[name](xp, x)
    assert made.waits.total() == 1, made


def test_launches_copies_and_views_are_distinguished():
    xp, x, host = arrays("strict")
    with counting() as made:
        x.T, x.reshape(-1), x[1:], x[0, 0], xp.broadcast_to(x, (2, 4, 3)), xp.split(x, 2), x.shape, len(x), x[:, None]
        xp.lib.stride_tricks.as_strided(x, (3, 2), (12, 4)), xp.empty(3), x.astype(np.float32, copy=False)
    assert made.launches == made.uploads == made.waits == Counter()
    with counting() as made:
        y = x * 2 + 1
        y += x
        y[0] = 3.0
        xp.maximum(y, 0, out=y)
        x.T.reshape(-1), x.copy(), x.sum(), xp.zeros(3), xp.where(x > 1, x, y), x.astype(np.float64), x[np.array([1])]
    assert made.launches == {
        "multiply": 1,
        "add": 2,
        "x[index] = value": 1,
        "maximum": 1,
        "x.reshape": 1,
        "x.copy": 1,
        "x.sum": 1,
        "zeros": 1,
        "greater": 1,
        "where": 1,
        "x.astype": 1,
        "x[index]": 1,
    }
    assert (made.uploads, made.waits) == ({"x[index]": 1}, {})
    with counting() as outer, counting() as inner:
        to_device(host, "strict"), xp.asarray([1.0, 2.0]), to_host(x), xp.asarray(x)
    assert inner.uploads == outer.uploads == {"asarray": 2} and inner.downloads == {"asnumpy": 1}
    assert inner.launches.total() == 0


# ---- fused functions


def test_a_fused_function_is_one_launch_and_computes_the_same():
    @fuse("clipped_sum")
    def clipped_sum(xp, x, y, out, factor, floor):
        xp.multiply(x, factor, out=out)
        out += y
        if floor is not None:
            xp.maximum(out, floor, out=out)
        return out.astype(np.float64), x + 1

    results = []
    for device in ("cpu", "strict"):
        xp, x, _ = arrays(device)
        with counting() as made:
            out = xp.empty_like(x)
            results.append([to_host(a).copy() for a in (*clipped_sum(x, x[0], out, 2.0, None), out)])
            clipped_sum(x, x[0], out, -2.0, x[1])
            results[-1].append(to_host(out))
        assert made.launches == ({"clipped_sum": 2} if device == "strict" else {})
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize(
    "function",
    [
        lambda xp, x: x.sum(),
        lambda xp, x: x[0],
        lambda xp, x: x.reshape(-1),
        lambda xp, x: x * x.shape[0],
        lambda xp, x: x * len(x),
        lambda xp, x: x if x > 0 else -x,
        lambda xp, x: x * float(x),
        lambda xp, x: xp.concatenate([x, x]),
        lambda xp, x: xp.zeros_like(x) + x,
        lambda xp, x: xp.add.reduce(x),
        lambda xp, x: xp.add(x, x, dtype=np.float64),
        lambda xp, x: x + to_device(np.ones(3), "strict"),
        lambda xp, x: x + np.ones(3),
        lambda xp, x: x.__setitem__(0, 1.0),
    ],
)
def test_what_cupy_cannot_fuse_is_refused(function):
    with pytest.raises(TypeError):
        fuse("function")(function)(to_device(np.ones(3), "strict"))
    assert float(to_device(np.array(1.0), "strict")) == 1  # tracing has ended


# ---- what a training step may cost

# Launches in a step of ResNet-20, for any width and batch: 959, measured here. At 7 microseconds each the host needs
# 6.7 ms to start them; a GPU that computes them faster waits for the host.
# a convolution: 5 (w copied, zeros, the image inside, its columns, the product); a batch norm: 14; a ReLU: 1
FORWARD = 402
LOSS = 13
BACKWARD = 487  # a convolution: 6, with stride 2 27; a batch norm: 13; a ReLU: 1; copies of gradients: 61
UPDATE = 59  # one kernel for each parameter


def test_launches_of_a_training_step():
    net, data = build("resnet20", width=2).to("strict"), np.random.default_rng(0)
    opt = SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    x, y = to_device(data.random((2, 32, 32, 3), np.float32), "strict"), to_device(np.array([3, 7]), "strict")
    with counting() as forward:
        logits = net(Tensor(x))
    with counting() as loss_only:
        loss = cross_entropy(logits, y)
    with counting() as backward:
        loss.backward()
    with counting() as update:
        opt.step()
    for part, most in ((forward, FORWARD), (loss_only, LOSS), (backward, BACKWARD), (update, UPDATE)):
        assert part.launches.total() <= most, part.launches
        assert not part.uploads and not part.downloads and not part.waits
    assert forward.launches["batch_norm"] == 19 and update.launches == {"sgd": len(opt.params)}


def test_a_step_of_the_training_loop_uploads_one_batch_and_waits_for_nothing(tmp_path):
    """The loss and the correct answers of 20 steps are read together."""
    data, costs = shapes10(44, 8), []

    def watch(run):
        costs.append((sum(made.uploads.values()), dict(made.downloads), dict(made.waits)))

    with counting() as made:
        fit(
            Config.from_recipe("fast", model="resnet8", width=2, batch_size=2, epochs=1, device="strict"),
            tmp_path / "run",
            dataset=data,
            watch=watch,
        )
    assert len(costs) == 1 + 22 + 1
    for step, (before, after) in enumerate(zip(costs[:-2], costs[1:-1], strict=True), start=1):
        assert after[0] - before[0] == 2, "images and labels"
        assert (after[1:] != before[1:]) == (step == 20), f"step {step}"
    read = {"float(x)": 20, "int(x)": 20}
    assert costs[20][1:] == (read, read)


def test_dropout_costs_one_upload_the_mask_drawn_on_the_host():
    _, x, _ = arrays("strict")
    with counting() as made:
        dropout(Tensor(x), 0.5, rng())
    assert (made.uploads.total(), made.waits.total(), made.launches.total()) == (1, 0, 1)


def test_evaluation_waits_for_nothing_until_its_end(monkeypatch):
    data, net = shapes10(20, 40), build("resnet8", width=2).to("strict")
    with counting() as made:
        evaluate(net, data.test_images, data.test_labels, Normalise.channels(data.train_images), batch_size=10)
    assert made.uploads.total() == 1 + 2 * 4 and made.waits == {"float(x)": 4, "int(x)": 4}


def test_labels_are_checked_on_the_host_before_they_go_to_the_device(tmp_path):
    data = shapes10(20, 8)
    data.train_labels[:] = 10
    with counting() as made, pytest.raises(ValueError, match=r"labels: expected 0\.\.9, got 10\.\.10"):
        fit(
            Config.from_recipe("fast", model="resnet8", width=2, batch_size=10, epochs=1, device="strict"),
            tmp_path / "run",
            dataset=data,
        )
    assert made.waits.total() == 0


# ---- the command line


@pytest.fixture
def small_data(monkeypatch):
    monkeypatch.setattr(config, "shapes10", lambda: shapes10(60, 20))
    monkeypatch.setattr(config, "find_cifar10", list)
    monkeypatch.delenv("MINIRES_DATA", raising=False)


def test_train_eval_predict_and_resume_run_on_it(status_of, small_data, tmp_path, capsys):
    Image.new("RGB", (32, 32), (200, 20, 20)).save(tmp_path / "red.png")
    outputs, rows = [], []
    for device in ("cpu", "strict"):
        out, on_it = tmp_path / device, ("--device", device)
        assert status_of("train", "resnet8", "--epochs", 1, "--batch-size", 20, "--out", out, *on_it) == 0
        assert read_config(out).device == device
        rows.append(json.loads((out / "metrics.jsonl").read_text(encoding="utf-8")))
        capsys.readouterr()
        assert (
            status_of("eval", tmp_path / "cpu", *on_it)
            == status_of("predict", tmp_path / "cpu", tmp_path / "red.png", *on_it)
            == 0
        )
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and "20 test images of shapes10" in outputs[0]
    for name in ("train_loss", "train_acc", "test_loss"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-3)
    assert status_of("train", "--resume", tmp_path / "strict", "--device", "cpu") == 0  # files name no device
