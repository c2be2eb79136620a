"""Files: written atomically, and read without trusting them."""

import errno
import itertools
import json
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from minires.files import FileError, write_atomically
from minires.training import checkpoint
from minires.training.checkpoint import CheckpointError, load_state, save_state


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
            assert all(np.array_equal(back[name], array) for name, array in arrays.items())
            assert info in ({"epoch": 3}, {})  # nothing is left of it if its name is hit
            outcomes["unchanged"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert outcomes["unchanged"] <= 8 * len("info") and outcomes["refused"] > 7 * len(good), outcomes


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "number", "info", "missing"])
def test_a_digest_covers_everything_in_a_state(tmp_path, change):
    path, x = tmp_path / "state", np.arange(6, dtype=np.float32).reshape(2, 3)
    save_state(path, {"x": x, "y": x}, {"epoch": 3})
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert load_state(path)[0].keys() == {"x", "y"}
    assert (digest := metadata["info"].removeprefix('{"epoch": 3}\n')) and len(digest) == 64
    changed = {
        "name": {"x": x, "z": x},
        "dtype": {"x": x, "y": x.view(np.int32)},
        "shape": {"x": x, "y": x.reshape(3, 2)},
        "number": {"x": x, "y": np.nextafter(x, 9)},
        "missing": {"x": x},
    }
    info = {"epoch": 4} if change == "info" else {"epoch": 3}
    save_file(changed.get(change, {"x": x, "y": x}), path, metadata={"info": f"{json.dumps(info)}\n{digest}"})
    assert "differs from the digest" in refused(lambda: load_state(path))


def test_equal_states_are_equal_files(tmp_path):
    for n in range(5):
        save_state(tmp_path / str(n), {"b": np.arange(3), "a": np.ones((2, 2))}, {"x": [1.5], "y": None})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


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


# ---- untrusted files ----------------------------------------------------------------------------------------


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
    "a dtype unknown to NumPy": file_with({"x": {**ENTRY, "dtype": "F8_E4M3", "shape": [8]}}, b"x" * 8),
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
    refused(lambda: load_state(path))  # safetensors is imported by now
    tracemalloc.start()
    try:
        refused(lambda: load_state(path))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(os.name == "nt", reason="truncate() makes no hole there: the file would fill the disk")
def test_a_file_that_is_too_large_is_not_opened(tmp_path):
    with (tmp_path / "net.safetensors").open("wb") as file:
        size = 2**40
        header = file_with({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
        file.write(header)
        file.truncate(len(header) + size)
    assert "at most" in refused(lambda: load_state(tmp_path / "net.safetensors"))


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
    try:
        arrays, found = load_state(path)
        in_file = {name: a.nbytes // (2 if header[name]["dtype"] == "BF16" else 1) for name, a in arrays.items()}
        assert isinstance(found, dict) and sum(in_file.values()) == size
    except CheckpointError as error:
        assert str(error).isprintable()


def test_the_limits_leave_room_for_the_largest_net():
    """ResNet-1202's names with momentum: 2 x 6,000 entries of some 110 bytes."""
    assert checkpoint.MAX_HEADER_BYTES > 5 * 12_000 * 110
