"""The experiments at a tiny scale: run, stopped, resumed and recorded; identity layers, exact; tables and figures."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

from minires import plots
from minires.data import shapes10
from minires.files import FileError
from minires.nn import BatchNorm2d, Conv2d, forward_hook
from minires.paper import experiments, figures, tables
from minires.paper.experiments import (
    EXPERIMENTS,
    Identity,
    Training,
    insert_identity_layers,
    layer_statistics,
    read_rows,
    reproduce,
)
from minires.paper.records import pairs
from minires.resnet import build
from minires.summary import summarise
from minires.tensor import Tensor, no_grad
from minires.training.checkpoint import load_state
from minires.training.config import Config, RunError, schedule_of
from minires.training.run import Run
from minires.training.weights import save_weights

DATA = shapes10(48, 20)
LINE_END = b"\n"
SMALLER = {
    "plain20": "plain8",
    "plain56": "plain14",
    "resnet20": "resnet8",
    "resnet56": "resnet14",
    "bottleneck29": "bottleneck11",
    "resnet110": "resnet8",
    "resnet1202": "resnet14",
}


def small(kind):
    """The same kind of run in a few steps: 3 an epoch."""
    if isinstance(kind, Identity):
        return replace(kind, blocks=1, steps=12)
    c = kind.config
    config = replace(c, model=SMALLER[c.model], width=4, batch_size=16, epochs=2, steps=None, threads=1)
    return replace(kind, config=config, steps=kind.steps and 4)


def shrink(patch):
    patch.setattr(experiments, "open_data", lambda name, data_dir: DATA)
    for experiment, runs in EXPERIMENTS.items():
        patch.setitem(EXPERIMENTS, experiment, {run: small(kind) for run, kind in runs.items()})


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Results of all experiments, never interrupted."""
    results = tmp_path_factory.mktemp("work") / "results"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert reproduce("all", results)
    return results


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by a second each time it is read."""
    now = iter(range(10**6))
    monkeypatch.setattr(experiments.time, "monotonic", lambda: next(now))


def assert_same_results(results, others):
    """The files of two results folders are equal, except for times and sessions."""
    files = sorted(p.relative_to(others) for p in others.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(results) for p in results.rglob("*") if p.is_file())
    for file in files:
        if file.suffix == ".safetensors":
            (arrays, _), (expected, _) = load_state(results / file), load_state(others / file)
            assert all(np.array_equal(array, expected[name]) for name, array in arrays.items()), file
        elif file.name in ("metrics.jsonl", "steps.jsonl", "layers.jsonl"):
            rows, expected = (
                [
                    {k: v for k, v in row.items() if "seconds" not in k and k != "peak_mib"}
                    for row in read_rows(root / file)
                ]
                for root in (results, others)
            )
            assert rows == expected, file


# ---- the list


def test_the_degradation_runs_share_the_papers_recipe_in_ten_epochs(monkeypatch):
    monkeypatch.undo()
    runs = EXPERIMENTS["degradation"]
    assert list(runs) == ["plain20", "resnet20", "plain56", "resnet56"]
    for name, training in runs.items():
        c = training.config
        assert (c.model, c.lr, c.momentum, c.nesterov, c.weight_decay, c.decay_bias_and_norm) == (
            name,
            0.1,
            0.9,
            False,
            1e-4,
            True,
        )
        assert (c.epochs, c.batch_size, c.seed, c.val, c.augment) == (10, 128, 0, False, True)
        rate = schedule_of(c, 3900)
        assert [rate(s) for s in (0, 1949, 1950, 2924, 2925)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_the_other_experiments_are_those_of_the_paper(monkeypatch):
    monkeypatch.undo()
    assert EXPERIMENTS["paper"]["resnet20"].config == Config.from_recipe("paper", model="resnet20")
    assert schedule_of(EXPERIMENTS["very-deep"]["resnet110"].config, 64_000)(399) == 0.01
    cost = {net: summarise(build(net)).total.multiply_adds for net in ("resnet20", "bottleneck29")}
    assert cost["bottleneck29"] == pytest.approx(cost["resnet20"], rel=0.05)
    configs = [kind.config for runs in EXPERIMENTS.values() for kind in runs.values() if isinstance(kind, Training)]
    assert all(c.data_dir is None and not c.val for c in configs)
    options = {(kind.config.shortcut, kind.config.seed) for kind in EXPERIMENTS["shortcuts"].values()}
    assert options == {(option, seed) for option in "ABC" for seed in range(3)}


# ---- running


def test_every_run_records_its_files_and_leaves_only_what_is_needed(complete):
    for experiment, runs in EXPERIMENTS.items():
        for run, kind in runs.items():
            out = complete / experiment / run
            files = {path.name for path in out.iterdir()} - {".lock"}
            assert {"config.json", "metrics.jsonl"} <= files
            about = json.loads((out / "config.json").read_text(encoding="utf-8"))
            assert {"versions", "platform", "processor", "cores", "git"} <= set(about)
            assert ("layers.jsonl" in files) == (experiment == "degradation")
            assert ("steps.jsonl" in files) == (experiment == "very-deep")
            assert ("init_from.json" in files) == (experiment == "construction")
            assert ("model.safetensors" in files) == (
                experiment in ("first", "fast", "paper") or (experiment, run) == ("degradation", "plain20")
            )
            assert "checkpoints" not in files
            if isinstance(kind, Training):
                (session,) = read_rows(out / "sessions.jsonl")
                assert session["step"] == 0 and session["versions"]["numpy"] == np.__version__
    for row in read_rows(complete / "fast" / "resnet20" / "metrics.jsonl"):
        assert 0 < row["cpu_seconds"] and 0 < row["seconds"]
    steps = read_rows(complete / "very-deep" / "resnet110" / "steps.jsonl")
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    epoch = read_rows(complete / "very-deep" / "resnet110" / "metrics.jsonl")[0]  # of three steps, all as large
    for figure in ("train_loss", "train_acc"):
        assert np.mean([row[figure] for row in steps[:3]]) == pytest.approx(epoch[figure])


def test_no_file_contains_the_path_of_its_folder(complete):
    for path in complete.rglob("*"):
        if path.suffix in (".json", ".jsonl"):
            assert str(complete.parent) not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("experiment", ["degradation", "construction", "very-deep"])
def test_a_run_stopped_repeatedly_and_resumed_in_other_folders_is_the_same_run(experiment, complete, tmp_path, clock):
    for k in range(100):
        results, before = tmp_path / str(k), tmp_path / str(k - 1)
        if before.exists():
            before.rename(results)  # a new folder each time
        elif experiment == "construction":
            shutil.copytree(complete / "degradation" / "plain20", results / "degradation" / "plain20")
        if reproduce(experiment, results, hours=4 / 3600):
            break
        checkpoints = list(results.rglob("step-*.safetensors"))
        assert len(checkpoints) <= 1  # that of the unfinished run
    assert k >= 3
    for file in results.rglob("metrics.jsonl"):
        rows = read_rows(file)  # times include those of earlier sessions
        for clock in ("seconds", "cpu_seconds"):
            assert 0 < rows[0][clock] and all(a[clock] < b[clock] for a, b in zip(rows, rows[1:], strict=False))
    assert len(read_rows(next((results / experiment).iterdir()) / "sessions.jsonl")) > 1
    assert_same_results(results / experiment, complete / experiment)


def test_a_killed_run_resumes_and_no_step_is_recorded_twice(complete, tmp_path, monkeypatch):
    out = tmp_path / "very-deep" / "resnet1202"
    training = EXPERIMENTS["very-deep"]["resnet1202"]

    def killed(path, row, append_row=experiments.append_row):
        append_row(path, row)
        if row["step"] == 3:
            raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(experiments, "append_row", killed)
        training.run(out, lambda: DATA, float("inf"))
    assert [row["step"] for row in read_rows(out / "steps.jsonl")] == [1, 2, 3]
    training.run(out, lambda: DATA, float("inf"))
    assert_same_results(out, complete / "very-deep" / "resnet1202")


def test_ctrl_c_loses_no_step(complete, tmp_path, monkeypatch):
    out = tmp_path / "very-deep" / "resnet1202"
    training = EXPERIMENTS["very-deep"]["resnet1202"]

    def pressed(run):
        if run.progress.step == 3:
            signal.raise_signal(signal.SIGINT)
        return False

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "is_checkpoint_due", pressed)
        training.run(out, lambda: DATA, float("inf"))
    training.run(out, lambda: DATA, float("inf"))
    assert_same_results(out, complete / "very-deep" / "resnet1202")


@pytest.fixture
def stopped(complete, tmp_path, monkeypatch):
    """Results in which fast/resnet20 was stopped in its second epoch, and what that run's folder holds."""
    out = tmp_path / "fast" / "resnet20"

    def pressed(run):
        if run.progress.step == 4:
            signal.raise_signal(signal.SIGINT)
        return False

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "is_checkpoint_due", pressed)
        EXPERIMENTS["fast"]["resnet20"].run(out, lambda: DATA, float("inf"))
    assert len(read_rows(out / "metrics.jsonl")) == 1
    return out


