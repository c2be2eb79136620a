"""What a net is made of: shapes, parameters, multiply-adds and memory, as in the paper's Table 1.

**Multiply-adds** are counted as the paper does, for one image, in convolutions and linear layers only:

    convolution  OH OW KH KW C F          linear  C F

Biases, norms, ReLUs, pooling and the residual addition count 0: they cost far less. **Activations** are the
bytes of all layers' outputs in one forward pass, about what training keeps for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

from minires.backend import device_of, to_device
from minires.nn import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Identity,
    LayerNorm,
    Linear,
    Module,
    ReLU,
    Sequential,
    Zero,
    evaluation_mode,
    forward_hook,
)
from minires.tensor import Tensor

ATTACHED = (BatchNorm2d, LayerNorm, ReLU, Dropout)  # alone behind a layer, they share that layer's line


@dataclass(frozen=True)
class LayerRow:
    """A layer, or the sum over a block, a stage or the net. `output` is the shape for one image, without N.

    kernels: "3x3,16" is a 3x3 convolution to 16 channels; "/2" behind it is its stride, "+" before it says
    that it is on a shortcut; "linear,10" is a linear layer to 10 features.
    """

    name: str
    kind: str
    kernels: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """A net's layers in the order they run, summed up by block, by stage and in all."""

    input_shape: tuple[int, ...]
    batch: int
    layers: tuple[LayerRow, ...]
    blocks: tuple[LayerRow, ...]
    stages: tuple[LayerRow, ...]
    total: LayerRow

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, tuples and numbers, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Plain text: a line for each block, for each stage (where one has several blocks), and the sum."""
        parts = {"block": self.blocks, "stage": self.stages, "": (self.total,)}
        if len(self.stages) == len(self.blocks):
            del parts["stage"]
        head = ("layers", "output", "parameters", "multiply-adds", "memory")
        groups = [([(title, *head)] if title else []) + [_cells(row) for row in rows] for title, rows in parts.items()]
        widths = [max(map(len, column)) for column in zip(*sum(groups, []), strict=True)]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        size = _shape(self.input_shape)
        lines = [f"{self.total.kind}, input {size}; memory: activations of a batch of {self.batch}"]
        for group in groups:
            lines.append(rule)
            for cells in group:
                name, layers, output, *numbers = map(str.ljust, cells, widths)
                right = [text.strip().rjust(len(text)) for text in numbers]
                lines.append("  ".join([name, layers, output, *right]))
        return "\n".join(lines)


def summarise(net: Module, input_shape: tuple[int, ...] = (32, 32, 3), batch: int = 1) -> Summary:
    """Run one image of zeros through `net` in evaluation mode and record what every layer makes of it.

    input_shape: one image, (H, W, C); (224, 224, 3) for an ImageNet net. batch: activation memory is
    reported for a batch of this size.

    A module that holds others has a line among the layers where it has an output or parameters of its
    own, as a residual block has its sum. Functions that `forward` calls (a global average pool) have no
    line. Parameters that the pass did not use come last, without an output.

    Raises ValueError for a shape or batch below 1, and what the net raises for a shape that it can't process.
    """
    if not input_shape or min(input_shape) < 1 or batch < 1:
        raise ValueError(f"summarise: input_shape and batch must be positive, got {input_shape} and {batch}")
    layers: list[LayerRow] = []
    previous: Tensor | None = None  # the output seen last
    counted: set[int] = set()

    def new_parameters(module: Module) -> int:
        own = {id(p): p.size for p in vars(module).values() if isinstance(p, Tensor) and id(p) not in counted}
        counted.update(own)
        return sum(own.values())

    def record(name: str, module: Module, output: Tensor) -> None:
        nonlocal previous
        if isinstance(module, Identity | Zero):
            return
        own = new_parameters(module)
        handed_on, previous = output is previous, output  # a Sequential returns what its last layer made
        if handed_on and not own and any(isinstance(value, Module) for value in vars(module).values()):
            return
        shape = output.shape[1:]
        adds = prod(shape[:-1]) * module.weight.size if isinstance(module, Conv2d | Linear) else 0
        layers.append(
            LayerRow(
                name,
                type(module).__name__,
                kernel_text(name, module),
                shape,
                own,
                adds,
                0 if handed_on else batch * output.data.nbytes,
            )
        )

    like = next(iter(net.parameters()), Tensor(0))
    x = Tensor(to_device(np.zeros((1, *input_shape), like.dtype), device_of(like.data)))
    with evaluation_mode(net), forward_hook(net, record):
        net(x)

    unused = ((name, module, new_parameters(module)) for name, module in net.modules())
    layers += [LayerRow(name, type(module).__name__, "", (), own, 0, 0) for name, module, own in unused if own]
    blocks = _by_block(net, layers)
    stages = []
    for name, group in groupby(blocks, key=lambda row: stage_of(row.name)):
        rows = list(group)
        stages.append(_sum(name, "stage", f"{len(rows)} blocks", rows) if len(rows) > 1 else rows[0])
    weighted = sum(1 for row in layers if row.multiply_adds and not row.kernels.startswith("+"))
    total = _sum("total", type(net).__name__, f"weighted layers: {weighted}", layers)
    return Summary(tuple(input_shape), batch, tuple(layers), tuple(blocks), tuple(stages), total)


def blocks_of(net: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """What a table or drawing of `net` shows, each with its name: its children, and where one is a Sequential
    (a stage), the children of that."""
    for name, module in vars(net).items():
        if type(module) is Sequential:
            yield from blocks_of(module, f"{prefix}{name}.")
        elif isinstance(module, Module) and not isinstance(module, Identity):
            yield prefix + name, module


def stage_of(block: str) -> str:
    """The stage of a block: "layer1" for "layer1.0"; a block on its own, "conv1", is its own stage."""
    return block.rpartition(".")[0] or block


def kernel_text(name: str, module: Module) -> str:
    """A layer's kernel as `Layer.kernel_text`, "" for one that does not multiply."""
    if not isinstance(module, Conv2d | Linear):
        return ""
    *window, _, features = module.weight.shape
    plus = "+" if "downsample" in name.split(".") else ""
    stride = f"/{module.stride}" if isinstance(module, Conv2d) and module.stride != 1 else ""
    return f"{plus}{'x'.join(map(str, window)) or 'linear'},{features}{stride}"


