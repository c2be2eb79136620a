"""What the experiments showed: every table and figure, from the recorded files and nothing else.

Tables stand in results/README.md and README.md between two marks,

    <!-- table: NAME --> ... <!-- end -->

and `rebuild` writes anew what is between them. The words around them are written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from pathlib import Path
from statistics import mean, median, stdev

from minires import plots
from minires.training.checkpoint import write_atomically
from minires.paper.experiments import BEGIN, EXPERIMENTS, LAYERS, STEPS, Row, read_json, read_lines
from minires.resnet import build
from minires.training.run import CONFIG, METRICS, PAPER_STEPS
from minires.summary import summarise

PAPER = {
    "resnet20": 8.75,
    "resnet32": 7.51,
    "resnet44": 7.17,
    "resnet56": 6.97,
    "resnet110": 6.43,
    "resnet1202": 7.93,
}  # test error in percent (Table 6)
PAPER_EPOCHS = round(PAPER_STEPS * 128 / 50_000)
IN_README = ("degradation", "depth", "fast", "paper")
SMOOTH = 20
MOMENTS = {"before training": 0, "after an epoch": 1, "at the end": -1}

Line = tuple[Sequence[float], Sequence[float]]  # x and y
Panels = dict[str, dict[str, Line]]


class Record:
    """What a run has written down so far."""

    def __init__(self, out: Path):
        self.out, self.about = out, read_json(out / CONFIG)
        self.config: Row = self.about["config"]
        self.rows, self.layers, self.steps = (read_lines(out / file) for file in (METRICS, LAYERS, STEPS))
        self.begin: Row = read_json(out / BEGIN) if (out / BEGIN).exists() else {}

    def error(self, part: str, epoch: int = -1) -> float:
        """Of "train" or "test", in percent, after the last epoch or after the one with this index."""
        return 100 * (1 - self.rows[epoch][f"{part}_acc"])

    def net(self) -> dict[str, int]:
        """Parameters and multiply-adds."""
        c = self.config
        total = summarise(build(c["model"], shortcut=c["shortcut"], width=c["width"])).total
        return {"parameters": total.parameters, "multiply_adds": total.multiply_adds}

    def epochs(self) -> str:
        """10, or 7 of 10 while the run is unfinished."""
        whole = ceil(self.about["steps"] / (self.about["dataset"]["train"] // self.config["batch_size"]))
        last = self.rows[-1]
        return f"{last['epoch']}" if last["step"] >= self.about["steps"] else f"{last['epoch']} of {whole}"

    def why(self) -> str:
        """What stands between this error and the paper's."""
        if self.begin:
            return f"{self.config['epochs']} more epochs with the net of {self.begin['source']}"
        if self.config["recipe"] == "fast":
            return f"recipe fast, {self.config['epochs']} epochs for the paper's {PAPER_EPOCHS}"
        if self.config["epochs"]:
            return f"{self.config['epochs']} epochs for the paper's {PAPER_EPOCHS}"
        return "the paper's recipe, " + ("unfinished" if " of " in self.epochs() else "another seed")


