"""What does this machine have, and does minires compute the same on its GPU as with NumPy?

`report` is what `python -m minires doctor` prints; `selftest` is `doctor --gpu-selftest`, for whoever has a GPU: every
operation, forward and backward, and three steps of training against NumPy, then speed and memory.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

from minires import backend
from minires.training import run
from minires import functional as F
from minires.backend import Array, array_module, device_of, to_device, to_host
from minires.conv import avg_pool2d, conv2d, global_avg_pool, max_pool2d
from minires.data import find_cifar10
from minires.nn import Module
from minires.norm import batch_norm, batch_norm_simple, layer_norm, layer_norm_simple
from minires.optim import SGD
from minires.resnet import build
from minires.training.run import environment
from minires.tensor import Tensor, concatenate, pad

# ---- what this machine has ------------------------------------------------------------------------------------------


def report() -> str:
    """Processor, threads, BLAS, memory, versions, data sets and GPU, a line each."""
    about = environment()
    lines = {
        "versions": versions(about),
        "processor": f"{about['processor']}, {about['cores']} cores",
        "threads": get_num_threads(),
        "BLAS": blas(),
        "memory": memory(),
        "CIFAR-10": cifar10(),
        "Shapes-10": "always there: minires draws it itself",
        "GPU": gpu_status().sentence,
    }
    return "\n".join(f"{name:11}{text}" for name, text in lines.items())


def versions(about: dict[str, Any]) -> str:
    """Versions of minires, Python and NumPy, and the system."""
    found = about["versions"]
    git = f" (git {about['git']})" if about["git"] else ""
    return f"minires {found['minires']}{git}, Python {found['python']}, NumPy {found['numpy']}, {about['platform']}"


def get_num_threads() -> str:
    """How many threads share a batch, and why."""
    try:
        count = backend.get_num_threads()
    except ValueError as error:
        return str(error)
    asked = os.environ.get("MINIRES_THREADS")
    why = "set_num_threads" if backend._threads else f"MINIRES_THREADS={asked}" if asked else "one a core it may use"
    return f"{count} ({why})"


def blas() -> str:
    """The library behind NumPy's matrix products, and whether minires can hold it to one thread in each of its own."""
    known = any(library["user_api"] == "blas" for library in threadpool_info())
    asked = os.environ.get("OPENBLAS_CORETYPE")
    kernels = f" (OPENBLAS_CORETYPE={asked} chose its kernels)" if asked else ""
    return run.blas() + kernels + ("" if known else ", whose threads can't be limited")


def memory() -> str:
    """The machine's memory, and what of it is to be had now."""
    total, available = memory_bytes()
    if not total:
        return "this system doesn't tell"
    return f"{total / 2**30:.1f} GiB" + (f", {available / 2**30:.1f} GiB available" if available else "")


def memory_bytes() -> tuple[int, int]:
    """Bytes in all, bytes available; 0 where the system doesn't tell."""
    info = Path("/proc/meminfo")
    if info.exists():  # Linux
        kib = dict(re.findall(r"(\w+): +(\d+) kB", info.read_text(encoding="utf-8")))
        return int(kib["MemTotal"]) * 1024, int(kib["MemAvailable"]) * 1024
    if sys.platform == "win32":
        status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its own size, bytes in all, bytes available, and others
        return (status[1], status[2]) if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else (0, 0)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0
    except (ValueError, OSError):
        return 0, 0


def cifar10() -> str:
    """Where CIFAR-10 lies, or how to get it."""
    place, variable = find_cifar10(), os.environ.get("MINIRES_DATA")
    asked = f"MINIRES_DATA={variable}" if variable else "MINIRES_DATA is not set"
    if place:
        return f"{place.absolute()} ({asked})"
    return f"not found ({asked}); to fetch it: python -m minires data cifar10"


# ---- the self-test --------------------------------------------------------------------------------------------------

OPERATION_LIMIT = 2e-5  # of the largest number; float32 has seven digits, and sums in another order lose some
TRAINING_LIMIT = 1e-6  # in float64: three steps in float32 leave two digits of some biases

Operation = tuple[Callable[..., Tensor], list[np.ndarray]]


