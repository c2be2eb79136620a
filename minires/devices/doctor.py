"""What does this machine have, and does its GPU compute the same as NumPy?

`describe_machine` is what `python -m minires doctor` prints. `selftest` is `doctor --gpu-selftest`, for anyone with a
GPU: every operation, forward and backward, and three training steps against NumPy, then speed and memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

from minires import functional as F
from minires import parallel
from minires.backend import Array, array_module, device_of, to_device, to_host
from minires.conv import avg_pool2d, conv2d, conv2d_simple, global_avg_pool, max_pool2d
from minires.data import find_cifar10
from minires.devices import machine
from minires.nn import Module
from minires.norm import batch_norm, batch_norm_simple, layer_norm, layer_norm_simple
from minires.optim import SGD
from minires.resnet import build
from minires.tensor import Tensor, concatenate, pad

# ---- is there a GPU? ------------------------------------------------------------------------------------------------

GPU_STATES = {  # possible results of `gpu_status`, and the fix for each
    "not installed": 'CuPy is not installed; on Linux or Windows with an NVIDIA GPU: pip install -e ".[gpu]"',
    "no driver": "CuPy is installed, but no NVIDIA driver; install one, until the command nvidia-smi shows the GPU: "
    "https://www.nvidia.com/drivers",
    "driver too old": "the NVIDIA driver supports CUDA {driver} at most, CuPy needs {needed} or later; install a newer "
    "driver: https://www.nvidia.com/drivers",
    "no device": "the NVIDIA driver finds no GPU; check what nvidia-smi says, whether CUDA_VISIBLE_DEVICES hides it, "
    "and in a container whether it was started with --gpus all",
    "broken": "CuPy is installed, but cannot compute on the GPU ({reason}); if NVRTC or cuBLAS is missing, install it "
    'with: pip install -e ".[gpu]"',
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
            return _status("driver too old", driver=_cuda_version(driver), needed=_cuda_version(needed))
        if error.status != 100:  # cudaErrorNoDevice
            return _broken(error)
        devices = 0
    if devices == 0:
        return _status("no device")
    try:  # only a computation finds a missing cuBLAS (the product) or NVRTC (the + 1)
        a = cupy.ones((2, 2), np.float32)
        float((a @ a + 1).sum())
        name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    except Exception as error:  # of many kinds; with any of them the GPU can't be used
        return _broken(error)
    return _status("ready", name=name, driver=_cuda_version(runtime.driverGetVersion()), cupy=cupy.__version__)


def _status(state: str, **facts: str) -> GpuStatus:
    return GpuStatus(state, GPU_STATES[state].format(**facts))


def _broken(error: Exception) -> GpuStatus:
    return _status("broken", reason=in_one_line(error))


def _cuda_version(number: int) -> str:
    """CUDA's number for a version, 12040, as people write it: 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def in_one_line(error: Exception) -> str:
    """An error's type and the start of its message: that of a kernel that doesn't compile has hundreds of lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# ---- what this machine has ------------------------------------------------------------------------------------------


def describe_machine() -> str:
    """Versions, processor, threads, BLAS, memory, data sets and GPU, a line each."""
    facts = machine.environment()
    lines = {
        "versions": describe_versions(facts),
        "processor": f"{facts['processor']}, {facts['cores']} cores",
        "threads": describe_threads(),
        "BLAS": describe_blas(),
        "memory": describe_memory(),
        "CIFAR-10": describe_cifar10(),
        "Shapes-10": "always available: minires draws it",
        "GPU": gpu_status().sentence,
    }
    return "\n".join(f"{name:11}{text}" for name, text in lines.items())


def describe_versions(facts: dict[str, Any]) -> str:
    """Versions of Python, minires and NumPy, the git revision and the operating system."""
    versions = [f"{name} {version}" for name, version in facts["versions"].items()]
    git = [f"git {facts['git']}"] if facts["git"] else []
    return ", ".join([*versions, *git, facts["platform"]])


def describe_threads() -> str:
    """How many threads share a batch, and why."""
    try:
        count = parallel.get_num_threads()
    except ValueError as error:
        return str(error)
    if parallel._num_threads:
        return f"{count} (set_num_threads)"
    variable = os.environ.get("MINIRES_THREADS")
    return f"{count} ({f'MINIRES_THREADS={variable}' if variable else 'one for each available core'})"


def describe_blas() -> str:
    """The library behind NumPy's matrix products, and whether minires can limit its threads."""
    limited = any(library["user_api"] == "blas" for library in threadpool_info())
    variable = os.environ.get("OPENBLAS_CORETYPE")
    kernels = f" (kernels chosen by OPENBLAS_CORETYPE={variable})" if variable else ""
    return machine.blas() + kernels + ("" if limited else ", whose threads cannot be limited")


