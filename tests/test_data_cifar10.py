"""CIFAR-10: every layout gives the same data, every damage one clear line, and the download never hangs."""

import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
import time
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minires.data import DataError, Dataset, download_cifar10, fetch_cifar10, find_cifar10, load_cifar10, open_cifar10
from minires.data import cifar10 as module

COUNT = 8  # images a batch in these tests
NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small(monkeypatch):
    """Batches of 8 images instead of 10,000, and their bytes: planes (48, 3, 32, 32), labels (48,)."""
    monkeypatch.setattr(module, "PER_BATCH", COUNT)
    monkeypatch.setattr(module, "BIN_BYTES", COUNT * 3073)
    monkeypatch.setattr(module, "_check_content", lambda *args: None)
    rng = np.random.default_rng(1)
    return SimpleNamespace(
        planes=rng.integers(0, 256, (6 * COUNT, 3, 32, 32), dtype=np.uint8),
        labels=rng.integers(0, 10, 6 * COUNT, dtype=np.uint8),
    )


def binary_files(data):
    files = {}
    for b, name in enumerate(NAMES):
        rows = range(b * COUNT, (b + 1) * COUNT)
        files[f"{name}.bin"] = b"".join(bytes([data.labels[i]]) + data.planes[i].tobytes() for i in rows)
    return files


