# %% [markdown]
# # 7. Learn the difference
#
# **After this chapter you can**
# - say what $H(x)$, $F(x)$ and $y = F(x) + x$ are, and draw a residual block from memory;
# - explain why "push $F$ to zero" is easier than "fit the identity", and show it in an experiment;
# - write down what $+\,x$ does to the backward pass, term by term, and say what it does *not* do;
# - fit a shortcut to a change of shape, in three ways (options A, B, C), and count what each costs;
# - find the mistake in most things that are said about ResNets.
#
# **You need** chapter 6, and the chain rule of chapter 1: gradients add.
#
# **Time**: about 70 minutes to read and run, 90 for the exercises.

# %% tags=["hide-input"]
# Run this first. Where minires is missing, it installs the checkout that this notebook lies in.
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
from IPython.display import Markdown

import minires as mr
from minires import nn, plots
from minires.course import drawings
from minires.paper import tables
from minires.data import Dataset, Normalise
from minires.functional import add_relu, subsample_and_pad
from minires.resnet import BasicBlock
from minires.training.loop import Config, fit, open_data

plots.notebook_style()
results = Path("..", "results")  # what the long experiments have written down

# %% [markdown]
# ## 1. One plus sign
#
# Chapter 6 ended with a sentence: doing nothing is hard work for a plain layer. Deep nets have more layers than they
# need, so many layers should do nothing, or nearly nothing.
#
# Take a few layers of a net, a **block**. Let $H(x)$ be the mapping that it *should* compute. A plain block has to
# learn $H$. The paper's idea: let the layers learn the **difference** to what came in,
#
# $$ F(x) = H(x) - x , $$
#
# and add $x$ afterwards. What the block computes is then
#
# $$ y = F(x) + x . $$
#
# $F$ is called the **residual**, what is left to do. The line on which $x$ goes by is the **shortcut**, or skip
# connection. $H$ is wanted, $F$ is learned: many texts swap the two.

# %%
drawings.block_pair()

# %% [markdown]
# The block's last ReLU stands behind the sum, so that $F$ may be below zero: it must be able to take something away.
#
# In the code it is one line of difference. Look at the last lines:

# %%
print(inspect.getsource(BasicBlock.forward))

# %% [markdown]
# **Predict.** How many parameters more has ResNet-20 than plain-20? How many more multiply-adds?

# %%
for name in ("plain20", "resnet20"):
    total = mr.summarise(mr.build(name)).total
    print(f"{name:9} {total.parameters:,} parameters, {total.multiply_adds:,} multiply-adds")

# %% [markdown]
# None. The addition itself is so cheap that nobody counts it. So the two nets can be compared without an excuse: same
# depth, same size, same cost. Only the plus sign differs.
#
# ## 2. Learning to do nothing
#
# Suppose the best that a block can do is nothing: $H(x) = x$.
#
# - The **plain** block must find it with its weights. Chapter 6 told which: 1 in the middle of each kernel, and norms
#   that give back exactly what they took. All of its numbers must be right.
# - The **residual** block must find $F(x) = 0$. For that it is enough that $\gamma$ and $\beta$ of its last norm are 0;
#   all other weights may be what they like.
#
# Zero is a special place for weights: weight decay pulls there, and small weights are near it already. The identity is
# a place like any other, and far away.
#
# Is it really easier? Make it a race. Blocks are shown random numbers (0 or more, as behind a ReLU) and asked to give
# out what came in. The error is $|y - x|^2 / |x|^2$.
#
# **Predict.** Six curves in your head: one block, two and four in a row, plain and residual. Which get to zero?


