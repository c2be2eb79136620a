"""The paper's experiments by name: run or resumed, and recorded in files.

    python -m minires reproduce degradation         # or degradation/plain56, or all; with --budget HOURS
    python -m minires reproduce --tables            # only rebuild tables and figures from the recorded files

Every run has a folder, results/EXPERIMENT/RUN. Besides what training/folder.py lists it holds

    sessions.jsonl    machine and versions, each time the run was started or resumed
    layers.jsonl      statistics of every layer after each epoch, if the experiment asks for them
    steps.jsonl       loss, accuracy, time and memory of every step, likewise
    init_from.json    the trained net that a run started from, if it did

An unfinished run keeps its last checkpoint; a finished one keeps its weights if something else needs them.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minires.data import Dataset
from minires.devices.machine import environment, peak_memory
from minires.files import FileError, printable, read_rows, write_atomically
from minires.functional import cross_entropy
from minires.nn import Module, Sequential, forward_hook
from minires.optim import SGD
from minires.resnet import BasicBlock
from minires.tensor import Tensor, no_grad
from minires.training.config import CONFIG, Config, RunError, open_data, read_about, read_config
from minires.training.folder import METRICS, MODEL, checkpoints_in, delete_checkpoints
from minires.training.loop import evaluate, fit
from minires.training.run import Run, load_run

SESSIONS, LAYERS, STEPS, INIT_FROM = "sessions.jsonl", "layers.jsonl", "steps.jsonl", "init_from.json"
MACHINE_SETTINGS = ("conv_method", "data", "data_dir", "threads")  # a recorded run may have other values of these
PROBE = 128  # training images in a batch for `layer_statistics`


class StopRun(KeyboardInterrupt):
    """The steps are done or the time is up: stops `fit` as Ctrl-C does, with a checkpoint."""


# ---- kinds of runs


@dataclass(frozen=True)
class Training:
    """A net trained on CIFAR-10.

    init_from: the run whose trained weights the net starts from, see `insert_identity_layers`.
    steps: stop after this many of the recipe's steps, and record each of them.
    layers: record `layer_statistics` after each epoch.
    keep: keep the trained weights.
    """

    config: Config
    init_from: str | None = None
    steps: int | None = None
    layers: bool = False
    keep: bool = False

    def is_finished(self, out: Path) -> bool:
        """Whether the run in this folder has done all its steps. Raises FileError if what it recorded is damaged.

        With a checkpoint, from which damaged epochs can be restored, the run is not finished instead.
        """
        steps = read_rows(out / STEPS, ["step"])
        try:
            rows = read_rows(out / METRICS, ["step"]) + steps
        except FileError:
            if checkpoints_in(out):
                return False
            raise
        return bool(rows) and max(row["step"] for row in rows) >= (self.steps or steps_of(out))

    def run(self, out: Path, data: Callable[[], Dataset], deadline: float) -> None:
        """Start or resume the run, and train until it is finished or `time.monotonic()` passes the deadline.

        Raises RunError if the folder holds a run with other settings, FileError if what it recorded is damaged, and
        what `fit` raises.
        """
        for file in (SESSIONS, LAYERS):  # now, before anything is changed
            read_rows(out / file, ["step"])
        resume = (out / CONFIG).exists()
        config = self.config_to_resume(out) if resume else self.config
        with suppress(StopRun):
            fit(config, out, resume, data(), self.recorder(out, deadline))
        if self.is_finished(out):
            delete_checkpoints(out, keep=0)
            if not self.keep:
                (out / MODEL).unlink(missing_ok=True)
        else:
            delete_checkpoints(out, keep=1)

    def config_to_resume(self, out: Path) -> Config:
        """The config, with the data set that the run was started on and the convolution that it began with."""
        recorded = read_config(out)
        other = [
            name
            for name, value in asdict(self.config).items()
            if name not in MACHINE_SETTINGS and value != getattr(recorded, name)
        ]
        if other:
            raise RunError(f"{out} was started with other settings ({', '.join(other)}); move it away to start over")
        return replace(self.config, data=recorded.data, conv_method=recorded.conv_method)

    def recorder(self, out: Path, deadline: float) -> Callable[[Run], None]:
        """A hook for `fit` that writes the additional files of the run, and stops it in time."""
        before: np.ndarray | None = None  # sums of loss, correct answers and images before the step

        def hook(run: Run) -> None:
            nonlocal before
            now = run.progress
            sums = np.array((now.loss_sum, now.correct, now.seen))
            if before is None:
                append_row(out / SESSIONS, {"step": now.step, "threads": run.config.threads, **environment()})
                if self.init_from and now.step == 0:
                    figures = insert_identity_layers(run, out.parent.parent / self.init_from)
                    write_json(out / INIT_FROM, {"source": self.init_from, **figures})
            elif self.steps and now.seen:
                append_row(out / STEPS, step_row(run, *(sums - before).tolist()))
            before = sums
            if self.layers and now.seen == 0:  # between two epochs
                append_row(out / LAYERS, {"step": now.step, "epoch": now.epoch, **layer_statistics(run)})
            if now.step < run.total and (now.step == self.steps or time.monotonic() > deadline):
                raise StopRun

        return hook


@dataclass(frozen=True)
class Identity:
    """Plain blocks (shortcut None) or residual blocks that learn to reproduce their input.

    The input is |z|, z standard normal, drawn again in each step: 32 maps of 8x8 pixels and 16 channels, small to save
    time. The error is |y - x|^2 / |x|^2. Blocks that output only the mean of |z| reach 1 - 2/pi = 0.36.
    """

    shortcut: str | None
    blocks: int = 8
    steps: int = 500
    lr: float = 0.1
    momentum: float = 0.9
    seed: int = 0

    def is_finished(self, out: Path) -> bool:
        """Whether the run in this folder has done all its steps."""
        return len(read_rows(out / METRICS)) == self.steps

    def run(self, out: Path, data: Callable[[], Dataset], deadline: float) -> None:
        """Do the entire run, which is short enough to start over instead of resuming."""
        rng, started = np.random.default_rng(self.seed), time.perf_counter()
        net = Sequential(*(BasicBlock(16, 16, 1, self.shortcut, rng) for _ in range(self.blocks)))
        opt, rows = SGD(net.parameters(), self.lr, self.momentum), []
        for step in range(self.steps):
            # In step 0 these are the numbers that the weights were made of: kept, since the recorded runs drew them.
            z = np.random.default_rng([self.seed, step]).standard_normal((32, 8, 8, 16))
            x = Tensor(np.abs(z).astype(np.float32))
            difference = net(x) - x
            loss = (difference * difference).mean() / float((x.data * x.data).mean())
            loss.backward()
            opt.step()
            opt.zero_grad()
            seconds = round(time.perf_counter() - started, 2)
            rows.append({"step": step + 1, "lr": self.lr, "train_loss": loss.item(), "seconds": seconds})
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / CONFIG, {"config": asdict(self), "steps": self.steps, **environment()})
        write_rows(out / METRICS, rows)


# ---- the experiments, in the order in which `all` runs them


def paper_recipe(model: str, epochs: int = 10, lr: float = 0.1) -> Config:
    """The paper's recipe in fewer steps: the rate falls after the same fractions of them."""
    return Config.from_recipe("paper", model=model, epochs=epochs, lr=lr)


