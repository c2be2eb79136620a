"""Drawings, tested by their contents: boxes, arrows, cells and texts."""

import numpy as np
import pytest
from matplotlib import rc_context

from minires import nn, plots
from minires.course import drawings
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


# ---- how a number was computed


def scalar(value):
    return Tensor(np.float32(value), requires_grad=True)


def test_graph_of_a_small_expression(tmp_path):
    x, w = scalar(3), scalar(-2)
    y = x * w
    figure = drawings.graph(relu(y * y + 1.0), tmp_path / "graph.svg", names={"x": x, "w": w, "y": y})
    assert set(texts(figure)) == {"x\n3", "w\n-2", "y\nmul\n-6", "mul", "constant", "add", "relu\n37"}
    assert (len(with_gid(figure, "leaf")), len(with_gid(figure, "operation"))) == (3, 4)
    assert len(with_gid(figure, "edge")) == 2 + 2 + 2 + 1
    assert [patch.get_linestyle() for patch in with_gid(figure, "leaf")].count("--") == 1  # the constant
    assert (tmp_path / "graph.svg").is_file()


def test_graph_arrows_run_right_and_boxes_stand_apart():
    a, b = scalar(2), scalar(3)
    figure = drawings.graph((a + a) * (a - b) / a + b.exp().log() * a)
    for arrow in with_gid(figure, "edge"):
        xs = arrow._path_original.vertices[:, 0]
        assert (np.diff(xs) >= 0).all() and xs[0] < xs[-1]
    boxes = [patch.get_bbox() for patch in with_gid(figure, "leaf") + with_gid(figure, "operation")]
    assert not any(p.overlaps(q) for i, p in enumerate(boxes) for q in boxes[:i])
    for arrow in with_gid(figure, "edge"):  # and none runs through a box
        points = arrow._path_original.interpolated(8).vertices
        for box in boxes:
            inside = (
                abs(points - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
                < [box.width / 2 - 0.01, box.height / 2 - 0.01]
            ).all(1)
            assert not inside.any()


def test_graph_shows_numbers_of_named_tensors_and_shapes_of_others():
    x = Tensor(np.ones((4, 3), np.float32), requires_grad=True)
    bias = Tensor(np.array([1, 2.5], np.float32), requires_grad=True)
    w = Tensor(np.ones((3, 2), np.float32), requires_grad=True)
    shapes = ["add\n4x2", "leaf\n2", "leaf\n3x2", "leaf\n4x3", "matmul\n4x2"]
    assert sorted(texts(drawings.graph(x @ w + bias))) == shapes
    assert "b\n[1 2.5]" in texts(drawings.graph(x @ w + bias, names={"b": bias}))


def test_graph_puts_a_leaf_beside_its_use_and_draws_what_is_shared_once():
    x, b = scalar(1), scalar(7)
    y = x
    for _ in range(40):  # 2^40 ways lead back to x
        y = y * y
    figure = drawings.graph(y + b, names={"b": b})
    boxes = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert boxes["add\n8"][0] - boxes["b\n7"][0] == pytest.approx(1.25)  # the column before
    assert len(with_gid(figure, "operation")) == 41 and len(with_gid(figure, "edge")) == 82


def test_graph_of_a_single_tensor_and_without_a_graph():
    with no_grad():
        y = scalar(2) * 3.0
    assert texts(drawings.graph(y)) == ["constant\n6"]


def test_graph_too_large_or_gone():
    x = scalar(1)
    y = x
    for _ in range(5000):
        y = y.exp().log()
    with pytest.raises(ValueError, match="at most 60 values, got 10001"):
        drawings.graph(y)
    z = x * x
    z.backward()
    with pytest.raises(ValueError, match="backward"):
        drawings.graph(z)


class Value:
    def __init__(self, data, parents=(), name="", grad=0.0):
        self.data, self.parents, self.name, self.grad = data, parents, name, grad


def test_values_of_a_small_expression(tmp_path):
    x, k = Value(2.0, grad=12.0), Value(3.0, grad=4.0)
    square = Value(4.0, (x, x), "*", grad=3.0)
    y = Value(12.0, (square, k), "*")
    figure = drawings.values(y, tmp_path / "values.png", names={"x": x, "y": y}, order=[y, square])
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
    with pytest.raises(ValueError, match="got 61"):
        drawings.values(value)


def test_chain():
    figure = drawings.chain(["x", "mean", "c"], [("x", "mean"), ("x", "c"), ("mean", "c")])
    assert texts(figure) == ["x", "mean", "c"]
    assert len(with_gid(figure, "quantity")) == 3
    highest = [arrow._path_original.vertices[:, 1].max() for arrow in with_gid(figure, "use")]
    assert len(highest) == 3 and [high > 0.25 for high in highest] == [False, True, False]  # the arc over "mean"


# ---- nets and their blocks


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
    figure = drawings.blocks(build(name, shortcut=option))
    assert len(with_gid(figure, "layer")) == layers
    shortcuts = with_gid(figure, "shortcut")
    assert len(shortcuts) == arcs
    assert [arc.get_linestyle() for arc in shortcuts].count("--") == dashed
    assert_drawn_apart(figure)
    kind = "option A" if option == "A" else "projection"
    assert (f"shortcut: {kind}" in legend(figure)) == bool(dashed)
    assert ("shortcut: identity" in legend(figure)) == (arcs > dashed)


def test_blocks_tell_kernels_stages_and_repeats(tmp_path):
    figure = drawings.blocks(build("resnet110"), tmp_path / "net.png")
    assert (tmp_path / "net.png").is_file()
    found = texts(figure)
    assert found[:3] == ["image", "3x3, 16", "3x3, 16"]
    assert [text for text in found if text.startswith("x ")] == ["x 18", "x 17", "x 17"]
    assert found.count("3x3, 32 /2") == 1 and found.count("3x3, 64 /2") == 1 and found[-1] == "linear, 10"
    assert legend(figure)[:3] == ["layer1: 18 blocks", "layer2: 18 blocks", "layer3: 18 blocks"]
    colours = {patch.get_facecolor() for patch in with_gid(figure, "layer")}
    assert len(colours) == 1 + 3


def test_a_block_pair_differs_by_the_shortcut_alone():
    figure = drawings.block_pair()
    assert len(with_gid(figure, "layer")) == 2 * 6 and len(with_gid(figure, "shortcut")) == 1
    found = texts(figure)
    assert [found.count(text) for text in ("3x3 conv", "batch norm", "ReLU", "H(x)", "F(x)")] == [4, 4, 4, 1, 1]
    assert found.count("F(x) + x") == 1


def test_blocks_of_a_students_own_net():
    net = Sequential(
        nn.Conv2d(3, 8, 3, rng=RNG), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 10, rng=RNG)
    )
    assert texts(drawings.blocks(net)) == ["image", "3x3, 8", "Flatten", "linear, 10"]
    assert texts(drawings.blocks(nn.Linear(3, 2, rng=RNG))) == ["image", "linear, 2"]
    first, second = nn.Conv2d(3, 8, 3, rng=RNG), nn.Conv2d(8, 9, 3, rng=RNG)
    figure = drawings.blocks(Sequential(Sequential(first, nn.ReLU()), Sequential(second)))
    assert legend(figure) == ["0: 1 block", "1: 1 block"]
    assert_drawn_apart(figure)  # narrow as it is, it has room for the legend


