"""Comparing with an independent computation: its padded batches in our packed rows, its gradients
beside ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from grit_jax.data.packing import (
    EmbeddingPacking,
    GenerativePacking,
    embedding_batch,
    generative_batch,
)
from grit_jax.data.token_texts import TokenText
from grit_jax.training.gradients import joint_gradient
from grit_jax.training.step import StepConfig
from grit_jax.types import Batch, EmbeddingBatch, GenerativeBatch

IGNORED = -100


def unpadded(ids: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    """The tokens of each row."""
    return [row[kept == 1].tolist() for row, kept in zip(np.asarray(ids), np.asarray(mask))]


def embedding(
    queries: Mapping[str, np.ndarray],
    passages: Mapping[str, np.ndarray],
    row_length: int,
    **how: bool,
) -> EmbeddingBatch:
    """From `input_ids`, `attention_mask` `[B T]` and `instruction_lens` `[B]` of both sides."""
    sides = [unpadded(side["input_ids"], side["attention_mask"]) for side in (queries, passages)]
    prompts = [int(n) for side in (queries, passages) for n in side["instruction_lens"]]
    return embedding_batch(
        *sides, prompts, EmbeddingPacking(row_length=row_length, row_multiple=2, **how)
    )


def generative(batch: Mapping[str, np.ndarray], row_length: int, **how: bool) -> GenerativeBatch:
    """From `input_ids`, `attention_mask` and `labels` `[B T]`."""
    ids = unpadded(batch["input_ids"], batch["attention_mask"])
    labels = unpadded(batch["labels"], batch["attention_mask"])
    texts = [
        TokenText(row, [label != IGNORED for label in marks]) for row, marks in zip(ids, labels)
    ]
    return generative_batch(texts, GenerativePacking(row_length=row_length, row_multiple=2, **how))


@dataclasses.dataclass
class Gradients:
    """What a step computes before its update: the loss, its parts by name, and every weight's
    gradient."""

    loss: float
    parts: dict[str, float]
    gradients: dict[str, np.ndarray]


def joint_gradients(
    params: Mapping[str, np.ndarray], batch: Batch, config: StepConfig
) -> Gradients:
    """Ours, compiled. Rematerialisation is left out: it changes nothing but the time."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))
    run = jax.jit(lambda params, batch: joint_gradient(params, batch, config))
    (loss, parts), gradients = run(dict(params), batch)
    named = {name: np.asarray(gradient) for name, gradient in gradients.items()}
    return Gradients(float(loss), {name: float(part) for name, part in parts.items()}, named)


def assert_gradients_agree(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], relative: float = 2e-5
) -> None:
    """Each weight's gradient differs by at most `relative` of its norm, and no entry by more than
    `relative` of the largest."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found, expected = np.asarray(ours[name], np.float64), np.asarray(expected, np.float64)
        assert np.linalg.norm(expected) > 1e-6, f"{name}: no gradient to compare"
        gap = found - expected
        assert np.linalg.norm(gap) <= relative * np.linalg.norm(expected), (
            f"{name}: {norm_gap(found, expected):.2e}"
        )
        assert np.abs(gap).max() <= relative * np.abs(expected).max(), name


def norm_gap(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference, as a share of the expected one's."""
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))
