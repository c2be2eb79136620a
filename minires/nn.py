"""Layers: operations together with the parameters they learn.

A `Module` is a Python object whose attributes are parameters (Tensors), buffers (plain arrays: running statistics)
and other modules. The names of the attributes, joined by dots, name every parameter: `layer1.0.conv1.weight`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minires import functional as F
from minires.backend import Array, array_module, device_of, generator, to_device, to_host
from minires.conv import conv2d, global_avg_pool, max_pool2d
from minires.norm import batch_norm, layer_norm
from minires.tensor import Tensor, no_grad


class Module:
    """A layer, a block or an entire net. Subclasses set attributes in __init__ and define `forward`.

    Parameters and modules are found in attributes, also in lists, tuples and dicts of them (`self.layers = [...]`);
    `buffers` names the attributes that are arrays to keep but not to learn.
    """

    training = True
    buffers: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, x: Tensor) -> Tensor:
        out = self.forward(x)
        for hook in getattr(_hooks, "active", ()):
            hook(self, out)
        return out

    def modules(self) -> Iterator[tuple[str, Module]]:
        """This module and all inside it, each once, with its dotted name, in the order they were created."""
        return ((name, value) for name, value in _walk("", self, set()) if isinstance(value, Module))

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every learned tensor with its dotted name."""
        return ((name, t) for name, t in _walk("", self, set()) if isinstance(t, Tensor) and t.is_parameter)

    def parameters(self) -> list[Tensor]:
        """Every learned tensor, without duplicates when modules share one."""
        return list({id(p): p for _, p in self.named_parameters()}.values())

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Every array that is kept but not learned, with its dotted name."""
        for prefix, module in self.modules():
            for name in module.buffers:
                yield f"{prefix}.{name}" if prefix else name, getattr(module, name)

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter and buffer, on the host, by name."""
        named = [(name, p.data) for name, p in self.named_parameters()] + list(self.named_buffers())
        return {name: np.array(to_host(array)) for name, array in named}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Copy arrays in by name. One ValueError lists all missing, unexpected and mis-shaped arrays."""
        expected = {name: p.data for name, p in self.named_parameters()} | dict(self.named_buffers())
        problems = [f"missing {name}" for name in expected if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in expected]
        problems += [
            f"{name} is {state[name].shape}, expected {expected[name].shape}"
            for name in expected
            if name in state and state[name].shape != expected[name].shape
        ]
        if problems:
            raise ValueError("load_state_dict: " + "; ".join(problems))
        for name, array in expected.items():
            array[...] = to_device(np.asarray(state[name], array.dtype), device_of(array))

    def train(self, mode: bool = True) -> Module:
        """Training mode: batch norm uses the batch's statistics, dropout drops. Returns the module."""
        for _, module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Evaluation mode: batch norm uses its running statistics, dropout does nothing. Returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            p.zero_grad()

    def to(self, device: str) -> Module:
        """Move all parameters and buffers to a device, "cpu" or "gpu". Returns the module."""
        return self._convert(lambda array: to_device(array, device))

    def astype(self, dtype: Any) -> Module:
        """Convert all parameters and buffers to float32 or float64. Returns the module."""
        return self._convert(lambda array: array.astype(dtype))

    def _convert(self, convert: Callable[[Array], Array]) -> Module:
        for p in self.parameters():
            p.data = convert(p.data)
            p.zero_grad()
        for _, module in self.modules():
            for name in module.buffers:
                setattr(module, name, convert(getattr(module, name)))
        return self


