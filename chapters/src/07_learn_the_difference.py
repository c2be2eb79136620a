# %% [markdown]
# # 7. Learn the difference
#
# **After this chapter you can**
# - say what $H(x)$, $F(x)$ and $y = F(x) + x$ are, and draw a residual block from memory;
# - explain why "push $F$ to zero" is easier than "fit the identity", and show it in an experiment;
# - write down what $+\,x$ does to the backward pass, term by term, and say what it does *not* do;
# - fit a shortcut to a change of shape, in three ways (options A, B, C), and count what each costs;
# - find the mistakes in things that are often said about ResNets.
#
# **You need** chapter 6, and the chain rule of chapter 1: gradients add.
#
# **Time**: about 70 minutes to read and run, 90 for the exercises.

# %% tags=["hide-input"]
# Run this first. If minires is missing, it installs the checkout that contains this notebook.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minires") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".."], check=True)
    sys.path.insert(0, "..")

# %%
import inspect
from itertools import combinations
from math import comb, prod
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

import minires as mr
from minires import nn, plots
from minires.course import drawings
from minires.data import Dataset, Normalise
from minires.functional import subsample_and_pad
from minires.paper import tables
from minires.paper.records import checkout, records
from minires.resnet import BasicBlock

plots.notebook_style()
results = checkout("results")  # what the long experiments have recorded

# %% [markdown]
# ## 1. One plus sign
#
# Chapter 6 ended with a sentence: doing nothing is hard work for a plain layer. Deep nets have more layers than they
# need, so many layers should do nothing, or nearly nothing.
#
# Take a few layers of a net, a **block**. Let $H(x)$ be the mapping that it *should* compute. A plain block has to
# learn $H$. The paper's idea: let the layers learn the **difference** from their input,
#
# $$ F(x) = H(x) - x , $$
#
# and add $x$ afterwards. What the block computes is then
#
# $$ y = F(x) + x . $$
#
# $F$ is called the **residual**, what is left to do. The path that carries $x$ past the layers is the **shortcut**, or
# skip connection. $H$ is wanted, $F$ is learned: many texts swap the two.

# %%
drawings.block_pair()

# %% [markdown]
# The block's last ReLU comes after the sum, so that $F$ can be negative: it must be able to take something away.
#
# In the code it is the plus sign in the last line. (In a plain block, `self.shortcut(x)` is zero.)

# %%
print(inspect.getsource(BasicBlock.forward))

# %% [markdown]
# **Predict.** How many more parameters does ResNet-20 have than plain-20? How many more multiply-adds?

# %%
for name in ("plain20", "resnet20"):
    total = mr.summarise(mr.build(name)).total
    print(f"{name:9} {total.parameters:,} parameters, {total.multiply_adds:,} multiply-adds")

# %% [markdown]
# None. The addition itself is so cheap that nobody counts it. So the comparison of the two nets is fair: same depth,
# same size, same cost. Only the plus sign differs.
#
# ## 2. Learning to do nothing
#
# Suppose the best thing a block can do is nothing: $H(x) = x$.
#
# - The **plain** block must find it with its weights. Chapter 6 showed which: 1 in the middle of each kernel, and norms
#   that put back exactly what they removed. All of its numbers must be right.
# - The **residual** block must find $F(x) = 0$. For that it is enough that $\gamma$ and $\beta$ of its last norm are 0;
#   all other weights can be anything.
#
# Zero is a special point for weights: weight decay pulls them there, and small weights are near it already. The
# identity is a point like any other, and far away.
#
# Is it really easier? Let us make it a race. Blocks are given random numbers (0 or more, as after a ReLU) and asked to
# reproduce their input. The error is $|y - x|^2 / |x|^2$.
#
# **Predict.** Imagine six curves: one block, two and four in a row, plain and residual. Which ones get to zero?


# %%
def learn_identity(shortcut, blocks, steps=200):
    """Train basic blocks (shortcut None: plain) to reproduce their input. Returns them, and the error at each step."""
    rng, inputs = np.random.default_rng(0), np.random.default_rng(1)
    net = nn.Sequential(*(BasicBlock(16, 16, 1, shortcut, rng) for _ in range(blocks)))
    optimiser, errors = mr.SGD(net.parameters(), lr=0.1, momentum=0.9), []
    for _ in range(steps):
        draw = inputs.standard_normal((32, 8, 8, 16))  # new numbers in each step
        x = mr.Tensor(np.abs(draw).astype(np.float32))
        difference = net(x) - x
        error = (difference * difference).mean() / float((x.data * x.data).mean())
        error.backward()
        optimiser.step()
        optimiser.zero_grad()
        errors.append(error.item())
    return net, errors


