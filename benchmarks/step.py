"""Times minires against its peers, and records the times with the machine they were measured on.

    python benchmarks/step.py --json benchmarks/bench.json --plot benchmarks/scaling.png     everything, 15 minutes
    python benchmarks/step.py --json benchmarks/bench.json --only import                     only this part again
    python benchmarks/step.py --before ed574ea                     with minires at an earlier revision as a contestant

minires and all installed peers take turns in one run (see minires/devices/bench.py).
PyTorch: pip install torch==2.13.0; dezero: pip install dezero; ONNX Runtime: pip install onnx onnxscript onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minires.devices.bench import Job, Worker, in_turn, installed, measured_on, quartiles

STAGES = ((32, 16), (16, 32), (8, 64))  # pixels and channels of the three stages of a CIFAR net


def time_job(job: Job, peers: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """minires and `peers` in turn; ratios are to PyTorch if it is installed, else to minires."""
    names = installed(["minires", *peers])
    times = dict(zip(names, in_turn([(name, job) for name in names], rounds), strict=True))
    reference = "PyTorch" if "PyTorch" in times else "minires"
    found = {name: quartiles(t, times[reference]) for name, t in times.items()}
    what = f"{job.size}x{job.size}x{job.channels}" if job.task == "layer" else f"{job.model}, width {job.channels}"
    print(f"\n{job.task} {what}, batch {job.batch}, threads {job.threads}, {rounds} rounds")
    for name, row in found.items():
        q1, q3 = row["seconds_quartile_1"] * 1e3, row["seconds_quartile_3"] * 1e3
        print(
            f"  {name:24}{row['seconds_median'] * 1e3:8.1f} ms  ({q1:.1f} .. {q3:.1f})"
            f"   ratio to {reference} {row['ratio_median']:.2f} "
            f"({row['ratio_quartile_1']:.2f} .. {row['ratio_quartile_3']:.2f})",
            flush=True,
        )
    return found


@contextmanager
def checkout_of(revision: str | None) -> Iterator[str]:
    """A folder with the repository as it was at `revision`, "" for none."""
    if revision is None:
        yield ""
        return
    with TemporaryDirectory() as folder:
        git = ["git", "-C", str(Path(__file__).parent), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", folder, revision], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


def memory(job: Job, peers: list[str]) -> dict[str, float]:
    """Peak bytes of three steps beyond those after the import, each in its own process."""
    found = {}
    for name in installed(["minires", *peers]):
        worker = Worker(name, job)
        for _ in range(3):
            worker.run()
        found[name] = worker.peak_memory()
        worker.close()
        print(f"  peak memory {name:24}{found[name] / 2**20:8.0f} MiB", flush=True)
    return found


def import_time(rounds: int) -> dict[str, float]:
    """Seconds of `python -c "import ..."` in a new process, in turn, without the start of Python itself."""
    times: dict[str, list[float]] = {"pass": [], "import numpy": [], "import minires": []}
    for _ in range(rounds):
        for code, seconds in times.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(time.perf_counter() - start)
    start_up = np.array(times.pop("pass"))
    found = {code: float(np.median(np.array(seconds) - start_up)) for code, seconds in times.items()}
    found["ratio"] = found["import minires"] / found["import numpy"]
    print("\n" + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    return found


def scaling(threads: int, rounds: int) -> dict[str, list[list[float]]]:
    """Median seconds of a step as the batch grows and as the depth grows: [x, seconds] pairs."""
    series = {
        "batch": [(b, Job(batch=b, threads=threads)) for b in (32, 64, 128, 256, 512)],
        "depth": [(d, Job(model=f"resnet{d}", threads=threads)) for d in (20, 32, 44, 56, 110)],
    }
    found = {}
    for name, jobs in series.items():
        times = in_turn([("minires", job) for _, job in jobs], rounds)
        found[name] = [[x, float(np.median(t))] for (x, _), t in zip(jobs, times, strict=True)]
        x, seconds = np.transpose(found[name])
        deviation = seconds / np.polyval(np.polyfit(x, seconds, 1), x) - 1
        points = [f"{x:.0f} {s * 1e3:.0f} ms ({d:+.0%})" for x, s, d in zip(x, seconds, deviation, strict=True)]
        print(f"  {name}: {', '.join(points)} (deviation from a straight line)", flush=True)
    return found


def plot_scaling(found: dict[str, list[list[float]]], path: Path) -> None:
    """Step time over batch size and over depth, with the best straight line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, (name, pairs) in zip(figure.subplots(1, 2), found.items(), strict=True):
        x, seconds = np.transpose(pairs)
        axes.plot(x, np.polyval(np.polyfit(x, seconds, 1), x), color="#0072B2", label="straight line")
        axes.plot(x, seconds, "o", color="#D55E00", label="measured")
        title = "ResNet-20" if name == "batch" else "batch 128"
        axes.set(
            xlabel={"batch": "images per batch", "depth": "layers"}[name],
            ylabel="seconds per training step",
            xlim=(0, None),
            ylim=(0, None),
            title=title,
        )
        axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time minires against its peers.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only",
        nargs="+",
        default=["step", "inference", "large", "wide", "deep", "layers", "memory", "import", "threads", "scaling"],
    )
    parser.add_argument("--before", metavar="REVISION", help="minires at this revision takes part")
    parser.add_argument("--json", type=Path, help="write the times into this file")
    parser.add_argument("--plot", type=Path, help="draw step time over batch size and depth")
    args = parser.parse_args()
    with checkout_of(args.before) as checkout:
        measure(args, checkout)