def python2_pickle(pixels, labels):
    """What Python 2's cPickle wrote at protocol 2, opcode by opcode: every string is a byte string."""

    def text(s):
        return b"U" + bytes([len(s)]) + s

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
        + text(b"b")
        + b"tR"
        + b"(K\x01K"
        + bytes([COUNT])
        + b"M\x00\x0c\x86cnumpy\ndtype\n("
        + text(b"u1")
        + b"K\x00K\x01tR"
        + b"(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<I", pixels.size)
        + pixels.tobytes()
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def python_files(data, protocol=None):
    files = {}
    for b, name in enumerate(NAMES):
        rows = slice(b * COUNT, (b + 1) * COUNT)
        pixels, labels = data.planes[rows].reshape(COUNT, 3072), data.labels[rows].tolist()
        files[name] = python2_pickle(pixels, labels)
        if protocol:
            names = [b"a.png"] * COUNT
            files[name] = pickle.dumps({b"data": pixels, b"labels": labels, b"filenames": names}, protocol)
    return files


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def tar_bytes(files, folder, extra=()):
    """A tar.gz; `extra` members (TarInfo, bytes) come first."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for info, raw in extra:
            tar.addfile(info, io.BytesIO(raw))
        for name, raw in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def binary_archive(data, extra=()):
    return tar_bytes(binary_files(data), "cifar-10-batches-bin", extra)


def assert_is(dataset, data):
    assert isinstance(dataset, Dataset) and dataset.name == "cifar10" and len(dataset.classes) == 10
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    assert dataset.train_images.shape == (5 * COUNT, 32, 32, 3)
    np.testing.assert_array_equal(labels, data.labels)
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], data.planes[:, channel])


def found(place=None):
    (path,) = find_cifar10(place)
    return path


def one_line(error):
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


# ---- layouts ----


def test_official_sizes():
    assert module.BIN_BYTES == 30_730_000
    assert module.CLASSES[3] == "cat" and module.CLASSES[9] == "truck"


def test_binary_folder(small, tmp_path):
    assert_is(load_cifar10(write_folder(tmp_path / "any name", binary_files(small))), small)


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
def test_python_folder(small, tmp_path, protocol):
    assert_is(load_cifar10(write_folder(tmp_path, python_files(small, protocol))), small)


def test_column_order_array(small, tmp_path):
    files = python_files(small)
    pixels = np.asfortranarray(small.planes[:COUNT].reshape(COUNT, 3072))
    files["data_batch_1"] = pickle.dumps({"data": pixels, "labels": small.labels[:COUNT].tolist()}, 4)
    assert_is(load_cifar10(write_folder(tmp_path, files)), small)


def test_archives(small, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(binary_archive(small))
    assert_is(load_cifar10(tmp_path / "a.tar.gz"), small)
    python = dict(reversed(python_files(small).items()))  # members in any order
    (tmp_path / "b.tar.gz").write_bytes(tar_bytes(python, "cifar-10-batches-py"))
    assert_is(load_cifar10(tmp_path / "b.tar.gz"), small)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "b.tar.gz"], "nothing is unpacked"


def test_find(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert find_cifar10() == []
    here = write_folder(tmp_path / "data" / "cifar-10-batches-py", python_files(small))
    assert found().resolve() == here
    there = write_folder(tmp_path / "there" / "cifar-10-batches-bin", binary_files(small))
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "there"))
    assert found() == there
    assert found(there) == there
    (tmp_path / "mine").mkdir()
    assert find_cifar10(tmp_path / "mine") == [], "a folder that was named is the only one looked at"
    archive = tmp_path / "mine" / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"")
    assert found(tmp_path / "mine") == archive == found(archive)
    assert find_cifar10(tmp_path / "nowhere") == []
    (tmp_path / "half" / "cifar-10-batches-bin").mkdir(parents=True)
    with pytest.raises(DataError, match="no such file"):
        load_cifar10(found(tmp_path / "half"))


@pytest.mark.parametrize(
    "name",
    [
        "cifar-10-python.tar",
        "cifar-10-python.tgz",
        "cifar-10-python (1).tar.gz",
        "cifar-10-binary(2).tar",
        "cifar-10-batches-py-target_archive",
        "cifar-10-batches-py.tar.gz",
    ],
)
@pytest.mark.parametrize("prefix", ["", "./", "data/"])
def test_archives_as_people_have_them(small, tmp_path, name, prefix):
    raw = tar_bytes(python_files(small, 5), f"{prefix}cifar-10-batches-py")
    (tmp_path / name).write_bytes(gzip.decompress(raw) if name.endswith(".tar") else raw)
    assert found(tmp_path) == found(tmp_path / name) == tmp_path / name
    assert_is(load_cifar10(found(tmp_path)), small)


@pytest.mark.parametrize("extracted", ["cifar-10-batches-py-target", "cifar-10-batches-py-target_extracted"])
def test_the_folder_that_keras_unpacks(small, tmp_path, extracted):
    folder = write_folder(tmp_path / extracted / "cifar-10-batches-py", python_files(small))
    assert found(tmp_path) == folder


def test_files_that_are_no_archive_are_not_cifar10(tmp_path, monkeypatch):
    for name in ("passwd", "cifar-10-python.tar.gz.part", "cifar-10-notes.txt", "cifar-100-python.tar.gz"):
        (tmp_path / name).write_bytes(b"x")
        monkeypatch.setenv("MINIRES_DATA", str(tmp_path / name))
        assert find_cifar10() == [] or name == "cifar-100-python.tar.gz"
    assert find_cifar10(tmp_path) == []


def test_a_damaged_copy_gives_way_to_a_good_one(small, tmp_path):
    write_folder(tmp_path / "cifar-10-batches-bin", {"data_batch_1.bin": b""})
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(binary_archive(small)[:-9])
    with pytest.raises(DataError, match="data_batch_1.bin: expected 24,584 bytes, got 0; download it with: ") as error:
        open_cifar10(tmp_path)
    assert one_line(error).endswith(f"python -m minires data fetch --data-dir {tmp_path}")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(tar_bytes(python_files(small), "cifar-10-batches-py"))
    path, dataset = open_cifar10(tmp_path)
    assert path.name == "cifar-10-python.tar.gz"
    assert_is(dataset, small)
    assert fetch_cifar10(tmp_path) == path, "nothing to download"


def test_a_damaged_archive_that_was_named_is_not_replaced(small, tmp_path):
    (tmp_path / "mine.tar.gz").write_bytes(binary_archive(small)[:-9])
    for ask in (open_cifar10, fetch_cifar10):
        with pytest.raises(DataError, match="--data-dir .*, and name that folder instead of the file"):
            ask(tmp_path / "mine.tar.gz")


# ---- are they the official images? ----


@pytest.fixture
def balanced(small, monkeypatch):
    """Batches of 20 images, two of each class, with a checksum of their own, which is computed here in another way."""
    monkeypatch.undo()
    monkeypatch.setattr(module, "PER_BATCH", 20)
    monkeypatch.setattr(module, "BIN_BYTES", 20 * 3073)
    rng = np.random.default_rng(3)
    planes, labels = rng.integers(0, 256, (120, 3072), np.uint8), np.arange(120) % 10
    total = sum(zlib.crc32(image.tobytes(), int(label)) for image, label in zip(planes, labels, strict=True))
    monkeypatch.setattr(module, "CHECKSUM", total)
    return planes, labels


def load_records(folder, planes, labels):
    records = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
    return load_cifar10(
        write_folder(folder, {f"{name}.bin": records[20 * b :][:20].tobytes() for b, name in enumerate(NAMES)})
    )


def test_the_official_images_in_any_order_are_read_without_a_word(balanced, tmp_path, capsys):
    planes, labels = balanced
    order = np.concatenate([np.random.default_rng(0).permutation(100), 100 + np.random.default_rng(1).permutation(20)])
    for rows in (slice(None), order):
        data = load_records(tmp_path, planes[rows], labels[rows])
        np.testing.assert_array_equal(np.concatenate([data.train_labels, data.test_labels]), labels[rows])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("batch", [0, 5])
def test_one_flipped_bit_in_an_image_is_reported(balanced, tmp_path, capsys, batch):
    planes, labels = balanced
    planes[20 * batch + 7, 1000] ^= 4
    load_records(tmp_path, planes, labels)
    err = capsys.readouterr().err
    assert err == f"{tmp_path}: some images or labels are not those of CIFAR-10: damaged, or changed on purpose\n"


def test_swapped_labels_are_reported(balanced, tmp_path, capsys):
    planes, labels = balanced
    labels[[1, 2]] = labels[[2, 1]]
    load_records(tmp_path, planes, labels)
    assert "not those of CIFAR-10" in capsys.readouterr().err


@pytest.mark.parametrize("row, part", [(3, "10 training"), (103, "2 test")])
def test_classes_of_the_wrong_size_are_an_error(balanced, tmp_path, row, part):
    planes, labels = balanced
    labels[row] = 9
    with pytest.raises(DataError, match=f"expected {part} images of each class, got ") as error:
        load_records(tmp_path, planes, labels)
    one_line(error)


@pytest.mark.skipif(not os.environ.get("MINIRES_DATA"), reason="MINIRES_DATA is not set")
def test_real_cifar10(capsys):
    data = open_cifar10()[1]
    assert capsys.readouterr() == ("", "")
    assert data.train_images.shape == (50_000, 32, 32, 3) and data.test_images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(data.test_labels), [1000] * 10)
    mean = data.train_images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)


# ---- damage ----


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: f.pop("data_batch_3.bin"), "data_batch_3.bin: no such file"),
        (lambda f: f.update({"test_batch.bin": f["test_batch.bin"][:-1]}), "24,584 bytes, got 24,583"),
        (lambda f: f.update({"test_batch.bin": f["test_batch.bin"] + b"x"}), "24,584 bytes, got 24,585"),
        (lambda f: f.update({"data_batch_2.bin": b"\x0a" + f["data_batch_2.bin"][1:]}), "labels from 0 to 9"),
        (lambda f: f.update({"data_batch_1.bin": b""}), "got 0"),
    ],
)
def test_damaged_folder(small, tmp_path, damage, message):
    files = binary_files(small)
    damage(files)
    with pytest.raises(DataError, match=message) as error:
        load_cifar10(write_folder(tmp_path, files))
    one_line(error)
    with pytest.raises(DataError, match=f"{message}.*; download it with: python -m minires data fetch --data-dir"):
        open_cifar10(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no such file or folder.*MINIRES_DATA") as error:
        load_cifar10(tmp_path / "nowhere")
    one_line(error)


def member(name, raw=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(raw), link
    return info, raw


def test_archive_with_other_files(small, tmp_path):
    """Paths that leave the folder, links and similar names are ignored, and nothing is written."""
    inside = tmp_path / "inside"
    inside.mkdir()
    extra = [
        member("../evil.txt", b"x"),
        member(f"{tmp_path}/evil.txt", b"x"),
        member("./test_batch.bin", b"x"),
        member("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("cifar-10-batches-bin/../data_batch_1.bin", b"x"),
    ]
    (inside / "a.tar.gz").write_bytes(binary_archive(small, extra))
    assert_is(load_cifar10(inside / "a.tar.gz"), small)
    assert [p.name for p in tmp_path.rglob("*")] == ["inside", "a.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_archive_member_no_file(small, tmp_path, kind):
    extra = [member("cifar-10-batches-bin/data_batch_1.bin", kind=kind, link="/etc/passwd")]
    (tmp_path / "a.tar.gz").write_bytes(binary_archive(small, extra))
    with pytest.raises(DataError, match="expected a file") as error:
        load_cifar10(tmp_path / "a.tar.gz")
    one_line(error)


def bomb_tar(header_size, unpacked):
    """A first member that says it holds `header_size` bytes, and `unpacked` zeros behind it."""
    info = tarfile.TarInfo("padding")
    info.size = header_size
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as packed:
        packed.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(unpacked >> 20):
            packed.write(bytes(1 << 20))
    return buffer.getvalue()


def pax_bomb(size):
    """An extended header of `size` bytes, all of which tarfile would read."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, size
    return gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(size), 1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: b"", "not found|ends|empty|header"),
        (lambda d: b"no archive at all", "header"),
        (lambda d: gzip.compress(b"no tar"), "header|truncated|invalid"),
        (lambda d: binary_archive(d)[:-4], "[Ee]nd|CRC"),
        (lambda d: binary_archive(d)[: 40 * 1024], "[Ee]nd"),
        (lambda d: tar_bytes({"data_batch_1.bin": b"x"}, "cifar-10-batches-bin"), "24,584 bytes, got 1"),
        (lambda d: tar_bytes({"other": b"x"}, "cifar-10-batches-bin"), "data_batch_1, .* not found"),
        (lambda d: binary_archive(d, [member(f"f{i}") for i in range(200)]), "more than 100 files"),
        (lambda d: bomb_tar(3 << 20, 3 << 20), "more than 2,000,000 bytes"),
        (lambda d: gzip.decompress(bomb_tar(3 << 20, 3 << 20)), "more than 2,000,000 bytes"),
        (lambda d: bomb_tar(1 << 40, 1 << 10), "more than 2,000,000 bytes"),
        (lambda d: pax_bomb(1 << 20), "more memory"),
        (
            lambda d: binary_archive(
                d, [member("cifar-10-batches-bin/data_batch_1.bin", binary_files(d)["data_batch_1.bin"])]
            ),
            "found twice",
        ),
    ],
)
def test_hostile_archive(small, tmp_path, monkeypatch, make, message):
    monkeypatch.setattr(module, "MAX_TAR_BYTES", 2_000_000)
    (tmp_path / "a.tar.gz").write_bytes(make(small))
    with pytest.raises(DataError, match=message) as error:
        load_cifar10(tmp_path / "a.tar.gz")
    assert one_line(error).startswith(str(tmp_path))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("minires-was-here",)


