# %% [markdown]
# # 8. A ResNet on CIFAR-10
#
# **After this chapter you can**
# - write down an entire training recipe, and say what each ingredient is for;
# - take an ingredient away and measure what it did, without fooling yourself;
# - read training curves: overfitting, underfitting, and the jump where the learning rate falls;
# - look at what a net gets wrong, as a table and as images;
# - estimate what 110 or 1,202 layers cost before you start, and which rates are too high at the start.
#
# **You need** chapters 3, 5 and 7 (SGD and weight decay, batch norm, the residual block).
#
# **Time**: about 75 minutes to read and run, 75 for the exercises.

# %% tags=["hide-input"]
# Run this first. If minires is missing, it installs the checkout that contains this notebook.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minires") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".."], check=True)
    sys.path.insert(0, "..")

# %%
import copy
import json
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import minires as mr
from minires import nn, plots
from minires.data import Loader, Normalise
from minires.data.augment import augment
from minires.optim import one_cycle
from minires.paper import tables
from minires.paper.experiments import EXPERIMENTS, layer_statistics
from minires.paper.figures import by_layer
from minires.paper.records import checkout, records
from minires.training.config import PAPER_STEPS, RECIPES, schedule_of

plots.notebook_style()
RESULTS = checkout("results")  # what was recorded on real CIFAR-10

# %% [markdown]
# ## 1. The recipe on one card
#
# A net is half of a result. The other half is how it was trained. Section 4.2 of the paper describes it in a dozen
# lines:
#
# | ingredient | in the paper | what for | chapter |
# | --- | --- | --- | --- |
# | data | 50,000 training images; choices on 45,000 + 5,000 | the test set stays unseen | 3 |
# | input | the mean image is subtracted | numbers around 0 | 3 |
# | augmentation | 4 pixels of padding, a random crop, a random flip | new images from old | here |
# | net | depth 6n + 2, shortcuts of option A | depth that can be trained | 7 |
# | initialisation | He's | the signal keeps its size | 3 |
# | norm | batch norm after every convolution, no dropout | it also keeps that size later | 5 |
# | loss | cross-entropy | | 3 |
# | steps | SGD, momentum 0.9, batches of 128 | | 3 |
# | weight decay | 0.0001 | small weights | 3 |
# | rate | 0.1, divided by 10 at steps 32,000 and 48,000 of 64,000 | large steps first, small ones last | here |
# | warm-up | with 110 layers, a while at 0.01 | otherwise learning starts late | here |
#
# In minires this recipe is called `paper`. There is also `fast`, if you have an hour rather than a day. Here are all
# the settings in which they differ.

# %%
fast, paper = mr.Config.from_recipe("fast"), mr.Config.from_recipe("paper")
for name in RECIPES["paper"]:
    print(f"{name:19} fast: {getattr(fast, name)!s:12} paper: {getattr(paper, name)}")
print(f"\nthe paper's {PAPER_STEPS:,} steps are {PAPER_STEPS * 128 / 50_000:.0f} epochs of 50,000 images")

# %% [markdown]
# (`epochs: None` means that `steps` counts: those of the paper. `decay_bias_and_norm`: whether biases, gamma and beta
# decay as well.)
#
# **Predict.** Draw the learning rate over the steps: for the paper's ResNet-20, for its ResNet-110, and for one cycle.

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7.5, 3))
plans = {
    "paper": paper,
    "paper, 110 layers": mr.Config.from_recipe("paper", model="resnet110"),
    "fast": fast,
}
steps = np.unique(np.concatenate([np.arange(0, 1000, 10), np.arange(0, PAPER_STEPS, 200)]))
styles = zip(plots.COLOURS, ("-", "--", "-."), (3.5, 1.5, 1.5), strict=False)
for (name, config), (colour, style, width) in zip(plans.items(), styles, strict=True):
    plan = schedule_of(config, PAPER_STEPS)
    axes.plot(steps, [plan(step) for step in steps], style, color=colour, linewidth=width, label=name)
axes.set(yscale="log", ylim=(5e-4, 0.4), xlabel="step", ylabel="learning rate")
axes.legend(loc="lower left")
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The paper's schedule is a staircase. The warm-up of the deep nets is the tiny step at its left end: 400 steps of
# 64,000. One cycle goes up in a straight line, and down in another one, to zero. (A straight line that ends at zero
# looks like a cliff on a logarithmic axis.)
#
# ## 2. New images from old
#
# Augmentation costs nothing. Each image is shifted by up to 4 pixels in each direction and mirrored half of the time.
# The label stays the same: a ship further to the left is still a ship.
#
# Here is one training image, and then what the net gets in eight epochs.

# %%
data = mr.open_data("auto")
images, labels = data.train_images[:1000], data.train_labels[:1000]  # all we train on in this chapter
test_images, test_labels = data.test_images[:1000], data.test_labels[:1000]
normalise = Normalise.channels(images)

