"""Training, evaluation and resuming give NumPy's results on the pretend GPU, and with `pytest -m gpu` on a GPU."""

import shutil

import numpy as np
import pytest

from minires.backend import device_of, to_device
from minires.data import Loader, Normalise, shapes10
from minires.devices import doctor, strict
from minires.devices.doctor import gpu_status
from minires.functional import cross_entropy, dropout
from minires.optim import SGD, clip_grad_norm, one_cycle
from minires.resnet import build
from minires.tensor import Tensor
from minires.training.config import Config, read_config
from minires.training.loop import evaluate, fit
from minires.training.run import load_run

DATA = shapes10(170, 40)
SMALL = {"model": "resnet8", "width": 4, "batch_size": 16, "epochs": 2, "threads": 1}  # 10 steps an epoch


@pytest.fixture(params=["strict", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """A device other than the CPU. Without a GPU, its tests are skipped with the reason."""
    assert strict.xp  # imported, and so registered
    if request.param == "gpu" and (status := gpu_status()).state != "ready":
        pytest.skip(status.sentence)
    return request.param


def test_the_selftest(device):
    size = {"batch": 4, "steps": 1} if device == "strict" else {}
    passed, text = doctor.selftest(device, **size)
    print(text)
    assert passed, text


def train_by_hand(device, steps=20):
    """Losses and weights after steps with everything that changes them, in float64, where rounding stays small."""
    net = build("resnet8", seed=0).astype(np.float64).to(device)
    opt = SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, decay_bias_and_norm=False)
    loader = Loader(
        DATA.train_images,
        DATA.train_labels,
        8,
        normalise=Normalise.channels(DATA.train_images),
        shuffle=True,
        augment=True,
        drop_last=True,
    )
    rate, losses, norms = one_cycle(0.1, steps), [], []
    for step, (x, y) in zip(range(steps), loader.epoch(), strict=False):
        opt.lr = rate(step)
        images = dropout(Tensor(to_device(x.astype(np.float64), device)), 0.1, np.random.default_rng(step))
        loss = cross_entropy(net(images), y, label_smoothing=0.1)
        loss.backward()
        norms.append(float(clip_grad_norm(opt.params, 1.0)))
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    assert len(losses) == steps and all(device_of(p.data) == device for p in net.parameters())
    return {"losses": np.array(losses), "norms": np.array(norms)} | net.state_dict()


def test_twenty_steps_of_training_as_with_numpy(device):
    start, expected, found = train_by_hand("cpu", 0), train_by_hand("cpu"), train_by_hand(device)
    change = np.abs(expected["fc.weight"] - start["fc.weight"]).max()
    assert change > 0.1 * np.abs(start["fc.weight"]).max()
    for name in expected:
        assert np.abs(found[name] - expected[name]).max() <= 1e-6 * np.abs(expected[name]).max(), name


def test_evaluation_as_with_numpy(device):
    net, normalise = build("resnet8", seed=0), Normalise.channels(DATA.train_images)
    expected = evaluate(net, DATA.test_images, DATA.test_labels, normalise, batch_size=15)
    found = evaluate(net.to(device), DATA.test_images, DATA.test_labels, normalise, batch_size=15)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_stopped_run_resumes_to_the_same_result_on_the_device_and_on_the_cpu(device, tmp_path):
    complete, half = tmp_path / "complete", tmp_path / "half"
    config = Config.from_recipe("fast", **SMALL, device=device)
    rows = fit(config, complete, dataset=DATA)

    def stop(run):
        if run.progress.step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, half, dataset=DATA, watch=stop)
    shutil.copytree(half, tmp_path / "on the CPU")
    resumed = fit(read_config(half), half, resume=True, dataset=DATA)
    on_the_cpu = fit(read_config(half, device="cpu"), tmp_path / "on the CPU", resume=True, dataset=DATA)
    for other in (resumed, on_the_cpu):
        assert [row["step"] for row in other] == [row["step"] for row in rows] == [10, 20]
        for name in ("lr", "train_loss", "test_loss"):
            assert other[-1][name] == pytest.approx(rows[-1][name], rel=1e-3)
    net, normalise, _ = load_run(complete)  # files name no device
    loss, accuracy = evaluate(net, DATA.test_images, DATA.test_labels, normalise)
    assert loss == pytest.approx(rows[-1]["test_loss"], rel=1e-3)
    assert accuracy == pytest.approx(rows[-1]["test_acc"], abs=0.03)
