"""Progress of long work: a bar with rate and ETA on a terminal, a log line every 10 s without one.

Everything goes to stderr, since `--json` needs stdout for itself. Only process 0 prints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

LOG_EVERY = 10.0  # seconds between two log lines where there is no terminal


class Progress(Generic[T]):
    """A progress counter: iterate over it, or call `update`. Made by `progress`."""

    def __init__(
        self,
        items: Iterable[T] | None,
        total: int | None,
        description: str,
        unit: str,
        quiet: bool,
        initial: int = 0,
    ) -> None:
        self._items, self._total, self._description, self._unit = items, total, description, unit
        self._silent = quiet or not _is_process_zero()
        self._bar = None
        self._done = self._initial = initial
        self._note = ""
        self._start = self._last = time.monotonic()
        if not self._silent and sys.stderr.isatty():
            import tqdm

            self._bar = tqdm.tqdm(
                total=total,
                initial=initial,
                desc=description,
                unit=unit,
                unit_scale=unit.startswith("tok"),
                dynamic_ncols=True,
            )

    @property
    def done(self) -> int:
        """How many units were counted."""
        return self._done

    def update(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units; `note` is shown behind the bar (a loss, say)."""
        self._done += count
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif not self._silent and time.monotonic() - self._last >= LOG_EVERY:
            self._last, self._logged = time.monotonic(), self._done
            say(self.line())

    def line(self) -> str:
        """The state as one line: `description: 30/100 texts (30%), 12.3 texts/s, 6 s left`."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._initial) / seconds
        head = f"{self._description}: " if self._description else ""
        if self._total:
            head += f"{self._done}/{self._total} {self._unit} ({100 * self._done // self._total}%)"
        else:
            head += f"{self._done} {self._unit}"
        head += f", {rate:.3g} {self._unit}/s"
        if self._total and rate:
            head += f", {duration(max(self._total - self._done, 0) / rate)} left"
        return head + (f", {self._note}" if self._note else "")

    def close(self) -> None:
        """Ends the bar and leaves it on the screen. Without a terminal, prints a last log line if
        there was one before."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif not self._silent and self._last != self._start and self._logged != self._done:
            say(self.line())
        self._silent = True

    def __iter__(self) -> Iterator[T]:
        if self._items is None:
            raise TypeError("progress(total) counts by update(); give it an iterable to iterate")
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> Progress[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def progress(
    work: Iterable[T] | int | None,
    description: str = "",
    unit: str = "it",
    *,
    total: int | None = None,
    initial: int = 0,
    quiet: bool = False,
) -> Progress[T]:
    """Shows the progress of a loop.

    Args:
      work: what to iterate over, or a number of units to be counted with `update` (None: not
        known).
      unit: what is counted, plural (`texts`, `tokens`, `steps`).
      total: length of an iterable that has no `len`.
      initial: units that an earlier run has done.
      quiet: prints nothing.
    """
    if work is None or isinstance(work, int):
        return Progress(None, total if work is None else work, description, unit, quiet, initial)
    if total is None:
        total = len(work) if hasattr(work, "__len__") else None
    return Progress(work, total, description, unit, quiet, initial)


def say(message: str) -> None:
    """Prints a line to stderr, in process 0 only."""
    if _is_process_zero():
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _is_process_zero() -> bool:
    """True in process 0. Looks at JAX only if it is imported and distributed: a progress bar must
    not start a backend."""
    jax = sys.modules.get("jax")
    if jax is None:
        return True
    return not jax.distributed.is_initialized() or jax.process_index() == 0
