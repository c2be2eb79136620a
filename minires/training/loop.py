"""The training loop: forward, loss, backward, step; one JSON line per epoch; safe to interrupt.

    config = Config.from_recipe("fast", model="resnet20", data="shapes10", epochs=3)
    rows = fit(config, "runs/first")

run.py has the parts of a run and its folder. `fit(..., resume=True)` resumes from the last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from minires.backend import Array, array_module, device_of, to_device
from minires.conv import conv_method
from minires.data import Dataset, Loader, Normalise
from minires.devices.machine import keep_freed_memory
from minires.fold import fold_batch_norm
from minires.functional import check_labels, cross_entropy
from minires.nn import Module, forward_hook
from minires.tensor import Tensor, no_grad
from minires.training.config import Config, open_data, read_about
from minires.training.folder import lock_folder
from minires.training.run import Progress, Row, Run
from minires.training.signals import defer_signals, stop_on_signals


def fit(
    config: Config,
    out: str | Path,
    resume: bool = False,
    dataset: Dataset | None = None,
    watch: Callable[[Run], None] = lambda run: None,
) -> list[Row]:
    """Train a net and return the figures of each epoch (the lines of `metrics.jsonl`).

    out: the run folder, new or empty. resume: continue from the last checkpoint in `out`; the result is, bit for bit,
    that of an uninterrupted run. dataset: used in place of the one that `config` names. watch: called with the run
    before the first step and after every step and epoch.

    Ctrl-C, SIGTERM and SIGHUP save a checkpoint and raise KeyboardInterrupt. Raises NotFinite if the loss is NaN or
    infinite; RunError or FileError, and changes nothing, if `out` is in use, holds another run or can't be resumed.
    """
    keep_freed_memory()  # a step allocates what the last one freed
    run = Run(config, Path(out), dataset or open_data(config.data, config.data_dir))
    if resume:
        read_about(run.out)  # now, as locking makes the folder
    # Meter reports NaN
    quietly = np.errstate(over="ignore", invalid="ignore", divide="ignore")
    with lock_folder(run.out), stop_on_signals(), quietly, conv_method(config.conv_method):
        if resume:
            run.resume()
            if run.progress.epoch == run.epochs:
                print(f"{run.out} is finished, nothing to do")
        else:
            run.create()
        # after resume, which replaces progress
        meter = Meter(run.progress, sync_every=1 if config.device == "cpu" else 20)
        try:
            watch(run)
            while run.progress.epoch < run.epochs:
                train_epoch(run, meter, watch)
                test_loss, test_acc = evaluate(run.net, run.test_images, run.test_labels, run.normalise)
                with defer_signals(), explain_not_finite(run):
                    meter.flush()
                    check_finite(test_loss, f"{run.test} loss")
                    row = run.end_epoch(test_loss, test_acc)  # also advances progress.epoch
                    run.save_checkpoint()  # first: whatever else is recorded can be resumed
                    run.save_model()
                    run.save_metrics()
                    print(as_line(row, run), flush=True)
                    watch(run)
        except KeyboardInterrupt:
            with defer_signals(), explain_not_finite(run):
                meter.flush()
                run.save_checkpoint()
            raise
    return run.progress.rows


def train_epoch(run: Run, meter: Meter, watch: Callable[[Run], None]) -> None:
    """All steps of an epoch, or the remaining ones after a resume."""
    from tqdm import tqdm

    net, opt, config, progress = run.net.train(), run.opt, run.config, run.progress
    first = progress.epoch * len(run.loader)  # the run's step at which the epoch began
    # steps within the epoch; the last epoch may be short
    start, stop = progress.step - first, min(len(run.loader), run.total - first)
    bar = tqdm(
        total=stop * config.batch_size,
        initial=start * config.batch_size,
        desc=f"epoch {progress.epoch + 1}/{run.epochs}",
        unit=" images",
        leave=False,
        disable=None,
    )
    with bar:
        for x, y in islice(run.loader.epoch(progress.epoch, start), stop - start):
            with defer_signals(), explain_not_finite(run, x):
                opt.lr = run.schedule(progress.step)
                labels = to_device(check_labels(y, len(run.dataset.classes)), config.device)
                logits = net(Tensor(to_device(x, config.device)))
                loss = cross_entropy(logits, labels, config.label_smoothing)
                meter.add(loss, logits, labels)
                loss.backward()
                opt.step()
                opt.zero_grad()
                progress.step += 1
                if run.is_checkpoint_due():
                    meter.flush()
                    run.save_checkpoint()
                watch(run)
            bar.set_postfix_str(progress.figures(), refresh=False)
            bar.update(config.batch_size)


def evaluate(
    net: Module, images: np.ndarray, labels: np.ndarray, normalise: Normalise, batch_size: int = 250
) -> tuple[float, float]:
    """Mean loss and accuracy (0..1) of `net` on uint8 `images` (N, 32, 32, 3), in evaluation mode."""
    keep_freed_memory()
    device = device_of(net.parameters()[0].data)
    net = fold_batch_norm(net, Tensor(to_device(normalise(images[:1]), device)))
    batches = []  # read at the end: reading a number waits for the device
    with no_grad():
        for x, y in Loader(images, labels, min(batch_size, len(images)), normalise=normalise).epoch():
            logits = net(Tensor(to_device(x, device)))
            targets = to_device(check_labels(y, logits.shape[1]), device)
            batches.append((cross_entropy(logits, targets).data, count_correct(logits, targets), len(y)))
    loss_sum = sum(float(loss) * seen for loss, _, seen in batches)
    return loss_sum / len(labels), sum(int(correct) for _, correct, _ in batches) / len(labels)


# ---- what is recorded ----------------------------------------------------------------------------------------------


class Meter:
    """Adds up the loss and the correct answers of an epoch, in `progress`.

    Reading a number waits for the device, so the figures of `sync_every` steps are read together. A loss that is NaN or
    infinite raises NotFinite then.
    """

    def __init__(self, progress: Progress, sync_every: int = 1):
        self.progress, self.sync_every = progress, sync_every
        self.name = "loss" if sync_every == 1 else f"loss (checked every {sync_every} steps)"
        self.unread: list[tuple[Array, Array, int]] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Array) -> None:
        """Record a step."""
        self.unread.append((loss.data, count_correct(logits, labels), len(labels)))
        if len(self.unread) == self.sync_every:
            self.flush()

    def flush(self) -> None:
        """Read the figures that are still on the device."""
        for loss, correct, seen in self.unread:
            value = float(loss)
            check_finite(value, self.name)
            self.progress.loss_sum += value * seen
            self.progress.correct += int(correct)
            self.progress.seen += seen
        self.unread.clear()


def count_correct(logits: Tensor, labels: Array) -> Array:
    """How many images have their largest logit at their label, a number on the device."""
    return (logits.data.argmax(-1) == labels).sum()


def as_line(row: Row, run: Run) -> str:
    """An epoch's figures, for the terminal."""
    return (
        f"epoch {row['epoch']}/{run.epochs}  train loss {row['train_loss']:.3f} acc {row['train_acc']:.1%}  "
        f"{run.test} loss {row[f'{run.test}_loss']:.3f} acc {row[f'{run.test}_acc']:.1%}  {row['seconds']:.0f} s"
    )


