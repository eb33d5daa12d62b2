"""Both losses through the layers together: the gradient of each alone, whatever the chunks and the
devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import init_params
from grit_jax.plan.program_costs import program_costs
from grit_jax.sharding import MeshConfig, make_mesh, put_rows
from grit_jax.training.gradient_plan import can_fuse
from grit_jax.training.gradients import joint_gradient
from grit_jax.training.joint import StepConfig
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer
from grit_jax.types import AttentionMode, Batch

LOSS = LossConfig(temperature=0.1, generative_factor=0.7, cached_factor=2.0)
EXPERTS = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    router_aux_loss_coef=0.3,
    tie_word_embeddings=True,
    dtype="float32",
    initializer_range=0.3,
)


def gradient(params, batch, **how):
    return jax.jit(lambda p, b: joint_gradient(p, b, StepConfig(fuse=True, **how)))(params, batch)


def assert_equal(found, expected, rtol=1e-5):
    ((loss, parts), grads), ((expected_loss, expected_parts), expected_grads) = found, expected
    assert parts.keys() == expected_parts.keys()
    np.testing.assert_allclose(loss, expected_loss, rtol=rtol)
    for name, value in expected_parts.items():
        np.testing.assert_allclose(parts[name], value, rtol=rtol, err_msg=name)
    for name, value in expected_grads.items():
        error = np.abs(np.asarray(grads[name] - value)).max() / np.abs(np.asarray(value)).max()
        assert error < rtol, (name, error)


@pytest.fixture(scope="module")
def shallow(config):
    """One layer: whether gradients add up does not hang on more."""
    return dataclasses.replace(config, num_hidden_layers=1, scan_layers=False)


@pytest.fixture(scope="module")
def params(shallow):
    return init_params(shallow, jax.random.key(0))


# Of 8 and 8 rows.
@pytest.mark.parametrize(
    "chunks, loss, side",
    [
        ((None, None), {"generative": "token"}, "query"),
        ((3, 5), {"generative": "mixed", "mix_group_size": 3}, "both"),  # chunks that leave a rest
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ((None, None), {"generative": "mixed"}, "both"),
                ((2, 4), {"generative": "mixed"}, "passage"),  # more chunks of embedding rows
                ((4, 2), {"generative": "token"}, "both"),  # more chunks of generative rows
                ((4, None), {"generative": "token"}, "query"),
                ((None, 100), {"generative": "token"}, "both"),  # a chunk that takes all
            ]
        ),
    ],
)
def test_equals_the_losses_one_after_the_other(shallow, params, batch, chunks, loss, side):
    how = {"model": shallow, "loss": dataclasses.replace(LOSS, **loss), "gradient": side}
    assert can_fuse(batch, StepConfig(fuse=True, **how))
    separate = gradient(params, batch, backward="separate", **how)
    assert_equal(
        gradient(params, batch, embedding_chunk=chunks[0], generative_chunk=chunks[1], **how),
        separate,
    )


def test_rows_distilled_from_a_base(shallow, params, batch):
    """Whether together or one after the other, in chunks or not; the base is not trained."""
    text = batch.generative
    text = dataclasses.replace(text, distilled=text.sequence % 3 > 0)
    batch = Batch(batch.embedding, text)
    loss = dataclasses.replace(LOSS, generative_distillation=2.0, mix_group_size=3)
    base_of = lambda params: {name: 0.7 * value for name, value in params.items()}
    how = {"model": shallow, "loss": loss, "base_weights_of": base_of}
    separate = gradient(params, batch, backward="separate", **how)
    assert separate[0][1]["loss_gen_kl"] > 0.01
    assert_equal(gradient(params, batch, **how), separate)
    assert_equal(gradient(params, batch, embedding_chunk=3, generative_chunk=5, **how), separate)


def test_modes(shallow, params, batch):
    """A mode of its own for each kind, and blocks for the one that has them."""
    text = batch.generative
    blocks = np.where(text.targets > 0, 0, text.rows.segments)
    text = dataclasses.replace(text, rows=dataclasses.replace(text.rows, blocks=blocks))
    batch = Batch(batch.embedding, text)
    how = {"model": shallow, "loss": LOSS}
    how |= {"embedding_mode": AttentionMode.CAUSAL, "generation_mode": AttentionMode.PREFIX}
    separate = gradient(params, batch, backward="separate", **how)
    assert_equal(gradient(params, batch, **how), separate)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 4])
def test_experts_are_balanced_over_generation_alone(batch, chunk):
    params = init_params(EXPERTS, jax.random.key(0))
    batch = Batch(batch.embedding, batch.generative)
    how = {"model": EXPERTS, "loss": LOSS}
    separate = gradient(params, batch, backward="separate", **how)
    assert_equal(
        gradient(params, batch, embedding_chunk=chunk, generative_chunk=chunk, **how), separate
    )


def test_one_device_has_nothing_to_gather(shallow, batch, devices):
    how = StepConfig(shallow, LOSS)
    assert not can_fuse(batch, how)
    with jax.set_mesh(make_mesh(MeshConfig(1, 8, 1), devices)):
        assert can_fuse(batch, how) and not can_fuse(batch, dataclasses.replace(how, fuse=False))


def test_rows_of_other_lengths_go_alone(shallow, batch):
    short = jax.tree.map(lambda x: x[:, :-1] if getattr(x, "ndim", 0) == 2 else x, batch.generative)
    batch = Batch(batch.embedding, short)
    assert not can_fuse(batch, StepConfig(shallow, LOSS, fuse=True))


# ---- on eight devices ----------------------------------------------------------------------------


def on_mesh(config, batch, mesh_config, devices, **how):
    """The gradient on a mesh, and the compiled program's text."""
    mesh = make_mesh(mesh_config, devices)
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(OptimizerConfig(), lambda step: 1e-3)
        state = init_state(
            config,
            optimizer,
            jax.random.key(0),
            mesh,
            init_params(config, jax.random.key(0)),
        )
        step = jax.jit(lambda p, b: joint_gradient(p, b, StepConfig(config, LOSS, **how)))
        compiled = step.lower(state.params, put_rows(batch, mesh)).compile()
        return jax.device_get(compiled(state.params, put_rows(batch, mesh))), compiled.as_text()


@pytest.mark.slow
def test_on_a_mesh_each_weight_is_gathered_for_a_chunk_and_not_for_a_loss(
    shallow, params, batch, devices
):
    """The same numbers as on one device, with about half of the gathered bytes."""
    batch = Batch(
        *(
            jax.tree.map(lambda x: np.concatenate([x, x]) if x.ndim == 2 else x, part)
            for part in (batch.embedding, batch.generative)
        )
    )
    expected = gradient(params, batch, model=shallow, loss=LOSS, backward="separate")
    chunks = {"embedding_chunk": 8, "generative_chunk": 8}
    found, fused = on_mesh(shallow, batch, MeshConfig(1, 8, 1), devices, **chunks)
    assert_equal(found, expected, rtol=2e-5)
    _, alone = on_mesh(shallow, batch, MeshConfig(1, 8, 1), devices, backward="separate", **chunks)
    assert gathers(fused) < 0.7 * gathers(alone), (gathers(fused), gathers(alone))


def gathers(text):
    """Gathered bytes of a compiled program, loops by their trips."""
    return program_costs(text).collective_bytes["all_gather"]
