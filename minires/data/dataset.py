"""The form of every data set, and the one error that its readers raise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


class DataError(ValueError):
    """A data set is missing, damaged or not what its name says. One-line message that says how to fix it."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else " " for c in message))


@dataclass(frozen=True)
class Dataset:
    """32x32 colour images of two or more classes, split into a training and a test set.

    Images are uint8 (N, 32, 32, 3), channel last, 0..255; labels are integers (N,), from 0 on: k means `classes[k]`.
    `source` is where a run finds its data set again, see `open_data`; leave it out of a data set of your own. Raises
    DataError, which names the field, if shapes, types or labels are others.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    source: str = "own"

    def __post_init__(self) -> None:
        names = list(self.classes)
        if len(names) < 2 or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
            raise DataError(f"Dataset: classes: expected two or more names, each once, got {str(names)[:80]}")
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3)):
                raise DataError(
                    f"Dataset: {part}_images: expected uint8 (N, 32, 32, 3), 0..255, got {_kind(images)}; convert them"
                )
            if not (isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.shape == images.shape[:1]):
                raise DataError(f"Dataset: {part}_labels: expected {len(images)} integers, got {_kind(labels)}")
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
                raise DataError(
                    f"Dataset: {part}_labels: expected 0 to {len(names) - 1}, a number for each of the {len(names)} "
                    f"classes, got {labels.min()} to {labels.max()}"
                )

    def digest(self) -> str:
        """The SHA-256 of the training images and labels, in hexadecimal digits."""
        content = hashlib.sha256(np.ascontiguousarray(self.train_images).data)
        content.update(np.ascontiguousarray(self.train_labels, "<i8").data)
        return content.hexdigest()


def _kind(value: object) -> str:
    """What a value is, for an error."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
