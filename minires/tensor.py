"""The engine: arrays that remember how they were made, so that gradients can flow backward.

A `Tensor` holds an array and, when a gradient is wanted, its `Node` in the graph: the nodes of the tensors it was
computed from, and a function that turns the gradient of the output into gradients of those inputs. `backward()` visits
the nodes from the loss back to the leaves, each once, and adds up what arrives:

    dL/dx = sum over every use y of x of  (dL/dy) (dy/dx)          (the chain rule)

Operations all have the same three parts: the forward formula on arrays, a nested `backward(grad)` that returns one
gradient per input, and `Tensor.from_op`, which ties them together. Graph bookkeeping is done here and nowhere else.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from minires import parallel
from minires.backend import Array, array_module, device_of

Gradients = tuple[Array | None, ...]

_mode = threading.local()


def grad_enabled() -> bool:
    """Whether operations in this thread record a graph."""
    return getattr(_mode, "enabled", True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Compute without recording a graph: `with no_grad(): ...`, or `@no_grad()` above a function."""
    with grad_mode(False):
        yield


@contextmanager
def grad_mode(enabled: bool) -> Iterator[None]:
    """Whether operations in this thread record a graph, until the end of the `with` block."""
    before = grad_enabled()
    _mode.enabled = enabled
    try:
        yield
    finally:
        _mode.enabled = before


@dataclass(eq=False, slots=True)
class Node:
    """A tensor's place in the graph: how it was made, and where its gradient goes.

    It doesn't hold the tensor's array. An activation lives on only if some `backward` needs it: the output of a batch
    norm, say, is freed as soon as the ReLU has read it.
    """

    name: str  # of the operation; "leaf" for a tensor that was given
    shape: tuple[int, ...]
    parents: tuple[Node | None, ...] = ()  # None: an input that wants no gradient
    backward: Callable[[Array], Gradients] | None = None  # output gradient -> one gradient per parent
    keeps_grad: bool = True  # leaves do, and what `retain_grad` was called on
    grad: Array | None = None
    freed: bool = False  # by the backward pass that used it


