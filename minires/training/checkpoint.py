"""Weights and training states in files: written whole or not at all, read without trusting them.

Files are safetensors (https://huggingface.co/docs/safetensors): a JSON header that tells each array's name,
dtype, shape and place, then the raw numbers. Nothing in such a file can run as code, as it could in a pickle.

In a weights file names are torchvision's and layouts PyTorch's, so that either side reads what the other
wrote. This page is the only place where the two layouts meet:

                    in PyTorch and in the file      in memory
    convolution     (F, C, KH, KW)                  (KH, KW, C, F)
    linear          (F, C)                          (C, F)
    all others      (C,)                            (C,)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from minires.backend import Array, to_host
from minires.nn import Module

FileName = str | os.PathLike[str]

MAX_FILE_BYTES = 2 * 1024**3  # ResNet-152 with its momentum takes a quarter of it
MAX_HEADER_BYTES = 16 * 1024**2  # ResNet-1202 with its momentum takes a tenth of it
MAX_INFO_BYTES = 1024**2


class CheckpointError(ValueError):
    """A file that can't be written, is damaged or doesn't fit. The message is always one line."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else " " for c in message))


# ---- writing -----------------------------------------------------------------------------------------------


def write_atomically(path: FileName, data: bytes) -> None:
    """Make `data` the content of `path`; even after a power cut the file is wholly the old or wholly new.

    The bytes go to a temporary file beside it, are forced to the disk, and take the name in one step. Where
    that fails (disk full, folder missing), CheckpointError is raised and the old file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # after a success it bears the other name already
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk, where the system can (Windows can't)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_state(path: FileName, arrays: Mapping[str, Array], info: Mapping[str, Any]) -> None:
    """Write arrays by name, and `info`, anything that JSON can hold, to one safetensors file, atomically."""
    from safetensors.numpy import save

    text = json.dumps(dict(info))
    if len(text) > MAX_INFO_BYTES:
        raise CheckpointError(f"cannot write {path}: info has {len(text)} bytes, over {MAX_INFO_BYTES}")
    rows_first = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    write_atomically(path, save(rows_first, metadata={"info": text}))


def save_weights(net: Module, path: FileName, info: Mapping[str, Any] | None = None) -> None:
    """Write a net's parameters and running statistics; torchvision's names, PyTorch's layouts.

    In PyTorch, `model.load_state_dict(safetensors.torch.load_file(path))` takes the file as it is.
    """
    save_state(path, {name: _to_torch(to_host(array)) for name, array in _arrays(net).items()}, info or {})


# ---- reading -----------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: FileName) -> Iterator[Any]:
    """The safetensors file at `path`, sizes and header checked; its faults become CheckpointErrors."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
        with path.open("rb") as start:
            header_bytes = int.from_bytes(start.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"its header claims to be {header_bytes} bytes long")
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


def _info(file: Any) -> dict[str, Any]:
    text = (file.metadata() or {}).get("info", "{}")
    if len(text) > MAX_INFO_BYTES:
        raise ValueError(f"info is {len(text)} bytes of JSON, at most {MAX_INFO_BYTES} are read")
    info = json.loads(text)
    if not isinstance(info, dict):
        raise ValueError(f"info is a JSON {type(info).__name__}, expected an object")
    return info


def load_state(path: FileName) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by name and the info that `save_state` wrote. Raises CheckpointError."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _info(file)


def read_info(path: FileName) -> dict[str, Any]:
    """The info in a file of `save_state` or `save_weights`, without its arrays. Raises CheckpointError."""
    with _opened(path) as file:
        return _info(file)


