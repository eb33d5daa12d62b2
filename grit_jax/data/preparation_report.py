"""What `grit data prepare` reports: what was read, kept and dropped, and what the kept texts are
like."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PERCENTILES = (5, 50, 95, 99)


class LengthCounts:
    """How often each length occurs, by the part of the example that a text is."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]] | None = None):
        self.counts: dict[str, collections.Counter[int]] = {
            part: collections.Counter({int(length): n for length, n in own.items()})
            for part, own in (counts or {}).items()
        }

    def add(self, part: str, length: int) -> None:
        """Counts one text."""
        self.counts.setdefault(part, collections.Counter())[length] += 1

    def update(self, other: LengthCounts) -> None:
        """Counts the texts of another one, too."""
        for part, own in other.counts.items():
            self.counts.setdefault(part, collections.Counter()).update(own)

    def to_json(self) -> dict[str, dict[str, int]]:
        """As JSON, from which it can be made again."""
        return {part: {str(k): n for k, n in own.items()} for part, own in self.counts.items()}

    def summary(self) -> dict[str, dict[str, float]]:
        """For each part: number of texts, total, mean, least, percentiles and most."""
        result = {}
        for part, own in self.counts.items():
            lengths = np.array(sorted(own))
            numbers = np.array([own[int(length)] for length in lengths])
            ends, total = np.cumsum(numbers), int((lengths * numbers).sum())
            at = lambda percent, ends=ends, lengths=lengths: int(
                lengths[np.searchsorted(ends, percent / 100 * ends[-1])]
            )
            result[part] = {
                "texts": int(ends[-1]),
                "total": total,
                "mean": round(total / int(ends[-1]), 2),
                "min": int(lengths[0]),
                **{f"p{percent}": at(percent) for percent in PERCENTILES},
                "max": int(lengths[-1]),
            }
        return result


@dataclasses.dataclass
class PreparationReport:
    """What a preparation did, over all of its parts if it was killed.

    Attributes:
      kind: of the examples. examples: in the dataset.
      read: rows of the sources. sources: rows read and kept by source.
      formats: rows by the format that they came in.
      dropped: rows that were left out, by reason. first: the place of the first one of each reason.
      duplicates: rows whose texts are those of an earlier one ("exact"), or close to it ("near"),
        whether they were dropped or not.
      languages: of the kept examples, by a small rule (`languages.py`).
      characters, tokens: lengths of the kept texts by part; no tokens without a tokenizer.
      contamination: evaluation texts by file, those that were found in examples, and the matches by
        method and by part; empty if nothing was compared.
      shards, bytes: of the dataset.
      seconds: of this run.
    """

    kind: str
    examples: int
    read: int
    sources: dict[str, dict[str, int]]
    formats: dict[str, int]
    dropped: dict[str, int]
    first: dict[str, str]
    duplicates: dict[str, int]
    languages: dict[str, int]
    characters: dict[str, dict[str, float]]
    tokens: dict[str, dict[str, float]]
    contamination: dict[str, Any]
    shards: int
    bytes: int
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = dropped_lines(self.dropped, self.first)
        kept = [
            n
            for n, count in self.duplicates.items()
            if count and f"{n} duplicate" not in self.dropped
        ]
        for name in kept:
            lines.append(f"  kept: {self.duplicates[name]} {name} duplicates")
        for unit, lengths in (("characters", self.characters), ("tokens", self.tokens)):
            for part, numbers in lengths.items():
                lines.append(
                    f"  {part}: {numbers['texts']} texts, {unit}: median {numbers['p50']}, 95 %"
                    f" {numbers['p95']}, most {numbers['max']}"
                )
        common = sorted(self.languages.items(), key=lambda item: -item[1])[:6]
        lines.append("  languages: " + ", ".join(f"{name} {count}" for name, count in common))
        return "\n".join([*lines, *contamination_lines(self.contamination)])


def dropped_lines(dropped: Mapping[str, int], first: Mapping[str, str]) -> list[str]:
    """A line for each reason, the most frequent one first."""
    place = lambda reason: f" (first: {first[reason]})" if reason in first else ""
    most = sorted(dropped.items(), key=lambda item: -item[1])
    return [f"  dropped: {count}: {reason}{place(reason)}" for reason, count in most]


def contamination_lines(contamination: Mapping[str, Any]) -> list[str]:
    """A line for each evaluation file."""
    return [
        f"  against {name}: {found['matched']} of {found['texts']} texts were found"
        for name, found in contamination.get("files", {}).items()
    ]


def contamination_report(path: Path, texts: Mapping[str, int], too_short: int) -> dict[str, Any]:
    """What was found of evaluation sets, from the matches that were written.

    Args:
      path: a JSON object a line, as `contamination.Match` has it.
      texts: of each evaluation file.
      too_short: texts that were not looked for.
    """
    found: dict[str, set[int]] = {name: set() for name in texts}
    methods: collections.Counter[str] = collections.Counter()
    parts: collections.Counter[str] = collections.Counter()
    with path.open("rb") as file:
        for line in file:
            match = json.loads(line)
            found[match["file"]].add(match["text"])
            methods[match["method"]] += 1
            parts[match["part"].partition("[")[0]] += 1
    return {
        "files": {
            name: {"texts": count, "matched": len(found[name])} for name, count in texts.items()
        },
        "too_short": too_short,
        "methods": dict(methods),
        "parts": dict(parts),
    }
