"""The command line: `python -m minires COMMAND`. Each command is a few lines that call another room."""

from __future__ import annotations

import glob
import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from minires.files import output_path, printable
from minires.training.config import PAPER_STEPS, RECIPES, Config
from minires.training.signals import exit_status, stop_on_signals

app = typer.Typer(
    help="minires: deep residual learning, built from the ground up. Begin with: python -m minires train",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Download CIFAR-10, or look at a data set.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
UsageError: Any = typer.BadParameter.__base__  # an unknown command or option, or a value of the wrong type


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Errors are one line on stderr, with status 2; Ctrl-C ends with status 130, SIGTERM with 143."""
    open_closed_streams()
    with stop_on_signals():
        _run(arguments)


def _run(arguments: list[str] | None) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a report quotes answers, in whatever alphabet
    try:
        arguments = [expand_home(a) for a in (sys.argv[1:] if arguments is None else arguments)] or ["--help"]
        status = app(arguments, "python -m minires", standalone_mode=False)
        if status == 130:  # typer handles Ctrl-C itself and returns this
            raise KeyboardInterrupt
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "python -m minires"
        sys.exit(print_error(f"{error.format_message().rstrip('.')}. See: {command} --help"))
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        sys.exit(print_error(str(error) or type(error).__name__))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(print_error("stopped", exit_status()))


def open_closed_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr, as services are, empty ones.

    Otherwise the next file that is opened gets the number of the closed one, and libraries write messages into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def print_error(message: str, status: int = 2) -> int:
    """Print a one-line message to stderr. Returns the exit status."""
    with suppress(OSError):  # a terminal that is closed, which is what SIGHUP says
        print("minires:", printable(" ".join(message.split())), file=sys.stderr)
    return status


def expand_home(argument: str) -> str:
    """`~/x` or `--out=~/x` with the home folder in it: shells leave the second to the program, and Windows' both."""
    option, equals, value = argument.partition("=")
    if argument.startswith("--") and equals:
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(argument)


def check_folder(option: str, path: Path) -> None:
    """Raise an error now if the folder for an output is a file."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option}: expected a folder, got the file {path}; name another folder")


def expand(paths: list[Path]) -> list[Path]:
    """The files that patterns such as *.png mean, where the shell has not expanded them (on Windows)."""
    found: list[Path] = []
    for path in paths:
        matches = [] if path.exists() else sorted(glob.glob(str(path)))
        found += map(Path, matches) if matches else [path]
    return found


def opt(help: str) -> Any:
    """An option whose default is in its help text."""
    return typer.Option(help=help, show_default=False)


def default_of(name: str) -> str:
    """The default of a setting in brackets, for help texts; for each recipe if recipes differ."""
    defaults = {recipe: getattr(Config.from_recipe(recipe), name) for recipe in RECIPES}
    if len(set(defaults.values())) == 1:
        return f"[{defaults['fast']}]"
    return f"[{', '.join(f'{recipe}: {value}' for recipe, value in defaults.items() if value is not None)}]"


def check_device(device: str | None) -> None:
    """Raise an error now, before anything starts, if `device` can't be used."""
    from minires.backend import to_device

    if device:
        to_device(0, device)


def only_given(**options: Any) -> dict[str, Any]:
    """The options that the user wrote."""
    return {name: value for name, value in options.items() if value is not None}


SETTING_TYPES = get_type_hints(Config)
PARSERS: dict[Any, Callable[[str], Any]] = {  # in the order in which they are tried
    NoneType: {"none": None}.__getitem__,
    bool: {"true": True, "false": False}.__getitem__,
    int: int,
    float: float,
    str: str,
}
TYPE_NAMES = {NoneType: "none", bool: "true or false", int: "an integer", float: "a number", str: "text"}


def parse_setting(text: str) -> tuple[str, Any]:
    """("momentum", 0.8) from "momentum=0.8", the value of the type that Config declares."""
    name, equals, value = text.partition("=")
    if not equals or name not in SETTING_TYPES:
        raise ValueError(f"--set: expected NAME=VALUE with NAME one of {', '.join(SETTING_TYPES)}, got {text!r}")
    types = sorted(get_args(SETTING_TYPES[name]) or [SETTING_TYPES[name]], key=list(PARSERS).index)
    for type_ in types:
        try:
            return name, PARSERS[type_](value if type_ is str else value.lower())
        except (KeyError, ValueError):
            continue
    raise ValueError(f"--set {name}: expected {' or '.join(TYPE_NAMES[type_] for type_ in types)}, got {value!r}")


MODEL = "plainN or resnetN with N = 6n + 2 layers, bottleneckN with N = 9n + 2, or an ImageNet net such as resnet50."
CHANGEABLE = ("data_dir", "device", "threads", "checkpoint_minutes")  # when a run is resumed
TEST_SETS = {"test": "test", "val": "validation"}

DataDir = Annotated[Path | None, opt("Folder with CIFAR-10, unpacked or not. [MINIRES_DATA, else data/]")]
TestDir = Annotated[Path | None, opt("Folder with CIFAR-10 or the pictures. [where they were]")]
Device = Annotated[str | None, opt(f"cpu, gpu, or strict: a pretend GPU. {default_of('device')}")]
Threads = Annotated[int | None, opt("CPU threads. [one per core]")]


@app.command()
def train(
    model: Annotated[str | None, typer.Argument(help=f"{MODEL} {default_of('model')}", show_default=False)] = None,
    data: Annotated[
        str | None,
        opt(
            f"cifar10, shapes10, auto: CIFAR-10 if it is found {default_of('data')}, or a folder that holds a folder "
            "of pictures (PNG, JPEG) for each class. The largest square in the middle of each picture is resized to "
            "32x32 pixels. For testing are those in test/ if there are train/ and test/ with such folders, or else a "
            "fifth of each class, always the same. The defaults of few pictures are smaller batches and 400 steps."
        ),
    ] = None,
    data_dir: DataDir = None,
    val: Annotated[bool, typer.Option("--val", help="Test on a held-out tenth of the training set.")] = False,
    recipe: Annotated[
        str | None, opt(f"fast: few epochs. paper: the paper's {PAPER_STEPS:,} steps. [{Config.recipe}]")
    ] = None,
    epochs: Annotated[int | None, opt(f"Passes over the training images. {default_of('epochs')}")] = None,
    batch_size: Annotated[int | None, opt(f"Images per step. {default_of('batch_size')}")] = None,
    lr: Annotated[float | None, opt(f"Peak learning rate. {default_of('lr')}")] = None,
    shortcut: Annotated[str | None, opt(f"Shortcuts of the paper: A, B or C. {default_of('shortcut')}")] = None,
    width: Annotated[int | None, opt(f"Channels of a CIFAR net's first stage. {default_of('width')}")] = None,
    seed: Annotated[int | None, opt(f"Same seed, same run. {default_of('seed')}")] = None,
    device: Device = None,
    threads: Threads = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help=f"Any setting, repeatable: {', '.join(SETTING_TYPES)}."),
    ] = None,
    out: Annotated[Path | None, opt("The run's folder, new or empty. [runs/MODEL-DATA-TIME]")] = None,
    resume: Annotated[Path | None, opt("Resume the run in this folder, with its settings.")] = None,
) -> None:
    """Train a net; figures, curves and weights are written to a folder."""
    from minires.training.config import open_data
    from minires.training.folder import can_resume, resume_command
    from minires.training.loop import fit

    options = only_given(
        model=model,
        data=data,
        data_dir=data_dir and str(data_dir),
        val=val or None,
        recipe=recipe,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        shortcut=shortcut,
        width=width,
        seed=seed,
        device=device,
        threads=threads,
    )
    chosen = add_settings(options, settings or [])
    if resume:
        config = resumed_config(resume, chosen, out)
    else:
        config = Config.from_recipe(**chosen)
    check_device(config.device)
    if out:
        check_folder("--out", out)
    dataset = open_data(config.data, config.data_dir)
    if config.data == "pictures":
        if not resume:
            config = Config.from_recipe(images=len(dataset.train_images), **chosen)
        print(
            f"{len(dataset.train_images):,} pictures to train on, {len(dataset.test_images):,} to test on, of "
            f"{len(dataset.classes)} classes; batch size {config.batch_size}"
        )
    if config.data == "auto" and dataset.source == "shapes10":
        print("CIFAR-10 not found, so this trains on Shapes-10; to download it: python -m minires data fetch")
    folder = resume or out or Path("runs", f"{config.model}-{dataset.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    print(f"{config.model} on {dataset.name}, run folder {printable(folder)}", flush=True)
    try:
        rows = fit(config, folder, bool(resume), dataset)
    except KeyboardInterrupt:
        advice = f"; resume with: {resume_command(folder)}" if can_resume(folder) else ""
        sys.exit(print_error(f"stopped{advice}", exit_status()))

    from minires.plots import curves

    print(final_table(rows[-1], folder), flush=True)
    curves(folder, folder / "curves.png")  # last: the table is not lost if it can't be drawn


def add_settings(options: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """The settings chosen by options and by `--set NAME=VALUE`, each once."""
    chosen = dict(options)
    for name, value in map(parse_setting, settings):
        if name in chosen:
            raise ValueError(f"{name}: expected one value, got {chosen[name]} and {value}")
        chosen[name] = value
    if chosen.get("data") not in (None, "auto", "cifar10", "shapes10"):
        if "data_dir" in chosen:
            raise ValueError(f"--data-dir: expected none with the folder of pictures {chosen['data']}")
        if not Path(chosen["data"]).expanduser().is_dir():
            raise ValueError(
                f"--data: expected auto, cifar10, shapes10 or a folder of pictures, got {chosen['data']!r}"
            )
        chosen |= {"data": "pictures", "data_dir": chosen["data"]}
    if chosen.get("data_dir"):  # a run may be resumed from another folder
        chosen["data_dir"] = str(Path(chosen["data_dir"]).expanduser().absolute())
    return chosen


def resumed_config(folder: Path, chosen: dict[str, Any], out: Path | None) -> Config:
    """The config of the run in `folder`, with the changes that a resumed run allows."""
    from minires.parallel import get_num_threads
    from minires.training.config import read_config

    refused = [name for name in [*chosen, *(["out"] if out else [])] if name not in CHANGEABLE]
    if refused:
        raise ValueError(
            f"--resume: expected only {', '.join(CHANGEABLE)}, got {', '.join(refused)}; a run keeps its settings"
        )
    config = read_config(folder, **chosen)
    if "threads" in chosen or config.threads is None:
        return config
    return replace(config, threads=min(config.threads, get_num_threads()))  # it may be from a larger machine


def final_table(row: dict[str, float], folder: Path) -> str:
    """The result of a run, from the figures of its last epoch."""
    test = "val" if "val_acc" in row else "test"
    lines = [
        f"{'':14}{'loss':>8}{'accuracy':>10}",
        f"{'training':14}{row['train_loss']:8.4f}{row['train_acc']:10.2%}",
        f"{TEST_SETS[test]:14}{row[f'{test}_loss']:8.4f}{row[f'{test}_acc']:10.2%}",
        f"after epoch {row['epoch']}, step {row['step']:,}, {row['seconds'] / 60:.1f} minutes; see {printable(folder)}",
    ]
    return "\n".join(lines)


@app.command("eval")
def evaluate_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data_dir: TestDir = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Test a trained net on the test set."""
    from minires.parallel import set_num_threads
    from minires.training.config import open_data, read_config
    from minires.training.loop import evaluate
    from minires.training.run import load_run

    check_device(device)
    if threads is not None:
        set_num_threads(threads)
    net, normalise, info = load_run(run)
    config = read_config(run)
    dataset = open_data(config.data, data_dir or config.data_dir)
    if list(dataset.classes) != info["classes"]:
        raise ValueError(f"{run}: expected its classes, {', '.join(info['classes'])}, got {', '.join(dataset.classes)}")
    loss, acc = evaluate(net.to(device or "cpu"), dataset.test_images, dataset.test_labels, normalise)
    print(
        f"{info['model']}, {len(dataset.test_images):,} test images of {dataset.name}: "
        f"loss {loss:.4f}, accuracy {acc:.2%}"
    )


@app.command("predict")
def predict_images(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    images: Annotated[list[Path], typer.Argument(help="Images, PNG or JPEG.")],
    plot: Annotated[Path | None, opt("Draw images and probabilities into this file.")] = None,
    device: Device = None,
) -> None:
    """The five most probable classes of each image."""
    from minires.data import read_image
    from minires.training.predict import predict

    check_device(device)
    images = expand(images)
    plot = plot and output_path(plot, ".png", images)
    pixels = [read_image(path) for path in images]
    predictions = predict(run, pixels, device=device or "cpu")
    for path, classes in zip(images, predictions, strict=True):
        print(printable(path), *(f"  {printable(name):12} {p:6.1%}" for name, p in classes), sep="\n")
    if plot:
        from minires.plots import prediction

        prediction(pixels, [path.name for path in images], predictions, plot)
        print(printable(plot))


@app.command("export")
def export_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    file: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
) -> None:
    """A trained net as an ONNX file: pictures in, probabilities out."""
    from minires.training.export import export_onnx
    from minires.training.folder import MODEL
    from minires.training.run import load_run

    file = output_path(file, ".onnx", [run / MODEL])
    net, normalise, info = load_run(run)
    export_onnx(net, file, normalise, list(info["classes"]))
    print(printable(file))


@app.command("summary")
def print_summary(
    model: Annotated[str, typer.Argument(help=MODEL)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plot: Annotated[Path | None, opt("Draw the net's blocks into this file.")] = None,
) -> None:
    """A net's layers: shapes, parameters, multiply-adds, for images of 224x224 (ImageNet nets) or 32x32 pixels."""
    from minires.resnet import IMAGENET, build
    from minires.summary import summarise

    plot = plot and output_path(plot, ".png")
    net = build(model)
    size = 224 if model.removeprefix("pre") in IMAGENET else 32
    summary = summarise(net, (size, size, 3))
    print(json.dumps(summary.to_dict(), indent=2) if as_json else summary.table())
    if plot:
        from minires.course.drawings import blocks

        blocks(net, plot)
        print(printable(plot), file=sys.stderr if as_json else sys.stdout)  # JSON is read by programs


@data_app.command()
def fetch(data_dir: Annotated[Path | None, opt("Folder for the download. [MINIRES_DATA, else data/]")] = None) -> None:
    """Download CIFAR-10 (170 MB), unless it is already there."""
    from minires.data import fetch_cifar10

    print(f"CIFAR-10 is in {fetch_cifar10(data_dir)}")


@data_app.command()
def show(
    name: Annotated[str, typer.Argument(help="cifar10, shapes10 or a folder of pictures.")],
    data_dir: DataDir = None,
    out: Annotated[Path | None, opt("The image file. [NAME.png]")] = None,
) -> None:
    """Draw a contact sheet: some images of each class."""
    from minires.plots import contact_sheet
    from minires.training.config import open_data

    dataset = open_data(name, data_dir) if name in ("cifar10", "shapes10") else open_data("pictures", name)
    out = output_path(out or f"{dataset.name}.png", ".png", Path(name).rglob("*"))
    contact_sheet(dataset, out)
    print(printable(out))


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path | None, opt("The image file. [RUN/curves.png; of several runs, curves.png]")] = None,
) -> None:
    """Draw the training curves of one or several runs."""
    from minires.plots import curves
    from minires.training.folder import METRICS

    runs = expand(runs)
    out = out or (runs[0] / "curves.png" if len(runs) == 1 else Path("curves.png"))
    out = output_path(out, ".png", [run / METRICS for run in runs])
    curves(runs, out)
    print(printable(out))


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="resnetN or bottleneckN for CIFAR-10.")] = "resnet20",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contestant.")] = 5,
) -> None:
    """Time a training step on this machine, next to PyTorch's if it is installed."""
    from minires.devices.bench import compare
    from minires.parallel import get_num_threads, set_num_threads

    if threads is not None:
        set_num_threads(threads)
    print(compare(model, get_num_threads(), rounds))


