# %% [markdown]
# # 4. Convolution is a matrix product
#
# **After this chapter you can**
# - slide a kernel over an image by hand, and say how large the result will be;
# - turn a convolution into one matrix product, with im2col;
# - derive both of its gradients, for the weights and for the input, and check them;
# - say what a 1x1 convolution and a pooling layer do, forward and backward;
# - explain where the speed of a convolution comes from, and read the filters that a net has learned.
#
# **You need** chapters 1 to 3: gradients that add, `mr.gradcheck`, a training loop. From mathematics: the product of
# two matrices, and sums with several indices.
#
# **Time**: about 100 minutes to read and run, 140 for the exercises.

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
import json
import time

import matplotlib.pyplot as plt
import numpy as np

import minires as mr
from minires import nn, plots, winograd
from minires.conv import col2im, conv2d_naive, conv2d_simple, im2col, output_size, patches
from minires.course import drawings
from minires.data import Loader, Normalise
from minires.gradcheck import away_from_kinks
from minires.optim import one_cycle
from minires.paper.records import checkout
from minires.parallel import split

plots.notebook_style()
data = mr.open_data("auto")
normalise = Normalise.channels(data.train_images)
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. What the last net could not see
#
# Chapter 3 ended with a trick: shuffle the pixels of all images in the same way, and the rows of the first weights with
# them, and the MLP gives the same answers as before. It does not know which pixels are neighbours. It would have to
# learn that from examples, and it pays for its ignorance with weights.
#
# Two ideas give a layer what is missing:
#
# 1. **Look at a small neighbourhood.** An edge or a corner involves only a few neighbouring pixels.
# 2. **Look everywhere in the same way.** An edge is an edge wherever it is. So use the same weights at every position.
#
# What does that do to the number of weights? Take a layer from 32x32 pixels of 3 colours to 32x32 positions of 16
# features. **Predict** the three numbers, or at least how many digits they have.

# %%
print(f"every output sees every input, with its own weights: {(32 * 32 * 3) * (32 * 32 * 16):>12,}")
print(f"every output sees 3x3 pixels, with its own weights:  {(3 * 3 * 3) * (32 * 32 * 16):>12,}")
print(f"every output sees 3x3 pixels, all share weights:     {(3 * 3 * 3) * 16:>12,}")

# %% [markdown]
# The last line is a convolution.
#
# ## 2. By hand
#
# Lay a small grid of weights, the **kernel** $w$, on the image. Multiply each weight by the number under it. Add the
# products: that is one number of the output. Move the kernel by one pixel, and do it again:
#
# $$ y_{ij} = \sum_{a} \sum_{b} x_{i+a,\; j+b} \; w_{ab} $$
#
# Below, the frame shows where the kernel is for the framed number of $y$. Compute that number yourself before you look.
# (Three products are not zero on the right, none on the left.)


# %%
def slide(x, w):
    """x (H, W), w (KH, KW) -> y: a sum of products for each position of the kernel."""
    kh, kw = w.shape
    y = np.zeros((x.shape[0] - kh + 1, x.shape[1] - kw + 1))
    for i, j in np.ndindex(y.shape):
        y[i, j] = (x[i : i + kh, j : j + kw] * w).sum()
    return y


x = np.zeros((5, 6))
x[1:4, 2:5] = 4  # a bright square
w = np.array([[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]])
drawings.numbers(
    {"x": x, "w": w, "y = slide(x, w)": slide(x, w)}, marks={"x": [(1, 1, 3, 3)], "y = slide(x, w)": [(1, 1, 1, 1)]}
)

# %% [markdown]
# This kernel subtracts what is on the left from what is on the right. Where the image gets brighter to the right, $y$
# is positive; where it gets darker, negative; where nothing changes, zero. The kernel is a **detector**, here for
# vertical edges, and $y$ is a map of where it found something: a **feature map**.
#
# Here are four kernels.

# %%
kernels = {
    "A": np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0]]),
    "B": np.ones((3, 3)) / 9,
    "C": np.array([[-1, -1, -1], [0, 0, 0], [1, 1, 1]]),
    "D": np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]]),
}
drawings.numbers(kernels)

# %% [markdown]
# **Predict.** What does each do to an image? One finds horizontal edges, one blurs, one moves the image by a pixel, one
# finds every pixel that differs from its surroundings.

# %% tags=["hide-input"]
grey = data.train_images[0].mean(axis=2) / 255  # (32, 32)
maps = {"x": grey} | {name: slide(grey, w) for name, w in kernels.items()}
figure, axes = plt.subplots(1, 5, figsize=(8.5, 2))
for (name, y), axis in zip(maps.items(), axes, strict=True):
    signed = name in "CD"
    most = np.abs(y).max()
    axis.imshow(y, cmap="PuOr" if signed else "gray", vmin=-most if signed else 0, vmax=most if signed else 1)
    axis.set_title(name)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# A moves the image to the left: each output looks at its right neighbour. B blurs. C finds horizontal edges (purple:
# brighter below; orange: darker below). D finds every edge and every speck, because it gives zero where a pixel equals
# the mean of its four neighbours.
#
# People once designed such kernels with care. A net *learns* them: the weights of the kernel are parameters, and the
# gradient says how to change them. At the end of this chapter we will look at some that a net has found.
#
# > **Aside: a matter of names.** In mathematics a *convolution* rotates the kernel by 180 degrees before it slides.
# > What we do, without rotating, is called *cross-correlation* there. For a net it makes no difference, since it learns
# > the kernel in either orientation, and everyone in deep learning says "convolution". So do we. The rotated kernel
# > will come back, though: in the gradient.

# %%
a, k = [0, 0, 1, 0, 0], [1, 2, 3]
print("correlation:", np.correlate(a, k), "  the kernel appears reversed")
print("convolution:", np.convolve(a, k, mode="valid"), "  the kernel appears as it is")

# %% [markdown]
# See what becomes of a single 1. Sliding meets it first with the kernel's last weight, so the response is the kernel in
# reverse.
#
# ## 3. How large is the result?
#
# One row of the image is enough to see it. Six inputs, a kernel of three weights; the lines of one output are
# highlighted:

# %%
drawings.taps(6, 3, output=1)

# %% [markdown]
# Six inputs, four outputs. The image has shrunk by two: the kernel's centre can't reach the outermost pixels. Fifteen
# such layers would leave 2 of 32 pixels in a row. So we put zeros around the image. **Padding** 1 means one zero on
# each side:

# %%
drawings.taps(6, 3, padding=1, output=0)

# %% [markdown]
# Now there are as many outputs as inputs. For a kernel of odd size $k$ the padding that does this is $(k-1)/2$.
#
# Sometimes a smaller output is what we want: fewer positions, more features for each. **Stride** 2 moves the kernel by
# two pixels at a time:

# %%
drawings.taps(6, 3, stride=2, padding=1, output=1)

