"""The update against torch's AdamW with clipping and transformers' linear schedule, and a whole run
of steps."""

from __future__ import annotations

import copy
import dataclasses
import math

import jax
import numpy as np
import optax
import parity
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import original  # noqa: E402
from peer_models import load_make_golden  # noqa: E402

from grit_jax.models.hf.directory import read_model_directory  # noqa: E402
from grit_jax.sharding import MeshConfig, make_mesh, put_rows  # noqa: E402
from grit_jax.training.losses import LossConfig  # noqa: E402
from grit_jax.training.state import (
    OptimizerConfig,
    init_state,
    make_optimizer,
    make_schedule,
)  # noqa: E402
from grit_jax.training.step import StepConfig, make_step  # noqa: E402
from grit_jax.types import Batch  # noqa: E402

pytestmark = pytest.mark.peers

make_golden = load_make_golden()
STEPS, WARMUP, LR, DECAY = 6, 2, 1e-3, 0.1


def their_schedule(optimizer, warmup, steps):
    return transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)


def their_rates(warmup: int, steps: int) -> list[float]:
    """The rate of every step, of a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = their_schedule(optimizer, warmup, steps), []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    "steps, fraction", [(1253, 0.03), (100, 0.1), (10, 0.0), (40, 0.5), (7, 0.3)]
)
def test_linear_schedule(steps, fraction):
    """The warmup is one step ahead of transformers', which wastes its first step on a rate of zero
    and reaches the peak with its first step after the warmup: ours reaches it with the last one in
    it. The decay is the same."""
    schedule = make_schedule(OptimizerConfig(lr=1.0, warmup_fraction=fraction), steps)
    ours = np.asarray(schedule(np.arange(steps)))
    warmup = max(1, round(fraction * steps)) if fraction else 0
    theirs = np.array(their_rates(warmup, steps))
    np.testing.assert_allclose(ours[:warmup], theirs[1 : warmup + 1], rtol=1e-5)
    np.testing.assert_allclose(ours[warmup:], theirs[warmup:], rtol=1e-5, atol=1e-7)
    assert (
        (theirs[0] == 0 and ours[0] == pytest.approx(1 / warmup))
        if warmup
        else theirs[0] == ours[0] == 1
    )


def test_the_published_recipe_warms_up_for_as_many_steps_as_there():
    """transformers rounds the share up (transformers: training_args.py, get_warmup_steps), we to
    the nearest: 38 of the recipe's 1253 steps either way, but not always."""
    for steps, there, here in ((1253, 38, 38), (110, 4, 3)):
        schedule = make_schedule(OptimizerConfig(lr=1.0, warmup_fraction=0.03), steps)
        assert math.ceil(0.03 * steps) == there
        assert int(np.argmax(schedule(np.arange(steps)))) + 1 == here


def rates_as_ours(optimizer):
    """Our rates for torch: transformers' schedule, one step ahead while it warms up."""
    schedule = their_schedule(optimizer, WARMUP, STEPS)
    rate = schedule.lr_lambdas[0]
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step + 1 if step < WARMUP else step)
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model of transformers and its weights as ours are."""
    model = make_golden.make_model(seed=3, common=0.35)
    directory = tmp_path_factory.mktemp("start")
    model.save_pretrained(directory)
    return model, read_model_directory(directory)


CONFIG = OptimizerConfig(lr=LR, warmup_fraction=WARMUP / STEPS, weight_decay=DECAY, clip_norm=1.0)


def test_the_same_gradients_move_the_weights_alike(start):
    """Several steps on random gradients, some of them clipped; what is compared is how far each
    weight came."""
    model, ours = start
    model = copy.deepcopy(model)
    optimizer = original.adamw(model, LR, DECAY)
    rates = rates_as_ours(optimizer)
    ours_optimizer = make_optimizer(CONFIG, make_schedule(CONFIG, STEPS))
    params = {name: np.asarray(value) for name, value in ours.params.items()}
    state = ours_optimizer.init(params)
    update = jax.jit(ours_optimizer.update)
    generator, clipped = torch.Generator().manual_seed(0), 0
    for step in range(STEPS):
        size = [3.0, 0.001, 0.5, 0.003, 0.002, 1.0][step]
        gradient = {
            name: size * torch.randn(w.shape, generator=generator)
            for name, w in model.named_parameters()
        }
        ours_gradient = make_golden.as_ours(model, gradient)
        for name, weight in model.named_parameters():
            weight.grad = gradient[name]
        clipped += torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) > 1
        optimizer.step()
        rates.step()
        updates, state = update(ours_gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert 0 < clipped < STEPS
    for name, expected in make_golden.as_ours(model, dict(model.named_parameters())).items():
        before = np.asarray(ours.params[name])
        gap = parity.norm_gap(np.asarray(params[name]) - before, expected - before)
        assert gap < 1e-4, f"{name}: {gap:.2e}"


def test_a_run_of_steps_takes_the_same_way(start):
    """Loss, gradient norm and rate of every step, and where the weights end: our compiled step
    against torch's."""
    model, ours = start
    model = copy.deepcopy(model)
    optimizer = original.adamw(model, LR, DECAY)
    rates, theirs = rates_as_ours(optimizer), []
    config = dataclasses.replace(ours.config, remat="none")
    schedule = make_schedule(CONFIG, STEPS)
    ours_optimizer = make_optimizer(CONFIG, schedule)
    step_function = make_step(
        StepConfig(config, LossConfig(mix_group_size=make_golden.GROUP)), ours_optimizer, schedule
    )
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    found = []
    with jax.set_mesh(mesh):
        state = init_state(config, ours_optimizer, jax.random.key(0), mesh, ours.params)
        for step in range(STEPS):
            padded = make_golden.make_batch(seed=step % 2)  # no more shapes to compile
            batch = Batch(
                parity.embedding(padded["queries"], padded["passages"], 48),
                parity.generative(padded["sequences"], 48),
            )
            state, metrics = step_function(state, put_rows(batch, mesh))
            found.append([float(metrics[name]) for name in ("loss", "grad_norm", "lr")])

            parts = make_golden.tensors(padded)
            vectors = lambda: [
                original.embed(model, parts[side]) for side in ("queries", "passages")
            ]  # noqa: B023
            loss, _ = original.gradients(
                model,
                lambda: (
                    original.contrastive(*vectors())
                    + make_golden.grouped(model, parts["sequences"])
                ),  # noqa: B023
            )
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            theirs.append([loss, norm, rates.get_last_lr()[0]])
            optimizer.step()
            rates.step()
    np.testing.assert_allclose(found, theirs, rtol=1e-4)
    assert found[0][0] > 1.02 * min(loss for loss, _, _ in found)
    for name, expected in make_golden.as_ours(model, dict(model.named_parameters())).items():
        before = np.asarray(ours.params[name])
        gap = parity.norm_gap(np.asarray(state.params[name]) - before, expected - before)
        assert gap < 5e-4, f"{name}: {gap:.2e}"
