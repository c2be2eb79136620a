"""Drawings of how things work, in boxes, arrows and cells: graphs, nets, blocks, arrays, convolutions.

As in `plots.py`, each is a matplotlib Figure, written to `path` if given. The parts of a drawing have a `gid` that says
what they are, by which tests find them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from math import ceil, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.path as mpath
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Polygon, Rectangle

from minires.backend import to_host
from minires.conv import output_size, patches
from minires.nn import Conv2d, Identity, Linear, Module, Zero
from minires.plots import COLOURS, INK, NotebookFigure, save, tint
from minires.resnet import SubsampleAndPad
from minires.summary import ATTACHED, blocks_of, kernel_text, stage_of
from minires.tensor import Node, Tensor

SHORTCUTS: dict[str, Any] = {"identity": "-", "option A": "--", "projection": "--"}  # the line of each
MAX_VALUES = 60  # in a graph that is still readable
MAX_ROWS = 60  # layers in a drawing that shows every block
HALF_BOX = 0.42  # half the width of a box in a graph, inches
STEP, GAP = 0.6, 0.42  # in a drawing of a net: from layer to layer, above a block

MOVE, LINE = mpath.Path.MOVETO, mpath.Path.LINETO  # how a path gets to a point
CURVE3, CURVE4 = mpath.Path.CURVE3, mpath.Path.CURVE4  # two or three points make a bend

Point = tuple[float, float]
Look = dict[str, Any]  # matplotlib's settings for a thing
Parents = Callable[[Any], Sequence[Any]]  # what a node or value was computed from


# ---- boxes and arrows


def _canvas(left: float, right: float, bottom: float, top: float, inches: float) -> tuple[NotebookFigure, Axes]:
    """Empty axes over these coordinates, at this many inches per unit."""
    figure = NotebookFigure(figsize=(inches * (right - left), inches * (top - bottom)), dpi=120)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    return figure, axes


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, **look: Any) -> None:
    """A rounded box around (x, y), in a light tint of `colour`."""
    look |= {"boxstyle": "round,pad=0,rounding_size=0.1", "facecolor": tint(colour), "edgecolor": INK}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **look))
    _text(axes, x, y, text, linespacing=1.1)


def _text(axes: Axes, x: float, y: float, text: str, size: float = 8, **look: Any) -> None:
    """Text around (x, y)."""
    centred: Look = {"ha": "center", "va": "center", "fontsize": size}
    axes.text(x, y, text, **(centred | look))


def _arrow(axes: Axes, points: Sequence[Point], codes: Sequence[np.uint8] | None = None, **look: Any) -> None:
    """An arrow along `points`, straight from each to the next unless `codes` of a matplotlib Path bend it."""
    usual: Look = {"linewidth": 1.0, "zorder": 0.5, "mutation_scale": 8, "color": INK, "joinstyle": "round"}
    axes.add_patch(FancyArrowPatch(path=mpath.Path(points, codes), arrowstyle="-|>", **(usual | look)))


# ---- how a number was computed


def graph(tensor: Tensor, path: str | Path | None = None, names: Mapping[str, Tensor] | None = None) -> Figure:
    """How `tensor` was computed, from left to right. Each node of its graph is a box: the operation that made it, and
    its shape. Of `tensor` itself and those in `names`, it shows the name, and the numbers where there are few. A dashed
    box is a constant.

    Draw before `backward()`, which frees the graph. Raises ValueError for more than 60 nodes.
    """
    root = tensor.node or Node("constant", tensor.shape)
    tensors = {root: ("", tensor)} | {t.node: (name, t) for name, t in (names or {}).items() if t.node}
    constants: dict[tuple[Node, int], Node] = {}

    def parents(node: Node) -> Sequence[Node]:
        if node.freed:
            raise ValueError("graph: backward() has freed this graph; draw it before, or compute it again")
        return [p or constants.setdefault((node, i), Node("constant", ())) for i, p in enumerate(node.parents)]

    def draw(axes: Axes, node: Node, x: float, y: float) -> None:
        name, held = tensors.get(node, ("", None))
        made = "" if name and node.name == "leaf" else node.name
        lines = filter(None, [name, made, _shape(node.shape) if held is None else _value(held)])
        colour, line = {"leaf": (COLOURS[5], "-"), "constant": ("#ffffff", "--")}.get(node.name, (COLOURS[4], "-"))
        gid = "operation" if node.parents else "leaf"
        _box(axes, x, y, 2 * HALF_BOX, 0.52, "\n".join(lines), colour, linestyle=line, gid=gid)

    return save(_draw_graph(root, parents, draw, row=0.66), path)


def _value(t: Tensor) -> str:
    """Up to three numbers; of more, their shape."""
    if t.size == 1:
        return f"{t.item():.4g}"
    if t.ndim == 1 and t.size <= 3:
        return "[" + " ".join(f"{v:.3g}" for v in to_host(t.data)) + "]"
    return _shape(t.shape)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def values(
    root: Any, path: str | Path | None = None, names: Mapping[str, Any] | None = None, order: Sequence[Any] = ()
) -> Figure:
    """How chapter 1's scalar `root` was computed, from left to right: each box shows the name if `names` has one, the
    operation, the number and, unless it is 0, the gradient.

    A value has `data`, `grad`, `parents` and `name`, its operation. Those in `order` are numbered from 1. Raises
    ValueError for more than 60 values.
    """
    called = {id(v): name for name, v in (names or {}).items()}
    places = {id(v): str(i) for i, v in enumerate(order, start=1)}

    def draw(axes: Axes, v: Any, x: float, y: float) -> None:
        title = ": ".join(filter(None, [called.get(id(v)), v.name]))
        colour = COLOURS[4] if v.parents else COLOURS[5]
        _box(axes, x, y, 2 * HALF_BOX, 0.62, "", colour, gid="operation" if v.parents else "leaf")
        lines = list(filter(None, [title, f"{v.data:.4g}", f"grad {v.grad:.4g}" if v.grad else ""]))
        for k, line in enumerate(lines):
            look: Look = {"color": COLOURS[0], "weight": "bold"} if line.startswith("grad ") else {"color": INK}
            _text(axes, x, y + 0.17 * ((len(lines) - 1) / 2 - k), line, **look)
        if id(v) in places:
            circle = {"boxstyle": "circle,pad=0.25", "facecolor": INK, "edgecolor": INK}
            _text(axes, x - HALF_BOX + 0.02, y + 0.3, places[id(v)], 7, color="white", zorder=3, bbox=circle)

    return save(_draw_graph(root, lambda v: v.parents, draw, row=0.85), path)


def _draw_graph(
    root: Any, parents: Parents, draw: Callable[[Axes, Any, float, float], None], row: float
) -> NotebookFigure:
    """`root` and everything it was computed from: here they get places and arrows, and `draw` draws the boxes.

    row: inches from box to box in a column.
    """
    found = _with_inputs(root, parents)
    if len(found) > MAX_VALUES:
        raise ValueError(f"graph: expected at most {MAX_VALUES} values, got {len(found)}; draw a smaller expression")
    columns, wires = _columns(found, parents)
    pitch, half = 1.25, HALF_BOX  # inches from column to column
    place = {
        item: (pitch * i, row * ((len(column) - 1) / 2 - j))
        for i, column in enumerate(columns)
        for j, item in enumerate(column)
    }
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


def _with_inputs(root: Any, parents: Parents) -> list[Any]:
    """`root` and everything it was computed from, each once."""
    found, stack = {id(root): root}, [root]
    while stack:
        for parent in parents(stack.pop()):
            if id(parent) not in found:
                found[id(parent)] = parent
                stack.append(parent)
    return list(found.values())


def _columns(tensors: list[Any], parents: Parents) -> tuple[list[list[Any]], list[list[Any]]]:
    """Places for boxes and arrows: columns of items, and for each arrow the items on its path.

    An item is a value's id, or (arrow, column) where an arrow passes a column.
    """
    level = _levels(tensors, parents)
    columns: list[list[Any]] = [[] for _ in range(max(level.values()) + 1)]
    for t in tensors:
        columns[level[id(t)]].append(id(t))
    wires: list[list[Any]] = []
    for k, (parent, user) in enumerate((parent, t) for t in tensors for parent in parents(t)):
        passed = [(k, i) for i in range(level[id(parent)] + 1, level[id(user)])]
        for item in passed:
            columns[item[1]].append(item)
        wires.append([id(parent), *passed, id(user)])
    _untangle(columns, wires)
    return columns, wires


def _levels(tensors: list[Any], parents: Parents) -> dict[int, int]:
    """The column of each value, by id: the longest path to it from a leaf. Leaves are next to their first use."""
    level: dict[int, int] = {}

    def measure(t: Any) -> int:
        if id(t) not in level:
            level[id(t)] = 1 + max(map(measure, parents(t)), default=-1)
        return level[id(t)]

    for t in tensors:
        measure(t)
    for leaf in tensors:
        if not parents(leaf):
            uses = [level[id(t)] for t in tensors for parent in parents(t) if parent is leaf]
            level[id(leaf)] = min(uses, default=1) - 1
    return level


def _untangle(columns: list[list[Any]], wires: list[list[Any]]) -> None:
    """Sort each column by the mean place of its items' neighbours, back and forth, which leaves few crossings."""
    neighbours: dict[tuple[int, Any], list[Any]] = defaultdict(list)  # by their column, and item
    of_column = {item: i for i, column in enumerate(columns) for item in column}
    for wire in wires:
        for a, b in pairwise(wire):
            neighbours[of_column[a], b].append(a)
            neighbours[of_column[b], a].append(b)
    order = range(len(columns))
    for there, here in 4 * [*pairwise(order), *pairwise(reversed(order))]:
        height = {item: (j + 0.5) / len(columns[i]) for i in (there, here) for j, item in enumerate(columns[i])}
        mean = {i: np.mean([height[n] for n in neighbours[there, i]] or height[i]) for i in columns[here]}
        columns[here].sort(key=mean.__getitem__)


