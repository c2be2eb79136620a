"""Exercises of chapter 10, "On the GPU".

10.1 smooth_targets         a NumPy function made to run on every array library
10.2 entropy                another one, with a keyword that CuPy does not have
10.3 intensity              floating-point operations per byte
10.4 step_seconds           the least time that a list of operations takes
10.5 epoch_figures          reading losses without waiting at each step

A function that must run "on both devices" is checked on NumPy arrays and on a pretend GPU, minires/devices/strict.py.
Both must give the same result, and device arrays must stay on the device: no to_host, no .get(), no float() inside.
array_module(x) is the library that made x.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minires.backend import array_module

Array = Any  # a NumPy array, or one of the device


def smooth_targets_on_the_host(labels: np.ndarray, classes: int, smoothing: float) -> np.ndarray:
    """Given: what 10.1 computes, for NumPy arrays only."""
    targets = np.full((len(labels), classes), smoothing / classes, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets


def entropy_on_the_host(p: np.ndarray) -> np.ndarray:
    """Given: what 10.2 computes, for NumPy arrays only."""
    logs = np.zeros_like(p)
    np.log(p, out=logs, where=p > 0)
    return -np.sum(p * logs, axis=1)


def smooth_targets(labels: Array, classes: int, smoothing: float) -> Array:
    """10.1: targets for cross-entropy with label smoothing, on both devices.

    labels: (N,) integers  ->  (N, classes) float32, on the device of labels:

        1 - smoothing + smoothing / classes  for the label,        smoothing / classes  for every other class
    """
    ### BEGIN SOLUTION
    xp = array_module(labels)
    targets = xp.full((len(labels), classes), smoothing / classes, xp.float32)
    targets[xp.arange(len(labels)), labels] += 1 - smoothing
    return targets
    ### END SOLUTION


def entropy(p: Array) -> Array:
    """10.2: how undecided each row of probabilities is, on both devices.

        H[n] = - sum over k of  p[n, k] ln p[n, k],        where 0 ln 0 counts as 0

    p: (N, K)  ->  (N,), dtype of p, on its device; p must not change. CuPy's functions have no keyword `where=`.
    xp.where(condition, a, b) is something else, a function, and CuPy has it.
    """
    ### BEGIN SOLUTION
    xp = array_module(p)
    safe = xp.where(p > 0, p, 1)
    return -(p * xp.log(safe)).sum(axis=1)
    ### END SOLUTION


def intensity(h: int, w: int, c: int, f: int, kernel: int, batch: int = 1) -> float:
    """10.3: the arithmetic intensity of a convolution, in FLOP per byte.

    x: (batch, h, w, c), kernel x kernel, f channels out; stride 1, padded so that the output is h x w too; float32, 4
    bytes per number. A multiply-add is two floating-point operations. Each number of x, of the weight and of the output
    is moved exactly once. No bias.
    """
    ### BEGIN SOLUTION
    flop = 2 * batch * h * w * kernel * kernel * c * f
    numbers = batch * h * w * c + kernel * kernel * c * f + batch * h * w * f
    return flop / (4 * numbers)
    ### END SOLUTION


def step_seconds(operations: Sequence[tuple[float, float]], peak: float, bandwidth: float, launch: float) -> float:
    """10.4: the least time in seconds that a device takes for a list of operations.

    operations: (floating-point operations, bytes moved) of each. peak: floating-point operations a second. bandwidth:
    bytes a second. launch: seconds that the host needs to start one operation.

    On the device they run one after another, and each takes as long as its computing or its moving, whichever is
    longer, because both happen at the same time. The host starts them one after another while the device works: so
    all of them together take as long as the host or the device, whichever is longer.
    """
    ### BEGIN SOLUTION
    device = sum(max(flop / peak, moved / bandwidth) for flop, moved in operations)
    host = launch * len(operations)
    return max(host, device)
    ### END SOLUTION


def epoch_figures(steps: Iterable[tuple[Array, Array, int]]) -> tuple[float, float]:
    """10.5: mean loss and accuracy of an epoch, reading each of them from the device once.

    steps yields, for each step, the batch's mean loss and its number of right answers (arrays without axes, on the
    device), and its number of images (an int). It can be iterated only once. Batches may differ in size; both figures
    are means over images.

    Returns two floats. Reading a number waits for the device: at most two waits are allowed, however many the steps.
    """
    ### BEGIN SOLUTION
    loss, right, images = 0.0, 0, 0
    for step_loss, step_right, n in steps:
        loss = loss + step_loss * n
        right = right + step_right
        images += n
    return float(loss) / images, float(right) / images
    ### END SOLUTION