def selftest(device: str = "gpu", batch: int = 128, steps: int = 10) -> tuple[bool, str]:
    """Compare `device` with NumPy: whether all is well, and a text to paste into an issue. About a minute.

    batch: images a step. steps: how many are timed on `device`. Raises RuntimeError where `device` can't be used.
    """
    from tqdm import tqdm

    xp, began = array_module(to_device(np.zeros(1), device)), time.perf_counter()
    ops = operations()
    faults = {}
    with tqdm(total=len(ops) + 3, desc="self-test", leave=False, disable=None) as bar:
        for name, operation in ops.items():
            faults[name] = told(compare_operation, operation, device)
            bar.update()
        faults["three training steps"] = told(compare_training, device, batch)
        bar.update()
        lines = []
        for model in ("ResNet-20", "ResNet-56"):
            free_pool(xp)
            try:
                speed, peak = throughput(device, model, batch, steps), pool_bytes(xp)
                numpy_speed = throughput("cpu", model, batch, 2)
                lines.append(
                    f"training {model}: {speed:,.0f} images/s, with NumPy {numpy_speed:,.0f}; peak memory "
                    f"{peak / 2**20:,.0f} MiB"
                )
            except Exception as error:
                faults[f"training {model}"] = in_short(error)
            bar.update()
    about = environment()
    failed = [f"FAIL {name}: {fault}" for name, fault in faults.items() if fault]
    text = [
        "---- minires GPU self-test: please paste all of this into an issue ----",
        versions(about),
        f"{about['processor']}, {about['cores']} cores, threads: {get_num_threads()}",
        f"device {device}: {gpu_status().sentence}",
        f"operations, forward and backward: {sum(not faults[name] for name in ops)} of {len(ops)} as with NumPy",
        f"three training steps of ResNet-20: {'FAIL' if faults['three training steps'] else 'as with NumPy'}",
        *lines,
        *failed,
        f"{'FAIL' if failed else 'PASS'} in {time.perf_counter() - began:.0f} s",
        "----",
    ]
    return not failed, "\n".join(text)


def told(compare: Callable[..., str], *arguments: Any) -> str:
    """What `compare` finds wrong; an exception is a finding too."""
    try:
        return compare(*arguments)
    except Exception as error:
        return in_short(error)


