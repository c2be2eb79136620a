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
    "PyTorch folded": "torch",
    "ONNX Runtime": "onnxruntime",
    "minires before": "minires",
    "dezero": "dezero",
}


@dataclass(frozen=True)
class Job:
    """What to time.  task: "step" (forward, loss, backward, SGD), "inference" (batch norms folded, where the contestant
    can) or "layer" (3x3 convolution, batch norm, ReLU, forward and backward to the input), on `batch` images of
    size x size pixels. channels: of the layer, or of the net's first stage. checkout: of "minires before"."""

    task: str = "step"
    model: str = "resnet20"
    batch: int = 128
    threads: int = 1
    size: int = 32
    channels: int = 16
    checkout: str = ""


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
        **machine.versions("numpy", "torch", "dezero", "onnxruntime"),
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
    contestants = {"minires": _minires, "minires before": _minires, "dezero": _dezero, "ONNX Runtime": _onnx}
    prepare = contestants.get(peer, _torch)
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
    channels = job.channels if job.task == "layer" else 3
    return rng.standard_normal((job.batch, job.size, job.size, channels), np.float32), rng.integers(0, 10, job.batch)


def _minires(peer: str, job: Job) -> Callable[[], Any]:
    if job.checkout and peer == "minires before":
        sys.path.insert(0, job.checkout)
        for name in [name for name in sys.modules if name.partition(".")[0] == "minires"]:
            del sys.modules[name]
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
    net: Any = build(job.model, width=job.channels)
    if job.task == "inference":
        net.eval()
        if peer == "minires":
            from minires.fold import fold_batch_norm

            net = fold_batch_norm(net, Tensor(pixels[:1]))
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
    net: Any = _torch_net(job.model, job.channels).to(memory_format=layout)
    if "folded" in peer:
        net = _folded(net)
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


def _folded(net: Any) -> Any:
    """A copy of a net of `_torch_net` for inference, batch norms folded into convolutions by PyTorch's own function."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    net = net.eval()
    for module in net.modules():
        convs: Any = getattr(module, "convs", [])
        norms: Any = getattr(module, "norms", [])
        for i in range(len(convs)):
            convs[i], norms[i] = fuse_conv_bn_eval(convs[i], norms[i]), nn.Identity()
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
            norm: Any = module[1]
            module[0], module[1] = fuse_conv_bn_eval(module[0], norm), nn.Identity()
    return net


def _onnx(peer: str, job: Job) -> Callable[[], Any]:
    from tempfile import TemporaryDirectory

    import onnxruntime
    import torch

    net, pixels = _torch_net(job.model, job.channels).eval(), _inputs(job)[0].transpose(0, 3, 1, 2).copy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    with TemporaryDirectory() as folder:
        file = os.path.join(folder, "net.onnx")
        torch.onnx.export(net, (torch.from_numpy(pixels),), file, input_names=["x"], verbose=False)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": pixels})


def _torch_net(model: str, width: int = 16) -> Any:
    """resnetN or bottleneckN, as a PyTorch user would write it: for CIFAR-10 with option A, for ImageNet with B."""
    from torch import nn
    from torch.nn.functional import pad, relu

    imagenet = model in IMAGENET
    bottleneck = model.startswith("bottleneck")
    kernels, expansion = ((1, 3, 1), 4) if bottleneck else ((3, 3), 1)
    depth = int(model.removeprefix("bottleneck").removeprefix("resnet"))
    stages = IMAGENET[model][1] if imagenet else 3 * ((depth - 2) // (3 * len(kernels)),)

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
            if imagenet and (stride > 1 or self.extra):
                conv: Any = nn.Conv2d(c_in, widths[-1], 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))

        def forward(self, x: Any) -> Any:
            h = x
            for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                h = norm(conv(relu(h) if i else h))
            if imagenet:
                x = self.shortcut(x) if hasattr(self, "shortcut") else x
            elif self.stride > 1 or self.extra:
                before = self.extra // 2
                x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
            return relu(h + x)

    kernel, stride = (7, 2) if imagenet else (3, 1)
    layers: list[Any] = [nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2, padding=1)] if imagenet else []
    c_in = width
    for stage, blocks in enumerate(stages):
        for i in range(blocks):
            layers.append(Block(c_in, width * 2**stage, 2 if stage and i == 0 else 1))
            c_in = width * 2**stage * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 1000 if imagenet else 10))


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
