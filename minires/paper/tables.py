"""The results of the experiments as tables and figures, made from recorded files and nothing else.

A page, results/README.md or benchmarks/README.md, has its tables between two marks,

    <!-- table: NAME --> ... <!-- end -->

and `rebuild` rewrites what is between them. The text around them is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from minires.files import write_atomically
from minires.paper.experiments import EXPERIMENTS, read_json
from minires.paper.figures import FIGURES, WINDOW, draw
from minires.paper.records import MOMENTS, PARTS, Record, by_option, pairs, records

PAPER = {
    "resnet20": 8.75,
    "resnet32": 7.51,
    "resnet44": 7.17,
    "resnet56": 6.97,
    "resnet110": 6.43,
    "resnet1202": 7.93,
}  # test error in percent (Table 6)


# ---- tables: each makes Markdown from the results folder, "" if nothing is recorded yet


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A table of rows {column title: cell}, numeric columns right-aligned; "" if there are no rows."""
    if not rows:
        return ""
    lines = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    numeric = [
        all(re.fullmatch(r"([-+±\d.,/> ]|of|e-)+", cell) for cell in column[1:]) for column in zip(*lines, strict=True)
    ]
    lines.insert(1, ["---:" if right else "---" for right in numeric])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def minutes(row: Mapping[str, float], clock: str) -> str:
    """A row's "seconds" or "cpu_seconds" in minutes; "-" if they were not recorded."""
    return f"{row[clock] / 60:.0f}" if clock in row else "-"


def final_errors(r: Record) -> dict[str, str]:
    """Columns for the training and the test error after the last epoch."""
    return {f"{title} error %": f"{r.error(part):.2f}" for title, part in PARTS.items()}


def table_of_runs(results: Path, experiments: Iterable[str] = tuple(EXPERIMENTS)) -> str:
    """One row for each run that trains for entire epochs and has finished at least one of them."""
    runs = {f"{name}/{run}": r for name in experiments for run, r in records(results, name).items()}
    return markdown(
        [
            {
                "run": name,
                "net": r.config["model"],
                "parameters": f"{r.cost()[0]:,}",
                "epochs": r.epochs(),
                "minutes": minutes(r.rows[-1], "seconds"),
                "CPU minutes": minutes(r.rows[-1], "cpu_seconds"),
                **final_errors(r),
                "paper's test error %": PAPER.get(r.config["model"], "-"),
                "difference from the paper": r.difference_from_paper(),
            }
            for name, r in runs.items()
            if r.rows and "test_acc" in r.rows[-1] and not r.steps
        ]
    )


def depths(results: Path, experiment: str) -> str:
    """The errors of plain and residual nets, shallow and deep, and the effect of depth."""
    rows = []
    for family, pair in pairs(results, experiment).items():
        for title, part in PARTS.items():
            shallow, deep = (r.error(part) for r in pair)
            rows.append(
                {
                    "": f"{family}, {title} error %",
                    "20 layers": f"{shallow:.2f}",
                    "56 layers": f"{deep:.2f}",
                    "difference": f"{deep - shallow:+.2f}",
                    "epochs": " / ".join(r.epochs() for r in pair),
                }
            )
    return markdown(rows)


def gradients(results: Path) -> str:
    """The smallest and the largest norm of dL/dw and of w over the layers of a net."""
    rows = []
    for run, r in records(results, "degradation").items():
        if len(r.layers) > 1:
            row = {"net": run}
            for title, key in (("dL/dw", "gradient"), ("w", "weight")):
                for moment, i in MOMENTS.items():
                    norms = r.layers[i][key].values()
                    row[f"norms of {title}, {moment}"] = f"{min(norms):.2g} .. {max(norms):.2g}"
            rows.append(row)
    return markdown(rows)


def responses(results: Path) -> str:
    """The mean response of all layers, and of the last layer of each block."""
    rows = []
    for run, r in records(results, "degradation").items():
        response = r.layers[-1]["response"]
        second = [value for name, value in response.items() if name.endswith("conv2")]
        rows.append(
            {
                "net": run,
                "mean response": f"{mean(response.values()):.3f}",
                "of the blocks' second layers": f"{mean(second):.3f}",
                "epochs": r.epochs(),
            }
        )
    return markdown(rows)


def construction(results: Path) -> str:
    """The deepened net, the shallow net trained further, and the deep net from scratch."""
    runs = [(r, "the trained plain20", f"{r.initial_error():.2f}") for r in records(results, "construction").values()]
    scratch = records(results, "degradation").get("plain56")
    if runs and scratch:
        runs.append((scratch, "scratch", "-"))
    return markdown(
        [
            {
                "net": r.config["model"],
                "starts from": source,
                "highest rate": r.config["lr"],
                "test error % at the start": start,
                "training error % at the end": f"{r.error('train'):.2f}",
                "test error % at the end": f"{r.error('test'):.2f}",
                "epochs": r.epochs(),
            }
            for r, source, start in runs
        ]
    )


