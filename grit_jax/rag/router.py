"""Mode `auto`: chooses the quickest layout for a question by the lengths of its texts.

The choice is among layouts in which every token of the continuation attends to query and documents
together, or to one record that the model was trained to read. The two layouts that put both records
side by side lose most quality in a model that was not trained for them (GRIT, section 4.2), and are
used only when asked for by name.

The costs of reading and loading are measured, not assumed (`route_costs.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import num_parameters
from grit_jax.text.rag_layouts import RagMode

# In order of preference at equal cost.
ROUTED: tuple[RagMode, ...] = ("doc-then-query", "doc", "query")
TEMPLATE_TOKENS = 32  # of a continuation, besides query and documents


@dataclasses.dataclass(frozen=True)
class PassWork:
    """Floating-point operations of a pass.

    Attributes:
      token: for each token.
      pair: for each pair of a token and a key that it may attend to. Kernels also compute the pairs
        that a causal mask hides.
    """

    token: float
    pair: float

    @classmethod
    def of(cls, config: ModelConfig) -> PassWork:
        """The operations of a model. All experts count; the measured rate corrects for that."""
        tables = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        pair = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        return cls(2 * (num_parameters(config) - tables), pair)

    def reading(self, tokens: int, before: int = 0) -> float:
        """Operations for `tokens` new tokens after `before` cached ones."""
        return tokens * (self.token + self.pair * (before + tokens))


@dataclasses.dataclass(frozen=True)
class RouteCosts:
    """What the parts of an answer cost on one machine with one model.

    Attributes:
      flops: operations per second of reading a prompt.
      load_seconds, load_seconds_per_token: from the store's files to memory, per question and per
        token of its documents. Infinite if no record can be loaded.
      place_seconds_per_token: of a record, from memory into the cache on the device.
    """

    work: PassWork
    flops: float
    load_seconds: float
    load_seconds_per_token: float
    place_seconds_per_token: float

    def read(self, tokens: int, before: int = 0) -> float:
        """Seconds for `tokens` new tokens after `before` cached ones."""
        return self.work.reading(tokens, before) / self.flops

    def load(self, tokens: int) -> float:
        """Seconds for documents of `tokens` tokens, from the files to memory."""
        return self.load_seconds + tokens * self.load_seconds_per_token

    def place(self, tokens: int) -> float:
        """Seconds for records of `tokens` tokens, from memory into the cache."""
        return tokens * self.place_seconds_per_token

    def worth_recording(self, query_tokens: int) -> bool:
        """Whether taking a query's record from the pass that embeds it, and placing it, can cost
        less than reading the query again."""
        return 2 * self.place(query_tokens) < self.read(query_tokens, TEMPLATE_TOKENS)


@dataclasses.dataclass(frozen=True)
class RouteChoice:
    """The chosen layout, and the estimated seconds of each, without what all have in common."""

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
) -> RouteChoice:
    """The cheapest layout of `among`: reading tokens costs against loading records.

    Args:
      documents_stored: whether the documents' records are in a store; if not, a layout that uses
        them has to encode them first.
      query_recorded: whether the pass that embedded the query for retrieval kept its record.
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
    return RouteChoice(min(seconds, key=seconds.__getitem__), seconds)
