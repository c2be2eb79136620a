# %% [markdown]
# # 10. On the GPU
#
# **After this chapter you can**
# - move training to a GPU with one flag, and say what changes and what does not;
# - profile a training step and read the result;
# - compute the arithmetic intensity of a layer, and see from a roofline what limits it;
# - say when a GPU will be *slower* than your laptop, and why;
# - find the mistakes that only a GPU punishes, without having one.
#
# **You need** chapters 4, 5 and 9. No GPU.
#
# **Time**: about 60 minutes to read and run, 60 for the exercises.
#
# > **A word of honesty.** The authors of minires have never run it on a GPU. What they did instead is part of this
# > chapter, and so is a test that *you* can run if you have one. Times on a GPU are computed here, from a data sheet
# > and from a figure measured without a GPU, and are marked as such.

# %% tags=["hide-input"]
# Run this first. If minires is missing, it installs the checkout that contains this notebook.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minires") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".."], check=True)
    sys.path.insert(0, "..")

# %%
import cProfile
import inspect
import pstats
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

import minires as mr
from minires import nn, plots
from minires.backend import array_module, device_of, to_device, to_host
from minires.data import Normalise
from minires.devices import doctor, strict
from minires.kernels import fuse
from minires.parallel import one_blas_thread

plots.notebook_style()
mr.set_num_threads(1)  # what is measured here should not depend on the number of cores
clock = time.thread_time  # nor on other programs: this clock runs only while we compute
if time.get_clock_info("thread_time").resolution > 1e-6:  # too coarse on Windows
    clock = time.perf_counter

# %% [markdown]
# ## 1. One flag
#
#     python -m minires train resnet20 --device gpu
#
# That is all. In your own code you move two things to the device: the net, and each batch.
#
#     net = mr.build("resnet20").to("gpu")
#     x = to_device(x, "gpu")
#
# Can this machine do it? minires checks, and says what is missing:

# %%
print(doctor.gpu_status().sentence)

# %% [markdown]
# How can the same code serve both? **CuPy** is a library that has NumPy's functions under NumPy's names, for arrays in
# the memory of an NVIDIA GPU. So an operation only has to ask *whose* array it was given, and use that library:

# %%
print(inspect.getsource(mr.log_softmax))

# %% [markdown]
# `array_module(x.data)` is `numpy` or `cupy`. Operators and methods, such as `-` and `.sum()`, need no such question:
# the array knows what to do. All of minires is written this way. Only two files import CuPy: one registers its arrays,
# the other checks whether it works:

# %%
source = Path(mr.__file__).parent
users = [file.name for file in sorted(source.rglob("*.py")) if "import cupy" in file.read_text(encoding="utf-8")]
print("files that import cupy:", users)

# %% [markdown]
# You most likely have no GPU in front of you. minires includes a **stand-in**: `--device strict`. It computes with
# NumPy, so it is no faster. But its arrays behave like CuPy's. They live "elsewhere", and they refuse what CuPy
# refuses. For everything we want to learn in this chapter it is as good as a GPU.

# %%
rng = np.random.default_rng(0)
there = to_device(rng.standard_normal((2, 3), np.float32), "strict")
print("an array there:", type(there).__name__, there.shape, "on device", device_of(there))
print("its library has NumPy's functions:", array_module(there).exp(there).shape)
print("and back:", type(to_host(there)).__name__)

# %% [markdown]
# ## 2. What changes, and what does not
#
# Train the same net in both places: the same seed, the same images. **Predict.** Will the losses be the same? Nearly
# the same? To the last digit?

# %%
data = mr.open_data("auto")
normalise = Normalise.channels(data.train_images)
images, labels = normalise(data.train_images[:256]), data.train_labels[:256]


def trainer(name, device, **options):
    """A net on a device, and a function that trains it for a step and returns the loss, a Tensor on the device."""
    net = mr.build(name, **options).to(device)
    optimiser = mr.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step(x, y):
        loss = mr.cross_entropy(net(mr.Tensor(to_device(x, device))), to_device(y, device))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return net, step