# ---- numbers that overflow -----------------------------------------------------------------------------------------


class NotFinite(RuntimeError):
    """The loss became NaN or infinite."""


def check_finite(loss: float, name: str) -> None:
    """Raises NotFinite if `loss` is NaN or infinite."""
    if not math.isfinite(loss):
        raise NotFinite(f"the {name} is {loss}")


@contextmanager
def explain_not_finite(run: Run, x: np.ndarray | None = None) -> Iterator[None]:
    """Inside, NotFinite reports the step, the first layer to blame, and what to try.

    x: the batch to find that layer with; by default a batch of test images, in evaluation mode.
    """
    try:
        yield
    except NotFinite as error:
        if x is None:
            run.net.eval()
            x = run.normalise(run.test_images[: run.config.batch_size])
        raise NotFinite(
            f"{error} in epoch {run.progress.epoch + 1}, step {run.progress.step}, learning rate {run.opt.lr:.3g}; "
            f"first layer whose output is not finite: {first_not_finite(run.net, x)}; "
            f"try a lower rate: --lr {run.config.lr / 10:.2g}"
        ) from None


def first_not_finite(net: Module, x: np.ndarray) -> str:
    """The first layer, in the order of the forward pass, that outputs NaN or infinity for the batch x."""
    found = []

    def check(name: str, module: Module, output: Tensor) -> None:
        if not bool(array_module(output.data).isfinite(output.data).all()):
            found.append(f"{name or 'the net'} ({type(module).__name__})")

    with no_grad(), forward_hook(net, check):
        net(Tensor(to_device(x, device_of(net.parameters()[0].data))))
    return found[0] if found else "none, the loss itself"