def fast_recipe(model: str, shortcut: str = "A", seed: int = 0, epochs: int = 5) -> Config:
    """The recipe `fast`."""
    return Config.from_recipe("fast", model=model, shortcut=shortcut, seed=seed, epochs=epochs)


def resnet1202(lr: float) -> Config:
    """ResNet-1202 with a batch small enough for a laptop."""
    return Config.from_recipe("paper", model="resnet1202", batch_size=16, lr=lr)


EXPERIMENTS: dict[str, dict[str, Training | Identity]] = {
    "first": {"resnet20": Training(fast_recipe("resnet20", epochs=3), keep=True)},
    "degradation": {
        net: Training(paper_recipe(net), layers=True, keep=net == "plain20")
        for net in ("plain20", "resnet20", "plain56", "resnet56")
    },
    "depth": {net: Training(fast_recipe(net, epochs=10)) for net in ("resnet20", "resnet56", "plain20", "plain56")},
    "fast": {"resnet20": Training(fast_recipe("resnet20", epochs=30), keep=True)},
    "construction": {
        f"{net}-rate-{lr}": Training(paper_recipe(net, 3, lr), init_from="degradation/plain20")
        for lr in (0.01, 0.1)
        for net in ("plain20", "plain56")
    },
    "zero-residual": {"plain": Identity(None), "residual": Identity("A")},
    "shortcuts": {
        f"{option}-seed-{seed}": Training(fast_recipe("resnet20", option, seed))
        for seed in range(3)
        for option in "ABC"
    },
    "bottleneck": {"bottleneck29": Training(fast_recipe("bottleneck29"))},
    "very-deep": {
        "resnet110": Training(Config.from_recipe("paper", model="resnet110"), steps=600),
        "resnet1202": Training(resnet1202(0.1), steps=200),
        "resnet1202-rate-0.0125": Training(resnet1202(0.0125), steps=400),
        "resnet1202-rate-0.001": Training(resnet1202(0.001), steps=600),
    },
    "paper": {"resnet20": Training(Config.from_recipe("paper", model="resnet20"), keep=True)},
}