def in_short(error: Exception) -> str:
    """An error in one line: a kernel that doesn't compile has hundreds."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def operations() -> dict[str, Operation]:
    """Every public operation on tensors and arrays to try it with; behind a comma, a special case of it."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def like(value: float, v: Tensor) -> Array:  # running statistics
        return array_module(v.data).full(v.shape, value, v.dtype)

    x, same, channel, shift = normal(4, 6, 5, 8), normal(4, 6, 5, 8), normal(8), normal(8)
    positive, rows, labels = np.abs(x) + 0.5, normal(6, 8), np.array([1, 0, 7, 7, 3, 2])
    return {
        "add": (lambda x, v: x + v, [x, channel]),
        "radd": (lambda x: 2 + x, [x]),
        "sub": (lambda x, v: x - v, [x, channel]),
        "rsub": (lambda x: 2 - x, [x]),
        "mul": (lambda x, v: x * v, [x, channel]),
        "rmul": (lambda x: 2 * x, [x]),
        "truediv": (lambda x, y: x / y, [x, positive]),
        "rtruediv": (lambda x: 2 / x, [positive]),
        "neg": (lambda x: -x, [x]),
        "pow": (lambda x: x**1.5, [positive]),
        "matmul": (lambda x, y: x @ y, [x, normal(8, 3)]),
        "exp": (lambda x: x.exp(), [x]),
        "log": (lambda x: x.log(), [positive]),
        "sqrt": (lambda x: x.sqrt(), [positive]),
        "sum": (lambda x: x.sum((0, 2)), [x]),
        "sum, all": (lambda x: x.sum(), [x]),
        "mean": (lambda x: x.mean(-1, keepdims=True), [x]),
        "max": (lambda x: x.max(1), [x]),
        "reshape": (lambda x: x.reshape(8, -1), [x]),
        "transpose": (lambda x: x.transpose(3, 0, 2, 1), [x]),
        "getitem": (lambda x: x[:, 1:, ::2], [x]),
        "getitem, rows twice": (lambda x: x[np.array([2, 0, 2])], [x]),
        "concatenate": (lambda x, y: concatenate([x, y], axis=1), [x, same]),
        "pad": (lambda x: pad(x, [(0, 0), (1, 2), (2, 1), (0, 3)]), [x]),
        "relu": (F.relu, [x]),
        "add_relu": (F.add_relu, [x, same]),
        "log_softmax": (F.log_softmax, [rows]),
        "cross_entropy": (lambda x: F.cross_entropy(x, labels, label_smoothing=0.1), [rows]),
        "dropout": (lambda x: F.dropout(x, 0.3, np.random.default_rng(0)), [x]),
        "linear": (F.linear, [rows, normal(8, 3), normal(3)]),
        "subsample_and_pad": (lambda x: F.subsample_and_pad(x, 2, 16), [x]),
        "conv2d": (lambda x, w: conv2d(x, w, padding=1), [x, normal(3, 3, 8, 4)]),
        "conv2d, stride 2, bias": (lambda x, w, b: conv2d(x, w, b, 2, 1), [x, normal(3, 3, 8, 4), normal(4)]),
        "conv2d, 1x1": (conv2d, [x, normal(1, 1, 8, 4)]),
        "max_pool2d": (lambda x: max_pool2d(x, 3, 2, 1), [x]),
        "avg_pool2d": (lambda x: avg_pool2d(x, 2), [x]),
        "global_avg_pool": (global_avg_pool, [x]),
        "batch_norm": (lambda x, g, b: batch_norm(x, g, b, like(0, g), like(1, g)), [x, channel, shift]),
        "batch_norm, relu": (
            lambda x, g, b: batch_norm(x, g, b, like(0, g), like(1, g), relu=True),
            [x, channel, shift],
        ),
        "batch_norm, evaluation": (
            lambda x, g, b: batch_norm(x, g, b, like(0.1, g), like(2, g), training=False),
            [x, channel, shift],
        ),
        "batch_norm_simple": (batch_norm_simple, [x, channel, shift]),
        "layer_norm": (layer_norm, [x, channel, shift]),
        "layer_norm_simple": (layer_norm_simple, [x, channel, shift]),
    }


def compare_operation(operation: Operation, device: str) -> str:
    """What is wrong with an operation's output or gradients on `device`; nothing if they are NumPy's."""
    right, here = forward_and_backward(*operation, "cpu"), forward_and_backward(*operation, device)
    names = ["output", *[f"gradient of input {i}" for i in range(len(right) - 1)]]
    for name, a, b in zip(names, right, here, strict=True):
        if fault := difference(a, b, OPERATION_LIMIT):
            return f"the {name} {fault}"
    return ""


def forward_and_backward(op: Callable[..., Tensor], arrays: list[np.ndarray], device: str) -> list[np.ndarray]:
    """Output and gradients of an operation on `device`, for a random upstream gradient."""
    inputs = [Tensor(to_device(a, device), requires_grad=True) for a in arrays]
    out = op(*inputs)
    if device_of(out.data) != device:
        raise TypeError(f"the output lies on {device_of(out.data)}, expected {device}")
    upstream = np.random.default_rng(1).standard_normal(out.shape, np.float32)
    out.backward(to_device(upstream, device))
    return [to_host(out.data), *[to_host(t.grad) for t in inputs]]


def compare_training(device: str, batch: int) -> str:
    """What is wrong with the losses, weights and running statistics after three steps on `device`."""
    runs = []
    for where in ("cpu", device):
        net, step = training(where, "ResNet-20", batch, np.float64)
        losses = np.array([step().item() for _ in range(3)])
        runs.append({"losses": losses} | net.state_dict())
    faults = {name: difference(runs[0][name], runs[1][name], TRAINING_LIMIT) for name in runs[0]}
    return next((f"{name} {fault}" for name, fault in faults.items() if fault), "")


