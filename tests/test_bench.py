"""The benchmark's machinery: turns, ratios, memory, and a clear message for a failure. No time is asserted."""

import os

import numpy as np
import pytest

from minires.cli import main
from minires.devices import bench
from minires.devices.bench import Job, Worker, in_turn, installed, measured_on, quartiles

SMALL = Job(model="resnet8", batch=4)


def test_contestants_take_turns(monkeypatch):
    log = []

    class Fake:
        def __init__(self, peer, job):
            self.peer = peer

        def run(self):
            log.append(self.peer)
            return float(len(log))

        def close(self):
            log.append("end")

    monkeypatch.setattr(bench, "Worker", Fake)
    times = in_turn([("a", SMALL), ("b", SMALL)], rounds=3, warmup=1)
    assert log == ["a", "b", *["a", "b"] * 3, "end", "end"]
    assert times == [[3.0, 5.0, 7.0], [4.0, 6.0, 8.0]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("ended early"), MemoryError])
def test_every_contestant_ends_whatever_stops_one_of_them(error, monkeypatch):
    ended = []

    class Fake(Worker):
        def __init__(self, peer, job):
            self.peer = peer

        def run(self):
            if self.peer == "b":
                raise error
            return 1.0

        def close(self):
            ended.append(self.peer)

    monkeypatch.setattr(bench, "Worker", Fake)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        in_turn([(peer, SMALL) for peer in "abc"], rounds=2)
    assert ended == ["a", "b", "c"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has process groups of another kind")
def test_ctrl_c_in_a_terminal_does_not_reach_a_contestant():
    worker = Worker("minires", SMALL)
    try:
        assert os.getpgid(worker.process.pid) != os.getpgrp()
    finally:
        worker.close()


def test_ratios_are_taken_round_by_round():
    row = quartiles([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert row["seconds_median"] == 4.0 and row["ratio_median"] == 2.0
    assert row["ratio_quartile_1"] == 1.5 and row["ratio_quartile_3"] == 2.5


@pytest.mark.parametrize("task", ["step", "inference", "layer"])
def test_minires_runs_each_task_in_its_own_process(task):
    worker = Worker("minires", Job(task, model="resnet8", batch=4, size=8, channels=4))
    try:
        assert 0 < worker.run() < 60
        assert worker.peak_memory() >= 0
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("model", "width"), [("resnet20", 16), ("resnet20", 64), ("bottleneck29", 16), ("resnet18", 64), ("resnet34", 64)]
)
def test_the_pytorch_peer_is_the_same_net(model, width):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from minires.resnet import build

    ours = sorted(p.size for p in build(model, width=width).parameters())
    assert sorted(p.numel() for p in bench._torch_net(model, width).parameters()) == ours


@pytest.mark.parametrize("model", ["resnet8", "resnet18"])
def test_pytorchs_folded_net_computes_the_same(model):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net, x = bench._torch_net(model, 8), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(3):
            net(x)
        expected = net.eval()(x)
        folded = bench._folded(net)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        assert folded(x).numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


def test_an_earlier_version_comes_from_its_checkout(tmp_path):
    """Whatever is in it: here, a package that can't be imported."""
    (tmp_path / "minires").mkdir()
    (tmp_path / "minires" / "__init__.py").write_text("raise SystemExit('the earlier one')", encoding="utf-8")
    worker = Worker("minires before", Job(model="resnet8", batch=4, checkout=str(tmp_path)))
    with pytest.raises(RuntimeError, match="the process of minires before ended early"):
        worker.run()
    worker.close()


def test_a_contestant_that_fails_is_named(capfd):
    worker = Worker("minires", Job(model="resnet21"))
    with pytest.raises(RuntimeError, match="the process of minires ended early"):
        worker.run()
    worker.close()
    assert "got resnet21" in capfd.readouterr().err


def test_only_installed_peers_are_asked(monkeypatch):
    monkeypatch.setattr(bench, "PEERS", {"minires": "minires", "another": "no_such_package"})
    assert installed(["minires", "another"]) == ["minires"]


def test_times_are_recorded_with_the_machine_and_the_versions():
    facts = measured_on()
    assert facts["cores"] == os.cpu_count() and facts["numpy"] == np.__version__
    assert {"processor", "blas", "system", "python"} <= facts.keys()


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(bench, "installed", lambda peers: ["minires", "PyTorch"])
    monkeypatch.setattr(bench, "in_turn", lambda contestants, rounds: [[0.5] * rounds, [1.0] * rounds])
    main(["bench", "resnet20", "--threads", "2", "--rounds", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training step of resnet20, batch 128, 2 threads, median of 3"
    assert lines[2].split() == ["minires", "500", "256", "195"]
    assert lines[3].split() == ["PyTorch", "1000", "128", "391", "0.50", "of", "its", "time"]


def test_an_unknown_net_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "resnet21"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