here, there = trainer("resnet8", "cpu", width=8), trainer("resnet8", "strict", width=8)
for k in range(1, 17):
    a, b = (step(images[:64], labels[:64]).item() for _, step in (here, there))
    if k in (1, 4, 16):
        states = [net.state_dict() for net, _ in (here, there)]
        gap = max(np.abs(states[0][name] - states[1][name]).max() for name in states[0])
        print(f"step {k:2}: loss {a:.7f} on cpu, {b:.7f} on strict; weights differ by {gap:.0e} at most")

# %% [markdown]
# The same, up to rounding. On the CPU a batch is summed in chunks; there it is summed in one piece, and on a GPU in yet
# another order. Sums in a computer depend a little on the order (chapter 2), and training makes such a difference grow
# from step to step. After a few hundred steps two runs differ visibly, though neither is worse.
#
# | stays the same | changes |
# | --- | --- |
# | every formula, every file of the library | where arrays live |
# | the weights at the start: drawn on the host from the seed | who multiplies: CUDA's library, not your CPU's |
# | order of images, augmentation: drawn on the host too | the last digits |
# | files of weights, and runs to be resumed | the clock: see section 8 |
# | learning rate and all other settings | what is fast and what is slow: the rest of this chapter |
#
# ## 3. Where the time goes
#
# Before you make something fast, find out what is slow. Python includes a profiler. It records, for every function, how
# often it was called and how long it took.
#
# **Predict.** In a training step of ResNet-20, how much of the time goes to the convolutions? To the norms? To
# everything else (ReLU, loss, optimiser, Python itself)?

# %%
net, step = trainer("resnet20", "cpu")
step(images[:64], labels[:64])  # warms up
profiler = cProfile.Profile(clock)
profiler.enable()
for _ in range(2):
    step(images[:64], labels[:64])
profiler.disable()
stats = pstats.Stats(profiler)


def seconds(file, *functions):
    """Time inside functions of a file of minires, including everything they call."""
    return sum(row[3] for (path, _, name), row in stats.stats.items() if Path(path).name == file and name in functions)


parts = {
    "convolution, forward": seconds("conv.py", "conv2d"),
    "convolution, backward": seconds("conv.py", "backward"),
    "batch norm, forward": seconds("norm.py", "batch_norm"),
    "batch norm, backward": seconds("norm.py", "backward"),
    "ReLU": seconds("functional.py", "relu", "backward"),
    "shortcuts": seconds("functional.py", "subsample_and_pad") + seconds("parallel.py", "add"),
    "optimiser": seconds("optim.py", "step"),
}
parts["everything else"] = stats.total_tt - sum(parts.values())
shares = {name: t / stats.total_tt for name, t in parts.items()}

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6.4, 2.9))
colours = [plots.COLOURS[0]] * 2 + [plots.COLOURS[1]] * 2 + ["#999999"] * 4
bars = axes.barh(list(shares), [100 * share for share in shares.values()], color=colours)
axes.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=3, fontsize=9)
axes.invert_yaxis()
axes.set(xlabel="share of the time of a training step (%)", xlim=(0, 100 * max(shares.values()) * 1.15))
plt.show()

# %% [markdown]
# Most of it is convolution, and more of it backward than forward: backward computes two gradients. That is no surprise.
# But look at the norms. How much do they *compute*? Count: for each number, a norm does about 6 operations forward and
# 7 backward. A convolution does $2 \cdot KH \cdot KW \cdot C$, three times (once forward, twice backward).

# %%
layers = mr.summarise(net, (32, 32, 3)).layers
convolutions = sum(3 * 2 * row.multiply_adds for row in layers)
norms = sum(13 * np.prod(row.output) for row in layers if row.kind == "BatchNorm2d")
time_of_norms = shares["batch norm, forward"] + shares["batch norm, backward"]
print(f"convolutions: {convolutions / 1e6:6.1f} million operations per image")
print(f"norms:        {norms / 1e6:6.1f} million operations per image")
print(f"the norms do {norms / (norms + convolutions):.1%} of the arithmetic, and take {time_of_norms:.1%} of the time")

