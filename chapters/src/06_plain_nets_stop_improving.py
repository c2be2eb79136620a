# %% [markdown]
# # 6. Plain nets stop improving
#
# **After this chapter you can**
# - build the plain net of any depth $6n + 2$, and count its layers and parameters with a pencil;
# - say what the degradation problem is, and show it on recorded and on live runs;
# - distinguish it from overfitting, by looking at the right one of two numbers;
# - distinguish it from vanishing gradients, by measuring them;
# - build a deeper net from a trained shallow one and layers that do nothing, and say what that proves.
#
# **You need** chapters 1 to 5: convolution, batch norm, SGD, and what a vanishing gradient is.
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
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

import minires as mr
from minires import nn, plots
from minires.course import drawings
from minires.data import Dataset, Normalise
from minires.paper import tables
from minires.paper.experiments import insert_identity_layers, layer_statistics
from minires.paper.records import checkout, records
from minires.resnet import BasicBlock

plots.notebook_style()
results = checkout("results")  # what the long experiments have recorded

# %% [markdown]
# ## 1. One block, many times
#
# We have all the parts: convolution, batch norm, ReLU. Now we want depth, and we want it in a simple way: one knob that
# makes a net deeper and changes nothing else. The paper's nets for CIFAR-10 are built like that.
#
# - A 3x3 convolution takes the 3 colours to 16 channels.
# - Three **stages** follow. In the first, the maps have 32x32 pixels and 16 channels; in the second, 16x16 and 32; in
#   the third, 8x8 and 64.
# - Each stage has $n$ **blocks**, and a block is two 3x3 convolutions, each with its norm and its ReLU.
# - At the end there are global average pooling and one linear layer.
#
# **Predict.** How many layers with weights does this net have for $n = 3$? And for any $n$?

# %%
drawings.blocks(mr.build("plain20"))

# %% [markdown]
# Count the boxes. One convolution at the start, $3 \cdot n \cdot 2$ in the blocks, one linear layer at the end:
#
# $$ \text{depth} = 6n + 2 . $$
#
# The `/2` is the stride: the first convolution of the second stage and of the third halves the map. All others keep its
# size. (You may read that every 3x3 convolution has stride 2. Then nothing would be left of an image after five
# layers.)
#
# A net like this, one layer after another and nothing else, is called **plain**. In minires, its name contains its
# depth:

# %%
print("net        n   parameters   multiply-adds, millions")
for n in (1, 3, 5, 7, 9, 18):
    total = mr.summarise(mr.build(f"plain{6 * n + 2}")).total
    print(f"plain-{6 * n + 2:<4} {n:2} {total.parameters:12,} {total.multiply_adds / 1e6:15.1f}")

# %% [markdown]
# ## 2. Deeper should be better
#
# Why would anybody want 56 layers? Because year after year, each step, from 8 to 16 to 19 layers, had made nets better.
# A deeper net can compute more.
#
# **Predict.** Two plain nets, 20 and 56 layers, same recipe, same images, same number of steps. Draw four curves on
# paper: the training error and the test error of each. Which is below which? What would it look like if the deeper net
# were simply too large for the data?
#
# First, a small pair that we can train here and now: nets a quarter as wide as the paper's (4, 8 and 16 channels),
# 1,000 images, 9 epochs. That is far too little to learn the task. It is enough to see how the two nets *begin*.

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
recipe = {"width": 4, "batch_size": 32, "augment": False}
temporary = TemporaryDirectory()  # for the files that training writes
folder = Path(temporary.name)
rows, inside = {}, {}


def train(model, epochs=9):
    """Train a net, keep its curve, and measure its layers before the first step and after the last."""
    inside[model] = []

    def watch(run):
        if run.progress.seen == 0 and run.progress.epoch in (0, epochs):  # between two epochs
            inside[model].append(layer_statistics(run))

    print(model)
    config = mr.Config(model=model, epochs=epochs, lr=0.1, **recipe)
    rows[model] = mr.fit(config, folder / model, dataset=data, watch=watch)


train("plain20")
train("plain56")


