"""Named arrays in files, the states of a run among them: written atomically, read without trusting them.

Files are safetensors (https://huggingface.co/docs/safetensors): a JSON header with the name, dtype, shape and offset of
each array, then the raw numbers. Unlike a pickle, such a file cannot run code. A digest in the header shows damage to
the numbers, which nothing else would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np

from minires.backend import Array, to_host
from minires.files import FileError, FileName, digest, write_atomically

MAX_FILE_BYTES = 2 * 1024**3  # four times ResNet-152 with its velocities
MAX_HEADER_BYTES = 16 * 1024**2  # ten times ResNet-1202 with its velocities
MAX_INFO_BYTES = 1024**2

# NumPy's names for the types of numbers in a file; a file with any other is refused
DTYPES = {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "UI" for size in (1, 2, 4, 8)}
DTYPES |= {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2", "BOOL": "?", "C64": "<c8"}


class CheckpointError(FileError):
    """The content of a file of arrays is damaged or doesn't fit the net."""


# ---- writing -----------------------------------------------------------------------------------------------


def save_state(path: FileName, arrays: Mapping[str, Array], info: Mapping[str, Any]) -> None:
    """Write named arrays and `info`, which must be valid JSON, to one safetensors file, atomically."""
    from safetensors.numpy import save

    text = json.dumps(dict(info))
    if len(text) > MAX_INFO_BYTES:
        raise CheckpointError(f"cannot write {path}: info: expected at most {MAX_INFO_BYTES} bytes, got {len(text)}")
    contiguous = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    # in one entry, as safetensors writes several in any order
    metadata = {"info": f"{text}\n{_digest_of(contiguous, text)}"}
    write_atomically(path, save(contiguous, metadata=metadata))


def _digest_of(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """The digest of a state: of its info and of each array's name, dtype, shape and numbers."""
    parts = [f"{name} {a.dtype.name} {a.shape} {digest(a.tobytes())}" for name, a in sorted(arrays.items())]
    return digest("\n".join([text, *parts]).encode("utf-8", "surrogatepass"))


# ---- reading -----------------------------------------------------------------------------------------------


def load_state(path: FileName) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The named arrays and the info that `save_state` wrote.

    Raises CheckpointError if the content of the file is damaged, holds NaN or infinity, or differs from its digest;
    files from before there was one, and other programs' files, have none. Raises FileError if the file can't be read.
    """
    from safetensors import SafetensorError

    raw = _read_bytes(Path(path))
    try:
        text, _, written_digest = _read_metadata(raw).get("info", "{}").partition("\n")
        info = _read_info(text)
        arrays = _read_arrays(raw)
    except (SafetensorError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path}: not a safetensors file, or cut short or damaged; restore it") from e
    if written_digest and written_digest != _digest_of(arrays, text):
        raise CheckpointError(f"{path}: damaged: the content differs from the digest that was written with it")
    check_numbers(arrays, path)
    return arrays, info


def check_size(path: Path) -> None:
    """Raise FileError unless `path` is a file of at most MAX_FILE_BYTES."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileError(f"{path}: there is no such file") from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    if not S_ISREG(found.st_mode):
        raise FileError(f"{path}: expected a file, got a folder, a device or a pipe")
    if found.st_size > MAX_FILE_BYTES:
        raise FileError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, got {found.st_size}")


def _read_bytes(path: Path) -> bytes:
    check_size(path)
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path}: not a safetensors file, or damaged: "
                    f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {header_bytes}"
                )
            file.seek(0)
            return file.read()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _read_metadata(raw: bytes) -> dict[str, str]:
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__") or {}
    return metadata


def _read_arrays(raw: bytes) -> dict[str, np.ndarray]:
    from safetensors import deserialize

    arrays = {}
    entries: list[Any] = deserialize(raw)  # type: ignore[no-untyped-call]  # checks that they fill the file
    for name, entry in entries:
        numbers = np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":  # bfloat16, which NumPy does not have, is the upper half of a float32
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = numbers.reshape(entry["shape"])
    return arrays


def _read_info(text: str) -> dict[str, Any]:
    if len(text) > MAX_INFO_BYTES:
        raise ValueError(f"info: expected at most {MAX_INFO_BYTES} bytes, got {len(text)}")
    info = json.loads(text)
    if not isinstance(info, dict):
        raise ValueError(f"info: expected a JSON object, got a {type(info).__name__}")
    return info


def check_numbers(arrays: Mapping[str, np.ndarray], source: FileName) -> None:
    """Raise CheckpointError if an array holds NaN or infinity, or a running variance is negative.

    source: where the arrays are from, for the error message.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity")
        if name.endswith("running_var") and (array < 0).any():
            raise CheckpointError(f"{source}: {name} holds a negative variance")
