# %% [markdown]
# # 3. Learning
#
# **After this chapter you can**
# - derive cross-entropy from one sentence about probability, and its gradient in three lines;
# - train a linear classifier and a small net on images, and say what learning rate, momentum and weight decay do;
# - run the three checks that come before any long training;
# - choose a learning rate by measuring, and initial weights by calculating.
#
# **You need** chapters 1 and 2, logarithms, and the variance of a sum of independent numbers.
#
# **Time**: about 75 minutes to read and run, 60 for the exercises.

# %% tags=["hide-input"]
# Run this first. If minires is missing, it installs the checkout that contains this notebook.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minires") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".."], check=True)
    sys.path.insert(0, "..")

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires as mr
from minires import plots
from minires.data import Normalise
from minires.nn import Flatten, Linear, ReLU, Sequential

plots.notebook_style()

# %% [markdown]
# ## 1. The task
#
# Ten kinds of images, 32 by 32 pixels. A net should say which kind a new image is. If the environment variable
# `MINIRES_DATA` names a folder with CIFAR-10, this notebook uses it; otherwise it uses Shapes-10, which minires draws
# by itself.

# %%
data = mr.open_data("auto")
plots.contact_sheet(data, per_class=6)

# %% [markdown]
# We take 5,000 of the training images, to be quick, and set 1,000 of them aside for **validation**: we never train on
# them, and use them for every choice. The **test** set stays closed until the end of the chapter. Why two? If you try
# twenty settings and keep the one that is best on some set, you have already fitted to that set a little.
#
# Pixels are bytes, 0 to 255. We shift and scale each colour channel so that its mean over the training images is 0 and
# its variance 1.

# %%
TRAIN, VALIDATION = slice(0, 4000), slice(4000, 5000)
normalise = Normalise.channels(data.train_images[TRAIN])  # of the training part only
x, y = normalise(data.train_images[:5000]), data.train_labels[:5000]
print("images", x.shape, x.dtype, " labels", y.shape)
print("mean and standard deviation of the training part:", *(f"{v:.3f}" for v in (x[TRAIN].mean(), x[TRAIN].std())))

# %% [markdown]
# ## 2. From scores to probabilities
#
# The simplest net: flatten the image to a row of 3,072 numbers, and give each class a score, a weighted sum of them.
#
# $$ s = x W + b \qquad x: (N, 3072) \quad W: (3072, 10) \quad b: (10,) \quad s: (N, 10) $$
#
# Scores can be any numbers. To speak of learning we want **probabilities**: positive, with sum 1. Two steps: make the
# scores positive with $e^s$, then divide by the sum. That is the **softmax**.
#
# $$ p_k = \frac{e^{s_k}}{\sum_j e^{s_j}} $$

# %% tags=["hide-input"]
scores = np.array([2.0, 1.0, -1.0, 0.5])
steps = {"scores $s$": scores, "$e^s$": np.exp(scores), "$p$": np.exp(scores) / np.exp(scores).sum()}
figure, panels = plt.subplots(1, 3, figsize=(8, 2.4))
for axes, (title, values), colour in zip(panels, steps.items(), plots.COLOURS, strict=False):
    bars = axes.bar(range(4), values, color=colour)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
    axes.axhline(0, color=plots.INK, linewidth=0.8)
    axes.set_title(title)
    axes.set_xticks(range(4), ["a", "b", "c", "d"])
    axes.margins(y=0.18)
plt.show()

# %% [markdown]
# **Predict.** Add 100 to all four scores. What happens to the probabilities? And if you multiply the scores by 3?


# %%
def show(scores):
    p = np.exp(mr.log_softmax(mr.Tensor(scores)).data)
    print(f"{str(scores):28}", p.round(3))


for changed in (scores, scores + 100, 3 * scores):
    show(changed)

# %% [markdown]
# Nothing; and the favourite gets nearly everything. Only **differences** of scores count, since a common factor
# $e^{100}$ cancels in the fraction.
#
# This has a practical side. Computed as written, the formula breaks down for large scores: $e^{1000}$ is too large for
# any float. But we may subtract the same number from all scores, and if we subtract the largest, every exponent is 0 or
# below. `mr.log_softmax` does that, and so will you in exercise 3.1.

# %%
with np.errstate(all="ignore"):
    big = np.array([1000.0, 999.0])
    print("as written:", np.exp(big) / np.exp(big).sum())
print("carefully: ", np.exp(mr.log_softmax(mr.Tensor(big)).data))

# %% [markdown]
# ## 3. The loss: how probable does the net find what happened?
#
# The net says: "image 1 is a disc with probability 0.7". It **was** a disc. So for each image $n$ there is a number
# $p_{y_n}$: the probability that the net gave to the image's true label.
#
# One sentence holds the entire theory: **good weights are those under which the labels that we saw are most probable.**
# If images are independent, the probability of all labels together is the product
#
# $$ P = \prod_{n=1}^{N} p_{y_n} $$
#
# the **likelihood**. We want to make it large. It is also an awkward number:

# %%
print("1,000 images, each label given probability 0.5:", 0.5**1000)
print("and 2,000 of them:                             ", 0.5**2000)