@app.command()
def doctor(
    gpu_selftest: Annotated[
        bool, typer.Option("--gpu-selftest", help="Compare the GPU with NumPy, and time it; about a minute.")
    ] = False,
) -> None:
    """What this machine has: processor, threads, memory, data sets, GPU."""
    from minires.devices.doctor import describe_machine, selftest

    if not gpu_selftest:
        print(describe_machine())
        return
    passed, text = selftest()
    print(text)
    if not passed:
        sys.exit(1)


@app.command()
def check(
    exercise: Annotated[str | None, typer.Argument(help="Its number, as 4.2; without it, a table of all.")] = None,
) -> None:
    """Is your answer to an exercise right?"""
    from minires.course.exercises import overview, report

    if exercise is None:
        print(overview())
        return
    result = report(exercise)
    print(result.text)
    sys.exit(0 if result.status == "solved" else 1)


@app.command()
def grade(
    files: Annotated[list[Path], typer.Argument(help="Files and folders that were handed in.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one line per exercise.")] = False,
    seconds: Annotated[float, typer.Option(help="Time limit for each file.")] = 60,
) -> None:
    """Grade the answers of a class."""
    from minires.course.grading import as_csv, as_table, grade_all

    grades = grade_all(expand(files), seconds)
    print(as_csv(grades) if csv else as_table(grades), end="")


