"""The paper's experiments by name: run or resumed, written down, told in tables and figures.

    python -m minires reproduce degradation         # or degradation/plain56, or all; with --budget HOURS
    python -m minires reproduce --tables            # tables and figures anew, from the recorded files alone

Every run has a folder, results/EXPERIMENT/RUN. Beside `config.json` and `metrics.jsonl` (see run.py) it holds

    sessions.jsonl    machine and versions, each time the run was begun or taken up again
    layers.jsonl      what every layer did after each epoch, where the experiment asks for it
    steps.jsonl       the figures of each single step, the same
    init_from.json    the net that a run began with, where that was a trained one

An unfinished run keeps its last checkpoint; a finished one keeps its weights where something else needs them.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minires.training.checkpoint import write_atomically
from minires.data import Dataset
from minires.functional import cross_entropy
from minires.nn import Conv2d, Module, Sequential, forward_hook
from minires.optim import SGD
from minires.resnet import BasicBlock
from minires.training.run import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    MODEL,
    Config,
    Run,
    RunError,
    environment,
    load_run,
    open_data,
    read_config,
)
from minires.tensor import Tensor, no_grad
from minires.training.loop import evaluate, fit

SESSIONS, LAYERS, STEPS, BEGIN = "sessions.jsonl", "layers.jsonl", "steps.jsonl", "init_from.json"
HERE = ("threads", "data", "data_dir")  # settings that may differ from machine to machine
PROBE = 128  # training images that `layer_statistics` sends through a net

Row = dict[str, Any]


class Stop(KeyboardInterrupt):
    """A run has done its steps, or its time is over: it stops as Ctrl-C would stop it, with a checkpoint."""


# ---- kinds of runs


@dataclass(frozen=True)
class Training:
    """A net trained on CIFAR-10.

    begin: the run whose weights it begins with, see `insert_identity_layers`. steps: stop after so many of the recipe's steps, and
    write each of them down. layers: write down what each layer does. keep: the weights, when finished.
    """

    config: Config
    begin: str | None = None
    steps: int | None = None
    layers: bool = False
    keep: bool = False

    def finished(self, out: Path) -> bool:
        """Whether the run in this folder has done all its steps."""
        rows = read_lines(out / METRICS) + read_lines(out / STEPS)
        return bool(rows) and max(row["step"] for row in rows) >= (self.steps or read_json(out / CONFIG)["steps"])

    def go_on(self, out: Path, data: Callable[[], Dataset], deadline: float) -> None:
        """Begin the run or take it up again, until its end or until `time.monotonic()` passes the deadline.

        Raises RunError where the folder holds a run with other settings, and what `fit` raises.
        """
        config, resume = self.config, (out / CONFIG).exists()
        if resume:
            recorded = read_config(out)
            theirs, ours = ({k: v for k, v in asdict(c).items() if k not in HERE} for c in (recorded, config))
            if theirs != ours:
                names = ", ".join(name for name in ours if theirs[name] != ours[name])
                raise RunError(f"{out} was begun with other settings ({names}); move it away to begin anew")
            config = replace(config, data=recorded.data)
        before: tuple[float, ...] | None = None

        def watch(run: Run) -> None:
            nonlocal before
            at = run.at
            if before is None:
                note(out / SESSIONS, {"step": at.step, "threads": run.config.threads, **environment()})
                if self.begin and at.step == 0:
                    begin = {"source": self.begin, **insert_identity_layers(run, out.parent.parent / self.begin)}
                    write_atomically(out / BEGIN, (json.dumps(begin, indent=2) + "\n").encode())
            elif self.steps and at.images:
                loss, right, images = np.subtract((at.loss, at.right, at.images), before).tolist()
                note(
                    out / STEPS,
                    {
                        "step": at.step,
                        "lr": run.schedule(at.step - 1),
                        "train_loss": loss / images,
                        "train_acc": right / images,
                        "seconds": round(time.perf_counter() - run.began, 2),
                        "cpu_seconds": round(time.process_time() - run.cpu_began, 2),
                        "peak_mib": peak_memory(),
                    },
                )
            before = (at.loss, at.right, at.images)
            if self.layers and at.images == 0:  # between two epochs
                note(out / LAYERS, {"step": at.step, "epoch": at.epoch, **layer_statistics(run)})
            if at.step < run.total and (at.step == self.steps or time.monotonic() > deadline):
                raise Stop

        with suppress(Stop):
            fit(config, out, resume, data(), watch)
        if not self.finished(out):
            for path in sorted((out / CHECKPOINTS).iterdir())[:-1]:
                path.unlink()
        else:
            shutil.rmtree(out / CHECKPOINTS)
            if not self.keep:
                (out / MODEL).unlink(missing_ok=True)


@dataclass(frozen=True)
class Identity:
    """Basic blocks, plain (option None) or residual, that are asked to give out what came in.

    What comes in is |z|, z normal, new in each step: maps of 8x8 pixels and 16 channels, 32 of them. The error is
    |y - x|^2 / |x|^2. Blocks that only know the mean of |z| get to 1 - 2/pi = 0.36. The maps are small
    only to save time.
    """

    option: str | None
    blocks: int = 8
    steps: int = 500
    lr: float = 0.1
    momentum: float = 0.9
    seed: int = 0

    def finished(self, out: Path) -> bool:
        """Whether this run is written down."""
        return len(read_lines(out / METRICS)) == self.steps

    def go_on(self, out: Path, data: Callable[[], Dataset], deadline: float) -> None:
        """All of the run. It is short, so that one that was stopped begins anew."""
        rng = np.random.default_rng(self.seed)
        net = Sequential(*(BasicBlock(16, 16, 1, self.option, rng) for _ in range(self.blocks)))
        opt, rows, began = SGD(net.parameters(), self.lr, self.momentum), [], time.perf_counter()
        for step in range(self.steps):
            draw = np.random.default_rng([self.seed, step]).standard_normal((32, 8, 8, 16))
            x = Tensor(np.abs(draw).astype(np.float32))
            difference = net(x) - x
            loss = (difference * difference).mean() / float((x.data * x.data).mean())
            loss.backward()
            opt.step()
            opt.zero_grad()
            rows.append(
                {
                    "step": step + 1,
                    "lr": self.lr,
                    "train_loss": loss.item(),
                    "seconds": round(time.perf_counter() - began, 2),
                }
            )
        out.mkdir(parents=True, exist_ok=True)
        about = {"config": asdict(self), "steps": self.steps, **environment()}
        write_atomically(out / CONFIG, (json.dumps(about, indent=2) + "\n").encode())
        write_atomically(out / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


# ---- the experiments, in the order in which `all` runs them


def short(model: str, epochs: int = 10, lr: float = 0.1) -> Config:
    """The paper's recipe in fewer steps: its rate falls after the same parts of them."""
    return Config.from_recipe("paper", model=model, epochs=epochs, lr=lr)


