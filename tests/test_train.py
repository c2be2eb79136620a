"""The training loop against a loop written out by hand, and all that may happen to a run on the way."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minires.training import run as room
from minires.training import loop as train
from minires.backend import set_num_threads
from minires.training.checkpoint import load_state
from minires.data import DataError, Loader, Normalise, shapes10
from minires.functional import cross_entropy
from minires.nn import Dropout, Module
from minires.resnet import build
from minires.tensor import Tensor, no_grad
from minires.training.loop import Config, NotFinite, Run, RunError, evaluate, fit, load_run, read_config

DATA = shapes10(70, 30)
SMALL = {"model": "resnet8", "width": 4, "batch_size": 16, "epochs": 3, "threads": 1}  # 4 steps an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    fit(Config.from_recipe("fast", **SMALL), out, dataset=DATA)
    return out


def rows_of(out):
    """metrics.jsonl, every line of it whole, without the figures that no two runs share."""
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def assert_same_run(out, other):
    assert rows_of(out) == rows_of(other)
    arrays, _ = load_state(out / "model.safetensors")
    others, _ = load_state(other / "model.safetensors")
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert np.array_equal(array, others[name]), name


# ---- the loop


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_fit_does_what_a_loop_written_out_by_hand_does(recipe, tmp_path):
    config = Config.from_recipe(recipe, **SMALL)
    rows = fit(config, tmp_path / "run", dataset=DATA)

    set_num_threads(1)
    normalise = (Normalise.channels if recipe == "fast" else Normalise.pixel_mean)(DATA.train_images)
    loader = Loader(
        DATA.train_images, DATA.train_labels, 16, normalise=normalise, shuffle=True, augment=True, drop_last=True
    )
    net = build("resnet8", width=4)
    velocity = {name: np.zeros(p.shape, np.float32) for name, p in net.named_parameters()}
    fast_rates = [0.2 * (0.04 + 0.96 * k / 3) if k < 3 else 0.2 * (12 - k) / 9 for k in range(12)]
    rates = fast_rates if recipe == "fast" else [0.1] * 6 + [0.01] * 3 + [0.001] * 3
    step = 0
    for epoch in range(3):
        losses, right = [], 0
        for x, y in loader.epoch(epoch):
            logits = net(Tensor(x))
            loss = cross_entropy(logits, y)
            loss.backward()
            losses.append(loss.item())
            right += sum(int(np.argmax(row)) == label for row, label in zip(logits.data, y, strict=True))
            for name, p in net.named_parameters():
                g, v = p.grad, velocity[name]
                if recipe == "paper":
                    g = g + 1e-4 * p.data
                    v[...] = 0.9 * v + g
                    p.data -= rates[step] * v
                else:
                    g = g + 5e-4 * p.data if p.ndim > 1 else g
                    v[...] = 0.9 * v + g
                    p.data -= rates[step] * (g + 0.9 * v)
                p.zero_grad()
            step += 1
        assert rows[epoch]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert rows[epoch]["train_acc"] == right / 64
        assert rows[epoch]["lr"] == pytest.approx(rates[step - 1])
        assert (rows[epoch]["epoch"], rows[epoch]["step"]) == (epoch + 1, step)
    trained, _, _ = load_run(tmp_path / "run")
    for (name, p), (_, mine) in zip(trained.named_parameters(), net.named_parameters(), strict=True):
        np.testing.assert_allclose(p.data, mine.data, rtol=1e-3, atol=1e-4, err_msg=name)
    for (name, kept), (_, own) in zip(trained.named_buffers(), net.named_buffers(), strict=True):
        np.testing.assert_allclose(kept, own, rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_test_figures_are_those_of_the_saved_net_in_evaluation_mode(whole):
    net, normalise, info = load_run(whole)
    with no_grad():
        logits = net.eval()(Tensor(normalise(DATA.test_images))).data.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    last = rows_of(whole)[-1]
    assert last["test_acc"] == np.mean(logits.argmax(1) == DATA.test_labels)
    assert last["test_loss"] == pytest.approx(-np.mean(np.log(p[np.arange(30), DATA.test_labels])), rel=1e-5)
    assert (info["model"], info["data"], info["classes"]) == ("resnet8", "shapes10", list(DATA.classes))


def test_evaluate_leaves_the_net_as_it_was_and_does_not_depend_on_the_batch():
    net = build("resnet8", width=4)
    normalise = Normalise.channels(DATA.train_images)
    before = net.state_dict()
    found = [evaluate(net, DATA.test_images, DATA.test_labels, normalise, size) for size in (1, 7, 30)]
    assert net.training
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())
    assert {acc for _, acc in found} == {found[0][1]}
    assert [loss for loss, _ in found] == pytest.approx([found[0][0]] * 3, rel=1e-5)


def test_evaluate_that_fails_leaves_the_net_in_training():
    net = build("resnet8", width=4)
    with pytest.raises(ValueError, match="99"):
        evaluate(net, DATA.test_images, np.full(30, 99), Normalise.channels(DATA.train_images))
    assert net.training and net.bn1.training


def test_a_git_that_does_not_answer_stops_nothing(tmp_path, monkeypatch):
    asked = []

    def slow(command, **options):
        asked.append(command[0])
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(room, "subprocess", SimpleNamespace(run=slow, TimeoutExpired=subprocess.TimeoutExpired))
    monkeypatch.setattr(room, "__file__", str(tmp_path / "minires" / "run.py"))
    (tmp_path / ".git").mkdir()
    assert room.environment()["git"] is None and asked == ["git"]


def test_validation_holds_out_a_tenth_and_never_looks_at_the_test_set(tmp_path):
    unseen = replace(DATA, test_images=None, test_labels=None)
    run = Run(Config.from_recipe("fast", val=True, **SMALL), tmp_path, unseen)
    assert (len(run.loader.images), len(run.test_images)) == (63, 7)
    both = np.concatenate([run.loader.images, run.test_images])
    assert np.array_equal(both, DATA.train_images)
    assert np.array_equal(run.normalise.mean, Normalise.channels(DATA.train_images[:63]).mean)
    rows = fit(Config.from_recipe("fast", val=True, **SMALL), tmp_path / "run", dataset=unseen)
    assert list(rows[0])[3:] == ["train_loss", "train_acc", "val_loss", "val_acc", "seconds", "cpu_seconds"]


def test_the_papers_recipe_is_64000_steps_with_a_tenth_of_the_rate_at_32k_and_48k(tmp_path):
    run = Run(Config.from_recipe("paper", width=4, model="resnet8", batch_size=16), tmp_path, DATA)
    assert run.total == 64_000
    rates = [run.schedule(step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    deep = room.schedule_of(Config.from_recipe("paper", model="resnet110"), 64_000)
    assert [deep(step) for step in (0, 399, 400, 31_999)] == pytest.approx([0.01, 0.01, 0.1, 0.1])


def test_steps_that_do_not_fill_the_last_epoch_end_the_run_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PAPER_STEPS", 6)
    rows = fit(Config.from_recipe("paper", **{**SMALL, "epochs": None}), tmp_path / "run", dataset=DATA)
    assert [row["step"] for row in rows] == [4, 6]


def test_other_seeds_give_other_runs(tmp_path, whole):
    fit(Config.from_recipe("fast", **SMALL, seed=1), tmp_path / "run", dataset=DATA)
    assert rows_of(tmp_path / "run") != rows_of(whole)


def test_the_config_file_holds_every_setting_and_what_else_matters(whole):
    written = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    assert Config(**written["config"]) == read_config(whole) == Config.from_recipe("fast", **SMALL, data="shapes10")
    assert written["steps"] == 12
    assert [written["dataset"][name] for name in ("name", "train", "test")] == ["shapes10", 70, 30]
    assert written["versions"]["numpy"] == np.__version__
    assert {"platform", "git"} <= set(written)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", -1),
        ("threads", True),
        ("seed", -1),
        ("lr", 0),
        ("lr", math.nan),
        ("lr", "fast"),
        ("data", "mnist"),
        ("recipe", "slow"),
        ("schedule", "none"),
        ("normalise", "no"),
    ],
)
def test_a_wrong_setting_is_told_by_name(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}: expected .*{value!r}"):
        Config(**{setting: value})
    with pytest.raises(ValueError, match="^recipe: expected one of fast, paper, got 'slow'"):
        Config.from_recipe("slow")


# ---- which data


def test_auto_takes_what_it_finds(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "load_cifar10", lambda place: ("cifar10 from", place))
    monkeypatch.setattr(room, "shapes10", lambda: "shapes10")
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert room.open_data("auto") == "shapes10"
    assert room.open_data("auto", tmp_path) == "shapes10"
    with pytest.raises(DataError, match="python -m minires data cifar10"):
        room.open_data("cifar10", tmp_path)
    archive = tmp_path / "data" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    archive.touch()
    assert room.open_data("auto")[1].samefile(archive)
    assert room.open_data("auto", archive.parent)[1].samefile(archive)
    assert room.open_data("shapes10", archive.parent) == "shapes10"


# ---- resuming


def press_ctrl_c(monkeypatch, step, method="end_step"):
    """Ctrl-C while the run counts its `step`-th step (or is in another method)."""
    original = getattr(Run, method)

    def pressed(self, *args):
        if self.at.step == step:
            monkeypatch.setattr(Run, method, original)
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Run, method, pressed)


@pytest.mark.parametrize("recipe", ["fast", "paper"])
@pytest.mark.parametrize("step", [0, 3, 4, 6, 11])
def test_stopped_by_ctrl_c_and_resumed_is_bit_for_bit_the_same_run(recipe, step, tmp_path, monkeypatch):
    config = Config.from_recipe(recipe, **SMALL)
    fit(config, tmp_path / "whole", dataset=DATA)
    press_ctrl_c(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", dataset=DATA)
    assert (tmp_path / "run" / "checkpoints" / f"step-{step + 1:08d}.safetensors").exists()
    assert len(rows_of(tmp_path / "run")) == step // 4
    fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_dropout_goes_on_where_it_stood(tmp_path, monkeypatch):
    class WithDropout(Module):
        def __init__(self):
            self.net = build("resnet8", width=4)
            self.drop = Dropout(0.3)

        def forward(self, x):
            return self.drop(self.net(x))

    monkeypatch.setattr(room, "build", lambda *name, **options: WithDropout())
    config = Config.from_recipe("fast", **SMALL)
    fit(config, tmp_path / "whole", dataset=DATA)
    press_ctrl_c(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", dataset=DATA)
    fit(config, tmp_path / "run", resume=True, dataset=DATA)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    arrays, _ = load_state(tmp_path / "run" / "model.safetensors")
    assert arrays.keys() == {f"net.{name}" for name in build("resnet8", width=4).state_dict()}


def test_ctrl_c_in_the_evaluation_loses_no_step(whole, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(Config.from_recipe("fast", **SMALL), tmp_path / "run", dataset=DATA)
    assert [path.stem for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert_same_run(tmp_path / "run", whole)


def test_ctrl_c_while_an_epoch_is_written_waits_until_it_is(whole, tmp_path, monkeypatch):
    press_ctrl_c(monkeypatch, 8, "end_epoch")
    with pytest.raises(KeyboardInterrupt):
        fit(Config.from_recipe("fast", **SMALL), tmp_path / "run", dataset=DATA)
    assert rows_of(tmp_path / "run") == rows_of(whole)[:2]
    fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert_same_run(tmp_path / "run", whole)


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    rows = fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert len(rows) == 3
    assert_same_run(tmp_path / "run", whole)


def test_checkpoints_come_by_the_clock_too_and_the_last_two_are_kept(whole, tmp_path, monkeypatch):
    written = []
    save = Run.save
    monkeypatch.setattr(Run, "save", lambda self: (written.append(self.at.step), save(self)))
    fit(Config.from_recipe("fast", **SMALL, checkpoint_minutes=0), tmp_path / "run", dataset=DATA)
    assert written == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000011.safetensors", "step-00000012.safetensors"]
    assert_same_run(tmp_path / "run", whole)


def test_a_damaged_checkpoint_is_passed_over_and_told(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = run / "checkpoints" / "step-00000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    (run / "checkpoints" / "step-00000012.safetensors.123.tmp").write_bytes(b"half")
    (run / "checkpoints" / "step-00000099.safetensors").write_bytes(b"from nowhere")
    (run / "metrics.jsonl").write_text('{"epoch": 1, "st', encoding="utf-8")
    fit(read_config(run), run, resume=True, dataset=DATA)
    told = capsys.readouterr().err
    assert "passed over" in told and "step-00000012" in told and "step-00000099" in told
    assert_same_run(run, whole)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-00000008.safetensors", "step-00000012.safetensors"]

    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="no checkpoint that can be read"):
        fit(read_config(run), run, resume=True, dataset=DATA)


def test_a_checkpoint_of_another_net_is_refused(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with pytest.raises(RunError, match="no checkpoint that can be read.*load_state_dict"):
        fit(read_config(run, width=8), run, resume=True, dataset=DATA)


def test_without_a_checkpoint_a_run_begins_anew(whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "config.json", run)
    fit(read_config(run), run, resume=True, dataset=DATA)
    assert_same_run(run, whole)


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(whole, tmp_path, monkeypatch):
    run, calls = tmp_path / "run", []
    fsync = os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((OSError, ValueError), match="No space left"):
            fit(Config.from_recipe("fast", **SMALL), run, dataset=DATA)
    assert all(path.suffix == ".safetensors" for path in (run / "checkpoints").iterdir())
    fit(read_config(run), run, resume=True, dataset=DATA)
    assert_same_run(run, whole)


# ---- the folder


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match="not empty.*--resume"):
        fit(Config.from_recipe("fast", **SMALL), tmp_path, dataset=DATA)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"thesis.txt"}


def test_a_second_run_in_the_same_folder_is_refused(whole, tmp_path):
    with room.one_at_a_time(tmp_path), pytest.raises(RunError, match="in use by another training run"):
        fit(Config.from_recipe("fast", **SMALL), tmp_path, dataset=DATA)
    script = """
