"""Files: written atomically, exchanged with PyTorch, and read without trusting them."""

# mypy: disable-error-code="attr-defined,union-attr"

import errno
import itertools
import json
import os
import pickle
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from minires.files import FileError, write_atomically
from minires.nn import BatchNorm2d, Conv2d, Linear, Module
from minires.training import checkpoint
from minires.training.checkpoint import CheckpointError, load_state, save_state
from minires.training.weights import load_torch_weights, load_weights, save_weights


class Small(Module):
    """A net with one of each: no two axes of a weight are equally long."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.conv1 = Conv2d(2, 5, 3, bias=True, rng=rng)
        self.bn1 = BatchNorm2d(5)
        self.fc = Linear(5, 4, rng=rng)
        for array in (self.conv1.bias.data, self.bn1.weight.data, self.bn1.running_mean, self.fc.bias.data):
            array[:] = rng.standard_normal(array.shape)


def torch_layout(net):
    """What PyTorch's state_dict of the same net would hold, written out by name."""
    state = net.state_dict()
    state["conv1.weight"] = np.einsum("hwcf->fchw", state["conv1.weight"])
    state["fc.weight"] = np.einsum("cf->fc", state["fc.weight"])
    return state


def same(net, other):
    a, b = net.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def refused(call):
    """The one-line error that `call` raises."""
    with pytest.raises(FileError) as error:
        call()
    message = str(error.value)
    assert message.isprintable() and message, "one line, no control characters"
    return message


# ---- atomic writing ------------------------------------------------------------------------------------------


def test_write_atomically(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"one")
    write_atomically(str(path), b"another")
    assert path.read_bytes() == b"another"
    assert os.listdir(tmp_path) == ["file.bin"]


def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, broken, no_space)
    message = refused(lambda: write_atomically(path, b"new"))
    assert str(path) in message and os.strerror(errno.ENOSPC) in message
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"], "no temporary file is left"


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_the_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    path, events = tmp_path / "file.bin", []
    write_atomically(path, b"old")
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append(("fsync", path.read_bytes()))
        real_fsync(descriptor)

    def replace(source, target):
        events.append(("replace", Path(source).read_bytes()))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(path, b"new")
    assert events[:2] == [("fsync", b"old"), ("replace", b"new")]
    if os.name != "nt":
        assert events[2:] == [("fsync", b"new")], "then the folder"


def test_a_folder_that_is_missing_or_in_the_way(tmp_path):
    assert "cannot write" in refused(lambda: write_atomically(tmp_path / "none" / "file", b""))
    assert "cannot write" in refused(lambda: write_atomically(tmp_path, b""))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows lets no file be replaced while it is read")
def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "state"
    save_state(path, {"x": np.zeros(1000)}, {"n": 0})

    def write():
        for n in range(1, 200):
            save_state(path, {"x": np.full(1000 + n % 7, float(n))}, {"n": n})

    writer = threading.Thread(target=write)
    writer.start()
    last = 0
    writing = True
    while writing:
        writing = writer.is_alive()  # asked before the last look
        arrays, info = load_state(path)
        assert (arrays["x"] == info["n"]).all() and arrays["x"].size == 1000 + info["n"] % 7
        assert info["n"] >= last
        last = info["n"]
    writer.join()
    assert last == 199


# ---- states ------------------------------------------------------------------------------------------------


def test_a_state_is_read_back_unchanged(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "float32": rng.standard_normal((3, 4)).astype(np.float32),
        "float64, transposed": rng.standard_normal((3, 4, 5)).transpose(2, 0, 1),
        "every second": np.arange(10)[::2],
        "bytes": np.arange(256, dtype=np.uint8),
        "flag": np.array([True, False]),
        "number": np.array(3.5),
        "nothing": np.zeros((0, 3), np.float32),
        "ünï.code": np.array([1e-300, -0.0]),
    }
    info = {"epoch": 3, "losses": [0.1, 0.25], "nested": {"a": None, "ä": "ß"}, "seed": 2**70}
    save_state(tmp_path / "state", arrays, info)
    back, info_back = load_state(tmp_path / "state")
    assert info_back == info
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape, name
        assert back[name].tobytes() == array.tobytes(), name
        assert back[name].flags.writeable, name


