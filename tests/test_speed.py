"""Counts that stand for speed (a timed test would flake), and threads that change nothing but the time."""

import tracemalloc

import numpy as np
import pytest

import minires as mr
from minires import backend, conv
from minires.tensor import topological_order


@pytest.fixture
def fixed_work():
    """One thread and a known chunk size, put back afterwards."""
    threads, chunk = backend._threads, backend.CHUNK_BYTES
    mr.set_threads(1)
    backend.CHUNK_BYTES = 2**20
    yield
    backend.CHUNK_BYTES = chunk
    backend._threads = threads
    backend._forget_pool()


def batch(n=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 32, 32, 3), np.float32), rng.integers(0, 10, n)


def gradients(net, x, y):
    net.zero_grad()
    mr.cross_entropy(net(mr.Tensor(x)), y).backward()
    return [p.grad for p in net.parameters()]


def test_number_of_graph_nodes(fixed_work):
    x, y = batch(2)
    order = topological_order(mr.cross_entropy(mr.build("resnet20")(mr.Tensor(x)), y))
    operations = [t.node.name for t in order if t.node]
    # 19 convolutions, a batch norm each, 9 residual adds; nothing else may creep into a block
    assert operations.count("conv2d") == 19
    assert operations.count("batch_norm") == 19
    assert operations.count("add_relu") == 9
    # two shortcuts of a slice and a pad; pooling's sum and mul; matmul, add; log_softmax, mul, sum, mul
    assert len(operations) == 19 + 19 + 9 + 4 + 2 + 2 + 4


def test_number_and_size_of_im2col_calls(fixed_work, monkeypatch):
    sizes = []
    call = conv.Im2col.__call__

    def counted(self, x):
        cols = call(self, x)
        sizes.append(cols.nbytes)
        return cols

    monkeypatch.setattr(conv.Im2col, "__call__", counted)
    x, y = batch(16)
    gradients(mr.build("resnet20"), x, y)
    # The columns of one image take 9/16, 9/32, 9/64 MiB at the three stages, so a chunk of 1 MiB holds 1, 3 or 7
    # images and 16 images are 16, 6 or 3 chunks; fewer where a convolution has few channels or stride 2.
    forward = 2 + 6 * 16 + 3 + 5 * 6 + 2 + 5 * 3
    backward = 16 + 6 * 16 + 6 + 5 * 6 + 3 + 5 * 3  # one im2col for both gradients
    assert len(sizes) == forward + backward
    assert max(sizes) <= backend.CHUNK_BYTES


def test_memory_of_a_step(fixed_work):
    x, y = batch(16)
    net = mr.build("resnet20")
    gradients(net, x, y)
    tracemalloc.start()
    gradients(net, x, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # what backward needs: for each layer its convolution's and its norm's output, for each block the sum
    stages = ((32 * 32 * 16, 7), (16 * 16 * 32, 6), (8 * 8 * 64, 6))
    kept = 16 * 4 * sum(size * (2 * layers + 3) for size, layers in stages)
    assert peak < 1.25 * kept


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_run_repeats_bit_for_bit_for_the_same_number_of_threads(fixed_work, threads):
    mr.set_threads(threads)
    x, y = batch()
    first, second = (gradients(mr.build("resnet20"), x, y) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def test_threads_change_results_by_rounding_only(fixed_work):
    x, y = batch(13)
    net = mr.build("bottleneck29", shortcut="B").astype(np.float64)
    one = gradients(net, x.astype(np.float64), y)
    for threads in (2, 5, 16):
        mr.set_threads(threads)
        for a, b in zip(gradients(net, x.astype(np.float64), y), one, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.abs(b).max())
