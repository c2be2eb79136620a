"""The checks of chapter 8's exercises, and their hints."""

import numpy as np

from minires import functional, optim
from minires.course.compare import Mistake
from minires.course.exercises import Exercise
from minires.data import Normalise
from minires.data.augment import augment
from minires.tensor import Tensor

# ---- 8.1


def rate_cases():
    yield "the first step", (0, 64_000)
    yield "the last step before the rate falls", (31_999, 64_000)
    yield "the step where it falls", (32_000, 64_000)
    yield "the last step before it falls again", (47_999, 64_000)
    yield "the step where it falls again", (48_000, 64_000)
    yield "the last step", (63_999, 64_000)
    yield "another lr, between the falls", (700, 1000, 0.3)
    yield "an odd total", (4, 9)
    yield "an odd total, the last step before it falls again", (7, 11)
    yield "an odd total, the step where it falls again", (8, 11)
    yield "the last step of a warm-up", (399, 64_000, 0.1, 400)
    yield "another lr, in a warm-up", (3, 1000, 0.3, 10)
    yield "the first step after a warm-up", (400, 64_000, 0.1, 400)
    yield "a fall after a warm-up", (32_000, 64_000, 0.1, 400)
    yield "just before a fall, after a warm-up", (47_999, 64_000, 0.1, 400)