# %% [markdown]
# The second is zero to the computer. So we take the logarithm, which turns the product into a sum and has its maximum
# at the same place; a minus sign, so that small is good; and divide by $N$, so that it doesn't depend on the number of
# images:
#
# $$ L = -\frac1N \sum_{n} \ln p_{y_n} $$
#
# This is the **cross-entropy**. For a single image it is $-\ln p$ of the right class:

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5, 2.8))
p = np.linspace(0.003, 1, 400)
axes.plot(p, -np.log(p))
for value, text in ((0.9, "quite sure and right"), (0.1, "guessing among ten"), (0.01, "quite sure and wrong")):
    axes.plot(value, -np.log(value), "o", color=plots.COLOURS[1])
    axes.annotate(
        f"{text}: {-np.log(value):.2f}",
        (value, -np.log(value)),
        (8, 20 if value > 0.5 else 6),
        textcoords="offset points",
        fontsize=8,
        ha="right" if value > 0.5 else "left",
    )
axes.set(xlabel="probability given to the right class", ylabel="loss", ylim=(0, None))
plt.show()

# %% [markdown]
# To be sure and right costs nearly nothing; to be sure and wrong is expensive. There is a good way to read a loss:
# $e^{L}$ is the number of classes between which the net is, on average, still undecided.
#
# **Predict.** A net with random, tiny weights knows nothing yet. What is its loss on ten classes, to three digits?


# %%
def softmax_regression(seed=0):
    return Sequential(Flatten(), Linear(3072, 10, std=0.0001, rng=np.random.default_rng(seed)))


net = softmax_regression()
loss = mr.cross_entropy(net(mr.Tensor(x[TRAIN])), y[TRAIN])
print(f"loss {loss.item():.3f}   ln 10 = {np.log(10):.3f}   undecided between {np.exp(loss.item()):.2f} classes")

# %% [markdown]
# All scores are nearly 0, all probabilities nearly $1/10$, and $-\ln \frac{1}{10} = \ln 10$. Remember this number: it
# is the first of our checks. A net for ten classes that starts far from 2.303 has a last layer whose weights are too
# large, or a bug.
#
# ## 4. The gradient of the loss
#
# Take one image with scores $s$ and right class $y$. Insert the softmax and use $\ln \frac{a}{b} = \ln a - \ln b$:
#
# $$ L = -\ln p_y = -\ln \frac{e^{s_y}}{\sum_j e^{s_j}} = -s_y + \ln \sum_j e^{s_j} $$
#
# Differentiate with respect to the score of class $k$. The first term gives $-1$ if $k = y$, otherwise 0; write $t_k$
# for "1 if $k = y$, otherwise 0". The second gives, by the chain rule, $\frac{1}{\sum_j e^{s_j}}\, e^{s_k}$, and that
# is $p_k$:
#
# $$ \frac{\partial L}{\partial s_k} = p_k - t_k $$
#
# *What the net says minus what it should have said.* For the mean over a batch, each image's share is divided by $N$.
# Trust, but check:

# %%
s = mr.Tensor(np.random.default_rng(0).normal(size=(5, 10)), requires_grad=True)
labels = np.array([3, 1, 4, 1, 5])
mr.cross_entropy(s, labels).backward()
p, t = np.exp(mr.log_softmax(s.detach()).data), np.eye(10)[labels]
print("the engine agrees with (p - t) / N:", np.allclose(s.grad, (p - t) / 5))
print("and so does nudging:", mr.gradcheck(lambda s: mr.cross_entropy(s, labels), [s]))

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6))
left.bar(range(10), p[0], color=[plots.COLOURS[1] if k == labels[0] else plots.COLOURS[5] for k in range(10)])
left.set(title="what the net says: $p$", xlabel="class (orange: the right one)", xticks=range(10))
right.bar(range(10), (t - p)[0], color=[plots.COLOURS[1] if k == labels[0] else plots.COLOURS[5] for k in range(10)])
right.axhline(0, color=plots.INK, linewidth=0.8)
right.set(title="where descent pushes the scores: $t - p$", xlabel="class", xticks=range(10))
plt.show()

# %% [markdown]
# The right score is pushed up, all others down, each in proportion to the probability it wrongly got. The pushes add up
# to 0. An image that is already understood ($p_y \approx 1$) pushes hardly at all.
#
# From here the chain rule continues. $s = xW$ is a matrix product, so by chapter 1 $dW = x^{\mathsf T}(p - t)/N$:
# **descent adds an image to the column of its own class, and subtracts it from the columns of the others.** We will see
# that in a minute.
#
# ## 5. Stochastic gradient descent
#
# Descent takes many small steps against the gradient, $w \leftarrow w - \text{lr}\cdot g$, where lr is the **learning
# rate**. The true gradient is a mean over all 4,000 images. Must we look at all of them for one step?
#
# **Predict.** Take the mean over a random **batch** of $B$ images instead. How does its error fall with $B$? How many
# more images for half the error?


# %%
def gradient_of(rows):
    net.zero_grad()
    mr.cross_entropy(net(mr.Tensor(x[rows])), y[rows]).backward()
    return net[1].weight.grad


