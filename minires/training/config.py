"""The settings of a training run: defaults, recipes, the learning-rate schedule and the data set.

config = Config.from_recipe("paper", model="resnet56")
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from minires.data import DataError, Dataset, find_cifar10, load_pictures, open_cifar10, shapes10
from minires.files import digest
from minires.optim import Schedule, cosine, multistep, one_cycle, warmup

CONFIG = "config.json"  # in a run folder
MAX_CONFIG_BYTES = 1_000_000
PAPER_STEPS = 64_000
FEW_STEPS = 400  # of a run on few images


class RunError(ValueError):
    """A run folder is in use, holds something else or cannot be read. One-line message that says how to fix it."""


# ---- settings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """All settings of a run. The defaults are the recipe "fast"; `Config.from_recipe` starts from any recipe.

    Raises ValueError, which names the setting, if a value is invalid.
    """

    model: str = "resnet20"
    shortcut: str = "A"
    width: int = 16
    data: str = "auto"  # auto, cifar10, shapes10, pictures (in data_dir), or own: a Dataset made in Python
    data_dir: str | None = None  # with CIFAR-10 or pictures
    val: bool = False  # test on a tenth of the training images, held out; the test set stays unseen
    recipe: str = "fast"
    epochs: int | None = 8  # the length of the run: in epochs ...
    steps: int | None = None  # ... or in steps
    batch_size: int = 128
    schedule: str = "one_cycle"  # one_cycle, cosine or multistep
    lr: float = 0.2  # the peak of the schedule
    warmup_steps: int = 0  # at a tenth of lr, before the schedule; never more than a tenth of the run
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_bias_and_norm: bool = False  # whether weight decay applies to biases and batch norm too
    label_smoothing: float = 0.0
    normalise: str = "channels"  # channels or pixel_mean
    augment: bool = True
    seed: int = 0
    device: str = "cpu"
    conv_method: str = "auto"  # auto or im2col, see conv.py
    threads: int | None = None  # None: one per core
    checkpoint_minutes: float = 10  # between checkpoints; every epoch ends with one anyway

    @classmethod
    def from_recipe(cls, recipe: str = "fast", images: int | None = None, **settings: Any) -> Config:
        """The settings of a recipe, some of them changed. `epochs` or `steps` replaces the recipe's length.

        images: how many there are to train on. If they are few, the batches are a quarter of them, with a learning
        rate that is smaller in proportion (Goyal et al. 2017), and the recipe "fast" has epochs enough for 400 steps.
        """
        if recipe not in RECIPES:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}")
        chosen = {"recipe": recipe, **RECIPES[recipe]}
        if recipe == "paper":
            chosen["warmup_steps"] = paper_warmup(settings.get("model", cls.model))
        if images:
            batch_size = chosen["batch_size"] = max(1, min(cls.batch_size, images // 4))
            chosen["lr"] = chosen.get("lr", cls.lr) * batch_size / cls.batch_size
            if recipe == "fast":
                chosen["epochs"] = max(cls.epochs or 0, -(-FEW_STEPS // (images // batch_size)))
        if settings.keys() & {"epochs", "steps"}:
            chosen |= {"epochs": None, "steps": None}
        return cls(**{**chosen, **settings})

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for expected, is_valid, names in RULES:
            for name in names:
                if not is_valid(getattr(self, name)):
                    raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs, steps: expected exactly one of them, got epochs={self.epochs!r} and steps={self.steps!r}"
            )


RECIPES: dict[str, dict[str, Any]] = {
    "fast": {},
    "paper": {  # He et al. 2016, section 4.2
        "epochs": None,
        "steps": PAPER_STEPS,
        "schedule": "multistep",
        "lr": 0.1,
        "nesterov": False,
        "weight_decay": 1e-4,
        "decay_bias_and_norm": True,
        "normalise": "pixel_mean",
    },
}


def paper_warmup(model: str) -> int:
    """Warm-up steps of the paper's recipe: nets of 110 layers and more hardly learn at the full rate at first."""
    layers = re.search(r"\d+", model)
    return 400 if layers and int(layers[0]) >= 110 else 0


