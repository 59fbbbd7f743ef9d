"""Steps that Ctrl-C does not tear apart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Let a Ctrl-C that comes within the block take effect at its end; a second one takes effect at once.

    Signals reach the main thread only, so that in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual: Any = signal.getsignal(signal.SIGINT)
    if not callable(usual):  # ignored, or handled outside of Python
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pending:
            usual(number, frame)
        pending.append((number, frame))

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pending:
        usual(*pending[0])
