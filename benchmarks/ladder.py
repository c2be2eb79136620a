"""One convolution in six steps, from loops to Winograd's algorithm: where the speed of conv2d comes from.

    python benchmarks/ladder.py --json benchmarks/ladder.json --plot benchmarks/ladder.png

A 3x3 convolution of 32 images of 16x16x64 to 64 channels, forward. The loops are timed on a part of one image and
scaled up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minires import Tensor, conv2d, conv_method, set_num_threads
from minires.backend import Array
from minires.conv import conv2d_naive, im2col
from minires.devices.bench import measured_on
from minires.parallel import one_blas_thread

N, SIZE, C, F = 32, 16, 64, 64


def loops(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The definition with a Python loop for every index: x (N, H, W, C), w (3, 3, C, F), padding 1."""
    n, h, width, c = x.shape
    f = w.shape[3]
    y = np.zeros((n, h, width, f), x.dtype)
    for b, i, j, k in np.ndindex(y.shape):
        for di, dj in np.ndindex(3, 3):
            row, column = i + di - 1, j + dj - 1
            if 0 <= row < h and 0 <= column < width:
                for channel in range(c):
                    y[b, i, j, k] += x[b, row, column, channel] * w[di, dj, channel, k]
    return y


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Median time of a run, after one to warm up if there are several."""
    if rounds > 1:
        run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(threads: int) -> dict[str, float]:
    """Milliseconds of each step, all checked to give the same result."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, SIZE, SIZE, C), np.float32)
    w = rng.standard_normal((3, 3, C, F), np.float32) * np.float32(0.1)

    def fast() -> Array:
        return conv2d(Tensor(x), Tensor(w), padding=1).data

    def one_product() -> Array:
        return (im2col(x, 3, 3, 1, 1) @ w.reshape(-1, F)).reshape(N, SIZE, SIZE, F)

    expected = fast()
    for y in (one_product(), conv2d_naive(x, w, None, 1, 1)):
        assert np.abs(y - expected).max() < 1e-4
    assert np.abs(loops(x[:1, :6, :6], w)[:, :5, :5] - expected[:1, :5, :5]).max() < 1e-4

    small = x[:1, :8]  # a 64th of the batch's pixels
    found = {"loops over every index": seconds(lambda: loops(small, w), 1) * x.size / small.size}
    found["NumPy sum per output pixel"] = seconds(lambda: conv2d_naive(x, w, None, 1, 1), 3)
    with one_blas_thread():
        found["im2col, whole batch"] = seconds(one_product, 15)
    with conv_method("im2col"):
        for name, count in (("im2col in chunks", 1), (f"chunks, {threads} threads", threads)):
            set_num_threads(count)
            found[name] = seconds(fast, 30)
    found[f"Winograd, {threads} threads"] = seconds(fast, 30)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(threads)
        image, kernel = (torch.from_numpy(a.copy()) for a in (x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)))
        found[f"PyTorch, {threads} threads"] = seconds(lambda: torch.nn.functional.conv2d(image, kernel, padding=1), 30)
    return {name: value * 1e3 for name, value in found.items()}


def plot(found: dict[str, float], path: Path) -> None:
    """Horizontal bars on a logarithmic scale, labelled with their times."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(found), list(found.values()), color=["#0072B2"] * 6 + ["#E69F00"] * (len(found) - 6))
    axes.bar_label(bars, [f"{ms:,.1f} ms" if ms < 100 else f"{ms:,.0f} ms" for ms in found.values()], padding=4)
    axes.set(
        xscale="log",
        xlim=(min(found.values()) / 3, max(found.values()) * 8),
        xlabel=f"milliseconds: {N} images, {SIZE}x{SIZE}x{C} to {F} channels, 3x3, forward",
    )
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a convolution from naive loops to Winograd's algorithm.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    found = measure(args.threads)
    for name, ms in found.items():
        print(f"{name:28}{ms:12.2f} ms")
    if args.json:
        text = json.dumps({"machine": measured_on(), "milliseconds": found}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