def rate_reference(step, total, lr=0.1, warmup=0):
    plan = optim.multistep(lr, (total // 2, 3 * total // 4))
    return optim.warmup(plan, warmup, lr / 10)(step)


def run_rate(answer, step, total, lr=0.1, warmup=0):
    """Name the rate that was returned, and the expected one."""
    got, wanted = answer(step, total, lr, warmup), rate_reference(step, total, lr, warmup)
    for rate in (lr, lr / 10, lr / 100):
        if isinstance(got, float) and np.isclose(got, rate) and not np.isclose(got, wanted):
            raise Mistake(f"at step {step} of {total} the rate is {rate:g}, expected {wanted:g}")
    return got


# ---- 8.2


def crop_cases():
    def case(shape, top, left, flip, dtype=np.float64):
        x = np.random.default_rng([2, *shape]).standard_normal(shape).astype(dtype)
        return x, np.array(top), np.array(left), np.array(flip, bool)

    yield "top and left 4, no flip", case((1, 6, 6, 1), [4], [4], [0])
    yield "another top", case((1, 6, 6, 1), [6], [4], [0])
    yield "another left", case((1, 6, 6, 1), [4], [1], [0])
    yield "a flip", case((1, 6, 6, 1), [4], [4], [1])
    yield "a flip, another left", case((1, 6, 6, 1), [4], [7], [1])
    yield "several images, each with its own offsets", case((3, 6, 6, 1), [0, 8, 3], [5, 2, 8], [0, 0, 0])
    yield "several images, some flipped", case((4, 6, 6, 1), [4, 1, 8, 3], [5, 2, 4, 0], [1, 0, 1, 0])
    yield "three channels, not square", case((3, 5, 8, 3), [0, 5, 7], [8, 3, 1], [1, 1, 0])
    yield "float32", case((2, 6, 7, 3), [2, 5], [6, 3], [0, 1], np.float32)


class Drawn:
    """Replaces a random generator, and draws given numbers."""

    def __init__(self, top, left, flip):
        self.top, self.left, self.flip = top, left, flip

    def integers(self, low, high, size):
        return np.stack([self.top, self.left])

    def random(self, n):
        return np.where(self.flip, 0.0, 1.0)


def crop_reference(x, top, left, flip):
    return augment(x, Drawn(top, left, flip))


def run_crop(answer, x, top, left, flip):
    """Name the two most common mistakes."""
    before, wanted = x.copy(), crop_reference(x, top, left, flip)
    got = answer(x, top, left, flip)
    mirrored = np.where(flip, 8 - left, left)
    for what, offsets in (
        ("the padded image was mirrored, and only then cut at `left`: cut first", (top, mirrored)),
        ("top and left are swapped: top counts rows, left counts columns", (left, top)),
    ):
        wrong = crop_reference(before, *offsets, flip)
        if np.shape(got) == wrong.shape and np.array_equal(got, wrong) and not np.array_equal(wrong, wanted):
            raise Mistake(what)
    return got


# ---- 8.3


def normalise_cases():
    rng = np.random.default_rng(3)

    def images(n, h, w, *channels):
        """uint8, each channel with a (low, high) of its own."""
        return np.stack([rng.integers(low, high, (n, h, w)) for low, high in channels], axis=-1).astype(np.uint8)

    train = images(6, 4, 4, (0, 256))
    yield "the training images themselves, one channel", (train, train)
    yield "other images, brighter ones", (images(4, 4, 4, (128, 256)), train)
    train = images(5, 4, 4, (0, 256), (0, 60), (190, 250))
    yield "three channels", (train, train)
    yield "three channels, other images", (images(3, 4, 4, (0, 256), (60, 200), (0, 100)), train)
    train = images(5, 3, 6, (0, 256), (0, 60), (190, 250))
    yield "one image, not square", (images(1, 3, 6, (0, 256), (60, 200), (0, 100)), train)
    train = images(2, 2, 2, (0, 256), (0, 60), (190, 250))
    yield "few training images", (images(2, 2, 2, (0, 256), (60, 200), (0, 100)), train)
    train = images(3, 3, 3, (0, 256), (77, 78), (190, 250))
    yield "a channel that is the same everywhere", (images(2, 3, 3, (0, 256), (70, 80), (190, 250)), train)
    train = images(3, 3, 3, (0, 256), (77, 79), (190, 250))
    yield "a channel that is nearly the same everywhere", (images(2, 3, 3, (0, 256), (70, 80), (190, 250)), train)


def run_normalise(answer, images, train_images):
    """Name the mistake that matters most."""
    got = answer(images, train_images)
    if not np.array_equal(images, train_images) and np.shape(got) == images.shape:
        both = np.concatenate([images, train_images])
        for what, source in (("the images themselves", images), ("both together", both)):
            if np.allclose(got, Normalise.channels(source)(images), rtol=1e-4, atol=1e-5):
                raise Mistake(f"mean and std were measured on {what}, not on the training images alone")
    return got


def normalise_reference(images, train_images):
    return Normalise.channels(train_images)(images)


# ---- 8.4


def batches_cases():
    rng = np.random.default_rng(4)

    def case(sizes, classes, dtype=np.float64):
        """Each batch is harder than the one before it, so that batch means differ."""
        logits, labels = [], []
        for k, n in enumerate(sizes):
            y = rng.integers(0, classes, n)
            z = rng.standard_normal((n, classes))
            z[np.arange(n), y] += 3 - 2 * k
            logits.append(z.astype(dtype))
            labels.append(y)
        return logits, labels

    yield "one batch", case([7], 4)
    yield "batches of equal size", case([6, 6], 4)
    yield "a smaller last batch", case([8, 8, 3], 4)
    yield "batches of one image", case([1, 1, 5], 3)
    yield "as many images as classes", case([4, 4, 2], 4)
    yield "float32", case([5, 9], 10, np.float32)


def batches_reference(logits, labels):
    z, y = np.concatenate(logits), np.concatenate(labels)
    return functional.cross_entropy(Tensor(z), y).item(), float(np.mean(z.argmax(-1) == y))


def run_batches(answer, logits, labels):
    """Name the most common mistake, part by part."""
    got = answer(logits, labels)
    each = [batches_reference([z], [y]) for z, y in zip(logits, labels, strict=True)]
    wanted = batches_reference(logits, labels)
    if isinstance(got, tuple) and len(got) == 2:
        for name, g, mean, right in zip(("loss", "accuracy"), got, np.mean(each, axis=0), wanted, strict=True):
            if np.isclose(g, mean) and not np.isclose(mean, right):
                raise Mistake(f"the {name} is the mean of the batches' means, where a small batch counts too much")
    return got


# ---- 8.5


def confusion_cases():
    rng = np.random.default_rng(5)
    yield "every answer right, once", (np.array([0, 1, 2]), np.array([0, 1, 2]), 3)
    yield "two classes mixed up", (np.array([0, 1, 2]), np.array([0, 2, 2]), 3)
    yield "the same mistake twice", (np.array([1, 0, 1, 2]), np.array([2, 0, 2, 2]), 3)
    yield "many images", (rng.integers(0, 5, 200), rng.integers(0, 5, 200), 5)
    yield "a class that never occurs", (np.array([0, 1, 1, 0]), np.array([1, 1, 0, 0]), 4)
    yield "one image", (np.array([2]), np.array([1]), 10)


def confusion_reference(labels, guesses, classes):
    return np.array([[np.sum((labels == i) & (guesses == j)) for j in range(classes)] for i in range(classes)])


def run_confusion(answer, labels, guesses, classes):
    """Name the mistakes that no general pattern fits."""
    got, wanted = answer(labels, guesses, classes), confusion_reference(labels, guesses, classes)
    right = np.diag(np.diag(wanted))
    for what, wrong in (
        ("a cell that is indexed more than once was counted only once", np.minimum(wanted, 1)),
        ("only the right answers are counted: the mistakes off the diagonal are missing", right),
        ("only the mistakes are counted: the right answers on the diagonal are missing", wanted - right),
    ):
        if np.shape(got) == wrong.shape and np.array_equal(got, wrong) and not np.array_equal(wrong, wanted):
            raise Mistake(what)
    return got


EXERCISES = [
    Exercise(
        number="8.1",
        name="learning_rate",
        title="the paper's schedule, with warm-up",
        level=1,
        lines=7,
        hints=(
            "A staircase with three steps, and in front of it a small one for the warm-up. Ask the questions in the "
            "order of the steps.",
            "`step < total // 2` is the last question to which the answer is lr: step total // 2 itself has the lower "
            "rate already. Write // for whole numbers: with total = 9 the rate falls at step 4.",
            "    if step < warmup:\n        return lr / 10\n    if step < total // 2:\n        return lr\n"
            "    if step < ...:\n        return lr / 10\n    return lr / 100",
        ),
        cases=rate_cases,
        reference=rate_reference,
        run=run_rate,
        outputs=("the rate",),
    ),
    Exercise(
        number="8.2",
        name="crop_and_flip",
        title="augmentation: shifted crops and mirror images",
        level=3,
        lines=7,
        hints=(
            "Three things in turn: a larger array of zeros with the images in its middle; a window of the old size, "
            "at a different place for each image; some windows mirrored.",
            "A loop over the images is fine to begin with: padded[n, top[n] : top[n] + h, left[n] : left[n] + w]. "
            "Mirroring is [:, ::-1] of one image (H, W, C): rows stay, columns are reversed. Flip the crop, not the "
            "padded image: that would move the window.",
            "    padded = np.zeros((n, h + 8, w + 8, c), x.dtype)\n    padded[:, 4:-4, 4:-4] = x\n"
            "    out = np.empty_like(x)\n    for i in range(n):\n"
            "        crop = padded[i, top[i] : top[i] + h, ...]\n"
            "        out[i] = crop[:, ::-1] if flip[i] else crop\n\n"
            "Without a loop: rows = top[:, None] + np.arange(h) holds the rows of every crop, (N, H); columns the "
            "same; padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]] takes them all.",
        ),
        cases=crop_cases,
        reference=crop_reference,
        run=run_crop,
    ),
    Exercise(
        number="8.3",
        name="normalise",
        title="by the training images' mean and standard deviation",
        level=1,
        lines=3,
        hints=(
            "The two arrays have different jobs: one is measured, the other is normalised.",
            "A channel's statistics run over images, rows and columns: axis=(0, 1, 2). They have shape (C,), and that "
            "broadcasts over the last axis of the images by itself.",
            "    mean = train_images.mean(axis=(0, 1, 2))\n    std = ...\n"
            "    return ((images - mean) / np.maximum(std, 1)).astype(np.float32)\n\n"
            "np.mean of uint8 counts in float64, so nothing overflows; images - mean is float64 too, because mean is.",
        ),
        cases=normalise_cases,
        reference=normalise_reference,
        run=run_normalise,
        outputs=("the normalised images",),
    ),
    Exercise(
        number="8.4",
        name="loss_and_accuracy",
        title="means over batches of unequal size",
        level=2,
        lines=6,
        hints=(
            "A batch of 3 images must not count as much as a batch of 8. Add up over images, and divide once, at the "
            "end.",
            "The loss of a batch is already a mean: times len(labels) makes it a sum again. The right answers are a "
            "count: (logits.argmax(axis=-1) == labels).sum().",
            "    loss, right, images = 0.0, 0, 0\n    for z, y in zip(logits, labels, strict=True):\n"
            "        loss += mr.cross_entropy(mr.Tensor(z), y).item() * len(y)\n        right += ...\n"
            "        images += len(y)\n    return loss / images, right / images",
        ),
        cases=batches_cases,
        reference=batches_reference,
        run=run_batches,
        outputs=("the loss", "the accuracy"),
        rtol=1e-5,
    ),
    Exercise(
        number="8.5",
        name="confusion_matrix",
        title="which class is mistaken for which",
        level=2,
        lines=3,
        hints=(
            "A table of zeros; every image adds 1 to one cell. The row is the true class, the column is the "
            "net's answer.",
            "matrix[labels, guesses] += 1 looks right and is not: where the same cell is indexed twice, NumPy adds "
            "only once. np.add.at adds each time; np.bincount counts how often each whole number occurs.",
            "    matrix = np.zeros((classes, classes), int)\n    np.add.at(matrix, (labels, guesses), 1)\n\n"
            "or, with one number for each pair:\n\n"
            "    np.bincount(labels * classes + guesses, minlength=...).reshape(classes, classes)",
        ),
        cases=confusion_cases,
        reference=confusion_reference,
        run=run_confusion,
        outputs=("the matrix",),
    ),
]
