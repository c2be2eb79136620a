"""Commands where there is no terminal as usual: closed streams, a console of few characters, no shell that expands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from minires.data import Dataset
from minires.paper import experiments, tables
from minires.paper.experiments import EXPERIMENTS, Identity
from minires.training.config import Config
from minires.training.loop import fit

posix = pytest.mark.skipif(os.name == "nt", reason="Windows closes and interrupts in its own ways")
CLASSES = ("猫", "a$b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run and pictures, in classes, whose names need more than ASCII."""
    folder, rng = tmp_path_factory.mktemp("terminals"), np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 32, 32, 3), np.uint8), np.arange(8) % 2
    data = Dataset("图片", images, labels, images, labels, CLASSES)
    fit(Config.from_recipe(model="resnet8", width=2, epochs=1, batch_size=4, threads=1), folder / "跑", dataset=data)
    for name in ("猫.png", "b.png", "[1].png", "1.png"):
        Image.fromarray(images[0]).save(folder / name)
    for image, label, k in zip(images, labels, range(8), strict=True):
        (folder / "图片" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "图片" / CLASSES[label] / f"{k}.png")
    return folder


SEVERAL = """import json, os, stat, sys
from minires.cli import main
for words in json.loads(sys.argv[1]):
    main(words)
for number in range(3):
    assert not stat.S_ISREG(os.fstat(number).st_mode), "what a library prints would go into a file that is in use"
"""
TRAIN = ["train", "resnet8", "--width=2", "--set=steps=2", "--set=epochs=none", "--threads=1", "--data=图片", "--out"]


def minires(*commands, prefix="", **options):
    """Run commands one after the other in a new process, which ends with the first that fails."""
    commands = json.dumps([[str(word) for word in command] for command in commands])
    words = [sys.executable, "-c", SEVERAL, commands]
    if prefix:  # the shell closes the streams
        words = ["sh", "-c", f'exec "$@" {prefix}', "sh", *words]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, **options)


@posix
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "2>&- >&- <&-"])
def test_a_closed_stream_changes_no_result(closed, folder, tmp_path):
    run, drawn = tmp_path / "run", tmp_path / "drawn.png"
    commands = [*TRAIN, run], ["plot", run, "--out", drawn], ["eval", run], ["predict", run, "b.png"]
    found = minires(*commands, prefix=closed, cwd=folder)
    assert found.returncode == 0
    assert {"model.safetensors", "curves.png"} <= {path.name for path in run.iterdir()}
    assert (run / "metrics.jsonl").read_bytes().count(b"\n") == 1 and drawn.stat().st_size > 1000
    said = [b"run folder", b"drawn.png\n", b"test images of", b"b.png\n"]
    assert [words in found.stdout for words in said] == [closed == "2>&-"] * 4
    refused = minires(["plot", tmp_path / "nowhere"], prefix=closed)
    assert refused.returncode == 2 and refused.stdout == b""
    assert refused.stderr.startswith(b"minires: ") == (not closed.startswith("2"))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_hold_a_name(encoding, folder, tmp_path):
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    commands = (
        ["predict", "跑", "猫.png", "--plot", tmp_path / "猫.png"],
        ["plot", "跑", "--out", tmp_path / "跑"],
        [*TRAIN, tmp_path / "新的"],
        ["eval", tmp_path / "新的"],
        ["eval", "没有"],
    )
    found = minires(*commands, cwd=folder, env=env)
    assert rb"\u732b.png" in found.stdout and rb"  \u732b " in found.stdout and b"  a$b " in found.stdout
    assert (tmp_path / "猫.png").stat().st_size > 1000
    assert b"\\u8dd1.png" + os.linesep.encode() in found.stdout
    assert rb"on \u56fe\u7247, run folder " in found.stdout and b"2 test images of \\u56fe\\u7247: " in found.stdout
    assert {"model.safetensors", "curves.png"} <= {path.name for path in (tmp_path / "新的").iterdir()}
    assert found.returncode == 2
    assert found.stderr.startswith(b"minires: ") and found.stderr.count(b"\n") == 1
    assert rb"\u6ca1\u6709" in found.stderr


def test_patterns_are_expanded(folder, status_of, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert status_of("predict", "跑", "*.png") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")] == [
        "1.png",
        "[1].png",
        "b.png",
        "猫.png",
    ]
    assert status_of("predict", "跑", "[1].png") == 0  # a file of this name is no pattern
    assert capsys.readouterr().out.startswith("[1].png\n")
    assert status_of("predict", "跑", "*.jpeg") == 2
    assert "*.jpeg" in capsys.readouterr().err


def test_patterns_of_runs_and_of_handed_in_files(folder, tmp_path, status_of, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run-1", "run-2"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "跑" / "metrics.jsonl", name)
    assert status_of("plot", "run-?") == 0  # of several runs, into one picture here
    assert capsys.readouterr().out == "curves.png\n" and (tmp_path / "curves.png").exists()
    for name in ("b.py", "a.py", "c.txt"):
        (tmp_path / name).touch()
    assert status_of("grade", "*.py", "--csv") == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["file", "a.py", "b.py"]


@pytest.mark.parametrize("hours", ["nan", "-1", "-inf", "much"])
def test_a_budget_is_a_number_of_hours(hours, tmp_path, status_of, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "open_data", None)  # or it would train
    assert status_of("reproduce", "--budget", hours) == 2
    err = capsys.readouterr().err
    assert "budget" in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_budget_of_nothing_and_one_without_end(tmp_path, status_of, capsys, monkeypatch):
    out, seconds = tmp_path / "results", iter(range(99))  # of a clock that advances whenever it is read
    monkeypatch.setitem(EXPERIMENTS, "zero-residual", {"plain": Identity("A", blocks=1, steps=3)})
    monkeypatch.setattr(experiments.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(tables, "rebuild", lambda results: [])
    for hours in ("0", "0.0001", "-0"):  # 0.36 seconds
        assert status_of("reproduce", "zero-residual", "--budget", hours, "--out", out) == 0
        assert "is used up; run the same command" in capsys.readouterr().out and not out.exists()
    assert status_of("reproduce", "zero-residual", "--budget", "inf", "--out", out) == 0
    assert "used up" not in capsys.readouterr().out
    assert (out / "zero-residual" / "plain" / "metrics.jsonl").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("arguments", [["bench", "--threads", "-1"], ["bench", "--rounds", "0"], ["bench", "resnet9"]])
def test_what_bench_refuses_is_one_line(arguments, status_of, capfd):
    assert status_of(*arguments) == 2
    assert capfd.readouterr().err.count("\n") == 1


@posix
def test_ctrl_c_ends_a_benchmark_with_one_line():
    code = "from minires.cli import main; print('ready', flush=True); main(['bench', '--rounds=1000', '--threads=1'])"
    words = [sys.executable, "-c", code]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    time.sleep(1)  # the contestants start, or take their first turns
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"minires: stopped\n")
