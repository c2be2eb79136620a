"""The summary: counts by hand, the paper's figures, any module."""

import json
import threading

import numpy as np
import pytest

from minires import nn
from minires.conv import global_avg_pool
from minires.nn import Module, Sequential, forward_hook
from minires.resnet import build
from minires.summary import summarise
from minires.tensor import Tensor

RNG = np.random.default_rng(0)


def conv(size, c, f, k=3):
    """Multiply-adds of a k x k convolution from c to f channels whose output is size x size."""
    return size * size * k * k * c * f


def test_resnet20_counted_by_hand():
    s = summarise(build("resnet20"))
    first = conv(32, 3, 16)
    stage1 = 6 * conv(32, 16, 16)
    stage2 = conv(16, 16, 32) + 5 * conv(16, 32, 32)
    stage3 = conv(8, 32, 64) + 5 * conv(8, 64, 64)
    assert [row.multiply_adds for row in s.stages] == [first, stage1, stage2, stage3, 64 * 10]
    assert [row.name for row in s.stages] == ["conv1", "layer1", "layer2", "layer3", "fc"]
    assert [row.output for row in s.stages] == [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64), (10,)]
    assert s.total.multiply_adds == first + stage1 + stage2 + stage3 + 640 == 40_551_040
    assert s.total.parameters == 269_722
    assert s.total.kernels == "weighted layers: 20"
    assert s.stages[0].parameters == 3 * 3 * 3 * 16 + 2 * 16  # the norm behind conv1 shares its line
    assert s.stages[-1].parameters == 64 * 10 + 10


def test_activation_memory_by_hand():
    s = summarise(build("resnet20"), batch=8)
    blocks = {row.name: row for row in s.blocks}
    big, middle = 8 * 4 * 32 * 32 * 16, 8 * 4 * 16 * 16 * 32  # bytes of 8 float32 maps
    assert blocks["conv1"].activation_bytes == 2 * big  # conv, norm with its ReLU
    assert blocks["layer1.0"].activation_bytes == 5 * big  # 2 convs, 2 norms, the sum
    assert blocks["layer2.0"].activation_bytes == 6 * middle  # and the shortcut's zero-padded map
    assert blocks["fc"].activation_bytes == 8 * 4 * 10
    half = summarise(build("resnet20"), batch=4)
    assert 2 * half.total.activation_bytes == s.total.activation_bytes
    assert half.total.multiply_adds == s.total.multiply_adds  # always for one image


def test_a_projection_and_a_bottleneck_are_counted():
    b = summarise(build("bottleneck29", shortcut="B"))
    block = next(row for row in b.blocks if row.name == "layer2.0")
    assert block.kernels == "1x1,32 3x3,32/2 1x1,128 +1x1,128/2"
    assert block.multiply_adds == (conv(32, 64, 32, 1) + conv(16, 32, 32) + conv(16, 32, 128, 1) + conv(16, 64, 128, 1))
    assert block.output == (16, 16, 128)
    weights = 64 * 32 + 9 * 32 * 32 + 32 * 128 + 64 * 128
    assert block.parameters == weights + 2 * (32 + 32 + 128 + 128)
    assert b.total.kernels == "weighted layers: 29"  # as in the paper, projections are not counted
    extra = conv(16, 16, 32, 1) + conv(8, 32, 64, 1)
    a20, b20 = (summarise(build("resnet20", shortcut=option)).total.multiply_adds for option in "AB")
    assert b20 - a20 == extra


@pytest.mark.parametrize(
    "name, adds, parameters, paper",
    [("resnet18", 1_814_073_344, 11_689_512, 1.8e9), ("resnet50", 3_857_973_248, 25_557_032, 3.8e9)],
)
def test_imagenet_nets_agree_with_the_paper_and_fit_a_page(name, adds, parameters, paper):
    s = summarise(build(name, stride_in="1x1"), (224, 224, 3))
    assert s.total.multiply_adds == adds
    assert abs(s.total.multiply_adds / paper - 1) < 0.02
    assert s.total.parameters == parameters
    sizes = [row.output[0] for row in s.stages]
    assert sizes == [112, 56, 56, 28, 14, 7, 1000]
    lines = s.table().splitlines()
    assert max(map(len, lines)) <= 100
    assert {len(line) for line in lines[1:]} == {len(lines[1])}  # columns are aligned


def test_pre_activation_keeps_its_last_norm_apart():
    s = summarise(build("preresnet20"))
    assert [row.name for row in s.stages] == ["conv1", "layer1", "layer2", "layer3", "bn", "fc"]
    assert s.total.parameters == sum(p.size for p in build("preresnet20").parameters())


