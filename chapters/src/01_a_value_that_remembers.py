# %% [markdown]
# # 1. A value that remembers
#
# **After this chapter you can**
# - build, from nothing, an object that computes a formula and then finds the derivative of the result with respect to
#   every number in it;
# - say why gradients *add* where a value is used twice, and show what goes wrong if they don't;
# - say in which order the backward pass must visit a graph, and write it without recursion;
# - carry the idea from numbers to arrays, and undo broadcasting.
#
# **You need** Python with classes and `lambda`, the derivative of a product, and the chain rule. NumPy from section 7
# on.
#
# **Time**: about 60 minutes to read and run, 90 for the exercises.

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
from itertools import chain

import matplotlib.pyplot as plt
import numpy as np

import minires as mr
from minires import plots
from minires.course import drawings

plots.notebook_style()

# %% [markdown]
# ## 1. Which way to turn a knob?
#
# A neural net is a formula with many knobs (its *parameters*) and one number at the end, the *loss*, that says how
# badly it does. Learning means turning the knobs until the loss is small.
#
# Here is a net with a single knob $w$. It is given the number 3, answers $3w$, and should have answered 6. The loss is
# the square of the difference.


# %%
def loss_of(w):
    return (w * 3 - 6) ** 2


w, h = 1.2, 0.001
slope = (loss_of(w + h) - loss_of(w - h)) / (2 * h)
print(f"loss {loss_of(w):.4g}, slope {slope:.4g}")

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(5, 3))
knob = np.linspace(0.5, 3.5, 100)
near = np.array([w - 0.45, w + 0.45])
axes.plot(knob, loss_of(knob), label="loss")
axes.plot(near, loss_of(w) + slope * (near - w), "--", label=f"slope at {w}: {slope:.3g}")
axes.plot(w, loss_of(w), "o", color=plots.COLOURS[1])
axes.set(xlabel="w", ylabel="loss")
axes.legend()
plt.show()

# %% [markdown]
# The slope is negative: turn the knob **up** and the loss goes down. The slope also says how steep the path is. That is
# all we need for learning.
#
# We found it by nudging: two evaluations for one knob. With $P$ knobs that makes $2P$ evaluations of the entire net,
# for a single step. How many knobs does a small residual net have?

# %%
net = mr.build("resnet20", seed=0)
print(f"ResNet-20 has {sum(p.size for p in net.parameters()):,} parameters")

# %% [markdown]
# Nudging each of them is out of the question. This chapter builds the alternative: **one** walk through the formula,
# from its end to its beginning, finds **all** slopes together, for about the price of two more evaluations (section 8
# measures it). It is called *reverse-mode automatic differentiation*, or *backpropagation*.
#
# ## 2. A number that remembers how it was made
#
# Let `w` be 2 and `x` be 3. After `y = w * x`, Python knows that `y` is 6. It has forgotten that `y` was made from `w`
# and `x`. To go backwards, something has to remember.
#
# So we wrap the number. A `Value` holds
# - `data`, the number;
# - `parents`, the values it was made from;
# - `step`, a function that says what a change in the parents does to it (more on that below);
# - `grad`, where the answer will be: how much the final result changes for a small change in this number.
#
# What should `step` do? Take $z = x\,y$. Nudge $x$ by a little $h$:
#
# $$ (x + h)\,y = xy + h\,y $$
#
# So $z$ changes $y$ times as much as $x$ did. Suppose we already know that the final result $L$ changes $g$ times as
# much as $z$ does. Then it changes $g\,y$ times as much as $x$:
#
# $$ \frac{dL}{dx} = \underbrace{\frac{dL}{dz}}_{g}\,\frac{dz}{dx} = g\,y \qquad\text{and in the same way}\qquad
# \frac{dL}{dy} = g\,x $$
#
# That is the chain rule. For $z = x + y$ a nudge passes through unchanged: both parents get $g$.
#
# Every `step` is one such line: *from the gradient of what I made to the gradients of what I was made from.*


# %%
class Value:
    """A number that remembers how it was made."""

    def __init__(self, data, parents=(), step=None, name=""):
        self.data = data
        self.grad = 0.0
        self.parents = parents
        self.step = step  # from the gradient of this value to one gradient for each parent
        self.name = name  # of the operation, for the drawings

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda g: (g, g), "+")

    def __mul__(self, other):
        return Value(self.data * other.data, (self, other), lambda g: (g * other.data, g * self.data), "*")


