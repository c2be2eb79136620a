"""All of minires on one page: autograd, convolution, batch norm, a residual net and SGD, in NumPy alone.

Each operation computes y and, from dy = dL/dy, the gradients of its inputs; its docstring has both formulas.
Images are (N, H, W, C): N of them, H x W pixels, C channels. Kernels are (3, 3, C, F): 3 x 3 pixels, F new channels.
"""

import numpy as np


class Tensor:
    """An array that remembers its parents, the tensors it was made from, and how its gradient becomes theirs."""

    def __init__(self, data, parents=(), gradients=lambda dy: ()):
        self.data, self.grad, self.parents, self.gradients = data, 0, parents, gradients
        self.depth = 1 + max((parent.depth for parent in parents), default=0)

    def __add__(self, other):
        """y = a + b;  da = dy,  db = dy."""
        return Tensor(self.data + other.data, (self, other), lambda dy: (dy, dy))

    def backward(self):
        """Compute the gradient dL/dt of every tensor t that this one, L, was made from."""
        self.grad, waiting = np.ones_like(self.data), {self}
        while waiting:
            t = max(waiting, key=lambda t: t.depth)  # the deepest: its gradient is complete
            waiting.remove(t)
            for parent, grad in zip(t.parents, t.gradients(t.grad), strict=True):
                parent.grad = parent.grad + grad  # gradients add
                waiting.add(parent)


def relu(x):
    """y = max(0, x);  dx = dy where x > 0, else 0."""
    return Tensor(np.maximum(x.data, 0), (x,), lambda dy: (dy * (x.data > 0),))


def conv(x, w, stride=1):
    """y = patches w, a patch being 3 x 3 pixels in a row (im2col);  dw = patches^T dy,  dpatches = dy w^T."""
    _, height, width, _ = x.data.shape
    padded = np.pad(x.data, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [np.s_[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    patches = np.concatenate([padded[tap] for tap in taps], axis=3)  # (N, H / stride, W / stride, 9*C)
    matrix = w.data.reshape(patches.shape[3], -1)  # (9*C, F)

    def gradients(dy):
        dw = np.tensordot(patches, dy, ((0, 1, 2), (0, 1, 2)))  # patches^T dy: (9*C, F)
        dpadded = np.zeros_like(padded)
        for tap, grad in zip(taps, np.split(dy @ matrix.T, 9, axis=3), strict=True):
            dpadded[tap] += grad  # a pixel lies in several patches: gradients add
        return dpadded[:, 1:-1, 1:-1], dw.reshape(w.data.shape)

    return Tensor(patches @ matrix, (x, w), gradients)


def batch_norm(x, gamma, beta):
    """y = gamma z + beta,  z = (x - mean) / std of each channel;  dgamma = sum of dy z,  dbeta = sum of dy."""
    pixels = (0, 1, 2)  # a channel's, in all images of the batch (to test a net, the library keeps running averages)
    std = np.sqrt(x.data.var(pixels) + 1e-5)
    z = (x.data - x.data.mean(pixels)) / std

    def gradients(dy):
        via_mean, via_std = dy.mean(pixels), z * (dy * z).mean(pixels)  # x moves mean and std, too
        return gamma.data / std * (dy - via_mean - via_std), (dy * z).sum(pixels), dy.sum(pixels)

    return Tensor(gamma.data * z + beta.data, (x, gamma, beta), gradients)


def halve(x):
    """Option A: x for a stage of half the size and twice the channels, every second pixel between zeros."""
    c = x.data.shape[3] // 2

    def gradients(dy):
        dx = np.zeros_like(x.data)
        dx[:, ::2, ::2] = dy[..., c:-c]
        return (dx,)

    return Tensor(np.pad(x.data[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (c, c))), (x,), gradients)


def mean_pool(x):
    """y = mean over the pixels, (N, H, W, C) -> (N, C);  dx = dy / (H W) at each of them."""
    share = np.ones_like(x.data) / x.data[0, :, :, 0].size
    return Tensor(x.data.mean((1, 2)), (x,), lambda dy: (dy[:, None, None] * share,))


def linear(x, w, b):
    """y = x w + b, (N, C) -> (N, F);  dx = dy w^T,  dw = x^T dy,  db = sum of dy."""
    return Tensor(x.data @ w.data + b.data, (x, w, b), lambda dy: (dy @ w.data.T, x.data.T @ dy, dy.sum(0)))


def cross_entropy(logits, labels):
    """L = mean of -ln p at the labels,  p = softmax(logits);  dlogits = (p - target) / N,  target 1 at the label."""
    shifted = logits.data - logits.data.max(axis=1, keepdims=True)  # the same p, without overflow
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    target, n = np.eye(log_p.shape[1], dtype=log_p.dtype)[labels], len(labels)
    return Tensor(-(target * log_p).sum() / n, (logits,), lambda dy: (dy * (np.exp(log_p) - target) / n,))


class ResNet:
    """The CIFAR-10 net of 6n + 2 layers: 1 + 2n convolutions to 16 channels, 2n to 32, 2n to 64, and a linear layer."""

    def __init__(self, n, rng):
        widths = [3] + (1 + 2 * n) * [16] + 2 * n * [32] + 2 * n * [64]
        layers = []
        for c, f in zip(widths[:-1], widths[1:], strict=True):  # He initialisation: weights of variance 2 / (9 c)
            layers.append((rng.standard_normal((3, 3, c, f)) * np.sqrt(2 / (9 * c)), np.ones(f), np.zeros(f)))
        layers.append((rng.standard_normal((64, 10)) * 0.01, np.zeros(10)))
        self.layers = [[Tensor(array.astype(np.float32)) for array in layer] for layer in layers]
        self.parameters = [p for layer in self.layers for p in layer]

    def __call__(self, x):
        (w, *norm), *convolutions, last = self.layers
        x = relu(batch_norm(conv(x, w), *norm))
        for (w1, *norm1), (w2, *norm2) in zip(convolutions[::2], convolutions[1::2], strict=True):
            stride = w1.data.shape[3] // w1.data.shape[2]  # 2 where the channels double
            residual = relu(batch_norm(conv(x, w1, stride), *norm1))
            residual = batch_norm(conv(residual, w2), *norm2)
            shortcut = x if stride == 1 else halve(x)
            x = relu(residual + shortcut)  # y = relu(F(x) + x)
        return linear(mean_pool(x), *last)


def train(net, batches, lr=0.1, momentum=0.9, decay=1e-4):
    """SGD, one step a batch, yielding its loss:  v = momentum v + dp + decay p,  p = p - lr v  for each parameter p."""
    velocity = dict.fromkeys(net.parameters, 0)
    for x, labels in batches:
        loss = cross_entropy(net(Tensor(x)), labels)
        loss.backward()
        for p in net.parameters:
            velocity[p] = momentum * velocity[p] + p.grad + decay * p.data
            p.data, p.grad = p.data - lr * velocity[p], 0
        yield float(loss.data)


if __name__ == "__main__":  # learn ten random pictures, seen through noise
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((10, 16, 16, 3))
    batches = ((pictures[y] + rng.standard_normal((32, 16, 16, 3)), y) for y in rng.integers(10, size=(50, 32)))
    for step, loss in enumerate(train(ResNet(1, rng), batches)):
        print(f"step {step}: loss {loss:.3f}")
