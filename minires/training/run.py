"""A training run: its settings, its parts, its folder, and how it is put away and taken up again.

A run lives in a folder: `config.json` (every setting, versions, data set), `metrics.jsonl` (a line an
epoch), `model.safetensors` (the net, for `load_run`) and `checkpoints/`, from which it goes on.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from minires.backend import Array, array_module, device_of, get_num_threads, set_num_threads, to_device, to_host
from minires.training.checkpoint import load_state, load_weights, save_state, save_weights, write_atomically
from minires.data import DataError, Dataset, Loader, Normalise, find_cifar10, load_cifar10, data_root, shapes10
from minires.nn import Dropout, Module, forward_hook
from minires.optim import SGD, Schedule, cosine, multistep, one_cycle, warmup
from minires.resnet import build
from minires.tensor import Tensor, no_grad

Row = dict[str, float]  # the figures of an epoch; accuracies in 0..1, seconds of work on the run so far

PAPER_STEPS = 64_000
MAX_CONFIG_BYTES = 1_000_000
CONFIG, METRICS, MODEL = "config.json", "metrics.jsonl", "model.safetensors"  # what a run folder holds
CHECKPOINTS, LOCK = "checkpoints", ".lock"


# ---- settings


@dataclass(frozen=True)
class Config:
    """Every setting of a run. The defaults are the recipe `fast`; `Config.from_recipe` starts from any recipe."""

    model: str = "resnet20"
    shortcut: str = "A"
    width: int = 16
    data: str = "auto"  # auto, cifar10 or shapes10
    data_dir: str | None = None
    val: bool = False  # test on a tenth of the training images, held out; the test set stays unseen
    recipe: str = "fast"
    epochs: int | None = 8  # None: the paper's 64,000 steps
    batch_size: int = 128
    schedule: str = "one_cycle"  # one_cycle, cosine or steps
    lr: float = 0.2  # the highest of the schedule
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_bias_and_norm: bool = False  # whether weight decay holds for biases and batch norm too
    label_smoothing: float = 0.0  # of the labels
    normalise: str = "channels"  # channels or pixel_mean
    augment: bool = True
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None  # None: one a core
    checkpoint_minutes: float = 10  # between checkpoints; one is written after every epoch anyway

    @classmethod
    def from_recipe(cls, recipe: str = "fast", **settings: Any) -> Config:
        """A recipe's settings, some of them changed."""
        if recipe not in RECIPES:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}")
        return cls(**{"recipe": recipe, **RECIPES[recipe], **settings})

    def __post_init__(self) -> None:
        def want(words: str, is_right: Callable[[Any], bool], *names: str) -> None:
            for name in names:
                if not is_right(getattr(self, name)):
                    raise ValueError(f"{name}: expected {words}, got {getattr(self, name)!r}")

        for name, choices in (
            ("data", DATA),
            ("recipe", tuple(RECIPES)),
            ("schedule", SCHEDULES),
            ("normalise", ("channels", "pixel_mean")),
        ):
            want(f"one of {', '.join(choices)}", choices.__contains__, name)
        want("a positive integer", lambda n: type(n) is int and n > 0, "batch_size", "width")
        want("a positive integer", lambda n: n is None or (type(n) is int and n > 0), "epochs", "threads")
        want("a non-negative integer", lambda n: type(n) is int and n >= 0, "seed")
        want("a positive number", lambda x: isinstance(x, int | float) and 0 < x < 1e308, "lr")
        want(
            "a non-negative number",
            lambda x: isinstance(x, int | float) and 0 <= x < 1e308,
            "momentum",
            "weight_decay",
            "label_smoothing",
            "checkpoint_minutes",
        )
        want("true or false", lambda x: isinstance(x, bool), "val", "nesterov", "decay_bias_and_norm", "augment")
        want("a name", lambda x: isinstance(x, str), "model", "shortcut", "device")
        want("a folder's name", lambda x: x is None or isinstance(x, str), "data_dir")


DATA = ("auto", "cifar10", "shapes10")
SCHEDULES = ("one_cycle", "cosine", "steps")
RECIPES: dict[str, dict[str, Any]] = {
    "fast": {},
    "paper": {  # He et al. 2016, section 4.2
        "epochs": None,
        "schedule": "steps",
        "lr": 0.1,
        "nesterov": False,
        "weight_decay": 1e-4,
        "decay_bias_and_norm": True,
        "normalise": "pixel_mean",
    },
}