# %% [markdown]
# So arithmetic can't be what they spend their time on. (Chapter 9 had the same riddle: a bottleneck net with as many
# multiply-adds takes longer.)
#
# ## 4. Moving data is work too
#
# A processor can only compute with numbers that have arrived. They come from the main memory, and results go back
# there. For every layer we can count both: the operations, and the bytes that must at least be moved. Their quotient is
# the **arithmetic intensity**:
#
# $$ I = \frac{\text{floating-point operations}}{\text{bytes moved}}. $$
#
# Take ReLU, in float32. For each number: read 4 bytes, compare, write 4 bytes. One operation per 8 bytes: $I = 1/8$.
#
# A batch norm, forward: the numbers are read twice (once for mean and variance, once to be scaled) and written once, 12
# bytes. About 6 operations: $I \approx 0.5$.
#
# Now a 3x3 convolution from 64 to 64 channels. **Predict** roughly: 1? 10? 100? For each position:
#
# - operations: $2 \cdot 9 \cdot 64 \cdot 64 = 73{,}728$;
# - bytes: 64 numbers in and 64 out, $128 \cdot 4 = 512$. (The weights are few, and are read once for all positions.)

# %%
for kernel, c, f in ((3, 64, 64), (3, 32, 32), (3, 16, 16), (1, 64, 64), (1, 64, 16)):
    print(f"{kernel}x{kernel} convolution, {c} -> {f} channels: {2 * kernel**2 * c * f / (4 * (c + f)):8.3f}")
print(f"batch norm:                         {6 / 12:8.3f}")
print(f"ReLU:                               {1 / 8:8.3f}   FLOP per byte")

# %% [markdown]
# A thousand times as much as ReLU. A convolution uses each number it has read again and again: for nine positions of
# the kernel, for all filters. An elementwise operation uses it once and throws it away.
#
# The 1x1 convolutions are in between. Few channels, small kernel, little reuse: that is what half of a bottleneck
# consists of.
#
# ## 5. The roofline
#
# How fast can an operation be? There are two limits, and it can't beat either:
#
# $$ \text{speed} \;\le\; \min(\text{peak},\; I \cdot \text{bandwidth}). $$
#
# The **peak** is how many operations per second the processor can do at best. The **bandwidth** is how many bytes per
# second the memory can move. Both can be measured: a large matrix product does almost nothing but compute, and a copy
# does nothing but move.


# %%
def best(action, budget=0.3):
    """The shortest of many times of an action: whatever else the machine does can only make it longer."""
    times, end = [], time.perf_counter() + budget
    with one_blas_thread():
        while len(times) < 3 or time.perf_counter() < end:
            start = clock()
            action()
            times.append(clock() - start)
    return min(times)


square, product = rng.standard_normal((512, 512), np.float32), np.empty((512, 512), np.float32)
peak = 2 * 512**3 / best(lambda: np.matmul(square, square, out=product))
map_shape = (256, 32, 32, 64)  # large, so that it must come from the main memory
x, other = rng.standard_normal(map_shape, np.float32), np.ones(map_shape, np.float32)
bandwidth = 2 * x.nbytes / best(lambda: np.copyto(other, x))  # each byte is read and written
print(f"peak {peak / 1e9:.0f} GFLOP/s, bandwidth {bandwidth / 1e9:.0f} GB/s, with one thread")
print(f"below {peak / bandwidth:.1f} FLOP per byte the memory is the limit, above it the arithmetic")

# %% [markdown]
# Now measure real operations, and see how close they get. (Forward only; backward looks much the same.)