def describe_memory() -> str:
    """The machine's memory, and how much is free."""
    total, available = machine.memory_bytes()
    if not total:
        return "unknown"
    return f"{total / 2**30:.1f} GiB" + (f", {available / 2**30:.1f} GiB available" if available else "")


def describe_cifar10() -> str:
    """The path of CIFAR-10, or how to get it."""
    copies, variable = find_cifar10(), os.environ.get("MINIRES_DATA")
    why = f"MINIRES_DATA={variable}" if variable else "MINIRES_DATA is not set"
    if copies:
        return f"{copies[0].absolute()} ({why})"
    return f"not found ({why}); to download it: python -m minires data fetch"


# ---- the self-test --------------------------------------------------------------------------------------------------

OPERATION_LIMIT = 2e-5  # relative to the largest number; float32 has seven digits, and the order of a sum costs some
TRAINING_LIMIT = 1e-6  # in float64: three steps in float32 leave two digits of some biases
MODELS = ("resnet20", "resnet56")  # whose speed is measured

Operation = tuple[Callable[..., Tensor], list[np.ndarray]]


def selftest(device: str = "gpu", batch: int = 128, steps: int = 10) -> tuple[bool, str]:
    """Compare `device` with NumPy: whether all is well, and a text to paste into an issue. About a minute.

    batch: images per step. steps: how many are timed on `device`. Raises RuntimeError if `device` can't be used.
    """
    from tqdm import tqdm

    to_device(np.zeros(1), device)  # raises now if there is no such device
    start, ops = time.perf_counter(), operations()
    checks: dict[str, Callable[[], str]] = {name: partial(compare_operation, op, device) for name, op in ops.items()}
    checks["three training steps"] = partial(compare_training, device, batch)
    failures, speeds = {}, []
    with tqdm(total=len(checks) + len(MODELS), desc="self-test", leave=False, disable=None) as bar:
        for name, check in checks.items():
            try:
                failures[name] = check()
            except Exception as error:
                failures[name] = in_one_line(error)
            bar.update()
        for model in MODELS:
            try:
                speeds.append(measure(device, model, batch, steps))
            except Exception as error:
                failures[f"training {model}"] = in_one_line(error)
            bar.update()
    passed = not any(failures.values())
    facts = machine.environment()
    lines = [
        "---- minires GPU self-test: please paste all of this into an issue ----",
        describe_versions(facts),
        f"{facts['processor']}, {facts['cores']} cores, threads: {describe_threads()}",
        f"device {device}: {gpu_status().sentence}",
        f"operations, forward and backward: {sum(not failures[name] for name in ops)} of {len(ops)} agree with NumPy",
        f"three training steps of resnet20: {'FAIL' if failures['three training steps'] else 'agree with NumPy'}",
        *speeds,
        *(f"FAIL {name}: {failure}" for name, failure in failures.items() if failure),
        f"{'PASS' if passed else 'FAIL'} in {time.perf_counter() - start:.0f} s",
        "----",
    ]
    return passed, "\n".join(lines)


