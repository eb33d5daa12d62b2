"""How hard negatives are mined, and what a run reports."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

from grit_jax.errors import GritError
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.text.length import MAX_LENGTH

Sampling: TypeAlias = Literal["random", "top"]


@dataclasses.dataclass(frozen=True)
class MiningOptions:
    """Which documents become negatives.

    Attributes:
      ranks: LOW and HIGH: documents from rank LOW to rank HIGH - 1 of the search, counted from 0.
      margin: a negative's score is at least this much below the positive's (inner products); None:
        no such limit. The positive is the one with the lowest score where there are several.
      relative_margin: the same as a share of the positive's score: with 0.05 a negative has at most
        95% of it ("TopK-PercPos", arXiv 2407.15831); None: no such limit.
      negatives: the most that are mined for a query.
      sampling: "random" draws them from the candidates that are left, "top" takes the best ones.
      seed: of "random".
      retrieval: what searches, and among which documents. Margins compare vectors, whatever
        searches.
      replace: drop the negatives that a line has; False keeps them before the mined ones.
      keep_without: write lines that have no negative in the end; False leaves them out.
      judge: have the generator judge candidates; None: no judge. Candidates that it takes for
        relevant with a probability above `judge` are false negatives and left out, and the lines
        get its log-odds as "scores".
      max_length: tokens of a query, instruction and tags included.
    """

    ranks: tuple[int, int] = (0, 100)
    margin: float | None = None
    relative_margin: float | None = 0.05
    negatives: int = 8
    sampling: Sampling = "random"
    seed: int = 0
    retrieval: Retrieval = Retrieval()
    replace: bool = False
    keep_without: bool = False
    judge: float | None = None
    max_length: int = MAX_LENGTH

    def __post_init__(self) -> None:
        low, high = self.ranks
        if not 0 <= low < high:
            raise GritError(f"--range: expected 0 <= LOW < HIGH, got {low}:{high}")
        if self.negatives < 1:
            raise GritError(f"--negatives: expected at least 1, got {self.negatives}")
        if self.judge is not None and not 0 < self.judge < 1:
            raise GritError(f"--judge: expected a probability between 0 and 1, got {self.judge}")


@dataclasses.dataclass
class MiningSummary:
    """What a run did, over all of its parts if it was killed.

    Attributes:
      queries: lines of the input.
      lines: lines of the output.
      without_negatives: lines for which no negative was left; not in the output unless asked for.
      negatives: mined ones, over all lines.
      negatives_per_line: how many lines have how many mined negatives.
      negatives_kept: those that the input had and the output has.
      candidates: documents in the range of ranks, over all queries.
      dropped: candidates that were left out, by reason.
      not_needed: candidates that were left over when there were enough negatives.
      scores_removed: lines whose "scores" were removed, since their new negatives have none.
      positives_in_index, positives_encoded: whose score was computed from the index's vector, and
        by encoding them.
      queries_truncated: cut to `max_length` tokens.
      judged: pairs that the judge read.
      positives_judged, positives_relevant: positives among them, and those it took for relevant: a
        judge that refuses many positives is not to be trusted with negatives.
      records_computed: judged documents without a usable record.
      seconds: of this run.
    """

    queries: int = 0
    lines: int = 0
    without_negatives: int = 0
    negatives: int = 0
    negatives_per_line: dict[str, int] = dataclasses.field(default_factory=dict)
    negatives_kept: int = 0
    candidates: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    not_needed: int = 0
    scores_removed: int = 0
    positives_in_index: int = 0
    positives_encoded: int = 0
    queries_truncated: int = 0
    judged: int = 0
    positives_judged: int = 0
    positives_relevant: int = 0
    records_computed: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grit mine`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.negatives} negatives for {self.lines} of {self.queries} queries"
            f" ({self.seconds:.1f} s)"
        ]
        if self.without_negatives:
            lines.append(f"  {self.without_negatives} queries have no negative left")
        for reason, count in sorted(self.dropped.items(), key=lambda item: -item[1]):
            share = count / max(self.candidates, 1)
            lines.append(f"  dropped: {count} candidates ({share:.1%}): {reason}")
        if self.judged:
            lines.append(
                f"  judge: {self.judged} pairs read; {self.positives_relevant} of"
                f" {self.positives_judged} positives found relevant"
            )
        if self.scores_removed:
            lines.append(f'  "scores" removed from {self.scores_removed} lines')
        return "\n".join(lines)
