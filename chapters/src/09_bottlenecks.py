# %% [markdown]
# # 9. Bottlenecks
#
# **After this chapter you can**
# - count the weights and the multiply-adds of any net with a pencil, and check yourself with `mr.summarise`;
# - build a bottleneck block, and say what it saves and what it gives up;
# - explain how ResNet-50 can cost as much as ResNet-34, and a fifth of VGG-19;
# - read the listing of ResNet-50 that most people meet first, and find its two mistakes;
# - move weights to PyTorch and back without mixing up a single axis.
#
# **You need** chapter 4 (what a 1x1 convolution does) and chapter 7 (shortcuts, and the options A, B and C).
#
# **Time**: about 60 minutes to read and run, 75 for the exercises.

# %% tags=["hide-input"]
# Run this first. If minires is missing, it installs the checkout that contains this notebook.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minires") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".."], check=True)
    sys.path.insert(0, "..")

# %%
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import minires as mr
from minires import nn, plots
from minires.course import drawings
from minires.data import Loader, Normalise
from minires.optim import one_cycle
from minires.paper import tables
from minires.paper.records import checkout
from minires.resnet import BasicBlock, Bottleneck
from minires.training.checkpoint import load_state

plots.notebook_style()

# %% [markdown]
# ## 1. What a layer costs
#
# Depth helps, if there are shortcuts. So let us go deeper. But each layer costs time, and on ImageNet a net of 34
# layers already trains for days. How deep can you go for the same price?
#
# A convolution has two prices:
#
# - its **weights**: $KH \cdot KW \cdot C \cdot F$. They must be stored, and learned;
# - its **multiply-adds**: at every position of the output each weight is used once. So it is positions times weights,
#   $OH \cdot OW \cdot KH \cdot KW \cdot C \cdot F$. That is the work, for one image.
#
# Take a typical layer of ResNet-34: maps of 56x56 pixels, 64 channels in, 64 out, a 3x3 kernel.

# %%
weights = 3 * 3 * 64 * 64
print(f"{weights:,} weights, used at {56 * 56:,} positions: {56 * 56 * weights:,} multiply-adds")

layer = nn.Conv2d(64, 64, 3, padding=1, rng=np.random.default_rng(0))
counted = mr.summarise(layer, (56, 56, 64)).total
print(f"the library counts {counted.parameters:,} and {counted.multiply_adds:,}")

# %% [markdown]
# **Predict.** Make the layer four times as wide: 256 channels in, 256 out. What happens to the price? And what if the
# kernel then shrinks to 1x1?

# %%
for kernel, c, f in ((3, 64, 64), (3, 256, 256), (1, 256, 256), (1, 256, 64)):
    weights = kernel * kernel * c * f
    print(
        f"{kernel}x{kernel}, {c:3} -> {f:3} channels: {weights:9,} weights, {56 * 56 * weights / 1e6:8,.1f} million"
        f" multiply-adds, {weights / (9 * 64 * 64):5.2f} times the first"
    )

# %% [markdown]
# Four times as wide costs sixteen times as much, because channels count twice: those in and those out. The kernel adds
# a factor of nine.
#
# So the expensive thing is a 3x3 kernel *on many channels*. A 3x3 on few channels is cheap. A 1x1 on many channels is
# cheap. Can we have both, and no 3x3 on many channels at all?
#
# ## 2. The bottleneck
#
# Yes. Spread the work over three layers:
#
# 1. a **1x1** convolution mixes 256 channels down to 64;
# 2. a **3x3** looks around, on those 64 only;
# 3. a **1x1** mixes them up to 256 again, so that they can be added to what came in.
#
# If we draw the number of channels as width, it looks like its name:

# %%
rng = np.random.default_rng(0)
narrow, wide = BasicBlock(64, 64, 1, "B", rng), BasicBlock(256, 256, 1, "B", rng)
block = Bottleneck(256, 64, 1, "B", rng)
drawings.widths({"basic block": narrow, "bottleneck": block, "a wide basic block": wide})

# %% [markdown]
# Below each kernel is the number of its weights. Add them up yourself before you go on:
#
# - basic block on 64 channels: $2 \cdot 9 \cdot 64 \cdot 64 = 73{,}728$;
# - bottleneck on 256 channels: $256 \cdot 64 + 9 \cdot 64 \cdot 64 + 64 \cdot 256 = 69{,}632$;
# - basic block on 256 channels: $2 \cdot 9 \cdot 256 \cdot 256 = 1{,}179{,}648$.
#
# The bottleneck carries four times as many channels as the basic block on the left, has three layers instead of two,
# and costs less. Compared with the basic block of the same width, on the right, it costs a seventeenth.
#
# The library's count has a little more: each norm has a gamma and a beta for each channel.

