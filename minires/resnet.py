"""Plain and residual nets.

Layers that should compute a mapping H(x) can be asked for the difference instead, F(x) = H(x) - x, to which x
is then added. Where the best a block can do is next to nothing, F only has to be nearly 0, and that is easier
to learn than to be nearly the identity. All that changes is the last line of a block:

    plain             y = relu(F(x))
    residual          y = relu(F(x) + shortcut(x))    shortcut(x) is x, or fits x to F's shape
    pre-activation    y = F(x) + shortcut(x)          F begins with norm and ReLU, and none stands on the sum

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
from minires.functional import add_relu, subsample_and_pad
from minires.nn import BatchNorm2d, Conv2d, Linear, MaxPool2d, Module, Sequential
from minires.tensor import Tensor

# ---- shortcuts (section 3.3) -------------------------------------------------------------------------------


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
) -> Module | None:
    """What stands on a block's shortcut; None where x goes through as it is, or where there is no shortcut.

    A: identity, and subsampling with zero channels where the shape changes.  B: projection where the shape
    changes.  C: projection everywhere.
    """
    changes = stride != 1 or c_in != c_out
    if option == "C" or (option == "B" and changes):
        return projection(c_in, c_out, stride, norm, rng)
    return SubsampleAndPad(c_out, stride) if option == "A" and changes else None


# ---- blocks: (N, H, W, c_in) -> (N, H / stride, W / stride, expansion * width) -----------------------------


class BasicBlock(Module):
    """Two 3x3 convolutions (Figure 5, left). option: the shortcut's, None for a plain block."""

    expansion = 1

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
    """1x1 to fewer channels, 3x3 on those, 1x1 back to four times as many (Figure 5, right).

    stride_in: the convolution that has the block's stride. In the paper it is the first, a "1x1", which at
    stride 2 never looks at three quarters of the pixels; torchvision puts it into the "3x3", which sees them
    all.
    """

    expansion = 4

    def __init__(
        self, c_in: int, width: int, stride: int, option: str | None, rng: np.random.Generator, stride_in: str = "3x3"
    ):
        stride1, stride2 = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = Conv2d(c_in, width, 1, stride1, rng=rng)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride2, padding=1, rng=rng)
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


class PreBasicBlock(Module):
    """The basic block with norm and ReLU before each convolution ("Identity Mappings", Figure 1b).

    Where x goes through as it is, no ReLU and no norm stands between it and the next block's sum. A shortcut
    that changes the shape takes the normed and rectified x, as in the authors' code
    (https://github.com/KaimingHe/resnet-1k-layers), and needs no norm of its own.
    """

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, option: str | None, rng: np.random.Generator):
        self.bn1 = BatchNorm2d(c_in)
        self.conv1 = Conv2d(c_in, width, 3, stride, padding=1, rng=rng)
        self.bn2 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, rng=rng)
        self.downsample = make_shortcut(option, c_in, width, stride, rng, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x, relu=True)
        shortcut = self.downsample(h) if self.downsample else x
        h = self.bn2(self.conv1(h), relu=True)
        return self.conv2(h) + shortcut


class PreBottleneck(Module):
    """The bottleneck with norm and ReLU before each convolution; shortcuts as in PreBasicBlock."""

    expansion = 4

    def __init__(
        self, c_in: int, width: int, stride: int, option: str | None, rng: np.random.Generator, stride_in: str = "3x3"
    ):
        stride1, stride2 = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.bn1 = BatchNorm2d(c_in)
        self.conv1 = Conv2d(c_in, width, 1, stride1, rng=rng)
        self.bn2 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride2, padding=1, rng=rng)
        self.bn3 = BatchNorm2d(width)
        self.conv3 = Conv2d(width, 4 * width, 1, rng=rng)
        self.downsample = make_shortcut(option, c_in, 4 * width, stride, rng, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x, relu=True)
        shortcut = self.downsample(h) if self.downsample else x
        h = self.bn2(self.conv1(h), relu=True)
        h = self.bn3(self.conv2(h), relu=True)
        return self.conv3(h) + shortcut


# ---- nets --------------------------------------------------------------------------------------------------

Block = type[BasicBlock] | type[Bottleneck] | type[PreBasicBlock] | type[PreBottleneck]


