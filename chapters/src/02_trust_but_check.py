# %% [markdown]
# # 2. Trust, but check
#
# **After this chapter you can**
# - measure any derivative by nudging, and choose how far to nudge;
# - say how close is close enough, in float32 and in float64;
# - recognise where the measurement itself goes wrong: kinks, ties, and sums that never change;
# - read what `mr.gradcheck` says about a wrong gradient, and name four mistakes that it can't see.
#
# **You need** chapter 1, and Taylor's formula to the third order.
#
# **Time**: about 60 minutes to read and run, 60 for the exercises.

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
import textwrap

import matplotlib.pyplot as plt
import numpy as np

import minires as mr
from minires import plots
from minires.data import Normalise

plots.notebook_style()

# %% [markdown]
# ## 1. The bug that does not crash
#
# Here the same little net is trained twice, from the same weights, on the same images in the same order. In one of the
# two, a line of a backward function is wrong.
#
# **Predict.** How will you be able to see which?

# %%
data = mr.open_data("auto")
normalise = Normalise.channels(data.train_images)
x = normalise(data.train_images[:1000]).reshape(1000, -1)  # (1000, 3072)
y = data.train_labels[:1000]


def careless_relu(x):
    """A ReLU whose backward has forgotten where x was negative."""
    return mr.Tensor.from_op(np.maximum(x.data, 0), (x,), lambda grad: (grad,), "relu")


def train(relu, epochs=20, width=64):
    rng = np.random.default_rng(0)
    sizes = (3072, width, width, 10)
    weights = [
        mr.Tensor((rng.normal(size=size) * np.sqrt(1 / size[0])).astype(np.float32), requires_grad=True)
        for size in zip(sizes, sizes[1:], strict=False)
    ]
    optimiser, losses = mr.SGD(weights, lr=0.02), []
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for batch in order.reshape(-1, 50):
            hidden = mr.Tensor(x[batch])
            for w in weights[:-1]:
                hidden = relu(hidden @ w)
            loss = mr.cross_entropy(hidden @ weights[-1], y[batch])
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
    return np.reshape(losses, (epochs, -1)).mean(axis=1)


runs = {"net A": train(careless_relu), "net B": train(mr.relu)}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5.5, 3))
for (name, losses), marker in zip(runs.items(), "os", strict=True):
    axes.plot(range(1, len(losses) + 1), losses, f"{marker}-", label=name, markersize=4)
axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None), xticks=range(0, 21, 5))
axes.legend()
plt.show()

# %% [markdown]
# Both learn. If you had seen only net A, you would have been satisfied: the loss goes down, epoch after epoch. You
# might have tried another learning rate. Net A has the bug.
#
# A wrong gradient seldom crashes. It still points *roughly* downhill, and gradient descent forgives a lot. So results
# can't show you whether a gradient is right. Only one thing can: **measure it**, with a method so simple that it can't
# be wrong in the same way.
#
# ## 2. Two ways to measure a slope
#
# The derivative is defined by a nudge: $f'(x) = \lim_{h\to0} \frac{f(x+h) - f(x)}{h}$. A computer can't take the limit,
# so it takes a small $h$. Taylor's formula says what that costs:
#
# $$ f(x \pm h) = f(x) \pm h f'(x) + \tfrac{h^2}{2} f''(x) \pm \tfrac{h^3}{6} f'''(x) + \dots $$
#
# **Forward difference**: use $x$ and $x+h$. Solve for $f'$, and the $h^2$ term is left over:
#
# $$ \frac{f(x+h) - f(x)}{h} = f'(x) + \underbrace{\tfrac{h}{2} f''(x)}_{\text{error}} + \dots $$
#
# **Central difference**: use $x-h$ and $x+h$. When the two lines are subtracted, the $h^2$ terms cancel:
#
# $$ \frac{f(x+h) - f(x-h)}{2h} = f'(x) + \underbrace{\tfrac{h^2}{6} f'''(x)}_{\text{error}} + \dots $$


# %%
def f(x):
    return np.exp(x) * np.sin(x)


def slope_of_f(x):
    return np.exp(x) * (np.sin(x) + np.cos(x))


def forward_difference(f, x, h):
    return (f(x + h) - f(x)) / h


