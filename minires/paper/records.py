"""The recorded runs of the experiments, read from the results folder."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

from minires.files import FileError, read_rows
from minires.paper.experiments import EXPERIMENTS, INIT_FROM, LAYERS, STEPS, read_json
from minires.resnet import build
from minires.summary import summarise
from minires.training.config import CONFIG, PAPER_STEPS
from minires.training.folder import METRICS

PAPER_EPOCHS = round(PAPER_STEPS * 128 / 50_000)
PARTS = {"training": "train", "test": "test"}  # title and key
MOMENTS = {"before training": 0, "after an epoch": 1, "at the end": -1}  # title and row of layers.jsonl


def checkout(name: str) -> Path:
    """A folder or file of the checkout that minires comes from, as "results", whatever folder this runs in."""
    path = Path(__file__).parents[2] / name
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}; expected minires to be installed from its checkout: pip install -e ."
        )
    return path


class Record:
    """What a run has recorded so far. Raises FileError, with file and line, if that is damaged."""

    def __init__(self, out: Path):
        self.out, self.about = out, read_json(out / CONFIG)
        if not (isinstance(self.about, dict) and isinstance(self.about.get("config"), dict) and "steps" in self.about):
            raise FileError(f"{out / CONFIG} is damaged: expected an object with config and steps in JSON")
        self.config: dict[str, Any] = self.about["config"]
        epoch = ["step", "epoch", "train_acc", "test_acc"] if "model" in self.config else ["step"]
        self.rows = read_rows(out / METRICS, [*epoch, "train_loss"])
        self.layers = read_rows(out / LAYERS, ["step"])
        for number, row in enumerate(self.layers, start=1):
            if not all(isinstance(row.get(name), dict) for name in ("response", "gradient", "weight")):
                raise FileError(
                    f"{out / LAYERS}, line {number} is damaged: expected objects response, gradient and weight; "
                    "delete the line"
                )
        self.steps = read_rows(out / STEPS, ["step", "lr", "train_loss", "train_acc", "seconds"])
        self.init_from: dict[str, Any] = read_json(out / INIT_FROM) if (out / INIT_FROM).exists() else {}

    def errors(self, part: str) -> list[float]:
        """The error of "train" or "test" after each epoch, in percent."""
        return [100 * (1 - row[f"{part}_acc"]) for row in self.rows]

    def error(self, part: str, epoch: int = -1) -> float:
        """The error after the last epoch, or after the epoch with this index, in percent."""
        return self.errors(part)[epoch]

    def initial_error(self) -> float:
        """The test error with which a run with `init_from` started, in percent."""
        return 100 * (1 - float(self.init_from["after_test_acc"]))

    def cost(self) -> tuple[int, int]:
        """Parameters and multiply-adds of the net."""
        c = self.config
        total = summarise(build(c["model"], shortcut=c["shortcut"], width=c["width"])).total
        return total.parameters, total.multiply_adds

    def is_finished(self) -> bool:
        """Whether the run has done all steps of its recipe."""
        return bool(self.rows) and self.rows[-1]["step"] >= self.about["steps"]

    def epochs(self) -> str:
        """10, or 7 of 10 while the run is unfinished."""
        total = ceil(self.about["steps"] / (self.about["dataset"]["train"] // self.config["batch_size"]))
        done = self.rows[-1]["epoch"]
        return f"{done}" if self.is_finished() else f"{done} of {total}"

    def difference_from_paper(self) -> str:
        """Why the error differs from the paper's."""
        epochs = self.config["epochs"]
        if self.init_from:
            return f"{epochs} more epochs with the net of {self.init_from['source']}"
        if self.config["recipe"] == "fast":
            return f"recipe fast, {epochs} epochs instead of {PAPER_EPOCHS}"
        if epochs:
            return f"{epochs} epochs instead of {PAPER_EPOCHS}"
        return "the paper's recipe, " + ("another seed" if self.is_finished() else "unfinished")


def records(results: Path, experiment: str) -> dict[str, Record]:
    """The runs of an experiment that have recorded at least one row, by name."""
    found = {run: results / experiment / run for run in EXPERIMENTS[experiment]}
    return {run: Record(out) for run, out in found.items() if read_rows(out / METRICS) or read_rows(out / STEPS)}


def pairs(results: Path, experiment: str) -> dict[str, list[Record]]:
    """The runs with 20 and with 56 layers, plain and residual, where both nets have trained for an epoch."""
    runs = {run: r for run, r in records(results, experiment).items() if r.rows}
    found = {
        name: [runs[net] for net in (f"{family}20", f"{family}56") if net in runs]
        for name, family in (("plain", "plain"), ("residual", "resnet"))
    }
    return {name: pair for name, pair in found.items() if len(pair) == 2}


def by_option(results: Path) -> dict[str, list[Record]]:
    """The finished runs of the shortcut experiment, by option."""
    found: dict[str, list[Record]] = {}
    for r in records(results, "shortcuts").values():
        if r.is_finished():
            found.setdefault(r.config["shortcut"], []).append(r)
    return found