def schedule_of(config: Config, total: int) -> Schedule:
    """The learning rate at each of `total` steps.

    `steps` is the paper's: divided by 10 after half and after three quarters (32k and 48k of 64k steps). Nets
    of 110 layers and more start with up to 400 steps at a tenth of the rate, for the full one is slow to begin with.
    """
    if config.schedule == "one_cycle":
        return one_cycle(config.lr, total)
    if config.schedule == "cosine":
        return cosine(config.lr, total)
    plan = multistep(config.lr, (total // 2, total * 3 // 4))
    depth = int("".join(re.findall(r"\d+", config.model)) or 0)
    return warmup(plan, min(400, total // 10), config.lr / 10) if depth >= 110 else plan


def open_data(name: str, data_dir: str | Path | None = None) -> Dataset:
    """A data set by name. "auto" is CIFAR-10 where `find_cifar10` finds it, else Shapes-10."""
    place = None if name == "shapes10" else find_cifar10(data_dir)
    if place:
        return load_cifar10(place)
    if name == "cifar10":
        fetch = "python -m minires data cifar10" + (f" --data-dir {data_dir}" if data_dir else "")
        raise DataError(f"CIFAR-10 is not in {data_root(data_dir)}; fetch it with: {fetch}")
    return shapes10()


# ---- what a run is made of, and what is written down


class RunError(ValueError):
    """A run folder is in use, holds something else or can't be read: told in one line, with the mend."""


class NotFinite(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass
class Progress:
    """Where a run stands. With weights and velocities all it takes to go on: draws are keyed by step."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done, over all epochs
    loss: float = 0.0  # sums over the images of the epoch so far
    right: int = 0
    images: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all threads; what a busy or sleeping machine took from the run is not in it
    rows: list[Row] = field(default_factory=list)

    def figures(self) -> str:
        """Training loss and accuracy of the epoch so far."""
        return f"loss {self.loss / self.images:.3f} acc {self.right / self.images:.1%}" if self.images else ""


class Run:
    """The parts of a run, all made from its config, and its folder."""

    def __init__(self, config: Config, out: Path, dataset: Dataset):
        self.config = config = replace(config, data=dataset.name, threads=config.threads or get_num_threads())
        self.out, self.dataset, self.at = out, dataset, Progress()
        set_num_threads(config.threads or 1)
        images, labels = dataset.train_images, dataset.train_labels
        self.test, self.test_images, self.test_labels = "test", dataset.test_images, dataset.test_labels
        if config.val:
            cut = len(images) * 9 // 10  # 45k and 5k of CIFAR-10 (section 4.2)
            self.test, self.test_images, self.test_labels = "val", images[cut:], labels[cut:]
            images, labels = images[:cut], labels[:cut]
        fit_normalise = Normalise.channels if config.normalise == "channels" else Normalise.pixel_mean
        self.normalise = fit_normalise(images)
        self.loader = Loader(
            images,
            labels,
            config.batch_size,
            normalise=self.normalise,
            seed=config.seed,
            shuffle=True,
            augment=config.augment,
            drop_last=True,
        )
        self.total = config.epochs * len(self.loader) if config.epochs else PAPER_STEPS
        self.epochs = -(-self.total // len(self.loader))
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
        self.unread: list[tuple[Array, Array, int]] = []
        self.look_every = 1 if config.device == "cpu" else 20  # reading a number waits for the device
        self.saved = self.began = time.perf_counter()
        self.cpu_began = time.process_time()

    def look(self, loss: Tensor, logits: Tensor, x: Array, y: Array) -> None:
        """Note a step's loss and right answers; every `look_every` steps read them."""
        right = (logits.data.argmax(-1) == y).sum()
        self.unread.append((loss.data, right, len(y)))
        if len(self.unread) == self.look_every:
            self.read(x)

    def read(self, x: Array | None = None) -> None:
        """Add the noted figures to the epoch's sums. x: the batch to look for a fault with."""
        for on_device, right, images in self.unread:
            loss = float(on_device)
            self.check(loss, "loss", x)
            self.at.loss += loss * images
            self.at.right += int(right)
            self.at.images += images
        self.unread.clear()

    def check(self, loss: float, name: str, x: Array | None) -> None:
        if math.isfinite(loss):
            return
        if x is None:  # the loss is that of the test: look at the net as it was tested
            self.net.eval()
            x = self.normalise(self.test_images[: self.config.batch_size])
        window = f" (looked at every {self.look_every} steps)" if self.look_every > 1 else ""
        raise NotFinite(
            f"the {name} is {loss} in epoch {self.at.epoch + 1}, step {self.at.step}{window}, learning rate "
            f"{self.opt.lr:.3g}; first layer whose output is not finite: {first_not_finite(self.net, x)}; "
            f"try a lower rate: --lr {self.config.lr / 10:.2g}"
        )

    def end_step(self) -> None:
        """Count the step, and write a checkpoint when it is time."""
        self.at.step += 1
        if time.perf_counter() - self.saved > 60 * self.config.checkpoint_minutes:
            self.save()

    def end_epoch(self, loss: float, acc: float) -> None:
        """Write the epoch's line, the net and a checkpoint. loss, acc: on the test or validation set."""
        self.read()
        self.check(loss, f"{self.test} loss", None)
        at = self.at
        at.epoch += 1
        row: Row = {
            "epoch": at.epoch,
            "step": at.step,
            "lr": self.schedule(at.step - 1),
            "train_loss": at.loss / at.images,
            "train_acc": at.right / at.images,
            f"{self.test}_loss": loss,
            f"{self.test}_acc": acc,
            "seconds": round(time.perf_counter() - self.began, 2),
            "cpu_seconds": round(time.process_time() - self.cpu_began, 2),
        }
        at.rows.append(row)
        figures = at.figures()
        at.loss, at.right, at.images = 0.0, 0, 0
        with open(self.out / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
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
        self.save()
        print(
            f"epoch {at.epoch}/{self.epochs}  train {figures}  {self.test} loss {loss:.3f} acc {acc:.1%}  "
            f"{row['seconds']:.0f} s",
            flush=True,
        )

    def start(self) -> None:
        """Begin a new run: its folder must be empty."""
        if any(path.name != LOCK for path in self.out.iterdir()):
            raise RunError(f"{self.out} is not empty; name another with --out, or go on: --resume {self.out}")
        about = {
            "config": asdict(self.config),
            "steps": self.total,
            "dataset": {
                "name": self.dataset.name,
                "train": len(self.loader.images),
                self.test: len(self.test_images),
                "classes": self.dataset.classes,
            },
            **environment(),
        }
        write_atomically(self.out / METRICS, b"")
        write_atomically(self.out / CONFIG, (json.dumps(about, indent=2) + "\n").encode())

    def save(self) -> None:
        """Write a checkpoint; the last two are kept."""
        self.read()
        self.at.seconds = time.perf_counter() - self.began
        self.at.cpu_seconds = time.process_time() - self.cpu_began
        arrays = {f"net.{name}": array for name, array in self.net.state_dict().items()}
        for (name, _), velocity in zip(self.net.named_parameters(), self.opt.velocity, strict=True):
            arrays[f"velocity.{name}"] = to_host(velocity)
        folder = self.out / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        calls = {name: dropout.calls for name, dropout in self.dropouts()}
        info = {"progress": asdict(self.at), "dropout_calls": calls}
        save_state(folder / f"step-{self.at.step:08d}.safetensors", arrays, info)
        kept = sorted(folder.glob("step-*.safetensors"))[-2:]
        for path in folder.iterdir():
            if path not in kept:
                path.unlink()
        self.saved = time.perf_counter()

    def load(self) -> None:
        """Take up the newest checkpoint that can be read; without any, the run begins anew."""
        faults = []
        for path in sorted((self.out / CHECKPOINTS).glob("step-*.safetensors"), reverse=True):
            try:
                self._load(path)
                break
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
                faults.append((path, str(error)))
        else:
            if faults:
                raise RunError(f"{self.out} has no checkpoint that can be read: {faults[0][1]}")
        for path, fault in faults:
            print(f"passed over a damaged checkpoint: {fault}", file=sys.stderr)
            path.unlink()
        for path in self.out.glob("*.tmp"):  # what a killed run left half written
            path.unlink()
        self.began = time.perf_counter() - self.at.seconds
        self.cpu_began = time.process_time() - self.at.cpu_seconds
        write_atomically(self.out / METRICS, "".join(json.dumps(row) + "\n" for row in self.at.rows).encode())

    def _load(self, path: Path) -> None:
        arrays, info = load_state(path)
        at = Progress(**info["progress"])
        self.check_progress(at, path)
        if any(array.dtype.kind != "f" for array in arrays.values()):
            raise ValueError(f"{path}: holds arrays that are no floating-point numbers")
        net = {name.removeprefix("net."): array for name, array in arrays.items() if name.startswith("net.")}
        self.net.load_state_dict(net)
        for (name, _), velocity in zip(self.net.named_parameters(), self.opt.velocity, strict=True):
            array = arrays[f"velocity.{name}"]
            if array.shape != velocity.shape:
                raise ValueError(f"{path}: velocity.{name} is {array.shape}, expected {velocity.shape}")
            velocity[...] = to_device(array, self.config.device)
        for name, dropout in self.dropouts():
            dropout.calls = int(info["dropout_calls"][name])
        self.at = at

    def check_progress(self, at: Progress, path: Path) -> None:
        """ValueError or TypeError unless `at`, read from a file, is a place where this run can stand."""
        first = min(at.epoch * len(self.loader), self.total)  # step of the epoch
        last = min(first + len(self.loader), self.total)
        if not (
            all(type(n) is int for n in (at.epoch, at.step, at.right, at.images))
            and first <= at.step <= last
            and len(at.rows) == at.epoch
            and at.images == (at.step - first) * self.config.batch_size
        ):
            raise ValueError(f"{path}: step {at.step} of epoch {at.epoch} is not one of this run")
        figures = [at.loss, at.seconds, at.cpu_seconds, *(value for row in at.rows for value in row.values())]
        if not (all(map(math.isfinite, figures)) and 0 <= at.right <= at.images):
            raise ValueError(f"{path}: holds figures that can't be")
        wanted = {"epoch", "step", "lr", "train_loss", "train_acc", f"{self.test}_loss", f"{self.test}_acc", "seconds"}
        if not all(wanted <= row.keys() for row in at.rows):
            raise ValueError(f"{path}: lacks figures of an epoch")

    def dropouts(self) -> Iterator[tuple[str, Dropout]]:
        """The net's dropout layers by name: how often each was called is all the state that its draws have."""
        return ((name, module) for name, module in self.net.modules() if isinstance(module, Dropout))


@contextmanager
def one_at_a_time(out: Path) -> Iterator[None]:
    """Hold the run folder `out` for this process; if it is killed, the system lets go of the folder."""
    import filelock

    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(f"{out} is in use by another training run; name another folder with --out") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Inside, Ctrl-C waits for the end of the block, so that no step and no file is left half done."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def first_not_finite(net: Module, x: np.ndarray) -> str:
    """The first layer, in the order of the forward pass, that gives NaN or infinity for the batch x."""
    found = []

    def note(name: str, module: Module, output: Tensor) -> None:
        if not bool(array_module(output.data).isfinite(output.data).all()):
            found.append(f"{name or 'the net'} ({type(module).__name__})")

    with no_grad(), forward_hook(net, note):
        net(Tensor(to_device(x, device_of(net.parameters()[0].data))))
    return found[0] if found else "none, the loss itself"


# ---- reading a run


def read_config(out: str | Path, **changes: Any) -> Config:
    """The config of the run in folder `out`, some of its settings changed."""
    path = Path(out) / CONFIG
    if not path.is_file():
        raise RunError(f"{out} holds no run: {CONFIG} is missing")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise RunError(f"{path}: expected at most {MAX_CONFIG_BYTES:,} bytes, came {path.stat().st_size:,}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["config"]
        return Config(**{**settings, **changes})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} can't be read: {error}") from None


def load_run(out: str | Path) -> tuple[Module, Normalise, dict[str, Any]]:
    """A trained net, the normalisation of its input, and what is known of it (model, data, classes, ...)."""
    path = Path(out) / MODEL
    if not path.is_file():
        raise RunError(f"{out} holds no trained net: {MODEL} is missing (the first epoch's end writes it)")
    arrays, info = load_state(path)
    numbers = sum(array.size for array in arrays.values())
    try:
        kind: dict[str, Any] = {name: info[name] for name in ("shortcut", "width")}
        net = build(info["model"], seed=NoDraws(numbers), classes=len(info["classes"]), **kind)  # type: ignore[arg-type]
        with np.errstate(over="ignore"):
            mean, scale = (np.array(info[name], np.float32) for name in ("mean", "scale"))
        if not (
            isinstance(info["classes"], list)
            and mean.shape == scale.shape == (32, 32, 3)
            and np.isfinite([mean, scale]).all()
        ):
            raise ValueError("classes, mean or scale are not what they should be")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path} was not written by train: {error!r}") from None
    load_weights(net, path)
    return net, Normalise(mean, scale), info


class NoDraws(np.random.Generator):
    """Zeros in place of a net's initial weights, which a file will replace: at most as many as the file holds, so
    that one that lies about its net can't fill the memory."""

    def __init__(self, numbers: int):
        super().__init__(np.random.PCG64())
        self.left = numbers

    def standard_normal(self, shape: Any) -> np.ndarray:  # type: ignore[override]
        self.left -= math.prod(shape)
        if self.left < 0:
            raise ValueError("the net that it names is larger than the file")
        return np.zeros(shape)


def environment() -> dict[str, Any]:
    """What a run's result may depend on beside its settings."""
    home = Path(__file__).parents[2]
    git = None
    if (home / ".git").exists():
        command = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=40"]
        try:
            git = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
        except (OSError, subprocess.TimeoutExpired):  # no git program, or a slow disk
            pass
    try:
        version = metadata.version("minires")
    except metadata.PackageNotFoundError:
        version = "not installed"
    versions = {"python": platform.python_version(), "numpy": np.__version__, "minires": version}
    return {
        "versions": versions,
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "blas": blas(),
        "git": git,
    }


def blas() -> str:
    """The library behind NumPy's matrix products, and the kind of processor whose kernels it chose."""
    found = [
        f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".strip()
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    build = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-overload,index]
    return ", ".join(found) or build["name"]


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else []
    return models[0] if models else platform.processor() or platform.machine()
