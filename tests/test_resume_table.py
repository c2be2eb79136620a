"""Nothing recorded is lost: run folders with missing, unreadable or wrong files, resumed by `train` and `reproduce`."""

import builtins
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from minires import plots
from minires.data import shapes10
from minires.paper import experiments, tables
from minires.paper.experiments import EXPERIMENTS, Training
from minires.training import config as settings
from minires.training.checkpoint import load_state, save_state
from minires.training.config import Config
from minires.training.loop import fit

DATA = shapes10(20, 10)  # two steps an epoch
CONFIG = Config(
    model="resnet8", width=4, data="shapes10", batch_size=8, epochs=2, threads=1, checkpoint_minutes=0, seed=0
)
FOLDER = Path("results", "first", "resnet20")
COMMANDS = {"train": ("train", "--resume", FOLDER), "reproduce": ("reproduce", "first")}
QUICK = ["train", pytest.param("reproduce", marks=pytest.mark.slow)]  # where both do the same
UNTIMED = "epoch", "step", "lr", "train_loss", "train_acc", "test_loss", "test_acc"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run folders by state: stopped in the first epoch, stopped in the second, all steps done, and no longer resumable.

    Their newest checkpoints: of step 1, 2 and 3 (the second epoch's first), 3 and 4, none.
    """
    found = {}
    for state, stop in (("first epoch", 1), ("second epoch", 3), ("done", None)):
        out = found[state] = tmp_path_factory.mktemp("folders") / "run"

        def press_ctrl_c(run, stop=stop):
            if run.progress.step == stop:
                signal.raise_signal(signal.SIGINT)

        with suppress(KeyboardInterrupt):
            fit(CONFIG, out, dataset=DATA, watch=press_ctrl_c)
    found["finished"] = shutil.copytree(found["done"], found["done"].parent / "finished")
    shutil.rmtree(found["finished"] / "checkpoints")
    for state, steps in (("first epoch", [1]), ("second epoch", [2, 3]), ("done", [3, 4])):
        names = sorted(path.name for path in (found[state] / "checkpoints").iterdir())
        assert names == [f"step-{step:08d}.safetensors" for step in steps]
        assert len(rows_of(found[state])) == steps[-1] // 2
    return found


@pytest.fixture
def resumed(folders, tmp_path, monkeypatch, status_of, capsys):
    """resumed(command, state, damage): resume a run folder in that state after the damage; what happened to it.

    "refused": status 2, one line, every byte as before. "left": status 0, every byte as before. "resumed": status 0,
    the run ended as an undisturbed one, and no epoch was trained again of which there was a good checkpoint.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "open_data", lambda *args, **options: DATA)
    monkeypatch.setattr(experiments, "open_data", lambda *args, **options: DATA)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nobody cuts the power here
    monkeypatch.setattr(plots, "curves", lambda *args, **options: None)
    monkeypatch.setattr(tables, "rebuild", lambda out: [])
    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    monkeypatch.setitem(EXPERIMENTS, "first", {"resnet20": Training(CONFIG, keep=True)})

    def resume(command, state, damage, fault=nullcontext()):  # noqa: B008, it has no state
        if damage is not None:
            shutil.copytree(folders[state], FOLDER, symlinks=True)
            damage(FOLDER)
        before = photograph(tmp_path)
        capsys.readouterr()
        with fault:
            status = status_of(*COMMANDS[command])
        printed = capsys.readouterr()
        if status == 2:
            assert printed.err.startswith("minires: ") and printed.err.count("\n") == 1, printed.err
            assert photograph(tmp_path) == before
            return "refused"
        assert status == 0, printed.err
        if photograph(tmp_path) == before:
            return "left"
        assert state == "first epoch" or "epoch 1/2" not in printed.out, "it started over"
        assert_same_run(FOLDER, folders["done"], resumable=command == "train" and state != "finished")
        return "resumed"

    return resume


