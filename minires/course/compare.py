"""How a result differs from the expected one, in words that help a student."""

from __future__ import annotations

import reprlib
from numbers import Integral, Real
from typing import Any

import numpy as np

from minires.gradcheck import diagnose
from minires.tensor import Tensor


class Mistake(Exception):
    """What is wrong with one result. A check's own code may raise it too: `Mistake("plain words")`.

    pattern: what is wrong. output: which part of the result. figures: lines with shapes and numbers.
    """

    def __init__(self, pattern: str, output: str = "the result", figures: tuple[str, ...] = ()):
        super().__init__(pattern)
        self.pattern, self.output, self.figures = pattern, output, figures


def compare(
    names: tuple[str, ...], got: Any, expected: Any, upstream: np.ndarray | None = None, rtol: float | None = None
) -> None:
    """Raise a Mistake for the first part of a result that is not as expected.

    names: of the result's parts, or one name for all of it. upstream: the upstream gradient, if the result is a
    gradient. rtol: relative tolerance; None means 1e-4 for float32, 1e-6 otherwise.
    """
    name = names[0]
    if got is None and expected is not None:
        raise Mistake("it is None: is a `return` missing?", name)
    if isinstance(expected, tuple | list):
        _compare_parts(names, got, expected, upstream, rtol)
    elif isinstance(expected, Tensor):
        if not isinstance(got, Tensor):
            raise _wrong_type(name, got, "a Tensor")
        _compare_arrays(name, got.data, expected.data, upstream, rtol)
    elif isinstance(expected, np.ndarray | np.generic):
        _compare_arrays(name, got, np.asarray(expected), upstream, rtol)
    elif isinstance(expected, Real) and not isinstance(expected, bool):
        _compare_numbers(name, got, expected, upstream, rtol)
    else:
        _compare_values(name, got, expected)


def _compare_parts(
    names: tuple[str, ...], got: Any, expected: Any, upstream: np.ndarray | None, rtol: float | None
) -> None:
    """Tuples and lists: the number of parts, then each part."""
    n, named = len(expected), len(names) == len(expected)
    if not isinstance(got, tuple | list) or len(got) != n:
        number = f"{len(got)} of them" if isinstance(got, tuple | list) else kind(got)
        listed = f" ({', '.join(names)})" if named else ""
        raise Mistake(f"wrong number of results: expected {n}{listed}, got {number}")
    parts = names if named else [f"{names[0]}[{i}]" for i in range(n)]
    for part, a, b in zip(parts, got, expected, strict=True):
        compare((part,), a, b, upstream, rtol)


def _compare_values(name: str, got: Any, expected: Any) -> None:
    """True or False, strings, and anything else that `==` compares."""
    is_truth = isinstance(expected, bool) and isinstance(got, np.bool_)
    if type(got) is not type(expected) and not is_truth:
        raise _wrong_type(name, got, kind(expected))
    if got != expected:
        raise Mistake(f"it is {reprlib.repr(got)}, expected {expected!r}", name)


def _compare_numbers(name: str, got: Any, expected: Real, upstream: np.ndarray | None, rtol: float | None) -> None:
    """Python's numbers: an array without axes will do for a float."""
    is_scalar = isinstance(got, np.ndarray) and got.shape == () and got.dtype.kind in "iuf"
    if isinstance(got, bool) or not (isinstance(got, Real) or is_scalar):
        raise _wrong_type(name, got, kind(expected))
    if isinstance(expected, Integral) and not isinstance(got, Integral):
        raise Mistake(f"wrong type: {kind(got)} {got}, expected a whole number (int)", name)
    _compare_arrays(name, np.asarray(float(got)), np.asarray(float(expected)), upstream, rtol)


def _compare_arrays(name: str, got: Any, expected: np.ndarray, upstream: np.ndarray | None, rtol: float | None) -> None:
    """Arrays, by the patterns of `diagnose`: dtype, shape, then entries. Any size of integer will do."""
    if not isinstance(got, np.ndarray | np.generic):
        raise _wrong_type(name, got, "an array")
    got = np.asarray(got)
    if (got.dtype.kind in "iu" and expected.dtype.kind in "iu") or got.dtype == expected.dtype == bool:
        got, expected = got.astype(np.float64), expected.astype(np.float64)
    rtol = rtol or (1e-4 if expected.dtype == np.float32 else 1e-6)
    if pattern := diagnose(got, expected, upstream, rtol=rtol, atol=rtol / 10):
        raise Mistake(pattern, name, _figures(pattern, got, expected, rtol))


def _figures(pattern: str, got: np.ndarray, expected: np.ndarray, rtol: float) -> tuple[str, ...]:
    """Lines with shape and dtype, the worst entry, and the number of wrong ones, as far as the pattern leaves them."""
    if got.shape != expected.shape:
        shapes = f"shape {got.shape}, expected {expected.shape}, {expected.dtype}"
        return (shapes,) if expected.ndim and not pattern.startswith("wrong shape") else ()
    error = np.nan_to_num(np.abs(got - expected.astype(np.float64)), nan=np.inf)
    at = np.unravel_index(np.argmax(error), error.shape)
    values = f"yours {got[at]:.6g}, expected {expected[at]:.6g}"
    if not expected.ndim:
        return (values,)
    wrong = np.count_nonzero(error > rtol / 10 + rtol * np.abs(expected))
    return (
        f"shape {expected.shape}, {expected.dtype}",
        f"worst at [{', '.join(map(str, at))}]: {values}",
        f"{wrong} of {expected.size} entries are wrong",
    )


def unchanged(before: Any, after: Any) -> bool:
    """Whether an argument is what it was: arrays, tensors, numbers, strings, and containers of them."""
    if type(before) is not type(after):
        return False
    if isinstance(before, Tensor):
        return unchanged(before.data, after.data)
    if isinstance(before, np.ndarray):
        return before.shape == after.shape and np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(unchanged(before[k], after[k]) for k in before)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(unchanged, before, after))
    return before is after or before == after if isinstance(before, Real | str) else True


def kind(value: Any) -> str:
    """A value's type in words."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _wrong_type(name: str, got: Any, expected: str) -> Mistake:
    return Mistake(f"wrong type: {kind(got)}, expected {expected}", name)
