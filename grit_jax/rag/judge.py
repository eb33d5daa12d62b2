"""The generator as a judge of relevance: pairs of query and document, the documents read from their
records (`rag/rerank.py`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from grit_jax.rag.answer import QUESTIONS_TOGETHER, Asker, AskTimings
from grit_jax.rag.question_batch import QuestionBatch, RetrievedDocument
from grit_jax.rag.rerank import log_odds
from grit_jax.text.relevance import relevance_question


class Judge(Asker):
    """Judges whether documents are relevant to queries.

    Attributes:
      computed: records that had to be computed: of documents that are not in the index, or whose
        records are missing or damaged.
    """

    computed: int = 0

    def log_odds(
        self, pairs: Sequence[tuple[str, RetrievedDocument]]
    ) -> Float[np.ndarray, " pairs"]:
        """The logarithm of p("yes") / p("no") for each pair of query and document; it is positive
        where the model takes the document for relevant.

        Raises:
          GritError: a query that does not fit the model's context, or a store that cannot be read.
        """
        scores = [np.zeros(0)]
        for start in range(0, len(pairs), QUESTIONS_TOGETHER):
            part = pairs[start : start + QUESTIONS_TOGETHER]
            batch = QuestionBatch(
                [relevance_question(query) for query, _ in part],
                [[document] for _, document in part],
                None,
                ["doc"] * len(part),
                [[] for _ in part],
            )
            records = self._records(batch)
            judge = functools.partial(log_odds, self._generator)
            scores.append(self._run(judge, batch, records, AskTimings()))
            self.computed += sum(
                document.row is None or bool(warnings)
                for (_, document), warnings in zip(part, batch.warnings, strict=True)
            )
        return np.concatenate(scores)