def hostile_pickles():
    labels = [0] * COUNT
    pixels = np.zeros((COUNT, 3072), np.uint8)
    good = {"data": pixels, "labels": labels}
    yield pickle.dumps(Evil()), "mkdir"
    yield pickle.dumps({**good, "extra": Evil()}), "mkdir"
    yield pickle.dumps({**good, "data": pixels.astype(np.int64)}, 4), r"expected an array of uint8 \(u1\), got i8"
    yield pickle.dumps({**good, "data": pixels[:, :-1].copy()}, 4), r"expected shape \(8, 3072\), got \(8, 3071\)"
    yield pickle.dumps({**good, "data": pixels.astype(object)}, 4), r"expected an array of uint8 \(u1\), got O8"
    yield pickle.dumps({**good, "data": b"x"}, 4), "expected a NumPy array, got bytes"
    yield pickle.dumps({"data": pixels}, 4), "no key 'labels'"
    yield pickle.dumps({**good, "labels": [*labels[1:], 10]}, 4), "from 0 to 10"
    yield pickle.dumps({**good, "labels": [*labels[1:], -1]}, 4), "from -1 to 0"
    yield pickle.dumps({**good, "labels": labels[1:]}, 4), "got 7 from"
    yield pickle.dumps({**good, "labels": []}, 4), "got none"
    yield pickle.dumps({**good, "labels": "a" * COUNT}, 4), "expected a list of integers"
    yield pickle.dumps({**good, "labels": [*labels[1:], 10**30]}, 4), "uses LONG1, which no batch"
    yield pickle.dumps([good], 4), "items"
    yield b"", "."
    yield b"\x80\x02.", "."
    yield b"\x80\x02]r\xff\xff\xff\xff.", "items"  # memo slot 4,294,967,295
    yield b"\x80\x02(" + b"]" * 1_000_000 + b"t.", "more than 200,000 steps"
    # A tuple of two tuples, sixty times over: hashed as a key, or printed, it would take years.
    doubled = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    yield b"\x80\x02" + doubled + b"}h\x3cK\x01s.", "a key that is not a string"
    yield b"\x80\x02" + doubled + b"}(U\x04datah\x3cU\x06labelsh\x3cu.", "expected a NumPy array, got tuple"
    # A megabyte of text, turned into bytes again and again.
    text = b"X\x00\x00\x10\x00" + b"a" * (1 << 20)
    again = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    yield b"\x80\x02]" + text + b"q\x00" + again * 3 + b".", "more memory"
    yield b"\x80\x04B\xff\xff\xff\x7f.", "."  # a byte string of 2 GB that isn't there
    yield b"\x80\x02cbuiltins\neval\n.", "builtins.eval"
    yield b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.nope\x93.", "numpy.ndarray.nope"


