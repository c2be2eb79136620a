"""Every picture the project draws. Each returns a matplotlib Figure and writes it to `path` if given.

Figures are made without pyplot: they need no display, keep no state, and show themselves in a notebook.
Colours are Okabe and Ito's, which colour-blind people tell apart; line styles and markers tell the same
once more.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import groupby, pairwise
from math import ceil, nan, sqrt
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator

from minires.backend import to_host
from minires.conv import output_size, patches
from minires.data import Dataset
from minires.nn import Conv2d, Linear, Module
from minires.resnet import SubsampleAndPad
from minires.summary import FOLLOWERS, blocks_of, kernel, stage_of
from minires.tensor import FREED, Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MARKERS = "os^Dv*P"
INK = "#333333"
TRAINING: dict[str, Any] = {"linestyle": "--", "linewidth": 1.2, "markerfacecolor": "white"}
TESTING: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8}
SHORTCUTS: dict[str, Any] = {"identity": "-", "option A": "--", "projection": "--"}  # how each is drawn
MOST_TENSORS = 60  # of a graph that can still be read
MOST_IMAGES = 40  # of a net's answers, one below the other
MOST_ROWS = 60  # layers of a drawing in which every block is drawn
HALF_BOX = 0.42  # of a tensor in a graph, inches

Point = tuple[float, float]


class Picture(Figure):
    """A Figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def _picture(width: float, height: float) -> Picture:
    return Picture(figsize=(width, height), dpi=120, layout="constrained")


def _saved(figure: Picture, path: str | FilePath | None) -> Picture:
    if path is not None:
        figure.savefig(path)
    return figure


def notebook_style() -> None:
    """Give a chapter's own pyplot plots the colours, size and sharpness of the pictures here."""
    rcParams.update({
        "axes.prop_cycle": cycler(color=COLOURS), "axes.spines.right": False, "axes.spines.top": False,
        "figure.constrained_layout.use": True, "figure.dpi": 100, "figure.figsize": (6.4, 3.4), "grid.alpha": 0.3,
        "legend.frameon": False,
    })  # fmt: skip


# ---- training curves


def read_metrics(run: str | FilePath) -> list[dict[str, Any]]:
    """The lines of a run folder's metrics.jsonl, one dict an epoch.

    Raises FileNotFoundError for a folder without that file, ValueError with file and line for a damaged line.
    """
    file = FilePath(run) / "metrics.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{run} holds no metrics.jsonl; wanted a run's folder, an epoch at least")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # brackets within brackets within brackets
            row = None
        figures = row.values() if isinstance(row, dict) and row.get("epoch") is not None else [None, ""]
        if not all(value is None or isinstance(value, int | float) for value in figures):
            raise ValueError(f'{file}, line {number} is damaged: wanted a JSON object with "epoch" and '
                             f"numbers, got {line[:40]!r}; delete the line to plot the rest")  # fmt: skip
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} is empty: the run has not ended an epoch yet")
    return rows


def curves(runs: str | FilePath | Sequence[str | FilePath], path: str | FilePath | None = None) -> Figure:
    """Error and loss over the epochs of one or several run folders, as in the paper's Figure 6: dashed in
    training, solid in testing. The learning rate stands below. Raises what `read_metrics` raises."""
    folders = [FilePath(run) for run in ([runs] if isinstance(runs, str | FilePath) else runs)]
    if not folders:
        raise ValueError("curves: wanted at least one run folder, got none")
    tables = [read_metrics(folder) for folder in folders]
    names = [folder.resolve().name for folder in folders]
    labels = [str(f) if names.count(name) > 1 else name for f, name in zip(folders, names, strict=True)]

    figure = _picture(8, 5)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    error, loss = (figure.add_subplot(grid[0, i]) for i in range(2))
    rate = figure.add_subplot(grid[1, :])
    splits = set()
    for i, rows in enumerate(tables):
        epochs = [row["epoch"] for row in rows]
        split = "test" if any("test_acc" in row for row in rows) else "val"
        splits.add({"test": "test", "val": "validation"}[split])
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
                                "markersize": 4, "markevery": max(1, len(rows) // 12)}  # fmt: skip
        for part, line in (("train", TRAINING), (split, TESTING)):
            errors = [100 * (1 - value) for value in _column(rows, f"{part}_acc")]
            error.plot(epochs, errors, **look, **line)
            loss.plot(epochs, _column(rows, f"{part}_loss"), **look, **line)
        rate.plot(epochs, _column(rows, "lr"), linewidth=1.2, **look)
    for axes, title in ((error, "error (%)"), (loss, "loss"), (rate, "learning\nrate")):
        axes.set_ylabel(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    for axes in (error, rate):
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=name)
               for i, name in enumerate(labels)]  # fmt: skip
    for label, line in (("training", TRAINING), (" or ".join(sorted(splits)), TESTING)):
        handles.append(Line2D([], [], color=INK, marker="o", markersize=4, label=label, **line))
    fit = 90 // (6 + max(map(len, labels)))  # columns of the legend that the picture's width takes
    figure.legend(handles=handles, loc="outside upper center", frameon=False,
                  ncols=max(1, min(fit, len(handles))))  # fmt: skip
    return _saved(figure, path)


def _column(rows: list[dict[str, Any]], key: str) -> list[float]:
    """The figures under `key`; nan, which draws a gap, where an epoch has none."""
    return [nan if row.get(key) is None else float(row[key]) for row in rows]


# ---- experiments


