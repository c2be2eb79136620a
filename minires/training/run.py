"""A training run: its parts, what it writes to its folder, and how it resumes from there."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minires.backend import to_device, to_host
from minires.data import Dataset, Loader, Normalise
from minires.devices.machine import environment
from minires.files import write_atomically
from minires.nn import Module
from minires.optim import SGD
from minires.parallel import get_num_threads, set_num_threads
from minires.resnet import build
from minires.training.checkpoint import CheckpointError, check_numbers, load_state, save_state
from minires.training.config import CONFIG, Config, RunError, config_digest, read_about, schedule_of
from minires.training.folder import (
    LOCK,
    METRICS,
    MODEL,
    can_resume,
    checkpoint_path,
    checkpoints_in,
    delete_checkpoints,
    delete_leftovers,
    leftovers_in,
    recorded_rows,
    resume_command,
    set_aside,
)
from minires.training.weights import fill, save_weights

Row = dict[str, float]  # the figures of an epoch; accuracies in 0..1, seconds of work on the run so far


@dataclass
class Progress:
    """Where a run is. Together with weights and velocities, everything needed to resume: draws are keyed by step."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done, over all epochs
    loss_sum: float = 0.0  # over the images of the epoch so far
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all threads; unaffected by other programs and a sleeping machine
    rows: list[Row] = field(default_factory=list)

    def figures(self) -> str:
        """Training loss and accuracy of the epoch so far."""
        return f"loss {self.loss_sum / self.seen:.3f} acc {self.correct / self.seen:.1%}" if self.seen else ""