def central_difference(f, x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5.5, 3.2))
at, h = 0.5, 0.9
line = np.linspace(-0.6, 1.8, 200)
axes.plot(line, f(line), color=plots.INK, label="f")
for slope, style, colour, name in (
    (slope_of_f(at), "-", plots.COLOURS[2], "tangent"),
    (forward_difference(f, at, h), "--", plots.COLOURS[1], "forward difference"),
    (central_difference(f, at, h), "-.", plots.COLOURS[0], "central difference"),
):
    near = np.array([at - 1.0, at + 1.0])
    axes.plot(near, f(at) + slope * (near - at), style, color=colour, label=f"{name}: {slope:.2f}")
axes.plot([at - h, at, at + h], f(np.array([at - h, at, at + h])), "o", color=plots.INK, markersize=5)
axes.set(xlabel="x", title=f"three slopes at x = {at}, with h = {h}")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# Even with a giant nudge the central difference is close; the forward difference is fooled by the curve.
#
# **Predict.** Make $h$ ten times smaller. By how much does each error shrink?

# %%
print("       h   forward error   central error")
for h in (1e-1, 1e-2, 1e-3):
    errors = [abs(difference(f, 0.5, h) - slope_of_f(0.5)) for difference in (forward_difference, central_difference)]
    print(f"{h:8g} {errors[0]:15.2e} {errors[1]:15.2e}")

# %% [markdown]
# By 10 and by 100, as the formulas say: one error is of order $h$, the other of order $h^2$. Both need two evaluations,
# so the choice is easy.
#
# ## 3. How small is small enough?
#
# **Predict.** Then $h = 10^{-12}$ must be splendid. What error would you expect?

# %%
for h in (1e-3, 1e-6, 1e-9, 1e-12, 1e-15):
    error = abs(central_difference(f, 0.5, h) - slope_of_f(0.5))
    print(f"h = {h:5.0e}   error {error:.1e}")

# %% [markdown]
# The errors turn around and grow. The reason isn't calculus, it is the computer. A float has a fixed number of digits:
# about 16 in float64, 7 in float32. Two numbers that agree in the first ten digits leave only six when they are
# subtracted, and then we divide by a tiny $h$.
#
# In formulas: $f(x \pm h)$ is off by up to about $\varepsilon |f|$, where $\varepsilon$ is the relative size of a
# rounding error. So the quotient is off by about $\varepsilon |f| / h$. The two errors pull in opposite directions:
#
# $$ \text{error}(h) \approx \underbrace{\frac{\varepsilon\,|f|}{h}}_{\text{rounding}} +
# \underbrace{\frac{h^2}{6}\,|f'''|}_{\text{the formula}} $$
#
# To the left of the best $h$ rounding dominates, to the right the formula does. On logarithmic axes these are two
# straight lines: slope $-1$ and slope $+2$ (for the forward difference $+1$). A **V**. Let us measure it, averaged over
# 200 points $x$, once in float64 and once in float32.

# %%
places = np.random.default_rng(0).uniform(0.5, 1.5, 200)
steps = np.logspace(-15, 0, 61)


def mean_error(difference, h, dtype):
    x, h = places.astype(dtype), dtype(h)
    with np.errstate(all="ignore"):  # a nudge too small to change x gives 0: an error like any other
        found = difference(f, x, h).astype(np.float64)
    return np.mean(abs(found - slope_of_f(places)) / abs(slope_of_f(places)))


errors = {
    (dtype.__name__, difference.__name__): [mean_error(difference, h, dtype) for h in steps]
    for dtype in (np.float32, np.float64)
    for difference in (forward_difference, central_difference)
}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 4))
looks = {"float32": plots.COLOURS[1], "float64": plots.COLOURS[0]}
for (dtype, difference), found in errors.items():
    style = "o-" if difference == "central_difference" else "s--"
    axes.loglog(
        steps,
        found,
        style,
        color=looks[dtype],
        markersize=3.5,
        markerfacecolor="white",
        label=f"{dtype}, {difference.replace('_', ' ')}",
    )
axes.set(xlabel="h", ylabel="relative error of the slope", ylim=(1e-13, 30), xlim=(1e-15, 1))
axes.grid(alpha=0.3)
axes.annotate("rounding:\nh too small", (3e-11, 8e-4), ha="left", fontsize=9)
axes.annotate("the formula:\nh too large", (5e-3, 2e-10), ha="left", fontsize=9)
axes.legend(fontsize=8, loc="lower left")
plt.show()

print("the lowest point of each V:")
for (dtype, difference), found in errors.items():
    best = int(np.argmin(found))
    print(f"  {dtype}, {difference:18}  h = {steps[best]:.0e}   error {found[best]:.0e}")

