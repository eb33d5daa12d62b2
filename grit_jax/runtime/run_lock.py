"""One run at a time in an output: a lock on a folder, a marker in an object store.

An object store has no locks. A run leaves a marker there and renews it; a later run that meets one
waits to see whether it is renewed. That takes long only after a kill on another machine, and two
runs that start within the same second may miss each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from grit_jax.errors import GritError
from grit_jax.runtime.files import lock_folder
from grit_jax.runtime.progress import say

MARKER = ".lock"  # in an object store
LOOK_SECONDS = 5.0  # between looks at another run's marker


def folder_lock(folder: Path) -> contextlib.ExitStack:
    """Holds a folder until the result is closed, or this process ends.

    Raises:
      GritError: another run writes there.
    """
    held = contextlib.ExitStack()
    with contextlib.suppress(OSError):  # a file system without locks
        held.enter_context(lock_folder(folder, "grit train"))
    return held


class StoreMarker:
    """A run's marker in an object store.

    Args:
      address: of the output, for messages.
      read, write, remove: the marker's text (None: there is none), and ways to change it.
    """

    def __init__(
        self,
        address: str,
        read: Callable[[], str | None],
        write: Callable[[str], None],
        remove: Callable[[], None],
    ):
        self._address, self._read, self._write, self._remove = address, read, write, remove
        self._owner = {"host": socket.gethostname(), "process": os.getpid()}
        self._renewed = 0

    def take(self, patience: float) -> None:
        """Leaves the marker, once no other run is found to be alive.

        Args:
          patience: seconds in which a living run renews its own.

        Raises:
          GritError: another run renewed its marker meanwhile.
        """
        first = self._read()
        if first is not None and not self._is_gone(first):
            owner = _owner(first)
            say(
                f"{self._address}: {owner} wrote here last; waiting up to {patience:.0f} s to see"
                " whether it still does"
            )
            ends = time.monotonic() + patience
            while (now := self._read()) == first and time.monotonic() < ends:
                time.sleep(LOOK_SECONDS)
            if now not in (None, first):
                raise GritError(
                    f"{self._address}: another grit train ({owner}) is writing here; wait until it"
                    " is done, or choose another output"
                )
        self.renew()

    def renew(self) -> None:
        """Shows that this run is alive."""
        self._renewed += 1
        self._write(json.dumps(self._owner | {"renewed": self._renewed}))

    def release(self) -> None:
        """Takes the marker away, if it is this run's."""
        if (text := self._read()) is not None and self._is_own(text):
            self._remove()

    def _is_own(self, text: str) -> bool:
        try:
            return {**json.loads(text), "renewed": 0} == self._owner | {"renewed": 0}
        except (ValueError, TypeError):
            return False

    def _is_gone(self, text: str) -> bool:
        """Whether the marker's run was one of this machine that has ended."""
        if self._is_own(text):
            return True
        try:
            owner = json.loads(text)
            if owner["host"] != self._owner["host"]:
                return False
            os.kill(owner["process"], 0)
        except (ValueError, TypeError, KeyError, ProcessLookupError):
            return True
        except OSError:
            return False
        return False


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, TypeError, KeyError):
        return "a run"