def reproduce(
    name: str = "all", results: Path = Path("results"), data_dir: Path | None = None, hours: float = math.inf
) -> bool:
    """Run what is unfinished of one run (`fast/resnet20`), of one experiment (`fast`), or of all.

    hours: 0 or more, may be infinite. After them, the current run writes a checkpoint and stops, as it does on Ctrl-C.
    Returns True if everything that `name` stands for is finished. Raises ValueError for an unknown name, DataError if
    CIFAR-10 is not found, FileError if recorded files are damaged, and what `fit` raises.
    """
    if not hours >= 0:  # NaN too
        raise ValueError(f"budget: expected 0 hours or more, got {hours}")
    runs = {f"{experiment}/{run}": kind for experiment, kinds in EXPERIMENTS.items() for run, kind in kinds.items()}
    chosen = [run for run in runs if name in ("all", run, run.partition("/")[0])]
    if not chosen:
        raise ValueError(
            f"reproduce: expected all, one of {', '.join(EXPERIMENTS)}, or one run such as "
            f"{next(iter(runs))}, got {name!r}"
        )
    deadline, data = time.monotonic() + 3600 * hours, cache(lambda: open_data("cifar10", data_dir))
    for run in chosen:
        out = results / run
        if not runs[run].is_finished(out):
            if time.monotonic() > deadline:
                return False
            print(f"{run}: run folder {printable(out)}", flush=True)
            runs[run].run(out, data, deadline)
            if not runs[run].is_finished(out):
                return False
    return True


