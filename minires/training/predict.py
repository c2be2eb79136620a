"""Classify images with a trained net: a probability for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minires.backend import to_device, to_host
from minires.fold import fold_batch_norm
from minires.functional import log_softmax
from minires.tensor import Tensor, no_grad
from minires.training.run import load_run

Prediction = list[tuple[str, float]]  # classes and their probabilities, most probable first


def predict(
    run: str | os.PathLike[str], images: Sequence[np.ndarray], top: int = 5, device: str = "cpu"
) -> list[Prediction]:
    """The `top` most probable classes of each image, according to the net in the run folder `run`.

    p_k = e^(z_k) / sum_j e^(z_j), with the net's logits z in evaluation mode. images: uint8 (32, 32, 3) each, as
    `read_image` returns them. device: where the net computes. Raises the errors of `load_run`, and ValueError for an
    image of another type or shape.
    """
    if top < 1:
        raise ValueError(f"predict: top: expected a positive integer, got {top}")
    net, normalise, info = load_run(Path(run))
    x = Tensor(to_device(normalise.mean[None], device))
    net = fold_batch_norm(net.to(device), x)
    predictions = []
    for number, image in enumerate(map(np.asarray, images)):
        if image.dtype != np.uint8 or image.shape != normalise.mean.shape:
            raise ValueError(
                f"predict: images[{number}]: expected uint8 {normalise.mean.shape}, 0..255, as read_image returns it, "
                f"got {image.dtype} {image.shape}"
            )
        with no_grad():
            x = Tensor(to_device(normalise(image[None]), device))
            p = np.exp(to_host(log_softmax(net(x)).data[0]))  # (classes,)
        predictions.append([(str(info["classes"][k]), float(p[k])) for k in np.argsort(-p, kind="stable")[:top]])
    return predictions
