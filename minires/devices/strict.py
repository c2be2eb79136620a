"""A pretend GPU: NumPy arrays that refuse what CuPy's arrays refuse, and count what would cost time on a GPU.

    net.to("strict")
    python -m minires train --device strict

Code that runs here uses only functions, parameters and conversions that CuPy has: cupy_names.json lists them, recorded
from the real package by tests/record_cupy.py. What NumPy allows and a GPU makes impossible or slow:

    mixing      one operation cannot take an array of the device and one of the host
    waiting     float(x), bool(x), x[mask] need the numbers, so the host waits until the device has finished
    launching   each operation starts a kernel, which takes the host about 7 microseconds

The first is an error; `counting` counts the other two, and the copies between host and device:

    with counting() as made:
        loss.backward()
    print(made.launches.total(), made.waits)
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from inspect import Signature, signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from minires.backend import Backend, register


@cache
def names() -> dict[str, Any]:
    """The record: CuPy's functions and methods with their parameters, its ufuncs with their methods, and the rest."""
    record: dict[str, Any] = json.loads(Path(__file__).with_name("cupy_names.json").read_text(encoding="utf-8"))
    return record


# ---- what is counted


@dataclass(eq=False)
class Counts:
    """Calls by function name. Each call is one launch, though CuPy may need several kernels for it."""

    launches: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)  # host to device
    downloads: Counter[str] = field(default_factory=Counter)  # device to host
    waits: Counter[str] = field(default_factory=Counter)  # the host waits until the device has finished


_counting: list[Counts] = []
_thread = threading.local()  # .tracing: a function is being fused


@contextmanager
def counting() -> Iterator[Counts]:
    """Count inside the `with` block, in all threads."""
    made = Counts()
    _counting.append(made)
    try:
        yield made
    finally:
        _counting.remove(made)


def _note(kind: str, name: str) -> None:
    for made in () if _tracing() else _counting:
        getattr(made, kind)[name] += 1


def _tracing() -> bool:
    return getattr(_thread, "tracing", False)


def _not_fused(what: str) -> None:
    if _tracing():
        raise TypeError(f"cupy.fuse: expected ufuncs, operators, astype and copy, got {what}")


# ---- arrays


class StrictArray(NDArrayOperatorsMixin):
    """An array of the pretend device: wraps a NumPy array, which is never exposed."""

    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray):
        self._array = array

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("an array of the device is not converted to a NumPy array implicitly; use to_host(x)")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Called for operators and np.exp(x)."""
        function = getattr(xp, ufunc.__name__)
        return (function if method == "__call__" else getattr(function, method))(*arguments, **keywords)

    def __array_function__(self, function: Any, _: Any, arguments: Any, keywords: Any) -> Any:
        """Called for np.pad(x) and other functions."""
        found: Any = xp
        try:
            for part in [*function.__module__.split(".")[1:], function.__name__]:
                found = getattr(found, part)
        except AttributeError:
            return NotImplemented
        return found(*arguments, **keywords)

    def __getitem__(self, index: Any) -> StrictArray:
        _not_fused("x[index]")
        index = _index(index)
        if any(getattr(part, "dtype", None) == np.dtype(bool) for part in _parts(index)):
            _note("waits", "x[mask]")  # only the device knows how many entries there are
        result = self._array[index]
        if isinstance(result, np.generic):  # CuPy gives a view even of a single entry
            result = self._array[(*_parts(index), ...)]
        view: StrictArray = _done("x[index]", result, [self._array])
        return view

    def __setitem__(self, index: Any, value: Any) -> None:
        _not_fused("x[index] = value")
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
            raise ValueError(
                f"x[index] = value: expected a number or an array of the device, got {type(value).__name__}"
            )
        index = _index(index)
        if any(isinstance(part, np.ndarray) for part in _parts(index)):
            entries = np.arange(self._array.size).reshape(self._array.shape)[index]
            if len(np.unique(entries)) < entries.size:
                raise ValueError(
                    "x[index] = value: expected each entry once, got one twice; its value would be undefined"
                )
        self._array[index] = value._array if isinstance(value, StrictArray) else value
        _note("launches", "x[index] = value")

    @property
    def base(self) -> StrictArray | None:
        """The array of which this one is a view."""
        return None if self._array.base is None else StrictArray(self._array.base)

    def __len__(self) -> int:
        _not_fused("len(x)")
        return len(self._array)

    def __iter__(self) -> Iterator[StrictArray]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(_download("bool(x)", self))

    def __int__(self) -> int:
        return int(_download("int(x)", self))

    def __float__(self) -> float:
        return float(_download("float(x)", self))

    def __repr__(self) -> str:
        return repr(_download("repr(x)", self))

    def __str__(self) -> str:
        return str(_download("str(x)", self))

    def __format__(self, form: str) -> str:
        return format(_download("format(x)", self)[()], form)

    def __getattr__(self, name: str) -> Any:
        """The attributes and methods that CuPy's arrays have."""
        known = names()["array"]
        if name not in known or name in ("data", "flat"):  # these two would expose the NumPy array
            raise AttributeError(f"cupy.ndarray, or this stand-in for it, has no attribute {name!r}")
        if name not in ("astype", "copy", "dtype", "ndim"):
            _not_fused(f"x.{name}")
        if known[name] is None:
            return _wrap(getattr(self._array, name))

        def method(*arguments: Any, **keywords: Any) -> Any:
            _check(f"ndarray.{name}", known[name], arguments, keywords)
            if name in ("get", "item", "tobytes", "tolist"):
                host = _download(name, self)
                return host if name == "get" else getattr(host, name)()
            return _compute(f"x.{name}", lambda x, *a, **k: getattr(x, name)(*a, **k), (self, *arguments), keywords)

        return method


