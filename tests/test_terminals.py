"""Commands where there is no terminal as usual: closed streams, a console of few characters, no shell that expands."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from minires.data import Dataset
from minires.training.config import Config
from minires.training.loop import fit

posix = pytest.mark.skipif(os.name == "nt", reason="Windows closes and interrupts in its own ways")
CLASSES = ("猫", "a$b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run whose classes and name need more than ASCII, and a picture."""
    folder, rng = tmp_path_factory.mktemp("terminals"), np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 32, 32, 3), np.uint8), np.arange(8) % 2
    data = Dataset("图片", images, labels, images, labels, CLASSES)
    fit(Config.from_recipe(model="resnet8", width=2, epochs=1, batch_size=4, threads=1), folder / "跑", dataset=data)
    for name in ("猫.png", "b.png", "[1].png"):
        Image.fromarray(images[0]).save(folder / name)
    return folder


def minires(*arguments, prefix="", **options):
    words = [sys.executable, "-m", "minires", *map(str, arguments)]
    if prefix:  # the shell closes the streams
        words = ["sh", "-c", f'exec "$@" {prefix}', "sh", *words]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, **options)


@posix
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "2>&- >&- <&-"])
def test_a_closed_stream_changes_no_result(closed, folder, tmp_path):
    train = ["train", "resnet8", "--width=2", "--set=steps=2", "--set=epochs=none", "--data=shapes10", "--out"]
    assert minires(*train, tmp_path / "run", prefix=closed).returncode == 0
    assert {"model.safetensors", "curves.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n") == 1
    refused = minires("plot", tmp_path / "nowhere", prefix=closed)
    assert refused.returncode == 2 and refused.stdout == b""
    assert refused.stderr.startswith(b"minires: ") == (not closed.startswith("2"))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_hold_a_name(encoding, folder, tmp_path):
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    found = minires("predict", "跑", "猫.png", "--plot", tmp_path / "猫.png", cwd=folder, env=env)
    assert (found.returncode, found.stderr) == (0, b"")
    assert rb"\u732b.png" in found.stdout and rb"  \u732b " in found.stdout and b"  a$b " in found.stdout
    assert (tmp_path / "猫.png").stat().st_size > 1000
    drawn = minires("plot", "跑", "--out", tmp_path / "跑", cwd=folder, env=env)
    assert drawn.returncode == 0 and drawn.stdout.endswith(b"\\u8dd1.png" + os.linesep.encode())
    refused = minires("eval", "没有", cwd=folder, env=env)
    assert refused.returncode == 2 and rb"\u6ca1\u6709" in refused.stderr and refused.stderr.count(b"\n") == 1


def test_patterns_are_expanded(folder, status_of, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert status_of("predict", "跑", "*.png") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")] == [
        "[1].png",
        "b.png",
        "猫.png",
    ]
    assert status_of("predict", "跑", "[1].png") == 0  # a file of this name is no pattern
    assert capsys.readouterr().out.startswith("[1].png\n")
    assert status_of("predict", "跑", "*.jpeg") == 2
    assert "*.jpeg" in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["nan", "-1", "-inf", "much"])
def test_a_budget_is_a_number_of_hours(hours, tmp_path, status_of, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status_of("reproduce", "--budget", hours) == 2
    err = capsys.readouterr().err
    assert "budget" in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["bench", "--threads", "-1"], ["bench", "--rounds", "0"], ["bench", "resnet9"]])
def test_what_bench_refuses_is_one_line(arguments, status_of, capfd):
    assert status_of(*arguments) == 2
    assert capfd.readouterr().err.count("\n") == 1


@posix
def test_ctrl_c_ends_a_benchmark_with_one_line():
    words = [sys.executable, "-m", "minires", "bench", "--rounds", "1000", "--threads", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    time.sleep(2)  # in the middle of its start or of its first rounds
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"minires: stopped\n")