def test_an_info_too_long_to_be_read_is_not_written(tmp_path):
    save_state(tmp_path / "state", {}, {"a": 1})
    assert "info" in refused(lambda: save_state(tmp_path / "state", {}, {"a": "x" * 2**20}))
    assert load_state(tmp_path / "state")[1] == {"a": 1}


def test_a_file_from_elsewhere_has_an_empty_info(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "a.safetensors")
    save_file({"x": np.zeros(3)}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    assert load_state(tmp_path / "a.safetensors")[1] == load_state(tmp_path / "b.safetensors")[1] == {}


def test_a_flipped_bit_anywhere_in_a_state_is_found_or_changes_nothing(tmp_path):
    path, arrays = tmp_path / "state", {"w": np.arange(3, dtype=np.float32), "n": np.array([7])}
    save_state(path, arrays, {"epoch": 3})
    good, outcomes = path.read_bytes(), {"refused": 0, "unchanged": 0}
    for at, bit in itertools.product(range(len(good)), range(8)):
        data = bytearray(good)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        try:
            back, info = load_state(path)
            assert info == {"epoch": 3} and all(np.array_equal(back[name], a) for name, a in arrays.items())
            outcomes["unchanged"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 7 * len(good) and outcomes["unchanged"] <= 8 * len("digest"), outcomes


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "number", "info", "missing"])
def test_a_digest_covers_everything_in_a_state(tmp_path, change):
    path, x = tmp_path / "state", np.arange(6, dtype=np.float32).reshape(2, 3)
    save_state(path, {"x": x, "y": x}, {"epoch": 3})
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert load_state(path)[0].keys() == {"x", "y"} and len(metadata["digest"]) == 64
    changed = {
        "name": {"x": x, "z": x},
        "dtype": {"x": x, "y": x.view(np.int32)},
        "shape": {"x": x, "y": x.reshape(3, 2)},
        "number": {"x": x, "y": np.nextafter(x, 9)},
        "missing": {"x": x},
    }
    info = {"epoch": 4} if change == "info" else {"epoch": 3}
    save_file(changed.get(change, {"x": x, "y": x}), path, metadata={**metadata, "info": json.dumps(info)})
    assert "differs from the digest" in refused(lambda: load_state(path))


def test_a_file_without_a_digest_is_read(tmp_path):
    save_file({"x": np.arange(3)}, tmp_path / "state", metadata={"info": '{"epoch": 3}'})
    arrays, info = load_state(tmp_path / "state")
    assert info == {"epoch": 3} and np.array_equal(arrays["x"], [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("fc.weight", np.nan, "fc.weight holds NaN or infinity"),
        ("velocity.fc.bias", -np.inf, "velocity.fc.bias holds NaN or infinity"),
        ("net.bn1.running_var", -1e-30, "net.bn1.running_var holds a negative variance"),
        ("bn1.running_mean", -1.0, None),
        ("bn1.running_var", 0.0, None),
    ],
)
def test_numbers_that_no_net_can_hold_are_refused(tmp_path, name, value, wanted):
    array = np.ones(5, np.float32)
    array[3] = value
    save_state(tmp_path / "state", {name: array}, {})
    if wanted:
        assert wanted in refused(lambda: load_state(tmp_path / "state"))
    else:
        assert np.array_equal(load_state(tmp_path / "state")[0][name], array)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_file_that_can_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, error):
    path = tmp_path / "state"
    save_state(path, {"x": np.zeros(3)}, {})
    for broken in ("open", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, broken, lambda *a, **k: raise_os_error(error))
            with pytest.raises(FileError, match=os.strerror(error)) as caught:
                load_state(path)
        assert not isinstance(caught.value, CheckpointError)
    assert np.array_equal(load_state(path)[0]["x"], np.zeros(3))