def content_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DAMAGED_ROWS = [b'{"epoch": 1}', b"[1]", b"\0" * 8, b'{"step": "1"}', b"not a row"]


@pytest.mark.parametrize("bad", [b'{"epoch": 2, "st', b"\0\0\0", b"[1, 2", *(row + b"\n" for row in DAMAGED_ROWS)])
def test_the_rows_of_the_checkpoint_count(bad, stopped, complete):
    """A power cut leaves half a line or zeros in metrics.jsonl."""
    with open(stopped / "metrics.jsonl", "ab") as file:
        file.write(bad)
    assert reproduce("fast", stopped.parent.parent)
    assert_same_results(stopped, complete / "fast" / "resnet20")


@pytest.mark.parametrize("name", ["sessions.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("bad", DAMAGED_ROWS)
def test_a_damaged_row_is_named_and_nothing_changes(name, bad, stopped, status_of, capsys):
    if name == "metrics.jsonl":
        shutil.rmtree(stopped / "checkpoints")  # nothing else says what was done
    lines = (stopped / name).read_bytes()
    (stopped / name).write_bytes(lines + bad + b"\n" + lines)
    before = content_of(stopped)
    assert status_of("reproduce", "fast", "--out", stopped.parent.parent) == 2
    err = capsys.readouterr().err
    assert f"{stopped / name}, line {lines.count(LINE_END) + 1} is damaged: expected " in err and err.count("\n") == 1
    assert content_of(stopped) == before


def test_finished_runs_are_skipped_and_need_no_data(complete, monkeypatch):
    monkeypatch.setattr(experiments, "open_data", None)
    assert reproduce("all", complete, hours=0)


def test_no_run_starts_after_the_deadline(tmp_path, clock):
    assert not reproduce("fast", tmp_path, hours=0)
    assert not list(tmp_path.iterdir())


def test_other_settings_are_named_and_the_run_is_left_unchanged(complete, tmp_path, monkeypatch):
    shutil.copytree(complete / "paper", tmp_path / "paper")
    out, training = tmp_path / "paper" / "resnet20", EXPERIMENTS["paper"]["resnet20"]
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (out / "metrics.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    changed = replace(training, config=replace(training.config, lr=0.3, threads=2))
    with pytest.raises(RunError, match=r"other settings \(lr\)"):
        changed.run(out, lambda: DATA, float("inf"))
    assert (out / "model.safetensors").exists()


def test_construction_needs_the_trained_net_first(tmp_path):
    with pytest.raises(RunError, match="degradation.plain20, which is not trained yet"):
        reproduce("construction", tmp_path)


def test_an_unknown_experiment_is_an_error(tmp_path, status_of, capsys):
    assert status_of("reproduce", "everything", "--out", tmp_path) == 2
    assert "expected all, one of first, degradation, depth, fast" in capsys.readouterr().err
    with pytest.raises(ValueError, match="one run such as first/resnet20, got 'fast/resnet56'"):
        reproduce("fast/resnet56", tmp_path)


def test_one_run_of_an_experiment_can_be_run_alone(complete, tmp_path):
    assert reproduce("degradation/resnet20", tmp_path)
    assert [path.name for path in (tmp_path / "degradation").iterdir()] == ["resnet20"]
    shutil.copytree(complete / "degradation" / "resnet20", tmp_path / "expected" / "resnet20")
    assert_same_results(tmp_path / "degradation", tmp_path / "expected")


def test_the_command_runs_and_reports_a_spent_budget(complete, tmp_path, status_of, capsys, clock):
    assert status_of("reproduce", "fast", "--out", tmp_path / "results", "--budget", 2 / 3600) == 0
    assert "hours is used up; run the same command to continue" in capsys.readouterr().out
    assert status_of("reproduce", "fast", "--out", tmp_path / "results") == 0
    assert "used up" not in capsys.readouterr().out
    assert_same_results(tmp_path / "results" / "fast", complete / "fast")


# ---- layer statistics


def test_responses_and_norms_agree_with_a_pass_by_hand(tmp_path):
    run = Run(EXPERIMENTS["degradation"]["resnet20"].config, tmp_path, DATA)
    rng = np.random.default_rng(0)
    for name, p in run.net.named_parameters():
        if ".bn" in name or name.startswith("bn"):
            p.data[...] = rng.uniform(0.5, 1.5, p.shape)
    before = run.net.state_dict()
    found = layer_statistics(run)
    assert all(np.array_equal(array, before[name]) for name, array in run.net.state_dict().items())
    assert all(p.grad is None for p in run.net.parameters())

    outputs = {}
    with forward_hook(run.net, lambda name, module, out: outputs.update({name: out.data.astype(np.float64)})):
        loss = experiments.cross_entropy(run.net(Tensor(run.normalise(DATA.train_images))), DATA.train_labels)
    loss.backward()
    layers = {name: module for name, module in run.net.modules() if isinstance(module, Conv2d)}
    assert list(found["response"]) == list(found["gradient"]) == list(layers) and len(layers) == 7
    for name, layer in layers.items():
        norm = dict(run.net.modules())[name.replace("conv", "bn")]
        x = outputs[name]
        y = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * norm.weight.data + norm.bias.data
        assert found["response"][name] == pytest.approx(y.std(), rel=1e-4)
        assert found["gradient"][name] == pytest.approx(np.sqrt((layer.weight.grad**2).sum()), rel=1e-3)
        assert found["weight"][name] == pytest.approx(np.sqrt((layer.weight.data**2).sum()), rel=1e-5)


# ---- identity layers


@pytest.fixture
def trained(tmp_path):
    """A plain net whose parameters are all far from their initial values, and its run folder."""
    net, rng = build("plain8", width=8, seed=3), np.random.default_rng(0)
    for _, module in net.modules():
        if isinstance(module, BatchNorm2d):
            module.weight.data[...] = rng.uniform(0.5, 1.5, module.weight.shape)
            module.bias.data[...] = rng.normal(0, 0.5, module.bias.shape)
            module.momentum = 1.0  # the statistics of one large batch
    net.fc.weight.data[...] = rng.normal(size=net.fc.weight.shape)
    run = Run(Config(model="plain8", width=8, batch_size=16, threads=1), tmp_path, DATA)
    with no_grad():
        net(Tensor(run.normalise(DATA.train_images)))
    info = {
        "model": "plain8",
        "shortcut": "A",
        "width": 8,
        "data": "shapes10",
        "classes": list(DATA.classes),
        "mean": run.normalise.mean.tolist(),
        "scale": run.normalise.scale.tolist(),
    }
    out = tmp_path / "plain8"
    out.mkdir()
    save_weights(net, out / "model.safetensors", info)
    return net.eval(), out


def test_a_deepened_net_computes_the_same_function(trained, tmp_path):
    net, source = trained
    run = Run(Config(model="plain20", width=8, batch_size=16, threads=1), tmp_path, DATA)
    found = insert_identity_layers(run, source, batches=3)
    x = Tensor(run.normalise(DATA.test_images))
    with no_grad():
        expected = net(x).data
        got = run.net.eval()(x).data
        in_training = run.net.train()(Tensor(run.normalise(DATA.train_images))).data
        old_in_training = net.train()(Tensor(run.normalise(DATA.train_images))).data
    assert np.abs(expected).max() > 1 and np.ptp(expected, axis=0).min() > 0.1  # logits that differ between images
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert found["largest_difference"] < 1e-4 * np.abs(expected).max()
    assert found["before_test_acc"] == found["after_test_acc"]
    assert found["before_test_loss"] == pytest.approx(found["after_test_loss"], rel=1e-4)
    assert np.abs(in_training - old_in_training).max() < 0.2 * np.abs(old_in_training).max()
    assert len(run.net.layer1) == 3 and np.array_equal(run.net.layer1[2].conv2.weight.data[1, 1], np.eye(8))
    assert np.array_equal(run.net.layer2[0].conv1.weight.data, net.layer2[0].conv1.weight.data)


def test_an_inserted_block_is_the_identity(trained, tmp_path):
    _, source = trained
    run = Run(Config(model="plain14", width=8, batch_size=16, threads=1), tmp_path, DATA)
    insert_identity_layers(run, source, batches=3)
    x = np.abs(np.random.default_rng(0).normal(size=(2, 8, 8, 16))).astype(np.float32)
    x[:, ::2] = 0  # as after a ReLU
    with no_grad():
        y = run.net.layer2[1].eval()(Tensor(x)).data
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)


# ---- the identity


def test_residual_blocks_learn_the_identity_and_plain_ones_only_the_mean(tmp_path):
    last = {}
    for name, shortcut in (("plain", None), ("residual", "A")):
        Identity(shortcut, blocks=2, steps=120).run(tmp_path / name, None, 0)
        rows = read_rows(tmp_path / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, 121))
        last[name] = rows[-1]["train_loss"]
    assert last["residual"] < 0.01 and 0.2 < last["plain"] < 0.45


# ---- tables


def record(out, model, rows, epochs=10, steps=3900, init_from=None, **settings):
    """Write the files of a run. rows: (training accuracy, test accuracy) of each epoch."""
    out.mkdir(parents=True)
    config = {
        "model": model,
        "shortcut": "A",
        "width": 16,
        "recipe": "paper",
        "epochs": epochs,
        "batch_size": 128,
        "lr": 0.1,
        **settings,
    }
    about = {"config": config, "steps": steps, "dataset": {"train": 50_000}}
    (out / "config.json").write_text(json.dumps(about), encoding="utf-8")
    lines = [
        {
            "epoch": i,
            "step": 390 * i,
            "lr": 0.1,
            "train_loss": 1,
            "train_acc": a,
            "test_loss": 1,
            "test_acc": b,
            "seconds": 150 * i,
            "cpu_seconds": 270 * i,
        }
        for i, (a, b) in enumerate(rows, start=1)
    ]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    if init_from:
        (out / "init_from.json").write_text(json.dumps(init_from), encoding="utf-8")


def test_the_table_of_runs_agrees_with_the_files(tmp_path):
    record(tmp_path / "degradation" / "plain20", "plain20", 9 * [(0.5, 0.5)] + [(0.875, 0.8125)])
    record(tmp_path / "degradation" / "resnet56", "resnet56", 7 * [(0.9, 0.8)])
    record(tmp_path / "paper" / "resnet20", "resnet20", 4 * [(0.7, 0.7)], epochs=None, steps=64_000)
    lines = tables.table_of_runs(tmp_path).splitlines()
    assert lines[2:] == [
        "| degradation/plain20 | plain20 | 269,722 | 10 | 25 | 45 | 12.50 | 18.75 | - | 10 epochs instead of 164 |",
        "| degradation/resnet56 | resnet56 | 853,018 | 7 of 10 | 18 | 32 | 10.00 | 20.00 | 6.97 "
        "| 10 epochs instead of 164 |",
        "| paper/resnet20 | resnet20 | 269,722 | 4 of 165 | 10 | 18 | 30.00 | 30.00 | 8.75 "
        "| the paper's recipe, unfinished |",
    ]


def test_a_finished_run_of_the_papers_recipe_differs_in_its_seed(tmp_path):
    record(tmp_path / "paper" / "resnet20", "resnet20", 165 * [(0.9, 0.75)], epochs=None, steps=64_000)
    row = tables.table_of_runs(tmp_path).splitlines()[-1]
    assert "| 165 |" in row and row.endswith("| 10.00 | 25.00 | 8.75 | the paper's recipe, another seed |")


def test_the_effect_of_depth_is_the_difference_of_the_errors(tmp_path):
    for net, (train, test) in {
        "plain20": (0.8, 0.75),
        "plain56": (0.6, 0.65),
        "resnet20": (0.85, 0.8),
        "resnet56": (0.9, 0.82),
    }.items():
        record(tmp_path / "degradation" / net, net, 10 * [(train, test)])
    lines = tables.depths(tmp_path, "degradation").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[3] for row in cells] == ["+20.00", "+10.00", "-5.00", "-2.00"]
    assert cells[0] == ["plain, training error %", "20.00", "40.00", "+20.00", "10 / 10"]
    assert [row[0] for row in cells[2:]] == ["residual, training error %", "residual, test error %"]