class ResNet(Module):
    """A stem, stages of blocks, global average pool, linear.

    CIFAR (section 4.2):     stem: 3x3 convolution                      32x32x3   -> 32x32x16
                             stages: 32x32x16, 16x16x32, 8x8x64
    ImageNet (Table 1):      stem: 7x7 convolution / 2, max pool / 2    224x224x3 -> 56x56x64
                             stages: 56x56x64, 28x28x128, 14x14x256, 7x7x512

    These are the maps of basic blocks; bottlenecks put out four times as many channels. Where a stage halves
    the map, its first block does, by stride 2.

    With pre-activation the stem has no norm and ReLU, since the first block begins with them; and as no norm
    and ReLU have met the last block's sum, `bn` and one more ReLU follow it.
    """

    def __init__(
        self,
        block: Block,
        blocks: Sequence[int],
        *,
        imagenet: bool,
        classes: int,
        width: int,
        rng: np.random.Generator,
        **block_options: Any,
    ):
        pre_activation = block in (PreBasicBlock, PreBottleneck)
        c_in = width

        def stage(width: int, count: int, stride: int) -> Sequential:
            nonlocal c_in
            made = []
            for i in range(count):
                made.append(block(c_in, width, stride if i == 0 else 1, rng=rng, **block_options))
                c_in = width * block.expansion
            return Sequential(*made)

        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = Conv2d(3, width, kernel, stride, padding=kernel // 2, rng=rng)
        self.bn1 = None if pre_activation else BatchNorm2d(width)
        self.maxpool = MaxPool2d(3, 2, padding=1) if imagenet else None
        self.layer1 = stage(width, blocks[0], 1)
        self.layer2 = stage(2 * width, blocks[1], 2)
        self.layer3 = stage(4 * width, blocks[2], 2)
        self.layer4 = stage(8 * width, blocks[3], 2) if imagenet else None
        self.bn = BatchNorm2d(c_in) if pre_activation else None
        self.fc = Linear(c_in, classes, std=0.01, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, H, W, 3) -> logits (N, classes)."""
        x = self.conv1(x)
        if self.bn1:
            x = self.bn1(x, relu=True)
        if self.maxpool:
            x = self.maxpool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if stage:
                x = stage(x)
        if self.bn:
            x = self.bn(x, relu=True)
        return self.fc(global_avg_pool(x))


# ---- names -------------------------------------------------------------------------------------------------

IMAGENET: dict[str, tuple[Block, tuple[int, ...]]] = {  # block, and how many in each stage (Table 1)
    "plain18": (BasicBlock, (2, 2, 2, 2)),
    "plain34": (BasicBlock, (3, 4, 6, 3)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
PRE_ACTIVATION: dict[Block, Block] = {BasicBlock: PreBasicBlock, Bottleneck: PreBottleneck}


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
    relu(shortcut(x)) (Goyal et al. 2017, section 5.1, https://arxiv.org/abs/1706.02677). In plain and pre-
    activation blocks a ReLU follows that norm: it would let no gradient through, ever, so these nets refuse.

    Raises ValueError for a name or a setting that doesn't exist.
    """
    match = re.fullmatch(r"(plain|(pre)?(resnet|bottleneck))([1-9][0-9]{0,3})", name)
    if not match:
        raise ValueError(
            f"build: no net is called {name!r}; expected plainN, resnetN, bottleneckN, preresnetN "
            "or prebottleneckN, for example resnet20"
        )
    if shortcut not in ("A", "B", "C", None):
        raise ValueError(f"build: shortcut must be 'A', 'B' or 'C', got {shortcut!r}")
    if stride_in not in ("1x1", "3x3"):
        raise ValueError(f"build: stride_in must be '1x1' or '3x3', got {stride_in!r}")
    family, pre, depth = match[1], match[2], int(match[4])
    if zero_init and (family == "plain" or pre):
        raise ValueError(f"build: zero_init wants blocks that end in relu(norm + shortcut), not {name}'s")
    base = name.removeprefix("pre")
    imagenet = base in IMAGENET
    block, blocks = IMAGENET[base] if imagenet else _cifar_blocks(family, depth)
    classes = classes if classes is not None else 1000 if imagenet else 10
    width = width if width is not None else 64 if imagenet else 16
    if classes < 1 or width < 1:
        raise ValueError(f"build: classes and width must be 1 or more, got {classes} and {width}")

    option = None if family == "plain" else shortcut or ("B" if imagenet else "A")
    options = {"option": option} | ({"stride_in": stride_in} if block is Bottleneck else {})
    net = ResNet(
        PRE_ACTIVATION[block] if pre else block,
        blocks,
        imagenet=imagenet,
        classes=classes,
        width=width,
        rng=np.random.default_rng(seed),
        **options,
    )
    if zero_init:
        for _, module in net.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                last.weight.data[...] = 0
    return net


def _cifar_blocks(family: str, depth: int) -> tuple[Block, tuple[int, ...]]:
    block: Block = Bottleneck if family.endswith("bottleneck") else BasicBlock
    step = 9 if block is Bottleneck else 6  # three stages of blocks with 3 or 2 convolutions
    n, rest = divmod(depth - 2, step)
    if n < 1 or rest:
        below = max(1, n)
        imagenet = ", ".join(name for name in IMAGENET if name.startswith(family))
        raise ValueError(
            f"build: there is no {family}{depth}; expected a depth of {step}n + 2, the nearest "
            f"are {family}{step * below + 2} and {family}{step * (below + 1) + 2}"
            f"{f', or an ImageNet net: {imagenet}' if imagenet else ''}"
        )
    return block, (n, n, n)