class Run:
    """The parts of a run, all made from its config, and its folder."""

    def __init__(self, config: Config, out: Path, dataset: Dataset):
        self.config = config = replace(config, data=dataset.source, threads=config.threads or get_num_threads())
        set_num_threads(config.threads or 1)
        self.out, self.progress = out, Progress()
        self.dataset = dataset = hold_out(dataset) if config.val else dataset
        self.test = "val" if config.val else "test"  # prefix in the figures
        self.test_images, self.test_labels = dataset.test_images, dataset.test_labels
        if not len(self.test_images):
            raise ValueError(f"dataset: expected one {self.test} image or more, got none")
        fit_normalise = Normalise.channels if config.normalise == "channels" else Normalise.pixel_mean
        self.normalise = fit_normalise(dataset.train_images)
        self.loader = Loader(
            dataset.train_images,
            dataset.train_labels,
            config.batch_size,
            normalise=self.normalise,
            seed=config.seed,
            shuffle=True,
            augment=config.augment,
            drop_last=True,
        )
        self.total = config.steps or (config.epochs or 0) * len(self.loader)  # steps
        self.epochs = -(-self.total // len(self.loader))  # rounded up
        self.schedule = schedule_of(config, self.total)
        self.net = build(
            config.model, seed=config.seed, classes=len(dataset.classes), shortcut=config.shortcut, width=config.width
        ).to(config.device)
        self.opt = SGD(
            self.net.parameters(),
            config.lr,
            config.momentum,
            config.weight_decay,
            config.nesterov,
            config.decay_bias_and_norm,
        )
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds on from those in `progress`."""
        self.began = time.perf_counter() - self.progress.seconds
        self.cpu_began = time.process_time() - self.progress.cpu_seconds
        self.saved = time.perf_counter()

    def read_clock(self) -> None:
        """Bring the seconds in `progress` up to date."""
        self.progress.seconds = time.perf_counter() - self.began
        self.progress.cpu_seconds = time.process_time() - self.cpu_began

    # ---- what a run writes

    def create(self) -> None:
        """Start a new run; its folder must be empty."""
        ignored = [self.out / LOCK, *leftovers_in(self.out)]
        if any(path not in ignored for path in self.out.iterdir()):
            resume = f", or resume the run in it: {resume_command(self.out)}" if can_resume(self.out) else ""
            raise RunError(f"{self.out} is not empty; name another folder with --out{resume}")
        delete_leftovers(self.out)
        about = {
            "config": asdict(self.config),
            "steps": self.total,
            "dataset": {
                "name": self.dataset.name,
                "train": len(self.loader.images),
                self.test: len(self.test_images),
                "classes": self.dataset.classes,
                "digest": self.dataset.digest(),
            },
            **environment(),
        }
        write_atomically(self.out / CONFIG, (json.dumps(about, indent=2) + "\n").encode())  # first: without it, no run
        self.config_digest = config_digest(self.out)
        self.save_metrics()

    def end_epoch(self, loss: float, acc: float) -> Row:
        """Close an epoch and return its figures. loss, acc: on the test or validation set."""
        self.read_clock()
        progress = self.progress
        progress.epoch += 1
        row: Row = {
            "epoch": progress.epoch,
            "step": progress.step,
            "lr": self.schedule(progress.step - 1),
            "train_loss": progress.loss_sum / progress.seen,
            "train_acc": progress.correct / progress.seen,
            f"{self.test}_loss": loss,
            f"{self.test}_acc": acc,
            "seconds": round(progress.seconds, 2),
            "cpu_seconds": round(progress.cpu_seconds, 2),
        }
        progress.rows.append(row)
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        return row

    def save_metrics(self) -> None:
        """Write the figures of all epochs."""
        rows = "".join(json.dumps(row) + "\n" for row in self.progress.rows)
        write_atomically(self.out / METRICS, rows.encode())

    def save_model(self) -> None:
        """Write the net, and all that `load_run` needs besides its weights."""
        info = {
            "model": self.config.model,
            "shortcut": self.config.shortcut,
            "width": self.config.width,
            "data": self.dataset.name,
            "classes": list(self.dataset.classes),
            "mean": self.normalise.mean.tolist(),
            "scale": self.normalise.scale.tolist(),
        }
        save_weights(self.net, self.out / MODEL, info)

    # ---- checkpoints

    def is_checkpoint_due(self) -> bool:
        """Whether the last checkpoint is `checkpoint_minutes` old."""
        return time.perf_counter() - self.saved > 60 * self.config.checkpoint_minutes

    def save_checkpoint(self) -> None:
        """Write a checkpoint; keep the last two."""
        self.read_clock()
        arrays = {f"net.{name}": array for name, array in self.net.state_dict().items()}
        for (name, _), velocity in zip(self.net.named_parameters(), self.opt.velocity, strict=True):
            arrays[f"velocity.{name}"] = to_host(velocity)
        path = checkpoint_path(self.out, self.progress.step)
        check_numbers(arrays, path)  # or it would replace a good one
        path.parent.mkdir(exist_ok=True)
        save_state(path, arrays, {"progress": asdict(self.progress), "config": self.config_digest})
        delete_checkpoints(self.out, keep=2)
        self.saved = time.perf_counter()

    def resume(self) -> None:
        """Resume from the newest good checkpoint; begin again if there is none and no epoch is recorded.

        Damaged checkpoints are set aside. Raises RunError or FileError, and changes nothing, if all are damaged, if
        one can't be read, if epochs are recorded and their checkpoints missing, or if the data have changed.
        """
        self.config_digest = config_digest(self.out)
        self.check_data()
        checkpoints = checkpoints_in(self.out)
        if not checkpoints:
            self.check_nothing_is_recorded()
        for path, problem in self.load_newest(checkpoints):
            print(f"set aside a damaged checkpoint as {set_aside(path).name}: {problem}", file=sys.stderr)
        delete_leftovers(self.out)
        self.start_clock()
        self.save_metrics()
        if self.progress.rows and not self.progress.seen:  # killed before it was written, or lost since
            self.save_model()

    def check_data(self) -> None:
        """Raise RunError unless the training images are those that the run began with, if it recorded which."""
        recorded = read_about(self.out).get("dataset")
        if isinstance(recorded, dict) and recorded.get("digest", self.dataset.digest()) != self.dataset.digest():
            raise RunError(
                f"{self.out} began with other training images than those of {self.dataset.name} as it is now; "
                "restore them, or train in another folder"
            )

    def check_nothing_is_recorded(self) -> None:
        """Raise RunError if an epoch is recorded: a run without checkpoints would begin again and replace it."""
        rows = recorded_rows(self.out)
        done = f"{self.out} has recorded {len(rows)} of {self.epochs} epochs"
        if rows and rows[-1]["step"] >= self.total:
            raise RunError(f"{done}: it is finished, nothing to do")
        if rows:
            raise RunError(f"{done}, but its checkpoints are missing; restore them, or start over in another folder")

    def load_newest(self, checkpoints: list[Path]) -> list[tuple[Path, CheckpointError]]:
        """Load the newest good one. Returns the newer ones, which are damaged, and how. Raises RunError if all are."""
        damaged: list[tuple[Path, CheckpointError]] = []
        for path in reversed(checkpoints):
            try:
                self.load_checkpoint(path)
                return damaged
            except CheckpointError as error:
                damaged.append((path, error))
        if damaged:
            raise RunError(f"{self.out} has no good checkpoint: {damaged[0][1]}")
        return []

    def load_checkpoint(self, path: Path) -> None:
        """Continue from this checkpoint. Raises CheckpointError if it is damaged or of another run."""
        arrays, info = load_state(path)
        try:
            step = info["progress"]["step"]
            if path != checkpoint_path(self.out, step):  # it would be kept as the newest for ever
                raise ValueError(f"expected the checkpoint of the step in its name, got that of step {step}")
            self.restore(arrays, info)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{path}: {error}") from error

    def restore(self, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        """Take over the content of a checkpoint. Raises an error of almost any type if it isn't one of this run."""
        if info.get("config", self.config_digest) != self.config_digest:
            raise ValueError(f"{CONFIG} is not the one that it was written with; restore that")
        progress = Progress(**{RENAMED.get(name, name): value for name, value in info["progress"].items()})
        self.validate(progress)
        if any(array.dtype.kind != "f" for array in arrays.values()):
            raise ValueError("expected floating-point numbers only")
        net = {name.removeprefix("net."): array for name, array in arrays.items() if name.startswith("net.")}
        self.net.load_state_dict(net)
        for (name, _), velocity in zip(self.net.named_parameters(), self.opt.velocity, strict=True):
            array = arrays[f"velocity.{name}"]
            if array.shape != velocity.shape:
                raise ValueError(f"velocity.{name} is {array.shape}, expected {velocity.shape}")
            velocity[...] = to_device(array, self.config.device)
        self.progress = progress

    def validate(self, progress: Progress) -> None:
        """Raises ValueError or TypeError unless `progress`, read from a file, is a valid position in this run."""
        first = min(progress.epoch * len(self.loader), self.total)  # step of the epoch
        last = min(first + len(self.loader), self.total)
        if not (
            all(type(n) is int for n in (progress.epoch, progress.step, progress.correct, progress.seen))
            and first <= progress.step <= last
            and len(progress.rows) == progress.epoch
            and progress.seen == (progress.step - first) * self.config.batch_size
        ):
            raise ValueError(f"step {progress.step} of epoch {progress.epoch} is not one of this run")
        figures = [progress.loss_sum, progress.seconds, progress.cpu_seconds]
        figures += [value for row in progress.rows for value in row.values()]
        if not (all(map(math.isfinite, figures)) and 0 <= progress.correct <= progress.seen):
            raise ValueError("holds impossible values")
        names = {"epoch", "step", "lr", "train_loss", "train_acc", f"{self.test}_loss", f"{self.test}_acc", "seconds"}
        if not all(names <= row.keys() for row in progress.rows):
            raise ValueError("lacks figures of an epoch")


def hold_out(dataset: Dataset) -> Dataset:
    """The last tenth of the training images in place of the test set: 45k and 5k of CIFAR-10 (section 4.2)."""
    images, labels = dataset.train_images, dataset.train_labels
    cut = len(images) * 9 // 10
    return replace(
        dataset,
        train_images=images[:cut],
        train_labels=labels[:cut],
        test_images=images[cut:],
        test_labels=labels[cut:],
    )


RENAMED = {"loss": "loss_sum", "right": "correct", "images": "seen"}  # fields of Progress in older checkpoints


# ---- reading a trained net -----------------------------------------------------------------------------------------


def load_run(out: str | Path) -> tuple[Module, Normalise, dict[str, Any]]:
    """The trained net of a run folder, the normalisation of its input, and facts about it (model, data, classes, ...).

    Raises RunError if the folder holds no trained net, CheckpointError if its file is damaged.
    """
    path = Path(out) / MODEL
    if not path.exists():
        raise RunError(f"{out} holds no trained net: {MODEL} is missing (it is written after the first epoch)")
    arrays, info = load_state(path)
    try:
        zeros: Any = Zeros(at_most=sum(array.size for array in arrays.values()))
        net = build(
            info["model"],
            seed=zeros,
            classes=len(info["classes"]),
            shortcut=info["shortcut"],
            width=info["width"],
        )
        normalise = _normalise_of(info)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path} was not written by train: {error!r}") from None
    fill(net, arrays, path)
    return net, normalise, info


class Zeros(np.random.Generator):
    """A "random" generator for nets that are about to be filled from a file: its draws are zeros.

    It refuses to draw more numbers than the file holds, so that a forged file cannot exhaust memory.
    """

    def __init__(self, at_most: int):
        super().__init__(np.random.PCG64())
        self.left = at_most

    def standard_normal(self, size: Any = None, *args: Any, **options: Any) -> Any:
        self.left -= math.prod(size)
        if self.left < 0:
            raise ValueError("the file is too small for the net it names")
        return np.zeros(size)


def _normalise_of(info: dict[str, Any]) -> Normalise:
    with np.errstate(over="ignore"):
        mean, scale = (np.array(info[name], np.float32) for name in ("mean", "scale"))
    if not (mean.shape == scale.shape == (32, 32, 3) and np.isfinite([mean, scale]).all()):
        raise ValueError("mean, scale: expected (32, 32, 3) finite numbers each")
    if not isinstance(info["classes"], list):
        raise TypeError(f"classes: expected a list, got a {type(info['classes']).__name__}")
    return Normalise(mean, scale)
