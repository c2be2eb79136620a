"""A run folder: nothing recorded is lost, nobody's files are deleted, and a run that is stopped can be resumed."""

import errno
import gc
import io
import json
import os
import shutil
import signal
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minires.cli import resumed_config
from minires.data import shapes10
from minires.files import FileError
from minires.paper import experiments
from minires.paper.experiments import Training
from minires.parallel import set_num_threads
from minires.training import config as settings
from minires.training import folder
from minires.training import run as run_module
from minires.training.checkpoint import CheckpointError, load_state, save_state
from minires.training.config import Config, RunError, read_config
from minires.training.folder import checkpoints_in, delete_checkpoints, lock_folder, resume_command, set_aside
from minires.training.loop import evaluate, fit
from minires.training.run import Run, load_run
from minires.training.signals import defer_signals, exit_status, stop_on_signals

DATA = shapes10(40, 20)
SETTINGS = {"model": "resnet8", "width": 4, "batch_size": 16, "epochs": 3, "threads": 1}  # 2 steps an epoch
SMALL = Config.from_recipe("fast", **SETTINGS)
TRAIN = ["train", "resnet8", "--width", 4, "--batch-size", 16, "--epochs", 3, "--threads", 1, "--data", "shapes10"]
STEPS_4_AND_6 = ["step-00000004.safetensors", "step-00000006.safetensors"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    fit(SMALL, out, dataset=DATA)
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(settings, "open_data", lambda *args, **options: DATA)


def content_of(folder):
    """Every file in the folder, and what is in it; folders are None."""
    found = {p.relative_to(folder).as_posix(): None if p.is_dir() else p.read_bytes() for p in folder.rglob("*")}
    return {name: content for name, content in found.items() if name != ".lock"}


def rows_of(out):
    """The recorded rows, without the times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def assert_same_run(out, other):
    assert rows_of(out) == rows_of(other)
    nets = [load_state(folder / "model.safetensors") for folder in (out, other)]
    assert nets[0][1] == nets[1][1]
    assert all(np.array_equal(array, nets[1][0][name]) for name, array in nets[0][0].items())
    assert [path.name for path in checkpoints_in(out)] == STEPS_4_AND_6


def resume(out):
    return fit(read_config(out), out, resume=True, dataset=DATA)


def change_state(path, name="net.conv1.weight", value=None, info=None):
    """Change a number in a checkpoint, or its info, and write it with a digest that fits."""
    arrays, old = load_state(path)
    if value is not None:
        arrays[name].flat[1] = value
    save_state(path, arrays, {**old, **(info or {})})


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


# ---- what is recorded stays


def lose_checkpoints(run):
    shutil.rmtree(run / "checkpoints")


def keep_two_rows(run):
    path = run / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))


def checkpoints_are_a_file(run):
    lose_checkpoints(run)
    (run / "checkpoints").write_bytes(b"")


def a_checkpoint_is_a_folder(run):
    newest = checkpoints_in(run)[-1]
    newest.unlink()
    newest.mkdir()


def without_checkpoints(change):
    def both(run):
        lose_checkpoints(run)
        change(run)

    return both


def all_damaged(run):
    for path in checkpoints_in(run):
        flip_a_bit(path)


def another_config(run):
    path = run / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"lr": 0.2', '"lr": 0.3'), encoding="utf-8")


REFUSED = {
    "finished, without checkpoints": (lose_checkpoints, "recorded 3 of 3 epochs: it is finished, nothing to do"),
    "an empty folder of checkpoints": (lambda run: delete_checkpoints(run, 0), "finished, nothing to do"),
    "unfinished, without checkpoints": (
        without_checkpoints(keep_two_rows),
        "recorded 2 of 3 epochs, but its checkpoints are missing; restore them",
    ),
    "the rows are lost too": (
        without_checkpoints(lambda run: (run / "metrics.jsonl").unlink()),
        "metrics.jsonl: expected the epochs that model.safetensors was trained for, got none",
    ),
    "the rows are empty": (
        without_checkpoints(lambda run: (run / "metrics.jsonl").write_bytes(b"")),
        "metrics.jsonl: expected the epochs that model.safetensors was trained for, got none",
    ),
    "the rows are zeros": (
        without_checkpoints(lambda run: (run / "metrics.jsonl").write_bytes(bytes(500))),
        "metrics.jsonl: expected the epochs that model.safetensors was trained for, got none",
    ),
    "a row is damaged": (
        without_checkpoints(lambda run: (run / "metrics.jsonl").write_text('{"epoch": 1}\n', encoding="utf-8")),
        "metrics.jsonl, line 1 is damaged",
    ),
    "checkpoints is a file": (checkpoints_are_a_file, "cannot read .*checkpoints: "),
    "a checkpoint is a folder": (a_checkpoint_is_a_folder, "step-00000006.safetensors: expected a file, got a folder"),
    "all are damaged": (all_damaged, "has no good checkpoint: .*step-00000006.safetensors: damaged"),
    "another config.json": (another_config, "config.json is not the one that it was written with"),
    "no config.json": (lambda run: (run / "config.json").unlink(), "holds no run: config.json is missing"),
    "config.json is a folder": (
        lambda run: ((run / "config.json").unlink(), (run / "config.json").mkdir()),
        "cannot read .*config.json",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_resumed_ends_with_one_line_and_every_byte_as_before(what, run, status_of, capsys):
    change, message = REFUSED[what]
    change(run)
    before = content_of(run)
    assert status_of("train", "--resume", run) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("minires: ")
    with pytest.raises((RunError, FileError), match=message):
        resume(run) if (run / "config.json").is_file() else fit(SMALL, run, resume=True, dataset=DATA)
    assert content_of(run) == before


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("name", ["checkpoints", *STEPS_4_AND_6, "metrics.jsonl", "config.json"])
def test_what_can_not_be_read_just_now_is_reported_and_stays(name, error, run, monkeypatch):
    """Of two checkpoints, only the older is never looked at."""
    if name == "metrics.jsonl":
        lose_checkpoints(run)
    before = content_of(run)
    config = read_config(run)

    def broken(method):
        def call(self, *args, **options):
            if self.name == name:
                raise OSError(error, os.strerror(error))
            return method(self, *args, **options)

        return call

    with monkeypatch.context() as patch:
        for method in ("open", "iterdir", "read_bytes", "read_text"):
            patch.setattr(Path, method, broken(getattr(Path, method)))
        if name == STEPS_4_AND_6[0]:
            fit(config, run, resume=True, dataset=DATA)
        else:
            with pytest.raises((OSError, FileError, RunError), match=os.strerror(error)):
                fit(config, run, resume=True, dataset=DATA)
    assert content_of(run) == before


def test_a_folder_that_does_not_exist_is_not_made(tmp_path):
    with pytest.raises(RunError, match="nowhere holds no run"):
        fit(SMALL, tmp_path / "nowhere", resume=True, dataset=DATA)
    assert not (tmp_path / "nowhere").exists()


DAMAGED = {
    "NaN": lambda path: change_state(path, value=np.nan),
    "an infinite velocity": lambda path: change_state(path, "velocity.fc.bias", -np.inf),
    "a negative variance": lambda path: change_state(path, "net.bn1.running_var", -0.5),
    "a flipped bit": flip_a_bit,
    "its end is missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "no bytes": lambda path: path.write_bytes(b""),
    "of another run": lambda path: change_state(path, info={"config": "0" * 64}),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(how, run, finished, capsys):
    newest = checkpoints_in(run)[-1]
    DAMAGED[how](newest)
    damaged = newest.read_bytes()
    assert len(resume(run)) == 3
    assert_same_run(run, finished)
    assert capsys.readouterr().err.startswith("set aside a damaged checkpoint as step-00000006.safetensors.damaged: ")
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == damaged


def test_nothing_is_set_aside_over_another_file(tmp_path):
    for n, name in enumerate(["x.damaged", "x.damaged1", "x.damaged2"]):
        (tmp_path / "x").write_text(str(n), encoding="utf-8")
        assert set_aside(tmp_path / "x") == tmp_path / name
    assert content_of(tmp_path) == {"x.damaged": b"0", "x.damaged1": b"1", "x.damaged2": b"2"}


def test_a_finished_run_stays_as_it_is(run, capsys):
    before = content_of(run)
    assert len(resume(run)) == 3
    assert content_of(run) == before
    assert capsys.readouterr().out == f"{run} is finished, nothing to do\n"


@pytest.mark.parametrize("damage", [Path.unlink, Path.touch, flip_a_bit], ids=["lost", "empty", "flipped"])
def test_a_lost_net_is_written_again_from_the_checkpoint(damage, run, finished):
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes() if damage is flip_a_bit else b"")
    damage(run / "model.safetensors")
    resume(run)
    assert content_of(run) == content_of(finished)


@pytest.mark.parametrize("rows", ["", '{"epoch": 1, "st', None])
def test_a_run_without_a_recorded_epoch_begins_again(rows, run, finished):
    lose_checkpoints(run)
    (run / "model.safetensors").unlink()
    if rows is None:
        (run / "metrics.jsonl").unlink()
    else:
        (run / "metrics.jsonl").write_text(rows, encoding="utf-8")
    resume(run)
    assert_same_run(run, finished)


@pytest.mark.parametrize("step", [4, 6])
def test_every_recorded_epoch_has_a_checkpoint_whatever_fails(step, finished, tmp_path, monkeypatch):
    """Each of the three files of an epoch's end can't be written, once."""
    for method in ("save_checkpoint", "save_model", "save_metrics"):
        run = tmp_path / method
        original = getattr(Run, method)

        def fail(self, original=original):
            if self.progress.step == step:
                raise FileError("no space")
            original(self)

        with monkeypatch.context() as patch, pytest.raises(FileError, match="no space"):
            patch.setattr(Run, method, fail)
            fit(SMALL, run, dataset=DATA)
        assert len(rows_of(run)) == step // 2 - 1 and checkpoints_in(run)
        resume(run)
        assert_same_run(run, finished)


def test_a_net_that_is_not_finite_is_not_saved_over_a_good_one(tmp_path):
    def spoil(run):
        if run.progress.step == 3:
            run.net.bn1.running_var[0] = np.nan  # no loss in training mode shows it

    config = Config.from_recipe("fast", **SETTINGS, checkpoint_minutes=0)
    with pytest.raises(CheckpointError, match="net.bn1.running_var holds NaN"):
        fit(config, tmp_path / "run", dataset=DATA, watch=spoil)
    assert [path.name[5:13] for path in checkpoints_in(tmp_path / "run")] == ["00000002", "00000003"]
    assert all(load_state(path) for path in checkpoints_in(tmp_path / "run"))


def test_another_layout_of_config_json_is_no_other_config(run, finished):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8", newline="\r\n")
    checkpoints_in(run)[-1].unlink()
    resume(run)
    assert_same_run(run, finished)


def test_a_config_of_a_later_version_says_so(run):
    path = run / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["config"]["dropout"] = 0.1
    path.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(RunError, match="unexpected keyword argument 'dropout'$"):
        read_config(run)
    about["versions"]["minires"] = "9.1"
    path.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(RunError, match="'dropout'; minires 9.1 wrote it, this is "):
        read_config(run)


def test_the_recorded_nets_load():
    nets = sorted((Path(__file__).parent.parent / "results").glob("*/*/model.safetensors"))
    assert len(nets) >= 4
    for path in nets:
        net, _, info = load_run(path.parent)
        assert info["data"] == "cifar10" and len(net.parameters()) > 50


@pytest.mark.parametrize("recorded, own, chosen, wanted", [(64, 2, {}, 2), (1, 2, {}, 1), (64, 2, {"threads": 3}, 3)])
def test_a_resumed_run_takes_no_more_threads_than_this_machine_has(recorded, own, chosen, wanted, run):
    path = run / "config.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"threads": 1', f'"threads": {recorded}'), encoding="utf-8"
    )
    set_num_threads(own)
    assert resumed_config(run, chosen, None).threads == wanted


# ---- nobody's files are deleted


def test_other_files_in_a_run_folder_stay(run, finished):
    for name in (
        "notes.tmp",
        "model.safetensors.old.tmp",
        "my.json.123.tmp",
        "checkpoints/best.safetensors",
        "checkpoints/step-4.safetensors",
        "checkpoints/step-00000002.safetensors.bak",
        "checkpoints/step-00000004 (copy).safetensors",
        "checkpoints/.ipynb_checkpoints/x",
        "checkpoints/best/step-00000002.safetensors",
    ):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(name, encoding="utf-8")
    own = {name: text for name, text in content_of(run).items() if name not in content_of(finished)}
    leftovers = ["config.json.7.tmp", "metrics.jsonl.7.tmp", "model.safetensors.7.tmp", "steps.jsonl.7.tmp"]
    for name in [*leftovers, "checkpoints/step-00000004.safetensors.7.tmp"]:
        (run / name).write_bytes(b"half")
    checkpoints_in(run)[-1].unlink()
    fit(read_config(run, checkpoint_minutes=0), run, resume=True, dataset=DATA)
    present = content_of(run)
    assert own.items() <= present.items()
    newest = ["step-00000005.safetensors", "step-00000006.safetensors"]
    kept = {f"checkpoints/{name}" for name in newest} | {"config.json", "metrics.jsonl", "model.safetensors"}
    assert present.keys() - own.keys() == kept | {"checkpoints"}


def test_only_exact_names_of_plain_files_are_deleted(tmp_path):
    names = ["step-00000006.safetensors", "step-123456789.safetensors", "config.json.7.tmp", "curves.png.12345.tmp"]
    others = ["step-12.safetensors", "step-00000006.safetensors.damaged", "config.json", "config.json.tmp", "a.7.tmp"]
    for name in [*names, *others]:
        (tmp_path / name).touch()
        folder._delete(tmp_path / name)
    assert sorted(content_of(tmp_path)) == sorted(others)
    (tmp_path / names[0]).mkdir()
    folder._delete(tmp_path / names[0])
    assert (tmp_path / names[0]).is_dir()


def test_the_last_checkpoints_go_with_their_folder_unless_others_use_it(run):
    (run / "checkpoints" / "best.safetensors").write_bytes(b"best")
    delete_checkpoints(run, keep=1)
    assert {name for name in content_of(run) if "/" in name} == {
        "checkpoints/best.safetensors",
        "checkpoints/step-00000006.safetensors",
    }
    delete_checkpoints(run, keep=0)
    assert {name for name in content_of(run) if "/" in name} == {"checkpoints/best.safetensors"}
    (run / "checkpoints" / "best.safetensors").unlink()
    delete_checkpoints(run, keep=0)
    assert not (run / "checkpoints").exists()


# ---- the folder of a new run


def test_a_refused_folder_is_left_as_it_was(run, finished, tmp_path, status_of, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_bytes(b"years of work")
    (tmp_path / "file").write_bytes(b"a file")
    without_checkpoints(keep_two_rows)(tmp_path / "run")
    shutil.copytree(finished, tmp_path / "my run")
    before = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}, content_of(tmp_path)
    for name, message in {
        "thesis": "thesis is not empty; name another folder with --out\n",
        "run": "run is not empty; name another folder with --out\n",  # and can't be resumed
        "file": "\n",
        "my run": f"name another folder with --out, or resume the run in it: {resume_command(tmp_path / 'my run')}\n",
        "new": "build: the model",
    }.items():
        command = ["train", "resnet21", *TRAIN[2:]] if name == "new" else TRAIN
        assert status_of(*command, "--out", tmp_path / name) == 2
        err = capsys.readouterr().err
        assert err.endswith(message) or name == "new"
        assert f"--out: expected a folder, got the file {tmp_path / 'file'}; " in err or name != "file"
    assert ({str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}, content_of(tmp_path)) == before


def test_the_command_to_resume_can_be_typed():
    if os.name == "nt":
        assert resume_command(Path("my run")) == 'python -m minires train --resume "my run"'
    else:
        assert resume_command(Path("my run/$a")) == "python -m minires train --resume 'my run/$a'"
    assert resume_command(Path("run")) == "python -m minires train --resume run"


def test_what_a_killed_start_left_is_in_nobodys_way(finished, tmp_path):
    """Killed while config.json was written."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / "config.json.4711.tmp").write_bytes(b'{"config"')
    fit(SMALL, run, dataset=DATA)
    assert content_of(run).keys() == content_of(finished).keys()
    assert_same_run(run, finished)


def test_stopped_right_after_its_config_was_written_a_run_can_be_resumed(finished, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save_metrics", stop)
        fit(SMALL, tmp_path / "run", dataset=DATA)
    assert content_of(tmp_path / "run").keys() == {"config.json"}
    resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", finished)


def test_resume_is_advised_only_when_it_will_work(tmp_path, monkeypatch, status_of, capsys):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_atomically", stop)
        assert status_of(*TRAIN, "--out", "run") == 130
    assert capsys.readouterr().err == "minires: stopped\n"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_metrics", stop)
        assert status_of(*TRAIN, "--out", "run") == 130
    assert capsys.readouterr().err == f"minires: stopped; resume with: {resume_command(Path('run'))}\n"
    assert status_of("train", "--resume", "run") == 0


def test_a_refused_lock_file_is_left_to_its_owner(tmp_path):
    with lock_folder(tmp_path):
        with pytest.raises(RunError, match="in use"), lock_folder(tmp_path):
            pass
        assert (tmp_path / ".lock").exists() or os.name == "nt"


# ---- signals

STOPPING = [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)]


@pytest.fixture(params=STOPPING, ids=lambda stop: stop[0])
def stop(request, monkeypatch):
    """A signal that arrives during step 3, and the exit status that it leads to."""
    name, status = request.param
    if not hasattr(signal, name):
        pytest.skip(f"this system has no {name}")
    original = Run.is_checkpoint_due

    def received(self):
        if self.progress.step == 3:
            monkeypatch.setattr(Run, "is_checkpoint_due", original)
            signal.raise_signal(getattr(signal, name))
        return original(self)

    monkeypatch.setattr(Run, "is_checkpoint_due", received)
    return getattr(signal, name), status


def test_a_signal_saves_the_step_and_the_run_ends_the_same(stop, finished, tmp_path):
    number, _ = stop
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        fit(SMALL, tmp_path / "run", dataset=DATA)
    assert [path.name[5:13] for path in checkpoints_in(tmp_path / "run")] == ["00000002", "00000003"]
    assert signal.getsignal(number) == before
    resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", finished)


def test_the_status_of_a_command_is_that_of_its_signal(stop, tmp_path, status_of, capsys):
    _, status = stop
    assert status_of(*TRAIN, "--out", tmp_path / "run") == status
    assert capsys.readouterr().err == f"minires: stopped; resume with: {resume_command(tmp_path / 'run')}\n"


def test_a_closed_terminal_keeps_neither_the_status_nor_the_step_back(stop, tmp_path, status_of, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    _, status = stop
    monkeypatch.setattr(sys, "stderr", Closed())
    assert status_of(*TRAIN, "--out", tmp_path / "run") == status
    assert checkpoints_in(tmp_path / "run")[-1].name == "step-00000003.safetensors"


def test_reproduce_stops_as_train_does(stop, tmp_path, status_of, monkeypatch, capsys):
    _, status = stop
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"first": {"resnet8": Training(SMALL, keep=True)}})
    monkeypatch.setattr(experiments, "open_data", lambda *args: DATA)
    assert status_of("reproduce", "first", "--out", tmp_path) == status
    assert capsys.readouterr().err == "minires: stopped\n"
    run = tmp_path / "first" / "resnet8"
    assert [path.name[5:13] for path in checkpoints_in(run)] == ["00000002", "00000003"]