def errors(panels: Mapping[str, Sequence[str | FilePath]], path: str | FilePath | None = None) -> Figure:
    """Error over the epochs, panels of run folders beside each other on one scale, as in the paper's Figure 6:
    dashed in training, solid in testing. Raises what `read_metrics` raises."""
    figure = _picture(4 * len(panels), 3.8)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, runs) in zip(row, panels.items(), strict=True):
        for i, run in enumerate(runs):
            rows = read_metrics(run)
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
                                    "markersize": 4, "markevery": max(1, len(rows) // 12)}  # fmt: skip
            for part, line in (("train", TRAINING), ("test", TESTING)):
                values = [100 * (1 - value) for value in _column(rows, f"{part}_acc")]
                label = FilePath(run).name if part == "test" else None
                axes.plot([r["epoch"] for r in rows], values, label=label, **look, **line)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    row[0].set_ylabel("error (%)")
    row[0].set_ylim(bottom=0)
    handles = [Line2D([], [], color=INK, label=name, **line)
               for name, line in (("training", TRAINING), ("test", TESTING))]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", frameon=False, ncols=2)
    return _saved(figure, path)


def lines(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], xlabel: str, ylabel: str,
          path: str | FilePath | None = None, log: bool = False) -> Figure:  # fmt: skip
    """Panels by title, lines (x, y) by name in each, on one scale; a name looks the same in every panel."""
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    figure = _picture(max(6.4, 4 * len(panels)), 3.8)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, panel) in zip(row, panels.items(), strict=True):
        for name, (x, y) in panel.items():
            i = names.index(name)
            axes.plot(x, y, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=4,
                      markevery=max(1, len(x) // 12), linewidth=1.4, label=name)  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    row[0].set_ylabel(ylabel)
    row[0].set_yscale("log" if log else "linear")
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=name)
               for i, name in enumerate(names)]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", frameon=False, ncols=4 if len(names) == 4 else 3)
    return _saved(figure, path)


def spread(groups: Mapping[str, Sequence[float]], ylabel: str, path: str | FilePath | None = None) -> Figure:
    """The numbers of each group as points, a line at their mean."""
    figure = _picture(1.6 + 1.2 * len(groups), 3.4)
    axes = figure.add_subplot()
    for i, values in enumerate(groups.values()):
        axes.plot([i] * len(values), values, MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], markersize=7)
        axes.plot([i - 0.25, i + 0.25], 2 * [np.mean(values)], color=INK, linewidth=1.5)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", alpha=0.3)
    return _saved(figure, path)


# ---- data


def contact_sheet(dataset: Dataset, path: str | FilePath | None = None, per_class: int = 8) -> Figure:
    """The first `per_class` training images of every class, a class a row."""
    if per_class < 1:
        raise ValueError(f"contact_sheet: per_class must be 1 or more, got {per_class}")
    classes, (h, w) = len(dataset.classes), dataset.train_images.shape[1:3]
    gap = 2
    sheet = np.full((classes * (h + gap), per_class * (w + gap), 3), 255, np.uint8)
    for k in range(classes):
        of_class = np.flatnonzero(dataset.train_labels == k)[:per_class]
        for j, image in enumerate(dataset.train_images[of_class]):
            top, left = k * (h + gap), j * (w + gap)
            sheet[top : top + h, left : left + w] = image
    figure = _picture(1.2 + 0.55 * per_class, 0.4 + 0.55 * classes)
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(dataset.name)
    axes.set_xticks([])
    axes.set_yticks([k * (h + gap) + h / 2 for k in range(classes)], dataset.classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _saved(figure, path)


# ---- what a net says of a picture


def prediction(images: Sequence[np.ndarray], names: Sequence[str],
               found: Sequence[Sequence[tuple[str, float]]], path: str | FilePath | None = None) -> Figure:  # fmt: skip
    """Each image (H, W, 3) under its name, and beside it a bar for the probability of each class in `found`,
    as `predict` gives them."""
    if not 1 <= len(images) <= MOST_IMAGES:
        raise ValueError(f"prediction: one picture shows 1 to {MOST_IMAGES} images, got {len(images)}")
    figure = _picture(6, 0.5 + 1.7 * len(images))
    grid = figure.add_gridspec(len(images), 2, width_ratios=(1, 2.4))
    for i, (image, name, classes) in enumerate(zip(images, names, found, strict=True)):
        seen, bars = (figure.add_subplot(grid[i, j]) for j in range(2))
        seen.imshow(image, interpolation="nearest")
        seen.set_axis_off()
        short = name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"
        seen.set_title(short, fontsize=8, parse_math=False)
        places, p = range(len(classes)), [probability for _, probability in classes]
        drawn = bars.barh(places, p, color=[COLOURS[0]] + [COLOURS[5]] * (len(p) - 1))
        bars.bar_label(drawn, [f"{100 * value:.1f} %" for value in p], padding=3, fontsize=8)
        bars.set_yticks(places, [name for name, _ in classes])
        bars.invert_yaxis()
        bars.set_xlim(0, 1.15)  # room for the text behind a full bar
        bars.set_xticks([0, 0.25, 0.5, 0.75, 1])
        bars.spines[["top", "right"]].set_visible(False)
    bars.set_xlabel("probability")
    return _saved(figure, path)


def confusion(matrix: Any, classes: Sequence[str], path: str | FilePath | None = None) -> Figure:
    """How often each class (a row) was taken for each class (a column): right answers blue, mistakes orange, each the
    stronger the more. A cell without a number is 0. Raises ValueError where the matrix does not fit the classes."""
    counts, k = np.asarray(matrix), len(classes)
    if counts.shape != (k, k):
        raise ValueError(f"confusion: matrix has shape {counts.shape}, wanted ({k}, {k}), a row for each class")
    right = np.eye(k, dtype=bool)
    most = np.where(right, max(1, counts[right].max(initial=0)), max(1, counts[~right].max(initial=0)))
    figure = _picture(1.6 + 0.46 * k, 1.3 + 0.4 * k)
    axes = figure.add_subplot(xlim=(0, k), ylim=(k, 0), xlabel="the net says", ylabel="it is")
    for i, j in np.ndindex(k, k):
        colour = _mix(COLOURS[0] if i == j else COLOURS[1], 0.6 * counts[i, j] / most[i, j])
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, edgecolor="#dddddd", linewidth=0.6, gid="cell"))
        if counts[i, j]:
            axes.text(j + 0.5, i + 0.5, str(counts[i, j]), ha="center", va="center_baseline", fontsize=8)
    axes.set_xticks(np.arange(k) + 0.5, classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(k) + 0.5, classes)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return _saved(figure, path)