# %%
def learn_identity(option, blocks, steps=200):
    """Ask so many basic blocks (option None: plain) to give out what comes in; the blocks, and the error by step."""
    rng = np.random.default_rng(0)
    net = nn.Sequential(*(BasicBlock(16, 16, 1, option, rng) for _ in range(blocks)))
    optimiser, errors = mr.SGD(net.parameters(), lr=0.1, momentum=0.9), []
    for step in range(steps):
        draw = np.random.default_rng([0, step]).standard_normal((32, 8, 8, 16))  # new numbers in each step
        x = mr.Tensor(np.abs(draw).astype(np.float32))
        difference = net(x) - x
        error = (difference * difference).mean() / float((x.data * x.data).mean())
        error.backward()
        optimiser.step()
        optimiser.zero_grad()
        errors.append(error.item())
    return net, errors


race = {
    (kind, blocks): learn_identity(option, blocks)
    for blocks in (1, 2, 4)
    for kind, option in (("plain", None), ("residual", "A"))
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
# A plain block of two layers makes some way in 200 steps, two in a row hardly pass the dotted line, and four do not.
# And these have one single thing to learn, on endless data. Two or four residual blocks begin with a *larger*
# error than plain ones, as each adds a random $F$ to something that was right already. Then they get rid of it.
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
# They pushed $F$ to zero, by the shortest way. (Four in a row are still on theirs.)
#
# The same race with 8 blocks over 500 steps has been recorded (`python -m minires reproduce zero-residual`):

# %%
Markdown(tables.zero_residual(results) or "Not recorded yet.")

# %% [markdown]
# Nobody expects that the best mapping of every layer *is* the identity. The paper's hope is more modest: if the best
# is *near* the identity, then small corrections to $x$ are easier to find than the whole mapping from nothing. (It
# looks at how large the corrections of trained nets are; so do we, in chapter 8.)
#
# ## 3. The way back, term by term
#
# What does $+\,x$ do to the gradient? Let $g$ be the gradient that arrives at $y = F(x) + x$. Two ways lead from $x$ to
# $y$. Gradients add:
#
# $$ \frac{\partial L}{\partial x} \;=\; \underbrace{g}_{\text{over the shortcut}} \;+\;
# \underbrace{\Big(\frac{\partial F}{\partial x}\Big)^{\!\mathsf T} g}_{\text{through the layers}} $$
#
# The first term has met no weight at all. In a plain block the second term is all there is.
#
# Let us see both on a real block. We give the shortcut and the layers an $x$ each, so that their shares arrive apart.

# %%
rng = np.random.default_rng(0)
block = BasicBlock(8, 8, 1, "A", rng)
array = np.abs(rng.standard_normal((4, 6, 6, 8))).astype(np.float32)
g = rng.standard_normal(array.shape).astype(np.float32)


def residual(x):
    """F(x): the block's layers without shortcut, sum and last ReLU."""
    return block.bn2(block.conv2(block.bn1(block.conv1(x), relu=True)))


through, over = (mr.Tensor(array, requires_grad=True) for _ in range(2))
add_relu(residual(through), over).backward(g)

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
# The sum is exact. The shortcut's share is a little smaller than $g$, since the ReLU behind the sum let nothing through
# where $y$ was 0.
#
# Now many blocks in a row. Take one number in place of a map, and let $f_k$ be the slope of $F_k$. The slope of a plain
# stack is the product of all slopes; that of a residual stack is
#
# $$ (1 + f_1)(1 + f_2)(1 + f_3) = 1 + f_1 + f_2 + f_3 + f_1 f_2 + f_1 f_3 + f_2 f_3 + f_1 f_2 f_3 . $$
#
# Each term is a way back through the net: at each block either over the shortcut or through the layers.

# %%
slopes = {"f1": 0.5, "f2": -0.3, "f3": 0.2}
total = 0.0
for length in range(4):
    for way in combinations(slopes, length):
        term = prod(slopes[name] for name in way)
        total += term
        print(f"through {' and '.join(way) or 'no layer at all':15} {term:7.3f}")
print(
    f"sum {total:.3f}, product of (1 + f) {prod(1 + f for f in slopes.values()):.3f}, plain {prod(slopes.values()):.3f}"
)

# %% [markdown]
# **Predict.** In a ResNet-56 there are 27 blocks. How many ways lead back through it? Through how many blocks does a
# typical one go?

# %%
n = 27
ways = [comb(n, k) for k in range(n + 1)]
print(f"{sum(ways):,} ways, {ways[n]} of them through all layers, {ways[0]} through none")
figure, axes = plt.subplots(figsize=(5.5, 2.4))
axes.bar(range(n + 1), np.array(ways) / 1e6)
axes.set(xlabel="blocks that a way goes through", ylabel="ways, millions")
plt.show()

# %% [markdown]
# A plain net has only the last bar's one way. In a residual net most ways are about half as long as the net is deep,
# and if the slopes $f$ are small, the short ones carry most of the gradient. (Veit et al., "Residual networks behave
# like ensembles of relatively shallow networks", 2016.)
#
# Does that mean that a residual gradient is always fine? **Predict** the slope of 27 blocks, plain and residual, for
# $f = 0.5$, $0.1$, $-0.1$ and $-1$.

# %%
for f in (0.5, 0.1, 0.0, -0.1, -0.5, -1.0):
    print(f"f = {f:4}:   plain {f**n:9.0e}   residual {(1 + f) ** n:9.2g}")

# %% [markdown]
# So read the formula with care. The 1 keeps a gradient from **vanishing** where the layers are weak. It does not keep
# it from *exploding*: $1.5^{27}$ is large. Somebody must keep $F$ in bounds, and that is the norm's work. And a term
# can also cancel the 1 (the last two lines), though hardly in all directions of a map at once.
#
# ## 4. A heat map
#
# All of that at once, measured. We take nets of 56 layers, fresh from initialisation, and multiply all kernels by a
# gain, from 0.5 to 1.4. We send a batch through and back, and write down how large the gradient is behind each block,
# compared with the one behind the last block. With and without batch norm. (Without: a fresh net in evaluation mode.
# There the norms have mean 0 and variance 1 and do nothing.)
#
# **Predict** four pictures: plain and residual, without norm and with. Where does the gradient vanish, where does it
# explode?

# %%
whole = open_data("auto")
data = Dataset(
    whole.name,
    whole.train_images[:1000],
    whole.train_labels[:1000],
    whole.test_images[:500],
    whole.test_labels[:500],
    whole.classes,
)
normalise = Normalise.channels(data.train_images)
gains = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4)


