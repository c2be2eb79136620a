"""Batches for training and evaluation, each prepared in the background while the previous one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minires.backend import generator
from minires.data.augment import augment as random_crop_flip

Batch = tuple[np.ndarray, np.ndarray]


class Loader:
    """Splits a data set into batches: x float32 (N, 32, 32, 3), normalised, perhaps augmented; y int64 (N,).

    `normalise` maps uint8 images to float32 ones, see `Normalise`. With `shuffle` each epoch has its own order, with
    `augment` each batch its own crops and flips; `drop_last` leaves out a last, smaller batch.

    Random draws are keyed by (seed, purpose, epoch, step), not carried from one to the next: step k of epoch e has
    the same bytes after all epochs before it, after a resume, or alone. Raises ValueError for wrong shapes and types.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        normalise: Callable[[np.ndarray], np.ndarray],
        seed: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        drop_last: bool = False,
    ) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(f"Loader: images: expected uint8 (N, H, W, C), got {images.dtype} {images.shape}")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"Loader: labels: expected {len(images)} integers, got {labels.dtype} {labels.shape}")
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"Loader: batch_size: expected 1 to {len(images)}, got {batch_size}")
        self.images, self.labels, self.batch_size = images, labels.astype(np.int64), batch_size
        self.normalise, self.seed = normalise, seed
        self.shuffle, self.augment, self.drop_last = shuffle, augment, drop_last

    def __len__(self) -> int:
        """Steps in an epoch."""
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from step `start` on. Leaving the loop early ends the thread."""
        order = np.arange(len(self.images))
        if self.shuffle:
            order = generator(self.seed, "shuffle", epoch).permutation(order)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="minires-loader") as worker:
            next_batch = worker.submit(self._batch, order, epoch, start)
            for step in range(start, len(self)):
                batch = next_batch.result()
                if step + 1 < len(self):
                    next_batch = worker.submit(self._batch, order, epoch, step + 1)
                yield batch

    def _batch(self, order: np.ndarray, epoch: int, step: int) -> Batch:
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        x = self.normalise(self.images[rows])
        if self.augment:
            x = random_crop_flip(x, generator(self.seed, "augment", epoch, step))
        return x, self.labels[rows]
