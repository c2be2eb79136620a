"""Plain and residual nets.

Layers that should compute a mapping H(x) can be asked for the difference instead, F(x) = H(x) - x, to which x
is then added. Where the best a block can do is next to nothing, F only has to be nearly 0, and that is easier
to learn than to be nearly the identity. Plain and residual blocks differ in one term of their last line:

    plain             y = relu(F(x))
    residual          y = relu(F(x) + shortcut(x))    shortcut(x) is x, or fits x to F's shape
    pre-activation    y = F(x) + shortcut(x)          F begins with norm and ReLU; nothing follows the sum

The nets are those of He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016
(https://arxiv.org/abs/1512.03385), whose sections and figures are named below; pre-activation is from the
same authors' "Identity Mappings in Deep Residual Networks", ECCV 2016 (https://arxiv.org/abs/1603.05027).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.conv import global_avg_pool
from minires.functional import relu, subsample_and_pad
from minires.nn import BatchNorm2d, Conv2d, Identity, Linear, MaxPool2d, Module, Sequential, Zero
from minires.tensor import Tensor

# ---- shortcuts (section 3.3) ----------------------------------------------------------------------------------------


class SubsampleAndPad(Module):
    """Option A: every `stride`-th pixel of x, zeros for new channels; nothing to learn."""

    def __init__(self, c_out: int, stride: int):
        self.c_out, self.stride = c_out, stride

    def forward(self, x: Tensor) -> Tensor:
        return subsample_and_pad(x, self.stride, self.c_out)


def projection(c_in: int, c_out: int, stride: int, norm: bool, rng: np.random.Generator) -> Sequential:
    """Options B and C: a 1x1 convolution, and a batch norm where the block ends in one."""
    conv = Conv2d(c_in, c_out, 1, stride, rng=rng)
    return Sequential(conv, BatchNorm2d(c_out)) if norm else Sequential(conv)


def make_shortcut(
    option: str | None, c_in: int, c_out: int, stride: int, rng: np.random.Generator, norm: bool = True
) -> Module:
    """The module on a block's shortcut. None: Zero, a single 0 that broadcasts, which makes the block plain.

    A: identity, or subsampling with zero channels where the shape changes.  B: projection where the shape changes.
    C: projection everywhere.
    """
    if option is None:
        return Zero()
    changes = stride != 1 or c_in != c_out
    if option == "C" or (option == "B" and changes):
        return projection(c_in, c_out, stride, norm, rng)
    return SubsampleAndPad(c_out, stride) if changes else Identity()


# ---- blocks: (N, H, W, c_in) -> (N, H / stride, W / stride, expansion * width) --------------------------------------


class Block(Module):
    """What all blocks share: a shortcut. Its attribute has torchvision's name, so that saved weights fit there."""

    expansion = 1
    downsample: Module

    def shortcut(self, x: Tensor) -> Tensor:
        return self.downsample(x)


