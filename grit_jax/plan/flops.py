"""Model FLOPs (see `training/flops.py`) of a configuration's step, without its data.

Tokens are those of texts at their length limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from grit_jax.models.config import ModelConfig, Remat
from grit_jax.models.lora import adapter_shapes
from grit_jax.models.parameters import parameter_shapes
from grit_jax.run_config import RunConfig
from grit_jax.training.flops import (
    attention_flops,
    head_flops,
    trained_flops,
    visible_pairs,
    weight_flops,
)
from grit_jax.types import AttentionMode


@dataclasses.dataclass
class Texts:
    """`count` texts of `length` tokens, each of which sees itself and `cached` tokens before it.

    `predicted`: they pass through the vocabulary's head.
    """

    count: int
    length: int
    mode: AttentionMode
    cached: int = 0
    predicted: bool = False


def text_attention_flops(config: ModelConfig, texts: Texts) -> int:
    """FLOPs of scores and of weighted values of one text, over all layers."""
    bidirectional = 0 if texts.mode is AttentionMode.CAUSAL else texts.length
    pairs = 0
    for kind in config.layer_kinds:
        pairs += int(visible_pairs(texts.length, bidirectional, kind.window))
        pairs += texts.length * min(texts.cached, kind.window or texts.cached)
    return attention_flops(config, pairs)


def forward_flops(config: ModelConfig, texts: Texts) -> int:
    """FLOPs of one pass over the texts."""
    return _matrix_flops(config, texts) + texts.count * text_attention_flops(config, texts)


def _matrix_flops(config: ModelConfig, texts: Texts) -> int:
    token = weight_flops(config, parameter_shapes(config))
    if texts.predicted:
        token += head_flops(config)
    return texts.count * texts.length * token


def step_flops(config: RunConfig, model: ModelConfig) -> int:
    """Model FLOPs of one optimizer step over the whole batch."""
    sides = _sides(config)
    total = sum(_trained_flops(config, model, texts, True) for texts in _language(config))
    total += sum(_trained_flops(config, model, texts, trained) for texts, trained in sides)
    total += _forward_only_flops(config, model)
    if sides:
        (queries, queries_trained), (passages, passages_trained) = sides
        widths = config.train.loss.matryoshka_dims or [config.model.projection or model.hidden_size]
        products = 1 + queries_trained + passages_trained
        directions = 2 if config.train.loss.symmetric else 1
        total += 2 * queries.count * passages.count * sum(widths) * products * directions
    return total


def _forward_only_flops(config: RunConfig, model: ModelConfig) -> int:
    """FLOPs of passes without a backward one: of teachers and of a reference model, and over
    mismatched texts (`data/preference.py`). A teacher that reads cached documents as text has
    logits where the student has its own."""
    data, loss, limits = config.data, config.train.loss, config.data.limits()
    mode, total = config.model.modes.generation, 0
    if data.cached_batch and loss.cached_distillation:
        total += forward_flops(model, Texts(data.cached_batch, limits.teacher_row, mode))
        total += data.cached_batch * limits.continuation_row * head_flops(model)
    if data.generative_batch and loss.generative_distillation:
        texts = Texts(data.generative_batch, limits.generative, mode, predicted=True)
        total += forward_flops(model, texts)
    if data.preference_batch:
        # KTO: the reference model reads the texts, and both models read as many mismatched ones.
        passes = 3 if loss.preference == "kto" else 1
        total += passes * forward_flops(model, _preference_texts(config))
    return total


def _preference_texts(config: RunConfig) -> Texts:
    """The answers of a step with their prompts."""
    data, mode = config.data, config.model.modes.generation
    count = data.preference_batch * (2 if config.train.loss.preference == "dpo" else 1)
    return Texts(count, data.preference_max_length, mode, predicted=True)


# Weights whose products a layer's backward pass computes again, by rematerialisation policy
# (`models/transformer.py`: REMAT_POLICIES), and whether it computes scores and weighted values
# again. The last product of a layer, "down", is not needed for its gradient; "dots" keeps no
# products with experts.
_AGAIN = (
    "query",
    "key",
    "value",
    "attention_out",
    "gate",
    "up",
    "router",
    "expert_gate",
    "expert_up",
)
RECOMPUTED: dict[Remat, tuple[tuple[str, ...], bool]] = {
    "full": (_AGAIN, True),
    "offload": (_AGAIN, True),
    "save_attention": (_AGAIN, False),
    "save_qkv": (_AGAIN[3:], False),
    "dots": (("expert_gate", "expert_up"), True),
    "none": ((), False),
}


def recomputed_flops(config: RunConfig, model: ModelConfig, remat: Remat, *, chunked: bool) -> int:
    """FLOPs that one optimizer step repeats, at least, over the whole batch.

    Args:
      chunked: texts of the contrastive loss are taken in chunks: each is embedded once more.
    """
    names, attention = RECOMPUTED[remat]
    shapes = parameter_shapes(model)
    token = weight_flops(model, {name: shapes[name] for name in names if name in shapes})

    def again(texts: Texts) -> int:
        layer = text_attention_flops(model, texts) if attention else 0
        return texts.count * (texts.length * token + layer)

    total = sum(again(texts) for texts in _language(config))
    for texts, trained in _sides(config):
        if trained:
            total += again(texts) + (forward_flops(model, texts) if chunked else 0)
    return total


def _trained_flops(config: RunConfig, model: ModelConfig, texts: Texts, trained: bool) -> int:
    """Forward and, where it is trained, backward."""
    adapters = None
    if config.lora is not None:
        shapes = adapter_shapes(config.lora, parameter_shapes(model))
        adapters = texts.count * texts.length * weight_flops(model, shapes)
    attention = texts.count * text_attention_flops(model, texts)
    return trained_flops(_matrix_flops(model, texts), attention, adapters, trained=trained)


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
    """The texts of the language losses, and the cached texts that some of them read."""
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
    if data.preference_batch:
        yield _preference_texts(config)