# %%
print(mr.summarise(block, (56, 56, 256)).table())

# %% [markdown]
# What does it give up?
#
# - The 3x3 sees 64 mixtures of the channels, not all 256. Each block has to choose what is worth looking at.
# - It looks around once instead of twice. A basic block sees 5x5 pixels of its input, a bottleneck 3x3.
# - Memory: look at the last column of the table. It is the wide maps that fill it, and they cost hardly any
#   multiply-adds. Training keeps all of these numbers for the backward pass. We will meet them again.
#
# So a bottleneck is *not* a better block. It is a cheaper one, and the savings go into depth. The paper says so: deeper
# nets of basic blocks gain from depth too, but they cost more (section 4.1).
#
# There is no surprise in the code: `Bottleneck.forward` is `BasicBlock.forward` with one more line.
#
# ## 3. What the shortcut must not cost
#
# The shortcut joins the two *wide* ends. With option C (chapter 7) there would be a projection on every shortcut: a 1x1
# convolution from 256 to 256 channels.
#
# **Predict.** How much would that add to the block?

# %%
for shortcut in "BC":
    total = mr.summarise(Bottleneck(256, 64, 1, shortcut, rng), (56, 56, 256)).total
    print(f"option {shortcut}: {total.parameters:8,} parameters, {total.multiply_adds:12,} multiply-adds")

# %% [markdown]
# It would double the price. In a basic block a projection is a ninth of each 3x3, a small extra. In a bottleneck it is
# as large as all the rest. That is why the identity shortcut matters even more here: it is free, and nothing else would
# be cheap. Bottleneck nets have projections only where the shape changes (option B).
#
# ## 4. From 34 layers to 50
#
# ResNet-34 has 16 basic blocks: 3, 4, 6 and 3 in its four stages. With the first convolution and the linear layer that
# makes $16 \cdot 2 + 2 = 34$ layers. Replace every block by a bottleneck:
#
# $$ 16 \cdot 3 + 2 = 50. $$
#
# Nothing else changes. And the price?

# %%
summaries = {}
for depth in (18, 34, 50, 101, 152):
    net = mr.build(f"resnet{depth}", stride_in="1x1")  # section 6 says what stride_in is
    summaries[depth] = mr.summarise(net, (224, 224, 3))

print(f"{'':10}{'multiply-adds, millions':>26}{'parameters, thousands':>26}{'activations, MiB':>20}")
print(f"{'':10}{'34 layers':>14}{'50 layers':>12}{'34':>14}{'50':>12}{'34':>12}{'50':>8}")
rows = [(*summaries[depth].stages, summaries[depth].total) for depth in (34, 50)]
for a, b in zip(*rows, strict=True):
    print(
        f"{a.name:10}{a.multiply_adds / 1e6:14,.0f}{b.multiply_adds / 1e6:12,.0f}"
        f"{a.parameters / 1e3:14,.0f}{b.parameters / 1e3:12,.0f}"
        f"{a.activation_bytes / 2**20:12.1f}{b.activation_bytes / 2**20:8.1f}"
    )

# %%
a, b = summaries[34].total, summaries[50].total
print(f"50 layers cost {b.multiply_adds / a.multiply_adds:.2f} times the multiply-adds of 34,")
print(f"{b.parameters / a.parameters:.2f} times the parameters,")
print(f"{b.activation_bytes / a.activation_bytes:.1f} times the memory for activations")

# %% [markdown]
# Sixteen more layers, for 5 % more work. (Parameters grow a little more: the last maps have 2,048 channels instead of
# 512, so the linear layer after them has four times as many weights.) Memory is what the price list hides.
#
# Look along the stages of any of these nets, and something odd turns up:

# %%
for row in summaries[34].blocks:
    if row.name.endswith(".1"):
        print(f"{row.name}: {row.kernels:18} on {row.output[0]:2}x{row.output[1]:<2} {row.multiply_adds:,}")

# %% [markdown]
# Every block costs the same, to the last multiplication (except the first of each stage). From stage to stage the map
# has half the height and half the width, so a quarter of the positions. The channels double, in and out, so there are
# four times as many weights. The two cancel. The designers chose it this way: no stage is the expensive one.
#
# ## 5. A fifth of VGG-19
#
# Before ResNets, VGG-19 was among the nets to beat: 16 convolutions, all 3x3, and three linear layers. The list of its
# convolutions fits on one line.
#
# **Predict.** ResNet-50 has two and a half times as many layers. Which of the two takes more multiply-adds?

