"""Weights in files: torchvision's names and PyTorch's layouts, so that either side can read the other's files.

Only this module knows both layouts:

                    in PyTorch and in the file      in memory
    convolution     (F, C, KH, KW)                  (KH, KW, C, F)
    linear          (F, C)                          (C, F)
    all others      (C,)                            (C,)
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minires.backend import Array, to_host
from minires.files import FileName
from minires.nn import Module
from minires.training.checkpoint import CheckpointError, check_size, load_state, save_state


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

    source: a `.safetensors` file; a `.pth`, `.th` or `.pt` file (needs PyTorch; code in the file does not run); or a
    dict from names to arrays or PyTorch tensors, in PyTorch's layout. Weights inside `state_dict`, names that begin
    with `module.`, and a last layer called `linear` are understood; `num_batches_tracked` is ignored.

    Raises CheckpointError, which lists all missing, unexpected and mis-shaped arrays; the net is then unchanged.
    """
    if isinstance(source, Mapping):
        state, name = source, "the dict"
    elif Path(source).suffix == ".safetensors":
        return load_weights(model, source)
    elif Path(source).suffix in (".pth", ".th", ".pt"):
        state, name = _read_with_torch(Path(source)), str(source)
    else:
        raise CheckpointError(f"{source}: expected a .safetensors, .pth, .th or .pt file, or a dict of arrays")
    state = state.get("state_dict", state)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{name}: state_dict: expected a dict of arrays, got a {type(state).__name__}")
    fill(model, {str(key): _as_array(value, f"{name}: {key}") for key, value in state.items()}, name)


def _read_with_torch(path: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path}: reading a {path.suffix} file needs PyTorch (pip install torch); or convert it to a .safetensors "
            "file on a machine that has PyTorch, with safetensors.torch.save_file(state_dict, path)"
        ) from None
    check_size(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make PyTorch raise anything
        why = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: damaged, or contains more than weights; PyTorch says: {why}") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: expected a dict of tensors, got a {type(state).__name__}")
    return state


# ---- names and layouts -------------------------------------------------------------------------------------------


def fill(net: Module, arrays: Mapping[str, np.ndarray], source: FileName) -> None:
    """Copy arrays with PyTorch's names and layouts into a net, after all of them have been checked.

    source: where they are from, for error messages. Errors as in `load_torch_weights`.
    """
    own = _arrays_of(net)
    expected = {name: _to_torch(array).shape for name, array in own.items()}
    found = {name: arrays[theirs] for name, theirs in _match(arrays, expected).items()}
    problems = [f"{name} is left over" for name in found if name not in expected]
    for name, shape in expected.items():
        array = found.get(name)
        if array is None:
            problems.append(f"{name} is missing")
        elif array.shape != shape:
            problems.append(f"{name} is {array.shape}, expected {shape}")
        elif array.dtype.kind != "f":
            problems.append(f"{name} holds {array.dtype}, expected floating-point numbers")
    if problems:
        raise CheckpointError(f"{source}: does not fit this net: {'; '.join(problems)}")
    net.load_state_dict({name: _from_torch(found[name]).astype(array.dtype) for name, array in own.items()})


def _arrays_of(net: Module) -> dict[str, Array]:
    """The net's own parameters and buffers by name, not copied."""
    return {name: p.data for name, p in net.named_parameters()} | dict(net.named_buffers())


def _to_torch(array: Array) -> Array:
    """(KH, KW, C, F) -> (F, C, KH, KW); (C, F) -> (F, C)."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _from_torch(array: Array) -> Array:
    """(F, C, KH, KW) -> (KH, KW, C, F); (F, C) -> (C, F)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _match(names: Iterable[str], expected: Container[str]) -> dict[str, str]:
    """Our name for each of PyTorch's names: {"fc.weight": "module.linear.weight"}."""
    ours: dict[str, str] = {}
    for name in names:
        layer, _, last = name.removeprefix("module.").rpartition(".")
        if last == "num_batches_tracked":  # a counter in PyTorch's batch norm, not needed here
            continue
        short = f"{layer}.{last}" if layer else last
        if layer == "linear" and short not in expected:
            short = f"fc.{last}"
        ours[name if short in ours else short] = name
    return ours


def _as_array(value: Any, name: str) -> np.ndarray:
    """A NumPy array from any kind of array, or from a PyTorch tensor, recognised by its methods."""
    try:
        return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else to_host(value))
    except (TypeError, ValueError, RuntimeError) as error:  # a ragged list, bfloat16, a sparse tensor
        raise CheckpointError(f"{name} cannot be converted to an array: {error}") from error
