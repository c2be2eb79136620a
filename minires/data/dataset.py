"""The form of every data set, and the one error that its readers raise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class DataError(ValueError):
    """A data set is missing, damaged or not what its name says. One-line message that says how to fix it."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else " " for c in message))


@dataclass(frozen=True)
class Dataset:
    """Ten classes of 32x32 colour images, split into a training and a test set.

    Images are uint8 (N, 32, 32, 3), channel last, 0..255; labels are int64 (N,), 0..9.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
