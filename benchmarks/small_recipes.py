"""Chapter 8's small experiment over five seeds: what taking one ingredient away does, and how much of it is chance.

    python benchmarks/small_recipes.py --json benchmarks/small_recipes.json

The net and its training are the chapter's own code, always on Shapes-10: 1,000 training images, 1,000 test images.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

import minires as mr
from minires import nn
from minires.data import Loader, Normalise
from minires.devices.machine import environment
from minires.optim import one_cycle

CHAPTER = Path(__file__).parents[1] / "chapters" / "src" / "08_a_resnet_on_cifar10.py"
NEEDED = ("Shift", "small_net", "train")
IMAGES = 1000
SEEDS = range(5)
RECIPES: dict[str, dict[str, Any]] = {
    "the full recipe": {},
    "no augmentation": {"augment": False},
    "no weight decay": {"weight_decay": 0},
    "no schedule": {"cycle": False},
    "no shortcuts": {"model": "plain8"},
}


def chapter_functions() -> dict[str, Any]:
    """The chapter's definitions of `NEEDED`, with the names that its other cells would have defined for them."""
    data = mr.open_data("shapes10")
    images = data.train_images[:IMAGES]
    names = {
        "mr": mr,
        "nn": nn,
        "np": np,
        "Loader": Loader,
        "one_cycle": one_cycle,
        "images": images,
        "labels": data.train_labels[:IMAGES],
        "test_images": data.test_images[:IMAGES],
        "test_labels": data.test_labels[:IMAGES],
        "normalise": Normalise.channels(images),
    }
    tree = ast.parse(CHAPTER.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", None) in NEEDED]
    exec(compile(tree, str(CHAPTER), "exec"), names)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description="Train chapter 8's small net over five seeds, five recipes each.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    machine = environment()  # before training, so that its revision is that of the code that ran
    train = chapter_functions()["train"]
    found = {}
    for name, options in RECIPES.items():
        errors = [round(float(train(seed=seed, **options)[1][-1]["test"]), 1) for seed in SEEDS]
        found[name] = {"test_errors": errors, "mean": round(mean(errors), 2), "stdev": round(stdev(errors), 2)}
        print(f"{name:16} {mean(errors):5.1f} ± {stdev(errors):.1f} %   {errors}", flush=True)
    if args.json:
        record = {"data": "shapes10", "seeds": list(SEEDS), "recipes": found, "machine": machine}
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
