"""Files that anyone may have written: reading one must not run code, write a file or fill the memory.

CIFAR-10 comes from mirrors and as pickles, and `pickle.load` calls whatever function a pickle names.
"""

from __future__ import annotations

import gzip
import io
import pickletools
import tarfile
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from minires.data.dataset import DataError

MAX_HEADER_BYTES = 65_536  # a tar header takes 512 bytes, an extended one a little more
MAX_MEMBERS = 100
MAX_PICKLE_STEPS = 200_000  # a batch of CIFAR-10 takes about 50,000


# ---- archives


class BoundedFile:
    """A file for `tarfile` to read: its first `max_bytes`, and at most `max_read` of them at a time."""

    def __init__(self, file: io.BufferedIOBase, max_bytes: int):
        self.file, self.max_bytes, self.max_read = file, max_bytes, MAX_HEADER_BYTES
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.max_read:
            raise DataError("asks for more memory than expected")
        self._check_end(self.tell() + size)
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_end(offset)
        return self.file.seek(offset, whence)

    def _check_end(self, offset: int) -> None:
        if offset > self.max_bytes:
            raise DataError(f"unpacks to more than {self.max_bytes:,} bytes")


def read_tar(path: Path, names: Container[str], max_file: int, max_total: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of some files in a tar, gzipped or not, read into memory.

    names: folder and name, as "cifar-10-batches-py/data_batch_1"; above that folder there may be others. max_file,
    max_total: the most bytes that one file and the unpacked archive may have. Raises DataError, and whatever tarfile,
    gzip and zlib raise for damaged bytes.
    """
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
        unpacked = BoundedFile(file, max_total)
        with tarfile.TarFile(fileobj=unpacked) as tar:  # type: ignore[arg-type]  # has all that tarfile calls
            for count, member in enumerate(tar):
                if count >= MAX_MEMBERS:
                    raise DataError(f"holds more than {MAX_MEMBERS} files")
                name = "/".join(PurePosixPath(member.name).parts[-2:])
                if name not in names:
                    continue
                if not member.isreg():
                    raise DataError(f"{name} is a link or a folder, expected a file")
                if member.size > max_file:
                    raise DataError(f"{name}: expected at most {max_file:,} bytes, got {member.size:,}")
                unpacked.seek(member.offset_data)
                unpacked.max_read = member.size
                raw = unpacked.read(member.size)
                unpacked.max_read = MAX_HEADER_BYTES
                if len(raw) < member.size:
                    raise EOFError("the archive ends too early")
                yield name, raw
        while unpacked.read(MAX_HEADER_BYTES):  # to the end, where gzip keeps its checksum
            pass


# ---- pickles


class Name(str):
    """The full name of something that a pickle would import."""


@dataclass
class Call:
    """What a pickle would call to rebuild an object, written down and never called."""

    name: Name
    args: tuple[Any, ...]
    state: Any = None


KNOWN = {"numpy.ndarray", "numpy.dtype", "_codecs.encode"} | {
    f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray._reconstruct", "numeric._frombuffer")
}


def load_pickle(raw: bytes) -> Any:
    """Read a pickle of plain containers, integers and strings, with a Call for each NumPy array.

    A pickle is a program for a machine with a stack and a memo. This machine knows only the instructions that write a
    batch of CIFAR-10, whichever version of Python and NumPy wrote it; it imports and calls nothing, and the time and
    memory that it takes are in proportion to the file. Raises DataError for anything else, and errors of almost any
    type if the pickle is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    encoded = 0
    arg: Any

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for step, (opcode, arg, _) in enumerate(pickletools.genops(raw)):
        if step > MAX_PICKLE_STEPS:
            raise DataError(f"the pickle has more than {MAX_PICKLE_STEPS:,} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(arg)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(bytes(arg))
            case "BINSTRING" | "SHORT_BINSTRING":  # Python 2's strings are bytes
                stack.append(arg.encode("latin-1"))
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode.name]())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode.name == "APPEND" else since_mark()
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if opcode.name == "SETITEM" else since_mark()
                if not all(isinstance(key, str | bytes) for key in items[::2]):  # a nested key can take for ever
                    raise DataError("the pickle holds a key that is not a string")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL" | "STACK_GLOBAL":
                name = arg.replace(" ", ".") if arg else ".".join([stack.pop(-2), stack.pop()])
                if name not in KNOWN:
                    raise DataError(f"the pickle asks for {name[:60]}, which no NumPy array needs")
                stack.append(Name(name))
            case "REDUCE":
                args, name = stack.pop(), stack.pop()
                if name == "_codecs.encode":  # how Python 3 writes bytes in protocol 2
                    encoded += len(args[0])
                    if encoded > len(raw):
                        raise DataError("the pickle asks for more memory than expected")
                    stack.append(args[0].encode("latin-1"))
                else:
                    stack.append(Call(name, args))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case _:
                raise DataError(f"the pickle uses {opcode.name}, which no batch of CIFAR-10 needs")
    raise DataError("the pickle ends too early")


def uint8_array(piece: Any) -> np.ndarray:
    """The array that a Call stands for, if it is one of bytes."""
    match piece:
        case Call(args=(raw, Call(args=(kind, *_)), shape, order)):  # _frombuffer, in protocol 5
            pass
        case Call(state=(_, shape, Call(args=(kind, *_)), order, raw)):  # _reconstruct; order is a bool
            pass
        case _:
            raise DataError(f"expected a NumPy array, got {type(piece).__name__}")
    if kind not in ("u1", b"u1") or type(raw) is not bytes:
        found = str(kind[:20]) if isinstance(kind, str | bytes) else "something else"
        raise DataError(f"expected an array of uint8 (u1), got {found}")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if order in (True, "F") else "C")
