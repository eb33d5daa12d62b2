"""Rows whose tokens are split over devices: splash attention there, and the lengths that cannot
be."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from tensor_error import assert_near

from grit_jax.models import kernels
from grit_jax.models.attention import attend
from grit_jax.models.kernels import KeyValues
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.types import AttentionMode

BIDIRECTIONAL, CAUSAL = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, window",
    [
        (CAUSAL, None),
        (BIDIRECTIONAL, None),
        (CAUSAL, 100),
        (((BIDIRECTIONAL, 1), (CAUSAL, 1)), 200),
    ],
)
def test_splash_with_split_queries(monkeypatch, mode, window):
    """The TPU's kernel, interpreted: four devices with a quarter of the tokens each, or two with
    half of the heads."""
    B, T, N, K, H = 4, 512, 4, 2, 128
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, heads, H)).astype(np.float32) for heads in (N, K, K))
    segments = np.sort(rng.integers(0, 4, (B, T)))[:, ::-1].astype(
        np.int32
    )  # packed texts, padding behind
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))

    def loss(q, k, v):
        out = attend(q, KeyValues(k, v, positions, segments), mode=mode, window=window)
        return (jnp.sin(out) * (segments > 0)[:, :, None, None]).sum(), out

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    expected = jax.jit(gradient)(q, k, v)
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    interpreted = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", interpreted)
    real = (segments > 0)[:, :, None, None]
    for mesh in (MeshConfig(1, 2, 1, context=4), MeshConfig(2, 1, 2, context=2)):
        with jax.set_mesh(make_mesh(mesh, jax.devices()[:8])):
            run = jax.jit(lambda q, k, v: gradient(q, k, v))
            assert "shard_map" in str(jax.make_jaxpr(run)(q, k, v))
            (found, out), grads = run(q, k, v)
        np.testing.assert_allclose(found, expected[0][0], rtol=1e-4)
        assert_near((out * real, grads), (expected[0][1] * real, expected[1]))
