"""Schedules and optimizers against closed forms, what they keep of a weight, and where that is
sharded."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from grit_jax.errors import GritError
from grit_jax.models.lora import LoraConfig
from grit_jax.models.presets import PRESETS
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.checkpoint import Checkpoints
from grit_jax.training.state import (
    OptimizerConfig,
    TrainState,
    abstract_state,
    make_optimizer,
    make_schedule,
    state_shardings,
)

RNG = np.random.default_rng(0)
SHAPES = {"up": (2, 128, 160), "down": (2, 160, 128), "query": (2, 128, 128), "mlp_norm": (2, 128)}
PARAMS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
# Layers of very different gradients: what one of them gets must not depend on the other.
GRADIENTS = [
    {
        name: (
            (
                RNG.normal(size=shape)
                * scale
                * np.array([1, 1e-3]).reshape(2, *[1] * (len(shape) - 1))
            ).astype(np.float32)
        )
        for name, shape in SHAPES.items()
    }
    for scale in (1.0, 4.0, 0.2)
]


def optimizer(**how):
    config = OptimizerConfig(
        lr=0.1, warmup_fraction=0.0, schedule="constant", clip_norm=None, **how
    )
    return make_optimizer(config, make_schedule(config, 10))


def updates(optimizer, gradients=GRADIENTS, params=PARAMS):
    """Of each step, the parameters being left as they are."""
    state, found, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for gradient in gradients:
        change, state = update(gradient, state, params)
        found.append(jax.tree.map(np.asarray, change))
    return found, state


def test_adafactor_is_the_papers_algorithm_layer_by_layer():
    """arXiv 1804.04235, algorithms 4 and 5, in float64 over one matrix at a time; weights decayed
    as AdamW has it."""
    found, _ = updates(optimizer(name="adafactor", weight_decay=0.01))
    for name, weight in PARAMS.items():
        for layer in range(2):
            row = column = whole = 0.0
            for t, gradient in enumerate(GRADIENTS, 1):
                g = gradient[name][layer].astype(np.float64)
                decay, square = 1 - t**-0.8, g**2 + 1e-30
                if g.ndim == 2:
                    row = decay * row + (1 - decay) * square.mean(1)
                    column = decay * column + (1 - decay) * square.mean(0)
                    update = g / np.sqrt(np.outer(row, column) / row.mean())
                else:
                    whole = decay * whole + (1 - decay) * square
                    update = g / np.sqrt(whole)
                update /= max(1, np.sqrt((update**2).mean()))
                expected = -0.1 * (update + (0.01 * weight[layer] if name != "mlp_norm" else 0))
                np.testing.assert_allclose(
                    found[t - 1][name][layer], expected, rtol=2e-4, atol=1e-6, err_msg=name
                )


def test_moments_in_bfloat16_are_right_on_average():
    """A second moment must fall when gradients do: from 1 by 0.999 a step, less than a bfloat16
    resolves."""
    params = {"up": jnp.zeros((1, 64, 64))}
    gradients = [{"up": jnp.full((1, 64, 64), g)} for g in [1.0] * 50 + [0.1] * 200]
    narrow, state = updates(optimizer(moments="bfloat16"), gradients, params)
    wide, expected = updates(optimizer(), gradients, params)
    adam = lambda state: next(s for s in state if isinstance(s, optax.ScaleByAdamState))
    for side in ("mu", "nu"):
        one, other = (
            getattr(adam(state), side)["up"],
            np.asarray(getattr(adam(expected), side)["up"]),
        )
        assert one.dtype == jnp.bfloat16 and other.dtype == np.float32
        one = np.asarray(one, np.float64)
        assert one.mean() == pytest.approx(other.mean(), rel=5e-3), side
        assert 1e-3 < (one / other).std() < 0.06, side  # what is lost
    steps = np.asarray(narrow[-1]["up"], np.float64) / wide[-1]["up"]
    assert steps.mean() == pytest.approx(1, abs=5e-3) and steps.std() < 0.04
    assert np.isfinite(steps).all()


@pytest.mark.parametrize(
    "how, least, most",
    [({}, 8, 8.01), ({"moments": "bfloat16"}, 4, 4.01), ({"name": "adafactor"}, 0, 0.01)],
)
def test_bytes_a_parameter(how, least, most):
    """Of a model of seven billion weights; shapes alone."""
    state = abstract_state(PRESETS["mistral_7b"], optimizer(**how))
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    assert (
        least
        <= size(state.opt_state) / sum(leaf.size for leaf in jax.tree.leaves(state.params))
        <= most
    )
    assert size(state.params) == 4 * 7_241_732_096


@pytest.mark.parametrize(
    "how",
    [pytest.param({"moments": "bfloat16"}, marks=pytest.mark.slow), {"name": "adafactor"}],
    ids=["bfloat16", "adafactor"],
)
def test_a_state_lies_like_its_weights_and_gives_the_same_on_a_mesh(how):
    mesh, chosen = make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8]), optimizer(**how)
    state = TrainState(jnp.zeros((), jnp.int32), PARAMS, chosen.init(PARAMS))
    shardings = state_shardings(state, mesh)
    inner = shardings.opt_state[0]
    if (
        "name" in how
    ):  # up is [L D F], down [L F D]; optax averages v_row over the larger of the last two axes
        assert inner.v_row["up"].spec == P(None, "fsdp") == inner.v_row["down"].spec
        assert inner.v_col["up"].spec == P(None, "tensor") == inner.v_col["down"].spec
        assert {inner.v_row["query"].spec, inner.v_col["query"].spec} == {
            P(None, "fsdp"),
            P(None, "tensor"),
        }
        assert inner.v["mlp_norm"].spec == shardings.params["mlp_norm"].spec and inner.v[
            "up"
        ].spec == P(None)
    else:
        assert inner.mu == inner.nu == shardings.params
    placed = jax.device_put(state, shardings)
    change, after = jax.jit(chosen.update)(GRADIENTS[0], placed.opt_state, placed.params)
    expected, alone = updates(chosen, GRADIENTS[:1])
    for name, value in expected[0].items():
        np.testing.assert_allclose(change[name], value, rtol=1e-4, atol=1e-7, err_msg=name)
    for one, other in zip(
        jax.tree.leaves(after), jax.tree.leaves(alone), strict=True
    ):  # the noise of rounding, too
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), rtol=1e-4)


def test_adapters_have_either_state():
    lora = LoraConfig(rank=8)
    for how in ({"moments": "bfloat16"}, {"name": "adafactor"}):
        state = abstract_state(PRESETS["qwen3_0_6b"], optimizer(**how), lora=lora)
        mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])
        placed = state_shardings(state, mesh)
        assert jax.tree.structure(placed.opt_state) == jax.tree.structure(state.opt_state)


def test_the_state_of_another_optimizer_is_refused_by_name(tmp_path):
    state = TrainState(jnp.zeros((), jnp.int32), {"final_norm": jnp.ones(4)}, ())
    one, other = (
        OptimizerConfig(**how).state_kind
        for how in ({"moments": "bfloat16"}, {"name": "adafactor"})
    )
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.optimizer = one
    checkpoints.save(1, state, {"place": 0})
    checkpoints.close()
    again = Checkpoints(tmp_path, every=1)
    again.optimizer = other
    with pytest.raises(
        GritError,
        match=(
            "step 1 holds the state of adamw with bfloat16 moments, this .* has adafactor; set"
            " optimizer.name"
        ),
    ):
        again.restore(1, state, None)
    again.optimizer = one
    assert (
        again.restore(1, dataclasses.replace(state, params={"final_norm": jnp.zeros(4)}), None)
        .params["final_norm"]
        .sum()
        == 4
    )


@pytest.mark.parametrize(
    "how, words",
    [
        ({"name": "sgd"}, "optimizer.name: must be adamw or adafactor"),
        ({"moments": "int8"}, "optimizer.moments: must be"),
        ({"name": "adafactor", "moments": "bfloat16"}, "optimizer.moments has no effect"),
        ({"name": "adafactor", "b2": 0.99}, "optimizer.b2 has no effect"),
    ],
)
def test_nonsense_is_refused_by_key(how, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig(**how)


NAN, INF = float("nan"), float("inf")
NONSENSE = {
    "lr": (-1.0, INF, NAN),
    "final_lr_fraction": (-0.1, INF, NAN),
    "weight_decay": (-0.1, INF, NAN),
    "eps": (-1e-8, INF, NAN),
    "warmup_fraction": (-0.1, 1.1, NAN),
    "b1": (-0.1, 1.0, NAN),
    "b2": (-0.1, 1.0, NAN),
    "clip_norm": (-1.0, 0.0, INF, NAN),
}


@pytest.mark.parametrize("key", NONSENSE)
def test_numbers_that_no_optimizer_can_have(key):
    for value in NONSENSE[key]:
        with pytest.raises(ValueError, match=rf"^optimizer\.{key}: must be .*, got {value}$"):
            OptimizerConfig(**{key: value})


def test_the_ends_of_what_is_allowed():
    least = OptimizerConfig(
        lr=0.0,
        final_lr_fraction=0.0,
        weight_decay=0.0,
        eps=0.0,
        warmup_fraction=0.0,
        b1=0.0,
        b2=0.0,
    )
    assert make_schedule(least, 10)(3) == 0.0
    OptimizerConfig(final_lr_fraction=2.0, warmup_fraction=1.0, b1=0.999, clip_norm=None)


def test_linear_schedule_warms_up_and_ends_at_zero():
    schedule = make_schedule(OptimizerConfig(lr=1.0, schedule="linear", warmup_fraction=0.1), 100)
    assert float(schedule(0)) == pytest.approx(0.1) and float(schedule(9)) == pytest.approx(1.0)
    assert float(schedule(55)) == pytest.approx(0.5) and float(schedule(100)) == pytest.approx(0.0)


def test_cosine_schedule_is_half_way_down_in_the_middle():
    schedule = make_schedule(OptimizerConfig(lr=2.0, schedule="cosine", warmup_fraction=0.0), 100)
    assert float(schedule(0)) == pytest.approx(2.0)
    assert float(schedule(50)) == pytest.approx(1.0, abs=1e-5) and float(
        schedule(100)
    ) == pytest.approx(0, abs=1e-5)


def test_the_schedule_rises_without_a_dip_and_then_only_falls():
    schedule = make_schedule(
        OptimizerConfig(lr=1.0, warmup_fraction=0.03, final_lr_fraction=0.1), 1253
    )
    values = np.array([float(schedule(i)) for i in range(0, 1253, 7)])
    peak = values.argmax()
    assert (np.diff(values[: peak + 1]) > 0).all() and (np.diff(values[peak:]) <= 1e-9).all()


def test_adamw_first_step_is_the_learning_rate_and_norms_are_not_decayed():
    config = OptimizerConfig(
        lr=0.1, weight_decay=0.5, clip_norm=None, warmup_fraction=0.0, schedule="constant"
    )
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = {"query": jnp.array([2.0]), "final_norm": jnp.array([2.0])}
    updates, _ = optimizer.update(
        {"query": jnp.array([3.0]), "final_norm": jnp.array([3.0])}, optimizer.init(params), params
    )
    # Adam's first step is sign(g) * lr; decay adds lr * 0.5 * weight for the matrix alone.
    assert float(updates["query"][0]) == pytest.approx(-0.1 - 0.1 * 0.5 * 2, rel=1e-4)
    assert float(updates["final_norm"][0]) == pytest.approx(-0.1, rel=1e-4)


def test_gradients_are_clipped_by_their_global_norm():
    config = OptimizerConfig(lr=1.0, clip_norm=1.0)
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = {"query": jnp.zeros(2)}
    one = optimizer.update({"query": jnp.array([3.0, 4.0])}, optimizer.init(params), params)[1]
    two = optimizer.update({"query": jnp.array([30.0, 40.0])}, optimizer.init(params), params)[1]
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
