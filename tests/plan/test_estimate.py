"""Bounds from shapes: what a policy keeps, against what JAX keeps; a step's bounds, against the TPU's
compiler."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import print_saved_residuals

from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import Transformer, init_params
from grit_jax.plan.chips import Slices, open_slices
from grit_jax.plan.estimate import KEEPS_MORE_THAN, estimate_step, kept_bytes_per_token
from grit_jax.plan.plan import plan_on_mesh
from grit_jax.plan.programs import train_shapes
from grit_jax.run_config import fit_to_mesh, read_run_config
from grit_jax.runtime.chips import CHIPS
from grit_jax.sharding import make_mesh
from grit_jax.types import AttentionMode

MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    dtype="float32",
    scan_layers=False,
)
B, T = 2, 24


def residual_bytes(config: ModelConfig) -> float:
    """Bytes of activations for each token that JAX keeps for the backward pass."""
    params, ids = init_params(config, jax.random.key(0)), jnp.ones((B, T), jnp.int32)

    def loss(params):
        model = Transformer(config, params)
        return model(ids, ids, ids, mode=AttentionMode.CAUSAL).hidden.sum()

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_saved_residuals(loss, params)
    shapes = re.findall(r"^f(?:loat)?32\[([\d,]+)\]", printed.getvalue(), re.MULTILINE)
    kept = [tuple(int(n) for n in shape.split(",")) for shape in shapes]
    per_token = [s for s in kept if s[:2] == (B, T) or s[0] == B * T]
    return sum(4 * math.prod(shape) for shape in per_token) / (B * T)


@pytest.mark.parametrize("remat", KEEPS_MORE_THAN)
def test_what_a_layer_keeps_is_what_jax_keeps(remat):
    one, two = (
        dataclasses.replace(MODEL, remat=remat, num_hidden_layers=layers) for layers in (2, 3)
    )
    kept = residual_bytes(two) - residual_bytes(one)
    bound = kept_bytes_per_token(two, remat) - kept_bytes_per_token(one, remat)
    if remat == "offload":
        assert bound == 0  # a layer's input is in the host's memory
    elif remat in ("dots", "none"):  # these also keep what the compiler may compute again
        assert 0.4 * kept < bound <= kept
    else:
        assert bound == kept


@pytest.mark.parametrize("tensor", [1, 2])
def test_policies_are_ordered_by_what_they_keep(tensor):
    for remat, less in KEEPS_MORE_THAN.items():
        for other in less:
            kept, kept_less = (kept_bytes_per_token(MODEL, r, tensor) for r in (remat, other))
            assert kept >= kept_less, (remat, other)


def estimate(config, overrides, devices, chip=CHIPS["v5e"]):
    run = read_run_config(config, overrides)
    mesh = make_mesh(run.mesh, devices)
    run = fit_to_mesh(run, mesh)
    return estimate_step(run, train_shapes(run, mesh), mesh, chip), mesh


def test_a_step_by_hand(config):
    """40 embedding rows and 8 generative ones of 256 tokens, all at once on 8 chips: 6 rows of each."""
    whole = {"train.embedding_chunk": "null", "model.remat": "full"}
    found, _ = estimate(config, whole, jax.devices()[:8])
    assert found.tokens == 6 * 256
    layers = 2 * (256 * 512 * 2 + 2 * 256 * 256 + 3 * 256 * 512)
    weights = layers + 2 * 512 * 256
    state = 3 * 4 * weights / 8
    kept = 6 * 256 * 2 * (2 * 256 + 2 * 512)
    assert found.memory_bytes == pytest.approx(state + 4 * weights / 8 / 2 + kept, rel=0.02)
    # Forward, backward twice, and all but the last product of a layer again.
    forward = 2 * layers * 48 * 256
    head = 3 * 2 * 512 * 256 * 8 * 256
    pairs = 2 * 4 * 512 * (16 * 128**2 + 32 * 256**2 + 8 * 256 * 257 / 2)
    again = forward - 2 * 2 * 512 * 256 * 48 * 256 + pairs
    similarity = 3 * 2 * 16 * 32 * 256
    total = 3 * (forward + pairs) + head + again + similarity
    assert found.compute_seconds * 8 * 197e12 == pytest.approx(total, rel=1e-6)
    # Weights in bfloat16 are gathered forward and backward, and their gradients are scattered.
    sent = 3 * 2 * layers * 7 / 8
    assert found.interconnect_seconds == pytest.approx(sent / 200e9, rel=1e-3)  # norms are small
    host, _ = estimate(config, whole | {"model.remat": "offload"}, jax.devices()[:8])
    assert host.host_seconds == pytest.approx(6 * 256 * 2 * 256 * 2 / 16e9)
    chunked, _ = estimate(config, {"model.remat": "full"}, jax.devices()[:8])
    once_more = 2 * layers * 40 * 256 + 2 * 4 * 512 * (16 * 128**2 + 32 * 256**2)
    added = (chunked.compute_seconds - found.compute_seconds) * 8 * 197e12
    assert added == pytest.approx(once_more, rel=1e-6)


def test_a_preference_loss_gathers_weights_for_each_of_its_passes(config):
    """Forward, backward and the scatter of the gradients; the reference model's forward pass; and,
    of KTO, both models' over mismatched texts. Only the first leaves activations."""
    whole = {"train.embedding_chunk": "null", "model.remat": "full"}
    rows = {"data.preference": "[p.jsonl]", "data.preference_max_length": "256"}
    plain, _ = estimate(config, whole, jax.devices()[:8])
    layers = 2 * (256 * 512 * 2 + 2 * 256 * 256 + 3 * 256 * 512)
    copy = 2 * (layers + 2 * 512 * 256) / 8  # in bfloat16
    for loss, batch, rows_of_texts, passes in (("kto", 8, 8, 6), ("dpo", 8, 16, 4)):
        tuned = whole | rows
        tuned |= {"data.preference_batch": str(batch), "train.loss.preference": loss}
        found, _ = estimate(config, tuned, jax.devices()[:8])
        assert found.tokens - plain.tokens == rows_of_texts // 8 * 256
        sent = (found.interconnect_seconds - plain.interconnect_seconds) * 200e9
        assert sent == pytest.approx(passes * 2 * layers * 7 / 8, rel=1e-2)
        assert found.argument_bytes - plain.argument_bytes == pytest.approx(copy, rel=0.05)


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize(
    "overrides",
    [
        {"model.remat": "full"},
        {"model.remat": "none", "train.embedding_chunk": "null"},
        {"model.remat": "save_qkv", "train.embedding_chunk": "16", "mesh.tensor": "2"},
    ],
)
def test_bounds_are_below_what_the_compiler_says_and_near(config, overrides):
    wide = {"model.shape.intermediate_size": "2048"}
    opened: Slices = open_slices("v5e:2x2")
    found, mesh = estimate(config, wide | overrides, opened.devices)
    plan = plan_on_mesh(read_run_config(config, wide | overrides), opened, mesh, serving=False)
    step = plan.programs["train"]
    assert found.memory_bytes <= step.peak_bytes
    assert 0.8 * step.seconds["compute"] < found.compute_seconds <= step.seconds["compute"]