# %% [markdown]
# Now an expression leaves a trace. Python computes as always, and meanwhile the values link up into a **graph**. We can
# draw it.

# %%
w, x, b, k = Value(2.0), Value(3.0), Value(-4.0), Value(5.0)
p = w * x
s = p + b
y = s * k
names = {"w": w, "x": x, "b": b, "k": k, "p": p, "s": s, "y": y}
drawings.values(y, names=names)

# %% [markdown]
# Blue boxes are inputs, yellow ones were computed. The arrows follow the computation, left to right.
#
# ## 3. The backward pass, by hand
#
# **Predict.** Put your finger on the last box. How much does `y` change when `y` changes? Then go left. What are the
# gradients of `s`, `k`, `p`, `b`, `w`, `x`? Write down seven numbers before you run the next cell.

# %%
y.grad = 1.0  # y changes exactly as much as y
s.grad, k.grad = y.step(y.grad)  # y = s * k
p.grad, b.grad = s.step(s.grad)  # s = p + b
w.grad, x.grad = p.step(p.grad)  # p = w * x
drawings.values(y, names=names)

# %% [markdown]
# Each line used one `step`, and each step needed only its own operation and the gradient that arrived. No step knows
# the entire formula.
#
# Are the numbers right? Nudge each of the four knobs and compare.


# %%
def formula(w, x, b, k):
    return (w * x + b) * k


at = dict(w=2.0, x=3.0, b=-4.0, k=5.0)
for name in at:
    up, down = (formula(**{**at, name: at[name] + h}) for h in (0.001, -0.001))
    print(f"{name}: nudged {(up - down) / 0.002:7.3f}   backward {names[name].grad:7.3f}")

# %% [markdown]
# ## 4. Let the computer do it: a first try
#
# What we did by hand looks like a recursion: store your gradient, ask `step`, pass the answers on to the parents.


# %%
def walk_1(value, g=1.0):
    value.grad = g
    if value.parents:
        for parent, parent_g in zip(value.parents, value.step(g), strict=True):
            walk_1(parent, parent_g)


w, x, b, k = Value(2.0), Value(3.0), Value(-4.0), Value(5.0)
walk_1((w * x + b) * k)
print("w, x, b, k:", [v.grad for v in (w, x, b, k)])

# %% [markdown]
# The same numbers as by hand. Are we done?
#
# **Predict.** `b = a + a`. If `a` goes up by 1, by how much does `b` go up? What will `walk_1` say?

# %%
a = Value(3.0)
b = a + a
walk_1(b)
print("a.grad:", a.grad)

# %% [markdown]
# Wrong, and without any complaint. This is the most important line of the chapter, so let us look at it slowly.

# %%
drawings.values(b, names={"a": a, "b": b})

# %% [markdown]
# Two arrows lead from `a` to `b`. When `a` is nudged by $h$, **both** inputs of the addition move by $h$, and `b` moves
# by $2h$. Two letters came to the address `a`, each with a 1 in it. `walk_1` kept the last letter and threw the first
# away.
#
# The rule for a value that is used in several places $z_1, z_2, \dots$ is the chain rule for several variables:
#
# $$ \frac{dL}{dx} = \sum_i \frac{dL}{dz_i}\,\frac{dz_i}{dx} $$
#
# **Gradients add.** In code that is `+=` instead of `=`. In a residual net, the subject of this course, every block
# computes $F(x) + x$: there is no block in which `x` isn't used twice. An engine that overwrites would train a ResNet
# without its shortcuts' gradients, and nothing would crash.
#
# ## 5. Second and third try: the diamond
#
# So we write `+=`, and pass on what we have. Here is a test that is a little harder than `a + a`: a *diamond*, where
# two paths split and meet again, with one more value in front.


# %%
def diamond():
    x, c, k = Value(2.0), Value(1.0), Value(3.0)
    a = x * x
    u = a + c
    v = a * k
    return x, u * v, {"x": x, "c": c, "k": k, "a": a, "u": u, "v": v}


x, y, names = diamond()
drawings.values(y, names={**names, "y": y})


# %%
def walk_2(value, g=1.0):
    value.grad += g
    if value.parents:
        for parent, parent_g in zip(value.parents, value.step(value.grad), strict=True):
            walk_2(parent, parent_g)


