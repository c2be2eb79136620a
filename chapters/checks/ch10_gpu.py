"""The checks of chapter 10's exercises, and their hints."""

import numpy as np

from minires.backend import device_of, to_device, to_host
from minires.course.compare import Mistake
from minires.course.exercises import Exercise
from minires.devices import strict


def on(device, *arrays):
    return [to_device(a, device) for a in arrays]


def stays(result, made, device):
    """The result on the host, if it is an array of the device and nothing was copied between device and host."""
    if result is None or isinstance(result, bool | int | float | str):
        return result
    if device != "cpu" and made.downloads:
        names = ", ".join(made.downloads)
        raise Mistake(f"it copies an array from the device to the host ({names}); stay on the device")
    if device != "cpu" and made.uploads:
        names = ", ".join(made.uploads)
        raise Mistake(f"it copies an array from the host to the device ({names}); make it there")
    if device_of(result) != device:
        raise Mistake(f"the result is on {device_of(result)}, expected {device}, where the input is")
    return to_host(result)


# ---- 10.1


def smooth_targets_cases():
    labels = np.array([2, 0, 1, 2, 2])
    yield "no smoothing, with NumPy", (labels, 3, 0.0, "cpu")
    yield "smoothing, with NumPy", (labels, 4, 0.1, "cpu")
    yield "one image, with NumPy", (labels[:1], 4, 0.1, "cpu")
    yield "no smoothing, on the device", (labels, 3, 0.0, "strict")
    yield "smoothing, on the device", (labels, 4, 0.1, "strict")
    yield "as many images as classes, on the device", (labels, 5, 0.2, "strict")


def smooth_targets_reference(labels, classes, smoothing, device):
    rows = [[(1 - smoothing) * (k == label) + smoothing / classes for k in range(classes)] for label in labels]
    return np.array(rows, np.float32)


def run_smooth_targets(answer, labels, classes, smoothing, device):
    (there,) = on(device, labels)
    with strict.counting() as made:
        result = answer(there, classes, smoothing)
    labels[...] = to_host(there)  # so that a change of the input is seen
    return stays(result, made, device)


# ---- 10.2


def entropy_cases():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 5)
    holes = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    yield "no zeros, with NumPy", (p, "cpu")
    yield "zeros, with NumPy", (holes, "cpu")
    yield "one row, with NumPy", (p[:1], "cpu")
    yield "float32, with NumPy", (p.astype(np.float32), "cpu")
    yield "no zeros, on the device", (p, "strict")
    yield "zeros, on the device", (holes, "strict")
    yield "float32, on the device", (p.astype(np.float32), "strict")


def entropy_reference(p, device):
    return np.array([sum(-v * np.log(v) for v in row if v > 0) for row in p], p.dtype)


def run_entropy(answer, p, device):
    (there,) = on(device, p)
    with strict.counting() as made:
        result = answer(there)
    p[...] = to_host(there)
    return stays(result, made, device)


# ---- 10.3


def intensity_cases():
    yield "one pixel, one channel, 1x1", (1, 1, 1, 1, 1)
    yield "a 1x1 kernel", (8, 8, 16, 16, 1)
    yield "a 3x3 kernel", (8, 8, 16, 16, 3)
    yield "other channels out than in", (8, 8, 64, 16, 3)
    yield "an image that is not square", (8, 4, 16, 24, 3)
    yield "several images", (8, 4, 16, 24, 3, 32)


def intensity_reference(h, w, c, f, kernel, batch=1):
    """Counted from arrays."""
    x, weight, y = (np.empty(s, np.float32) for s in ((batch, h, w, c), (kernel, kernel, c, f), (batch, h, w, f)))
    return 2 * y.size * weight[..., 0].size / (x.nbytes + weight.nbytes + y.nbytes)


# ---- 10.4


def step_seconds_cases():
    yield "one operation that computes", ([(8e9, 1e6)], 1e12, 1e9, 1e-3)
    yield "one operation that moves", ([(1e6, 8e6)], 1e12, 1e9, 1e-3)
    yield "one of each", ([(8e9, 1e6), (1e6, 3e6)], 1e12, 1e9, 1e-3)
    yield "many small ones", ([(1e3, 1e3)] * 500, 1e12, 1e9, 7e-6)
    yield "small and large", ([(1e3, 1e3)] * 500 + [(9e9, 2e6)], 1e12, 1e9, 7e-6)


def step_seconds_reference(operations, peak, bandwidth, launch):
    compute, move = np.array(operations).T / [[peak], [bandwidth]]
    return float(max(np.maximum(compute, move).sum(), launch * len(operations)))


# ---- 10.5