def _walk(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """`value` and everything inside it, with dotted names; each module, list, tuple and dict only once."""
    inside = vars(value) if isinstance(value, Module) else value
    inside = dict(enumerate(inside)) if isinstance(inside, list | tuple) else inside
    if not isinstance(inside, dict):
        yield name, value
    elif id(value) not in seen:
        seen.add(id(value))
        yield name, value
        for key, inner in inside.items():
            yield from _walk(f"{name}.{key}" if name else str(key), inner, seen)


_hooks = threading.local()


@contextmanager
def forward_hook(net: Module, callback: Callable[[str, Module, Tensor], None]) -> Iterator[None]:
    """`with forward_hook(net, callback): net(x)` calls callback(name, module, output) after each module of `net` has
    run: inner modules before the one that contains them, `net` last, under the name "". Each thread has its own hooks.
    """
    names = {module: name for name, module in reversed(list(net.modules()))}  # of a shared module, its first

    def hook(module: Module, output: Tensor) -> None:
        if module in names:
            callback(names[module], module, output)

    before = getattr(_hooks, "active", ())
    _hooks.active = (*before, hook)
    try:
        yield
    finally:
        _hooks.active = before


_evaluation = threading.RLock()


@contextmanager
def evaluation_mode(net: Module) -> Iterator[None]:
    """`with evaluation_mode(net): net(x)`, without a graph; after it each module is in its own mode again.

    One thread at a time: another one would leave, and put the net into training mode, in the middle of ours.
    """
    with _evaluation, no_grad():
        modes = [(module, module.training) for _, module in net.modules()]
        net.eval()
        try:
            yield
        finally:  # for example after Ctrl-C in a notebook
            for module, mode in modes:
                module.training = mode


def parameter(array: np.ndarray) -> Tensor:
    """A learned tensor, float32."""
    return Tensor(array.astype(np.float32), requires_grad=True)


class Conv2d(Module):
    """y = conv2d(x, weight) + bias. x: (N, H, W, C_in); weight: (kernel, kernel, C_in, C_out); y: (N, OH, OW, C_out).

    Initial weights are He's: normal with variance 2 / fan_in, fan_in = kernel^2 C_in, which keeps the size of a signal
    through conv and ReLU (He et al. 2015, https://arxiv.org/abs/1502.01852). No bias by default: batch norm has one.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
        *,
        rng: np.random.Generator,
    ):
        fan_in = kernel * kernel * c_in
        self.weight = parameter(rng.standard_normal((kernel, kernel, c_in, c_out)) * np.sqrt(2 / fan_in))
        self.bias = parameter(np.zeros(c_out)) if bias else None
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Linear(Module):
    """y = x weight + bias. x: (N, C_in); weight: (C_in, C_out). Initial weights normal with deviation `std` (He's by
    default, sqrt(2 / C_in)), biases 0."""

    def __init__(self, c_in: int, c_out: int, std: float | None = None, *, rng: np.random.Generator):
        std = np.sqrt(2 / c_in) if std is None else std
        self.weight = parameter(rng.standard_normal((c_in, c_out)) * std)
        self.bias = parameter(np.zeros(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class BatchNorm2d(Module):
    """Batch norm over (N, H, W) of each channel. gamma: its initial scale."""

    buffers = ("running_mean", "running_var")

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5, gamma: float = 1.0):
        self.weight = parameter(np.full(channels, gamma))
        self.bias = parameter(np.zeros(channels))
        self.running_mean = np.zeros(channels, np.float32)
        self.running_var = np.ones(channels, np.float32)
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        return batch_norm(x, self.weight, self.bias, *running, self.training, self.momentum, self.eps)


class LayerNorm(Module):
    """Layer norm over the last axis."""

    def __init__(self, channels: int, eps: float = 1e-5):
        self.weight = parameter(np.ones(channels))
        self.bias = parameter(np.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class Identity(Module):
    """y = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Zero(Module):
    """y = 0, as a single number."""

    def forward(self, x: Tensor) -> Tensor:
        return Tensor(array_module(x.data).zeros((), x.dtype))


class ReLU(Module):
    """y = max(0, x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class MaxPool2d(Module):
    """The largest of each kernel x kernel patch."""

    def __init__(self, kernel: int, stride: int | None = None, padding: int = 0):
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x, self.kernel, self.stride, self.padding)


class GlobalAvgPool(Module):
    """(N, H, W, C) -> (N, C), the mean over the image."""

    def forward(self, x: Tensor) -> Tensor:
        return global_avg_pool(x)


class Flatten(Module):
    """(N, ...) -> (N, the rest)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), math.prod(x.shape[1:]))  # not -1: a batch may be empty


class Dropout(Module):
    """Dropout with probability p while training. Each call draws from a generator keyed by (seed, call number); give
    every layer its own seed."""

    def __init__(self, p: float, seed: int = 0):
        self.p, self.seed, self.calls = p, seed, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.calls += 1
        return F.dropout(x, self.p, generator(self.seed, "dropout", self.calls))


class Sequential(Module):
    """Modules one after another, named "0", "1", ..."""

    def __init__(self, *modules: Module):
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __iter__(self) -> Iterator[Module]:
        return (value for value in vars(self).values() if isinstance(value, Module))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, i: int) -> Module:
        return list(self)[i]

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x
