"""Counts that stand for speed (a timed test would flake), and threads that change nothing but the time."""

import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import minires as mr
from minires import conv, parallel
from minires.tensor import topological_order


@pytest.fixture
def fixed_work(monkeypatch):
    """One thread and a known chunk size."""
    mr.set_num_threads(1)
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 2**20)


def batch(n=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 32, 32, 3), np.float32), rng.integers(0, 10, n)


def gradients(net, x, y):
    net.zero_grad()
    mr.cross_entropy(net(mr.Tensor(x)), y).backward()
    return [p.grad for p in net.parameters()]


def test_number_of_graph_nodes(fixed_work):
    x, y = batch(2)
    order = topological_order(mr.cross_entropy(mr.build("resnet20")(mr.Tensor(x)), y).node)
    operations = [node.name for node in order if node.name != "leaf"]
    # 19 convolutions, each with a batch norm and a ReLU; 9 residual adds; nothing else may creep into a block
    assert operations.count("conv2d") == operations.count("batch_norm") == operations.count("relu") == 19
    assert operations.count("subsample_and_pad") == 2
    # with the linear layer's bias, an add for each block; pooling's sum and mul; matmul; log_softmax, mul, sum, mul
    assert operations.count("add") == 9 + 1
    assert len(operations) == 3 * 19 + 2 + 10 + 2 + 1 + 4


def test_number_and_size_of_im2col_calls(fixed_work, monkeypatch):
    sizes, im2col = [], conv._im2col

    def counted(x, kh, kw, stride, padding):
        cols = im2col(x, kh, kw, stride, padding)
        sizes.append(cols.nbytes)
        return cols

    monkeypatch.setattr(conv, "_im2col", counted)
    x, y = batch(16)
    gradients(mr.build("resnet20"), x, y)
    # The columns of an image take 9/16 MiB in the first stage, so a chunk of 1 MiB holds one: 16 chunks. Those of the
    # first layer take 3/16 of that. The other stages have 32 and 64 channels: only their first convolutions, of stride
    # 2, are done by im2col; an image takes 9/64 and 9/128 MiB. Backward, the larger number of channels counts.
    forward = 2 + 6 * 16 + 3 + 2
    backward = 16 + 6 * 16 + 6 + 3  # one im2col for both gradients
    assert len(sizes) == forward + backward
    assert max(sizes) <= parallel.CHUNK_BYTES


def test_what_a_step_calls(fixed_work):
    """The path that a reader follows: how many functions of minires, and how often they ask whose array it is."""
    net, (x, y) = mr.build("resnet20", width=4), batch(16)
    opt = mr.SGD(net.parameters(), 0.1, momentum=0.9)
    calls = Counter()

    def trace(frame, event, arg):
        code = frame.f_code
        if event == "call" and Path(code.co_filename).parent == Path(mr.__file__).parent:
            calls[code.co_qualname] += 1

    sys.setprofile(trace)
    try:
        mr.cross_entropy(net(mr.Tensor(x)), y).backward()
        opt.step()
        opt.zero_grad()
    finally:
        sys.setprofile(None)
    assert sum(not name.endswith(">") for name in calls) <= 120  # without lambdas and comprehensions
    assert calls["array_module"] + calls["device_of"] <= calls.total() / 5


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


@pytest.mark.parametrize(("model", "threads"), [("resnet20", 1), ("resnet20", 2), ("resnet20", 5), ("bottleneck29", 3)])
def test_any_number_of_threads_gives_the_same_bits(fixed_work, model, threads):
    x, y = batch(13)
    one = gradients(mr.build(model, shortcut="B"), x, y)
    mr.set_num_threads(threads)
    for _ in range(2):
        for a, b in zip(gradients(mr.build(model, shortcut="B"), x, y), one, strict=True):
            assert a.tobytes() == b.tobytes()
