"""How each process of a run ended, for processes that otherwise work without waiting for each
other."""

from __future__ import annotations

import itertools
import time

import jax
from orbax.checkpoint import multihost

LEAVE_SECONDS = 60  # process 0 waits so long for the others, which would be aborted without it


class Outcomes:
    """One report of each process, in the key-value store of process 0. Every process makes its
    instances in the same order; devices are not involved.

    Attributes:
      number: this process's number.
      processes: how many there are.
    """

    _made = itertools.count()

    def __init__(self) -> None:
        self.number, self.processes = jax.process_index(), jax.process_count()
        self._client = multihost.get_jax_distributed_client()
        self._place = f"grit/outcome/{next(self._made)}"

    def report(self, text: str) -> None:
        """Reports for this process."""
        self._client.key_value_set_bytes(
            f"{self._place}/{self.number}", text.encode(), allow_overwrite=True
        )

    def of(self, process: int) -> str | None:
        """The report of a process; None if it has not reported yet."""
        try:
            return self._client.key_value_try_get_bytes(f"{self._place}/{process}").decode()
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def wait(self, process: int) -> str:
        """Waits for the report of a process, however long it takes: JAX aborts this process if that
        one is lost."""
        while True:
            try:
                place = f"{self._place}/{process}"
                return self._client.blocking_key_value_get_bytes(place, 1000).decode()
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def wait_for_others(self) -> None:
        """Called by process 0 before it fails: the others hear of it while they can."""
        ends = time.monotonic() + LEAVE_SECONDS
        others = set(range(self.processes)) - {self.number}
        while others and time.monotonic() < ends:
            others -= {process for process in others if self.of(process) is not None}
            time.sleep(0.2)
        time.sleep(1)  # their last line is printed after their report
