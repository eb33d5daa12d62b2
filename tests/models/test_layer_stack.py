"""Layers that differ: which runs they make, and that running them in whatever way changes
nothing."""

import dataclasses
import functools

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import fully_compiled

from grit_jax.models.config import FULL, SLIDING, ModelConfig
from grit_jax.models.layer_stack import LayerGroup, group_layers
from grit_jax.models.parameters import parameter_shapes
from grit_jax.models.transformer import Transformer
from grit_jax.types import AttentionMode

CAUSAL = AttentionMode.CAUSAL
SMALL = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=3,
    rope_local_base_freq=10.0,
    dtype="float32",
    remat="none",
)
T = 9


def with_layers(letters, **changes):
    """`l` local, `g` global; a capital letter has experts."""
    kinds = tuple(SLIDING if letter in "lL" else FULL for letter in letters)
    dense_layers = tuple(i for i, letter in enumerate(letters) if letter.islower())
    experts = {"num_experts": 3, "mlp_only_layers": dense_layers} if not letters.islower() else {}
    return dataclasses.replace(
        SMALL, num_hidden_layers=len(letters), layer_types=kinds, **experts, **changes
    )


@pytest.mark.parametrize(
    "letters, runs",
    [
        ("g" * 32, [(0, 1, 32)]),
        ("lg" * 13, [(0, 2, 13)]),  # Gemma 2
        (("lllllg" * 5)[:26], [(0, 6, 4), (24, 2, 1)]),  # Gemma 3 1B
        (("lllllg" * 6)[:34], [(0, 6, 5), (30, 4, 1)]),  # Gemma 3 4B
        (("lllllg" * 11)[:62], [(0, 6, 10), (60, 2, 1)]),  # Gemma 3 27B
        ("g" * 21 + "l" * 7, [(0, 1, 21), (21, 1, 7)]),  # Qwen2 with max_window_layers
        ("gG" * 12, [(0, 2, 12)]),  # decoder_sparse_step 2
        ("gGGG", [(0, 1, 1), (1, 1, 3)]),
        ("glgGg", [(0, 1, 1), (1, 1, 1), (2, 2, 1)]),
        ("l", [(0, 1, 1)]),
    ],
)
def test_runs(letters, runs):
    found = group_layers(with_layers(letters).layer_kinds)
    if letters == "glgGg":  # nothing repeats: every layer by itself
        runs = [(i, 1, 1) for i in range(5)]
    assert [dataclasses.astuple(run) for run in found] == runs
    assert sum(run.layers for run in found) == len(letters) and all(
        isinstance(run, LayerGroup) for run in found
    )


@functools.cache
def make_params(config):
    rng = np.random.default_rng(1)
    draw = lambda name, shape: name.endswith("_norm") + 0.3 * rng.normal(size=shape)
    return {
        name: draw(name, shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


TOKENS = np.random.default_rng(0).integers(0, 40, (1, T)).astype(np.int32)
MARKS = np.arange(T, dtype=np.int32)[None], np.ones((1, T), np.int32)


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.grad, has_aux=True)
def program(params, config):
    """Gradients of all weights, and the logits with the keys and values of every layer."""
    model = Transformer(config, params)
    out = model(TOKENS, *MARKS, mode=CAUSAL, return_kv=True)
    logits = model.logits(out.hidden)
    return jnp.mean(jax.nn.log_softmax(logits)[..., 0]), (logits, out.kv, out.router)


@pytest.mark.parametrize("letters", ["lGlGl", "ggll"], ids=["pattern", "aperiodic"])
def test_scanned_patterns_equal_layers_one_by_one(letters):
    """In order, each with its own window, base and feed-forward: logits, keys, and gradients at
    their layer's place."""
    config = with_layers(letters)
    params = make_params(config)
    plain = program(params, dataclasses.replace(config, scan_layers=False))
    for changes in ({}, {"remat": "full"})[: 2 if "G" in letters else 1]:
        found = program(params, dataclasses.replace(config, **changes))
        for (path, a), b in zip(
            jax.tree.leaves_with_path(found), jax.tree.leaves(plain), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(path))
    mask = np.tril(np.ones((T, T), bool))
    expected = dense.forward(params, config, TOKENS[0], np.arange(T), mask).logits
    np.testing.assert_allclose(plain[1][0][0], expected, atol=1e-4)
    assert plain[1][1].k.shape == (len(letters), 1, 1, 8, T)


def test_a_pattern_with_a_remainder_copies_no_weights():
    """Memory that the compiler plans for a forward and backward pass: less than a second copy of
    the layers.

    Weights are picked inside the scan; a slice of the stack handed to it would be that copy.
    """
    sizes = dict(hidden_size=64, intermediate_size=512, num_attention_heads=2, head_dim=32)
    config = with_layers(("lg" * 7)[:13], **sizes)
    shapes = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in parameter_shapes(config).items()}
    layers = sum(np.prod(s.shape) for n, s in shapes.items() if n not in ("embed", "head")) * 4

    def memory(function, *args):
        with fully_compiled():
            return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes

    def loss(params, config):
        out = Transformer(config, params)(TOKENS, *MARKS, mode=CAUSAL)
        return jnp.mean(out.hidden**2)

    assert memory(lambda p: loss(p, config), shapes) < 0.25 * layers
    full = dataclasses.replace(config, remat="full")
    assert memory(jax.grad(lambda p: loss(p, full)), shapes) < 0.8 * layers
