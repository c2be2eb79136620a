"""What every test may count on: the number of threads it was given is put back, and commands tell their status."""

import pytest

from minires import backend
from minires.cli import main


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = backend._threads
    yield
    if backend._threads != before:
        backend._threads = before
        backend._forget_pool()


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
