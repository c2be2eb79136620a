# %% [markdown]
# # 5. Keeping the signal alive
#
# **After this chapter you can**
# - predict how a signal and its gradient grow or shrink through fifty layers, and measure it;
# - clip a gradient, and say what that cures and what it does not;
# - build batch norm from single steps, and derive its fused backward term by term;
# - recognise a forgotten evaluation mode by its symptoms;
# - say where batch norm and layer norm differ, and which one ResNets use.
#
# **You need** chapters 1 to 4; from mathematics mean and variance.
#
# **Time**: about 90 minutes to read and run, 120 for the exercises.

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
import time

import matplotlib.pyplot as plt
import numpy as np

import minires as mr
from minires import nn, plots
from minires.course import drawings
from minires.data import Loader, Normalise
from minires.norm import batch_norm_simple
from minires.tensor import topological_order

plots.notebook_style()
data = mr.open_data("auto")
normalise = Normalise.channels(data.train_images)

# %% [markdown]
# ## 1. Fifty times the same little factor
#
# A signal goes through a net layer by layer. Suppose each layer makes it a little larger or smaller: times 1.1, or
# times 0.9. That is next to nothing.
#
# **Predict.** What is left of it, or what has it become, after 50 layers? After 200?

# %%
for factor in (0.7, 0.9, 1.0, 1.1, 1.4):
    after = "   ".join(f"{layers} layers: {factor**layers:9.3g}" for layers in (10, 50, 200))
    print(f"factor {factor}:   {after}")
limits = np.finfo(np.float32)
print(f"\nfloat32 holds numbers from about {limits.smallest_subnormal:.0e} to {limits.max:.0e}")

# %% [markdown]
# Depth is an exponent. Factors that nobody would notice in one layer decide everything over fifty, and before long
# float32 reaches its limits. A deep net can be trained only if the factor is *very* close to 1. And there are two
# signals to take care of: the activations in the forward pass, and the gradient in the backward pass.
#
# ## 2. Two signals, measured
#
# Chapter 3 found the factor of a layer. With weights of mean 0 and variance $\sigma^2$, a layer and its ReLU multiply
# the mean square of the signal by
#
# $$ \tfrac12\, n\, \sigma^2 , $$
#
# where $n$ is the fan-in: how many numbers each output sums. For a convolution that is the length of a row of im2col,
# $n = KH \cdot KW \cdot C$. He's rule, $\sigma^2 = 2/n$, makes the factor 1. Now let all weights be larger by a factor
# $a$; call it the *gain*. Then the mean square grows by $a^2$ per layer, and the size of the signal by $a$.
#
# **And backward?** The gradient of one input is a sum too: over all outputs it entered, times the same weights. It has
# $KH \cdot KW \cdot F$ terms, the fan-out. The ReLU lets the gradient through where $y$ was positive, for half of them.
# So the factor is the same, with fan-out instead of fan-in. In a layer with as many channels out as in, they are equal.
#
# So the prediction is: with gain $a$, after $l$ layers the signal has size $a^l$; and a gradient that starts at the
# loss has, $l$ layers below it, size $a^l$.
#
# Here is a net to try it on: 30 convolutions with ReLU. No batch norm yet. (Chapter 3 did it with linear layers and
# weights that were right or too small. Here they are also too large.)


# %%
def deep_net(depth, gain=1.0, norm=None, width=32, seed=0):
    """Convolutions 3x3, each followed by `norm` (if any) and ReLU, on 16x16 and then 8x8 pixels; a linear layer."""
    rng = np.random.default_rng(seed)
    layers, channels = [], 3
    for i in range(depth):
        conv = nn.Conv2d(channels, width, 3, stride=2 if i in (0, 3) else 1, padding=1, rng=rng)
        conv.weight.data *= np.float32(gain)
        layers.append(conv)
        if norm:
            layers.append(norm(width))
        layers.append(nn.ReLU())
        channels = width
    return nn.Sequential(*layers, nn.GlobalAvgPool(), nn.Linear(width, 10, std=0.01, rng=rng))


def rms(a):
    """Root of the mean square: how large the numbers of an array are."""
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


def signals(net):
    """The size of each ReLU's output, and of the gradient there, for one batch of 64 images."""
    outputs = []

    def note(name, module, output):
        if isinstance(module, nn.ReLU):
            outputs.append(output.retain_grad())

    with nn.forward_hook(net, note):
        loss = mr.cross_entropy(net(mr.Tensor(normalise(data.train_images[:64]))), data.train_labels[:64])
    loss.backward()
    return np.array([rms(t.data) for t in outputs]), np.array([rms(t.grad) for t in outputs])


plain = {gain: signals(deep_net(30, gain)) for gain in (0.7, 1.0, 1.4)}


