"""Signals that ask a process to stop: Ctrl-C, a batch scheduler's SIGTERM, the SIGHUP of a terminal that is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_last: int = signal.SIGINT


def exit_status() -> int:
    """The exit status of a process that a KeyboardInterrupt ends, as shells report it: 130 after Ctrl-C."""
    return 128 + _last


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, so that whatever it saves is saved.

    A signal that the parent process ignores stays ignored (`nohup`), and one that the program handles stays its own.
    """
    global _last
    _last = signal.SIGINT
    with _handlers(lambda before: before == signal.SIG_DFL, _interrupt):
        yield


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _last
    _last = number
    raise KeyboardInterrupt


@contextmanager
def defer_signals() -> Iterator[None]:
    """Inside, signals wait for the end of the block, so that no step and no file is left half done."""
    received: list[int] = []
    with _handlers(callable, lambda number, frame: received.append(number)) as before:
        yield
    if received:
        before[received[0]](received[0], None)


@contextmanager
def _handlers(is_replaced: Callable[[Any], bool], handler: Callable[..., None]) -> Iterator[dict[int, Any]]:
    """Handle some signals, chosen by their present handlers, with `handler`. Gives the handlers from before."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other thread receives signals
        before = {number: old for number in SIGNALS if is_replaced(old := signal.getsignal(number))}
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)