def _smooth(points: list[Point]) -> tuple[list[Point], list[np.uint8]]:
    """A path through points: curved between columns, straight across them."""
    path, codes = points[:1], [MOVE]
    for k, ((x, y), (x2, y2)) in enumerate(pairwise(points)):
        middle = (x + x2) / 2
        path += [(x2, y2)] if k % 2 else [(middle, y), (middle, y2), (x2, y2)]
        codes += [LINE] if k % 2 else 3 * [CURVE4]
    return path, codes


def chain(names: Sequence[str], uses: Sequence[tuple[str, str]], path: str | Path | None = None) -> Figure:
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
            high = 0.3 + 0.4 * far
            left, right = left + 0.2, right - 0.2  # next to an arrow that ends or starts there
            arc = [(left, 0.25), (left, high), (right, high), (right, 0.25)]
            _arrow(axes, arc, [MOVE, CURVE4, CURVE4, CURVE4], gid="use")
    return save(figure, path)


# ---- nets and their blocks


class _Block(NamedTuple):
    """A block as it is drawn: a line of text for each layer; its shortcut, "" for none; how many follow in a row."""

    stage: str
    lines: tuple[str, ...]
    shortcut: str
    times: int = 1

    @property
    def height(self) -> float:
        return STEP * len(self.lines) + GAP


