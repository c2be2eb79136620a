"""The command line: what each command prints and writes, and that every error is one line."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from minires import backend, cli, data, plots
from minires.course import exercises, grading
from minires.data import shapes10
from minires.training import config as config_module
from minires.training.config import Config, read_config


@pytest.fixture(autouse=True)
def small_data(monkeypatch, tmp_path):
    """Commands run in an empty folder, on a Shapes-10 of a few images."""
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_module, "shapes10", lambda: shapes10(140, 40))


SMALL = ("train", "resnet8", "--epochs", 2, "--batch-size", 70, "--threads", 1)


# ---- what commands do


def test_train_writes_a_run_folder_and_ends_with_a_table(tmp_path, capsys, status_of):
    assert status_of(*SMALL) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("resnet8-shapes10-")
    files = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "curves.png", "model.safetensors", "checkpoints"} <= files
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar if stderr is no terminal
    assert "python -m minires data fetch" in out.splitlines()[0]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line.split()[1] for line in out.splitlines() if line.startswith("epoch")] == ["1/2", "2/2"]
    training, test = out.splitlines()[-3:-1]
    assert training.split() == ["training", f"{rows[-1]['train_loss']:.4f}", f"{rows[-1]['train_acc']:.2%}"]
    assert test.split() == ["test", f"{rows[-1]['test_loss']:.4f}", f"{rows[-1]['test_acc']:.2%}"]
    assert str(run.relative_to(tmp_path)) in out.splitlines()[-1]

    assert status_of("eval", run) == 0
    assert f"accuracy {rows[-1]['test_acc']:.2%}" in capsys.readouterr().out
    (run / "curves.png").unlink()
    assert status_of("plot", run) == 0 and (run / "curves.png").exists()
    assert status_of("plot", run, run, "--out", "both.png") == 0 and (tmp_path / "both.png").exists()
    assert status_of(*SMALL, "--out", run) == 2
    assert "is not empty" in capsys.readouterr().err
    assert status_of("train", "--resume", run) == 0


def test_every_option_reaches_the_config(tmp_path, status_of):
    options = ["--recipe", "paper", "--lr", 0.05, "--seed", 7, "--device", "cpu", "--data", "shapes10"]
    options += ["--shortcut", "B", "--width", 4, "--set", "momentum=0.8", "--set", "nesterov=True"]
    assert status_of(*SMALL, *options, "--val", "--data-dir", "somewhere", "--out", "run") == 0
    assert read_config("run") == Config.from_recipe(
        "paper",
        model="resnet8",
        epochs=2,
        batch_size=70,
        threads=1,
        lr=0.05,
        seed=7,
        shortcut="B",
        width=4,
        momentum=0.8,
        nesterov=True,
        val=True,
        data="shapes10",
        data_dir=str(tmp_path / "somewhere"),
    )


@pytest.mark.parametrize(
    "text, value",
    [
        ("momentum=0.8", 0.8),
        ("momentum=1", 1.0),
        ("lr=1E-2", 0.01),
        ("steps=1000", 1000),
        ("epochs=none", None),
        ("epochs=None", None),
        ("nesterov=false", False),
        ("augment=True", True),
        ("schedule=cosine", "cosine"),
        ("data_dir=a=B", "a=B"),
        ("data_dir=none", None),
    ],
)
def test_a_setting_has_the_type_that_the_config_declares(text, value):
    name, parsed = cli.parse_setting(text)
    assert (name, parsed, type(parsed)) == (text.split("=")[0], value, type(value))


def test_every_setting_is_reachable():
    for name, value in asdict(Config()).items():
        assert cli.parse_setting(f"{name}={value}") == (name, value)


def test_a_data_folder_is_absolute_however_it_is_set(tmp_path):
    for options, settings in (({"data_dir": "here"}, []), ({}, ["data_dir=here"])):
        assert cli.add_settings(options, settings) == {"data_dir": str(tmp_path / "here")}
    assert cli.add_settings({}, ["data_dir=none"]) == {"data_dir": None}


def test_help_has_the_defaults_of_the_config(capsys, status_of):
    assert status_of("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Images per step. [{Config().batch_size}]" in text
    assert f"[fast: {Config().lr}, paper: {Config.from_recipe('paper').lr}]" in text
    assert f"[fast: {Config().epochs}]" in text  # the paper counts steps
    assert all(f.name in text for f in fields(Config))


def test_resume_keeps_the_runs_settings(capsys, status_of):
    assert status_of(*SMALL, "--out", "run") == 0
    changed = ["--batch-size", 9, "--set", "momentum=0.5", "--out", "other"]
    assert status_of("train", "plain8", "--resume", "run", *changed) == 2
    assert capsys.readouterr().err == (
        "minires: --resume: expected only data_dir, device, threads, checkpoint_minutes, "
        "got model, batch_size, momentum, out; a run keeps its settings\n"
    )
    assert status_of("train", "--resume", "run", "--threads", 2, "--set", "checkpoint_minutes=5") == 0
    assert read_config("run").threads == 1


def test_summary_as_a_table_as_json_and_as_a_picture(tmp_path, capsys, status_of):
    assert status_of("summary", "resnet20") == 0
    assert "269,722" in capsys.readouterr().out
    assert status_of("summary", "resnet20", "--json", "--plot", "drawn/net.png") == 0
    assert json.loads(capsys.readouterr().out)["total"]["parameters"] == 269_722
    assert (tmp_path / "drawn" / "net.png").stat().st_size > 0


def test_data_show_draws_a_contact_sheet(tmp_path, capsys, status_of):
    assert status_of("data", "show", "shapes10") == 0
    assert status_of("data", "show", "shapes10", "--out", "sheet.png") == 0
    assert capsys.readouterr().out == "shapes10.png\nsheet.png\n"
    assert (tmp_path / "sheet.png").read_bytes() == (tmp_path / "shapes10.png").read_bytes()


def test_data_fetch_downloads_cifar10_unless_it_is_there(tmp_path, monkeypatch, capsys, status_of):
    folders = []
    monkeypatch.setattr(data.cifar10, "download_cifar10", lambda folder: folders.append(folder) or "the new path")
    assert status_of("data", "fetch") == 0
    assert [str(folder) for folder in folders] == ["data"] and "the new path" in capsys.readouterr().out
    monkeypatch.setenv("MINIRES_DATA", "there")  # the download goes where `train` looks
    assert status_of("data", "fetch") == 0 and str(folders[-1]) == "there"
    assert status_of("train", "--data", "cifar10") == 2
    assert "CIFAR-10 is not in there; download it with: python -m minires data fetch\n" in capsys.readouterr().err
    assert status_of("train", "--data", "cifar10", "--data-dir", "else") == 2
    other = tmp_path / "else"
    message = f"not in {other}; download it with: python -m minires data fetch --data-dir {other}\n"
    assert capsys.readouterr().err.endswith(message)
    (tmp_path / "here").mkdir()
    archive = tmp_path / "here" / "cifar-10-python.tar.gz"
    archive.touch()
    assert status_of("data", "fetch", "--data-dir", "here") == 0  # a damaged copy doesn't count
    out, err = capsys.readouterr()
    assert str(folders[-1]) == "here" and "the new path" in out and str(Path("here", "cifar-10-python.tar.gz")) in err
    monkeypatch.setattr(data.cifar10, "load_cifar10", lambda path: path)
    assert status_of("data", "fetch", "--data-dir", "here") == 0
    assert len(folders) == 3 and "cifar-10-python.tar.gz" in capsys.readouterr().out


def test_hint_takes_its_stage_as_a_second_argument(capsys, status_of):
    hints = []
    for stage in ([], ["2"]):
        assert status_of("hint", "4.2", *stage) == 0
        hints.append(capsys.readouterr().out)
    assert hints[0] != hints[1] and all(hints)


def test_grade_prints_a_table_or_csv(tmp_path, monkeypatch, capsys, status_of):
    graded = []
    monkeypatch.setattr(grading, "grade_all", lambda files, seconds: graded.append((files, seconds)) or [])
    monkeypatch.setattr(grading, "as_table", lambda grades: "a table")
    monkeypatch.setattr(grading, "as_csv", lambda grades: "a,csv")
    assert status_of("grade", "anna", "ben") == 0 and capsys.readouterr().out == "a table"
    assert status_of("grade", "anna", "--csv", "--seconds", 5) == 0 and capsys.readouterr().out == "a,csv"
    assert graded == [([Path("anna"), Path("ben")], 60), ([Path("anna")], 5)]


def test_help_lists_every_command_and_costs_little(capsys, status_of):
    assert status_of() == 0
    text = capsys.readouterr().out
    commands = "train eval predict summary data plot bench doctor check grade hint reproduce".split()
    assert all(f"\n  {command} " in text for command in commands)
    script = "import sys, minires.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=REPO).split()
    assert not {"matplotlib", "safetensors", "tqdm", "pooch", "requests", "filelock", "rich"} & set(loaded)


# ---- what goes wrong


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "resnet21"], "nearest are resnet20 and resnet26"),
        (["train", "mobilenet"], "mobilenet"),
        (["train", "--epochs", "0"], "epochs: expected a positive integer, got 0"),
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--lr", "nan"], "lr: expected a positive number"),
        (["train", "--batch-size", "1000"], "batch_size"),
        (["train", "--threads", "0"], "threads: expected a positive integer, got 0"),
        (["train", "--seed", "-1"], "seed"),
        (["train", "--data", "mnist"], "--data: expected auto, cifar10, shapes10 or a folder of pictures, got 'mnist'"),
        (["train", "--data", ".", "--data-dir", "."], "--data-dir: expected none with the folder of pictures ."),
        (["train", "--data-dir", "nowhere"], "CIFAR-10 is not in"),
        (["train", "--recipe", "slow"], "recipe: expected one of fast, paper"),
        (["train", "--device", "abacus"], "device: expected one of"),
        (["train", "--shortcut", "D"], "shortcut"),
        (["train", "--width", "0"], "width: expected a positive integer, got 0"),
        (["train", "--set", "speed=9"], "momentum, nesterov"),
        (["train", "--set", "speed=9"], "got 'speed=9'"),
        (["train", "--set", "momentum"], "--set: expected NAME=VALUE"),
        (["train", "--set", "lr=fast"], "--set lr: expected a number, got 'fast'"),
        (["train", "--set", "epochs=2.5"], "--set epochs: expected none or an integer, got '2.5'"),
        (["train", "--set", "seed=none"], "--set seed: expected an integer, got 'none'"),
        (["train", "--set", "nesterov=1"], "--set nesterov: expected true or false, got '1'"),
        (["train", "--set", "momentum=-1"], "momentum: expected a non-negative number, got -1.0"),
        (["train", "--set", "device=abacus"], "device: expected one of"),
        (["train", "--lr", "1", "--set", "lr=2"], "lr: expected one value, got 1.0 and 2.0"),
        (["train", "--set", "lr=1", "--set", "lr=2"], "lr: expected one value, got 1.0 and 2.0"),
        (["train", "--data", "cifar10", "--data-dir", "."], "python -m minires data fetch"),
        (["train", "--data", "cifar10"], "python -m minires data fetch"),
        (["train", "--resume", "nowhere"], "nowhere holds no run"),
        (["train", "--out", "a-file"], "a-file"),
        (["train", "--speed", "9"], "--speed"),
        (["eval", "nowhere"], "nowhere holds no trained net"),
        (["eval"], "Missing argument"),
        (["eval", "a-file"], "a-file holds no trained net"),
        (["summary", "x"], "'x'"),
        (["data"], "Missing command"),
        (["data", "cifar10"], "No such command 'cifar10'. See: python -m minires data --help"),
        (["data", "show"], "Missing argument"),
        (["data", "show", "mnist"], "mnist: no such folder"),
        (["data", "show", "cifar10"], "python -m minires data fetch"),
        (["hint", "4.2", "many"], "valid integer"),
        (["hint", "99.1"], "99.1"),
        (["check", "4.2", "4.3"], "4.3"),
        (["grade"], "Missing argument"),
        (["grade", "nowhere"], "nowhere"),
        (["plot", "nowhere"], "nowhere"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments, message, tmp_path, capsys, status_of):
    (tmp_path / "a-file").touch()
    assert status_of(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("minires: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "runs").exists()  # and no folder is left behind


def test_a_damaged_net_is_reported_in_one_line(tmp_path, capsys, status_of):
    assert status_of(*SMALL, "--out", "run") == 0
    model = tmp_path / "run" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-50])
    capsys.readouterr()
    assert status_of("eval", "run") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "model.safetensors" in err


# ---- as a process

REPO = backend.__file__.rpartition(os.sep + "minires" + os.sep)[0]


def start(folder, *arguments):
    command = [sys.executable, "-m", "minires", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": REPO},
    )


def test_an_unknown_net_ends_the_process_with_status_2_and_no_traceback(tmp_path):
    with start(tmp_path, "train", "resnet21", "--data", "shapes10") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.count("\n") == 1 and "Traceback" not in err


def test_ctrl_c_ends_any_command_with_one_line_and_status_130(monkeypatch, status_of, capsys):
    def interrupted(exercise):
        raise KeyboardInterrupt

    monkeypatch.setattr(exercises, "report", interrupted)
    assert status_of("check", "1.1") == 130
    assert capsys.readouterr().err == "minires: stopped\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_saves_and_ends_with_one_line_and_status_130(tmp_path):
    with start(tmp_path, "train", "resnet8", "--epochs", 500, "--out", "run") as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "minires: stopped; resume with: python -m minires train --resume run\n"
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_tilde_is_the_home_folder_in_every_form(tmp_path, monkeypatch, capsys, status_of):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert status_of("summary", "resnet8", "--plot=~/net") == status_of("summary", "resnet8", "--plot", "~/two") == 0
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["net.png", "two.png"]
    assert status_of("train", "--resume=~/nowhere") == status_of("reproduce", "--tables", "--out=~/net.png") == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "home" / "nowhere") in err and str(tmp_path / "home" / "net.png") in err


def test_the_table_is_printed_before_the_curves_are_drawn(tmp_path, monkeypatch, capsys, status_of):
    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(plots, "curves", fail)
    assert status_of(*SMALL, "--width", 2, "--out", tmp_path / "run") == 2
    out, err = capsys.readouterr()
    assert "after epoch 2, step 4" in out and err == "minires: the disk is full\n"


@pytest.mark.parametrize("arguments", [["train", "--data-dir", "nowhere", "--out"], ["reproduce", "--out"]])
def test_a_file_is_no_folder_for_an_output(arguments, tmp_path, capsys, status_of):
    (tmp_path / "mine.txt").write_bytes(b"mine")
    assert status_of(*arguments, tmp_path / "mine.txt") == 2  # before any data are looked for
    assert capsys.readouterr().err.startswith("minires: --out: expected a folder, got the file ")
    assert (tmp_path / "mine.txt").read_bytes() == b"mine"
