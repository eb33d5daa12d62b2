"""Model FLOPs: what a step has to compute whatever the program does; recomputation, padding and
masked scores are none.

Matrix products alone, a multiplication and an addition each one. A backward pass is two forward
ones, or one where the weights are frozen (no gradient of theirs). Tokens are those of texts at
their limits, as `data.shapes` has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import adapter_shapes
from grit_jax.models.parameters import parameter_shapes
from grit_jax.run_config import RunConfig
from grit_jax.training.throughput import weight_flops
from grit_jax.types import AttentionMode


@dataclasses.dataclass
class Texts:
    """`count` texts of `length` tokens that see themselves, and `cached` tokens before them.

    `predicted`: whether they pass through the vocabulary's head.
    """

    count: int
    length: int
    mode: AttentionMode
    cached: int = 0
    predicted: bool = False


def visible_pairs(length: int, mode: AttentionMode, window: int | None) -> int:
    """Pairs (query, key) of a text that attention computes."""
    reach = min(length, window or length)
    causal = reach * (reach + 1) // 2 + (length - reach) * reach
    # In prefix mode a block sees itself as well: as large as the text, that is everything.
    return causal if mode is AttentionMode.CAUSAL else 2 * causal - length


def attention_flops(config: ModelConfig, texts: Texts) -> int:
    """FLOPs of scores and of weighted values of one text, over all layers."""
    pairs = 0
    for kind in config.layer_kinds:
        seen = min(texts.cached, kind.window or texts.cached)
        pairs += visible_pairs(texts.length, texts.mode, kind.window) + texts.length * seen
    return 4 * config.num_attention_heads * config.head_dim * pairs


def forward_flops(config: ModelConfig, texts: Texts) -> int:
    """FLOPs of one pass over the texts."""
    head = 2 * config.hidden_size * config.vocab_size if texts.predicted else 0
    token = weight_flops(config, parameter_shapes(config)) + head
    return texts.count * (texts.length * token + attention_flops(config, texts))


def step_flops(config: RunConfig, model: ModelConfig) -> int:
    """Model FLOPs of one optimizer step over the whole batch."""
    sides = _sides(config)
    total = sum(_trained_flops(config, model, texts, True) for texts in _language(config))
    total += sum(_trained_flops(config, model, texts, trained) for texts, trained in sides)
    if sides:
        (queries, queries_trained), (passages, passages_trained) = sides
        widths = config.train.loss.matryoshka_dims or [config.model.projection or model.hidden_size]
        products = 1 + queries_trained + passages_trained
        directions = 2 if config.train.loss.symmetric else 1
        total += 2 * queries.count * passages.count * sum(widths) * products * directions
    return total


def _trained_flops(config: RunConfig, model: ModelConfig, texts: Texts, trained: bool) -> int:
    """Forward and, where it is trained, backward."""
    forward = forward_flops(model, texts)
    if not trained:
        return forward
    if config.lora is None:
        return 3 * forward
    adapters = weight_flops(model, adapter_shapes(config.lora, parameter_shapes(model)))
    attention = texts.count * attention_flops(model, texts)
    return 2 * (forward - attention) + 3 * attention + 3 * texts.count * texts.length * adapters


def _sides(config: RunConfig) -> list[tuple[Texts, bool]]:
    """Queries and passages, and whether each side is trained."""
    data, gradient, mode = config.data, config.train.gradient, config.model.modes.embedding
    if not data.embedding_batch:
        return []
    passages = data.embedding_batch * (data.positives_per_query + data.group_size - 1)
    return [
        (Texts(data.embedding_batch, data.query_max_length, mode), gradient != "passage"),
        (Texts(passages, data.passage_max_length, mode), gradient != "query"),
    ]


def _language(config: RunConfig) -> Iterable[Texts]:
    """The texts of the language losses, and the cached pieces that some of them read."""
    data, modes, limits = config.data, config.model.modes, config.data.limits()
    if data.generative_batch:
        yield Texts(data.generative_batch, limits.generative, modes.generation, predicted=True)
    if data.cached_batch:
        yield Texts(data.cached_batch, limits.cached_row, modes.embedding)
        yield Texts(
            data.cached_batch,
            limits.continuation_row,
            modes.generation,
            limits.cached_row,
            predicted=True,
        )
