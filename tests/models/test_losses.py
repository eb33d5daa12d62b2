"""Token losses against NumPy loops over single tokens, and what they send between devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tensor_error import assert_near

from grit_jax.models.losses import distilled_losses, token_losses
from grit_jax.plan.program_costs import program_costs
from grit_jax.sharding import MeshConfig, make_mesh


def test_token_losses_shift_by_one_and_ignore_blocks():
    rng = np.random.default_rng(0)
    hidden, head = (
        rng.normal(size=(3, 5, 4)).astype(np.float32),
        rng.normal(size=(4, 11)).astype(np.float32),
    )
    tokens = rng.integers(0, 11, (3, 5))
    expected = np.zeros((3, 5))
    for r in range(3):
        for t in range(1, 5):
            logits = hidden[r, t - 1].astype(np.float64) @ head
            expected[r, t] = np.log(np.exp(logits).sum()) - logits[tokens[r, t]]
    for block in (100, 4):
        found = token_losses(jnp.asarray(hidden), jnp.asarray(tokens), {"head": head}, block=block)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_over_devices_is_gathered_once_and_its_gradient_summed_once(tied):
    """Each block of the vocabulary gathers its own part of the head, forwards and backwards, and
    nothing else."""
    B, T, D, V, block = 16, 32, 32, 1024, 64  # eight blocks, of 128 words
    mesh, rng = make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8]), np.random.default_rng(0)
    hidden, head = (
        rng.normal(size=(B, T, D)).astype(np.float32),
        rng.normal(size=(D, V)).astype(np.float32),
    )
    tokens = rng.integers(0, V, (B, T))
    weights, lie = (
        ({"embed": head.T}, P(None, "fsdp")) if tied else ({"head": head}, P("fsdp", "tensor"))
    )
    loss = lambda h, w, b: token_losses(h, jnp.asarray(tokens), w, softcap=5.0, block=b).mean()
    rows, lies = (
        NamedSharding(mesh, P(("data", "fsdp"))),
        {name: NamedSharding(mesh, lie) for name in weights},
    )
    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda h, w: gradient(h, w, block), out_shardings=(None, (rows, lies)))
        given = jax.device_put(hidden, rows), jax.device_put(weights, lies)
        compiled = run.lower(*given).compile()
        found = run(*given)
    expected = jax.jit(lambda h, w: gradient(h, w, B * T))(hidden, weights)
    assert_near(found, expected)
    costs = program_costs(compiled.as_text())  # loops counted by their trips; of one device
    share = head.nbytes / 2
    # A table is whole along `tensor`, so its gradient is put together at the end.
    assert costs.collective_bytes["all_gather"] == pytest.approx(
        (3 if tied else 2) * share, rel=0.05
    )
    # Beside the head's gradient: that of the hidden states over `tensor`, once, and the sums of the
    # softmax.
    states = hidden.nbytes / 4
    summed = costs.collective_bytes["all_reduce"] + costs.collective_bytes["reduce_scatter"]
    assert summed < share * (2 if tied else 1) + states * 1.5


def dense_divergence(student, teacher, head, cap):
    """KL(teacher, student) of each row of hidden states, in float64; and its slope in the student's
    logits before the cap, `(q - p) * cap'`."""
    soft = lambda x: cap * np.tanh(x / cap) if cap else x

    def log_softmax(x):
        return (
            x
            - x.max(-1, keepdims=True)
            - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        )

    raw = student.astype(np.float64) @ head
    q, p = log_softmax(soft(raw)), log_softmax(soft(teacher.astype(np.float64) @ head))
    slope = (np.exp(q) - np.exp(p)) * (1 - np.tanh(raw / cap) ** 2 if cap else 1)
    return (np.exp(p) * (p - q)).sum(-1), slope


@pytest.mark.parametrize("tied, cap", [(False, None), (True, 3.0)])
@pytest.mark.parametrize("block", [100, 4])
def test_the_divergence_from_a_teacher_and_its_gradient(tied, cap, block):
    """Against NumPy over the whole vocabulary; the teacher and the head by way of it get none."""
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(3, 5, 4)).astype(np.float32) for _ in range(2))
    head, tokens = rng.normal(size=(4, 11)).astype(np.float32), rng.integers(0, 11, (3, 5))
    pull = rng.normal(size=(3, 5)).astype(np.float32)

    def losses(student, teacher, head):
        weights = {"embed": head.T} if tied else {"head": head}
        return distilled_losses(student, teacher, tokens, weights, softcap=cap, block=block)

    expected, slope = dense_divergence(student, teacher, head, cap)
    found = losses(student, teacher, head)
    np.testing.assert_allclose(found.divergence, expected, rtol=1e-5, atol=1e-6)
    weights = {"embed": head.T} if tied else {"head": head}
    # There, a token follows the state before it.
    plain = token_losses(jnp.asarray(student), np.roll(tokens, 1, axis=1), weights, softcap=cap)
    np.testing.assert_allclose(found.nll[:, :-1], plain[:, 1:], rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda *given: (losses(*given).divergence * pull).sum(), argnums=(0, 1, 2))
    of_student, of_teacher, of_head = gradient(student, teacher, head)
    slope = slope * pull[..., None]
    np.testing.assert_allclose(of_student, slope @ head.T, atol=2e-6)
    np.testing.assert_allclose(of_head, np.einsum("btd,btv->dv", student, slope), atol=5e-6)
    assert not np.any(of_teacher)


def test_equal_states_have_no_divergence_at_all():
    """To the last bit, whatever the block and however large the logits."""
    rng = np.random.default_rng(1)
    hidden = 30 * rng.normal(size=(2, 6, 8)).astype(np.float32)
    head, tokens = rng.normal(size=(8, 300)).astype(np.float32), rng.integers(0, 300, (2, 6))
    for block in (1, 4096):
        found = distilled_losses(
            jnp.asarray(hidden), jnp.asarray(hidden), tokens, {"head": head}, block=block
        )
        assert not np.any(found.divergence) and np.all(found.nll >= 0)


def test_a_vocabulary_over_devices_has_the_same_divergence():
    rng = np.random.default_rng(2)
    student, teacher = (rng.normal(size=(8, 4, 16)).astype(np.float32) for _ in range(2))
    head, tokens = rng.normal(size=(16, 64)).astype(np.float32), rng.integers(0, 64, (8, 4))
    run = jax.jit(
        lambda h, t, w: jax.value_and_grad(
            lambda h, w: (
                (d := distilled_losses(h, t, tokens, {"head": w}, block=16)).nll.sum()
                + 2 * d.divergence.sum()
            ),
            argnums=(0, 1),
        )(h, w)
    )
    expected = run(student, teacher, head)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])):
        assert_near(run(student, teacher, head), expected)