def gallery(images: Sequence[np.ndarray], captions: Sequence[str], path: str | FilePath | None = None,
            columns: int = 8) -> Figure:  # fmt: skip
    """Images (H, W, 3) in rows of `columns`, each under its caption."""
    if not 1 <= len(images) <= MOST_IMAGES:
        raise ValueError(f"gallery: one picture shows 1 to {MOST_IMAGES} images, got {len(images)}")
    columns = min(columns, len(images))
    rows, high = ceil(len(images) / columns), 1 + max(caption.count("\n") for caption in captions)
    figure = _picture(1.05 * columns, (1.0 + 0.15 * high) * rows)
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for axes in cells:
        axes.set_axis_off()
    for axes, image, caption in zip(figure.axes, images, captions, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(caption, fontsize=7, parse_math=False)
    return _saved(figure, path)


# ---- boxes and arrows


def _canvas(left: float, right: float, bottom: float, top: float, inches: float) -> tuple[Picture, Axes]:
    """Empty axes over these coordinates, drawn at so many inches a unit."""
    figure = Picture(figsize=(inches * (right - left), inches * (top - bottom)), dpi=120)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    return figure, axes


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str,
         **look: Any) -> None:  # fmt: skip
    """A rounded box around (x, y), in a light tint of `colour`."""
    look |= {"boxstyle": "round,pad=0,rounding_size=0.1", "facecolor": _tint(colour), "edgecolor": INK}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **look))
    axes.text(x, y, text, ha="center", va="center", fontsize=8, linespacing=1.1)


def _tint(colour: str) -> tuple[float, float, float]:
    r, g, b = to_rgb(colour)
    return 0.35 * r + 0.65, 0.35 * g + 0.65, 0.35 * b + 0.65


def _arrow(axes: Axes, points: Sequence[Point], codes: Sequence[int] | None = None, **look: Any) -> None:
    """An arrow along `points`, straight from each to the next unless `codes` of a matplotlib Path bend it."""
    look = {"linewidth": 1.0, "zorder": 0.5} | look
    axes.add_patch(FancyArrowPatch(path=Path(points, codes), arrowstyle="-|>", mutation_scale=8, color=INK,
                                   joinstyle="round", **look))  # fmt: skip


# ---- the graph of an expression


def graph(tensor: Tensor, path: str | FilePath | None = None,
          names: Mapping[str, Tensor] | None = None) -> Figure:  # fmt: skip
    """How `tensor` was computed, from left to right. Each tensor is a box: its name where `names` has
    one, the operation that made it, and its value where that is small, else its shape. A dashed box is
    a constant.

    Draw before `backward()`, which uses the graph up. Raises ValueError for more than 60 tensors.
    """
    called = {id(t): name for name, t in (names or {}).items()}

    def draw(axes: Axes, t: Tensor, x: float, y: float) -> None:
        made = t.node.name if t.node else ""
        lines = filter(None, [called.get(id(t)), made, _value(t)])
        _box(axes, x, y, 2 * HALF_BOX, 0.52, "\n".join(lines),
             COLOURS[4] if made else COLOURS[5] if t.requires_grad else "#ffffff",
             linestyle="-" if t.requires_grad else "--", gid="operation" if made else "leaf")  # fmt: skip

    return _saved(_draw_graph(tensor, _parents, draw, row=0.66), path)


def values(root: Any, path: str | FilePath | None = None, names: Mapping[str, Any] | None = None,
           order: Sequence[Any] = ()) -> Figure:  # fmt: skip
    """How chapter 1's scalar `root` was computed, from left to right: in each box the name where `names` has
    one, the operation, the number and, where it is not 0, the gradient.

    A value has `data`, `grad`, `parents` and `name`, its operation. Those in `order` get their place in it,
    counted from 1. Raises ValueError for more than 60 values.
    """
    called = {id(v): name for name, v in (names or {}).items()}
    places = {id(v): str(i) for i, v in enumerate(order, start=1)}

    def draw(axes: Axes, v: Any, x: float, y: float) -> None:
        title = ": ".join(filter(None, [called.get(id(v)), v.name]))
        colour = COLOURS[4] if v.parents else COLOURS[5]
        _box(axes, x, y, 2 * HALF_BOX, 0.62, "", colour, gid="operation" if v.parents else "leaf")
        lines = list(filter(None, [title, f"{v.data:.4g}", f"grad {v.grad:.4g}" if v.grad else ""]))
        for k, line in enumerate(lines):
            ink = COLOURS[0] if line.startswith("grad ") else INK
            axes.text(x, y + 0.17 * ((len(lines) - 1) / 2 - k), line, ha="center", va="center", fontsize=8,
                      color=ink, weight="bold" if ink != INK else "normal")  # fmt: skip
        if id(v) in places:
            axes.text(x - HALF_BOX + 0.02, y + 0.3, places[id(v)], ha="center", va="center", fontsize=7, color="white",
                      zorder=3, bbox={"boxstyle": "circle,pad=0.25", "facecolor": INK, "edgecolor": INK})  # fmt: skip

    return _saved(_draw_graph(root, lambda v: v.parents, draw, row=0.85), path)


