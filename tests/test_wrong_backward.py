"""The checker can fail: wrong backward functions, each caught and each described.

Every operation here is right but for one planted mistake, and `mistake=""` is the control: it must pass, so
that it is the mistake that the checker sees, and nothing else.
"""

import numpy as np
import pytest

from minires.gradcheck import GradientError, away_from_kinks, gradcheck
from minires.tensor import Tensor, unbroadcast


def draw(*shape, seed=1):
    return away_from_kinks(np.random.default_rng(seed), shape)


# ---- operations with a place for one mistake


def relu(mistake=""):
    def relu(x):
        mask = x.data > 0
        out = np.maximum(x.data, 0, out=x.data if mistake == "forward in place" else None)

        def backward(grad):
            if mistake == "mask missing":
                return (grad,)
            if mistake == "mask inverted":
                return (grad * ~mask,)
            if mistake == "upstream in place":
                grad *= mask
                return (grad,)
            if mistake == "0 / 0":
                with np.errstate(invalid="ignore"):
                    return (grad * out / out,)
            if mistake == "float32":
                return ((grad * mask).astype(np.float32),)
            if mistake == "zeros":
                return (np.zeros_like(grad),)
            return (grad * mask,)

        return Tensor.from_op(out, (x,), backward, "relu")

    return relu


def mul(mistake=""):
    def mul(x, y):
        def backward(grad):
            dx, dy = grad * y.data, unbroadcast(grad * x.data, y.shape)
            if mistake == "swapped":
                return dy, dx
            if mistake == "factor 2":
                return 2 * dx, dy
            if mistake == "sign":
                return dx, -dy
            if mistake == "not summed":
                return dx, grad * x.data
            if mistake == "input in place":
                y.data *= grad
                return y.data, dy
            if mistake == "one gradient short":
                return (dx,)
            if mistake == "None":
                return dx, None
            return dx, dy

        return Tensor.from_op(x.data * y.data, (x, y), backward, "mul")

    return mul


def matmul(mistake=""):
    def matmul(x, y):
        def backward(grad):
            dx, dy = grad @ y.data.T, x.data.T @ grad
            if mistake == "dx transposed":
                return y.data @ grad.T, dy
            if mistake == "dy without x":
                return dx, grad
            return dx, dy

        return Tensor.from_op(x.data @ y.data, (x, y), backward, "matmul")

    return matmul


def residual(mistake=""):
    def residual(x, w):
        """y = w x + x"""

        def backward(grad):
            dx = grad * w.data + grad
            if mistake == "shortcut overwritten":
                dx = grad * w.data
            return dx, (grad * x.data).sum(0)

        return Tensor.from_op(w.data * x.data + x.data, (x, w), backward, "residual")

    return residual


def take(mistake=""):
    rows = [0, 2, 2]

    def take(x):
        def backward(grad):
            dx = np.zeros_like(x.data)
            if mistake == "= for +=":
                dx[rows] = grad
            else:
                np.add.at(dx, rows, grad)
            return (dx,)

        return Tensor.from_op(x.data[rows], (x,), backward, "take")

    return take


def mean(mistake=""):
    def mean(x):
        def backward(grad):
            dx = np.broadcast_to(grad, x.shape)
            return (dx if mistake == "1/N missing" else dx / len(x),)

        return Tensor.from_op(x.data.mean(0), (x,), backward, "mean")

    return mean


def softmax(mistake=""):
    def softmax(x):
        e = np.exp(x.data - x.data.max(-1, keepdims=True))
        y = e / e.sum(-1, keepdims=True)

        def backward(grad):
            if mistake == "diagonal only":
                return (grad * y * (1 - y),)
            return (y * (grad - (grad * y).sum(-1, keepdims=True)),)

        return Tensor.from_op(y, (x,), backward, "softmax")

    return softmax


def cross_entropy(mistake=""):
    labels = np.array([2, 0, 1, 2, 2])

    def cross_entropy(logits):
        n = len(labels)
        e = np.exp(logits.data - logits.data.max(1, keepdims=True))
        probability = e / e.sum(1, keepdims=True)

        def backward(grad):
            target = np.eye(3)[labels] * (mistake != "target missing")
            return (grad * (probability - target) / (1 if mistake == "1/N missing" else n),)

        loss = -np.log(probability[np.arange(n), labels]).mean()
        return Tensor.from_op(np.asarray(loss), (logits,), backward, "cross_entropy")

    return cross_entropy


def dropout(mistake=""):
    rng = np.random.default_rng(0)
    mask = (rng.random((6, 5)) > 0.25) / 0.75

    def dropout(x):
        def backward(grad):
            if mistake == "new mask in backward":
                return (grad * (rng.random(x.shape) > 0.25) / 0.75,)
            if mistake == "not scaled":
                return (grad * (mask > 0),)
            return (grad * mask,)

        drawn = (rng.random(x.shape) > 0.25) / 0.75 if mistake == "new mask in forward" else mask
        return Tensor.from_op(x.data * drawn, (x,), backward, "dropout")

    return dropout