@app.command("hint")
def print_hint(
    exercise: Annotated[str, typer.Argument(help="Its number, as 4.2.")],
    stage: Annotated[int, typer.Argument(help="1 is an idea, the last is nearly the code.")] = 1,
) -> None:
    """A hint for an exercise."""
    from minires.course.exercises import hint

    hint(exercise, stage)


@app.command()
def elsewhere(
    framework: Annotated[str, typer.Argument(help="pytorch, keras, flax, paddle, mindspore, jittor, tinygrad, onnx.")],
) -> None:
    """What another framework means by the same words, where that is not what minires means."""
    from minires.course.elsewhere import differences

    print(differences(framework))


@app.command("reproduce")
def reproduce_paper(
    name: Annotated[str, typer.Argument(help="An experiment, one run of it (fast/resnet20), or all.")] = "all",
    budget: Annotated[float | None, opt("Stop, with a checkpoint, after this many hours. [no limit]")] = None,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    tables: Annotated[bool, typer.Option("--tables", help="Only rebuild tables and figures.")] = False,
) -> None:
    """Run or resume the paper's experiments on CIFAR-10, then rebuild their tables and figures."""
    from minires.paper.experiments import reproduce
    from minires.paper.tables import rebuild

    check_folder("--out", out)
    if not tables and not reproduce(name, out, data_dir, float("inf") if budget is None else budget):
        print(f"the time budget of {budget:g} hours is used up; run the same command to continue")
    print("rebuilt:", *[printable(path) for path in rebuild(out)] or ["nothing"])
