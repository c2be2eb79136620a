"""Whole nets against the same nets made of PyTorch's layers: logits, gradients, running statistics, SGD."""

# mypy: disable-error-code="name-defined,arg-type"

import numpy as np
import pytest

from minires import SGD, Tensor, build, cross_entropy
from minires.training.weights import save_weights

torch = pytest.importorskip("torch", reason="PyTorch is the oracle of these tests: pip install torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
nn, functional = torch.nn, torch.nn.functional


class OptionA(nn.Module):
    def __init__(self, extra, stride):
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x):
        half = self.extra // 2
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))


class Block(nn.Module):
    """Any block of the two papers. kernels: (3, 3) or (1, 3, 1); strided: which of them has the stride."""

    def __init__(self, c_in, width, stride, *, kernels, strided, option, pre):
        super().__init__()
        self.count, self.pre, self.option = len(kernels), pre, option
        c_out = width * (4 if len(kernels) == 3 else 1)
        channels = [c_in] + [width] * (len(kernels) - 1) + [c_out]
        for i, kernel in enumerate(kernels):
            step = stride if i == strided else 1
            conv = nn.Conv2d(channels[i], channels[i + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(channels[i] if pre else channels[i + 1]))
        changes = stride > 1 or c_in != c_out
        self.downsample = None
        if option == "A" and changes:
            self.downsample = OptionA(c_out - c_in, stride)
        if option == "C" or option == "B" and changes:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv) if pre else nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x):
        layers = [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.count + 1)]
        if self.pre:
            h = torch.relu(layers[0][1](x))
            out = self.downsample(h) if self.downsample else x
            for i, (conv, _) in enumerate(layers):
                h = conv(h)
                if i + 1 < self.count:
                    h = torch.relu(layers[i + 1][1](h))
            return out + h
        h = x
        for i, (conv, norm) in enumerate(layers):
            h = norm(conv(h))
            if i + 1 < self.count:
                h = torch.relu(h)
        if self.option:
            h = h + (self.downsample(x) if self.downsample else x)
        return torch.relu(h)


class Net(nn.Module):
    def __init__(self, counts, *, width, classes, pre, kernels, imagenet, **options):
        super().__init__()
        self.pre, self.imagenet, self.stages = pre, imagenet, len(counts)
        self.conv1 = nn.Conv2d(3, width, *((7, 2, 3) if imagenet else (3, 1, 1)), bias=False)
        if not pre:
            self.bn1 = nn.BatchNorm2d(width)
        c_in = width
        for i, count in enumerate(counts):
            blocks = []
            for j in range(count):
                stride = 2 if i and not j else 1
                blocks.append(Block(c_in, width << i, stride, kernels=kernels, pre=pre, **options))
                c_in = (width << i) * (4 if len(kernels) == 3 else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        if pre:
            self.bn = nn.BatchNorm2d(c_in)
        self.fc = nn.Linear(c_in, classes)

    def forward(self, x):
        x = self.conv1(x)
        if not self.pre:
            x = torch.relu(self.bn1(x))
        if self.imagenet:
            x = functional.max_pool2d(x, 3, 2, 1)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        if self.pre:
            x = torch.relu(self.bn(x))
        return self.fc(x.mean((2, 3)))


BASIC, BOTTLENECK = {"kernels": (3, 3), "strided": 0}, {"kernels": (1, 3, 1), "strided": 1}
CIFAR = {"width": 16, "imagenet": False, "pre": False}
IMAGENET = {"width": 64, "imagenet": True, "pre": False}
CIFAR_PRE, IMAGENET_PRE = {**CIFAR, "pre": True}, {**IMAGENET, "pre": True}
NETS = {  # our name and settings; the oracle's blocks in each stage and settings
    "resnet20 A": ("resnet20", {}, (3, 3, 3), {**CIFAR, **BASIC, "option": "A"}),
    "resnet20 B": ("resnet20", {"shortcut": "B"}, (3, 3, 3), {**CIFAR, **BASIC, "option": "B"}),
    "bottleneck29 A": ("bottleneck29", {}, (3, 3, 3), {**CIFAR, **BOTTLENECK, "option": "A"}),
    "preresnet20 A": ("preresnet20", {}, (3, 3, 3), {**CIFAR_PRE, **BASIC, "option": "A"}),
    "prebottleneck29 B": ("prebottleneck29", {"shortcut": "B"}, (3, 3, 3), {**CIFAR_PRE, **BOTTLENECK, "option": "B"}),
    "resnet18": ("resnet18", {}, (2, 2, 2, 2), {**IMAGENET, **BASIC, "option": "B"}),
    "resnet50": ("resnet50", {}, (3, 4, 6, 3), {**IMAGENET, **BOTTLENECK, "option": "B"}),
}
MORE_NETS = {
    "resnet14 C": ("resnet14", {"shortcut": "C"}, (2, 2, 2), {**CIFAR, **BASIC, "option": "C"}),
    "plain20": ("plain20", {}, (3, 3, 3), {**CIFAR, **BASIC, "option": None}),
    "plain18": ("plain18", {}, (2, 2, 2, 2), {**IMAGENET, **BASIC, "option": None}),
    "bottleneck20 B 1x1": (
        "bottleneck20",
        {"shortcut": "B", "stride_in": "1x1"},
        (2, 2, 2),
        {**CIFAR, **BOTTLENECK, "option": "B", "strided": 0},
    ),
    "preresnet20 B": ("preresnet20", {"shortcut": "B"}, (3, 3, 3), {**CIFAR_PRE, **BASIC, "option": "B"}),
    "prebottleneck20 C 1x1": (
        "prebottleneck20",
        {"shortcut": "C", "stride_in": "1x1"},
        (2, 2, 2),
        {**CIFAR_PRE, **BOTTLENECK, "option": "C", "strided": 0},
    ),
    "preresnet18": ("preresnet18", {}, (2, 2, 2, 2), {**IMAGENET_PRE, **BASIC, "option": "B"}),
}
ALL_NETS = NETS | MORE_NETS
CASES = [(which, dtype) for which in NETS for dtype in ("float32", "float64")]
CASES += [(which, "float64") for which in MORE_NETS]
LOGITS = {"float32": 1e-4, "float64": 1e-10}  # largest difference, in units of the largest entry
GRADIENTS = {"float32": 1e-3, "float64": 1e-8}
# Batches to try until one agrees. A gradient jumps where the input of a ReLU is 0, and among a million inputs
# some may be so close that float32 rounds them to the other side; then one of the two float32 nets differs by
# percents from float64, PyTorch's as often as ours. A batch without such an input agrees to about 1e-5. In
# float64 no excuse holds: the first batch must agree.
TRIES = {"float32": 8, "float64": 1}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(which, dtype, folder, width=None):
    """Our net and the oracle with the same random weights, which reach the oracle through a file."""
    name, settings, counts, oracle_settings = ALL_NETS[which]
    width = width or oracle_settings["width"]
    ours = build(name, classes=10, width=width, **settings)
    rng = np.random.default_rng(1)
    state = ours.state_dict()
    for key, array in state.items():  # at the usual start half of these would be 0 or 1 and hide a mistake
        if key.endswith("running_var") or array.ndim == 1 and key.endswith("weight"):
            array[:] = rng.uniform(0.5, 1.5, array.shape)
        elif array.ndim == 1:
            array[:] = 0.3 * rng.standard_normal(array.shape)
    ours.load_state_dict(state)
    ours.astype(dtype)
    save_weights(ours, folder / "net.safetensors")
    oracle = Net(counts, classes=10, **oracle_settings | {"width": width}).to(getattr(torch, dtype))
    oracle.load_state_dict(safetensors_torch.load_file(folder / "net.safetensors"))  # every name, every shape
    return ours, oracle


def batch(which, dtype, seed, n=3):
    rng = np.random.default_rng(seed)
    imagenet = ALL_NETS[which][3]["imagenet"]
    size = 64 if imagenet else 32
    x, y = rng.standard_normal((n, size, size, 3)).astype(dtype), rng.integers(0, 10, n)
    return x, y, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y)


