"""Modules: names, modes, state, moving; layers against the operations they call."""

import numpy as np
import pytest

from minires import functional as F
from minires import nn
from minires.backend import device_of, to_device, to_host
from minires.conv import conv2d, max_pool2d
from minires.norm import layer_norm
from minires.optim import SGD
from minires.tensor import Tensor


def rng():
    return np.random.default_rng(0)


class Small(nn.Module):
    def __init__(self):
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=True, rng=rng())
        self.body = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(4, 5, rng=rng())

    def forward(self, x):
        return self.fc(nn.GlobalAvgPool()(self.body(self.conv(x))))


def picture(n=2, device="cpu"):
    return Tensor(to_device(rng().standard_normal((n, 7, 6, 3)).astype(np.float32), device))


def test_names_are_the_dotted_attributes_in_order():
    net = Small()
    assert [name for name, _ in net.named_parameters()] == [
        "conv.weight",
        "conv.bias",
        "body.0.weight",
        "body.0.bias",
        "fc.weight",
        "fc.bias",
    ]
    assert [name for name, _ in net.named_buffers()] == ["body.0.running_mean", "body.0.running_var"]
    assert [name for name, _ in net.modules()] == ["", "conv", "body", "body.0", "body.1", "body.2", "fc"]


def test_train_and_eval_reach_every_module():
    net = Small()
    assert net.eval() is net and not any(m.training for _, m in net.modules())
    net.train()
    assert all(m.training for _, m in net.modules())


def test_evaluation_is_repeatable_and_training_is_not(device):
    net = Small().to(device).eval()

    def outputs(n=2):
        return to_host(net(picture(n, device)).data)

    np.testing.assert_array_equal(outputs(), outputs())
    assert np.abs(outputs(3)[:2] - outputs()).max() < 1e-6, "in evaluation, examples do not depend on each other"
    net.train()
    assert np.abs(outputs() - outputs()).max() > 1e-3, "dropout draws anew"


def test_state_goes_out_as_copies_and_comes_back(device):
    net, other = Small().to(device), Small().to(device)
    for p in other.parameters():
        p.data += 1
    state = other.state_dict()
    net.load_state_dict(state)
    for (name, p), (_, q) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        np.testing.assert_array_equal(to_host(p.data), to_host(q.data), err_msg=name)
    state["fc.bias"][:] = 7
    assert not (net.fc.bias.data == 7).any() and not (other.fc.bias.data == 7).any()


def test_a_number_is_no_part_of_the_state():
    net = Small()
    names = list(net.state_dict())
    net.scale, net.kind = np.sqrt(2.0), np.float32
    assert list(net.state_dict()) == names
    net.load_state_dict(net.state_dict())
    assert net.astype(np.float64).scale == np.sqrt(2.0) and net.kind is np.float32


def test_a_net_moves_to_a_device_and_back_with_all_it_holds(device):
    net = Small()
    before = net.state_dict()
    arrays = [*(p.data for p in net.to(device).parameters()), *(array for _, array in net.named_buffers())]
    assert {device_of(array) for array in arrays} == {device}
    net(picture(device=device)).sum().backward()
    assert {device_of(p.grad) for p in net.parameters()} == {device}
    net.load_state_dict(before)
    for name, array in net.to("cpu").state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert all(isinstance(p.data, np.ndarray) and p.grad is None for p in net.parameters())


def test_a_state_that_does_not_fit_names_every_fault_and_changes_nothing():
    net = Small()
    before = net.state_dict()
    state = net.state_dict() | {"fc.weight": np.zeros((5, 4)), "extra": np.zeros(1)}
    state["conv.bias"] = state["conv.bias"] + 1
    del state["fc.bias"]
    with pytest.raises(ValueError) as told:
        net.load_state_dict(state)
    for part in ("missing fc.bias", "unexpected extra", "fc.weight is (5, 4), expected (4, 5)"):
        assert part in str(told.value)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_astype_turns_parameters_and_buffers(device):
    net = Small().to(device).astype(np.float64)
    assert {a.dtype for a in net.state_dict().values()} == {np.dtype(np.float64)}


def test_initial_weights_are_hes():
    conv = nn.Conv2d(32, 64, 3, rng=rng())
    assert conv.weight.data.std() == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.02)
    assert nn.Linear(400, 300, rng=rng()).weight.data.std() == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    assert nn.Linear(400, 300, std=0.01, rng=rng()).weight.data.std() == pytest.approx(0.01, rel=0.02)