def _by_block(net: Module, layers: list[LayerRow]) -> list[LayerRow]:
    modules = dict(blocks_of(net))
    groups: dict[str, list[LayerRow]] = {}
    before = ""
    for row in layers:
        parts = row.name.split(".")
        prefixes = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
        block = next((p for p in prefixes if p in modules), type(net).__name__)
        if isinstance(modules.get(block), ATTACHED) and isinstance(modules.get(before), Conv2d | Linear):
            block = before
        groups.setdefault(block, []).append(row)
        before = block
    sums = []
    for name, rows in groups.items():
        kernels = sorted((row.kernels for row in rows if row.kernels), key=lambda text: text.startswith("+"))
        sums.append(_sum(name, type(modules.get(name, net)).__name__, " ".join(kernels), rows))
    return sums


def _sum(name: str, kind: str, kernels: str, rows: Sequence[LayerRow]) -> LayerRow:
    output = next((row.output for row in reversed(rows) if row.output), ())
    return LayerRow(
        name,
        kind,
        kernels,
        output,
        sum(row.parameters for row in rows),
        sum(row.multiply_adds for row in rows),
        sum(row.activation_bytes for row in rows),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _cells(row: LayerRow) -> tuple[str, ...]:
    kib = row.activation_bytes / 1024
    memory = f"{kib / 1024:,.1f} MiB" if kib >= 1024 else f"{kib:.0f} KiB" if kib >= 1 else f"{row.activation_bytes} B"
    return (
        row.name,
        row.kernels or row.kind,
        _shape(row.output),
        f"{row.parameters:,}",
        f"{row.multiply_adds:,}",
        memory,
    )
