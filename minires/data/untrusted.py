"""Files that anyone may have written: reading one must not run code, write a file or fill the memory.

CIFAR-10 comes from mirrors and as pickles, and `pickle.load` calls whatever function a pickle names.
"""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import tarfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minires.data.dataset import DataError

MAX_HEADER_BYTES = 65_536  # a tar header takes 512 bytes, an extended one a little more
MAX_MEMBERS = 100
MAX_PICKLE_STEPS = 200_000  # a batch of CIFAR-10 takes about 50,000


class BoundedGzip(gzip.GzipFile):
    """A gzip file that unpacks at most `max_bytes`, and returns at most `max_read` of them at a time."""

    def __init__(self, path: Path, max_bytes: int):
        super().__init__(path)
        self.max_bytes, self.max_read = max_bytes, MAX_HEADER_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.max_read:
            raise DataError("asks for more memory than expected")
        self._check_end(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_end(offset)
        return super().seek(offset, whence)

    def _check_end(self, offset: int) -> None:
        if offset > self.max_bytes:
            raise DataError(f"unpacks to more than {self.max_bytes:,} bytes")


def read_tar_gz(path: Path, names: Container[str], max_file: int, max_total: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a tar.gz whose exact name is in `names`, read into memory.

    max_file, max_total: the most bytes that one file and the unpacked archive may have. Raises DataError, and whatever
    tarfile, gzip and zlib raise for damaged bytes.
    """
    with BoundedGzip(path, max_total) as unpacked:
        with tarfile.TarFile(fileobj=unpacked) as tar:
            for count, member in enumerate(tar):
                if count >= MAX_MEMBERS:
                    raise DataError(f"holds more than {MAX_MEMBERS} files")
                if member.name not in names:
                    continue
                if not member.isreg():
                    raise DataError(f"{member.name} is a link or a folder, expected a file")
                if member.size > max_file:
                    raise DataError(f"{member.name}: expected at most {max_file:,} bytes, got {member.size:,}")
                unpacked.seek(member.offset_data)
                unpacked.max_read = member.size
                raw = unpacked.read(member.size)
                unpacked.max_read = MAX_HEADER_BYTES
                if len(raw) < member.size:
                    raise EOFError("the archive ends too early")
                yield member.name, raw
        if unpacked.seek(max_total) == max_total:  # read to the end, where gzip keeps its checksum
            raise DataError(f"unpacks to more than {max_total:,} bytes")


class PickledArray:
    """Stands in for whatever a pickle calls to rebuild an array: records the arguments and calls nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class ArrayUnpickler(pickle.Unpickler):
    """Knows plain containers, and the names in a pickled NumPy array (of NumPy 1 and of NumPy 2)."""

    KNOWN = {("numpy", "ndarray"), ("numpy", "dtype")} | {
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    }

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self.KNOWN:
            raise DataError(f"the pickle asks for {module}.{name}, which no NumPy array needs")
        return PickledArray


def load_pickle(raw: bytes) -> Any:
    """Load plain containers, numbers and strings, with a PickledArray for each NumPy array.

    Raises DataError if the pickle asks for anything else or for much memory, and whatever a damaged one raises.
    """
    # A small pickle can ask for gigabytes (a far memo slot, millions of empty lists), so count its steps first.
    for step, (opcode, arg, _) in enumerate(pickletools.genops(raw)):
        if step > MAX_PICKLE_STEPS or ("PUT" in opcode.name and int(arg or 0) > MAX_PICKLE_STEPS):
            raise DataError("the pickle asks for more memory than expected")
    return ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()


def uint8_array(piece: Any) -> np.ndarray:
    """The array that a PickledArray stands for, if it is one of bytes."""
    if not isinstance(piece, PickledArray):
        raise DataError(f"expected a NumPy array, got {type(piece).__name__}")
    _, shape, dtype, column_order, raw = piece.state
    if dtype.args[0] not in ("u1", b"u1") or type(raw) is not bytes:
        raise DataError(f"expected an array of uint8 (u1), got {dtype.args[0]}")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if column_order else "C")
