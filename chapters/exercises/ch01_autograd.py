# Write your answers here, then run: python -m minires check
"""Exercises of chapter 1, "A value that remembers".

1.1 Value               the gradients of + and *, for single numbers
1.2 topological_order   the order of the backward pass
1.3 unbroadcast         the backward pass of broadcasting
1.4 tanh                a new operation for arrays
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.tensor import Tensor


class Value:
    """1.1: a number that remembers which numbers it was made from, and how to pass its gradient on to them.

    data: the number. grad: dL/d(this number), 0.0 at first. parents: the Values it was made from.
    give: a function without arguments. When it is called, this value's own grad is complete, and it adds
    its share to the grad of each parent:

        z = x + y:   dL/dx gets dL/dz,     dL/dy gets dL/dz
        z = x y:     dL/dx gets dL/dz y,   dL/dy gets dL/dz x

    In the chapter, a step returned the gradients and the backward pass added them up. Here each value adds by itself.
    A value may be used more than once, even twice in one product. Write the bodies of the two functions `give`.

    Level 1, about 4 lines.
    """

    def __init__(self, data: float, parents: tuple[Value, ...] = ()):
        self.data = data
        self.grad = 0.0
        self.parents = parents
        self.give = lambda: None

    def __add__(self, other: Value) -> Value:
        z = Value(self.data + other.data, (self, other))

        def give() -> None:
            raise NotImplementedError("exercise 1.1")

        z.give = give
        return z

    def __mul__(self, other: Value) -> Value:
        z = Value(self.data * other.data, (self, other))

        def give() -> None:
            raise NotImplementedError("exercise 1.1")

        z.give = give
        return z


def topological_order(root: Any) -> list[Any]:
    """1.2: every value that `root` was computed from, and root itself, inputs before outputs.

    value.parents is a tuple of the values that a value was made from; it is empty for those that were given.

    Returns a list with each value once, after all of its parents; so root is the last.
    Graphs may be 5,000 values deep, more than Python's stack can hold, and there may be far too many paths to a value
    to follow them one by one.

    Level 3, about 12 lines.
    """
    raise NotImplementedError("exercise 1.2")


def unbroadcast(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """1.3: sum a gradient over the axes along which NumPy has repeated an operand of this shape.

    grad: dL/dz, of the shape of the result z. shape: that of the operand x.

    Returns dL/dx, an array of that shape, with grad's dtype; each entry of x gets the sum of the gradients of all the
    places that it was copied to. NumPy copies in two ways: it puts new axes in front, and it stretches axes of
    length 1.

    Level 2, about 4 lines.
    """
    raise NotImplementedError("exercise 1.3")


def tanh(x: Tensor) -> Tensor:
    """1.4: the hyperbolic tangent of every entry, as one operation of the engine.

    z = tanh x = (e^x - e^-x) / (e^x + e^-x),      dz/dx = 1 - z^2

    x: a Tensor of any shape. z: a Tensor of the same shape and dtype. np.tanh computes it, for large numbers too.

    Make it as the operations in minires/tensor.py are made: compute z from x.data, write a function backward(grad)
    that takes dL/dz and returns the tuple (dL/dx,), and end with Tensor.from_op(z, (x,), backward, "tanh").
    Don't change x.data or grad: others use them too.

    Level 1, about 4 lines.
    """
    raise NotImplementedError("exercise 1.4")