def raise_os_error(number):
    raise OSError(number, os.strerror(number))


# ---- weights in and out ------------------------------------------------------------------------------------


def test_weights_are_in_pytorchs_layout_in_the_file_and_ours_in_memory(tmp_path):
    net = Small(seed=1)
    save_weights(net, tmp_path / "net.safetensors", {"model": "small"})
    in_file = load_file(tmp_path / "net.safetensors")
    wanted = torch_layout(net)
    assert in_file.keys() == wanted.keys()
    assert in_file["conv1.weight"].shape == (5, 2, 3, 3) and in_file["fc.weight"].shape == (4, 5)
    assert all(np.array_equal(in_file[name], wanted[name]) for name in wanted)

    other = Small(seed=2)
    assert not same(net, other)
    before = {name: p.data for name, p in other.named_parameters()}
    load_weights(other, tmp_path / "net.safetensors")
    assert same(net, other)
    assert all(p.data is before[name] for name, p in other.named_parameters()), "filled in place"
    assert load_state(tmp_path / "net.safetensors")[1] == {"model": "small"}


def test_a_float64_net_reads_float32_weights_and_the_other_way_round(tmp_path):
    net = Small(seed=1)
    save_weights(net, tmp_path / "net.safetensors")
    double = Small(seed=2).astype(np.float64)
    load_weights(double, tmp_path / "net.safetensors")
    assert same(net, double) and double.fc.weight.dtype == np.float64
    save_weights(double, tmp_path / "double.safetensors")
    single = Small(seed=3)
    load_weights(single, tmp_path / "double.safetensors")
    assert same(net, single) and single.fc.weight.dtype == np.float32


def as_shared(state):
    """The same weights under the names that weights files in the wild have."""
    weights = {f"module.{name.replace('fc.', 'linear.')}": array for name, array in state.items()}
    return {"epoch": 200, "best_prec1": 91.7, "state_dict": {**weights, "module.bn1.num_batches_tracked": 7}}


def test_weights_from_a_dict(tmp_path):
    net, state = Small(seed=1), torch_layout(Small(seed=1))
    for source in (state, {"state_dict": state}, as_shared(state)):
        other = Small(seed=2)
        load_torch_weights(other, source)
        assert same(net, other)


@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt"])
def test_weights_from_pytorch(tmp_path, suffix):
    torch = pytest.importorskip("torch", reason="PyTorch writes the file")
    net, state = Small(seed=1), torch_layout(Small(seed=1))
    tensors = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in state.items()}
    from_tensors, from_file = Small(seed=2), Small(seed=3)
    load_torch_weights(from_tensors, tensors)
    assert same(net, from_tensors)
    torch.save(as_shared(tensors), tmp_path / f"net{suffix}")
    load_torch_weights(from_file, tmp_path / f"net{suffix}")
    assert same(net, from_file)