def test_layers_call_their_operations(device):
    def same(a, b):
        np.testing.assert_array_equal(to_host(a.data), to_host(b.data))

    x, net = picture(device=device), Small().to(device)
    same(net.conv(x), conv2d(x, net.conv.weight, net.conv.bias, 2, 1))
    same(nn.MaxPool2d(3, 2, 1)(x), max_pool2d(x, 3, 2, 1))
    same(nn.ReLU()(x), F.relu(x))
    flat = nn.Flatten()(x)
    same(flat, x.reshape(2, 7 * 6 * 3))
    norm = nn.LayerNorm(3)
    norm.weight.data[:] = [1, 2, 3]
    norm.to(device)
    same(norm(x), layer_norm(x, norm.weight, norm.bias))
    linear = nn.Linear(flat.shape[1], 5, rng=rng()).to(device)
    same(linear(flat), F.linear(flat, linear.weight, linear.bias))


def test_dropout_keeps_the_mean_and_rests_in_evaluation(device):
    x = Tensor(to_device(np.ones((200, 200), np.float32), device))
    layer = nn.Dropout(0.25)
    y = to_host(layer(x).data)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert layer.eval()(x) is x


def test_sequential_is_a_list_of_modules():
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    assert len(net) == 2 and isinstance(net[1], nn.ReLU) and [type(m) for m in net] == [nn.Flatten, nn.ReLU]


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(picture())


def test_observers_see_names_and_outputs_inner_modules_first():
    net, seen = Small().eval(), []
    with nn.forward_hook(net, lambda name, module, output: seen.append((name, output.shape))):
        net(picture())
    assert seen == [
        ("conv", (2, 4, 3, 4)),
        ("body.0", (2, 4, 3, 4)),
        ("body.1", (2, 4, 3, 4)),
        ("body.2", (2, 4, 3, 4)),
        ("body", (2, 4, 3, 4)),
        ("fc", (2, 5)),
        ("", (2, 5)),
    ]
    net(picture())
    assert len(seen) == 7, "afterwards nobody listens"


# ---- what a module holds


class Holder(nn.Module):
    """Layers in a list, a tuple and a dict, one inside another, a parameter in a list, and things that are none."""

    def __init__(self, rng):
        self.layers = [nn.Linear(2, 3, rng=rng), (nn.ReLU(), nn.Linear(3, 3, rng=rng))]
        self.heads = {"a": nn.Linear(3, 1, rng=rng), "b": [nn.BatchNorm2d(3)]}
        self.scales = [nn.parameter(np.ones(3))]
        self.table, self.last, self.count = np.ones(3), None, np.sqrt(2.0)

    def forward(self, x):
        for layer in (self.layers[0], *self.layers[1], self.heads["b"][0]):
            x = layer(x)
        self.last = x * self.scales[0]
        return self.heads["a"](self.last)


NAMES = [
    *("layers.0.weight", "layers.0.bias", "layers.1.1.weight", "layers.1.1.bias", "heads.a.weight", "heads.a.bias"),
    *("heads.b.0.weight", "heads.b.0.bias", "scales.0"),
]


def test_modules_and_parameters_in_containers_are_found():
    net, rng = Holder(np.random.default_rng(0)), np.random.default_rng(1)
    opt = SGD(net.parameters(), lr=0.1)
    before = net.state_dict()
    y = net(Tensor(rng.standard_normal((8, 2), np.float32)))
    (y * y).sum().backward()
    opt.step()
    assert [name for name, _ in net.named_parameters()] == NAMES, "activations that are kept are no parameters"
    assert [name for name, _ in net.named_buffers()] == ["heads.b.0.running_mean", "heads.b.0.running_var"]
    after = net.state_dict()
    assert list(after) == [*NAMES, "heads.b.0.running_mean", "heads.b.0.running_var"]
    moved = {name for name in after if not np.array_equal(after[name], before[name])}
    # batch norm makes the bias before it useless: its gradient is 0 but for rounding
    assert moved >= set(after) - {"layers.1.1.bias"}
    assert not net.eval().heads["b"][0].training and not net.layers[1][0].training
    other = Holder(np.random.default_rng(7))
    other.load_state_dict(after)
    x = Tensor(rng.standard_normal((3, 2), np.float32))
    np.testing.assert_array_equal(other.eval()(x).data, net(x).data)
    assert {p.dtype for p in net.astype(np.float64).parameters()} == {np.dtype(np.float64)}


def test_a_frozen_parameter_is_still_saved_and_moved():
    net = nn.Sequential(nn.Linear(2, 2, rng=np.random.default_rng(0)))
    net[0].weight.requires_grad = False
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
    opt, before = SGD(net.parameters(), lr=1), net.state_dict()
    net(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    opt.step()
    assert np.array_equal(net[0].weight.data, before["0.weight"]) and not np.array_equal(net[0].bias.data, 0)


def test_a_module_may_know_its_parent_and_be_shared():
    net = nn.Sequential(nn.Linear(2, 2, rng=np.random.default_rng(0)), nn.ReLU())
    net[0].parent = net
    net[1].friends = [net[0], net]
    net[1].friends.append(net[1].friends)
    assert [name for name, _ in net.modules()] == ["", "0", "1"]
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    net.eval().to("cpu")