race = {
    (kind, blocks): learn_identity(shortcut, blocks)
    for blocks in (1, 2, 4)
    for kind, shortcut in (("plain", None), ("residual", "A"))
}

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 3, figsize=(8.5, 3), sharey=True)
for axes, blocks in zip(panels, (1, 2, 4), strict=True):
    for k, kind in enumerate(("plain", "residual")):
        errors = race[kind, blocks][1]
        axes.semilogy(range(1, len(errors) + 1), errors, "--" if k == 0 else "-", color=plots.COLOURS[k], label=kind)
    axes.axhline(1 - 2 / np.pi, color=plots.INK, linewidth=0.8, linestyle=":")
    axes.set(title=f"{blocks} block{'s' if blocks > 1 else ''}", xlabel="step", ylim=(1e-4, 6))
    axes.grid(alpha=0.3)
panels[0].set_ylabel("error")
panels[2].legend(loc="lower left")
plt.show()

print("error after       " + "".join(f"{k:>10}" for k in (1, 10, 50, 200)) + "  steps")
for (kind, blocks), (_, errors) in race.items():
    print(f"{blocks} {kind:8} block(s)" + "".join(f"{errors[k - 1]:10.5f}" for k in (1, 10, 50, 200)))
print(f"dotted: {1 - 2 / np.pi:.2f}, for a net that knows only the mean of the numbers")

# %% [markdown]
# A plain block of two layers makes some progress in 200 steps, two in a row barely get below the dotted line, and four
# do not. And they have only one thing to learn, with endless data. Two or four residual blocks start with a *larger*
# error than plain ones, since each adds a random $F$ to something that was already right. Then they get rid of it.
#
# How? Look at the last norm of each block. $\gamma$ began at 1.

# %%
for blocks in (1, 2, 4):
    net, _ = race["residual", blocks]
    print(
        f"{blocks} residual block(s), mean size of the last norm's gamma:",
        ", ".join(f"{np.abs(block.bn2.weight.data).mean():.3f}" for block in net),
    )

# %% [markdown]
# They pushed $F$ to zero, by the shortest route. (With four in a row it is still under way.)
#
# The same race with 8 blocks over 500 steps has been recorded (`python -m minires reproduce zero-residual`):

# %%
Markdown(tables.zero_residual(results) or "Not recorded yet.")

# %% [markdown]
# Nobody expects the best mapping of every layer to *be* the identity. The paper's hope is more modest: if the best is
# *near* the identity, then small corrections to $x$ are easier to find than the entire mapping from scratch. (The paper
# measures how large the corrections of trained nets are; so do we, in chapter 8.)
#
# ## 3. The backward pass, term by term
#
# What does $+\,x$ do to the gradient? Let $g$ be the gradient that arrives at $y = F(x) + x$. Two paths lead from $x$
# to $y$. Gradients add:
#
# $$ \frac{\partial L}{\partial x} \;=\; \underbrace{g}_{\text{over the shortcut}} \;+\;
# \underbrace{\Big(\frac{\partial F}{\partial x}\Big)^{\!\mathsf T} g}_{\text{through the layers}} $$
#
# The first term has passed through no weight at all. In a plain block the second term is all there is.
#
# Let us see both in a real block. We give the shortcut and the layers an $x$ each, so that their gradients arrive
# separately.

# %%
rng = np.random.default_rng(0)
block = BasicBlock(8, 8, 1, "A", rng)
array = np.abs(rng.standard_normal((4, 6, 6, 8))).astype(np.float32)
g = rng.standard_normal(array.shape).astype(np.float32)


def residual(x):
    """F(x): the block's layers without shortcut, sum and last ReLU."""
    h = mr.relu(block.bn1(block.conv1(x)))
    return block.bn2(block.conv2(h))


through, over = (mr.Tensor(array, requires_grad=True) for _ in range(2))
mr.relu(residual(through) + over).backward(g)

