"""A training run is stopped before and after every file operation it does, in six ways, and then resumed as advised."""

import builtins
import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from queue import SimpleQueue
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from minires.training.checkpoint import load_state

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process that has computed already fork"),
]

TRAIN = (  # two epochs of two steps, with a checkpoint after each
    "train resnet8 --width 4 --data shapes10 --batch-size 16 --epochs 2 --threads 1 --set checkpoint_minutes=0 "
    "--out runs/one"
).split()
IMAGES = 40, 20  # for training and testing
SIGNALS = {"SIGKILL": 137, "SIGINT": 130, "SIGTERM": 143}  # and the status that a shell reports
ERRORS = ("ENOSPC", "EIO", "EACCES")


# ---- in the driver: a process that has imported everything, and forks one that runs a command


def serve():
    """Run the commands that come as JSON lines on stdin; answer each with its exit status."""
    from matplotlib.figure import Figure

    from minires.cli import main
    from minires.data import shapes10
    from minires.training import config

    Figure.set_layout_engine = lambda *args, **options: None  # half the time of a short run is the layout of its curves
    data = shapes10(*IMAGES)
    config.open_data = lambda *args, **options: data
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        main([*TRAIN[:-1], folder])  # now everything is imported
    for line in sys.stdin:
        job = json.loads(line)
        if os.fork() == 0:
            run_command(**job)
        _, status = os.wait()
        status = os.waitstatus_to_exitcode(status)
        print(status if status >= 0 else 128 - status, flush=True)


def run_command(arguments, folder, act, point):
    """Run a command of the command line in `folder` as a process would; act at the point (number of call, side)."""
    from minires.cli import main

    os.chdir(folder)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(120)  # kills a process that hangs
    wrap_file_operations(act, tuple(point or ()))
    try:
        main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