# %% [markdown]
# Read four things from it.
#
# 1. The best $h$ is nowhere near the smallest. For the central difference it is where both errors are equal, at
#    $h \approx \sqrt[3]{\varepsilon}$: about $10^{-5}$ in float64, between $10^{-3}$ and $10^{-2}$ in float32.
# 2. In **float32** the best one can get is five digits, and only near one $h$. At $h = 10^{-6}$ hardly two are left.
# 3. In **float64** there are eleven digits at the bottom, and a wide valley around it.
# 4. So gradients are checked in float64, whatever the net trains in.
#
# That is what minires does:

# %%
print("h =", inspect.signature(mr.gradcheck).parameters["eps"].default)
at = int(np.argmin(abs(steps - 1e-6)))
print(f"relative error there: {errors['float64', 'central_difference'][at]:.0e}")

# %% [markdown]
# A little to the left of the bottom. Ten digits are plenty, and a smaller step has an advantage that we meet in section
# 6: it steps over fewer kinks.
#
# ## 4. Many inputs, many outputs
#
# Our functions take arrays and return arrays. A matrix product of a (3, 4) and a (4, 2) array has 20 inputs and 6
# outputs: 120 slopes. We don't want a table of 120 numbers, and the engine doesn't compute one. `backward` gets a
# gradient $u$ from above, of the **output's** shape, and returns the gradient of the sum
#
# $$ L = \sum_i u_i\, f_i(x) \qquad\text{with the gradient}\qquad \frac{dL}{dx_j} = \sum_i u_i\,\frac{\partial
# f_i}{\partial x_j} $$
#
# So we do the same when we measure. Draw a **random** $u$ once. Then $L$ is one number, and each input is nudged in
# turn: two evaluations for each entry. By hand, for one entry of one input:

# %%
rng = np.random.default_rng(1)
X, Y = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
u = rng.normal(size=(3, 2))  # the upstream gradient


def L(X):
    return (u * (X @ Y)).sum()


h = 1e-6
nudge = np.zeros_like(X)
nudge[1, 2] = h
measured = (L(X + nudge) - L(X - nudge)) / (2 * h)

tensor = mr.Tensor(X, requires_grad=True)
(tensor @ mr.Tensor(Y)).backward(u)
print(f"entry [1, 2]: measured {measured:.10f}")
print(f"              backward {tensor.grad[1, 2]:.10f}")

# %% [markdown]
# `mr.gradcheck` does this for every entry of every input. It takes a function of tensors, and arrays to try it with. If
# all is well its answer is short:

# %%
mr.gradcheck(lambda X, Y: X @ Y, [X, Y])

# %% [markdown]
# And the careless ReLU of section 1? Three lines instead of a day of tuning:


# %%
def verdict(fn, inputs):
    try:
        mr.gradcheck(fn, inputs)
        return "passes"
    except (mr.GradientError, ValueError) as error:
        return str(error)


print(verdict(careless_relu, [rng.normal(size=(3, 4))]))

# %% [markdown]
# ## 5. How close is close enough?
#
# Two numbers are never quite equal. Suppose backward and measurement differ by 0.0001. Is that good?
#
# **Predict.** Judge these three pairs before you look at the last column.

# %%
print(" backward     measured    difference   relative error")
for backward, measured in ((250.0001, 250.0), (0.0003, 0.0002), (-0.00005, 0.00005)):
    relative = abs(backward - measured) / max(abs(backward), abs(measured))
    print(f"{backward:9.7g} {measured:12.7g} {abs(backward - measured):12.1e} {relative:15.1e}")

# %% [markdown]
# The same difference, and three verdicts: excellent, 50 % too large, wrong sign. Only the **relative error** counts:
#
# $$ \frac{|\,\text{backward} - \text{measured}\,|}{\max(|\text{backward}|, |\text{measured}|)} $$
#
# What is a good value? Let us look at 200 entries of a gradient that we trust, in float64 and in float32, each with a
# good $h$; and next to them a gradient that is wrong by one percent.

# %%
inputs = rng.normal(size=(6, 20))
weights = rng.normal(size=(20, 10)) * 0.3
targets = np.arange(6)


def entropy(w, dtype):
    return mr.cross_entropy(mr.Tensor(inputs.astype(dtype)) @ w, targets)


