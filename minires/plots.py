"""Plots of measurements: errors, images, weights, speeds. `course/drawings.py` draws how things work.

Each function returns a matplotlib Figure and writes it to `path` if given. Figures are made without pyplot: they
need no display, keep no global state, and show themselves in a notebook. The colours are those of Okabe and Ito,
which colour-blind people can distinguish; line styles and markers repeat the distinction.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from math import ceil, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator

from minires.backend import to_host
from minires.data import Dataset
from minires.files import FileError, output_path, printable, read_rows, write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MARKERS = "os^Dv*P"
INK = "#333333"
TRAINING: dict[str, Any] = {"linestyle": "--", "linewidth": 1.2, "markerfacecolor": "white"}
TESTING: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8}
LARGEST = 1e100  # of a figure that is drawn; the axes' arithmetic overflows on much larger ones
CJK_FONTS = {
    "Arial Unicode MS",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "PingFang SC",
    "SimHei",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
}
PLAIN: dict[str, Any] = {  # for names: a $ begins no formula, and those of the fonts that are installed fill gaps
    "parse_math": False,
    "fontfamily": ["DejaVu Sans", *sorted(CJK_FONTS & {font.name for font in fontManager.ttflist})],
}
MAX_IMAGES = 40  # more are too small to see in one figure


class NotebookFigure(Figure):
    """A Figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return self.to_bytes("png")

    def to_bytes(self, format: str) -> bytes:
        """The figure as the content of a file of this format."""
        file = BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box
            self.savefig(file, format=format)
        return file.getvalue()


