"""Losses, gradients and two AdamW steps against files that torch made of the original's formulas
(see make_golden.py).

There the batches are padded, here they are packed rows.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax
import parity
import pytest
from safetensors.numpy import load_file

from grit_jax.models.hf.directory import read_model_directory
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, make_optimizer, make_schedule
from grit_jax.training.step import StepConfig
from grit_jax.types import Batch

GOLDEN = Path(__file__).parent / "golden"
ROW_LENGTH = 32
# How the files were made: see make_golden.py.
TOKEN_FACTOR, GROUP, LR, WEIGHT_DECAY, SMALL = 0.3, 2, 1e-2, 0.1, 0.02


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def model():
    found = read_model_directory(GOLDEN)
    return found.config, {name: np.asarray(value) for name, value in found.params.items()}


def part(golden, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in golden.items()
        if name.startswith(prefix)
    }


def number(golden, name):
    return float(golden[name][0])


@pytest.fixture(scope="module")
def batch(golden):
    found = Batch(
        embedding=parity.embedding(part(golden, "queries/"), part(golden, "passages/"), ROW_LENGTH),
        generative=parity.generative(part(golden, "sequences/"), ROW_LENGTH),
    )
    # Several texts in a row, or packing would not be seen.
    assert found.embedding.rows.segments.max() > 2 and found.generative.rows.segments.max() > 1
    return found


def ours(model, batch, **loss):
    config, params = model
    return parity.joint_gradients(params, batch, StepConfig(config, LossConfig(**loss)))


def test_joint_losses_and_gradients(golden, model, batch):
    """`emb + groups`."""
    found = ours(model, batch, mix_group_size=GROUP)
    emb, groups = number(golden, "loss/emb"), number(golden, "loss/groups")
    assert found.parts["loss_emb"] == pytest.approx(emb, rel=1e-5)
    assert found.parts["loss_gen"] == pytest.approx(groups, rel=1e-5)
    assert found.loss == pytest.approx(emb + groups, rel=1e-5)
    contrastive, generative = part(golden, "gradient/emb/"), part(golden, "gradient/groups/")
    parity.assert_gradients_agree(
        found.gradients, {name: contrastive[name] + generative[name] for name in contrastive}
    )


def test_token_loss_with_its_factor(golden, model, batch):
    found = ours(
        model,
        Batch(generative=batch.generative),
        generative="token",
        generative_factor=TOKEN_FACTOR,
    )
    assert found.loss == pytest.approx(number(golden, "loss/token"), rel=1e-5)
    parity.assert_gradients_agree(found.gradients, part(golden, "gradient/token/"))


def test_mixed_loss_of_the_whole_batch(golden, model, batch):
    found = ours(model, Batch(generative=batch.generative))
    assert found.loss == pytest.approx(number(golden, "loss/mixed"), rel=1e-5)
    # The groups differ from it: a mistake in them would be seen.
    assert abs(number(golden, "loss/mixed") / number(golden, "loss/groups") - 1) > 1e-3


def test_two_adamw_steps_the_first_one_clipped(golden, model):
    """What is compared is each weight's change."""
    emb, groups, token = (part(golden, f"gradient/{name}/") for name in ("emb", "groups", "token"))
    gradients = [{k: emb[k] + groups[k] for k in emb}, {k: SMALL * token[k] for k in token}]
    norms = [
        np.sqrt(sum(np.sum(np.square(x)) for x in gradient.values())) for gradient in gradients
    ]
    np.testing.assert_allclose(norms, golden["norms"], rtol=1e-5)
    config = OptimizerConfig(
        lr=LR, weight_decay=WEIGHT_DECAY, schedule="constant", warmup_fraction=0.0, clip_norm=1.0
    )
    assert norms[0] > config.clip_norm > norms[1]
    optimizer = make_optimizer(config, make_schedule(config, 2))

    @jax.jit
    def steps(params):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    stepped = steps(model[1])
    for name, expected in part(golden, "stepped/").items():
        gap = parity.norm_gap(np.asarray(stepped[name]) - model[1][name], expected - model[1][name])
        assert gap < 1e-4, f"{name}: {gap:.2e}"
