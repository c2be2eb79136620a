"""The figures of the results, drawn from the recorded runs: each is None if too little is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean

from minires import plots
from minires.paper.records import MOMENTS, PARTS, Record, by_option, pairs, records
from minires.plots import NotebookFigure

WINDOW = 20  # steps of a running mean

Line = tuple[Sequence[float], Sequence[float]]  # x and y


def plot_depths(results: Path, experiment: str) -> NotebookFigure | None:
    """Error over the epochs: plain nets on the left, residual nets on the right (the paper's Figures 1 and 6)."""
    found = pairs(results, experiment)
    return plots.errors({name: [r.out for r in pair] for name, pair in found.items()}) if found else None


def observed(results: Path) -> dict[str, Record]:
    """The four nets of the degradation experiment, if layer statistics of all are recorded; else none."""
    found = {run: r for run, r in records(results, "degradation").items() if len(r.layers) > 1}
    return found if len(found) == 4 else {}


def plot_figure6(results: Path) -> NotebookFigure | None:
    """Error, loss and learning rate of all four nets (the paper's Figure 6)."""
    nets = observed(results)
    return plots.curves([r.out for r in nets.values()]) if nets else None


def plot_responses(results: Path) -> NotebookFigure | None:
    """Response of each layer, in layer order and sorted (the paper's Figure 7)."""
    found = {run: list(r.layers[-1]["response"].values()) for run, r in observed(results).items()}
    panels = {
        "in layer order": {run: by_layer(values) for run, values in found.items()},
        "sorted": {run: by_layer(sorted(values, reverse=True)) for run, values in found.items()},
    }
    return plots.lines(panels, "layer", "standard deviation of the response") if found else None


def plot_gradients(results: Path) -> NotebookFigure | None:
    """Norm of each layer's gradient, at three moments of training."""
    nets = observed(results)
    panels = {
        moment: {run: by_layer(r.layers[i]["gradient"].values()) for run, r in nets.items()}
        for moment, i in MOMENTS.items()
    }
    return plots.lines(panels, "layer", "norm of dL/dw", log=True) if nets else None


def plot_construction(results: Path) -> NotebookFigure | None:
    """Error of plain nets after identity layers were inserted, over the epochs."""
    found = [r for r in records(results, "construction").values() if r.rows]
    if not found:
        return None
    panels: dict[str, dict[str, Line]] = {title: {} for title in PARTS}
    for r in found:
        name, epochs = f"{r.config['model']}, rate {r.config['lr']}", [row["epoch"] for row in r.rows]
        panels["training"][name] = epochs, r.errors("train")
        panels["test"][name] = [0, *epochs], [r.initial_error(), *r.errors("test")]
    scratch = records(results, "degradation").get("plain56")
    if scratch:
        name, last = f"plain56 from scratch, after {scratch.epochs()} epochs", max(len(r.rows) for r in found)
        for title, part in PARTS.items():
            panels[title][name] = [0, last], 2 * [scratch.error(part)]
    return plots.lines(panels, "further epochs", "error (%)")


def plot_zero_residual(results: Path) -> NotebookFigure | None:
    """Error of plain and residual blocks that learn the identity, over the steps."""
    found = {
        f"{run} blocks": ([row["step"] for row in r.rows], [row["train_loss"] for row in r.rows])
        for run, r in records(results, "zero-residual").items()
    }
    return plots.lines({"learning the identity": found}, "step", "|y - x|² / |x|²", log=True) if found else None


def plot_shortcuts(results: Path) -> NotebookFigure | None:
    """Test error of each option, one point per seed."""
    found = {f"option {o}": [r.error("test") for r in runs] for o, runs in by_option(results).items()}
    return plots.spread(found, "test error (%)") if found else None


def plot_very_deep(results: Path) -> NotebookFigure | None:
    """Training loss of the very deep nets over the first steps."""
    found = {
        run: ([row["step"] for row in r.steps], running_mean([row["train_loss"] for row in r.steps]))
        for run, r in records(results, "very-deep").items()
    }
    ylabel = f"training loss, mean of {WINDOW} steps"
    return plots.lines({"the first steps": found}, "step", ylabel, log=True) if found else None


def plot_paper(results: Path) -> NotebookFigure | None:
    """Error, loss and learning rate of the runs of the paper's recipe."""
    found = [r.out for r in records(results, "paper").values() if r.rows]
    return plots.curves(found) if found else None


def by_layer(values: Iterable[float]) -> Line:
    """One value per layer, over 1, 2, 3, ..."""
    y = list(values)
    return range(1, len(y) + 1), y


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and up to WINDOW - 1 values before it."""
    return [mean(values[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(values))]


Plot = Callable[[Path], NotebookFigure | None]
FIGURES: dict[str, dict[str, tuple[str, Plot]]] = {  # below each table: file, caption, and how it is drawn
    "degradation": {
        "degradation/degradation.png": (
            "error of plain nets and of residual nets over the epochs",
            lambda results: plot_depths(results, "degradation"),
        ),
        "degradation/figure6.png": ("the same four runs: error, loss and learning rate", plot_figure6),
    },
    "depth": {
        "depth/depth.png": ("error over the epochs, recipe fast", lambda results: plot_depths(results, "depth")),
    },
    "gradients": {"degradation/gradients.png": ("norm of each layer's gradient", plot_gradients)},
    "responses": {"degradation/responses.png": ("standard deviation of each layer's response", plot_responses)},
    "construction": {
        "construction/construction.png": ("error after identity layers were inserted", plot_construction),
    },
    "zero-residual": {
        "zero-residual/zero-residual.png": (
            "error of plain and residual blocks as they learn the identity",
            plot_zero_residual,
        ),
    },
    "shortcuts": {"shortcuts/shortcuts.png": ("test error of options A, B and C", plot_shortcuts)},
    "very-deep": {"very-deep/very-deep.png": ("training loss of the first steps", plot_very_deep)},
    "paper": {"paper/paper.png": ("error, loss and learning rate of the paper's recipe", plot_paper)},
}


def draw(results: Path) -> list[Path]:
    """Draw every figure whose runs are recorded, as a PNG file in its experiment's folder."""
    drawn = []
    for figures in FIGURES.values():
        for file, (_, plot) in figures.items():
            figure = plot(results)
            if figure:
                plots.save(figure, results / file)
                drawn.append(results / file)
    return drawn