def _draw_graph(root: Any, parents: Callable[[Any], Sequence[Any]],
                draw: Callable[[Axes, Any, float, float], None], row: float) -> Picture:  # fmt: skip
    """`draw` puts a box around (x, y) for `root` and all it was computed from; here they get places and arrows.

    row: inches from box to box in a column.
    """
    found = _with_inputs(root, parents)
    if len(found) > MOST_TENSORS:
        raise ValueError(f"graph: this graph has {len(found)} tensors, a picture can show {MOST_TENSORS}; "
                         "draw a smaller expression")  # fmt: skip
    columns, wires = _columns(found, parents)
    pitch, half = 1.25, HALF_BOX  # inches from column to column
    place = {item: (pitch * i, row * ((len(column) - 1) / 2 - j))
             for i, column in enumerate(columns) for j, item in enumerate(column)}  # fmt: skip
    y_end = row * max(map(len, columns)) / 2 + 0.05
    figure, axes = _canvas(-half - 0.1, pitch * (len(columns) - 1) + half + 0.1, -y_end, y_end, inches=1)
    for t in found:
        draw(axes, t, *place[id(t)])
    for item in place:
        arriving = sorted((wire for wire in wires if wire[-1] == item), key=lambda wire: -place[wire[-2]][1])
        for k, wire in enumerate(arriving):
            sides = [(x + side, y) for x, y in (place[i] for i in wire) for side in (-half, half)]
            (x, y), shift = sides[-2], 0.14 * ((len(arriving) - 1) / 2 - k)
            _arrow(axes, *_smooth([*sides[1:-2], (x, y + shift)]), gid="edge")
    return figure


def _parents(t: Tensor) -> Sequence[Tensor]:
    """What a tensor was computed from."""
    if t.node is FREED:
        raise ValueError("graph: backward() has used this graph up; draw it before, or compute it again")
    return t.node.parents if t.node else ()


def _with_inputs(root: Any, parents: Callable[[Any], Sequence[Any]]) -> list[Any]:
    """`root` and all that it was computed from, each once."""
    found, stack = {id(root): root}, [root]
    while stack:
        for parent in parents(stack.pop()):
            if id(parent) not in found:
                found[id(parent)] = parent
                stack.append(parent)
    return list(found.values())


def _columns(tensors: list[Any], parents: Callable[[Any], Sequence[Any]]
             ) -> tuple[list[list[Any]], list[list[Any]]]:  # fmt: skip
    """Where boxes stand and arrows run: columns of items, and for each arrow the items it meets.

    An item is a tensor's id, or (arrow, column) where an arrow passes a column. A tensor's column is
    the longest way to it from a leaf; leaves stand next to their first use. In a column, items are
    sorted by the mean place of their neighbours, to and fro, which untangles most arrows.
    """
    level: dict[int, int] = {}

    def measure(t: Any) -> int:
        if id(t) not in level:
            level[id(t)] = 1 + max(map(measure, parents(t)), default=-1)
        return level[id(t)]

    edges = [(parent, t) for t in tensors for parent in parents(t)]
    for t in tensors:
        measure(t)
    for t in tensors:
        if not parents(t):
            level[id(t)] = min((level[id(user)] - 1 for parent, user in edges if parent is t), default=0)
    columns: list[list[Any]] = [[] for _ in range(max(level.values()) + 1)]
    for t in tensors:
        columns[level[id(t)]].append(id(t))
    wires: list[list[Any]] = []
    for k, (parent, user) in enumerate(edges):
        passed = [(k, i) for i in range(level[id(parent)] + 1, level[id(user)])]
        for item in passed:
            columns[item[1]].append(item)
        wires.append([id(parent), *passed, id(user)])

    neighbours: dict[tuple[int, Any], list[Any]] = defaultdict(list)  # by the column they stand in, and item
    of_column = {item: i for i, column in enumerate(columns) for item in column}
    for wire in wires:
        for a, b in pairwise(wire):
            neighbours[of_column[a], b].append(a)
            neighbours[of_column[b], a].append(b)
    order = range(len(columns))
    for beside, here in 4 * [*pairwise(order), *pairwise(reversed(order))]:
        height = {item: (j + 0.5) / len(columns[i])
                  for i in (beside, here) for j, item in enumerate(columns[i])}  # fmt: skip
        mean = {i: np.mean([height[n] for n in neighbours[beside, i]] or height[i]) for i in columns[here]}
        columns[here].sort(key=mean.__getitem__)
    return columns, wires


def _smooth(points: list[Point]) -> tuple[list[Point], list[int]]:
    """A path through points: curved from column to column, straight past a column."""
    path, codes = points[:1], [int(Path.MOVETO)]
    for k, ((x, y), (x2, y2)) in enumerate(pairwise(points)):
        middle = (x + x2) / 2
        path += [(x2, y2)] if k % 2 else [(middle, y), (middle, y2), (x2, y2)]
        codes += [int(Path.LINETO)] if k % 2 else 3 * [int(Path.CURVE4)]
    return path, codes


def _value(t: Tensor) -> str:
    if t.size == 1:
        return f"{t.item():.4g}"
    if t.ndim == 1 and t.size <= 3:
        return "[" + " ".join(f"{v:.3g}" for v in to_host(t.data)) + "]"
    return "x".join(map(str, t.shape))


