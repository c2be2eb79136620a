"""The nets: parameters and multiply-adds against a count by hand, shapes, blocks, names, memory."""

# mypy: disable-error-code="attr-defined,union-attr"

import os
import subprocess
import sys

import numpy as np
import pytest

from minires import SGD, Tensor, build, cross_entropy, no_grad
from minires.backend import to_device, to_host
from minires.nn import BatchNorm2d, Conv2d, Linear, forward_hook
from minires.resnet import BasicBlock, Bottleneck, PreBasicBlock, PreBottleneck

# ---- counts ------------------------------------------------------------------------------------------------

CIFAR = {  # option A (DESIGN: exact)
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
}
IMAGENET = {  # option B: parameters; multiply-adds in the paper's Table 1; and exactly, stride in the 1x1
    "resnet18": (11_689_512, 1.8e9, 1_814_073_344),
    "resnet34": (21_797_672, 3.6e9, 3_663_761_408),
    "resnet50": (25_557_032, 3.8e9, 3_857_973_248),
    "resnet101": (44_549_160, 7.6e9, 7_570_194_432),
    "resnet152": (60_192_808, 11.3e9, 11_282_415_616),
}
STAGES = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}


def parameters(net):
    return sum(p.size for p in net.parameters())


def by_hand(name, option, stride_in="3x3"):
    """Parameters and multiply-adds, layer after layer down the paper's tables; nothing here asks the net."""
    family, depth = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    pre, family = family.startswith("pre"), family.removeprefix("pre")
    imagenet = depth in STAGES and family != "bottleneck"
    bottleneck = family == "bottleneck" or imagenet and int(depth) >= 50
    stages = STAGES[depth] if imagenet else ((int(depth) - 2) // (9 if bottleneck else 6),) * 3
    total_p, total_m = 0, 0

    def conv(size, kernel, c, f):
        nonlocal total_p, total_m
        total_p += kernel * kernel * c * f
        total_m += size * size * kernel * kernel * c * f

    def norm(c):
        nonlocal total_p
        total_p += 2 * c

    width, size = (64, 112) if imagenet else (16, 32)
    conv(size, 7 if imagenet else 3, 3, width)
    if not pre:
        norm(width)
    if imagenet:
        size //= 2
    c = width
    for i, count in enumerate(stages):
        w = width * 2**i
        f = 4 * w if bottleneck else w
        for j in range(count):
            before = size
            if i > 0 and j == 0:
                size //= 2
            if bottleneck:
                middle = size if stride_in == "1x1" else before
                layers = [(middle, 1, c, w), (size, 3, w, w), (size, 1, w, f)]
            else:
                layers = [(size, 3, c, w), (size, 3, w, w)]
            for layer in layers:
                norm(layer[2] if pre else layer[3])
                conv(*layer)
            if option == "C" or option == "B" and (before != size or c != f):
                conv(size, 1, c, f)
                if not pre:
                    norm(f)
            c = f
    if pre:
        norm(c)
    classes = 1000 if imagenet else 10
    return total_p + (c + 1) * classes, total_m + c * classes


def multiply_adds(net, size):
    """Walk one image through the net and count at every layer that multiplies."""
    total = 0

    def count(name, module, output):
        nonlocal total
        if isinstance(module, Conv2d):
            total += output.shape[1] * output.shape[2] * module.weight.size
        elif isinstance(module, Linear):
            total += module.weight.size

    with no_grad(), forward_hook(net.eval(), count):
        net(Tensor(np.zeros((1, size, size, 3), np.float32)))
    return total


@pytest.mark.parametrize("name", CIFAR)
def test_parameters_of_the_cifar_nets(name):
    assert parameters(build(name)) == CIFAR[name]
    assert parameters(build(name.replace("resnet", "plain"))) == CIFAR[name], "option A has nothing to learn"


@pytest.mark.parametrize("name", IMAGENET)
def test_parameters_and_multiply_adds_of_the_imagenet_nets(name):
    exact_parameters, in_the_paper, exact = IMAGENET[name]
    net = build(name, stride_in="1x1")
    assert parameters(net) == exact_parameters == by_hand(name, "B")[0]
    assert multiply_adds(net, 224) == exact == by_hand(name, "B", "1x1")[1]
    assert exact == pytest.approx(in_the_paper, rel=0.02)


def test_torchvisions_stride_costs_resnet50_a_little_more():
    count = multiply_adds(build("resnet50"), 224)
    assert count == by_hand("resnet50", "B")[1] == 4_089_184_256


@pytest.mark.parametrize("name", ["plain18", "plain34"])
def test_a_plain_imagenet_net_lacks_the_projections(name):
    residual = build(name.replace("plain", "resnet"))
    shortcuts = sum(p.size for key, p in residual.named_parameters() if "downsample" in key)
    assert shortcuts == sum(c * 2 * c + 2 * 2 * c for c in (64, 128, 256))
    plain = build(name)
    assert parameters(plain) == parameters(residual) - shortcuts
    assert not any("downsample" in key for key, _ in plain.named_parameters())


@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize(
    "name",
    ["resnet20", "bottleneck29", "bottleneck164", "preresnet20", "prebottleneck29", "prebottleneck164"],
)
def test_the_cifar_family_by_hand(name, option):
    net = build(name, shortcut=option)
    assert (parameters(net), multiply_adds(net, 32)) == by_hand(name, option)


@pytest.mark.parametrize(("name", "millions"), [("prebottleneck164", 1.7), ("prebottleneck1001", 10.2)])
def test_the_pre_activation_nets_have_the_size_that_identity_mappings_reports(name, millions):
    """Without the norms, that is; with them ResNet-1001 has 10.3 million."""
    weights = sum(p.size for p in build(name, shortcut="B").parameters() if p.ndim > 1)
    assert round(weights / 1e6, 1) == millions


@pytest.mark.parametrize("option", "AC")
def test_an_imagenet_net_with_the_other_shortcuts(option):
    assert parameters(build("resnet34", shortcut=option)) == by_hand("resnet34", option)[0]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "resnet101",
        "plain34",
        "resnet20",
        "resnet110",
        "bottleneck47",
        "bottleneck110",
        "preresnet56",
        "prebottleneck164",
        "preresnet50",
    ],
)
def test_the_number_in_the_name_counts_the_layers_with_weights(name):
    layers = [key for key, module in build(name).modules() if isinstance(module, Conv2d | Linear)]
    assert sum("downsample" not in key for key in layers) == int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))