# %%
tensor, ones, zeros = mr.Tensor(x), mr.Tensor(np.ones(64, np.float32)), mr.Tensor(np.zeros(64, np.float32))
statistics = np.zeros(64, np.float32), np.ones(64, np.float32)
points = {"convolution": {}, "norm and ReLU": {}}
for size, kernel, c, f in ((32, 3, 16, 16), (16, 3, 32, 32), (8, 3, 64, 64), (32, 1, 64, 16)):
    image = mr.Tensor(rng.standard_normal((64, size, size, c), np.float32))
    weight = mr.Tensor(rng.standard_normal((kernel, kernel, c, f), np.float32))
    flop = 2 * 64 * size**2 * kernel**2 * c * f
    t = best(lambda image=image, weight=weight, pad=kernel // 2: mr.conv2d(image, weight, padding=pad))
    name = f"{kernel}x{kernel}, {c}" + (f" to {f}" if f != c else "")
    points["convolution"][name] = kernel**2 * c * f / (2 * (c + f)), flop / t / 1e9
for name, action, flop, moved in (
    ("batch norm", lambda: mr.batch_norm(tensor, ones, zeros, *statistics), 6, 12),
    ("ReLU", lambda: mr.relu(tensor), 1, 8),
):
    points["norm and ReLU"][name] = flop / moved, flop * x.size / best(action) / 1e9

# %% tags=["hide-input"]
t4 = (8100, 300)
plots.roofline({"this machine, one thread": (peak / 1e9, bandwidth / 1e9), "a T4 GPU, data sheet": t4}, points)

# %% [markdown]
# Read it like this. The solid line is the roof of this machine. Left of its bend the roof slopes: there memory is the
# limit, and faster arithmetic would not help. Right of the bend it is flat: there arithmetic is the limit.
#
# - The convolutions are on the right, under the flat part. How close they get to it shows how well the library is
#   written. (What keeps them from it: im2col copies, and BLAS prefers matrices with more than 16 columns.)
# - Norm and ReLU are on the left, under the slope. Their speed in GFLOP/s is miserable, and that is hardly their fault.
#   The only cure is to *move less*: do several steps while a number is at hand. That is why `batch_norm` first combines
#   everything into two numbers per channel, so that only $y = \text{scale} \cdot x + \text{shift}$ is left to do for
#   each pixel. (The norm is further below the slope than it has to be: NumPy makes one pass over the numbers for each
#   step of a formula.)
# - The 1x1 convolution is the one closest to the bend.
#
# (Is a point above the slope? Then some of its numbers were still in the processor's cache from the previous round, and
# did not have to come from the main memory.)
#
# The dashed line is a T4, a GPU that many people can use for free on the web; its figures are those of the data sheet,
# about 8,100 GFLOP/s and 300 GB/s. Both limits are far higher. But the bend is further to the right than that of one
# thread here. (With all its cores, a CPU's bend moves to the right as well.) So *more* layers are limited by memory
# there, and moving less matters even more.
#
# ## 6. What it costs to start
#
# A GPU does not read Python. For each operation the host prepares a **launch**: which kernel, which arrays, which
# sizes. With CuPy that takes the host about 7 microseconds, whether the arrays hold ten numbers or ten million. (This
# is an estimate from the host's part alone, timed on a machine without a GPU.) NumPy has such a price too. Here it is:

# %%
one = np.ones(1, np.float32)
many = 10_000
numpy_call = best(lambda: [np.add(one, one) for _ in range(many)]) / many
LAUNCH = 7e-6
print(f"np.add of one number: {numpy_call * 1e6:.2f} microseconds; a launch: {LAUNCH * 1e6:.0f}")

# %% [markdown]
# How many launches does a training step need? The stand-in counts them. Take ResNet-20, and a tiny net with 64 inputs
# and one hidden layer. **Predict** both numbers.


# %%
def tiny(device):
    """A net with 64 inputs, 32 hidden units and 10 classes, and a function that trains it, as in `trainer`."""
    net = nn.Sequential(nn.Linear(64, 32, rng=rng), nn.ReLU(), nn.Linear(32, 10, rng=rng)).to(device)
    optimiser = mr.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step(x, y):
        mr.cross_entropy(net(mr.Tensor(x)), y).backward()
        optimiser.step()
        optimiser.zero_grad()

    return net, step


launches, vectors = {}, rng.standard_normal((512, 64), np.float32)
for name, (_, step), inputs in (
    ("tiny net", tiny("strict"), vectors),
    ("ResNet-20", trainer("resnet20", "strict"), images),
):
    x, y = to_device(inputs[:2], "strict"), to_device(labels[:2], "strict")
    step(x, y)
    with strict.counting() as counts:
        step(x, y)
    launches[name] = counts.launches.total()
    print(f"{name}: {launches[name]} launches per step, {1e3 * LAUNCH * launches[name]:.2f} ms of the host's time")

# %% [markdown]
# The count does not depend on the batch: an operation on 1,000 images is one launch, just as on one image. So this time
# is a **floor**. However fast the GPU, a step can't be shorter. (And Python's own time, to find out what to launch, is
# added to it.)
#
# Above the floor, the device's own time grows with the batch. Let us estimate it from the roofline: each layer takes
# the longer of operations / peak and bytes / bandwidth. Host and device work at the same time, so the step takes the
# longer of the two:
#
# $$ t \;\ge\; \max\Big( \underbrace{7\,\mu s \cdot \text{launches}}_{\text{host}},\;
#    \underbrace{\sum_{\text{layers}} \max\big(\tfrac{\text{FLOP}}{\text{peak}},\;
#    \tfrac{\text{bytes}}{\text{bandwidth}}\big)}_{\text{device}} \Big). $$


# %%
def device_seconds(net, input_shape, batch, peak=8.1e12, bandwidth=300e9):
    """A lower bound for a training step on a T4, from its data sheet and a rough count.

    Three products per layer. Columns (im2col) are written twice and read three times; the numbers of a layer's output
    are moved about ten times, by the norm, the ReLU and their backward passes.
    """
    total = 0.0
    for row in mr.summarise(net, input_shape).layers:
        columns = row.multiply_adds / row.output[-1]
        moved = 4 * batch * (5 * columns + 10 * np.prod(row.output))
        total += max(6 * batch * row.multiply_adds / peak, moved / bandwidth)
    return total


batches = np.array([1, 4, 16, 64, 256])
panels = {}
for name, (net, step), inputs, measured in (
    ("tiny net", tiny("cpu"), vectors, batches),
    ("ResNet-20", trainer("resnet20", "cpu"), images, batches[:4]),
):
    cpu = [best(lambda step=step, x=inputs[:n], n=n: step(x, labels[:n])) for n in measured]
    host = LAUNCH * launches[name]
    gpu = [max(host, device_seconds(net, inputs.shape[1:], n)) for n in batches]
    panels[name] = measured, cpu, host, gpu

# %% tags=["hide-input"]
figure, row = plt.subplots(1, 2, figsize=(8.5, 3.6))
for axes, (name, (measured, cpu, host, gpu)) in zip(row, panels.items(), strict=True):
    axes.plot(measured, 1e3 * np.array(cpu), "o-", label="this CPU, one thread, measured")
    axes.plot(batches, 1e3 * np.array(gpu), "s--", label="a T4 at best, computed")
    axes.axhline(1e3 * host, color="#888888", linestyle=":", label="launches alone: the floor")
    axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="milliseconds per step", title=name)
    axes.set_xticks(batches, [str(n) for n in batches])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 1.3)