# %% [markdown]
# Three outputs. And look at the right end: the last zero is under no kernel at all. The next position would reach
# beyond it.
#
# Let us count in general. The row has $n$ pixels, with padding $n + 2p$. The kernel's left end can be at 0, $s$, $2s$,
# and so on; at position $j$ it is at $j s$. Its right end must stay inside: $j s + k \le n + 2p$, so
#
# $$ j \le \frac{n + 2p - k}{s}. $$
#
# The largest integer $j$ is the fraction rounded down, and as we count from zero there is one position more:
#
# $$ \boxed{\; \text{positions} = \left\lfloor \frac{n + 2p - k}{s} \right\rfloor + 1 \;} $$
#
# **Predict** each row of this table before you run the cell:
#
# | pixels | kernel | stride | padding | where it is used |
# | --- | --- | --- | --- | --- |
# | 32 | 3 | 1 | 1 | nearly every convolution of a CIFAR ResNet |
# | 32 | 3 | 2 | 1 | the first of its second stage |
# | 32 | 1 | 2 | 0 | a shortcut that must halve the image too |
# | 224 | 7 | 2 | 3 | the first of an ImageNet ResNet |
# | 112 | 3 | 2 | 1 | the max pooling behind it |
# | 7 | 2 | 2 | 0 | pooling an odd size |

# %%
for n, k, s, p in ((32, 3, 1, 1), (32, 3, 2, 1), (32, 1, 2, 0), (224, 7, 2, 3), (112, 3, 2, 1), (7, 2, 2, 0)):
    positions = output_size(n, k, s, p)
    unseen = n + 2 * p - ((positions - 1) * s + k)
    print(f"{n:4} pixels, kernel {k}, stride {s}, padding {p}: {positions:4} positions, {unseen} unseen on the right")

# %% [markdown]
# Rounding down hides something: in the last row of the table an entire column of pixels is never looked at. (In the
# third row too, but there every second column is skipped anyway.) With stride 2 and a 3x3 kernel it is only a column of
# padding.
#
# Is the formula right? Count, for every case up to some size:

# %%
cases = wrong = 0
for n, k, s, p in np.ndindex(20, 8, 5, 4):
    k, s = k + 1, s + 1
    if n + 2 * p >= k:
        counted = sum(1 for left in range(0, n + 2 * p, s) if left + k <= n + 2 * p)
        cases, wrong = cases + 1, wrong + (counted != output_size(n, k, s, p))
print(f"{cases} cases counted, {wrong} differ from the formula")

# %% [markdown]
# ## 4. Channels
#
# An image has three numbers per pixel: red, green, blue. A feature map deep in a net may have 64. These are its
# **channels**. A filter looks at all channels of its neighbourhood, so it has a grid of weights for each, and adds
# everything up to *one* number:

# %%
red, green, blue = np.full((3, 3), 5), np.array([[1, 0, 1], [0, 2, 0], [1, 0, 1]]), np.array([[2, 1, 0]] * 3)
w_red, w_green, w_blue = np.full((3, 3), 1), np.zeros((3, 3)), np.full((3, 3), -1)
y = sum((a * b).sum() for a, b in ((red, w_red), (green, w_green), (blue, w_blue)))
drawings.numbers(
    {"red": red, "green": green, "blue": blue, "w red": w_red, "w green": w_green, "w blue": w_blue, "y": y}, columns=3
)

# %% [markdown]
# This filter answers "how much more red than blue is there here?" A layer has $F$ such filters, and each gives one
# channel of the output. So the weights have four axes, and here are the letters that the entire library uses:
#
# | array | shape | |
# | --- | --- | --- |
# | `x` | `(N, H, W, C)` | images, height, width, channels in |
# | `w` | `(KH, KW, C, F)` | kernel height, kernel width, channels in, filters |
# | `y` | `(N, OH, OW, F)` | images, output height, output width, filters |
#
# With stride $s$ and padding $p$ the complete formula is
#
# $$ y_{n\,i\,j\,f} = \sum_{a=0}^{KH-1} \sum_{b=0}^{KW-1} \sum_{c=0}^{C-1}
#    x_{n,\; si+a-p,\; sj+b-p,\; c} \; w_{a\,b\,c\,f} $$
#
# where $x$ counts as zero outside the image. Seven indices, seven loops:


# %%
def seven_loops(x, w):
    """Stride 1, no padding."""
    n, h, width, c = x.shape
    kh, kw, _, f = w.shape
    y = np.zeros((n, h - kh + 1, width - kw + 1, f), x.dtype)
    for n, i, j, f in np.ndindex(y.shape):
        for a, b, c in np.ndindex(w.shape[:3]):
            y[n, i, j, f] += x[n, i + a, j + b, c] * w[a, b, c, f]
    return y


x = rng.standard_normal((2, 6, 5, 3))
w = rng.standard_normal((3, 3, 3, 4))
y = seven_loops(x, w)
print("x", x.shape, "  w", w.shape, "  y", y.shape)

# %% [markdown]
# The library has a convolution that is nothing but this formula, with NumPy doing the inner sums. It is slow, and easy
# to trust. Pooling has such a naive version too.

# %%
print(inspect.getsource(conv2d_naive))
print("the same as our seven loops:", np.allclose(conv2d_naive(x, w), y))

# %% [markdown]
# ## 5. The trick: patches become rows
#
# Each number of $y$ is a patch of $x$, multiplied by a filter and summed. That is a dot product, once you write the
# patch as one row and the filter as one column. And many dot products, every patch with every filter, are a **matrix
# product**.
#
# So copy every patch into a row of a matrix. This is called **im2col**, image to columns (the name is older than our
# habit of writing patches as rows). Write every filter as a column. Multiply. Follow one colour from left to right:

# %%
x_small = np.array([[1, 2, 0, 1], [0, 3, 1, 0], [2, 1, 0, 2], [1, 0, 2, 1]])
upright, middle = np.array([[1, 0, -1]] * 3), np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
drawings.patches_to_rows(x_small, np.stack([upright, middle], axis=-1))

# %% [markdown]
# Four patches, so four rows. Nine weights per filter, so nine columns. Two filters, so $y$ has two columns: channel
# last, as it should be. Reshape $y$ to 2x2 positions of 2 channels, and the convolution is done.
#
# **Predict.** The 3 in row 1, column 1 of the image: how often does it occur in the matrix? And the 1 in the corner?
#
# (The 3 is in all four patches, so it occurs four times; the corner is in one.)
#
# With several channels, the numbers of a pixel stay next to each other. To see the order, take an image whose numbers
# say where they are: row, column, channel as three digits.

# %%
i, j, c = np.indices((3, 4, 3))
labelled = (100 * i + 10 * j + c)[None]  # (1, 3, 4, 3)
cols = im2col(labelled, 2, 2)
print("shape", cols.shape, ": 2*3 positions, 2*2*3 numbers in each patch\n")
for row in cols:
    print(" ".join(f"{value:03}" for value in row))

