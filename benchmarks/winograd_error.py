"""The error of float32 convolutions, by im2col and by Winograd's algorithm, against float64.

    python benchmarks/winograd_error.py --json benchmarks/winograd_error.json

A layer on 4 random maps of 14x14 pixels, weights as He et al. draw them, a random upstream gradient; the largest error
of y, dx and dw, relative to the largest number in each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import minires as mr
from minires.conv import conv2d_simple
from minires.devices.bench import measured_on

CHANNELS = (16, 32, 64, 128, 256, 512)


def results(convolve, x: np.ndarray, w: np.ndarray, grad: np.ndarray) -> dict[str, np.ndarray]:
    """y, dx and dw."""
    images, weights = mr.Tensor(x, requires_grad=True), mr.Tensor(w, requires_grad=True)
    y = convolve(images, weights, padding=1)
    y.backward(grad)
    return {"y": y.data, "dx": images.grad, "dw": weights.grad}


def errors(channels: int) -> dict[str, dict[str, float]]:
    """{"im2col": {"y": 1e-7, ...}, "winograd": ...} for as many filters as channels."""
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((4, 14, 14, channels), np.float32)
    w = rng.standard_normal((3, 3, channels, channels), np.float32) * np.float32(np.sqrt(2 / 9 / channels))
    grad = rng.standard_normal(x.shape, np.float32)
    exact = results(conv2d_simple, *(a.astype(np.float64) for a in (x, w, grad)))
    found = {}
    with mr.conv_method("im2col"):
        found["im2col"] = results(mr.conv2d, x, w, grad)
    found["winograd"] = results(mr.conv2d, x, w, grad)
    return {
        method: {name: float(np.abs(a - exact[name]).max() / np.abs(exact[name]).max()) for name, a in arrays.items()}
        for method, arrays in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The error of float32 convolutions.")
    parser.add_argument("--json", type=Path, help="write the errors into this file")
    args = parser.parse_args()
    mr.conv.WINOGRAD_CHANNELS = 1  # for the narrow maps too
    found = {str(channels): errors(channels) for channels in CHANNELS}
    print("| channels | im2col: y, dx, dw | Winograd: y, dx, dw |\n| ---: | --- | --- |")
    for channels, methods in found.items():
        cells = [", ".join(f"{value:.1e}" for value in parts.values()) for parts in methods.values()]
        print(f"| {channels} | {' | '.join(cells)} |")
    if args.json:
        text = json.dumps({"machine": measured_on(), "errors": found}, indent=1) + "\n"
        args.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
