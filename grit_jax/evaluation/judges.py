"""How candidates of a search are judged for reranking.

- `RecordJudge`: by this package's way, after each document's record (`rag/rerank.py`).
- `EndpointJudge`: by the server that has the model.
- `PromptJudge`: by the original's, a prompt with query and passage that is read as a whole (GRIT,
  arXiv 2402.09906, `scripts/AbsTaskRetrieval.py`). The score is the logit of "yes" as the token
  after "Answer:".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.retrieval_data import Document
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.generator import RagGenerator
from grit_jax.rag.rerank import relevance, relevance_prompts
from grit_jax.text.chat import PromptPart
from grit_jax.text.length import MAX_LENGTH, length_limit

RECORDS_KEPT = 1024  # of documents, in memory for the next queries
PROMPTS_TOGETHER = 64
MOST_CHARACTERS = 600  # of the query and of the passage's text, as in the original
ANSWER, YES = "Answer:", " yes"
# The user's turn of the original's prompts.
PAPER_PROMPTS = {
    "paper": (
        "Given a query and a passage, judge whether the passage is relevant to the query or not."
        "\n\nQuery: {query}\nPassage: {passage}\n\n"
        "Answer with yes if the passage is relevant to the query, and no otherwise."
    ),
    "paper-arguana": (
        "Provided two debate paragraphs, check if they are about the same topic, but contain"
        " counter-arguments.\n\nParagraph 1: {query}\nParagraph 2: {passage}\n\n"
        "Answer with yes if paragraph 1 and paragraph 2 are about the same topic, but contain"
        " counter-arguments; Answer with no otherwise."
    ),
}
RERANK_PROMPTS = ("records", *PAPER_PROMPTS)


class Judge(Protocol):
    """Scores documents for a query, the most relevant highest."""

    def scores(
        self, query: str, numbers: Sequence[int], documents: Sequence[Document]
    ) -> Float[np.ndarray, " P"]:
        """A score for each document; `numbers` are theirs in the task."""


class RecordJudge:
    """The probability of "yes" against "no" after each document's record, which is computed here.

    Args:
      max_length: tokens of a document, tags included.
    """

    def __init__(self, model: GritLM, max_length: int = MAX_LENGTH):
        self._generator = RagGenerator(model, length_limit(max_length, model.config.context_length))
        self._records: dict[int, KVRecord] = {}

    def scores(
        self, query: str, numbers: Sequence[int], documents: Sequence[Document]
    ) -> Float[np.ndarray, " P"]:
        if len(self._records) + len(numbers) > RECORDS_KEPT:
            self._records = {}
        texts = dict(zip(numbers, (document.content for document in documents), strict=True))
        missing = [number for number in texts if number not in self._records]
        made = self._generator.records([texts[number] for number in missing]) if missing else []
        self._records |= dict(zip(missing, made, strict=True))
        prompts = relevance_prompts(
            query, list(texts.values()), [self._records[number] for number in texts]
        )
        return relevance(self._generator, prompts)


class EndpointJudge:
    """The relevance that a server gives each document (`POST /v1/score`)."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint

    def scores(
        self, query: str, numbers: Sequence[int], documents: Sequence[Document]
    ) -> Float[np.ndarray, " P"]:
        contents = [document.content for document in documents]
        return self._endpoint.relevance([query] * len(contents), contents)


class PromptJudge:
    """The logit of "yes" as the first token of the answer to one of PAPER_PROMPTS.

    Raises:
      GritError: the tokenizer does not continue "Answer:" with a token of " yes".
    """

    def __init__(self, model: GritLM, prompt: str = "paper"):
        self._model, self._prompt = model, PAPER_PROMPTS[prompt]
        begun, answered = self._ids([(ANSWER,), (ANSWER + YES,)])
        if answered[: len(begun)] != begun or len(answered) == len(begun):
            raise GritError(
                f"rerank: this model's tokenizer does not continue {ANSWER!r} with a token of"
                f" {YES!r}, so that the original's prompt cannot be scored"
            )
        self.yes = answered[len(begun)]

    def scores(
        self, query: str, numbers: Sequence[int], documents: Sequence[Document]
    ) -> Float[np.ndarray, " P"]:
        prompts = self.prompt_ids(query, documents)
        scores = np.zeros(len(prompts), np.float64)
        for start in range(0, len(prompts), PROMPTS_TOGETHER):
            part = prompts[start : start + PROMPTS_TOGETHER]
            generated = self._model.generate_ids(
                part, sampling=Sampling(max_new_tokens=1), return_logits=True
            )
            assert generated.logits is not None
            scores[start : start + len(part)] = generated.logits[:, 0, self.yes]
        return scores

    def prompt_ids(self, query: str, documents: Sequence[Document]) -> list[list[int]]:
        """The token ids of the prompt of each document; the query and the document's text are cut
        to MOST_CHARACTERS.

        Raises:
          GritError: a prompt that does not fit the model's context.
        """
        turns = [self.turn(query, document) for document in documents]
        return self._ids([(ANSWER, turn) for turn in turns])

    def turn(self, query: str, document: Document) -> str:
        """The user's turn."""
        text = document.text[:MOST_CHARACTERS]
        passage = text if document.title is None else f"{document.title} {text}"
        # One after the other would fill in a field that the query spells.
        before, rest = self._prompt.split("{query}")
        between, after = rest.split("{passage}")
        return before + query[:MOST_CHARACTERS] + between + passage + after

    def _ids(self, prompts: Sequence[tuple[str, ...]]) -> list[list[int]]:
        """Token ids of `(answer so far, user's turn)`."""
        parts = [
            [*self._model.chat.render_turns([turn[0] if turn else ""]), PromptPart(answer)]
            for answer, *turn in prompts
        ]
        encoded = self._model.tokenizer.encode_parts(parts)
        ids = [[i for part in prompt for i in part] for prompt in encoded]
        context = self._model.config.context_length
        if (longest := max(map(len, ids))) >= context:
            raise GritError(
                f"rerank: a prompt with query and passage takes {longest} tokens, and the model's"
                f" context is {context}; use --rerank-prompt records"
            )
        return ids
