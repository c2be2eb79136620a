"""The main job in small: a net learns from images, by the commands that a newcomer types."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires
from minires.data import Dataset, shapes10
from minires.functional import cross_entropy
from minires.tensor import Tensor, no_grad
from minires.training.config import Config, open_data
from minires.training.loop import fit
from minires.training.run import Run, load_run

DATA_DIR = os.environ.get("MINIRES_DATA")
real_data = pytest.mark.skipif(not DATA_DIR, reason="MINIRES_DATA does not name a folder with CIFAR-10")


def command(folder: Path, *arguments: object) -> str:
    repo = str(Path(minires.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "minires", *map(str, arguments)],
        cwd=folder,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": repo},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def last_row(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])


@pytest.mark.parametrize("name", ["resnet20", "plain20", "bottleneck29"])
def test_an_untrained_net_is_as_unsure_as_ten_equal_classes(name, tmp_path):
    run = Run(Config.from_recipe(model=name), tmp_path, shapes10(128, 128))
    run.net.train()
    with no_grad():
        loss = cross_entropy(run.net(Tensor(run.normalise(run.test_images))), run.test_labels).item()
    assert loss == pytest.approx(math.log(10), rel=0.1)


def test_64_images_are_learnt_by_heart(tmp_path):
    few = shapes10(64, 1)
    images, labels = few.train_images, few.train_labels
    often = np.tile(np.arange(64), 20)  # 20 steps an epoch
    data = Dataset("shapes10", images[often], labels[often], images, labels, few.classes)
    config = Config.from_recipe(model="resnet8", batch_size=64, epochs=7, lr=0.1, augment=False)
    rows = fit(config, tmp_path / "run", dataset=data)
    assert rows[-1]["test_acc"] == 1  # the same 64


def test_the_command_that_a_newcomer_types_and_eval_agree(tmp_path):
    out = command(tmp_path, "train", "resnet8", "--data", "shapes10", "--epochs", 1)
    (run,) = (tmp_path / "runs").iterdir()
    files = ("config.json", "metrics.jsonl", "curves.png", "model.safetensors")
    assert all((run / name).stat().st_size > 0 for name in files)
    row = last_row(run)
    assert (row["epoch"], row["step"]) == (1, 39) and row["train_loss"] < 2.5
    assert f"{row['test_acc']:.2%}" in out
    assert f"accuracy {row['test_acc']:.2%}" in command(tmp_path, "eval", run)


@real_data
def test_auto_finds_cifar10():
    data = open_data("auto")
    assert (data.name, data.train_images.shape, data.test_images.shape) == (
        "cifar10",
        (50_000, 32, 32, 3),
        (10_000, 32, 32, 3),
    )


@real_data
@pytest.mark.slow
def test_one_epoch_of_a_small_net_on_cifar10(tmp_path):
    command(tmp_path, "train", "resnet8", "--epochs", 1, "--out", "run")
    assert last_row(tmp_path / "run")["test_acc"] > 0.4
    _, _, info = load_run(tmp_path / "run")
    assert info["data"] == "cifar10"