# %% [markdown]
# The first row is the patch in the corner: pixel (0, 0) with its channels 0, 1, 2, then pixel (0, 1), then the second
# row of the patch. Now look at `w` with its shape `(KH, KW, C, F)`: `w.reshape(KH*KW*C, F)` has the same order. No axes
# need to be swapped. So the entire convolution is:

# %%
cols = im2col(x, 3, 3)  # (N*OH*OW, KH*KW*C)
y_matrix = cols @ w.reshape(-1, 4)  # (N*OH*OW, F)
print("cols", cols.shape, "@ w", w.reshape(-1, 4).shape, "= y", y_matrix.shape)
print("the same as the loops:", np.allclose(y_matrix.reshape(y.shape), y))

# %% [markdown]
# What does it cost? Memory: a pixel is copied into every patch that covers it, up to nine times for a 3x3 kernel.
#
# > **Aside: patches without a copy.** NumPy can *present* memory as if it held the patches, without copying. An array
# > knows for each axis how many bytes it is to the next number: its strides. To read patches, go through the same bytes
# > along six axes instead of four. The library's `patches` does only that, and `im2col` is one `reshape` of it. That
# > reshape makes the copy, because a matrix must be contiguous in memory.

# %%
view = patches(x, 3, 3, 1)
print("x      ", x.shape, "strides", x.strides)
print("patches", view.shape, "strides", view.strides)
print("same memory:", np.shares_memory(view, x), "   after the reshape:", np.shares_memory(im2col(x, 3, 3), x))

# %% [markdown]
# ## 6. Backward: the gradient for the weights
#
# Now the backward pass. Let $g$ be the upstream gradient, $g_{nijf} = \partial L / \partial y_{nijf}$. We want
# $\partial L / \partial w$ and $\partial L / \partial x$.
#
# With matrices it takes half a line. The forward pass is $Y = P\,W$, with $P$ = `im2col(x)` as `(N*OH*OW, KH*KW*C)` and
# $W$ as `(KH*KW*C, F)`. Entry by entry, $Y_{rf} = \sum_k P_{rk} W_{kf}$. How does the loss depend on one weight?
# Through every row $r$ in which it is used, and gradients add:
#
# $$ \frac{\partial L}{\partial W_{kf}}
#    = \sum_r \frac{\partial L}{\partial Y_{rf}} \frac{\partial Y_{rf}}{\partial W_{kf}} = \sum_r G_{rf} \, P_{rk}
#    \qquad\Longrightarrow\qquad \boxed{\; dW = P^\top G \;} $$
#
# $P^\top$ is `(KH*KW*C, N*OH*OW)`, $G$ is `(N*OH*OW, F)`, the product is `(KH*KW*C, F)`. The shapes leave no other
# choice.

# %%
g = rng.standard_normal(y.shape)  # some upstream gradient
dw = (cols.T @ g.reshape(-1, 4)).reshape(w.shape)
print("dw", dw.shape, "like w", w.shape)

# %% [markdown]
# What does that product mean for the image? Row $k$ of $P^\top$ holds what weight $k$ met: at every position in every
# image, the one number that was under it. So
#
# $$ \frac{\partial L}{\partial w_{abcf}} = \sum_{n,i,j} g_{nijf} \; x_{n,\; i+a,\; j+b,\; c} $$
#
# Read it once more: $g$ is laid on $x$, shifted by $(a, b)$, and products are added. That is again a sliding sum, with
# $g$ as the kernel. There is one weight, it has many uses, and **each use adds its part**. It is `b = a + a` from
# chapter 1, with as many summands as there are positions.

# %%
a, b, c, f = 2, 0, 1, 3  # one weight
under_it = x[:, a : a + 4, b : b + 3, c]  # what it met, (N, OH, OW)
print("one weight, by its uses:", f"{(under_it * g[..., f]).sum():.6f}", " in dw:", f"{dw[a, b, c, f]:.6f}")
print(
    "g slides over x:        ",
    np.allclose(slide(x[0, :, :, c], g[0, :, :, f]) + slide(x[1, :, :, c], g[1, :, :, f]), dw[:, :, c, f]),
)

# %% [markdown]
# And a bias? It is added at every position, so its gradient is the sum of $g$ over all positions:
# `g.sum(axis=(0, 1, 2))`.
#
# ## 7. Backward: the gradient for the input
#
# We take this in three steps.
#
# **Step 1: the copies.** For the matrix product, $P$ is as good an input as $W$. By the same argument,
#
# $$ \frac{\partial L}{\partial P_{rk}} = \sum_f \frac{\partial L}{\partial Y_{rf}} W_{kf}
#    \qquad\Longrightarrow\qquad dP = G\,W^\top . $$

# %%
dcols = g.reshape(-1, 4) @ w.reshape(-1, 4).T
print("dcols", dcols.shape, "like cols", cols.shape)

# %% [markdown]
# **Step 2: from copies back to pixels.** $P$ is not the image. Its entries are *copies* of pixels. Chapter 1 showed
# what happens to copies: a value that is used several times gets the *sum* of the gradients of its uses. **Copying
# forward is adding backward.** So take each entry of `dcols` back to the pixel it was copied from, and add. That is
# **col2im**.
#
# How many copies are there? **Predict** it for an image of 5x5 pixels and a 3x3 kernel: for the pixel in the corner,
# for the one in the middle. Then for stride 2.


# %%
def copies(size, kernel, stride=1):
    positions = output_size(size, kernel, stride, 0)
    return col2im(np.ones((positions**2, kernel**2)), (1, size, size, 1), kernel, kernel, stride)[0, :, :, 0]


drawings.numbers(
    {
        "5x5, kernel 3": copies(5, 3),
        "7x7, kernel 3, stride 2": copies(7, 3, 2),
        "7x7, kernel 2, stride 2": copies(7, 2, 2),
    }
)

# %% [markdown]
# A corner is in one patch only, a pixel in the middle in nine. At stride 2 with a 3x3 kernel, some pixels are in four
# patches, their neighbours in two or in one: the gradient becomes a chequered pattern. Where the stride equals the
# kernel, a pixel is in one patch; and here is the last column of section 3 again, which no kernel sees: no copies, so
# no gradient.
#
# The library's col2im is a loop over the positions *in the kernel*, 9 rounds for a 3x3, each with one large `+=`:

# %%
print(inspect.getsource(col2im))

# %% [markdown]
# Let us put the pieces together into an operation of our own, and ask the checker of chapter 2.


# %%
def conv_with(input_gradient):
    """A convolution of stride 1, whose gradient for x is computed by input_gradient(g, w, shape of x)."""

    def conv(x, w):
        kh, kw, _, f = w.shape
        cols = im2col(x.data, kh, kw)  # (N*OH*OW, KH*KW*C)
        oh, ow = x.shape[1] - kh + 1, x.shape[2] - kw + 1
        out = (cols @ w.data.reshape(-1, f)).reshape(-1, oh, ow, f)

        def backward(grad):
            dw = (cols.T @ grad.reshape(-1, f)).reshape(w.shape)
            return input_gradient(grad, w.data, x.shape), dw

        return mr.Tensor.from_op(out, (x, w), backward, "conv")

    return conv