class BasicBlock(Block):
    """Two 3x3 convolutions (Figure 5, left). shortcut: "A", "B", "C", or None for a plain block.

    zero_init: the last norm starts with gamma = 0, so F(x) = 0 and a new block computes relu(shortcut(x)).
    """

    def __init__(
        self,
        c_in: int,
        width: int,
        stride: int,
        shortcut: str | None,
        rng: np.random.Generator,
        zero_init: bool = False,
    ):
        self.conv1 = Conv2d(c_in, width, 3, stride, padding=1, rng=rng)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, rng=rng)
        self.bn2 = BatchNorm2d(width, gamma=0 if zero_init else 1)
        self.downsample = make_shortcut(shortcut, c_in, width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        h = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class Bottleneck(Block):
    """1x1 to fewer channels, 3x3 on those, 1x1 back to four times as many (Figure 5, right).

    stride_in: the convolution that has the block's stride. In the paper it is the first, a "1x1", which at stride 2
    never reads three quarters of the pixels; torchvision puts it into the "3x3", which reads them all. zero_init: as
    in BasicBlock.
    """

    expansion = 4

    def __init__(
        self,
        c_in: int,
        width: int,
        stride: int,
        shortcut: str | None,
        rng: np.random.Generator,
        stride_in: str = "3x3",
        zero_init: bool = False,
    ):
        stride1, stride2 = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = Conv2d(c_in, width, 1, stride1, rng=rng)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride2, padding=1, rng=rng)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = Conv2d(width, 4 * width, 1, rng=rng)
        self.bn3 = BatchNorm2d(4 * width, gamma=0 if zero_init else 1)
        self.downsample = make_shortcut(shortcut, c_in, 4 * width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        h = relu(self.bn1(self.conv1(x)))
        h = relu(self.bn2(self.conv2(h)))
        return relu(self.bn3(self.conv3(h)) + self.shortcut(x))


class PreBasicBlock(Block):
    """The basic block with norm and ReLU before each convolution ("Identity Mappings", Figure 1b).

    Identity shortcuts carry x unchanged through many blocks: no norm or ReLU is on their path. Any other shortcut
    takes the normalised and rectified x, as in the authors' code
    (https://github.com/KaimingHe/resnet-1k-layers), and needs no norm of its own.
    """

    def __init__(self, c_in: int, width: int, stride: int, shortcut: str | None, rng: np.random.Generator):
        self.bn1 = BatchNorm2d(c_in)
        self.conv1 = Conv2d(c_in, width, 3, stride, padding=1, rng=rng)
        self.bn2 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, rng=rng)
        self.downsample = make_shortcut(shortcut, c_in, width, stride, rng, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        h = relu(self.bn1(x))
        start = x if isinstance(self.downsample, Identity) else h
        return self.conv2(relu(self.bn2(self.conv1(h)))) + self.shortcut(start)


class PreBottleneck(Block):
    """The bottleneck with norm and ReLU before each convolution; shortcuts as in PreBasicBlock."""

    expansion = 4

    def __init__(
        self, c_in: int, width: int, stride: int, shortcut: str | None, rng: np.random.Generator, stride_in: str = "3x3"
    ):
        stride1, stride2 = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.bn1 = BatchNorm2d(c_in)
        self.conv1 = Conv2d(c_in, width, 1, stride1, rng=rng)
        self.bn2 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride2, padding=1, rng=rng)
        self.bn3 = BatchNorm2d(width)
        self.conv3 = Conv2d(width, 4 * width, 1, rng=rng)
        self.downsample = make_shortcut(shortcut, c_in, 4 * width, stride, rng, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        h = relu(self.bn1(x))
        start = x if isinstance(self.downsample, Identity) else h
        h = relu(self.bn2(self.conv1(h)))
        h = relu(self.bn3(self.conv2(h)))
        return self.conv3(h) + self.shortcut(start)


# ---- nets -----------------------------------------------------------------------------------------------------------


class ResNet(Module):
    """A stem, stages of blocks, global average pool, linear.

    CIFAR (section 4.2):     stem: 3x3 convolution                      32x32x3   -> 32x32x16
                             stages: 32x32x16, 16x16x32, 8x8x64
    ImageNet (Table 1):      stem: 7x7 convolution / 2, max pool / 2    224x224x3 -> 56x56x64
                             stages: 56x56x64, 28x28x128, 14x14x256, 7x7x512

    These are the maps of basic blocks; bottlenecks output four times as many channels. Where a stage halves the map,
    its first block does, by stride 2.

    With pre-activation the stem has no norm and ReLU, since the first block begins with them; and as no norm and ReLU
    follow the last block's sum, `bn` and one more ReLU come after it.
    """

    def __init__(
        self,
        block: type[Any],
        blocks: Sequence[int],
        *,
        imagenet: bool,
        classes: int,
        width: int,
        rng: np.random.Generator,
        **block_options: Any,
    ):
        self.pre_activation = block in (PreBasicBlock, PreBottleneck)
        c_in = width

        def stage(channels: int, count: int, stride: int) -> Sequential:
            nonlocal c_in
            made = []
            for s in [stride] + [1] * (count - 1):
                made.append(block(c_in, channels, s, rng=rng, **block_options))
                c_in = channels * block.expansion
            return Sequential(*made)

        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = Conv2d(3, width, kernel, stride, padding=kernel // 2, rng=rng)
        self.bn1 = Identity() if self.pre_activation else BatchNorm2d(width)
        self.maxpool = MaxPool2d(3, 2, padding=1) if imagenet else Identity()
        self.layer1 = stage(width, blocks[0], 1)
        self.layer2 = stage(2 * width, blocks[1], 2)
        self.layer3 = stage(4 * width, blocks[2], 2)
        self.layer4 = stage(8 * width, blocks[3], 2) if imagenet else Identity()
        self.bn = BatchNorm2d(c_in) if self.pre_activation else Identity()
        self.fc = Linear(c_in, classes, std=0.01, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, H, W, 3) -> logits (N, classes)."""
        x = self.bn1(self.conv1(x))
        if not self.pre_activation:
            x = relu(x)
        x = self.layer3(self.layer2(self.layer1(self.maxpool(x))))
        x = self.bn(self.layer4(x))
        if self.pre_activation:
            x = relu(x)
        return self.fc(global_avg_pool(x))


# ---- names ----------------------------------------------------------------------------------------------------------

IMAGENET: dict[str, tuple[type[Block], tuple[int, ...]]] = {  # block, and how many in each stage (Table 1)
    "plain18": (BasicBlock, (2, 2, 2, 2)),
    "plain34": (BasicBlock, (3, 4, 6, 3)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def build(
    name: str,
    *,
    seed: int = 0,
    classes: int | None = None,
    shortcut: str | None = None,
    width: int | None = None,
    stride_in: str = "3x3",
    zero_init: bool = False,
) -> ResNet:
    """A net by name, its weights drawn from `seed`.

    resnet18, 34, 50, 101, 152; plain18, 34: the ImageNet nets.
    Every other resnetN, plainN:             the CIFAR net of depth N = 6n + 2, n basic blocks a stage.
    bottleneckN:                             the CIFAR net of depth N = 9n + 2, n bottlenecks a stage.
    preresnetN, prebottleneckN:              the same nets with pre-activation.
    (50 and 152 are 6n + 2 too; these two names mean the ImageNet nets.)

                 ImageNet    CIFAR
    classes      1000        10
    shortcut     "B"         "A"      "A", "B" or "C" (section 3.3); plain nets have none
    width        64          16       channels of the first stage

    stride_in: "3x3" (torchvision) or "1x1" (the paper), the convolution of a bottleneck that has the stride.
    zero_init: start the last norm of each block with gamma = 0, so that a new block computes
    relu(shortcut(x)) (Goyal et al. 2017, section 5.1, https://arxiv.org/abs/1706.02677). Plain and pre-
    activation nets refuse it: there a ReLU follows that norm, and would block the gradient for good.

    Raises ValueError for a name or a setting that doesn't exist.
    """
    match = re.fullmatch(r"(plain|(pre)?(resnet|bottleneck))([1-9][0-9]{0,3})", name)
    if not match:
        raise ValueError(
            f"build: expected plainN, resnetN, bottleneckN, preresnetN or prebottleneckN, for example resnet20, "
            f"got {name!r}"
        )
    family, pre, depth = match[1], match[2], int(match[4])
    base = name.removeprefix("pre")
    imagenet = base in IMAGENET
    block, blocks = IMAGENET[base] if imagenet else _cifar_blocks(family, depth)
    classes = classes if classes is not None else 1000 if imagenet else 10
    width = width if width is not None else 64 if imagenet else 16
    _check_build(shortcut, stride_in, classes, width)
    if zero_init and (family == "plain" or pre):
        raise ValueError(f"build: zero_init needs blocks that end in relu(norm + shortcut), not {name}'s")

    options: dict[str, Any] = {"shortcut": None if family == "plain" else shortcut or ("B" if imagenet else "A")}
    options |= {"stride_in": stride_in} if block is Bottleneck else {}
    options |= {"zero_init": True} if zero_init else {}
    if pre:
        block = PreBottleneck if block is Bottleneck else PreBasicBlock
    rng = np.random.default_rng(seed)
    return ResNet(block, blocks, imagenet=imagenet, classes=classes, width=width, rng=rng, **options)


def _check_build(shortcut: str | None, stride_in: str, classes: int, width: int) -> None:
    if shortcut not in ("A", "B", "C", None):
        raise ValueError(f"build: expected shortcut 'A', 'B' or 'C', got {shortcut!r}")
    if stride_in not in ("1x1", "3x3"):
        raise ValueError(f"build: expected stride_in '1x1' or '3x3', got {stride_in!r}")
    if classes < 1 or width < 1:
        raise ValueError(f"build: expected classes and width of at least 1, got {classes} and {width}")


def _cifar_blocks(family: str, depth: int) -> tuple[type[Block], tuple[int, ...]]:
    block = Bottleneck if family.endswith("bottleneck") else BasicBlock
    step = 9 if block is Bottleneck else 6  # three stages of blocks with 3 or 2 convolutions
    n, rest = divmod(depth - 2, step)
    if n < 1 or rest:
        nearest = [f"{family}{step * k + 2}" for k in (max(1, n), max(1, n) + 1)]
        imagenet = [name for name in IMAGENET if name.startswith(family)]
        also = f", or an ImageNet net: {', '.join(imagenet)}" if imagenet else ""
        raise ValueError(
            f"build: expected a depth of {step}n + 2, the nearest are {' and '.join(nearest)}{also}; "
            f"got {family}{depth}"
        )
    return block, (n, n, n)
