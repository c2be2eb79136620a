"""Pictures, tested by what they hold: lines, labels, boxes, arrows."""

import json
import subprocess
import sys

import numpy as np
import pytest

from minires import nn, plots
from minires.data import Dataset
from minires.functional import relu
from minires.nn import Sequential
from minires.resnet import build
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


def test_blocks_of_a_students_own_net():
    net = Sequential(nn.Conv2d(3, 8, 3, rng=RNG), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                     nn.Linear(8 * 30 * 30, 10, rng=RNG))  # fmt: skip
    assert texts(plots.blocks(net)) == ["image", "3x3, 8", "Flatten", "linear, 10"]
    assert texts(plots.blocks(nn.Linear(3, 2, rng=RNG))) == ["image", "linear, 2"]
    first, second = nn.Conv2d(3, 8, 3, rng=RNG), nn.Conv2d(8, 9, 3, rng=RNG)
    figure = plots.blocks(Sequential(Sequential(first, nn.ReLU()), Sequential(second)))
    assert legend(figure) == ["0: 1 block", "1: 1 block"]
    assert_drawn_apart(figure)  # narrow as it is, it has room for the legend


# ---- all


def test_a_notebook_can_show_a_figure():
    assert plots.graph(scalar(1))._repr_png_().startswith(b"\x89PNG")


def test_plots_do_without_pyplot():
    code = "import sys, minires.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