x = mr.Tensor(array, requires_grad=True)
block(x).backward(g)


def size(a):
    return float(np.sqrt((a * a).mean()))


print(f"arrives at y               {size(g):.3f}")
print(f"over the shortcut          {size(over.grad):.3f}")
print(f"through the layers         {size(through.grad):.3f}")
print(f"the sum of both            {size(over.grad + through.grad):.3f}")
print(
    f"in the block as it is      {size(x.grad):.3f}, largest difference "
    f"{np.abs(x.grad - over.grad - through.grad).max():.0e}"
)

# %% [markdown]
# The sum is exact. The shortcut's share is a little smaller than $g$, since the ReLU after the sum let nothing through
# where $y$ was 0.
#
# Now many blocks in a row. Take one number instead of a map, and let $f_k$ be the slope of $F_k$. The slope of a plain
# stack is the product of all slopes; that of a residual stack is
#
# $$ (1 + f_1)(1 + f_2)(1 + f_3) = 1 + f_1 + f_2 + f_3 + f_1 f_2 + f_1 f_3 + f_2 f_3 + f_1 f_2 f_3 . $$
#
# Each term is a path back through the net: at each block it goes either over the shortcut or through the layers.

# %%
slopes = {"f1": 0.5, "f2": -0.3, "f3": 0.2}
total = 0.0
for length in range(4):
    for path in combinations(slopes, length):
        term = prod(slopes[name] for name in path)
        total += term
        print(f"through {' and '.join(path) or 'no layer at all':15} {term:7.3f}")
print(
    f"sum {total:.3f}, product of (1 + f) {prod(1 + f for f in slopes.values()):.3f}, plain {prod(slopes.values()):.3f}"
)

# %% [markdown]
# **Predict.** A ResNet-56 has 27 blocks. How many paths lead back through it? How many blocks does a typical path go
# through?

# %%
n = 27
paths = [comb(n, k) for k in range(n + 1)]
print(f"{sum(paths):,} paths, {paths[n]} of them through all layers, {paths[0]} through none")
figure, axes = plt.subplots(figsize=(5.5, 2.4))
axes.bar(range(n + 1), np.array(paths) / 1e6)
axes.set(xlabel="blocks that a path goes through", ylabel="paths, millions")
plt.show()

# %% [markdown]
# A plain net has only one path, that of the last bar. In a residual net most paths are about half as long as the net is
# deep, and if the slopes $f$ are small, the short ones carry most of the gradient. (Veit et al., "Residual networks
# behave like ensembles of relatively shallow networks", 2016.)
#
# Does that mean that a residual gradient is always fine? **Predict** the slope of 27 blocks, plain and residual, for
# $f = 0.5$, $0.1$, $-0.1$ and $-1$.

# %%
for f in (0.5, 0.1, 0.0, -0.1, -0.5, -1.0):
    print(f"f = {f:4}:   plain {f**n:9.0e}   residual {(1 + f) ** n:9.2g}")

# %% [markdown]
# So read the formula with care. The 1 keeps a gradient from **vanishing** where the layers are weak. It does not keep
# it from *exploding*: $1.5^{27}$ is large. Something must keep $F$ within bounds, and that is the job of the norm. And
# a term can also cancel the 1 (the last two lines), though hardly in all directions of a map at once.
#
# ## 4. A heat map
#
# Let us measure all of that at once. We take freshly initialised nets of 56 layers and multiply all kernels by a gain,
# from 0.5 to 1.4. We send a batch forward and backward, and record how large the gradient is after each block, compared
# with the one after the last block. With and without batch norm. (Without means: a fresh net in evaluation mode. There
# the norms have mean 0 and variance 1 and do nothing.)
#
# **Predict** four heat maps: plain and residual, without norm and with. Where does the gradient vanish, where does it
# explode?

# %%
full = mr.open_data("auto")
data = Dataset(
    full.name,
    full.train_images[:1000],
    full.train_labels[:1000],
    full.test_images[:500],
    full.test_labels[:500],
    full.classes,
)
normalise = Normalise.channels(data.train_images)
gains = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4)


