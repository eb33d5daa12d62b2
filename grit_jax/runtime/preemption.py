"""SIGTERM, by which a machine is taken away: a training run ends its step, saves, and says so by
its exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

PREEMPTED = (
    143  # exit status, as a shell has it of SIGTERM: nothing is lost, the same command goes on
)
# A machine that goes down signals every process of a session, and parents hand on what they get:
# one notice comes as several signals. Those within this time of the first are the same one.
SAME_NOTICE_S = 5.0


class Preempted(BaseException):
    """SIGTERM came, and what was to be saved is saved. No mistake of anybody's: `except Exception`
    lets it pass.

    Attributes:
      together: every process of the run ends with it, in the same step. Otherwise the others know
        nothing of it yet.
    """

    def __init__(self, message: str, *, together: bool = False):
        super().__init__(message)
        self.together = together


class Notice:
    """Whether SIGTERM has come.

    Attributes:
      arrived: it has.
      held: it is left at that; whoever looks at `arrived` will act. Otherwise it raises `Preempted`
        where it strikes.
    """

    arrived = False
    held = False

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """For work that must come to a good end first."""
        self.held = True
        try:
            yield
        finally:
            self.held = False


@contextlib.contextmanager
def on_sigterm() -> Iterator[Notice]:
    """Notes the first SIGTERM; one that comes more than `SAME_NOTICE_S` later ends the process at
    once.

    Only the main thread hears signals; elsewhere this does nothing.
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
        # None: a handler that Python does not know of, such as the one of jax.distributed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