def records(results: Path, experiment: str) -> dict[str, Record]:
    """The runs of an experiment that have something written down, by name."""
    found = {run: results / experiment / run for run in EXPERIMENTS[experiment]}
    return {run: Record(out) for run, out in found.items() if read_lines(out / METRICS) or read_lines(out / STEPS)}


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers stand right."""
    body = [[str(cell) for cell in row] for row in rows]
    right = [all(re.fullmatch(r"([-+±\d.,/> ]|of|e-)+", row[i]) for row in body) for i in range(len(head))]
    lines = [head, ["---:" if r else "---" for r in right], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- tables: of the results folder, markdown; "" where there is nothing yet


def table_of_runs(results: Path, experiments: Iterable[str] = tuple(EXPERIMENTS)) -> str:
    """A row for each run that was to train a net for some epochs, and did so for one or more."""
    rows = []
    for experiment in experiments:
        for run, r in records(results, experiment).items():
            if r.rows and "test_acc" in r.rows[-1] and not r.steps:
                last, model = r.rows[-1], r.config["model"]
                rows.append(
                    [
                        f"{experiment}/{run}",
                        model,
                        f"{r.net()['parameters']:,}",
                        r.epochs(),
                        f"{last['seconds'] / 60:.0f}",
                        f"{last['cpu_seconds'] / 60:.0f}",
                        f"{r.error('train'):.2f}",
                        f"{r.error('test'):.2f}",
                        PAPER.get(model, "-"),
                        r.why(),
                    ]
                )
    head = (
        "run",
        "net",
        "parameters",
        "epochs",
        "minutes",
        "CPU minutes",
        "training error %",
        "test error %",
        "in the paper %",
        "why they differ",
    )
    return markdown(head, rows) if rows else ""


def depths(results: Path, experiment: str) -> str:
    """Errors of plain and residual nets, shallow and deep, and what depth changes."""
    rows = []
    for family, pair in pairs(results, experiment).items():
        for part, name in (("train", "training"), ("test", "test")):
            shallow, deep = (r.error(part) for r in pair)
            rows.append(
                [
                    f"{family}, {name} error %",
                    f"{shallow:.2f}",
                    f"{deep:.2f}",
                    f"{deep - shallow:+.2f}",
                    " / ".join(r.epochs() for r in pair),
                ]
            )
    return markdown(("", "20 layers", "56 layers", "difference", "epochs"), rows) if rows else ""


def pairs(results: Path, experiment: str) -> dict[str, list[Record]]:
    """The runs of 20 and of 56 layers, plain and residual, where both have begun."""
    runs = {run: r for run, r in records(results, experiment).items() if r.rows}
    found = {
        name: [runs[net] for net in (f"{family}20", f"{family}56") if net in runs]
        for name, family in (("plain", "plain"), ("residual", "resnet"))
    }
    return {name: pair for name, pair in found.items() if len(pair) == 2}


def gradients(results: Path) -> str:
    """Norms of dL/dw and of w, from the smallest to the largest of a net's layers."""
    rows = []
    for run, r in records(results, "degradation").items():
        if len(r.layers) > 1:
            norms = [r.layers[k][what].values() for what in ("gradient", "weight") for k in MOMENTS.values()]
            rows.append([run, *(f"{min(n):.2g} .. {max(n):.2g}" for n in norms)])
    head = ("net", *(f"norms of {what}, {when}" for what in ("dL/dw", "w") for when in MOMENTS))
    return markdown(head, rows) if rows else ""


def responses(results: Path) -> str:
    """Mean of the layers' responses, and of those at the end of a block."""
    rows = []
    for run, r in records(results, "degradation").items():
        last = r.layers[-1]["response"]
        second = [value for name, value in last.items() if name.endswith("conv2")]
        rows.append([run, f"{mean(last.values()):.3f}", f"{mean(second):.3f}", r.epochs()])
    return markdown(("net", "mean response", "of the blocks' second layers", "epochs"), rows) if rows else ""


def construction(results: Path) -> str:
    """The deepened net beside the shallow one that goes on, and beside the same depth from scratch."""
    rows = []
    for r in records(results, "construction").values():
        rows.append(
            [
                r.config["model"],
                "the trained plain20",
                r.config["lr"],
                f"{100 * (1 - r.begin['after_test_acc']):.2f}",
                f"{r.error('train'):.2f}",
                f"{r.error('test'):.2f}",
                r.epochs(),
            ]
        )
    for run, r in records(results, "degradation").items():
        if rows and run == "plain56" and r.rows:
            rows.append(
                [run, "scratch", r.config["lr"], "-", f"{r.error('train'):.2f}", f"{r.error('test'):.2f}", r.epochs()]
            )
    head = (
        "net",
        "begins with",
        "highest rate",
        "test error % at the start",
        "training error % at the end",
        "test error % at the end",
        "epochs",
    )
    return markdown(head, rows) if rows else ""


def zero_residual(results: Path) -> str:
    """Errors on the way to the identity."""
    steps = (1, 10, 100, 500)
    rows = [
        [
            f"{r.config['blocks']} {run} blocks",
            *(f"{r.rows[k - 1]['train_loss']:.4f}" if k <= len(r.rows) else "-" for k in steps),
        ]
        for run, r in records(results, "zero-residual").items()
    ]
    return markdown(("blocks", *(f"error at step {k}" for k in steps)), rows) if rows else ""


def shortcuts(results: Path) -> str:
    """Mean and deviation over the seeds, for each option."""
    rows = []
    for option, group in by_option(results).items():
        cells = []
        for part in ("train", "test"):
            errors = [r.error(part) for r in group]
            cells.append(f"{mean(errors):.2f}" + (f" ± {stdev(errors):.2f}" if len(errors) > 1 else ""))
        rows.append([option, f"{group[0].net()['parameters']:,}", *cells, len(group)])
    return markdown(("shortcut", "parameters", "training error %", "test error %", "seeds"), rows) if rows else ""


