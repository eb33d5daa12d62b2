"""Batches and results that several rooms share: plain dataclasses, registered as JAX pytrees.

Axis letters are those of the whole package: `B` rows, `T` query tokens, `S` key tokens, `D` model,
`N` query heads, `K` key/value heads, `G` query heads for each of those, `H` head dimension, `F`
feed-forward, `V` vocabulary, `L` layers, `E` experts, `M` segments (texts) in a row, `Q` queries
and `P` passages of a contrastive batch. Row arrays are packed: a row holds several texts, which
`segments` tells apart (1, 2, ... in each row; 0 is padding).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class AttentionMode(enum.Enum):
    """Which tokens of a segment see which. Static: each mode compiles to its own program.

    >>> AttentionMode("causal")
    <AttentionMode.CAUSAL: 'causal'>
    """

    BIDIRECTIONAL = "bidirectional"
    CAUSAL = "causal"
    PREFIX = "prefix"  # causal, but for the blocks of `Rows.blocks`


# One mode for all rows, or blocks of (mode, number of rows) that follow one another and repeat
# until all rows have one.
Mode: TypeAlias = "AttentionMode | tuple[tuple[AttentionMode, int], ...]"


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Rows:
    """Packed rows of texts.

    `positions` count from 0 inside each text (rotary positions), `segments` from 1 in each row.
    `blocks` belong to the prefix mode: a token of block `n > 0` also sees the later tokens of its
    own block in its segment; 0 is a causal token. The prompt as a block is a prefix language model,
    the sample as a block the paper's embedding with a causal instruction ("cb"). `adapters` are
    those of the tokens (see `models.adapter_stack`), for weights that have several.

    Two texts, of two tokens and of one, and a token of padding:

    >>> rows = Rows(
    ...     tokens=np.array([[7, 8, 9, 0]]),
    ...     positions=np.array([[0, 1, 0, 0]]),
    ...     segments=np.array([[1, 1, 2, 0]]),
    ... )
    >>> rows.tokens[rows.segments == 1].tolist()
    [7, 8]
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    blocks: Int[Array, "B T"] | None = None
    adapters: Int[Array, "B T"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class EmbeddingBatch:
    """All texts of a contrastive batch, queries and passages packed into the same rows.

    Attributes:
      pool: the tokens that mean pooling averages (instruction and tags excluded).
      queries: where each query is: `row * segments_per_row + segment - 1`.
      passages: where each passage is; those of query `i` stand at `i * group_size ...`, its
        positives first.
      segments_per_row: `M` of the pooled array; static.
      query_rows: how many of the first rows hold the queries, the others the passages; 0 where any
        row holds both; static.
      positives: how many of each query's passages are positives; static.
      texts: a number for each passage, the same for passages that are equal token for token.
      present: False where a query has fewer positives than others; None where all have as many.
      scores: a teacher's, where the run distils one.
    """

    rows: Rows
    pool: Bool[Array, "B T"]
    queries: Int[Array, " Q"]
    passages: Int[Array, " P"]
    segments_per_row: int = dataclasses.field(metadata={"static": True}, default=1)
    query_rows: int = dataclasses.field(metadata={"static": True}, default=0)
    positives: int = dataclasses.field(metadata={"static": True}, default=1)
    texts: Int[Array, " P"] | None = None
    present: Bool[Array, " P"] | None = None
    scores: Float[Array, " P"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class GenerativeBatch:
    """Packed sequences for the language loss.

    Attributes:
      targets: 1 where a token is to be predicted (from the one before it): answers and their end of
        sequence.
      sequence: the number of the example that a token belongs to, 0 ... in batch order (0 at
        padding, where `targets` is 0).
      sequences: how many examples there are; static.
      distilled: True at the tokens of examples that the run distils from the base model; None where
        it distils none.
      max_targets: the most targets of a row, rounded up, where losses are computed at targets alone
        (as distillation does); 0: at all tokens; static.
    """

    rows: Rows
    targets: Float[Array, "B T"]
    sequence: Int[Array, "B T"]
    sequences: int = dataclasses.field(metadata={"static": True}, default=1)
    distilled: Bool[Array, "B T"] | None = None
    max_targets: int = dataclasses.field(metadata={"static": True}, default=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TeacherRows:
    """The examples of a `CachedBatch` as a teacher reads them: documents, question and answer in
    one text, nothing cached.

    Attributes:
      rows: row `i` holds the examples of row `i` of `CachedBatch.text`.
      columns: for each target of `text`, the token of the teacher's row that predicts the same
        token; -1 where there is no target or no teacher.
    """

    rows: Rows
    columns: Int[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class CachedBatch:
    """Sequences that continue after cached texts (documents, or a query in the embedding format).

    A row may hold several examples; an example without cached texts (a layout without cache) is
    just its text.

    Attributes:
      cached_texts: encoded bidirectionally, each its own segment, blind to the others; row `i` of
        `text` reads those of row `i`.
      cached_owner: the segment of `text` that a cached token belongs to; 0 is padding.
      cached_positions: the rotary position of a cached token in the cache.
      text: what continues after them.
      teacher: the same examples without caches, where the run distils them.
    """

    cached_texts: Rows
    cached_owner: Int[Array, "B S"]
    cached_positions: Int[Array, "B S"]
    text: GenerativeBatch
    teacher: TeacherRows | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PreferenceBatch:
    """Prompts with answers that are preferred, or not, for a preference loss.

    Attributes:
      text: packed prompts with their answers, which are the targets; `text.sequences` is `n`.
      desirable: KTO: whether answer `i` is a desirable one. None (DPO): sequence `i` is the chosen
        answer of pair `i` and sequence `n / 2 + i` the rejected one, both in the same row.
      mismatched: KTO: each prompt with the answer to another one, for the reference point; None
        with DPO.
    """

    text: GenerativeBatch
    desirable: Bool[Array, " n"] | None = None
    mismatched: GenerativeBatch | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    """The data of one optimizer step. A part that the run does not train is None."""

    embedding: EmbeddingBatch | None = None
    generative: GenerativeBatch | None = None
    cached: CachedBatch | None = None
    preference: PreferenceBatch | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class KV:
    """Keys (before rotary embedding) and values of the tokens of one forward pass.

    Head by head in the axis order of the cache (`cache.KVCache`): tokens are last in the keys, and
    before the head dimension in the values. A layer of them is `[B K H T]` and `[B K T H]`.
    """

    k: Float[Array, "L B K H T"]
    v: Float[Array, "L B K T H"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class RouterStats:
    """How the tokens of a pass were spread over experts, averaged over layers and over tokens that
    are not padding.

    Attributes:
      chosen: how many of a token's choices fell on each expert.
      probability: the router's, before the choice.
    """

    chosen: Float[Array, " E"]
    probability: Float[Array, " E"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ModelOutput:
    """The result of a forward pass; at padding its arrays hold nothing of use.

    Attributes:
      hidden: hidden states after the final norm.
      kv: the tokens' own keys and values, where they were asked for.
      router: expert statistics, where the model has experts.
      head: makes logits of hidden states; set by `GritLM.__call__` (static).
    """

    hidden: Float[Array, "B T D"]
    kv: KV | None = None
    router: RouterStats | None = None
    head: Callable[[jax.Array], jax.Array] | None = dataclasses.field(
        default=None, repr=False, metadata={"static": True}
    )

    @functools.cached_property
    def logits(self) -> Float[Array, "B T V"]:
        """Next-token logits in float32, computed when first asked for.

        Inside a compiled program, where `head` is None, call `Transformer.logits(output.hidden)`.
        """
        if self.head is None:
            raise AttributeError("this output has no logits; call Transformer.logits(hidden)")
        return self.head(self.hidden)


@dataclasses.dataclass
class DocumentKV:
    """A text's keys (before rotary embedding) and values from one encoding pass, in host arrays.

    The same record serves every RAG layout: inserting it into a working cache rotates its keys to
    their positions there. The axes are those of `KV`.
    """

    tokens: Int[np.ndarray, " T"]
    k: Float[np.ndarray, "L K H T"]
    v: Float[np.ndarray, "L K T H"]

    codec: ClassVar[None] = None  # see `inference.records.KVRecord`

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Keys and values by name."""
        return {"k": self.k, "v": self.v}

    def layer(self, layer: int) -> dict[str, np.ndarray]:
        """The keys `[K H T]` and values `[K T H]` of a layer."""
        return {"k": self.k[layer], "v": self.v[layer]}