# %% tags=["hide-input"]
def show_curves(rows):
    """Training loss and training error over the epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for k, (model, curve) in enumerate(rows.items()):
        epochs = [row["epoch"] for row in curve]
        style = {"marker": plots.MARKERS[k], "color": plots.COLOURS[k], "markersize": 4, "label": model}
        axes[0].plot(epochs, [row["train_loss"] for row in curve], **style)
        axes[1].plot(epochs, [100 * (1 - row["train_acc"]) for row in curve], **style)
    axes[0].axhline(np.log(10), color=plots.INK, linestyle=":", linewidth=0.8)
    axes[1].axhline(90, color=plots.INK, linestyle=":", linewidth=0.8)
    axes[0].set(xlabel="epoch", title="training loss (dotted: guessing)")
    axes[1].set(xlabel="epoch", title="training error in % (dotted: guessing)")
    axes[0].legend()
    plt.show()


show_curves(rows)
shallow, deep = (rows[model][-1] for model in ("plain20", "plain56"))
print(
    f"training loss after {shallow['epoch']} epochs: plain-20 {shallow['train_loss']:.2f}, "
    f"plain-56 {deep['train_loss']:.2f}; guessing gives {np.log(10):.2f}"
)

# %% [markdown]
# The shallow net learns; the deep one has hardly begun. And this is the *training* loss, on images that the net sees
# again and again. (The wild test losses of the first epochs come from batch norm: its running statistics lag behind
# weights that move fast.)
#
# Let us be honest about what this shows. One seed, tiny nets, 279 steps. It shows that depth makes the beginning hard.
# Whether the deeper net is still behind at the end, with nets of real size on real images, takes hours to find out.
#
# ## 3. The real thing
#
# So the long runs have been done once and recorded. `python -m minires reproduce degradation` trains plain-20 and
# plain-56, of full width, on all 50,000 images of CIFAR-10, with the paper's recipe in 10 epochs. Its files are in
# `results/degradation/`, and the next cell reads them. If a run is unfinished, it says how far it is.

# %%
recorded = {name: run for name, run in records(results, "degradation").items() if run.rows}


def describe(name):
    """One line about a recorded run."""
    if name not in recorded:
        return f"{name:9} not recorded yet"
    run = recorded[name]
    return (
        f"{name:9} epochs: {run.epochs():8} training error {run.error('train'):5.1f} %   "
        f"test error {run.error('test'):5.1f} %"
    )


def compare(shallow, deep):
    """The training errors of two recorded runs, after the last epoch that both have finished."""
    if not {shallow, deep} <= recorded.keys():
        return f"{shallow} and {deep} can't be compared yet"
    a, b = recorded[shallow], recorded[deep]
    epoch = min(len(a.rows), len(b.rows))
    more = b.error("train", epoch - 1) - a.error("train", epoch - 1)
    return (
        f"after {epoch} epochs the training error of {deep} is {abs(more):.1f} points "
        f"{'above' if more > 0 else 'below'} that of {shallow}"
    )


for name in ("plain20", "plain56"):
    print(describe(name))
print(compare("plain20", "plain56"))

# %% tags=["hide-input"]
found = [recorded[name].out for name in ("plain20", "plain56") if name in recorded]
if found:
    display(plots.errors({"plain nets on CIFAR-10 (recorded)": found}))

# %% [markdown]
# The training error is dashed, the test error solid. The learning rate falls to a tenth after half of the epochs, and
# again after three quarters.
#
# In the paper (Figures 1 and 6), 56 layers stay above 20 from the beginning to the end of 64,000 steps, **in training
# and in testing**. On ImageNet it is the same with 18 and 34 layers: the top-1 error is 27.94 % with 18 layers and
# 28.54 % with 34. The paper calls it the **degradation problem**: make a plain net deeper, and beyond some depth it
# gets worse.
#
# > **Misreading.** "Plain-18 is worse than plain-34." It is the other way round, and that is the point. The deeper net
# > is the worse one.
#
# ## 4. It is not overfitting
#
# "More layers, more parameters, so it overfits." Does it?
#
# **Overfitting** means that a net knows its training images too well. With depth its *training* error goes down, and
# its test error goes up. **Degradation** is something else: the training error itself goes up.

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(7, 2.6), sharey=True)
for axes, title, training, test in (
    (panels[0], "overfitting", (10, 2), (14, 17)),
    (panels[1], "degradation", (10, 13), (14, 17)),
):
    for k, (errors, name) in enumerate(((training, "training error"), (test, "test error"))):
        place = np.arange(2) + 0.36 * (k - 0.5)
        axes.bar(
            place,
            errors,
            0.32,
            color=plots.COLOURS[4 if k else 0],
            label=name,
            hatch="//" if k else "",
            edgecolor="white",
        )
    axes.set(title=title, xticks=[0, 1], xticklabels=["shallow", "deep"], yticks=[], ylim=(0, 24))
panels[0].set_ylabel("error")
panels[0].legend(ncols=2, loc="upper left", fontsize=8)
plt.show()

# %% [markdown]
# This is a sketch, not a measurement. In both panels the deep net's test error is higher. If you look at test errors
# alone, you can't tell one from the other. Look at the **training error** first.
#
# The cures differ too. Against overfitting, there are more data, augmentation, weight decay and smaller nets. All of
# these make the training error *higher*. A net that degrades has the opposite problem: it can't even fit its training
# images.
#
# **Predict.** Which panel do our two live nets belong to?

# %%
for model in ("plain20", "plain56"):
    last = rows[model][-1]
    print(
        f"{model}: training error {100 * (1 - last['train_acc']):.0f} %, "
        f"test error {100 * (1 - last['test_acc']):.0f} %"
    )

# %% [markdown]
# The right one. There is hardly any gap between training and test. Nothing has been overfitted; too little has been
# fitted.
#
# ## 5. It is not vanishing gradients
#
# "With so many layers, the gradient dies before it arrives." Chapter 5 showed such a net, and what helps: He's
# initialisation and batch norm. Our plain nets have both. Still, don't believe: measure.
#
# `layer_statistics` (which we called during the training above) sent one batch through each net before the first step
# and after the last, and recorded the norm of $\partial L / \partial w$ for each convolution.
#
# **Predict.** If gradients vanish in plain-56, in which layers are the norms tiny?


# %%
def norms(model, moment):
    """Layer numbers, and the norm of each layer's gradient."""
    found = list(inside[model][moment]["gradient"].values())
    return range(1, len(found) + 1), found