def gradient_sizes(model, gain, norm):
    """The size of the gradient after each block of a fresh net, divided by that after the last block."""
    net, outputs = mr.build(model, width=4).train(norm), []
    for weight in net.parameters():
        if weight.ndim == 4:
            weight.data *= np.float32(gain)

    def collect(name, module, output):
        if isinstance(module, BasicBlock):
            outputs.append(output.retain_grad())

    with nn.forward_hook(net, collect):
        loss = mr.cross_entropy(net(mr.Tensor(normalise(data.train_images[:16]))), data.train_labels[:16])
    loss.backward()
    sizes = np.array([np.linalg.norm(output.grad.astype(np.float64)) for output in outputs])
    return sizes / sizes[-1]


heat = {
    (norm, model): np.array([gradient_sizes(model, gain, norm) for gain in gains])
    for norm in (False, True)
    for model in ("plain56", "resnet56")
}

# %% tags=["hide-input"]
figure, panels = plt.subplots(2, 2, figsize=(8.5, 4.6), sharex=True, sharey=True)
for axes, ((norm, model), ratios) in zip(panels.flat, heat.items(), strict=True):
    shown = axes.imshow(np.log10(ratios), cmap="PuOr_r", vmin=-6, vmax=6, aspect="auto")
    axes.set_title(f"{model}, {'with batch norm' if norm else 'no norm'}")
    axes.set(yticks=range(len(gains)), yticklabels=gains, xticks=range(0, 27, 5), xticklabels=range(1, 28, 5))
for axes in panels[1]:
    axes.set_xlabel("block (the gradient comes from the right)")
for axes in panels[:, 0]:
    axes.set_ylabel("gain")
bar = figure.colorbar(shown, ax=panels, ticks=range(-6, 7, 2), extend="both", shrink=0.9)
bar.ax.set_yticklabels([f"$10^{{{k}}}$" for k in range(-6, 7, 2)])
bar.set_label("gradient, relative to the last block")
plt.show()

print("gradient after block 1, divided by that after block 27")
print("gain                   " + "".join(f"{gain:>9}" for gain in gains))
for (norm, model), ratios in heat.items():
    print(f"{model:9}{'batch norm' if norm else 'no norm':14}" + "".join(f"{ratio:9.0e}" for ratio in ratios[:, 0]))

# %% [markdown]
# White means unchanged, violet smaller, orange larger.
#
# - **Plain, no norm**: it vanishes for every gain below 1 and explodes above. Only He's gain of 1 is in between. That
#   is chapter 5.
# - **Residual, no norm**: it never vanishes. For the smallest gain it is almost unchanged. But for He's gain it
#   *explodes*: each block adds as much as it was given.
# - **Plain, batch norm**: the gain no longer matters. The gradient does not vanish; it grows at a steady rate.
# - **Residual, batch norm**: the gain doesn't matter, and over all gains this is the calmest of the four.
#
# The shortcut and the norm each do what the other can't. ResNets need both.
#
# This is before training. The runs on CIFAR-10 recorded the norm of $\partial L / \partial w$ of each layer after each
# epoch: a heat map over time.

