"""Times minires against its peers and writes the figures with the machine they were taken on.

    python benchmarks/step.py --json benchmarks/bench.json --plot benchmarks/scaling.png     everything, about 15 minutes
    python benchmarks/step.py --table benchmarks/bench.json                              the README's table from it
    python benchmarks/step.py --only import --json benchmarks/bench.json                 one part of it anew

minires and every installed peer take turns in one run (see minires/devices/bench.py). PyTorch: pip install torch==2.13.0;
dezero: pip install dezero (it needs `np.int = int` set before its import to run on NumPy 2, which is done here).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from minires.devices.bench import Job, Worker, in_turn, installed, machine, summary

STAGES = ((32, 16), (16, 32), (8, 64))  # pixels and channels of the three stages of a CIFAR net


def compare(job: Job, peers: list[str], rounds: int, reference: str = "PyTorch") -> dict[str, dict[str, float]]:
    """minires and `peers` in turn at one job; ratios are to `reference`, where it is there."""
    names = installed(["minires", *peers])
    times = dict(zip(names, in_turn([(name, job) for name in names], rounds), strict=True))
    found = {name: summary(t, times.get(reference, times["minires"])) for name, t in times.items()}
    print(
        f"\n{job.task} {job.model if job.task != 'layer' else f'{job.size}x{job.size}x{job.channels}'}, "
        f"batch {job.batch}, threads {job.threads}, {rounds} rounds"
    )
    for name, row in found.items():
        q1, q3 = row["seconds_quartile_1"] * 1e3, row["seconds_quartile_3"] * 1e3
        print(
            f"  {name:24}{row['seconds_median'] * 1e3:8.1f} ms  ({q1:.1f} .. {q3:.1f})"
            f"   ratio to {reference} {row['ratio_median']:.2f} "
            f"({row['ratio_quartile_1']:.2f} .. {row['ratio_quartile_3']:.2f})",
            flush=True,
        )
    return found


def memory(job: Job, peers: list[str]) -> dict[str, float]:
    """Peak bytes of three steps above the import, each in a process of its own."""
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
    """Seconds of a fresh `python -c "import ..."`, in turn, without the start of Python itself."""
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
        line = np.polyfit(*np.transpose(found[name]), 1)
        off = [seconds / np.polyval(line, x) - 1 for x, seconds in found[name]]
        points = [f"{x} {s * 1e3:.0f} ms ({o:+.0%})" for (x, s), o in zip(found[name], off, strict=True)]
        print(f"  {name}: {', '.join(points)} (off a straight line)", flush=True)
    return found


def plot_scaling(found: dict[str, list[list[float]]], path: Path) -> None:
    """Step time over batch size and over depth, with the straight line that fits best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, (name, pairs) in zip(figure.subplots(1, 2), found.items(), strict=True):
        x, seconds = np.transpose(pairs)
        axes.plot(x, np.polyval(np.polyfit(x, seconds, 1), x), color="#0072B2", label="straight line")
        axes.plot(x, seconds, "o", color="#D55E00", label="measured")
        title = "ResNet-20" if name == "batch" else "batch 128"
        axes.set(
            xlabel={"batch": "images a batch", "depth": "layers"}[name],
            ylabel="seconds a training step",
            xlim=(0, None),
            ylim=(0, None),
            title=title,
        )
        axes.legend()
    figure.savefig(path, dpi=150)


