"""KTO and DPO on packed rows: against NumPy over the texts one by one, in chunks, on meshes, and
beside the other losses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import lora_state
import numpy as np
import preference_batches as rows
import pytest

from grit_jax.models.lora import LoraConfig
from grit_jax.models.transformer import init_params
from grit_jax.sharding import MeshConfig, make_mesh, put_rows
from grit_jax.training.gradients import joint_gradient
from grit_jax.training.joint import joint_loss
from grit_jax.training.losses import LossConfig
from grit_jax.training.preference import preference_losses, reference_point
from grit_jax.training.reference_model import with_reference
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer
from grit_jax.training.step import make_step
from grit_jax.training.step_config import StepConfig
from grit_jax.types import AttentionMode, Batch, PreferenceBatch

KTO = LossConfig(preference="kto", beta=0.5, desirable_weight=1.5, undesirable_weight=0.75)
DPO = LossConfig(preference="dpo", beta=0.5, label_smoothing=0.1)
sigmoid = lambda x: 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def model(config):
    return dataclasses.replace(config, num_hidden_layers=1, scan_layers=False)


@functools.cache
def weights(model):
    """Of the trained model and, near them, of the reference model."""
    params = init_params(model, jax.random.key(0))
    noise = init_params(model, jax.random.key(1))
    mixed = {name: 0.8 * w + 0.2 * noise[name] for name, w in params.items()}
    return params, mixed


def settings(model, loss, **how) -> StepConfig:
    reference = weights(model)[1]
    return StepConfig(model, loss, base_weights_of=lambda params: reference, **how)


def ratios(model, texts) -> np.ndarray:
    """By the dense reference, text by text."""
    params, reference = weights(model)
    return np.array(
        [rows.log_prob(params, model, t) - rows.log_prob(reference, model, t) for t in texts]
    )


def test_kto_of_packed_rows_is_the_formula_text_by_text(model):
    """The reference point is above 0 here, so that it takes part."""
    r, z = ratios(model, rows.MATCHED), ratios(model, rows.MISMATCHED).mean()
    config = dataclasses.replace(settings(model, KTO))
    if z < 0:  # the two models change places
        params, reference = reversed(weights(model))
        config = dataclasses.replace(config, base_weights_of=lambda params: reference)
        r, z = -r, -z
    else:
        params = weights(model)[0]
    y = rows.LABELS
    losses = np.where(y, 1.5 * (1 - sigmoid(0.5 * (r - z))), 0.75 * (1 - sigmoid(0.5 * (z - r))))
    loss, parts = jax.jit(lambda p: joint_loss(p, Batch(preference=rows.kto()), config))(params)
    found = {name: float(value) for name, value in parts.items()}
    assert found["loss_preference"] == pytest.approx(losses.mean(), rel=1e-5)
    assert float(loss) == found["loss_preference"]
    assert z > 0.01 and found["preference_kl"] == pytest.approx(z, rel=1e-4)
    chosen, rejected = 0.5 * r[y].mean(), 0.5 * r[~y].mean()
    assert found["rewards_chosen"] == pytest.approx(chosen, rel=1e-4)
    assert found["rewards_rejected"] == pytest.approx(rejected, rel=1e-4)
    assert found["rewards_margin"] == pytest.approx(chosen - rejected, rel=1e-4)
    assert found["rewards_accuracy"] == pytest.approx(np.where(y, r > z, r < z).mean())


def test_dpo_of_packed_rows_is_the_formula_text_by_text(model):
    chosen, rejected = ratios(model, rows.MATCHED), ratios(model, rows.OTHERS)
    logits = 0.5 * (chosen - rejected)
    expected = -(0.9 * np.log(sigmoid(logits)) + 0.1 * np.log(sigmoid(-logits))).mean()
    config = settings(model, dataclasses.replace(DPO, preference_factor=2.0))
    run = jax.jit(lambda p: joint_loss(p, Batch(preference=rows.dpo()), config))
    loss, parts = run(weights(model)[0])
    found = {name: float(value) for name, value in parts.items()}
    assert found["loss_preference"] == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(2 * expected, rel=1e-5)
    assert found["rewards_chosen"] == pytest.approx(0.5 * chosen.mean(), rel=1e-4)
    assert found["rewards_margin"] == pytest.approx(0.5 * (chosen - rejected).mean(), rel=1e-4)
    assert found["rewards_accuracy"] == pytest.approx((chosen > rejected).mean())
    assert "preference_kl" not in found


def test_the_point_is_no_negative_number_and_has_no_gradient():
    assert float(reference_point(jnp.array([-3.0, 1.0]))) == 0
    assert float(reference_point(jnp.array([3.0, 1.0]))) == 2
    np.testing.assert_array_equal(jax.grad(reference_point)(jnp.array([3.0, 1.0])), 0)


def test_a_batch_without_rejected_answers_has_no_reward_of_them():
    """Its loss and its gradient are finite."""
    batch = PreferenceBatch(rows.kto().text, np.ones(2, bool))
    loss = lambda r: preference_losses(r, r < 9, batch, jnp.zeros(()), KTO)
    gradient = jax.grad(lambda r: loss(r).loss)(jnp.array([0.5, -0.5]))
    result = loss(jnp.array([0.5, -0.5]))
    assert np.isfinite(gradient).all() and np.isfinite(result.loss)
    assert np.isnan(result.metrics["rewards_rejected"])
    assert float(result.metrics["rewards_chosen"]) == 0


def gradient(model, loss, batch, mesh_config=MeshConfig(1, 1, 1), devices=None, **how):
    mesh = make_mesh(mesh_config, devices or jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(), lambda step: 0.0)
    config = settings(model, loss, **how)
    with jax.set_mesh(mesh):
        key = jax.random.key(0)
        params = init_state(model, optimizer, key, mesh, weights(model)[0]).params
        run = jax.jit(lambda p, b: joint_gradient(p, b, config))
        return jax.device_get(run(params, put_rows(batch, mesh)))


def assert_same(result, expected):
    (loss, parts), grads = result
    (whole_loss, whole_parts), whole_grads = expected
    np.testing.assert_allclose(loss, whole_loss, rtol=1e-5)
    assert parts.keys() == whole_parts.keys()
    for name, value in whole_parts.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for name, value in whole_grads.items():
        bound = 1e-5 * np.abs(value).max()
        np.testing.assert_allclose(grads[name], value, atol=bound, err_msg=name)


LOSSES = {"kto": (KTO, rows.kto), "dpo": (DPO, rows.dpo)}
CHUNKS = dict.fromkeys(
    ("embedding_chunk", "generative_chunk", "cached_chunk", "preference_chunk"), 8
)


@functools.cache
def on_one_device(model, name):
    """Loss and gradient of 16 rows in one pass on one device."""
    loss, part = LOSSES[name]
    return gradient(model, loss, Batch(preference=part(16)))


@pytest.mark.slow
def test_kto_on_a_mesh_in_chunks(model, devices):
    result = gradient(
        model, KTO, Batch(preference=rows.kto(16)), MeshConfig(2, 2, 2), devices, preference_chunk=8
    )
    assert_same(result, on_one_device(model, "kto"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh, how",
    [
        (MeshConfig(2, 2, 2), CHUNKS),
        (MeshConfig(1, 2, 2, context=2), {"backward": "separate"}),
        (MeshConfig(8, 1, 1), {}),
        (MeshConfig(1, 8, 1), CHUNKS),
        (MeshConfig(1, 1, 8), {}),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_beside_the_other_losses_on_a_mesh(model, batch, devices, name, mesh, how):
    loss, part = LOSSES[name]
    joint = dataclasses.replace(batch, preference=part(16))
    assert_same(gradient(model, loss, joint, mesh, devices, **how), gradient(model, loss, joint))


@pytest.mark.slow
@pytest.mark.parametrize("name, loss, part", [("kto", KTO, rows.kto), ("dpo", DPO, rows.dpo)])
def test_chunks_of_rows_give_the_loss_and_gradient_of_all(model, name, loss, part):
    """Chunks that do not divide the rows; texts of prefix attention."""
    preference = part(prefix=True)
    assert len(preference.text.targets) > 2 and len(preference.text.targets) % 2
    both = [
        gradient(
            model,
            loss,
            Batch(preference=preference),
            generation_mode=AttentionMode.PREFIX,
            preference_chunk=chunk,
        )
        for chunk in (None, 2)
    ]
    assert_same(both[1], both[0])


@pytest.mark.slow
def test_routers_are_balanced_over_the_whole_batch(model):
    experts = dataclasses.replace(
        model,
        num_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.5,
        architecture="mixtral",
    )
    both = [
        gradient(experts, KTO, Batch(preference=rows.kto()), preference_chunk=chunk)
        for chunk in (None, 2)
    ]
    assert "loss_router" in both[0][0][1]
    assert_same(both[1], both[0])


def test_the_other_losses_are_what_they_are_without(model, batch):
    """The same numbers to the last bit; gradients add up."""
    others = Batch(embedding=batch.embedding, generative=batch.generative)
    (loss, parts), grads = gradient(model, KTO, others)
    (joint, joint_parts), both = gradient(
        model, KTO, dataclasses.replace(others, preference=rows.kto(16))
    )
    assert set(joint_parts) - set(parts) == {
        "loss_preference",
        "preference_kl",
        "rewards_chosen",
        "rewards_rejected",
        "rewards_margin",
        "rewards_accuracy",
    }
    for name, value in parts.items():
        assert joint_parts[name] == value, name
    assert joint == pytest.approx(loss + joint_parts["loss_preference"], rel=1e-6)
    (_, _), alone = on_one_device(model, "kto")
    for name, value in both.items():
        bound = 1e-5 * np.abs(value).max()
        np.testing.assert_allclose(value, grads[name] + alone[name], atol=bound, err_msg=name)


def test_a_run_starts_at_its_own_reference_model(model):
    """Nothing is rewarded in the first step, and afterwards the answers are told apart; in bfloat16,
    whose copy must compute the same numbers."""
    narrow = dataclasses.replace(model, dtype="bfloat16")
    optimizer = make_optimizer(OptimizerConfig(lr=1e-2), schedule := lambda step: 1e-2)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = init_state(narrow, optimizer, jax.random.key(0), mesh)
        state = with_reference(state, narrow, mesh)
        step = make_step(StepConfig(narrow, DPO), optimizer, schedule)
        batch = Batch(preference=rows.dpo())
        state, first = step(state, batch)
        for _ in range(5):
            state, last = step(state, batch)
    assert first["rewards_chosen"] == 0 == first["rewards_rejected"]
    assert float(first["loss_preference"]) == pytest.approx(np.log(2), rel=1e-6)
    assert last["rewards_accuracy"] == 1 and last["rewards_margin"] > 0.5


def test_a_reference_model_is_needed(model):
    config = dataclasses.replace(settings(model, DPO), base_weights_of=None)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    with pytest.raises(ValueError, match="needs the weights of a reference model"):
        jax.eval_shape(lambda p: joint_loss(p, Batch(preference=rows.dpo()), config), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("loss, part", [(KTO, rows.kto), (DPO, rows.dpo)], ids=["kto", "dpo"])
def test_answers_are_told_apart_while_the_contrastive_loss_stays(model, batch, loss, part):
    """Forty steps beside forty of the contrastive loss alone."""
    optimizer = make_optimizer(OptimizerConfig(lr=3e-3), schedule := lambda step: 3e-3)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    loss = dataclasses.replace(loss, temperature=0.1)
    traces = []
    with jax.set_mesh(mesh):
        step = make_step(StepConfig(model, loss), optimizer, schedule)
        for preference in (part(), None):
            state = init_state(model, optimizer, jax.random.key(0), mesh)
            state = with_reference(state, model, mesh)
            metrics = []
            for _ in range(40):
                state, line = step(state, Batch(batch.embedding, preference=preference))
                metrics.append(line)
            traces.append(jax.device_get(metrics))
    tuned, alone = traces
    assert tuned[0]["rewards_accuracy"] == 0 and tuned[-1]["rewards_accuracy"] == 1
    assert tuned[-1]["rewards_margin"] > 1
    assert tuned[-1]["loss_preference"] < 0.5 * tuned[0]["loss_preference"]
    assert tuned[0]["loss_emb"] == alone[0]["loss_emb"] > 1
    assert tuned[-1]["loss_emb"] < alone[-1]["loss_emb"] + 0.05 < 0.5


@pytest.mark.slow
def test_the_base_of_adapters_is_the_reference_and_nothing_is_dropped():
    """Dropout would be part of the log-ratios: the numbers are those of adapters without it."""
    config = dataclasses.replace(lora_state.CONFIG, num_hidden_layers=1, scan_layers=False)
    traces = []
    for dropout in (0.9, 0.0):
        lora = LoraConfig(rank=2, dropout=dropout, targets=("q_proj", "down_proj"))
        run = lora_state.run(Batch(preference=rows.dpo()), config, lora, loss=DPO)
        traces.append(run[0])
        jax.tree.map(np.testing.assert_array_equal, run[1].frozen, run[2].frozen)
    assert traces[0] == traces[1]
    first, last = traces[0][0], traces[0][-1]
    assert first["rewards_chosen"] == first["rewards_rejected"] == 0
    assert last["rewards_margin"] > 0 and last["loss_preference"] < first["loss_preference"]