def test_widths_draw_each_map_and_each_convolution():
    rng = np.random.default_rng(0)
    net = {"basic": BasicBlock(64, 64, 1, "B", rng), "bottleneck": Bottleneck(256, 64, 2, "B", rng)}
    figure = drawings.widths(net)
    wide = [bar.get_width() for bar in with_gid(figure, "map")]
    np.testing.assert_allclose(wide, np.array([64, 64, 64, 256, 64, 64, 256]) * 2.4 / 256)
    assert len(with_gid(figure, "layer")) == 5  # none for the projection
    assert len({layer.get_facecolor() for layer in with_gid(figure, "layer")}) == 2  # 1x1 and 3x3
    found = texts(figure)
    assert "basic: 73,728 weights" in found and "bottleneck: 69,632 weights" in found
    assert found.count("3x3\n36,864") == 3 and found.count("1x1\n16,384") == 2


# ---- arrays and convolutions


def test_numbers(tmp_path):
    x = np.array([[1.0, -2, 0], [0.5, 4, 0.123456]])
    figure = drawings.numbers({"x": x, "row": x[0]}, tmp_path / "x.png", {"x": [(1, 1, 1, 2)]})
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
    figure = drawings.numbers({"a": a, "b": b, "c": c}, columns=2)
    at = {text.get_text(): text.get_position() for text in figure.axes[0].texts if text.get_text() in "abc"}
    assert at["a"][1] == at["b"][1] > at["c"][1] and at["a"][0] == at["c"][0] < at["b"][0]
    boxes = [cell.get_bbox() for cell in with_gid(figure, "cell")]
    assert len(boxes) == 4 + 10 + 12
    assert not any(p.overlaps(q.padded(-0.01)) for i, p in enumerate(boxes) for q in boxes[:i])