true = gradient_of(np.arange(4000))
rng = np.random.default_rng(0)
batches = [1, 4, 16, 64, 256, 1024]
noise = [
    np.mean([np.linalg.norm(gradient_of(rng.integers(0, 4000, b)) - true) for _ in range(8)]) / np.linalg.norm(true)
    for b in batches
]
for b, value in zip(batches, noise, strict=True):
    print(f"batch of {b:4}: off by {value:6.2f} times the length of the true gradient")

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5, 2.8))
axes.loglog(batches, noise, "o-", label="measured")
axes.loglog(batches, noise[0] / np.sqrt(batches), "--", label=r"$1/\sqrt{B}$")
axes.set(xlabel="images in the batch", ylabel="error / true length")
axes.set_xticks(batches, batches)
axes.set_yticks([2, 5, 10, 20, 50], [2, 5, 10, 20, 50])
axes.minorticks_off()
axes.legend()
plt.show()

# %% [markdown]
# A single image says next to nothing about the direction. And the mean behaves like every mean of random draws: the
# error falls with $1/\sqrt{B}$, so half the error costs **four times** as many images. That is a bad bargain. It is
# better to take many cheap, noisy steps than few exact ones: the noise averages out along the way. Hence *stochastic*
# gradient descent, SGD, and batches of 32 to 256.
#
# ### The learning rate
#
# How long may a step be? Take the simplest valley, $L = \frac{c}{2} w^2$, with gradient $c\,w$. A step changes $w$ to
#
# $$ w - \text{lr}\cdot c\,w = (1 - \text{lr}\cdot c)\, w $$
#
# So each step multiplies $w$ by $1 - \text{lr}\cdot c$. It shrinks as long as $|1 - \text{lr}\cdot c| < 1$, that is
#
# $$ \text{lr} < \frac{2}{c} $$
#
# **The steepest direction sets the limit, and the flattest direction pays for it**: there, such a step hardly moves
# anything. Here is a valley with curvature 10 across and 0.5 along.
#
# **Predict.** The limit is $2 / 10 = 0.2$. What do 30 steps look like at 0.02, at 0.18 and at 0.202? And what might
# help?

# %%
CURVATURE = np.array([0.5, 10.0])


def descend(lr, momentum=0.0, steps=30):
    w = mr.Tensor(np.array([-4.0, 0.9]), requires_grad=True)
    optimiser, path = mr.SGD([w], lr, momentum), [w.data.copy()]
    for _ in range(steps):
        loss = (w * w * CURVATURE).sum() * 0.5
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        path.append(w.data.copy())
    return np.array(path)


walks = {
    "lr 0.02": descend(0.02),
    "lr 0.18": descend(0.18),
    "lr 0.202": descend(0.202),
    "lr 0.05, momentum 0.8": descend(0.05, momentum=0.8),
}

# %% tags=["hide-input"]
figure, panels = plt.subplots(2, 2, figsize=(8, 4.4), sharex=True, sharey=True)
a, b = np.meshgrid(np.linspace(-4.6, 2.2, 100), np.linspace(-1.9, 1.9, 100))
height = 0.5 * (CURVATURE[0] * a**2 + CURVATURE[1] * b**2)
for axes, (title, path) in zip(panels.flat, walks.items(), strict=True):
    axes.contour(a, b, height, levels=[0.05, 0.3, 1, 2.5, 5, 9, 14], colors="#bbbbbb", linewidths=0.8)
    axes.plot(*path.T, "o-", markersize=3, linewidth=1)
    axes.plot(*path[0], "D", color=plots.COLOURS[1], markersize=6)
    axes.plot(0, 0, "+", color=plots.INK, markersize=10)
    axes.set_title(f"{title}: loss {0.5 * (CURVATURE * path[-1] ** 2).sum():.2g} after 30 steps", fontsize=9)
plt.show()

# %% [markdown]
# Too small: it creeps. Near the limit: across the valley it jumps from wall to wall, along the valley it moves well.
# Above the limit: the jumps grow, and with them the loss.
#
# ### Momentum
#
# The last plot shows the cure. Give the walker mass. A **velocity** collects the gradients and forgets them slowly:
#
# $$ v \leftarrow m\,v + g \qquad\qquad w \leftarrow w - \text{lr}\cdot v $$
#
# Across the valley, gradients change sign and cancel in $v$. Along it they always point the same way and add up. How
# much? With a constant gradient $g$ the velocity becomes $g\,(1 + m + m^2 + \dots)$:
#
# $$ v \to \frac{g}{1 - m} $$
#
# **Predict.** With $m = 0.9$, how much further does a long walk go than without momentum?

# %%
w = mr.Tensor(np.zeros(1), requires_grad=True)
optimiser = mr.SGD([w], lr=1.0, momentum=0.9)
for step in range(1, 61):
    w.grad = np.ones(1)  # the same gradient every time
    optimiser.step()
    if step in (1, 2, 3, 10, 60):
        print(f"step {step:2}: velocity {optimiser.velocity[0].item():.3f}")

