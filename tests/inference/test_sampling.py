"""The choice of the next token: frequencies, top-k and top-p against a sort, settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.sampling import Sampling, kept, sample, sampling_rows


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_bad_settings_are_named(bad):
    with pytest.raises(GritError, match=next(iter(bad))):
        Sampling(**bad)


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "top_p", "top_k", "seed"])
@pytest.mark.parametrize("value", [None, "1", True, [1], float("nan")])
def test_settings_of_another_type_are_named(name, value):
    with pytest.raises(GritError, match=f"^{name} must be"):
        Sampling(**{name: value})


def draws(logits: np.ndarray, count: int, **settings) -> np.ndarray:
    rows = sampling_rows([Sampling(seed=seed, **settings) for seed in range(count)])
    return np.asarray(
        jax.jit(sample)(
            jnp.tile(jnp.asarray(logits, jnp.float32), (count, 1)), rows, jnp.asarray(3)
        )
    )


def test_extreme_settings_have_their_meaning():
    """A top_k above the vocabulary keeps all; a top_p below any probability keeps the best one."""
    logits = np.random.default_rng(0).normal(size=50)
    choose = lambda **settings: draws(logits, 12, **settings).tolist()
    best = int(logits.argmax())
    for top_p in (1e-38, 1e-45, 5e-324):
        assert choose(temperature=1.0, top_p=top_p) == [best] * 12
    for top_k in (50, 2**31, 2**63, 10**30):
        assert choose(temperature=1.0, top_k=top_k) == choose(temperature=1.0)
    assert choose(temperature=1e300) == choose(temperature=3e38) != choose(temperature=1.0)
    assert choose(temperature=1e-300) == [best] * 12


def test_a_draw_depends_on_its_seed_and_step_alone():
    """Not on the rows beside it nor on their settings."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, 50)), jnp.float32)
    requests = [
        Sampling(temperature=1.5, top_k=top_k, seed=n) for n, top_k in enumerate([0, 9, 30])
    ]
    requests += [Sampling(), Sampling(temperature=1.5, seed=2**32 + 1), Sampling(temperature=1.5)]
    run = lambda rows, settings, step: jax.jit(sample)(
        logits[jnp.asarray(rows)], sampling_rows(settings), jnp.int32(step)
    ).tolist()
    together = [run(range(6), requests, step) for step in range(8)]
    for row, request in enumerate(requests):
        alone = [run([row], [request], step)[0] for step in range(8)]
        assert alone == [tokens[row] for tokens in together]
        assert (len(set(alone)) > 3) == (request.temperature > 0)
    assert all(tokens[3] == int(logits[3].argmax()) for tokens in together)
    # Seeds count modulo 2**32; row 1's other settings are not those of row 4.
    same = Sampling(temperature=1.5, seed=1)
    assert run([4], [same], 5) == run([4], [requests[4]], 5)


LOGITS = np.log([0.4, 0.02, 0.25, 0.2, 0.08, 0.05])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, [0.4, 0.02, 0.25, 0.2, 0.08, 0.05]),
        ({"temperature": 1.0, "top_k": 2}, [0.4, 0, 0.25, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.6}, [0.4, 0, 0.25, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.66}, [0.4, 0, 0.25, 0.2, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.01}, [1, 0, 0, 0, 0, 0]),
        ({"temperature": 0.5}, np.array([0.4, 0.02, 0.25, 0.2, 0.08, 0.05]) ** 2),
        # top-p counts what top-k left: 0.4 / 0.65 is above 0.6
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [1, 0, 0, 0, 0, 0]),
    ],
)
def test_frequencies_are_the_softmax_s(settings, expected):
    expected = np.asarray(expected) / np.sum(expected)
    count = 20_000
    found = np.bincount(draws(LOGITS, count, **settings), minlength=6) / count
    assert (found[expected == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / count))


def test_kept_equals_a_sort():
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((40, 300)) * 4).astype(np.float32)
    logits[0, :] = 1.5  # ties
    logits[1, 7] = -np.inf
    top_k = rng.integers(0, 60, 40).astype(np.int32)
    top_p = rng.uniform(0.05, 1, 40).astype(np.float32)
    top_p[::5] = 1
    found = np.asarray(kept(jnp.asarray(logits), jnp.asarray(top_k), jnp.asarray(top_p)))
    for row, k, p, got in zip(logits.astype(np.float64), top_k, top_p, found, strict=True):
        order = np.argsort(-row, kind="stable")
        floor = row[order[k - 1]] if k else -np.inf
        chosen = row >= floor
        weights = np.where(chosen, np.exp(row - row.max()), 0)
        weights /= weights.sum()
        mass = np.cumsum(weights[order])
        last = order[np.searchsorted(mass, p)] if p < 1 else None
        expected = chosen & (row >= row[last]) if last is not None else chosen
        np.testing.assert_array_equal(got, expected)
