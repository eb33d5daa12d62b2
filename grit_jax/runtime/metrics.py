"""metrics.jsonl: one JSON object for each step, always parsable, cut back on resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from grit_jax.runtime.files import json_text, write_text


class MetricsFile:
    """Appends one line for each step.

    Opening removes the lines from `start_step` on, and half-written lines, so that a resumed run's
    file has exactly one line for each step that was completed before.

    Attributes:
      last: the values of the last line; {} if there is none.
    """

    def __init__(self, path: Path, start_step: int = 0):
        self.path = path
        kept = [line for line in read_lines(path) if line["step"] < start_step]
        self._put("".join(map(_text, kept)))
        self.last: dict[str, Any] = kept[-1] if kept else {}

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes a step's values; numbers that are not finite become null, since JSON has none.

        Values for the step written last are added to its line.
        """
        plain = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()
        }
        if self.last.get("step") == step:
            before = self.path.read_text(encoding="utf-8").removesuffix(_text(self.last))
            self._file.close()
            self.last |= plain
            self._put(before + _text(self.last))
            return
        self.last = {"step": step, **plain}
        self._file.write(_text(self.last))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _put(self, text: str) -> None:
        """Replaces the file by `text` in one atomic step and reopens it for appending."""
        write_text(self.path, text)
        self._file = self.path.open("a", encoding="utf-8")


def _text(line: dict[str, Any]) -> str:
    return json_text(line) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file, one for each step (the last one written wins); [] if
    there is no file."""
    lines: dict[int, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                lines[int(line["step"])] = line
            except (ValueError, KeyError, TypeError):
                continue  # the half line of a killed run
    return [lines[step] for step in sorted(lines)]