def test_table_and_json_tell_the_same():
    s = summarise(build("resnet20"))
    lines = s.table().splitlines()
    row = next(line for line in lines if line.startswith("layer2.0")).split()
    assert row == ["layer2.0", "3x3,32/2", "3x3,32", "16x16x32", "13,952", "3,538,944", "192", "KiB"]
    assert sum(line.startswith("layer") for line in lines) == 9 + 3
    total = lines[-1].split()
    assert total[0] == "total" and total[-4:] == ["269,722", "40,551,040", "1.8", "MiB"]
    data = json.loads(json.dumps(s.to_dict()))
    assert data["total"]["multiply_adds"] == 40_551_040
    assert data["blocks"][4]["name"] == "layer2.0" and data["blocks"][4]["output"] == [16, 16, 32]
    layer = next(row for row in data["layers"] if row["name"] == "layer3.1.conv2")
    assert layer["kind"] == "Conv2d" and layer["parameters"] == 9 * 64 * 64
    for key in ("parameters", "multiply_adds", "activation_bytes"):
        for part in ("layers", "blocks", "stages"):
            assert sum(row[key] for row in data[part]) == data["total"][key]


def test_a_students_own_net():
    net = Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=True, rng=RNG),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8 * 16 * 16, 10, rng=RNG),
    )
    s = summarise(net)
    assert [(row.name, row.output) for row in s.blocks] == [
        ("0", (32, 32, 8)),
        ("3", (16, 16, 8)),
        ("4", (2048,)),
        ("5", (2048,)),
        ("6", (10,)),
    ]
    assert s.total.multiply_adds == conv(32, 3, 8) + 20_480
    assert s.blocks[0].parameters == 27 * 8 + 8 + 16
    assert s.blocks[3].activation_bytes == 0  # in evaluation mode dropout hands on what it got
    assert "stage" not in s.table()  # no stage has several blocks
    assert summarise(nn.Linear(7, 2, rng=RNG), (7,)).total.multiply_adds == 14


def test_shared_unused_and_bare_parameters_are_counted_once():
    class Odd(Module):
        def __init__(self):
            self.twice = nn.Linear(4, 4, rng=RNG)
            self.scale = Tensor(np.ones(4, np.float32), requires_grad=True)
            self.unused = nn.Linear(4, 9, rng=RNG)

        def forward(self, x):
            return self.twice(self.twice(x)) * self.scale

    s = summarise(Odd(), (4,))
    assert s.total.parameters == 20 + 4 + 45
    assert s.total.multiply_adds == 2 * 16
    assert s.total.output == (4,)
    assert s.layers[-1].name == "unused" and s.layers[-1].output == ()


def test_the_net_is_left_as_it_was():
    net = build("resnet20").astype(np.float64)
    net.layer2.eval()
    before = net.state_dict()
    summarise(net)
    assert net.training and net.layer1.training and not net.layer2.training
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(ValueError, match="channels"):
        summarise(net, (32, 32, 4))
    assert net.training and net.fc.training and not net.layer2.training


@pytest.mark.parametrize("shape, batch", [((), 1), ((0, 32, 3), 1), ((32, 32, 3), 0)])
def test_bad_sizes(shape, batch):
    with pytest.raises(ValueError, match="input_shape and batch"):
        summarise(build("resnet8"), shape, batch)


# ---- observe, the mechanism


def test_observe_sees_inner_modules_first_and_only_while_it_lasts():
    net = Sequential(nn.Linear(3, 2, rng=RNG), Sequential(nn.ReLU()))
    seen = []
    with forward_hook(net, lambda name, module, output: seen.append((name, type(module).__name__, output))):
        out = net(Tensor(np.ones((1, 3), np.float32)))
        global_avg_pool(Tensor(np.ones((1, 2, 2, 1), np.float32)))
        nn.ReLU()(out)  # not of this net
    net(Tensor(np.ones((1, 3), np.float32)))
    assert [item[:2] for item in seen] == [
        ("0", "Linear"),
        ("1.0", "ReLU"),
        ("1", "Sequential"),
        ("", "Sequential"),
    ]
    assert seen[-1][2] is out


def test_observers_nest_and_an_error_ends_them():
    net = nn.ReLU()
    x = Tensor(np.ones(2, np.float32))
    outer, inner = [], []
    with forward_hook(net, lambda *seen: outer.append(seen)):
        with pytest.raises(RuntimeError), forward_hook(net, lambda *seen: inner.append(seen)):
            net(x)
            raise RuntimeError
        net(x)
    net(x)
    assert (len(outer), len(inner)) == (2, 1)


def test_a_thread_sees_only_its_own_calls():
    net, seen = nn.ReLU(), []
    x = Tensor(np.ones(2, np.float32))
    with forward_hook(net, lambda *call: seen.append(call)):
        other = threading.Thread(target=net, args=(x,))
        other.start()
        other.join()
    assert not seen
