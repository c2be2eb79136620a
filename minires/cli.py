"""The command line: `python -m minires COMMAND`. Each command is a few lines that call another room."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="minires: deep residual learning, built from the ground up. Begin with: python -m minires train",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
UsageError: Any = typer.BadParameter.__base__  # an unknown command or option, or a value of the wrong kind


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Errors are told in one line on stderr, with status 2; Ctrl-C ends with status 130."""
    try:
        status = app((sys.argv[1:] if arguments is None else arguments) or ["--help"], standalone_mode=False)
        if status == 130:  # typer keeps Ctrl-C to itself and returns this
            raise KeyboardInterrupt
    except UsageError as error:
        sys.exit(fail(f"{error.format_message()} See: python -m minires --help"))
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        sys.exit(fail(str(error) or type(error).__name__))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(fail("stopped", 130))


def fail(message: str, status: int = 2) -> int:
    print("minires:", " ".join(message.split()), file=sys.stderr)
    return status


def option(help: str) -> typer.models.OptionInfo:
    """A command's option whose default the help text tells."""
    return typer.Option(help=help, show_default=False)


def usable(device: str | None) -> str | None:
    """A device that can't be used is told before anything starts."""
    from minires.backend import to_device

    if device:
        to_device(0, device)
    return device


def given(**options: Any) -> dict[str, Any]:
    """The options that the user wrote."""
    return {name: value for name, value in options.items() if value is not None}


NAMES = {"test": "test", "val": "validation"}
MODEL = "plainN or resnetN with N = 6n + 2 layers, bottleneckN with N = 9n + 2, or an ImageNet net such as resnet50."
DataDir = Annotated[Path | None, option("Where CIFAR-10 lies, unpacked or not. [MINIRES_DATA, else data/]")]
DEVICES = "cpu, gpu, or strict: a pretend GPU. [cpu]"
Device = Annotated[str | None, typer.Option(help=DEVICES, show_default=False, callback=usable)]
Threads = Annotated[int | None, option("CPU threads. [one a core]")]


@app.command()
def train(
    model: Annotated[str | None, typer.Argument(help=MODEL + " [resnet20]", show_default=False)] = None,
    data: Annotated[str | None, option("cifar10, shapes10, or auto: CIFAR-10 if it is found. [auto]")] = None,
    data_dir: DataDir = None,
    val: Annotated[bool, typer.Option("--val", help="Test on a held-out tenth of the training set.")] = False,
    recipe: Annotated[str | None, option("fast: few epochs. paper: the paper's 64,000 steps. [fast]")] = None,
    epochs: Annotated[int | None, option("Passes over the training images. [the recipe's]")] = None,
    batch_size: Annotated[int | None, option("Images a step. [128]")] = None,
    lr: Annotated[float | None, option("The highest learning rate. [the recipe's]")] = None,
    seed: Annotated[int | None, option("Same seed, same run. [0]")] = None,
    device: Device = None,
    threads: Threads = None,
    out: Annotated[Path | None, option("The run's folder, new or empty. [runs/MODEL-DATA-TIME]")] = None,
    resume: Annotated[Path | None, option("Go on with the run in this folder, with its settings.")] = None,
) -> None:
    """Train a net; figures, curves and weights go to a folder."""
    from minires.training.loop import Config, fit, open_data, read_config

    run = given(
        model=model, data=data, val=val or None, recipe=recipe, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
    )
    here = given(data_dir=data_dir and str(data_dir.absolute()), device=device, threads=threads)
    if resume and (run or out):
        names = [f"--{name.replace('_', '-')}" for name in [*run, *(["out"] if out else [])]]
        raise ValueError(f"--resume takes the run's own settings; leave out {', '.join(names)}")
    config = read_config(resume, **here) if resume else Config.from_recipe(**run, **here)
    dataset = open_data(config.data, config.data_dir)
    if config.data == "auto" and dataset.name == "shapes10":
        print("CIFAR-10 not found, so this trains on Shapes-10; to fetch it: python -m minires data cifar10")
    folder = resume or out or Path("runs", f"{config.model}-{dataset.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    print(f"{config.model} on {dataset.name}, run folder {folder}", flush=True)
    try:
        rows = fit(config, folder, bool(resume), dataset)
    except KeyboardInterrupt:
        sys.exit(fail(f"stopped; go on with: python -m minires train --resume {folder}", 130))

    from minires.plots import curves

    curves(folder, folder / "curves.png")
    print(final_table(rows[-1], folder))


def final_table(row: dict[str, float], folder: Path) -> str:
    """What came out of a run, from its last epoch's figures."""
    other = "val" if "val_acc" in row else "test"
    lines = [
        f"{'':14}{'loss':>8}{'accuracy':>10}",
        f"{'training':14}{row['train_loss']:8.4f}{row['train_acc']:10.2%}",
        f"{NAMES[other]:14}{row[f'{other}_loss']:8.4f}{row[f'{other}_acc']:10.2%}",
        f"after epoch {row['epoch']}, step {row['step']:,}, {row['seconds'] / 60:.1f} minutes; see {folder}",
    ]
    return "\n".join(lines)


@app.command("eval")
def evaluate_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data_dir: DataDir = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Test a trained net on the test set."""
    from minires.backend import set_num_threads
    from minires.training.loop import evaluate, load_run, open_data, read_config

    if threads is not None:
        set_num_threads(threads)
    net, normalise, info = load_run(run)
    dataset = open_data(info["data"], data_dir or read_config(run).data_dir)
    loss, acc = evaluate(net.to(device or "cpu"), dataset.test_images, dataset.test_labels, normalise)
    print(
        f"{info['model']}, {len(dataset.test_images):,} test images of {dataset.name}: "
        f"loss {loss:.4f}, accuracy {acc:.2%}"
    )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, PNG or JPEG.")],
    plot: Annotated[Path | None, option("Draw images and probabilities into this file.")] = None,
    device: Device = None,
) -> None:
    """The five most probable classes of each picture."""
    from minires.training import predict

    if plot and plot.resolve() in [path.resolve() for path in images]:
        raise ValueError(f"--plot would write over the picture {plot}; name another file")
    seen = [predict.read_image(path) for path in images]
    found = predict.predict(run, seen, device=device or "cpu")
    for path, classes in zip(images, found, strict=True):
        print(path, *(f"  {name:12} {p:6.1%}" for name, p in classes), sep="\n")
    if plot:
        from minires.plots import prediction

        prediction(seen, [path.name for path in images], found, plot)


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help=MODEL)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
    plot: Annotated[Path | None, option("Draw the net's blocks into this file.")] = None,
) -> None:
    """A net's layers: shapes, parameters, multiply-adds, for a picture of 224x224 (ImageNet nets) or 32x32 pixels."""
    from minires.resnet import IMAGENET, build
    from minires.summary import summarise

    net = build(model)
    size = 224 if model.removeprefix("pre") in IMAGENET else 32
    found = summarise(net, (size, size, 3))
    print(json.dumps(found.to_dict(), indent=2) if as_json else found.table())
    if plot:
        from minires.course.drawings import blocks

        blocks(net, plot)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="cifar10: fetch it. shapes10: draw some.")] = "cifar10",
    data_dir: Annotated[Path | None, option("Folder for the download. [MINIRES_DATA, else data/]")] = None,
    sheet: Annotated[Path | None, option("Draw a contact sheet into this file. [shapes10.png]")] = None,
) -> None:
    """Download CIFAR-10, or look at the data."""
    from minires.data import download_cifar10, find_cifar10, data_root
    from minires.training.loop import open_data

    if name == "cifar10":
        place = find_cifar10(data_dir) or download_cifar10(data_root(data_dir))
        print(f"CIFAR-10 is in {place}")
    elif name == "shapes10":
        sheet = sheet or Path("shapes10.png")
    else:
        raise ValueError(f"data: expected cifar10 or shapes10, got {name!r}")
    if sheet:
        from minires.plots import contact_sheet

        contact_sheet(open_data(name, data_dir), sheet)
        print(f"contact sheet: {sheet}")


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path | None, option("The picture. [RUN/curves.png; of several runs, curves.png]")] = None,
) -> None:
    """Draw the training curves of one or several runs."""
    from minires.plots import curves

    out = out or (runs[0] / "curves.png" if len(runs) == 1 else Path("curves.png"))
    curves(runs, out)
    print(out)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="resnetN or bottleneckN for CIFAR-10.")] = "resnet20",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each takes its turn.")] = 5,
) -> None:
    """Time a training step on this machine, beside PyTorch's where it is installed."""
    from minires import backend
    from minires.devices.bench import report
    from minires.resnet import build

    build(model)  # an unknown name is told before anything starts
    print(report(model, threads or backend.get_num_threads(), rounds))


