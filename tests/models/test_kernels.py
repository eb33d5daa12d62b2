"""Keys as kernels take them; the blocked path itself is checked in `test_attention`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.models.kernels import KeyValues, Queries, key_mask, platform
from grit_jax.sharding import MeshConfig, make_mesh

B, S, K, H = 2, 6, 2, 4


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def marks(*rows):
    return jnp.asarray(rows, jnp.int32)


@pytest.mark.parametrize("by_head", [True, False])
def test_a_slice_of_keys(by_head):
    k, v = draw(B, S, K, H), draw(B, S, K, H)
    order = (lambda k: k.transpose(0, 2, 3, 1), lambda v: v.swapaxes(1, 2))
    positions = jnp.tile(jnp.arange(S), (B, 1))
    make = lambda k, v, part: KeyValues(
        *((order[0](k), order[1](v)) if by_head else (k, v)),
        positions[:, part],
        positions[:, part] + 1,
        by_head=by_head,
    )
    part = slice(2, 5)
    taken, wanted = make(k, v, slice(None)).slice(2, 3), make(k[:, part], v[:, part], part)
    for name in ("k", "v", "positions", "segments"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(wanted, name))
    assert taken.offset == 2 and taken.slice(1, 2).offset == 3


def test_int8_codes_are_multiplied_by_their_scales():
    codes = jnp.asarray(np.random.default_rng(0).integers(-127, 128, (B, K, H, S)), jnp.int8)
    k_scale, v_scale = draw(B, K, H), draw(B, K, S)
    keys = KeyValues(
        codes,
        codes.swapaxes(2, 3),
        marks(*[[0] * S] * B),
        marks(*[[1] * S] * B),
        by_head=True,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    k, v = keys.dequantised(jnp.float32)
    wide = np.asarray(codes, np.float32)
    for channel in range(H):
        np.testing.assert_array_equal(
            k[:, :, channel], wide[:, :, channel] * np.asarray(k_scale)[:, :, channel, None]
        )
    for slot in range(S):
        np.testing.assert_array_equal(
            v[:, :, slot], wide[..., slot] * np.asarray(v_scale)[:, :, slot, None]
        )


def test_which_keys_a_query_sees():
    """A cached key by its segment alone, an own one from its place on; padding, empty slots and
    tokens that were not finite by nobody; a window by positions."""
    queries = Queries(draw(1, 3, 2, H), marks([4, 5, 0]), marks([1, 1, 0]))
    cached = KeyValues(
        draw(1, 4, K, H), draw(1, 4, K, H), marks([3, 9, 1, 2]), marks([1, 2, 0, -1])
    )
    own = KeyValues(
        draw(1, 3, K, H), draw(1, 3, K, H), marks([4, 5, 0]), marks([1, 1, 0]), causal=True
    )
    see = lambda keys, window=None: np.asarray(
        key_mask(queries, keys, window=window, symmetric_window=False)
    )[0].astype(int)
    assert see(cached).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert see(cached, 2).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert see(own).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_the_platform_is_that_of_the_mesh_in_use():
    assert platform() == "cpu"
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert platform() == "cpu"