def test_a_pair_is_shown_once_both_nets_have_trained_for_an_epoch(tmp_path):
    for net in ("resnet20", "plain20", "resnet56"):
        record(tmp_path / "depth" / net, net, [(0.5, 0.5)])
    assert list(pairs(tmp_path, "depth")) == ["residual"]
    assert figures.draw(tmp_path) == [tmp_path / "depth" / "depth.png"]


def test_shortcuts_show_mean_and_deviation_of_the_finished_runs(tmp_path):
    for seed, test in enumerate((0.80, 0.82, 0.84)):
        rows = 5 * [(0.9, test)]
        record(tmp_path / "shortcuts" / f"B-seed-{seed}", "resnet20", rows, 5, 1950, shortcut="B", recipe="fast")
    record(tmp_path / "shortcuts" / "C-seed-0", "resnet20", 2 * [(0.9, 0.5)], 5, 1950, shortcut="C", recipe="fast")
    assert tables.shortcuts(tmp_path).splitlines()[2:] == ["| B | 272,474 | 10.00 ± 0.00 | 18.00 ± 2.00 | 3 |"]


def test_construction_starts_at_the_error_of_the_shallow_net(tmp_path):
    record(
        tmp_path / "construction" / "plain56-rate-0.01",
        "plain56",
        3 * [(0.9, 0.85)],
        3,
        1170,
        lr=0.01,
        init_from={"source": "degradation/plain20", "after_test_acc": 0.8},
    )
    line = tables.construction(tmp_path).splitlines()[2]
    assert line == "| plain56 | the trained plain20 | 0.01 | 20.00 | 10.00 | 15.00 | 3 |"
    assert "3 more epochs with the net of degradation/plain20" in tables.table_of_runs(tmp_path)


