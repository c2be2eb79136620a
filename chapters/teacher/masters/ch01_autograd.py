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
    """

    def __init__(self, data: float, parents: tuple[Value, ...] = ()):
        self.data = data
        self.grad = 0.0
        self.parents = parents
        self.give = lambda: None

    def __add__(self, other: Value) -> Value:
        z = Value(self.data + other.data, (self, other))

        def give() -> None:
            ### BEGIN SOLUTION
            self.grad += z.grad
            other.grad += z.grad
            ### END SOLUTION

        z.give = give
        return z

    def __mul__(self, other: Value) -> Value:
        z = Value(self.data * other.data, (self, other))

        def give() -> None:
            ### BEGIN SOLUTION
            self.grad += other.data * z.grad
            other.grad += self.data * z.grad
            ### END SOLUTION

        z.give = give
        return z


def topological_order(root: Any) -> list[Any]:
    """1.2: every value that `root` was computed from, and root itself, inputs before outputs.

    value.parents is a tuple of the values that a value was made from; it is empty for those that were given.

    Returns a list with each value once, after all of its parents; so root is the last.
    Graphs may be 5,000 values deep, more than Python's stack can hold, and there may be far too many paths to a value
    to follow them one by one.
    """
    ### BEGIN SOLUTION
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(root, False)]
    while stack:
        value, parents_are_listed = stack.pop()
        if parents_are_listed:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack += [(parent, False) for parent in value.parents]
    return order
    ### END SOLUTION


def unbroadcast(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """1.3: sum a gradient over the axes along which NumPy has repeated an operand of this shape.

    grad: dL/dz, of the shape of the result z. shape: that of the operand x.

    Returns dL/dx, an array of that shape, with grad's dtype; each entry of x gets the sum of the gradients of all the
    places that it was copied to. NumPy copies in two ways: it puts new axes in front, and it stretches axes of
    length 1.
    """
    ### BEGIN SOLUTION
    front = tuple(range(grad.ndim - len(shape)))
    grad = grad.sum(axis=front)
    stretched = tuple(i for i, n in enumerate(shape) if n == 1)
    return grad.sum(axis=stretched, keepdims=True)
    ### END SOLUTION


def tanh(x: Tensor) -> Tensor:
    """1.4: the hyperbolic tangent of every entry, as one operation of the engine.

    z = tanh x = (e^x - e^-x) / (e^x + e^-x),      dz/dx = 1 - z^2

    x: a Tensor of any shape. z: a Tensor of the same shape and dtype. np.tanh computes it, for large numbers too.

    Make it as the operations in minires/tensor.py are made: compute z from x.data, write a function backward(grad)
    that takes dL/dz and returns the tuple (dL/dx,), and end with Tensor.from_op(z, (x,), backward, "tanh").
    Don't change x.data or grad: others use them too.
    """
    ### BEGIN SOLUTION
    z = np.tanh(x.data)

    def backward(grad: np.ndarray) -> tuple[np.ndarray]:
        return (grad * (1 - z * z),)

    return Tensor.from_op(z, (x,), backward, "tanh")
    ### END SOLUTION