def quick(model: str, shortcut: str = "A", seed: int = 0, epochs: int = 5) -> Config:
    """The recipe `fast`."""
    return Config.from_recipe("fast", model=model, shortcut=shortcut, seed=seed, epochs=epochs)


def deepest(lr: float) -> Config:
    """ResNet-1202 with a batch that fits into a laptop."""
    return Config.from_recipe("paper", model="resnet1202", batch_size=16, lr=lr)


EXPERIMENTS: dict[str, dict[str, Training | Identity]] = {
    "degradation": {
        net: Training(short(net), layers=True, keep=net == "plain20")
        for net in ("plain20", "resnet20", "plain56", "resnet56")
    },
    "depth": {net: Training(quick(net, epochs=10)) for net in ("resnet20", "resnet56", "plain20", "plain56")},
    "fast": {"resnet20": Training(quick("resnet20", epochs=30), keep=True)},
    "construction": {
        f"{net}-rate-{lr}": Training(short(net, 3, lr), begin="degradation/plain20")
        for lr in (0.01, 0.1)
        for net in ("plain20", "plain56")
    },
    "zero-residual": {"plain": Identity(None), "residual": Identity("A")},
    "shortcuts": {
        f"{option}-seed-{seed}": Training(quick("resnet20", option, seed)) for seed in range(3) for option in "ABC"
    },
    "bottleneck": {"bottleneck29": Training(quick("bottleneck29"))},
    "very-deep": {
        "resnet110": Training(Config.from_recipe("paper", model="resnet110"), steps=600),
        "resnet1202": Training(deepest(0.1), steps=200),
        "resnet1202-rate-0.0125": Training(deepest(0.0125), steps=400),
        "resnet1202-rate-0.001": Training(deepest(0.001), steps=600),
    },
    "paper": {"resnet20": Training(Config.from_recipe("paper", model="resnet20"), keep=True)},
}


# ---- running