chosen = 6
shown = [images[chosen]]
for epoch in range(8):
    x = augment(normalise(images[chosen : chosen + 1]), np.random.default_rng(epoch))
    shown.append(np.clip(x[0] / normalise.scale + normalise.mean, 0, 255).astype(np.uint8))  # as an image again
plots.gallery(shown, [f"{data.classes[labels[chosen]]}", *(f"epoch {k}" for k in range(1, 9))], columns=9)

# %% [markdown]
# The border that appears is the padding. It is zero *after* normalisation, so it has the mean colour of all images, and
# the net sees nothing there. Padding before normalisation would paint it black, a strong signal.
#
# How many different images can one image become? $9 \cdot 9$ positions, times 2. They are never as good as new
# photographs, since they share nearly everything. But an image can no longer be learned by heart, pixel by pixel.
#
# > **Which flips are allowed?** Those that keep the label. Left and right: yes, for ships and for our shapes. Upside
# > down: no, for a ship. Left and right for handwritten digits: no, not even for the digit 2. You have to know your
# > data.
#
# ## 3. The loop
#
# Now all of it together. We have half a minute, not a day, so everything shrinks: 1,000 images, 24 epochs in batches of
# 50, and a ResNet of 8 layers with 8 channels. Its first convolution gets stride 2, so that all maps are half as wide
# and half as high. The recipe is `fast`: one cycle, up to 0.2. (With `MINIRES_DATA` set, all of this runs on CIFAR-10.
# What the text says about results is about Shapes-10.)
#
# Every ingredient that we will take away is an argument.


# %%
class Shift(nn.Module):
    """What remains of a batch norm without its norm: y = x + beta."""

    def __init__(self, channels):
        self.bias = nn.parameter(np.zeros(channels))

    def forward(self, x):
        return x + self.bias


def small_net(model="resnet8", norm=True, seed=0):
    net = mr.build(model, width=8, seed=seed)
    net.conv1.stride = 2
    for _, module in list(net.modules()):
        for name, part in list(vars(module).items()):
            if isinstance(part, nn.BatchNorm2d) and not norm:
                setattr(module, name, Shift(part.weight.size))
    return net


