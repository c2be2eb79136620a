"""Every picture the project draws. Each returns a matplotlib Figure and writes it to `path` if given.

Figures are made without pyplot: they need no display, keep no state, and show themselves in a notebook.
Colours are Okabe and Ito's, which colour-blind people tell apart; line styles and markers tell the same
once more.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby, pairwise
from math import ceil, nan, sqrt
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from minires.backend import to_host
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
        except ValueError:
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


# ---- boxes and arrows


def _canvas(left: float, right: float, bottom: float, top: float, inches: float) -> tuple[Picture, Axes]:
    """Empty axes over these coordinates, drawn at so many inches a unit."""
    figure = Picture(figsize=(inches * (right - left), inches * (top - bottom)), dpi=120)
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
    tensors = _with_inputs(tensor)
    if len(tensors) > MOST_TENSORS:
        raise ValueError(f"graph: this graph has {len(tensors)} tensors, a picture can show {MOST_TENSORS}; "
                         "draw a smaller expression")  # fmt: skip
    columns, wires = _columns(tensors)
    pitch, row, half = 1.25, 0.66, 0.42  # inches from column to column and row to row, half a box
    place = {item: (pitch * i, row * ((len(column) - 1) / 2 - j))
             for i, column in enumerate(columns) for j, item in enumerate(column)}  # fmt: skip
    y_end = row * max(map(len, columns)) / 2 + 0.05
    figure, axes = _canvas(-half - 0.1, pitch * (len(columns) - 1) + half + 0.1, -y_end, y_end, inches=1)
    called = {id(t): name for name, t in (names or {}).items()}
    for t in tensors:
        made = t.node.name if t.node else ""
        lines = filter(None, [called.get(id(t)), made, _value(t)])
        _box(axes, *place[id(t)], 2 * half, 0.52, "\n".join(lines),
             COLOURS[4] if made else COLOURS[5] if t.requires_grad else "#ffffff",
             linestyle="-" if t.requires_grad else "--", gid="operation" if made else "leaf")  # fmt: skip
    for item in place:
        arriving = sorted((wire for wire in wires if wire[-1] == item), key=lambda wire: -place[wire[-2]][1])
        for k, wire in enumerate(arriving):
            sides = [(x + side, y) for x, y in (place[i] for i in wire) for side in (-half, half)]
            (x, y), shift = sides[-2], 0.14 * ((len(arriving) - 1) / 2 - k)
            _arrow(axes, *_smooth([*sides[1:-2], (x, y + shift)]), gid="edge")
    return _saved(figure, path)


def _with_inputs(tensor: Tensor) -> list[Tensor]:
    """`tensor` and all that it was computed from, each once."""
    found, stack = {id(tensor): tensor}, [tensor]
    while stack:
        node = stack.pop().node
        if node is FREED:
            raise ValueError("graph: backward() has used this graph up; draw it before, or compute it again")
        for parent in node.parents if node else ():
            if id(parent) not in found:
                found[id(parent)] = parent
                stack.append(parent)
    return list(found.values())


def _columns(tensors: list[Tensor]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Where boxes stand and arrows run: columns of items, and for each arrow the items it meets.

    An item is a tensor's id, or (arrow, column) where an arrow passes a column. A tensor's column is
    the longest way to it from a leaf; leaves stand next to their first use. In a column, items are
    sorted by the mean place of their neighbours, to and fro, which untangles most arrows.
    """
    level: dict[int, int] = {}

    def measure(t: Tensor) -> int:
        if id(t) not in level:
            level[id(t)] = 1 + max(map(measure, t.node.parents)) if t.node else 0
        return level[id(t)]

    edges = [(parent, t) for t in tensors if t.node for parent in t.node.parents]
    for t in tensors:
        measure(t)
    for t in tensors:
        if t.node is None:
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