def table(results: dict[str, Any]) -> str:
    """The figures of a whole run as the Markdown table of the README: what, how it compares, what was aimed at."""

    def ratio(entry: str, peer: str = "minires", to: str | None = None) -> str:
        row = results[entry]
        if to:
            return f"{row[peer]['seconds_median'] / row[to]['seconds_median']:.2f}"
        q1, median, q3 = (row[peer][f"ratio_{name}"] for name in ("quartile_1", "median", "quartile_3"))
        return f"{median:.2f} ({q1:.2f} .. {q3:.2f})"

    eager, last = "PyTorch", "PyTorch channels_last"
    step, memory = results["step resnet20"], results["peak memory resnet20"]
    threads = results["threads"]
    lines = [
        ("ResNet-20 training step / PyTorch eager, two threads", ratio("step resnet20"), "1.15"),
        ("the same, one thread", ratio("step resnet20, one thread"), "1.15"),
        ("the same / PyTorch channels_last, two threads", ratio("step resnet20", to=last), "1.6"),
        ("the same / PyTorch compiled, two threads", ratio("step resnet20", to="PyTorch compiled"), "-"),
        ("ResNet-20 inference / PyTorch eager, two threads", ratio("inference resnet20"), "1.15"),
        ("the same, one thread", ratio("inference resnet20, one thread"), "1.15"),
        ("ResNet-56 training step / PyTorch eager", ratio("step resnet56"), "1.25"),
        ("bottleneck-164 training step / PyTorch eager", ratio("step bottleneck164"), "1.25"),
        *(
            (
                f"dezero / minires, conv + BN + ReLU layer {size}x{size}x{channels}",
                ratio(f"layer {size}x{size}x{channels}", "dezero", "minires"),
                "8 or more",
            )
            for size, channels in STAGES
        ),
        ("peak memory of the step, MiB", f"{memory['minires'] / 2**20:.0f}", f"PyTorch's {memory[eager] / 2**20:.0f}"),
        ("`import minires` / `import numpy`", f"{results['import']['ratio']:.2f}", "1.5"),
        ("one thread / two threads", f"{threads['one']['ratio_median']:.2f}", "1.6 or more"),
    ]
    rows = [f"| {what} | {got} | {aim} |" for what, got, aim in lines]
    about = results["machine"]
    note = (
        f"{about['processor']}, {about['cores']} cores, Python {about['python']}, NumPy {about['numpy']} "
        f"({about['blas']}), "
        f"PyTorch {about.get('torch', '-')}, dezero {about.get('dezero', '-')}; median of {results['rounds']} "
        f"rounds and quartiles; a step takes minires {step['minires']['seconds_median'] * 1e3:.0f} ms, "
        f"PyTorch {step[eager]['seconds_median'] * 1e3:.0f} ms."
    )
    return "\n".join(["| batch 128 | measured | reach |", "| --- | --- | --- |", *rows, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time minires against its peers.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only", nargs="+", default=["step", "inference", "deep", "layers", "memory", "import", "threads", "scaling"]
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw step time over batch size and depth")
    parser.add_argument("--table", type=Path, help="only print the README's table from this file")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text(encoding="utf-8"))))
        return
    torches = ["PyTorch", "PyTorch channels_last", "PyTorch compiled"]
    threads, rounds = args.threads, args.rounds
    results: dict[str, Any] = {"machine": machine(), "rounds": rounds}
    if args.json and args.json.exists():  # what is not measured anew stays, if it is from this machine
        before = json.loads(args.json.read_text(encoding="utf-8"))
        results = before | results if before["machine"] == results["machine"] else results
    for task in ("step", "inference"):
        if task in args.only:
            results[f"{task} resnet20"] = compare(Job(task, threads=threads), torches, rounds)
            results[f"{task} resnet20, one thread"] = compare(Job(task, threads=1), torches[:2], max(5, rounds // 2))
    if "deep" in args.only:
        for model in ("resnet56", "bottleneck164"):
            results[f"step {model}"] = compare(Job(model=model, threads=threads), torches[:2], max(3, rounds // 3))
    if "layers" in args.only:
        for size, channels in STAGES:
            job = Job("layer", threads=threads, size=size, channels=channels)
            results[f"layer {size}x{size}x{channels}"] = compare(job, [*torches[:2], "dezero"], rounds)
    if "memory" in args.only:
        results["peak memory resnet20"] = memory(Job(threads=threads), torches[:2])
    if "import" in args.only:
        results["import"] = import_time(max(25, rounds))
    if "threads" in args.only:
        one, two = in_turn([("minires", Job(threads=1)), ("minires", Job(threads=2))], rounds)
        results["threads"] = {"one": summary(one, two), "two": summary(two, two)}
        print(f"\none thread is {np.median(np.array(one) / np.array(two)):.2f} times two", flush=True)
    if "scaling" in args.only:
        results["scaling"] = found = scaling(threads, max(3, rounds // 3))
        if args.plot:
            plot_scaling(found, args.plot)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