# ---- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "wanted"),
    [
        ("resnet20", 32, [(32, 16), (16, 32), (8, 64)]),
        ("plain20", 32, [(32, 16), (16, 32), (8, 64)]),
        ("preresnet20", 32, [(32, 16), (16, 32), (8, 64)]),
        ("bottleneck29", 32, [(32, 64), (16, 128), (8, 256)]),
        ("prebottleneck29", 32, [(32, 64), (16, 128), (8, 256)]),
        ("resnet18", 224, [(56, 64), (28, 128), (14, 256), (7, 512)]),
        ("plain18", 224, [(56, 64), (28, 128), (14, 256), (7, 512)]),
        ("resnet50", 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
    ],
)
def test_the_shape_after_every_stage(name, size, wanted):
    net, shapes = build(name), {}
    x = Tensor(np.zeros((2, size, size, 3), np.float32))
    with no_grad(), forward_hook(net.eval(), lambda key, module, output: shapes.update({key: output.shape})):
        net(x)
    assert [shapes[f"layer{i + 1}"] for i in range(len(wanted))] == [(2, s, s, c) for s, c in wanted]
    last = f"layer{len(wanted)}"
    assert {shapes.get(f"layer{i}", shapes[last]) for i in range(len(wanted), 6)} == {shapes[last]}, "no stage follows"
    assert shapes[""] == (2, 1000 if size == 224 else 10)
    assert shapes["conv1"] == ((2, 112, 112, 64) if size == 224 else (2, 32, 32, 16))