handles, names = row[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=8)
plt.show()

# %%
for name, (measured, cpu, _, gpu) in panels.items():
    for i in (0, len(measured) - 1):
        word = "shorter" if gpu[i] < cpu[i] else "LONGER"
        print(
            f"{name:10} batch {measured[i]:3}: CPU {1e3 * cpu[i]:8.2f} ms, T4 at best {1e3 * gpu[i]:6.2f} ms: "
            f"{max(cpu[i] / gpu[i], gpu[i] / cpu[i]):5.1f} times {word}"
        )

# %% [markdown]
# **Tiny nets lose.** The tiny net's step is over on the CPU before the GPU's host has prepared its launches. A larger
# batch costs the CPU only a little more, so there is little to gain. With nets as small as this one, stay on the CPU.
#
# **ResNet-20 wins**, and more so the larger the batch: the floor stays, the work grows. With small batches the GPU
# idles and waits for Python. The practical rule: *the larger the batch and the wider the net, the more a GPU helps*.
#
# These are lower bounds for the GPU, from a data sheet. Real times are longer; by how much, nobody here knows.
#
# ### Fewer launches: fusing
#
# Several elementwise steps can be one kernel. CuPy makes such a kernel from Python code: it calls the function once
# with stand-ins for the arrays, records what happens to them, and compiles that. In minires, `fuse` marks such
# functions; with NumPy it does nothing. (`minires/kernels.py` has all of them.)


