"""cuDNN's attention: which keys it is given and under which mask, computed by XLA here, and its
program for a GPU that is not here."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from grit_jax.models import cudnn, kernels
from grit_jax.models.attention import attend
from grit_jax.models.kernels import KeyValues
from grit_jax.types import AttentionMode

BIDIRECTIONAL, CAUSAL, PREFIX = (
    AttentionMode.BIDIRECTIONAL,
    AttentionMode.CAUSAL,
    AttentionMode.PREFIX,
)
B, T, N, K, H = 2, 12, 4, 2, 16


def rows(dtype=jnp.bfloat16, int8=False, slots=(7, 4)):
    """Three segments and padding, and two caches with empty slots."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    marks = lambda *shape: jnp.asarray(rng.integers(0, 4, shape), jnp.int32)
    segments = jnp.asarray(np.sort(rng.integers(0, 4, (B, T)))[:, ::-1].copy(), jnp.int32)
    positions = jnp.tile(jnp.arange(T), (B, 1))
    own = KeyValues(draw(B, T, K, H), draw(B, T, K, H), positions, segments)
    cached = [
        KeyValues(draw(B, K, H, S), draw(B, K, S, H), marks(B, S), marks(B, S), by_head=True)
        for S in slots
    ]
    if int8:
        codes = lambda x: jnp.round(x * 30).astype(jnp.int8)
        cached = [
            dataclasses.replace(
                group,
                k=codes(group.k),
                v=codes(group.v),
                k_scale=jnp.full((B, K, H), 0.03),
                v_scale=jnp.full((B, K, group.length), 0.03),
            )
            for group in cached
        ]
    return draw(B, T, N, H), own, cached


@pytest.mark.parametrize(
    "mode, window, int8, with_cache",
    [
        (BIDIRECTIONAL, 5, False, True),
        (CAUSAL, None, False, True),
        (CAUSAL, None, True, True),
        (PREFIX, 5, False, True),
        (PREFIX, None, False, False),
    ],
    ids=["bidirectional-window", "causal", "causal-int8", "prefix-window", "prefix-alone"],
)
def test_as_the_blocked_path(monkeypatch, mode, window, int8, with_cache):
    """Values and gradients, with the mask's arithmetic done by XLA."""
    q, own, cached = rows(int8=int8)
    cached = cached if with_cache else []
    blocks = jnp.asarray(np.random.default_rng(2).integers(0, 3, (B, T)), jnp.int32)
    real = (own.segments > 0)[:, :, None, None]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(q, kv):
        mine = dataclasses.replace(own, k=kv[0], v=kv[1])
        out = attend(q, mine, mode=mode, window=window, cached=cached, blocks=blocks)
        out = jnp.where(real, out, 0).astype(jnp.float32)
        return jnp.sin(out).sum(), out

    (_, expected), expected_grads = run(q, (own.k, own.v))
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(kernels, "blocked_attention", None)  # calling it is an error
    run.clear_cache()
    (_, out), grads = run(q, (own.k, own.v))
    np.testing.assert_allclose(out, expected, atol=0.03)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
        np.testing.assert_allclose(
            ours.astype(np.float32), theirs.astype(np.float32), atol=0.06, rtol=0.06
        )


def test_its_program_for_a_gpu(monkeypatch):
    """Lowered for CUDA: cuDNN's own calls, forward and backward, over cached and own keys."""
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91800)
    q, own, cached = rows(slots=(7, 4))  # 23 keys: one more makes their number even

    @jax.grad
    def run(q):
        return attend(q, own, mode=CAUSAL, cached=cached).astype(jnp.float32).sum()

    text = jax.export.export(
        jax.jit(run),
        platforms=["cuda"],
        disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaScaleBiasSoftmax"),
            jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaScaleBiasSoftmaxBackward"),
        ],
    )(q).mlir_module()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text.replace('"', "(")
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text
    assert f"{B}x24x{K}x{H}xbf16" in text and f"{B}x1x{T}x24xbf16" in text


def test_what_cudnn_does_not_take():
    q, own, cached = rows()
    options = {"window": None, "symmetric_window": False, "scale": 1.0, "softcap": None}

    def take(q, own, cached, **changes):
        queries = kernels.Queries(q, own.positions, own.segments)
        return cudnn.cudnn_attention(queries, own, cached, **{**options, **changes})

    assert take(q, own, cached, softcap=3.0) is None
    assert take(q.astype(jnp.float32), own, cached) is None
    wide = jnp.zeros((B, T, N, 136), jnp.bfloat16)
    assert take(wide, own, cached) is None
    odd = lambda tree: jax.tree.map(lambda x: x[:, :11], tree)
    assert take(odd(q), odd(own), cached) is None