def test_a_signal_that_is_ignored_stays_ignored(stop, finished, tmp_path):
    number, _ = stop
    before = signal.signal(number, signal.SIG_IGN)
    try:
        fit(SMALL, tmp_path / "run", dataset=DATA)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert_same_run(tmp_path / "run", finished)


def test_a_handler_of_the_program_is_called_between_two_steps(stop, tmp_path):
    number, _ = stop
    received = []
    before = signal.signal(number, lambda *args: received.append(args[0]))
    try:
        fit(SMALL, tmp_path / "run", dataset=DATA)
    finally:
        signal.signal(number, before)
    assert received == [number] and len(rows_of(tmp_path / "run")) == 3


def test_a_deferred_signal_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("block")
        done.append("not reached")
    assert done == ["block"] and exit_status() == 143
    with stop_on_signals():
        assert exit_status() == 130


def test_another_thread_than_the_main_one_changes_no_handler(tmp_path):
    rows = []
    thread = threading.Thread(target=lambda: rows.extend(fit(SMALL, tmp_path / "run", dataset=DATA)))
    thread.start()
    thread.join()
    assert len(rows) == 3


@pytest.mark.slow
def test_loading_and_evaluating_200_runs_leaves_nothing_behind(finished):
    """Neither memory, nor open files, nor threads."""

    def load_and_evaluate(times):
        for _ in range(times):
            net, normalise, _ = load_run(finished)
            evaluate(net, DATA.test_images, DATA.test_labels, normalise)
        gc.collect()
        files = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0
        return files, threading.active_count(), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        files, threads, memory = load_and_evaluate(50)  # what is kept for reuse has its full size now
        files_after, threads_after, memory_after = load_and_evaluate(200)
    finally:
        tracemalloc.stop()
    assert (files_after, threads_after) == (files, threads)
    assert memory_after - memory < 100_000  # of five nets