def photograph(folder):
    """Every name in the folder, with its kind, its mode, and a digest of its content or where it links to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if path.is_symlink() else ""
        if stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.relative_to(folder).as_posix()] = stat.filemode(mode), content
    return found


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_run(out, other, resumable):
    """Both folders hold the same figures, the same net and, if they can be resumed, the same last checkpoint."""
    figures, others = ([[row[name] for name in UNTIMED] for row in rows_of(folder)] for folder in (out, other))
    assert figures == others
    names = ["model.safetensors", *(["checkpoints/step-00000004.safetensors"] if resumable else [])]
    for name in names:
        arrays, expected = load_state(out / name)[0], load_state(other / name)[0]
        assert arrays.keys() == expected.keys()
        for key, array in arrays.items():
            assert array.tobytes() == expected[key].tobytes(), (name, key)
    assert not list(out.rglob("*.safetensors.*.tmp"))


# ---- damages: to a file, to a checkpoint's arrays and info, and to folders


def nothing(out):
    """No damage."""


def replaced_by(content):
    """The file has this content."""
    return lambda path: path.write_bytes(content)


def cut(count):
    """The file lacks so many bytes at its end."""
    return lambda path: path.write_bytes(path.read_bytes()[:-count])


def lost(path):
    """There is no such file or folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def a_folder(path):
    """A folder has the file's name."""
    path.unlink()
    path.mkdir()


def a_broken_link(path):
    """A link to nowhere has the name."""
    lost(path)
    link(path, "nowhere")


def a_link_elsewhere(path):
    """The name is a link; the content is elsewhere."""
    path.rename(Path(path.name).absolute())
    link(path, Path(path.name).absolute())


def link(path, target):
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("Windows lets only some users make links")


def flipped(position, bit=0):
    """A bit of the file is flipped, at a position from its beginning (0) to its end (1)."""

    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(position * (len(content) - 1))] ^= 1 << bit
        path.write_bytes(content)

    return damage


def rewritten(change):
    """`change(arrays, info)` is done to the content of a checkpoint, and the file is written as minires does."""

    def damage(path):
        arrays, info = load_state(path)
        change(arrays, info)
        save_state(path, arrays, info)

    return damage


def number(name, value):
    """One number of an array has this value."""

    def change(arrays, info):
        arrays[name].flat[1] = value

    return rewritten(change)


def progress(**values):
    """Some values of a checkpoint's progress are others."""
    return rewritten(lambda arrays, info: info["progress"].update(values))


@cache
def checkpoint_of(step, **changes):
    """The newest checkpoint, as bytes, of a run with other settings that was stopped at this step."""

    def press_ctrl_c(run):
        if run.progress.step == step:
            signal.raise_signal(signal.SIGINT)

    with TemporaryDirectory() as folder:
        with suppress(KeyboardInterrupt):
            fit(replace(CONFIG, **changes), folder, dataset=DATA, watch=press_ctrl_c)
        return Path(folder, "checkpoints", f"step-{step:08d}.safetensors").read_bytes()


def of_another_run(**changes):
    """The checkpoint is that of a run with other settings, at the same step."""
    return lambda path: path.write_bytes(checkpoint_of(int(path.stem.removeprefix("step-")), **changes))


def without_digest(path):
    """The checkpoint is one from before there were digests."""
    with safe_open(path, "numpy") as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    save_file(arrays, path, {"info": metadata["info"]})


WRONG_INSIDE = {
    "no bytes": replaced_by(b""),
    "zero bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": replaced_by(b"<html>404 Not Found</html>\n"),
    "an array of JSON": replaced_by((2).to_bytes(8, "little") + b"[]"),
    "the last byte is missing": cut(1),
    "a hundred bytes are missing": cut(100),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit of a weight": flipped(0.5),
    "a bit of the last number": flipped(1.0, 7),
    "a bit of the header": flipped(0.01, 1),
    "NaN in a weight": number("net.conv1.weight", np.nan),
    "infinity in a velocity": number("velocity.fc.weight", np.inf),
    "a negative variance": number("net.bn1.running_var", -0.5),
    "no velocity": rewritten(lambda arrays, info: arrays.pop("velocity.fc.bias")),
    "no weight": rewritten(lambda arrays, info: arrays.pop("net.fc.bias")),
    "a weight too many": rewritten(lambda arrays, info: arrays.update({"net.more": np.zeros(3, np.float32)})),
    "another shape": rewritten(lambda arrays, info: arrays.update({"net.fc.bias": np.zeros(11, np.float32)})),
    "integers": rewritten(lambda arrays, info: arrays.update({"net.fc.bias": np.zeros(10, np.int64)})),
    "no info": rewritten(lambda arrays, info: info.clear()),
    "progress is a list": rewritten(lambda arrays, info: info.update(progress=[1])),
    "a negative step": progress(step=-1),
    "a step that is text": progress(step="3"),
    "an epoch too late": progress(epoch=7),
    "no rows": progress(rows=[]),
    "rows without figures": progress(rows=[{"epoch": 1}]),
    "rows that are lists": progress(rows=[[1, 2]]),
    "a loss that is text": progress(loss_sum="low"),
    "unknown values": progress(mood="good"),
    "another net": of_another_run(width=8),
    "a deeper net": of_another_run(model="resnet14"),
    "another seed": of_another_run(seed=1),
    "another learning rate": of_another_run(lr=0.1),
    "a longer run": of_another_run(epochs=3),
}