def test_gradients_and_weights_show_the_smallest_and_the_largest_norm(tmp_path):
    out = tmp_path / "degradation" / "plain20"
    record(out, "plain20", 2 * [(0.5, 0.5)])
    layers = [
        {
            "step": k,
            "gradient": {"a.conv1": 0.25 + k, "a.conv2": 0.5 + k},
            "weight": {"a.conv1": 8 - k, "a.conv2": 4 + k},
            "response": {"a.conv1": 1 - 0.25 * k, "a.conv2": 0.5},
        }
        for k in range(3)
    ]
    (out / "layers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in layers), encoding="utf-8")
    assert tables.gradients(tmp_path).splitlines()[2:] == [
        "| plain20 | 0.25 .. 0.5 | 1.2 .. 1.5 | 2.2 .. 2.5 | 4 .. 8 | 5 .. 7 | 6 .. 6 |"
    ]
    assert tables.responses(tmp_path).splitlines()[2:] == ["| plain20 | 0.500 | 0.500 | 2 of 10 |"]
    for lost in ("gradient", "response", "weight", "step"):
        rows = [layers[0], {key: value for key, value in layers[1].items() if key != lost}]
        (out / "layers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.raises(FileError, match=r"layers\.jsonl, line 2 is damaged: expected"):
            tables.gradients(tmp_path)


def test_very_deep_runs_show_their_start_the_change_of_rate_and_their_end(tmp_path):
    out = tmp_path / "very-deep" / "resnet110"
    record(out, "resnet110", [], None, 64_000)
    steps = [
        {
            "step": i,
            "lr": 0.01 if i <= 50 else 0.1,
            "train_loss": 4 if i <= 20 else 2 if i <= 50 else 3,
            "train_acc": 0.1 if i <= 20 else 0.5 if i <= 50 else 0.25,
            "seconds": 2.5 * i,
            "peak_mib": 100 + i,
        }
        for i in range(1, 81)
    ]
    (out / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps), encoding="utf-8")
    assert tables.very_deep(tmp_path).splitlines()[2] == (
        "| resnet110 | 1,727,962 | 128 | 0.01, then 0.1 | 80 | 2.5 | 180 | 4.00, 10 % | 2.00, 50 % | 3.00, 25 % |"
    )


def test_every_table_can_be_made_from_no_runs_and_from_all_runs(complete, tmp_path):
    for name, table in tables.TABLES.items():
        assert table(tmp_path) == ""
        if name != "speed":
            lines = table(complete).splitlines()
            assert len(lines) >= (3 if name == "paper" else 4), name  # the paper's recipe has one run
            assert len({line.count("|") for line in lines}) == 1, name
    assert figures.draw(tmp_path) == []


def test_a_page_keeps_its_text_and_gets_new_tables(complete, tmp_path):
    results, benchmarks = tmp_path / "results", tmp_path / "benchmarks"
    shutil.copytree(complete, results)
    benchmarks.mkdir()
    page = "# Words\n\n<!-- table: shortcuts -->\nold\n<!-- end -->\n\nmore *words*\n"
    (results / "README.md").write_text(page, encoding="utf-8")
    (benchmarks / "README.md").write_text("<!-- table: speed --> <!-- end -->", encoding="utf-8")
    done = tables.rebuild(results)
    pngs = [results / file for shown in figures.FIGURES.values() for file in shown]
    assert sorted(done) == sorted([*pngs, results / "README.md", benchmarks / "README.md"])
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)
    text = (results / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Words\n\n<!-- table: shortcuts -->\n\n| shortcut | parameters |")
    assert text.endswith("(shortcuts/shortcuts.png)\n\n<!-- end -->\n\nmore *words*\n") and "old" not in text
    tables.rebuild(results)
    assert (results / "README.md").read_text(encoding="utf-8") == text
    assert "Not run yet." in (benchmarks / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="table: expected one of runs, .*, got 'short'"):
        tables.fill("<!-- table: short --> <!-- end -->", results)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_only_the_tables_of_a_page_change(end, complete, tmp_path):
    """Line ends, other encodings, permissions and links of a page stay; one without a table is left alone."""
    results, above, mine = tmp_path / "results", tmp_path / "README.md", tmp_path / "benchmarks" / "README.md"
    shutil.copytree(complete / "zero-residual", results / "zero-residual")
    mine.parent.mkdir()
    above.write_bytes(b"<!-- table: zero-residual -->old<!-- end -->" + end)  # no page of ours
    mine.write_bytes(b"my own page, \xff" + end)
    parts = [b"# Caf\xe9" + end + b"<!-- table: zero-residual -->", b"<!-- end -->" + end + b"more" + end]
    page = results / "README.md"
    page.write_bytes(b"old".join(parts))
    page.chmod(0o600)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in (above, mine, page)}
    assert page in tables.rebuild(results)
    text = page.read_bytes()
    assert text.startswith(parts[0]) and text.endswith(parts[1]) and b"| blocks |" in text
    assert page.stat().st_mode == before[page][2]
    for path in (above, mine):
        assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) == before[path]
    written = page.stat().st_mtime_ns
    assert page not in tables.rebuild(results) and page.stat().st_mtime_ns == written  # it is up to date


