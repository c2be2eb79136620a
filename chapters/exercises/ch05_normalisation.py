# Write your answers here, then run: python -m minires check
"""Exercises of chapter 5, "Keeping the signal alive".

5.1 clip_by_norm            gradient clipping by the norm of all gradients
5.2 batch_norm_training     batch norm, forward
5.3 BatchNorm               running statistics, training and evaluation mode
5.4 batch_norm_backward     batch norm, backward, in one formula
5.5 layer_norm              layer norm, forward

All arrays are NumPy arrays, channel last. A channel's statistics run over all axes but the last: over N, H and W of
images (N, H, W, C), over N of (N, C). The variance is the mean of the squared distances from the mean (biased:
divided by the count), unless the text says otherwise.
"""

from __future__ import annotations

import numpy as np


def clip_by_norm(gradients: list[np.ndarray], max_norm: float) -> tuple[list[np.ndarray], float]:
    """5.1: scale all gradients together so that their common norm is at most max_norm.

        norm = sqrt(sum of the squares of all numbers of all gradients)
        every gradient times  min(1, max_norm / norm)

    Returns a list of new arrays, in the same order, each with its gradient's dtype, and the norm before clipping, a
    float. The given arrays must not change: others may use them too. Gradients that are all zero stay zero.

    Level 1, about 3 lines.
    """
    raise NotImplementedError("exercise 5.1")


def batch_norm_training(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """5.2: batch norm with the batch's own mean and variance.

    x: (N, H, W, C) or (N, C), gamma and beta: (C,)  ->  y of the shape and dtype of x, mean (C,), var (C,).

        xhat = (x - mean) / sqrt(var + eps)          y = gamma xhat + beta

    Level 2, about 6 lines.
    """
    raise NotImplementedError("exercise 5.2")


class BatchNorm:
    """5.3: batch norm that remembers: training mode and evaluation mode.

    In training (self.training is True) `forward` normalises with the batch's mean and variance, and then moves the
    running ones towards them:

        running_mean = running_mean + momentum (mean - running_mean)
        running_var  = running_var  + momentum (M / (M - 1) var - running_var)

    M is how many numbers a channel has. M / (M - 1) makes the variance unbiased; the batch itself is normalised with
    the biased one. In evaluation `forward` normalises with the running mean and variance and changes nothing.
    `normalise` below does the arithmetic.

    Level 2, about 9 lines.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        self.gamma = np.ones(channels)
        self.beta = np.zeros(channels)
        self.running_mean = np.zeros(channels)
        self.running_var = np.ones(channels)
        self.momentum = momentum
        self.eps = eps
        self.training = True

    def normalise(self, x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        """gamma (x - mean) / sqrt(var + eps) + beta."""
        return self.gamma * (x - mean) / np.sqrt(var + self.eps) + self.beta

    def forward(self, x: np.ndarray) -> np.ndarray:
        """x: (N, H, W, C) or (N, C)  ->  y of the same shape."""
        raise NotImplementedError("exercise 5.3")


def batch_norm_backward(
    grad: np.ndarray, x: np.ndarray, gamma: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """5.4: the gradients of batch norm in training: y = gamma xhat + beta, xhat = s (x - mean), s = 1/sqrt(var + eps).

    grad = dL/dy and x: (N, H, W, C) or (N, C), gamma: (C,)  ->  dx of the shape and dtype of x, dgamma: (C,),
    dbeta: (C,). With sums over the M numbers of a channel:

        dbeta = sum grad          dgamma = sum grad xhat
        dx = gamma s (grad - dbeta / M - xhat dgamma / M)

    Level 2, about 8 lines.
    """
    raise NotImplementedError("exercise 5.4")


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """5.5: layer norm: mean and variance at each position, over its C channels.

    x: (N, H, W, C) or (N, C), gamma and beta: (C,)  ->  y of the shape and dtype of x.

        xhat = (x - mean) / sqrt(var + eps)          y = gamma xhat + beta

    Level 1, about 4 lines.
    """
    raise NotImplementedError("exercise 5.5")
