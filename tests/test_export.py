"""ONNX files, run by ONNX Runtime: the logits and probabilities of the net itself."""

import json
import sys

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.data import Dataset, Normalise
from minires.functional import relu
from minires.nn import BatchNorm2d
from minires.tensor import Tensor, no_grad
from minires.training.config import Config
from minires.training.export import export_onnx
from minires.training.loop import fit

onnx = pytest.importorskip("onnx", reason="onnx is not installed; pip install onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is the oracle; pip install onnxruntime")

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
PIXELS, CHANNELS = Normalise.pixel_mean(IMAGES), Normalise.channels(IMAGES)
CLASSES = [f"class {k}" for k in range(9)] + ["猫"]
NETS = [
    ("plain14", {}),
    ("resnet14", {"shortcut": "A"}),
    ("resnet14", {"shortcut": "B"}),
    ("resnet14", {"shortcut": "C", "zero_init": True}),
    ("bottleneck11", {"shortcut": "A"}),
    ("bottleneck11", {"shortcut": "B", "stride_in": "1x1"}),
    ("preresnet14", {"shortcut": "A"}),
    ("prebottleneck11", {"shortcut": "C"}),
    ("plain18", {"width": 8}),
    ("resnet18", {"width": 8}),
    ("resnet50", {"width": 8}),
    ("preresnet18", {"width": 8}),
]


def run(path, images=IMAGES):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits", "probabilities"], {"images": images})


def trained(name, **options):
    """A net with running statistics and scales as after training."""
    net, rng = mr.build(name, classes=10, **options), np.random.default_rng(1)
    for _, module in net.modules():
        if isinstance(module, BatchNorm2d):
            module.weight.data[:] = rng.uniform(0.5, 1.5, module.weight.shape)
            module.bias.data[:] = rng.standard_normal(module.bias.shape)
    for _ in range(3):
        net(Tensor(CHANNELS(IMAGES)))
    return net


@pytest.mark.parametrize(("name", "options"), NETS)
def test_onnx_runtime_computes_the_same(name, options, tmp_path):
    net = trained(name, **options)
    export_onnx(net, tmp_path / "net.onnx", CHANNELS, CLASSES)
    logits, probabilities = run(tmp_path / "net.onnx")
    with no_grad():
        expected = net.eval()(Tensor(CHANNELS(IMAGES))).data
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    e = np.exp(expected - expected.max(1, keepdims=True))
    assert probabilities == pytest.approx(e / e.sum(1, keepdims=True), abs=1e-5)
    one, _ = run(tmp_path / "net.onnx", IMAGES[2:3])  # any number of pictures
    assert one == pytest.approx(logits[2:3], rel=1e-4, abs=1e-5)


def test_what_is_in_the_file(tmp_path):
    net = trained("resnet14")
    before = {name: array.copy() for name, array in net.state_dict().items()}
    export_onnx(net, tmp_path / "net.onnx", PIXELS, CLASSES)
    model = onnx.load(tmp_path / "net.onnx")
    assert json.loads({p.key: p.value for p in model.metadata_props}["classes"]) == CLASSES
    assert [opset.version for opset in model.opset_import] == [17]
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 13 and "BatchNormalization" not in operators  # folded
    assert operators.count("Add") == 6 and operators.count("Relu") == 13
    assert net.training and all(np.array_equal(a, before[name]) for name, a in net.state_dict().items())


class Squared(nn.Module):
    def __init__(self):
        self.conv = nn.Conv2d(3, 10, 1, rng=np.random.default_rng(0))

    def forward(self, x):
        h = relu(self.conv(x))
        return (h * h).mean((1, 2))


def test_an_operation_without_a_counterpart_is_named(tmp_path):
    with pytest.raises(ValueError, match="export: expected"):
        export_onnx(Squared(), tmp_path / "net.onnx", CHANNELS, CLASSES)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, status_of, capsys, monkeypatch):
    data = Dataset("things", IMAGES, np.arange(6) % 2, IMAGES, np.arange(6) % 2, ("a", "b"))
    config = Config.from_recipe(model="resnet8", width=4, epochs=1, batch_size=3, threads=1)
    fit(config, tmp_path / "run", dataset=data)
    capsys.readouterr()
    assert status_of("export", tmp_path / "run", tmp_path / "net") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'net.onnx'}\n"
    _, probabilities = run(tmp_path / "net.onnx")
    for p, found in zip(probabilities, mr.predict(tmp_path / "run", list(IMAGES)), strict=True):
        assert dict(found) == pytest.approx(dict(zip("ab", p, strict=True)), abs=1e-5)
    assert status_of("export", tmp_path / "nothing", tmp_path / "other") == 2
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert status_of("export", tmp_path / "run", tmp_path / "other") == 2
    assert capsys.readouterr().err.endswith("minires: export needs onnx: pip install onnx\n")
    assert not (tmp_path / "other.onnx").exists()