def difference(right: np.ndarray, here: np.ndarray, limit: float) -> str:
    """How `here` differs from `right`, if it does by more than `limit` of the largest number."""
    if (here.shape, here.dtype) != (right.shape, right.dtype):
        return f"is {here.dtype} of shape {here.shape}, expected {right.dtype} of shape {right.shape}"
    gap = np.abs(here - right).max() / (np.abs(right).max() or 1)
    return "" if gap <= limit else f"differs by {gap:.1e} of its largest number, allowed is {limit:.0e}"  # NaN too


def training(device: str, model: str, batch: int, dtype: Any = np.float32) -> tuple[Module, Callable[[], Tensor]]:
    """A net on `device`, and a function that trains it a step and returns the loss."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((batch, 32, 32, 3)).astype(dtype), rng.integers(0, 10, batch)
    net = build(model.lower().replace("-", "")).astype(dtype).to(device)
    optimiser = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        loss = F.cross_entropy(net(Tensor(to_device(x, device))), y)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return net, step


def throughput(device: str, model: str, batch: int, steps: int) -> float:
    """Images a second of training. The first step compiles kernels and does not count."""
    _, step = training(device, model, batch)
    step().item()
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
    loss.item()  # waits until the device has done all of it
    return batch * steps / (time.perf_counter() - start)


def free_pool(xp: Any) -> None:
    """Give back the device memory that CuPy keeps for later."""
    if hasattr(xp, "get_default_memory_pool"):
        xp.get_default_memory_pool().free_all_blocks()


def pool_bytes(xp: Any) -> int:
    """The device memory that CuPy took since `free_pool`: its pool grows to the peak and stays so; 0 elsewhere."""
    return xp.get_default_memory_pool().total_bytes() if hasattr(xp, "get_default_memory_pool") else 0


# ---- is there a GPU? ------------------------------------------------------------------------------------------------

GPU_STATES = {  # what `gpu_status` may find, and what mends it
    "not installed": 'CuPy is not installed; on Linux or Windows with an NVIDIA GPU: pip install -e ".[gpu]"',
    "no driver": "CuPy is installed, but no NVIDIA driver; install one, until the command nvidia-smi shows the GPU: "
    "https://www.nvidia.com/drivers",
    "driver too old": "the NVIDIA driver serves CUDA {driver} at most, CuPy needs {needed} or later; install a newer "
    "driver: https://www.nvidia.com/drivers",
    "no device": "the NVIDIA driver finds no GPU; see what nvidia-smi says, whether CUDA_VISIBLE_DEVICES hides it, and "
    "in a container whether it was started with --gpus all",
    "broken": "CuPy is installed, but can't compute on the GPU ({reason}); if NVRTC or cuBLAS is missing, this brings "
    'it: pip install -e ".[gpu]"',
    "ready": "{name} is ready (driver for CUDA {driver}, CuPy {cupy})",
}


class GpuStatus(NamedTuple):
    state: str  # one of GPU_STATES
    sentence: str  # for the user


def gpu_status() -> GpuStatus:
    """Whether device "gpu" can be used here, and if not, why."""
    try:
        import cupy
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        return _status("not installed") if missing else _broken(error)
    runtime = cupy.cuda.runtime
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        driver = runtime.driverGetVersion()
        if driver == 0:  # the error is the same as for an old driver
            return _status("no driver")
        if error.status == 35:  # cudaErrorInsufficientDriver
            needed = runtime.runtimeGetVersion() // 1000 * 1000
            return _status("driver too old", driver=_version(driver), needed=_version(needed))
        if error.status != 100:  # cudaErrorNoDevice
            return _broken(error)
        devices = 0
    if devices == 0:
        return _status("no device")
    try:  # only a computation finds a missing cuBLAS (the product) or NVRTC (the + 1)
        a = cupy.ones((2, 2), np.float32)
        float((a @ a + 1).sum())
        name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    except Exception as error:  # of many kinds, and with any of them the GPU can't be used
        return _broken(error)
    return _status("ready", name=name, driver=_version(runtime.driverGetVersion()), cupy=cupy.__version__)


def _status(state: str, **facts: str) -> GpuStatus:
    return GpuStatus(state, GPU_STATES[state].format(**facts))


def _broken(error: Exception) -> GpuStatus:
    return _status("broken", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _version(number: int) -> str:
    """CUDA's number for a version, 12040, as people write it: 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"
