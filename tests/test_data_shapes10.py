"""Shapes-10: the same bytes everywhere, ten classes, and objects that vary."""

import hashlib

import numpy as np
import pytest

from minires.data import shapes10
from minires.data.shapes10 import SHAPES, _render


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_shapes_and_labels():
    data = shapes10(30, 20)
    assert data.name == "shapes10" and data.classes == tuple(SHAPES) and len(data.classes) == 10
    assert data.train_images.shape == (30, 32, 32, 3) and data.test_images.shape == (20, 32, 32, 3)
    assert data.train_images.dtype == np.uint8 and data.train_labels.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(data.train_labels), [3] * 10)
    np.testing.assert_array_equal(data.test_labels[:12], [*range(10), 0, 1])


@pytest.mark.parametrize(
    "seed, train, test",
    [
        (
            0,
            "ea473c5b3f80b2c88423e471438f8f50034a397eb5cc7b043bb8731f150214a2",
            "eedea5299ec85b36de11ee4c5b6185d7faae309369d38ee0d71b3900b5e4488c",
        ),
        (
            7,
            "2229ee604fdfe71ff32a30cdafda9e693c4563479e560426581ce562d523a1d7",
            "87dc593e9913722f6b2a0a30c7a31a1a758ba3677e7ca6d2d72a87c9cb0e9d5b",
        ),
    ],
)
def test_checksum(seed, train, test):
    """Fails where a machine or a NumPy draws other images: results would no longer compare."""
    data = shapes10(600, 300, seed)
    assert (digest(data.train_images), digest(data.test_images)) == (train, test)


def test_an_image_does_not_depend_on_how_many():
    few, many = shapes10(7, 3), shapes10(511, 260)
    np.testing.assert_array_equal(few.train_images, many.train_images[:7])
    np.testing.assert_array_equal(few.test_images, many.test_images[:3])


def test_no_image_twice():
    data = shapes10(600, 300)
    assert len({image.tobytes() for image in np.concatenate([data.train_images, data.test_images])}) == 900


def test_inequalities_at_known_points():
    """Inside and outside of each shape, in its own frame: u to the right, v down, radius 1."""
    inside = {
        "disc": [(0, 0), (0.8, 0)],
        "ring": [(0.7, 0), (0, -0.7)],
        "square": [(0.7, 0.7), (0, 0)],
        "frame": [(0.7, 0.7), (0, -0.7)],
        "triangle": [(0, 0), (0, 1), (0.9, -0.55)],
        "star": [(0, 0), (0, -0.9), (0.85, -0.3)],
        "cross": [(0, 0), (0.9, 0), (0, -0.9)],
        "crescent": [(-0.8, 0), (0.1, 0.85)],
        "bars": [(0.5, 0.8), (-0.5, 0)],
        "hourglass": [(0, 0.8), (0.7, -0.8)],
    }
    outside = {
        "disc": [(0.7, 0.7)],
        "ring": [(0, 0), (1, 0)],
        "square": [(0.8, 0)],
        "frame": [(0, 0), (0.3, 0.3)],
        "triangle": [(0.9, 0.5), (0, -0.7)],
        "star": [(0, 0.9), (0.8, 0.5)],
        "cross": [(0.5, 0.5)],
        "crescent": [(0.5, 0), (1, 0)],
        "bars": [(0, 0), (0.9, 0)],
        "hourglass": [(0.5, 0), (-0.5, 0.2)],
    }
    for name, shape in SHAPES.items():
        for points, wanted in ((inside, True), (outside, False)):
            u, v = np.array(points[name], np.float32).T
            np.testing.assert_array_equal(shape(u, v), wanted, err_msg=name)


def test_mirror_images_stay_in_their_class():
    """A flipped shape is the same shape at another angle (0 or 180 degrees), so labels survive flips."""
    grid = (np.arange(64, dtype=np.float32) - 31.5) / 32
    u, v = np.meshgrid(grid, grid)
    for name, shape in SHAPES.items():
        mask = shape(u, v)
        assert np.array_equal(mask[:, ::-1], mask) or np.array_equal(mask[:, ::-1], mask[::-1, ::-1]), name


def test_objects_vary():
    """Of one class: centre, size and colours differ from image to image as the docstring's list says."""
    rng = np.random.default_rng(0)
    random_bytes = rng.integers(0, 256, (200, 3200), dtype=np.uint8)
    random_bytes[:, :128] = rng.integers(0, 256, 128, dtype=np.uint8)  # the same draws, other noise
    same = _render(np.zeros(200, int), random_bytes).astype(int)
    assert np.abs(same - same[0]).max() <= 40, "noise spans 40 levels"
    discs = shapes10(2000, 10).train_images[::10].astype(int)
    assert discs.std(axis=0).min() > 40, "no pixel keeps its colour"
    corner = discs[:, :2, :2].mean(axis=(1, 2))  # (200, 3) background colours
    assert corner.min() < 30 and corner.max() > 225


def test_bad_arguments():
    with pytest.raises(ValueError, match="train: expected a positive integer, got 0"):
        shapes10(0)
    with pytest.raises(ValueError, match="test: expected a positive integer, got -1"):
        shapes10(10, -1)
