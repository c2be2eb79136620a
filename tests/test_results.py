"""Figures that the README tells are those of the recorded files."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_speed_table_is_the_recorded_one(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "step", raising=False)
    from step import table

    recorded = json.loads((ROOT / "results" / "bench.json").read_text(encoding="utf-8"))
    assert table(recorded) in README


def test_the_accuracy_on_cifar10_is_the_recorded_one():
    run = ROOT / "results" / "first-cifar10"
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert config["config"]["model"] == "resnet20" and config["dataset"]["name"] == "cifar10"
    assert last["epoch"] == config["config"]["epochs"] == 3
    assert last["test_acc"] >= 0.75
    assert f"reaches {last['test_acc']:.1%} on the test set in {last['seconds'] / 60:.0f} minutes" in README


@pytest.mark.parametrize("name", ["bench.json", "ladder.json"])
def test_recorded_figures_tell_their_machine(name):
    machine = json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))["machine"]
    assert {"processor", "cores", "system", "python", "numpy"} <= set(machine)