def blocks(net: Module, path: str | Path | None = None) -> Figure:
    """The net's layers from top to bottom, column by column, as in the paper's Figure 3: kernel,
    channels and stride, a colour for each stage, an arc for each shortcut, dashed where it is not the
    identity. In a deeper net, equal blocks in a row are drawn once, with their number."""
    drawn = found = _found(net)
    if sum(len(block.lines) for block in found) > MAX_ROWS:
        drawn = [block._replace(times=len(list(same))) for block, same in groupby(found)]
    columns = _in_columns(drawn)
    deepest = max(sum(block.height for block in column) for column in columns)
    width, high = 1.75, 0.42  # of a layer's box
    pitch = 3.1 if len(drawn) == len(found) else 3.5  # from column to column: "x 17" needs room

    stages = Counter(block.stage for block in found if block.stage)
    colours = {stage: COLOURS[i % len(COLOURS)] for i, stage in enumerate(stages)}
    handles: list[Any] = []
    for stage, n in stages.items():
        label = f"{stage}: {n} block{'s' if n > 1 else ''}"
        handles.append(Patch(facecolor=tint(colours[stage]), edgecolor=INK, label=label))
    for kind, style in SHORTCUTS.items():
        if any(block.shortcut == kind for block in found):
            handles.append(Line2D([], [], color=INK, linestyle=style, label=f"shortcut: {kind}"))
    legend_columns = max(2, len(columns))
    bottom = -deepest - 0.5 - 0.5 * ceil(len(handles) / legend_columns)
    right = max(6.4, pitch * len(columns) - 0.9)
    figure, axes = _canvas(-width / 2 - 0.4, right, bottom, 0.7, inches=0.5)
    _text(axes, 0, 0.1, "image", va="bottom")
    tail = [(0.0, 0.0)]  # the line from the last layer to the next
    for i, column in enumerate(columns):
        x, y = pitch * i, 0.0
        for block in column:
            start, colour = y, colours.get(block.stage, "#999999")
            y -= GAP
            for line in (text.replace(",", ", ").replace("/", " /") for text in block.lines):
                _arrow(axes, [*tail, (x, y)])
                _box(axes, x, y - high / 2, width, high, line, colour, gid="layer")
                tail = [(x, y - high)]
                y -= STEP
            if block.shortcut:
                _shortcut(axes, x, start - 0.16, y, x + width / 2 + 0.4, SHORTCUTS[block.shortcut])
                tail = [(x, y)]
            if block.times > 1:
                axes.text(x + width / 2 + 0.5, (start + y) / 2, f"x {block.times}", va="center", weight="bold")
        between = x + pitch - width / 2 - 0.35
        tail += [(x, -deepest - 0.2), (between, -deepest - 0.2), (between, 0.25), (x + pitch, 0.25)]
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=legend_columns, fontsize=8, frameon=False)
    return save(figure, path)


