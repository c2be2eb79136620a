"""Wrong answers to the exercises of chapter 1, and the diagnosis that each must get."""

from minires.course.masters import Wrong

WRONG = [
    Wrong(
        "1.1",
        "= for += in the sum",
        "self.grad += z.grad\n            other.grad += z.grad",
        "self.grad = z.grad\n            other.grad = z.grad",
        "gradient for a: constant ratio 0.5 ... wrong for: a sum that uses a twice",
    ),
    Wrong(
        "1.1",
        "= for += in the product",
        "self.grad += other.data * z.grad\n            other.grad += self.data * z.grad",
        "self.grad = other.data * z.grad\n            other.grad = self.data * z.grad",
        "gradient for a: constant ratio 0.5 ... wrong for: a product that uses a twice",
    ),
    Wrong(
        "1.1",
        "= for += in the sum, for the first only",
        "self.grad += z.grad",
        "self.grad = z.grad",
        "gradient for a: constant ratio 0.5 ... wrong for: the same sum written twice",
    ),
    Wrong(
        "1.1",
        "= for += in the sum, for the second only",
        "other.grad += z.grad",
        "other.grad = z.grad",
        "gradient for a: constant ratio 0.5 ... wrong for: a sum that uses a twice",
    ),
    Wrong(
        "1.1",
        "= for += in the product, for the first only",
        "self.grad += other.data * z.grad",
        "self.grad = other.data * z.grad",
        "gradient for a: constant ratio 0.5 ... wrong for: the same product written twice",
    ),
    Wrong(
        "1.1",
        "= for += in the product, for the second only",
        "other.grad += self.data * z.grad",
        "other.grad = self.data * z.grad",
        "gradient for a: constant ratio 0.5 ... wrong for: a product that uses a twice",
    ),
    Wrong(
        "1.1",
        "factors swapped",
        "self.grad += other.data * z.grad",
        "self.grad += self.data * z.grad",
        "gradient for a: another number ... wrong for: a product; ",
    ),
    Wrong(
        "1.1",
        "upstream gradient forgotten",
        "other.grad += self.data * z.grad",
        "other.grad += self.data",
        "wrong for: a product inside a product",
    ),
    Wrong(
        "1.1",
        "1 for the upstream gradient",
        "self.grad += z.grad",
        "self.grad += 1.0",
        "wrong for: the same sum written twice",
    ),
    Wrong("1.1", "the other parent of a sum forgotten", "other.grad += z.grad", "pass", "gradient for b: all zero"),
    Wrong(
        "1.1",
        "a product has the gradients of a sum",
        "other.grad += self.data * z.grad",
        "other.grad += z.grad",
        "gradient for b: constant ratio 0.5",
    ),
    Wrong(
        "1.1",
        "z divided by one factor for the other factor",
        "self.grad += other.data * z.grad\n            other.grad += self.data * z.grad",
        "self.grad += z.data / self.data * z.grad\n            other.grad += z.data / other.data * z.grad",
        "it stops with ZeroDivisionError ... z.data / self.data ... wrong for: many uses of both, a + b = 0. right",
    ),
    # ---- 1.2
    Wrong(
        "1.2",
        "listed when first met",
        "            seen.add(value)\n",
        "            seen.add(value)\n            order.append(value)\n            continue\n",
        "values are missing",
    ),
    Wrong(
        "1.2",
        "depth first, outputs before inputs",
        "return order",
        "return order[::-1]",
        "comes after 'y', which was made from it ... wrong for: three in a row",
    ),
    Wrong(
        "1.2",
        "depth first, listed on the way down and then reversed",
        "            stack.append((value, True))\n",
        "            order.insert(0, value)\n",
        "'x' comes after 'u', which was made from it. wrong for: a diamond",
    ),
    Wrong("1.2", "no set of values seen", "elif value not in seen:", "else:", "'x' is in the list more than once"),
    Wrong(
        "1.2",
        "neither a set nor a mark: every path is followed",
        "        if parents_are_listed:\n            order.append(value)\n        elif value not in seen:",
        "        if parents_are_listed:\n            if value not in order:\n                order.append(value)\n"
        "        else:",
        "it asks 1,000 times for the parents of ... wrong for: 60 doublings",
    ),
    Wrong(
        "1.2",
        "seen marked when put on the stack",
        "        elif value not in seen:\n            seen.add(value)\n            stack.append((value, True))\n"
        "            stack += [(parent, False) for parent in value.parents]\n",
        "        else:\n            stack.append((value, True))\n            for parent in value.parents:\n"
        "                if parent not in seen:\n                    seen.add(parent)\n"
        "                    stack.append((parent, False))\n",
        "'x' comes after 'u', which was made from it. wrong for: a shortcut as first parent",
    ),
    Wrong(
        "1.2",
        "given values left out",
        "            order.append(value)",
        "            if value.parents:\n                order.append(value)",
        "1 of 1 values are missing from the list, first 'x'",
    ),
    Wrong(
        "1.2",
        "recursive",
        "    while stack:\n        value, parents_are_listed = stack.pop()\n        if parents_are_listed:\n"
        "            order.append(value)\n        elif value not in seen:\n            seen.add(value)\n"
        "            stack.append((value, True))\n"
        "            stack += [(parent, False) for parent in value.parents]\n",
        "    def visit(value):\n        if value not in seen:\n            seen.add(value)\n"
        "            for parent in value.parents:\n                visit(parent)\n"
        "            order.append(value)\n\n    visit(root)\n",
        "it stops with RecursionError ... wrong for: 5,001 values deep",
    ),
    Wrong(
        "1.2",
        "breadth first, what is met again moved to the end",
        "    stack = [(root, False)]\n"
        "    while stack:\n        value, parents_are_listed = stack.pop()\n        if parents_are_listed:\n"
        "            order.append(value)\n        elif value not in seen:\n            seen.add(value)\n"
        "            stack.append((value, True))\n"
        "            stack += [(parent, False) for parent in value.parents]\n    return order\n",
        "    order, queue = [root], [root]\n    while queue:\n        for parent in queue.pop(0).parents:\n"
        "            if parent in order:\n                order.remove(parent)\n            else:\n"
        "                queue.append(parent)\n            order.append(parent)\n    return order[::-1]\n",
        "'x' comes after 'w', which was made from it. wrong for: a shortcut around two. right for: ",
    ),
    Wrong("1.2", "the set returned", "return order", "return seen", "wrong type: a set, expected a list"),
    # ---- 1.3
    Wrong(
        "1.3",
        "nothing summed",
        "    grad = grad.sum(axis=front)\n",
        "    return grad\n",
        "wrong shape: (4, 3), expected (3,). wrong for: a new axis in front",
    ),
    Wrong(
        "1.3",
        "only new axes",
        "return grad.sum(axis=stretched, keepdims=True)",
        "return grad",
        "wrong shape: (4, 3), expected (4, 1). wrong for: an axis stretched",
    ),
    Wrong(
        "1.3",
        "keepdims forgotten",
        "return grad.sum(axis=stretched, keepdims=True)",
        "return grad.sum(axis=stretched)",
        "wrong shape: (4,), expected (4, 1)",
    ),
    Wrong(
        "1.3",
        "the mean instead of the sum",
        "grad = grad.sum(axis=front)",
        "grad = grad.mean(axis=front)",
        "constant ratio 0.25 ... wrong for: a new axis in front",
    ),
    Wrong(
        "1.3",
        "the first copy instead of the sum",
        "    grad = grad.sum(axis=front)\n",
        "    grad = grad[(0,) * len(front)]\n",
        "no known pattern. wrong for: a new axis in front",
    ),
    Wrong(
        "1.3",
        "reshape and hope",
        "return grad.sum(axis=stretched, keepdims=True)",
        "return np.resize(grad, shape)",
        "wrong for: an axis stretched",
    ),
    Wrong(
        "1.3",
        "only one new axis",
        "grad = grad.sum(axis=front)",
        "grad = grad.sum(axis=0) if front else grad",
        "wrong shape: (5, 3), expected (3,). wrong for: two new axes",
    ),
    Wrong(
        "1.3",
        "axes matched from the left",
        "front = tuple(range(grad.ndim - len(shape)))",
        "front = tuple(range(len(shape), grad.ndim))",
        "wrong shape: (4,), expected (3,). wrong for: a new axis in front",
    ),
    Wrong(
        "1.3",
        "every axis kept whose length is in the shape",
        "    front = tuple(range(grad.ndim - len(shape)))\n    grad = grad.sum(axis=front)\n"
        "    stretched = tuple(i for i, n in enumerate(shape) if n == 1)\n"
        "    return grad.sum(axis=stretched, keepdims=True)\n",
        "    others = tuple(i for i, n in enumerate(grad.shape) if n not in shape)\n"
        "    return grad.sum(axis=others).reshape(shape)\n",
        "it stops with ValueError: cannot reshape array of size 9 into shape (3,) ... "
        "wrong for: a new axis as long as the old one; a square, an axis stretched. right for: ",
    ),
    Wrong(
        "1.3",
        "axes matched by length, from the left",
        "    front = tuple(range(grad.ndim - len(shape)))\n    grad = grad.sum(axis=front)\n"
        "    stretched = tuple(i for i, n in enumerate(shape) if n == 1)\n"
        "    return grad.sum(axis=stretched, keepdims=True)\n",
        "    left, others = list(shape), []\n    for i, n in enumerate(grad.shape):\n"
        "        if n in left:\n            left.remove(n)\n        else:\n            others.append(i)\n"
        "    return grad.sum(axis=tuple(others)).reshape(shape)\n",
        "no known pattern ... wrong for: a new axis as long as the old one. right for: ",
    ),
    Wrong(
        "1.3",
        "float64 hard-wired",
        "    grad = grad.sum(axis=front)\n",
        "    grad = grad.sum(axis=front, dtype=np.float64)\n",
        "wrong dtype: float64, expected float32",
    ),
    Wrong(
        "1.3",
        "input changed",
        "    grad = grad.sum(axis=front)\n",
        "    for i in range(1, len(grad) if front else 0):\n        grad[0] += grad[i]\n"
        "    grad = grad[(0,) * len(front)]\n",
        "input modified: your answer changed grad",
    ),
    # ---- 1.4
    Wrong(
        "1.4",
        "upstream gradient forgotten",
        "grad * (1 - z * z)",
        "1 - z * z",
        "the upstream gradient is missing as a factor. wrong for: a random upstream gradient",
    ),
    Wrong("1.4", "local slope forgotten", "grad * (1 - z * z)", "grad", "the upstream gradient came through unchanged"),
    Wrong("1.4", "x for z", "(1 - z * z)", "(1 - x.data * x.data)", "gradient for x: "),
    Wrong("1.4", "the square forgotten", "(1 - z * z)", "(1 - z)", "gradient for x: no known pattern"),
    Wrong("1.4", "sign", "(1 - z * z)", "(z * z - 1)", "gradient for x: constant ratio -1"),
    Wrong(
        "1.4",
        "no tuple",
        "return (grad * (1 - z * z),)",
        "return grad * (1 - z * z)",
        "backward of tanh: expected a tuple of 1 gradients",
    ),
    Wrong(
        "1.4",
        "upstream gradient changed",
        "        return (grad * (1 - z * z),)",
        "        grad *= 1 - z * z\n        return (grad,)",
        "input modified: backward changed the gradient that it was given",
    ),
    Wrong(
        "1.4",
        "forward in place",
        "np.tanh(x.data)",
        "np.tanh(x.data, out=x.data)",
        "input modified: the forward pass changed x.data",
    ),
    Wrong(
        "1.4",
        "float32 hard-wired",
        "np.tanh(x.data)",
        "np.tanh(x.data).astype(np.float32)",
        "z: wrong dtype: float32, expected float64",
    ),
    Wrong(
        "1.4",
        "the formula with exponentials",
        "z = np.tanh(x.data)",
        "z = (np.exp(x.data) - np.exp(-x.data)) / (np.exp(x.data) + np.exp(-x.data))",
        "z: NaN or infinity in 2 of 5 entries. wrong for: large numbers",
    ),
    Wrong(
        "1.4",
        "a Tensor without a graph",
        'return Tensor.from_op(z, (x,), backward, "tanh")',
        "return Tensor(z)",
        "z was not made from x in one operation",
    ),
    Wrong(
        "1.4",
        "an array returned",
        'return Tensor.from_op(z, (x,), backward, "tanh")',
        "return z",
        "wrong type: it returns an array of shape (2, 3), expected a Tensor",
    ),
]
