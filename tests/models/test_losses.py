"""Token losses against NumPy loops over single tokens, and what they send between devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tensor_error import assert_near

from grit_jax.models.losses import token_losses
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
