"""Figures that the README tells are those of the recorded files."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from PIL import Image

from minires.paper.experiments import EXPERIMENTS
from minires.paper.tables import fill

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_speed_table_is_the_recorded_one(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "step", raising=False)
    from step import table

    recorded = json.loads((ROOT / "benchmarks" / "bench.json").read_text(encoding="utf-8"))
    assert table(recorded) in README


def test_the_accuracy_on_cifar10_is_the_recorded_one():
    run = ROOT / "results" / "first" / "resnet20"
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert config["config"]["model"] == "resnet20" and config["dataset"]["name"] == "cifar10"
    assert last["epoch"] == config["config"]["epochs"] == 3
    assert last["test_acc"] >= 0.75
    assert f"reaches {last['test_acc']:.1%} on the test set in {last['seconds'] / 60:.0f} minutes" in README


@pytest.mark.parametrize("name", ["bench.json", "ladder.json"])
def test_recorded_figures_tell_their_machine(name):
    machine = json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))["machine"]
    assert {"processor", "cores", "system", "python", "numpy"} <= set(machine)


@pytest.fixture
def no_training():
    """Skips where an experiment is running in this folder: its files are ahead of the tables."""
    for lock in (ROOT / "results").glob("*/*/.lock"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            pytest.skip(f"{lock.parent.name} is being trained")


@pytest.mark.parametrize("page, folder", [("README.md", "results/"), ("results/README.md", "")])
def test_the_tables_of_the_experiments_are_those_of_the_recorded_files(page, folder, no_training):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert fill(text, ROOT / "results", folder) == text, "make them anew: python -m minires reproduce --tables"


def test_every_figure_on_the_pages_is_there_and_no_blank():
    for page in (ROOT / "README.md", ROOT / "results" / "README.md"):
        for name in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8")):
            pixels = np.asarray(Image.open(page.parent / name).convert("L"))
            assert min(pixels.shape) > 200 and (pixels < 128).mean() > 0.002, name


def test_unfinished_runs_have_a_checkpoint_and_finished_ones_none(no_training):
    for experiment, runs in EXPERIMENTS.items():
        for run, kind in runs.items():
            out = ROOT / "results" / experiment / run
            if (out / "config.json").exists():
                assert kind.finished(out) != any(out.glob("checkpoints/*")), out
