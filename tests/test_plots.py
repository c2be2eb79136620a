"""Pictures, tested by what they hold: lines, labels, boxes, arrows."""

import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import rc_context, rcParams

from minires import nn, plots
from minires.data import Dataset
from minires.functional import relu
from minires.nn import Sequential
from minires.resnet import BasicBlock, Bottleneck, build
from minires.tensor import Tensor, no_grad

RNG = np.random.default_rng(0)


def with_gid(figure, gid):
    return [patch for axes in figure.axes for patch in axes.patches if patch.get_gid() == gid]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def assert_drawn_apart(figure):
    """When the figure is drawn, no text meets another, another's box, an arrow or the picture's edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    found = [text for axes in figure.axes for text in axes.texts] + list(figure.legends[0].get_texts())
    extents = [text.get_window_extent(renderer) for text in found]
    layers = [patch.get_window_extent(renderer) for patch in with_gid(figure, "layer")]
    for i, (text, a) in enumerate(zip(found, extents, strict=True)):
        assert not any(a.overlaps(b) for b in extents[:i]), text
        around = [box for box in layers if a.overlaps(box)]
        assert all(box.x0 < a.x0 and a.x1 < box.x1 for box in around) and len(around) <= 1, text
        assert a.x0 >= 0 and a.x1 <= figure.bbox.width, text
    assert not any(a.overlaps(b) for i, a in enumerate(layers) for b in layers[:i])
    (axes,) = figure.axes
    ways = [patch.get_path().interpolated(50).vertices for patch in axes.patches if not patch.get_gid()]
    x, y = axes.transData.transform(np.concatenate(ways)).T
    for text, a in zip(found, extents, strict=True):
        assert not ((a.x0 < x) & (x < a.x1) & (a.y0 < y) & (y < a.y1)).any(), text


# ---- curves


def write_run(folder, epochs, split="test", **changes):
    folder.mkdir(parents=True)
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for e in range(1, epochs + 1):
            row = {"epoch": e, "step": 10 * e, "lr": 0.1 / e, "train_loss": 2.0 / e, "train_acc": 1 - 0.5 / e,
                   f"{split}_loss": 3.0 / e, f"{split}_acc": 1 - 0.8 / e, "seconds": 1.5 * e}  # fmt: skip
            file.write(json.dumps(row | changes) + "\n")
    return folder


def test_curves_of_two_runs(tmp_path):
    runs = [write_run(tmp_path / "plain56", 4), write_run(tmp_path / "resnet56", 3)]
    figure = plots.curves(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    error, loss, rate = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["error (%)", "loss", "learning\nrate"]
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 2]
    assert [line.get_linestyle() for line in error.lines] == ["--", "-", "--", "-"]
    np.testing.assert_allclose(error.lines[0].get_ydata(), [50, 25, 50 / 3, 12.5])
    np.testing.assert_allclose(error.lines[1].get_ydata(), [80, 40, 80 / 3, 20])
    np.testing.assert_allclose(loss.lines[3].get_ydata(), [3, 1.5, 1])
    np.testing.assert_allclose(rate.lines[1].get_ydata(), [0.1, 0.05, 0.1 / 3])
    assert list(error.lines[2].get_xdata()) == [1, 2, 3]
    looks = [(line.get_color(), line.get_marker()) for line in error.lines]
    assert looks[0] == looks[1] and looks[2] == looks[3]
    assert looks[0][0] != looks[2][0] and looks[0][1] != looks[2][1]
    assert legend(figure) == ["plain56", "resnet56", "training", "test"]


def test_one_run_may_be_named_alone_and_may_have_a_validation_set(tmp_path):
    figure = plots.curves(str(write_run(tmp_path / "a", 1, "val")))
    assert legend(figure) == ["a", "training", "validation"]
    assert figure.axes[0].lines[1].get_ydata()[0] == pytest.approx(80)


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / "x" / "run", 1), write_run(tmp_path / "y" / "run", 1)]
    assert legend(plots.curves(runs))[:2] == [str(run) for run in runs]


def test_an_epoch_without_a_figure_leaves_a_gap(tmp_path):
    run = write_run(tmp_path / "run", 2)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 3, "lr": 0.1, "train_loss": 1.0, "train_acc": null, "test_loss": NaN}\n')
    error, loss, _ = plots.curves(run).axes
    assert np.isnan(error.lines[0].get_ydata()).tolist() == [False, False, True]
    assert np.isnan(loss.lines[0].get_ydata()).tolist() == [False, False, False]


def test_a_folder_without_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match="run1 holds no metrics.jsonl"):
        plots.curves(tmp_path / "run1")
    with pytest.raises(ValueError, match="at least one run"):
        plots.curves([])


@pytest.mark.parametrize("bad", ['{"epoch": 3, "lr"', "[1, 2]", '{"lr": 0.1}', '{"epoch": "one"}', ""])
def test_a_damaged_line_is_named(tmp_path, bad):
    run = write_run(tmp_path / "run", 2)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(bad + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 3 is damaged"):
        plots.curves(run)


def test_an_empty_file(tmp_path):
    run = write_run(tmp_path / "run", 0)
    with pytest.raises(ValueError, match="is empty"):
        plots.curves(run)


# ---- contact sheet


def tiny_set(n=30):
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    labels = np.arange(n) % 10
    return Dataset("tiny", images, labels, images[:2], labels[:2], tuple("abcdefghij"))


def test_contact_sheet(tmp_path):
    figure = plots.contact_sheet(tiny_set(), tmp_path / "sheet.png", per_class=4)
    (axes,) = figure.axes
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert [label.get_text() for label in axes.get_yticklabels()] == list("abcdefghij")
    assert axes.get_title() == "tiny"
    sheet = np.asarray(axes.images[0].get_array())
    assert sheet.shape == (10 * 34, 4 * 34, 3)
    assert [int(sheet[34 * 7 + 5, 34 * j + 5, 0]) for j in range(4)] == [7, 17, 27, 255]  # three of class 7
    rows = axes.get_yticks()
    assert 34 * 7 < rows[7] < 34 * 7 + 32
    with pytest.raises(ValueError, match="per_class"):
        plots.contact_sheet(tiny_set(), per_class=0)


# ---- graph


def scalar(value):
    return Tensor(np.float32(value), requires_grad=True)


def test_graph_of_a_small_expression(tmp_path):
    x, w = scalar(3), scalar(-2)
    y = x * w
    figure = plots.graph(relu(y * y + 1.0), tmp_path / "graph.svg", names={"x": x, "w": w, "y": y})
    assert set(texts(figure)) == {"x\n3", "w\n-2", "y\nmul\n-6", "mul\n36", "1", "add\n37", "relu\n37"}
    assert (len(with_gid(figure, "leaf")), len(with_gid(figure, "operation"))) == (3, 4)
    assert len(with_gid(figure, "edge")) == 2 + 2 + 2 + 1
    assert [patch.get_linestyle() for patch in with_gid(figure, "leaf")].count("--") == 1  # the constant
    assert (tmp_path / "graph.svg").is_file()


def test_graph_arrows_run_right_and_boxes_stand_apart():
    a, b = scalar(2), scalar(3)
    figure = plots.graph((a + a) * (a - b) / a + b.exp().log() * a)
    for arrow in with_gid(figure, "edge"):
        xs = arrow._path_original.vertices[:, 0]
        assert (np.diff(xs) >= 0).all() and xs[0] < xs[-1]
    boxes = [patch.get_bbox() for patch in with_gid(figure, "leaf") + with_gid(figure, "operation")]
    assert not any(p.overlaps(q) for i, p in enumerate(boxes) for q in boxes[:i])
    for arrow in with_gid(figure, "edge"):  # and none runs through a box
        points = arrow._path_original.interpolated(8).vertices
        for box in boxes:
            inside = (abs(points - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
                      < [box.width / 2 - 0.01, box.height / 2 - 0.01]).all(1)  # fmt: skip
            assert not inside.any()


def test_graph_tells_shapes_of_what_is_large():
    x = Tensor(np.ones((4, 3), np.float32), requires_grad=True)
    bias = Tensor(np.array([1, 2.5], np.float32), requires_grad=True)
    w = Tensor(np.ones((3, 2), np.float32), requires_grad=True)
    assert sorted(texts(plots.graph(x @ w + bias))) == ["3x2", "4x3", "[1 2.5]", "add\n4x2", "matmul\n4x2"]


def test_graph_puts_a_leaf_beside_its_use_and_draws_what_is_shared_once():
    x, b = scalar(1), scalar(7)
    y = x
    for _ in range(40):  # 2^40 ways lead back to x
        y = y * y
    figure = plots.graph(y + b, names={"b": b})
    boxes = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert boxes["add\n8"][0] - boxes["b\n7"][0] == pytest.approx(1.25)  # the column before
    assert len(with_gid(figure, "operation")) == 41 and len(with_gid(figure, "edge")) == 82


def test_graph_of_a_single_tensor_and_without_a_graph():
    with no_grad():
        y = scalar(2) * 3.0
    assert texts(plots.graph(y)) == ["6"]


def test_graph_too_large_or_gone():
    x = scalar(1)
    y = x
    for _ in range(5000):
        y = y.exp().log()
    with pytest.raises(ValueError, match="10001 tensors"):
        plots.graph(y)
    z = x * x
    z.backward()
    with pytest.raises(ValueError, match="backward"):
        plots.graph(z)


# ---- chapter 1's scalar values


class Value:
    def __init__(self, data, parents=(), name="", grad=0.0):
        self.data, self.parents, self.name, self.grad = data, parents, name, grad


def test_values_of_a_small_expression(tmp_path):
    x, k = Value(2.0, grad=12.0), Value(3.0, grad=4.0)
    square = Value(4.0, (x, x), "*", grad=3.0)
    y = Value(12.0, (square, k), "*")
    figure = plots.values(y, tmp_path / "values.png", names={"x": x, "y": y}, order=[y, square])
    assert (tmp_path / "values.png").is_file()
    boxes = {"x": ["x", "2", "grad 12"], "k": ["3", "grad 4"], "square": ["*", "4", "grad 3"], "y": ["y: *", "12"]}
    assert sorted(filter(None, texts(figure))) == sorted(sum(boxes.values(), []) + ["1", "2"])
    assert (len(with_gid(figure, "leaf")), len(with_gid(figure, "operation"))) == (2, 2)
    assert len(with_gid(figure, "edge")) == 4  # both of x's letters to its square
    found = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert found["grad 12"][0] < found["grad 3"][0] < found["y: *"][0]


def test_values_too_many():
    value = Value(1.0)
    for _ in range(60):
        value = Value(1.0, (value, value), "+")
    with pytest.raises(ValueError, match="61 tensors"):
        plots.values(value)


def test_pictures_are_drawn_in_a_notebooks_style_too():
    with rc_context():
        plots.notebook_style()
        assert rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.COLOURS)
        assert plots.graph(scalar(1))._repr_png_().startswith(b"\x89PNG")  # no warning about its layout
        assert plots.contact_sheet(tiny_set(), per_class=2)._repr_png_().startswith(b"\x89PNG")


# ---- blocks


@pytest.mark.parametrize(
    "name, option, layers, arcs, dashed",
    [
        ("resnet20", "A", 20, 9, 2),
        ("resnet20", "B", 20, 9, 2),
        ("resnet20", "C", 20, 9, 9),
        ("plain20", "A", 20, 0, 0),
        ("resnet56", "A", 56, 27, 2),
        ("bottleneck29", "B", 29, 9, 3),
        ("preresnet20", "A", 21, 9, 2),  # and the norm before the linear layer
        ("resnet110", "A", 2 + 2 * 5, 5, 2),  # equal blocks are drawn once
        ("resnet18", "B", 19, 8, 3),  # and the max pool
        ("plain18", "B", 19, 0, 0),
    ],
)
def test_blocks(name, option, layers, arcs, dashed):
    figure = plots.blocks(build(name, shortcut=option))
    assert len(with_gid(figure, "layer")) == layers
    shortcuts = with_gid(figure, "shortcut")
    assert len(shortcuts) == arcs
    assert [arc.get_linestyle() for arc in shortcuts].count("--") == dashed
    assert_drawn_apart(figure)
    kind = "option A" if option == "A" else "projection"
    assert (f"shortcut: {kind}" in legend(figure)) == bool(dashed)
    assert ("shortcut: identity" in legend(figure)) == (arcs > dashed)


def test_blocks_tell_kernels_stages_and_repeats(tmp_path):
    figure = plots.blocks(build("resnet110"), tmp_path / "net.png")
    assert (tmp_path / "net.png").is_file()
    found = texts(figure)
    assert found[:3] == ["image", "3x3, 16", "3x3, 16"]
    assert [text for text in found if text.startswith("x ")] == ["x 18", "x 17", "x 17"]
    assert found.count("3x3, 32 /2") == 1 and found.count("3x3, 64 /2") == 1 and found[-1] == "linear, 10"
    assert legend(figure)[:3] == ["layer1: 18 blocks", "layer2: 18 blocks", "layer3: 18 blocks"]
    colours = {patch.get_facecolor() for patch in with_gid(figure, "layer")}
    assert len(colours) == 1 + 3


def test_a_block_pair_differs_by_the_shortcut_alone():
    figure = plots.block_pair()
    assert len(with_gid(figure, "layer")) == 2 * 6 and len(with_gid(figure, "shortcut")) == 1
    found = texts(figure)
    assert [found.count(text) for text in ("3x3 conv", "batch norm", "ReLU", "H(x)", "F(x)")] == [4, 4, 4, 1, 1]
    assert found.count("F(x) + x") == 1


def test_blocks_of_a_students_own_net():
    net = Sequential(nn.Conv2d(3, 8, 3, rng=RNG), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                     nn.Linear(8 * 30 * 30, 10, rng=RNG))  # fmt: skip
    assert texts(plots.blocks(net)) == ["image", "3x3, 8", "Flatten", "linear, 10"]
    assert texts(plots.blocks(nn.Linear(3, 2, rng=RNG))) == ["image", "linear, 2"]
    first, second = nn.Conv2d(3, 8, 3, rng=RNG), nn.Conv2d(8, 9, 3, rng=RNG)
    figure = plots.blocks(Sequential(Sequential(first, nn.ReLU()), Sequential(second)))
    assert legend(figure) == ["0: 1 block", "1: 1 block"]
    assert_drawn_apart(figure)  # narrow as it is, it has room for the legend


# ---- costs


def test_widths_draw_each_map_and_each_convolution():
    rng = np.random.default_rng(0)
    net = {"basic": BasicBlock(64, 64, 1, "B", rng), "bottleneck": Bottleneck(256, 64, 2, "B", rng)}
    figure = plots.widths(net)
    wide = [bar.get_width() for bar in with_gid(figure, "map")]
    np.testing.assert_allclose(wide, np.array([64, 64, 64, 256, 64, 64, 256]) * 2.4 / 256)
    assert len(with_gid(figure, "layer")) == 5  # none for the projection
    assert len({layer.get_facecolor() for layer in with_gid(figure, "layer")}) == 2  # 1x1 and 3x3
    found = texts(figure)
    assert "basic: 73,728 weights" in found and "bottleneck: 69,632 weights" in found
    assert found.count("3x3\n36,864") == 3 and found.count("1x1\n16,384") == 2


def test_a_roofline_rises_with_the_bandwidth_and_is_flat_at_the_peak():
    points = {"conv": {"3x3": (36, 40)}, "other": {"relu": (0.125, 1), "norm": (0.5, 3)}}
    (axes,) = plots.roofline({"here": (80, 10), "there": (8000, 400)}, points).axes
    roofs = [line for line in axes.lines if line.get_gid() == "roof"]
    for roof, (peak, bandwidth) in zip(roofs, ((80, 10), (8000, 400)), strict=True):
        x, y = np.array(roof.get_data())
        np.testing.assert_allclose(y, np.minimum(peak, bandwidth * x))
        assert x[1] == peak / bandwidth
    assert [list(line.get_xdata()) for line in axes.lines if line not in roofs] == [[36], [0.125, 0.5]]
    assert [text.get_text() for text in axes.texts] == ["3x3", "relu", "norm"]
    assert axes.get_xlim()[0] < 0.125 and axes.get_xlim()[1] > 20


# ---- arrays and convolutions


def test_numbers(tmp_path):
    x = np.array([[1.0, -2, 0], [0.5, 4, 0.123456]])
    figure = plots.numbers({"x": x, "row": x[0]}, tmp_path / "x.png", {"x": [(1, 1, 1, 2)]})
    assert (tmp_path / "x.png").is_file()
    assert texts(figure) == ["x", "1", "-2", "0", "0.5", "4", "0.123", "row", "1", "-2", "0"]
    colours = [cell.get_facecolor()[:3] for cell in with_gid(figure, "cell")[:6]]
    assert colours[2] == (1, 1, 1)  # 0 is white
    assert colours[0][2] > colours[0][0] and colours[1][0] > colours[1][2]  # blue above, orange below
    assert colours[4][0] < colours[0][0] < colours[3][0] < 1  # 4 is stronger than 1, 1 than 0.5
    (mark,) = with_gid(figure, "mark")
    corner = with_gid(figure, "cell")[4]
    assert (mark.get_x(), mark.get_y(), mark.get_width(), mark.get_height()) == (corner.get_x(), corner.get_y(), 2, 1)


def test_numbers_in_columns():
    a, b, c = (np.full(shape, 7) for shape in ((2, 2), (2, 5), (3, 4)))
    figure = plots.numbers({"a": a, "b": b, "c": c}, columns=2)
    at = {text.get_text(): text.get_position() for text in figure.axes[0].texts if text.get_text() in "abc"}
    assert at["a"][1] == at["b"][1] > at["c"][1] and at["a"][0] == at["c"][0] < at["b"][0]
    boxes = [cell.get_bbox() for cell in with_gid(figure, "cell")]
    assert len(boxes) == 4 + 10 + 12
    assert not any(p.overlaps(q.padded(-0.01)) for i, p in enumerate(boxes) for q in boxes[:i])


def test_patches_to_rows():
    x = np.arange(12.0).reshape(3, 4)
    w = np.stack([np.ones((2, 3)), np.array([[0, 0, 0], [0, 0, 1]])], axis=-1)
    figure = plots.patches_to_rows(x, w)
    found = texts(figure)
    assert [text for text in found if text.startswith("patch")] == ["patch 0", "patch 1", "patch 2", "patch 3"]
    y = found[found.index("y") - 8 : found.index("y")]
    assert y == ["18", "6", "24", "7", "42", "10", "48", "11"]  # sums of the patches, and their last numbers
    colours = [cell.get_facecolor() for cell in with_gid(figure, "cell")]
    assert len(colours) == 4 * 12 + 4 * 6 + 6 * 2 + 4 * 2
    copies, rows, results = colours[:48], colours[48:72], colours[84:]
    white = (1, 1, 1, 1)
    for k in range(4):
        patch = [colour for colour in copies[12 * k : 12 * k + 12] if colour != white]
        assert len(patch) == 6 and len(set(patch + rows[6 * k : 6 * k + 6] + results[2 * k : 2 * k + 2])) == 1
    assert len(set(rows)) == 4
    assert "patch 1" not in texts(plots.patches_to_rows(np.ones((3, 4)), np.ones((2, 3, 1)), stride=2))
    with pytest.raises(ValueError, match="7 patches, x has 9"):
        plots.patches_to_rows(np.ones((5, 5)), np.ones((3, 3, 1)))


def tapped(figure):
    """From input to output: the lines of a `taps` picture, and the colour of each."""
    lines = [line for line in figure.axes[0].lines if line.get_gid() == "tap"]
    return {tuple(line.get_xdata()): line.get_color() for line in lines}


def test_taps():
    figure = plots.taps(5, 3)
    assert sorted(tapped(figure)) == [(i, j + 1) for i in range(5) for j in range(3) if 0 <= i - j < 3]
    assert texts(figure) == ["x0", "x1", "x2", "x3", "x4", "y0", "y1", "y2"]
    for k, colour in enumerate(plots.COLOURS[:3]):  # a colour for each weight
        assert {i - (j - 1) for (i, j), c in tapped(figure).items() if c == colour} == {k}


def test_taps_from_an_input_meet_the_weights_in_reverse():
    def strong(figure):
        labels = [text for text in figure.axes[0].texts if text.get_text().startswith("w")]
        return [text.get_text() for text in sorted(labels, key=lambda text: text.get_position())]

    assert strong(plots.taps(6, 3, output=1)) == ["w0", "w1", "w2"]
    figure = plots.taps(6, 3, entry=3)
    assert strong(figure) == ["w2", "w1", "w0"]
    coloured = [line for line, colour in tapped(figure).items() if colour in plots.COLOURS]
    assert sorted(coloured) == [(3, 2), (3, 3), (3, 4)]
    assert_drawn_apart_labels(figure)


def assert_drawn_apart_labels(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    extents = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])


def test_taps_with_stride_and_padding():
    figure = plots.taps(6, 3, stride=2, padding=1)
    assert sorted({j for _, j in tapped(figure)}) == [0, 2, 4]
    assert texts(figure).count("0") == 2
    assert max(i for i, _ in tapped(figure)) == 5  # no line from the right zero
    assert [box.get_linestyle() for box in with_gid(figure, "input")] == ["--"] + 6 * ["-"] + ["--"]


def test_filters():
    w = np.zeros((2, 3, 3, 10), np.float32)
    w[0, 0, :, 1] = 4, -4, 2
    figure = plots.filters(w)
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    assert sheet.shape == (2 * 2 + 1, 8 * 3 + 7, 3)
    np.testing.assert_allclose(sheet[0, 4], [1, 0, 0.75])
    np.testing.assert_allclose(sheet[0, 0], 0.5)
    np.testing.assert_allclose(sheet[0, 3], 1)  # between two filters
    np.testing.assert_allclose(sheet[3, :7], np.array([[0.5] * 3] * 3 + [[1] * 3] + [[0.5] * 3] * 3))
    np.testing.assert_allclose(sheet[3:, 8:], 1)  # a second line of two filters
    with pytest.raises(ValueError, match="wanted .KH, KW, 3, F."):
        plots.filters(np.ones((3, 3, 16, 16)))


def test_chain():
    figure = plots.chain(["x", "mean", "c"], [("x", "mean"), ("x", "c"), ("mean", "c")])
    assert texts(figure) == ["x", "mean", "c"]
    assert len(with_gid(figure, "quantity")) == 3
    highest = [arrow._path_original.vertices[:, 1].max() for arrow in with_gid(figure, "use")]
    assert len(highest) == 3 and [high > 0.25 for high in highest] == [False, True, False]  # the arc over "mean"


# ---- what a net gets wrong


def test_confusion():
    figure = plots.confusion([[7, 2, 0], [1, 3, 0], [4, 0, 0]], ("cat", "dog", "ship"))
    (axes,) = figure.axes
    assert texts(figure) == ["7", "2", "1", "3", "4"]
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places["2"] == (1.5, 0.5) and places["4"] == (0.5, 2.5)  # guesses to the right, labels downwards
    assert axes.get_ylim() == (3, 0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "ship"]
    colours = [cell.get_facecolor()[:3] for cell in with_gid(figure, "cell")]
    assert colours[0][2] > colours[0][0] and colours[6][0] > colours[6][2]  # blue where right, orange where wrong
    assert colours[6][2] < colours[1][2] < colours[3][2] < 1  # 4 is stronger than 2, 2 than 1
    assert colours[2] == colours[8] == (1, 1, 1)
    plots.confusion(np.zeros((3, 3), int), ("cat", "dog", "ship"))
    with pytest.raises(ValueError, match="shape .2, 3., wanted .3, 3."):
        plots.confusion(np.zeros((2, 3), int), ("cat", "dog", "ship"))


def test_gallery():
    images = [np.full((4, 5, 3), k, np.uint8) for k in range(5)]
    figure = plots.gallery(images, [f"no. {k}\n$5" for k in range(5)], columns=3)
    assert len(figure.axes) == 6 and not figure.axes[5].images
    for k, axes in enumerate(figure.axes[:5]):
        assert axes.get_title() == f"no. {k}\n$5" and (np.asarray(axes.images[0].get_array()) == k).all()
    assert len(plots.gallery(images[:2], ["a", "b"]).axes) == 2
    with pytest.raises(ValueError, match="1 to 40 images, got 0"):
        plots.gallery([], [])


# ---- all


def test_a_notebook_can_show_a_figure():
    assert plots.graph(scalar(1))._repr_png_().startswith(b"\x89PNG")


def test_plots_do_without_pyplot():
    code = "import sys, minires.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