def by_nudging(h=1e-4):
    def f(x):
        return (x * x + 1) * (x * x * 3)

    return (f(2 + h) - f(2 - h)) / (2 * h)


for walk in (walk_1, walk_2):
    x, y, names = diamond()
    walk(y)
    print(f"{walk.__name__}: a.grad {names['a'].grad:5g}   x.grad {x.grad:5g}")
print(f"nudging:                x.grad {by_nudging():5.0f}")

# %% [markdown]
# `walk_2` has the right number at `a`: 12 from `u` and 15 from `v`. But it passed on too much. When the letter from `u`
# arrived, it sent 12 on to `x`. When the letter from `v` arrived, it sent 12 + 15: the 12 went out twice.
#
# The fix seems easy: pass on only what is **new**.

# %%
calls = 0


def walk_3(value, g=1.0):
    global calls
    calls += 1
    value.grad += g
    if value.parents:
        for parent, parent_g in zip(value.parents, value.step(g), strict=True):
            walk_3(parent, parent_g)


x, y, names = diamond()
walk_3(y)
print(f"walk_3: a.grad {names['a'].grad:5g}   x.grad {x.grad:5g}   in {calls} calls")

# %% [markdown]
# Right at last. `walk_3` adds up every path that leads from `x` to `y`, one after the other. And that is the problem.
#
# **Predict.** Here is a chain of sums, each of a value with itself. The graph of 20 of them has 21 values. How many
# calls does `walk_3` make?


# %%
def doubled(times):
    value = Value(1.0)
    for _ in range(times):
        value = value + value
    return value


drawings.values(doubled(4))

# %% tags=["hide-input"]
lengths = range(0, 17)
counted = []
for n in lengths:
    calls = 0
    walk_3(doubled(n))
    counted.append(calls)

figure, axes = plt.subplots(figsize=(5, 3))
axes.semilogy(lengths, counted, "o-", label="calls of walk_3")
axes.semilogy(lengths, [n + 1 for n in lengths], "s--", label="values in the graph")
axes.set(xlabel="sums in the chain", ylabel="count (logarithmic)")
axes.legend()
plt.show()

paths = 2**60
print(f"calls for 16 sums: {counted[-1]:,}")
print(f"paths through 60 sums: {paths:,}")
print(f"at a million paths a second: {paths / 1e6 / (365.25 * 24 * 3600):,.0f} years")

# %% [markdown]
# Twice as many calls for every sum: $2^{n+1} - 1$. A residual block *is* such a fork, and ResNet-110 has 54 of them in
# a row.
#
# There is one more problem, and it has nothing to do with forks. A recursion is as deep as the graph. Python allows
# about 1,000 nested calls. Here is a plain chain, one value after the other, with as many values as the paper's deepest
# net has layers:


# %%
def long_chain(times):
    value = Value(0.0)
    for _ in range(times):
        value = value + Value(1.0)
    return value


sys.setrecursionlimit(1000)  # Python's default; some notebook servers raise it
deep = long_chain(1202)
try:
    walk_3(deep)
except RecursionError as error:
    print("RecursionError:", error)

# %% [markdown]
# Three tries, four errors:
#
# | walk | what it does | error |
# | --- | --- | --- |
# | `walk_1` | overwrites | wrong as soon as a value is used twice |
# | `walk_2` | adds, passes on the total | wrong behind a fork |
# | `walk_3` | adds, passes on what is new | right, but follows every *path*: exponential |
# | all three | recursion | runs out of stack in a deep graph |
#
# ## 6. The right order
#
# What would a good postman do at `a`? Wait. He knows that two letters are on their way, one from `u` and one from `v`.
# He empties the box **once**, when both have come, and carries on with the sum.
#
# So a value may be handled only after **everything that was made from it** has been handled. An order with this
# property is a *topological order* of the graph, read backwards.
#
# How do we find one? List a value **after** all its parents have been listed. Then the list runs from the inputs to the
# result, and its reverse is the order for the backward pass.
#
# To do this without recursion we keep a stack of our own. Each value is put on it twice:
# - the first time it says *"first list my parents"*;
# - the second time, when everything above it on the stack is done, *"now list me"*.