# %% [markdown]
# Ten times, as $1/(1 - 0.9)$ says. So momentum 0.9 acts like a learning rate ten times as large, in the directions
# where the gradient is steady. Keep that in mind when you change it.
#
# ### Weight decay
#
# A net with large weights can bend to every bit of noise in its training images. **Weight decay** puts a rubber band on
# every weight: it adds $\frac{\lambda}{2} |w|^2$ to the loss, and so $\lambda w$ to the gradient.
#
# $$ w \leftarrow w - \text{lr}\,(g + \lambda w) = (1 - \text{lr}\,\lambda)\, w - \text{lr}\, g $$
#
# The second form explains the name: at each step, the weight first loses a small share of itself. A weight that no
# image pulls on fades away.

# %%
w = mr.Tensor(np.ones(1), requires_grad=True)
optimiser = mr.SGD([w], lr=0.1, weight_decay=0.5)
for step in range(1, 21):
    w.grad = np.zeros(1)  # no image pulls
    optimiser.step()
    if step in (1, 2, 20):
        print(f"step {step:2}: w = {w.item():.4f}   (1 - 0.1 * 0.5)^{step} = {0.95**step:.4f}")

# %% [markdown]
# ## 6. Softmax regression
#
# Now the training loop. It will stay the same until the last chapter: forward, loss, backward, step, and clear the
# gradients. After each epoch (once through all training images, in a new order) we evaluate on the validation part,
# without a graph.


# %%
def accuracy(scores, labels):
    return np.mean(scores.argmax(axis=1) == labels)


def validate(net):
    with mr.no_grad():
        scores = net(mr.Tensor(x[VALIDATION]))
        return mr.cross_entropy(scores, y[VALIDATION]).item(), accuracy(scores.data, y[VALIDATION])


def train(net, epochs, lr, momentum=0.9, weight_decay=0.0, batch=64, verbose=True):
    """Train on the training part. Returns (training loss, accuracy, validation loss, accuracy) for each epoch, and the
    loss of every step."""
    optimiser = mr.SGD(net.parameters(), lr, momentum, weight_decay)
    history, losses = [], []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(4000)
        right, first = 0, len(losses)
        for start in range(0, 4000, batch):
            rows = order[start : start + batch]
            scores = net(mr.Tensor(x[rows]))
            loss = mr.cross_entropy(scores, y[rows])
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            right += int((scores.data.argmax(axis=1) == y[rows]).sum())
            if not np.isfinite(losses[-1]):
                return history, losses  # diverged: more steps would not help
        history.append((np.mean(losses[first:]), right / 4000, *validate(net)))
        if verbose:
            a, b, c, d = history[-1]
            print(f"epoch {epoch + 1:2}: training loss {a:.3f} accuracy {b:5.1%}   validation {c:.3f} {d:5.1%}")
    return history, losses


# %% [markdown]
# **Predict.** One template per class, no hidden layer. Guessing gives 10 %. What accuracy will it reach on images it
# has not seen?

# %%
net = softmax_regression()
history, _ = train(net, epochs=10, lr=0.001)

# %% [markdown]
# The weights of each class are 3,072 numbers, as many as an image has. So we can look at what has been learned:

# %% tags=["hide-input"]
figure, panels = plt.subplots(2, 5, figsize=(8, 3.5))
templates = net[1].weight.data.T.reshape(10, 32, 32, 3)
most = np.abs(templates).max()
for axes, template, name in zip(panels.flat, templates, data.classes, strict=True):
    axes.imshow(0.5 + 0.5 * template / most, interpolation="nearest")
    axes.set_title(name, fontsize=9)
    axes.set_axis_off()
plt.show()

# %% [markdown]
# These are the templates: all images of the class added, all others subtracted, as section 4 said. A linear classifier
# can only ask *how much does this image look like my template?*
#
# On Shapes-10 that is hopeless, and on purpose: every shape comes in every colour, on every background, rotated and
# moved. A bright disc on a dark ground and a dark disc on a bright one are opposite images, and no template can like
# both. With some goodwill you can make out a ring or upright stripes, in a lot of noise. The numbers show it too: the
# training loss falls, the validation loss rises. (On CIFAR-10 templates do better, because there the sky is blue and
# grass is green.)
#
# ## 7. A hidden layer
#
# To say "disc, in whatever colour", a net must combine questions. Put a layer of 256 ReLUs in between, and you have a
# **multilayer perceptron** (MLP):
#
# $$ h = \text{relu}(x W_1 + b_1) \qquad s = h W_2 + b_2 $$


# %%
def mlp(width=256, seed=0):
    rng = np.random.default_rng(seed)
    return Sequential(Flatten(), Linear(3072, width, rng=rng), ReLU(), Linear(width, 10, std=0.01, rng=rng))


print(f"{sum(p.size for p in mlp().parameters()):,} parameters")

# %% [markdown]
# Why 0.01 for the last weights? For check number one.
#
# ### Before you train: three checks
#
# They take seconds, and they find most mistakes.
#
# **1. The first loss is ln 10.** If it's larger, the net begins by being sure and wrong.

# %%
for name, std in (("0.01", 0.01), ("1", 1.0)):
    rng = np.random.default_rng(0)
    loud = Sequential(Flatten(), Linear(3072, 256, rng=rng), ReLU(), Linear(256, 10, std=std, rng=rng))
    print(f"last weights of size {name:4}: first loss {validate(loud)[0]:6.3f}")