plots.lines(
    {
        title: {model: norms(model, moment) for model in inside}
        for moment, title in ((0, "before training"), (-1, "after the last epoch"))
    },
    "layer",
    "norm of dL/dw",
    log=True,
)

# %%
print("norm of the gradient        first layer    last   smallest   largest / smallest")
for model in inside:
    for moment, title in ((0, "before training"), (-1, "at the end")):
        found = norms(model, moment)[1]
        print(
            f"{model}, {title:17} {found[0]:11.4f} {found[-1]:7.4f} {min(found):10.4f} {max(found) / min(found):12.0f}"
        )
found = norms("plain56", 0)[1]
print(f"\nplain-56 before training: times {(found[0] / found[-1]) ** (1 / (len(found) - 1)):.2f} per layer, going back")
print(f"a vanishing gradient (chapter 5), times 0.70 per layer: {0.7 ** (len(found) - 1):.0e} in the end")

# %% [markdown]
# Nothing vanishes. Before training it is the other way round: the *first* layers get the largest gradients. With batch
# norm, a gradient grows a little at each layer of the backward pass, and over 54 layers a little becomes a lot. (This
# is known: Yang et al., "A mean field theory of batch normalization", 2019.) The first steps of training correct that.
# At the end the norms of plain-56 scatter, but none is lost: compare with the last line.
#
# The recorded runs contain the same measurement for nets of full width on CIFAR-10:

# %%
for name in ("plain20", "plain56"):
    if name not in recorded:
        print(f"{name}: not recorded yet")
        continue
    for i in (0, 1, -1):
        row = recorded[name].layers[i]
        found = list(row["gradient"].values())
        print(
            f"{name}, after {row['epoch']:2} epochs: between {min(found):.3f} and {max(found):.3f}, "
            f"first layer {found[0]:.3f}"
        )