import sys, pathlib, minires.training.run
with minires.training.run.one_at_a_time(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use"):
            fit(Config.from_recipe("fast", **SMALL), tmp_path, dataset=DATA)
        other.kill()
    fit(Config.from_recipe("fast", **SMALL), tmp_path, dataset=DATA)  # a killed holder leaves nothing behind
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"config": []}',
        '{"config": {"colour": "red"}}',
        '{"config": {"epochs": "many"}}',
        "[" * 100_000,
        "\0",
        '{"config": {}}' + " " * 1_000_000,
    ],
)
def test_a_strange_config_is_told_in_one_line(content, tmp_path):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError) as error:
        read_config(tmp_path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        read_config(tmp_path)
    with pytest.raises(RunError, match="holds no trained net"):
        load_run(tmp_path)


# ---- numbers that go wrong


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_layer(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(NotFinite) as error:
        fit(Config.from_recipe("fast", **{**SMALL, "lr": 1e30}), run, dataset=DATA)
    told = str(error.value)
    assert "epoch 1, step 1" in told and "learning rate 3.6e+29" in told and "--lr 1e+29" in told
    assert "first layer whose output is not finite: bn1 (BatchNorm2d)" in told
    assert not (run / "checkpoints").exists() and rows_of(run) == []


@pytest.mark.parametrize(
    "layer, kind",
    [
        ("conv1", "Conv2d"),
        ("layer2.0.conv2", "Conv2d"),
        ("layer3.0.bn1", "BatchNorm2d"),
        ("fc", "Linear"),
    ],
)
def test_the_first_layer_that_is_not_finite_is_found(layer, kind):
    net = build("resnet8", width=4)
    dict(net.named_parameters())[f"{layer}.weight"].data.flat[0] = np.inf
    x = Normalise.channels(DATA.train_images)(DATA.train_images[:8])
    with np.errstate(invalid="ignore", over="ignore"):
        assert room.first_not_finite(net, x) == f"{layer} ({kind})"


def test_a_test_loss_that_is_not_finite_is_looked_for_in_the_net_as_it_was_tested(tmp_path):
    run = Run(Config.from_recipe("fast", **SMALL), tmp_path, DATA)
    run.net.bn1.running_var[:] = -1
    with np.errstate(invalid="ignore"), pytest.raises(NotFinite, match=r"the test loss is nan.* finite: bn1 "):
        run.end_epoch(*evaluate(run.net, run.test_images, run.test_labels, run.normalise))


def test_with_a_device_the_loss_is_read_every_so_many_steps_and_the_report_says_so(tmp_path):
    run = Run(Config.from_recipe("fast", **SMALL), tmp_path, DATA)
    assert run.look_every == 1
    run.look_every = 3
    x, y = next(run.loader.epoch())
    logits = run.net(Tensor(x))
    for loss in (1.0, math.inf):
        run.look(Tensor(np.float32(loss)), logits, x, y)
    assert (run.at.images, len(run.unread)) == (0, 2)
    with pytest.raises(NotFinite, match=r"the loss is inf in epoch 1, step 0 \(looked at every 3 steps\)"):
        run.look(Tensor(np.float32(1)), logits, x, y)


# ---- killed at any moment

TRAINING = """
import os, sys, time
from pathlib import Path
from minires.data import shapes10
from minires.training.loop import Config, Run, fit, read_config

out, settings = Path(sys.argv[1]), {"checkpoint_minutes": float(sys.argv[2])}
resume = (out / "config.json").exists()
fsync, end_step = os.fsync, Run.end_step
os.fsync = lambda descriptor: (time.sleep(0.01), fsync(descriptor))  # more moments inside a write
Run.end_step = lambda run: (print("step", flush=True), end_step(run))
print("ready", flush=True)
if resume:
    config = read_config(out, **settings)
else:
    config = Config.from_recipe(model="resnet8", width=4, batch_size=16, epochs=12, threads=1, **settings)
fit(config, out, resume, shapes10(70, 30))
"""


@pytest.mark.slow
@pytest.mark.kill
def test_killed_at_thirty_random_moments_the_run_ends_the_same(tmp_path):
    rng = random.Random(0)

    def training(out, minutes="0", kill_after=None):
        command = [sys.executable, "-c", TRAINING, str(out), minutes]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            if kill_after is not None:
                lines, delay = kill_after
                for _ in range(lines + 1):
                    child.stdout.readline()
                time.sleep(delay)
                child.kill()
            child.stdout.read()
        return child.returncode

    out, whole = tmp_path / "run", tmp_path / "whole"
    assert training(whole, "10") == 0
    temporary = 0
    for _ in range(30):
        training(out, rng.choice(["0", "0", "10"]), (rng.randrange(4), rng.uniform(0, 0.04)))
        rows_of(out)  # whole lines
        temporary += any(out.rglob("*.tmp"))
    assert temporary > 0, "no kill fell into the writing of a file"
    assert training(out) == 0
    assert_same_run(out, whole)
    assert not list(Path(out).rglob("*.tmp"))
