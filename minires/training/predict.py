"""Classify images with a trained net: from a PNG or JPEG file to a probability for each class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minires.backend import to_device, to_host
from minires.functional import log_softmax
from minires.tensor import Tensor, no_grad
from minires.training.run import load_run

SIZE = 32  # height and width of the training images

Prediction = list[tuple[str, float]]  # classes and their probabilities, most probable first


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A PNG or JPEG file as the input of a net: uint8 (32, 32, 3).

    The image is rotated according to its EXIF orientation, cropped to the largest central square, and resized with an
    antialiased bicubic filter. Grey and palette images are converted to RGB; transparent parts become white.

    Raises ValueError, in one line, if the file is missing, damaged, too large, or neither PNG nor JPEG.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as file:
                image = ImageOps.exif_transpose(file)
                if image.mode.startswith("I"):  # 16-bit grey
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                image = ImageOps.fit(image.convert("RGBA"), (SIZE, SIZE), Image.Resampling.BICUBIC)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a PNG or JPEG image; convert it to one of them") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{path}: expected at most {limit} million pixels; make the image smaller") from None
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise ValueError(f"{path}: the image is damaged: {error}") from error
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def predict(
    run: str | os.PathLike[str], images: Sequence[np.ndarray], top: int = 5, device: str = "cpu"
) -> list[Prediction]:
    """The `top` most probable classes of each image, according to the net in the run folder `run`.

    p_k = e^(z_k) / sum_j e^(z_j), with the net's logits z in evaluation mode. images: uint8 (32, 32, 3) each, as
    `read_image` returns them. device: where the net computes. Raises the errors of `load_run`.
    """
    if top < 1:
        raise ValueError(f"predict: top: expected a positive integer, got {top}")
    net, normalise, info = load_run(Path(run))
    net.to(device).eval()
    predictions = []
    for image in images:
        with no_grad():
            x = Tensor(to_device(normalise(image[None]), device))
            p = np.exp(to_host(log_softmax(net(x)).data[0]))  # (classes,)
        predictions.append([(str(info["classes"][k]), float(p[k])) for k in np.argsort(-p, kind="stable")[:top]])
    return predictions