# %% [markdown]
# In plain-56 the first gradients are large here too, and one epoch later they no longer are. (Something does remain:
# the weights that they moved have become large. `results/README.md` says what that may mean.)
#
# The authors measured as well: "neither forward nor backward signals vanish", they write of their plain nets, and they
# don't believe that vanishing gradients are the cause (section 4.1). Chapter 5's cures work. They cure a different
# illness.
#
# ## 6. A clue
#
# A gradient can be large and yet of little use. It says which way is downhill *here*. A step leads a little further
# than here. If downhill is in another direction there, the step was for nothing.
#
# We can get a feeling for this. Take 64 images, and the same images with one percent of noise added, so little that
# nobody would see it. Send both through a freshly initialised net, forward and backward. Then compare the twins:
#
# - the maps after each block, by their correlation: 1 if they are the same, 0 if they are unrelated;
# - the gradients of each layer, by the cosine of the angle between them: 1 if both point the same way, 0 if they are at
#   right angles.
#
# **Predict.** How similar are the twins at the end of plain-56? And their gradients?


# %%
def twins(model, noise=0.01, images=64):
    """Images and their noisy copies in a fresh net: similarity of the maps by block, of the gradients by layer."""
    x = Normalise.channels(data.train_images)(data.train_images[:images])
    copy = x + np.float32(noise) * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    net, maps, gradients = mr.build(model, width=recipe["width"]), {}, []

    def collect(name, module, output):
        if isinstance(module, BasicBlock):
            maps.setdefault(name, []).append(output.data - output.data.mean(axis=(0, 1, 2)))

    for batch in (x, copy):
        with nn.forward_hook(net, collect):
            loss = mr.cross_entropy(net(mr.Tensor(batch)), data.train_labels[:images])
        net.zero_grad()
        loss.backward()
        gradients.append([p.grad for p in net.parameters() if p.ndim == 4])

    def cosine(a, b):
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))

    return [cosine(a, b) for a, b in maps.values()], [cosine(a, b) for a, b in zip(*gradients, strict=True)]


similarity = {model: twins(model) for model in ("plain8", "plain20", "plain56")}

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(8.5, 3), sharey=True)
for k, (model, parts) in enumerate(similarity.items()):
    for axis, found in zip(axes, parts, strict=True):
        style = {"marker": plots.MARKERS[k], "markersize": 3.5, "linewidth": 1.2, "color": plots.COLOURS[k]}
        axis.plot(range(1, len(found) + 1), found, label=model, **style)
for axis, title, unit in zip(axes, ("maps", "gradients"), ("block", "layer"), strict=True):
    axis.axhline(0, color=plots.INK, linewidth=0.8, linestyle=":")
    axis.set(title=f"similarity of the {title}", xlabel=unit)
axes[0].legend()
plt.show()
for model, (maps, gradients) in similarity.items():
    print(f"{model:8} maps: {maps[-1]:4.2f} after the last block   gradients: {np.mean(gradients):5.2f} on average")

# %% [markdown]
# In a shallow net the twins stay twins. In plain-56 each layer pulls them a little apart, and in the end images that
# look the same to you look rather different to the net. Their gradients, except for those of the last few layers, have
# *nothing* to do with each other: they are not smaller, but they point anywhere. To such a function, neighbours are
# strangers. (We moved the images here, not the weights. If a step of the weights does the same, then a gradient is out
# of date after the smallest step.)
#
# > **Aside.** Balduzzi et al. found this: with depth, gradients look more and more like white noise ("The shattered
# > gradients problem: if resnets are the answer, then what is the question?", 2017). It is a clue, not a proof, and it
# > is about nets before training. The paper that this course follows leaves the reason open; it conjectures that deep
# > plain nets learn exponentially slowly. We come back to this plot in chapter 7.
#
# ## 7. A solution that is known to exist
#
# Perhaps a deep plain net simply *can't* do better? Perhaps there are no good weights for it?
#
# There are. Here is the most beautiful argument of the paper, and it takes three lines.
#
# 1. Take a trained shallow net.
# 2. Insert more layers that do nothing: what goes in comes out.
# 3. The result is a deep net with exactly the same error.
#
# So the best deep net is at least as good as the shallow one. This is not a guess but a construction. Let us carry it
# out.
#
# **A convolution that does nothing.** A 1 in the middle of the kernel, from each channel to itself; everything else is
# 0.

# %%
image = np.array([[0, 1, 2, 0], [5, 0, 3, 1], [0, 4, 9, 2], [1, 0, 2, 7]], np.float32)
kernel = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
out = mr.conv2d(mr.Tensor(image[None, :, :, None]), mr.Tensor(kernel[:, :, None, None]), padding=1)
drawings.numbers({"x": image, "kernel": kernel, "conv2d(x)": out.data[0, :, :, 0]})

