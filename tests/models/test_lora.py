"""Adapted weights: the sum they stand for, what is written of them, their dropout, and what they
cannot be."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.layers import linear
from grit_jax.models.lora import (
    MATRICES,
    AdaptedWeight,
    LoraConfig,
    adapter_axes,
    adapter_shapes,
    attach,
    check_quantisable,
    init_adapters,
    row_keys,
)
from grit_jax.models.quantise import quantise
from grit_jax.models.transformer import PARAMETER_AXES, Transformer, init_params, parameter_shapes
from grit_jax.types import AttentionMode

MIXTURE = {
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "architecture": "mixtral",
    "attention_bias": False,
}
CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    attention_bias=True,
    dtype="float32",
    remat="none",
    initializer_range=0.2,
)
LORA = LoraConfig(rank=4, alpha=8.0)
KEY = jax.random.key(0)
ROWS = np.random.default_rng(0).integers(1, 96, (3, 10)).astype(np.int32)


@functools.cache
def base(precision="full", config=CONFIG):
    def make():
        freeze = lambda name, w: (
            quantise(w, precision) if name in MATRICES and precision != "full" else w
        )
        return {name: freeze(name, w) for name, w in init_params(config, KEY).items()}

    return jax.jit(make)()


@functools.partial(jax.jit, static_argnames=("lora", "b_too", "config"))
def adapters(lora=LORA, b_too=True, config=CONFIG):
    """Adapters that do something: B is not zero."""
    found = init_adapters(lora, parameter_shapes(config), KEY)
    draw = lambda i, a: 0.1 * jax.random.normal(jax.random.key(i), a.shape)
    return {
        n: draw(i, a) if b_too and n.endswith("_b") else a for i, (n, a) in enumerate(found.items())
    }


def adapted(lora, config=CONFIG):
    shapes = adapter_shapes(lora, parameter_shapes(config))
    return {name.removesuffix("_lora_a") for name in shapes if name.endswith("_a")}


def plain(weights):
    """The dictionary of plain arrays that weights stand for, each read place by place, as an export
    reads it."""

    def whole(name, weight):
        leading = weight.shape[:-2]
        if not leading or isinstance(weight, jax.Array):
            return weight
        return np.stack([weight[place] for place in np.ndindex(leading)]).reshape(weight.shape)

    return {name: whole(name, weight) for name, weight in weights.items()}


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def logits(weights, config=CONFIG, mode=AttentionMode.CAUSAL):
    positions = jnp.broadcast_to(jnp.arange(ROWS.shape[1]), ROWS.shape)
    model = Transformer(config, weights)
    return model.logits(model(ROWS, positions, jnp.ones_like(ROWS), mode=mode).hidden)


@pytest.mark.parametrize(
    "precision, change, mode",
    [
        ("full", {}, AttentionMode.CAUSAL),
        ("int8", {}, AttentionMode.BIDIRECTIONAL),
        ("int4", {"scan_layers": False}, AttentionMode.BIDIRECTIONAL),
        ("int4", MIXTURE, AttentionMode.CAUSAL),
    ],
    ids=["full", "int8", "int4", "int4 experts"],
)
def test_merged_weights_give_the_logits_of_base_and_adapters(precision, change, mode):
    config = dataclasses.replace(CONFIG, **change)
    lora = dataclasses.replace(
        LORA, targets=("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    )
    weights = attach(base(precision, config), adapters(lora, config=config), lora)
    merged = plain(weights)
    found, expected = logits(weights, config, mode), logits(merged, config, mode)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    before = plain(base(precision, config))
    assert np.abs(logits(before, config, mode) - found).max() > 0.01
    assert (
        set(adapted(lora, config))
        == {n for n in weights if isinstance(weights[n], AdaptedWeight)}
        != set(MATRICES)
    )
    for name in adapted(lora, config):  # the sum by NumPy, in float64
        a, b = (np.asarray(factor, np.float64) for factor in (weights[name].a, weights[name].b))
        np.testing.assert_allclose(merged[name], before[name] + 2.0 * a @ b, atol=1e-6)


def test_new_adapters_change_nothing_and_begin_as_peft_has_them():
    new = adapters(b_too=False)
    np.testing.assert_array_equal(logits(attach(base(), new, LORA)), logits(base()))
    wide = LoraConfig(rank=64)
    for name, value in init_adapters(wide, parameter_shapes(CONFIG), KEY).items():
        if name.endswith("_b"):
            assert not value.any()
        else:  # kaiming_uniform(a=sqrt(5)): uniform within 1 / sqrt(inputs)
            bound = value.shape[-2] ** -0.5
            assert 0.97 * bound < jnp.abs(value).max() <= bound
            assert float(value.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not np.array_equal(new["query_lora_a"][0], new["query_lora_a"][1])


def test_an_adapter_is_the_same_whichever_others_there_are():
    alone = init_adapters(
        dataclasses.replace(LORA, targets=("up_proj",)), parameter_shapes(CONFIG), KEY
    )
    assert set(alone) == {"up_lora_a", "up_lora_b"}
    np.testing.assert_array_equal(alone["up_lora_a"], adapters()["up_lora_a"])


def test_all_linear_maps_have_adapters_in_attention_and_mlp_and_nothing_else():
    shapes = adapter_shapes(LORA, parameter_shapes(CONFIG))
    attention = {"query", "key", "value", "attention_out"}
    assert adapted(LORA) == attention | {"gate", "up", "down"}
    assert shapes["down_lora_a"] == (2, 128, 4) and shapes["key_lora_b"] == (2, 4, 32)
    axes = adapter_axes(PARAMETER_AXES)
    assert axes["up_lora_a"] == ("layers", "embed", None) and axes["up_lora_b"] == (
        "layers",
        None,
        "ffn",
    )
    assert axes["down_lora_a"] == ("layers", "ffn", None) and axes["down_lora_b"] == (
        "layers",
        None,
        "embed",
    )

    mixture = dataclasses.replace(CONFIG, **MIXTURE)
    assert adapted(LORA, mixture) == attention | {"expert_gate", "expert_up", "expert_down"}
    assert adapter_shapes(LORA, parameter_shapes(mixture))["expert_down_lora_a"] == (2, 3, 128, 4)
    assert axes["expert_down_lora_b"] == ("layers", "experts", None, "embed")
    weights = attach(base("full", mixture), adapters(LORA, config=mixture), LORA, KEY)
    assert (
        weights["query"].keys is not None and weights["expert_up"].keys is None
    )  # no dropout in experts


def test_the_backward_pass_keeps_no_dequantised_layers():
    """More layers need more memory in a backward pass, without recomputation, but not that of their
    plain weights."""

    def needs(layers):
        config = dataclasses.replace(
            CONFIG, hidden_size=128, intermediate_size=256, num_hidden_layers=layers
        )
        shapes, lora = parameter_shapes(config), LoraConfig(rank=1)
        freeze = lambda name, w: quantise(w, "int4") if name in MATRICES else w
        frozen = jax.eval_shape(
            lambda: {name: freeze(name, jnp.zeros(shape)) for name, shape in shapes.items()}
        )
        trained = jax.eval_shape(lambda: init_adapters(lora, shapes, KEY))

        def loss(adapters, base):
            model = Transformer(config, attach(base, adapters, lora))
            return model(*[np.ones((1, 4), np.int32)] * 3, mode=AttentionMode.CAUSAL).hidden.sum()

        compiled = jax.jit(jax.grad(loss)).lower(trained, frozen).compile()
        plain = sum(4 * int(np.prod(shape)) for name, shape in shapes.items() if name in MATRICES)
        return compiled.memory_analysis().temp_size_in_bytes, plain

    (few, small), (many, large) = needs(4), needs(12)
    assert many - few < (large - small) / 4


# ---- dropout ----


def keyed(lora=LORA, rows=ROWS, step=0):
    weights = attach(base(), adapters(lora), lora, jax.random.fold_in(KEY, step))
    return row_keys(weights, jnp.asarray(rows))


def dropped(weight, layer=0, length=10):
    """The mask of a layer's adapter: 1 kept, 0 dropped."""
    one = jax.tree.map(lambda part: part[layer], weight)
    return np.asarray(one.drop(jnp.ones((len(one.keys), length, 64))))


