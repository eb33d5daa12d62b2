"""Rows whose tokens are split over devices: splash attention there, and the lengths that cannot
be."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from tensor_error import assert_near

from grit_jax.data.config import DataConfig
from grit_jax.errors import GritError
from grit_jax.models import kernels
from grit_jax.models.attention import attend
from grit_jax.models.kernels import KeyValues
from grit_jax.run_config import ModelSection, RunConfig, fit_to_mesh
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


@pytest.mark.parametrize(
    "data, words",
    [
        (
            {"embedding_batch": 8, "passage_max_length": 258},
            r"data.row_length: must be a multiple of mesh.context \(4\), got 258 tokens",
        ),
        (
            {"generative_batch": 8, "generative_row_length": 2050},
            "data.generative_row_length: must be a multiple .*, got 2050 tokens",
        ),
        (
            {"cached_batch": 8, "pieces_row_length": 2306},
            "data.pieces_row_length: must be a multiple .*, got 2306 tokens",
        ),
        (
            {"cached_batch": 8, "cached_row_length": 2049},
            "data.cached_row_length: must be .*, got 2049 tokens",
        ),
    ],
)
def test_lengths_that_do_not_divide_are_refused_by_key(data, words):
    sources = {kind: ["x.jsonl"] for kind in ("embedding", "generative", "cached")}
    run = RunConfig(ModelSection(path="x"), "out", data=DataConfig(**sources, **data))
    mesh = make_mesh(MeshConfig(1, 2, 1, context=4), jax.devices()[:8])
    with pytest.raises(GritError, match=words):
        fit_to_mesh(run, mesh)
    even = {key: value if value == 8 else 4096 for key, value in data.items()}
    assert (
        fit_to_mesh(
            dataclasses.replace(run, data=DataConfig(**sources, **even)), mesh
        ).data.row_multiple
        == 8
    )