# %%
def scale_shift_relu(xp, x, scale, shift):
    return xp.maximum(x * scale + shift, 0)


fused = fuse("scale_shift_relu")(scale_shift_relu)
x, scale, shift = (to_device(rng.standard_normal(s, np.float32), "strict") for s in ((8, 4, 4, 16), 16, 16))
with strict.counting() as separate:
    a = scale_shift_relu(strict.xp, x, scale, shift)
with strict.counting() as together:
    b = fused(x, scale, shift)
print("the same numbers:", np.array_equal(to_host(a), to_host(b)))
for name, counts in (("separate", separate), ("fused", together)):
    made = counts.launches.total()
    print(f"{name}: {made} launches, {1e6 * LAUNCH * made:.0f} microseconds")

# %% [markdown]
# Fusing helps twice: there are two launches fewer, and on the device each number is read once instead of three times.
# It is the cure from section 5: move less.
#
# ## 7. Mixed arrays are refused
#
# The GPU has its own memory. An operation on one array there and one here is impossible: something must be copied
# first. CuPy leaves that to you, and so does PyTorch, because a copy in the wrong place can cost more than the
# computation. So the most common mistake on a GPU is an array that is made on the host, somewhere in the middle:


# %%
def noisy(x):
    """A student's layer. It works on the CPU."""
    return x + mr.Tensor(np.zeros(x.shape, np.float32))


print("cpu:", noisy(mr.Tensor(np.ones((2, 3), np.float32))).shape)
try:
    noisy(mr.Tensor(to_device(np.ones((2, 3), np.float32), "strict")))
except (TypeError, ValueError) as error:
    print("strict:", error)

# %% [markdown]
# On a CPU nobody would ever notice. The cure is a habit: make new arrays with the library of an existing one,
# `array_module(x.data).zeros(...)`, never with `np`.
#
# Here is a gallery. Each line is fine with NumPy. **Predict** which ones CuPy accepts.

# %%
xp, x = strict.xp, to_device(np.array([[1.0, -2, 3], [4, 5, 6]], np.float32), "strict")
host = np.ones((2, 3), np.float32)
gallery = {
    "x + host": lambda: x + host,
    "x + np.float32(1)": lambda: x + np.float32(1),
    "np.exp(x)": lambda: np.exp(x),
    "np.asarray(x)": lambda: np.asarray(x),
    "x[0] = [7, 8, 9]": lambda: x.__setitem__(0, [7, 8, 9]),
    "x[x > 0]": lambda: x[x > 0],
    "xp.log(x, where=x > 0)": lambda: xp.log(x, where=x > 0),
    "xp.maximum.reduce(x)": lambda: xp.maximum.reduce(x),
    "xp.insert(x, 0, 1)": lambda: xp.insert(x, 0, 1),
    "round(x.sum())": lambda: round(x.sum()),
    "data.classes[x[0].argmax()]": lambda: data.classes[x[0].argmax()],
    "data.classes[int(x[0].argmax())]": lambda: data.classes[int(x[0].argmax())],
}
for code, action in gallery.items():
    try:
        action()
        print(f"{code:34} yes")
    except Exception as error:
        print(f"{code:34} NO: {type(error).__name__}: {str(error)[:90]}")