@app.command()
def doctor(
    gpu_selftest: Annotated[
        bool, typer.Option("--gpu-selftest", help="Compare the GPU with NumPy, and time it; about a minute.")
    ] = False,
) -> None:
    """What this machine has: processor, threads, memory, data sets, GPU."""
    from minires.devices.doctor import report, selftest

    if not gpu_selftest:
        print(report())
        return
    passed, text = selftest()
    print(text)
    if not passed:
        sys.exit(1)


@app.command()
def check(
    what: Annotated[list[str] | None, typer.Argument(help="An exercise, as 4.2; none for a table of all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Grade files and folders that were handed in.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="With --all: a line for each exercise, as CSV.")] = False,
    seconds: Annotated[float, typer.Option(help="With --all: time limit for each file.")] = 60,
) -> None:
    """Is your answer to an exercise right? With --all, grade the answers of a class."""
    from minires.course import exercises
    from minires.course import grading

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a report quotes answers, in whatever alphabet
    if every:
        grades = grading.grade_all(map(Path, what or []), seconds)
        print(grading.as_csv(grades) if as_csv else grading.as_table(grades), end="")
    elif as_csv or len(what or []) > 1:
        raise ValueError("check: expected one exercise, or --all with files and folders; --csv goes with --all")
    elif what:
        found = exercises.report(what[0])
        print(found.text)
        sys.exit(0 if found.status == "solved" else 1)
    else:
        print(exercises.overview())


@app.command()
def hint(
    exercise: Annotated[str, typer.Argument(help="Its number, as 4.2.")],
    stage: Annotated[int, typer.Option(help="1 tells an idea, the last nearly the code.")] = 1,
) -> None:
    """A hint for an exercise."""
    from minires.course import exercises

    exercises.hint(exercise, stage)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="An experiment, one run of it (fast/resnet20), or all.")] = "all",
    budget: Annotated[float | None, option("Stop, with a checkpoint, after so many hours. [no limit]")] = None,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    tables: Annotated[bool, typer.Option("--tables", help="Only make tables and figures anew.")] = False,
) -> None:
    """Run the paper's experiments on CIFAR-10 or go on with them, then make their tables and figures anew."""
    from minires.paper.experiments import reproduce

    if not tables and not reproduce(name, out, data_dir, float("inf") if budget is None else budget):
        print(f"the budget of {budget:g} hours is spent; the same command goes on")
    from minires.paper.tables import rebuild

    print("made anew:", *rebuild(out))