# %% [markdown]
# **A ReLU that does nothing.** That is easy here: its input is the output of an earlier ReLU. It is 0 or more, and ReLU
# leaves it as it is.
#
# **A batch norm that does nothing.** It removes mean and deviation, and $\gamma$ and $\beta$ can put them back:
#
# $$ y = \gamma\,\frac{x - \mu}{\sqrt{v + \varepsilon}} + \beta = x
# \qquad\text{if}\qquad \gamma = \sqrt{v + \varepsilon}, \quad \beta = \mu . $$
#
# $\mu$ and $v$ are the mean and variance of this channel on the training images; they become the running statistics
# too. So in evaluation mode the new layer does nothing. In training mode it uses the batch's own mean and variance,
# which differ a little from these: there it does *almost* nothing. (In exercises 6.4 and 6.5 you write both.)
#
# `insert_identity_layers` does it for an entire net. It takes the trained plain-20 from above and inserts 18 blocks of
# such layers, six at the end of each stage. The result is a plain-56.
#
# **Predict.** What is the test loss of the deepened net, before any training?

# %%
made = {}


def one_more_epoch(model, lr):
    """Train a net for one epoch, starting from the trained plain-20, with identity layers where the net is deeper."""

    def watch(run):
        if run.progress.step == 0:
            made[model] = insert_identity_layers(run, folder / "plain20")

    config = mr.Config(model=model, epochs=1, lr=lr, schedule="cosine", **recipe)
    return mr.fit(config, folder / f"{model}-from-plain20-{lr}", dataset=data, watch=watch)[-1]


print("the trained plain20 and the deepened plain56, one more epoch each, with a low rate:")
gentle = {model: one_more_epoch(model, 0.01) for model in ("plain20", "plain56")}

# %%
figures = made["plain56"]
print(
    f"plain-20, trained:            test loss {figures['before_test_loss']:.4f}, "
    f"accuracy {100 * figures['before_test_acc']:.1f} %"
)
print(
    f"plain-56, made from it:       test loss {figures['after_test_loss']:.4f}, "
    f"accuracy {100 * figures['after_test_acc']:.1f} %"
)
print(f"largest difference of two outputs: {figures['largest_difference']:.0e}")
print(
    f"plain-56, trained from scratch: test loss {rows['plain56'][-1]['test_loss']:.4f}, "
    f"accuracy {100 * rows['plain56'][-1]['test_acc']:.1f} %"
)

# %% [markdown]
# The same net, up to rounding, with 36 more layers. So good weights for plain-56 *exist*, and we hold them in our
# hands. Training from scratch, with the same images and the same recipe, did not find them, nor anything as good.
#
# That is the argument. The problem with deep plain nets is not what they can express. It is not too many parameters,
# nor vanished gradients. It is **optimisation**: the solver can't find what is there.
#
# ## 8. How stable is that solution?
#
# One more question. We put plain-56 where it should be. With a low learning rate (0.01) its training loss and test
# accuracy stayed near those of plain-20: see the two lines above. What about a normal rate, 0.1?
#
# **Predict.** Both nets start at the same loss. Which one is thrown back further?

# %%
rough = {model: one_more_epoch(model, 0.1) for model in ("plain20", "plain56")}
print()
print("training loss over the epoch   rate 0.01   rate 0.1")
for model in ("plain20", "plain56"):
    print(f"{model:28} {gentle[model]['train_loss']:11.2f} {rough[model]['train_loss']:10.2f}")
print(f"before: {rows['plain20'][-1]['train_loss']:.2f}, over the last epoch of plain-20's own training")

# %% [markdown]
# The large rate shakes both. The shallow net recovers sooner. One reason is easy to see: in the deep one, 36 layers
# must *stay* the identity. Each of them does so only as long as all of its weights keep their balance, and every step
# disturbs all of them at once. Doing nothing is hard work for a plain layer.
#
# The same experiment with nets of full width on CIFAR-10: three more epochs, starting from a plain-20 that was trained
# for ten.

# %%
Markdown(tables.construction(results) or "Not recorded yet. `python -m minires reproduce construction` runs it.")