# %% [markdown]
# Some are refused because they would mix arrays. Some because CuPy simply lacks a function or a keyword. And some
# because the sum of an array on the device is not a Python number: it is an array without axes, *there*. `round` and
# list indices need a number *here*.
#
# How does the stand-in know all that? From the real package: a script asked CuPy for every name and parameter that it
# has, and recorded them. `python -m minires train --device strict` trains an entire net under these rules. This is how
# the authors tested what they could not run.
#
# ## 8. Waiting
#
# When Python calls an operation on a GPU, the call returns as soon as the launch is prepared. The GPU works through its
# queue, and Python hurries ahead. That is how host and device can work at the same time.
#
# This ends when the host needs to *know a number*: `float(loss)`, `loss.item()`, `if loss > 10`, `print(loss)`. Then
# the host must wait until the queue is done. Afterwards the queue is empty, and the GPU waits for Python. The stand-in
# counts waits:

# %%
_, step = trainer("resnet8", "strict", width=4)
steps = 20
x, y = to_device(images[:4], "strict"), to_device(labels[:4], "strict")
with strict.counting() as eager:
    mean = sum(step(x, y).item() for _ in range(steps)) / steps
with strict.counting() as patient:
    total = 0.0
    for _ in range(steps):
        total = total + step(x, y).data  # an array of the device
    mean = float(total) / steps
print(f"the loss read at each step: {eager.waits.total()} waits; added up there and read once: {patient.waits.total()}")

# %% [markdown]
# Either way you get the mean loss of 20 steps. On a GPU, `mr.fit` reads loss and accuracy only every 20 steps. There is
# one price: a loss that has become NaN is noticed some steps late.
#
# The same haste makes **stopwatches lie**. This measures how fast Python can fill a queue:
#
#     start = time.perf_counter()
#     loss = step(x, y)
#     print(time.perf_counter() - start)
#
# Read a number before you stop the watch: `loss.item()`. And leave out the first step, since kernels are compiled when
# they are first used; that can take seconds.
#
# ## 9. What to expect, and how to find out
#
# If you have an NVIDIA GPU, this is the way:
#
#     pip install -e ".[gpu]"                     # in the checkout
#     python -m minires doctor                    # can it be used? if not, how to fix it?
#     python -m minires doctor --gpu-selftest     # does it compute the same as NumPy, and how fast?
#
# The self-test runs every operation, forward and backward, and three steps of training, in both places. Then it times
# ResNet-20 and ResNet-56. Please paste its output into an issue: until somebody does, nobody knows, not even how long
# it takes. Here is its first part, with the stand-in:

# %%
errors = {name: doctor.compare_operation(operation, "strict") for name, operation in doctor.operations().items()}
correct = sum(not error for error in errors.values())
print(f"operations, forward and backward: {correct} of {len(errors)} as with NumPy")