def test_dropout_keeps_the_mean_and_differs_by_row_layer_weight_and_step():
    lora = dataclasses.replace(LORA, dropout=0.25)
    masks = dropped(keyed(lora)["query"], length=200)
    assert set(np.unique(masks).tolist()) == {0.0, np.float32(1 / 0.75)}
    assert masks.mean() == pytest.approx(1, abs=0.02) and (masks == 0).mean() == pytest.approx(
        0.25, abs=0.02
    )
    same = lambda a, b: np.mean(a == b) > 0.99
    assert not same(masks[0], masks[1])
    assert not same(masks, dropped(keyed(lora)["query"], layer=1, length=200))
    assert not same(masks, dropped(keyed(lora)["key"], length=200))
    assert not same(masks, dropped(keyed(lora, step=1)["query"], length=200))


def test_a_row_has_the_same_mask_in_whatever_batch_it_comes():
    whole, part = dropped(keyed()["up"]), dropped(keyed(rows=ROWS[1:])["up"])
    np.testing.assert_array_equal(whole[1:], part)
    turned = dropped(
        keyed(rows=ROWS[:, ::-1])["up"]
    )  # the same tokens in another order are another row
    assert (turned != whole).any()


def test_only_the_adapter_hears_of_the_dropout():
    x = jax.random.normal(jax.random.key(5), (3, 10, 64))
    weights = jax.tree.map(lambda part: part[0], keyed(dataclasses.replace(LORA, dropout=0.5)))
    weight, mask = weights["query"], dropped(keyed(dataclasses.replace(LORA, dropout=0.5))["query"])
    expected = x @ weight.base + 2.0 * (x * mask) @ weight.a @ weight.b + weights["query_bias"]
    np.testing.assert_allclose(linear(x, weights, "query"), expected, atol=1e-4)