def relative_errors(dtype, h, scale=1.0):
    w = mr.Tensor(weights.astype(dtype), requires_grad=True)
    entropy(w, dtype).backward()
    measured = np.empty(weights.shape)
    with mr.no_grad():
        for place in np.ndindex(weights.shape):
            up, down = weights.astype(dtype), weights.astype(dtype)
            up[place] += dtype(h)
            down[place] -= dtype(h)
            difference = entropy(mr.Tensor(up), dtype).item() - entropy(mr.Tensor(down), dtype).item()
            measured[place] = difference / (2 * h)
    backward = scale * w.grad
    return abs(backward - measured) / np.maximum(abs(backward), abs(measured))


cases = {
    "right, float64": relative_errors(np.float64, 1e-6),
    "right, float32": relative_errors(np.float32, 5e-3),
    "1 % wrong, float64": relative_errors(np.float64, 1e-6, scale=1.01),
    "1 % wrong, float32": relative_errors(np.float32, 5e-3, scale=1.01),
}

# %% tags=["hide-input"]
figure, panels = plt.subplots(2, 1, figsize=(6.5, 3.6), sharex=True)
bins = np.arange(-11, 0.51, 0.25)
for axes, dtype in zip(panels, ("float64", "float32"), strict=True):
    for kind, colour, hatch in (("right", plots.COLOURS[0], ""), ("1 % wrong", plots.COLOURS[1], "//")):
        found = np.log10(np.maximum(cases[f"{kind}, {dtype}"], 1e-11)).ravel()
        axes.hist(found, bins, color=colour, alpha=0.75, hatch=hatch, edgecolor="white", label=kind)
    axes.set(ylabel="entries", title=dtype)
    axes.legend(fontsize=8, loc="upper left")
panels[1].set_xticks(range(-10, 1, 2), [f"$10^{{{k}}}$" for k in range(-10, 1, 2)])
panels[1].set_xlabel("relative error of an entry")
plt.show()
for name, found in cases.items():
    print(f"{name:20} median {np.median(found):.0e}, largest {found.max():.0e}")

# %% [markdown]
# In float64 the right and the wrong gradient are far apart: any limit between them will do. In float32 they overlap,
# and no limit can separate them. One more reason for float64.
#
# One problem is left. If the true slope is exactly 0 and rounding makes it $10^{-12}$, the relative error is 1, as if
# nothing were right. So a checker also allows a tiny **absolute** error. minires calls an entry right if
#
# $$ |\,\text{backward} - \text{measured}\,| \le \text{atol} + \text{rtol}\cdot|\,\text{measured}\,| $$

# %%
for name in ("rtol", "atol"):
    print(name, "=", inspect.signature(mr.gradcheck).parameters[name].default)

# %% [markdown]
# ## 6. Kinks and ties
#
# Taylor's formula holds for smooth functions. ReLU has a kink at 0. What does a measurement see there?
#
# **Predict.** $x = 0.3\,h$: to the right of the kink, where the slope of ReLU is 1. What will the central difference
# be?

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5.5, 2.8))
line = np.linspace(-2, 2, 201)
axes.plot(line, np.maximum(line, 0), color=plots.INK, label="ReLU")
ends = np.array([0.3 - 1, 0.3 + 1])
measured = np.diff(np.maximum(ends, 0))[0] / 2
axes.plot(ends, np.maximum(ends, 0), "o--", color=plots.COLOURS[1], label=f"central difference: {measured:.2f}")
axes.plot(0.3, 0.3, "D", color=plots.COLOURS[0], label="here the slope is 1")
axes.set_xticks([-0.7, 0, 0.3, 1.3], ["x - h", "0", "x", "x + h"])
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# The nudge has stepped over the kink and averages the two slopes. Backward is right, the **measurement** is wrong. A
# checker that doesn't know this blames the innocent.
#
# `mr.gradcheck` measures the slope below and above each entry separately. Where the two differ, it refuses to judge and
# says why:

# %%
print(verdict(mr.relu, [np.array([1.5, 3e-7, -2.0])]))

# %% [markdown]
# (Why not 0 and 1? The upstream gradient is random here too, and its entry is a factor of both slopes. And three tenths
# of the nudge below are to the right of the kink.)
#
# A maximum has such places too: a **tie**, where two entries share the maximum.

# %%
print(verdict(lambda x: x.max(), [np.array([1.0, 2.0, 2.0])]))

# %% [markdown]
# What to do? Move the input. `away_from_kinks` draws random numbers, none of them near zero and no two of them close
# together:

# %%
from minires.gradcheck import away_from_kinks

safe = away_from_kinks(np.random.default_rng(0), (3, 4))
print(safe.round(2))
print("ReLU:", verdict(mr.relu, [safe]), "  maximum:", verdict(lambda x: x.max(), [safe]))

