"""Exercises of chapter 3, "Learning".

3.1 log_softmax    logarithms of probabilities, safely
3.2 cross_entropy  the loss of a batch and its gradient
3.3 sgd_step       a step with momentum and weight decay
3.4 he_init        first weights that keep a signal's size
"""

from __future__ import annotations

import numpy as np

import minires as mr


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """3.1: the logarithm of each class's probability, for each image.

    ln p_k = s_k - ln sum_j e^(s_j)          along the last axis

    scores: (N, K), N images and K classes. Returns (N, K), dtype of scores; scores must not change.

    Scores may be as large as 10,000 or as low as -10,000, and differ greatly from row to row. e^1000 is too large for
    a float, and ln 0 is minus infinity: avoid both. A softmax doesn't change when the same number is subtracted from
    all scores of a row.
    """
    ### BEGIN SOLUTION
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    ### END SOLUTION


def library_log_softmax(scores: np.ndarray) -> np.ndarray:
    """minires' own log-softmax, (N, K) -> (N, K), for exercise 3.2."""
    return mr.log_softmax(mr.Tensor(scores)).data


def cross_entropy(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """3.2: the mean of -ln p of the right class, and its gradient with respect to the scores.

    loss = -1/N sum_n ln p[n, labels[n]]
    dloss/ds[n, k] = (p[n, k] - t[n, k]) / N,   where t[n, k] is 1 if k is labels[n], else 0

    scores: (N, K). labels: (N,), integers 0..K-1. p is the softmax of each row; `library_log_softmax` gives ln p.

    Returns the loss, a number, and the gradient, (N, K) of the dtype of scores. scores and labels must not change.
    """
    ### BEGIN SOLUTION
    n = len(labels)
    log_p = library_log_softmax(scores)
    loss = -log_p[np.arange(n), labels].mean()
    grad = np.exp(log_p)
    grad[np.arange(n), labels] -= 1
    return float(loss), grad / n
    ### END SOLUTION


def sgd_step(
    w: np.ndarray, grad: np.ndarray, velocity: np.ndarray, lr: float, momentum: float, weight_decay: float
) -> None:
    """3.3: one step of gradient descent with momentum and weight decay, **in place**.

    g = grad + weight_decay w
    velocity = momentum velocity + g
    w = w - lr velocity

    w, grad, velocity: arrays of one shape. Returns nothing: the net has w, so the array w itself must change, and
    velocity too, which the next step needs. grad must not change: others may use it.
    """
    ### BEGIN SOLUTION
    velocity *= momentum
    velocity += grad + weight_decay * w
    w -= lr * velocity
    ### END SOLUTION


def he_init(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """3.4: first weights of a layer that is followed by a ReLU.

    normal, mean 0, standard deviation sqrt(2 / fan_in)

    shape: (C, F) for a linear layer of C inputs and F outputs; (KH, KW, C, F) for a convolution, where each output is
    computed from the C channels of KH KW pixels. fan_in: the number of inputs that one output is computed from.

    Returns float32 weights of that shape, drawn by one call of rng.standard_normal(shape).
    """
    ### BEGIN SOLUTION
    fan_in = np.prod(shape[:-1])
    return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    ### END SOLUTION
