"""The training loop against a loop written out by hand, and everything that may interrupt a run."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minires.data import DataError, Loader, Normalise, cifar10, shapes10
from minires.devices import machine
from minires.functional import cross_entropy
from minires.parallel import set_num_threads
from minires.resnet import build
from minires.tensor import Tensor, no_grad
from minires.training import config as settings
from minires.training import loop
from minires.training.checkpoint import load_state, save_state
from minires.training.config import Config, RunError, open_data, read_config, schedule_of
from minires.training.folder import lock_folder
from minires.training.loop import Meter, NotFinite, evaluate, explain_not_finite, first_not_finite, fit
from minires.training.run import Run, load_run

DATA = shapes10(70, 30)
SMALL = {"model": "resnet8", "width": 4, "batch_size": 16, "epochs": 3, "threads": 1}  # 4 steps an epoch


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("complete")
    fit(Config.from_recipe("fast", **SMALL), out, dataset=DATA)
    return out


def rows_of(out):
    """metrics.jsonl, which must have no incomplete line, without the figures that differ from run to run."""
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def content_of(folder):
    """Every file in the folder, and what is in it."""
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


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


def test_the_test_figures_are_those_of_the_saved_net_in_evaluation_mode(complete):
    net, normalise, info = load_run(complete)
    with no_grad():
        logits = net.eval()(Tensor(normalise(DATA.test_images))).data.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    last = rows_of(complete)[-1]
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


def test_evaluate_in_several_threads_gives_each_its_own_figures():
    data, net = shapes10(200, 200), build("resnet8", width=4, seed=3)
    frozen = net.layer1.eval()  # modes are each module's own
    normalise = Normalise.channels(data.train_images)
    images, labels = data.test_images, data.test_labels
    wanted = evaluate(net, images, labels, normalise, batch_size=50)
    modes, found = [module.training for _, module in net.modules()], []
    threads = [
        threading.Thread(target=lambda: found.append(evaluate(net, images, labels, normalise, batch_size=50)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 6
    assert [module.training for _, module in net.modules()] == modes and net.training and not frozen.training


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

    monkeypatch.setattr(machine, "subprocess", SimpleNamespace(run=slow, TimeoutExpired=subprocess.TimeoutExpired))
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "minires" / "devices" / "machine.py"))
    assert machine.environment()["git"] is None and asked == []
    (tmp_path / ".git").mkdir()
    assert machine.environment()["git"] is None and asked == ["git"]


def test_the_git_revision_is_that_of_the_checkout():
    if not (Path(machine.__file__).parents[2] / ".git").exists():
        pytest.skip("minires is not in a git checkout")
    assert len(machine.git_revision().removesuffix("-dirty")) == 40


def test_validation_holds_out_a_tenth_and_never_looks_at_the_test_set(tmp_path):
    unseen = replace(DATA, test_images=DATA.test_images[:0], test_labels=DATA.test_labels[:0])
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
    deep = schedule_of(Config.from_recipe("paper", model="resnet110"), 64_000)
    assert [deep(step) for step in (0, 399, 400, 31_999)] == pytest.approx([0.01, 0.01, 0.1, 0.1])


def test_the_papers_recipe_warms_up_nets_of_110_layers_and_more():
    steps = {
        name: Config.from_recipe("paper", model=name).warmup_steps for name in ("resnet56", "plain110", "resnet1202")
    }
    assert steps == {"resnet56": 0, "plain110": 400, "resnet1202": 400}
    assert Config.from_recipe("paper", model="resnet110", warmup_steps=7).warmup_steps == 7
    assert Config.from_recipe("fast", model="resnet110").warmup_steps == 0


def test_a_warmup_takes_at_most_a_tenth_of_the_run():
    short = schedule_of(Config(warmup_steps=400, schedule="multistep", lr=0.1), 100)
    assert [short(step) for step in (9, 10, 49, 50)] == pytest.approx([0.01, 0.1, 0.1, 0.01])


def test_steps_that_do_not_fill_the_last_epoch_end_the_run_all_the_same(tmp_path):
    config = Config.from_recipe("paper", **{**SMALL, "epochs": None, "steps": 6})
    rows = fit(config, tmp_path / "run", dataset=DATA)
    assert [row["step"] for row in rows] == [4, 6]


def test_the_length_of_a_run_is_given_in_epochs_or_in_steps():
    paper = Config.from_recipe("paper")
    assert (paper.epochs, paper.steps) == (None, 64_000)
    assert (Config().epochs, Config().steps) == (8, None)
    for recipe in ("fast", "paper"):
        assert (short := Config.from_recipe(recipe, epochs=3)).epochs == 3 and short.steps is None
        assert (short := Config.from_recipe(recipe, steps=5)).steps == 5 and short.epochs is None
    for wrong in ({"epochs": 3, "steps": 5}, {"epochs": None}, {"steps": 5}):
        with pytest.raises(
            ValueError, match="^epochs, steps: expected exactly one of them, got epochs=.* and steps=.*"
        ):
            Config(**wrong)


def test_other_seeds_give_other_runs(tmp_path, complete):
    fit(Config.from_recipe("fast", **SMALL, seed=1), tmp_path / "run", dataset=DATA)
    assert rows_of(tmp_path / "run") != rows_of(complete)


def test_the_config_file_holds_every_setting_and_what_else_matters(complete):
    written = json.loads((complete / "config.json").read_text(encoding="utf-8"))
    assert Config(**written["config"]) == read_config(complete) == Config.from_recipe("fast", **SMALL, data="shapes10")
    assert written["steps"] == 12
    assert [written["dataset"][name] for name in ("name", "train", "test")] == ["shapes10", 70, 30]
    assert written["versions"]["numpy"] == np.__version__
    assert {"platform", "git"} <= set(written)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("steps", 0),
        ("warmup_steps", -1),
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
def test_an_invalid_setting_is_named(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}: expected .*{value!r}"):
        Config(**{setting: value})
    with pytest.raises(ValueError, match="^recipe: expected one of fast, paper, got 'slow'"):
        Config.from_recipe("slow")


# ---- which data


def test_auto_takes_what_it_finds(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar10, "load_cifar10", lambda place: ("cifar10 from", place))
    monkeypatch.setattr(settings, "shapes10", lambda: "shapes10")
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert open_data("auto") == "shapes10"
    assert open_data("shapes10", tmp_path) == "shapes10"
    for name in ("auto", "cifar10"):  # a folder that was named must hold it
        with pytest.raises(DataError, match="not in .*python -m minires data fetch --data-dir"):
            open_data(name, tmp_path)
    with pytest.raises(DataError, match="CIFAR-10 is not in data; download it with: python -m minires data fetch$"):
        open_data("cifar10")
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="CIFAR-10 is not in .*nowhere"):
        open_data("auto")
    monkeypatch.delenv("MINIRES_DATA")
    archive = tmp_path / "data" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    archive.touch()
    assert open_data("auto")[1].samefile(archive)
    assert open_data("auto", archive.parent)[1].samefile(archive)
    assert open_data("shapes10", archive.parent) == "shapes10"


# ---- resuming


def press_ctrl_c(monkeypatch, step, method="is_checkpoint_due"):
    """Ctrl-C right after step number `step`, or in another method."""
    original = getattr(Run, method)

    def pressed(self, *args):
        if self.progress.step == step:
            monkeypatch.setattr(Run, method, original)
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Run, method, pressed)


@pytest.mark.parametrize("recipe", ["fast", "paper"])
@pytest.mark.parametrize("step", [1, 4, 5, 7, 12])
def test_stopped_by_ctrl_c_and_resumed_is_bit_for_bit_the_same_run(recipe, step, tmp_path, monkeypatch):
    config = Config.from_recipe(recipe, **SMALL)
    fit(config, tmp_path / "complete", dataset=DATA)
    press_ctrl_c(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", dataset=DATA)
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08d}.safetensors").exists()
    assert len(rows_of(tmp_path / "run")) == (step - 1) // 4
    fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert_same_run(tmp_path / "run", tmp_path / "complete")


def test_ctrl_c_in_the_evaluation_loses_no_step(complete, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(Config.from_recipe("fast", **SMALL), tmp_path / "run", dataset=DATA)
    assert [path.stem for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert_same_run(tmp_path / "run", complete)


def test_ctrl_c_while_an_epoch_is_written_waits_until_it_is(complete, tmp_path, monkeypatch):
    press_ctrl_c(monkeypatch, 8, "end_epoch")
    with pytest.raises(KeyboardInterrupt):
        fit(Config.from_recipe("fast", **SMALL), tmp_path / "run", dataset=DATA)
    assert rows_of(tmp_path / "run") == rows_of(complete)[:2]
    fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert_same_run(tmp_path / "run", complete)


def test_resuming_a_finished_run_changes_nothing(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "run")
    rows = fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert len(rows) == 3
    assert_same_run(tmp_path / "run", complete)


def test_checkpoints_are_written_by_the_clock_too_and_the_last_two_are_kept(complete, tmp_path, monkeypatch):
    written = []
    save = Run.save_checkpoint
    monkeypatch.setattr(Run, "save_checkpoint", lambda self: (written.append(self.progress.step), save(self)))
    fit(Config.from_recipe("fast", **SMALL, checkpoint_minutes=0), tmp_path / "run", dataset=DATA)
    assert written == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000011.safetensors", "step-00000012.safetensors"]
    assert_same_run(tmp_path / "run", complete)


def test_a_damaged_checkpoint_is_skipped_and_reported(complete, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(complete, run)
    newest = run / "checkpoints" / "step-00000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    (run / "checkpoints" / "step-00000012.safetensors.123.tmp").write_bytes(b"half")
    (run / "checkpoints" / "step-00000099.safetensors").write_bytes(b"from nowhere")
    (run / "metrics.jsonl").write_text('{"epoch": 1, "st', encoding="utf-8")
    fit(read_config(run), run, resume=True, dataset=DATA)
    err = capsys.readouterr().err
    assert err.count("set aside a damaged checkpoint as step-000000") == err.count("\n") == 2
    assert_same_run(run, complete)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    good = ["step-00000008.safetensors", "step-00000012.safetensors"]
    damaged = ["step-00000012.safetensors.damaged", "step-00000099.safetensors.damaged"]
    assert kept == [good[0], good[1], *damaged]
    assert (run / "checkpoints" / damaged[1]).read_bytes() == b"from nowhere"

    for name in good:
        (run / "checkpoints" / name).write_bytes(b"nothing")
    before = content_of(run)
    with pytest.raises(RunError, match="no good checkpoint"):
        fit(read_config(run), run, resume=True, dataset=DATA)
    assert content_of(run) == before


def test_a_checkpoint_of_another_net_is_refused(complete, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(complete, run)
    with pytest.raises(RunError, match="no good checkpoint.*load_state_dict"):
        fit(read_config(run, width=8), run, resume=True, dataset=DATA)


def test_without_a_checkpoint_a_run_starts_over(complete, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(complete / "config.json", run)
    fit(read_config(run), run, resume=True, dataset=DATA)
    assert_same_run(run, complete)


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(complete, tmp_path, monkeypatch):
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
    assert_same_run(run, complete)


# ---- run folders of earlier revisions

OLD_CONFIG = {  # as written before `steps` and `warmup_steps` existed
    "model": "resnet20",
    "shortcut": "A",
    "width": 16,
    "data": "cifar10",
    "data_dir": None,
    "val": False,
    "recipe": "paper",
    "epochs": None,
    "batch_size": 128,
    "schedule": "steps",
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0001,
    "decay_vectors": True,
    "smoothing": 0.0,
    "normalise": "pixel_mean",
    "augment": True,
    "seed": 0,
    "device": "cpu",
    "threads": 1,
    "checkpoint_minutes": 10,
}


@pytest.mark.parametrize("model, warmup_steps", [("resnet20", 0), ("resnet110", 400), ("resnet1202", 400)])
def test_an_old_config_is_the_present_one(model, warmup_steps, tmp_path):
    about = {"config": {**OLD_CONFIG, "model": model}, "steps": 64_000}
    (tmp_path / "config.json").write_text(json.dumps(about), encoding="utf-8")
    config = read_config(tmp_path)
    assert config == Config.from_recipe("paper", model=model, data="cifar10", threads=1, conv_method="im2col")
    assert (config.steps, config.warmup_steps) == (64_000, warmup_steps)


def test_an_old_config_keeps_its_other_settings(tmp_path):
    changed = {"epochs": 5, "schedule": "one_cycle", "recipe": "fast", "smoothing": 0.1, "decay_vectors": False}
    about = {"config": {**OLD_CONFIG, **changed, "model": "resnet110"}}
    (tmp_path / "config.json").write_text(json.dumps(about), encoding="utf-8")
    config = read_config(tmp_path, device="strict")
    assert (config.epochs, config.steps, config.schedule, config.warmup_steps) == (5, None, "one_cycle", 0)
    assert (config.label_smoothing, config.decay_bias_and_norm, config.device) == (0.1, False, "strict")


def write_as_before(out):
    """Rewrite the files of a run folder as they were before `steps` and `warmup_steps` existed."""
    path = out / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["config"] = {**OLD_CONFIG, **{name: value for name, value in about["config"].items() if name in OLD_CONFIG}}
    about["config"]["schedule"] = "steps"
    path.write_text(json.dumps(about), encoding="utf-8")
    for path in (out / "checkpoints").iterdir():
        arrays, info = load_state(path)
        new = info["progress"]
        old = {"loss": new.pop("loss_sum"), "right": new.pop("correct"), "images": new.pop("seen"), **new}
        save_state(path, arrays, {"progress": old, "dropout_calls": {}})


def test_an_old_run_resumes_bit_for_bit(tmp_path, monkeypatch):
    config = Config.from_recipe("paper", **SMALL)
    fit(config, tmp_path / "complete", dataset=DATA)
    press_ctrl_c(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", dataset=DATA)
    write_as_before(tmp_path / "run")
    fit(read_config(tmp_path / "run"), tmp_path / "run", resume=True, dataset=DATA)
    assert_same_run(tmp_path / "run", tmp_path / "complete")


# ---- the folder


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match="not empty; name another folder with --out$"):
        fit(Config.from_recipe("fast", **SMALL), tmp_path, dataset=DATA)
    assert content_of(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_second_run_in_the_same_folder_is_refused(complete, tmp_path):
    with lock_folder(tmp_path), pytest.raises(RunError, match="in use by another training run"):
        fit(Config.from_recipe("fast", **SMALL), tmp_path, dataset=DATA)
    script = """