class Tensor:
    """An array and, when its gradient is wanted, its node in the graph.

    data: anything NumPy takes, or a device array. float32 and float64 arrays keep their dtype and are not copied;
    everything else becomes float32.
    """

    __array_ufunc__ = None  # so that `array * tensor` asks the tensor

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data: Array = _as_float_array(data)
        self.node: Node | None = Node("leaf", self.data.shape) if requires_grad else None
        self.is_parameter = requires_grad  # it stays one while `requires_grad = False` freezes it

    @staticmethod
    def from_op(data: Array, parents: Sequence[Tensor], backward: Callable[[Array], Gradients], name: str) -> Tensor:
        """An operation's output. `backward(grad)` returns a gradient for each parent; None where none is wanted."""
        out = Tensor(data)
        nodes = tuple([p.node for p in parents])
        if grad_enabled() and any(nodes):
            out.node = Node(name, out.shape, nodes, backward, keeps_grad=False)
            if isinstance(out.data, np.ndarray):
                out.data.flags.writeable = False  # some backward may need it as it is
        return out

    @property
    def saved(self) -> Array:
        """The array, for a `backward` to keep. A copy where it could be written to before the backward pass: a leaf's
        array (by an optimiser, by its owner), and a view, which may be one of a leaf's."""
        is_output = self.node is not None and self.node.name != "leaf" and self.data.base is None
        return self.data if is_output or not grad_enabled() else self.data.copy(order="K")

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made = f", from {self.node.name}" if self.node and self.node.name != "leaf" else ""
        return f"Tensor({self.data}{', requires_grad' if self.node else ''}{made})"

    def item(self) -> float:
        """The value of a one-element tensor (waits for the device)."""
        return float(self.data.item())

    __float__ = item

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __array__(self, *args: Any, **options: Any) -> None:
        raise TypeError("a Tensor is not an array: use its .data (and minires.backend.to_host for a GPU's)")

    def __eq__(self, other: object) -> bool:
        raise TypeError("== of Tensors: compare their arrays, a.data == b.data, or write `a is b`")

    __hash__ = object.__hash__

    def detach(self) -> Tensor:
        """The same array without its graph."""
        return Tensor(self.data)

    # ---- gradients

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient is wanted. May be set on a leaf, to freeze it."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if wanted != self.requires_grad:
            self.node = Node("leaf", self.shape) if wanted else None
            self.is_parameter |= wanted

    @property
    def grad(self) -> Array:
        """dL/d(this tensor), summed over backward passes; None before the first, and where none is kept."""
        return self.node.grad if self.node else None

    @grad.setter
    def grad(self, grad: Array | None) -> None:
        if self.node:
            self.node.grad = grad
        elif grad is not None:
            raise RuntimeError("grad: this tensor requires no gradient; create it with requires_grad=True")

    def zero_grad(self) -> None:
        """Forget the gradient summed so far."""
        self.grad = None

    def retain_grad(self) -> Tensor:
        """Ask `backward` to keep this tensor's gradient in `.grad`, as it does for leaves. Returns the tensor."""
        if self.node is None:
            raise RuntimeError("retain_grad: this tensor requires no gradient; create an input with requires_grad=True")
        self.node.keeps_grad = True
        return self

    def backward(self, grad: Array | None = None) -> None:
        """Add dL/dx to `x.grad` of every leaf x that this tensor was computed from.

        grad: dL/d(this tensor), an array of its shape; it defaults to 1 for a one-element tensor.
        The graph is freed during the pass: a second call raises RuntimeError.
        """
        if self.node is None:
            raise RuntimeError("backward: this tensor requires no gradient; create an input with requires_grad=True")
        order, grads = topological_order(self.node), {self.node: self._upstream_gradient(grad)}
        while order:  # popping frees what only this node's backward needed
            node = order.pop()
            grad = grads.pop(node)
            if node.keeps_grad:
                # a copy: `grad` may be the caller's, read-only, another leaf's too, or one of NumPy's scalars
                node.grad = array_module(grad).array(grad if node.grad is None else node.grad + grad)
            if node.backward is None:
                continue
            parent_grads = _checked(node.backward(grad), node)
            for parent, g in zip(node.parents, parent_grads, strict=True):
                if parent is not None:
                    # a new array, never `+=`: a residual add hands the same array to both parents
                    grads[parent] = parallel.add(grads[parent], g) if parent in grads else g
            node.parents, node.backward, node.freed = (), None, True

    def _upstream_gradient(self, grad: Array | None) -> Array:
        """The `grad` that `backward` was given, or 1, as an array of this tensor's shape."""
        if grad is None:
            if self.size != 1:
                raise ValueError(
                    f"backward: expected grad for a tensor of shape {self.shape}; only one entry has a default"
                )
            return array_module(self.data).ones_like(self.data)
        grad = self._numbers(grad, "backward")
        if grad.shape != self.shape:
            raise ValueError(f"backward: expected grad of the tensor's shape {self.shape}, got {grad.shape}")
        return grad

    # ---- arithmetic: each operation next to its gradient

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
        """`other` as a tensor of this one's dtype and device, for operation `name`."""
        y = other if isinstance(other, Tensor) else Tensor(self._numbers(other, name))
        if y.dtype != self.dtype:
            raise TypeError(f"{name}: one operand is {self.dtype}, the other {y.dtype}; convert one of them")
        if not _broadcast(self.shape, y.shape):
            raise ValueError(f"{name}: shapes {self.shape} and {y.shape} do not broadcast")
        return y

    def __add__(self, other: Any) -> Tensor:
        """z = x + y;  dx = dz, dy = dz."""
        x, y = self, self._other(other, "add")
        out = parallel.add(x.data, y.data) if x.shape == y.shape else x.data + y.data
        sides = [(t.shape, t.requires_grad) for t in (x, y)]

        def backward(grad: Array) -> Gradients:
            return tuple([unbroadcast(grad, shape) if wanted else None for shape, wanted in sides])

        return Tensor.from_op(out, (x, y), backward, "add")

    def __mul__(self, other: Any) -> Tensor:
        """z = x y;  dx = dz y, dy = dz x."""
        x, y = self, self._other(other, "mul")
        a, b = x.saved, y.saved

        def backward(grad: Array) -> Gradients:
            dx = unbroadcast(grad * b, x.shape) if x.requires_grad else None
            dy = unbroadcast(grad * a, y.shape) if y.requires_grad else None
            return dx, dy

        return Tensor.from_op(a * b, (x, y), backward, "mul")

    def __truediv__(self, other: Any) -> Tensor:
        """z = x / y;  dx = dz / y, dy = -dz x / y^2."""
        x, y = self, self._other(other, "div")
        a, b = x.saved, y.saved

        def backward(grad: Array) -> Gradients:
            dx = unbroadcast(grad / b, x.shape) if x.requires_grad else None
            dy = unbroadcast(-grad * a / (b * b), y.shape) if y.requires_grad else None
            return dx, dy

        return Tensor.from_op(a / b, (x, y), backward, "div")

    def __pow__(self, exponent: float) -> Tensor:
        """z = x^p for a number p;  dx = dz p x^(p-1)."""
        if not isinstance(exponent, Real):
            raise TypeError("pow: the exponent must be a number; write (y * x.log()).exp() for a tensor y")
        a, p = self.saved, float(exponent)
        xp = array_module(a)

        def backward(grad: Array) -> Gradients:
            return (xp.zeros_like(a) if p == 0 else grad * p * a ** (p - 1),)

        return Tensor.from_op(a**p, (self,), backward, "pow")

    def __neg__(self) -> Tensor:
        """z = -x."""
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
        a, b = x.saved, y.saved

        def backward(grad: Array) -> Gradients:
            dx = unbroadcast(parallel.matmul(grad, b.swapaxes(-1, -2)), a.shape) if x.requires_grad else None
            dy = unbroadcast(parallel.matmul(a.swapaxes(-1, -2), grad), b.shape) if y.requires_grad else None
            return dx, dy

        return Tensor.from_op(parallel.matmul(x.data, y.data), (x, y), backward, "matmul")

    def __rmatmul__(self, other: Any) -> Tensor:
        return Tensor(self._numbers(other, "matmul")) @ self

    def exp(self) -> Tensor:
        """z = e^x;  dx = dz z."""
        out = array_module(self.data).exp(self.data)
        return Tensor.from_op(out, (self,), lambda grad: (grad * out,), "exp")

    def log(self) -> Tensor:
        """z = ln x;  dx = dz / x."""
        a = self.saved
        return Tensor.from_op(array_module(a).log(a), (self,), lambda grad: (grad / a,), "log")

    def sqrt(self) -> Tensor:
        """z = x^(1/2);  dx = dz / (2 sqrt(x))."""
        return self**0.5

    # ---- reductions

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """z = sum of x over `axis` (all axes by default);  dx = dz, repeated along `axis`."""
        xp, shape = array_module(self.data), self.shape
        kept = _kept_shape(shape, axis, "sum")

        def backward(grad: Array) -> Gradients:
            # a copy: BLAS can't read an array in which numbers are repeated, and a product would be 30 times as slow
            return (xp.broadcast_to(grad.reshape(kept), shape).copy(),)

        return Tensor.from_op(xp.asarray(add_up(self.data, axis, keepdims)), (self,), backward, "sum")

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """z = sum of x over `axis` / count."""
        count = _count(self.shape, _kept_shape(self.shape, axis, "mean"), "mean")
        return self.sum(axis, keepdims) * (1 / count)

    def max(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """z = largest x over `axis`;  dx = dz where x is the largest, shared equally among ties."""
        a, kept = self.saved, _kept_shape(self.shape, axis, "max")
        _count(self.shape, kept, "max")
        xp = array_module(a)
        top = a.max(axis=axis, keepdims=True)

        def backward(grad: Array) -> Gradients:
            hit = (a == top).astype(a.dtype)
            return (hit * (grad.reshape(kept) / hit.sum(axis=axis, keepdims=True)),)

        return Tensor.from_op(xp.asarray(top if keepdims else a.max(axis=axis)), (self,), backward, "max")

    # ---- shape

    def reshape(self, *shape: Any) -> Tensor:
        """The same numbers in another shape, x.reshape(2, -1) or x.reshape((2, -1)), where one entry may be -1;  the
        gradient goes back to the old shape."""
        old = self.shape
        out = self.data.reshape(*shape or ((),))  # x.reshape(*()) makes a single number, as x.reshape(()) does
        return Tensor.from_op(out, (self,), lambda grad: (grad.reshape(old),), "reshape")

    def transpose(self, *axes: Any) -> Tensor:
        """Axes in a new order, x.transpose(1, 0) or x.transpose((1, 0)), by default reversed;  the gradient's axes go
        back."""
        axes = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        order = axes or tuple(range(self.ndim))[::-1]
        try:
            out = self.data.transpose(order)
        except (TypeError, ValueError):
            raise ValueError(f"transpose: expected each axis of shape {self.shape} once, got {order}") from None
        back = tuple(int(i) for i in np.argsort([a % self.ndim for a in order]))
        return Tensor.from_op(out, (self,), lambda grad: (grad.transpose(back),), "transpose")

    def __getitem__(self, index: Any) -> Tensor:
        """z = x[index];  dx = dz added in at `index` of an array of zeros (an entry picked twice gathers twice)."""
        xp, shape, dtype = array_module(self.data), self.shape, self.dtype
        parts = index if isinstance(index, tuple) else (index,)
        each_once = all(p is None or p is Ellipsis or isinstance(p, int | slice) for p in parts)
        index = index if each_once else deepcopy(index)  # an index array may change before the backward pass

        def backward(grad: Array) -> Gradients:
            out = xp.zeros(shape, dtype)
            if each_once:
                out[index] = grad
            else:
                xp.add.at(out, index, grad)
            return (out,)

        return Tensor.from_op(xp.asarray(self.data[index]), (self,), backward, "slice")


def topological_order(root: Node) -> list[Node]:
    """All nodes that `root` was computed from, inputs before outputs, each once.

    A loop with its own stack, not a recursion: a net of 1,202 layers is deeper than Python's stack. A node enters the
    list when it is met the second time, after everything below it has been listed.
    """
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, inputs_are_listed = stack.pop()
        if inputs_are_listed:
            order.append(node)
        elif node not in seen:
            if node.freed:
                raise RuntimeError(
                    "backward: this graph was already freed by an earlier backward(); compute the loss again (to use "
                    "two losses of one graph, add them first)"
                )
            seen.add(node)
            stack.append((node, True))
            stack.extend([(parent, False) for parent in node.parents if parent])
    return order


def _checked(grads: Gradients, node: Node) -> Gradients:
    """What the backward function of `node` returned, if it is one gradient of the right shape for each parent."""
    if not isinstance(grads, tuple) or len(grads) != len(node.parents):
        number = len(grads) if isinstance(grads, tuple) else type(grads).__name__
        raise RuntimeError(f"backward of {node.name}: expected a tuple of {len(node.parents)} gradients, got {number}")
    for parent, g in zip(node.parents, grads, strict=True):
        if parent and (g is None or g.shape != parent.shape):
            got = "None" if g is None else f"shape {g.shape}"
            raise RuntimeError(f"backward of {node.name}: expected a gradient of shape {parent.shape}, got {got}")
    return grads


def _as_float_array(data: Any) -> Array:
    """`data` as an array of float32, or of float64 if it is an array of that already."""
    if isinstance(data, Tensor):
        raise TypeError("Tensor: data is a Tensor already; use data.detach() for one without its graph")
    if not hasattr(data, "dtype"):
        data = np.asarray(data)
        if data.dtype == np.float64:  # what NumPy makes of Python's numbers
            data = data.astype(np.float32)
    if not hasattr(data.dtype, "kind"):  # another library's: PyTorch's have a dtype of their own
        raise TypeError(
            f"Tensor: expected an array, got a {type(data).__module__} {type(data).__name__}; convert it first"
        )
    if data.dtype.kind not in "fiub":
        raise TypeError(f"Tensor: expected real numbers, got dtype {data.dtype}")
    if data.dtype not in (np.float32, np.float64):
        native = data.dtype.newbyteorder("=")  # float64 from a file in another machine's byte order stays float64
        data = data.astype(native if native == np.float64 else np.float32)
    # np.asarray also makes arrays of NumPy's scalars and of np.matrix, whose * is no longer ours
    return np.asarray(data) if device_of(data) == "cpu" else data


def add_up(a: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
    """The sum over `axis`, in float64 until it is complete: over leading axes NumPy adds one by one, and in float32
    100,000 addends would cost three digits."""
    return a.sum(axis=axis, dtype=np.float64, keepdims=keepdims).astype(a.dtype)


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum `grad` over the axes along which an operand of `shape` was repeated: copying forward is adding backward."""
    if grad.shape == shape:
        return grad
    in_front = grad.ndim - len(shape)  # axes that broadcasting added
    stretched = tuple(i + in_front for i, n in enumerate(shape) if n == 1 and grad.shape[i + in_front] != 1)
    return add_up(grad, (*range(in_front), *stretched)).reshape(shape)


def check_tensors(op: str, **arguments: Any) -> None:
    """Raise TypeError for an argument that is no Tensor."""
    for name, t in arguments.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: expected {name} to be a Tensor, got {type(t).__name__}; write mr.Tensor({name})")


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether shapes `a` and `b` broadcast together: from the last axis on, lengths are equal or one of them is 1."""
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
    """The number of entries that each output of a reduction from `shape` to `kept` combines."""
    count = math.prod(n for n, k in zip(shape, kept, strict=True) if n != k)
    if count == 0:
        raise ValueError(f"{name}: shape {shape} has no entries along that axis; expected at least one")
    return count


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after another along `axis`;  each gets its own part of the gradient back."""
    if not tensors:
        raise ValueError("concatenate: expected at least one tensor, got none")
    for t in tensors:
        check_tensors("concatenate", tensors=t)
    if len({t.dtype for t in tensors}) > 1:
        raise TypeError(f"concatenate: dtypes differ: {', '.join(str(t.dtype) for t in tensors)}; convert one of them")
    if len({_kept_shape(t.shape, axis, "concatenate") for t in tensors}) > 1:
        raise ValueError(f"concatenate: shapes {', '.join(str(t.shape) for t in tensors)} differ off axis {axis}")
    xp = array_module(tensors[0].data)
    edges = np.cumsum([t.shape[axis] for t in tensors])[:-1].tolist()
    out = xp.concatenate([t.data for t in tensors], axis=axis)
    return Tensor.from_op(out, tensors, lambda grad: tuple(xp.split(grad, edges, axis=axis)), "concatenate")


def pad(x: Tensor, widths: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros around `x`: `widths` holds (before, after) for each axis;  the gradient is cropped back."""
    check_tensors("pad", x=x)
    if len(widths) != x.ndim:
        raise ValueError(f"pad: x has {x.ndim} axes, widths names {len(widths)}")
    if any(min(pair) < 0 for pair in widths):
        raise ValueError(f"pad: widths must be 0 or more, got {widths}")
    inner = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))
    out = array_module(x.data).zeros([sum(pair) + n for pair, n in zip(widths, x.shape, strict=True)], x.dtype)
    out[inner] = x.data
    return Tensor.from_op(out, (x,), lambda grad: (grad[inner],), "pad")