def _found(net: Module) -> list[_Block]:
    """The blocks of a net; a norm or ReLU right after a single layer is left out."""
    found: list[_Block] = []
    before: Module | None = None
    for name, module in blocks_of(net):
        if isinstance(module, ATTACHED) and isinstance(before, Conv2d | Linear):
            continue
        before = module
        kernels = [kernel_text(f"{name}.{part}", layer) for part, layer in module.modules()]
        lines = [text for text in kernels if text and not text.startswith("+")]
        names = {type(None): "", Zero: "", Identity: "identity", SubsampleAndPad: "option A"}
        shortcut = names.get(type(getattr(module, "downsample", None)), "projection")
        stage = stage_of(name) if stage_of(name) != name else ""
        found.append(_Block(stage, tuple(lines) or (type(module).__name__,), shortcut))
    return found or [_Block("", (kernel_text("", net) or type(net).__name__,), "")]


def _in_columns(found: list[_Block]) -> list[list[_Block]]:
    """Columns of about equal height, enough of them to make the drawing a little wider than high."""
    total = sum(block.height for block in found)
    most = total / max(1, round(sqrt(total / 2.4)))
    columns: list[list[_Block]] = [[]]
    so_far = 0.0
    for block in found:
        if so_far + block.height / 2 > most * len(columns):
            columns.append([])
        columns[-1].append(block)
        so_far += block.height
    return columns


def _shortcut(axes: Axes, x: float, top: float, bottom: float, right: float, style: str) -> None:
    """An arc from (x, top) via `right` to the sum at (x, bottom)."""
    inner, r = right - 0.3, 0.3  # where the bends start, and their radius
    points = [(x, top), (inner, top), (right, top), (right, top - r)]
    points += [(right, bottom + r), (right, bottom), (inner, bottom), (x + 0.12, bottom)]
    codes = [MOVE, LINE, CURVE3, CURVE3, LINE, CURVE3, CURVE3, LINE]
    _arrow(axes, points, codes, linestyle=style, linewidth=1.3, gid="shortcut")
    axes.plot(x, bottom, "o", markersize=7, markerfacecolor="white", markeredgecolor=INK)
    axes.plot(x, bottom, "+", markersize=6, markeredgecolor=INK)


