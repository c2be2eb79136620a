"""Plain and residual nets, as in He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.

A residual block computes   y = relu(F(x) + shortcut(x)):   its layers learn what to *add* to x. The plain twin of a
net has the same layers and no shortcuts,                   y = relu(F(x)).
"""

from __future__ import annotations

import re

import numpy as np

from minires.conv import global_avg_pool
from minires.functional import add_relu, subsample_and_pad
from minires.nn import BatchNorm2d, Conv2d, Linear, Module, Sequential
from minires.tensor import Tensor


class SubsampleAndPad(Module):
    """Option A: every `stride`-th pixel of x, zeros for new channels; nothing to learn."""

    def __init__(self, c_out: int, stride: int):
        self.c_out, self.stride = c_out, stride

    def forward(self, x: Tensor) -> Tensor:
        return subsample_and_pad(x, self.stride, self.c_out)


class Projection(Sequential):
    """Options B and C: a 1x1 convolution and its batch norm."""

    def __init__(self, c_in: int, c_out: int, stride: int, rng: np.random.Generator):
        super().__init__(Conv2d(c_in, c_out, 1, stride, rng=rng), BatchNorm2d(c_out))


def make_shortcut(option: str | None, c_in: int, c_out: int, stride: int, rng: np.random.Generator) -> Module | None:
    """What stands on a block's shortcut (section 3.3): None where x goes through as it is.

    A: identity, and subsampling with zero channels where the shape changes.  B: projection where the shape changes.
    C: projection everywhere.
    """
    changes = stride != 1 or c_in != c_out
    if option == "C" or (option == "B" and changes):
        return Projection(c_in, c_out, stride, rng)
    return SubsampleAndPad(c_out, stride) if option == "A" and changes else None


class BasicBlock(Module):
    """Two 3x3 convolutions (Figure 5, left):  (N, H, W, c_in) -> (N, H / stride, W / stride, width)."""

    expansion = 1  # channels out, in units of `width`

    def __init__(self, c_in: int, width: int, stride: int, option: str | None, rng: np.random.Generator):
        self.conv1 = Conv2d(c_in, width, 3, stride, padding=1, rng=rng)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, rng=rng)
        self.bn2 = BatchNorm2d(width)
        self.plain = option is None
        self.downsample = make_shortcut(option, c_in, width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        if self.plain:
            return self.bn2(self.conv2(h), relu=True)
        shortcut = self.downsample(x) if self.downsample else x
        return add_relu(self.bn2(self.conv2(h)), shortcut)


class Bottleneck(Module):
    """1x1 to fewer channels, 3x3 on those, 1x1 back to four times as many (Figure 5, right)."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, option: str | None, rng: np.random.Generator):
        self.conv1 = Conv2d(c_in, width, 1, rng=rng)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride, padding=1, rng=rng)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = Conv2d(width, 4 * width, 1, rng=rng)
        self.bn3 = BatchNorm2d(4 * width)
        self.plain = option is None
        self.downsample = make_shortcut(option, c_in, 4 * width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        h = self.bn2(self.conv2(h), relu=True)
        if self.plain:
            return self.bn3(self.conv3(h), relu=True)
        shortcut = self.downsample(x) if self.downsample else x
        return add_relu(self.bn3(self.conv3(h)), shortcut)


class CifarResNet(Module):
    """The nets of section 4.2: a 3x3 convolution, three stages of n blocks, global average pool, linear.

    Stages have `width`, 2 `width`, 4 `width` channels on maps of 32x32, 16x16, 8x8; the first block of the second and
    third has stride 2. option None makes the plain net.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], n: int, *, option: str | None, classes: int,
                 width: int, rng: np.random.Generator):  # fmt: skip
        self.conv1 = Conv2d(3, width, 3, padding=1, rng=rng)
        self.bn1 = BatchNorm2d(width)
        c_in = width

        def stage(width: int, stride: int) -> Sequential:
            nonlocal c_in
            blocks = []
            for i in range(n):
                blocks.append(block(c_in, width, stride if i == 0 else 1, option, rng))
                c_in = width * block.expansion
            return Sequential(*blocks)

        self.layer1 = stage(width, 1)
        self.layer2 = stage(2 * width, 2)
        self.layer3 = stage(4 * width, 2)
        self.fc = Linear(c_in, classes, std=0.01, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, H, W, 3) -> logits (N, classes)."""
        x = self.bn1(self.conv1(x), relu=True)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.fc(global_avg_pool(x))


def build(name: str, *, seed: int = 0, classes: int = 10, shortcut: str = "A", width: int = 16) -> Module:
    """A net by name, its weights drawn from `seed`.

    plainN, resnetN: N = 6n + 2 (basic blocks, n a stage); bottleneckN: N = 9n + 2.
    shortcut: "A", "B" or "C" (section 3.3); plain nets have none.
    """
    if shortcut not in ("A", "B", "C"):
        raise ValueError(f"build: shortcut must be 'A', 'B' or 'C', got {shortcut!r}")
    if classes < 1 or width < 1:
        raise ValueError(f"build: classes and width must be 1 or more, got {classes} and {width}")
    match = re.fullmatch(r"(plain|resnet|bottleneck)(\d+)", name)
    if not match:
        raise ValueError(f"build: no net is called {name!r}; wanted plainN, resnetN (N = 6n + 2) or bottleneckN "
                         "(N = 9n + 2), for example resnet20")  # fmt: skip
    family, depth = match[1], int(match[2])
    layers = 3 if family == "bottleneck" else 2  # in a block
    n, rest = divmod(depth - 2, 3 * layers)
    if n < 1 or rest:
        below = max(1, n)
        raise ValueError(f"build: {name} is not a depth this family has; wanted {3 * layers}n + 2, the nearest are "
                         f"{family}{3 * layers * below + 2} and {family}{3 * layers * (below + 1) + 2}")  # fmt: skip
    block = Bottleneck if family == "bottleneck" else BasicBlock
    option = None if family == "plain" else shortcut
    return CifarResNet(block, n, option=option, classes=classes, width=width, rng=np.random.default_rng(seed))
