"""Plots, tested by their contents: lines, labels, bars, images."""

import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import rc_context, rcParams

from minires import plots
from minires.data import Dataset
from minires.files import printable


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ---- runs


def write_run(folder, epochs, split="test", **changes):
    folder.mkdir(parents=True)
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for e in range(1, epochs + 1):
            row = {
                "epoch": e,
                "step": 10 * e,
                "lr": 0.1 / e,
                "train_loss": 2.0 / e,
                "train_acc": 1 - 0.5 / e,
                f"{split}_loss": 3.0 / e,
                f"{split}_acc": 1 - 0.8 / e,
                "seconds": 1.5 * e,
            }
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
    styles = [(line.get_color(), line.get_marker()) for line in error.lines]
    assert styles[0] == styles[1] and styles[2] == styles[3]
    assert styles[0][0] != styles[2][0] and styles[0][1] != styles[2][1]
    assert legend(figure) == ["plain56", "resnet56", "training", "test"]


def test_one_run_may_be_named_alone_and_may_have_a_validation_set(tmp_path):
    figure = plots.curves(str(write_run(tmp_path / "a", 1, "val")))
    assert legend(figure) == ["a", "training", "validation"]
    assert figure.axes[0].lines[1].get_ydata()[0] == pytest.approx(80)


def test_runs_of_the_same_name_are_labelled_by_their_paths(tmp_path):
    runs = [write_run(tmp_path / "x" / "run", 1), write_run(tmp_path / "y" / "run", 1)]
    assert legend(plots.curves(runs))[:2] == [str(run) for run in runs]


def test_a_missing_value_leaves_a_gap(tmp_path):
    run = write_run(tmp_path / "run", 2)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 3, "lr": 0.1, "train_loss": 1.0, "train_acc": null, "test_loss": NaN}\n')
    error, loss, _ = plots.curves(run).axes
    assert np.isnan(error.lines[0].get_ydata()).tolist() == [False, False, True]
    assert np.isnan(loss.lines[0].get_ydata()).tolist() == [False, False, False]


def test_a_folder_without_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match="run1 has no metrics.jsonl"):
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


# ---- images


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
    with pytest.raises(ValueError, match="per_class: expected a positive integer, got 0"):
        plots.contact_sheet(tiny_set(), per_class=0)


def test_gallery():
    images = [np.full((4, 5, 3), k, np.uint8) for k in range(5)]
    figure = plots.gallery(images, [f"no. {k}\n$5" for k in range(5)], columns=3)
    assert len(figure.axes) == 6 and not figure.axes[5].images
    for k, axes in enumerate(figure.axes[:5]):
        assert axes.get_title() == f"no. {k}\n$5" and (np.asarray(axes.images[0].get_array()) == k).all()
    assert len(plots.gallery(images[:2], ["a", "b"]).axes) == 2
    with pytest.raises(ValueError, match="expected 1 to 40 images, got 0"):
        plots.gallery([], [])


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
    np.testing.assert_allclose(sheet[3:, 8:], 1)  # a second row of two filters
    with pytest.raises(ValueError, match="filters: w: expected shape .KH, KW, 3, F."):
        plots.filters(np.ones((3, 3, 16, 16)))


# ---- predictions and speed


def test_confusion():
    figure = plots.confusion([[7, 2, 0], [1, 3, 0], [4, 0, 0]], ("cat", "dog", "ship"))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["7", "2", "1", "3", "4"]
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places["2"] == (1.5, 0.5) and places["4"] == (0.5, 2.5)  # x: predicted class, y: true class
    assert axes.get_ylim() == (3, 0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "ship"]
    colours = [cell.get_facecolor()[:3] for cell in axes.patches]
    assert colours[0][2] > colours[0][0] and colours[6][0] > colours[6][2]  # blue if correct, orange if not
    assert colours[6][2] < colours[1][2] < colours[3][2] < 1  # 4 is darker than 2, 2 than 1
    assert colours[2] == colours[8] == (1, 1, 1)
    plots.confusion(np.zeros((3, 3), int), ("cat", "dog", "ship"))
    with pytest.raises(ValueError, match="expected shape .3, 3., .*got .2, 3."):
        plots.confusion(np.zeros((2, 3), int), ("cat", "dog", "ship"))


def test_a_roofline_rises_with_the_bandwidth_and_is_flat_at_the_peak():
    points = {"conv": {"3x3": (36, 40)}, "other": {"relu": (0.125, 1), "norm": (0.5, 3)}}
    (axes,) = plots.roofline({"cpu": (80, 10), "gpu": (8000, 400)}, points).axes
    roofs = [line for line in axes.lines if line.get_gid() == "roof"]
    for roof, (peak, bandwidth) in zip(roofs, ((80, 10), (8000, 400)), strict=True):
        x, y = np.array(roof.get_data())
        np.testing.assert_allclose(y, np.minimum(peak, bandwidth * x))
        assert x[1] == peak / bandwidth
    assert [list(line.get_xdata()) for line in axes.lines if line not in roofs] == [[36], [0.125, 0.5]]
    assert [text.get_text() for text in axes.texts] == ["3x3", "relu", "norm"]
    assert axes.get_xlim()[0] < 0.125 and axes.get_xlim()[1] > 20


# ---- all


def test_figures_can_be_drawn_in_the_notebook_style():
    with rc_context():
        plots.notebook_style()
        assert rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.COLOURS)
        assert plots.contact_sheet(tiny_set(), per_class=2)._repr_png_().startswith(b"\x89PNG")


def test_no_figure_needs_pyplot():
    code = "import sys, minires.plots, minires.course.drawings; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- names and figures of every kind


ODD_NAMES = ["$x_1$", "$\\frac$", "a$b", "\\frac", "\x1b[31mred", "\udcff.png", "\u732b", "a\nb", "%s{}", ""]


def test_names_are_drawn_as_they_are(tmp_path):
    """Formulas, control characters, bytes that are no UTF-8, other scripts: no error, no warning, the same text."""
    image = np.zeros((32, 32, 3), np.uint8)
    found = [[(name, 0.5) for name in ODD_NAMES]]
    figure = plots.prediction([image], [ODD_NAMES[0]], found, tmp_path / "a.png")
    drawn = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert drawn == ["$x_1$", "$\\frac$", "a$b", "\\frac", r"\x1b[31mred", r"\udcff.png", "\u732b", r"a\nb", "%s{}", ""]
    for name in ODD_NAMES[:-1]:
        figure = plots.spread({name: [1, 2]}, "error (%)", tmp_path / "b.png")
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [printable(name)]
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [1e308, -1e308, float("inf"), float("nan"), 1e-320, 0, -5, 10**400])
def test_absurd_figures_leave_a_gap_or_are_drawn(value, tmp_path):
    """NaN and infinity are what Python's json writes and reads."""
    rows = [{"epoch": k, "step": k, "lr": value, "train_loss": value, "train_acc": 0.5} for k in (1, 2)]
    rows = [{**row, "test_loss": 2.0, "test_acc": value} for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        figure = plots.curves(tmp_path, tmp_path / "curves.png")
    except ValueError as error:
        assert "metrics.jsonl" in str(error) and "\n" not in str(error)
        assert not (tmp_path / "curves.png").exists()
    else:
        assert abs(np.nan_to_num(figure.axes[0].get_ylim())).max() < 1e103