def gradient_sizes(model, gain, norm):
    """The size of the gradient behind each block of a fresh net, over that behind the last block."""
    net, outputs = mr.build(model, width=4).train(norm), []
    for weight in net.parameters():
        if weight.ndim == 4:
            weight.data *= np.float32(gain)

    def note(name, module, output):
        if isinstance(module, BasicBlock):
            outputs.append(output.retain_grad())

    with nn.forward_hook(net, note):
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
    seen = axes.imshow(np.log10(ratios), cmap="PuOr_r", vmin=-6, vmax=6, aspect="auto")
    axes.set_title(f"{model}, {'with batch norm' if norm else 'no norm'}")
    axes.set(yticks=range(len(gains)), yticklabels=gains, xticks=range(0, 27, 5), xticklabels=range(1, 28, 5))
for axes in panels[1]:
    axes.set_xlabel("block (the gradient comes from the right)")
for axes in panels[:, 0]:
    axes.set_ylabel("gain")
bar = figure.colorbar(seen, ax=panels, ticks=range(-6, 7, 2), extend="both", shrink=0.9)
bar.ax.set_yticklabels([f"$10^{{{k}}}$" for k in range(-6, 7, 2)])
bar.set_label("gradient, over that behind the last block")
plt.show()

print("gradient behind block 1 over that behind block 27")
print("gain                   " + "".join(f"{gain:>9}" for gain in gains))
for (norm, model), ratios in heat.items():
    print(f"{model:9}{'batch norm' if norm else 'no norm':14}" + "".join(f"{ratio:9.0e}" for ratio in ratios[:, 0]))

