"""The engine's state on the device, and what its programs are given and give back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grit_jax.inference.adjustments import AdjustmentRows, SlotAdjustments
from grit_jax.inference.logprobs import TokenLogprobs
from grit_jax.inference.sampling import SamplingRows, SlotSettings
from grit_jax.models.config import ModelConfig
from grit_jax.models.slot_cache import SlotCache, Span, empty_slots
from grit_jax.types import AttentionMode

CAUSAL = AttentionMode.CAUSAL


@dataclasses.dataclass(frozen=True)
class EngineShape:
    """Static sizes of an engine's state.

    Attributes:
      slots: requests that are decoded together; a multiple of the mesh's row shards.
      capacity: tokens of a slot: prompt and answer, and records where they are kept beside them.
      int8_records: tokens of records that a slot holds as int8, apart from the others; 0: records
        are kept with prompt and answer, in the dtype of the model.
      adjustable: whether requests may have `Adjustments`.
      adapters: how many adapters the weights have (`models.adapter_stack`).
    """

    slots: int
    capacity: int
    int8_records: int = 0
    adjustable: bool = False
    adapters: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class EngineState:
    """All slots of an engine.

    Attributes:
      cache: prompts and answers, and records unless they are in a cache of their own.
      records: int8 records, before what `cache` holds.
      token: the last token chosen, which is not in the cache yet.
      count: tokens of the answer that are chosen, `token` included.
      active: slots whose answers go on.
      finite: slots whose logits and caches have all been finite; an answer ends with the first that
        are not.
      adjustments: of the requests, in an adjustable engine.
      adapters: of the requests, 0 for none; None where the weights have no adapters.
    """

    cache: SlotCache
    records: SlotCache | None
    token: Int[Array, " B"]
    count: Int[Array, " B"]
    active: Bool[Array, " B"]
    finite: Bool[Array, " B"]
    settings: SlotSettings
    adjustments: SlotAdjustments | None = None
    adapters: Int[Array, " B"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PromptChunk:
    """A part of a prompt in one slot of each share: right-padded tokens, and where they go.

    Attributes:
      mode: causal, or bidirectional for a prefix language model, whose prompt is one chunk; static.
      adapters: of the prompts, as in `EngineState`.
    """

    tokens: Int[Array, "P T"]
    span: Span
    mode: AttentionMode = dataclasses.field(metadata={"static": True}, default=CAUSAL)
    adapters: Int[Array, " P"] | None = None

    @property
    def segments(self) -> Int[Array, "P T"]:
        """1 for a token, 0 for padding."""
        index = jnp.arange(self.tokens.shape[1])
        return (index < self.span.count[:, None]).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LastChunk:
    """The shares whose prompt ends with a chunk, their requests' settings, the tokens that end an
    answer (as in `generate`), and adjustments in an adjustable engine."""

    here: Bool[Array, " P"]
    settings: SlotSettings
    eos: Int[Array, " n"] | Int[Array, "A n"]
    adjustments: AdjustmentRows | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Chosen:
    """Tokens chosen in one call, for the host to read while the next call runs.

    Attributes:
      tokens: of each slot, in their order; an end of sequence is among them.
      counts: how many of them each slot has.
      active, finite: as `EngineState`, after the call.
      logits: those that each token was chosen from, if they were asked for.
      logprobs: of the tokens, in an adjustable engine; zeros where no slot asks for them.
    """

    tokens: Int[Array, "B n"]
    counts: Int[Array, " B"]
    active: Bool[Array, " B"]
    finite: Bool[Array, " B"]
    logits: Float[Array, "B n V"] | None = None
    logprobs: TokenLogprobs | None = None


def empty_state(config: ModelConfig, shape: EngineShape) -> EngineState:
    """An engine's state without requests."""
    B = shape.slots
    zeros, no = jnp.zeros(B, jnp.int32), jnp.zeros(B, bool)
    greedy = SamplingRows(jnp.zeros(B), jnp.ones(B), zeros, jnp.zeros(B, jnp.uint32))
    settings = SlotSettings(greedy, jnp.ones(B, jnp.int32), no)
    records = None
    if shape.int8_records:
        records = empty_slots(config, B, shape.int8_records, jnp.dtype(jnp.int8))
    cache = empty_slots(config, B, shape.capacity)
    adjustments = SlotAdjustments.empty(B, config.vocab_size) if shape.adjustable else None
    finite, adapters = jnp.ones(B, bool), zeros if shape.adapters else None
    return EngineState(cache, records, zeros, zeros, no, finite, settings, adjustments, adapters)