def test_classes_and_width():
    net = build("resnet20", classes=7, width=4)
    assert net(Tensor(np.zeros((2, 32, 32, 3), np.float32))).shape == (2, 7)
    assert net.layer3[2].conv2.weight.shape == (3, 3, 16, 16)
    assert build("resnet18", classes=10).fc.weight.shape == (512, 10)


@pytest.mark.parametrize("name", ["resnet50", "preresnet50"])
def test_where_a_bottleneck_has_its_stride(name):
    def strides(stride_in):
        block = build(name, width=4, stride_in=stride_in).layer2[0]
        return block.conv1.stride, block.conv2.stride, block.conv3.stride, block.downsample[0].stride

    assert strides("1x1") == (2, 1, 1, 2)
    assert strides("3x3") == (1, 2, 1, 2)
    first = build(name, width=4).layer1[0]
    assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == (1, 1, 1)


# ---- initial weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "preresnet20", "bottleneck29", "plain20"])
def test_initial_weights(name):
    net = build(name, seed=3, shortcut="B")
    for key, module in net.modules():
        if isinstance(module, Conv2d | Linear):
            w = module.weight.data.astype(np.float64)
            fan_in = np.prod(w.shape[:-1])
            std = 0.01 if isinstance(module, Linear) else np.sqrt(2 / fan_in)
            # within 5 deviations of what a sample of this size shows
            assert w.std() == pytest.approx(std, rel=5 / np.sqrt(2 * w.size)), key
            assert abs(w.mean()) < 5 * std / np.sqrt(w.size), key
        if isinstance(module, BatchNorm2d):
            assert (module.weight.data == 1).all() and (module.running_var == 1).all(), key
            assert (module.running_mean == 0).all(), key
        if isinstance(module, BatchNorm2d | Linear):
            assert (module.bias.data == 0).all(), key
        if isinstance(module, Conv2d):
            assert module.bias is None, key


def test_the_seed_makes_the_weights():
    first, again, other = (build("resnet20", seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].ndim > 1]
    assert not any(np.array_equal(first[key], other[key]) for key in drawn)


# ---- blocks ------------------------------------------------------------------------------------------------


