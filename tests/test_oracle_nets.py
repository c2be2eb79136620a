"""Whole nets against the same nets built from PyTorch's own layers: logits, gradients, running statistics, SGD."""

import numpy as np
import pytest

from minires import SGD, Tensor, build, cross_entropy
from minires.checkpoint import save_weights

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
        self.conv1 = nn.Conv2d(3, width, 7 if imagenet else 3, 2 if imagenet else 1, 3 if imagenet else 1, bias=False)
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
NETS = {  # our name and settings; the oracle's stages and settings
    "resnet20 A": ("resnet20", {}, (3, 3, 3), {**CIFAR, **BASIC, "option": "A"}),
    "resnet20 B": ("resnet20", {"shortcut": "B"}, (3, 3, 3), {**CIFAR, **BASIC, "option": "B"}),
    "resnet14 C": ("resnet14", {"shortcut": "C"}, (2, 2, 2), {**CIFAR, **BASIC, "option": "C"}),
    "plain20": ("plain20", {}, (3, 3, 3), {**CIFAR, **BASIC, "option": None}),
    "bottleneck29 A": ("bottleneck29", {}, (3, 3, 3), {**CIFAR, **BOTTLENECK, "option": "A"}),
    "bottleneck20 B 1x1": ("bottleneck20", {"shortcut": "B", "stride_in": "1x1"}, (2, 2, 2),
                           {**CIFAR, **BOTTLENECK, "option": "B", "strided": 0}),
    "preresnet20 A": ("preresnet20", {}, (3, 3, 3), {**CIFAR, **BASIC, "option": "A", "pre": True}),
    "preresnet20 B": ("preresnet20", {"shortcut": "B"}, (3, 3, 3), {**CIFAR, **BASIC, "option": "B", "pre": True}),
    "prebottleneck29 B": ("prebottleneck29", {"shortcut": "B"}, (3, 3, 3),
                          {**CIFAR, **BOTTLENECK, "option": "B", "pre": True}),
    "resnet18": ("resnet18", {}, (2, 2, 2, 2), {**IMAGENET, **BASIC, "option": "B"}),
    "resnet50": ("resnet50", {}, (3, 4, 6, 3), {**IMAGENET, **BOTTLENECK, "option": "B"}),
    "preresnet18": ("preresnet18", {}, (2, 2, 2, 2), {**IMAGENET, **BASIC, "option": "B", "pre": True}),
}  # fmt: skip
LOGITS = {"float32": 1e-4, "float64": 1e-10}  # largest difference, in units of the largest entry
GRADIENTS = {"float32": 1e-3, "float64": 1e-8}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(which, dtype, folder):
    """Our net and the oracle with the same random weights, which reach the oracle through a file."""
    name, settings, counts, oracle_settings = NETS[which]
    ours = build(name, classes=10, **settings)
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
    oracle = Net(counts, classes=10, **oracle_settings).to(getattr(torch, dtype))
    oracle.load_state_dict(safetensors_torch.load_file(folder / "net.safetensors"))  # strict: every name, every shape
    return ours, oracle


def batch(which, dtype, seed, n=3):
    rng = np.random.default_rng(seed)
    size = 64 if NETS[which][3]["imagenet"] else 32
    x = rng.standard_normal((n, size, size, 3)).astype(dtype)
    return x, rng.integers(0, 10, n)


def torch_input(x, y):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y)


def to_nhwc(array):
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def differs_by(ours, reference):
    """The largest difference in units of the reference's largest entry."""
    assert ours.shape == reference.shape and ours.dtype == reference.dtype
    return np.abs(ours - reference).max() / np.abs(reference).max()


def worst(ours, theirs):
    """The name and difference of the worst of many arrays."""
    assert ours.keys() == theirs.keys()
    return max(((differs_by(ours[name], theirs[name]), name) for name in ours), default=(0, ""))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("which", NETS)
def test_logits_and_the_gradient_of_every_parameter(which, dtype, training, tmp_path):
    ours, oracle = pair(which, dtype, tmp_path)
    ours.train(training)
    oracle.train(training)
    x, y = batch(which, dtype, seed=2)
    logits = ours(Tensor(x))
    cross_entropy(logits, y).backward()
    tx, ty = torch_input(x, y)
    reference = oracle(tx)
    functional.cross_entropy(reference, ty).backward()

    assert differs_by(logits.data, reference.detach().numpy()) < LOGITS[dtype]
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    references = {name: to_nhwc(p.grad.numpy()) for name, p in oracle.named_parameters()}
    assert worst(gradients, references) < (GRADIENTS[dtype], "")


@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("which", ["resnet20 A", "preresnet20 B", "bottleneck29 A", "resnet18"])
def test_three_steps_of_sgd_with_momentum_nesterov_and_weight_decay(which, dtype, tmp_path):
    ours, oracle = pair(which, dtype, tmp_path)
    settings = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    optimiser, reference = SGD(ours.parameters(), **settings), torch.optim.SGD(oracle.parameters(), **settings)
    start = ours.state_dict()
    for step in range(3):
        x, y = batch(which, dtype, seed=step, n=8)
        cross_entropy(ours(Tensor(x)), y).backward()
        optimiser.step()
        optimiser.zero_grad()
        tx, ty = torch_input(x, y)
        reference.zero_grad()
        functional.cross_entropy(oracle(tx), ty).backward()
        reference.step()

    after = ours.state_dict()
    expected = {name: to_nhwc(value.numpy()) for name, value in oracle.state_dict().items() if value.ndim}
    moved = {name: after[name] - start[name] for name in after}  # weights and running statistics
    should_move = {name: expected[name] - start[name] for name in expected}
    assert worst(moved, should_move) < (GRADIENTS[dtype], "")