# ---- the blocks of a net


class _Block(NamedTuple):
    """A block as it is drawn: a line of text for each layer; what its shortcut does, "" where it has none."""

    stage: str
    lines: tuple[str, ...]
    shortcut: str


def blocks(net: Module, path: str | FilePath | None = None) -> Figure:
    """The net's layers from top to bottom, column by column, as in the paper's Figure 3: kernel,
    channels and stride, a colour for each stage, an arc for each shortcut, dashed where it is not the
    identity. In a net too deep for that, equal blocks in a row are drawn once, with their number."""
    found = _drawn(net)
    counted = [(block, 1) for block in found]
    if sum(len(block.lines) for block in found) > MOST_ROWS:
        counted = [(block, len(list(same))) for block, same in groupby(found)]
    width, high, step, gap = 1.75, 0.42, 0.6, 0.42  # of a box, from row to row, above a block
    pitch = 3.1 if len(counted) == len(found) else 3.5  # from column to column: "x 17" wants room
    down = [step * len(block.lines) + gap for block, _ in counted]  # how far a block reaches
    most = sum(down) / max(1, round(sqrt(sum(down) / 2.4)))  # makes the picture a little wider than high
    columns: list[list[tuple[_Block, int]]] = [[]]
    so_far = 0.0
    for one, reach in zip(counted, down, strict=True):
        if so_far + reach / 2 > most * len(columns):
            columns.append([])
        columns[-1].append(one)
        so_far += reach
    deepest = max(sum(step * len(b.lines) + gap for b, _ in column) for column in columns)

    sizes = Counter(block.stage for block in found if block.stage)
    colours = {stage: COLOURS[i % len(COLOURS)] for i, stage in enumerate(sizes)}
    handles: list[Any] = []
    for stage, n in sizes.items():
        label = f"{stage}: {n} block{'s' if n > 1 else ''}"
        handles.append(Patch(facecolor=_tint(colours[stage]), edgecolor=INK, label=label))
    for kind, style in SHORTCUTS.items():
        if any(block.shortcut == kind for block in found):
            handles.append(Line2D([], [], color=INK, linestyle=style, label=f"shortcut: {kind}"))
    legend_columns = max(2, len(columns))
    bottom = -deepest - 0.5 - 0.5 * ceil(len(handles) / legend_columns)
    right = max(6.4, pitch * len(columns) - 0.9)
    figure, axes = _canvas(-width / 2 - 0.4, right, bottom, 0.7, inches=0.5)
    axes.text(0, 0.1, "image", ha="center", va="bottom", fontsize=8)
    tail = [(0.0, 0.0)]  # the way from the layer drawn last to the next
    for i, column in enumerate(columns):
        x, y = pitch * i, 0.0
        for block, times in column:
            start, colour = y, colours.get(block.stage, "#999999")
            y -= gap
            for line in (text.replace(",", ", ").replace("/", " /") for text in block.lines):
                _arrow(axes, [*tail, (x, y)])
                _box(axes, x, y - high / 2, width, high, line, colour, gid="layer")
                tail = [(x, y - high)]
                y -= step
            if block.shortcut:
                _shortcut(axes, x, start - 0.16, y, x + width / 2 + 0.4, SHORTCUTS[block.shortcut])
                tail = [(x, y)]
            if times > 1:
                axes.text(x + width / 2 + 0.5, (start + y) / 2, f"x {times}", va="center", weight="bold")
        between = x + pitch - width / 2 - 0.35
        tail += [(x, -deepest - 0.2), (between, -deepest - 0.2), (between, 0.25), (x + pitch, 0.25)]
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=legend_columns, fontsize=8, frameon=False)
    return _saved(figure, path)


def _shortcut(axes: Axes, x: float, top: float, bottom: float, right: float, style: str) -> None:
    """An arc from (x, top) by way of `right` to the sum at (x, bottom)."""
    r = 0.3
    line, curve = int(Path.LINETO), int(Path.CURVE3)
    points = [(x, top), (right - r, top), (right, top), (right, top - r),
              (right, bottom + r), (right, bottom), (right - r, bottom), (x + 0.12, bottom)]  # fmt: skip
    codes = [int(Path.MOVETO), line, curve, curve, line, curve, curve, line]
    _arrow(axes, points, codes, linestyle=style, linewidth=1.3, gid="shortcut")
    axes.plot(x, bottom, "o", markersize=7, markerfacecolor="white", markeredgecolor=INK)
    axes.plot(x, bottom, "+", markersize=6, markeredgecolor=INK)


