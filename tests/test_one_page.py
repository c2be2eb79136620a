"""`chapters/one_page.py` builds and trains the same net as the library, and shares no code with it."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest

import minires as mr

PAGE = Path(__file__).parent.parent / "chapters" / "one_page.py"
SOURCE = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("one_page", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_fits_on_a_page():
    lines = SOURCE.splitlines()
    assert len(lines) <= 140
    assert max(map(len, lines)) <= 120


def test_it_imports_numpy_and_nothing_else():
    imports = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import numpy as np"]


def test_it_draws_the_same_parameters(page):
    found = [p.data for p in page.ResNet(3, np.random.default_rng(0)).parameters]
    expected = [p.data for p in mr.build("resnet20", seed=0).parameters()]
    assert len(found) == len(expected) == 59
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


# The two sum in different orders. Over 20 draws of the batches the losses differed by at most 5.4e-6 of their value in
# float32, where rounding flips the sign of a few numbers before a ReLU, and by 7e-16 in float64, where it does not.
@pytest.mark.parametrize("dtype, rtol", [("float32", 2e-5), ("float64", 1e-13)])
def test_it_trains_the_same_way(page, dtype, rtol):
    rng = np.random.default_rng(1)
    batches = [(rng.standard_normal((16, 32, 32, 3)).astype(dtype), rng.integers(10, size=16)) for _ in range(3)]

    ours = page.ResNet(3, np.random.default_rng(0))
    for p in ours.parameters:
        p.data = p.data.astype(dtype)
    found = list(page.train(ours, batches, lr=0.1, momentum=0.9, decay=1e-4))

    theirs = mr.build("resnet20", seed=0).astype(dtype)
    opt = mr.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    expected = []
    for x, labels in batches:
        loss = mr.cross_entropy(theirs(mr.Tensor(x)), labels)
        loss.backward()
        opt.step()
        opt.zero_grad()
        expected.append(loss.item())

    assert {p.data.dtype.name for p in ours.parameters} == {dtype}
    np.testing.assert_allclose(found, expected, rtol=rtol)


def test_its_gradients_are_slopes(page):
    """Every parameter's gradient along a random direction v, against (L(p + h v) - L(p - h v)) / 2h in float64."""
    rng = np.random.default_rng(2)
    net = page.ResNet(1, rng)
    for p in net.parameters:
        p.data = p.data.astype(np.float64)
    x, labels = page.Tensor(rng.standard_normal((4, 8, 8, 3))), rng.integers(10, size=4)
    page.cross_entropy(net(x), labels).backward()

    h = 1e-6
    for p in [*net.parameters, x]:
        v = rng.standard_normal(p.data.shape)
        before = p.data
        p.data = before + h * v
        above = page.cross_entropy(net(x), labels).data
        p.data = before - h * v
        below = page.cross_entropy(net(x), labels).data
        p.data = before
        np.testing.assert_allclose((p.grad * v).sum(), (above - below) / (2 * h), rtol=1e-5, atol=1e-9)


def test_gradients_add(page):
    a = page.Tensor(np.array([1.0, 2.0]))
    b = a + a
    (b + a).backward()
    np.testing.assert_array_equal(a.grad, [3.0, 3.0])


def test_it_runs(page, capsys):
    exec(compile(SOURCE, str(PAGE), "exec"), {"__name__": "__main__"})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 50
    assert losses[0] > 2 and max(losses[-5:]) < 0.1
