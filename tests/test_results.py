"""The pages agree with the recorded files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from PIL import Image

from minires.paper.experiments import EXPERIMENTS, Training
from minires.paper.records import records
from minires.paper.tables import PAPER, fill
from minires.training.config import read_config, schedule_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PAGES = [RESULTS / "README.md", ROOT / "benchmarks" / "README.md"]
RUNS = [f"{experiment}/{run}" for experiment, runs in EXPERIMENTS.items() for run in runs]


@pytest.fixture
def no_training():
    """Skips if an experiment is running in this folder: its files are ahead of the tables."""
    for lock in RESULTS.glob("*/*/.lock"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            pytest.skip(f"{lock.parent.name} is being trained")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_of_a_page_are_those_of_the_recorded_files(page, no_training):
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert fill(text, RESULTS) == text, "rebuild them: python -m minires reproduce --tables"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.parent.name)
def test_every_figure_on_a_page_exists_and_is_not_blank(page):
    for name in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8")):
        pixels = np.asarray(Image.open(page.parent / name).convert("L"))
        assert min(pixels.shape) > 200 and (pixels < 128).mean() > 0.002, name


def test_the_readme_quotes_the_recorded_accuracies_and_the_recorded_speed():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = {name: records(RESULTS, name)["resnet20"].rows for name in ("first", "fast", "paper")}
    accuracy = {name: found[-1]["test_acc"] for name, found in rows.items()}
    minutes = {name: f"{found[-1]['seconds'] / 60:.0f} minutes" for name, found in rows.items()}
    assert len(rows["first"]) == 3 and accuracy["first"] >= 0.75
    assert f"reaches {accuracy['first']:.1%} on the test set in {minutes['first']}" in text
    assert f"reaches {accuracy['fast']:.2%} in {minutes['fast']}" in text
    assert f"reaches {accuracy['paper']:.2%} where the paper has {100 - PAPER['resnet20']:.2f}%" in text
    step = json.loads((ROOT / "benchmarks" / "bench.json").read_text(encoding="utf-8"))["step resnet20"]["minires"]
    assert f"takes about {step['ratio_median']:.1f} times as long as PyTorch's" in text


@pytest.mark.parametrize("run", RUNS)
def test_the_recorded_settings_are_those_of_the_experiment(run):
    experiment, name = run.split("/")
    kind, out = EXPERIMENTS[experiment][name], RESULTS / run
    if isinstance(kind, Training):
        assert kind.config_to_resume(out) and read_config(out).data == "cifar10"
    else:
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))["config"]
        assert type(kind)(**config) == kind


@pytest.mark.parametrize("run", [run for run in RUNS if not run.startswith("zero-residual")])
def test_the_recorded_learning_rates_are_those_of_the_schedule(run):
    experiment, name = run.split("/")
    r = records(RESULTS, experiment)[name]
    rate = schedule_of(EXPERIMENTS[experiment][name].config, r.about["steps"])
    rows = r.rows + r.steps
    assert rows and [row["lr"] for row in rows] == pytest.approx([rate(row["step"] - 1) for row in rows])


@pytest.mark.parametrize("name", ["bench.json", "ladder.json", "winograd_error.json"])
def test_recorded_speeds_name_their_machine(name):
    machine = json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))["machine"]
    assert {"processor", "cores", "system", "python", "numpy"} <= set(machine)


def test_unfinished_runs_have_a_checkpoint_and_finished_ones_none(no_training):
    for experiment, runs in EXPERIMENTS.items():
        for run, kind in runs.items():
            out = RESULTS / experiment / run
            if (out / "config.json").exists():
                assert kind.is_finished(out) != any(out.glob("checkpoints/*")), out
