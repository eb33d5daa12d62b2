"""JSON lines written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grit_jax.types import GritError


def write_jsonl(output: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows as they come, and puts the file in its place once all are written; returns their number.

    Raises:
      GritError: the file cannot be written.
    """
    temporary, count = output.with_name(f"{output.name}.tmp"), 0
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        temporary.replace(output)
    except OSError as error:
        raise GritError(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count