def train(epochs=24, lr=0.2, weight_decay=5e-4, augment=True, cycle=True, seed=0, watch=False, **options):
    """Returns the net and a row of figures for each epoch. watch: test every third epoch, not only the last."""
    net = small_net(seed=seed, **options)
    loader = Loader(images, labels, 50, normalise=normalise, seed=seed, shuffle=True, augment=augment)
    total, step, rows = epochs * len(loader), 0, []
    schedule = one_cycle(lr, total) if cycle else lambda step: lr
    optimiser = mr.SGD(net.parameters(), lr, 0.9, weight_decay, nesterov=True, decay_bias_and_norm=False)
    for epoch in range(epochs):
        correct = 0
        for x, y in loader.epoch(epoch):
            optimiser.lr = schedule(step)
            step += 1
            logits = net(mr.Tensor(x))
            loss = mr.cross_entropy(logits, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            correct += (logits.data.argmax(-1) == y).sum()
        row = {"epoch": epoch + 1, "lr": optimiser.lr, "train": 100 * (1 - correct / len(labels))}
        if epoch + 1 == epochs or (watch and epoch % 3 == 2):  # a test takes time
            row["test"] = 100 * (1 - mr.evaluate(net, test_images, test_labels, normalise)[1])
        rows.append(row)
    return net, rows


# %% [markdown]
# **Predict** the training and the test error of the full recipe after 24 epochs. Guessing gives 90 %.

# %%
nets, found = {}, {}


def try_out(name, **options):
    nets[name], found[name] = train(**options)
    last = found[name][-1]
    print(f"{name:22} training error {last['train']:5.1f} %, test error {last['test']:5.1f} %", flush=True)


try_out("the full recipe", watch=True)
for row in found["the full recipe"]:
    if "test" in row:
        print(f"epoch {row['epoch']:2}: rate {row['lr']:.3f}, training {row['train']:5.1f}, test {row['test']:5.1f} %")

# %% [markdown]
# It has seen a thousand images, a hundred of each class, and recognises the shape in four out of five new ones. Was it
# the net, or the recipe? We will know in a minute.
#
# `mr.fit` is this same loop, and it also writes checkpoints, resumes where it was stopped, and stops at losses that are
# not finite. `python -m minires train --recipe fast` calls it.
#
# ## 4. Take one away
#
# To find out what an ingredient does, leave it out, keep all the others, and train again. Five times:
#
# - no **augmentation**;
# - no **weight decay**;
# - no **schedule**: the rate stays at its highest, 0.2;
# - no **norm**: each batch norm replaced by its beta alone;
# - no **shortcuts**: the plain net with the same layers.
#
# And a sixth run takes nothing away. It changes the *seed*: other initial weights, another order, other crops. It shows
# how much a result varies by chance. Without it we could not interpret the table.
#
# **Predict.** Order the five from "hurts most" to "doesn't matter".

# %%
try_out("another seed", seed=1)
try_out("no augmentation", augment=False, watch=True)
try_out("no weight decay", weight_decay=0)
try_out("no schedule", cycle=False)
try_out("no shortcuts", model="plain8")
with np.errstate(all="ignore"):
    try_out("no norm", norm=False, epochs=4)

# %% [markdown]
# (The net without a norm got only 4 epochs: there is nothing to wait for.) Does it need a smaller rate?

# %%
try_out("no norm, rate 0.02", norm=False, lr=0.02)

# %% tags=["hide-input"]
shown = [name for name in found if name != "no norm"]
figure, axes = plt.subplots(figsize=(7.5, 3.2))
for part, colour, shift, hatch in (("train", plots.COLOURS[5], -0.2, ""), ("test", plots.COLOURS[0], 0.2, "//")):
    errors = [found[name][-1][part] for name in shown]
    bars = axes.barh(
        np.arange(len(shown)) + shift,
        errors,
        0.38,
        color=colour,
        hatch=hatch,
        edgecolor="white",
        label={"train": "training", "test": "test"}[part],
    )
    axes.bar_label(bars, [f"{error:.1f}" for error in errors], padding=3, fontsize=8)
axes.axvline(90, color=plots.INK, linewidth=0.8, linestyle=":")
axes.set_yticks(range(len(shown)), shown)
axes.set(xlabel="error after the last epoch (%); dotted: guessing", xlim=(0, 100))
axes.invert_yaxis()
axes.legend(loc=(0.6, 0.72))
plt.show()

# %% [markdown]
# Read this with chance in mind. With 1,000 test images an error is uncertain by more than one point, whatever the seed.
# And one run is one draw. `benchmarks/small_recipes.py` has trained all of these nets, except those without a norm,
# with five seeds each.
#
# **Predict.** Which row varies most from seed to seed?

# %%
repeated = json.loads(checkout("benchmarks/small_recipes.json").read_text(encoding="utf-8"))
machine = repeated["machine"]
print(f"recorded: Shapes-10, {machine['processor']}, NumPy {machine['versions']['numpy']}")
print(f"{'test error (%)':18}{'mean':>6}{'spread':>8}   seeds {repeated['seeds'][0]} to {repeated['seeds'][-1]}")
for name, row in repeated["recipes"].items():
    errors = "".join(f"{error:6.1f}" for error in row["test_errors"])
    print(f"{name:18}{row['mean']:6.1f}{row['stdev']:8.1f}   {errors}")

# %% [markdown]
# The spread is the standard deviation. The full recipe ends near 20 % with every seed, and all others vary more. (Two
# seeds that happen to agree prove little: the first two without a schedule are close together, the last is far away.)
#
# - **No norm** hurts most. At the full rate the net hardly gets beyond guessing. At a tenth of it, it learns, but
#   slowly. The norm is what makes large steps possible (chapter 5).
# - **No schedule**: the mean rises from 19.9 to 27.2 %, and the spread is the largest of all. At a rate of 0.2 the
#   weights never settle, so the error depends on where they happen to be at the end: as low as with the full recipe, or
#   at 35.4 %. Section 5 looks at this.
# - **No augmentation**: the training error is zero. The net knows all thousand images by heart, and nothing drives it
#   further. On new images this costs four points in the mean, and something with every seed, but only 0.2 points with
#   seed 3. One run cannot measure such an effect, and five are not enough for a paper.
# - **No weight decay**: the same, with a mean of 23.7 %. Here it is seed 2 that makes hardly a difference.
# - **No shortcuts**: no harm that could be seen. The mean is even a little lower, but by less than the spread. Did we
#   study the wrong thing for two chapters? No: this net has 8 layers. Plain nets fail when they are *deep* (chapter 6).
#   The paper finds the same: on ImageNet, 18 layers end at 27.94 % without shortcuts and at 27.88 % with them.
#
# So a small run shows large effects, and several of them show smaller ones. They cannot show what takes long. "It did
# not help here" does not mean "it does not help". For weight decay we can compute how much of its effect takes long.
# Each step takes the fraction (rate times decay) off a weight, and momentum makes that ten times as much.


# %%
def decay(rates, weight_decay, momentum=0.9):
    """What weight decay alone would leave of a weight: momentum makes each step 1 / (1 - momentum) as long."""
    return np.exp(-sum(rates) * weight_decay / (1 - momentum))


our_steps = 24 * len(labels) // 50
ours, theirs = one_cycle(0.2, our_steps), schedule_of(paper, PAPER_STEPS)
print(f"our {our_steps} steps leave {decay(map(ours, range(our_steps)), 5e-4):.0%} of a weight")
print(f"the paper's {PAPER_STEPS:,} steps leave {decay(map(theirs, range(PAPER_STEPS)), 1e-4):.1%}")

# %% [markdown]
# (This holds for a weight that the loss does not keep in place.) In our run decay takes off a fifth, and then we are
# done. In the paper's run, such a weight has almost vanished.
#
# > **The test set is not for choosing.** If you now pick a recipe from this table, its test error is no longer honest:
# > you may have picked the one that was lucky on these images. To choose, set training images aside
# > (`mr.Config.from_recipe("fast", val=True)`: 45,000 and 5,000, as in the paper), and look at the test set once, at
# > the end.
#
# ## 5. Reading curves
#
# **Predict.** Two runs from the table: the full recipe, and the one without augmentation. Draw the training and the
# test error of each over the epochs. Where do the two lines separate?

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
for panel, name in zip(axes, ("the full recipe", "no augmentation"), strict=True):
    rows = found[name]
    panel.plot([row["epoch"] for row in rows], [row["train"] for row in rows], "--", label="training")
    tested = [row for row in rows if "test" in row]
    panel.plot([row["epoch"] for row in tested], [row["test"] for row in tested], "o-", markersize=4, label="test")
    rate = panel.twinx()
    rate.fill_between([row["epoch"] for row in rows], [row["lr"] for row in rows], color="#e4e4e4")
    rate.set(ylim=(0, 0.8), yticks=[])
    rate.spines[:].set_visible(False)
    panel.set_zorder(1)
    panel.patch.set_visible(False)
    panel.set(title=name, xlabel="epoch", ylim=(0, 100))
    panel.grid(alpha=0.3)
axes[0].set_ylabel("error (%)")
axes[1].fill_between([], [], color="#e4e4e4", label="learning rate")
axes[1].legend(loc="upper right")
plt.show()

# %% [markdown]
# Four things to see.
#
# - **Right: overfitting.** The lines separate early. The training error goes to zero, and the test error hardly moves
#   any more. More epochs cannot help: when the training loss is nearly zero, so is the gradient.
# - **Left: hardly any.** The test error jumps around, but in the end the two lines nearly meet. If anything is missing
#   here, it is time. More epochs, or a larger net, would help.
# - **Augmentation needs time.** The net *without* it learns faster, and even late in training it can have the lower
#   test error (one seed each). If you stop there, you conclude that augmentation is harmful. At the end, it helped with
#   all five seeds of section 4.
# - **The rate.** While it is high, the test error jumps up and down. At the end it falls to zero, and so does the
#   noise: look at the last point in the left panel. Large steps take the net quickly to the right region and keep it
#   from settling there. (The running statistics of the batch norms suffer as well: they lag behind weights that move
#   fast.) The run without a schedule is stopped in mid-jump.
#
# Now the real thing: the runs on CIFAR-10 recorded in `results/degradation`. They follow the paper's staircase, in 10
# epochs: the rate falls after half and after three quarters of the steps.
#
# **Predict.** What will the curves do at these two points?


# %%
def print_falls(r):
    """Print errors and test loss before and after each fall of the rate."""
    for i, (a, b) in enumerate(zip(r.rows, r.rows[1:], strict=False)):
        if b["lr"] < 0.5 * a["lr"]:
            print(f"  in epoch {b['epoch']} the rate falls from {a['lr']:.2g} to {b['lr']:.2g}:", end=" ")
            print(f"training error {r.error('train', i):.1f} -> {r.error('train', i + 1):.1f} %", end=", ")
            print(f"test error {r.error('test', i):.1f} -> {r.error('test', i + 1):.1f} %", end=", ")
            print(f"test loss {a['test_loss']:.2f} -> {b['test_loss']:.2f}")


runs = {name: r for name, r in records(RESULTS, "degradation").items() if r.rows}
for name, r in runs.items():
    print(f"recorded: {name}, {r.epochs()} epochs")
    print_falls(r)
plots.curves([r.out for r in runs.values()])

# %% [markdown]
# There is a cliff where the rate falls for the first time, and a small step at the second. No image is new in that
# epoch. The net was already good; large steps hid it. Figure 6 of the paper has the same cliffs at 32,000 steps. (Then
# why not use a small rate from the start? The sweep in chapter 3 shows why: small steps take too long.)
#
# One more oddity: in the first epochs the training error is *above* the test error. That is not magic. The training
# error is a mean over an epoch in which the net was still worse, on images that were cropped and flipped. The test uses
# the net at the end of the epoch, and unchanged images.
#
# ## 6. What does it get wrong?
#
# One number says how often a net is wrong. A table says *how*: a row for each class, a column for each answer. It is
# called the confusion matrix. Here is the one for the small net with the full recipe.
#
# **Predict.** Which shapes will it confuse? (Shapes-10 has discs, rings, squares, frames, triangles, stars, crosses,
# crescents, bars and hourglasses.)

# %%
net = nets["the full recipe"].eval()
with mr.no_grad():
    logits = net(mr.Tensor(normalise(test_images))).data
truth, guesses = test_labels, logits.argmax(-1)
matrix = np.zeros((10, 10), int)
np.add.at(matrix, (truth, guesses), 1)
plots.confusion(matrix, data.classes)

# %%
mistakes = [(matrix[i, j], data.classes[i], data.classes[j]) for i, j in np.ndindex(10, 10) if i != j]
for count, name, answer in sorted(mistakes, reverse=True)[:4]:
    print(f"{count:3} times a {name} was called {answer}")
of_class = 100 * np.diag(matrix) / matrix.sum(axis=1)
for k in (of_class.argmin(), of_class.argmax()):
    print(f"{data.classes[k]}: {of_class[k]:.0f} % right")
k = (matrix.sum(axis=0) - np.diag(matrix)).argmax()
print(f"the answer {data.classes[k]} is right {matrix[k, k]} times of {matrix[:, k].sum()}")

# %% [markdown]
# The mistakes are not spread evenly. A few pairs account for most of them, and in each pair the two shapes look much
# the same from a distance: a star and a cross, a frame and a ring, a square and a disc. They differ in fine detail:
# points, corners. And this net does look from a distance: its first convolution has stride 2.
#
# Read rows *and* columns. A row shows how many of a class are found. A column shows what an answer is worth: a net that
# says "cross" to everything has a perfect row of crosses. And the table is not symmetric: frames are mistaken for rings
# far more often than rings for frames.
#
# Now look at the mistakes themselves. The worst are those with the largest loss: the net gave the right class almost no
# probability. Above each image: what it is; what the net says, and how sure it is.

# %%
p = np.exp(mr.log_softmax(mr.Tensor(logits)).data)
loss = -np.log(p[np.arange(len(truth)), truth])
worst = np.argsort(loss)[::-1][:16]
plots.gallery(
    test_images[worst],
    [f"{data.classes[truth[i]]}\n{data.classes[guesses[i]]}? {p[i].max():.0%}" for i in worst],
)

# %% [markdown]
# Some have an excuse: a spot covers the part that matters, the waist of an hourglass or a corner. Others are easy for
# us to see, and yet the net is nearly certain of its wrong answer. A probability from a softmax is not necessarily a
# measure of confidence.
#
# With photographs this figure is worth an hour. It reveals wrong labels, two objects in one image, and classes that
# nobody can tell apart.
#
# ## 7. The paper's Table 6, and ours
#
# The paper trains these nets for 64,000 steps. Here are its test errors, and for each net what `results/` contains:
# runs of minires on real CIFAR-10, on a CPU. A run marked "7 of 10" is unfinished. A dash means that no run of this net
# is recorded. (For 110 layers the paper's number is the best of five runs; their mean is 6.61.)

# %%
totals = {}
for depth in (20, 32, 44, 56, 110, 1202):
    totals[f"resnet{depth}"] = mr.summarise(mr.build(f"resnet{depth}"), batch=128).total

recorded = {
    f"{experiment}/{run}": r
    for experiment in ("degradation", "depth", "fast", "paper", "first")
    for run, r in records(RESULTS, experiment).items()
}
print(f"{'':11}{'parameters':>12}{'paper':>10}{'here':>10}   epochs here")
for model, total in totals.items():
    print(f"{model:11}{total.parameters:12,}{tables.PAPER[model]:8.2f} %", end="")
    here = [(name, r) for name, r in recorded.items() if r.config.get("model") == model and r.rows and not r.steps]
    for i, (name, r) in enumerate(here):
        indent = "" if i == 0 else " " * 33
        print(f"{indent}{r.error('test'):8.2f} %   {r.epochs()} ({name}: {r.difference_from_paper()})")
    if not here:
        print(f"{'-':>10}")

# %% [markdown]
# Before you compare two numbers, compare their epochs. A run of a few epochs neither contradicts the paper nor confirms
# it. It is only part of the way. `paper/resnet20` is the complete recipe (`python -m minires reproduce paper`).
#
# **Predict.** Its rate is 0.1 until epoch 82, then 0.01, and from epoch 124 on 0.001. Between the two falls the
# training error keeps falling. What do the test error and the test loss do there?

# %%
print_falls(recorded["paper/resnet20"])
plots.curves(RESULTS / "paper" / "resnet20")

# %% [markdown]
# The test error stays where the first fall put it. From there on, the net learns its training images by heart, and
# gains nothing from it elsewhere. The test loss even rises. How can that be, with the same number of wrong answers? The
# loss depends on the probability of the right class. The net becomes more and more certain of all its answers, and a
# wrong answer costs more if it is a certain one (Guo et al. 2017).
#
# In the paper's own column two things stand out. From 20 to 110 layers each deeper net is better: the problem of
# chapter 6 is cured. And 1,202 layers are worse than 110. The training error is about the same, says the paper: below
# 0.1 %. So this is not degradation. The authors attribute it to overfitting: 19 million parameters, 50,000 images.
#
# ## 8. How loudly do the layers speak?
#
# If a residual block has little to add, its layers should say little. Figure 7 of the paper measures this: the standard
# deviation of each layer's output, after its batch norm and before ReLU or addition.
#
# **Predict.** How large is it before any training, in any of these nets?


# %%
def responses(net):
    """Layer numbers, and the standard deviation of each layer's response to 128 training images."""
    run = SimpleNamespace(net=net, loader=SimpleNamespace(images=images, labels=labels), normalise=normalise)
    return by_layer(layer_statistics(run)["response"].values())


before = {model: responses(small_net(model)) for model in ("resnet8", "plain8")}
after = {"resnet8": responses(nets["the full recipe"]), "plain8": responses(nets["no shortcuts"])}
plots.lines({"before training": before, "after training": after}, "layer", "standard deviation of the response")

# %% [markdown]
# One, everywhere: batch norm makes it so, and gamma is still 1. Any later difference from 1 comes from the gammas and
# betas.
#
# After training, our small residual net speaks no more softly than the plain one, except in its first layer. With three
# blocks, each one has work to do. The paper's claim is about deep nets: the responses of residual nets are smaller than
# those of plain ones, and the deeper the net, the smaller. Here is what is recorded for 20 and 56 layers on CIFAR-10.

# %%
deep = {f"{name}, {r.epochs()} epochs": list(r.layers[-1]["response"].values()) for name, r in runs.items() if r.layers}
for name, found_there in deep.items():
    print(f"{name}: mean response {np.mean(found_there):.3f}")
missing = [name for name in EXPERIMENTS["degradation"] if name not in runs]
print("not recorded yet:", ", ".join(missing) or "none")
plots.lines(
    {"recorded on CIFAR-10": {name: by_layer(values) for name, values in deep.items()}},
    "layer",
    "standard deviation of the response",
)

# %% [markdown]
# The means say yes: residual is below plain, and 56 layers are below 20, by a little. But look at the shapes before you
# believe the means. Most layers of plain-56 lie on one line, and so does every second one of ResNet-56, the early ones
# only nearly. Have 50 layers learned the same number?
#
# They have learned nothing of the kind. Their output goes through ReLU into a convolution and its norm, and the norm
# removes any scale again. The loss does not depend on that scale, so the gradient has no component along it. (Large
# steps to the side can still make it grow: the first layers of plain-56 end above 1.) Where steps are small, only
# weight decay changes it (the paper's recipe decays gamma and beta too): each step takes off the fraction rate times
# 0.0001, and momentum makes that ten times as much.

# %%
plan = ((1950, 0.1), (975, 0.01), (975, 0.001))  # steps and rates of ten epochs
print(f"what weight decay leaves of a 1: {np.exp(-sum(steps * rate * 1e-4 / (1 - 0.9) for steps, rate in plan)):.3f}")

# %% [markdown]
# There is the line. Of the layers in the blocks, only the last one of a residual block can choose how loudly it speaks,
# because its response is what the block *adds*. In the figure that is every second layer from the third on, and most of
# those lie below the line: they have made themselves small. That is the paper's observation, in the layers where it can
# be made. (Outside the blocks, two more can choose: a residual net's first layer, whose output runs along the
# shortcuts, and the last convolution of a plain net, which no norm follows.)
#
# ## 9. What depth costs
#
# **Predict.** ResNet-110 has five and a half times as many layers as ResNet-20. How many times as many parameters and
# multiply-adds, and how much more memory? And ResNet-1202?

# %%
print(f"{'':11}{'parameters':>12}{'multiply-adds':>16}{'activations of a batch of 128':>32}")
for model, total in totals.items():
    print(f"{model:11}{total.parameters:12,}{total.multiply_adds:16,}{total.activation_bytes / 2**30:28.2f} GiB")

# %% [markdown]
# All three grow with the number of blocks, in nearly the same proportion: every block of a stage costs the same. Depth
# is not expensive per layer. There are just many of them.
#
# Parameters are small change. Memory is not: the backward pass needs the outputs of the layers, so all of them are kept
# until the step is over. On many laptops ResNet-1202 with 128 images does not fit into memory. (Its runs in
# `minires/paper/experiments.py` take 16 images at a time.)
#
# And time? A complete run is out of the question here; a single step is not. Measure a step on a few images, and
# multiply. How far can we trust such an estimate? The first two lines check it: ResNet-20 on 64 images and on 4.


# %%
def measure(model, batch):
    """Seconds per image, forward and backward, and for the optimiser's step, which is needed once per batch."""
    net = mr.build(model)
    optimiser = mr.SGD(net.parameters(), 0.01, 0.9, 1e-4)
    for _ in range(2):  # the first round is slower: the second counts
        start = time.perf_counter()
        mr.cross_entropy(net(mr.Tensor(normalise(images[:batch]))), labels[:batch]).backward()
        middle = time.perf_counter()
        optimiser.step()
        optimiser.zero_grad()
        end = time.perf_counter()
    return (middle - start) / batch, end - middle


for model, batch in (("resnet20", 64), ("resnet20", 4), ("resnet110", 4), ("resnet1202", 2)):
    image, step = measure(model, batch)
    days = (128 * image + step) * PAPER_STEPS / 86_400
    print(f"{model:10} on {batch:2} images: {1000 * image:7.1f} ms per image, {days:6.1f} days for the paper's recipe")

# %% [markdown]
# This is an estimate from a few steps on this machine, whatever else it was doing. The first two lines differ: in a
# small batch each image costs more. So the days for the two deep nets are too many rather than too few. The estimate
# answers the question "a day, or a season?", and nothing finer. A GPU changes the answer (chapter 10).
#
# These steps of the very deep nets have actually been run so far (`results/very-deep`):

# %%
Markdown(tables.very_deep(RESULTS) or "No steps recorded yet.")

# %% [markdown]
# > **Misreadings.** "More layers, up to 1,000, always help": 1,202 layers end at 7.93 %, 110 at 6.43 %. "The first nets
# > of over 100 layers": Highway nets had been trained as deep before. ResNets were the first to *gain* from it.
#
# ## 10. Why deep nets start gently
#
# Why 0.01 at the start, for 110 layers? It is enough to look at a single layer: the last one. For each image its input
# is 64 numbers: the mean of each channel of the last maps. Let f be the mean of these vectors over some images, and
# |f|² the sum of its squares.
#
# A residual block *adds* its response to its input, and before training all responses have size 1. So the maps grow
# from block to block, and f with them.
#
# **Predict.** ResNet-110 has twice as many blocks as ResNet-56. How many times as large is |f|²? And what does depth do
# to it in a plain net?


# %%
def pooled(net, n=32):
    """The input of the last layer for n images: (n, 64)."""
    found = []

    def collect(name, module, output):
        if name == "layer3":
            found.append(output.data.mean((1, 2)))

    with mr.no_grad(), nn.forward_hook(net, collect):
        net(mr.Tensor(normalise(images[:n])))
    return found[0]


def print_limit(name, features, momentum=0.9):
    f = features.mean(0)
    curvature = f @ f / 10
    print(f"{name:25}|f|² {f @ f:8.0f}    limit of the rate {2 * (1 + momentum) / curvature:8.4f}")


deep_nets = {model: mr.build(model) for model in ("resnet20", "resnet56", "resnet110", "resnet1202", "plain56")}
features = {model: pooled(net) for model, net in deep_nets.items()}
for model in deep_nets:
    print_limit(model, features[model])

# %% [markdown]
# In a plain net the last norm keeps |f|² small. In a residual net it grows with the number of blocks, even a little
# faster.
#
# Now for the second column. Take all ten probabilities as 1/10, and move the weights of the last layer by a length t in
# the direction of f. The scores change by numbers s; let their mean be 0, since what all scores have in common changes
# nothing. Then |s| = t |f|. Besides its slope, the cross-entropy gets a quadratic term of $\frac{1}{10} \frac{|s|^2}{2}
# = \frac{|f|^2}{10} \frac{t^2}{2}$. So near the start it is a parabola in t, with curvature
#
# $$c = \frac{|f|^2}{10}.$$
#
# Chapter 3 has the rest: without momentum the rate must stay below 2/c, or every step leads farther away from the
# bottom. With momentum m the limit is $2(1 + m)/c$ (Goh 2017, "Why momentum really works"). That is the second column.
#
# It is an upper limit. Rates above it are too high. Rates below it are not necessarily low enough: the first step has
# no momentum yet; images differ from their mean; and the deepest nets start with probabilities that are not 1/10.
#
# **Predict.** We train the last layer alone for 30 steps, on features that do not change. Which nets can start at 0.1?
# Which at 0.01?


# %%
def last_layer_alone(model, lr, steps=30):
    layer, f, losses = copy.deepcopy(deep_nets[model].fc), features[model], []
    optimiser = mr.SGD(layer.parameters(), lr, 0.9)
    for _ in range(steps):
        loss = mr.cross_entropy(layer(mr.Tensor(f)), labels[: len(f)])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return range(1, steps + 1), losses


plots.lines(
    {f"rate {lr}": {model: last_layer_alone(model, lr) for model in deep_nets} for lr in (0.1, 0.01, 0.001)},
    "step",
    "training loss",
    log=True,
)

# %% [markdown]
# The result agrees with the table. At 0.1 the loss runs away in ResNet-56 and in all deeper ones, at 0.01 only in
# ResNet-1202. (It does not go to infinity: far from the bottom, cross-entropy is no longer a parabola but a straight
# slope. After some hundred steps it even comes back, because 32 vectors that never change are soon learned by heart. In
# a full net f changes all the time.)
#
# And full nets? At 0.1 ResNet-20 starts to learn at once and ResNet-56 late (chapter 7). ResNet-110 learns at 0.01, and
# loses much of it when the rate goes to 0.1. ResNet-1202 with 16 images a step has a mean loss of 32 in its first 20
# steps at 0.01, of 7.5 at 0.00125, and of 2.5 at 0.0001 (the table of section 9). That fits. But the limit applies to
# the start. A net that is learning changes its f, and its probabilities: in the recipe `fast`, ResNet-56 learns well at
# 0.2, to which its rate has risen over 975 steps.
#
# A low rate at the start is one solution. The $\gamma$ of zero from chapter 7 may be another: then no block adds
# anything.

# %%
print_limit("resnet110", features["resnet110"])
print_limit("resnet110, last gamma 0", pooled(mr.build("resnet110", zero_init=True)))

# %% [markdown]
# Then the limit is far away. Whether the net learns faster is another question (not on Shapes-10, in chapter 7).
#
# > **This is not the degradation of chapter 6.** The plain net has a small f, and still falls behind.
#
# ## Summary
#
# - A result is a net *and* a recipe. The paper's: SGD with momentum 0.9, decay 0.0001, batches of 128, a rate of 0.1
#   that falls twice, crops and flips, He's initialisation, batch norm.
# - Take away one ingredient at a time, and also run another seed. Differences smaller than the seed's are not a
#   finding.
# - Norm and schedule matter most in a short run. Augmentation needs time, weight decay needs many steps for its full
#   effect, shortcuts need depth.
# - Training error far below test error: overfitting. Both high and close together: too little time, or too small a net.
#   A cliff: the rate fell.
# - A confusion matrix shows the kinds of mistakes, the worst images show the reasons.
# - Cost grows in proportion to depth. At 1,202 layers memory is the first wall, time the second, and in the paper
#   overfitting the third.
# - The input of a residual net's last layer grows with the number of blocks. With ten classes and momentum 0.9, rates
#   above 38 / |f|² lead that layer away from the bottom at the start: the deeper the net, the lower the limit.
#
# ## Common mistakes
#
# - **The mean of the test images.** Mean and scale are measured once, on the training images, and then used for both.
# - **Augmenting the test images.** They stay as they are.
# - **Padding before normalisation**: a black frame where there should be nothing.
# - **The flip before the crop**, with offsets meant for the original image; or one offset for an entire batch.
# - **Steps mistaken for epochs.** The rate falls at *step* 32,000: epoch 82, with batches of 128.
# - **The mean of the batches' accuracies**, where the last batch is smaller.
# - **The best epoch reported**, by its test error. The last one is honest.
# - **One run each** of two recipes, and a conclusion.
#
# ## Three questions
#
# <details><summary>1. Your training error is 2 %, your test error is 30 %. Which ingredients would you look at first?
# And if both are 30 %?</summary>
#
# A gap is overfitting: stronger augmentation, more images, more weight decay, perhaps a smaller net. If there is no gap
# and both are high, the net has not learned enough: more epochs, a larger net, a better rate; *less* augmentation and
# decay, if anything.
#
# </details>
#
# <details><summary>2. Somebody trains for 10 epochs, finds that augmentation makes the test error worse, and removes it
# for the run of 164 epochs. What do you say?</summary>
#
# The finding may be true for 10 epochs and false for 164. In section 5 the net without augmentation learns faster, and
# yet it ends behind, with all five seeds of section 4. What may pay off late must be tested late. An ablation is valid
# for the length at which it was run.
#
# </details>
#
# <details><summary>3. You halve the batch from 128 to 64 images, and keep 64,000 steps and the rate. Which three things
# change?</summary>
#
# Each image is seen half as often: 82 epochs instead of 164. The gradient of a batch is noisier (and so are batch
# norm's mean and variance), so the same rate shakes the weights more. A step takes half the time and half the memory.
#
# </details>
#
# ## Exercises
#
# Five functions, in `chapters/exercises/ch08_recipe.py`: the parts of a recipe that people most often get wrong. Fill
# one in, save, and run its cell here (or, in a terminal, `pytest -m ex8_2` or `python -m minires check 8.2`). Stuck?
# `hint("8.2")`, then `hint("8.2", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 8.1 `learning_rate` | the paper's schedule, with warm-up | 1 | about 7 |
# | 8.2 `crop_and_flip` | augmentation: shifted crops and mirror images | 3 | about 7 |
# | 8.3 `normalise` | by the training images' mean and standard deviation | 1 | about 3 |
# | 8.4 `loss_and_accuracy` | means over batches of unequal size | 2 | about 6 |
# | 8.5 `confusion_matrix` | which class is mistaken for which | 2 | about 3 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("8.1")

# %%
check("8.2")

# %%
check("8.3")

# %%
check("8.4")

# %%
check("8.5")

# %%
hint("8.1")

# %% [markdown]
# ## Read on
#
# - `minires/data/augment.py`: normalisation and augmentation, without a loop. `minires/data/loader.py`: why every
#   random draw has its own key, so that a run that is stopped and resumed sees the same crops.
# - `minires/training/`: recipes (`config.py`), the loop (`loop.py`), and how a run is saved and resumed (`run.py`,
#   `checkpoint.py`). `minires/optim.py`: the schedules.
# - `minires/paper/experiments.py`, `records.py` and `tables.py` next to it: how `results/` and its tables are made.
# - Chapter 9: bottlenecks, and the nets for ImageNet.
# - Sources: He et al. 2016, "Deep residual learning for image recognition", section 4.2, Table 6, Figures 6 and 7; Lee
#   et al. 2015, "Deeply-supervised nets" (whose augmentation the paper adopts); Smith and Topin 2018,
#   "Super-convergence" (one cycle); Guo et al. 2017, "On calibration of modern neural networks"; Goh 2017, "Why
#   momentum really works", distill.pub; Krizhevsky 2009, "Learning multiple layers of features from tiny images"
#   (CIFAR-10).