# %% tags=["hide-input"]
def show_signals(found, predicted=True):
    """Forward and backward, one line per gain; dotted: gain to the power of the number of layers."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for k, (gain, (forward, backward)) in enumerate(found.items()):
        colour, layers = plots.COLOURS[k], np.arange(1, len(forward) + 1)
        for axis, sizes in zip(axes, (forward, backward), strict=True):
            style = {"marker": "vo^"[k], "markersize": 4, "markevery": (k, 3), "color": colour}
            axis.semilogy(layers, sizes, label=f"gain {gain}", **style)
        if predicted:
            axes[0].semilogy(layers, forward[0] * gain ** (layers - 1.0), ":", color=colour)
            axes[1].semilogy(layers, backward[-1] * gain ** (layers[-1] - layers.astype(float)), ":", color=colour)
    axes[0].set(title="forward: size of the activations", xlabel="layer", ylim=(1e-6, 1e6))
    axes[1].set(title="backward: size of the gradient", xlabel="layer (the gradient comes from the right)")
    axes[1].set_ylim(1e-12, 1)
    axes[0].legend()
    plt.show()


# %% [markdown]
# **Predict** the two plots for gain 0.7, 1 and 1.4. In which layer is the gradient smallest for 0.7?

# %%
show_signals(plain)

# %% [markdown]
# The dotted lines are the prediction, with nothing measured in it but the first point. On a logarithmic axis a constant
# factor is a straight line, and straight lines they are. With gain 0.7 the gradient **vanishes** before it reaches the
# first layers: they learn next to nothing. With gain 1.4 it **explodes**. He's gain 1 keeps both near where they
# started. Not exactly: the layers are narrow, so their factors scatter around 1, and the zeros of the padding take a
# little away at every border. The kink between layers 4 and 3, in the right plot, is the stride of layer 4: there a
# pixel enters only a quarter as many outputs, so it collects less.

# %%
for gain, (_, backward) in plain.items():
    print(f"gain {gain}: the gradient in layer 1 is {backward[0] / backward[-1]:.1e} times that in layer 30")

# %% [markdown]
# ## 3. A leash for exploding gradients
#
# What happens to training where gradients explode? The smallest deep net there is has one weight, used twenty times:
# $y = w^{20}$. It should learn to output $\tfrac12$. Here is its loss, $L = \tfrac12 (w^{20} - \tfrac12)^2$.


# %% tags=["hide-input"]
def cliff(w):
    return 0.5 * (w**20 - 0.5) ** 2


def cliff_slope(w):
    return (w**20 - 0.5) * 20 * w**19


line = np.linspace(0, 1.1, 400)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
axes[0].plot(line, cliff(line))
axes[0].set(title="loss", xlabel="w")
axes[1].plot(line, cliff_slope(line), color=plots.COLOURS[1])
axes[1].set(title="slope", xlabel="w")
plt.show()

# %% [markdown]
# A plain on the left, a cliff on the right. On the plain the slope is nearly zero, on the cliff it is huge.
# **Predict.** We start on the cliff, at $w = 1.2$, and take steps with learning rate 0.01. Where does the first step
# lead?

# %%
w = 1.2
for step in range(2):
    print(f"step {step}: w = {w:.3g}, loss {cliff(w):.3g}, slope {cliff_slope(w):.3g}")
    w -= 0.01 * cliff_slope(w)

# %% [markdown]
# Over the edge and out of sight. The slope was right about the direction. But it holds only nearby, and the step was as
# long as the slope was steep. **Clipping** keeps the direction and limits the length: if the gradient is longer than
# $c$, scale it down to length $c$.
#
# $$ g \leftarrow g \cdot \min\!\left(1, \frac{c}{\lVert g \rVert}\right) $$

# %%
w = 1.2
for step in range(31):
    if step % 5 == 0:
        print(f"step {step:2}: w = {w:.3f}, loss {cliff(w):.3g}")
    w -= 0.01 * np.clip(cliff_slope(w), -1, 1)
print(f"wanted: {0.5 ** (1 / 20):.3f}")

# %% [markdown]
# In a net with many parameters, $\lVert g \rVert$ is the norm over **all gradients together**, as if they were one long
# vector. Why not clip every number by itself? Because that changes the direction:

# %% tags=["hide-input"]
g = np.array([3.0, 0.6])
by_norm, by_entry = g * min(1, 1 / np.linalg.norm(g)), np.clip(g, -1, 1)
figure, axes = plt.subplots(figsize=(6, 1.9))
for arrow, style, colour, name in (
    (g, ":", plots.COLOURS[6], "gradient"),
    (by_norm, "-", plots.COLOURS[0], "norm at most 1"),
    (by_entry, "--", plots.COLOURS[1], "each entry at most 1"),
):
    axes.plot([0, arrow[0]], [0, arrow[1]], style, color=colour, marker="o", markersize=5, markevery=[1], label=name)
axes.set(xlim=(-0.05, 3.2), ylim=(-0.05, 0.75), aspect="equal")
axes.legend(loc="lower right", fontsize=8)
plt.show()

# %% [markdown]
# Clipped by its norm, the gradient is shorter and still points the same way. Clipped entry by entry, it turns.
#
# Now a real net, the small one of chapter 4, with a learning rate four times as high as there.


# %%
def small_net(norm=None, seed=0):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=norm is None, rng=rng),
        *([norm(16)] if norm else []),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=norm is None, rng=rng),
        *([norm(32)] if norm else []),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10, std=0.01, rng=rng),
    )


def train(net, lr, steps, max_norm=None):
    """Momentum SGD on batches of 64. Returns the losses and the norms of the gradient before clipping."""
    optimiser = mr.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    loader = Loader(data.train_images, data.train_labels, 64, normalise=normalise, shuffle=True, drop_last=True)
    losses, norms = [], []
    with np.errstate(over="ignore", invalid="ignore"):  # some of these nets go to infinity
        for epoch in range(1 + steps // len(loader)):
            for x, y in loader.epoch(epoch):
                if len(losses) == steps:
                    break
                loss = mr.cross_entropy(net(mr.Tensor(x)), y)
                optimiser.zero_grad()
                loss.backward()
                norms.append(float(mr.clip_grad_norm(net.parameters(), max_norm or np.inf)))
                optimiser.step()
                losses.append(loss.item())
    return np.array(losses), np.array(norms)


wild = train(small_net(), lr=0.2, steps=200)
held = train(small_net(), lr=0.2, steps=200, max_norm=0.25)


# %% tags=["hide-input"]
def smooth(losses, width=10):
    """Mean over the last `width` steps."""
    return np.convolve(losses, np.ones(width) / width, mode="valid")


figure, axes = plt.subplots(1, 2, figsize=(8, 3))
for (losses, norms), style, name in ((wild, "--", "not clipped"), (held, "-", "norm at most 0.25")):
    axes[0].plot(smooth(losses), style, label=name)
    axes[1].semilogy(norms, style, linewidth=0.8, label=name)
axes[0].axhline(np.log(10), color=plots.INK, linewidth=0.8, linestyle=":")
axes[0].set(title="training loss, mean of 10 steps (dotted: ln 10)", xlabel="step", ylim=(0, 3))
axes[1].set(title="norm of the gradient, before clipping", xlabel="step")
axes[0].legend()
plt.show()
print(f"loss over the last 20 steps: {wild[0][-20:].mean():.2f} not clipped, {held[0][-20:].mean():.2f} clipped")

# %% [markdown]
# Without a leash the first steps throw the net to where it only guesses, loss $\ln 10$, and its gradient has almost
# died. With clipping the same learning rate works.
#
# **Predict.** Can clipping also help the net of 30 layers with gain 0.7, whose gradient *vanishes*?

# %%
faint = deep_net(30, gain=0.7)
mr.cross_entropy(faint(mr.Tensor(normalise(data.train_images[:64]))), data.train_labels[:64]).backward()
first = faint[0].weight
before = rms(first.grad)
norm = mr.clip_grad_norm(faint.parameters(), 0.25)
print(f"norm {float(norm):.3f}, allowed 0.25")
print(f"gradient of the first layer: {before:.2e} before, {rms(first.grad):.2e} after")

# %% [markdown]
# No. Clipping only ever makes gradients *shorter*, and all by the same factor. What is too small stays too small.
# "Gradient clipping cures vanishing gradients" is a sentence that you may come across; it is wrong.
#
# ## 4. Force it: batch norm
#
# Initialisation makes the factor 1 *at the start*. Then training changes the weights, and nobody watches the factor any
# more. **Batch norm** does not hope. It measures the signal in every layer, on every batch, and sets its size.
#
# Take four examples with two channels. Each **channel**, a column, gets mean 0 and variance 1. In steps:
#
# 1. the mean of the column: $\mu = \frac1M \sum_i x_i$
# 2. subtract it: $c_i = x_i - \mu$
# 3. the mean of the squares is the variance: $v = \frac1M \sum_i c_i^2$
# 4. divide by its root: $\hat x_i = c_i / \sqrt{v + \varepsilon}$

# %%
x = np.array([[1.0, 40], [3, 20], [5, 60], [7, 40]])
mean = x.mean(axis=0)
c = x - mean
v = (c * c).mean(axis=0)
xhat = c / np.sqrt(v + 1e-5)
drawings.numbers({"x": x, "mean": mean, "c = x - mean": c, "v": v, "xhat": xhat})

# %% [markdown]
# One column went from 1 to 7, the other from 20 to 60. Now they can be compared.
#
# An image has many pixels, and all of them count. For `x` of shape `(N, H, W, C)` the mean of a channel runs over
# images *and* positions, over $M = N \cdot H \cdot W$ numbers. Since the channel is the last axis, that is simply the
# mean over all other axes: think of the array as a table of $M$ rows and $C$ columns.
#
# Two more letters, $\gamma$ and $\beta$, one number per channel, both learned:
#
# $$ y_i = \gamma\, \hat x_i + \beta . $$
#
# Why undo with $\gamma$ and $\beta$ what was just done? So that the net can choose. A channel of mean 0 loses half of
# its values to the ReLU; perhaps a tenth or nine tenths would be better. Batch norm does not take away the freedom to
# have any mean and size. It only prevents them from being an accident, the result of all layers below. Now each is one
# number, with a gradient of its own.
#
# And $\varepsilon$? **Predict** what happens without it to a channel in which all numbers are equal.

# %%
flat = np.full((4, 1), 3.0)
with np.errstate(invalid="ignore"):
    for eps in (0, 1e-5):
        centred = flat - flat.mean(axis=0)
        print(f"eps = {eps:g}: xhat = {(centred / np.sqrt((centred * centred).mean(axis=0) + eps)).ravel()}")

# %% [markdown]
# The library has exactly these steps, written with the operations of chapter 1, so the engine can find the gradient by
# itself:

# %%
print(inspect.getsource(batch_norm_simple))

# %% [markdown]
# Put it between each convolution and its ReLU, and measure the two signals again. **Predict** all six lines.

# %%
normed = {gain: signals(deep_net(30, gain, nn.BatchNorm2d)) for gain in (0.7, 1.0, 1.4)}
show_signals(normed, predicted=False)

# %% [markdown]
# You see one line where there are three: they are on top of each other. The gain has no effect at all. Batch norm
# divides by the size of its input, and with it by any factor in the weights below:

# %%
rng = np.random.default_rng(0)
x = mr.Tensor(rng.standard_normal((8, 6, 6, 4)))
upstream = rng.standard_normal((8, 6, 6, 5))
gamma, beta = mr.Tensor(np.ones(5)), mr.Tensor(np.zeros(5))
weights = rng.standard_normal((3, 3, 4, 5))
results = []
for scale in (1, 10):
    w = mr.Tensor(scale * weights, requires_grad=True)
    y = batch_norm_simple(mr.conv2d(x, w, padding=1), gamma, beta)
    y.backward(upstream)
    results.append((y.data, w.grad))
(y1, dw1), (y10, dw10) = results
print(f"weights times 10: the output changes by {np.abs(y10 - y1).max():.1e} (only because of eps)")
print(f"                  the weights' gradient is {rms(dw10) / rms(dw1):.3f} times as large")

# %% [markdown]
# The second number is worth a thought. Ten times larger weights, the same output, a tenth of the gradient: large
# weights are changed by smaller steps. That is a brake, and nobody had to build it.
#
# Now the honest part: look at the right plot again. Forward, the signal is perfectly flat. Backward it is not. It does
# not vanish; it *grows* a little from layer to layer on its way down.

# %%
_, backward = normed[1.0]
growth = (backward[0] / backward[-1]) ** (1 / (len(backward) - 1))
print(f"the gradient grows by a factor of {growth:.2f} per layer, at initialisation")

# %% [markdown]
# So batch norm has fixed one of the two factors at 1 and brought the other to where a few dozen layers can live with
# it. And the first layers, which starved at gain 0.7, are now the ones that get most.
#
# ## 5. Does it train?
#
# 20 layers, He's initialisation, with and without batch norm, 78 steps. He's gain is 1, so by section 2 both signals
# are healthy without batch norm too. **Predict** the two curves.

# %%
depth_20 = {
    "no norm": train(deep_net(20, width=16), lr=0.1, steps=78)[0],
    "batch norm": train(deep_net(20, width=16, norm=nn.BatchNorm2d), lr=0.1, steps=78)[0],
}


# %% tags=["hide-input"]
def show_losses(runs):
    figure, axes = plt.subplots(figsize=(5.5, 3))
    for (name, losses), style in zip(runs.items(), ("--", "-", "-."), strict=False):
        axes.plot(smooth(losses), style, label=name)
    axes.axhline(np.log(10), color=plots.INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel="training loss, mean of 10 steps")
    axes.legend()
    plt.show()


show_losses(depth_20)

# %% [markdown]
# With batch norm it learns. Without, it does not even begin, though the *size* of its signal is right. So size is not
# everything. What else can die in twenty layers?
#
# Ask what the signal is *for*: it must distinguish the images. Take the activations of each image as one long vector,
# and measure the angle between those of different images. Cosine 0 means that they have nothing in common, cosine 1
# that they point the same way.


# %%
def likeness(net):
    """After each ReLU: the mean cosine between the activations of two different images."""
    found = []

    def note(name, module, output):
        if isinstance(module, nn.ReLU):
            a = output.data.reshape(len(output.data), -1)
            a = a / np.linalg.norm(a, axis=1, keepdims=True)
            found.append((np.sum(a @ a.T) - len(a)) / (len(a) * (len(a) - 1)))

    with mr.no_grad(), nn.forward_hook(net, note):
        net(mr.Tensor(normalise(data.train_images[:64])))
    return found


alike = {
    "no norm": likeness(deep_net(20, width=16)),
    "batch norm": likeness(deep_net(20, width=16, norm=nn.BatchNorm2d)),
}


# %% tags=["hide-input"]
def show_likeness(found):
    figure, axes = plt.subplots(figsize=(5.5, 3))
    for (name, cosines), style, marker in zip(found.items(), ("--", "-", "-."), "os^", strict=False):
        axes.plot(range(1, len(cosines) + 1), cosines, style, marker=marker, markersize=3, label=name)
    axes.set(xlabel="layer", ylabel="cosine between two images", ylim=(0, 1.02), xticks=range(0, 21, 5))
    axes.legend()
    plt.show()


show_likeness(alike)

# %% [markdown]
# Without a norm, all images look more and more alike to the net: after a ReLU no activation is negative, so all vectors
# share a direction, and each layer adds to it. The size is kept, the *difference* is lost. Batch norm subtracts, in
# every channel, what the images have in common: the mean. What is left is what distinguishes them. That is its second
# gift. A gain can't give it: a gain makes all vectors longer and turns none.
#
# ## 6. The backward pass, in small steps
#
# The step-by-step batch norm has one flaw: it is slow. Each of its many small steps writes an array as large as `x`,
# and reads it again in the backward pass.

# %%
x_small = mr.Tensor(rng.standard_normal((6, 3)), requires_grad=True)
gamma_small, beta_small = (mr.Tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2))
y_small = batch_norm_simple(x_small, gamma_small, beta_small)
steps = [node for node in topological_order(y_small.node) if node.parents]
large = [node.name for node in steps if node.shape == x_small.shape]
print(f"{len(steps)} operations; {len(large)} of them write an array as large as x: {', '.join(large)}")

# %% [markdown]
# We want the gradient as *one* formula. The plan: go backwards through the steps, as the engine would. Then put
# everything together, and watch most of it cancel. We look at one channel with $M$ numbers; other channels don't
# matter, since nothing is shared between them. With $s = 1/\sqrt{v + \varepsilon}$ the steps are
#
# $$ \mu = \tfrac1M \textstyle\sum_i x_i, \quad c_i = x_i - \mu, \quad v = \tfrac1M \textstyle\sum_i c_i^2, \quad
#    s = (v + \varepsilon)^{-1/2}, \quad \hat x_i = s\, c_i, \quad y_i = \gamma\, \hat x_i + \beta . $$
#
# Follow the arrows: a quantity with two arrows leaving it is used twice.

# %%
uses = [("x", "mean"), ("x", "c"), ("mean", "c"), ("c", "v"), ("c", "xhat"), ("v", "s"), ("s", "xhat"), ("xhat", "y")]
drawings.chain(["x", "mean", "c", "v", "s", "xhat", "y"], uses)

# %% [markdown]
# Backward, last step first. We write $g_i$ for the upstream gradient $\partial L / \partial y_i$, and $d\,$something
# for $\partial L / \partial\,$something. Two questions at each step: what does this quantity affect, and is it used
# more than once?
#
# **1. $y_i = \gamma\, \hat x_i + \beta$.** $\gamma$ and $\beta$ are used for all $i$, so we sum:
#
# $$ d\beta = \sum_i g_i, \qquad d\gamma = \sum_i g_i\, \hat x_i, \qquad d\hat x_i = \gamma\, g_i . $$
#
# **2. $\hat x_i = s\, c_i$.** $s$ is used for all $i$. ($c_i$ is used here too, and once more in step 4. We come back
# to it there.)
#
# $$ ds = \sum_i d\hat x_i\, c_i . $$
#
# **3. $s = (v + \varepsilon)^{-1/2}$.** Its derivative is $-\frac12 (v + \varepsilon)^{-3/2} = -\frac12 s^3$:
#
# $$ dv = -\tfrac12\, s^3\, ds . $$
#
# **4. $v = \frac1M \sum_i c_i^2$**, whose derivative with respect to $c_i$ is $\frac2M c_i$. Now $c_i$ has both its
# uses, and they add:
#
# $$ dc_i = \underbrace{s\, d\hat x_i}_{\text{from step 2}} + \underbrace{\tfrac2M\, c_i\, dv}_{\text{through } v} . $$
#
# **5. $c_i = x_i - \mu$.** $\mu$ is used for all $i$, with a minus sign:
#
# $$ d\mu = -\sum_i dc_i . $$
#
# **6. $\mu = \frac1M \sum_i x_i$.** $x_i$ was used in step 5 and here. They add:
#
# $$ dx_i = dc_i + \tfrac1M\, d\mu . $$
#
# That is the entire backward pass. In code it is as long as on paper:

# %%
x, gamma, beta = x_small.data, gamma_small.data, beta_small.data
M, eps = len(x), 1e-5
g = rng.standard_normal(x.shape)  # upstream

mean = x.mean(axis=0)
c = x - mean
v = (c * c).mean(axis=0)
s = (v + eps) ** -0.5
xhat = s * c

dbeta = g.sum(axis=0)
dgamma = (g * xhat).sum(axis=0)
dxhat = gamma * g
ds = (dxhat * c).sum(axis=0)
dv = -0.5 * s**3 * ds
dc = s * dxhat + 2 / M * c * dv
dmean = -dc.sum(axis=0)
dx = dc + dmean / M

# %% [markdown]
# Trust, but check: **every single step**, by finite differences. For that, each quantity needs a function that computes
# the loss *from that quantity onwards*, with everything computed before it held fixed. The loss is $\sum_i g_i y_i$,
# whose upstream gradient is $g$.


# %%
def slope(f, a, h=1e-6):
    """df/da for every entry of the array a, by central differences."""
    out = np.empty_like(a)
    for i in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[i] += h
        down[i] -= h
        out[i] = (f(up) - f(down)) / (2 * h)
    return out


def from_xhat(xhat, gamma=gamma, beta=beta):
    return (g * (gamma * xhat + beta)).sum()


def from_s(s):
    return from_xhat(s * c)


def from_v(v):
    return from_s((v + eps) ** -0.5)


def from_c(c):
    return from_xhat(c * ((c * c).mean(axis=0) + eps) ** -0.5)


def from_mean(mean):
    return from_c(x - mean)


def from_x(x):
    return from_c(x - x.mean(axis=0))


for name, derived, measured in (
    ("dbeta", dbeta, slope(lambda beta: from_xhat(xhat, beta=beta), beta)),
    ("dgamma", dgamma, slope(lambda gamma: from_xhat(xhat, gamma=gamma), gamma)),
    ("dxhat", dxhat, slope(from_xhat, xhat)),
    ("ds", ds, slope(from_s, s)),
    ("dv", dv, slope(from_v, v)),
    ("dc", dc, slope(from_c, c)),
    ("dmean", dmean, slope(from_mean, mean)),
    ("dx", dx, slope(from_x, x)),
):
    print(
        f"{name:7} largest entry {np.abs(measured).max():8.1e}   "
        f"largest difference {np.abs(derived - measured).max():.0e}"
    )

# %% [markdown]
# All eight are right.
#
# **Now put it together.** First two facts about a centred column: $\sum_i c_i = 0$, and $c_i = \hat x_i / s$. Start
# with $ds$:
#
# $$ ds = \sum_i \gamma\, g_i\, c_i = \frac{\gamma}{s} \sum_i g_i\, \hat x_i = \frac{\gamma}{s}\, d\gamma . $$
#
# Into $dv$:
#
# $$ dv = -\tfrac12\, s^3 \cdot \frac{\gamma}{s}\, d\gamma = -\tfrac12\, \gamma\, s^2\, d\gamma . $$
#
# Into the second part of $dc_i$, with $s\, c_i = \hat x_i$ at the end:
#
# $$ \tfrac2M\, c_i\, dv = -\tfrac1M\, \gamma\, s^2\, c_i\, d\gamma = -\tfrac1M\, \gamma\, s\; \hat x_i\, d\gamma . $$
#
# So $dc_i = \gamma s \left( g_i - \frac1M \hat x_i\, d\gamma \right)$. Sum it for $d\mu$. The second part is a multiple
# of $\sum_i \hat x_i = 0$ and drops out:
#
# $$ d\mu = -\gamma\, s \sum_i g_i = -\gamma\, s\; d\beta . $$
#
# And $dx_i = dc_i + \frac1M d\mu$ is
#
# $$ \boxed{\; dx_i = \gamma\, s \left( g_i \;-\; \frac{d\beta}{M} \;-\; \hat x_i\, \frac{d\gamma}{M} \right) \;} $$
#
# Six steps have become one line, and it needs only two sums over the data, $d\beta$ and $d\gamma$, which we want
# anyway.

# %%
dx_fused = gamma * s * (g - dbeta / M - xhat * dgamma / M)
print(f"fused and step by step differ by {np.abs(dx_fused - dx).max():.0e}")

# %% [markdown]
# ### What the three terms mean
#
# The first is what you would write if mean and variance were constants. The second is there because **the mean depends
# on x**, the third because **the variance does**. We can check each claim: hold one of them fixed, or both, and
# measure.

# %%
mean_0, v_0 = mean.copy(), v.copy()  # constants


def loss_with(x, mean_moves, variance_moves):
    mean = x.mean(axis=0) if mean_moves else mean_0
    v = ((x - mean) ** 2).mean(axis=0) if variance_moves else v_0
    return from_xhat((x - mean) * (v + eps) ** -0.5)


first, second, third = g, -dbeta / M, -xhat * dgamma / M
for mean_moves, variance_moves, terms, name in (
    (False, False, first, "first"),
    (True, False, first + second, "first + second"),
    (False, True, first + third, "first + third"),
    (True, True, first + second + third, "all three"),
):
    measured = slope(lambda x, m=mean_moves, k=variance_moves: loss_with(x, m, k), x)
    print(
        f"mean {'moves' if mean_moves else 'fixed'}, variance {'moves' if variance_moves else 'fixed'}: "
        f"{name:15} largest difference {np.abs(gamma * s * terms - measured).max():.0e}"
    )

# %% [markdown]
# Each term is there for its reason, and for no other.
#
# The formula can also be drawn. Plot the upstream gradient $g_i$ of one channel against $\hat x_i$, and draw the
# straight line that fits the dots best. Because $\hat x$ has mean 0 and variance 1, that line is
# $\frac{d\beta}{M} + \hat x \frac{d\gamma}{M}$: its height is the mean of $g$, its slope the mean of $g \hat x$. **What
# goes back is what the line leaves over.**

# %% tags=["hide-input"]
xs = rng.standard_normal(14)
xs = (xs - xs.mean()) / xs.std()
gs = 0.5 + 0.8 * xs + 0.5 * rng.standard_normal(14)
line = gs.mean() + xs * (gs * xs).mean()
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True)
axes[0].plot(xs, gs, "o", label="g")
ends = np.array([xs.min(), xs.max()])
axes[0].plot(ends, gs.mean() + ends * (gs * xs).mean(), color=plots.COLOURS[1], label="mean(g) + xhat mean(g xhat)")
axes[0].vlines(xs, line, gs, color="#999999", linewidth=1)
axes[0].legend(fontsize=8)
axes[0].set(title="upstream gradient", xlabel="xhat")
axes[1].plot(xs, gs - line, "o", color=plots.COLOURS[2])
axes[1].vlines(xs, 0, gs - line, color="#999999", linewidth=1)
axes[1].axhline(0, color=plots.COLOURS[1])
axes[1].set(title="what goes back (times gamma s)", xlabel="xhat")
plt.show()
fitted = np.polyfit(xs, gs, 1)
print(f"least squares: slope {fitted[0]:.4f}, height {fitted[1]:.4f}; means: {(gs * xs).mean():.4f}, {gs.mean():.4f}")

# %% [markdown]
# It must be so. Add a constant to the entire channel: batch norm subtracts it again, $y$ does not change, so the
# gradient can't have any part in that direction: its sum is 0. Stretch the channel: the same. So it has no part along
# $\hat x$ either.

# %%
print(f"sum of dx: {np.abs(dx.sum(axis=0)).max():.0e},  sum of dx xhat: {np.abs((dx * xhat).sum(axis=0)).max():.0e}")

# %% [markdown]
# (The second is not quite zero because of $\varepsilon$.) You know one consequence from chapter 2: the plain sum of a
# batch norm's output has gradient zero, so a check with `sum()` proves nothing.
#
# What if a term is forgotten? Here is our formula as an operation, with terms to leave out:


# %%
def fused(keep_mean=True, keep_variance=True):
    def batch_norm(x, gamma, beta):
        m, c = len(x), x.data - x.data.mean(axis=0)
        s = ((c * c).mean(axis=0) + 1e-5) ** -0.5
        xhat = c * s

        def backward(g):
            dbeta, dgamma = g.sum(axis=0), (g * xhat).sum(axis=0)
            dx = g - (dbeta / m if keep_mean else 0) - (xhat * dgamma / m if keep_variance else 0)
            return gamma.data * s * dx, dgamma, dbeta

        return mr.Tensor.from_op(gamma.data * xhat + beta.data, (x, gamma, beta), backward, "batch_norm")

    return batch_norm


inputs = rng.standard_normal((6, 3)), rng.standard_normal(3), rng.standard_normal(3)
for keep_mean, keep_variance in ((True, True), (False, True), (True, False)):
    try:
        print(mr.gradcheck(fused(keep_mean, keep_variance), inputs))
    except mr.GradientError as error:
        print(f"\n{'variance' if keep_mean else 'mean'} term forgotten:\n{error}")

# %% [markdown]
# The checker recognises the first: without the mean term every number of a channel is off by the same constant. The
# second leaves no such trace; all you see is that everything is wrong.
#
# The library's `batch_norm` is this formula with the terms regrouped, so that one pass over memory computes it, and
# shared among threads. Is it right, and what does it save?


# %%
def library(x, gamma, beta):
    return mr.batch_norm(x, gamma, beta, np.zeros(3), np.ones(3))


print("gradients right:", mr.gradcheck(library, [rng.standard_normal((2, 4, 3, 3)), *inputs[1:]]))


def seconds(norm):
    """Best of 5: forward and backward."""
    times = []
    upstream = np.ones((64, 32, 32, 16), np.float32)
    for _ in range(5):
        x = mr.Tensor(upstream.copy(), requires_grad=True)
        x.data[::2] *= 3
        gamma, beta = (mr.Tensor(np.ones(16, np.float32), requires_grad=True) for _ in range(2))
        start = time.perf_counter()
        norm(x, gamma, beta).backward(upstream)
        times.append(time.perf_counter() - start)
    return min(times)


statistics = np.zeros(16, np.float32), np.ones(16, np.float32)
simple, fast = seconds(batch_norm_simple), seconds(lambda *parameters: mr.batch_norm(*parameters, *statistics))
print(f"step by step {1e3 * simple:.0f} ms, fused {1e3 * fast:.0f} ms: {simple / fast:.1f} times as fast")

# %% [markdown]
# ## 7. Two modes, and the bug of forgetting one
#
# Batch norm makes the output for an image depend on the other images of its batch. In training we accept that. But a
# trained net should give one answer for an image, whatever its neighbours are. So batch norm has **two modes**:
#
# - **training**: mean and variance are the batch's own. In addition, it keeps *running* averages of both.
# - **evaluation**: mean and variance are the running ones, and these are constants. They don't change any more.
#
# The running average moves a tenth of the way to each new batch: $r \leftarrow r + 0.1\,(b - r)$. **Predict.** Begin at
# 0, feed it batches whose mean is about 5: after how many steps is it within a tenth of 5?

# %%
running_mean, running_var = np.zeros(1), np.ones(1)
path = [running_mean[0]]
for _ in range(60):
    batch = mr.Tensor(5 + 2 * rng.standard_normal((16, 1)))
    mr.batch_norm(batch, mr.Tensor(np.ones(1)), mr.Tensor(np.zeros(1)), running_mean, running_var)  # changes both
    path.append(running_mean[0])

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5.5, 2.8))
axes.plot(path, "o-", markersize=3, label="running mean")
axes.plot(5 * (1 - 0.9 ** np.arange(61)), ":", color=plots.INK, label="5 (1 - 0.9^k)")
axes.axhline(5, color=plots.COLOURS[1], linewidth=0.8, label="the true mean")
axes.set(xlabel="batches seen", ylim=(0, None))
axes.legend()
plt.show()
print(f"running variance at the end: {running_var[0]:.2f} (the true variance is 4)")

# %% [markdown]
# What is left of the start after $k$ batches is $0.9^k$: a tenth of it after 22. And it never comes to rest, since each
# batch pulls at it.
#
# One detail. The variance of a small batch is too small on average: its numbers are closer to *their own* mean than to
# the true one. The factor is $\frac{M-1}{M}$. That does not matter for normalising the batch itself, but the running
# variance should represent all images. So it is updated with the variance times $\frac{M}{M-1}$ (the *unbiased* one):

# %%
small_batches = rng.standard_normal((100_000, 4))  # variance 1
biased = small_batches.var(axis=1).mean()
print(f"M = 4: mean of the batches' variances {biased:.3f}, times 4/3: {biased * 4 / 3:.3f}")

# %% [markdown]
# Now train the small net with batch norm, and then test it in several ways.

# %%
net = small_net(nn.BatchNorm2d)
losses, _ = train(net, lr=0.02, steps=312)
net.eval()
state = net.state_dict()
_, accuracy = mr.evaluate(net, data.test_images, data.test_labels, normalise)
print(f"training loss at the end {losses[-20:].mean():.2f}, test accuracy {accuracy:.1%}")

# %% [markdown]
# `net.eval()` is the line that people forget. Without it the net stays in training mode, and the test still runs:
# nothing crashes, nothing warns. **Predict**: does it matter, if the test images come
#
# - in mixed batches of 100?
# - in mixed batches of 4?
# - one by one?
# - in batches of 100, sorted by class?


# %%
def accuracy_in_training_mode(order, batch):
    """The mistake: forward passes without eval()."""
    net.load_state_dict(state)
    net.train()
    images, labels = normalise(data.test_images[order]), data.test_labels[order]
    with mr.no_grad():
        guesses = [net(mr.Tensor(images[i : i + batch])).data.argmax(-1) for i in range(0, len(order), batch)]
    net.eval()
    return np.mean(np.concatenate(guesses) == labels)


mixed = rng.permutation(1000)
by_class = mixed[np.argsort(data.test_labels[mixed], kind="stable")]
results = {
    "evaluation mode": mr.evaluate(net, data.test_images[:1000], data.test_labels[:1000], normalise)[1],
    "training mode, mixed, batches of 100": accuracy_in_training_mode(mixed, 100),
    "training mode, mixed, batches of 4": accuracy_in_training_mode(mixed, 4),
    "training mode, one by one": accuracy_in_training_mode(mixed, 1),
    "training mode, sorted by class": accuracy_in_training_mode(by_class, 100),
}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 2.3))
bars = axes.barh(list(results), [100 * a for a in results.values()], color=[plots.COLOURS[2]] + [plots.COLOURS[1]] * 4)
axes.bar_label(bars, [f"{a:.1%}" for a in results.values()], padding=3, fontsize=8)
axes.set(xlabel="test accuracy (%)", xlim=(0, 110))
axes.invert_yaxis()
axes.grid(False)
plt.show()

# %% [markdown]
# One net, one set of weights, the same images. Large mixed batches hide the bug: their mean and variance are close to
# the running ones. The smaller the batches, the more it shows. Batches of one class show it too: batch norm subtracts
# what the images of the batch have in common, and here that is just what the net should have found.
#
# A second symptom: the answer for an image changes with its company.

# %%
image, others = normalise(data.test_images[:1]), normalise(data.test_images[by_class[:15]])
company = {
    "alone": image,
    "with 15 mixed images": normalise(data.test_images[:16]),
    f"with 15 of class {data.classes[0]}": np.concatenate([image, others]),
}
label = data.test_labels[0]
for mode in ("train", "eval"):
    net.load_state_dict(state)
    net.train(mode == "train")
    for name, batch in company.items():
        with mr.no_grad():
            p = np.exp(mr.log_softmax(net(mr.Tensor(batch))).data[0, label])
        print(f"{mode + '()':8} {name:28} probability of the right class: {p:.3f}")

# %% [markdown]
# A third: a test in training mode *changes the net*, because the running statistics keep running.

# %%
net.load_state_dict(state)
before = net[1].running_mean.copy()
net.train()
with mr.no_grad():
    net(mr.Tensor(others))
print(f"one forward pass, no step: the running mean moved by up to {np.abs(net[1].running_mean - before).max():.3f}")
net.load_state_dict(state)

# %% [markdown]
# So the rule: `net.train()` before training steps, `net.eval()` before anything else; a good test function does the
# second itself, as `mr.evaluate` does, and restores the mode. `no_grad` is a different switch: it saves memory, and
# does nothing to batch norm.
#
# Why small batches are noisy: the mean of $M$ numbers is off by about $1/\sqrt M$ of their spread. With images, $M$
# counts pixels too, but the pixels of one image resemble each other, and count for less than their number.
#
# ## 8. Layer norm
#
# All of this trouble comes from averaging over the batch. **Layer norm** doesn't. It takes the mean and variance of
# each row: at every position of every image, over its channels.

# %%
table = np.arange(1, 19).reshape(6, 3)
drawings.numbers(
    {"batch norm: each column": table, "layer norm: each row": table},
    marks={"batch norm: each column": [(0, 1, 6, 1)], "layer norm: each row": [(2, 0, 1, 3)]},
)

# %% [markdown]
# The rows are examples (or positions in images), the columns channels. The formula is the same, along the other axis.
# So is the backward pass: the same three terms, with means over the channels. Transpose the table, and batch norm *is*
# layer norm:

# %%
x = rng.standard_normal((6, 3))
upstream = rng.standard_normal((6, 3))


def ones_and_zeros(n):
    return mr.Tensor(np.ones(n)), mr.Tensor(np.zeros(n))


a, b = mr.Tensor(x, requires_grad=True), mr.Tensor(x.T.copy(), requires_grad=True)
by_row = mr.layer_norm(a, *ones_and_zeros(3))
by_column = mr.batch_norm(b, *ones_and_zeros(6), np.zeros(6), np.ones(6))
by_row.backward(upstream)
by_column.backward(upstream.T)
print("outputs equal:", np.allclose(by_row.data, by_column.data.T), "  gradients equal:", np.allclose(a.grad, b.grad.T))

# %% [markdown]
# What follows from using rows instead of columns? **Predict** for each: change one image of a batch a lot; what happens
# to the outputs of the *others*? And: a batch of one?

# %%
x = rng.standard_normal((4, 6))
y = x.copy()
y[0] = 10 * y[0] + 3  # one image is changed
norms = {
    "batch norm": lambda x: mr.batch_norm(mr.Tensor(x), *ones_and_zeros(6), np.zeros(6), np.ones(6)).data,
    "layer norm": lambda x: mr.layer_norm(mr.Tensor(x), *ones_and_zeros(6)).data,
}
for name, norm in norms.items():
    print(f"{name}: the other outputs change by up to {np.abs(norm(y)[1:] - norm(x)[1:]).max():.2f}")
    try:
        print("            a batch of one: fine, size", f"{rms(norm(x[:1])):.2f}")
    except ValueError as error:
        print("            a batch of one:", error)

# %% [markdown]
# | | batch norm | layer norm |
# | --- | --- | --- |
# | mean and variance over | the batch and all positions, for each channel | the channels, for each image and position |
# | images of a batch | depend on each other | do not |
# | training and evaluation | two modes, running statistics | one mode |
# | batch of one | fails, or is noisy | fine |
# | keeps the size of the signal | yes | yes |
# | removes what all images have in common | yes | no |
#
# The last row is a claim. Test it: put layer norm into the net of 20 layers. **Predict** its cosine curve and its loss.

# %%
alike["layer norm"] = likeness(deep_net(20, width=16, norm=nn.LayerNorm))
show_likeness(alike)

# %%
depth_20["layer norm"] = train(deep_net(20, width=16, norm=nn.LayerNorm), lr=0.1, steps=78)[0]
show_losses(depth_20)

# %% [markdown]
# The size is right in every layer, and still all images look alike in the end: a row doesn't know what other images
# have at the same position. In *this* deep plain net layer norm does not help. That is no verdict on layer norm.
# Transformers use it in every block. But there each block has a shortcut around it, which carries the differences past.
# And the deeper one looks, the more that shortcut turns out to matter: it is the subject of chapter 7.
#
# > **A misreading.** "ResNet uses layer normalisation." It does not: every convolution is followed by a *batch* norm.
#
# ## 9. Is the patient cured?
#
# The nets of the residual paper, plain and residual, have a batch norm after every convolution. Measure the gradient
# that arrives at the weights of each layer, in a plain net and in a residual one of 56 layers, just initialised.

# %%
arriving = {}
for name in ("plain56", "resnet56"):
    deep = mr.build(name, seed=0)
    loss = mr.cross_entropy(deep(mr.Tensor(normalise(data.train_images[:32]))), data.train_labels[:32])
    loss.backward()
    arriving[name] = [np.linalg.norm(p.grad) for key, p in deep.named_parameters() if "conv" in key]

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6.5, 3))
for (name, norms_of_layers), style, marker in zip(arriving.items(), ("--", "-"), "os", strict=True):
    axes.semilogy(range(1, 56), norms_of_layers, style, marker=marker, markersize=3, label=name)
axes.set(xlabel="convolution", ylabel="norm of its weights' gradient")
axes.legend()
plt.show()
for name, norms_of_layers in arriving.items():
    print(f"{name}: first convolution {norms_of_layers[0]:.2g}, last {norms_of_layers[-1]:.2g}")

# %% [markdown]
# Look where the plain net's gradient is small: nowhere near the input. There it is the *largest*; it grows backward, as
# in section 4. So nothing vanishes. The authors of the residual net report the same: with batch norm, "neither forward
# nor backward signals vanish" (section 4.1).
#
# > **A misreading.** "Vanishing gradients are what residual nets solve." Batch norm and a good initialisation had dealt
# > with those. And yet plain nets get *worse* with depth: 56 layers train worse than 20, on the training set itself.
# > That is the *degradation problem*. It is where the next chapter begins.
#
# ## Summary
#
# - Depth is an exponent. A layer followed by a ReLU multiplies the size of the signal by $\sqrt{n \sigma^2 / 2}$; He's
#   initialisation makes this factor 1, forward and (with equal widths) backward.
# - Clipping by the norm of all gradients together keeps the direction and limits the step. It tames explosions. It does
#   nothing for gradients that vanish.
# - Batch norm gives every channel mean 0 and variance 1 over the batch, then a size and a mean of the net's own choice.
#   It makes the gain of the weights irrelevant, and it keeps images different from each other.
# - $dx_i = \gamma s\,(g_i - d\beta / M - \hat x_i\, d\gamma / M)$: the upstream gradient without its mean and without
#   its part along $\hat x$.
# - Training mode uses the batch's statistics, evaluation mode the running ones. Forgetting `eval()` raises no error.
# - Layer norm is the same formula along the other axis: no running statistics, no company, one mode.
#
# ## Common mistakes
#
# - **`eval()` forgotten** in a test, or **`train()` forgotten** after one: then training continues with frozen
#   statistics.
# - **Mean or variance treated as constants** in the backward pass: the second or third term is missing.
# - **Running statistics inside the graph.** They are plain arrays. If they remembered how they were computed, every
#   batch would hold on to all those before it, and memory would grow.
# - **Mean over the wrong axes.** `(N, H, W)` for batch norm of images. `x.mean(axis=0)` alone gives every *pixel* a
#   mean of its own.
# - **Biased variance in the running average**, or the unbiased one in the batch's own normalisation.
# - **A convolution with a bias in front of a batch norm.** The norm subtracts the mean, and the bias with it. That is
#   why `Conv2d` has none by default.
# - **Clipping each layer by itself** (or each entry): the direction changes. One norm over everything.
# - **Clipping against vanishing gradients**, and **"ResNet uses layer norm"**: see above.
#
# ## Three questions
#
# <details><summary>1. A convolution with a bias is followed by a batch norm. What is the gradient of the
# bias?</summary>
#
# Zero, except for rounding. The bias adds a constant to an entire channel, batch norm subtracts it, so the output
# doesn't depend on it. In the formula: the gradient of the bias is the sum of $dx_i$ over the channel, and that is 0.
#
# </details>
#
# <details><summary>2. You multiply all weights of a convolution in front of a batch norm by 10 and keep the learning
# rate. How much smaller is a step now, relative to the weights?</summary>
#
# A hundred times. The gradient is a tenth (section 4), the weights are ten times as large. So the size of the weights
# works like a hidden learning rate, and weight decay, which makes them smaller, makes the steps relatively larger.
#
# </details>
#
# <details><summary>3. Your net reaches 99 % in training and 12 % in a test with eval(); with batches of 100 in training
# mode the same test gives 90 %. Where do you look?</summary>
#
# At the running statistics: the weights are good, but what `eval()` uses does not fit them. Were there enough training
# steps to fill them (section 7: 22 batches for a tenth)? Were they saved and loaded with the weights? Are the images
# normalised in the same way in both?
#
# </details>
#
# ## Exercises
#
# Five functions, in `chapters/exercises/ch05_normalisation.py`. Fill one in, save, and run its cell (or, in a terminal,
# `pytest -m ex5_2` or `python -m minires check 5.2`). Stuck? `hint("5.2")`, then `hint("5.2", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 5.1 `clip_by_norm` | gradient clipping by the norm of all gradients | 1 | about 3 |
# | 5.2 `batch_norm_training` | batch norm, forward | 2 | about 6 |
# | 5.3 `BatchNorm` | running statistics, training and evaluation mode | 2 | about 9 |
# | 5.4 `batch_norm_backward` | batch norm, backward, in one formula | 2 | about 8 |
# | 5.5 `layer_norm` | layer norm, forward | 1 | about 4 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("5.1")

# %%
check("5.2")

# %%
check("5.3")

# %%
check("5.4")

# %%
check("5.5")

# %%
hint("5.1")

# %% [markdown]
# ## Read on
#
# - `minires/norm.py`: both norms, step by step and fused. `_mean_and_variance` computes both in one pass over memory;
#   its docstring says how to do that without losing digits. `minires/kernels.py` has the fused inner formulas.
# - `minires/nn.py`: `BatchNorm2d` and `LayerNorm`, `train()` and `eval()`, and `forward_hook`, which this chapter used
#   to look inside.
# - `minires/optim.py`: `clip_grad_norm`. `minires/training/loop.py`: where the modes are switched in a real loop.
# - `chapters/one_page.py`: all of it so far on one page, in NumPy alone, and the residual net that chapter 7 adds.
# - **Chapter 6, Plain nets stop improving**: what goes wrong when a plain net with batch norm gets deeper.
# - Sources: He et al. 2015, "Delving deep into rectifiers" (the factor of a layer); Pascanu et al. 2013, "On the
#   difficulty of training recurrent neural networks" (cliffs and clipping); Ioffe and Szegedy 2015, "Batch
#   normalization"; Ba et al. 2016, "Layer normalization"; Yang et al. 2019, "A mean field theory of batch
#   normalization" (why gradients grow in deep plain nets with batch norm); He et al. 2016, "Deep residual learning for
#   image recognition", section 4.1.