# %%
def topological_order(root):
    """Every value that `root` was made from, parents before what was made from them, each once."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        value, parents_are_listed = stack.pop()
        if parents_are_listed:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack.extend((parent, False) for parent in value.parents)
    return order


# %% [markdown]
# Watch it work on the diamond. `a` is pushed by `u` and by `v`, and still it is listed only once.


# %% tags=["hide-input"]
def show_the_stack(root, called):
    order, seen, stack = [], set(), [(root, False)]
    print(f"{'taken from the stack':24}{'what happens':30}listed so far")
    while stack:
        value, ready = stack.pop()
        name = called[value]
        if ready:
            order.append(name)
            what = f"list {name}"
        elif value in seen:
            what = "seen before: nothing"
        else:
            seen.add(value)
            stack.append((value, True))
            stack.extend((parent, False) for parent in value.parents)
            parents = ", ".join(called[parent] for parent in reversed(value.parents))
            what = f"first {parents}" if parents else "it has no parents"
        print(f"{name + (' (second time)' if ready else ''):24}{what:30}{' '.join(order)}")


x, y, names = diamond()
show_the_stack(y, {value: name for name, value in {**names, "y": y}.items()})

# %% [markdown]
# Now the backward pass itself is three lines: go through the order in reverse; ask `step`; **add** the answers to the
# parents' gradients.


# %%
def backward(root):
    root.grad = 1.0
    order = topological_order(root)[::-1]
    for value in order:
        if value.parents:
            for parent, g in zip(value.parents, value.step(value.grad), strict=True):
                parent.grad += g
    return order


x, y, names = diamond()
order = backward(y)
drawings.values(y, names={**names, "y": y}, order=order)

# %% [markdown]
# The black numbers show the order of the backward pass. Check it: every arrow leads from a **higher** number to a
# **lower** one. The box of `a` is emptied after `u` and `v`.
#
# The same code on what was too much for the others:

# %%
chain_of_60 = doubled(60)
order = backward(chain_of_60)
print(f"60 sums: {len(order)} values handled, gradient of the first {order[-1].grad:,.0f}")
print("is that 2^60?", order[-1].grad == 2**60)

deep = long_chain(1202)
order = backward(deep)
print(f"1,202 sums in a row: {len(order):,} values handled, gradient of the first {order[-1].grad:g}")

# %% [markdown]
# Each value once, however many paths there are, however deep the graph. That is the entire idea of backpropagation:
# **the gradients of the paths are added up before they are passed on, not after.**
#
# > **Aside.** Why start at the end? One could also push a nudge *forward* through the graph: that gives the slope of
# > everything with respect to **one** input, so $P$ inputs need $P$ passes. The backward pass gives the slope of
# > **one** result with respect to everything. A net's formula has a million inputs and one loss.
#
# ## 7. A net of numbers
#
# With one more operation we can build a small net: $\text{relu}(x) = \max(0, x)$. A nudge passes where $x > 0$ and is
# stopped elsewhere, so its step is `g` or 0. We add it to the class (Python lets you extend a class later; that saves
# printing it again).


# %%
def relu(self):
    return Value(max(0.0, self.data), (self,), lambda g: (g if self.data > 0 else 0.0,), "relu")


Value.relu = relu

# %% [markdown]
# The task: two kinds of points in the plane, a disc and a ring around it. No straight line separates them. The net has
# 8 hidden units, $\text{relu}(w_1x_1 + w_2x_2 + b)$ each, and adds them up with weights of their own. Its answer should
# be $+1$ in the disc and $-1$ on the ring.

# %%
rng = np.random.default_rng(0)
inside = np.arange(60) % 2 == 0
radius = np.where(inside, rng.uniform(0, 1, 60), rng.uniform(1.6, 2.3, 60))
angle = rng.uniform(0, 2 * np.pi, 60)
points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
targets = np.where(inside, 1.0, -1.0)

hidden = [[Value(rng.normal()) for _ in range(3)] for _ in range(8)]  # w1, w2, b of each unit
output = [Value(0.5 * rng.normal()) for _ in range(9)]  # a weight for each unit, and a bias
parameters = [*chain.from_iterable(hidden), *output]


def answer(x1, x2):
    x1, x2 = Value(x1), Value(x2)
    score = output[-1]
    for (w1, w2, b), w in zip(hidden, output[:-1], strict=True):
        score = score + w * (w1 * x1 + w2 * x2 + b).relu()
    return score


def mean_squared_error():
    total = Value(0.0)
    for (x1, x2), target in zip(points, targets, strict=True):
        error = answer(x1, x2) + Value(-target)
        total = total + error * error
    return total * Value(1 / len(points))


loss = mean_squared_error()
print(f"{len(parameters)} parameters; the graph of one loss has {len(topological_order(loss)):,} values")

# %% [markdown]
# `error * error`: once more a value that is used twice.
#
# Learning now takes four lines: compute the loss, clear the old gradients, run the backward pass, and turn every knob a
# little **against** its slope.

# %%
losses = []
for _ in range(150):
    loss = mean_squared_error()
    for parameter in parameters:
        parameter.grad = 0.0
    backward(loss)
    for parameter in parameters:
        parameter.data -= 0.1 * parameter.grad
    losses.append(loss.data)

right = sum(answer(*point).data * target > 0 for point, target in zip(points, targets, strict=True))
print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
print(f"{right} of {len(points)} points on the right side")

# %% tags=["hide-input"]
figure, (left, plane) = plt.subplots(1, 2, figsize=(8, 3.4))
left.plot(losses)
left.set(xlabel="step", ylabel="loss", ylim=(0, None))
grid = np.linspace(-2.6, 2.6, 60)
scores = np.array([[answer(x1, x2).data for x1 in grid] for x2 in grid])
plane.contourf(grid, grid, np.sign(scores), levels=[-1.5, 0, 1.5], colors=["#f6d9c7", "#cfe3f1"])
for is_inside, colour, marker, label in ((True, plots.COLOURS[0], "o", "disc"), (False, plots.COLOURS[1], "^", "ring")):
    plane.plot(*points[inside == is_inside].T, marker, color=colour, label=label, markersize=5)
plane.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
plane.legend(loc="upper left", framealpha=0.8, frameon=True)
plt.show()

# %% [markdown]
# A few dozen lines, no library for gradients, and a net that learns. The border is made of straight pieces: at each
# corner one of the hidden units switches on or off.
#
# ## 8. From numbers to arrays
#
# The engine is complete, and far too slow. How long does one value take, forward and backward? And how many would
# ResNet-20 need?

# %%
start = time.perf_counter()
count = len(backward(mean_squared_error()))
each = (time.perf_counter() - start) / count
products = mr.summarise(net).total.multiply_adds
print(f"{1e6 * each:.1f} microseconds for a value")
print(f"ResNet-20 multiplies and adds {products:,} times for one image")
print(f"at this speed that takes {2 * products * each / 60:.0f} minutes")

# %% [markdown]
# The fix: let a value hold an entire **array**. The graph then has a node for each *operation on arrays*, not for each
# number, and NumPy runs the inner loops. That is `mr.Tensor`, and it works as `Value` does:
#
# | here | in minires |
# | --- | --- |
# | `Value(data)` | `mr.Tensor(data, requires_grad=True)` |
# | `data` | `tensor.data` |
# | `parents`, `step`, `name`, `grad` | `tensor.node`: `parents`, `backward`, `name`, `grad` |
# | `topological_order(y)` | `topological_order(y.node)` in `minires/tensor.py`, the same loop |
# | `backward(y)` | `y.backward()` |
#
# There is one difference. Our graph consists of values, and so it keeps every number that was ever computed. In minires
# it consists of **nodes**, and a node holds no data. An array that no gradient formula needs is freed at once, even
# while the graph is still there.

# %%
w = mr.Tensor([[1.0, -1.0, 0.0], [0.0, 2.0, 1.0]], requires_grad=True)  # (2, 3)
x = mr.Tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])  # (4, 2)
b = mr.Tensor([0.5, 0.0, -0.5], requires_grad=True)  # (3,)
y = mr.relu(x @ w + b).sum()
drawings.graph(y, names={"w": w, "b": b})

# %% [markdown]
# The dashed box is `x`, a constant: it needs no gradient, so it has no node of its own.
#
# What is the step of an operation on arrays? For an elementwise product nothing changes: it is the scalar rule, at
# every position. Here is the real source. Compare it with `__mul__` above:

# %%
print(inspect.getsource(mr.Tensor.__mul__))

# %% [markdown]
# The `unbroadcast` in it is the subject of the next section. Before that, the one product that isn't elementwise, and
# the one that nets are made of.
#
# **The matrix product.** $Z = XY$ means $Z_{ij} = \sum_k X_{ik}\,Y_{kj}$. We know $G_{ij} = dL/dZ_{ij}$ and want
# $dL/dX_{ik}$. Where is $X_{ik}$ used? In every $Z_{ij}$ of row $i$, each time multiplied by $Y_{kj}$. Gradients add:
#
# $$ \frac{dL}{dX_{ik}} = \sum_j G_{ij}\,Y_{kj} \qquad\Longrightarrow\qquad dX = G\,Y^{\mathsf T} $$
#
# and for $Y_{kj}$, used in every row $i$, each time multiplied by $X_{ik}$:
#
# $$ \frac{dL}{dY_{kj}} = \sum_i X_{ik}\,G_{ij} \qquad\Longrightarrow\qquad dY = X^{\mathsf T} G $$
#
# You never have to learn this by heart. The gradient of $X$ has the shape of $X$, and there is only one way to multiply
# $G$ and $Y$ that gives that shape.

# %%
X, Y = mr.Tensor(rng.normal(size=(4, 2)), requires_grad=True), mr.Tensor(rng.normal(size=(2, 3)), requires_grad=True)
G = rng.normal(size=(4, 3))
(X @ Y).backward(G)  # only a single number starts from 1: for an array, we say which gradient arrives
print("dX = G Y^T:", X.grad.shape, np.allclose(X.grad, G @ Y.data.T))
print("dY = X^T G:", Y.grad.shape, np.allclose(Y.grad, X.data.T @ G))
print("and nudging agrees:", mr.gradcheck(lambda X, Y: X @ Y, [X, Y]))

# %% [markdown]
# This also tells us what the backward pass costs. Forward there was one matrix product, backward there are two of the
# same size.
#
# **Predict.** ResNet-20 has 269,722 parameters. How many times as long as the forward pass does the backward pass take,
# for all their gradients?

# %%
images = mr.Tensor(rng.normal(size=(8, 32, 32, 3)).astype(np.float32))
labels = np.arange(8)
forward_seconds, backward_seconds = [], []
for _ in range(5):
    start = time.perf_counter()
    loss = mr.cross_entropy(net(images), labels)
    middle = time.perf_counter()
    loss.backward()
    forward_seconds.append(middle - start)
    backward_seconds.append(time.perf_counter() - middle)
ratio = np.median(backward_seconds) / np.median(forward_seconds)
print(f"the backward pass takes {ratio:.1f} times as long as the forward pass")
print(f"nudging every parameter up and down takes {2 * sum(p.size for p in net.parameters()):,} forward passes")

# %% [markdown]
# ## 9. Broadcasting, and how to undo it
#
# In `x @ w + b` a matrix of shape `(4, 3)` met a vector of shape `(3,)`. NumPy **broadcasts**: it acts as if the vector
# were repeated in each of the four rows.
#
# **Predict.** One number of `b` goes up by $h$. How many numbers of the result move?


# %% tags=["hide-input"]
def draw_grid(axes, array, left, top, title, colour, ghost=False):
    for (i, j), value in np.ndenumerate(array):
        copied = ghost and i > 0
        ink, fill, line = ("#999999", "none", ":") if copied else (plots.INK, colour, "-")
        cell = (left + j, top - i - 1)
        axes.add_patch(plt.Rectangle(cell, 1, 1, facecolor=fill, edgecolor=ink, linestyle=line))
        axes.text(cell[0] + 0.5, cell[1] + 0.5, f"{value:g}", ha="center", va="center", fontsize=8, color=ink)
    axes.text(left + array.shape[1] / 2, top + 0.3, title, ha="center", fontsize=9)


matrix, vector = np.arange(12).reshape(4, 3), np.array([10, 20, 30])
upstream = np.array([[1, 2, 0], [3, 0, 1], [0, 1, 1], [2, 2, 5]])
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
for axes in (left, right):
    axes.set_axis_off()
    axes.set_aspect("equal")
draw_grid(left, matrix, 0, 4, "x (4, 3)", "#cfe3f1")
draw_grid(left, np.tile(vector, (4, 1)), 4.2, 4, "b (3,), copied", "#fbe3b5", ghost=True)
draw_grid(left, matrix + vector, 8.4, 4, "x + b (4, 3)", "#d9efe6")
for x_place, sign in ((3.6, "+"), (7.8, "=")):
    left.text(x_place, 2, sign, ha="center", va="center", fontsize=14)
left.set(xlim=(-0.3, 11.8), ylim=(-1.7, 5.2), title="forward: copy")
draw_grid(right, upstream, 0, 4, "gradient of x + b", "#d9efe6")
draw_grid(right, upstream, 5, 4, "gradient of x: the same", "#cfe3f1")
for j in range(3):
    right.annotate("", (j + 0.5, -0.55), (j + 0.5, -0.05), arrowprops={"arrowstyle": "-|>", "color": plots.INK})
draw_grid(right, upstream.sum(axis=0, keepdims=True), 0, -0.6, "", "#fbe3b5")
right.text(3.4, -1.1, "gradient of b: sums of the columns", va="center", fontsize=9)
right.set(xlim=(-0.3, 10.3), ylim=(-1.7, 5.2), title="backward: add")
plt.show()

# %% [markdown]
# Four, one in each row. Each number of `b` was **used four times**. That is `b = a + a` again, and the rule is the
# same: gradients add.
#
# $$ z_{ij} = x_{ij} + b_j \qquad\Longrightarrow\qquad \frac{dL}{db_j} = \sum_i \frac{dL}{dz_{ij}} $$
#
# **Copying forward is adding backward.** NumPy may copy in two ways, and each is undone by a sum:
#
# | what NumPy does | example | backward |
# | --- | --- | --- |
# | puts new axes in front | `(3,)` becomes `(4, 3)` | sum over the new axes; they vanish |
# | stretches an axis of length 1 | `(4, 1)` becomes `(4, 3)` | sum over that axis, keep it with length 1 |
#
# Both can happen at once. In minires one function does it for all operations, and no operation does it by hand:

# %%
from minires.tensor import unbroadcast

print(inspect.getsource(unbroadcast))

# %%
for shape in [(4, 3), (3,), (1, 3), (4, 1), (), (1, 1)]:
    summed = unbroadcast(upstream.astype(float), shape)
    print(f"operand {str(shape):8} gradient (4, 3) becomes {str(summed.shape):8} {summed.tolist()}")

# %% [markdown]
# What if one forgets it? The engine compares shapes and refuses. Here is an addition without `unbroadcast`:


# %%
def careless_add(x, y):
    return mr.Tensor.from_op(x.data + y.data, (x, y), lambda g: (g, g), "careless_add")


b = mr.Tensor(np.zeros(3), requires_grad=True)
try:
    careless_add(mr.Tensor(np.ones((4, 3))), b).sum().backward()
except RuntimeError as error:
    print(error)

# %% [markdown]
# Be glad of that check. Without it NumPy would keep "helping", and your bias would grow a new axis:

# %%
bias = np.zeros(3)
bias = bias - 0.1 * np.ones((4, 3))  # "one step of gradient descent" with the gradient not summed
print("the bias has become", bias.shape)

# %% [markdown]
# ## 10. House rules of the engine
#
# Here are three things about `mr.Tensor` that you will meet in every chapter.
#
# **Gradients add from call to call, too.** After two backward passes you have the sum. That is useful (two halves of a
# batch), and a trap if you forget to clear the gradients between steps.

# %%
a = mr.Tensor(3.0, requires_grad=True)
(a * a).backward()
print("after one pass: ", a.grad)
(a * a).backward()
print("after a second: ", a.grad)
a.zero_grad()
(a * a).backward()
print("cleared before: ", a.grad)

# %% [markdown]
# **The graph is used up.** The backward pass frees each node as soon as it is done with it, and with it the arrays it
# kept. That is why training fits into memory. A second pass says so:

# %%
y = a * a
y.backward()
try:
    y.backward()
except RuntimeError as error:
    print(error)

# %% [markdown]
# **Where no gradient is wanted, no graph is made.** Testing a net inside `mr.no_grad()` costs no memory for a backward
# pass.

# %%
with mr.no_grad():
    y = a * a
print("remembered with no_grad: ", y.node)
print("remembered without it:   ", (a * a).node.name, "of", len((a * a).node.parents), "parents")

# %% [markdown]
# ## Summary
#
# - A value that remembers its parents and one local `step` is enough: the graph builds itself while the formula is
#   computed.
# - A `step` turns the gradient of what was made into the gradients of what it was made from. It needs to know nothing
#   else.
# - **Gradients add** wherever a value is used more than once: `b = a + a`, `error * error`, a bias over a batch,
#   $F(x) + x$.
# - The backward pass runs in **reverse topological order**: each value once, after everything that was made from it.
#   Then it costs as much as the formula, not as much as its number of paths.
# - A loop with its own stack finds that order at any depth; a recursion ends at about 1,000.
# - On arrays: elementwise rules stay as they are, $dX = G\,Y^{\mathsf T}$ and $dY = X^{\mathsf T}G$ for the matrix
#   product, and broadcasting is undone by summing.
#
# ## Common mistakes
#
# - `grad = g` where it should be `grad += g`. Simple tests pass. A shortcut's gradient gets lost.
# - Adding **in place** into an array that somebody else holds: an addition hands the *same* array to both parents.
#   minires adds into a new array.
# - Forgetting to clear the gradients between two steps: each step then uses the sum of all gradients so far.
# - Summing over the wrong axis in `unbroadcast`, or losing the axis of length 1 (`keepdims`). With square shapes nobody
#   notices.
# - Reading the gradient of something in the middle. minires keeps gradients in the *leaves*, the tensors that you made
#   yourself; use `retain_grad()` for others.
# - Believing that recursion will do because the test net has five layers.
#
# ## Three questions
#
# <details><summary>1. For b = a * a, which two letters arrive at a, and what is their sum?</summary>
#
# The product's step gives `g * other.data` and `g * self.data`. With `g = 1` both are the number in `a`: two letters of
# $a$ each. Their sum is $2a$, the derivative of $a^2$.
#
# </details>
#
# <details><summary>2. Why must a value not be handled as soon as the first gradient has arrived there?</summary>
#
# More may be on the way. If it passes on the part that it has, it must come back later for the rest, and everything
# behind it is visited again, once for each path: exponential. If it passes on the sum each time, parts go out twice:
# wrong. In reverse topological order, nothing more can come.
#
# </details>
#
# <details><summary>3. x has shape (8, 1, 5), y has shape (3, 1), and z = x + y. What is the shape of z, and over which
# axes are the gradients of x and y summed?</summary>
#
# `z` has shape `(8, 3, 5)`. For `x`, axis 1 was stretched from 1 to 3: sum over axis 1, keep it. For `y`, axis 0 was
# put in front: sum over it, it vanishes; and its own last axis was stretched from 1 to 5: sum over the last axis, keep
# it. That leaves `(3, 1)`.
#
# </details>
#
# ## Exercises
#
# Open `chapters/exercises/ch01_autograd.py` in an editor, fill in a function, save, and run its cell here (or, in a
# terminal, `pytest -m ex1_1` or `python -m minires check 1.1`). Stuck? `hint("1.1")`, then `hint("1.1", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 1.1 `Value` | the gradients of + and * | 1 | about 4 |
# | 1.2 `topological_order` | the order of the backward pass | 3 | about 12 |
# | 1.3 `unbroadcast` | the backward pass of broadcasting | 2 | about 4 |
# | 1.4 `tanh` | a new operation for arrays | 1 | about 4 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("1.1")

# %%
check("1.2")

# %%
check("1.3")

# %%
check("1.4")

# %%
hint("1.1")

# %% [markdown]
# ## Read on
#
# - `minires/tensor.py` is this chapter in full: `Tensor.backward` is our `backward`, with the arrays freed on the way;
#   you have already seen `topological_order` and `unbroadcast`. You can read all of it now.
# - `chapters/one_page.py` is all of minires on one page, in NumPy alone. You can read its `Tensor` now (it finds the
#   order in another way, by depth); chapters 3 to 7 build the rest.
# - A wrong `step` doesn't crash, it teaches the net nonsense. How to catch it is the subject of **chapter 2, Trust, but
#   check**.
# - The idea is old: S. Linnainmaa described it in 1970; Rumelhart, Hinton and Williams showed in 1986 what it does for
#   nets ("Learning representations by back-propagating errors", Nature 323). A. G. Baydin et al., "Automatic
#   differentiation in machine learning: a survey" (2018), describes the entire family.