# %%
size, c, work, stored, largest = 224, 3, 0, 0, 0
for layer in "64 64 pool 128 128 pool 256 256 256 256 pool 512 512 512 512 pool 512 512 512 512 pool".split():
    if layer == "pool":
        size //= 2
        continue
    f = int(layer)
    adds = size * size * (3 * 3 * c * f)
    work, stored, largest = work + adds, stored + 9 * c * f + f, max(largest, adds)  # VGG has biases
    c = f
for i, o in ((size * size * c, 4096), (4096, 4096), (4096, 1000)):  # the linear layers
    work, stored = work + i * o, stored + i * o + o

resnet = summaries[50].total
for name, adds, parameters in (("VGG-19", work, stored), ("ResNet-50", resnet.multiply_adds, resnet.parameters)):
    print(f"{name:10} {adds / 1e9:5.2f} billion multiply-adds, {parameters / 1e6:5.1f} million parameters")
print(f"ResNet-50 takes {resnet.multiply_adds / work:.1%} of VGG-19's work")
print(f"\nVGG's largest convolution alone:  {largest / 1e9:.2f} billion multiply-adds")
print(f"VGG's first linear layer alone: {7 * 7 * 512 * 4096 / 1e6:.1f} million weights")

# %% [markdown]
# A fifth. What does VGG spend its work on? Its second layer is a 3x3 on 64 channels of *224x224* pixels, and that one
# layer costs half a ResNet-50. A ResNet shrinks the image first: stride 2 in the first convolution, stride 2 in the
# pooling, and the stages start at 56x56, a sixteenth of the positions.
#
# And VGG's parameters? Most are in one linear layer that has separate weights for every position of the last map. A
# ResNet averages over the map first (global average pooling, chapter 4). None of this has to do with residual learning.
# It is good housekeeping.
#
# ## 6. The family, block by block
#
# Three nets follow the same plan, with more and more blocks: 3, 4, 6, 3 for 50 layers; 3, 4, 23, 3 for 101; 3, 8, 36, 3
# for 152.

# %%
paper = {18: 1.8, 34: 3.6, 50: 3.8, 101: 7.6, 152: 11.3}  # Table 1, billions of multiply-adds
for depth, found in summaries.items():
    counts = [sum(row.name.startswith(f"layer{i}.") for row in found.blocks) for i in (1, 2, 3, 4)]
    total = found.total
    print(
        f"ResNet-{depth:<4} blocks {str(counts):15} {total.parameters:11,} parameters, "
        f"{total.multiply_adds / 1e9:6.3f} billion multiply-adds (the paper: {paper[depth]})"
    )

# %% tags=["hide-input"]
figure, (bars, errors) = plt.subplots(1, 2, figsize=(8.5, 3.4), width_ratios=(1.5, 1))
names = [f"ResNet-{depth}" for depth in summaries]
left = np.zeros(len(names))
styles = zip(("layer1", "layer2", "layer3", "layer4"), plots.COLOURS, ("", "//", "..", "xx"), strict=False)
for stage, colour, hatch in styles:
    part = [next(row for row in s.stages if row.name == stage).multiply_adds / 1e9 for s in summaries.values()]
    bars.barh(names, part, left=left, color=colour, hatch=hatch, edgecolor="white", label=stage)
    left += part
rest = [s.total.multiply_adds / 1e9 for s in summaries.values()] - left
bars.barh(names, rest, left=left, color="#bbbbbb", label="first and last layer")
bars.barh(["VGG-19"], [work / 1e9], color="#777777")
bars.invert_yaxis()
bars.set_xlabel("multiply-adds per image, billions")
bars.legend(fontsize=8, loc="upper right")
reported = {18: 27.88, 34: 24.52, 50: 22.85, 101: 21.75, 152: 21.43}
x = [summaries[depth].total.multiply_adds / 1e9 for depth in reported]
errors.plot(x, list(reported.values()), "o-")
for depth, at in zip(reported, x, strict=True):
    errors.annotate(str(depth), (at, reported[depth]), (5, 5), textcoords="offset points", fontsize=9)
errors.set(xlabel="multiply-adds, billions", ylabel="top-1 error on ImageNet (%)", xlim=(0, 13), ylim=(20.5, 29))
errors.set_title("errors as the paper reports them", fontsize=9)
errors.grid(alpha=0.3)
plt.show()