# %% [markdown]
# **2. The net can memorise a single batch.** Take 32 images and nothing else. A net with 789,258 parameters must be
# able to get their loss down to zero. If it can't, don't look for a better learning rate: look for the bug.
#
# **Predict.** Below are three nets. One is sound. In one, somebody put a ReLU behind the last layer, "since all layers
# have one". In one, the gradients are never cleared. Which curve will belong to which?


# %%
def overfit(net, clear=True, steps=60):
    optimiser, losses = mr.SGD(net.parameters(), lr=0.01, momentum=0.9), []
    for _ in range(steps):
        loss = mr.cross_entropy(net(mr.Tensor(x[:32])), y[:32])
        loss.backward()
        optimiser.step()
        if clear:
            optimiser.zero_grad()
        losses.append(loss.item())
    return losses


relu_net = Sequential(*mlp(), ReLU())
one_batch = {
    "sound": overfit(mlp()),
    "ReLU behind the last layer": overfit(relu_net),
    "gradients never cleared": overfit(mlp(), clear=False),
}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6.4, 3.2))
for (name, losses), style in zip(one_batch.items(), ("-", "--", ":"), strict=True):
    axes.plot(np.minimum(losses, 8), style, label=name, linewidth=2)
axes.axhline(np.log(10), color=plots.INK, linewidth=0.8)
axes.text(60, np.log(10) + 0.1, "ln 10", fontsize=8, ha="right")
axes.set(xlabel="step", ylabel="loss of the batch (cut at 8)", ylim=(0, 8.3))
axes.legend(fontsize=8)
plt.show()
for name, losses in one_batch.items():
    print(f"{name:28} last loss {losses[-1]:.3g}")
dead = int((relu_net(mr.Tensor(x[:32])).data == 0).all(axis=1).sum())
print(f"with the ReLU, {dead} of 32 images have ten scores of 0; {dead} / 32 ln 10 = {dead / 32 * np.log(10):.3f}")

# %% [markdown]
# All three begin at ln 10: check 1 finds neither bug. Check 2 finds both at once. With the ReLU, descent pushes wrong
# scores down to 0, and sometimes the right one with them. Where all ten are 0, no gradient passes any more, and that
# image costs $\ln 10$ for ever. With gradients that pile up, every step repeats all the earlier ones.
#
# **3. The learning rate is chosen by measuring.** One epoch each, over a wide range, in equal factors.
#
# **Predict.** What will the curve look like, from $10^{-4}$ to 0.3? Which value would you choose?

# %%
rates = np.logspace(-4, -0.5, 15)
swept = []
for lr in rates:
    with np.errstate(all="ignore"):  # some of these diverge: that is the point
        history, losses = train(mlp(), epochs=1, lr=lr, verbose=False)
    swept.append(history[-1][2] if history else np.inf)
best = rates[int(np.argmin(swept))]
for lr, loss in zip(rates, swept, strict=True):
    print(f"lr {lr:8.5f}: validation loss {loss:.4g}" + ("   <- lowest" if lr == best else ""))

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3))
shown = np.minimum(swept, 3)
fine = np.array(swept) < 3
axes.semilogx(rates[fine], shown[fine], "o-", label="after one epoch")
axes.semilogx(rates[~fine], shown[~fine], "x", color=plots.COLOURS[1], markersize=8, label="3 or more, or diverged")
axes.axhline(np.log(10), color=plots.INK, linewidth=0.8)
axes.text(rates[0], np.log(10) + 0.03, "ln 10: nothing learned", fontsize=8)
axes.set(xlabel="learning rate", ylabel="validation loss", ylim=(1.8, 3.1))
axes.legend(fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# Every such curve has three parts: on the left, nothing happens; then a valley; and on the right, not far from the
# best, a **cliff**. The best learning rate is within a factor of a few of the cliff. So choose the bottom or a little
# to the left of it, never to the right.
#
# ### Momentum, live
#
# **Predict.** Three runs: (a) lr 0.01 without momentum, (b) lr 0.01 with momentum 0.9, (c) lr 0.1 without momentum.
# Which two will be similar?

# %%
settings = {
    "(a) lr 0.01": {"lr": 0.01, "momentum": 0.0},
    "(b) lr 0.01, momentum 0.9": {"lr": 0.01, "momentum": 0.9},
    "(c) lr 0.1": {"lr": 0.1, "momentum": 0.0},
}
curves = {name: train(mlp(), epochs=3, verbose=False, **setting)[1] for name, setting in settings.items()}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3))
for (name, losses), style in zip(curves.items(), ("-", "--", "-."), strict=True):
    smooth = np.convolve(losses, np.ones(15) / 15, mode="valid")
    axes.plot(np.arange(len(smooth)) + 15, smooth, style, label=name)
axes.set(xlabel="step", ylabel="training loss (mean of 15 steps)")
axes.legend(fontsize=8)
plt.show()
for name, losses in curves.items():
    print(f"{name:27} mean loss of the last 60 steps: {np.mean(losses[-60:]):.2f}")

# %% [markdown]
# (b) and (c), as $\frac{1}{1 - m} = 10$ promised. And (b) ends up ahead: in the shaky directions it takes the small
# steps, in the steady ones the large.
#
# ### Weight decay, live
#
# Ten epochs of the MLP, without and with weight decay.