def block_pair(path: str | Path | None = None) -> Figure:
    """A plain block next to a residual one, operation by operation (the paper's Figure 2)."""
    colours = {"3x3 conv": COLOURS[0], "batch norm": COLOURS[2], "ReLU": COLOURS[4]}
    inside = ("3x3 conv", "batch norm", "ReLU", "3x3 conv", "batch norm")
    width, high, step = 1.5, 0.42, 0.66
    end = -step * (len(inside) + 2.55)  # of the line down
    figure, axes = _canvas(-2.2, 6.2, end - 0.4, 0.9, inches=0.62)
    for x, title, name in ((0.0, "plain block", "H(x)"), (3.8, "residual block", "F(x)")):
        _text(axes, x, 0.6, title, 9, va="baseline", weight="bold")
        _text(axes, x, 0.1, "x", 9, va="baseline")
        tail = (x, 0.0)
        for i, text in enumerate((*inside, "", "ReLU")):
            y = -step * (i + 0.75)
            if text:
                _arrow(axes, [tail, (x, y + high / 2)])
                _box(axes, x, y, width, high, text, colours[text], gid="layer")
                tail = (x, y - high / 2)
            elif name == "F(x)":
                _shortcut(axes, x, -0.12, y, x + width / 2 + 0.6, "-")
                _text(axes, x + width / 2 + 0.7, y / 2, "x", 9, ha="left")
                _arrow(axes, [tail, (x, y + 0.08)])
                tail = (x, y - 0.08)
                _text(axes, x - 0.25, y, "F(x) + x", 9, ha="right")
        _arrow(axes, [tail, (x, end)])
        _text(axes, x, end - 0.3, "y", 9, va="baseline")
        left, low = x - width / 2 - 0.2, -step * (len(inside) - 0.25) - high / 2
        axes.plot([left + 0.1, left, left, left + 0.1], [-0.3, -0.3, low, low], color=INK, linewidth=1)
        _text(axes, left - 0.1, (low - 0.3) / 2, name, 9, ha="right")
    return save(figure, path)


def widths(blocks: Mapping[str, Module], path: str | Path | None = None) -> Figure:
    """Residual blocks side by side: from top to bottom a bar for each map, as wide as its channels are many, and
    between two bars the convolution with its number of weights, 1x1 in another colour. An arc is the shortcut."""
    convs = {
        title: [m for name, m in block.modules() if isinstance(m, Conv2d) and "downsample" not in name]
        for title, block in blocks.items()
    }
    most = max(max(conv.weight.shape[2:]) for layers in convs.values() for conv in layers)
    full, bar, gap, pitch = 2.4, 0.24, 0.62, 3.5  # inches: the widest map, a map's height, a convolution's, a column's
    deepest = max(len(layers) for layers in convs.values()) * (bar + gap) + bar
    figure, axes = _canvas(-full / 2 - 0.2, pitch * len(blocks) - full / 2 - 0.4, -deepest - 0.45, 0.45, inches=1)
    for i, (name, layers) in enumerate(convs.items()):
        x, y = pitch * i, -(deepest - len(layers) * (bar + gap) - bar) / 2
        top, sizes = y, [layers[0].weight.shape[2], *(conv.weight.shape[3] for conv in layers)]
        title = f"{name}: {sum(conv.weight.size for conv in layers):,} weights"
        _text(axes, x, 0.25, title, 9, va="baseline", weight="bold")
        for k, channels in enumerate(sizes):
            half = full * channels / most / 2
            axes.add_patch(Rectangle((x - half, y - bar), 2 * half, bar, facecolor=INK, gid="map"))
            _text(axes, x, y - bar / 2, str(channels), va="center_baseline", color="white")
            if k < len(layers):
                w, below = layers[k].weight, full * sizes[k + 1] / most / 2
                colour = COLOURS[0] if w.shape[0] == 1 else COLOURS[4]
                low, end = y - bar, y - bar - gap
                corners = [(x - half, low), (x + half, low), (x + below, end), (x - below, end)]
                axes.add_patch(Polygon(corners, facecolor=tint(colour), gid="layer"))
                _text(axes, x, low - gap / 2, f"{w.shape[0]}x{w.shape[1]}\n{w.size:,}")
            y -= bar + gap
        bottom = y + gap - 0.12
        _arrow(axes, [(x, top + 0.16), (x, top)])
        _shortcut(axes, x, top + 0.1, bottom, x + full / 2 + 0.3, "-")
    return save(figure, path)