import sys, pathlib, minires.training.folder
with minires.training.folder.lock_folder(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match="in use"):
            fit(Config.from_recipe("fast", **SMALL), tmp_path, dataset=DATA)
        other.kill()
    fit(Config.from_recipe("fast", **SMALL), tmp_path, dataset=DATA)  # a killed holder leaves nothing behind
    assert_same_run(tmp_path, complete)


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
def test_an_invalid_config_is_reported_in_one_line(content, tmp_path):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError) as error:
        read_config(tmp_path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_run_is_reported(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        read_config(tmp_path)
    with pytest.raises(RunError, match="holds no trained net"):
        load_run(tmp_path)


# ---- numbers that go wrong


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_layer(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(NotFinite) as error:
        fit(Config.from_recipe("fast", **{**SMALL, "lr": 1e30}), run, dataset=DATA)
    message = str(error.value)
    assert "epoch 1, step 1" in message and "learning rate 3.6e+29" in message and "--lr 1e+29" in message
    assert "first layer whose output is not finite: bn1 (BatchNorm2d)" in message
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
        assert first_not_finite(net, x) == f"{layer} ({kind})"


def test_the_layer_behind_a_test_loss_that_is_not_finite_is_found_in_evaluation_mode(tmp_path):
    def spoil(run):
        if run.progress.step == 4:  # the last of the epoch
            run.net.bn1.running_var[:] = -1

    with pytest.raises(NotFinite, match=r"the test loss is nan in epoch 1, step 4.* finite: bn1 "):
        fit(Config.from_recipe("fast", **SMALL), tmp_path / "run", dataset=DATA, watch=spoil)
    assert not (tmp_path / "run" / "checkpoints").exists() and rows_of(tmp_path / "run") == []


def test_a_meter_adds_up_the_figures_of_several_steps(tmp_path):
    run = Run(Config.from_recipe("fast", **SMALL), tmp_path, DATA)
    meter = Meter(run.progress, sync_every=3)
    x, y = next(run.loader.epoch())
    logits = run.net(Tensor(x))
    correct = np.sum(np.argmax(logits.data, axis=1) == y)
    for loss in (1.0, 2.5):
        meter.add(Tensor(np.float32(loss)), logits, y)
    assert run.progress.seen == 0
    meter.flush()
    assert (run.progress.loss_sum, run.progress.correct, run.progress.seen) == (16 * 3.5, 2 * correct, 32)
    assert run.progress.figures() == f"loss 1.750 acc {correct / 16:.1%}"


def test_on_a_device_the_loss_is_checked_every_so_many_steps_and_the_error_says_so(tmp_path):
    run = Run(Config.from_recipe("fast", **SMALL), tmp_path, DATA)
    meter = Meter(run.progress, sync_every=3)
    x, y = next(run.loader.epoch())
    logits = run.net(Tensor(x))
    for loss in (1.0, math.inf):
        meter.add(Tensor(np.float32(loss)), logits, y)
    with pytest.raises(NotFinite, match=r"the loss \(checked every 3 steps\) is inf in epoch 1, step 0"):
        with explain_not_finite(run, x):
            meter.add(Tensor(np.float32(1)), logits, y)


# ---- killed at any moment

TRAINING = """
import os, sys, time
from pathlib import Path
from minires.data import shapes10
from minires.training.config import Config, read_config
from minires.training.loop import fit
from minires.training.run import Run

out, settings = Path(sys.argv[1]), {"checkpoint_minutes": float(sys.argv[2])}
resume = (out / "config.json").exists()
fsync, is_due = os.fsync, Run.is_checkpoint_due
os.fsync = lambda descriptor: (time.sleep(0.01), fsync(descriptor))  # more moments inside a write
Run.is_checkpoint_due = lambda run: (print("step", flush=True), is_due(run))[1]
print("ready", flush=True)
if resume:
    config = read_config(out, **settings)
else:
    config = Config.from_recipe(model="resnet8", width=4, batch_size=16, epochs=12, threads=1, **settings)
fit(config, out, resume, shapes10(70, 30))
"""


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

    out, complete = tmp_path / "run", tmp_path / "complete"
    assert training(complete, "10") == 0
    temporary = 0
    for _ in range(30):
        training(out, rng.choice(["0", "0", "10"]), (rng.randrange(4), rng.uniform(0, 0.04)))
        if (out / "metrics.jsonl").exists():
            rows_of(out)  # complete lines
        temporary += any(out.rglob("*.tmp"))
    assert temporary > 0, "no kill fell into the writing of a file"
    assert training(out) == 0
    assert_same_run(out, complete)
    assert not list(Path(out).rglob("*.tmp"))