def save(figure: NotebookFigure, path: str | Path | None) -> NotebookFigure:
    """Write the figure to `path`, a PNG file if it has no suffix, unless `path` is None. Returns the figure.

    Its folder is created. Raises FileError if the file can't be written, ValueError for a suffix of no picture format.
    """
    if path is not None:
        path = output_path(path, ".png")
        content = figure.to_bytes(path.suffix[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return figure


def tint(colour: str, share: float = 0.35) -> tuple[float, float, float]:
    """A mix of `colour`, in the proportion `share`, and white."""
    r, g, b = (share * part + 1 - share for part in to_rgb(colour))
    return r, g, b


def notebook_style() -> None:
    """Give a notebook's own pyplot plots the colours, size and resolution of the figures here."""
    rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.figsize": (6.4, 3.4),
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    )


def _figure(width: float, height: float) -> NotebookFigure:
    return NotebookFigure(figsize=(width, height), dpi=120, layout="constrained")


def _style(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th line or group of points."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _line(axes: Axes, i: int, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """Draw the i-th line, with at most about 12 markers."""
    axes.plot(x, y, markersize=4, markevery=max(1, len(x) // 12), **_style(i), **style)


def _names(names: Iterable[str]) -> list[str]:
    """Names as they can be drawn."""
    return [printable(name) for name in names]


def _integer_axis(axes: Axes, xlabel: str) -> None:
    """Label an x axis that counts (epochs, steps, layers) and put its ticks at integers."""
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


# ---- runs


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl, one dict per epoch.

    Raises FileNotFoundError if the folder has no such file, ValueError with file and line if a line is damaged.
    """
    file = Path(run) / "metrics.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{run} has no metrics.jsonl; expected the folder of a run, after one epoch or more")
    rows = read_rows(file, ["epoch"])
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            if not _can_be_drawn(value) or (name == "epoch" and not isfinite(value)):
                raise FileError(
                    f"{file}, line {number} is damaged: {name}: expected a number up to {LARGEST:g}, "
                    f"got {str(value)[:40]}; delete the line"
                )
    if not rows:
        raise FileError(f"{file} is empty: the run has not finished its first epoch")
    return rows


def _can_be_drawn(value: Any) -> bool:
    """Whether a value is null or a number; NaN and infinity leave a gap in a line."""
    return value is None or (isinstance(value, int | float) and not LARGEST < abs(value) < float("inf"))


def curves(runs: str | Path | Sequence[str | Path], path: str | Path | None = None) -> NotebookFigure:
    """Error, loss and, below, learning rate over the epochs of one or several run folders, in the style of the
    paper's Figure 6: training dashed, testing solid. Raises what `read_metrics` raises."""
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders:
        raise ValueError("curves: expected at least one run folder, got none")
    tables = [read_metrics(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    labels = [str(f) if names.count(name) > 1 else name for f, name in zip(folders, names, strict=True)]

    figure = _figure(8, 5)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    error, loss = (figure.add_subplot(grid[0, i]) for i in range(2))
    rate = figure.add_subplot(grid[1, :])
    splits = set()
    for i, rows in enumerate(tables):
        epochs = [row["epoch"] for row in rows]
        split = "test" if any("test_acc" in row for row in rows) else "val"
        splits.add({"test": "test", "val": "validation"}[split])
        for part, style in (("train", TRAINING), (split, TESTING)):
            _line(error, i, epochs, _error(rows, part), **style)
            _line(loss, i, epochs, _column(rows, f"{part}_loss"), **style)
        _line(rate, i, epochs, _column(rows, "lr"), linewidth=1.2)
    for axes, title in ((error, "error (%)"), (loss, "loss"), (rate, "learning\nrate")):
        axes.set_ylabel(title)
        _integer_axis(axes, "epoch")
    for axes in (error, rate):
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    handles = [Line2D([], [], label=name, **_style(i)) for i, name in enumerate(labels)]
    for label, style in (("training", TRAINING), (" or ".join(sorted(splits)), TESTING)):
        handles.append(Line2D([], [], color=INK, marker="o", markersize=4, label=label, **style))
    _legend_above(figure, handles)
    return save(figure, path)


def _legend_above(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Draw a legend in as many columns as fit into the figure's width."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    fit = int(11 * figure.get_figwidth()) // (6 + longest)
    names = _names(str(handle.get_label()) for handle in handles)
    columns = max(1, min(fit, len(handles)))
    legend = figure.legend(handles, names, loc="outside upper center", frameon=False, ncols=columns)
    for text in legend.get_texts():
        text.set(**PLAIN)


def _column(rows: list[dict[str, Any]], key: str) -> list[float]:
    """The values of `key`; nan, which leaves a gap in the line, where an epoch has none."""
    return [nan if row.get(key) is None else float(row[key]) for row in rows]


def _error(rows: list[dict[str, Any]], part: str) -> list[float]:
    """The error after each epoch, in percent."""
    return [100 * (1 - accuracy) for accuracy in _column(rows, f"{part}_acc")]


def errors(panels: Mapping[str, Sequence[str | Path]], path: str | Path | None = None) -> NotebookFigure:
    """Error over the epochs: one panel per list of run folders, on a common scale, in the style of the paper's
    Figure 6: training dashed, testing solid. Raises what `read_metrics` raises."""
    figure = _figure(4 * len(panels), 3.8)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, runs) in zip(row, panels.items(), strict=True):
        for i, run in enumerate(runs):
            rows = read_metrics(run)
            epochs = [r["epoch"] for r in rows]
            _line(axes, i, epochs, _error(rows, "train"), **TRAINING)
            _line(axes, i, epochs, _error(rows, "test"), label=printable(Path(run).name), **TESTING)
        axes.set_title(printable(title), **PLAIN)
        _integer_axis(axes, "epoch")
        for text in axes.legend(frameon=False).get_texts():
            text.set(**PLAIN)
    row[0].set_ylabel("error (%)")
    row[0].set_ylim(bottom=0)
    handles = [
        Line2D([], [], color=INK, label=name, **style) for name, style in (("training", TRAINING), ("test", TESTING))
    ]
    figure.legend(handles=handles, loc="outside upper center", frameon=False, ncols=2)
    return save(figure, path)


def lines(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    xlabel: str,
    ylabel: str,
    path: str | Path | None = None,
    log: bool = False,
) -> NotebookFigure:
    """Panels on a common scale: {title: {name: (x, y)}}. A name has the same style in every panel."""
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    figure = _figure(max(6.4, 4 * len(panels)), 3.8)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, panel) in zip(row, panels.items(), strict=True):
        for name, (x, y) in panel.items():
            _line(axes, names.index(name), x, y, linewidth=1.4, label=name)
        axes.set_title(title)
        _integer_axis(axes, xlabel)
    row[0].set_ylabel(ylabel)
    row[0].set_yscale("log" if log else "linear")
    _legend_above(figure, [Line2D([], [], label=name, **_style(i)) for i, name in enumerate(names)])
    return save(figure, path)


def spread(groups: Mapping[str, Sequence[float]], ylabel: str, path: str | Path | None = None) -> NotebookFigure:
    """The values of each group as points, with a line at their mean."""
    figure = _figure(1.6 + 1.2 * len(groups), 3.4)
    axes = figure.add_subplot()
    for i, values in enumerate(groups.values()):
        axes.plot([i] * len(values), values, linestyle="none", markersize=7, **_style(i))
        axes.plot([i - 0.25, i + 0.25], 2 * [np.mean(values)], color=INK, linewidth=1.5)
    axes.set_xticks(range(len(groups)), _names(groups), **PLAIN)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", alpha=0.3)
    return save(figure, path)


# ---- images


def contact_sheet(dataset: Dataset, path: str | Path | None = None, per_class: int = 8) -> NotebookFigure:
    """The first `per_class` training images of every class, one row per class."""
    if per_class < 1:
        raise ValueError(f"contact_sheet: per_class: expected a positive integer, got {per_class}")
    classes, (h, w) = len(dataset.classes), dataset.train_images.shape[1:3]
    gap = 2
    sheet = np.full((classes * (h + gap), per_class * (w + gap), 3), 255, np.uint8)
    for k in range(classes):
        of_class = np.flatnonzero(dataset.train_labels == k)[:per_class]
        for j, image in enumerate(dataset.train_images[of_class]):
            top, left = k * (h + gap), j * (w + gap)
            sheet[top : top + h, left : left + w] = image
    figure = _figure(1.2 + 0.55 * per_class, 0.4 + 0.55 * classes)
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(printable(dataset.name), **PLAIN)
    axes.set_xticks([])
    axes.set_yticks([k * (h + gap) + h / 2 for k in range(classes)], _names(dataset.classes), **PLAIN)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return save(figure, path)


def gallery(
    images: Sequence[np.ndarray], captions: Sequence[str], path: str | Path | None = None, columns: int = 8
) -> NotebookFigure:
    """Images (H, W, 3) in rows of `columns`, each under its caption."""
    if not 1 <= len(images) <= MAX_IMAGES:
        raise ValueError(f"gallery: expected 1 to {MAX_IMAGES} images, got {len(images)}")
    columns = min(columns, len(images))
    rows, high = ceil(len(images) / columns), 1 + max(caption.count("\n") for caption in captions)
    figure = _figure(1.05 * columns, (1.0 + 0.15 * high) * rows)
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for axes in cells:
        axes.set_axis_off()
    for axes, image, caption in zip(figure.axes, images, captions, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(caption, fontsize=7, **PLAIN)
    return save(figure, path)


def filters(w: Any, path: str | Path | None = None, columns: int = 8) -> NotebookFigure:
    """Each filter of w (KH, KW, 3, F) as a colour image: 0 is mid-grey, its largest weight has full intensity."""
    w = to_host(w)
    if w.ndim != 4 or w.shape[2] != 3:
        raise ValueError(f"filters: w: expected shape (KH, KW, 3, F), filters over three colours, got {w.shape}")
    kh, kw, _, f = w.shape
    rows, columns = ceil(f / columns), min(f, columns)
    sheet = np.ones((rows * (kh + 1) - 1, columns * (kw + 1) - 1, 3))
    for k in range(f):
        top, left = k // columns * (kh + 1), k % columns * (kw + 1)
        sheet[top : top + kh, left : left + kw] = 0.5 + 0.5 * w[..., k] / max(float(np.abs(w[..., k]).max()), 1e-30)
    figure = _figure(0.8 * columns, 0.8 * rows)
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    return save(figure, path)


# ---- predictions


def prediction(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    found: Sequence[Sequence[tuple[str, float]]],
    path: str | Path | None = None,
) -> NotebookFigure:
    """Each image (H, W, 3) with its name, next to a bar for the probability of each class in `found`, the result
    of `predict`."""
    if not 1 <= len(images) <= MAX_IMAGES:
        raise ValueError(f"prediction: expected 1 to {MAX_IMAGES} images, got {len(images)}")
    figure = _figure(6, 0.5 + 1.7 * len(images))
    grid = figure.add_gridspec(len(images), 2, width_ratios=(1, 2.4))
    for i, (image, name, classes) in enumerate(zip(images, names, found, strict=True)):
        seen, bars = (figure.add_subplot(grid[i, j]) for j in range(2))
        seen.imshow(image, interpolation="nearest")
        seen.set_axis_off()
        name = printable(name)
        short = name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"
        seen.set_title(short, fontsize=8, **PLAIN)
        places, p = range(len(classes)), [probability for _, probability in classes]
        drawn = bars.barh(places, p, color=[COLOURS[0]] + [COLOURS[5]] * (len(p) - 1))
        bars.bar_label(drawn, [f"{100 * value:.1f} %" for value in p], padding=3, fontsize=8)
        bars.set_yticks(places, _names(name for name, _ in classes), **PLAIN)
        bars.invert_yaxis()
        bars.set_xlim(0, 1.15)  # leaves room for the label of a full bar
        bars.set_xticks([0, 0.25, 0.5, 0.75, 1])
        bars.spines[["top", "right"]].set_visible(False)
    bars.set_xlabel("probability")
    return save(figure, path)


def confusion(matrix: Any, classes: Sequence[str], path: str | Path | None = None) -> NotebookFigure:
    """Confusion matrix: how often the net predicted each class (column) for images of each class (row).

    Correct predictions are blue, mistakes orange, darker where there are more; an empty cell is 0. Raises ValueError
    if the matrix does not fit the classes.
    """
    counts, k = np.asarray(matrix), len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"confusion: matrix: expected shape ({k}, {k}), one row per class, got {counts.shape}")
    right = np.eye(k, dtype=bool)
    most = np.where(right, max(1, counts[right].max(initial=0)), max(1, counts[~right].max(initial=0)))
    figure = _figure(1.6 + 0.46 * k, 1.3 + 0.4 * k)
    axes = figure.add_subplot(xlim=(0, k), ylim=(k, 0), xlabel="predicted class", ylabel="true class")
    for i, j in np.ndindex(k, k):
        colour = tint(COLOURS[0] if i == j else COLOURS[1], 0.6 * counts[i, j] / most[i, j])
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, edgecolor="#dddddd", linewidth=0.6, gid="cell"))
        if counts[i, j]:
            axes.text(j + 0.5, i + 0.5, str(counts[i, j]), ha="center", va="center_baseline", fontsize=8)
    axes.set_xticks(np.arange(k) + 0.5, _names(classes), rotation=45, ha="right", rotation_mode="anchor", **PLAIN)
    axes.set_yticks(np.arange(k) + 0.5, _names(classes), **PLAIN)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return save(figure, path)