def load_weights(net: Module, path: FileName) -> None:
    """Read what `save_weights` wrote into a net of the same shape. Errors as in `load_torch_weights`."""
    with _opened(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        _fill(net, shapes, file.get_tensor, path)


def load_torch_weights(model: Module, source: FileName | Mapping[str, Any]) -> None:
    """Read weights that were made with PyTorch into a net of the same shape.

    source: a `.safetensors` file; a `.pth`, `.th` or `.pt` file (needs PyTorch, which is told to run no code
    from it); or a dict from names to arrays or PyTorch tensors, in PyTorch's layout. Weights wrapped in
    `state_dict`, names that begin with `module.`, and a last layer called `linear` are understood;
    `num_batches_tracked` is left out. Raises CheckpointError, which names every array that is missing, left
    over or of another shape; the model is then as it was.
    """
    if isinstance(source, Mapping):
        state, told = source, "the dict"
    elif Path(source).suffix == ".safetensors":
        return load_weights(model, source)
    elif Path(source).suffix in (".pth", ".th", ".pt"):
        state, told = _read_with_torch(Path(source)), str(source)
    else:
        raise CheckpointError(f"{source}: expected a .safetensors, .pth, .th or .pt file, or a dict of arrays")
    state = state.get("state_dict", state)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{told}: state_dict is a {type(state).__name__}, expected a dict of arrays")
    arrays = {str(name): _as_array(value, f"{told}: {name}") for name, value in state.items()}
    _fill(model, {name: array.shape for name, array in arrays.items()}, arrays.__getitem__, told)


def _read_with_torch(path: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path}: reading a {path.suffix} file needs PyTorch (pip install torch); or turn it into a "
            ".safetensors file where PyTorch is, with safetensors.torch.save_file(state_dict, path)"
        ) from None
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make PyTorch raise anything
        why = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: damaged, or holds more than weights; PyTorch says: {why}") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a dict of tensors")
    return state


# ---- names, layouts, and whether they fit ------------------------------------------------------------------


def _arrays(net: Module) -> dict[str, Array]:
    """The net's own parameters and buffers by name, not copied."""
    return {name: p.data for name, p in net.named_parameters()} | dict(net.named_buffers())


def _to_torch(array: Array) -> Array:
    """(KH, KW, C, F) -> (F, C, KH, KW); (C, F) -> (F, C)."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _from_torch(array: Array) -> Array:
    """(F, C, KH, KW) -> (KH, KW, C, F); (F, C) -> (C, F)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _match(names: Iterable[str], wanted: Container[str]) -> dict[str, str]:
    """Our name for each of PyTorch's names: {"fc.weight": "module.linear.weight"}."""
    ours: dict[str, str] = {}
    for name in names:
        layer, _, last = name.removeprefix("module.").rpartition(".")
        if last == "num_batches_tracked":  # PyTorch's batch norm counts; nothing here needs the number
            continue
        short = f"{layer}.{last}" if layer else last
        if layer == "linear" and short not in wanted:
            short = f"fc.{last}"
        ours[name if short in ours else short] = name
    return ours


def _fill(
    net: Module, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray], told: FileName
) -> None:
    """Copy arrays in PyTorch's layout into the net, after every name and shape has been checked.

    shapes: of what there is, by name; read: gives the array of that name; told: the source, for the error.
    """
    mine = _arrays(net)
    wanted = {name: _to_torch(array).shape for name, array in mine.items()}
    theirs = _match(shapes, wanted)
    faults = [f"{name} is missing" for name in wanted if name not in theirs]
    faults += [f"{name} is left over" for name in theirs if name not in wanted]
    came = {name: shapes[theirs[name]] for name in wanted if name in theirs}
    faults += [f"{name} is {s}, expected {wanted[name]}" for name, s in came.items() if s != wanted[name]]
    if faults:
        raise CheckpointError(f"{told}: does not fit this net: {'; '.join(faults)}")
    arrays = {}
    for name, own in mine.items():
        array = read(theirs[name])
        if array.dtype.kind != "f":
            raise CheckpointError(f"{told}: {name} holds {array.dtype}, expected floating-point numbers")
        arrays[name] = _from_torch(array).astype(own.dtype)
    net.load_state_dict(arrays)


def _as_array(value: Any, told: str) -> np.ndarray:
    """A NumPy array from an array of any kind, or from a PyTorch tensor, which is known by its methods."""
    try:
        return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else to_host(value))
    except (TypeError, ValueError, RuntimeError) as error:  # a ragged list, bfloat16, a sparse tensor
        raise CheckpointError(f"{told} can't be turned into an array: {error}") from error
