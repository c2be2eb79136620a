"""Weights in files: torchvision's names and PyTorch's layouts, so that either side can read the other's files.

Only this module knows both layouts:

                    in PyTorch and in the file      in memory
    convolution     (F, C, KH, KW)                  (KH, KW, C, F)
    linear          (F, C)                          (C, F)
    all others      (C,)                            (C,)
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from io import BytesIO
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from minires.backend import Array, to_host
from minires.files import FileError, FileName
from minires.nn import Module
from minires.training.checkpoint import (
    MAX_FILE_BYTES,
    CheckpointError,
    check_numbers,
    check_size,
    load_state,
    save_state,
)


def save_weights(net: Module, path: FileName, info: Mapping[str, Any] | None = None) -> None:
    """Write a net's parameters and running statistics, with torchvision's names and in PyTorch's layouts.

    PyTorch reads the file with `model.load_state_dict(safetensors.torch.load_file(path))`.
    """
    save_state(path, {name: _to_torch(to_host(array)) for name, array in _arrays_of(net).items()}, info or {})


def load_weights(net: Module, path: FileName) -> None:
    """Read what `save_weights` wrote into a net of the same shape. Errors as in `load_torch_weights`."""
    arrays, _ = load_state(path)
    fill(net, arrays, path)


def load_torch_weights(model: Module, source: FileName | Mapping[str, Any]) -> None:
    """Read weights made with PyTorch into a net of the same shape.

    source: a safetensors file; a file that `torch.save` wrote (`.pth`, `.pt`, `.ckpt`, `.bin`, ...; needs PyTorch; code
    in the file does not run); or a dict from names to arrays or PyTorch tensors, in PyTorch's layout. The dict of
    weights may be inside another, under any key. A prefix of all names (`module.`, `_orig_mod.model.`) and a last layer
    called `linear` are understood; float16 and bfloat16 are widened; `num_batches_tracked` is ignored.

    Raises CheckpointError, which names arrays that are missing, left over or of another shape, or whose numbers are not
    finite, and FileError if the file can't be read; the net is then unchanged.
    """
    state, name = (source, "the dict") if isinstance(source, Mapping) else (_read(Path(source)), str(source))
    fill(model, {str(key): value for key, value in _weights_in(state, name).items()}, name)


# ---- containers --------------------------------------------------------------------------------------------------


def _read(path: Path) -> Mapping[str, Any]:
    """What a file of weights holds. Its content is looked at too, since programs end its name as they like."""
    check_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
            if path.suffix.lower() != ".safetensors" and start[8:] != b"{":  # safetensors: a length, then JSON
                return _read_with_torch(start + file.read(), path)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    return load_state(path)[0]


def _read_with_torch(raw: bytes, path: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path}: reading a file that is not safetensors needs PyTorch (pip install torch); or convert it to a "
            ".safetensors file on a machine that has PyTorch, with safetensors.torch.save_file(state_dict, path)"
        ) from None
    try:
        _check_expanded_size(raw, path)
        state = torch.load(BytesIO(raw), map_location="cpu", weights_only=True)
    except FileError:
        raise
    except Exception as error:  # a damaged file can make PyTorch raise anything
        foreign = re.search(r"GLOBAL (\S+)", str(error))  # no more of its text: it advises to run the code in the file
        got = f"one that also holds {foreign[1]}" if foreign else "another or a damaged one"
        raise CheckpointError(
            f"{path}: expected a file that torch.save(net.state_dict(), path) wrote, got {got}"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: expected a dict of tensors, got a {type(state).__name__}")
    return state


def _check_expanded_size(raw: bytes, path: Path) -> None:
    """PyTorch's files are zip files. It does not compress them, but expands what somebody else has compressed."""
    if zipfile.is_zipfile(BytesIO(raw)):
        with zipfile.ZipFile(BytesIO(raw)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_FILE_BYTES:
            raise FileError(f"{path}: expected at most {MAX_FILE_BYTES} bytes when expanded, got {size}")


def _weights_in(state: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The one dict of weights in `state`, at any depth; `state` itself if there is none."""
    found = dict(_dicts_of_weights(state))
    if len(found) > 1:
        raise CheckpointError(
            f"{source}: expected one dict of weights, got {len(found)} ({_few(found)}); pass one of them as a dict"
        )
    return next(iter(found.values()), state)


def _dicts_of_weights(state: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each dict in `state` that holds an array of two or more axes, with its place: "ema.model".

    What else a checkpoint may hold does not look like this: counters, scores and the state of a random generator have
    fewer axes, and an optimiser keeps its arrays in dicts under numbers: {"state": {0: {"momentum_buffer": ...}}}.
    """
    waiting, seen = deque([("", state)]), set[int]()
    while waiting:
        place, outer = waiting.popleft()
        if id(outer) in seen:  # one dict under two names, or inside itself
            continue
        seen.add(id(outer))
        if any(getattr(value, "ndim", 0) >= 2 for value in outer.values()):
            yield place or "the outermost", outer
        for key, value in outer.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                waiting.append((f"{place}.{key}" if place else key, value))


# ---- names and layouts -------------------------------------------------------------------------------------------


def fill(net: Module, values: Mapping[str, Any], source: FileName) -> None:
    """Copy arrays or tensors with PyTorch's names and layouts into a net, after all of them have been checked.

    source: where they are from, for error messages. Errors as in `load_torch_weights`.
    """
    own = _arrays_of(net)
    theirs = _match(values, own)
    found = {name: values[theirs[name]] for name in own if name in theirs}
    expected = {name: _to_torch(own[name]).shape for name in found}
    got = {name: _shape_of(value) for name, value in found.items()}
    problems = {
        "missing": [name for name in own if name not in found],
        "left over": [theirs[name] for name in theirs if name not in own],
        "of another shape": [
            f"{name} (expected {expected[name]}, got {got[name]})" for name in found if got[name] != expected[name]
        ],
    }
    if any(problems.values()):
        described = "; ".join(f"{len(names)} {kind}: {_few(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{source}: does not fit this net: {described}")
    with np.errstate(over="ignore"):  # a number that is too large for the net's dtype is reported as infinite
        arrays = {
            name: _from_torch(_as_array(found[name], f"{source}: {name}")).astype(own[name].dtype) for name in own
        }
    check_numbers(arrays, source)
    net.load_state_dict(arrays)


def _arrays_of(net: Module) -> dict[str, Array]:
    """The net's own parameters and buffers by name, not copied."""
    return {name: p.data for name, p in net.named_parameters()} | dict(net.named_buffers())


def _to_torch(array: Array) -> Array:
    """(KH, KW, C, F) -> (F, C, KH, KW); (C, F) -> (F, C)."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _from_torch(array: Array) -> Array:
    """(F, C, KH, KW) -> (KH, KW, C, F); (F, C) -> (C, F)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _match(names: Iterable[str], own: Collection[str]) -> dict[str, str]:
    """Our name for each of PyTorch's names: {"fc.weight": "module.linear.weight"}."""
    names = [name for name in names if name.rpartition(".")[2] != "num_batches_tracked"]  # not needed here
    prefix = _common_prefix(names, {name.partition(".")[0] for name in own} | {"linear"})
    ours = {name.removeprefix(prefix): name for name in names}
    for kind in ("weight", "bias"):
        if f"linear.{kind}" in ours and f"linear.{kind}" not in own and f"fc.{kind}" not in ours:
            ours[f"fc.{kind}"] = ours.pop(f"linear.{kind}")
    return ours


def _common_prefix(names: Collection[str], layers: Container[str]) -> str:
    """What all names begin with, up to the first part that is a layer of the net: "module." or "_orig_mod.model."."""
    common = os.path.commonprefix([name.split(".")[:-1] for name in names])
    return "".join(f"{part}." for part in takewhile(lambda part: part not in layers, common))


def _shape_of(value: Any) -> tuple[int, ...] | str:
    """The shape of an array or a tensor; of anything else its type, for an error."""
    return tuple(value.shape) if hasattr(value, "shape") else f"a {type(value).__name__}"


def _as_array(value: Any, name: str) -> np.ndarray:
    """The floating-point numbers of any kind of array, or of a PyTorch tensor, recognised by its methods."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()  # NumPy has no bfloat16
        array = np.asarray(to_host(value))
    except (TypeError, ValueError, RuntimeError) as error:  # a sparse or a quantised tensor
        raise CheckpointError(f"{name} cannot be converted to an array: {error}") from error
    if array.dtype.kind != "f":
        raise CheckpointError(f"{name}: expected floating-point numbers, got {array.dtype}")
    return array


def _few(entries: Collection[str]) -> str:
    """The first five entries, each cut to a length that a line can hold, and how many more there are."""
    shown = [entry if len(entry) <= 80 else f"{entry[:77]}..." for entry in islice(entries, 5)]
    return ", ".join(shown) + (f" and {len(entries) - 5} more" if len(entries) > 5 else "")
