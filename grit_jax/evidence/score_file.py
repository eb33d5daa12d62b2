"""Scores of rows by case, in a JSON file that grows row by row: a killed run goes on from it, and
one that is asked for more rows adds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from grit_jax.errors import GritError
from grit_jax.runtime.files import read_json, write_json

FORMAT = 1


class ScoreFile:
    """The scores of a model's rows: `{case: {score: [of row 0, of row 1, ...]}}`.

    Args:
      scored: what was scored, as `{name: hash}`: the model's weights and the rows.

    Raises:
      GritError: the file is damaged, or holds the scores of something else.
    """

    def __init__(self, path: Path, scored: Mapping[str, str]):
        self._path, self._scored = path, dict(scored)
        self._cases: dict[str, dict[str, list[float]]] = {}
        if not path.exists():
            return
        content = read_json(path)
        for name, value in self._scored.items():
            if content.get(name) != value:
                raise GritError(
                    f"{path}: holds the scores of other {name}; remove it, or choose another --out"
                )
        cases = content.get("cases")
        if content.get("format") != FORMAT or not isinstance(cases, dict):
            raise GritError(f"{path}: damaged; remove it to score the rows again")
        self._cases = cases

    def count(self, case: str) -> int:
        """How many rows of a case are scored, from the first on."""
        scores = self._cases.get(case)
        return min(map(len, scores.values())) if scores else 0

    def add(self, case: str, scores: Mapping[str, Sequence[float]]) -> None:
        """Appends the scores of the next rows of a case and writes the file."""
        lists = self._cases.setdefault(case, {name: [] for name in scores})
        for name, values in scores.items():
            lists[name] += [float(value) for value in values]
        document: dict[str, Any] = {"format": FORMAT, **self._scored, "cases": self._cases}
        write_json(self._path, document)

    def values(self, case: str, score: str, rows: int) -> Float[np.ndarray, " B"]:
        """The scores of the first `rows` rows of a case.

        Raises:
          KeyError: so many were not scored.
        """
        if self.count(case) < rows:
            raise KeyError(f"{case}: {self.count(case)} of {rows} rows are scored")
        return np.array(self._cases[case][score][:rows])