# %%
print("without weight decay")
free = mlp()
history_free, _ = train(free, epochs=10, lr=0.01)
print("weight decay 0.02")
held = mlp()
history_held, _ = train(held, epochs=10, lr=0.01, weight_decay=0.02)

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
for history, colour, marker, name in (
    (history_free, plots.COLOURS[1], "s", "without"),
    (history_held, plots.COLOURS[0], "o", "weight decay 0.02"),
):
    columns = np.array(history).T
    epochs = range(1, len(history) + 1)
    left.plot(epochs, columns[0], f"{marker}--", color=colour, markerfacecolor="white", label=f"{name}, training")
    left.plot(epochs, columns[2], f"{marker}-", color=colour, label=f"{name}, validation")
    right.plot(epochs, columns[1], f"{marker}--", color=colour, markerfacecolor="white")
    right.plot(epochs, columns[3], f"{marker}-", color=colour)
left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
left.legend(fontsize=7)
right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
plt.show()
for name, net in (("without", free), ("with", held)):
    length = np.sqrt(sum((p.data**2).sum() for p in net.parameters()))
    print(f"length of all weights {name:8} weight decay: {length:.1f}")

# %% [markdown]
# Look at the **gap** between dashed and solid. Without decay the training loss heads for zero while the validation loss
# no longer falls: the net memorises its 4,000 images. Weight decay keeps the weights smaller and the gap narrower. On
# validation images both nets are right about as often, but the free net has the higher loss: where it is wrong, it is
# very sure of it.
#
# ## 8. The initial weights
#
# With two layers the initial weights were no problem. In a deep net, their size decides whether anything is learned at
# all. Why?
#
# Follow the **size** of a signal through one layer, $y_j = \sum_{i=1}^{n} x_i w_{ij}$, where $n$ is the number of
# inputs, the *fan-in*. Let the weights be independent, with mean 0 and variance $\sigma^2$. Then the terms of the sum
# are uncorrelated, each with variance $E[x_i^2]\,\sigma^2$, and variances add:
#
# $$ \text{var}(y_j) = n\,\sigma^2\,E[x^2] $$
#
# Then comes ReLU. $y$ is as often positive as negative, and ReLU throws the negative half away, so **half** of the mean
# square is left:
#
# $$ E[\text{relu}(y)^2] = \tfrac12\,\text{var}(y) = \tfrac12\, n\,\sigma^2\, E[x^2] $$
#
# So each layer multiplies the mean square by $\frac12 n \sigma^2$. After $d$ layers, it has been multiplied by
# $\left(\frac12 n\sigma^2\right)^d$. That is a power with a large exponent; it goes to zero or to infinity unless the
# bracket is **one**:
#
# $$ \tfrac12\, n\,\sigma^2 = 1 \qquad\Longrightarrow\qquad \sigma = \sqrt{\frac{2}{n}} $$
#
# This is **He initialisation** (He et al. 2015), and it is the default of `Linear` and `Conv2d` in minires.
#
# **Predict.** 30 layers of 256 ReLUs. By which factor does the signal's size (the root of the mean square) change for
# $\sigma = 0.01$? For $\sigma = \sqrt{1/n}$, with the 2 forgotten? For He's?

# %%
DEPTH, WIDTH = 30, 256
RULES = {
    "0.01": lambda n: 0.01,
    "sqrt(1/n)": lambda n: np.sqrt(1 / n),
    "He: sqrt(2/n)": lambda n: np.sqrt(2 / n),
}
for name, rule in RULES.items():
    factor = (0.5 * WIDTH * rule(WIDTH) ** 2) ** (DEPTH / 2)
    print(f"{name:14} size after 30 layers, by the formula: {factor:.1e} times")


# %%
def deep_net(rule, depth=DEPTH, width=WIDTH):
    rng = np.random.default_rng(0)
    layers = [Flatten(), Linear(3072, width, std=rule(3072), rng=rng), ReLU()]
    for _ in range(depth - 1):
        layers += [Linear(width, width, std=rule(width), rng=rng), ReLU()]
    return Sequential(*layers, Linear(width, 10, std=rule(width), rng=rng))


def signals(net, rows=slice(0, 256)):
    """The outputs of all ReLUs, and the gradients that arrive there."""
    hidden, kept = mr.Tensor(x[rows]), []
    for layer in net:
        hidden = layer(hidden)
        if isinstance(layer, ReLU):
            kept.append(hidden.retain_grad())
    mr.cross_entropy(hidden, y[rows]).backward()
    return [t.data for t in kept], [t.grad for t in kept]


found = {name: signals(deep_net(rule)) for name, rule in RULES.items()}


def size(array):
    return np.sqrt(np.mean(np.square(array, dtype=np.float64)))


