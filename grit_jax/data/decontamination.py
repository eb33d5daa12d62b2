"""Training data in this package's format without the examples that hold texts of evaluation sets.

`grit data prepare --against` does the same on the way into a dataset: rows are read, compared and
staged by the same code. Here what is left is written as JSONL, line for line as it was.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.contamination import DecontaminationOptions
from grit_jax.data.lines import OnError
from grit_jax.data.preparation import (
    ROWS_TOGETHER,
    Preparation,
    PrepareOptions,
    source_identity,
)
from grit_jax.data.preparation_report import contamination_lines, dropped_lines
from grit_jax.data.sources import PreparedLines, source_units
from grit_jax.data.staging import staging_folder
from grit_jax.errors import GritError
from grit_jax.runtime.files import home_path, is_stream, refuse_same_file, write_file, write_json
from grit_jax.runtime.progress import progress


@dataclasses.dataclass
class DecontaminationReport:
    """What was removed and why, over all of its parts if the run was killed.

    Attributes:
      kind: of the examples.
      read, kept: rows. sources: both by source.
      dropped: rows that were left out, by reason. first: the place of the first one of each reason.
      contamination: as in `PreparationReport`.
      seconds: of this run.
    """

    kind: str
    read: int
    kept: int
    sources: dict[str, dict[str, int]]
    dropped: dict[str, int]
    first: dict[str, str]
    contamination: dict[str, Any]
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = dropped_lines(self.dropped, self.first)
        return "\n".join([*lines, *contamination_lines(self.contamination)])


def report_file(output: Path) -> Path:
    """Where the report of an output lies."""
    return output.with_name(f"{output.name}.report.json")


def matches_file(output: Path) -> Path:
    """Where the matches of an output lie, a line for each."""
    return output.with_name(f"{output.name}.contamination.jsonl")


def decontaminate(
    sources: Sequence[str | Path],
    output: str | Path,
    options: DecontaminationOptions,
    *,
    on_error: OnError = "stop",
    quiet: bool = False,
) -> DecontaminationReport:
    """Writes the examples of `sources` that match no evaluation text, in order, as a JSONL file.

    Beside it come `OUTPUT.report.json` and `OUTPUT.contamination.jsonl`, a line for each match. The
    output appears whole or not at all; a killed run continues when it is started again.

    Args:
      sources: JSONL, JSON arrays or parquet with rows in this package's format, plain or
        compressed; globs; prepared datasets.

    Raises:
      GritError: a source that cannot be read, a bad row (`file:line`), no row that is left, rows of
        different kinds, or an output that is an input or cannot be written.
    """
    start = time.perf_counter()
    output = home_path(output)
    if is_stream(output):
        raise GritError(f"{output}: name a file; the report and the matches lie beside it")
    if output.is_dir():
        raise GritError(f"{output}: is a folder; name a file")
    if not sources or not options.against:
        raise GritError("data decontaminate: name data files, and evaluation files with --against")
    units = source_units(sources, "data decontaminate")
    inputs = [unit for _, unit in units if not isinstance(unit, PreparedLines)]
    refuse_same_file(output, *inputs, *map(Path, options.against))
    settings = PrepareOptions(
        dialect="grit", on_error=on_error, duplicates="keep", decontamination=options
    )
    identity = source_identity(units, settings)
    with staging_folder(output, identity, "grit data decontaminate") as staging:
        run = Preparation(units, settings, staging, quiet, compare=False)
        run.read()
        rows = np.arange(staging.rows)
        report = DecontaminationReport(
            kind=run.state["kind"],
            read=sum(run.state["read"].values()),
            kept=len(rows),
            sources=run.sources(rows),
            dropped=run.state["dropped"],
            first=run.state["first"],
            contamination=run.contamination(),
            seconds=round(time.perf_counter() - start, 3),
        )
        shutil.copyfile(staging.matches_path, matches_file(output))
        write_json(report_file(output), report.to_dict())
        with (
            write_file(output) as file,
            progress(len(rows), "writing", "examples", quiet=quiet) as bar,
        ):
            for begin in range(0, len(rows), ROWS_TOGETHER):
                block = staging.read(rows[begin : begin + ROWS_TOGETHER])
                file.writelines(line + b"\n" for line, _ in block)
                bar.update(len(block))
    return report
