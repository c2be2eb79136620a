"""What every test may count on: devices to run on, its number of threads put back, commands that tell their status."""

import re
from pathlib import Path

import pytest

from minires import parallel
from minires.backend import device_of, to_device
from minires.cli import main
from minires.devices.doctor import gpu_status
from minires.tensor import Tensor

CHECKS = Path(__file__).parent.parent / "chapters" / "checks"


def pytest_configure(config):
    """A mark for each chapter with exercises (ch04) and for each exercise (ex4_2), read from the text of the checks."""
    for path in sorted(CHECKS.glob("ch*.py")):
        config.addinivalue_line("markers", f"{path.stem[:4]}: exercises of chapter {int(path.stem[2:4])}")
        for number in re.findall(r'number="(\d+\.\d+)"', path.read_text(encoding="utf-8")):
            config.addinivalue_line("markers", f"ex{number.replace('.', '_')}: exercise {number}")
    if for_exercises(config):
        config.option.reportchars += "s"  # list the exercises that are not started


def pytest_ignore_collect(collection_path, config):
    """A student's `pytest -m ex4_2` need not wait until thousands of other tests are collected."""
    others = collection_path.is_file() and collection_path.name != "test_exercises.py"
    return True if others and for_exercises(config) else None


def for_exercises(config):
    return re.fullmatch(r"ex\d+_\d+|ch\d\d", config.option.markexpr)


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = parallel._num_threads
    yield
    if parallel._num_threads != before:
        parallel.set_num_threads(before or 1)
        parallel._num_threads = before


@pytest.fixture
def status_of():
    """Runs a command of the command line in this process and returns its exit status."""

    def run(*arguments):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            return stop.code
        return 0

    return run


@pytest.fixture
def usable():
    """usable(device): the device, or the test is skipped with the reason."""

    def device_or_skip(device):
        if device == "gpu" and (status := gpu_status()).state != "ready":
            pytest.skip(status.sentence)
        return device

    return device_or_skip


@pytest.fixture(params=["cpu", "strict", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, usable):
    """Runs a test on the CPU, on the stand-in for a GPU, and, where there is one, on a GPU."""
    return usable(request.param)


@pytest.fixture
def there(device):
    """there(op): does on the device what `op` does; its tensors come from the host, and its result goes back there."""

    def carry(x, device):
        if not isinstance(x, Tensor):
            return x
        home = device_of(x.data)
        return Tensor.from_op(to_device(x.data, device), (x,), lambda grad: (to_device(grad, home),), "carry")

    def wrap(op):
        if device == "cpu":
            return op
        return lambda *arguments, **options: carry(op(*(carry(x, device) for x in arguments), **options), "cpu")

    return wrap
