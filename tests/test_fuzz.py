"""Hostile files: every reader is fed random bytes, damaged copies of good files, and well-formed files that lie.

Whatever the bytes, a reader returns something complete or raises its documented error, in one line. It writes nothing,
runs nothing, and takes little memory and time. test_data_cifar10.py, test_checkpoint.py and test_predict.py try the
faults that one can think of; here hypothesis looks for others.
"""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import time
import tracemalloc
import zlib
from dataclasses import fields
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minires import plots
from minires.data import DataError, load_cifar10, read_image, shapes10
from minires.data import cifar10 as module
from minires.nn import BatchNorm2d, Conv2d, Linear, Module
from minires.training.checkpoint import CheckpointError, load_state, save_state
from minires.training.config import Config, RunError, read_config
from minires.training.folder import checkpoint_path
from minires.training.loop import fit
from minires.training.predict import predict
from minires.training.run import Run, load_run
from minires.training.weights import load_torch_weights, load_weights, save_weights

FUZZ = settings(
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MEMORY, SECONDS = 50e6, 5  # the most that reading one of these small files may take


@pytest.fixture
def read_safely(tmp_path, monkeypatch):
    """read_safely(read, errors, path, raw): writes `raw` to a file and reads it. Returns None on an error."""
    monkeypatch.chdir(tmp_path)  # where a file with a relative name would land

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def run(read, errors, path, raw):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        before, began = files(), time.process_time()
        tracemalloc.start()
        try:
            return read()
        except errors as error:
            assert str(path.parent) in str(error) and "\n" not in str(error)
            return None
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MEMORY and time.process_time() - began < SECONDS
            assert files() == before

    return run


# ---- damage --------------------------------------------------------------------------------------------------------

EXTREMES = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80", b"\xff" * 8, b"\0" * 8, b"9" * 12]


@st.composite
def damaged(draw, good):
    """One of the byte strings `good` after one to three accidents, or bytes from nowhere."""
    if draw(st.sampled_from([False] * 5 + [True])):
        return draw(st.binary(max_size=300))
    raw = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 3))):
        n, length = len(raw), draw(st.integers(1, 40))
        at = draw(st.integers(0, min(n, 600)) | st.integers(0, n) | st.integers(max(0, n - 30), n))  # mostly at an end
        match draw(st.sampled_from(["flip", "put", "extreme", "remove", "splice", "cut"])):
            case "flip" if at < len(raw):
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "put":
                raw[at:at] = draw(st.binary(max_size=20))
            case "extreme":
                piece = draw(st.sampled_from(EXTREMES))
                raw[at : at + len(piece)] = piece
            case "remove":
                del raw[at : at + length]
            case "splice":  # a piece of this or another good file
                other = draw(st.sampled_from(good))
                start = draw(st.integers(0, len(other)))
                raw[at : at + draw(st.sampled_from([0, length]))] = other[start : start + 10 * length]
            case "cut":
                del raw[at:]
    return bytes(raw)


STRANGE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([-1, 0, 1, 2**31, 10**9, 10**30, 10**400, 1e300, "resnet8", "resnet9998", "A"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def lying(draw, value):
    """JSON like `value`, with something in it replaced, left out or added."""
    if not isinstance(value, dict | list) or not value or draw(st.sampled_from([False] * 9 + [True])):
        return draw(STRANGE)
    changed = value.copy()
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"])):
        case "replace":
            changed[place] = draw(lying(value[place]))
        case "remove":
            del changed[place]
        case "add" if isinstance(changed, dict):
            changed[draw(st.text(max_size=4))] = draw(STRANGE)
        case "add":
            changed.insert(place, draw(STRANGE))
    return changed


# ---- CIFAR-10 ------------------------------------------------------------------------------------------------------

COUNT = 2  # images a batch
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "PER_BATCH", COUNT)
    monkeypatch.setattr(module, "BIN_BYTES", COUNT * 3073)
    monkeypatch.setattr(module, "_check_content", lambda *args: None)


def batch(i, python):
    pixels = np.random.default_rng(i).integers(0, 256, (COUNT, 3072), np.uint8)
    labels = [i % 10] * COUNT
    if not python:
        return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))
    return pickle.dumps({"data": pixels, "labels": labels}, protocol=3 + i % 2)


