"""`auto`: which way of using documents is the quickest for this question, by the lengths of what is
to be read.

Only ways in which every token of the answer's prompt attends to query and documents together, or to
a record that it was trained to read, are chosen among: the two layouts that put both records side
by side lose most where the model was not trained for them (grit: section 4.2), and are used when
asked for by name.

What reading and loading cost is measured, not assumed (`costs.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import num_parameters
from grit_jax.text.rag_layouts import RagMode

# In order of preference where they cost the same.
ROUTED: tuple[RagMode, ...] = ("doc-then-query", "doc", "query")
TEMPLATE_TOKENS = 32  # of a continuation beside query and documents


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations of a pass: for each token, and for each pair of a token and one
    that it sees.

    The kernels compute the pairs that a causal mask hides, too.
    """

    token: float
    pair: float

    @classmethod
    def of(cls, config: ModelConfig) -> Work:
        """That of a model; all experts count, which their measured rate makes up for."""
        tables = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        pair = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        return cls(2 * (num_parameters(config) - tables), pair)

    def reading(self, tokens: int, before: int = 0) -> float:
        """Of `tokens` new tokens after `before` ones that are in the cache."""
        return tokens * (self.token + self.pair * (before + tokens))


@dataclasses.dataclass(frozen=True)
class RouteCosts:
    """What the parts of an answer cost on one machine with one model.

    Attributes:
      flops: operations a second of reading a prompt.
      load_seconds, load_seconds_per_token: from the store's files to memory, each question and each
        token of its documents. Infinite where no record can be loaded.
      place_seconds_per_token: of a record, from memory to its place in the cache on the device.
    """

    work: Work
    flops: float
    load_seconds: float
    load_seconds_per_token: float
    place_seconds_per_token: float

    def read(self, tokens: int, before: int = 0) -> float:
        """Seconds for `tokens` new tokens after `before` cached ones."""
        return self.work.reading(tokens, before) / self.flops

    def load(self, tokens: int) -> float:
        """Seconds for documents of so many tokens, from the files to memory."""
        return self.load_seconds + tokens * self.load_seconds_per_token

    def place(self, tokens: int) -> float:
        """Seconds for records of so many tokens, from memory into the cache."""
        return tokens * self.place_seconds_per_token

    def worth_recording(self, query_tokens: int) -> bool:
        """Whether taking a query's record from the pass that embeds it, and putting it back, can be
        less than reading the query again."""
        return 2 * self.place(query_tokens) < self.read(query_tokens, TEMPLATE_TOKENS)


@dataclasses.dataclass(frozen=True)
class Route:
    """The chosen layout, and the estimated seconds of each, of what they do not have in common."""

    mode: RagMode
    seconds: dict[RagMode, float]


def route(
    query_tokens: int,
    document_tokens: Sequence[int],
    costs: RouteCosts,
    *,
    documents_stored: bool = True,
    query_recorded: bool = True,
    among: Sequence[RagMode] = ROUTED,
) -> Route:
    """The cheapest of `among`: tokens still to be read against records to be loaded.

    Args:
      documents_stored: their records are in a store; else a layout that uses them encodes them
        first.
      query_recorded: the query's record is at hand, because the pass that embedded it for retrieval
        left it.
    """
    query, documents = query_tokens, sum(document_tokens)
    read = lambda tokens, before=0: costs.read(tokens + TEMPLATE_TOKENS, before)
    load = (
        costs.load(documents)
        if documents_stored
        else sum(costs.read(tokens) for tokens in document_tokens)
    )
    load += costs.place(documents)
    record = costs.place(query) + (0.0 if query_recorded else costs.read(query))
    known: dict[RagMode, float] = {
        "none": read(query),
        "query-then-doc": read(query + documents),
        "doc-then-query": read(query + documents),
        "doc": load + read(query, documents),
        "query": record + read(documents, query),
        "query-doc": record + load + read(0, query + documents),
        "doc-query": record + load + read(0, query + documents),
    }
    seconds = {mode: known[mode] for mode in among}
    return Route(min(seconds, key=seconds.__getitem__), seconds)