# %% [markdown]
# On the left: where the work is. Nearly all extra blocks go into the third stage, with maps of 14x14. And even 152
# layers cost less than VGG's 19.
#
# On the right: what the work buys (errors from the paper's Tables 2 and 3, ten crops, 18 layers with option A, the
# others with B; we have not trained these nets). From 34 to 50 the point hardly moves to the right, yet the error falls
# clearly. That step is due to the bottleneck: 16 more layers and wider maps, with 17 % more parameters.
#
# Here is ResNet-50 with all its blocks. Find the first block of each stage: it has a `+`, the projection on its
# shortcut, and a `/2`, its stride (except in the first stage, which only widens 64 channels to 256).

# %%
print(summaries[50].table().split("\nstage")[0])

# %% [markdown]
# ### Where should the stride be?
#
# The first block of a stage has three convolutions, and one of them must have stride 2. The paper puts it into the
# first 1x1, as the table above shows. torchvision puts it into the 3x3, and so does minires by default (`stride_in`).
#
# **Predict.** A 1x1 kernel with stride 2: which pixels of its input can influence the output at all?

# %%
seen = {}
for stride_in in ("1x1", "3x3"):
    first = Bottleneck(8, 4, 2, "B", np.random.default_rng(0), stride_in).eval()
    x = mr.Tensor(rng.standard_normal((32, 8, 8, 8), np.float32), requires_grad=True)
    y = first(x)
    y.backward(rng.standard_normal(y.shape, np.float32))
    seen[f"stride in the {stride_in}"] = (x.grad != 0).any(axis=(0, 3)).astype(int)
drawings.numbers(seen)

# %% [markdown]
# A 1 marks a pixel that got any gradient, in any of 32 images. With the stride in the 1x1, three quarters of the pixels
# get none: the block is blind to them, on the shortcut as well. The 3x3 sees them all. What does sight cost?

# %%
ours = mr.summarise(mr.build("resnet50"), (224, 224, 3)).total
print(f"stride in the 1x1: {resnet.multiply_adds:,}   stride in the 3x3: {ours.multiply_adds:,} multiply-adds")
print(f"the same {ours.parameters:,} parameters: {ours.parameters == resnet.parameters}")

# %% [markdown]
# 6 % more work, the same weights. This is why some sources say 3.8 and others 4.1 billion for "ResNet-50".
#
# ## 7. The listing you may have seen
#
# Many people meet ResNet-50 as a page of Keras code with two functions, `conv_block` and `identity_block`. It was
# written in 2016 and has been copied ever since. Now you can read it. This is how its names translate:
#
# | in the listing | here |
# | --- | --- |
# | `identity_block`, filters 64, 64, 256 | `Bottleneck(256, 64, 1, "B")`: no layer on the shortcut |
# | `conv_block`, the same filters, strides 1 | `Bottleneck(64, 64, 1, "B")`: a projection, as channels change |
# | `conv_block`, filters 128, 128, 512, strides 2 | `Bottleneck(256, 128, 2, "B", stride_in="1x1")` |
# | stages 2, 3, 4, 5 | `layer1`, `layer2`, `layer3`, `layer4` |
# | blocks a, b, c, ... | `.0`, `.1`, `.2`, ... |
# | `res3b_branch2a` (first of three) | `layer2.1.conv1` |
# | `bn3b_branch2a` | `layer2.1.bn1` |
# | `res3a_branch1`, `bn3a_branch1` | `layer2.0.downsample.0` and `.1` |
# | zero padding by 3, then 7x7 "valid" | `conv1` with `padding=3` |
# | max pooling 3x3, strides 2 | `maxpool`; ours pads by 1 (56x56 pixels), some copies don't (55x55) |
# | average pooling 7x7, then flatten | `global_avg_pool` |
# | a dense layer with softmax | `fc`; the softmax is in `mr.cross_entropy` |
#
# Its weights have the same layout as ours, `(KH, KW, C, F)`, and its images are channel last too. The stride is in the
# 1x1, as in the paper.
#
# **The first mistake: biases.** Keras gives a convolution a bias by default, and the listing does not turn it off.
# People quote its size as 25,636,712 parameters. Ours has 25,557,032.
#
# **Predict.** Are these 79,680 numbers the biases? There is one for each output channel of a convolution. Count them:
# the convolutions of a bottleneck of width $w$ have $w + w + 4w$ output channels, and a projection $4w$.

# %%
by_hand = 64  # the first convolution
for blocks, w in zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True):
    by_hand += blocks * (w + w + 4 * w) + 4 * w  # one projection per stage