class _Traced(StrictArray):
    """An argument of a function that is being fused, or a result in it."""

    __slots__ = ()


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _index(index: Any) -> Any:
    """An index for NumPy. Lists and host arrays are allowed here: CuPy copies them to the device."""
    if isinstance(index, tuple):
        return tuple(_index(part) for part in index)
    if isinstance(index, list | np.ndarray):
        _note("uploads", "x[index]")
        return np.asarray(index)
    return _host(index)


def _each(function: Callable[[Any], Any], x: Any) -> Any:
    """function(part) for the parts of a list or tuple, else x."""
    if isinstance(x, list):
        return [function(part) for part in x]
    return tuple(function(part) for part in x) if isinstance(x, tuple) else x


def _host(x: Any) -> Any:
    """The NumPy array behind an array of the device, also inside lists and tuples."""
    if isinstance(x, StrictArray):
        if not isinstance(x, _Traced):
            _not_fused("an array that is not an argument of the function")
        return x._array
    if isinstance(x, np.ndarray):
        raise TypeError(
            f"expected arrays of the device, got a host array of shape {x.shape}; convert it with to_device"
        )
    return _each(_host, x)


def _wrap(x: Any) -> Any:
    """An array of the device, also for a NumPy scalar: the result of a full reduction has no axes, but is no float."""
    if isinstance(x, np.ndarray | np.generic):
        return (_Traced if _tracing() else StrictArray)(np.asarray(x))
    return _each(_wrap, x)


def _on_device(x: Any) -> bool:
    return isinstance(x, StrictArray) or (isinstance(x, list | tuple) and any(map(_on_device, x)))


def _download(name: str, x: StrictArray) -> np.ndarray:
    _not_fused(name)
    _note("downloads", name)
    _note("waits", name)
    return x._array.copy()


# ---- functions

WAITING = {
    "argwhere",
    "bincount",
    "extract",
    "flatnonzero",
    "histogram",
    "nonzero",
    "unique",
}  # the size of the result is unknown
BOOLEAN = {"allclose", "array_equal", "array_equiv"}  # Python's bool in NumPy, an array in CuPy
FROM_HOST = {"array", "asanyarray", "asarray", "ascontiguousarray"}
ONLY_FALSE = {"subok", "writeable"}  # parameters that CuPy has, but does not support


@cache
def _signature(text: str) -> Signature:
    """The signature that the record writes as "a, axis=, *, out="."""
    return signature(eval(f"lambda {text.replace('=', '=None')}: None"))