def to_nhwc(array):
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def differs_by(ours, reference):
    """The largest difference in units of the reference's largest entry."""
    assert ours.shape == reference.shape and ours.dtype == reference.dtype
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def worst(ours, references):
    """The difference and the name of the worst of many arrays."""
    assert ours.keys() == references.keys()
    return max((differs_by(ours[name], references[name]), name) for name in ours)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("which", "dtype"), CASES)
def test_logits_and_the_gradient_of_every_parameter(which, dtype, training, tmp_path):
    # at full width hardly a batch of float32 has no input next to a kink
    narrow = 8 if (which, dtype, training) == ("resnet50", "float32", True) else None
    ours, oracle = pair(which, dtype, tmp_path, narrow)
    ours.train(training)
    oracle.train(training)
    found = []
    for seed in range(TRIES[dtype]):
        ours.zero_grad()
        oracle.zero_grad()
        x, y, torch_x, torch_y = batch(which, dtype, seed)
        logits = ours(Tensor(x))
        cross_entropy(logits, y).backward()
        reference = oracle(torch_x)
        functional.cross_entropy(reference, torch_y).backward()
        assert differs_by(logits.data, reference.detach().numpy()) < LOGITS[dtype]

        gradients = {name: p.grad for name, p in ours.named_parameters()}
        references = {name: to_nhwc(p.grad.numpy()) for name, p in oracle.named_parameters()}
        found.append(worst(gradients, references))
        if found[-1][0] < GRADIENTS[dtype]:
            return
    pytest.fail(f"no batch agrees to {GRADIENTS[dtype]}: {found}")


@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("which", ["resnet20 A", "preresnet20 B", "bottleneck29 A", "resnet18"])
def test_three_steps_of_sgd_with_momentum_nesterov_and_weight_decay(which, dtype, tmp_path):
    settings = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    found = []
    for seed in range(TRIES[dtype]):
        ours, oracle = pair(which, dtype, tmp_path, width=4)
        optimiser = SGD(ours.parameters(), **settings)
        reference = torch.optim.SGD(oracle.parameters(), **settings)
        start = ours.state_dict()
        for step in range(3):
            x, y, torch_x, torch_y = batch(which, dtype, 3 * seed + step)
            cross_entropy(ours(Tensor(x)), y).backward()
            optimiser.step()
            optimiser.zero_grad()
            reference.zero_grad()
            functional.cross_entropy(oracle(torch_x), torch_y).backward()
            reference.step()

        after = ours.state_dict()  # weights and running statistics
        expected = {name: to_nhwc(value.numpy()) for name, value in oracle.state_dict().items() if value.ndim}
        moves = {name: after[name] - start[name] for name in after}
        expected_moves = {name: expected[name] - start[name] for name in expected}
        found.append(worst(moves, expected_moves))
        if found[-1][0] < GRADIENTS[dtype]:
            return
    pytest.fail(f"no run agrees to {GRADIENTS[dtype]}: {found}")