BINARY = {f"{name}.bin": batch(i, False) for i, name in enumerate(BATCHES)}
PYTHON = {name: batch(i, True) for i, name in enumerate(BATCHES)}


def tar_of(files, folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


TARS = [tar_of(BINARY, "cifar-10-batches-bin"), tar_of(PYTHON, "cifar-10-batches-py")]


def with_checksums(tar):
    """A damaged tar whose headers have right checksums again, so that the reader believes them."""
    tar, at = bytearray(tar), 0
    while at + 512 <= len(tar):
        tar[at + 148 : at + 156] = b" " * 8
        tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])
        digits = bytes(tar[at + 124 : at + 135])
        size = int(digits, 8) if digits.isdigit() and set(digits) <= set(b"01234567") else 0
        at += 512 + -(-size // 512) * 512
    return bytes(tar)


def is_whole(dataset):
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    assert images.shape == (6 * COUNT, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (6 * COUNT,) and labels.dtype == np.int64 and set(labels) <= set(range(10))


@FUZZ
@given(data=st.data())
def test_cifar10_folders(small, tmp_path, read_safely, data):
    files = data.draw(st.sampled_from([BINARY, PYTHON]))
    folder = tmp_path / ("binary" if files is BINARY else "python")
    for name, raw in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(raw)
    path = folder / data.draw(st.sampled_from(sorted(files)))
    dataset = read_safely(lambda: load_cifar10(folder), DataError, path, data.draw(damaged(list(files.values()))))
    assert dataset is None or is_whole(dataset) is None


OPCODES = [
    b"(",
    b"]",
    b"}",
    b")",
    b"N",
    b"K\x01",
    b"M\x00\x0c",
    b"J\xff\xff\xff\x7f",
    b"I9999\n",
    b"L9999999999L\n",
    b"F1.5\n",
    b"U\x04data",
    b"U\x06labels",
    b"U\x02u1",
    b"T\x04\x00\x00\x00abcd",
    b"X\x01\x00\x00\x00a",
    b"\x8c\x05numpy",
    b"\x8c\x07ndarray",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy._core.multiarray\nscalar\n",
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"c__main__\nx\n",
    b"R",
    b"b",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"l",
    b"d",
    b"e",
    b"a",
    b"s",
    b"u",
    b"\x81",
    b"\x92",
    b"\x93",
    b"o",
    b"ios\nsystem\n",
    b"q\x00",
    b"h\x00",
    b"p1\n",
    b"g1\n",
    b"]r\xff\xff\xff\xff",
    b"\x94",
    b"2",
    b"0",
    b"1",
    b".",
    b"Pid\n",
    b"Q",
    b"\x8d" + b"\xff" * 8,
    b"\x8e" + b"\xff" * 8,
    b"\x96" + b"\xff" * 8,
    b"\x95" + b"\xff" * 8,
    b"\x8a\xff",
    b"\x82\x01",
]


@FUZZ
@given(opcodes=st.lists(st.sampled_from(OPCODES), max_size=40), whole=st.booleans())
def test_cifar10_pickles_of_any_opcodes(small, tmp_path, read_safely, opcodes, whole):
    folder = tmp_path / "python"
    folder.mkdir(exist_ok=True)
    for name, raw in PYTHON.items():
        (folder / name).write_bytes(raw)
    raw = b"\x80\x04" + b"".join(opcodes) + b"."
    raw = raw[:-1] + PYTHON["data_batch_2"][2:] if whole else raw
    dataset = read_safely(lambda: load_cifar10(folder), DataError, folder / "data_batch_2", raw)
    assert dataset is None or is_whole(dataset) is None


@FUZZ
@given(raw=damaged(TARS), repaired=st.booleans(), packed=st.sampled_from([True, True, True, False]))
def test_cifar10_archives(small, tmp_path, read_safely, raw, repaired, packed):
    raw = with_checksums(raw) if repaired else raw
    path = tmp_path / "cifar-10-binary.tar.gz"
    dataset = read_safely(lambda: load_cifar10(path), DataError, path, gzip.compress(raw, 1) if packed else raw)
    assert dataset is None or is_whole(dataset) is None


# ---- weights and checkpoints ---------------------------------------------------------------------------------------


class Small(Module):
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.conv1, self.bn1, self.fc = Conv2d(2, 5, 3, rng=rng), BatchNorm2d(5), Linear(5, 4, rng=rng)


def same(net, other):
    mine, theirs = net.state_dict(), other.state_dict()
    return all(np.array_equal(mine[name], theirs[name], equal_nan=True) for name in mine)


def weights_file(tmp_path):
    save_weights(Small(seed=1), tmp_path / "good.safetensors", {"model": "small"})
    return (tmp_path / "good.safetensors").read_bytes()


@FUZZ
@given(data=st.data())
def test_weights(tmp_path, read_safely, data):
    path, net = tmp_path / "net.safetensors", Small()
    raw = data.draw(damaged([weights_file(tmp_path)]))
    load = data.draw(st.sampled_from([load_weights, load_torch_weights]))
    if read_safely(lambda: load(net, path) or True, CheckpointError, path, raw) is None:
        assert same(net, Small())
    read_safely(lambda: load_state(path), CheckpointError, path, raw)


@FUZZ
@given(data=st.data())
def test_weights_of_pytorch(tmp_path, read_safely, data):
    torch = pytest.importorskip("torch", reason="only PyTorch reads .pth files")
    path, net = tmp_path / "net.pth", Small()
    buffer = io.BytesIO()
    torch.save({"fc.weight": torch.zeros(4, 5), "fc.bias": torch.ones(4)}, buffer)
    load = lambda: load_torch_weights(net, path)  # noqa: E731
    assert read_safely(load, CheckpointError, path, data.draw(damaged([buffer.getvalue()]))) is None
    assert same(net, Small())


DATA = shapes10(70, 30)
SMALL = {"model": "resnet8", "width": 4, "batch_size": 16, "epochs": 2, "threads": 1}  # 4 steps an epoch


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, its config and the content of its files."""
    out = tmp_path_factory.mktemp("trained")
    fit(Config.from_recipe("fast", **SMALL), out, dataset=DATA)
    checkpoints = sorted((out / "checkpoints").iterdir())
    return SimpleNamespace(
        out=out,
        config=read_config(out),
        checkpoints=[path.read_bytes() for path in checkpoints],
        states=[load_state(path) for path in checkpoints],
        model=(out / "model.safetensors").read_bytes(),
        model_state=load_state(out / "model.safetensors"),
        about=json.loads((out / "config.json").read_text(encoding="utf-8")),
        metrics=(out / "metrics.jsonl").read_text(encoding="utf-8"),
    )


def resume(trained, folder, name, arrays_and_info=None, raw=b""):
    """The run resumed from this checkpoint, or None if it was refused in one line."""
    run = Run(trained.config, folder, DATA)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(trained.out / "config.json", folder)
    path = folder / "checkpoints" / name
    path.write_bytes(raw)
    if arrays_and_info:
        save_state(path, *arrays_and_info)
    tracemalloc.start()
    try:
        run.resume()
    except RunError as error:
        assert "\n" not in str(error)
        return None
    finally:
        assert tracemalloc.get_traced_memory()[1] < MEMORY
        tracemalloc.stop()
    return run


def assert_valid_position(run):
    """That the run can continue from where it says it is."""
    at = run.progress
    first = at.epoch * 4
    assert first <= at.step <= min(first + 4, 8) and at.seen == 16 * (at.step - first) >= at.correct >= 0
    assert [type(n) for n in (at.epoch, at.step, at.correct, at.seen)] == [int] * 4
    assert len(at.rows) == at.epoch and all(row["test_acc"] is not None for row in at.rows)
    text = (run.out / "metrics.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == at.rows


FRESH = count()  # each example has a folder of its own


@FUZZ
@given(data=st.data())
def test_checkpoints_with_damage(trained, tmp_path, data):
    folder = tmp_path / str(next(FRESH))
    run = resume(trained, folder, "step-00000004.safetensors", raw=data.draw(damaged(trained.checkpoints)))
    assert run is None or assert_valid_position(run) is None
    assert {path.name for path in folder.iterdir()} <= {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "model.safetensors",
    }


@FUZZ
@given(data=st.data())
def test_checkpoints_that_lie_about_the_run(trained, tmp_path, data):
    arrays, info = data.draw(st.sampled_from(trained.states))
    name = checkpoint_path(trained.out, info["progress"]["step"]).name
    info = data.draw(lying(info))
    if not isinstance(info, dict):
        info = {"progress": info}
    run = resume(trained, tmp_path / str(next(FRESH)), name, (arrays, info))
    assert run is None or assert_valid_position(run) is None


@FUZZ
@given(data=st.data())
def test_checkpoints_with_other_arrays(trained, tmp_path, data):
    arrays, info = data.draw(st.sampled_from(trained.states))
    name = data.draw(st.sampled_from(sorted(arrays)))
    other = data.draw(st.sampled_from(["f4", "f8", "i4", "?", "u1"]))
    shape = data.draw(st.sampled_from([(), (1,), (1, 1), arrays[name].shape, arrays[name].shape + (1,)]))
    changed = {**arrays, name: np.ones(shape, other)}
    if data.draw(st.booleans()):
        del changed[data.draw(st.sampled_from(sorted(arrays)))]
    fits = changed.keys() == arrays.keys() and shape == arrays[name].shape and other in ("f4", "f8")
    path = checkpoint_path(trained.out, info["progress"]["step"])
    run = resume(trained, tmp_path / str(next(FRESH)), path.name, (changed, info))
    assert (run is not None) == fits


@FUZZ
@given(data=st.data())
def test_a_trained_net_that_lies_about_itself(trained, tmp_path, read_safely, data):
    arrays, info = trained.model_state
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    info = data.draw(lying(info))
    save_state(path, arrays, info if isinstance(info, dict) else {"model": info})
    raw = path.read_bytes() if data.draw(st.booleans()) else data.draw(damaged([trained.model]))
    found = read_safely(lambda: load_run(folder), (RunError, CheckpointError), path, raw)
    if found:
        assert sum(p.size for p in found[0].parameters()) < 10_000
        (classes,) = predict(folder, [DATA.test_images[0]])
        assert len(classes) == 5 and all(isinstance(name, str) for name, _ in classes)


LIES = {
    "a deeper net": {"model": "resnet9998"},
    "a larger net": {"model": "resnet50"},
    "a wider net": {"width": 3000},
    "a far wider net": {"width": 10**12},
    "many classes": {"classes": ["a"] * 100_000},
    "no class": {"classes": []},
    "a word for classes": {"classes": "abcdefghij"},
    "a mean that is NaN": {"mean": [[[np.nan] * 3] * 32] * 32},
    "a mean of one number": {"mean": 0},
    "a scale that overflows": {"scale": [[[1e300] * 3] * 32] * 32},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_trained_net_that_lies_is_refused_before_it_costs_memory(trained, tmp_path, read_safely, lie):
    arrays, info = trained.model_state
    path = tmp_path / "model.safetensors"
    save_state(path, arrays, {**info, **LIES[lie]})
    assert read_safely(lambda: load_run(tmp_path), (RunError, CheckpointError), path, path.read_bytes()) is None


# ---- JSON ----------------------------------------------------------------------------------------------------------


@FUZZ
@given(data=st.data())
def test_config_json(trained, tmp_path, read_safely, data):
    good = json.dumps(trained.about).encode()
    lies = lying(trained.about).map(lambda about: json.dumps(about).encode())
    raw = data.draw(damaged([good]) | lies)
    config = read_safely(lambda: read_config(tmp_path), RunError, tmp_path / "config.json", raw)
    if config is not None:
        for setting in fields(Config):
            value, default = getattr(config, setting.name), setting.default
            assert type(value) is type(default) or value is None or isinstance(value, int | float | str)
        assert config.width >= 1 and 0 < config.lr < 1e308 and isinstance(config.augment, bool)


@FUZZ
@given(data=st.data())
def test_metrics_jsonl(trained, tmp_path, read_safely, data):
    rows = [json.loads(line) for line in trained.metrics.splitlines()]
    lies = lying(rows).map(lambda rows: "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows])).encode())
    raw = data.draw(damaged([trained.metrics.encode()]) | lies)
    found = read_safely(lambda: plots.read_metrics(tmp_path), ValueError, tmp_path / "metrics.jsonl", raw)
    assert found is None or all(isinstance(row, dict) and row["epoch"] is not None for row in found)


# ---- pictures ------------------------------------------------------------------------------------------------------


def pictures():
    """Small files of every kind that is read."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 17, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, kind, options in (
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {"exif": exif}),
        ("L", "PNG", {"bits": 2}),
        ("I;16", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("RGB", "JPEG", {"exif": exif}),
        ("L", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
    ):
        picture = Image.fromarray(pixels)
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 250) if mode == "I;16" else picture.convert(mode)
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        yield buffer.getvalue()


PICTURES = list(pictures())


def is_image(image):
    assert image is None or (image.shape == (32, 32, 3) and image.dtype == np.uint8)


@FUZZ
@given(raw=damaged(PICTURES))
def test_pictures(tmp_path, read_safely, raw):
    path = tmp_path / "cat.png"
    is_image(read_safely(lambda: read_image(path), ValueError, path, raw))


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@FUZZ
@given(
    header=damaged(
        [
            struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, lace)
            for w, h, depth, colour, lace in (
                (9, 7, 8, 2, 0),
                (9, 7, 16, 0, 1),
                (40, 40, 1, 3, 0),
                (3000, 2, 8, 6, 1),
                (60_000, 60_000, 8, 2, 0),
            )
        ]
    ),
    others=st.lists(
        st.tuples(
            st.sampled_from([b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"fdAT"]),
            st.binary(max_size=40) | st.just(b"a\0\0" + zlib.compress(bytes(30_000_000), 9)),
        ),
        max_size=3,
    ),
    pixels=st.sampled_from([bytes(9999), bytes(100), b""]) | st.binary(max_size=99),
)
def test_pngs_with_right_checksums(tmp_path, read_safely, header, others, pixels):
    path = tmp_path / "cat.png"
    chunks = [(b"IHDR", header), *others, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    raw = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    is_image(read_safely(lambda: read_image(path), ValueError, path, raw))


def test_the_files_that_are_damaged_here_are_good(small, tmp_path, trained, read_safely):
    """Or every error would be about something else."""
    for files in (BINARY, PYTHON):
        for name, raw in files.items():
            (tmp_path / "x").mkdir(exist_ok=True)
            (tmp_path / "x" / name).write_bytes(raw)
        is_whole(load_cifar10(tmp_path / "x"))
        for name in files:
            os.remove(tmp_path / "x" / name)
    for tar in TARS:
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(with_checksums(tar)))
        is_whole(load_cifar10(tmp_path / "a.tar.gz"))
    for raw in PICTURES:
        (tmp_path / "cat.png").write_bytes(raw)
        assert read_image(tmp_path / "cat.png").shape == (32, 32, 3)
    run = resume(trained, tmp_path / "run", "step-00000004.safetensors", trained.states[0])
    assert_valid_position(run)
    assert len(load_run(trained.out)[2]["classes"]) == 10 and len(plots.read_metrics(trained.out)) == 2