# %% [markdown]
# And if you just draw normal numbers? The chance that one of them is within $h$ of the kink is about $0.8\,h$. A batch
# through a small net meets many ReLUs:

# %%
relus = 100_000
for h in (1e-2, 1e-4, 1e-6):
    print(f"h = {h:5.0e}: expect {0.8 * h * relus:6.2f} kinks among {relus:,} ReLUs")

# %% [markdown]
# That is the advantage of a small step.
#
# ## 7. The sum that never changes
#
# In section 4 the upstream gradient $u$ was random. Many checkers (and many students) take the plain sum as the loss,
# that is $u = 1$ everywhere. It looks harmless. Here is what it does to **batch norm**, the subject of chapter 5. All
# you need to know now: it shifts and scales each column so that its mean is 0 and its variance 1.
#
# $$ \hat x_i = \frac{x_i - \text{mean}}{\sqrt{\text{var} + \epsilon}} $$
#
# **Predict.** What is $\sum_i \hat x_i$ over a column? How does it change when you nudge an $x_i$? What, then, is the
# gradient of the sum?


# %%
def lazy_batch_norm(x):
    """Batch norm of each column. Its backward is as wrong as can be: zeros."""
    xhat = (x.data - x.data.mean(axis=0)) / np.sqrt(x.data.var(axis=0) + 1e-5)
    return mr.Tensor.from_op(xhat, (x,), lambda grad: (np.zeros_like(grad),), "lazy_batch_norm")


x_columns = rng.normal(size=(8, 3))
print("sums of the columns:", lazy_batch_norm(mr.Tensor(x_columns)).data.sum(axis=0).round(12) + 0)
print("checked with the sum:     ", verdict(lambda x: lazy_batch_norm(x).sum(), [x_columns]))
print("checked with a random u:  ", verdict(lazy_batch_norm, [x_columns]).splitlines()[0])

# %% [markdown]
# The mean of $\hat x$ is 0 by construction, so its sum is always 0. A number that never changes has gradient 0, and a
# backward of zeros is **right for the sum**. The test is green, and the net's first layers never learn.
#
# Softmax has the same trap (its outputs add up to 1), and so does everything that normalises. A random $u$ avoids it.
#
# ## 8. A gallery of wrong gradients
#
# Now for practice. Each row below is an operation: its forward, its backward with **one** mistake, and the inputs it is
# tried with. All of them are mistakes that people make.


# %%
def operation(name, forward, backward):
    def op(*tensors):
        arrays = [t.data for t in tensors]
        return mr.Tensor.from_op(np.asarray(forward(*arrays)), tensors, lambda g: backward(g, *arrays), name)

    op.__name__ = name
    op.__signature__ = inspect.signature(forward)  # so that the checker can name the inputs
    return op


def standard(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)