@pytest.mark.parametrize("case", range(len(list(hostile_pickles()))))
def test_hostile_pickle(small, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    raw, message = list(hostile_pickles())[case]
    write_folder(tmp_path / "x", {**python_files(small), "data_batch_2": raw})
    with pytest.raises(DataError, match=message) as error:
        load_cifar10(tmp_path / "x")
    assert one_line(error).startswith(str(tmp_path / "x" / "data_batch_2"))
    assert not (tmp_path / "minires-was-here").exists()


def test_pickle_too_large_is_not_read(small, tmp_path):
    write_folder(tmp_path, python_files(small))
    with open(tmp_path / "data_batch_4", "wb") as file:
        file.truncate(10**10)  # sparse: takes no room on disk
    with pytest.raises(DataError, match="at most 64,000,000 bytes, got 10,000,000,000"):
        load_cifar10(tmp_path)


@FUZZ
@given(data=st.data())
def test_flipped_bit_in_archive(small, tmp_path, data):
    """A flipped bit is reported, unless it hits one of gzip's few header bytes that mean nothing here (the time)."""
    raw = bytearray(binary_archive(small))
    bit = data.draw(st.one_of(st.integers(0, 8 * 600), st.integers(0, 8 * len(raw) - 1)))
    raw[bit // 8] ^= 1 << bit % 8
    (tmp_path / "a.tar.gz").write_bytes(raw)
    try:
        dataset = load_cifar10(tmp_path / "a.tar.gz")
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert_is(dataset, small)


@FUZZ
@given(data=st.data())
def test_cut_archive(small, tmp_path, data):
    raw = binary_archive(small)
    (tmp_path / "a.tar.gz").write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(DataError):
        load_cifar10(tmp_path / "a.tar.gz")


@FUZZ
@given(data=st.data())
def test_damaged_pickle(small, tmp_path, data):
    """Bytes changed, cut out or put in: a DataError, or (a pixel changed) a complete data set."""
    files = python_files(small)
    raw = files["test_batch"]
    at = data.draw(st.one_of(st.integers(0, 160), st.integers(len(raw) - 60, len(raw))))
    cut, put = data.draw(st.integers(0, 8)), data.draw(st.binary(max_size=8))
    files["test_batch"] = raw[:at] + put + raw[at + cut :]
    try:
        dataset = load_cifar10(write_folder(tmp_path, files))
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert dataset.test_images.shape == (COUNT, 32, 32, 3)
        assert 0 <= dataset.test_labels.min() <= dataset.test_labels.max() <= 9


@FUZZ
@given(raw=st.binary(max_size=200))
def test_any_bytes_as_pickle(small, tmp_path, raw):
    with pytest.raises(DataError):
        load_cifar10(write_folder(tmp_path, {**python_files(small), "data_batch_1": raw}))


# ---- download ----

BODY = bytes(range(256)) * 1200  # 307,200 bytes


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.stop = [], threading.Event()
        self.at = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/missing":
            return self.send_error(404)
        self.send_response(200)
        try:
            while self.path == "/header" and not self.server.stop.wait(0.02):  # a header without end
                self.wfile.write(b"a")
        except OSError:
            return
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        try:
            if self.path == "/good":
                self.wfile.write(BODY)
            elif self.path == "/wrong":
                self.wfile.write(BODY[::-1])
            elif self.path == "/cut":
                self.wfile.write(BODY[:1000])
            elif self.path == "/slow":  # 5 kB/s
                for i in range(0, len(BODY), 100):
                    self.wfile.write(BODY[i : i + 100])
                    if self.server.stop.wait(0.02):
                        break
            elif self.path == "/silent":
                self.server.stop.wait(20)
            elif self.path == "/endless":
                while not self.server.stop.is_set():
                    self.wfile.write(BODY)
        except OSError:
            pass  # the other side has left

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, folder, *pages, **changes):
    urls = [page if page.startswith("http") else f"{server.at}/{page}" for page in pages]
    options = {
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "max_bytes": len(BODY),
        "min_speed": 50_000,
        "window": 0.3,
        **changes,
    }
    return download_cifar10(folder, progress=False, urls=urls, **options)


def test_download(server, tmp_path):
    folder = tmp_path / "new" / "data"
    path = fetch(server, folder, "good")
    assert path == folder / "cifar-10-python.tar.gz" and path.read_bytes() == BODY
    assert found(folder) == path
    assert fetch(server, folder, "good") == path and server.asked == ["/good"], "a complete file is kept"
    path.write_bytes(b"damaged")
    assert fetch(server, folder, "good").read_bytes() == BODY


REFUSED = "http://127.0.0.1:1/refused"


@pytest.mark.parametrize("bad", [REFUSED, "missing", "wrong", "cut", "slow", "silent", "header", "endless"])
def test_next_url(server, tmp_path, bad):
    start = time.perf_counter()
    path = fetch(server, tmp_path, bad, "good")
    assert path.read_bytes() == BODY and server.asked[-1] == "/good"
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no half file is left"
    assert time.perf_counter() - start < 5


def test_download_fails(server, tmp_path):
    with pytest.raises(DataError) as error:
        fetch(server, tmp_path, REFUSED, "missing", "wrong", "endless", "slow", "silent")
    message = str(error.value)
    reasons = ["refused", "404", "wrong checksum", "more than the expected 307,200 bytes", "slower", "MINIRES_DATA"]
    places = [message.find(word) for word in reasons]
    assert places == sorted(places) and places[0] > 0 and "\n" not in message, message
    assert message.count("slower than 50 kB/s for 0.3 s") == 2  # "slow" and "silent"
    assert list(tmp_path.iterdir()) == []


def test_slow_is_fast_enough_under_a_lower_limit(server, tmp_path):
    """The watch looks at speed alone: the same slow page passes where less is asked."""
    part = threading.Timer(1.0, server.stop.set)
    part.start()
    with pytest.raises(DataError, match="wrong checksum"):
        fetch(server, tmp_path, "slow", min_speed=100)
    part.join()


def test_interrupted_download(server, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, "good")
    assert list(tmp_path.iterdir()) == []


def test_official_urls():
    assert len(module.SHA256) == 64 and all(url.startswith("https://") for url in module.URLS)
    assert "toronto" in module.URLS[-1], "the official host is slow: it comes last"