@pytest.mark.skipif(os.name == "nt", reason="a link needs a permission on Windows")
def test_a_page_may_be_a_link(complete, tmp_path):
    results, page = tmp_path / "results", tmp_path / "pages" / "mine.md"
    shutil.copytree(complete / "zero-residual", results / "zero-residual")
    page.parent.mkdir()
    page.write_bytes(b"<!-- table: zero-residual --><!-- end -->")
    (results / "README.md").symlink_to(page)
    tables.rebuild(results)
    assert (results / "README.md").is_symlink() and b"| blocks |" in page.read_bytes()


# ---- figures


def test_the_figure_of_errors_shows_the_recorded_curves(complete):
    runs = [complete / "degradation" / net for net in ("plain20", "plain56")]
    figure = plots.errors({"plain": runs, "residual": runs[:1]})
    left, right = figure.axes
    assert (left.get_title(), len(left.lines), len(right.lines)) == ("plain", 4, 2)
    rows = read_rows(runs[1] / "metrics.jsonl")
    for line, part in zip(left.lines[2:], ("train", "test"), strict=True):
        assert line.get_ydata() == pytest.approx([100 - 100 * row[f"{part}_acc"] for row in rows])
    assert left.lines[2].get_linestyle() == "--" and left.lines[3].get_linestyle() == "-"
    assert left.get_ylim() == right.get_ylim()


