"""Training adapters: what learns, what stays, and the gradient against that of all weights."""

from __future__ import annotations

import dataclasses

import jax
import lora_state
import numpy as np
import pytest
from lora_state import CONFIG, LORA

from grit_jax.models.lora import AdaptedWeight, LoraConfig, attach, init_adapters
from grit_jax.models.transformer import parameter_shapes
from grit_jax.training.joint import StepConfig, joint_loss
from grit_jax.training.losses import LossConfig
from grit_jax.types import Batch


@pytest.fixture(scope="module")
def trained(batch):
    return lora_state.run(batch, steps=15)


def test_every_loss_falls_and_the_base_stays_bit_for_bit(trained):
    metrics, before, after, _ = trained
    for name in ("loss_emb", "loss_gen", "loss_cached"):
        assert metrics[-1][name] < 0.9 * metrics[0][name], name
    for one, two in zip(jax.tree.leaves(before.frozen), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(one, two)
    assert all(
        np.abs(after.params[name] - value).max() > 1e-4 for name, value in before.params.items()
    )


def test_only_adapters_have_optimizer_state(trained):
    _, before, _, _ = trained
    moments = [leaf.shape for leaf in jax.tree.leaves(before.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted([value.shape for value in before.params.values()] * 2)
    assert {name.rpartition("_lora_")[0] for name in before.params} == {
        "query",
        "key",
        "value",
        "attention_out",
        "gate",
        "up",
        "down",
    }


@pytest.mark.slow
def test_the_gradient_follows_from_that_of_all_weights(batch):
    """With `W = base + s A B`: dA = s dW B^T and dB = s A^T dW, dW from training all weights at the
    merged ones."""
    lora, step = dataclasses.replace(LORA, dropout=0.0), StepConfig(CONFIG, LossConfig())
    base = lora_state.frozen_base(CONFIG, lora)
    adapters = jax.jit(lambda: init_adapters(lora, parameter_shapes(CONFIG), jax.random.key(1)))()
    draw = lambda i, a: 0.05 * jax.random.normal(jax.random.key(i), a.shape)
    adapters = {
        n: draw(i, a) if n.endswith("_b") else a for i, (n, a) in enumerate(adapters.items())
    }
    plain = lambda w: (
        np.stack([w[i] for i in range(CONFIG.num_hidden_layers)])
        if isinstance(w, AdaptedWeight)
        else w
    )
    merged = {name: plain(weight) for name, weight in attach(base, adapters, lora).items()}

    whole = jax.jit(jax.grad(lambda p: joint_loss(p, batch, step)[0]))(merged)
    adapted = dataclasses.replace(step, weights_of=lambda p: attach(base, p, lora))
    found = jax.jit(jax.grad(lambda p: joint_loss(p, batch, adapted)[0]))(adapters)
    for name in {name.rpartition("_lora_")[0] for name in adapters}:
        a, b, dw = adapters[name + "_lora_a"], adapters[name + "_lora_b"], whole[name]
        for factor, expected in (
            ("_lora_a", 4.0 * dw @ b.swapaxes(1, 2)),
            ("_lora_b", 4.0 * a.swapaxes(1, 2) @ dw),
        ):
            size = np.abs(expected).max()
            np.testing.assert_allclose(
                found[name + factor], expected, atol=2e-5 * size, err_msg=name + factor
            )
            assert size > 1e-4


@pytest.mark.parametrize(
    "change, step",
    [
        pytest.param({"remat": "full"}, {"embedding_chunk": 3}, marks=pytest.mark.slow),
        pytest.param(
            {"remat": "dots", "scan_layers": False},
            {"backward": "separate", "generative_chunk": 4},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["chunks", "all at once"],
)
def test_recomputation_chunks_and_scan_change_nothing_with_dropout_either(
    batch, trained, change, step
):
    metrics, *_ = lora_state.run(batch, dataclasses.replace(CONFIG, **change), **step)
    for one, other in zip(trained[0][:3], metrics):
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=5e-5), name


@pytest.mark.slow
def test_dropout_is_in_the_step_and_follows_the_seed(batch):
    only = Batch(generative=batch.generative)
    first = lambda **how: [m["loss"] for m in lora_state.run(only, steps=2, **how)[0]]
    zero, one = first(), first(seed=1)
    without = first(lora=dataclasses.replace(LORA, dropout=0.0))
    assert zero[0] == one[0] == without[0]  # new adapters add nothing, whatever is dropped
    assert len({zero[1], one[1], without[1]}) == 3


def test_a_projection_is_trained_beside_the_adapters(batch):
    """As the base has it; all of it in the optimizer, in checkpoints, and in the exported model."""
    only = Batch(embedding=batch.embedding)
    lora = LoraConfig(rank=2, alpha=8.0, dropout=0.0, targets=("q_proj", "down_proj"))
    metrics, before, after, _ = lora_state.run(only, lora=lora, steps=6, projection=8)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert len(before.params) == 4 + 2 and before.params["embedding_projection"].shape == (128, 8)
    assert (
        np.abs(after.params["embedding_projection"] - before.params["embedding_projection"]).max()
        > 1e-4
    )
    assert after.weights(lora)["embedding_projection"] is after.params["embedding_projection"]