def by_option(results: Path) -> dict[str, list[Record]]:
    """The finished runs of the shortcut experiment."""
    found: dict[str, list[Record]] = {}
    for r in records(results, "shortcuts").values():
        if " of " not in r.epochs():
            found.setdefault(r.config["shortcut"], []).append(r)
    return found


def bottleneck(results: Path) -> str:
    """Accuracy and cost beside those of a basic net of the same cost, trained in the same way."""
    pair = [*records(results, "bottleneck").values(), *by_option(results).get("A", [])[:1]]
    rows = []
    for r in pair:
        net, last = r.net(), r.rows[-1]
        rows.append(
            [
                r.config["model"],
                f"{net['parameters']:,}",
                f"{net['multiply_adds']:,}",
                f"{last['seconds'] / 60:.0f}",
                f"{last['cpu_seconds'] / 60:.0f}",
                f"{r.error('train'):.2f}",
                f"{r.error('test'):.2f}",
                r.epochs(),
            ]
        )
    head = (
        "net",
        "parameters",
        "multiply-adds",
        "minutes",
        "CPU minutes",
        "training error %",
        "test error %",
        "epochs",
    )
    return markdown(head, rows) if len(rows) == 2 else ""


def very_deep(results: Path) -> str:
    """Time and memory, and loss and accuracy at the start, at the end of the first rate and at the end of all."""
    rows = []
    for run, r in records(results, "very-deep").items():
        s = r.steps
        first = [row for row in s if row["lr"] == s[0]["lr"]]
        took = [b["seconds"] - a["seconds"] for a, b in zip(s, s[1:], strict=False)]
        memory = [row["peak_mib"] for row in s if row["peak_mib"]]
        parts = [s[:SMOOTH], first[-SMOOTH:], s[-SMOOTH:]]
        loss, acc = ([mean(row[what] for row in part) for part in parts] for what in ("train_loss", "train_acc"))
        rates = dict.fromkeys(f"{row['lr']:g}" for row in s)
        rows.append(
            [
                run,
                f"{r.net()['parameters']:,}",
                r.config["batch_size"],
                ", then ".join(rates),
                len(s),
                f"{median(took):.1f}" if took else "-",
                f"{max(memory):,.0f}" if memory else "-",
                *(f"{x:.2f}, {100 * y:.0f} %" for x, y in zip(loss, acc, strict=True)),
            ]
        )
    moments = (f"first {SMOOTH} steps", f"last {SMOOTH} at the first rate", f"last {SMOOTH}")
    head = (
        "net",
        "parameters",
        "batch",
        "rate",
        "steps",
        "seconds a step",
        "peak memory MiB",
        *(f"{when}: loss, training accuracy" for when in moments),
    )
    return markdown(head, rows) if rows else ""


TABLES: dict[str, Callable[[Path], str]] = {
    "runs": table_of_runs,
    "README": lambda results: table_of_runs(results, IN_README),
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
}

FIGURES = {  # below a table: file and what it shows
    "degradation": {
        "degradation/degradation": "error of plain nets and of residual nets over the epochs",
        "degradation/figure6": "the same four runs: error, loss and learning rate",
    },
    "depth": {"depth/depth": "error over the epochs, recipe fast"},
    "gradients": {"degradation/gradients": "norm of each layer's gradient"},
    "responses": {"degradation/responses": "standard deviation of each layer's response"},
    "construction": {"construction/construction": "error after identity layers were put in"},
    "zero-residual": {"zero-residual/zero-residual": "error of plain and residual blocks on the way to the identity"},
    "shortcuts": {"shortcuts/shortcuts": "test error of options A, B and C"},
    "very-deep": {"very-deep/very-deep": "training loss of the first steps"},
    "paper": {"paper/paper": "error, loss and learning rate of the paper's recipe"},
}


# ---- figures


