"""What a store of records takes, and when an answer from one is worth it: closed forms."""

from __future__ import annotations

import dataclasses
import json
import math

import jax.numpy as jnp

from grit_jax.models.config import ModelConfig
from grit_jax.rag.codecs.axes import AXES
from grit_jax.rag.codecs.codecs import KINDS
from grit_jax.rag.codecs.pca import BITS
from grit_jax.rag.record_format import ALIGNMENT, LAYER_ALIGNMENT, NATIVE, PREFIX

HEADER_BYTES = 700  # about: a record's JSON, apart from the layers' checksums
CHECKSUM_BYTES = len(json.dumps(2**32)) + 1


def record_bytes(config: ModelConfig, kind: str, tokens: int) -> int:
    """Bytes of the record of a document, as it is stored (`rag/record_format.py`).

    The arrays are counted exactly, the JSON of the header about.

    Args:
      kind: one of `codecs.KINDS`; native records are in `config.dtype`.
    """
    layer = layer_bytes(config, kind, tokens)
    layer += -layer % LAYER_ALIGNMENT
    ids = tokens * (2 if config.vocab_size <= 1 << 16 else 4)
    start = PREFIX.size + HEADER_BYTES + CHECKSUM_BYTES * config.num_hidden_layers + ids
    return start + -start % ALIGNMENT + config.num_hidden_layers * layer


def layer_bytes(config: ModelConfig, kind: str, tokens: int) -> int:
    """Bytes of the arrays of one layer of a document."""
    K, H = config.num_key_value_heads, config.head_dim
    numbers = 2 * K * H  # of a token: a key and a value for each head
    if kind == NATIVE:
        return tokens * numbers * jnp.dtype(config.dtype).itemsize
    if kind == "pca2":
        return tokens * (BITS * numbers // AXES)
    ranges = 2 * K * jnp.dtype(jnp.bfloat16).itemsize  # low and step of a token's values
    return tokens * (numbers * int(kind.removeprefix("int")) // 8 + ranges)


def codecs_for(config: ModelConfig) -> list[str]:
    """The kinds of records that this model's keys and values can be stored as."""
    K, H = config.num_key_value_heads, config.head_dim
    impossible = {"int4": H % 2, "pca2": 2 * K * H % AXES}
    return [kind for kind in KINDS if not impossible.get(kind)]


@dataclasses.dataclass(frozen=True)
class CallSeconds:
    """Seconds of the engine's calls on a slice, at least.

    Attributes:
      prefill: of a chunk of a prompt in one slot of each share.
      cached_layer: of one layer of a record and of the prompt's chunk over it.
      decode: of one token in every slot.
      encode: of one batch of documents with their records.
    """

    prefill: float
    cached_layer: float
    decode: float
    encode: float


@dataclasses.dataclass(frozen=True)
class Workload:
    """Answers over one document each.

    Attributes:
      document_tokens, question_tokens: of the prompt; `new_tokens`: of the answer.
      chunk: tokens of a prompt that are read in one call.
      layers: of the model.
      slots: that decode together; `shares`: that read prompts side by side.
      chips: of the slice.
      encode_tokens: of a call that encodes documents.
    """

    document_tokens: int
    question_tokens: int
    new_tokens: int
    chunk: int
    layers: int
    slots: int
    shares: int
    chips: int
    encode_tokens: int

    def chunks(self, tokens: int) -> int:
        """Calls that read a prompt of `tokens` tokens."""
        return math.ceil(tokens / self.chunk)

    def first_token_seconds(self, seconds: CallSeconds) -> dict[str, float]:
        """From a request in an idle engine to its first token: the document read as a part of the
        prompt, or its record inserted layer by layer under the question's first chunk (loading it
        takes what `break_even_rate` compares with)."""
        whole = self.chunks(self.document_tokens + self.question_tokens)
        rest = self.chunks(self.question_tokens) - 1
        cached = self.layers * seconds.cached_layer + rest * seconds.prefill
        return {"read": whole * seconds.prefill, "cached": cached}

    def break_even_rate(self, seconds: CallSeconds, size: int) -> float | None:
        """Bytes per second and chip above which to load a record of `size` bytes takes less time
        than to read its document; None where reading is faster in any case.

        The chips of a share, among which a record's heads are split, load their parts together.
        """
        first = self.first_token_seconds(seconds)
        saved = first["read"] - first["cached"]
        return size / saved / (self.chips / self.shares) if saved > 0 else None

    def chip_seconds_per_answer(self, seconds: CallSeconds) -> dict[str, float]:
        """Of a full engine: all shares read prompts at once, and all slots decode together. A
        record is inserted into one share at a time."""
        decoding = self.new_tokens * seconds.decode / self.slots
        first = self.first_token_seconds(seconds)
        rest = self.chunks(self.question_tokens) - 1
        cached = self.layers * seconds.cached_layer + rest * seconds.prefill / self.shares
        return {
            "read": self.chips * (first["read"] / self.shares + decoding),
            "cached": self.chips * (cached + decoding),
        }

    def chip_seconds_per_document(self, seconds: CallSeconds) -> float:
        """To encode a document with its record, once."""
        return self.chips * seconds.encode * self.document_tokens / self.encode_tokens