def test_weights_from_pytorchs_safetensors(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch writes the file")
    from safetensors.torch import save_file as torch_save_file

    layers = torch.nn.ModuleDict(
        {"conv1": torch.nn.Conv2d(2, 5, 3), "bn1": torch.nn.BatchNorm2d(5), "fc": torch.nn.Linear(5, 4)}
    )
    torch_save_file(layers.state_dict(), tmp_path / "net.safetensors", metadata={"format": "pt"})
    assert "bn1.num_batches_tracked" in load_file(tmp_path / "net.safetensors")
    net = Small()
    load_torch_weights(net, str(tmp_path / "net.safetensors"))
    for name, array in torch_layout(net).items():
        np.testing.assert_array_equal(array, layers.state_dict()[name].numpy(), err_msg=name)


def test_a_fc_and_a_linear_can_not_both_be_meant():
    state = torch_layout(Small(seed=1))
    net = Small()
    message = refused(lambda: load_torch_weights(net, {**state, "linear.weight": state["fc.weight"]}))
    assert "linear.weight is left over" in message
    assert same(net, Small())


def test_everything_that_does_not_fit_is_named_at_once_and_nothing_changes(tmp_path):
    state = torch_layout(Small(seed=1))
    del state["bn1.running_var"], state["fc.bias"]
    state["conv1.weight"] = state["conv1.weight"].transpose(2, 3, 1, 0)  # not PyTorch's layout
    state["fc.weight"] = state["fc.weight"][:3]
    state["layer9.weight"] = np.zeros(2, np.float32)
    save_file({name: np.ascontiguousarray(a) for name, a in state.items()}, tmp_path / "net.safetensors")
    wanted = [
        "bn1.running_var is missing",
        "fc.bias is missing",
        "layer9.weight is left over",
        "conv1.weight is (3, 3, 2, 5), expected (5, 2, 3, 3)",
        "fc.weight is (3, 5), expected (4, 5)",
    ]
    sources = (state, tmp_path / "net.safetensors", {"state_dict": state})
    for source in sources:
        net = Small()
        message = refused(lambda source=source, net=net: load_torch_weights(net, source))
        assert all(fault in message for fault in wanted) and message.count(";") == len(wanted) - 1
        assert same(net, Small())


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("fc.bias", np.zeros(4, np.int64), "fc.bias holds int64, expected floating-point"),
        ("fc.bias", np.zeros(4, np.complex64), "fc.bias holds complex64"),
        ("fc.bias", np.array([None] * 4), "fc.bias holds object"),
        ("fc.bias", [[1, 2], [3]], "fc.bias cannot be converted to an array"),
        ("fc.bias", "text", "fc.bias is (), expected (4,)"),
    ],
)
def test_values_that_are_no_weights_are_refused_and_nothing_changes(name, value, wanted):
    net = Small()
    message = refused(lambda: load_torch_weights(net, {**torch_layout(Small(seed=1)), name: value}))
    assert wanted in message
    assert same(net, Small())


def test_bfloat16_is_refused_in_one_line(tmp_path):
    torch = pytest.importorskip("torch", reason="NumPy has no bfloat16")
    from safetensors.torch import save_file as torch_save_file

    net = Small()
    state = {name: torch.from_numpy(a.copy()).bfloat16() for name, a in torch_layout(net).items()}
    refused(lambda: load_torch_weights(net, state))
    torch_save_file(state, tmp_path / "net.safetensors")
    refused(lambda: load_torch_weights(net, tmp_path / "net.safetensors"))
    assert same(net, Small())


def test_without_pytorch_a_pth_file_is_refused_and_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused(lambda: load_torch_weights(Small(), tmp_path / "net.pth"))
    assert "pip install torch" in message and ".safetensors" in message


def test_other_sources_are_refused(tmp_path):
    assert "expected a .safetensors, .pth" in refused(lambda: load_torch_weights(Small(), tmp_path / "net.npz"))
    assert "no such file" in refused(lambda: load_torch_weights(Small(), tmp_path / "none.safetensors"))
    assert "expected a file, got a folder" in refused(lambda: load_weights(Small(), tmp_path))
    assert "state_dict: expected a dict of arrays, got a list" in refused(
        lambda: load_torch_weights(Small(), {"state_dict": [1]})
    )


# ---- untrusted files ----------------------------------------------------------------------------------------