def test_a_line_has_the_same_style_in_every_panel():
    figure = plots.lines(
        {"one": {"a": ([1, 2], [3, 4]), "b": ([1, 2], [5, 6])}, "two": {"b": ([1, 2], [7, 8])}}, "x", "y", log=True
    )
    one, two = figure.axes
    assert one.lines[1].get_color() == two.lines[0].get_color() != one.lines[0].get_color()
    assert list(two.lines[0].get_ydata()) == [7, 8] and one.get_yscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_a_legend_of_long_names_stays_inside_the_figure():
    names = [f"a run with a name of thirty {k}" for k in range(4)]
    figure = plots.lines({"panel": {name: ([1, 2], [k, k]) for k, name in enumerate(names)}}, "step", "loss")
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 and legend.x1 <= figure.bbox.x1


def test_spread_shows_each_value_and_the_mean():
    axes = plots.spread({"A": [1.0, 2.0, 6.0], "B": [4.0]}, "error").axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 2, 6], [3, 3], [4], [4, 4]]


@pytest.mark.parametrize("config", [None, [], 3])
def test_a_config_that_is_no_object_is_named(config, complete, tmp_path):
    shutil.copytree(complete / "zero-residual", tmp_path / "zero-residual")
    file = tmp_path / "zero-residual" / "plain" / "config.json"
    file.write_text(json.dumps({"config": config, "steps": 1}), encoding="utf-8")
    with pytest.raises(FileError, match=r"config\.json is damaged: expected an object with config and steps"):
        tables.rebuild(tmp_path)
