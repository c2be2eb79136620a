"""Shapes-10: ten kinds of shapes, drawn from a seed; a stand-in when CIFAR-10 is not available.

How an image is made, with u, v the coordinates in the shape's own frame (rotated, moved, with radius 1):

    1. a background whose colour changes linearly across the image, with a few spots of other colours
    2. the shape, an inequality in u and v, with 2x2 samples per pixel, in a colour that differs from the
       background's base by 64 levels or more in each channel
    3. noise on every byte

The same seed gives the same bytes on every machine: random words come straight from the bit generator PCG64,
whose stream NumPy keeps, and the arithmetic is float32 `+ - * /` and comparisons only, which IEEE 754 rounds
exactly (no library sine, no sum whose order a library chooses). Image i depends on the seed and i alone, not on the
number of images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minires.data.dataset import Dataset

Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A pentagram: points on the inner side of at least four of its five lines."""
    normals = ((0.0, -1.0), (0.951, -0.309), (0.588, 0.809), (-0.588, 0.809), (-0.951, -0.309))
    inside = sum(((a * u + b * v) < 0.36).astype(np.int8) for a, b in normals)
    return np.asarray(inside) >= 4


SHAPES: dict[str, Mask] = {
    "disc": lambda u, v: u * u + v * v < 0.72,
    "ring": lambda u, v: abs(u * u + v * v - 0.6) < 0.3,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.76,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.64) < 0.2,
    "triangle": lambda u, v: (v > -0.6) & (1.732 * abs(u) + v < 1.1),
    "star": _star,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.26) & (np.maximum(abs(u), abs(v)) < 0.92),
    "crescent": lambda u, v: (u * u + v * v < 0.9) & ((u - 0.5) * (u - 0.5) + v * v > 0.5),
    "bars": lambda u, v: (abs(v) < 0.84) & (abs(abs(u) - 0.54) < 0.26),
    "hourglass": lambda u, v: (abs(u) < abs(v)) & (abs(v) < 0.84),
}

CLASSES = tuple(SHAPES)
RADIUS = (112, 192)  # of a shape, in 1/16 pixel
SHIFT = 64  # of its centre along each axis, at most, in 1/16 pixel
TURN = 64  # at most, as 256 tan(angle / 2): 28 degrees
SLOPE = 24  # of the background's colour, at most, in 1/16 level per pixel
SPOTS, SPOT = 3, (3, 12)  # how many, and their squared radius in pixels
NOISE = 40  # levels from the lowest to the highest
DRAWS = 64  # 16-bit draws per image, for geometry and colours
WORDS = (2 * DRAWS + 32 * 32 * 3) // 8  # 64-bit words per image: the draws, then a byte of noise for each byte
CHUNK = 250  # images rendered at once


def shapes10(train: int = 5000, test: int = 1000, seed: int = 0) -> Dataset:
    """Draw Shapes-10: `train` and `test` images; the ten classes take turns, label i is i mod 10.

    A ladder, measured with PyTorch at the default size and seed: softmax regression on pixels ends at 14 %
    test accuracy, an MLP with 512 hidden units at 54 %, ResNet-20 at 97 % after five epochs (one-cycle, no
    augmentation). tests/test_shapes10_ladder.py climbs it on the engine.
    """
    for name, count in (("train", train), ("test", test)):
        if count < 1:
            raise ValueError(f"shapes10: {name}: expected a positive integer, got {count}")
    train_images, test_images = _images(train, [seed, 0]), _images(test, [seed, 1])
    train_labels, test_labels = (np.arange(count, dtype=np.int64) % 10 for count in (train, test))
    return Dataset("shapes10", train_images, train_labels, test_images, test_labels, CLASSES, "shapes10")


def _images(count: int, seed: list[int]) -> np.ndarray:
    bits = np.random.PCG64(seed)
    images = np.empty((count, 32, 32, 3), np.uint8)
    for start in range(0, count, CHUNK):
        labels = np.arange(start, min(start + CHUNK, count)) % 10
        words = bits.random_raw(len(labels) * WORDS).reshape(len(labels), WORDS)
        images[start : start + len(labels)] = _render(labels, words.astype("<u8").view(np.uint8))
    return images


def _render(labels: np.ndarray, random_bytes: np.ndarray) -> np.ndarray:
    """Images (N, 32, 32, 3) uint8 of the shapes `labels` (N,), from random bytes (N, 8 * WORDS)."""
    draws = random_bytes[:, : 2 * DRAWS].view("<u2").astype(np.int32)  # (N, DRAWS), 0..65535
    noise = random_bytes[:, 2 * DRAWS :].reshape(-1, 32, 32, 3).astype(np.int32)
    column = iter(range(DRAWS))

    def draw(low: int, high: int, *shape: int) -> np.ndarray:
        """Integers in low..high-1, (N, *shape), from the next columns of the draws."""
        taken = [next(column) for _ in range(int(np.prod(shape)))]
        return (low + (draws[:, taken] * (high - low) >> 16)).reshape(-1, *shape)

    # Geometry in units of 1/16 pixel, the image's centre at 0.
    radius = draw(*RADIUS, 1, 1)
    centre = draw(-SHIFT, SHIFT + 1, 2, 1, 1)
    # A rotation without sine or cosine: t = tan(angle / 2), cos = (1 - t^2) / (1 + t^2), sin = 2t / (1 + t^2).
    t = draw(-TURN, TURN + 1, 1, 1).astype(np.float32) / np.float32(256)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

    # Background: a base colour and a slope along each axis.  (N, 32, 32, 3)
    x = np.arange(32, dtype=np.int32) - 16
    base, slope = draw(0, 256, 1, 1, 3), draw(-SLOPE, SLOPE + 1, 2, 1, 1, 3)
    image = base + (slope[:, 0] * x[:, None, None] + slope[:, 1] * x[None, :, None]) // 16
    for _ in range(SPOTS):
        at, size, colour = draw(-16, 16, 2, 1, 1), draw(*SPOT, 1, 1), draw(0, 256, 1, 1, 3)
        spot = (x[:, None] - at[:, 0]) ** 2 + (x[None, :] - at[:, 1]) ** 2 < size
        image = np.where(spot[..., None], colour, image)

    # The shape, at 2x2 samples per pixel.  (N, 64, 64) -> number of covered samples of 4, (N, 32, 32, 1)
    grid = np.arange(64, dtype=np.int32) * 8 + 4 - 256
    dy = (grid[:, None] - centre[:, 0]).astype(np.float32) / radius.astype(np.float32)
    dx = (grid[None, :] - centre[:, 1]).astype(np.float32) / radius.astype(np.float32)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    covered = np.empty(u.shape, np.int32)
    for label, inside in enumerate(SHAPES.values()):
        of_class = labels == label
        covered[of_class] = inside(u[of_class], v[of_class])
    cover = covered.reshape(-1, 32, 2, 32, 2).sum(axis=(2, 4), dtype=np.int32)[..., None]
    colour = (base + draw(64, 193, 1, 1, 3)) % 256  # 64 levels off or more
    image = (image * (4 - cover) + colour * cover) >> 2
    image = np.clip(image + (noise * NOISE >> 8) - NOISE // 2, 0, 255)
    return np.asarray(image, np.uint8)