def soft(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def draw(*shape, seed=3):
    return away_from_kinks(np.random.default_rng(seed), shape)


def pick_back(g):
    out = np.zeros((6, 5))
    out[[0, 1, 1, 4]] = g  # = where it must be +=
    return out


GALLERY = {  # the mistake: forward, backward, inputs
    "factor 2 forgotten": (lambda x: x * x, lambda g, x: (g * x,), [draw(6, 5)]),
    "sign": (lambda x, y: x - 2 * y, lambda g, x, y: (g, 2 * g), [draw(6, 5), draw(6, 5, seed=4)]),
    "1/N forgotten": (lambda x: x.mean(axis=0), lambda g, x: (np.tile(g, (6, 1)),), [draw(6, 5)]),
    "mask forgotten": (lambda x: np.maximum(x, 0), lambda g, x: (g,), [draw(6, 5)]),
    "factors swapped": (lambda x, y: x @ y, lambda g, x, y: (y @ g.T, x.T @ g), [draw(5, 5), draw(5, 5, seed=4)]),
    "= for +=": (lambda x: x[[0, 1, 1, 4]], lambda g, x: (pick_back(g),), [draw(6, 5)]),
    "shortcut lost": (lambda x, w: x * w + x, lambda g, x, w: (g * w, g * x), [draw(6, 5), draw(6, 5, seed=4)]),
    "mean's share lost": (
        standard,
        lambda g, x: ((g - standard(x) * (g * standard(x)).mean(axis=0)) / x.std(axis=0),),
        [draw(6, 5)],
    ),
    "only the diagonal": (soft, lambda g, x: (g * soft(x) * (1 - soft(x)),), [draw(6, 5)]),
    "cropped at a corner": (lambda x: np.pad(x, 1), lambda g, x: (g[:6, :5],), [draw(6, 5)]),
    "border forgotten": (lambda x: 3 * x, lambda g, x: (np.pad(3 * g[1:-1, 1:-1], 1),), [draw(6, 5)]),
    "order reversed": (lambda x: 3 * x[::-1], lambda g, x: (3 * g,), [draw(6, 5)]),
}

# %% [markdown]
# In each pair below, the left image is what the wrong backward returns and the right one is what nudging measures (blue
# is negative, red positive, white zero).
#
# **Predict.** Don't read the text above the pairs yet. Look at each pair and say what happened.

# %% tags=["hide-input"]
from minires.gradcheck import diagnose


def measure(op, arrays, which, u, h=1e-6):
    found = np.empty(arrays[which].shape)
    for place in np.ndindex(found.shape):
        ends = []
        for sign in (1, -1):
            moved = [array.copy() for array in arrays]
            moved[which][place] += sign * h
            ends.append((op(*map(mr.Tensor, moved)).data * u).sum())
        found[place] = (ends[0] - ends[1]) / (2 * h)
    return found


figure = plt.figure(figsize=(9, 7.6))
grid = figure.add_gridspec(4, 8, width_ratios=(1, 1, 0.4, 1, 1, 0.4, 1, 1))
for i, (name, (forward, backward, arrays)) in enumerate(GALLERY.items()):
    op = operation(name, forward, backward)
    tensors = [mr.Tensor(array, requires_grad=True) for array in arrays]
    out = op(*tensors)
    u = np.random.default_rng(0).standard_normal(out.shape)
    out.backward(u)
    which = 1 if name == "sign" else 0
    pair = tensors[which].grad, measure(op, arrays, which, u)
    message = diagnose(*pair, u).split(":")[0].replace("(last axis)", "")
    most = abs(pair[1]).max()
    for k, array in enumerate(pair):
        axes = figure.add_subplot(grid[i // 3, i % 3 * 3 + k], xticks=[], yticks=[])
        axes.imshow(array, cmap="RdBu_r", vmin=-most, vmax=most)
        axes.spines[:].set_visible(True)
        axes.set_xlabel(("backward", "measured")[k], fontsize=7)
        if k == 0:
            axes.set_title(f"{name}:\n{textwrap.fill(message, 30)}", fontsize=8, loc="left")
plt.show()

# %% [markdown]
# And here is the checker's full answer to each. It looks for the pattern, because the pattern shows you where to
# search.

# %%
for name, (forward, backward, arrays) in GALLERY.items():
    print(verdict(operation(name, forward, backward), arrays), "\n")

# %% [markdown]
# How to read such a message:
#
# | it says | look for |
# | --- | --- |
# | constant ratio 0.5, 2, N | a forgotten factor, a mean without its $1/N$ |
# | constant ratio -1 | a sign |
# | the upstream gradient came through unchanged | the local factor (a mask, a weight) is missing |
# | the upstream gradient is missing from the sum | a shortcut was overwritten: `=` for `+=` |
# | transposed | factors in the wrong order |
# | reversed, shifted | a kernel not flipped, a padding cropped at the wrong side |
# | only the borders | padding again |
# | off by one constant per channel | a term that goes through the mean |
# | all zero, or zero where it should not be | a branch not followed |
# | no pattern | write down the formula again |
#
# With some mistakes nothing is compared at all, because something worse is found first:


# %%
def in_place(g, x):
    g *= x > 0
    return (g,)


WORSE = {
    "bias not summed": (lambda x, b: x + b, lambda g, x, b: (g, g), [draw(6, 5), draw(5)]),
    "float32 hard-wired": (lambda x: 2 * x, lambda g, x: ((2 * g).astype(np.float32),), [draw(6, 5)]),
    "upstream written over": (lambda x: np.maximum(x, 0), in_place, [draw(6, 5)]),
    "one gradient short": (lambda x, y: x * y, lambda g, x, y: (g * y,), [draw(3), draw(3, seed=4)]),
}
for name, (forward, backward, arrays) in WORSE.items():
    print(verdict(operation(name, forward, backward), arrays).splitlines()[0], "\n")

# %% [markdown]
# "Upstream written over" deserves a second look. Its numbers are right! But the array `g` isn't its own. In a residual
# block, the same array also goes to the shortcut, which would get the masked one. A test of one operation alone can't
# see this kind of mistake in the numbers, so the checker looks for it explicitly.
#
# ## 9. What the checker can't see
#
# It answers one question: *does backward belong to this forward, at these inputs?* Four wrong operations pass.


# %%
def softmax_of_columns(x):  # should be rows
    e = (x - x.max(axis=0, keepdims=True)).exp()
    return e / e.sum(axis=0, keepdims=True)


mean_of_one_row = operation("mean", lambda x: x.mean(axis=0), lambda g, x: (np.tile(g, (len(x), 1)),))
dead_relu = operation("relu", lambda x: np.maximum(x, 0), lambda g, x: (0 * g,))
one_column = operation("transpose", lambda x: x.T, lambda g, x: (g.reshape(x.shape),))

for what, op, inputs in (
    ("a wrong forward, with its right gradient", softmax_of_columns, draw(3, 4)),
    ("1/N forgotten, tried with N = 1", mean_of_one_row, draw(1, 5)),
    ("    the same with N = 6", mean_of_one_row, draw(6, 5)),
    ("a dead ReLU, tried with negative inputs", dead_relu, -abs(draw(3, 4))),
    ("    the same with both signs", dead_relu, draw(3, 4)),
    ("a reshape that is right for one column", one_column, draw(4, 1)),
    ("    the same with 3 columns", one_column, draw(4, 3)),
):
    message = verdict(op, [inputs]).splitlines()[0]
    print(f"{what:42}{message.split('(input 0): ')[-1]}")

# %% [markdown]
# So a check is as good as its inputs: **not square, more than one image, several channels, both signs, odd sizes, with
# stride and padding**. And forward needs a test of its own, against something independent: a slow loop that anyone can
# read, another library, a number from a paper.
#
# One more trap is chance. An operation that draws new random numbers at every call can't be nudged, because each
# evaluation is another function. The checker notices:

# %%
generator = np.random.default_rng(0)
print(verdict(lambda x: mr.dropout(x, 0.5, generator), [draw(3, 4)]))
print("with the same mask each time:", verdict(lambda x: mr.dropout(x, 0.5, np.random.default_rng(0)), [draw(3, 4)]))

# %% [markdown]
# ## 10. An entire net in two evaluations
#
# ResNet-20 has 269,722 parameters; nudging each is out of the question. But there is a cheap check that sees them all:
# nudge **all at once**, in a random direction $v$ of length 1. The slope in that direction is known from the gradient
# $g$:
#
# $$ \frac{L(\theta + h v) - L(\theta - h v)}{2h} \approx g \cdot v $$
#
# Two evaluations, one number. It can't say *where* a mistake is, but restricting $v$ to a part of the net can. We check
# a healthy net, then plant a mistake: one layer's gradient becomes five percent too large.

# %%
net = mr.build("resnet20", seed=0).astype(np.float64)
images = normalise(data.train_images[:4]).astype(np.float64)
labels = data.train_labels[:4]
parameters = dict(net.named_parameters())


def net_loss():
    return mr.cross_entropy(net(mr.Tensor(images)), labels)


def difference_along(part, seed, h=1e-7):
    """Relative difference of the measured and the computed slope along a random direction in a part of the net."""
    rng = np.random.default_rng(seed)
    chosen = {name: p for name, p in parameters.items() if name.startswith(part)}
    before = {name: p.data for name, p in chosen.items()}
    v = {name: rng.standard_normal(p.shape) for name, p in chosen.items()}
    length = np.sqrt(sum((d * d).sum() for d in v.values()))
    ends = []
    for sign in (1, -1):
        for name, p in chosen.items():
            p.data = before[name] + sign * h / length * v[name]
        with mr.no_grad():
            ends.append(net_loss().item())
    for name, p in chosen.items():
        p.data = before[name]
    measured = (ends[0] - ends[1]) / (2 * h)
    computed = sum((p.grad * v[name]).sum() for name, p in chosen.items()) / length
    return abs(measured - computed) / max(abs(measured), abs(computed))


net_loss().backward()
PARTS = ("conv1", "layer1", "layer2", "layer3", "fc")
healthy = {part: np.median([difference_along(part, seed) for seed in range(3)]) for part in ("", *PARTS)}
culprit = parameters["layer2.1.conv1.weight"]
culprit.grad = 1.05 * culprit.grad
faulty = {part: np.median([difference_along(part, seed) for seed in range(3)]) for part in ("", *PARTS)}
print(f"the entire net: healthy {healthy['']:.0e}, with the mistake {faulty['']:.0e}")

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3))
places = np.arange(len(PARTS))
axes.bar(places - 0.18, [healthy[part] for part in PARTS], 0.36, label="healthy", color=plots.COLOURS[0])
axes.bar(
    places + 0.18,
    [faulty[part] for part in PARTS],
    0.36,
    label="5 % too much in layer2.1.conv1",
    color=plots.COLOURS[1],
    hatch="//",
    edgecolor="white",
)
axes.set_yscale("log")
axes.set_xticks(places, PARTS)
axes.set(ylabel="relative difference", ylim=(1e-11, 3))
axes.legend(fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# Only the stage with the planted mistake moves, by several powers of ten. (Why is $h$ smaller here than before? The
# entire net moves at once, and with it hundreds of thousands of ReLUs, none of which should cross its kink. The price
# is rounding: the healthy bars are higher than the bottom of the V.)
#
# ## Summary
#
# - A wrong gradient doesn't crash, and a net often still learns with it. Only measuring shows it.
# - Central differences: error of order $h^2$ from the formula, $\varepsilon/h$ from rounding. The best $h$ is about
#   $\sqrt[3]{\varepsilon}$; check in **float64**.
# - Judge the **relative** error, with a small absolute allowance for slopes that are zero.
# - At kinks and ties the measurement is wrong, not the gradient: move the inputs.
# - Use a **random upstream gradient**. The plain sum hides a wrong batch norm, a wrong softmax, and whatever else
#   normalises.
# - A check is as good as its inputs, and it says nothing about the forward formula.
#
# ## Common mistakes
#
# - Checking in float32 and then loosening the limit until the test is green.
# - `h = 1e-12`, "to be precise".
# - Checking the sum of the outputs.
# - Inputs that are square, of one image or one channel, all positive, or 0 (zeros are exactly on ReLU's kink).
# - Comparing a function with itself: the measurement must not share code with what it judges.
# - Concluding from a passed check that the operation is right, when forward was never tested.
# - Checking once and then "tidying up" the backward function. Put the check into a test that runs every day.
#
# ## Three questions
#
# <details><summary>1. Why do the h-squared terms cancel in the central difference but not in the forward one?</summary>
#
# $f(x+h)$ and $f(x-h)$ have the same $\tfrac{h^2}{2}f''$ with the same sign (a square ignores the sign of $h$), so it
# vanishes in their difference, while the terms with $h$ and $h^3$ double. The forward difference subtracts $f(x)$,
# which has no such term.
#
# </details>
#
# <details><summary>2. A check in float64 with h = 1e-6 finds a relative error of 1e-3 in one entry of 5,000, and 1e-9
# in all the others. What do you suspect?</summary>
#
# Not the formula: that would show in many entries. A single entry suggests a kink or a tie near that input. Move the
# input (another seed) and see whether the bad entry moves too. If it stays at a border or a corner, suspect padding.
#
# </details>
#
# <details><summary>3. A student checks softmax with the loss (y * y).sum() instead of y.sum(). Is that good
# enough?</summary>
#
# Better: for softmax it does change with the input. For a batch norm it does not (nearly): the sum of the squares of N
# standardised numbers is always about N. A loss that is special in some way may meet an operation that is special in
# the same way. A random upstream gradient is practically never special.
#
# </details>
#
# ## Exercises
#
# Open `chapters/exercises/ch02_gradcheck.py`, fill in a function, save, and run its cell here (or, in a terminal,
# `pytest -m ex2_1` or `python -m minires check 2.1`). Stuck? `hint("2.1")`, then `hint("2.1", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 2.1 `slope_along` | the central difference, along a direction | 1 | about 2 |
# | 2.2 `relative_error` | how far apart two gradients are | 1 | about 2 |
# | 2.3 `numerical_gradient` | every entry nudged, with a random upstream gradient | 2 | about 7 |
# | 2.4 `kinks` | where a measurement cannot be trusted | 2 | about 8 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("2.1")

# %%
check("2.2")

# %%
check("2.3")

# %%
check("2.4")

# %%
hint("2.1")

# %% [markdown]
# ## Read on
#
# - `minires/gradcheck.py`: the checker and its messages. Its own tests, `tests/test_wrong_backward.py`, are a gallery
#   like that of section 8: a checker that has never failed anything proves nothing.
# - **Chapter 3, Learning**, puts gradients that we now trust to use.
# - On the best step: W. H. Press et al., *Numerical Recipes*, section 5.7, "Numerical derivatives". On rounding: D.
#   Goldberg, "What every computer scientist should know about floating-point arithmetic" (1991).