def block_pair(path: str | FilePath | None = None) -> Figure:
    """A plain block beside a residual one, operation by operation (the paper's Figure 2)."""
    colours = {"3x3 conv": COLOURS[0], "batch norm": COLOURS[2], "ReLU": COLOURS[4]}
    inside = ("3x3 conv", "batch norm", "ReLU", "3x3 conv", "batch norm")
    width, high, step = 1.5, 0.42, 0.66
    end = -step * (len(inside) + 2.55)  # of the way down
    figure, axes = _canvas(-2.2, 6.2, end - 0.4, 0.9, inches=0.62)
    for x, title, name in ((0.0, "plain block", "H(x)"), (3.8, "residual block", "F(x)")):
        axes.text(x, 0.6, title, ha="center", weight="bold", fontsize=9)
        axes.text(x, 0.1, "x", ha="center", fontsize=9)
        tail = (x, 0.0)
        for i, text in enumerate((*inside, "", "ReLU")):
            y = -step * (i + 0.75)
            if text:
                _arrow(axes, [tail, (x, y + high / 2)])
                _box(axes, x, y, width, high, text, colours[text], gid="layer")
                tail = (x, y - high / 2)
            elif name == "F(x)":
                _shortcut(axes, x, -0.12, y, x + width / 2 + 0.6, "-")
                axes.text(x + width / 2 + 0.7, y / 2, "x", va="center", fontsize=9)
                _arrow(axes, [tail, (x, y + 0.08)])
                tail = (x, y - 0.08)
                axes.text(x - 0.25, y, "F(x) + x", ha="right", va="center", fontsize=9)
        _arrow(axes, [tail, (x, end)])
        axes.text(x, end - 0.3, "y", ha="center", fontsize=9)
        left, low = x - width / 2 - 0.2, -step * (len(inside) - 0.25) - high / 2
        axes.plot([left + 0.1, left, left, left + 0.1], [-0.3, -0.3, low, low], color=INK, linewidth=1)
        axes.text(left - 0.1, (low - 0.3) / 2, name, ha="right", va="center", fontsize=9)
    return _saved(figure, path)


def _drawn(net: Module) -> list[_Block]:
    """The blocks of a net; a norm or ReLU right behind a single layer is left out."""
    found: list[_Block] = []
    before: Module | None = None
    for name, module in blocks_of(net):
        if isinstance(module, FOLLOWERS) and isinstance(before, Conv2d | Linear):
            continue
        before = module
        kernels = [kernel(f"{name}.{part}", layer) for part, layer in module.modules()]
        lines = [text for text in kernels if text and not text.startswith("+")]
        shortcut = ""
        if hasattr(module, "downsample") and not getattr(module, "plain", False):
            way = module.downsample
            changed = "option A" if isinstance(way, SubsampleAndPad) else "projection"
            shortcut = "identity" if way is None else changed
        stage = stage_of(name) if stage_of(name) != name else ""
        found.append(_Block(stage, tuple(lines) or (type(module).__name__,), shortcut))
    return found or [_Block("", (kernel("", net) or type(net).__name__,), "")]


# ---- arrays and convolutions


def numbers(arrays: Mapping[str, Any], path: str | FilePath | None = None,
                        marks: Mapping[str, Sequence[tuple[int, int, int, int]]] | None = None,
            columns: int = 8) -> Figure:  # fmt: skip

    """Small arrays, each under its name, as grids of numbers, `columns` side by side: blue above zero, orange below.

    marks: by name, rectangles (row, column, height, width) of cells to outline.
    """
    grids = [(name, np.atleast_2d(to_host(array))) for name, array in arrays.items()]
    lines = [grids[i : i + columns] for i in range(0, len(grids), columns)]
    gap, letter = 1.4, 0.22  # in cells: between grids; width of a letter of a name
    wide = [max(max(grid.shape[1], letter * len(name)) for name, grid in grids[i::columns])
            for i in range(len(lines[0]))]  # fmt: skip
    high = [max(len(grid) for _, grid in line) for line in lines]
    right, bottom = sum(wide) + gap * (len(wide) - 0.5), -sum(high) - 1.1 * len(lines) - 0.2
    figure, axes = _canvas(-gap / 2, right, bottom, 0, inches=0.4)
    top = 0.0
    for line, height in zip(lines, high, strict=True):
        left, top = 0.0, top - 1
        for (name, grid), width in zip(line, wide, strict=False):
            x, y = left + (width - grid.shape[1]) / 2, top - (height - len(grid)) / 2
            axes.text(left + width / 2, y + 0.25, name, ha="center", fontsize=9)
            _cells(axes, x, y, grid, _signed(grid))
            for row, column, h, w in (marks or {}).get(name, ()):
                axes.add_patch(Rectangle((x + column, y - row - h), w, h, fill=False, zorder=3, linewidth=2.5,
                                         edgecolor=INK, gid="mark"))  # fmt: skip
            left += width + gap
        top -= height + 0.1
    return _saved(figure, path)


def _cells(axes: Axes, left: float, top: float, grid: np.ndarray, colours: Any, size: float = 1.0) -> None:
    """Numbers in squares; `colours` has one for each."""
    for (i, j), value in np.ndenumerate(grid):
        axes.add_patch(Rectangle((left + size * j, top - size * (i + 1)), size, size, facecolor=colours[i][j],
                                 edgecolor="#aaaaaa", linewidth=0.6, gid="cell"))  # fmt: skip
        axes.text(left + size * (j + 0.5), top - size * (i + 0.5), f"{value + 0.0:.3g}", ha="center",
                  va="center_baseline", fontsize=8 if size > 0.7 else 6)  # fmt: skip


def _signed(grid: np.ndarray) -> list[list[tuple[float, float, float]]]:
    """A tint for each number: the stronger the larger, blue above zero, orange below."""
    strength = 0.55 * np.abs(grid) / max(float(np.abs(grid).max(initial=0)), 1e-30)
    return [[_mix(COLOURS[0] if value > 0 else COLOURS[1], s) for value, s in zip(row, strengths, strict=True)]
            for row, strengths in zip(grid, strength, strict=True)]  # fmt: skip


def _mix(colour: str, share: float) -> tuple[float, float, float]:
    """So much of `colour`, the rest white."""
    r, g, b = (share * part + 1 - share for part in to_rgb(colour))
    return r, g, b


