"""How long does a training step take? minires and its peers, timed in turn on the same machine.

Each contestant runs in its own process, with the same number of threads, and turns are interleaved, A B C A B C ...
The first half of a turn warms up, the second is timed. Whatever disturbs the machine for a while disturbs all of them,
so the ratio of two times of one round is steadier than the times. Peers that are not installed are left out.
"""

from __future__ import annotations

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

from minires.devices import machine
from minires.resnet import IMAGENET, build

PEERS = {  # name -> the package it needs
    "minires": "minires",
    "PyTorch": "torch",
    "PyTorch channels_last": "torch",
    "PyTorch compiled": "torch",
    "dezero": "dezero",
}


@dataclass(frozen=True)
class Job:
    """What to time.  task: "step" (forward, loss, backward, SGD), "inference" or "layer" (3x3 convolution, batch norm,
    ReLU, forward and backward to the input, on `batch` maps of size x size pixels and `channels` channels)."""

    task: str = "step"
    model: str = "resnet20"
    batch: int = 128
    threads: int = 1
    size: int = 32
    channels: int = 16


def installed(peers: Sequence[str] = tuple(PEERS)) -> list[str]:
    """Those of `peers` whose package is installed."""
    return [peer for peer in peers if importlib.util.find_spec(PEERS[peer])]


def in_turn(contestants: Sequence[tuple[str, Job]], rounds: int, warmup: int = 1) -> list[list[float]]:
    """Seconds of every contestant in every round:  a list for each contestant."""
    workers = [Worker(peer, job) for peer, job in contestants]
    try:
        times = [[worker.run() for worker in workers] for _ in range(warmup + rounds)]
    finally:
        for worker in workers:
            worker.close()
    return [list(column) for column in zip(*times[warmup:], strict=True)]


def quartiles(times: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in seconds, and of the ratio to `reference`, round by round."""
    found: dict[str, float] = {}
    for name, values in (("seconds", np.array(times)), ("ratio", np.array(times) / np.array(reference))):
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        found |= {f"{name}_quartile_1": low, f"{name}_median": median, f"{name}_quartile_3": high}
    return found


def compare(model: str = "resnet20", threads: int = 1, rounds: int = 5) -> str:
    """What `python -m minires bench` prints: a line for minires, and for each PyTorch layout if it is installed."""
    if model in IMAGENET or not model.startswith(("resnet", "bottleneck")):
        raise ValueError(f"bench: expected resnetN or bottleneckN for CIFAR-10, got {model}")
    build(model)  # an unknown name is an error before anything starts
    job = Job(model=model, threads=threads)
    names = installed(["minires", "PyTorch", "PyTorch channels_last"])
    columns = in_turn([(name, job) for name in names], rounds)
    lines = [
        f"training step of {model}, batch {job.batch}, {threads} threads, median of {rounds}",
        f"{'':24}{'ms a step':>10}{'images/s':>10}{'s an epoch':>12}{'minires takes':>16}",
    ]
    for name, times in zip(names, columns, strict=True):
        step = float(np.median(times))
        ratio = "" if name == "minires" else f"{quartiles(columns[0], times)['ratio_median']:.2f} of its time"
        lines.append(f"{name:24}{step * 1e3:10.0f}{job.batch / step:10.0f}{50_000 / job.batch * step:12.0f}{ratio:>18}")
    return "\n".join([*lines, "an epoch: the 50,000 training images of CIFAR-10"])


def measured_on() -> dict[str, Any]:
    """The machine and the versions that times depend on, for the files that record them."""
    return {
        "processor": machine.processor(),
        "blas": machine.blas(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        **machine.versions("numpy", "torch", "dezero"),
    }


class Worker:
    """A process with one contestant, which runs it whenever it is asked."""

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
            start_new_session=True,  # Ctrl-C reaches minires, which ends the worker, and not the worker
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )

    def ask(self, question: str) -> float:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            raise RuntimeError(f"bench: the process of {self.peer} ended early; see its message above") from error

    def run(self) -> float:
        """Seconds of one run: a step, or the mean of ten layers, after as many to warm up."""
        return self.ask("run")

    def peak_memory(self) -> float:
        """Bytes that the process needed at its peak, beyond those after its imports (0 on Windows)."""
        return self.ask("memory")

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.communicate()


def _serve(peer: str, job: Job) -> None:
    """In the worker: for each line of input, run and print the seconds of a run, or print the peak memory."""
    prepare = {"minires": _minires, "dezero": _dezero}.get(peer, _torch)
    if peer == "dezero":
        np.int = int  # type: ignore[attr-defined]  # dezero 0.0.13 needs a name that NumPy 1.24 removed
    importlib.import_module(PEERS[peer])
    before = machine.peak_memory()
    run, repeats = prepare(peer, job), 10 if job.task == "layer" else 1
    for line in sys.stdin:
        if line.strip() == "run":
            for _ in range(repeats):  # at first threads are asleep, and caches are full of the others' numbers
                run()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            print((time.perf_counter() - start) / repeats, flush=True)
        else:
            print(machine.peak_memory() - before, flush=True)


# ---- the contestants: each function prepares a job and returns a function to time -----------------------------------


def _inputs(job: Job) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size, channels = (job.size, job.channels) if job.task == "layer" else (32, 3)
    return rng.standard_normal((job.batch, size, size, channels), np.float32), rng.integers(0, 10, job.batch)


def _minires(peer: str, job: Job) -> Callable[[], Any]:
    from minires.functional import cross_entropy, relu
    from minires.nn import BatchNorm2d, Conv2d
    from minires.optim import SGD
    from minires.resnet import build
    from minires.tensor import Tensor, no_grad

    machine.keep_freed_memory()  # as in training
    pixels, y = _inputs(job)
    if job.task == "layer":
        conv = Conv2d(job.channels, job.channels, 3, padding=1, rng=np.random.default_rng(0))
        norm, x, grad = BatchNorm2d(job.channels), Tensor(pixels, requires_grad=True), np.ones_like(pixels)

        def layer() -> None:
            relu(norm(conv(x))).backward(grad)
            x.zero_grad()
            conv.zero_grad()
            norm.zero_grad()

        return layer
    net = build(job.model)
    if job.task == "inference":
        net.eval()
        return no_grad()(lambda: net(Tensor(pixels)))
    optimiser = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        cross_entropy(net(Tensor(pixels)), y).backward()
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
            out: Any = relu(norm(conv(x)))
            out.backward(grad)
            x.grad = None
            conv.zero_grad()
            norm.zero_grad()

        return layer
    net: Any = _torch_net(job.model).to(memory_format=layout)
    if "compiled" in peer:
        net = torch.compile(net)
    if job.task == "inference":
        net.eval()
        return torch.no_grad()(lambda: net(x))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss: Any = cross_entropy(net(x), y)
        loss.backward()
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
        raise ValueError(f"bench: expected task layer for dezero, which has no residual net, got {job.task}")
    pixels, _ = _inputs(job)
    x = Variable(pixels.transpose(0, 3, 1, 2).copy())
    conv, norm = L.Conv2d(job.channels, kernel_size=3, pad=1, nobias=True), L.BatchNorm()

    def layer() -> None:
        y = F.relu(norm(conv(x)))
        y.grad = Variable(np.ones_like(y.data))
        y.backward()
        x.cleargrad()
        conv.cleargrads()
        norm.cleargrads()

    return layer


if __name__ == "__main__":
    _serve(sys.argv[1], Job(**json.loads(sys.argv[2])))
