"""The paper's attention codes: who sees whom when embedding and when generating."""

from __future__ import annotations

import dataclasses

from grit_jax.types import AttentionMode

_EMBEDDING = {"bb": AttentionMode.BIDIRECTIONAL, "cc": AttentionMode.CAUSAL, "cb": AttentionMode.PREFIX}
_GENERATION = {"cc": AttentionMode.CAUSAL, "bc": AttentionMode.PREFIX}


@dataclasses.dataclass(frozen=True)
class AttentionModes:
    """The mode of an embedding pass and that of a generating one."""

    embedding: AttentionMode
    generation: AttentionMode


# Four letters: instruction and sample when embedding, then when generating; `b` is bidirectional, `c` causal (grit.md
# 2.2). Of two letters, "bc" (a prefix language model) speaks of generation and leaves embedding bidirectional, the
# others speak of embedding and leave generation causal.
ATTENTION_CODES = {
    first + second: AttentionModes(embedding, generation)
    for first, embedding in _EMBEDDING.items()
    for second, generation in _GENERATION.items()
} | {
    "bb": AttentionModes(AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL),
    "cc": AttentionModes(AttentionMode.CAUSAL, AttentionMode.CAUSAL),
    "cb": AttentionModes(AttentionMode.PREFIX, AttentionMode.CAUSAL),
    "bc": AttentionModes(AttentionMode.BIDIRECTIONAL, AttentionMode.PREFIX),
}
