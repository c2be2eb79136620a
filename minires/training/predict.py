"""What a trained net says of a picture: from a PNG or JPEG file to a probability for each class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minires.backend import to_device, to_host
from minires.functional import log_softmax
from minires.training.run import load_run
from minires.tensor import Tensor, no_grad

SIZE = 32  # height and width of the images that `train` trains on

Prediction = list[tuple[str, float]]  # classes and their probabilities, the most probable first


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A PNG or JPEG file as a net sees it: uint8 (32, 32, 3).

    The picture is turned as its EXIF orientation says, cut to the largest square in its middle, and resized
    with a bicubic filter as wide as what becomes one pixel, so that fine patterns blur and do not alias. Grey
    and palette become RGB; what is transparent becomes white.

    Raises ValueError, in one line, for a file that is missing, damaged, no PNG or JPEG, or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.mode.startswith("I"):  # 16 bits of grey
                    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
                picture = ImageOps.fit(picture.convert("RGBA"), (SIZE, SIZE), Image.Resampling.BICUBIC)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a PNG or JPEG picture; convert it to one of them") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{path}: expected at most {most} million pixels; make the picture smaller") from None
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise ValueError(f"{path}: the picture is damaged: {error}") from error
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def predict(
    run: str | os.PathLike[str], images: Sequence[np.ndarray], top: int = 5, device: str = "cpu"
) -> list[Prediction]:
    """The `top` most probable classes of each image, by the net of the run folder `run`.

    p_k = e^(z_k) / sum_j e^(z_j), z the net's logits in evaluation mode. images: uint8 (32, 32, 3) each, as
    `read_image` gives. device: the one that computes. Raises what `load_run` raises.
    """
    if top < 1:
        raise ValueError(f"predict: top must be 1 or more, got {top}")
    net, normalise, info = load_run(Path(run))
    net.to(device).eval()
    found = []
    for image in images:
        with no_grad():
            x = Tensor(to_device(normalise(image[None]), device))
            p = np.exp(to_host(log_softmax(net(x)).data[0]))  # (classes,)
        found.append([(str(info["classes"][k]), float(p[k])) for k in np.argsort(-p, kind="stable")[:top]])
    return found