def by_col2im(g, w, shape):
    kh, kw, _, f = w.shape
    dcols = g.reshape(-1, f) @ w.reshape(-1, f).T
    return col2im(dcols, shape, kh, kw)


small_x, small_w = away_from_kinks(rng, (2, 5, 4, 2)), away_from_kinks(rng, (3, 2, 2, 3))
print(mr.gradcheck(conv_with(by_col2im), [small_x, small_w]))

# %% [markdown]
# Now the mistake that everybody makes once: `=` instead of `+=`. The last copy wins, all others are lost. **Predict**
# which pixels are right.


# %%
def with_equals(g, w, shape):
    kh, kw, c, f = w.shape
    n, oh, ow, _ = g.shape
    dcols = (g.reshape(-1, f) @ w.reshape(-1, f).T).reshape(n, oh, ow, kh, kw, c)
    dx = np.zeros(shape, g.dtype)
    for a, b in np.ndindex(kh, kw):
        dx[:, a : a + oh, b : b + ow] = dcols[:, :, :, a, b]  # should be +=
    return dx


def verdict(function, inputs):
    """The checker's answer."""
    try:
        mr.gradcheck(function, inputs)
        return "all gradients are right"
    except (mr.GradientError, RuntimeError) as error:
        return str(error)


print(verdict(conv_with(with_equals), [small_x, small_w]))
one_image = np.abs(with_equals(g, w, x.shape) - by_col2im(g, w, x.shape))[0, :, :, 0]
drawings.numbers(
    {
        "the mistake, one channel": one_image.round(1),
        "copies of each pixel": col2im(np.ones((12, 9)), (1, 6, 5, 1), 3, 3)[0, :, :, 0],
    }
)

# %% [markdown]
# Only the corners are right, the pixels with a single copy.
#
# > **Aside: why the backward pass is a transpose.** im2col only copies, so it is linear: it is a matrix of zeros and
# > ones that acts on the pixels. The chain rule goes back through a linear map by its transpose. So col2im must be the
# > transpose of im2col. We can look at both, column by column: give each function one pixel (one copy) that is 1, the
# > rest 0.

# %% tags=["hide-input"]
forward = np.stack([im2col(e.reshape(1, 4, 4, 1), 2, 2).ravel() for e in np.eye(16)], axis=1)  # (36, 16)
back = np.stack([col2im(e.reshape(9, 4), (1, 4, 4, 1), 2, 2).ravel() for e in np.eye(36)], axis=1)  # (16, 36)
figure, axes = plt.subplots(1, 2, figsize=(7, 3.4))
for axis, matrix, name in zip(axes, (forward, back), ("im2col: 16 pixels to 36 copies", "col2im"), strict=True):
    axis.imshow(matrix, cmap="Blues", vmax=1.3)
    axis.set(title=name, xticks=[], yticks=[])
plt.show()
print("col2im is the transpose of im2col:", np.array_equal(back, forward.T))

# %% [markdown]
# > There is a test for such a pair that needs no matrix: for any image $x$ and any columns $d$, the dot products
# > $\langle \text{im2col}(x), d \rangle$ and $\langle x, \text{col2im}(d) \rangle$ are the same number. The library's
# > tests use it.

# %%
d = rng.standard_normal(cols.shape)
print(f"{(im2col(x, 3, 3) * d).sum():.10f}  {(x * col2im(d, x.shape, 3, 3)).sum():.10f}")

# %% [markdown]
# **Step 3: the same thing without scattering.** col2im pushes: each output sends its gradient down to all pixels of its
# patch. We can also pull: each pixel collects from all outputs that it entered. Look at one row again, now from the
# side of an input. **Predict** in which order it meets the weights, from left to right.

# %%
drawings.taps(6, 3, entry=3)

# %% [markdown]
# Seen from an output, the weights read w0, w1, w2. Seen from an input, they read **w2, w1, w0**. So the gradient for
# the input is again a sliding sum: over $g$, with the kernel reversed.
#
# In symbols, for one row with padding $p$ and stride 1. The forward pass is $y_i = \sum_a x_{i+a-p}\, w_a$. Pixel $m$
# enters $y_i$ with the weight $a$ for which $i + a - p = m$, that is $i = m + p - a$. So
#
# $$ \frac{\partial L}{\partial x_m} = \sum_a g_{m+p-a}\, w_a . $$
#
# The index of $g$ falls as $a$ rises. To make it rise, count the weights from the other end: put $a = K-1-a'$, and call
# $\bar w_{a'} = w_{K-1-a'}$ the reversed kernel.
#
# $$ \frac{\partial L}{\partial x_m} = \sum_{a'} g_{m + a' - (K-1-p)} \; \bar w_{a'} $$
#
# Compare with the forward pass: it is the same formula, with $g$ for $x$, the reversed kernel for $w$, and padding
# $K-1-p$ for $p$. In two dimensions both axes are reversed: the kernel is rotated by 180 degrees. With channels, $c$
# and $f$ also exchange roles: forward sums over channels in, backward sums over filters. So the last two axes of $w$
# are swapped.

# %%
w_rotated = w[::-1, ::-1].swapaxes(2, 3)  # (KH, KW, F, C)
dx = conv2d_naive(g, w_rotated, padding=3 - 1 - 0)
print("dx", dx.shape, "like x", x.shape, "  the same as col2im:", np.allclose(dx, by_col2im(g, w, x.shape)))

# %% [markdown]
# Here are three mistakes, and what the checker says about each. The layer has as many channels out as in: otherwise the
# last mistake would give an array of the wrong shape.


# %%
def pull(prepare):
    """A convolution whose gradient for x is a sliding sum over g with the kernel `prepare(w)`, 3x3."""
    return conv_with(lambda g, w, shape: conv2d_naive(g, prepare(w), padding=2))


inputs = away_from_kinks(rng, (2, 5, 4, 3)), away_from_kinks(rng, (3, 3, 3, 3))
for name, prepare in {
    "rotated, channels swapped": lambda w: w[::-1, ::-1].swapaxes(2, 3),
    "not rotated": lambda w: w.swapaxes(2, 3),
    "transposed instead of rotated": lambda w: w.transpose(1, 0, 3, 2),
    "rotated, channels not swapped": lambda w: w[::-1, ::-1],
}.items():
    print(f"{name.upper()}\n{verdict(pull(prepare), inputs)}\n")

# %% [markdown]
# And at stride 2? Then $g$ has only every second position. Put a zero into each position that was skipped, and
# everything is as before:

# %%
x_odd, g_odd = rng.standard_normal((2, 7, 5, 3)), rng.standard_normal((2, 3, 2, 4))  # stride 2: 7 -> 3, 5 -> 2
spread = np.zeros((2, 5, 3, 4))
spread[:, ::2, ::2] = g_odd
pulled = conv2d_naive(spread, w_rotated, padding=2)
pushed = col2im(g_odd.reshape(-1, 4) @ w.reshape(-1, 4).T, x_odd.shape, 3, 3, stride=2)
print("pulled and pushed agree:", np.allclose(pulled, pushed))
drawings.numbers({"g, one channel": g_odd[0, :, :, 0].round(1), "with zeros between": spread[0, :, :, 0].round(1)})

# %% [markdown]
# Pushing and pulling give the same numbers. Which one is faster is a matter of memory. `mr.conv2d` pulls at stride 1,
# because that reads and writes long runs of numbers; and the patches of $g$ that it needs for $dx$ give $dw$ as well,
# so one im2col serves both. At other strides, and for kernels that are not square, it pushes.
#
# Sections 5 to 7 in one function: this is `conv2d_simple` from the library. You have seen every line of it.

# %%
print(inspect.getsource(conv2d_simple))

# %% [markdown]
# Last, both of the library's convolutions against finite differences, with all the difficulties at once:

# %%
for stride, padding in ((1, 0), (1, 1), (2, 1), (3, 2)):
    inputs = [away_from_kinks(rng, shape) for shape in ((2, 6, 5, 3), (3, 2, 3, 4), (4,))]
    right = all(
        mr.gradcheck(lambda x, w, bias, conv=conv, s=stride, p=padding: conv(x, w, bias, s, p), inputs)
        for conv in (conv2d_simple, mr.conv2d)
    )
    print(f"stride {stride}, padding {padding}: gradients for x, w and bias right: {right}")

# %% [markdown]
# ## 8. A kernel of one pixel
#
# Can a 1x1 kernel do anything? It sees one pixel, so it knows nothing of neighbours. But it sees *all channels* of that
# pixel, and mixes them. Its weights are a matrix `(C, F)`, applied at every pixel: a linear layer that slides.
#
# **Predict.** What image does the filter with the weights 0.299, 0.587, 0.114 make of red, green and blue?

# %%
image = data.train_images[5:6] / np.float32(255)  # (1, 32, 32, 3)
mix = np.array([[0.299, 1, -0.5], [0.587, -0.5, -0.5], [0.114, -0.5, 1]], np.float32)  # (C, F): three filters
mixed = mr.conv2d(mr.Tensor(image), mr.Tensor(mix.reshape(1, 1, 3, 3))).data
print("a matrix product and no more:", np.allclose(mixed, image @ mix, atol=1e-6))

# %% tags=["hide-input"]
figure, axes = plt.subplots(1, 4, figsize=(7, 2))
axes[0].imshow(image[0])
for axis, y, name in zip(axes[1:], np.moveaxis(mixed[0], -1, 0), ("brightness", "how red", "how blue"), strict=True):
    axis.imshow(y, cmap="gray")
    axis.set_title(name)
for axis in axes:
    axis.set_axis_off()
plt.show()

# %% [markdown]
# The first is brightness as the eye sees it; the others are differences of colours.
#
# A 1x1 convolution is cheap, and it can change the number of channels. Deep nets use it to save work: squeeze 256
# channels to 64, do the costly 3x3 work there, and go back to 256. That is the *bottleneck* of ResNet-50:

# %%
print(f"one 3x3 layer on 256 channels:            {3 * 3 * 256 * 256:>8,} weights")
print(f"1x1 to 64, 3x3 on 64, 1x1 back to 256:    {256 * 64 + 3 * 3 * 64 * 64 + 64 * 256:>8,} weights")

# %% [markdown]
# ## 9. Pooling
#
# A feature map says where something was found. Often the net need not know it to the pixel. **Max pooling** keeps the
# largest number of each little square; **average pooling** keeps the mean. Both have a window, a stride and nothing to
# learn.
#
# Forward is easy. **Predict** the backward pass: four numbers went in, one came out. Who gets its gradient?

# %%
x_pool = np.array([[1, 5, 2, 0], [3, 4, 8, 6], [7, 0, 1, 1], [2, 9, 1, 3]], float)
upstream = np.array([[10, 20], [30, 40]], float)
results = {"x": x_pool}
below = {"upstream": upstream}
for name, pool in (("max", mr.max_pool2d), ("average", mr.avg_pool2d)):
    t = mr.Tensor(x_pool.reshape(1, 4, 4, 1), requires_grad=True)
    pooled = pool(t, 2)
    pooled.backward(upstream.reshape(1, 2, 2, 1))
    results[f"{name} pool"] = pooled.data[0, :, :, 0]
    below[f"dx of {name} pool"] = t.grad[0, :, :, 0]
squares = [(0, 0, 2, 2), (0, 2, 2, 2), (2, 0, 2, 2), (2, 2, 2, 2)]
marks = dict.fromkeys(("x", "dx of max pool", "dx of average pool"), squares)
drawings.numbers(results | below, marks=marks, columns=3)

# %% [markdown]
# Max pooling gives all of it to the **winner**: if any other number had been a little larger, nothing would have
# changed. Average pooling gives a quarter to each. Where two numbers tie for the maximum, there is no right answer;
# `mr.max_pool2d` takes the first. That is why `away_from_kinks` draws arrays without ties.
#
# What is lost is the exact position, and that is the purpose. Move the image by one pixel, and see how much the edges
# change before and after pooling:

# %%
edges = np.abs(slide(grey, kernels["C"]))[None, :, :, None]  # (1, 30, 30, 1)
moved = np.roll(edges, 1, axis=1)
for size in (1, 2, 5, 10):
    a, b = (mr.max_pool2d(mr.Tensor(e), size).data for e in (edges, moved))
    print(f"max over {size:2}x{size:<2}: the map changes by {np.abs(a - b).sum() / np.abs(a).sum():4.0%} of its size")

# %% [markdown]
# At the end of a ResNet we find the extreme case, **global average pooling**: the mean of each feature map over the
# entire image, one number per channel. "How much of this feature is there, no matter where?" Backward, every pixel gets
# $1/(H W)$ of the gradient.
#
# ## 10. Where the speed comes from
#
# All of this computes the same sum. How long does it take? Here is one convolution, done in several ways: 32 images of
# 16x16 pixels, 64 channels to 64, 3x3. How much work is that?

# %%
macs = 32 * 16 * 16 * 64 * 3 * 3 * 64
print(f"{macs / 1e6:.1f} million multiplications, each with an addition")

# %% [markdown]
# **Predict.** By what factor does the matrix product beat the seven loops: 10, 100, 1,000, 10,000?