def batch_norm(mistake=""):
    def batch_norm(x):
        s = 1 / np.sqrt(x.data.var(0) + 1e-5)
        xhat = (x.data - x.data.mean(0)) * s

        def backward(grad):
            if mistake == "zeros":
                return (np.zeros_like(grad),)
            mean_term = 0 if mistake == "mean term missing" else grad.mean(0)
            variance_term = 0 if mistake == "variance term missing" else xhat * (grad * xhat).mean(0)
            return ((grad - mean_term - variance_term) * s,)

        return Tensor.from_op(xhat, (x,), backward, "batch_norm")

    return batch_norm


def windows(x, k):
    """(N, H, W, C) -> (N, H/k, W/k, k, k, C)"""
    n, h, w, c = x.shape
    return x.reshape(n, h // k, k, w // k, k, c).swapaxes(2, 3)


def max_pool(mistake=""):
    def max_pool(x):
        patch = windows(x.data, 2)
        out = patch.max((3, 4))

        def backward(grad):
            hit = patch == out[:, :, :, None, None]
            if mistake == "to every entry":
                hit = np.ones_like(hit)
            return ((hit * grad[:, :, :, None, None]).swapaxes(2, 3).reshape(x.shape),)

        return Tensor.from_op(out, (x,), backward, "max_pool")

    return max_pool


def avg_pool(mistake=""):
    def avg_pool(x):
        def backward(grad):
            dx = grad.repeat(2, 1).repeat(2, 2)
            return (dx if mistake == "1/k^2 missing" else dx / 4,)

        return Tensor.from_op(windows(x.data, 2).mean((3, 4)), (x,), backward, "avg_pool")

    return avg_pool


def conv2d(mistake="", stride=1, padding=0):
    """Cross-correlation by a loop over the kernel's places. x: (N, H, W, C); w: (KH, KW, C, F)."""

    def conv2d(x, w):
        p, (kh, kw, _, _), (_, h, width, _) = padding, w.shape, x.shape
        padded = np.pad(x.data, ((0, 0), (p, p), (p, p), (0, 0)))
        oh, ow = (h + 2 * p - kh) // stride + 1, (width + 2 * p - kw) // stride + 1
        places = [(i, j) for i in range(kh) for j in range(kw)]

        def under(i, j, stride):
            """Where w[i, j] meets the image: one pixel for each output pixel."""
            return np.s_[:, i : i + stride * oh : stride, j : j + stride * ow : stride]

        def backward(grad):
            dx, dw = np.zeros_like(padded), np.zeros_like(w.data)
            for i, j in places:
                dw[i, j] = np.tensordot(padded[under(i, j, stride)], grad, ((0, 1, 2), (0, 1, 2)))
                if mistake == "= for +=":
                    dx[under(i, j, stride)] = grad @ w.data[i, j].T
                elif mistake == "stride ignored":
                    dx[under(i, j, 1)] += grad @ w.data[i, j].T
                elif mistake == "H and W swapped in dx":
                    dx[under(i, j, stride)] += grad @ w.data[j, i].T
                else:
                    dx[under(i, j, stride)] += grad @ w.data[i, j].T
            if mistake == "H and W swapped in dw":
                dw = dw.swapaxes(0, 1)
            if mistake == "kernel turned":
                dw = dw[::-1, ::-1]
            if mistake == "padding not cropped":
                return dx, dw
            if mistake == "padding cropped at the end":
                return dx[:, :h, :width], dw
            dx = dx[:, p : p + h, p : p + width]
            if mistake == "border forgotten":
                dx[:, [0, -1]] = 0
                dx[:, :, [0, -1]] = 0
            return dx, dw

        out = sum(padded[under(i, j, stride)] @ w.data[i, j] for i, j in places)
        return Tensor.from_op(out, (x, w), backward, "conv2d")

    return conv2d


IMAGE, KERNEL = draw(2, 5, 6, 3), draw(3, 3, 3, 2, seed=2)
PAIR, ROWS, LOGITS = [draw(3, 4), draw(4, seed=2)], [draw(6, 5)], [draw(5, 3)]

WRONG = [  # the operation, its planted mistake, its inputs, what must be said
    (relu, "zeros", ROWS, "relu: wrong gradient for x (input 0): all zero"),
    (relu, "mask missing", ROWS, "for x (input 0): the upstream gradient came through unchanged"),
    (relu, "mask inverted", ROWS, "30 of 30 entries are wrong"),
    (relu, "forward in place", ROWS, "relu: an input was overwritten: the forward pass changed x"),
    (relu, "upstream in place", ROWS, "relu: the upstream gradient was overwritten"),
    (relu, "0 / 0", ROWS, "for x (input 0): NaN or infinity in"),
    (relu, "float32", ROWS, "for x (input 0): wrong dtype: float32, expected float64"),
    (mul, "factor 2", PAIR, "for x (input 0): constant ratio 2:"),
    (mul, "sign", PAIR, "for y (input 1): constant ratio -1:"),
    (mul, "not summed", PAIR, "expected a gradient of shape (4,), got shape (3, 4)"),
    (mul, "swapped", [draw(3, 4), draw(3, 4, seed=2)], "for y (input 1): no known pattern"),
    (mul, "input in place", [draw(3, 4), draw(3, 4, seed=2)], "an input was overwritten: backward changed y"),
    (mul, "one gradient short", PAIR, "mul: expected a tuple of 2 gradients, got 1"),
    (mul, "None", PAIR, "expected a gradient of shape (4,), got None"),
    (matmul, "dx transposed", [draw(4, 4), draw(4, 4, seed=2)], "for x (input 0): transposed: "),
    (matmul, "dx transposed", [draw(2, 4), draw(4, 3, seed=2)], "of shape (2, 4), got shape (4, 2)"),
    (matmul, "dy without x", [draw(4, 4), draw(4, 4, seed=2)], "for y (input 1): the upstream gradient came"),
    (residual, "shortcut overwritten", PAIR, "for x (input 0): the upstream gradient is missing from"),
    (take, "= for +=", [draw(3, 2)], "2 of 6 entries are wrong"),
    (mean, "1/N missing", ROWS, "for x (input 0): constant ratio 6:"),
    (softmax, "diagonal only", ROWS, "softmax: wrong gradient for x (input 0): no known pattern"),
    (cross_entropy, "1/N missing", LOGITS, "for logits (input 0): constant ratio 5:"),
    (cross_entropy, "target missing", LOGITS, "5 of 15 entries are wrong"),
    (dropout, "new mask in backward", ROWS, "a second call differs: the same inputs gave another gradient"),
    (dropout, "new mask in forward", ROWS, "a second call differs: the same inputs gave another output"),
    (dropout, "not scaled", ROWS, "for x (input 0): constant ratio 0.75:"),
    (batch_norm, "zeros", ROWS, "batch_norm: wrong gradient for x (input 0): all zero"),
    (batch_norm, "mean term missing", ROWS, "for x (input 0): off by one constant per channel (last axis)"),
    (batch_norm, "variance term missing", ROWS, "30 of 30 entries are wrong"),
    (max_pool, "to every entry", [draw(2, 4, 6, 3)], "not zero where it should be, right elsewhere"),
    (avg_pool, "1/k^2 missing", [draw(2, 4, 6, 3)], "for x (input 0): constant ratio 4:"),
    (conv2d, "= for +=", [IMAGE, KERNEL], "conv2d: wrong gradient for x (input 0): no known pattern"),
    (conv2d, "H and W swapped in dx", [IMAGE, KERNEL], "conv2d: wrong gradient for x (input 0): "),
    (
        conv2d,
        "H and W swapped in dw",
        [IMAGE, KERNEL],
        "for w (input 1): transposed: its axes are in the order (1, 0, 2, 3)",
    ),
    (conv2d, "kernel turned", [IMAGE, KERNEL], "for w (input 1): reversed along axes (0, 1)"),
]
WRONG_CONV = [  # the same with a stride and a padding
    ("stride ignored", 2, 0, "conv2d: wrong gradient for x (input 0): no known pattern"),
    ("padding not cropped", 1, 1, "expected a gradient of shape (2, 5, 6, 3), got shape (2, 7, 8, 3)"),
    ("padding cropped at the end", 1, 1, "for x (input 0): shifted by 1 along axes (1, 2)"),
    ("border forgotten", 1, 1, "for x (input 0): only the borders are wrong"),
]


@pytest.mark.parametrize("op, mistake, inputs, words", WRONG, ids=[f"{w[0].__name__}: {w[1]}" for w in WRONG])
def test_a_mistake_is_caught_and_described(op, mistake, inputs, words):
    gradcheck(op(), inputs)
    with pytest.raises(GradientError) as caught:
        gradcheck(op(mistake), inputs)
    assert words in str(caught.value)


@pytest.mark.parametrize("mistake, stride, padding, words", WRONG_CONV, ids=[w[0] for w in WRONG_CONV])
def test_a_mistake_with_stride_or_padding_is_caught_and_described(mistake, stride, padding, words):
    gradcheck(conv2d("", stride, padding), [IMAGE, KERNEL])
    with pytest.raises(GradientError) as caught:
        gradcheck(conv2d(mistake, stride, padding), [IMAGE, KERNEL])
    assert words in str(caught.value)
    assert "for w" not in str(caught.value)


def test_a_wrong_dx_leaves_dw_unaccused():
    with pytest.raises(GradientError) as caught:
        gradcheck(conv2d("= for +="), [IMAGE, KERNEL])
    assert "for x (input 0)" in str(caught.value) and "for w" not in str(caught.value)


def test_a_sum_as_the_loss_would_miss_an_all_zero_batch_norm():
    wrong = batch_norm("zeros")
    assert gradcheck(lambda x: wrong(x).sum(), ROWS)  # the sum of a batch norm's outputs never changes
    with pytest.raises(GradientError, match="all zero"):
        gradcheck(wrong, ROWS)
