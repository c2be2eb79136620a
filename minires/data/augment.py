"""Normalisation and augmentation of image batches (He et al. 2016, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

PAD = 4


@dataclass(frozen=True)
class Normalise:
    """y = (x - mean) * scale, from uint8 images (N, 32, 32, 3), 0..255, to float32 of the same shape.

    `mean` and `scale`, float32 (32, 32, 3), belong to a trained net and are saved with its weights. Compute them
    from training images only. Raises ValueError for images of another type or shape.
    """

    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.shape[1:] != self.mean.shape:
            expected = ", ".join(map(str, ("N", *self.mean.shape)))
            raise ValueError(
                f"Normalise: images: expected uint8 ({expected}), 0..255, got {images.dtype} {images.shape}"
            )
        x: np.ndarray = images - self.mean
        x *= self.scale
        return x

    @classmethod
    def pixel_mean(cls, images: np.ndarray) -> Normalise:
        """The paper's: subtract the mean image. Here also divided by 255, so that values are in -1..1."""
        mean, _ = _mean_and_mean_square(images)
        return cls(mean.astype(np.float32), np.full(mean.shape, 1 / 255, np.float32))

    @classmethod
    def channels(cls, images: np.ndarray) -> Normalise:
        """Mean 0 and variance 1 in each channel; the same three numbers for every pixel."""
        mean, mean_square = (moment.mean(axis=(0, 1)) for moment in _mean_and_mean_square(images))  # (3,)
        scale = 1 / np.maximum(np.sqrt(mean_square - mean * mean), 1)  # a channel of one value stays 0
        mean, scale = (np.tile(part, (*images.shape[1:3], 1)).astype(np.float32) for part in (mean, scale))
        return cls(mean, scale)


def _mean_and_mean_square(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of x and of x^2 over the batch, (H, W, C) float64; the integer sums are exact in any order."""
    total = images.sum(axis=0, dtype=np.int64)
    squares = np.zeros_like(total)
    for start in range(0, len(images), 1000):  # a square of all of them would take a gigabyte
        squares += np.square(images[start : start + 1000], dtype=np.int64).sum(axis=0)
    return total / len(images), squares / len(images)


def augment(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pad each normalised image with 4 zeros a side, crop 32x32 at random, flip left-right half the time.

    x is float32 (N, 32, 32, 3). Zeros after normalisation are the mean colour. The draws, in order: N row
    offsets and N column offsets in 0..8, N flips.
    """
    if x.ndim != 4:
        raise ValueError(f"augment: x: expected (N, H, W, C), got shape {x.shape}")
    n, height, width, channels = x.shape
    padded = np.zeros((n, height + 2 * PAD, width + 2 * PAD, channels), x.dtype)
    padded[:, PAD:-PAD, PAD:-PAD] = x
    # All possible crops, as views: (N, 9, 9, H, W, C).
    crops = sliding_window_view(padded, (height, width, channels), axis=(1, 2, 3))[:, :, :, 0]
    top, left = rng.integers(0, 2 * PAD + 1, (2, n))
    flip = rng.random(n) < 0.5
    out: np.ndarray = crops[np.arange(n), top, left]
    out[flip] = out[flip, :, ::-1]
    return out