# %%
def seconds(function, rounds=5):
    """The best time of a few rounds: other work on the machine can only make it slower."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


x_big = rng.standard_normal((32, 16, 16, 64), np.float32)
w_big = rng.standard_normal((3, 3, 64, 64), np.float32)
corner = x_big[:1, :4, :4]  # 4 positions, for the loops

live = {
    "seven loops (scaled up)": seconds(lambda: seven_loops(corner, w_big), 1) * (32 * 16 * 16) / 4,
    "a NumPy sum per output": seconds(lambda: conv2d_naive(x_big, w_big, None, 1, 1), 2),
    "conv2d_simple": seconds(lambda: conv2d_simple(mr.Tensor(x_big), mr.Tensor(w_big), padding=1)),
}
with mr.conv_method("im2col"):
    live["mr.conv2d"] = seconds(lambda: mr.conv2d(mr.Tensor(x_big), mr.Tensor(w_big), padding=1), 10)
slowest = max(live.values())
for name, t in live.items():
    print(f"{name:25}{1e3 * t:12,.1f} ms   {slowest / t:8,.0f} times as fast   {2 * macs / t / 1e9:8.3f} GFLOP/s")

# %% [markdown]
# Those were *your* times, from this run. The next plot also shows *recorded* ones: `benchmarks/ladder.py` measured them
# with more care, on the machine named in the title, and with PyTorch for comparison. (The step before PyTorch is the
# subject of the next section.)

# %% tags=["hide-input"]
recorded = json.loads(checkout("benchmarks/ladder.json").read_text(encoding="utf-8"))
machine = recorded["machine"]
heights = len(live), len(recorded["milliseconds"])
figure, axes = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True, height_ratios=heights)
ladders = (
    (
        f"measured in this notebook, {mr.get_num_threads()} thread{'s' if mr.get_num_threads() > 1 else ''}",
        {name: 1e3 * t for name, t in live.items()},
        plots.COLOURS[0],
    ),
    (f"recorded: {machine['processor']}, {machine['cores']} cores", recorded["milliseconds"], plots.COLOURS[4]),
)
for axis, (title, times, colour) in zip(axes, ladders, strict=True):
    bars = axis.barh(list(times), list(times.values()), color=colour)
    axis.bar_label(bars, [f"{t:,.0f} ms" if t >= 100 else f"{t:.1f} ms" for t in times.values()], padding=3, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.invert_yaxis()
    axis.set_xscale("log")
axes[0].set_xlim(0.5, 2e6)
axes[1].set_xlabel("milliseconds, logarithmic")
plt.show()

# %% [markdown]
# The loops and the product do the same multiplications. What differs is everything around them:
#
# 1. **From loops to NumPy.** Python takes far longer to find out *what* to multiply than to multiply. One NumPy call
#    answers that question once for many multiplications.
# 2. **From many sums to one product.** A matrix product uses each number that it fetches many times: a patch meets all
#    filters while it is still in the cache. Libraries for matrix products (BLAS) are tuned for that, processor by
#    processor.
# 3. **Chunks and threads.** im2col of the entire batch is a large array, which is written to main memory and read back.
#    A few images at a time stay in the processor's cache, and different threads can take different images.

# %%
image_bytes = 16 * 16 * 3 * 3 * 64 * 4
slices = split(32, image_bytes)
print(f"im2col of the entire batch: {32 * image_bytes / 2**20:.1f} MiB")
print(
    f"in chunks: {len(slices)} slices of at most {max(s.stop - s.start for s in slices)} images, "
    f"{max(s.stop - s.start for s in slices) * image_bytes / 2**20:.1f} MiB each"
)

# %% [markdown]
# Apart from the shared im2col of section 7, that is all that separates `mr.conv2d` from `conv2d_simple`. It writes the
# same steps as functions of a few images, and `over_batch` in `minires/parallel.py` cuts the batch into chunks and
# shares them among the threads. Inside a chunk the product is made in blocks, small enough for BLAS to multiply fast.
#
# ## 11. A quarter of the multiplications
#
# So far every way of computing a convolution did the same multiplications. There is one with fewer. It is easiest to
# see on a row: a kernel of three weights, and two neighbouring outputs.
#
# $$ y_0 = d_0 w_0 + d_1 w_1 + d_2 w_2 \qquad y_1 = d_1 w_0 + d_2 w_1 + d_3 w_2 $$
#
# Six multiplications. Shmuel Winograd found the same two numbers with four:
#
# $$ m_0 = (d_0 - d_2)\, w_0 \quad m_1 = (d_1 + d_2)\,\tfrac{w_0 + w_1 + w_2}{2} \quad
#    m_2 = (d_2 - d_1)\,\tfrac{w_0 - w_1 + w_2}{2} \quad m_3 = (d_1 - d_3)\, w_2 $$
#
# $$ y_0 = m_0 + m_1 + m_2 \qquad y_1 = m_1 - m_2 - m_3 $$
#
# Multiply it out once, on paper: everything that doesn't belong cancels. The sums of weights are the same for the
# entire image, so they are made once, and additions are cheap in comparison.
#
# Where does this come from? A polynomial of degree 3 is known from its values at four points, and a product of
# polynomials has at each point the product of their values. The sums $w_0 + w_1 + w_2$ and $w_0 - w_1 + w_2$ are the
# values of $w_0 + w_1 t + w_2 t^2$ at $t = 1$ and $t = -1$; $w_0$ is its value at $0$, and $w_2$ what is left of it "at
# infinity". So: transform both sides to values, multiply value by value, transform back. Each transform is a small
# matrix,
#
# $$ y = A^\top \left( (G\, w) \odot (B^\top d) \right) . $$

# %%
B_T = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
A_T = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
d, w_row = np.array([3, 1, 4, 1]), np.array([2, 7, 1])
print("four products:", (G @ w_row) * (B_T @ d), "  two outputs:", A_T @ ((G @ w_row) * (B_T @ d)))
print("the sums:     ", np.correlate(d, w_row, "valid"))

# %% [markdown]
# In an image the trick works along both axes at once. The library takes six points for each axis (0, 1, -1, 2, -2 and
# infinity), so a tile of 6x6 pixels gives 4x4 outputs. **Predict** how many multiplications a tile needs for one
# channel, and how many the sums need.

# %%
print(f"sums: {4 * 4} outputs, {3 * 3} weights each: {4 * 4 * 3 * 3} multiplications")
print(f"Winograd: one for each of the values: {6 * 6}")

# %% [markdown]
# The tiles overlap by two pixels, as six pixels are needed for four outputs:

# %%
places = np.zeros((10, 10))
for top, left in np.ndindex(2, 2):
    places[4 * top : 4 * top + 6, 4 * left : 4 * left + 6] += 1
drawings.numbers({"how many tiles a pixel is in": places}, marks={"how many tiles a pixel is in": [(0, 0, 6, 6)]})

# %% [markdown]
# Two tiles side by side have their outputs side by side, so nothing is computed twice but transforms.
#
# One question decides whether this is fast. The multiplications that are left are matrix products: for each of the 36
# values, the tiles' values (T, C) times the weights' values (C, F). But the transforms? Written as sums and differences
# of slices, they are dozens of passes over memory, which cost more than the products save. The way out: a transform of
# rows and columns, $B^\top D\, B$, is linear in the 36 numbers of $D$. So it is *one* product with a matrix of 36x36,
# which is made of copies of $B^\top$ scaled by the entries of $B^\top$ (a *Kronecker product*), for all tiles and
# channels at once. Now everything is a matrix product, and those we have in BLAS:

# %%
tile = rng.standard_normal((6, 6))
large = np.kron(winograd.B_T, winograd.B_T)  # (36, 36)
print(large.shape, np.allclose(large @ tile.ravel(), (winograd.B_T @ tile @ winograd.B_T.T).ravel()))
print(inspect.getsource(winograd.convolve))

# %% [markdown]
# The backward pass needs no new idea: each line is a product, and you know the gradients of a product. They are in
# `winograd.gradients`, from the last line to the first.
#
# It does not pay everywhere. Copying and transforming tiles costs the same per channel however many filters there are;
# the products grow with the filters. Two layers, with few channels and with many:

# %%
for n, size, channels in ((64, 32, 16), (8, 14, 256)):
    x_layer = mr.Tensor(rng.standard_normal((n, size, size, channels), np.float32))
    w_layer = mr.Tensor(rng.standard_normal((3, 3, channels, channels), np.float32))
    out = np.empty(x_layer.shape, np.float32)
    with mr.conv_method("im2col"):
        by_im2col = seconds(lambda x=x_layer, w=w_layer: mr.conv2d(x, w, padding=1))
    by_winograd = seconds(
        lambda x=x_layer, w=w_layer, y=out: winograd.convolve(x.data, w.data, 1, y, lambda part: None)
    )
    print(f"{size}x{size}x{channels:<4} im2col {1e3 * by_im2col:5.1f} ms   Winograd {1e3 * by_winograd:5.1f} ms")

# %% [markdown]
# The times depend on the machine. On those where it was measured, the two are equal at about 32 channels, so that is
# where `mr.conv2d` begins to use it, for 3x3 kernels of stride 1.
#
# And the price? The transforms add numbers of different sizes (the entries of `B_T` go up to 5, and the outputs are
# differences of larger products), so a few more bits are lost to rounding. **Predict**: is the error of float32 ten
# times as large, or a hundred times? Does it grow with the number of channels?

# %%
sizes = [16, 32, 64, 128, 256, 512]
error_of = {"im2col": [], "Winograd": []}
for c in sizes:
    x_wide = rng.standard_normal((1, 8, 8, c))
    w_wide = rng.standard_normal((3, 3, c, 16)) / np.sqrt(9 * c)
    exact = im2col(x_wide, 3, 3, 1, 1) @ w_wide.reshape(-1, 16)
    x32, w32 = x_wide.astype(np.float32), w_wide.astype(np.float32)
    y32 = np.empty((1, 8, 8, 16), np.float32)
    winograd.convolve(x32, w32, 1, y32, lambda part: None)
    for name, y in (("im2col", im2col(x32, 3, 3, 1, 1) @ w32.reshape(-1, 16)), ("Winograd", y32.reshape(-1, 16))):
        error_of[name].append(np.abs(y - exact).max() / np.abs(exact).max())
print({name: f"{values[0]:.1e} .. {values[-1]:.1e}" for name, values in error_of.items()})

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(5.5, 3))
for (name, values), style in zip(error_of.items(), ("o-", "s--"), strict=True):
    axis.loglog(sizes, values, style, label=name, base=10)
axis.set_xticks(sizes, [str(c) for c in sizes])
axis.minorticks_off()
axis.set(xlabel="channels", ylabel="largest relative error", ylim=(1e-8, 1e-4))
axis.legend()
plt.show()

# %% [markdown]
# About ten times, and it grows slowly. A training step is noisier than that by far; but a comparison of two libraries
# to the last digit is not possible, and `with mr.conv_method("im2col"):` is there for those who want one.
#
# ## 12. What does a net want to see?
#
# Time to let the gradient choose the kernels. A small net: two convolutions, each followed by ReLU and max pooling, and
# a linear layer. The first kernels are 7x7, large enough to look at.


# %%
def small_net(seed=0):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=True, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 32 -> 16 -> 8
        nn.Conv2d(16, 32, 3, padding=1, bias=True, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 8 -> 4
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10, std=0.01, rng=rng),
    )


def train(net, images, labels, test_images, epochs):
    """Momentum and weight decay; the learning rate goes up and down once. Prints a line for each epoch."""
    loader = Loader(images, labels, 64, normalise=normalise, shuffle=True, drop_last=True)
    schedule = one_cycle(0.05, epochs * len(loader))
    optimiser = mr.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
    for epoch in range(epochs):
        losses = []
        for step, (x, y) in enumerate(loader.epoch(epoch)):
            optimiser.lr = schedule(epoch * len(loader) + step)
            loss = mr.cross_entropy(net(mr.Tensor(x)), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        _, accuracy = mr.evaluate(net, test_images, test_labels, normalise)
        print(f"epoch {epoch + 1:2}: training loss {np.mean(losses):.3f}, test accuracy {accuracy:.1%}", flush=True)
    return accuracy


images, labels = data.train_images[:5000], data.train_labels[:5000]
test_images, test_labels = data.test_images[:1000], data.test_labels[:1000]
net = small_net()
before = net[0].weight.data.copy()
accuracy = train(net, images, labels, test_images, epochs=10)
after = net[0].weight.data

# %%
print(f"{data.name}: {accuracy:.1%} with {sum(p.size for p in net.parameters()):,} parameters")
print(f"the MLP of chapter 3, with 256 hidden units, has {3072 * 256 + 256 + 256 * 10 + 10:,}")

# %% [markdown]
# Compare this with the test accuracy of the MLP of chapter 3, which has more than fifty times as many parameters. (This
# chapter looks at test images after every epoch. That is fine, because nothing is chosen by them.)
#
# And the kernels? Here they are as they began: random numbers.

# %%
plots.filters(before)

# %% [markdown]
# **Predict** what they look like now. Remember the detectors A to D.

# %%
plots.filters(after)

# %% [markdown]
# Nobody taught the net about edges. Most of its filters have become stripes: one colour on one side, another on the
# other, in many directions. (If you have CIFAR-10, set `MINIRES_DATA` and run the chapter again: you will find edges
# there too, and plain patches of colour.) It has found what people used to design, because edges are what distinguishes
# one shape from another.
#
# Here is what they see in one image: every map is bright where the filter found its pattern.

# %%
sample = data.test_images[5:6]
with mr.no_grad():
    feature_maps = mr.relu(net[0](mr.Tensor(normalise(sample)))).data[0]  # (16, 16, 16)

# %% tags=["hide-input"]
figure = plt.figure(figsize=(7.5, 1.7))
grid = figure.add_gridspec(2, 10)
axis = figure.add_subplot(grid[:, :2])
axis.imshow(sample[0])
axis.set_title("the image", fontsize=9)
axis.set_axis_off()
for k in range(16):
    axis = figure.add_subplot(grid[k // 8, 2 + k % 8])
    axis.imshow(feature_maps[..., k], cmap="gray")
    axis.set_axis_off()
plt.show()

# %% [markdown]
# One question is left. An MLP does not mind shuffled pixels. **Predict.** How well will this net do if it is trained
# and tested on shuffled images?

# %%
order = np.random.default_rng(1).permutation(32 * 32)


def shuffle_pixels(images):
    """Every pixel moves to another position, the same one in all images (N, 32, 32, 3)."""
    return images.reshape(len(images), 32 * 32, 3)[:, order].reshape(images.shape)


# %% tags=["hide-input"]
figure, axes = plt.subplots(2, 6, figsize=(7, 2.6))
for shown, row in zip((images[:6], shuffle_pixels(images[:6])), axes, strict=True):
    for image, axis in zip(shown, row, strict=True):
        axis.imshow(image)
        axis.set_axis_off()
plt.show()

# %%
fewer = 5
print("as they are:")
straight = train(small_net(), images, labels, test_images, fewer)
print("shuffled:")
scrambled = train(small_net(), shuffle_pixels(images), labels, shuffle_pixels(test_images), fewer)
print(f"\n{fewer} epochs: {straight:.1%} as they are, {scrambled:.1%} shuffled, 10% by guessing")

# %% [markdown]
# It minds very much. The convolution is not stronger than a linear layer: it is *weaker*, a linear layer with nearly
# all weights zero and the rest shared. Its advantage is that it assumes something about images that is true: neighbours
# belong together, and what is worth finding in one place is worth finding everywhere. Take that truth away, and the
# advantage is gone.
#
# ## Summary
#
# - A convolution slides a kernel: at each position a sum of products, the same weights everywhere. `(N, H, W, C)` and
#   `(KH, KW, C, F)` give `(N, OH, OW, F)`.
# - Positions along an axis: $\lfloor (n + 2p - k) / s \rfloor + 1$.
# - im2col copies each patch into a row; then $Y = P\,W$ is the entire convolution.
# - For the weights $dW = P^\top G$: each use of a weight adds its part.
# - For the input $dP = G\,W^\top$, and col2im adds the copies back: $dx = \text{col2im}(G\,W^\top)$. At stride 1 that
#   is a convolution of $g$ with the kernel rotated by 180 degrees and its channels swapped, padding $K-1-p$.
# - 1x1 convolutions mix channels. Max pooling sends the gradient to the winner, average pooling shares it equally.
# - The speed comes from one large product, made in pieces that fit the cache; and with many channels from Winograd's
#   algorithm, which needs a quarter of the multiplications.
#
# ## Common mistakes
#
# - **`=` for `+=` in col2im.** Right only where patches don't overlap. Section 7 shows the pattern: the corners are
#   right.
# - **Padding forgotten in the backward pass.** The gradient is made for the padded image; crop the border.
# - **Kernel not rotated**, or channels not swapped, in the gradient for the input. With symmetric kernels, or in a test
#   with one channel, nobody notices.
# - **Tests on square images only.** They do not notice `OH` and `OW` swapped, or a reshape in the wrong order. Take 6x5
#   images, 3x2 kernels, N = 2, C and F different.
# - **Rows and weights in different orders.** If patches are `(C, KH, KW)` and weights `(KH, KW, C, F)`, the product has
#   the right shape and wrong numbers.
# - **"Every 3x3 convolution of a ResNet has stride 2."** Only the first of a stage has; the others keep the size.
# - **A pooling window of one**, `avg_pool2d(x, 1)`, which pools nothing. A listing of ResNet-50 that is often copied
#   has it instead of global average pooling.
#
# ## Three questions
#
# <details><summary>1. Two 3x3 convolutions one after another: how many pixels does one output see? Why prefer them to
# one 5x5?</summary>
#
# 5x5: the second layer sees 3x3 outputs of the first, and the outermost of these reach one pixel further. The two have
# $2 \cdot 9\,C^2 = 18\,C^2$ weights where one 5x5 has $25\,C^2$, and there is a ReLU between them.
#
# </details>
#
# <details><summary>2. The gradient for a weight of the first layer is a sum over all positions of all images. Is it
# therefore larger than that of a linear layer, and does that call for a smaller learning rate?</summary>
#
# It has more summands, but they have different signs and partly cancel, and each is smaller: the loss is spread over
# many positions. No general rule follows from the count alone; measure, as in chapter 3's sweep. Chapter 5 looks at the
# sizes of gradients through the depth of a net.
#
# </details>
#
# <details><summary>3. With stride 2 and a 1x1 kernel, which pixels get a gradient?</summary>
#
# One in four: those with even row and even column. The others are under no kernel. Nothing they hold can reach the
# output through this layer, which is why such a layer alone would waste three quarters of the image.
#
# </details>
#
# ## Exercises
#
# Six functions, in `chapters/exercises/ch04_convolution.py`. Open that file, fill in one function, save, and run its
# cell here (or `pytest -m ex4_2`, or `python -m minires check 4.2` in a terminal: it is the same check). For help:
# `hint("4.2")`, then `hint("4.2", 2)`.
#
# <!-- exercises -->
#
# | exercise | what it does | level | lines |
# | --- | --- | --- | --- |
# | 4.1 `output_size` | in how many places a kernel fits | 1 | about 1 |
# | 4.2 `im2col` | every patch as a row | 3 | about 9 |
# | 4.3 `conv_forward` | a convolution as one product | 2 | about 8 |
# | 4.4 `weight_gradients` | backward to the weights and the bias | 2 | about 6 |
# | 4.5 `input_gradient` | backward to the images | 3 | about 10 |
# | 4.6 `winograd_row` | two outputs from four products | 2 | about 10 |
#
# <!-- end -->

# %%
from minires.course.exercises import check, hint

check("4.1")

# %%
check("4.2")

# %%
check("4.3")

# %%
check("4.4")

# %%
check("4.5")

# %%
check("4.6")

# %%
hint("4.1")

# %% [markdown]
# ## Read on
#
# - `minires/conv.py`: `output_size`, `im2col`, `col2im`, `conv2d_simple`, `conv2d` with both gradients, pooling. You
#   know every line of it now, except for the chunks, threads and blocks: those are in `minires/parallel.py`
#   (`over_batch`, `product`). `minires/winograd.py` is section 11.
# - `minires/nn.py`: `Conv2d`, the layer that holds the weights, with the initialisation of chapter 3. Its fan-in is
#   $KH \cdot KW \cdot C$: the length of a row.
# - `benchmarks/README.md`: what made the library's convolution faster, and what did not.
# - Chapter 5 asks what becomes of a signal that goes through fifty such layers.
# - Sources: LeCun et al. 1998, "Gradient-based learning applied to document recognition" (shared weights); Chellapilla
#   et al. 2006, "High performance convolutional neural networks for document processing" (convolution as a matrix
#   product); Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (Winograd's algorithm in
#   convolutions); Lin et al. 2014, "Network in network" (1x1 convolutions, global average pooling); Dumoulin and Visin
#   2016, "A guide to convolution arithmetic for deep learning", for many drawings of strides and padding.