def measure(args: argparse.Namespace, checkout: str) -> None:
    before = ["minires before"] if checkout else []
    torches = ["PyTorch", "PyTorch channels_last", "PyTorch compiled", *before]
    folded = ["PyTorch", "PyTorch folded", "ONNX Runtime", *before]
    threads, rounds = args.threads, args.rounds
    results: dict[str, Any] = {"machine": measured_on(), "rounds": rounds}
    if args.json and args.json.exists():  # keep what is not measured again, if it is from this machine
        before = json.loads(args.json.read_text(encoding="utf-8"))
        results = before | results if before["machine"] == results["machine"] else results
    for task, peers in (("step", torches), ("inference", folded)):
        jobs = {
            task: Job(task, checkout=checkout),
            "wide": Job(task, "resnet20", 64, channels=64, checkout=checkout),
            "large": Job(task, {"step": "resnet18"}.get(task, "resnet34"), 8, 1, 224, 64, checkout),
        }
        for part, job in jobs.items():
            if part in args.only:
                name = {"wide": " of width 64", "large": " at 224x224"}.get(part, "")
                others = [peer for peer in peers if part == task or peer not in torches[1:3]]
                results[f"{task} {job.model}{name}"] = time_job(replace(job, threads=threads), others, rounds)
                others = [peer for peer in others if "compiled" not in peer]
                results[f"{task} {job.model}{name}, one thread"] = time_job(job, others, max(5, rounds // 2))
    if "deep" in args.only:
        for model in ("resnet56", "bottleneck164"):
            results[f"step {model}"] = time_job(Job(model=model, threads=threads), torches[:2], max(3, rounds // 3))
    if "layers" in args.only:
        for size, channels in STAGES:
            job = Job("layer", threads=threads, size=size, channels=channels)
            results[f"layer {size}x{size}x{channels}"] = time_job(job, [*torches[:2], "dezero"], rounds)
    if "memory" in args.only:
        results["peak memory resnet20"] = memory(Job(threads=threads), torches[:2])
    if "import" in args.only:
        results["import"] = import_time(max(25, rounds))
    if "threads" in args.only:
        one, two = in_turn([("minires", Job(threads=1)), ("minires", Job(threads=2))], rounds)
        results["threads"] = {"one": quartiles(one, two), "two": quartiles(two, two)}
        print(f"\none thread is {np.median(np.array(one) / np.array(two)):.2f} times two", flush=True)
    if "scaling" in args.only:
        results["scaling"] = found = scaling(threads, max(3, rounds // 3))
        if args.plot:
            plot_scaling(found, args.plot)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