# %% [markdown]
# What you should expect:
#
# - Tiny nets: slower than on your CPU. ResNet-20 with 128 or more images per batch: faster, and more so the deeper and
#   wider the net.
# - Slower than PyTorch on the same GPU. PyTorch has convolutions that NVIDIA wrote for each of its GPUs. Ours copies
#   columns and multiplies, and on a GPU those copies are the most expensive part (look at `device_seconds`).
# - The first step takes seconds.
# - After a few steps: the same results as on the CPU, to some digits. Never bit for bit.
# - Memory: a GPU has less of it than the host. The cure for "out of memory" is a smaller batch.
#
# ## Summary
#
# - One flag moves training to a GPU. Formulas, seeds and files stay; places, clocks and last digits change.
# - Profile first. On a CPU most of a step is convolution, but the norms take far more time than their share of the
#   arithmetic.
# - Arithmetic intensity is FLOP per byte. Speed is at most the lower of peak and intensity times bandwidth: the
#   roofline.
# - Convolutions are limited by arithmetic, norms and ReLUs by memory. The cure for the latter: move less, fuse.
# - Each operation costs the host about 7 microseconds. Launches set a floor for the time of a step, whatever the batch.
#   Tiny nets lose.
# - Arrays in two places never mix. Making arrays with `np` in the middle is the mistake; `array_module` is the cure.
# - Reading a number waits. Read rarely.
#
# ## Common mistakes
#
# - **`np.zeros` in an operation**, or a running mean left on the host. (`net.to` moves parameters and buffers.)
# - **An array copied to the host and back in every step**, because that made an error go away.
# - **`loss.item()` at each step**, or a progress bar that shows each loss.
# - **A stopwatch without waiting**, or with the first step included.
# - **The batch left at 16**, and the GPU blamed.
# - **Optimising arithmetic that is not the limit.** Look at the roofline first.
# - **Judging by "GPU utilisation 100 %"**: it says that *something* ran at each moment, not that it ran well.
# - **Comparing bit for bit.** Compare with a tolerance, in float64 where it matters.
#
# ## Three questions
#
# <details><summary>1. You double the batch and the time of a step on the GPU hardly changes. What was the limit, and
# what does it mean for the time of an epoch?</summary>
#
# The host: launches and Python. The device had time to spare. An epoch now has half as many steps and takes about half
# as long. Keep doubling until the time of a step starts to double too: then the device is the limit.
#
# </details>
#
# <details><summary>2. A new processor has twice the peak and the same memory. Which layers of a ResNet become
# faster?</summary>
#
# Those right of the bend: 3x3 convolutions on many channels. Norms, ReLUs and sums stay as they were, and their share
# of the time grows. So the net as a whole becomes less than twice as fast; if a third of the time is limited by memory,
# at most 1.5 times.
#
# </details>
#
# <details><summary>3. Why are images augmented on the host, when the GPU could do it faster?</summary>
#
# So that the same seed gives the same run everywhere: the random numbers come from NumPy's generator, on any device.
# And the host has time: while the GPU trains on one batch, another thread prepares the next. (The price is one copy of
# a batch per step, a few megabytes.)
#
# </details>
#
# ## Exercises
#
# Five functions, in `chapters/exercises/ch10_gpu.py`. Open that file, fill in one function, save, and run its cell here
# (or, in a terminal, `pytest -m ex10_1` or `python -m minires check 10.1`). No GPU is needed. Stuck? `hint("10.1")`,
# then `hint("10.1", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 10.1 `smooth_targets` | a NumPy function made to run on every array library | 2 | about 4 |
# | 10.2 `entropy` | another one, with a keyword that CuPy does not have | 2 | about 3 |
# | 10.3 `intensity` | floating-point operations per byte | 1 | about 3 |
# | 10.4 `step_seconds` | the least time that a list of operations takes | 2 | about 3 |
# | 10.5 `epoch_figures` | reading losses without waiting at each step | 2 | about 6 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("10.1")

# %%
check("10.2")

# %%
check("10.3")

# %%
check("10.4")

# %%
check("10.5")

# %%
hint("10.1")

# %% [markdown]
# ## Read on
#
# - `minires/backend.py`: how CuPy and the stand-in are registered; `array_module`, `to_device`. `minires/kernels.py`:
#   `fuse`, and the fused formulas.
# - `minires/devices/strict.py`: the stand-in, and `counting`.
# - `minires/devices/doctor.py`: the self-test, and `gpu_status`, which knows the ways in which a GPU can be missing.
# - `benchmarks/README.md`: what made minires faster on a CPU, and what did not.
# - The course ends here. [paper_map.md](paper_map.md) leads through the paper, item by item, and says what followed it;
#   [glossary.md](glossary.md) has its words in two languages.
# - Sources: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model for multicore
#   architectures"; the documentation of CuPy, "Differences between CuPy and NumPy"; Horowitz 2014, "Computing's energy
#   problem" (moving data costs more than computing, in energy too).