def reproduce(
    name: str = "all", results: Path = Path("results"), data_dir: Path | None = None, hours: float = math.inf
) -> bool:
    """Run what is unfinished: of one run (`fast/resnet20`), of an experiment (`fast`), or of all.

    hours: when they are over, the run in hand writes a checkpoint and stops. Ctrl-C does the same.
    Returns True where all that was asked for is finished now. Raises ValueError for an unknown name, DataError where
    CIFAR-10 is not found, and what `fit` raises.
    """
    runs = {f"{experiment}/{run}": kind for experiment, kinds in EXPERIMENTS.items() for run, kind in kinds.items()}
    asked = [run for run in runs if name in ("all", run, run.partition("/")[0])]
    if not asked:
        raise ValueError(
            f"reproduce: expected all, one of {', '.join(EXPERIMENTS)}, or one run such as "
            f"{next(iter(runs))}, got {name!r}"
        )
    deadline, data = time.monotonic() + 3600 * hours, cache(lambda: open_data("cifar10", data_dir))
    for run in asked:
        out = results / run
        if not runs[run].finished(out):
            if time.monotonic() > deadline:
                return False
            print(f"{run}: run folder {out}", flush=True)
            runs[run].go_on(out, data, deadline)
            if not runs[run].finished(out):
                return False
    return True


def note(path: Path, row: Row) -> None:
    """Add a row to a file of JSON lines; rows of this step and later ones, of a session that was cut off, go."""
    rows = [old for old in read_lines(path) if old["step"] < row["step"]]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in [*rows, row]).encode())


def read_lines(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none where there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def peak_memory() -> float | None:
    """The most memory that this process has held so far, MiB; None on Windows, which does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def layer_statistics(run: Run) -> dict[str, dict[str, float]]:
    """What each convolution does with a batch of training images, in training mode, by the layer's name.

    response: standard deviation of its output after batch norm, before ReLU or addition (the paper's Figure 7).
    gradient, weight: the norms of dL/dw and of w. The run itself is left as it was.
    """
    net, response = copy.deepcopy(run.net).train(), {}
    modules, parameters = dict(net.modules()), dict(net.named_parameters())

    def see(name: str, module: Module, output: Tensor) -> None:
        if isinstance(module, Conv2d):
            with no_grad():  # batch norm and ReLU are one operation in the net: here the norm alone
                response[name] = float(modules[name.replace("conv", "bn")](output).data.std())

    images, labels = run.loader.images[:PROBE], run.loader.labels[:PROBE]
    with forward_hook(net, see):
        loss = cross_entropy(net(Tensor(run.normalise(images))), labels)
    loss.backward()
    weights = {name: parameters[f"{name}.weight"] for name in response}
    return {
        "response": response,
        "gradient": {name: float(np.linalg.norm(w.grad)) for name, w in weights.items()},
        "weight": {name: float(np.linalg.norm(w.data)) for name, w in weights.items()},
    }


def insert_identity_layers(run: Run, source: Path, batches: int = 20) -> Row:
    """Give the run's net the weights of the trained plain net in `source`; its additional blocks get the identity.

    An identity layer: its kernel has a 1 in the middle, from each channel to itself, and 0 elsewhere. What comes in
    is 0 or more, so ReLU changes nothing. Batch norm takes mean and variance away and gives them back:

        gamma = sqrt(var + eps)     beta = mean     running mean and variance = mean, var

    mean, var: of the channel that comes in, over `batches` batches. In evaluation mode the deeper net is the old one,
    but for rounding; in training mode a batch's own mean and variance differ a little from these.

    Returns loss and accuracy of both nets on the test set, and the largest difference of their logits on a batch.
    """
    if not (source / MODEL).exists():
        raise RunError(f"{run.out} begins with the net of {source}, which is not trained yet; run that first")
    old, _, _ = load_run(source)
    outputs: dict[str, list[np.ndarray]] = {}  # of each stage: mean and mean square of its channels, a row a batch

    def see(name: str, module: Module, output: Tensor) -> None:
        if isinstance(module, Sequential):
            x = output.data.astype(np.float64)
            outputs.setdefault(name, []).append(np.stack([x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))]))

    with no_grad(), forward_hook(old.eval(), see):
        for x, _ in islice(run.loader.epoch(), batches):
            old(Tensor(x))
    state, known = run.net.state_dict(), old.state_dict()
    for name, array in state.items():
        layer, _, kind = name.rpartition(".")
        if name in known:
            state[name] = known[name]
        elif "conv" in layer:
            state[name] = np.zeros_like(array)
            state[name][1, 1] = np.eye(len(array[1, 1]))
        else:
            mean, square = np.mean(outputs[name.partition(".")[0]], axis=0)
            var = square - mean**2
            state[name] = {"weight": np.sqrt(var + 1e-5), "running_var": var}.get(kind, mean)
    run.net.load_state_dict(state)

    x = run.normalise(run.test_images[: 2 * PROBE])
    with no_grad():
        difference = run.net.eval()(Tensor(x)).data - old(Tensor(x)).data
    run.net.train()
    figures: Row = {"largest_difference": float(np.abs(difference).max())}
    for name, net in (("before", old), ("after", run.net)):
        loss, acc = evaluate(net, run.test_images, run.test_labels, run.normalise)
        figures |= {f"{name}_test_loss": loss, f"{name}_test_acc": acc}
    return figures