for name, (outputs, _) in found.items():
    print(f"{name:14} size after layer 1: {size(outputs[0]):.1e}   after layer 30: {size(outputs[-1]):.1e}")

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 3, figsize=(9, 4.4), sharey=True)
shown = (1, 5, 10, 15, 20, 25, 30)
bins = np.linspace(0, 3, 61)
middles = (bins[1:] + bins[:-1]) / 2
for axes, (name, (outputs, _)), colour in zip(panels, found.items(), plots.COLOURS, strict=False):
    for row, layer in enumerate(shown):
        positive = outputs[layer - 1][outputs[layer - 1] > 0]  # ReLU has made 0 of the others
        counts, _ = np.histogram(positive, bins)
        tall = 0.85 * counts / counts.max()
        axes.fill_between(middles, -row, -row + tall, step="mid", color=colour, alpha=0.75, linewidth=0)
        axes.axhline(-row, color=plots.INK, linewidth=0.5)
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("output of the ReLU, where above 0")
panels[0].set_yticks([-row for row in range(len(shown))], [f"layer {layer}" for layer in shown])
plt.show()

# %% [markdown]
# From top to bottom, the outputs of seven of the 30 layers. On the left and in the middle, all that is left is a heap
# at zero. The last layer sees nothing. On the right the signal lives.
#
# Now the same as curves, and next to them the gradient in the backward pass. It goes through the same weights, so it
# suffers the same fate, from the other end.

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4))
for (name, both), marker in zip(found.items(), "sDo", strict=True):
    for axes, arrays in zip(panels, both, strict=True):
        sizes = np.array([size(array) for array in arrays])
        axes.semilogy(range(1, DEPTH + 1), np.maximum(sizes, 1e-46), f"{marker}-", markersize=4, label=name)
panels[0].set(xlabel="layer", ylabel="size of the outputs")
panels[1].set(xlabel="layer", ylabel="size of the gradient")
panels[0].legend(fontsize=8)
plt.show()
for name, (_, gradients) in found.items():
    print(f"{name:14} gradient at layer 30: {size(gradients[-1]):.1e}   at layer 1: {size(gradients[0]):.1e}")

# %% [markdown]
# With $\sqrt{1/n}$ each layer loses a factor $\sqrt{1/2}$, and 30 of them $2^{-15}$, about one thirty-thousandth. With
# He's rule both stay level, forward and backward. Does it matter for learning? Ten layers, one batch to memorise, and
# nothing different but the initial weights:


# %%
def memorise(rule, steps=60):
    net = deep_net(rule, depth=10, width=128)
    optimiser, losses = mr.SGD(net.parameters(), lr=0.003, momentum=0.9), []
    for _ in range(steps):
        loss = mr.cross_entropy(net(mr.Tensor(x[:32])), y[:32])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


memorised = {name: memorise(rule) for name, rule in RULES.items()}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3))
for (name, losses), style in zip(memorised.items(), ("-", "--", "-."), strict=True):
    axes.plot(losses, style, label=name, linewidth=2)
axes.axhline(np.log(10), color=plots.INK, linewidth=0.8)
axes.text(60, np.log(10) + 0.1, "ln 10", fontsize=8, ha="right")
axes.set(xlabel="step", ylabel="loss of the batch", ylim=(0, 6))
axes.legend(fontsize=8)
plt.show()
for name, losses in memorised.items():
    print(f"{name:14} first loss {losses[0]:.2f}, last {losses[-1]:.3g}")

# %% [markdown]
# > **Aside.** He's net starts well above ln 10, because here the rule was used for the last layer too, which has no
# > ReLU and whose scores should be small. That is why minires' nets draw their last weights with standard deviation
# > 0.01.
#
# A good start keeps the signal alive at step 0. It can't promise that the signal stays alive when the weights move.
# What can is the subject of chapter 5.
#
# ## 9. The test set, once
#
# All choices were made on the validation part: the MLP, its learning rate, the weight decay. Now, once, the test set.

# %%
chosen = min((history_free, free), (history_held, held), key=lambda pair: pair[0][-1][2])[1]
with mr.no_grad():
    test_scores = chosen(mr.Tensor(normalise(data.test_images))).data
answers = test_scores.argmax(axis=1)
print("chosen: the net", "with" if chosen is held else "without", "weight decay")
print(f"test accuracy: {accuracy(test_scores, data.test_labels):.1%}")

# %% tags=["hide-input"]
counts = np.zeros((10, 10), int)
np.add.at(counts, (data.test_labels, answers), 1)
share = counts / counts.sum(axis=1, keepdims=True)
figure, axes = plt.subplots(figsize=(5.4, 4.6))
axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
for (i, j), value in np.ndenumerate(share):
    if value >= 0.005:
        ink = "white" if value > 0.5 else plots.INK
        axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=ink)
axes.set_xticks(range(10), data.classes, rotation=45, ha="right", fontsize=8)
axes.set_yticks(range(10), data.classes, fontsize=8)
axes.set(xlabel="the net's answer", ylabel="true class", title="percent of each class")
plt.show()


# %%
def look_at(rows):
    p = np.exp(mr.log_softmax(mr.Tensor(test_scores[rows])).data)
    top = p.argsort(axis=1)[:, ::-1][:, :3]
    found = [[(data.classes[k], p[i, k]) for k in best] for i, best in enumerate(top)]
    names = [f"true: {data.classes[label]}" for label in data.test_labels[rows]]
    return plots.prediction(data.test_images[rows], names, found)


look_at(np.arange(4))