def draw(results: Path) -> list[Path]:
    """Every figure whose runs have begun, as PNG files in the results folder."""
    drawn = []

    def file(name: str) -> Path:
        drawn.append(results / f"{name}.png")
        return drawn[-1]

    for experiment in ("degradation", "depth"):
        if found := pairs(results, experiment):
            plots.errors(
                {name: [r.out for r in pair] for name, pair in found.items()}, file(f"{experiment}/{experiment}")
            )
    nets = {run: r for run, r in records(results, "degradation").items() if len(r.layers) > 1}
    if len(nets) == 4:
        plots.curves([r.out for r in nets.values()], file("degradation/figure6"))
        last = {run: r.layers[-1]["response"].values() for run, r in nets.items()}
        plots.lines(
            {
                "in the order of the layers": {run: by_layer(y) for run, y in last.items()},
                "by size": {run: by_layer(sorted(y, reverse=True)) for run, y in last.items()},
            },
            "layer",
            "standard deviation of the response",
            file("degradation/responses"),
        )
        plots.lines(
            {
                title: {run: by_layer(r.layers[k]["gradient"].values()) for run, r in nets.items()}
                for title, k in MOMENTS.items()
            },
            "layer",
            "norm of dL/dw",
            file("degradation/gradients"),
            log=True,
        )
    made = [r for r in records(results, "construction").values() if r.rows]
    if made:
        panels: Panels = {"training": {}, "test": {}}
        for r in made:
            name, epochs = f"{r.config['model']}, rate {r.config['lr']}", [row["epoch"] for row in r.rows]
            panels["training"][name] = epochs, errors(r, "train")
            panels["test"][name] = [0, *epochs], [100 * (1 - r.begin["after_test_acc"]), *errors(r, "test")]
        if "plain56" in nets:
            scratch, most = nets["plain56"], max(r.rows[-1]["epoch"] for r in made)
            for title, part in (("training", "train"), ("test", "test")):
                name = f"plain56 from scratch, after {scratch.rows[-1]['epoch']} epochs"
                panels[title][name] = [0, most], 2 * [scratch.error(part)]
        plots.lines(panels, "further epochs", "error (%)", file("construction/construction"))
    stacks = records(results, "zero-residual")
    if stacks:
        plots.lines(
            {
                "asked for the identity": {
                    f"{run} blocks": ([row["step"] for row in r.rows], [row["train_loss"] for row in r.rows])
                    for run, r in stacks.items()
                }
            },
            "step",
            "|y - x|² / |x|²",
            file("zero-residual/zero-residual"),
            log=True,
        )
    options = by_option(results)
    if options:
        plots.spread(
            {f"option {o}": [r.error("test") for r in group] for o, group in options.items()},
            "test error (%)",
            file("shortcuts/shortcuts"),
        )
    deep = records(results, "very-deep")
    if deep:
        plots.lines(
            {
                "the first steps": {
                    run: ([row["step"] for row in r.steps], smooth([row["train_loss"] for row in r.steps]))
                    for run, r in deep.items()
                }
            },
            "step",
            f"training loss, mean of {SMOOTH} steps",
            file("very-deep/very-deep"),
            log=True,
        )
    whole = [r.out for r in records(results, "paper").values() if r.rows]
    if whole:
        plots.curves(whole, file("paper/paper"))
    return drawn


def by_layer(values: Iterable[float]) -> Line:
    """The numbers over 1, 2, 3, ..."""
    y = list(values)
    return range(1, len(y) + 1), y


def errors(record: Record, part: str) -> list[float]:
    """In percent, of every epoch."""
    return [record.error(part, i) for i in range(len(record.rows))]


def smooth(values: Sequence[float]) -> list[float]:
    """Each value's mean with those before it, SMOOTH in all or as many as there are."""
    return [mean(values[max(0, i + 1 - SMOOTH) : i + 1]) for i in range(len(values))]


# ---- rebuilding


def fill(text: str, results: Path, folder: str = "") -> str:
    """The text of a page with every table in it made anew, its figures below it.

    folder: the way from the page to the results, such as "results/".
    """

    def table(mark: re.Match[str]) -> str:
        name = mark[2]
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}; expected one of {', '.join(TABLES)}")
        parts = [mark[1], TABLES[name](results) or "Not run yet."]
        for figure, shows in FIGURES.get(name, {}).items():
            if (results / f"{figure}.png").exists():
                parts.append(f"![{shows}]({folder}{figure}.png)")
        return "\n\n".join([*parts, mark[3]])

    return re.sub(r"(<!-- table: (\S+) -->).*?(<!-- end -->)", table, text, flags=re.DOTALL)


def rebuild(results: Path = Path("results")) -> list[Path]:
    """Draw the figures anew, and the tables of README.md in the results folder and in the one above it."""
    done = draw(results)
    for page, folder in ((results / "README.md", ""), (results.parent / "README.md", f"{results.name}/")):
        if page.exists():
            write_atomically(page, fill(page.read_text(encoding="utf-8"), results, folder).encode())
            done.append(page)
    return done