# ---- speed


def roofline(
    roofs: Mapping[str, tuple[float, float]],
    points: Mapping[str, Mapping[str, tuple[float, float]]],
    path: str | Path | None = None,
) -> NotebookFigure:
    """Roofline: attainable and measured speed over arithmetic intensity, both on a logarithmic scale.

    roofs: {machine: (peak in GFLOP/s, memory bandwidth in GB/s)}. No operation is faster than
    min(peak, bandwidth * intensity). points: {kind: {name: (intensity in FLOP/byte, measured GFLOP/s)}}.
    Source: Williams, Waterman, Patterson 2009, "Roofline: an insightful visual performance model".
    """
    measured = [point for kind in points.values() for point in kind.values()]
    low = min(x for x, _ in measured) / 2
    high = max([x for x, _ in measured] + [peak / bandwidth for peak, bandwidth in roofs.values()]) * 4
    figure = _figure(8, 4.6)
    axes = figure.add_subplot()
    for i, (name, (peak, bandwidth)) in enumerate(roofs.items()):
        ridge = peak / bandwidth
        axes.plot(
            [low, ridge, high],
            [bandwidth * low, peak, peak],
            color=INK,
            linewidth=1.6,
            linestyle=("-", "--", ":")[i % 3],
            label=name,
            gid="roof",
        )
    for i, (kind, named) in enumerate(points.items()):
        axes.plot(*zip(*named.values(), strict=True), linestyle="none", markersize=7, label=kind, **_style(i))
        for name, (x, y) in named.items():
            axes.annotate(name, (x, y), (0, -6), textcoords="offset points", fontsize=8, ha="center", va="top")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=min(y for _, y in measured) / 3)
    axes.set_xlabel("arithmetic intensity (FLOP per byte moved)")
    axes.set_ylabel("GFLOP/s")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return save(figure, path)