# ---- arrays and convolutions


def numbers(
    arrays: Mapping[str, Any],
    path: str | Path | None = None,
    marks: Mapping[str, Sequence[tuple[int, int, int, int]]] | None = None,
    columns: int = 8,
) -> Figure:
    """Small arrays, each under its name, as grids of numbers, `columns` side by side: blue above zero, orange below.

    marks: by name, rectangles (row, column, height, width) of cells to outline.
    """
    grids = [(name, np.atleast_2d(to_host(array))) for name, array in arrays.items()]
    lines = [grids[i : i + columns] for i in range(0, len(grids), columns)]
    gap, letter = 1.4, 0.22  # in cells: between grids; width of a letter of a name
    needed = [max(grid.shape[1], letter * len(name)) for name, grid in grids]
    wide = [max(needed[i::columns]) for i in range(len(lines[0]))]
    high = [max(len(grid) for _, grid in line) for line in lines]
    right, bottom = sum(wide) + gap * (len(wide) - 0.5), -sum(high) - 1.1 * len(lines) - 0.2
    figure, axes = _canvas(-gap / 2, right, bottom, 0, inches=0.4)
    top = 0.0
    for line, height in zip(lines, high, strict=True):
        left, top = 0.0, top - 1
        for (name, grid), width in zip(line, wide, strict=False):
            x, y = left + (width - grid.shape[1]) / 2, top - (height - len(grid)) / 2
            _text(axes, left + width / 2, y + 0.25, name, 9, va="baseline")
            _cells(axes, x, y, grid, _signed(grid))
            look: Look = {"fill": False, "zorder": 3, "linewidth": 2.5, "edgecolor": INK, "gid": "mark"}
            for row, column, h, w in (marks or {}).get(name, ()):
                axes.add_patch(Rectangle((x + column, y - row - h), w, h, **look))
            left += width + gap
        top -= height + 0.1
    return save(figure, path)


def _cells(axes: Axes, left: float, top: float, grid: np.ndarray, colours: Any, size: float = 1.0) -> None:
    """Numbers in squares; `colours` has one for each."""
    look: Look = {"edgecolor": "#aaaaaa", "linewidth": 0.6, "gid": "cell"}
    for (i, j), value in np.ndenumerate(grid):
        x, y = left + size * j, top - size * (i + 1)
        axes.add_patch(Rectangle((x, y), size, size, facecolor=colours[i][j], **look))
        letters = 8 if size > 0.7 else 6
        _text(axes, x + size / 2, y + size / 2, f"{value + 0.0:.3g}", letters, va="center_baseline")


def _signed(grid: np.ndarray) -> list[list[tuple[float, float, float]]]:
    """A tint for each number: the stronger the larger, blue above zero, orange below."""
    most = max(float(np.abs(grid).max(initial=0)), 1e-30)
    return [[tint(COLOURS[0] if value > 0 else COLOURS[1], 0.55 * abs(value) / most) for value in row] for row in grid]