# %% [markdown]
# At the low rate the deep net is thrown back, and three epochs bring it nearly to where it was. At 0.1 it loses nearly
# everything it had: after three epochs it is not far from the net that was trained from scratch. The shallow net, at
# the same rate, ends better than before. So the solver not only fails to *find* the solution; at this rate it can't
# even *stay* there.
#
# Keep that sentence in mind: *doing nothing is hard work for a plain layer*. If a deep net has more layers than it
# needs, the extra ones should do nothing, and that is exactly what they find hard. Then the cure is to make doing
# nothing **easy**. That is chapter 7, and it is one plus sign.
#
# ## Summary
#
# - A plain net of depth $6n + 2$: a convolution, three stages of $n$ blocks of two convolutions, a linear layer.
# - **Degradation**: beyond some depth, a deeper plain net has a higher *training* error.
# - It is not overfitting: that would lower the training error.
# - It is not vanishing gradients: with He's initialisation and batch norm every layer gets one. We measured it.
# - It is not a lack of good weights: a trained shallow net plus identity layers is a deep net with the same error.
# - What remains is optimisation. In a fresh deep plain net even near twins have unrelated gradients, and the identity
#   is a solution that plain layers neither find nor easily keep.
#
# ## Common mistakes
#
# - Looking at the test error alone, and calling everything overfitting.
# - Comparing nets of different depth with different recipes, or different numbers of steps.
# - Saying "vanishing gradients" without having measured one. It takes five lines (exercise 6.3).
# - Measuring the norm of a gradient without clearing the old gradients first.
# - Stride 2 in every convolution of a stage. Only the first one of the second and third stage has it.
# - Concluding from a few hundred steps of a tiny net what happens after 64,000 steps of a real one.
# - In the construction: $\gamma = 1$, $\beta = 0$ for the new norms. They then normalise, instead of doing nothing.
#
# ## Three questions
#
# <details><summary>1. Net A: training error 2 %, test error 9 %. Net B, deeper: training error 5 %, test error 8 %.
# What do you say about B?</summary>
#
# Its training error is higher: by this chapter's definition that is degradation, although its test error is lower. (B
# may still be the better net to use. You would ask whether both were trained long enough, and with the same recipe.)
#
# </details>
#
# <details><summary>2. Why are the identity layers inserted after a ReLU, and what would go wrong right after a
# norm?</summary>
#
# The new layers end in a ReLU. After an old ReLU nothing is below zero, so theirs changes nothing. Right after a norm
# about half of the numbers are negative, and the new ReLU would cut them off.
#
# </details>
#
# <details><summary>3. Somebody shows that a plain net of 56 layers reaches a low training error after ten times as many
# steps. Does that contradict this chapter?</summary>
#
# No. Degradation says that *with the same effort* the deeper net ends with a higher error, although a solution at least
# as good exists. That it can be found with more effort would fit the paper's conjecture that deep plain nets converge,
# but very slowly. (Three times as many steps were not enough there: the authors tried, and degradation remained.)
#
# </details>
#
# ## Exercises
#
# Open `chapters/exercises/ch06_plain.py` in an editor, fill in a function, save, and run its cell here (or, in a
# terminal, `pytest -m ex6_1` or `python -m minires check 6.1`). Stuck? `hint("6.1")`, then `hint("6.1", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 6.1 `plain_layers` | the convolutions of a plain net | 2 | about 11 |
# | 6.2 `verdict` | overfitting, degradation, or neither | 1 | about 5 |
# | 6.3 `gradient_norms` | how much gradient arrives in each layer | 2 | about 4 |
# | 6.4 `identity_kernel` | a convolution that changes nothing | 2 | about 3 |
# | 6.5 `identity_norm` | a batch norm that changes nothing | 2 | about 5 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("6.1")

# %%
check("6.2")

# %%
check("6.3")

# %%
check("6.4")

# %%
check("6.5")

# %%
hint("6.1")

# %% [markdown]
# ## Read on
#
# - `minires/resnet.py`: `BasicBlock` with `shortcut=None` is the plain block, `_cifar_blocks` the rule $6n + 2$.
#   `minires/paper/experiments.py`: `layer_statistics` and `insert_identity_layers`, which you have used.
# - `results/README.md` has all recorded runs, and the commands that repeat them.
# - **Chapter 7, Learn the difference**: one plus sign.
# - K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016: read sections 1 and 3.1
#   now. K. He and J. Sun, "Convolutional neural networks at constrained time cost", CVPR 2015, is where the authors
#   first met degradation.
