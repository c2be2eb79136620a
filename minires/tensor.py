"""The engine: arrays that remember how they were made, so that gradients can walk back.

A `Tensor` holds an array and, when a gradient is wanted, a `Node`: the tensors it was computed from and a function
that turns the gradient of the output into gradients of those inputs. `backward()` visits the nodes from the loss
back to the leaves, each once, and adds up what arrives:

    dL/dx = sum over every use y of x of  (dL/dy) (dy/dx)          (the chain rule)

Operations all have the same three parts: the forward formula on arrays, a nested `backward(grad)` that returns one
gradient per input, and `Tensor.from_op`, which ties them together. No other file keeps books about the graph.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from minires.backend import Array, add, array_module, device_of

Gradients = tuple[Array | None, ...]


class Node(NamedTuple):
    """How a tensor was made: the operation's name, its inputs, and the step from output gradient to input gradients."""

    name: str
    parents: tuple[Tensor, ...]
    backward: Callable[[Array], Gradients]


FREED = Node("freed", (), lambda grad: ())  # stands in for a node after the backward pass that used it up

_mode = threading.local()


def grad_enabled() -> bool:
    """Whether operations in this thread record a graph."""
    return getattr(_mode, "enabled", True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Compute without recording a graph: `with no_grad(): ...`, or `@no_grad()` above a function."""
    before = grad_enabled()
    _mode.enabled = False
    try:
        yield
    finally:
        _mode.enabled = before


class Tensor:
    """An array, whether its gradient is wanted, and where it came from.

    data: anything NumPy takes, or a device array. float32 and float64 arrays keep their dtype and are not copied; all
    else becomes float32.
    """

    __array_ufunc__ = None  # so that `array * tensor` asks the tensor

    def __init__(self, data: Any, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("Tensor: data is a Tensor already; use data.detach() for one without its graph")
        if not hasattr(data, "dtype"):
            data = np.asarray(data)
            if data.dtype == np.float64:  # what NumPy makes of Python's numbers
                data = data.astype(np.float32)
        if data.dtype.kind not in "fiub":
            raise TypeError(f"Tensor: expected real numbers, got dtype {data.dtype}")
        if data.dtype not in (np.float32, np.float64):
            native = data.dtype.newbyteorder("=")  # float64 from a file in another machine's byte order stays float64
            data = data.astype(native if native == np.float64 else np.float32)
        # np.asarray also makes arrays of NumPy's scalars and of np.matrix, whose * is no longer ours
        self.data: Array = np.asarray(data) if device_of(data) == "cpu" else data
        self.requires_grad = requires_grad
        self.grad: Array = None
        self.node: Node | None = None
        self._retain = False

    @staticmethod
    def from_op(data: Array, parents: Sequence[Tensor], backward: Callable[[Array], Gradients], name: str) -> Tensor:
        """An operation's output. `backward(grad)` returns a gradient for each parent; None where none is wanted."""
        out = Tensor(data)
        if grad_enabled() and any(p.requires_grad for p in parents):
            out.requires_grad = True
            out.node = Node(name, tuple(parents), backward)
        return out

    # ---- looking at it

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made = f", from {self.node.name}" if self.node else ""
        return f"Tensor({self.data}{', requires_grad' if self.requires_grad else ''}{made})"

    def item(self) -> float:
        """The one number of a tensor of size 1 (waits for the device)."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array without its graph."""
        return Tensor(self.data)

    def retain_grad(self) -> Tensor:
        """Ask `backward` to leave this tensor's gradient in `.grad`, as it does for leaves. Returns the tensor."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad: this tensor has no gradient; make an input with requires_grad=True")
        self._retain = True
        return self

    def zero_grad(self) -> None:
        """Forget the gradient gathered so far."""
        self.grad = None

    # ---- the walk back

    def backward(self, grad: Array | None = None) -> None:
        """Add dL/dx to `x.grad` of every leaf x that this tensor was computed from.

        grad: dL/d(this tensor), an array of its shape; may be left out where the tensor is a single number (then 1).
        The graph is used up on the way: a second call raises RuntimeError.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: no gradient was asked for; make an input with requires_grad=True")
        xp = array_module(self.data)
        if grad is None:
            if self.size != 1:
                raise ValueError(
                    f"backward: grad is needed for a tensor of shape {self.shape}; only a single number "
                    "has an obvious one (1)"
                )
            grad = xp.ones_like(self.data)
        else:
            grad = self._numbers(grad, "backward")
        if grad.shape != self.shape:
            raise ValueError(f"backward: grad has shape {grad.shape}, the tensor {self.shape}")

        order = topological_order(self)
        grads = {id(self): grad}
        while order:  # popping lets each activation go as soon as the walk has passed it
            tensor = order.pop()
            grad = grads.pop(id(tensor))
            if tensor.node is None or tensor._retain:
                # a copy: `grad` may be the caller's, read-only, another leaf's too, or one of NumPy's scalars
                tensor.grad = array_module(grad).array(grad if tensor.grad is None else tensor.grad + grad)
            if tensor.node is None:
                continue
            node, tensor.node = tensor.node, FREED
            parent_grads = node.backward(grad)
            if not isinstance(parent_grads, tuple) or len(parent_grads) != len(node.parents):
                came = len(parent_grads) if isinstance(parent_grads, tuple) else type(parent_grads).__name__
                raise RuntimeError(
                    f"backward of {node.name}: expected a tuple of {len(node.parents)} gradients, one "
                    f"for each input, got {came}"
                )
            for parent, g in zip(node.parents, parent_grads, strict=True):
                if not parent.requires_grad:
                    continue
                if g is None or g.shape != parent.shape:
                    got = "None" if g is None else f"shape {g.shape}"
                    wanted = f"a gradient of shape {parent.shape}"
                    raise RuntimeError(f"backward of {node.name}: expected {wanted}, got {got}")
                # a new array, never `+=`: a residual add hands the same array to both parents
                grads[id(parent)] = add(grads[id(parent)], g) if id(parent) in grads else g

    # ---- arithmetic: each operation with its gradient beside it

    def _numbers(self, data: Any, name: str) -> Array:
        """`data` as an array of this tensor's dtype and device, for operation `name`."""
        xp = array_module(self.data)
        if isinstance(data, Real):
            return xp.full((), data, self.dtype)  # asarray would copy from host to device
        array = xp.asarray(data)
        if array.dtype.kind not in "fiub":  # NumPy would make a number of "3", and NaN of None
            raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
        return array.astype(self.dtype, copy=False)

    def _other(self, other: Any, name: str) -> Tensor:
        """`other` as a tensor of this one's dtype and device, so that the two can meet in operation `name`."""
        if not isinstance(other, Tensor):
            other = Tensor(self._numbers(other, name))
        if other.dtype != self.dtype:
            raise TypeError(f"{name}: one operand is {self.dtype}, the other {other.dtype}; convert one of them")
        if not _broadcast(self.shape, other.shape):
            raise ValueError(f"{name}: shapes {self.shape} and {other.shape} do not broadcast")
        return other

    def __add__(self, other: Any) -> Tensor:
        """z = x + y;  dx = dz, dy = dz."""
        x, y = self, self._other(other, "add")

        def backward(grad: Array) -> Gradients:
            return unbroadcast(grad, x.shape), unbroadcast(grad, y.shape)

        return Tensor.from_op(x.data + y.data, (x, y), backward, "add")

    def __mul__(self, other: Any) -> Tensor:
        """z = x y;  dx = dz y, dy = dz x."""
        x, y = self, self._other(other, "mul")
        a, b = x.data, y.data

        def backward(grad: Array) -> Gradients:
            return (
                unbroadcast(grad * b, x.shape) if x.requires_grad else None,
                unbroadcast(grad * a, y.shape) if y.requires_grad else None,
            )

        return Tensor.from_op(a * b, (x, y), backward, "mul")

    def __truediv__(self, other: Any) -> Tensor:
        """z = x / y;  dx = dz / y, dy = -dz x / y^2."""
        x, y = self, self._other(other, "div")
        a, b = x.data, y.data

        def backward(grad: Array) -> Gradients:
            return (
                unbroadcast(grad / b, x.shape) if x.requires_grad else None,
                unbroadcast(-grad * a / (b * b), y.shape) if y.requires_grad else None,
            )

        return Tensor.from_op(a / b, (x, y), backward, "div")

    def __pow__(self, exponent: float) -> Tensor:
        """z = x^p for a number p;  dx = dz p x^(p-1)."""
        if not isinstance(exponent, Real):
            raise TypeError("pow: the exponent must be a number; write (y * x.log()).exp() for a tensor y")
        a, p = self.data, float(exponent)
        xp = array_module(a)

        def backward(grad: Array) -> Gradients:
            return (xp.zeros_like(a) if p == 0 else grad * p * a ** (p - 1),)

        return Tensor.from_op(a**p, (self,), backward, "pow")

    def __neg__(self) -> Tensor:
        return self * -1.0

    def __sub__(self, other: Any) -> Tensor:
        return self + -self._other(other, "sub")

    def __rsub__(self, other: Any) -> Tensor:
        return self._other(other, "sub") + -self

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._other(other, "div") / self

    __radd__ = __add__
    __rmul__ = __mul__

    def __matmul__(self, other: Tensor) -> Tensor:
        """Z = X Y for X (..., n, k), Y (..., k, m);  dX = dZ Y^T, dY = X^T dZ, summed over broadcast leading axes."""
        if not isinstance(other, Tensor):
            other = Tensor(self._numbers(other, "matmul"))
        x, y = self, other
        if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2] or not _broadcast(x.shape[:-2], y.shape[:-2]):
            raise ValueError(f"matmul: expected (..., n, k) @ (..., k, m), got {x.shape} @ {y.shape}")
        if x.dtype != y.dtype:
            raise TypeError(f"matmul: one operand is {x.dtype}, the other {y.dtype}; convert one of them")
        a, b = x.data, y.data

        def backward(grad: Array) -> Gradients:
            return (
                unbroadcast(grad @ b.swapaxes(-1, -2), a.shape) if x.requires_grad else None,
                unbroadcast(a.swapaxes(-1, -2) @ grad, b.shape) if y.requires_grad else None,
            )

        return Tensor.from_op(a @ b, (x, y), backward, "matmul")

    def exp(self) -> Tensor:
        """z = e^x;  dx = dz z."""
        out = array_module(self.data).exp(self.data)
        return Tensor.from_op(out, (self,), lambda grad: (grad * out,), "exp")

    def log(self) -> Tensor:
        """z = ln x;  dx = dz / x."""
        a = self.data
        return Tensor.from_op(array_module(a).log(a), (self,), lambda grad: (grad / a,), "log")

    def sqrt(self) -> Tensor:
        """z = sqrt(x);  dx = dz / (2 z)."""
        out = array_module(self.data).sqrt(self.data)
        return Tensor.from_op(out, (self,), lambda grad: (grad / (2 * out),), "sqrt")

    # ---- reductions

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """z = sum of x over `axis` (all axes by default);  dx = dz, repeated along `axis`."""
        xp, shape = array_module(self.data), self.shape
        kept = _kept_shape(shape, axis, "sum")

        def backward(grad: Array) -> Gradients:
            return (xp.broadcast_to(grad.reshape(kept), shape),)

        return Tensor.from_op(xp.asarray(self.data.sum(axis=axis, keepdims=keepdims)), (self,), backward, "sum")

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """z = sum of x over `axis` / count."""
        count = _count(self.shape, _kept_shape(self.shape, axis, "mean"), "mean")
        return self.sum(axis, keepdims) * (1 / count)

    def max(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """z = largest x over `axis`;  dx = dz where x is the largest, shared equally among ties."""
        a, kept = self.data, _kept_shape(self.shape, axis, "max")
        _count(self.shape, kept, "max")
        xp = array_module(a)
        top = a.max(axis=axis, keepdims=True)

        def backward(grad: Array) -> Gradients:
            hit = (a == top).astype(a.dtype)
            return (hit * (grad.reshape(kept) / hit.sum(axis=axis, keepdims=True)),)

        out = xp.asarray(top if keepdims else a.max(axis=axis))
        return Tensor.from_op(out, (self,), backward, "max")

    # ---- shape

    def reshape(self, *shape: int) -> Tensor:
        """The same numbers in another shape (one entry may be -1);  the gradient goes back to the old shape."""
        old = self.shape
        out = self.data.reshape(*shape or ((),))  # x.reshape(*()) makes a single number, as x.reshape(()) does
        return Tensor.from_op(out, (self,), lambda grad: (grad.reshape(old),), "reshape")

    def transpose(self, *axes: int) -> Tensor:
        """Axes in a new order (reversed by default);  the gradient's axes go back."""
        order = axes or tuple(range(self.ndim))[::-1]
        try:
            out = self.data.transpose(order)
        except ValueError:
            raise ValueError(f"transpose: expected each axis of shape {self.shape} once, got {order}") from None
        back = tuple(int(i) for i in np.argsort([a % self.ndim for a in order]))
        return Tensor.from_op(out, (self,), lambda grad: (grad.transpose(back),), "transpose")

    def __getitem__(self, index: Any) -> Tensor:
        """z = x[index];  dx = dz added in at `index` of an array of zeros (an entry picked twice gathers twice)."""
        xp, shape, dtype = array_module(self.data), self.shape, self.dtype
        parts = index if isinstance(index, tuple) else (index,)
        each_once = all(p is None or p is Ellipsis or isinstance(p, int | slice) for p in parts)

        def backward(grad: Array) -> Gradients:
            out = xp.zeros(shape, dtype)
            if each_once:
                out[index] = grad
            else:
                xp.add.at(out, index, grad)
            return (out,)

        return Tensor.from_op(xp.asarray(self.data[index]), (self,), backward, "slice")


def topological_order(root: Tensor) -> list[Tensor]:
    """Every tensor with a gradient that `root` was computed from, inputs before outputs, each once.

    A loop with its own stack, not a recursion: a net of 1,202 layers is deeper than Python's stack. A tensor enters
    the list when it is met the second time, after everything below it has been listed.
    """
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        tensor, inputs_are_listed = stack.pop()
        if inputs_are_listed:
            order.append(tensor)
            continue
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if tensor.node is FREED:
            raise RuntimeError(
                "backward: this graph was walked already and is gone; compute the loss again (to use "
                "two losses of one graph, add them first)"
            )
        stack.append((tensor, True))
        if tensor.node:
            stack.extend((parent, False) for parent in tensor.node.parents if parent.requires_grad)
    return order


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum `grad` over the axes along which an operand of `shape` was repeated: copying forward is adding backward."""
    if grad.shape == shape:
        return grad
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))  # axes that broadcasting put in front
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=stretched, keepdims=True) if stretched else grad


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether arrays of shapes `a` and `b` can meet: from the last axis on, lengths are equal or one of them is 1."""
    return all(m == n or 1 in (m, n) for m, n in zip(a[::-1], b[::-1], strict=False))


def _kept_shape(shape: tuple[int, ...], axis: int | tuple[int, ...] | None, name: str) -> tuple[int, ...]:
    """`shape` with length 1 along `axis`: what a reduction leaves with keepdims."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int | np.integer) else axis
    for a in axes:
        if not -len(shape) <= a < len(shape):
            raise ValueError(f"{name}: axis {a} is not one of an array of shape {shape}")
    gone = {a % len(shape) for a in axes}
    return tuple(1 if i in gone else n for i, n in enumerate(shape))


def _count(shape: tuple[int, ...], kept: tuple[int, ...], name: str) -> int:
    """How many numbers a reduction from `shape` to `kept` takes together."""
    count = math.prod(n for n, k in zip(shape, kept, strict=True) if n != k)
    if count == 0:
        raise ValueError(f"{name}: shape {shape} holds no numbers along that axis; expected at least one")
    return count


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after another along `axis`;  each gets its own part of the gradient back."""
    if not tensors:
        raise ValueError("concatenate: expected at least one tensor, got none")
    if len({t.dtype for t in tensors}) > 1:
        raise TypeError(f"concatenate: dtypes differ: {', '.join(str(t.dtype) for t in tensors)}; convert one of them")
    if len({_kept_shape(t.shape, axis, "concatenate") for t in tensors}) > 1:
        raise ValueError(f"concatenate: shapes {', '.join(str(t.shape) for t in tensors)} differ off axis {axis}")
    xp = array_module(tensors[0].data)
    edges = np.cumsum([t.shape[axis] for t in tensors])[:-1].tolist()
    out = xp.concatenate([t.data for t in tensors], axis=axis)
    return Tensor.from_op(out, tensors, lambda grad: tuple(xp.split(grad, edges, axis=axis)), "concatenate")


def pad(x: Tensor, widths: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros around `x`: `widths` holds (before, after) for each axis;  the gradient loses that border again."""
    if len(widths) != x.ndim:
        raise ValueError(f"pad: x has {x.ndim} axes, widths names {len(widths)}")
    if any(min(pair) < 0 for pair in widths):
        raise ValueError(f"pad: widths must be 0 or more, got {widths}")
    inner = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))
    out = array_module(x.data).zeros([sum(pair) + n for pair, n in zip(widths, x.shape, strict=True)], x.dtype)
    out[inner] = x.data
    return Tensor.from_op(out, (x,), lambda grad: (grad[inner],), "pad")