def wrap_file_operations(act, point):
    """Log every file operation in the current folder to the file `calls`, and do `act` at the point."""
    folder, log, write = os.getcwd() + os.sep, os.open("calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.write
    count, is_full = 0, False

    def is_here(path):
        return not isinstance(path, int) and os.path.join(folder, os.fspath(path)).startswith(folder + "runs")

    def strike(number, side, name):
        nonlocal is_full
        if (number, side) == point:
            if act in SIGNALS:
                os.kill(os.getpid(), getattr(signal, act))
            else:
                is_full = act == "ENOSPC"
                raise OSError(getattr(errno, act), os.strerror(getattr(errno, act)))
        if is_full and side == "before" and name not in ("read", "unlink"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def counted(name, path, operation, half=None):
        nonlocal count
        number, count = count, count + 1
        write(log, f"{name} {os.path.relpath(path) if isinstance(path, str | os.PathLike) else path}\n".encode())
        strike(number, "before", name)
        try:
            result = half() if half and (number, "after") == point else operation()
        except OSError:
            strike(number, "after", name)
            raise
        strike(number, "after", name)
        return result

    def wrapped_open(open):
        def opened(path, mode="r", *args, **options):
            if not is_here(path):
                return open(path, mode, *args, **options)
            name = "read" if set(mode) <= set("rbt") else "open"
            file = counted(name, path, lambda: open(path, mode, *args, **options))
            if name == "open":
                unwrapped = file.write

                def half(data):
                    unwrapped(data[: len(data) // 2])
                    file.flush()

                file.write = lambda data: counted("write", path, lambda: unwrapped(data), lambda: half(data))
            return file

        return opened

    def wrapped(name, operation):
        def called(path, *args, **options):
            if name == "fsync":  # nobody cuts the power here
                return counted(name, path, lambda: None)
            if not is_here(path):
                return operation(path, *args, **options)
            return counted(name, path, lambda: operation(path, *args, **options))

        return called

    builtins.open, io.open = wrapped_open(builtins.open), wrapped_open(io.open)
    for name in ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, wrapped(name, getattr(os, name)))


# ---- in the test


class Drivers:
    """Two drivers, which run commands at the same time."""

    def __enter__(self):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )
            for _ in range(2)
        ]
        self.idle = SimpleQueue()
        for process in self.processes:
            self.idle.put(process)
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.communicate()

    def run(self, arguments, folder, act=None, point=None):
        """Run a command in `folder`. Returns its exit status."""
        process = self.idle.get()
        job = {"arguments": arguments, "folder": str(folder), "act": act, "point": point}
        print(json.dumps(job), file=process.stdin, flush=True)
        status = int(process.stdout.readline())
        self.idle.put(process)
        return status


@pytest.fixture(scope="module")
def drivers():
    with Drivers() as drivers:
        yield drivers


@pytest.fixture(scope="module")
def undisturbed(drivers, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert drivers.run(TRAIN, folder) == 0, (folder / "err").read_text(encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def interrupted(drivers, undisturbed, tmp_path_factory):
    """The folder of a run that was stopped by Ctrl-C after three of its four steps."""
    folder = tmp_path_factory.mktemp("interrupted")
    calls = calls_in(undisturbed)
    (written,) = [n for n, call in enumerate(calls) if re.match(r"replace .*00000003\.safetensors", call)]
    assert drivers.run(TRAIN, folder, "SIGINT", (written, "before")) == 130
    assert epochs_in(folder) == 1
    return folder


def calls_in(folder):
    return (folder / "calls").read_text(encoding="utf-8").splitlines()


def epochs_in(folder):
    """How many epochs are recorded."""
    file = folder / "runs" / "one" / "metrics.jsonl"
    return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0


def records_of(folder):
    """What must be the same in the folders of two runs: all that is recorded but the times."""
    run = folder / "runs" / "one"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    newest = max((run / "checkpoints").glob("step-????????.safetensors"))
    with Image.open(run / "curves.png") as image:
        image.load()
    return {
        "rows": [{name: value for name, value in row.items() if "seconds" not in name} for row in rows],
        "net": bits_of(run / "model.safetensors"),
        "newest checkpoint": newest.name,
        "state": bits_of(newest),
        "config": json.loads((run / "config.json").read_text(encoding="utf-8"))["config"],
        "files": sorted(
            str(path.relative_to(run))
            for path in run.rglob("*")
            if not re.fullmatch(r"step-\d{8}.safetensors", path.name)
        ),
    }


def bits_of(path):
    arrays, _ = load_state(path)
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


def advice_in(folder):
    """The command in the last message, if any: python -m minires train --resume FOLDER, or just --resume FOLDER."""
    text = (folder / "err").read_text(encoding="utf-8")
    found = re.findall(r"python -m minires (.+)|(--resume \S+)", text)
    if not found:
        return None
    command, option = found[-1]
    return shlex.split(command) if command else ["train", *shlex.split(option)]


def problem(drivers, folder, first, act, point, expected):
    """What is wrong after `first` is disturbed at the point and resumed; "" if nothing is."""
    status = drivers.run(first, folder, act, point)
    err = (folder / "err").read_text(encoding="utf-8")
    if status not in ({SIGNALS[act]} if act in SIGNALS else {2, 0}):  # 0: the error was harmless
        return f"status {status}: {err[-300:]!r}"
    if status not in (0, 137) and not (err.startswith("minires: ") and err.count("\n") == 1):
        return f"not one line: {err[-300:]!r}"
    told, is_recorded = [err], epochs_in(folder) > 0
    for _ in range(2):
        if status == 0:
            break
        advice = advice_in(folder)
        status = drivers.run(advice or first, folder)
        told += [(folder / "err").read_text(encoding="utf-8")]
        if status != 0 and (advice or status != 2):
            return f"{' '.join(advice or first)}: status {status}: {told}"
        if is_recorded and "epoch 1/2" in (folder / "out").read_text(encoding="utf-8"):
            return "an epoch that was recorded was trained again"
    if status != 0:
        return f"dead end: {told}"
    try:
        records = records_of(folder)
    except Exception as error:
        return f"{error!r}"
    return ", ".join(name for name in records if records[name] != expected[name])


def check_points(drivers, folder, act, calls, first, expected, start=None):
    """Disturb the command `first` before and after each of its `calls`, and report every point where that ends badly.

    Of many writes to one file in a row, the first and the last count.
    """
    numbers = [n for n, call in enumerate(calls) if call not in calls[n - 1 : n] or call not in calls[n + 1 : n + 2]]
    points = [(number, side) for number in numbers for side in ("before", "after")]

    def at(point):
        here = folder / f"{point[0]}-{point[1]}"
        if start:
            shutil.copytree(start, here)
        else:
            here.mkdir()
        found = problem(drivers, here, first, act, point, expected)
        shutil.rmtree(here)
        return f"{act} {point[1]} {calls[point[0]]} (call {point[0]}): {found}" if found else None

    with ThreadPoolExecutor(2) as pool:
        problems = [text for text in pool.map(at, points) if text]
    print(f"{len(problems)} of {len(points)} fail")
    assert not problems, "\n".join([f"{len(problems)} of {len(points)} points fail", *problems])


@pytest.mark.parametrize("act", [*SIGNALS, *ERRORS])
def test_disturbed_anywhere_and_resumed_as_advised_the_run_ends_the_same(act, drivers, undisturbed, tmp_path):
    check_points(drivers, tmp_path, act, calls_in(undisturbed), TRAIN, records_of(undisturbed))


@pytest.mark.parametrize("act", [*SIGNALS, *ERRORS])
def test_disturbed_while_it_resumes_the_run_ends_the_same(act, drivers, undisturbed, interrupted, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(interrupted, folder)
    resume = ["train", "--resume", "runs/one"]
    assert drivers.run(resume, folder) == 0
    calls = calls_in(folder)
    stop = next(n for n, call in enumerate(calls) if re.match(r"open .*step-", call))  # from there it is a run as above
    check_points(drivers, tmp_path, act, calls[:stop], resume, records_of(undisturbed), start=interrupted)


if __name__ == "__main__":
    serve()