# %% tags=["hide-input"]
recorded = {name: run for name, run in records(results, "degradation").items() if run.rows}
shown = {
    name: np.array([list(row["gradient"].values()) for row in recorded[name].layers])
    for name in ("plain20", "resnet20", "plain56", "resnet56")
    if name in recorded
}
if shown:
    every = np.log10(np.concatenate([found.ravel() for found in shown.values()]))
    low, high = int(np.floor(every.min())), int(np.ceil(every.max()))
    figure, panels = plt.subplots(1, len(shown), figsize=(2 + 2.6 * len(shown), 3), squeeze=False)
    for axes, (name, found) in zip(panels[0], shown.items(), strict=True):
        image = axes.imshow(np.log10(found.T), cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
        axes.set(
            title=name,
            xlabel="epochs done",
            xticks=range(0, len(found), 5 if len(found) > 5 else 1),
            yticks=[0, found.shape[1] - 1],
            yticklabels=[1, found.shape[1]],
        )
    panels[0, 0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=panels, ticks=range(low, high + 1))
    bar.ax.set_yticklabels([f"$10^{{{k}}}$" for k in range(low, high + 1)])
    bar.set_label("norm of dL/dw")
    plt.show()
for name in ("plain20", "resnet20", "plain56", "resnet56"):
    if name not in shown:
        print(f"{name}: not recorded yet")
    else:
        first, last = shown[name][0], shown[name][-1]
        print(
            f"{name}: {first.min():.3f} to {first.max():.3f} before training, {last.min():.3f} to {last.max():.3f} "
            f"after {recorded[name].layers[-1]['epoch']} epochs"
        )

# %% [markdown]
# ## 5. Does it train?
#
# This is the question that matters. In chapter 6, a tiny plain-56 had hardly begun after nine epochs of 1,000 images.
# Here is the same again: same width, same images in the same order, same recipe. Only the plus signs are new.
#
# **Predict.** Which of the two is ahead at the end, ResNet-20 or ResNet-56?

# %%
temporary = TemporaryDirectory()  # for the files that training writes
folder = Path(temporary.name)
rows = {}


def train(name, model, start=None):
    """Nine epochs with the recipe of chapter 6. start: a net whose weights to start from."""

    def watch(run):
        if start is not None and run.progress.step == 0:
            run.net.load_state_dict(start.state_dict())

    print(name)
    config = mr.Config(model=model, width=4, batch_size=32, epochs=9, lr=0.1, augment=False)
    rows[name] = mr.fit(config, folder / name, dataset=data, watch=watch)


train("resnet20", "resnet20")
train("resnet56", "resnet56")


# %% tags=["hide-input"]
def show_curves(rows):
    """Training loss and training error over the epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for k, (name, curve) in enumerate(rows.items()):
        epochs = [row["epoch"] for row in curve]
        style = {"marker": plots.MARKERS[k], "color": plots.COLOURS[k], "markersize": 4, "label": name}
        axes[0].plot(epochs, [row["train_loss"] for row in curve], **style)
        axes[1].plot(epochs, [100 * (1 - row["train_acc"]) for row in curve], **style)
    axes[0].axhline(np.log(10), color=plots.INK, linestyle=":", linewidth=0.8)
    axes[1].axhline(90, color=plots.INK, linestyle=":", linewidth=0.8)
    axes[0].set(xlabel="epoch", title="training loss (dotted: guessing)")
    axes[1].set(xlabel="epoch", title="training error in % (dotted: guessing)")
    axes[0].legend()
    plt.show()


show_curves(rows)
for name, curve in rows.items():
    last = curve[-1]
    print(f"{name}: training loss {last['train_loss']:.2f}, training error {100 * (1 - last['train_acc']):.0f} %")

# %% [markdown]
# In its first epochs the deep net has the larger loss, perhaps because it must first reduce what 27 random blocks add.
# Then it learns, where plain-56 did not.
#
# One seed, tiny nets, few steps; see chapter 6 for what that is worth. The recorded runs on CIFAR-10 have full width,
# and the paper's recipe in 10 epochs:


# %% tags=["hide-input"]
def found(*names):
    return [recorded[name].out for name in names if name in recorded]


pairs = {"plain": found("plain20", "plain56"), "residual": found("resnet20", "resnet56")}
pairs = {title: runs for title, runs in pairs.items() if runs}
if pairs:
    display(plots.errors(pairs))

# %%
Markdown(tables.depths(results, "degradation") or "Not recorded yet.")

# %% [markdown]
# With the plus signs, 56 layers learn. In ten epochs they have not overtaken 20, though. Look at the orange curve on
# the right: it starts late, and is 4 points behind when the rate falls. A rate of 0.1 seems to be too high to start
# with. (With 110 layers the paper saw the same, and started at 0.01. Chapter 8 computes which rates are too high for
# the last layer at the start: those above 0.09 with 56 layers, above 0.3 with 20.) So here are the nets once more, with
# 10 epochs of the recipe `fast`, whose rate starts at 0.008 (`python -m minires reproduce depth`):

# %%
Markdown(tables.depths(results, "depth") or "Not recorded yet.")

# %% [markdown]
# Here the order is reversed: the deeper residual net has the *lower* training error, and the lower test error too (one
# seed each). The gentle start may be the reason. But the recipes differ in more: a higher rate later, more weight
# decay, Nesterov momentum. The plain nets keep their order, with this recipe as with the other: plain-56 is more than
# 30 points behind plain-20.
#
# In the paper, after 164 epochs, deeper is better as well: on CIFAR-10, the test error falls from 8.75 % with 20 layers
# to 6.97 % with 56 and 6.43 % with 110. On ImageNet ResNet-34 beats ResNet-18 by 2.8 points, where plain-34 lost to
# plain-18.
#
# And the clue of chapter 6, images and their twins with one percent of noise? Here are the gradients again, now with
# the plus sign.


# %% tags=["hide-input"]
def twins(model, noise=0.01, images=64):
    """Cosine between the gradients of images and of their noisy copies, by layer, in a fresh net."""
    x = normalise(data.train_images[:images])
    copy = x + np.float32(noise) * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    net, gradients = mr.build(model, width=4), []
    for batch in (x, copy):
        net.zero_grad()
        mr.cross_entropy(net(mr.Tensor(batch)), data.train_labels[:images]).backward()
        gradients.append([p.grad for p in net.parameters() if p.ndim == 4])
    return [float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(*gradients, strict=True)]


figure, axes = plt.subplots(figsize=(5.5, 3))
for k, model in enumerate(("plain56", "resnet56")):
    cosines = twins(model)
    axes.plot(range(1, len(cosines) + 1), cosines, marker=plots.MARKERS[k], markersize=3.5, linewidth=1.2, label=model)
    print(f"{model}: {np.mean(cosines):.2f} on average over the layers")
axes.axhline(0, color=plots.INK, linewidth=0.8, linestyle=":")
axes.set(xlabel="layer", ylabel="cosine", title="similarity of the gradients")
axes.legend(loc="center left", bbox_to_anchor=(0.05, 0.68))
plt.show()

# %% [markdown]
# With shortcuts, neighbours have similar gradients. We measured this in fresh nets, and moved the images, not the
# weights. It fits the idea that the shortcut makes the function smoother, so that what is downhill here is still
# downhill one step further, and that this helps more than the size of any gradient. It does not prove it.
#
# ## 6. When the shapes don't fit
#
# $F(x) + x$ needs two arrays of the same shape. In most blocks they have it. But the first block of the second and
# third stage halves the map and doubles the channels:

# %%
try:
    mr.Tensor(np.zeros((1, 16, 16, 32))) + mr.Tensor(np.zeros((1, 32, 32, 16)))
except ValueError as error:
    print(error)

# %% [markdown]
# So there the shortcut has to fit $x$ to the new shape. The paper tries three ways.
#
# - **Option A**: no parameters. Take every second pixel of every second row, and zeros for the missing channels.
# - **Option B**: where the shape changes, a **projection**: a 1x1 convolution with stride 2, and a batch norm.
# - **Option C**: a projection on *every* shortcut, even where $x$ would fit as it is.
#
# This is option A on a map of 4x4 pixels with two channels:

# %%
x = np.arange(1, 17).reshape(4, 4)
x = np.stack([x, -x], axis=-1)[None].astype(np.float32)  # (1, 4, 4, 2)
y = subsample_and_pad(mr.Tensor(x), stride=2, channels=4).data  # (1, 2, 2, 4)
drawings.numbers(
    {f"x, channel {c}": x[0, :, :, c] for c in range(2)} | {f"y, channel {c}": y[0, :, :, c] for c in range(4)}
)

# %% [markdown]
# A quarter of the pixels, twice the channels. Half of the new zeros come before the old channels, half after. (The
# paper leaves open where they go; weights trained with one layout do not work with another, so we had to choose.)
#
# **Predict.** What does each option cost a ResNet-20?

# %%
for shortcut in "ABC":
    net = mr.build("resnet20", shortcut=shortcut)
    total = mr.summarise(net).total
    projections = sum(isinstance(module, nn.Conv2d) and "downsample" in name for name, module in net.modules())
    print(
        f"option {shortcut}: {total.parameters:,} parameters, {total.multiply_adds:,} multiply-adds, "
        f"{projections} projections"
    )

# %% [markdown]
# Little. And what do they gain? On ImageNet, with ResNet-34, the paper finds a top-1 error of 25.03 % with A, 24.52 %
# with B and 24.19 % with C; plain-34 had 28.54 %. So most of the gain comes from having shortcuts at all. The
# differences among the three are small, and the paper concludes that projections are not what matters.
#
# Our own comparison, ResNet-20 on CIFAR-10 with three seeds each (`python -m minires reproduce shortcuts`):

# %%
Markdown(tables.shortcuts(results) or "Not recorded yet.")

# %% [markdown]
# Before you pick a winner from such a table, compare the differences with the spread over the seeds. A and B: no
# difference that three seeds could show. C is behind, by more than the seeds differ. It has the most parameters, and
# not one shortcut that passes $x$ on unchanged. That fits this chapter; five epochs of a small net do not prove it, and
# on ImageNet C was slightly ahead.
#
# All CIFAR nets in the paper use A, so that a residual net has exactly as many parameters as its plain twin. So do the
# ImageNet nets of 18 and 34 layers when they are compared with plain ones; from 50 layers on it is B. C is the
# expensive one, above all in the next kind of block (chapter 9).
#
# ## 7. Start as the identity
#
# One more thought. If blocks should do little, why let them start with a random $F$ as large as $x$? Set the last
# $\gamma$ of each block to **zero** at the start. Then $F(x) = 0$, and every block starts as $y = x$ (Goyal et al.,
# "Accurate, large minibatch SGD", 2017). In minires: `mr.build(..., zero_init=True)`.


# %%
def sizes(net):
    """How large the numbers are after each block."""
    found = []

    def collect(name, module, output):
        if isinstance(module, BasicBlock):
            found.append(size(output.data))

    with mr.no_grad(), nn.forward_hook(net, collect):
        net(mr.Tensor(normalise(data.train_images[:32])))
    return found


fresh = {
    "as usual": sizes(mr.build("resnet56", width=4)),
    "last gamma 0": sizes(mr.build("resnet56", width=4, zero_init=True)),
}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5.5, 2.8))
for k, (name, line) in enumerate(fresh.items()):
    axes.plot(range(1, 28), line, marker=plots.MARKERS[k], markersize=4, label=name)
axes.set(xlabel="block", ylabel="size of the numbers", ylim=(0, None), title="a fresh ResNet-56")
axes.legend()
plt.show()

# %% [markdown]
# Usually each block adds to what is there, and the numbers grow. With zeros nothing happens in between (where the shape
# changes, half of the channels become zeros). The net starts as one convolution, pooling and a linear layer, and grows
# its depth while it learns. A quiet start.
#
# **Predict.** Is it also a *faster* start? The same ResNet-20 as above, with the same weights, but the last gammas 0.

# %%
train("resnet20, last gamma 0", "resnet20", start=mr.build("resnet20", width=4, zero_init=True))
show_curves({name: rows[name] for name in ("resnet20", "resnet20, last gamma 0")})

# %% [markdown]
# Not on Shapes-10. As long as the gammas are near 0 the net *is* that shallow net, and Shapes-10 was designed so that a
# shallow net can do almost nothing with it. So there may be hardly any gradient that could open the gammas. Within
# these few steps the loss hardly moves. What happens later we have not measured. (If you have CIFAR-10, run this
# chapter with it, and compare: there a shallow net can do something.)
#
# A good idea is not good everywhere. Zero-initialised norms were made for large batches and high rates on ImageNet,
# where a quiet start is worth a lot. They are an option, not a law; the paper has no such thing. Measure.
#
# ## 8. Things you will read, and what is true
#
# > **Misreadings.** All of these appear in texts about this paper.
# >
# > - *"Plain-18 is worse than plain-34."* The other way round: 27.94 % against 28.54 %. That is the degradation.
# > - *"F(x) is what we want, H(x) the residual."* Swapped. $H$ is wanted, $F(x) = H(x) - x$ is the residual, which the
# >   layers learn.
# > - *"Residuals solve vanishing gradients."* The paper says that batch norm keeps the signals alive already.
# >   Degradation is an optimisation problem, and it shows in the training error.
# > - *"Gradient clipping cures vanishing gradients."* It only makes gradients shorter. It helps against exploding ones.
# > - *"ResNets use layer normalisation."* They use batch normalisation.
# > - *"Every 3x3 convolution has stride 2."* Only the first one of a stage has, and none in the first stage.
# > - *"152 layers reached 3.57 %."* An ensemble of six nets did; it is the top-5 error on the test set.
# > - *"The more layers the better, up to 1,000 and more."* On CIFAR-10: 6.43 % with 110 layers, 7.93 % with 1202. The
# >   deeper one trains without difficulty; the paper blames overfitting.
# > - *"The first nets of over 100 layers."* Highway networks came earlier. ResNets were the first to *gain* from it.
# > - *"CVPR 2015."* CVPR 2016; it was put on arXiv in December 2015.
# > - The Keras listing of ResNet-50 that is copied from blog to blog has two mistakes of its own. Chapter 9 finds them.
#
# ## Summary
#
# - $H(x)$ is what a block should compute, $F(x) = H(x) - x$ what its layers learn, $y = F(x) + x$ what comes out.
# - Shortcuts cost no parameters and almost no time, so plain and residual nets can be compared fairly.
# - The identity is hard to find for plain layers. For residual layers it is $F = 0$, and close by.
# - Backward: $g$ over the shortcut, plus $(\partial F / \partial x)^{\mathsf T} g$ through the layers. Through many
#   blocks: a sum over all paths, one of which passes through no weight.
# - The 1 keeps a gradient from vanishing, not from exploding; the norm does that. They need each other.
# - Where the shape changes: option A (no parameters), B (projection there), C (projection everywhere). They differ
#   little, compared with having no shortcut at all.
# - With the last $\gamma$ at 0 every block starts as the identity. Quiet, not always fast.
#
# ## Common mistakes
#
# - In the backward pass, `=` instead of `+=`: the gradient of the layers overwrites that of the shortcut. The net still
#   trains, as a plain one.
# - Adding in place (`grad += ...`): both parents of a sum hold the same array.
# - The ReLU *before* the sum: then no block can ever take anything away, and the numbers only grow.
# - The shortcut taken after the first layer, not from the block's input.
# - A projection's stride forgotten, or a 3x3 kernel where a 1x1 belongs.
# - The zeros of option A all on one side: that is another net, for which published weights don't work.
# - `zero_init` with plain blocks: a ReLU follows that norm, no gradient gets through, and nothing is ever learned.
#   (minires refuses it.)
#
# ## Three questions
#
# <details><summary>1. Why does the last ReLU of a block come after the sum, and not before it?</summary>
#
# Before the sum it would make $F(x) \ge 0$. A block could then only add to $x$, never take away. After the sum it is
# the nonlinearity between this block and the next.
#
# </details>
#
# <details><summary>2. With shortcuts, dL/dx = g + (dF/dx)^T g. Can this be zero although g is not?</summary>
#
# Yes, if $(\partial F/\partial x)^{\mathsf T} g = -g$: the layers cancel exactly what the shortcut contributes. For one
# number that is $f = -1$. For a map with thousands of numbers, that would have to hold in the direction of $g$; this is
# possible, but hardly ever happens by chance.
#
# </details>
#
# <details><summary>3. A colleague removes the batch norms from ResNet-56 and keeps He's initialisation, "since
# shortcuts take care of the gradient". What happens at the start?</summary>
#
# It explodes. Each block adds about as much as it is given, forward and backward, so both signals grow by a constant
# factor per block (the upper right panel of section 4, gain 1). Shortcuts only keep gradients from vanishing.
#
# </details>
#
# ## Exercises
#
# Open `chapters/exercises/ch07_residual.py` in an editor, fill in a function, save, and run its cell here (or, in a
# terminal, `pytest -m ex7_1` or `python -m minires check 7.1`). Stuck? `hint("7.1")`, then `hint("7.1", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 7.1 `residual_backward` | the backward pass of y = x + F(x) | 2 | about 7 |
# | 7.2 `option_a` | a shortcut without parameters | 2 | about 5 |
# | 7.3 `option_a_backward` | option A, backward | 2 | about 4 |
# | 7.4 `projection` | a shortcut with parameters | 2 | about 4 |
# | 7.5 `block_forward` | a basic block, put together | 1 | about 4 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("7.1")

# %%
check("7.2")

# %%
check("7.3")

# %%
check("7.4")

# %%
check("7.5")

# %%
hint("7.1")

# %% [markdown]
# ## Read on
#
# - `minires/resnet.py`, all of it: every net of the paper in 350 lines. `minires/functional.py`: `relu` and
#   `subsample_and_pad`.
# - **Chapter 8, A ResNet on CIFAR-10**: the whole recipe, and what each ingredient is worth.
# - K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016: sections 3.1 to 3.3 and
#   4.1 are this chapter.
# - The same authors' "Identity Mappings in Deep Residual Networks", ECCV 2016, revisits the sum of section 3 and moves
#   the ReLU off the shortcut's path: `mr.build("preresnet20")`.