CHOICES = {
    "data": ("auto", "cifar10", "shapes10", "pictures", "own"),
    "recipe": tuple(RECIPES),
    "schedule": ("one_cycle", "cosine", "multistep"),
    "normalise": ("channels", "pixel_mean"),
    "conv_method": ("auto", "im2col"),
}
RULES: list[tuple[str, Callable[[Any], bool], tuple[str, ...]]] = [  # what a value must be, the test, which settings
    ("a positive integer", lambda v: type(v) is int and v > 0, ("batch_size", "width")),
    ("a positive integer", lambda v: v is None or (type(v) is int and v > 0), ("epochs", "steps", "threads")),
    ("a non-negative integer", lambda v: type(v) is int and v >= 0, ("seed", "warmup_steps")),
    ("a positive number", lambda v: isinstance(v, int | float) and 0 < v < 1e308, ("lr",)),
    (
        "a non-negative number",
        lambda v: isinstance(v, int | float) and 0 <= v < 1e308,
        ("momentum", "weight_decay", "label_smoothing", "checkpoint_minutes"),
    ),
    ("true or false", lambda v: isinstance(v, bool), ("val", "nesterov", "decay_bias_and_norm", "augment")),
    ("a name", lambda v: isinstance(v, str), ("model", "shortcut", "device")),
    ("the name of a folder", lambda v: v is None or isinstance(v, str), ("data_dir",)),
]


def schedule_of(config: Config, total: int) -> Schedule:
    """The learning rate at each of `total` steps.

    "multistep" is the paper's schedule: lr is divided by 10 after half and after three quarters of the steps (32k and
    48k of 64k). A warm-up replaces the first steps of any schedule by a tenth of lr (section 4.2, for ResNet-110).
    """
    schedules = {
        "one_cycle": lambda: one_cycle(config.lr, total),
        "cosine": lambda: cosine(config.lr, total),
        "multistep": lambda: multistep(config.lr, (total // 2, total * 3 // 4)),
    }
    return warmup(schedules[config.schedule](), min(config.warmup_steps, total // 10), config.lr / 10)


def open_data(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A data set by name: "cifar10", "shapes10", "auto", or "pictures" in the folder `data_dir`, see `load_pictures`.

    "auto" is CIFAR-10, or Shapes-10 if neither `data_dir` nor MINIRES_DATA names a folder and there is none in `data/`.
    Raises DataError if there is no such data set, or if it is damaged.
    """
    if name == "pictures":
        if not data_dir:
            raise DataError('data_dir: expected the folder of the "pictures", got none')
        return load_pictures(data_dir)
    if name == "own":
        raise DataError(
            "the run was trained on a data set that was made in Python; only Python can resume it, "
            "mr.fit(..., resume=True, dataset=...), or test it, mr.evaluate(...)"
        )
    if name == "auto" and not (data_dir or os.environ.get("MINIRES_DATA") or find_cifar10()):
        return shapes10()
    return shapes10() if name == "shapes10" else open_cifar10(data_dir)[1]


# ---- reading -------------------------------------------------------------------------------------------------------


def read_config(out: str | Path, **changes: Any) -> Config:
    """The config of the run in folder `out`, with some settings changed. Raises RunError."""
    about = read_about(out)
    try:
        return Config(**{**with_present_names(about["config"]), **changes})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{Path(out, CONFIG)} cannot be read: {error}{_other_version(about)}") from None


def read_about(out: str | Path) -> dict[str, Any]:
    """All that `config.json` in the folder `out` says about a run. Raises RunError."""
    path = Path(out, CONFIG)
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise RunError(f"{path}: expected at most {MAX_CONFIG_BYTES:,} bytes, got {size:,}")
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{out} holds no run: {CONFIG} is missing") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(str(error) if isinstance(error, RunError) else f"{path} cannot be read: {error}") from None
    if not isinstance(about, dict):
        raise RunError(f"{path} cannot be read: expected a JSON object, got a {type(about).__name__}")
    return about


def _other_version(about: dict[str, Any]) -> str:
    """The hint that another version wrote `config.json`, if so."""
    own, versions = metadata.version("minires"), about.get("versions")
    theirs = versions.get("minires") if isinstance(versions, dict) else None
    return f"; minires {theirs} wrote it, this is {own}" if theirs not in (None, own) else ""


def config_digest(out: str | Path) -> str:
    """The digest of what `config.json` says, whatever its layout. Raises RunError."""
    return digest(json.dumps(read_about(out), sort_keys=True).encode())


RENAMED = {"decay_vectors": "decay_bias_and_norm", "smoothing": "label_smoothing"}


def with_present_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as older versions wrote them, translated. First `steps` and `warmup_steps` did not exist, later
    `conv_method`: every convolution was done by im2col."""
    settings = {"conv_method": "im2col", **settings}
    if "steps" in settings:
        return settings
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    if settings.get("schedule") == "steps":
        settings |= {"schedule": "multistep", "warmup_steps": paper_warmup(settings["model"])}
    if "epochs" in settings and settings["epochs"] is None:
        settings["steps"] = PAPER_STEPS
    return settings