def operations() -> dict[str, Operation]:
    """Every public operation on tensors, with arrays to try it on; after a comma, a special case of it."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def full(value: float, v: Tensor) -> Array:  # running statistics
        return array_module(v.data).full(v.shape, value, v.dtype)

    x, same, channel, shift = normal(4, 6, 5, 8), normal(4, 6, 5, 8), normal(8), normal(8)
    numbers = normal(3, 6)
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
        "rmatmul": (lambda x: numbers @ x, [rows]),
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
        "log_softmax": (F.log_softmax, [rows]),
        "cross_entropy": (lambda x: F.cross_entropy(x, labels, label_smoothing=0.1), [rows]),
        "dropout": (lambda x: F.dropout(x, 0.3, np.random.default_rng(0)), [x]),
        "linear": (F.linear, [rows, normal(8, 3), normal(3)]),
        "subsample_and_pad": (lambda x: F.subsample_and_pad(x, 2, 16), [x]),
        "conv2d": (lambda x, w: conv2d(x, w, padding=1), [x, normal(3, 3, 8, 4)]),
        "conv2d, stride 2, bias": (lambda x, w, b: conv2d(x, w, b, 2, 1), [x, normal(3, 3, 8, 4), normal(4)]),
        "conv2d, 1x1": (conv2d, [x, normal(1, 1, 8, 4)]),
        "conv2d_simple": (lambda x, w: conv2d_simple(x, w, padding=1), [x, normal(3, 3, 8, 4)]),
        "max_pool2d": (lambda x: max_pool2d(x, 3, 2, 1), [x]),
        "avg_pool2d": (lambda x: avg_pool2d(x, 2), [x]),
        "global_avg_pool": (global_avg_pool, [x]),
        "batch_norm": (lambda x, g, b: batch_norm(x, g, b, full(0, g), full(1, g)), [x, channel, shift]),
        "batch_norm, evaluation": (
            lambda x, g, b: batch_norm(x, g, b, full(0.1, g), full(2, g), training=False),
            [x, channel, shift],
        ),
        "batch_norm_simple": (batch_norm_simple, [x, channel, shift]),
        "layer_norm": (layer_norm, [x, channel, shift]),
        "layer_norm_simple": (layer_norm_simple, [x, channel, shift]),
    }


def compare_operation(operation: Operation, device: str) -> str:
    """What is wrong with an operation's output or gradients on `device`; "" if they agree with NumPy's."""
    expected, found = forward_and_backward(*operation, "cpu"), forward_and_backward(*operation, device)
    names = ["output", *[f"gradient of input {i}" for i in range(len(expected) - 1)]]
    for name, a, b in zip(names, expected, found, strict=True):
        if wrong := difference(a, b, OPERATION_LIMIT):
            return f"the {name} {wrong}"
    return ""


def forward_and_backward(op: Callable[..., Tensor], arrays: list[np.ndarray], device: str) -> list[np.ndarray]:
    """Output and gradients of an operation on `device`, for a random upstream gradient."""
    inputs = [Tensor(to_device(a, device), requires_grad=True) for a in arrays]
    out = op(*inputs)
    if device_of(out.data) != device:
        raise TypeError(f"the output: expected on {device}, got it on {device_of(out.data)}")
    upstream = np.random.default_rng(1).standard_normal(out.shape, np.float32)
    out.backward(to_device(upstream, device))
    return [to_host(out.data), *[to_host(t.grad) for t in inputs]]


def compare_training(device: str, batch: int) -> str:
    """What is wrong with losses, weights and running statistics after three steps on `device`; "" if nothing."""
    results = []
    for where in ("cpu", device):
        net, step = training(where, "resnet20", batch, np.float64)
        losses = np.array([step().item() for _ in range(3)])
        results.append({"losses": losses} | net.state_dict())
    expected, found = results
    for name in expected:
        if wrong := difference(expected[name], found[name], TRAINING_LIMIT):
            return f"{name} {wrong}"
    return ""


def difference(expected: np.ndarray, found: np.ndarray, limit: float) -> str:
    """How `found` differs from `expected`, if by more than `limit` times its largest number."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"is {found.dtype} of shape {found.shape}, expected {expected.dtype} of shape {expected.shape}"
    gap = np.abs(found - expected).max() / (np.abs(expected).max() or 1)
    return "" if gap <= limit else f"differs by {gap:.1e} of its largest number, limit {limit:.0e}"  # NaN too


def training(device: str, model: str, batch: int, dtype: Any = np.float32) -> tuple[Module, Callable[[], Tensor]]:
    """A net on `device`, and a function that trains it for a step and returns the loss."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((batch, 32, 32, 3)).astype(dtype), rng.integers(0, 10, batch)
    net = build(model).astype(dtype).to(device)
    optimiser = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        loss = F.cross_entropy(net(Tensor(to_device(x, device))), y)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return net, step


def measure(device: str, model: str, batch: int, steps: int) -> str:
    """A line with the speed of training on `device` and with NumPy, and the device's peak memory."""
    xp = array_module(to_device(np.zeros(1), device))
    free_pool(xp)
    speed = throughput(device, model, batch, steps)
    peak = pool_bytes(xp)
    numpy_speed = throughput("cpu", model, batch, 2)
    return (
        f"training {model}: {speed:,.0f} images/s, with NumPy {numpy_speed:,.0f}; peak memory {peak / 2**20:,.0f} MiB"
    )


def throughput(device: str, model: str, batch: int, steps: int) -> float:
    """Images per second of training. The first step compiles kernels and does not count."""
    _, step = training(device, model, batch)
    step().item()
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
    loss.item()  # waits until the device has finished
    return batch * steps / (time.perf_counter() - start)


def free_pool(xp: Any) -> None:
    """Release the device memory that CuPy keeps for later."""
    if hasattr(xp, "get_default_memory_pool"):
        xp.get_default_memory_pool().free_all_blocks()


def pool_bytes(xp: Any) -> int:
    """Device memory that CuPy has taken since `free_pool`: its pool grows to the peak and stays there; else 0."""
    return int(xp.get_default_memory_pool().total_bytes()) if hasattr(xp, "get_default_memory_pool") else 0
