"""The training loop: forward, loss, backward, step; a line of figures an epoch; and nothing lost on the way.

    config = Config.from_recipe("fast", model="resnet20", data="shapes10", epochs=3)
    rows = fit(config, "runs/first")

What a run is made of, and what it writes into its folder, stands in run.py; `fit(..., resume=True)` goes on
from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from minires.backend import device_of, to_device
from minires.data import Dataset, Loader, Normalise
from minires.functional import check_labels, cross_entropy
from minires.nn import Module
from minires.training.run import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    MODEL,
    Config,
    NotFinite,
    Row,
    Run,
    RunError,
    ctrl_c_waits,
    environment,
    load_run,
    one_at_a_time,
    open_data,
    read_config,
)
from minires.tensor import Tensor, no_grad

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "METRICS",
    "MODEL",
    "Config",
    "NotFinite",
    "Row",
    "Run",
    "RunError",
    "environment",
    "evaluate",
    "fit",
    "load_run",
    "open_data",
    "read_config",
]


def fit(
    config: Config,
    out: str | Path,
    resume: bool = False,
    dataset: Dataset | None = None,
    watch: Callable[[Run], None] = lambda run: None,
) -> list[Row]:
    """Train a net and return a row of figures for each epoch (the lines of `metrics.jsonl`).

    out: the run's folder, new or empty. resume: go on from the last checkpoint in `out`; the result is, bit
    for bit, that of a run that was never stopped. dataset: in place of the one `config` names. watch: called with
    the run before the first step and after every step and epoch.

    Ctrl-C writes a checkpoint and raises KeyboardInterrupt. Raises NotFinite where the loss is NaN or
    infinite, RunError where `out` is in use, holds another run or can't be resumed.
    """
    run = Run(config, Path(out), dataset or open_data(config.data, config.data_dir))
    with one_at_a_time(run.out), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        run.load() if resume else run.start()
        try:
            watch(run)
            while run.at.epoch < run.epochs:
                train_epoch(run, watch)
                test_loss, test_acc = evaluate(run.net, run.test_images, run.test_labels, run.normalise)
                with ctrl_c_waits():
                    run.end_epoch(test_loss, test_acc)
                    watch(run)
        except KeyboardInterrupt:
            with ctrl_c_waits():
                run.save()
            raise
    return run.at.rows


def train_epoch(run: Run, watch: Callable[[Run], None]) -> None:
    """The steps of an epoch, or those that are left of it after a resume."""
    from tqdm import tqdm

    net, opt, batch, device = run.net.train(), run.opt, run.config.batch_size, run.config.device
    start = run.at.step - run.at.epoch * len(run.loader)
    stop = min(len(run.loader), run.total - run.at.epoch * len(run.loader))
    name = f"epoch {run.at.epoch + 1}/{run.epochs}"
    with tqdm(total=stop * batch, initial=start * batch, desc=name, unit=" images", leave=False, disable=None) as bar:
        for x, y in islice(run.loader.epoch(run.at.epoch, start), stop - start):
            with ctrl_c_waits():
                opt.lr = run.schedule(run.at.step)
                x, y = to_device(x, device), to_device(check_labels(y, len(run.dataset.classes)), device)
                logits = net(Tensor(x))
                loss = cross_entropy(logits, y, run.config.label_smoothing)
                run.look(loss, logits, x, y)
                loss.backward()
                opt.step()
                opt.zero_grad()
                run.end_step()
                watch(run)
            bar.set_postfix_str(run.at.figures(), refresh=False)
            bar.update(batch)


def evaluate(
    net: Module, images: np.ndarray, labels: np.ndarray, normalise: Normalise, batch_size: int = 250
) -> tuple[float, float]:
    """Mean loss and accuracy (0..1) of `net` on uint8 `images` (N, 32, 32, 3), in evaluation mode."""
    device, was_training = device_of(net.parameters()[0].data), net.training
    found = []  # read at the end: reading a number waits for the device
    net.eval()
    try:
        with no_grad():
            for x, y in Loader(images, labels, min(batch_size, len(images)), normalise=normalise).epoch():
                logits = net(Tensor(to_device(x, device)))
                there = to_device(check_labels(y, logits.shape[1]), device)
                found.append((cross_entropy(logits, there).data, (logits.data.argmax(-1) == there).sum(), len(y)))
    finally:  # Ctrl-C in a notebook, say
        net.train(was_training)
    loss, right = sum(float(loss) * n for loss, _, n in found), sum(int(right) for _, right, _ in found)
    return loss / len(labels), right / len(labels)
