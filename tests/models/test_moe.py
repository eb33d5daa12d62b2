"""Mixture of experts: against every expert on every token, on one device and on eight; padding; the
router's loss."""

import dataclasses
import functools

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensor_error import assert_near

from grit_jax.models.config import ModelConfig
from grit_jax.models.moe import router_aux_loss
from grit_jax.models.parameters import PARAMETER_AXES, parameter_shapes
from grit_jax.models.transformer import Transformer
from grit_jax.sharding import MeshConfig, make_mesh, put_rows, tree_shardings
from grit_jax.types import AttentionMode, RouterStats, Rows

BIDIRECTIONAL, CAUSAL = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL
CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=8,
    dtype="float32",
    remat="none",
)
B, T = 8, 7


@functools.cache
def make_params(config):
    rng = np.random.default_rng(1)
    draw = lambda name, shape: name.endswith("_norm") + 0.3 * rng.normal(size=shape)
    return {
        name: draw(name, shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def make_rows(seed=0):
    """Eight rows, the last two tokens of each padding."""
    tokens = np.random.default_rng(seed).integers(0, 40, (B, T)).astype(np.int32)
    segments = np.tile(np.array([1] * 5 + [0] * 2, np.int32), (B, 1))
    return Rows(tokens, np.tile(np.arange(T, dtype=np.int32), (B, 1)), segments)


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def forward(params, rows, *, config=CONFIG, mode=CAUSAL):
    return Transformer(config, params)(rows.tokens, rows.positions, rows.segments, mode=mode)


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.value_and_grad, has_aux=True)
def program(params, rows, config):
    """A loss with the router's in it, the logits of what is no padding, and gradients of all
    weights."""
    model = Transformer(config, params)
    out = model(rows.tokens, rows.positions, rows.segments, mode=BIDIRECTIONAL)
    logits = model.logits(out.hidden)[:, :5]
    loss = jnp.mean(jax.nn.log_softmax(logits)[..., 0]) + router_aux_loss(
        out.router, config.num_experts
    )
    return loss, (logits, out.router)


@pytest.mark.parametrize("normalised", [True, False])
def test_every_token_gets_what_its_experts_say(normalised):
    config = dataclasses.replace(CONFIG, norm_topk_prob=normalised, num_experts_per_tok=3)
    rows = make_rows()
    hidden = forward(make_params(config), rows, config=config).hidden
    for b in range(B):
        expected = dense.forward(
            make_params(config),
            config,
            rows.tokens[b],
            np.arange(T),
            np.tril(np.ones((T, T), bool)),
        )
        np.testing.assert_allclose(hidden[b, :5], expected.hidden[:5], atol=1e-5)


def test_nothing_is_dropped_when_one_expert_gets_everything():
    params = make_params(CONFIG) | {
        "router": np.zeros((2, 16, 4), np.float32)
    }  # ties: always the first two
    out = forward(params, make_rows())
    np.testing.assert_allclose(out.router.chosen, [1, 1, 0, 0])
    np.testing.assert_allclose(out.router.probability, [0.25] * 4)
    alone = {name: value[:, :2] for name, value in params.items() if name.startswith("expert_")}
    two = dataclasses.replace(CONFIG, num_experts=2)
    expected = forward(
        params | alone | {"router": params["router"][..., :2]}, make_rows(), config=two
    )
    np.testing.assert_allclose(out.hidden[:, :5], expected.hidden[:, :5], atol=1e-5)


def test_padding_influences_nothing():
    """Neither the other tokens nor the statistics nor any gradient: here the padding is other
    tokens."""
    rows, other = make_rows(), make_rows(5)
    tokens = np.where(rows.segments > 0, rows.tokens, other.tokens)
    (loss, aux), grads = program(make_params(CONFIG), rows, CONFIG)
    (loss2, aux2), grads2 = program(
        make_params(CONFIG), dataclasses.replace(rows, tokens=tokens), CONFIG
    )
    for a, b in zip(
        jax.tree.leaves((loss, aux, grads)), jax.tree.leaves((loss2, aux2, grads2)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    one = forward(make_params(CONFIG), jax.tree.map(lambda x: x[:, :5], rows), mode=BIDIRECTIONAL)
    np.testing.assert_allclose(one.router.probability, aux[1].probability, atol=1e-6)
    assert float(aux[1].chosen.sum()) == pytest.approx(2) and float(
        aux[1].probability.sum()
    ) == pytest.approx(1)


def test_router_loss():
    balanced = RouterStats(jnp.full(4, 0.5), jnp.full(4, 0.25))
    assert float(router_aux_loss(balanced, 4)) == pytest.approx(2)  # top_k
    one = RouterStats(jnp.array([1.0, 1.0, 0, 0]), jnp.array([0.7, 0.3, 0, 0]))
    assert float(router_aux_loss(one, 4)) == pytest.approx(4)
    assert (
        forward(
            make_params(dense_config := dataclasses.replace(CONFIG, num_experts=0)),
            make_rows(),
            config=dense_config,
        ).router
        is None
    )


@pytest.mark.parametrize(
    "mesh, experts",
    [
        (MeshConfig(2, 2, 2), 4),
        (MeshConfig(1, 2, 4), 4),
        (MeshConfig(1, 2, 4), 6),
        (MeshConfig(1, 8, 1), 4),
    ],
    ids=["experts", "one-expert-each", "width-instead", "fsdp"],
)
def test_eight_devices_equal_one(mesh, experts):
    config = dataclasses.replace(CONFIG, num_experts=experts)
    params, mesh = make_params(config), make_mesh(mesh)
    expected = jax.device_get(program(params, make_rows(), config))
    shardings = tree_shardings(params, PARAMETER_AXES, mesh)
    ways = {axis: mesh.shape[axis] for axis in ("fsdp", "tensor")}
    shard = shardings["expert_gate"].shard_shape(params["expert_gate"].shape)
    by_expert = experts % ways["tensor"] == 0
    assert shard == (
        2,
        experts // ways["tensor"] if by_expert else experts,
        16 // ways["fsdp"],
        8 if by_expert else 8 // ways["tensor"],
    )
    with jax.set_mesh(mesh):
        found = program(jax.device_put(params, shardings), put_rows(make_rows(), mesh), config)
        assert len(found[0][1][0].sharding.device_set) == 8
    assert_near(jax.device_get(found), expected)