LATER = "step-00000099.safetensors"


def newest(damage):
    """The damage is done to the newest checkpoint."""
    return lambda out: damage(max((out / "checkpoints").iterdir()))


def every(damage):
    """The damage is done to every checkpoint."""
    return lambda out: [damage(path) for path in sorted((out / "checkpoints").iterdir())]


def checkpoints(damage):
    """The damage is done to the folder of checkpoints."""
    return lambda out: damage(out / "checkpoints")


def emptied(path):
    """The folder is empty."""
    lost(path)
    path.mkdir()


def a_file(path):
    """A file has the folder's name."""
    lost(path)
    path.write_text("checkpoints are on the other disk\n", encoding="utf-8")


# ---- checkpoints


@pytest.mark.parametrize("command", QUICK)
@pytest.mark.parametrize("damage", WRONG_INSIDE)
def test_a_newest_checkpoint_that_is_wrong_inside_is_set_aside_for_the_one_before(damage, command, resumed):
    damaged = []

    def change(path):
        WRONG_INSIDE[damage](path)
        damaged.append(path.read_bytes())

    assert resumed(command, "second epoch", newest(change)) == "resumed"
    assert damaged[0] in [path.read_bytes() for path in (FOLDER / "checkpoints").iterdir()]


@pytest.mark.parametrize("damage", ["no bytes", "zero bytes", "NaN in a weight"])
def test_the_last_epoch_is_trained_again_if_its_checkpoint_is_damaged(damage, resumed):
    assert resumed("train", "done", newest(WRONG_INSIDE[damage])) == "resumed"


def test_the_last_epoch_is_trained_again_if_its_checkpoint_is_lost(resumed):
    assert resumed("train", "done", newest(lost)) == "resumed"


@pytest.mark.parametrize("command", QUICK)
@pytest.mark.parametrize("damage", WRONG_INSIDE)
def test_checkpoints_that_are_all_wrong_inside_are_refused_and_left_as_they_are(damage, command, resumed):
    assert resumed(command, "second epoch", every(WRONG_INSIDE[damage])) == "refused"


@pytest.mark.parametrize("damage", ["zero bytes", "a bit of a weight", "a negative variance", "another seed"])
def test_a_run_whose_only_checkpoint_is_wrong_inside_is_refused(damage, resumed):
    assert resumed("train", "first epoch", every(WRONG_INSIDE[damage])) == "refused"