net = mr.build("resnet50")
convs = [module for _, module in net.modules() if isinstance(module, nn.Conv2d)]
print(f"{len(convs)} convolutions, {sum(conv.weight.shape[-1] for conv in convs):,} channels out; by hand {by_hand:,}")
print(f"25,636,712 - 25,557,032 = {25_636_712 - 25_557_032:,} = {(25_636_712 - 25_557_032) / by_hand:g} x {by_hand:,}")

# %% [markdown]
# Exactly three times as many! Only a third of the difference is biases. A norm follows each convolution, and each norm
# keeps a running mean and a running variance for each channel. Keras counts these two among its "total parameters", as
# "non-trainable" ones. We call them buffers and don't count them, since they are not learned.

# %%
buffers = sum(array.size for _, array in net.named_buffers())
print(f"ours:                  {ours.parameters:,}")
print(f"+ a bias per channel:  {ours.parameters + by_hand:,}   (what Keras calls trainable)")
print(f"+ mean and variance:   {ours.parameters + by_hand + buffers:,}   (what Keras calls total)")

# %% [markdown]
# So the mistake itself is 26,560 biases. Is it a mistake at all? What does a bias do before a norm? **Predict**, then
# look: the same convolution without a bias, and with one of about 10.

# %%
x = mr.Tensor(rng.standard_normal((16, 8, 8, 8)))
w = mr.Tensor(rng.standard_normal((3, 3, 8, 8)), requires_grad=True)
bias = mr.Tensor(10 * rng.standard_normal(8), requires_grad=True)
gamma, beta = mr.Tensor(np.ones(8)), mr.Tensor(np.zeros(8))


def normed(bias):
    return mr.batch_norm(mr.conv2d(x, w, bias, padding=1), gamma, beta, np.zeros(8), np.ones(8))


y = normed(bias)
print(f"largest change of the output: {np.abs(y.data - normed(None).data).max():.0e}")
y.backward(rng.standard_normal(y.shape))
print(f"largest gradient: {np.abs(w.grad).max():.0e} of a weight, {np.abs(bias.grad).max():.0e} of a bias")

# %% [markdown]
# Nothing. The norm subtracts the mean of each channel, and the bias with it. The gradient of the bias is zero up to
# rounding, so it never learns. It costs memory and time, but it does no harm. The norm's own beta comes after the
# subtraction and does the job of a bias.
#
# > **Aside: when a bias is right.** In evaluation mode the mean and variance are constants, and the norm is a scale and
# > a shift of each channel. Then the scale can be multiplied into the convolution's weights, and what is left over *is*
# > a bias: one layer instead of two. Programs that only run nets do that. It is exercise 9.5.
#
# **The second mistake: a pooling that pools nothing.** In one copy of the listing the 7x7 average pooling became
# `AveragePooling2D((1, 1))`. The mean of one number is that number:

# %%
last = mr.Tensor(rng.standard_normal((2, 7, 7, 2048), np.float32))
print("the same as before:", np.array_equal(mr.avg_pool2d(last, 1).data, last.data))
print(f"features for the linear layer: {2048:,} with global pooling, {7 * 7 * 2048:,} without")
print(f"its weights for 1,000 classes: {2048 * 1000:,} and {7 * 7 * 2048 * 1000:,}")

# %% [markdown]
# The linear layer alone would have four times as many weights as all of ResNet-50. Why did nobody notice? For images of
# 32x32 pixels the last map is 1x1, and there is nothing left to pool. The mistake waits for the first larger image.
#
# The lessons for reading other people's nets: count the parameters and compare; and for each layer, ask what would
# change without it.
#
# ## 8. A bottleneck net learns
#
# Now a small one, live: `bottleneck20`, three stages with two bottlenecks each, on images of 16x16 pixels so that it is
# quick. We compare it with its relative made of basic blocks, `resnet14`, which also has two blocks per stage.

# %%
data = mr.open_data("auto")


def half(images):
    """The mean of every 2x2 pixels: (N, 32, 32, 3) -> (N, 16, 16, 3)."""
    n = len(images)
    return images.reshape(n, 16, 2, 16, 2, 3).mean(axis=(2, 4)).round().astype(np.uint8)


images, labels = half(data.train_images[:3000]), data.train_labels[:3000]
test_images, test_labels = half(data.test_images[:1000]), data.test_labels[:1000]
normalise = Normalise.channels(images)
for name in ("resnet14", "bottleneck20"):
    total = mr.summarise(mr.build(name), (16, 16, 3)).total
    print(
        f"{name:13} {total.parameters:9,} parameters {total.multiply_adds:11,} multiply-adds "
        f"{total.activation_bytes / 2**10:8,.0f} KiB of activations per image"
    )