# %% [markdown]
# White means unchanged, violet smaller, orange larger.
#
# - **Plain, no norm**: vanishes for every gain below 1, explodes above. Only He's gain of 1 is in between. That is
#   chapter 5.
# - **Residual, no norm**: never vanishes. For the smallest gain it is as good as unchanged. But for He's gain it
#   *explodes*: each block adds as much as it was given.
# - **Plain, batch norm**: the gain no longer matters. It does not vanish; it grows at a steady pace.
# - **Residual, batch norm**: the gain doesn't matter, and over all gains it is the calmest of the four.
#
# The shortcut and the norm each do what the other can't. ResNets need both.
#
# This is before training. The recorded runs on CIFAR-10 wrote down the norm of $\partial L / \partial w$ of each layer
# after each epoch: a heat map over time.

# %% tags=["hide-input"]
recorded = {name: run for name, run in tables.records(results, "degradation").items() if run.rows}
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
        seen = axes.imshow(np.log10(found.T), cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
        axes.set(
            title=name,
            xlabel="epochs done",
            xticks=range(0, len(found), 5 if len(found) > 5 else 1),
            yticks=[0, found.shape[1] - 1],
            yticklabels=[1, found.shape[1]],
        )
    panels[0, 0].set_ylabel("layer")
    bar = figure.colorbar(seen, ax=panels, ticks=range(low, high + 1))
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
# The question that all of this is for. In chapter 6, a tiny plain-56 had hardly begun after nine epochs of 1,000
# images. The same again: same width, same images in the same order, same recipe. Only the plus signs are new.
#
# **Predict.** Which of the two is ahead in the end, ResNet-20 or ResNet-56?

# %%
temporary = TemporaryDirectory()  # for the files that training writes
folder = Path(temporary.name)
rows = {}


def train(name, model, begin=None):
    """Nine epochs with the recipe of chapter 6. begin: a net whose weights to begin with."""

    def watch(run):
        if begin is not None and run.at.step == 0:
            run.net.load_state_dict(begin.state_dict())

    print(name)
    config = Config(model=model, width=4, batch_size=32, epochs=9, lr=0.1, augment=False)
    rows[name] = fit(config, folder / name, dataset=data, watch=watch)


train("resnet20", "resnet20")
train("resnet56", "resnet56")


# %% tags=["hide-input"]
def show_curves(rows):
    """Training loss and training error over the epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for k, (name, curve) in enumerate(rows.items()):
        epochs = [row["epoch"] for row in curve]
        look = {"marker": plots.MARKERS[k], "color": plots.COLOURS[k], "markersize": 4, "label": name}
        axes[0].plot(epochs, [row["train_loss"] for row in curve], **look)
        axes[1].plot(epochs, [100 * (1 - row["train_acc"]) for row in curve], **look)
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
# In its first epochs the deep net has the larger loss, perhaps because it must first make small what 27 random blocks
# add. Then it learns, where plain-56 did not.
#
# One seed, tiny nets, few steps; see chapter 6 for what that is worth. The recorded runs on CIFAR-10 are of full width,
# with the paper's recipe in 10 epochs:


# %% tags=["hide-input"]
def found(*names):
    return [recorded[name].out for name in names if name in recorded]


pairs = {"plain": found("plain20", "plain56"), "residual": found("resnet20", "resnet56")}
pairs = {title: runs for title, runs in pairs.items() if runs}
plots.errors(pairs) if pairs else None

# %%
Markdown(tables.depths(results, "degradation") or "Not recorded yet.")

# %% [markdown]
# With the plus signs 56 layers learn. They have not overtaken 20, though, in ten epochs. Look at the orange curve to
# the right: it begins late, and is 4 points behind when the rate falls. A rate of 0.1 seems to be too high to begin
# with. (With 110 layers the paper saw the same, and began at 0.01. Chapter 8 computes for the last layer which rates
# are too high at the start: those above 0.09 with 56 layers, above 0.3 with 20.) So here are the nets once more, 10
# epochs of the recipe `fast`, whose rate begins at 0.008 (`python -m minires reproduce depth`):

# %%
Markdown(tables.depths(results, "depth") or "Not recorded yet.")

# %% [markdown]
# Here the order has turned round: the deeper residual net has the *lower* training error, and the lower test error too
# (one seed each). The gentle beginning may be the reason. But the recipes differ in more: a higher rate later, more
# weight decay, Nesterov's momentum. The plain nets keep their order, with this recipe as with the other: plain-56 is
# more than 30 points behind plain-20.
#
# In the paper, after 164 epochs, deeper is better as well: on CIFAR-10 the test error falls from 8.75 % with 20 layers
# to 6.97 % with 56 and 6.43 % with 110. On ImageNet ResNet-34 beats ResNet-18 by 2.8 points, where plain-34 lost to
# plain-18.
#
# And the clue of chapter 6, images and their twins with one percent of noise? Here are the gradients again, with the
# plus sign.


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
    print(f"{model}: {np.mean(cosines):.2f} in the mean over the layers")
axes.axhline(0, color=plots.INK, linewidth=0.8, linestyle=":")
axes.set(xlabel="layer", ylabel="cosine", title="likeness of the gradients")
axes.legend(loc="center left", bbox_to_anchor=(0.05, 0.68))
plt.show()

# %% [markdown]
# With shortcuts, neighbours have like gradients. We measured it in fresh nets, and moved the images, not the weights.
# It fits the idea that the shortcut makes the function smoother, so that what is downhill here is still downhill one
# step further, and that this helps more than the size of any gradient. It does not prove it.
#
# ## 6. When the shapes don't fit
#
# $F(x) + x$ needs two arrays of one shape. In most blocks they have one. But the first block of the second and of the
# third stage halves the map and doubles the channels:

# %%
try:
    add_relu(mr.Tensor(np.zeros((1, 16, 16, 32))), mr.Tensor(np.zeros((1, 32, 32, 16))))
except ValueError as error:
    print(error)

# %% [markdown]
# So the shortcut has to fit $x$ to the new shape there. The paper tries three ways.
#
# - **Option A**: no parameters. Take every second pixel of every second line, and zeros for the channels that are
#   lacking.
# - **Option B**: where the shape changes, a **projection**: a 1x1 convolution with stride 2, and a batch norm.
# - **Option C**: a projection on *every* shortcut, also where $x$ would fit as it is.
#
# Option A on a map of 4x4 pixels with two channels:

# %%
x = np.arange(1, 17).reshape(4, 4)
x = np.stack([x, -x], axis=-1)[None].astype(np.float32)  # (1, 4, 4, 2)
y = subsample_and_pad(mr.Tensor(x), stride=2, channels=4).data  # (1, 2, 2, 4)
drawings.numbers(
    {f"x, channel {c}": x[0, :, :, c] for c in range(2)} | {f"y, channel {c}": y[0, :, :, c] for c in range(4)}
)

# %% [markdown]
# A quarter of the pixels, twice the channels. Half of the new zeros stand in front, half behind. (The paper leaves open
# where they go; nets that were trained in one way can't be read in another, so it had to be settled.)
#
# **Predict.** What does each option cost a ResNet-20?

# %%
for option in "ABC":
    net = mr.build("resnet20", shortcut=option)
    total = mr.summarise(net).total
    projections = sum(isinstance(module, nn.Conv2d) and "downsample" in name for name, module in net.modules())
    print(
        f"option {option}: {total.parameters:,} parameters, {total.multiply_adds:,} multiply-adds, "
        f"{projections} projections"
    )

# %% [markdown]
# Little. And what do they bring? On ImageNet, with ResNet-34, the paper finds a top-1 error of 25.03 % with A, 24.52 %
# with B and 24.19 % with C; plain-34 had 28.54 %. So most of the gain comes from having shortcuts at all. The
# differences among the three are small, and the paper concludes that projections are not what matters.
#
# Our own comparison, ResNet-20 on CIFAR-10 with three seeds each (`python -m minires reproduce shortcuts`):

# %%
Markdown(tables.shortcuts(results) or "Not recorded yet.")

# %% [markdown]
# Before you read a winner out of such a table, compare the differences with the spread over the seeds. A and B: no
# difference that three seeds could show. C: behind, by more than the seeds differ. It has the most parameters, and not
# one shortcut left that hands $x$ on as it is. That fits this chapter; five epochs of a small net do not prove it, and
# on ImageNet C was slightly ahead.
#
# All CIFAR nets in the paper use A, so that a residual net has exactly as many parameters as its plain twin. So do the
# ImageNet nets of 18 and 34 layers where they are compared with plain ones; from 50 layers on it is B. C is the
# expensive one, most of all in the next kind of block (chapter 9).
#
# ## 7. Begin as the identity
#
# One more thought. If blocks should do little, why let them begin with a random $F$ as large as $x$? Set the last
# $\gamma$ of each block to **zero** at the start. Then $F(x) = 0$, and every block begins as $y = x$ (Goyal et al.,
# "Accurate, large minibatch SGD", 2017). In minires: `mr.build(..., zero_init=True)`.


# %%
def sizes(net):
    """How large the numbers are behind each block."""
    found = []

    def note(name, module, output):
        if isinstance(module, BasicBlock):
            found.append(size(output.data))

    with mr.no_grad(), nn.forward_hook(net, note):
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
# As usual, each block adds to what is there, and the numbers grow. With zeros nothing happens on the way (where the
# shape changes, half of the channels become zeros). The whole net begins as one convolution, pooling and a linear
# layer, and grows its depth while it learns. A quiet start.
#
# **Predict.** Is it also a *faster* start? The same ResNet-20 as above, the same weights, but the last gammas 0.

# %%
train("resnet20, last gamma 0", "resnet20", begin=mr.build("resnet20", width=4, zero_init=True))
show_curves({name: rows[name] for name in ("resnet20", "resnet20, last gamma 0")})

# %% [markdown]
# Not on Shapes-10. As long as the gammas are near 0 the net *is* that shallow net, and Shapes-10 was drawn so that a
# shallow net can do next to nothing with it. So there may be hardly any gradient that could open the gammas. Within
# these few steps the loss hardly moves. What comes later we have not measured. (If you have CIFAR-10, run this chapter
# with it, and compare: there a shallow net can do something.)
#
# A good idea is not good everywhere. Zero-initialised norms were made for large batches and high rates on ImageNet,
# where a quiet start is worth much. They are an option, not a law; the paper has no such thing. Measure.
#
# ## 8. Things you will read, and what is true
#
# > **Misreadings.** All of these stand in texts about this paper.
# >
# > - *"Plain-18 is worse than plain-34."* The other way round: 27.94 % against 28.54 %. That is the degradation.
# > - *"F(x) is what we want, H(x) the residual."* Swapped. $H$ is wanted, $F(x) = H(x) - x$ is the residual, which the
# >   layers learn.
# > - *"Residuals solve vanishing gradients."* The paper says that batch norm keeps the signals alive already.
# >   Degradation is a difficulty of optimisation, and it shows in the training error.
# > - *"Gradient clipping cures vanishing gradients."* It only makes gradients shorter. It helps against exploding ones.
# > - *"ResNets use layer normalisation."* Batch normalisation.
# > - *"Every 3x3 convolution has stride 2."* Only the first of a stage, and not of the first stage.
# > - *"152 layers reached 3.57 %."* An ensemble of six nets did, in top-5 error on the test set.
# > - *"The more layers the better, up to 1,000 and more."* On CIFAR-10: 6.43 % with 110 layers, 7.93 % with 1202. The
# >   deeper one trains without trouble; the paper blames overfitting.
# > - *"The first nets of over 100 layers."* Highway networks were earlier. ResNets were the first that *gained* from
# >   it.
# > - *"CVPR 2015."* CVPR 2016; it was put on arXiv in December 2015.
# > - The Keras listing of ResNet-50 that is copied from blog to blog has two slips of its own. Chapter 9 finds them.
#
# ## Summary
#
# - $H(x)$ is what a block should compute, $F(x) = H(x) - x$ what its layers learn, $y = F(x) + x$ what comes out.
# - Shortcuts cost no parameters and next to no time, so plain and residual nets compare fairly.
# - The identity is hard for plain layers to find. For residual layers it is $F = 0$, and near by.
# - Backward: $g$ over the shortcut, plus $(\partial F / \partial x)^{\mathsf T} g$ through the layers. Through many
#   blocks: a sum over all ways, of which one meets no weight.
# - The 1 keeps a gradient from vanishing, not from exploding; the norm does that. They need each other.
# - Where the shape changes: option A (no parameters), B (projection there), C (projection everywhere). They
#   differ little, next to having no shortcut at all.
# - With the last $\gamma$ at 0 every block begins as the identity. Quiet, not always fast.
#
# ## Common mistakes
#
# - On the way back, `=` for `+=`: the gradient of the layers overwrites that of the shortcut. The net still trains, as
#   a plain one.
# - Adding in place (`grad += ...`): both parents of a sum hold the same array.
# - The ReLU *before* the sum: then no block can ever take something away, and numbers only grow.
# - The shortcut taken behind the first layer, not from the block's input.
# - A projection's stride forgotten, or a 3x3 put where a 1x1 belongs.
# - Zeros of option A all on one side: another net. Published weights won't fit.
# - `zero_init` with plain blocks: a ReLU follows that norm, no gradient gets through, and nothing is ever learned.
#   (minires refuses.)
#
# ## Three questions
#
# <details><summary>1. Why does the last ReLU of a block stand behind the sum, and not before it?</summary>
#
# Before the sum it would make $F(x) \ge 0$. A block could then only add to $x$, never take away. Behind the sum it is
# the nonlinearity between this block and the next.
#
# </details>
#
# <details><summary>2. With shortcuts, dL/dx = g + (dF/dx)^T g. Can this be zero although g is not?</summary>
#
# Yes, if $(\partial F/\partial x)^{\mathsf T} g = -g$: the layers cancel exactly what the shortcut brings. For one
# number that is $f = -1$. For a map with thousands of numbers, that would have to hold in the direction of $g$; it is
# possible, and hardly ever happens by accident.
#
# </details>
#
# <details><summary>3. A colleague removes the batch norms from ResNet-56 and keeps He's initialisation, "since
# shortcuts take care of the gradient". What happens at the start?</summary>
#
# It explodes. Each block adds about as much as came in, forward and backward, so both signals grow by a constant factor
# per block (the upper right picture of section 4, gain 1). Shortcuts keep gradients from vanishing only.
#
# </details>
#
# ## Exercises
#
# Open `chapters/exercises/ch07_residual.py` in an editor, fill in a function, save, and run its cell here (or, in a
# terminal, `pytest -m ex7_1` or `python -m minires check 7.1`). Stuck? `hint("7.1")`, then `hint("7.1", 2)`.

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
# - `minires/resnet.py`, all of it: every net of the paper in 300 lines. `minires/functional.py`: `add_relu` and
#   `subsample_and_pad`.
# - **Chapter 8, A ResNet on CIFAR-10**: the whole recipe, and what each ingredient is worth.
# - K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016: sections 3.1 to 3.3 and
#   4.1 are this chapter.
# - The same authors' "Identity Mappings in Deep Residual Networks", ECCV 2016, does section 3's sum again, and moves
#   the ReLU off the shortcut's way; `mr.build("preresnet20")`.
