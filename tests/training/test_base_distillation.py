"""Generative rows distilled from the base of a LoRA run: the divergence, what it leaves alone, and
what starts at zero."""

from __future__ import annotations

import dataclasses

import dense_reference as dense
import jax
import lora_state
import numpy as np
import pytest

from grit_jax.data.packing import GenerativePacking, generative_batch
from grit_jax.data.token_texts import TokenText
from grit_jax.models.lora import LoraConfig
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.joint import StepConfig, joint_loss
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, make_optimizer
from grit_jax.training.step import make_step
from grit_jax.types import Batch

CONFIG = dataclasses.replace(lora_state.CONFIG, num_hidden_layers=1, scan_layers=False)
LORA = LoraConfig(rank=2, dropout=0.0, targets=("q_proj", "down_proj"))
TEXTS = [  # three answers, of 3, 2 and 4 tokens; the second is not distilled
    TokenText([5, 6, 7, 8, 9], [False] * 2 + [True] * 3),
    TokenText([4, 3, 2, 1], [False] * 2 + [True] * 2),
    TokenText([9, 9, 1, 2, 3, 4], [False] * 2 + [True] * 4),
]
DISTILLED = [True, False, True]


@pytest.fixture(scope="module")
def batch():
    return generative_batch(TEXTS, GenerativePacking(16, row_multiple=1), DISTILLED)


def logits(weights, ids):
    """Those of one text alone, in NumPy."""
    mask = np.tril(np.ones((len(ids), len(ids)), bool))
    return dense.forward(weights, CONFIG, ids, np.arange(len(ids)), mask).logits


def merged(base, adapters):
    """`W + alpha / rank * A B`."""
    weights = dict(base)
    for name in ("query", "down"):
        a, b = adapters[f"{name}_lora_a"], adapters[f"{name}_lora_b"]
        weights[name] = base[name] + LORA.alpha / LORA.rank * a @ b
    return weights


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("language", [1.0, 0.25, 0.0])
def test_the_step_compares_with_the_base_where_it_is_asked_to(batch, language):
    """Against NumPy over the texts one by one: the mean over all answer tokens, 0 where nothing is
    distilled; `distilled_language` weights the language loss where something is. New adapters
    change nothing, so they diverge from nothing."""
    assert batch.distilled.sum() == 5 + 6 and not batch.distilled[batch.rows.segments == 0].any()
    loss = LossConfig(
        generative_factor=0.5, generative_distillation=2.0, distilled_language=language
    )
    schedule = lambda step: 0.0
    optimizer = make_optimizer(OptimizerConfig(), schedule)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    step = make_step(StepConfig(CONFIG, loss, lora=LORA), optimizer, schedule)
    with jax.set_mesh(mesh):
        state = lora_state.start(CONFIG, LORA, optimizer, mesh)
        new, metrics = step(jax.tree.map(lambda x: x.copy(), state), Batch(generative=batch))
        assert float(metrics["loss_gen_kl"]) == pytest.approx(0, abs=1e-6)
        state.params = {name: a + 0.05 for name, a in state.params.items()}
        frozen = jax.device_get(state.frozen)
        adapted = merged(frozen, jax.device_get(state.params))
        _, metrics = step(state, Batch(generative=batch))
    divergences, losses = [], []
    for text, distilled in zip(TEXTS, DISTILLED):
        first = text.first_target
        p, q = (log_softmax(logits(w, text.ids))[first - 1 : -1] for w in (frozen, adapted))
        divergences.append((np.exp(p) * (p - q)).sum(-1) * distilled)
        losses.append(-q[np.arange(len(q)), text.ids[first:]] * (language if distilled else 1))
    divergence, nll = (np.concatenate(x).mean() for x in (divergences, losses))
    assert divergence > 1e-2
    assert float(metrics["loss_gen_kl"]) == pytest.approx(divergence, rel=1e-4)
    assert float(metrics["loss_gen"]) == pytest.approx(nll, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(0.5 * nll + 2 * divergence, rel=1e-5)


def test_a_base_and_marks_are_needed(batch):
    config = StepConfig(CONFIG, LossConfig(generative_distillation=1.0))
    params = lora_state.frozen_base(CONFIG, LORA)
    for marked, how in (
        (batch, config),
        (
            dataclasses.replace(batch, distilled=None),
            dataclasses.replace(config, base_weights_of=lambda params: params),
        ),
    ):
        with pytest.raises(ValueError, match="generative_distillation needs a base"):
            joint_loss(params, Batch(generative=marked), how)
