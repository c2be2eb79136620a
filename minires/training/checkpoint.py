"""Named arrays in files, the states of a run among them: written atomically, read without trusting them.

Files are safetensors (https://huggingface.co/docs/safetensors): a JSON header with the name, dtype, shape and offset of
each array, then the raw numbers. Unlike a pickle, such a file cannot run code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from minires.backend import Array, to_host
from minires.files import FileError, FileName, write_atomically

MAX_FILE_BYTES = 2 * 1024**3  # four times ResNet-152 with its velocities
MAX_HEADER_BYTES = 16 * 1024**2  # ten times ResNet-1202 with its velocities
MAX_INFO_BYTES = 1024**2


class CheckpointError(FileError):
    """A file of arrays is damaged or doesn't fit the net."""


# ---- writing -----------------------------------------------------------------------------------------------


def save_state(path: FileName, arrays: Mapping[str, Array], info: Mapping[str, Any]) -> None:
    """Write named arrays and `info`, which must be valid JSON, to one safetensors file, atomically."""
    from safetensors.numpy import save

    text = json.dumps(dict(info))
    if len(text) > MAX_INFO_BYTES:
        raise CheckpointError(f"cannot write {path}: info: expected at most {MAX_INFO_BYTES} bytes, got {len(text)}")
    contiguous = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    write_atomically(path, save(contiguous, metadata={"info": text}))


# ---- reading -----------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: FileName) -> Iterator[Any]:
    """The safetensors file at `path`, its sizes and header checked. All its errors become CheckpointError."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        check_size(path)
        with path.open("rb") as start:
            header_bytes = int.from_bytes(start.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"header: expected at most {MAX_HEADER_BYTES} bytes, got {header_bytes}")
        with safe_open(path, framework="numpy") as file:  # checks that the arrays fill the file exactly
            yield file
    except CheckpointError:
        raise
    except (
        SafetensorError,
        OSError,
        ArithmeticError,
        AttributeError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged: {error}") from error


def check_size(path: Path) -> None:
    """Raise CheckpointError unless `path` is a file of at most MAX_FILE_BYTES."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, got {path.stat().st_size}")


def _read_arrays(file: Any) -> dict[str, np.ndarray]:
    return {name: file.get_tensor(name) for name in file.keys()}


def _read_info(file: Any) -> dict[str, Any]:
    text = (file.metadata() or {}).get("info", "{}")
    if len(text) > MAX_INFO_BYTES:
        raise ValueError(f"info: expected at most {MAX_INFO_BYTES} bytes, got {len(text)}")
    info = json.loads(text)
    if not isinstance(info, dict):
        raise ValueError(f"info: expected a JSON object, got a {type(info).__name__}")
    return info


def load_state(path: FileName) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The named arrays and the info that `save_state` wrote. Raises CheckpointError."""
    with _opened(path) as file:
        return _read_arrays(file), _read_info(file)
