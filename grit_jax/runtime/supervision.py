"""Runs one process of a multi-process run in a child, so that the loss of another process ends in a
message and an exit status.

JAX detects a lost process by its missing heartbeat and ends the others with abort(), which Python
cannot catch. The parent sees that the child aborted, prints a line, and exits with the status of a
run that can be resumed.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable

from grit_jax.runtime.preemption import PREEMPTED, Preempted

PR_SET_PDEATHSIG = 1  # linux/prctl.h

# One byte shared by parent and child: whether the child has joined other processes.
_has_joined = mmap.mmap(-1, 1)


def joined_others() -> None:
    """Called in the child: from now on an abort means that another process was lost."""
    _has_joined[0] = 1


def watched(work: Callable[[], None], verb: str = "train") -> None:
    """Runs `work` in a child process. The parent exits with the child's status; the child returns
    when `work` does.

    Raises:
      SystemExit: the child's status, or `PREEMPTED` where JAX aborted it because another process
        was lost.
    """
    # A terminal that closes sends SIGHUP to all processes. The child ignores it, or it would end
    # unsaved, and the parent passes it on as SIGTERM. Under nohup both ignore it.
    hangup_counts = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    passed_on = [signal.SIGTERM, *([signal.SIGHUP] if hangup_counts else [])]
    # Blocked, so that none is lost or fatal before the handlers are there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    parent, child = os.getpid(), os.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _end_with(parent)
        _leave_at_once(work)
        return

    def pass_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(child, signal.SIGTERM)

    for number in passed_on:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child, too
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT and _has_joined[0]:
        print(
            f"grit {verb}: another process of this run was lost, or the network between them (JAX's"
            " message is above; the output of the others may say why); the same command goes on"
            f" from {'the newest checkpoint' if verb == 'train' else 'what is encoded'}",
            file=sys.stderr,
        )
        sys.exit(PREEMPTED)
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _end_with(parent: int) -> None:
    """Has the system kill this process when its parent ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # gone already
            os._exit(1)


def _leave_at_once(work: Callable[[], None]) -> None:
    """Runs `work`. A process that fails alone exits without JAX's shutdown, which would wait for
    the others while they wait for this one."""
    try:
        work()
    except SystemExit as end:
        if end.code in (None, 0) or end.code == PREEMPTED and not _preempted_alone(end):
            raise  # all processes exit this way
        _exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        traceback.print_exc()
        _exit(1)


def _preempted_alone(end: SystemExit) -> bool:
    """Whether the other processes keep running and are to detect by the heartbeat that this one is
    gone: SIGTERM arrived outside the loop."""
    together = isinstance(end.__cause__, Preempted) and end.__cause__.together
    return bool(_has_joined[0]) and not together


def _exit(status: int) -> None:
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
