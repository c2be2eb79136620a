"""Facts about this machine."""

import pytest

from minires.devices import machine


@pytest.mark.parametrize("most, asked", [(2**30, [2**30]), (2**25, [2**30, 2**25]), (0, [2**30, 2**25])])
def test_freed_memory_is_kept_up_to_the_size_that_the_c_library_allows(most, asked, monkeypatch):
    class Library:
        thresholds = []

        def __init__(self, name):
            pass

        def mallopt(self, option, value):
            if option == -1:  # from what size on free memory at the end goes back
                return 1
            self.thresholds.append(value)
            return int(value <= most)

    monkeypatch.setattr(machine.ctypes, "CDLL", Library)
    assert machine.keep_freed_memory() == (most > 0) and Library.thresholds == asked
