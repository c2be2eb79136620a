# Write your answers here, then run: python -m minires check
"""Exercises of chapter 8, "A ResNet on CIFAR-10".

8.1 learning_rate       the paper's schedule, with warm-up
8.2 crop_and_flip       augmentation: shifted crops and mirror images
8.3 normalise           by the training images' mean and standard deviation
8.4 loss_and_accuracy   means over batches of unequal size
8.5 confusion_matrix    which class is mistaken for which

All arrays are NumPy arrays, images are (N, H, W, C), and no argument may change. None of the five needs a Python loop
over images.
"""

from __future__ import annotations

import numpy as np

import minires as mr


def learning_rate(step: int, total: int, lr: float = 0.1, warmup: int = 0) -> float:
    """8.1: the learning rate of one step, as in section 4.2 of the paper.

    Steps run from 0 to total - 1. The rate is

        lr / 10    in the first warmup steps; after them
        lr         before step  total // 2
        lr / 10    from step  total // 2  on
        lr / 100   from step  3 * total // 4  on

    The warm-up delays nothing: the rate falls at the same steps with it and without it.

    Level 1, about 7 lines.
    """
    raise NotImplementedError("exercise 8.1")


def crop_and_flip(x: np.ndarray, top: np.ndarray, left: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """8.2: pad each image with 4 zeros on every side, crop it to its old size, mirror some of them.

    x: (N, H, W, C); top, left: (N,) integers from 0 to 8, the row and the column of the padded image where the crop of
    image n begins; flip: (N,) booleans, whether the crop is then mirrored left to right.
    ->  (N, H, W, C), dtype of x

    With top = left = 4 and flip = False an image stays the same.

    Level 3, about 7 lines.
    """
    raise NotImplementedError("exercise 8.2")


def normalise(images: np.ndarray, train_images: np.ndarray) -> np.ndarray:
    """8.3: images with mean 0 and standard deviation 1 in each channel, as measured on the training images.

        (images - mean) / std          a std below 1 counts as 1

    images: (N, H, W, C), train_images: (M, H, W, C), both uint8, 0..255  ->  (N, H, W, C) float32

    mean and std have one number for each channel. They are those of all pixels of all training images, whatever the
    images are; std is the root of the mean squared distance from the mean (biased: divided by the count).

    Level 1, about 3 lines.
    """
    raise NotImplementedError("exercise 8.3")


def loss_and_accuracy(logits: list[np.ndarray], labels: list[np.ndarray]) -> tuple[float, float]:
    """8.4: mean loss and accuracy over all images, from a net's outputs batch by batch.

    logits: for each batch an array (N, K), N differs from batch to batch; labels: for each batch (N,) integers.
    ->  the mean cross-entropy over all images, and the share of images (0..1) whose largest logit is the label's.

    `mr.cross_entropy(mr.Tensor(logits), labels).item()` is the mean over one batch.

    Level 2, about 6 lines.
    """
    raise NotImplementedError("exercise 8.4")


def confusion_matrix(labels: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """8.5: how many images of class i were classified as j, in row i and column j.

    labels, guesses: (N,) integers from 0 to classes - 1  ->  (classes, classes) integers; their sum is N.

    A class that never occurs has a row (or a column) of zeros.

    Level 2, about 3 lines.
    """
    raise NotImplementedError("exercise 8.5")