def test_patches_to_rows():
    x = np.arange(12.0).reshape(3, 4)
    w = np.stack([np.ones((2, 3)), np.array([[0, 0, 0], [0, 0, 1]])], axis=-1)
    figure = drawings.patches_to_rows(x, w)
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
    assert "patch 1" not in texts(drawings.patches_to_rows(np.ones((3, 4)), np.ones((2, 3, 1)), stride=2))
    assert texts(drawings.patches_to_rows(np.ones((1, 2)), np.ones((1, 1, 3)))).count("1") == 4 + 2 + 3 + 6 + 2
    with pytest.raises(ValueError, match="at most 7 patches, got 9"):
        drawings.patches_to_rows(np.ones((5, 5)), np.ones((3, 3, 1)))


def tapped(figure):
    """From input to output: the lines of a `taps` picture, and the colour of each."""
    lines = [line for line in figure.axes[0].lines if line.get_gid() == "tap"]
    return {tuple(line.get_xdata()): line.get_color() for line in lines}


def test_taps():
    figure = drawings.taps(5, 3)
    assert sorted(tapped(figure)) == [(i, j + 1) for i in range(5) for j in range(3) if 0 <= i - j < 3]
    assert texts(figure) == ["x0", "x1", "x2", "x3", "x4", "y0", "y1", "y2"]
    for k, colour in enumerate(plots.COLOURS[:3]):  # a colour for each weight
        assert {i - (j - 1) for (i, j), c in tapped(figure).items() if c == colour} == {k}


def test_taps_from_an_input_meet_the_weights_in_reverse():
    def strong(figure):
        labels = [text for text in figure.axes[0].texts if text.get_text().startswith("w")]
        return [text.get_text() for text in sorted(labels, key=lambda text: text.get_position())]

    assert strong(drawings.taps(6, 3, output=1)) == ["w0", "w1", "w2"]
    figure = drawings.taps(6, 3, entry=3)
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
    figure = drawings.taps(6, 3, stride=2, padding=1)
    assert sorted({j for _, j in tapped(figure)}) == [0, 2, 4]
    assert texts(figure).count("0") == 2
    assert max(i for i, _ in tapped(figure)) == 5  # no line from the right zero
    assert [box.get_linestyle() for box in with_gid(figure, "input")] == ["--"] + 6 * ["-"] + ["--"]


def test_a_notebook_shows_a_drawing_in_its_own_style_too():
    with rc_context():
        assert drawings.graph(scalar(1))._repr_png_().startswith(b"\x89PNG")
        plots.notebook_style()
        assert drawings.graph(scalar(1))._repr_png_().startswith(b"\x89PNG")  # no warning about its layout