MISSING = {
    "no folder": checkpoints(lost),
    "an empty folder": checkpoints(emptied),
    "a file instead of the folder": checkpoints(a_file),
    "a link to nowhere instead of the folder": checkpoints(a_broken_link),
    "folders instead of files": every(a_folder),
    "links to nowhere instead of files": every(a_broken_link),
    "other names": every(lambda path: path.rename(path.with_suffix(".backup"))),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", MISSING)
def test_without_checkpoints_a_run_with_recorded_epochs_is_refused(damage, command, resumed):
    assert resumed(command, "second epoch", MISSING[damage]) == "refused"


@pytest.mark.parametrize("damage", ["no folder", "an empty folder"])
def test_without_checkpoints_a_run_without_a_recorded_epoch_starts_over(damage, resumed):
    assert resumed("train", "first epoch", MISSING[damage]) == "resumed"


def test_a_refusal_leaves_no_lock(resumed):
    def damage(out):
        lost(out / ".lock")
        lost(out / "checkpoints")

    assert resumed("train", "second epoch", damage) == "refused"


@pytest.mark.parametrize("state, damage", [("finished", "nothing"), *(("done", damage) for damage in MISSING)])
def test_a_finished_run_stays_as_it_is(state, damage, resumed):
    assert resumed("train", state, MISSING.get(damage, nothing)) == "refused"


@pytest.mark.parametrize("state, damage", [("finished", "nothing"), ("done", "no folder"), ("done", "an empty folder")])
def test_reproduce_leaves_a_finished_run_as_it_is(state, damage, resumed):
    assert resumed("reproduce", state, MISSING.get(damage, nothing)) == "left"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_from_before_there_were_digests_is_read_without_a_complaint(command, resumed, capsys):
    assert resumed(command, "second epoch", every(without_digest)) == "resumed"


def test_links_are_followed_and_stay(resumed):
    assert resumed("train", "second epoch", checkpoints(a_link_elsewhere)) == "resumed"
    assert (FOLDER / "checkpoints").is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_any_flipped_bit_of_the_newest_checkpoint_is_noticed_or_harmless(seed, resumed):
    draw = random.Random(seed)
    assert resumed("train", "second epoch", newest(flipped(draw.random(), draw.randrange(8)))) == "resumed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_any_flipped_bit_of_the_only_checkpoint_is_noticed_or_harmless(seed, resumed):
    draw = random.Random(seed)
    assert resumed("train", "first epoch", newest(flipped(draw.random(), draw.randrange(8)))) in (
        "resumed",
        "left",
        "refused",
    )


# ---- errors of the operating system

ERRORS = ("EIO", "EACCES", "EMFILE", "ENOMEM")
FILES = ("config.json", "checkpoints", "checkpoints/step-00000003.safetensors")


@contextmanager
def failing(error, fails):
    """Inside, the system reports this error to whoever opens or lists a path for which `fails(path)`."""

    def wrapped(function):
        def call(path=".", *args, **options):
            if isinstance(path, str | os.PathLike) and fails(Path(path)):
                raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)), str(path))
            return function(path, *args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((io, "open"), (builtins, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
            patch.setattr(module, name, wrapped(getattr(module, name)))
        yield


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_read_just_now_is_reported_and_nothing_changes(name, error, command, resumed, tmp_path):
    fault = failing(error, lambda path: path.absolute() == tmp_path / FOLDER / name)
    assert resumed(command, "second epoch", nothing, fault) == "refused"
    assert resumed(command, "second epoch", None) == "resumed"


@pytest.mark.parametrize("command", COMMANDS)
def test_rows_that_are_in_the_checkpoint_too_need_not_be_readable(command, resumed, tmp_path):
    fault = failing("EIO", lambda path: path.absolute() == tmp_path / FOLDER / "metrics.jsonl")
    assert resumed(command, "second epoch", nothing, fault) in ("resumed", "refused")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_that_is_not_needed_need_not_be_readable(command, resumed, tmp_path):
    older = tmp_path / FOLDER / "checkpoints" / "step-00000002.safetensors"
    fault = failing("EIO", lambda path: path.absolute() == older)
    assert resumed(command, "second epoch", nothing, fault) == "resumed"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user for whom the mode of a file counts")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", FILES)
def test_without_permission_nothing_changes(name, command, resumed):
    def forbid(out):
        (out / name).chmod(0)

    try:
        assert resumed(command, "second epoch", forbid) == "refused"
    finally:
        (FOLDER / name).chmod(0o700)


# ---- the other files of a run


WRONG_ROWS = {
    "lost": lost,
    "no bytes": replaced_by(b""),
    "zero bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "zero bytes at the end": lambda path: path.write_bytes(path.read_bytes() + bytes(100)),
    "half a line more": lambda path: path.write_bytes(path.read_bytes() + b'{"epoch": 2, "st'),
    "half of the last line": cut(60),
    "a list": replaced_by(b"[1, 2]\n"),
    "a row without step": replaced_by(b'{"epoch": 1}\n'),
    "a row more": lambda path: path.write_bytes(2 * path.read_bytes()),
    "a step that is text": replaced_by(b'{"epoch": 1, "step": "2"}\n'),
    "not UTF-8": replaced_by(b"\xff\xfe\n"),
    "too deep": replaced_by(b"[" * 100_000),
    "a link to nowhere": a_broken_link,
    "a link elsewhere": a_link_elsewhere,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", WRONG_ROWS)
def test_damaged_rows_are_those_of_the_checkpoint_again(damage, command, resumed):
    assert resumed(command, "second epoch", lambda out: WRONG_ROWS[damage](out / "metrics.jsonl")) == "resumed"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_in_place_of_the_rows_is_refused(command, resumed):
    assert resumed(command, "second epoch", lambda out: a_folder(out / "metrics.jsonl")) == "refused"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", [damage for damage in WRONG_ROWS if damage != "a link elsewhere"])
def test_damaged_rows_of_a_run_without_checkpoints_stay_as_they_are(damage, command, resumed):
    outcome = resumed(command, "finished", lambda out: WRONG_ROWS[damage](out / "metrics.jsonl"))
    assert outcome == ("left" if (damage, command) == ("a row more", "reproduce") else "refused")


@pytest.mark.parametrize("file", ["sessions.jsonl", "layers.jsonl", "steps.jsonl"])
@pytest.mark.parametrize("content", ["[1, 2]", '{"epoch": 1}', '{"step": "2"}', "null", "\0\0\0", "{"])
def test_damaged_rows_that_only_reproduce_writes_are_reported_first(content, file, resumed):
    assert resumed("reproduce", "second epoch", lambda out: (out / file).write_text(content + "\n")) == "refused"


def with_setting(**changes):
    """The recorded config has other settings."""

    def damage(path):
        about = json.loads(path.read_text(encoding="utf-8"))
        about["config"].update(changes)
        path.write_text(json.dumps(about), encoding="utf-8")

    return damage


WRONG_CONFIGS = {
    "no bytes": replaced_by(b""),
    "zero bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "a list": replaced_by(b"[]"),
    "not UTF-8": replaced_by(b"\xff"),
    "a folder": a_folder,
    "another seed": with_setting(seed=1),
    "another learning rate": with_setting(lr=0.3),
    "another weight decay": with_setting(weight_decay=0.0),
    "no augmentation": with_setting(augment=False),
    "fewer epochs": with_setting(epochs=1),
    "more epochs": with_setting(epochs=3),
    "another net": with_setting(model="resnet14"),
    "a setting of a later version": with_setting(precision="bfloat16"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", WRONG_CONFIGS)
def test_a_config_that_is_not_the_runs_is_refused(damage, command, resumed):
    assert resumed(command, "second epoch", lambda out: WRONG_CONFIGS[damage](out / "config.json")) == "refused"


def test_a_lost_config_is_refused(resumed):
    assert resumed("train", "second epoch", lambda out: lost(out / "config.json")) == "refused"


def test_reproduce_does_not_start_over_in_a_folder_without_a_config(resumed):
    assert resumed("reproduce", "second epoch", lambda out: lost(out / "config.json")) == "refused"


@pytest.mark.parametrize("state", ["second epoch", "done"])
@pytest.mark.parametrize("damage", ["lost", "no bytes", "zero bytes"])
def test_a_net_that_was_lost_comes_back_from_the_checkpoint(damage, state, resumed):
    assert resumed("train", state, lambda out: WRONG_ROWS[damage](out / "model.safetensors")) == "resumed"


MINE = ("mine.tmp", "notes.txt", "metrics.jsonl.tmp", "checkpoints/best.safetensors", "checkpoints/step-3.safetensors")
MINE += (
    "checkpoints/step-00000003.safetensors.tmp",
    "checkpoints/.ipynb_checkpoints/a",
    "checkpoints/best/b",
    "c.tmp/d",
)


@pytest.mark.parametrize("state", ["first epoch", "second epoch"])
@pytest.mark.parametrize("damage", [nothing, newest(lambda path: shutil.copy(path, path.with_name(LATER)))])
def test_a_run_that_was_resumed_is_done(damage, state, resumed):
    assert resumed("train", state, damage) == "resumed"
    assert resumed("train", state, None) in ("left", "refused")


@pytest.mark.parametrize("state, outcome", [("first epoch", "resumed"), ("second epoch", "resumed"), ("done", "left")])
def test_the_users_own_files_stay(state, outcome, resumed):
    def add(out):
        for name in MINE:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(name, encoding="utf-8")

    assert resumed("train", state, add) == outcome
    assert [name for name in MINE if (FOLDER / name).read_text(encoding="utf-8") != name] == []