def patches_to_rows(x: np.ndarray, w: np.ndarray, path: str | Path | None = None, stride: int = 1) -> Figure:
    """A convolution as a matrix product: each patch of x (H, W) becomes a row, each filter of w (KH, KW, F) a column.

    At most 7 patches, each in its own colour.
    """
    kh, kw, f = w.shape
    found = patches(x[None, :, :, None], kh, kw, stride)[0]  # (OH, OW, KH, KW, 1)
    oh, ow = found.shape[:2]
    if oh * ow > len(COLOURS):
        raise ValueError(
            f"patches_to_rows: expected x with at most {len(COLOURS)} patches, got {oh * ow}; use a smaller x"
        )
    rows, column = found.reshape(oh * ow, kh * kw), w.reshape(kh * kw, f)
    small, band = 0.5, 1.0  # size of a cell of x, and room around each of its copies
    high, wide = small * x.shape[0] + band, small * x.shape[1] + 0.6
    middle = max(oh * high, kh * kw, len(rows)) / 2
    lefts = np.cumsum([0, ow * wide + 1.2, kh * kw + 1.6, f + 1.6])
    figure, axes = _canvas(-0.4, lefts[3] + f + 0.6, -0.3, 2 * middle + 1.2, inches=0.36)
    tints = np.array([tint(colour, 0.4) for colour in COLOURS])
    for k, (i, j) in enumerate(np.ndindex(oh, ow)):
        left, top = j * wide, middle + (oh / 2 - i) * high - 0.7
        colours = np.ones((*x.shape, 3))  # white
        colours[i * stride : i * stride + kh, j * stride : j * stride + kw] = tints[k]
        _cells(axes, left, top, x, colours, small)
        _text(axes, left + small * x.shape[1] / 2, top + 0.2, f"patch {k}", va="baseline")
    for left, grid, name in zip(lefts[1:], (rows, column, rows @ column), ("im2col(x)", "w", "y"), strict=True):
        top, colours = middle + len(grid) / 2, np.ones((*grid.shape, 3))
        if name != "w":
            colours[:] = tints[: len(grid), None]
            for k in range(len(grid)):
                _text(axes, left - 0.15, top - k - 0.5, str(k), 7, ha="right")
        _cells(axes, left, top, grid, colours)
        _text(axes, left + grid.shape[1] / 2, top + 0.25, name, 9, va="baseline")
    for left, sign in ((lefts[2], "@"), (lefts[3], "=")):
        _text(axes, left - 0.95, middle, sign, 12)
    return save(figure, path)


def taps(
    size: int,
    kernel: int,
    path: str | Path | None = None,
    stride: int = 1,
    padding: int = 0,
    output: int | None = None,
    entry: int | None = None,
) -> Figure:
    """A convolution along one axis: a line for each weight, from an input, below, to an output that uses it.

    The border's zeros are dashed. output, entry: an output or an input whose lines are highlighted, with their weights.
    """
    places = output_size(size, kernel, stride, padding)
    right, upper = size + padding - 1, 2.0
    at = [stride * j - padding + (kernel - 1) / 2 for j in range(places)]  # an output is above its patch's middle
    figure, axes = _canvas(-padding - 0.6, right + 0.6, -0.5, upper + 0.5, inches=0.75)
    for j, k in np.ndindex(places, kernel):
        i = stride * j - padding + k
        strong = (output is None and entry is None) or j == output or i == entry
        colour = COLOURS[k % len(COLOURS)] if strong else "#cccccc"
        look: Look = {"linewidth": 1.8, "zorder": 1} if strong else {"linewidth": 0.8, "zorder": 0.5}
        style = ("-", "--", "-.", ":")[k % 4]
        axes.plot([i, at[j]], [0, upper], color=colour, linestyle=style, gid="tap", **look)
        if strong and (j == output or i == entry):
            share = 0.66 if j != output else 0.34  # of the line, where those of a fan are apart
            x, y = i + share * (at[j] - i), share * upper
            patch = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            _text(axes, x, y, f"w{k}", 9, color=colour, zorder=2, bbox=patch)
    for i in range(-padding, size + padding):
        text, colour, style = (f"x{i}", COLOURS[5], "-") if 0 <= i < size else ("0", "#ffffff", "--")
        _box(axes, i, 0, 0.56, 0.5, text, colour, linestyle=style, zorder=3, gid="input")
    for j, x in enumerate(at):
        _box(axes, x, upper, 0.56, 0.5, f"y{j}", COLOURS[4], zorder=3, gid="output")
    return save(figure, path)