# ---- files


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a JSON Lines file, in place of rows of the same or later steps from a killed session."""
    write_rows(path, [*(old for old in read_rows(path, ["step"]) if old["step"] < row["step"]), row])


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def steps_of(out: Path) -> int:
    """How many steps the run in this folder has in all. Raises RunError if its config is damaged."""
    steps = read_about(out).get("steps")
    if not isinstance(steps, int):
        raise RunError(f"{out / CONFIG} cannot be read: expected the number of steps, got {steps!r}")
    return steps


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises FileError if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: expected JSON, got {error}") from None


# ---- what is recorded besides the metrics


def step_row(run: Run, loss: float, correct: float, images: float) -> dict[str, Any]:
    """The row of steps.jsonl for the step just done. loss, correct, images: sums over its batch."""
    run.read_clock()
    return {
        "step": run.progress.step,
        "lr": run.schedule(run.progress.step - 1),
        "train_loss": loss / images,
        "train_acc": correct / images,
        "seconds": round(run.progress.seconds, 2),
        "cpu_seconds": round(run.progress.cpu_seconds, 2),
        "peak_mib": round(peak_memory() / 2**20, 1) or None,
    }


def layer_statistics(run: Run) -> dict[str, dict[str, float]]:
    """Statistics of each convolution but projections, for one batch of training images, in training mode, by layer.

    response: standard deviation of the output after batch norm, before ReLU or addition (the paper's Figure 7).
    gradient, weight: the norms of dL/dw and of w. The run itself is not changed.
    """
    net, response = copy.deepcopy(run.net).train(), {}
    conv_of = {name.replace("conv", "bn"): name for name, _ in net.modules() if "conv" in name}

    def see(name: str, module: Module, output: Tensor) -> None:
        if name in conv_of:
            response[conv_of[name]] = float(output.data.std())

    images, labels = run.loader.images[:PROBE], run.loader.labels[:PROBE]
    with forward_hook(net, see):
        loss = cross_entropy(net(Tensor(run.normalise(images))), labels)
    loss.backward()
    parameters = dict(net.named_parameters())
    weights = {name: parameters[f"{name}.weight"] for name in response}
    return {
        "response": response,
        "gradient": {name: norm(w.grad) for name, w in weights.items()},
        "weight": {name: norm(w.data) for name, w in weights.items()},
    }


def norm(array: Any) -> float:
    return float(np.linalg.norm(array))


def insert_identity_layers(run: Run, source: Path, batches: int = 20) -> dict[str, float]:
    """Give the run's net the weights of the trained plain net in `source`, and make its additional layers the identity.

    The kernel of an identity layer has a 1 in the middle, from each channel to itself, and 0 elsewhere. Its input is
    0 or more, so ReLU changes nothing. Batch norm subtracts the mean, divides by the deviation, and restores both:

        gamma = sqrt(var + eps)     beta = mean     running mean and variance = mean, var

    mean, var: those of the incoming channel over `batches` batches. In evaluation mode the deeper net computes the same
    function, up to rounding; in training mode each batch has a slightly different mean and variance.

    Returns loss and accuracy of both nets on the test set, and the largest difference of their logits on a batch.
    Raises RunError if the net in `source` is not trained.
    """
    if not (source / MODEL).exists():
        raise RunError(f"{run.out} starts from the net of {source}, which is not trained yet; run that first")
    old, _, _ = load_run(source)
    moments = channel_moments(old, run, batches)
    state, known = run.net.state_dict(), old.state_dict()
    for name, array in state.items():
        layer, _, kind = name.rpartition(".")
        if name in known:
            state[name] = known[name]
        elif "conv" in layer:
            state[name] = np.zeros_like(array)
            state[name][1, 1] = np.eye(len(array[1, 1]))
        else:
            mean, var = moments[name.partition(".")[0]]
            state[name] = {"weight": np.sqrt(var + 1e-5), "running_var": var}.get(kind, mean)
    run.net.load_state_dict(state)

    x = run.normalise(run.test_images[: 2 * PROBE])
    with no_grad():
        difference = run.net.eval()(Tensor(x)).data - old(Tensor(x)).data
    run.net.train()
    figures = {"largest_difference": float(np.abs(difference).max())}
    for name, net in (("before", old), ("after", run.net)):
        loss, acc = evaluate(net, run.test_images, run.test_labels, run.normalise)
        figures |= {f"{name}_test_loss": loss, f"{name}_test_acc": acc}
    return figures


def channel_moments(net: Module, run: Run, batches: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of each channel that leaves a stage of `net`, over some training batches, by the stage."""
    outputs: dict[str, list[np.ndarray]] = {}  # for each batch: mean and mean square

    def see(name: str, module: Module, output: Tensor) -> None:
        if isinstance(module, Sequential):
            x = output.data.astype(np.float64)
            outputs.setdefault(name, []).append(np.stack([x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))]))

    with no_grad(), forward_hook(net.eval(), see):
        for x, _ in islice(run.loader.epoch(), batches):
            net(Tensor(x))
    moments = {}
    for stage, rows in outputs.items():
        mean, square = np.mean(rows, axis=0)
        moments[stage] = mean, square - mean**2
    return moments