# %% [markdown]
# It is 34 and 50 all over again: 6 more layers, about the same price. So a training step should take about the same
# time. **Predict.** Does it?


# %%
def train_step(net, optimiser, x, y):
    loss = mr.cross_entropy(net(mr.Tensor(x)), y)
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()


x, y = normalise(images[:64]), labels[:64]
nets = {name: mr.build(name) for name in ("resnet14", "bottleneck20")}
optimisers = {name: mr.SGD(net.parameters(), lr=0.1) for name, net in nets.items()}
seconds = dict.fromkeys(nets, 0.0)
for k in range(7):
    for name in nets:  # in turn, so that whatever else the machine does affects both
        start = time.process_time()  # the work of all threads
        train_step(nets[name], optimisers[name], x, y)
        if k > 0:  # the first round warms up
            seconds[name] += time.process_time() - start
print(f"a step of bottleneck20 takes {seconds['bottleneck20'] / seconds['resnet14']:.2f} times as long")

# %% [markdown]
# Longer. Multiply-adds are a price list, not a stopwatch. The bottleneck's wide maps must be read from memory and
# written back, by every norm and every ReLU, and that costs time without a single multiply-add. Chapter 10 measures it.
#
# Now let it learn, with half the usual width, which is enough for shapes.

# %%
net, epochs = mr.build("bottleneck20", seed=0, width=8), 5
loader = Loader(images, labels, 64, normalise=normalise, shuffle=True, drop_last=True)
schedule = one_cycle(0.2, epochs * len(loader))
optimiser = mr.SGD(net.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
for epoch in range(epochs):
    losses = []
    for k, (x, y) in enumerate(loader.epoch(epoch)):
        optimiser.lr = schedule(epoch * len(loader) + k)
        losses.append(train_step(net, optimiser, x, y))
    _, accuracy = mr.evaluate(net, test_images, test_labels, normalise)
    print(f"epoch {epoch + 1}: training loss {np.mean(losses):.3f}, test accuracy {accuracy:.1%}", flush=True)

# %% [markdown]
# It learns, and more epochs would improve it further. And on real CIFAR-10? `bottleneck29` takes as many multiply-adds
# as ResNet-20. Here are both after 5 epochs of the recipe `fast` (`python -m minires reproduce bottleneck`, and
# `shortcuts` for ResNet-20):

# %%
Markdown(tables.bottleneck(checkout("results")) or "Not recorded yet.")

# %% [markdown]
# Here, with few epochs (and one seed each), the bottleneck loses: more errors, and more time. It was not made for
# narrow nets, whose 3x3 convolutions are cheap. Count the layers that look at neighbours: 10 convolutions of 3x3 in
# `bottleneck29`, 19 in ResNet-20. Where maps are 512 or 2,048 channels wide, two 3x3 convolutions are unaffordable, and
# the bottleneck is what makes depth possible at all.
#
# ## 9. Our weights, in PyTorch's layout
#
# A trained net is its numbers. Others should be able to use them, and most others use PyTorch. It keeps the same
# numbers under the same names, but their axes are in another order, because PyTorch's images are `(N, C, H, W)`:
#
# | | in PyTorch and in our files | in memory here |
# | --- | --- | --- |
# | convolution | `(F, C, KH, KW)` | `(KH, KW, C, F)` |
# | linear | `(F, C)` | `(C, F)` |
# | norms, biases | `(C,)` | `(C,)` |
#
# `mr.save_weights` transposes them when it writes, `mr.load_weights` when it reads:

# %%
net.eval()
with TemporaryDirectory() as folder:
    file = Path(folder) / "bottleneck20.safetensors"
    mr.save_weights(net, file)
    print(f"{file.name}: {file.stat().st_size:,} bytes\n")
    stored, _ = load_state(file)  # the arrays as they are in the file
    copy = mr.build("bottleneck20", seed=1, width=8).eval()
    mr.load_weights(copy, file)

in_memory = net.state_dict()
for name in (
    "conv1.weight",
    "layer2.0.conv1.weight",
    "layer2.0.conv2.weight",
    "layer2.0.bn2.weight",
    "layer2.0.bn2.running_mean",
    "fc.weight",
):
    print(f"{name:27} in the file {str(stored[name].shape):15} in memory {in_memory[name].shape}")

# %%
batch = mr.Tensor(normalise(test_images[:100]))
with mr.no_grad():
    same = np.array_equal(net(batch).data, copy(batch).data)
print("the copy, built with another seed, gives the same logits, bit for bit:", same)

# %% [markdown]
# In PyTorch, the file is read as it is (this is not run here, since minires doesn't need PyTorch):
#
#     from safetensors.torch import load_file
#     model.load_state_dict(load_file("bottleneck20.safetensors"))
#
# The model has to be the same net, of course: the same names, the same shapes.
#
# **Why not simply reshape?** `(2, 1, 2, 2)` and `(2, 2, 1, 2)` both hold eight numbers. Give each number a name that
# says where it belongs: filter, row, column.

# %%
f, _, i, j = np.indices((2, 1, 2, 2)) + 1
theirs = 100 * f + 10 * i + j  # (F, C, KH, KW); 212: the second filter, its first row, second column
transposed, reshaped = theirs.transpose(2, 3, 1, 0), theirs.reshape(2, 2, 1, 2)
drawings.numbers(
    {"PyTorch's second filter": theirs[1, 0], "transposed": transposed[:, :, 0, 1], "reshaped": reshaped[:, :, 0, 1]}
)

# %% [markdown]
# The transpose moves each number to its place. The reshape fills the shape in memory order: our second filter now has
# numbers from both. Nothing complains, since the shapes fit.
#
# **Predict.** Load the trained net's weights with reshape. What is its test accuracy?

# %%
correct = net.state_dict()
broken = {name: stored[name].reshape(array.shape) for name, array in correct.items()}
for how, state in (("transposed", correct), ("reshaped", broken)):
    copy.load_state_dict(state)
    _, accuracy = mr.evaluate(copy, test_images, test_labels, normalise)
    print(f"{how:11} test accuracy {accuracy:.1%}")

# %% [markdown]
# Guessing. And the most treacherous case is a *square* one: a linear layer with as many features in as out, or a
# convolution with as many channels in as out, where the shape is right even if the transpose is forgotten. Never trust
# shapes. Compare the *logits* of one image in both libraries.
#
# ## 10. A file from somewhere else
#
# Published files have the same numbers in slightly different wrapping: every name begins with `module.`, or the arrays
# are in a dict called `state_dict`, or PyTorch's norms have counted their batches. `mr.load_torch_weights` understands
# all of these:

# %%
wrapped = {"state_dict": {f"module.{name}": array for name, array in stored.items()}}
wrapped["state_dict"]["module.bn1.num_batches_tracked"] = np.array(230)
mr.load_torch_weights(copy, wrapped)
with mr.no_grad():
    print("the same logits:", np.array_equal(net(batch).data, copy(batch).data))
try:
    mr.load_torch_weights(mr.build("bottleneck20"), wrapped)
except ValueError as error:
    print(f"into a net of another width: {str(error)[:150]} ...")

# %% [markdown]
# Do you have a published file? Enter its path below, and which net it is for.
#
# - `resnet50` and its family: torchvision's weights. Where PyTorch is installed, this writes a file that can be read
#   without PyTorch:
#
#       import safetensors.torch, torchvision
#       weights = torchvision.models.resnet50(weights="DEFAULT").state_dict()
#       safetensors.torch.save_file(weights, "resnet50.safetensors")
#
# - `resnet20` and its family for CIFAR-10: the repository `akamaster/pytorch_resnet_cifar10` on GitHub holds
#   `resnet20-12fca82f.th` and others. To read a `.th` or `.pth` file, minires needs PyTorch.

# %%
published, name = "", "resnet20"
mean, scale = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

if not published:
    print("no file named; the text above says where to find some")
else:
    theirs = mr.build(name)
    mr.load_torch_weights(theirs, published)
    print(f"{name}: {sum(p.size for p in theirs.parameters()):,} parameters from {Path(published).name}")
    if data.name == "cifar10" and theirs.fc.weight.shape[1] == 10:
        _, accuracy = mr.evaluate(theirs, data.test_images, data.test_labels, Normalise(255 * mean, 1 / (255 * scale)))
        print(f"error on the {len(data.test_images):,} test images of CIFAR-10: {1 - accuracy:.2%}")
    else:
        print("loaded; a net for CIFAR-10 can be tested here if MINIRES_DATA names a folder with CIFAR-10")

# %% [markdown]
# The mean and scale in that cell belong to the file as much as its weights do: a net only understands images that are
# prepared as in its training. Both sources named above subtract the mean colour of *ImageNet* and divide by its
# standard deviation. A missing or different normalisation is the most common reason why a published net "doesn't work".
#
# ## Summary
#
# - A convolution has $KH \cdot KW \cdot C \cdot F$ weights and takes positions times weights multiply-adds. Channels
#   count twice.
# - A bottleneck is 1x1 down, 3x3 on a quarter of the channels, 1x1 up. On 256 channels it costs about as much as a
#   basic block on 64.
# - It is not better than a basic block, only cheaper. The savings buy depth: ResNet-50 for the price of ResNet-34.
# - Its shortcut must be the identity: a projection would double the block.
# - Half the size and twice the channels: each block of a net costs the same.
# - ResNet-50 takes a fifth of VGG-19's multiply-adds, above all because it shrinks the image early. Global pooling
#   saves parameters.
# - Multiply-adds are not time. The wide maps of a bottleneck fill the memory and must be moved.
# - To change the layout of weights, transpose; never reshape.
#
# ## Common mistakes
#
# - **"A bottleneck is more accurate."** A *deeper* net is, and the bottleneck pays for it.
# - **A ReLU after the last 1x1**, before the sum. What the block adds could then never be negative. (Chapter 7.)
# - **The stride in two convolutions at once**, which quarters the map when it should be halved.
# - **`width` mistaken for the output channels.** A bottleneck of width 64 outputs 256.
# - **Counting buffers as parameters**, or comparing a count that includes them with one that does not.
# - **A bias before a norm.** Harmless, and useless.
# - **Multiply-adds and FLOP mixed up.** A multiply-add is two floating-point operations; some tables count one, some
#   two.
# - **Reshape instead of transpose**, see section 9; and a linear layer that was not transposed because it happened to
#   be square.
# - **Images not prepared as in training.**
#
# ## Three questions
#
# <details><summary>1. A bottleneck reduces 256 channels to 64. Does the block lose the other information?</summary>
#
# Only $F$ does. The shortcut passes on all 256 channels unchanged, and $F$ adds a correction computed from 64 mixtures.
# A *plain* bottleneck net would really have to squeeze everything through 64 channels, block after block.
#
# </details>
#
# <details><summary>2. Why do 50 layers have more parameters than 34 (25.6 against 21.8 million), when the multiply-adds
# are nearly the same?</summary>
#
# A weight's price in multiply-adds is the number of positions where it is used. Weights of the last stage (7x7) are
# cheap: 49 uses. Those of the linear layer are used once. ResNet-50 has more of these cheap weights: 2,048 channels at
# the end need a larger linear layer, and the projections of the last stages are large.
#
# </details>
#
# <details><summary>3. Could one make the middle even narrower, an eighth or a sixteenth of the ends?</summary>
#
# Yes. The 1x1 layers then take nearly all the work and the 3x3 nearly none, so little of the net looks around. At a
# quarter, the two 1x1 have 32,768 weights and the 3x3 has 36,864: about half and half. Later nets went the other way:
# many narrow groups (ResNeXt), or a *wide* middle with a separate 3x3 for each channel (MobileNetV2).
#
# </details>
#
# ## Exercises
#
# Five functions, in `chapters/exercises/ch09_bottleneck.py`. Open that file, fill in one function, save, and run its
# cell here (or, in a terminal, `pytest -m ex9_1` or `python -m minires check 9.1`). Stuck? `hint("9.1")`, then
# `hint("9.1", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 9.1 `multiply_adds` | the multiply-adds of a convolution | 1 | about 3 |
# | 9.2 `block_parameters` | the parameters of a bottleneck | 2 | about 7 |
# | 9.3 `bottleneck_forward` | a bottleneck from its layers | 1 | about 4 |
# | 9.4 `from_torch` | a weight from PyTorch's layout to ours | 2 | about 5 |
# | 9.5 `fold` | a norm folded into the convolution before it | 2 | about 2 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("9.1")

# %%
check("9.2")

# %%
check("9.3")

# %%
check("9.4")

# %%
check("9.5")

# %%
hint("9.1")

# %% [markdown]
# ## Read on
#
# - `minires/resnet.py`: `Bottleneck` next to `BasicBlock`, and `IMAGENET`, the family in seven lines.
# - `minires/summary.py`: `summarise` sends one image through the net and records each layer.
# - `minires/training/weights.py`: the only place where the two layouts meet. `minires/training/checkpoint.py`: what it
#   takes to read a file that you can't trust.
# - **Chapter 10, On the GPU**, asks where the time goes, if not into multiply-adds.
# - Sources: He et al. 2016, sections 3.3 and 4.1, Table 1 and Figure 5; Simonyan and Zisserman 2015, "Very deep
#   convolutional networks for large-scale image recognition" (VGG); Lin et al. 2014, "Network in network" (1x1
#   convolutions); Goyal et al. 2017, "Accurate, large minibatch SGD" (the stride moved into the 3x3).