# %% [markdown]
# The diagonal of the table is what is right. Look at the largest numbers off the diagonal: which two kinds does the net
# mix up, and can you blame it?
#
# It has no idea that a pixel has neighbours. Shuffle the pixels of all images in the same way, and the rows of its
# first weights along with them: not one of its answers changes.

# %%
shuffle = np.random.default_rng(0).permutation(3072)
blind = mlp()
blind.load_state_dict(chosen.state_dict())
blind[1].weight.data = blind[1].weight.data[shuffle]
flat = normalise(data.test_images[:100]).reshape(100, 3072)
with mr.no_grad():
    same = blind(mr.Tensor(flat[:, shuffle])).data.argmax(axis=1) == answers[:100]
print(f"{same.sum()} of 100 answers are the same")

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 4, figsize=(6, 1.8))
for k in range(2):
    image = data.test_images[k]
    panels[2 * k].imshow(image)
    panels[2 * k + 1].imshow(image.reshape(3072)[shuffle].reshape(32, 32, 3))
for axes, title in zip(panels, ("for us", "for an MLP") * 2, strict=True):
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
plt.show()

# %% [markdown]
# To an MLP, the right image of each pair is as good as the left. Chapter 4 gives the net eyes: a layer that looks at
# small patches, with the same weights everywhere.
#
# ## Summary
#
# - Softmax turns scores into probabilities; only differences of scores count, so subtract the largest first.
# - Cross-entropy is the negative mean log-likelihood. Knowing nothing costs $\ln 10$; $e^L$ is the number of classes
#   left in doubt. Its gradient is $(p - t)/N$.
# - SGD uses the gradient of a batch. Its error falls with $1/\sqrt{B}$, so small batches are the better bargain.
# - The steepest direction limits the learning rate ($\text{lr} < 2/c$). Momentum $m$ multiplies steady directions by
#   $1/(1-m)$ and calms shaky ones. Weight decay shrinks each weight by a factor $1 - \text{lr}\,\lambda$ per step.
# - Before training: check the first loss, memorise one batch, sweep the learning rate.
# - ReLU halves the mean square. $\sigma = \sqrt{2/n}$ makes up for it, and a signal crosses 30 layers in both
#   directions.
#
# ## Common mistakes
#
# - `log(softmax(x))` in two steps: a probability that underflows to 0 gives minus infinity.
# - Softmax on the last layer *and* in the loss. The net then learns slowly, and never becomes sure.
# - A ReLU behind the last layer.
# - The sum over the batch instead of the mean: the learning rate then depends on the batch size.
# - Forgetting `zero_grad()`.
# - Adding momentum without lowering the learning rate.
# - Choosing anything on the test set. It isn't a test any more.
# - Computing the normalisation statistics over validation or test images too.
# - All weights zero: every hidden unit then computes the same, gets the same gradient, and stays the same for ever.
#
# ## Three questions
#
# <details><summary>1. A net for 100 classes begins with a loss of 4.6. Is that a bug?</summary>
#
# No: $\ln 100 = 4.605$. It knows nothing yet, and says so.
#
# </details>
#
# <details><summary>2. You double the batch size. By which factor does the gradient's noise fall, and what does an epoch
# cost then?</summary>
#
# By $\sqrt2$, about 1.4. An epoch looks at the same number of images, so it costs about the same, but it makes half as
# many steps. People often raise the learning rate along with the batch size, so that half the steps go as far.
#
# </details>
#
# <details><summary>3. Someone uses tanh instead of ReLU. Which standard deviation should the initial weights
# have?</summary>
#
# Near 0, tanh is nearly the identity: it throws no half away. So there is nothing to make up for, the factor per layer
# is $n\sigma^2$, and $\sigma = \sqrt{1/n}$ keeps the signal (as long as it is small).
#
# </details>
#
# ## Exercises
#
# Open `chapters/exercises/ch03_learning.py`, fill in a function, save, and run its cell here (or, in a terminal,
# `pytest -m ex3_1` or `python -m minires check 3.1`). Stuck? `hint("3.1")`, then `hint("3.1", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 3.1 `log_softmax` | logarithms of probabilities, safely | 2 | about 2 |
# | 3.2 `cross_entropy` | the loss of a batch and its gradient | 2 | about 6 |
# | 3.3 `sgd_step` | a step with momentum and weight decay | 1 | about 3 |
# | 3.4 `he_init` | first weights that keep a signal's size | 1 | about 2 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("3.1")

# %%
check("3.2")

# %%
check("3.3")

# %%
check("3.4")

# %%
hint("3.1")

# %% [markdown]
# ## Read on
#
# - `minires/functional.py`: `log_softmax` and `cross_entropy`. `minires/optim.py`: `SGD`, all of it on one page, and
#   schedules such as `multistep` and `warmup` that change the learning rate during training. `minires/nn.py`: `Linear`,
#   and He's rule. `minires/training/loop.py`: the loop of section 6, grown up.
# - **Chapter 4, Convolution is a matrix product**, gives the net eyes.
# - K. He et al., "Delving Deep into Rectifiers" (2015), section 2.2, derives the initialisation. X. Glorot and Y.
#   Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010), has the histograms that
#   started it.
