"""Batch norm folded into convolutions: the same logits from fewer operations, and the net itself unchanged."""

import numpy as np
import pytest

import minires as mr
from minires.backend import to_device, to_host
from minires.functional import relu
from minires.nn import BatchNorm2d, Conv2d, Identity, Module, Sequential
from minires.tensor import Tensor, no_grad

NETS = {  # options of `build`, size of an image, and the batch norms that remain: those that read no convolution
    "resnet8": ({}, 32, 0),
    "plain8": ({}, 32, 0),
    "bottleneck11": ({"shortcut": "C"}, 32, 0),
    "resnet14": ({"shortcut": "B"}, 32, 0),
    "preresnet14": ({}, 32, 1 + 5 + 1),  # first, after each sum but the last's, and at the end: conv -> add -> norm
    "preresnet18": ({}, 64, None),
    "resnet18": ({}, 64, 0),
    "plain18": ({}, 64, 0),
}


def norms_of(net):
    return [m for _, m in net.modules() if isinstance(m, BatchNorm2d)]


def trained(net, x, dtype=np.float32):
    """The net after three batches: running statistics and scales as they are in a trained one."""
    rng = np.random.default_rng(0)
    for norm in norms_of(net):
        norm.weight.data[:] = rng.uniform(0.5, 1.5, norm.weight.shape)
        norm.bias.data[:] = rng.standard_normal(norm.bias.shape)
    for _ in range(3):
        net(x)
    return net.astype(dtype)


def images(size, dtype=np.float32):
    return Tensor(np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("name", NETS)
def test_the_logits_are_the_same(name, dtype, tolerance):
    options, size, remaining = NETS[name]
    width = {} if size == 64 else {"width": 4}
    net = trained(mr.build(name, **width, **options), images(size), dtype)
    before = {key: array.copy() for key, array in net.state_dict().items()}
    x = images(size, dtype)
    folded = mr.fold_batch_norm(net, x)
    assert net.training and not folded.training
    net.eval()
    with no_grad():
        expected, found = net(x).data, folded(x).data
    assert found.dtype == dtype and np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert remaining is None or len(norms_of(folded)) == remaining
    assert len(norms_of(folded)) < len(norms_of(net))
    assert all(np.array_equal(array, before[key]) for key, array in net.state_dict().items())
    assert not any(a is b for a in net.parameters() for b in folded.parameters())


class Own(Module):
    """Convolutions in a list, with biases; a norm with nothing to fold into, a convolution read twice, a norm
    called twice."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.layers = [Conv2d(3, 4, 3, padding=1, bias=True, rng=rng), BatchNorm2d(4)]
        self.read_twice, self.norm = Conv2d(4, 4, 1, rng=rng), BatchNorm2d(4)
        self.conv, self.called_twice = Conv2d(4, 4, 1, rng=rng), BatchNorm2d(4)
        self.by_name = {"conv": Conv2d(4, 5, 3, stride=2, rng=rng), "norm": BatchNorm2d(5)}
        self.layers[0].bias.data[:] = 1, 2, 3, 4

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        h = self.read_twice(relu(x))
        h = self.norm(h) + h
        h = self.called_twice(self.called_twice(self.conv(h)))
        return self.by_name["norm"](self.by_name["conv"](h)).mean((1, 2))


def test_only_a_norm_that_alone_reads_a_convolution_is_folded():
    net, x = Own(), images(8)
    trained(net, x)
    folded = mr.fold_batch_norm(net, x)
    assert isinstance(folded.layers[1], Identity) and isinstance(folded.by_name["norm"], Identity)
    assert norms_of(folded) == [folded.norm, folded.called_twice]
    net.eval()
    with no_grad():
        assert folded(x).data == pytest.approx(net(x).data, rel=1e-5, abs=1e-5)
        again = mr.fold_batch_norm(net, x)  # it needs a graph, and makes one
        assert len(norms_of(again)) == 2


def test_a_norm_of_the_input_is_kept():
    net = Sequential(BatchNorm2d(3), Conv2d(3, 2, 1, rng=np.random.default_rng(0)))
    x = images(4)
    assert len(norms_of(mr.fold_batch_norm(net, x))) == 1


def test_on_the_stand_in_for_a_gpu():
    net = trained(mr.build("resnet8", width=4), images(32)).to("strict")
    x = Tensor(to_device(images(32).data, "strict"))
    folded = mr.fold_batch_norm(net, x)
    net.eval()
    with no_grad():
        assert to_host(folded(x).data) == pytest.approx(to_host(net(x).data), rel=1e-4, abs=1e-5)