def patches_to_rows(x: np.ndarray, w: np.ndarray, path: str | FilePath | None = None, stride: int = 1) -> Figure:
    """A convolution as a matrix product: each patch of x (H, W) becomes a row, each filter of w (KH, KW, F) a column.

    At most 7 patches, each with a colour of its own.
    """
    kh, kw, f = w.shape
    rows = patches(x[None, :, :, None], kh, kw, stride)[0].reshape(-1, kh * kw)  # (OH*OW, KH*KW)
    oh, ow = ((size - k) // stride + 1 for size, k in zip(x.shape, (kh, kw), strict=True))
    if oh * ow > len(COLOURS):
        raise ValueError(f"patches_to_rows: a picture can show {len(COLOURS)} patches, x has {oh * ow}; "
                         "take a smaller x")  # fmt: skip
    small, band = 0.5, 1.0  # size of a cell of x, and room around each of its copies
    high, wide = small * x.shape[0] + band, small * x.shape[1] + 0.6
    middle = max(oh * high, kh * kw, len(rows)) / 2
    lefts = np.cumsum([0, ow * wide + 1.2, kh * kw + 1.6, f + 1.6])
    figure, axes = _canvas(-0.4, lefts[3] + f + 0.6, -0.3, 2 * middle + 1.2, inches=0.36)
    tints = [_mix(colour, 0.4) for colour in COLOURS]
    for k, (i, j) in enumerate(np.ndindex(oh, ow)):
        inside = np.zeros(x.shape, bool)
        inside[i * stride : i * stride + kh, j * stride : j * stride + kw] = True
        left, top = j * wide, middle + (oh / 2 - i) * high - 0.7
        _cells(axes, left, top, x, [[tints[k] if cell else (1, 1, 1) for cell in line] for line in inside], small)
        axes.text(left + small * x.shape[1] / 2, top + 0.2, f"patch {k}", ha="center", fontsize=8)
    column = w.reshape(-1, f)
    plain = [[(1.0, 1.0, 1.0)] * f] * len(column)
    by_row = [[tints[k]] * kh * kw for k in range(len(rows))]
    for left, grid, name, colours in ((lefts[1], rows, "im2col(x)", by_row), (lefts[2], column, "w", plain),
                                      (lefts[3], rows @ column, "y", by_row)):  # fmt: skip
        top = middle + len(grid) / 2
        _cells(axes, left, top, grid, colours)
        axes.text(left + grid.shape[1] / 2, top + 0.25, name, ha="center", fontsize=9)
        if name != "w":
            for k in range(len(grid)):
                axes.text(left - 0.15, top - k - 0.5, str(k), ha="right", va="center", fontsize=7)
    for left, sign in ((lefts[2], "@"), (lefts[3], "=")):
        axes.text(left - 0.95, middle, sign, ha="center", va="center", fontsize=12)
    return _saved(figure, path)


def taps(size: int, kernel: int, path: str | FilePath | None = None, stride: int = 1, padding: int = 0,
         output: int | None = None, entry: int | None = None) -> Figure:  # fmt: skip
    """A convolution along one axis: a line from each input, below, to each output that it enters, by weight.

    The border's zeros are dashed. output, entry: an output or an input whose lines stand out, each with its weight.
    """
    places = output_size(size, kernel, stride, padding)
    right, upper = size + padding - 1, 2.0
    at = [stride * j - padding + (kernel - 1) / 2 for j in range(places)]  # an output stands over its patch's middle
    figure, axes = _canvas(-padding - 0.6, right + 0.6, -0.5, upper + 0.5, inches=0.75)
    for j, k in np.ndindex(places, kernel):
        i = stride * j - padding + k
        strong = (output is None and entry is None) or j == output or i == entry
        colour = COLOURS[k % len(COLOURS)] if strong else "#cccccc"
        axes.plot([i, at[j]], [0, upper], color=colour, linestyle=("-", "--", "-.", ":")[k % 4],
                  linewidth=1.8 if strong else 0.8, zorder=1 if strong else 0.5, gid="tap")  # fmt: skip
        if strong and (j == output or i == entry):
            share = 0.66 if j != output else 0.34  # of the way up, where the lines of a fan lie apart
            axes.text(i + share * (at[j] - i), share * upper, f"w{k}", ha="center", va="center", fontsize=9,
                      color=colour, zorder=2, bbox={"boxstyle": "round,pad=0.1", "facecolor": "white",
                                                    "edgecolor": "none"})  # fmt: skip
    for i in range(-padding, size + padding):
        border = not 0 <= i < size
        _box(axes, i, 0, 0.56, 0.5, "0" if border else f"x{i}", "#ffffff" if border else COLOURS[5],
             linestyle="--" if border else "-", zorder=3, gid="input")  # fmt: skip
    for j, x in enumerate(at):
        _box(axes, x, upper, 0.56, 0.5, f"y{j}", COLOURS[4], zorder=3, gid="output")
    return _saved(figure, path)


def chain(names: Sequence[str], uses: Sequence[tuple[str, str]], path: str | FilePath | None = None) -> Figure:
    """Quantities in the order in which they are computed, and an arrow from each to those that use it."""
    place = {name: 1.5 * i for i, name in enumerate(names)}
    longest = max(place[b] - place[a] for a, b in uses)
    figure, axes = _canvas(-0.7, max(place.values()) + 0.7, -0.4, 0.5 + 0.3 * longest, inches=0.75)
    for name, x in place.items():
        _box(axes, x, 0, 1.0, 0.5, name, COLOURS[4], gid="quantity")
    for a, b in uses:
        left, right, far = place[a], place[b], place[b] - place[a]
        if far <= 1.5:
            _arrow(axes, [(left + 0.5, 0), (right - 0.5, 0)], gid="use")
        else:
            high, curve = 0.3 + 0.4 * far, int(Path.CURVE4)
            left, right = left + 0.2, right - 0.2  # beside an arrow that ends there, or begins
            _arrow(axes, [(left, 0.25), (left, high), (right, high), (right, 0.25)],
                   [int(Path.MOVETO), curve, curve, curve], gid="use")  # fmt: skip
    return _saved(figure, path)


def filters(w: Any, path: str | FilePath | None = None, columns: int = 8) -> Figure:
    """Each filter of w (KH, KW, 3, F) as a colour picture; mid-grey is 0, and the largest weight has full strength."""
    w = to_host(w)
    if w.ndim != 4 or w.shape[2] != 3:
        raise ValueError(f"filters: w has shape {w.shape}; wanted (KH, KW, 3, F), filters over three colours")
    kh, kw, _, f = w.shape
    rows, columns = ceil(f / columns), min(f, columns)
    sheet = np.ones((rows * (kh + 1) - 1, columns * (kw + 1) - 1, 3))
    for k in range(f):
        top, left = k // columns * (kh + 1), k % columns * (kw + 1)
        sheet[top : top + kh, left : left + kw] = 0.5 + 0.5 * w[..., k] / max(float(np.abs(w[..., k]).max()), 1e-30)
    figure = _picture(0.8 * columns, 0.8 * rows)
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    return _saved(figure, path)


# ---- what a net costs


def widths(blocks: Mapping[str, Module], path: str | FilePath | None = None) -> Figure:
    """Residual blocks side by side: from top to bottom a bar as wide as each map has channels, between two of them the
    convolution with the number of its weights; 1x1 in another colour than the rest. An arc is the shortcut."""
    convs = {name: [m for way, m in block.modules() if isinstance(m, Conv2d) and "downsample" not in way]
             for name, block in blocks.items()}  # fmt: skip
    most = max(max(conv.weight.shape[2:]) for layers in convs.values() for conv in layers)
    full, bar, gap, pitch = 2.4, 0.24, 0.62, 3.5  # inches: the widest map, a map's height, a convolution's, a column's
    deepest = max(len(layers) for layers in convs.values()) * (bar + gap) + bar
    figure, axes = _canvas(-full / 2 - 0.2, pitch * len(blocks) - full / 2 - 0.4, -deepest - 0.45, 0.45, inches=1)
    for i, (name, layers) in enumerate(convs.items()):
        x, y = pitch * i, -(deepest - len(layers) * (bar + gap) - bar) / 2
        top, sizes = y, [layers[0].weight.shape[2], *(conv.weight.shape[3] for conv in layers)]
        axes.text(x, 0.25, f"{name}: {sum(c.weight.size for c in layers):,} weights", ha="center", weight="bold",
                  fontsize=9)  # fmt: skip
        for k, channels in enumerate(sizes):
            half = full * channels / most / 2
            axes.add_patch(Rectangle((x - half, y - bar), 2 * half, bar, facecolor=INK, gid="map"))
            axes.text(x, y - bar / 2, str(channels), color="white", ha="center", va="center_baseline", fontsize=8)
            if k < len(layers):
                w, below = layers[k].weight, full * sizes[k + 1] / most / 2
                colour = COLOURS[0] if w.shape[0] == 1 else COLOURS[4]
                corners = [(x - half, y - bar), (x + half, y - bar),
                           (x + below, y - bar - gap), (x - below, y - bar - gap)]  # fmt: skip
                axes.add_patch(Polygon(corners, facecolor=_tint(colour), gid="layer"))
                axes.text(x, y - bar - gap / 2, f"{w.shape[0]}x{w.shape[1]}\n{w.size:,}", ha="center", va="center",
                          fontsize=8)  # fmt: skip
            y -= bar + gap
        bottom = y + gap - 0.12
        _arrow(axes, [(x, top + 0.16), (x, top)])
        _shortcut(axes, x, top + 0.1, bottom, x + full / 2 + 0.3, "-")
    return _saved(figure, path)


def roofline(roofs: Mapping[str, tuple[float, float]], points: Mapping[str, Mapping[str, tuple[float, float]]],
             path: str | FilePath | None = None) -> Figure:  # fmt: skip
    """How fast operations can be, and are: speed over arithmetic intensity, both logarithmic.

    roofs: by machine, its peak in GFLOP/s and its memory's bandwidth in GB/s: nothing runs faster than the lower of the
    peak and bandwidth times intensity. points: by kind, then by name, (intensity in FLOP/byte, measured GFLOP/s).
    """
    measured = [point for kind in points.values() for point in kind.values()]
    low = min(x for x, _ in measured) / 2
    high = max([x for x, _ in measured] + [peak / bandwidth for peak, bandwidth in roofs.values()]) * 4
    figure = _picture(8, 4.6)
    axes = figure.add_subplot()
    for i, (name, (peak, bandwidth)) in enumerate(roofs.items()):
        ridge = peak / bandwidth
        axes.plot([low, ridge, high], [bandwidth * low, peak, peak], color=INK, linewidth=1.6,
                  linestyle=("-", "--", ":")[i % 3], label=name, gid="roof")  # fmt: skip
    for i, (kind, named) in enumerate(points.items()):
        axes.plot(*zip(*named.values(), strict=True), MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)],
                  markersize=7, label=kind)  # fmt: skip
        for name, (x, y) in named.items():
            axes.annotate(name, (x, y), (0, -6), textcoords="offset points", fontsize=8, ha="center", va="top")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=min(y for _, y in measured) / 3)
    axes.set_xlabel("arithmetic intensity (FLOP for each byte moved)")
    axes.set_ylabel("GFLOP/s")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return _saved(figure, path)
