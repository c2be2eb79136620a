"""How long does a training step take? minires and its peers, timed in turn on the same machine.

Each contestant runs in a process of its own, with the same number of threads, and they take turns, A B C A B C ...; the
first half of a turn warms up and the second counts. What disturbs the machine for a while disturbs all of them, and
the ratio of the times of one round says more than either. Peers that are not installed are left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minires.training.run import blas, processor

PEERS = {  # name -> the package it needs
    "minires": "minires",
    "PyTorch": "torch",
    "PyTorch channels_last": "torch",
    "PyTorch compiled": "torch",
    "dezero": "dezero",
}


@dataclass(frozen=True)
class Job:
    """What to time.  task: "step" (forward, loss, backward, SGD), "inference" or "layer" (conv 3x3, batch norm, ReLU,
    forward and backward, on `batch` maps of size x size pixels and `channels` channels, the picture's gradient too)."""

    task: str = "step"
    model: str = "resnet20"
    batch: int = 128
    threads: int = 1
    size: int = 32
    channels: int = 16


def installed(peers: Sequence[str] = tuple(PEERS)) -> list[str]:
    """Those of `peers` whose package is here."""
    return [peer for peer in peers if importlib.util.find_spec(PEERS[peer])]


def in_turn(contestants: Sequence[tuple[str, Job]], rounds: int, warmup: int = 1) -> list[list[float]]:
    """Seconds of every contestant in every round:  a list for each contestant."""
    workers = [Worker(peer, job) for peer, job in contestants]
    try:
        for worker in workers:
            for _ in range(warmup):
                worker.run()
        times = [[worker.run() for worker in workers] for _ in range(rounds)]
    finally:
        for worker in workers:
            worker.close()
    return [list(column) for column in zip(*times, strict=True)]


def summary(times: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in seconds, and the ratio to `reference`, round by round: median and quartiles."""
    t, ratio = np.array(times), np.array(times) / np.array(reference)
    names = ("quartile_1", "median", "quartile_3")
    return {
        **{f"seconds_{n}": float(v) for n, v in zip(names, np.percentile(t, (25, 50, 75)), strict=True)},
        **{f"ratio_{n}": float(v) for n, v in zip(names, np.percentile(ratio, (25, 50, 75)), strict=True)},
    }


def report(model: str = "resnet20", threads: int = 1, rounds: int = 5) -> str:
    """The short form, for a user's own machine: a line for minires and for each PyTorch layout, if it is installed."""
    job = Job(model=model, threads=threads)
    names = installed(["minires", "PyTorch", "PyTorch channels_last"])
    columns = in_turn([(name, job) for name in names], rounds)
    lines = [
        f"training step of {model}, batch {job.batch}, {threads} threads, median of {rounds}",
        f"{'':24}{'ms a step':>10}{'images/s':>10}{'s an epoch':>12}{'minires takes':>16}",
    ]
    for name, times in zip(names, columns, strict=True):
        step = summary(times, times)["seconds_median"]
        ratio = "" if name == "minires" else f"{summary(columns[0], times)['ratio_median']:.2f} of its time"
        lines.append(f"{name:24}{step * 1e3:10.0f}{job.batch / step:10.0f}{50_000 / job.batch * step:12.0f}{ratio:>18}")
    return "\n".join([*lines, "an epoch: the 50,000 training images of CIFAR-10"])


def machine() -> dict[str, str | int]:
    """What the figures were taken on: processor, cores, system, and the versions that matter."""
    versions = {}
    for package in ("numpy", "torch", "dezero"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "blas": blas(),
        "cores": os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


class Worker:
    """A process that holds one contestant and runs it once whenever it is asked."""

    def __init__(self, peer: str, job: Job):
        count = str(job.threads)
        env = os.environ | {"MINIRES_THREADS": count, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
        self.peer = peer
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minires.devices.bench", peer, json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def ask(self, what: str) -> float:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            raise RuntimeError(f"bench: the process of {self.peer} ended early; its message stands above") from error

    def run(self) -> float:
        """Seconds of a run in one turn: a step, or the mean of ten layers, after as many to warm up."""
        return self.ask("run")

    def peak_memory(self) -> float:
        """Bytes that the process needed at its peak, beyond what it had after its imports (not on Windows)."""
        return self.ask("memory")

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.communicate()


def _serve(peer: str, job: Job) -> None:
    """In the worker: for each line that comes, take a turn and print the seconds of a run, or print the peak memory."""
    build = {"minires": _minires, "dezero": _dezero}.get(peer, _torch)
    if peer == "dezero":
        np.int = int  # type: ignore[attr-defined]  # dezero 0.0.13 asks for a name that NumPy 1.24 took away
    importlib.import_module(PEERS[peer])
    before = _peak_memory()
    once, runs = build(peer, job), 10 if job.task == "layer" else 1
    for line in sys.stdin:
        if line.strip() == "run":
            for _ in range(runs):  # a turn finds threads asleep and caches full of the others' numbers
                once()
            start = time.perf_counter()
            for _ in range(runs):
                once()
            print((time.perf_counter() - start) / runs, flush=True)
        else:
            print(_peak_memory() - before, flush=True)


def _peak_memory() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ---- the contestants: each a function that makes everything ready and returns a function to time --------------------


def _inputs(job: Job) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size, channels = (32, 3) if job.task != "layer" else (job.size, job.channels)
    return rng.standard_normal((job.batch, size, size, channels), np.float32), rng.integers(0, 10, job.batch)


def _minires(peer: str, job: Job) -> Callable[[], Any]:
    from minires.functional import cross_entropy
    from minires.nn import BatchNorm2d, Conv2d
    from minires.optim import SGD
    from minires.resnet import build
    from minires.tensor import Tensor, no_grad

    x, y = _inputs(job)
    if job.task == "layer":
        conv = Conv2d(job.channels, job.channels, 3, padding=1, rng=np.random.default_rng(0))
        norm, picture, grad = BatchNorm2d(job.channels), Tensor(x, requires_grad=True), np.ones_like(x)

        def layer() -> None:
            norm(conv(picture), relu=True).backward(grad)
            for part in (picture, conv, norm):
                part.zero_grad()

        return layer
    net = build(job.model)
    if job.task == "inference":
        net.eval()
        return no_grad()(lambda: net(Tensor(x)))
    optimiser = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        cross_entropy(net(Tensor(x)), y).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _torch(peer: str, job: Job) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import cross_entropy, relu

    torch.set_num_threads(job.threads)
    layout = torch.channels_last if "channels_last" in peer else torch.contiguous_format
    pixels, labels = _inputs(job)
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    y = torch.from_numpy(labels)
    if job.task == "layer":
        conv: Any = torch.nn.Conv2d(job.channels, job.channels, 3, padding=1, bias=False)
        conv.to(memory_format=layout)
        norm, grad = torch.nn.BatchNorm2d(job.channels), torch.ones_like(x)
        x.requires_grad_()

        def layer() -> None:
            relu(norm(conv(x))).backward(grad)
            x.grad = None
            conv.zero_grad()
            norm.zero_grad()

        return layer
    net = _torch_net(job.model).to(memory_format=layout)
    run = torch.compile(net) if "compiled" in peer else net
    if job.task == "inference":
        net.eval()
        return torch.no_grad()(lambda: run(x))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        cross_entropy(run(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _torch_net(model: str) -> Any:
    """resnetN or bottleneckN for CIFAR-10, option A, as a PyTorch user would write it."""
    from torch import nn
    from torch.nn.functional import pad, relu

    bottleneck = model.startswith("bottleneck")
    kernels, expansion = ((1, 3, 1), 4) if bottleneck else ((3, 3), 1)
    n = (int(model.removeprefix("bottleneck").removeprefix("resnet")) - 2) // (3 * len(kernels))

    class Block(nn.Module):
        def __init__(self, c_in: int, width: int, stride: int):
            super().__init__()
            widths = [c_in, *[width] * (len(kernels) - 1), width * expansion]
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            self.convs = nn.ModuleList(
                nn.Conv2d(a, b, k, s, k // 2, bias=False)
                for a, b, k, s in zip(widths[:-1], widths[1:], kernels, strides, strict=True)
            )
            self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
            self.stride, self.extra = stride, widths[-1] - c_in

        def forward(self, x: Any) -> Any:
            h = x
            for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                h = norm(conv(relu(h) if i else h))
            if self.stride > 1 or self.extra:
                before = self.extra // 2
                x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
            return relu(h + x)

    layers: list[Any] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    c_in = 16
    for stage in range(3):
        for i in range(n):
            layers.append(Block(c_in, 16 * 2**stage, 2 if stage and i == 0 else 1))
            c_in = 16 * 2**stage * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 10))


def _dezero(peer: str, job: Job) -> Callable[[], Any]:
    import dezero.functions as F
    import dezero.layers as L
    from dezero import Variable

    if job.task != "layer":
        raise ValueError("bench: dezero has no residual net; only a layer can be timed")
    pixels, _ = _inputs(job)
    x = Variable(pixels.transpose(0, 3, 1, 2).copy())
    conv, norm = L.Conv2d(job.channels, kernel_size=3, pad=1, nobias=True), L.BatchNorm()

    def layer() -> None:
        y = F.relu(norm(conv(x)))
        y.grad = Variable(np.ones_like(y.data))
        y.backward()
        x.cleargrad(), conv.cleargrads(), norm.cleargrads()

    return layer


if __name__ == "__main__":
    _serve(sys.argv[1], Job(**json.loads(sys.argv[2])))