def _check(name: str, text: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, if CuPy takes them all."""
    try:
        by_name = _signature(text).bind(*arguments, **keywords).arguments
    except TypeError as error:
        raise TypeError(f"cupy.{name}({text}): {error}") from None
    for parameter in ONLY_FALSE & by_name.keys():
        if by_name[parameter]:
            raise NotImplementedError(f"cupy.{name}: {parameter}={by_name[parameter]} is not supported")
    return by_name


def _compute(name: str, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Call a NumPy function with the NumPy arrays behind its arguments."""
    inputs, out = _host(arguments), keywords.get("out")
    with np.errstate(all="ignore"):  # a GPU is silent about overflow
        result = function(*inputs, **{key: _host(value) for key, value in keywords.items()})
    if name.removeprefix("x.") in WAITING or (name == "where" and len(arguments) == 1):
        _note("waits", name)
    if out is None:
        return _done(name, result, inputs)
    _note("launches", name)
    return out


def _done(name: str, result: Any, inputs: Any) -> Any:
    """Wrap a result and count its launch: none if it is only a view of an input, or new memory."""
    made, given = list(_arrays(result)), list(_arrays(inputs))
    views = made and all(any(np.may_share_memory(a, b) for b in given) for a in made)
    if (made or result is None) and not views and name not in ("empty", "empty_like"):
        _note("launches", name)
    return _wrap(result)


def _arrays(x: Any) -> Iterator[np.ndarray]:
    if isinstance(x, np.ndarray | np.generic):
        yield np.asarray(x)
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _arrays(part)


class _Ufunc:
    """A ufunc with the keywords and methods of CuPy's."""

    def __init__(self, name: str):
        self._name, self._ufunc = name, getattr(np, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        allowed = {"out"} if _tracing() else set(names()["ufunc_keywords"])
        if wrong := keywords.keys() - allowed:
            raise TypeError(
                f"cupy.{self._name}: expected only {', '.join(sorted(allowed))}, got {', '.join(sorted(wrong))}"
            )
        if any(isinstance(a, list | tuple) for a in arguments):
            raise TypeError(f"cupy.{self._name}: expected arrays and numbers, got a list or tuple")
        if isinstance(keywords.get("out"), tuple) and len(keywords["out"]) == 1:  # of x += y
            keywords["out"] = keywords["out"][0]
        return _compute(self._name, self._ufunc, arguments, keywords)

    def __getattr__(self, method: str) -> Any:
        _not_fused(f"{self._name}.{method}")
        if method not in names()["ufuncs"][self._name].split():
            raise NotImplementedError(f"cupy.{self._name}.{method} is not supported")
        name, function = f"{self._name}.{method}", getattr(self._ufunc, method)
        if method == "at":  # its index may be on the host
            return lambda a, index, *b: _compute(name, lambda x, *y: function(x, _index(index), *y), (a, *b), {})
        return lambda *a, **k: _compute(name, function, a, k)


class _Module:
    """The functions that NumPy and CuPy share, with CuPy's parameters."""

    def __init__(self, path: str = ""):
        self._path = path

    def __getattr__(self, name: str) -> Any:
        record, path = names(), self._path + name
        if path in SPECIAL:
            found: Any = SPECIAL[path]
        elif path in record["ufuncs"]:
            found = _Ufunc(path)
        elif path in record["functions"]:
            found = _function(path, record["functions"][path])
        elif path in record["values"]:
            found = getattr(np, path)
        elif any(known.startswith(f"{path}.") for known in record["functions"]):
            found = _Module(f"{path}.")
        else:
            raise AttributeError(f"cupy has no {path}")
        setattr(self, name, found)
        return found


def _function(path: str, text: str) -> Callable[..., Any]:
    numpy_function: Any = np
    for part in path.split("."):
        numpy_function = getattr(numpy_function, part)

    def function(*arguments: Any, **keywords: Any) -> Any:
        _not_fused(path)
        by_name = _check(path, text, arguments, keywords)
        first = next(iter(by_name.values()), None)
        if path in FROM_HOST and not _on_device(first):
            _note("uploads", path)
            return StrictArray(np.array(first, by_name.get("dtype")))  # a copy, as on a GPU
        keywords.pop("blocking", None)
        result = _compute(path, numpy_function, arguments, keywords)
        return _wrap(np.bool_(result)) if path in BOOLEAN else result

    return function


class _Generator:
    """A random generator with the methods of CuPy's, but other numbers."""

    def __init__(self, seed: Any = None):
        self._rng = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in names()["generator"]:
            raise AttributeError(f"cupy.random.Generator has no {name}")
        return lambda *a, **k: _compute(name, getattr(self._rng, name), a, k)


def fuse(kernel_name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make one launch of a function of ufuncs, as `cupy.fuse(kernel_name=...)` does."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def fused(*arguments: Any) -> Any:
            _thread.tracing = True
            try:
                result = function(*[_Traced(a._array) if isinstance(a, StrictArray) else _host(a) for a in arguments])
            finally:
                _thread.tracing = False
            _note("launches", kernel_name)
            return _untraced(result)

        return fused

    return decorate


def _untraced(x: Any) -> Any:
    return StrictArray(x._array) if isinstance(x, _Traced) else _each(_untraced, x)


SPECIAL = {
    "asnumpy": lambda x: _download("asnumpy", x),
    "fuse": fuse,
    "ndarray": StrictArray,
    "random": _Module("random."),
    "random.default_rng": _Generator,
}
xp = _Module()
register(Backend("strict", xp, StrictArray, lambda x: xp.asarray(x), lambda x: xp.asnumpy(x)))
