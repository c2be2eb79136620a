"""Is a gradient right? Compare it with finite differences, entry by entry, and say how it is wrong.

For a function f of several arrays, take a random array u of the output's shape and the loss L = <f(x), u>.
Its gradient is what f's backward makes of the upstream gradient u, and each entry of it can be measured:

    dL/dx_i  ~  <f(x + h e_i) - f(x - h e_i), u> / 2h              (central difference, error of order h^2)

u is random because a plain sum hides mistakes: the outputs of a batch norm always have the same sum, so an
all-zero backward would pass. All is done in float64, where h = 1e-6 leaves some nine correct digits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np

from minires.backend import Array, to_host
from minires.tensor import Tensor, no_grad

Function = Callable[..., Tensor]


class GradientError(AssertionError):
    """A backward function is wrong; the message says where and how."""


def gradcheck(
    fn: Function, inputs: Sequence[Any], *, eps: float = 1e-6, rtol: float = 1e-5, atol: float = 1e-7, seed: int = 0
) -> bool:
    """Compare the gradients of `fn(*inputs)` with central differences, for every entry of every input.

    fn: takes one Tensor for each input and returns one Tensor; it may close over anything else that it needs.
    inputs: arrays or tensors, copied to float64; away from kinks and ties (`away_from_kinks` draws such arrays).
    eps: the step h. rtol, atol: an entry is right if |backward - numeric| <= atol + rtol |numeric|.
    seed: for the random upstream gradient.

    Returns True. Raises GradientError if a gradient is wrong, if fn or its backward writes into an array that
    it was given, or if a second call differs; ValueError if an entry is at a kink or a tie.
    """
    arrays = [np.array(to_host(x.data if isinstance(x, Tensor) else x), dtype=np.float64) for x in inputs]
    names = list(inspect.signature(fn).parameters)
    if len(names) < len(arrays):  # fn(*args)
        names = [f"input {i}" for i in range(len(arrays))]
    with no_grad():
        out = fn(*[Tensor(a.copy()) for a in arrays])
    if not isinstance(out, Tensor):
        raise TypeError(f"gradcheck: fn must return one Tensor, got {type(out).__name__}")
    upstream = np.random.default_rng(seed).standard_normal(out.shape)

    op, first, grads = _forward_backward(fn, arrays, upstream, names)
    _, second, grads_again = _forward_backward(fn, arrays, upstream, names)
    for part, a, b in zip(["output", *names], [first, *grads], [second, *grads_again], strict=False):
        if not np.array_equal(a, b, equal_nan=True):
            part = part if part == "output" else f"gradient for {part}"
            raise GradientError(
                f"{op}: a second call differs: the same inputs gave another {part}. Does it "
                "draw random numbers, or keep something from the first call?"
            )

    complaints = []
    for i, (name, got) in enumerate(zip(names, grads, strict=False)):
        wanted = _finite_differences(fn, arrays, i, upstream, eps, f"gradcheck of {op}: {name}")
        if problem := diagnose(got, wanted, upstream, rtol=rtol, atol=atol):
            complaints.append(f"{op}: wrong gradient for {name} (input {i}): {problem}")
            complaints.append(_worst(got, wanted, rtol, atol))
    if complaints:
        raise GradientError("\n".join(complaints))
    return True


def away_from_kinks(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 2.0) -> np.ndarray:
    """Random float64 numbers for `gradcheck`: none near zero (ReLU's kink), no two alike (ties of a maximum).

    Their signs are random; their n magnitudes lie scale / 2n or more apart, up to about `scale`.
    """
    n = int(np.prod(shape))
    magnitude: np.ndarray = (rng.permutation(n) + rng.uniform(0.75, 1.25, n)) * scale / max(n, 1)
    return np.reshape(magnitude * rng.choice([-1.0, 1.0], n), shape)


def _forward_backward(
    fn: Function, arrays: list[np.ndarray], upstream: np.ndarray, names: list[str]
) -> tuple[str, Array, list[Array]]:
    """The operation's name, its output, and the gradient of each input (zeros if there is none)."""
    tensors = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    out, u = fn(*tensors), upstream.copy()
    op = getattr(fn, "__name__", "<lambda>")
    if op == "<lambda>" and out.node:
        op = out.node.name

    def refuse_overwriting(by: str) -> None:
        for name, tensor, a in zip(names, tensors, arrays, strict=False):
            if not np.array_equal(tensor.data, a, equal_nan=True):
                raise GradientError(f"{op}: an input was overwritten: {by} changed {name}; work on a copy")

    refuse_overwriting("the forward pass")
    if out.dtype != np.float64:
        raise GradientError(f"{op}: wrong dtype: the output is {out.dtype} for inputs of float64")
    try:
        out.backward(u)
    except Exception as error:
        raise GradientError(f"{op}: the backward pass failed: {error}") from error
    if not np.array_equal(u, upstream):
        raise GradientError(
            f"{op}: the upstream gradient was overwritten: backward changed the array it was "
            "given, which others may hold too; work on a copy"
        )
    refuse_overwriting("backward")
    return op, out.data, [np.zeros_like(t.data) if t.grad is None else t.grad for t in tensors]


def _finite_differences(
    fn: Function, arrays: list[np.ndarray], i: int, upstream: np.ndarray, eps: float, what: str
) -> np.ndarray:
    """d<fn, upstream> / d arrays[i]: the mean of the slopes below and above it, which must not differ."""
    moved = [a.copy() for a in arrays]
    below, above = np.empty_like(arrays[i]), np.empty_like(arrays[i])

    def values() -> Array:
        with no_grad():
            return fn(*map(Tensor, moved)).data.copy()  # a view of an input would move along with it

    here = values()
    for index, x in np.ndenumerate(arrays[i]):
        moved[i][index] = x - eps
        down = values()
        moved[i][index] = x + eps
        up = values()
        moved[i][index] = x
        # outputs are subtracted before they are summed: those that did not move drop out without rounding
        below[index] = ((here - down) * upstream).sum() / eps
        above[index] = ((up - here) * upstream).sum() / eps

    gap = np.abs(above - below)  # by curvature alone: eps times the second derivative
    if (gap > 1e-3 * max(1e-2, np.abs([below, above]).max(initial=0.0))).any():
        at = _largest(gap)
        raise ValueError(
            f"{what}{list(at)} = {arrays[i][at]:.6g} is at a kink or a tie: the slope is "
            f"{below[at]:.6g} below it and {above[at]:.6g} above; move the input "
            "(away_from_kinks draws arrays without such entries)"
        )
    return np.asarray((below + above) / 2)


# ---- what is wrong with it? -------------------------------------------------------------------------------


def diagnose(
    got: Array | None, wanted: Array, upstream: Array | None = None, *, rtol: float = 1e-5, atol: float = 1e-7
) -> str:
    """How the array `got` differs from `wanted`, as the first pattern that fits; "" where they agree.

    upstream: the upstream gradient, where `got` is a gradient: did it go missing, or come through as it was?
    """
    if got is None:
        return "none arrived (None)" if np.any(wanted) else ""
    got, wanted = to_host(got), to_host(wanted)
    axes = range(wanted.ndim)

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return a.shape == b.shape and np.allclose(a, b, rtol=rtol, atol=atol)

    if got.dtype != wanted.dtype:
        return f"wrong dtype: {got.dtype}, expected {wanted.dtype}"
    if same(got, wanted):
        return ""
    for order in permutations(axes):
        if got.any() and same(got, wanted.transpose(order)):
            return f"transposed: its axes are in the order {order}"
    if got.shape != wanted.shape:
        return f"wrong shape: {got.shape}, expected {wanted.shape}"
    if not np.isfinite(got).all():
        return f"NaN or infinity in {np.count_nonzero(~np.isfinite(got))} of {got.size} entries"
    if not got.any():
        return "all zero"
    if upstream is not None and same(got, upstream):
        return "the upstream gradient came through unchanged"
    if upstream is not None and upstream.shape == got.shape and same(got * upstream, wanted):
        return "the upstream gradient is missing as a factor"
    if upstream is not None and same(wanted - got, upstream):
        return "the upstream gradient is missing from the sum: was a shortcut's share overwritten?"
    ratio = (got * wanted).sum() / max((wanted * wanted).sum(), 1e-300)
    if wanted.size == 1 and not _simple(ratio):  # of single numbers, any two have a ratio
        return _nearly(got, wanted) or "another number"
    if same(got, ratio * wanted):
        return f"constant ratio {ratio:.6g}: every entry is {ratio:.6g} times what it should be"
    for some in (axes_ for k in axes for axes_ in combinations(axes, k + 1)):
        if same(got, np.flip(wanted, some)):
            return f"reversed along axes {some}"
        for step in (1, -1, 2, -2):
            kept = slice(max(step, 0), min(step, 0) or None)  # all but what np.roll carries round
            inside = tuple(kept if i in some else slice(None) for i in axes)
            moved = np.roll(wanted, step, some)[inside]
            if moved.size > 2 and moved.any() and same(got[inside], moved):
                return f"shifted by {step} along axes {some}"
    channel_mean = (got - wanted).mean(axis=tuple(axes[:-1]), keepdims=True)
    if wanted.ndim > 1 and wanted.size > wanted.shape[-1] and same(got - channel_mean, wanted):
        return "off by one constant per channel (last axis): is a term with the mean missing?"

    if same(np.sort(got, axis=None), np.sort(wanted, axis=None)):
        return "the right numbers in another order"
    wrong = ~np.isclose(got, wanted, rtol=rtol, atol=atol)
    share = wrong.reshape(len(wrong), -1).mean(axis=1) if wrong.ndim > 1 else np.zeros(1)  # wrong ones of each image
    if len(share) > 1 and share[0] == 0 and share[1:].min() >= 0.5:
        return "right for the first entry of axis 0, wrong after it"
    spatial = axes[1:-1] if wanted.ndim > 2 else axes  # H and W of (N, H, W, C)
    inside = tuple(slice(1, -1) if i in spatial else slice(None) for i in axes)
    if wanted.ndim > 1 and wrong[inside].size and not wrong[inside].any():
        return "only the borders are wrong"
    if not got[wrong].any():
        return "zero where it should not be, right elsewhere"
    if not wanted[wrong].any():
        return "not zero where it should be, right elsewhere"
    squares = (wanted * wanted).sum(axis=tuple(axes[:-1]))
    factor = (got * wanted).sum(axis=tuple(axes[:-1])) / np.maximum(squares, 1e-300)  # of each channel
    if wanted.ndim > 1 and len(wanted) > 1 and same(got, factor * wanted):
        return "one factor too much or missing per channel (last axis)"
    return _nearly(got, wanted) or "no known pattern"


def _simple(ratio: float) -> bool:
    """Whether a ratio is k or 1/k for a whole number k, not 1: a forgotten count, a mean for a sum, a sign."""
    k = max(abs(ratio), 1 / abs(ratio)) if ratio else 0.0
    return k < 1000 and abs(k - round(k)) < 1e-4 * k and (round(k) > 1 or ratio < 0)


def _nearly(got: np.ndarray, wanted: np.ndarray) -> str:
    """Message for a result within 1 %, or ""."""
    if not np.allclose(got, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max()):
        return ""
    return f"nearly right: off by {np.abs(got - wanted).max() / np.abs(wanted).max():.1g} of the largest entry, or less"


def _worst(got: Array, wanted: np.ndarray, rtol: float, atol: float) -> str:
    """Two lines for the message: the worst entry with both values, and how many are wrong."""
    miss = np.nan_to_num(np.abs(got - wanted), nan=np.inf)
    at, wrong = _largest(miss), np.count_nonzero(miss > atol + rtol * np.abs(wanted))
    return (
        f"  worst at {list(at)}: backward gives {got[at]:.8g}, finite differences give {wanted[at]:.8g}\n"
        f"  {wrong} of {wanted.size} entries are wrong"
    )


def _largest(x: np.ndarray) -> tuple[int, ...]:
    return tuple(np.argwhere(x == x.max())[0].tolist())