def test_without_a_key_or_with_a_rate_of_zero_there_is_no_dropout():
    for weights in (
        attach(base(), adapters(), LORA),
        attach(base(), adapters(), dataclasses.replace(LORA, dropout=0.0), KEY),
    ):
        assert weights["query"].keys is None


# ---- mistakes ----


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"rank": 0}, "lora.rank: must be at least 1, got 0"),
        ({"alpha": 0.0}, "lora.alpha"),
        ({"dropout": 1.0}, "lora.dropout"),
        ({"targets": ("w1",)}, "lora.targets: expected some of q_proj, .*, got w1"),
        ({"targets": ()}, "lora.targets"),
    ],
)
def test_nonsense_is_refused_by_key(wrong, words):
    with pytest.raises(ValueError, match=words):
        LoraConfig(**wrong)


def test_a_target_that_the_model_does_not_have():
    shapes = {
        name: shape
        for name, shape in parameter_shapes(CONFIG).items()
        if name not in ("gate", "up", "down")
    }
    with pytest.raises(
        GritError,
        match="lora.targets: this model has no 'gate_proj'; it has q_proj, k_proj, v_proj, o_proj",
    ):
        adapter_shapes(LORA, shapes)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hidden_size": 96}, r"lora.base: int4 .* hidden_size \(96\); use int8"),
        ({"intermediate_size": 96}, r"intermediate_size \(96\)"),
        ({"head_dim": 20}, r"num_attention_heads x head_dim \(80\)"),
    ],
)
def test_sizes_that_four_bits_do_not_fit(change, words):
    shapes = parameter_shapes(dataclasses.replace(CONFIG, **change))
    check_quantisable(shapes, "int8")
    check_quantisable(shapes, "full")
    with pytest.raises(GritError, match=words):
        check_quantisable(shapes, "int4")