class Evil:
    """What runs when this is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_pth_file_does_not_run(tmp_path):
    torch = pytest.importorskip("torch", reason="only PyTorch reads .pth files")
    trace = tmp_path / "it ran"
    torch.save({"state_dict": {"fc.weight": Evil(trace)}}, tmp_path / "new.pth")
    torch.save({"fc.weight": Evil(trace)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(trace)))
    (tmp_path / "noise.pth").write_bytes(b"\x80\x04noise")
    (tmp_path / "empty.pth").write_bytes(b"")
    for path in sorted(tmp_path.glob("*.pth")):
        net = Small()
        refused(lambda path=path, net=net: load_torch_weights(net, path))
        assert same(net, Small())
    assert not trace.exists()
    torch.load(tmp_path / "new.pth", weights_only=False)
    assert trace.exists(), "the file is not as evil as it should be"


def file_with(header, body=b"", header_bytes=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if header_bytes is None else header_bytes
    return length.to_bytes(8, "little") + text + body


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a header of 2^63 bytes": file_with({}, header_bytes=2**63),
    "a header of 2^64 - 1 bytes": file_with({}, header_bytes=2**64 - 1),
    "a header of 1 GB": file_with({}, header_bytes=10**9),
    "a header longer than the file": file_with({}, header_bytes=1000),
    "no JSON": file_with(b"hello world"),
    "deep JSON": file_with(b"[" * 10**6),
    "not UTF-8": file_with(b'{"\xff\xfe": 1}'),
    "a list for a header": file_with([]),
    "a huge shape": file_with({"x": {**ENTRY, "shape": [2**40]}}, b"x" * 8),
    "a shape that overflows": file_with({"x": {**ENTRY, "shape": [2**62, 2**62]}}, b"x" * 8),
    "a huge shape, no bytes": file_with({"x": {**ENTRY, "shape": [2**63, 0], "data_offsets": [0, 0]}}),
    "a negative shape": file_with({"x": {**ENTRY, "shape": [-2]}}, b"x" * 8),
    "offsets beyond the end": file_with({"x": {**ENTRY, "data_offsets": [0, 2**50]}}, b"x" * 8),
    "offsets backwards": file_with({"x": {**ENTRY, "data_offsets": [8, 0]}}, b"x" * 8),
    "two arrays in one place": file_with({"x": ENTRY, "y": ENTRY}, b"x" * 8),
    "bytes that belong to no array": file_with({"x": ENTRY}, b"x" * 16),
    "an unknown dtype": file_with({"x": {**ENTRY, "dtype": "PICKLE"}}, b"x" * 8),
    "a dtype unknown to NumPy": file_with({"x": {**ENTRY, "dtype": "BF16", "shape": [4]}}, b"x" * 8),
    "another dtype unknown to NumPy": file_with({"x": {**ENTRY, "dtype": "F8_E4M3", "shape": [8]}}, b"x" * 8),
    "17 MB of metadata": file_with({"__metadata__": {"a": "x" * 17 * 2**20}}),
    "an info that is no JSON": file_with({"__metadata__": {"info": "{"}}),
    "an info that is a list": file_with({"__metadata__": {"info": "[1]"}}),
    "a deep info": file_with({"__metadata__": {"info": "[" * 500_000}}),
    "an info of 2 MB": file_with({"__metadata__": {"info": json.dumps({"a": "x" * 2**21})}}),
    "an info of 10^5 digits": file_with({"__metadata__": {"info": '{"a": ' + "9" * 10**5 + "}"}}),
    "metadata that is no text": file_with({"__metadata__": {"info": 3}}),
    "a name that moves the cursor": file_with({"\n\x1b[2J\u2028": {**ENTRY, "dtype": "BF16"}}, b"x" * 8),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_at_no_cost(tmp_path, what):
    path = tmp_path / "net.safetensors"
    path.write_bytes(HOSTILE[what])
    net = Small()
    refused(lambda: load_state(path))  # safetensors is imported by now
    tracemalloc.start()
    try:
        refused(lambda: load_state(path))
        refused(lambda: load_torch_weights(net, path))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert same(net, Small())


@pytest.mark.skipif(os.name == "nt", reason="truncate() makes no hole there: the file would fill the disk")
def test_a_file_that_is_too_large_is_not_opened(tmp_path):
    for name in ("net.safetensors", "net.pth"):
        if name.endswith(".pth"):
            pytest.importorskip("torch", reason="only PyTorch reads .pth files")
        with (tmp_path / name).open("wb") as file:
            size = 2**40
            header = file_with({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
            file.write(header)
            file.truncate(len(header) + size)
        assert "at most" in refused(lambda name=name: load_torch_weights(Small(), tmp_path / name))
    assert "at most" in refused(lambda: load_state(tmp_path / "net.safetensors"))


def test_a_name_in_a_file_can_not_break_the_line_of_the_error(tmp_path):
    save_file({"evil\r\n\x1b[31mname": np.zeros(2, np.float32)}, tmp_path / "net.safetensors")
    message = refused(lambda: load_weights(Small(), tmp_path / "net.safetensors"))
    assert "evil" in message and "is left over" in message


def good_file():
    state = torch_layout(Small(seed=1))
    return save({name: np.ascontiguousarray(array) for name, array in state.items()}, {"info": "{}"})


def corruptions(count):
    """Cut, flipped, repeated and overwritten copies of a weights file, most of them near the header."""
    rng, good = np.random.default_rng(0), good_file()
    for i in range(count):
        data = bytearray(good)
        at = int(rng.integers(0, len(good) if i % 2 else int.from_bytes(good[:8], "little") + 8))
        match i % 5:
            case 0:
                del data[at:]
            case 1:
                data[at] ^= 1 << int(rng.integers(8))
            case 2:
                data[at : at + 8] = rng.bytes(8)
            case 3:
                data[at:at] = data[: int(rng.integers(1, 50))]
            case 4:
                del data[at : at + int(rng.integers(1, 20))]
        yield bytes(data)


def test_four_hundred_corruptions_are_refused_or_read_whole(tmp_path):
    """Without a digest a flipped bit in a number can't be detected; but no net is ever half filled."""
    path, outcomes = tmp_path / "net.safetensors", {"refused": 0, "read": 0}
    start = Small()
    for data in corruptions(400):
        path.write_bytes(data)
        net = Small()
        try:
            load_torch_weights(net, path)
            arrays = load_file(path)
            for name, array in torch_layout(net).items():
                np.testing.assert_array_equal(array, arrays[name])
            outcomes["read"] += 1
        except CheckpointError as error:
            assert str(error).isprintable()
            assert same(net, start)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 250 and outcomes["read"] > 10, outcomes


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=300))
def test_noise_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    path.write_bytes(data)
    refused(lambda: load_state(path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entries = json_values | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "U8", "BOOL", "I64", "C64", "F8_E4M3", "x"]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**63, -1]) | json_values, max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 1, 4, 8, 24, 2**63, -1]), min_size=2, max_size=2),
    }
)


@settings(deadline=None, max_examples=200)
@given(
    header=st.dictionaries(st.sampled_from(["x", "__metadata__", ""]) | st.text(), entries, max_size=3),
    info=json_values,
    size=st.sampled_from([0, 4, 8, 24]),
)
def test_any_header_is_refused_or_read(tmp_path_factory, header, info, size):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    header.setdefault("__metadata__", {"info": json.dumps(info)})
    path.write_bytes(file_with(json.dumps(header).encode("utf-8", "surrogatepass"), b"\x01" * size))
    net = Small()
    try:
        arrays, found = load_state(path)
        assert isinstance(found, dict) and sum(array.nbytes for array in arrays.values()) == size
    except CheckpointError as error:
        assert str(error).isprintable()
    refused(lambda: load_weights(net, path))
    assert same(net, Small())


def test_the_limits_leave_room_for_the_largest_net():
    """ResNet-1202's names with momentum: 2 x 6,000 entries of some 110 bytes."""
    assert checkpoint.MAX_HEADER_BYTES > 5 * 12_000 * 110