def zero_residual(results: Path) -> str:
    """The errors of the blocks as they learn the identity."""
    rows = []
    for run, r in records(results, "zero-residual").items():
        errors = {row["step"]: f"{row['train_loss']:.4f}" for row in r.rows}
        rows.append(
            {
                "blocks": f"{r.config['blocks']} {run} blocks",
                **{f"error at step {step}": errors.get(step, "-") for step in (1, 10, 100, 500)},
            }
        )
    return markdown(rows)


def shortcuts(results: Path) -> str:
    """Mean and standard deviation over the seeds, for each option."""
    return markdown(
        [
            {
                "shortcut": option,
                "parameters": f"{runs[0].cost()[0]:,}",
                **{
                    f"{title} error %": mean_and_deviation([r.error(part) for r in runs])
                    for title, part in PARTS.items()
                },
                "seeds": len(runs),
            }
            for option, runs in by_option(results).items()
        ]
    )


def mean_and_deviation(values: Sequence[float]) -> str:
    """1.50 ± 0.71, or 1.50 for a single value."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def bottleneck(results: Path) -> str:
    """Accuracy and cost, next to those of a basic net of the same cost and the same training."""
    runs = [*records(results, "bottleneck").values(), *by_option(results).get("A", [])[:1]]
    if len(runs) < 2:
        return ""
    return markdown(
        [
            {
                "net": r.config["model"],
                "parameters": f"{r.cost()[0]:,}",
                "multiply-adds": f"{r.cost()[1]:,}",
                "minutes": minutes(r.rows[-1], "seconds"),
                "CPU minutes": minutes(r.rows[-1], "cpu_seconds"),
                **final_errors(r),
                "epochs": r.epochs(),
            }
            for r in runs
        ]
    )


def very_deep(results: Path) -> str:
    """Time and memory; loss and accuracy at the start, at the end of the first rate, and at the end."""
    rows = []
    for run, r in records(results, "very-deep").items():
        s = r.steps
        at_first_rate = [row for row in s if row["lr"] == s[0]["lr"]]
        seconds = [b["seconds"] - a["seconds"] for a, b in zip(s, s[1:], strict=False)]
        memory = [row["peak_mib"] for row in s if isinstance(row.get("peak_mib"), int | float)]
        parts = {
            f"first {WINDOW} steps": s[:WINDOW],
            f"last {WINDOW} at the first rate": at_first_rate[-WINDOW:],
            f"last {WINDOW}": s[-WINDOW:],
        }
        rows.append(
            {
                "net": run,
                "parameters": f"{r.cost()[0]:,}",
                "batch": r.config["batch_size"],
                "rate": ", then ".join(dict.fromkeys(f"{row['lr']:g}" for row in s)),
                "steps": len(s),
                "seconds per step": f"{median(seconds):.1f}" if seconds else "-",
                "peak memory MiB": f"{max(memory):,.0f}" if memory else "-",
                **{f"{title}: loss, training accuracy": loss_and_accuracy(part) for title, part in parts.items()},
            }
        )
    return markdown(rows)


def loss_and_accuracy(steps: Sequence[Mapping[str, float]]) -> str:
    """The means over some steps."""
    loss, accuracy = (mean(row[key] for row in steps) for key in ("train_loss", "train_acc"))
    return f"{loss:.2f}, {100 * accuracy:.0f} %"


def speed(results: Path) -> str:
    """minires compared with PyTorch and dezero on one machine, from benchmarks/bench.json next to the results."""
    file = results.parent / "benchmarks" / "bench.json"
    try:
        return speed_table(read_json(file)) if file.exists() else ""
    except KeyError:  # only some of it was measured
        return ""


def speed_table(bench: Mapping[str, Any]) -> str:
    """What benchmarks/step.py has measured, next to the targets."""

    def ratio(job: str) -> str:
        """minires to PyTorch, in the same round: median and quartiles."""
        q1, q2, q3 = (bench[job]["minires"][f"ratio_{name}"] for name in ("quartile_1", "median", "quartile_3"))
        return f"{q2:.2f} ({q1:.2f} .. {q3:.2f})"

    def medians(job: str, above: str, below: str) -> str:
        return f"{bench[job][above]['seconds_median'] / bench[job][below]['seconds_median']:.2f}"

    step, memory, machine = bench["step resnet20"], bench["peak memory resnet20"], bench["machine"]
    lines = [
        ("ResNet-20 training step / PyTorch eager, two threads", ratio("step resnet20"), "1.05"),
        ("the same, one thread", ratio("step resnet20, one thread"), "1.05"),
        (
            "the same / PyTorch channels_last, two threads",
            medians("step resnet20", "minires", "PyTorch channels_last"),
            "1.6",
        ),
        ("the same / PyTorch compiled, two threads", medians("step resnet20", "minires", "PyTorch compiled"), "-"),
        ("ResNet-20 inference / PyTorch eager, two threads", ratio("inference resnet20"), "0.95"),
        ("the same, one thread", ratio("inference resnet20, one thread"), "0.95"),
        *(
            (title + threads, ratio(job + suffix), target)
            for title, job, target in (
                ("ResNet-18 training step, 224x224, batch 8 / PyTorch eager", "step resnet18 at 224x224", "0.8"),
                ("ResNet-34 inference, 224x224, batch 8 / PyTorch eager", "inference resnet34 at 224x224", "0.85"),
                ("ResNet-20 of width 64, batch 64, training step / PyTorch eager", "step resnet20 of width 64", "0.6"),
                ("the same, inference", "inference resnet20 of width 64", "0.6"),
            )
            for threads, suffix in ((", two threads", ""), (", one thread", ", one thread"))
            if job + suffix in bench
        ),
        *(
            (f"{title} / {peer}, two threads", medians(job, "minires", peer), target)
            for peer, target in (("PyTorch folded", "0.95"), ("ONNX Runtime", "-"))
            for title, job in (
                ("ResNet-20 inference", "inference resnet20"),
                ("ResNet-34 inference, 224x224", "inference resnet34 at 224x224"),
            )
            if peer in bench.get(job, {})
        ),
        *(
            (
                f"{title} / the same in minires before Winograd, two threads",
                medians(job, "minires", "minires before"),
                "-",
            )
            for title, job in (
                ("ResNet-20 training step", "step resnet20"),
                ("ResNet-18 training step, 224x224", "step resnet18 at 224x224"),
            )
            if "minires before" in bench.get(job, {})
        ),
        ("ResNet-56 training step / PyTorch eager", ratio("step resnet56"), "1.25"),
        ("bottleneck-164 training step / PyTorch eager", ratio("step bottleneck164"), "1.25"),
        *(
            (
                f"dezero / minires, conv + BN + ReLU layer {size}",
                medians(f"layer {size}", "dezero", "minires"),
                "8 or more",
            )
            for size in ("32x32x16", "16x16x32", "8x8x64")
        ),
        (
            "peak memory of the step, MiB",
            f"{memory['minires'] / 2**20:.0f}",
            f"PyTorch's {memory['PyTorch'] / 2**20:.0f}",
        ),
        ("`import minires` / `import numpy`", f"{bench['import']['ratio']:.2f}", "1.5"),
        ("one thread / two threads", f"{bench['threads']['one']['ratio_median']:.2f}", "1.7 or more"),
    ]
    note = (
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, NumPy {machine['numpy']} "
        f"({machine['blas']}), PyTorch {machine['torch']}, dezero {machine['dezero']}; median of {bench['rounds']} "
        f"rounds and quartiles; a step takes minires {1e3 * step['minires']['seconds_median']:.0f} ms, "
        f"PyTorch {1e3 * step['PyTorch']['seconds_median']:.0f} ms."
    )
    rows = [
        {"batch 128 where no other is named": what, "measured": measured, "target": target}
        for what, measured, target in lines
    ]
    return f"{markdown(rows)}\n\n{note}"


TABLES: dict[str, Callable[[Path], str]] = {
    "runs": table_of_runs,
    "degradation": lambda results: depths(results, "degradation"),
    "depth": lambda results: depths(results, "depth"),
    "gradients": gradients,
    "responses": responses,
    "construction": construction,
    "zero-residual": zero_residual,
    "shortcuts": shortcuts,
    "bottleneck": bottleneck,
    "very-deep": very_deep,
    "paper": lambda results: table_of_runs(results, ["paper"]),
    "speed": speed,
}


# ---- rebuilding


MARKED = re.compile(r"(<!-- table: (\S+) -->).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, results: Path) -> str:
    """The text of a page with each of its tables made again, and the table's figures below it."""

    def table(mark: re.Match[str]) -> str:
        name = mark[2]
        if name not in TABLES:
            raise ValueError(f"table: expected one of {', '.join(TABLES)}, got {name!r}")
        figures = FIGURES.get(name, {}).items()
        images = [f"![{caption}]({file})" for file, (caption, _) in figures if (results / file).exists()]
        text = "\n\n".join([mark[1], TABLES[name](results) or "Not run yet.", *images, mark[3]])
        return text.replace("\n", "\r\n") if "\r\n" in page else text

    return MARKED.sub(table, page)


def rebuild(results: Path = Path("results")) -> list[Path]:
    """Draw the figures again, and rewrite the tables of results/README.md and benchmarks/README.md.

    Returns what was written. Of a page only the text between two marks changes; a page without any, or whose tables
    are up to date, is left alone.
    """
    done = draw(results)
    for page in (results / "README.md", results.parent / "benchmarks" / "README.md"):
        if page.is_file():
            old = page.read_bytes().decode(
                errors="surrogateescape"
            )  # whatever the text around the tables is written in
            new = fill(old, results)
            if new != old:
                write_atomically(page, new.encode(errors="surrogateescape"))
                done.append(page)
    return done