def epoch_cases():
    rng = np.random.default_rng(0)

    def steps(sizes):
        return [(float(rng.uniform(0.5, 2)), int(rng.integers(n // 2 + 1, n)), n) for n in sizes]

    yield "one step", (steps([10]), "cpu")
    yield "three steps, batches of one size", (steps([10, 10, 10]), "cpu")
    yield "batches of different sizes", (steps([40, 40, 5]), "cpu")
    yield "on the device", (steps([40, 40, 40, 5]), "strict")


def epoch_reference(steps, device):
    losses, right, images = (np.array(part) for part in zip(*steps, strict=True))
    return float((losses * images).sum() / images.sum()), float(right.sum() / images.sum())


def run_epoch(answer, steps, device):
    def arrays():
        for loss, right, images in steps:
            yield (*on(device, np.array(loss), np.array(right)), images)

    with strict.counting() as made:
        result = answer(arrays())
    if made.waits.total() > 2:
        raise Mistake(f"it waits for the device {made.waits.total()} times in {len(steps)} steps; expected 2 at most")
    if isinstance(result, tuple) and any(hasattr(part, "dtype") and device_of(part) != "cpu" for part in result):
        raise Mistake("a figure is still an array of the device; float(x) at the very end makes it a number")
    return result


EXERCISES = [
    Exercise(
        number="10.1",
        name="smooth_targets",
        title="a NumPy function made to run on every array library",
        level=2,
        lines=4,
        hints=(
            "Which lines of smooth_targets_on_the_host create a new array? It is on the host, wherever labels is.",
            "xp = array_module(labels) is numpy or the device's library. It has the same functions by the same names.",
            "    xp = array_module(labels)\n    targets = xp.full(...)\n    targets[xp.arange(...), labels] += ...",
        ),
        cases=smooth_targets_cases,
        reference=smooth_targets_reference,
        run=run_smooth_targets,
        outputs=("the targets",),
    ),
    Exercise(
        number="10.2",
        name="entropy",
        title="another one, with a keyword that CuPy does not have",
        level=2,
        lines=3,
        hints=(
            "Where p is 0 the logarithm is minus infinity, and 0 times that is NaN. Don't repair the result; make sure "
            "that the logarithm never meets a 0.",
            "Replace the zeros by some harmless number before the logarithm. p times its logarithm is 0 there "
            "in any case.",
            "    xp = array_module(p)\n    safe = xp.where(p > 0, p, 1)\n    return -(p * ...).sum(axis=1)",
        ),
        cases=entropy_cases,
        reference=entropy_reference,
        run=run_entropy,
        outputs=("the entropies",),
    ),
    Exercise(
        number="10.3",
        name="intensity",
        title="floating-point operations per byte",
        level=1,
        lines=3,
        hints=(
            "Two counts and a division. Above: multiply-adds, times two, times the images. Below: how many numbers x, "
            "the weight and the output have.",
            "multiply-adds of an image: h * w places, f filters, kernel * kernel * c products each (exercise 9.1).",
            "The weight is moved once for the entire batch; x and the output grow with the batch.",
            "    flop = 2 * batch * h * w * kernel * kernel * c * f\n"
            "    numbers = batch * h * w * c + ... + batch * h * w * f\n"
            "    return flop / (4 * numbers)",
        ),
        cases=intensity_cases,
        reference=intensity_reference,
        outputs=("the intensity",),
    ),
    Exercise(
        number="10.4",
        name="step_seconds",
        title="the least time that a list of operations takes",
        level=2,
        lines=3,
        hints=(
            "What happens at the same time? There the longer one counts: max. What happens in turn? There the sum.",
            "In one operation: max(flop / peak, bytes / bandwidth). Over the operations: sum. Host and device: max.",
            "    device = sum(max(...) for flop, moved in operations)\n    host = launch * len(operations)\n"
            "    return max(...)",
        ),
        cases=step_seconds_cases,
        reference=step_seconds_reference,
        outputs=("the seconds",),
    ),
    Exercise(
        number="10.5",
        name="epoch_figures",
        title="reading losses without waiting at each step",
        level=2,
        lines=6,
        hints=(
            "Adding two arrays of the device makes an array of the device; nothing waits. Only float(), int(), item(), "
            "bool() and the like need the number itself.",
            "Keep three sums: of loss times images, of right answers, of images. The first two stay on the device "
            "until the loop is over.",
            "    for step_loss, step_right, n in steps:\n        loss = loss + step_loss * n\n        ...\n"
            "    return float(loss) / images, ...",
        ),
        cases=epoch_cases,
        reference=epoch_reference,
        run=run_epoch,
        outputs=("the mean loss", "the accuracy"),
    ),
]
