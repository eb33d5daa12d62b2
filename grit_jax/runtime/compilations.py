"""How many programs were compiled in this process."""

from __future__ import annotations

import threading

import jax

EVENT = "/jax/core/compile/backend_compile_duration"

_lock = threading.Lock()
_count = 0
_listening = False


def count_compilations() -> int:
    """Programs compiled since the first call, whose result is 0.

    Counted by `jax.monitoring`, so that all programs are: those of functions that nobody thought of
    as compiled (an operation on a new shape) as well.
    """
    global _listening
    with _lock:
        if not _listening:
            jax.monitoring.register_event_duration_secs_listener(_listen)
            _listening = True
        return _count


def _listen(event: str, duration: float, **details: object) -> None:
    global _count
    if event == EVENT:
        with _lock:
            _count += 1
