"""SIGTERM, the notice that a machine is taken away: a training run finishes its step, saves, and
exits with a status of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

# Exit status, the one that shells use for SIGTERM: nothing is lost, the same command resumes.
PREEMPTED = 143
# A machine that shuts down signals every process of a session, and parents pass signals on, so that
# one notice arrives as several signals. Those within this time of the first count as the same one.
SAME_NOTICE_S = 5.0


class Preempted(BaseException):
    """SIGTERM arrived, and the run's state is saved. It is not an error, so `except Exception` does
    not catch it.

    Attributes:
      together: every process of the run raises it after the same step. Otherwise the others do not
        know of it yet.
    """

    def __init__(self, message: str, *, together: bool = False):
        super().__init__(message)
        self.together = together


class Notice:
    """Whether SIGTERM has arrived.

    Attributes:
      arrived: True after the first SIGTERM.
      held: SIGTERM only sets `arrived`, which the caller checks. Otherwise the signal handler
        raises `Preempted`.
    """

    arrived = False
    held = False

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Postpones SIGTERM while the block runs: see `held`."""
        self.held = True
        try:
            yield
        finally:
            self.held = False


@contextlib.contextmanager
def on_sigterm() -> Iterator[Notice]:
    """Handles the first SIGTERM; another one more than `SAME_NOTICE_S` later ends the process at
    once.

    Only the main thread can handle signals; in other threads this does nothing.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return

    came = 0.0

    def note(number: int, frame: object) -> None:
        nonlocal came
        if notice.arrived:
            if time.monotonic() - came > SAME_NOTICE_S:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        came = time.monotonic()
        notice.arrived = True
        if not notice.held:
            raise Preempted("interrupted by SIGTERM")

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield notice
    finally:
        # None: a handler that was not installed from Python, such as that of jax.distributed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