def block_input(channels, seed=0):
    return np.random.default_rng(seed).standard_normal((2, 6, 6, channels)).astype(np.float32)


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_a_residual_block_whose_last_norm_is_zero_hands_on_its_shortcut(kind):
    c = 4 * kind.expansion
    x = block_input(c)
    for stride, width in ((1, 4), (2, 8)):
        block = kind(c, width, stride, "A", np.random.default_rng(0))
        last = block.bn3 if kind is Bottleneck else block.bn2
        last.weight.data[:] = 0
        shortcut = np.zeros((2, 6 // stride, 6 // stride, width * kind.expansion), np.float32)
        half = (width * kind.expansion - c) // 2
        shortcut[..., half : half + c] = x[:, ::stride, ::stride]
        np.testing.assert_array_equal(block(Tensor(x)).data, np.maximum(shortcut, 0))


@pytest.mark.parametrize("kind", [PreBasicBlock, PreBottleneck])
def test_a_pre_activation_block_that_adds_nothing_is_the_identity(kind):
    c = 4 * kind.expansion
    x = block_input(c)
    block = kind(c, 4, 1, "B", np.random.default_rng(0))
    last = block.conv3 if kind is PreBottleneck else block.conv2
    last.weight.data[:] = 0
    np.testing.assert_array_equal(block(Tensor(x)).data, x)  # negative numbers too: no ReLU on the way


@pytest.mark.parametrize("kind", [PreBasicBlock, PreBottleneck])
@pytest.mark.parametrize("option", "AB")
def test_a_pre_activation_shortcut_that_changes_the_shape_starts_from_the_activated_x(kind, option):
    block = kind(4, 8, 2, option, np.random.default_rng(0))
    last = block.conv3 if kind is PreBottleneck else block.conv2
    last.weight.data[:] = 0
    x = block_input(4)
    out = block(Tensor(x)).data
    xhat = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    h = np.maximum(xhat, 0)[:, ::2, ::2]
    if option == "B":
        wanted = h @ block.downsample[0].weight.data[0, 0]
        assert len(block.downsample) == 1
    else:
        extra = 8 * kind.expansion - 4
        wanted = np.pad(h, ((0, 0), (0, 0), (0, 0), (extra // 2, extra // 2)))
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_a_plain_block_adds_nothing(kind):
    c = 4 * kind.expansion
    block = kind(c, 4, 1, None, np.random.default_rng(0))
    last = block.bn3 if kind is Bottleneck else block.bn2
    last.weight.data[:], last.bias.data[:] = 0, 0.5
    assert (block(Tensor(block_input(c))).data == 0.5).all()


@pytest.mark.parametrize("name", ["resnet20", "bottleneck29"])
def test_zero_init(name):
    net, ones = build(name, zero_init=True), build(name)
    last = "bn3" if name.startswith("bottleneck") else "bn2"
    for key, p in net.named_parameters():
        if key.endswith(f"{last}.weight") and key.startswith("layer"):
            assert (p.data == 0).all(), key
        else:
            np.testing.assert_array_equal(p.data, dict(ones.named_parameters())[key].data, err_msg=key)

    rng = np.random.default_rng(0)
    x, y = Tensor(rng.standard_normal((4, 32, 32, 3)).astype(np.float32)), rng.integers(0, 10, 4)
    optimiser = SGD(net.parameters(), lr=0.1)
    for _ in range(3):  # the first step moves fc, the second the zeros, the third what lies behind them
        optimiser.zero_grad()
        cross_entropy(net(x), y).backward()
        optimiser.step()
    assert all((p.grad != 0).any() for _, p in net.named_parameters()), "every layer must come to learn"


@pytest.mark.parametrize("name", ["plain20", "preresnet20", "prebottleneck29", "plain18"])
def test_zero_init_is_refused_where_it_would_kill_the_block(name):
    with pytest.raises(ValueError, match=f"zero_init .* {name}"):
        build(name, zero_init=True)


# ---- devices -----------------------------------------------------------------------------------------------


def outputs_and_gradients(name, options, device):
    """Logits, every gradient, and the running statistics after one batch, in float64, on the host."""
    rng = np.random.default_rng(0)
    net = build(name, seed=1, width=4, classes=5, **options).astype(np.float64).to(device)
    x = to_device(rng.standard_normal((3, 32, 32, 3)), device)
    logits = net(Tensor(x))
    cross_entropy(logits, np.array([4, 0, 2])).backward()
    found = {f"gradient of {key}": to_host(p.grad) for key, p in net.named_parameters()}
    found |= {key: to_host(array) for key, array in net.named_buffers()}
    return found | {"logits": to_host(logits.data), "evaluated": to_host(net.eval()(Tensor(x)).data)}


@pytest.mark.parametrize("device", ["strict", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8", {}),
        ("resnet8", {"shortcut": "C"}),
        ("plain8", {}),
        ("preresnet8", {"shortcut": "B"}),
        ("bottleneck11", {}),
        ("prebottleneck11", {"stride_in": "1x1"}),
        ("resnet18", {}),
        ("resnet8", {"zero_init": True}),
    ],
)
def test_a_net_computes_on_a_device_what_it_computes_on_the_cpu(name, options, device):
    right, here = outputs_and_gradients(name, options, "cpu"), outputs_and_gradients(name, options, device)
    assert right.keys() == here.keys()
    for key, array in right.items():
        assert np.abs(here[key] - array).max() <= 1e-9 * max(1, np.abs(array).max()), key


# ---- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "imagenet", "block"),
    [
        ("resnet50", True, Bottleneck),  # 6n + 2 too: the ImageNet name wins
        ("resnet152", True, Bottleneck),
        ("plain34", True, BasicBlock),
        ("plain50", False, BasicBlock),
        ("resnet8", False, BasicBlock),
        ("bottleneck11", False, Bottleneck),
        ("preresnet34", True, PreBasicBlock),
        ("preresnet50", True, PreBottleneck),
        ("prebottleneck20", False, PreBottleneck),
    ],
)
def test_what_a_name_means(name, imagenet, block):
    net = build(name, width=2)
    assert [type(m).__name__ for m in (net.layer4, net.maxpool)] == (
        ["Sequential", "MaxPool2d"] if imagenet else ["Identity", "Identity"]
    )
    assert type(net.layer1[0]) is block
    assert net.fc.weight.shape[1] == (1000 if imagenet else 10)
    assert (
        type(net.layer2[0].downsample).__name__
        == {
            True: "Zero" if name.startswith("plain") else "Sequential",
            False: "Zero" if name.startswith("plain") else "SubsampleAndPad",
        }[imagenet]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("vgg16"), "expected plainN, resnetN.*got 'vgg16'"),
        (lambda: build("resnet"), "expected plainN, resnetN.*got 'resnet'"),
        (lambda: build("resnet020"), "expected plainN, resnetN.*got 'resnet020'"),
        (lambda: build("preplain20"), "expected plainN, resnetN.*got 'preplain20'"),
        (lambda: build("resnet99999"), "expected plainN, resnetN.*got 'resnet99999'"),
        (lambda: build(" resnet20"), "expected plainN, resnetN.*got ' resnet20'"),
        (lambda: build("resnet21"), "6n \\+ 2.*resnet20 and resnet26.*ImageNet net: resnet18.*got resnet21$"),
        (lambda: build("resnet2"), "resnet8 and resnet14.*got resnet2$"),
        (lambda: build("resnet1"), "resnet8 and resnet14.*got resnet1$"),
        (lambda: build("bottleneck50"), "9n \\+ 2, the nearest are bottleneck47 and bottleneck56; got bottleneck50$"),
        (lambda: build("plain101"), "ImageNet net: plain18, plain34; got plain101$"),
        (lambda: build("prebottleneck165"), "prebottleneck164 and prebottleneck173; got prebottleneck165$"),
        (lambda: build("resnet20", shortcut="D"), "expected shortcut 'A', 'B' or 'C', got 'D'"),
        (lambda: build("resnet20", shortcut=""), "expected shortcut 'A', 'B' or 'C', got ''"),
        (lambda: build("resnet50", stride_in="2x2"), "expected stride_in '1x1' or '3x3', got '2x2'"),
        (lambda: build("resnet20", classes=0), "expected classes and width of at least 1, got 0 and 16"),
        (lambda: build("resnet20", width=0), "expected classes and width of at least 1, got 10 and 0"),
    ],
)
def test_what_does_not_exist_is_told_in_one_line(call, message):
    with pytest.raises(ValueError, match=f"^build: .*{message}") as error:
        call()
    assert "\n" not in str(error.value)


# ---- memory ------------------------------------------------------------------------------------------------

STEP = """
import sys, resource
import numpy as np
from minires import SGD, Tensor, build, cross_entropy
name, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
net, rng = build(name, classes=10), np.random.default_rng(0)
optimiser = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
x, y = rng.standard_normal((batch, size, size, 3)).astype(np.float32), rng.integers(0, 10, batch)
cross_entropy(net(Tensor(x)), y).backward()
assert all(np.isfinite(p.grad).all() for p in net.parameters())
optimiser.step()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak if sys.platform == "darwin" else 1024 * peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through the resource module")
@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [(name, 224, 4) for name in ("plain18", "plain34", *IMAGENET)] + [("resnet1202", 32, 8)],
)
def test_a_training_step_fits_into_8_gb(name, size, batch):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MINIRES_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", STEP, name, str(size), str(batch)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert 50e6 < int(done.stdout) < 8e9
