"""Reranking with the generator: the question goes on from each candidate's record, and the model
says whether the document is relevant.

The prompt is that of the layout `doc` (`text/rag_layouts.py`) with `relevance_question` as its
question, so that nothing of a document is read again, and so that rows of the cached-document
format train it (`data/relevance.py`). A candidate's score is the probability of "yes" where the
answer begins with "yes" or "no", by the first token of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import KVRecord
from grit_jax.rag.generator import RagGenerator, RagPrompt
from grit_jax.text.chat import PromptPart
from grit_jax.text.relevance import LABELS, relevance_question


def relevance_prompts(
    query: str, documents: Sequence[str], records: Sequence[KVRecord]
) -> list[RagPrompt]:
    """A prompt for each candidate, after its record."""
    question = relevance_question(query)
    return [
        RagPrompt("doc", question, (document,), (record,))
        for document, record in zip(documents, records, strict=True)
    ]


def label_tokens(model: GritLM) -> tuple[int, int]:
    """The first token of "yes" and of "no", as an answer begins after the assistant's tag.

    Raises:
      GritError: the tokenizer begins both with the same token.
    """
    tag = PromptPart(model.chat.assistant, is_template=True)
    encoded = model.tokenizer.encode_parts([[tag, PromptPart(label)] for label in LABELS])
    yes, no = (parts[1][0] for parts in encoded)
    if yes == no:
        raise GritError(
            f"rerank: this model's tokenizer begins {' and '.join(map(repr, LABELS))} with the same"
            " token, so that the model cannot be asked"
        )
    return yes, no


def relevance(generator: RagGenerator, prompts: Sequence[RagPrompt]) -> Float[np.ndarray, " P"]:
    """The probability of "yes" against "no" of each prompt.

    Raises:
      GritError: as `RagGenerator.generate`, or labels that begin alike.
    """
    return 1 / (1 + np.exp(-log_odds(generator, prompts)))


def log_odds(generator: RagGenerator, prompts: Sequence[RagPrompt]) -> Float[np.ndarray, " P"]:
    """The logarithm of p("yes") / p("no") of each prompt, in float64.

    Raises:
      GritError: as `relevance`.
    """
    yes, no = label_tokens(generator.model)
    logits = generator.first_logits(prompts).astype(np.float64)
    return logits[:, yes] - logits[:, no]
