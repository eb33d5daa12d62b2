"""How a run's state is made: no array is ever whole on a device, whether drawn at random or
imported."""

from __future__ import annotations

import math
import re

import jax
import numpy as np
import pytest
from lora_state import CONFIG

from grit_jax.models.parameters import PARAMETER_AXES, parameter_shapes
from grit_jax.sharding import MeshConfig, make_mesh, put_weight
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer, state_shardings


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8])


def result_sizes(text):
    """Elements of every array that a compiled program makes, on one device."""
    shapes = re.findall(r"= \(?(?:f32|u32|s32|bf16)\[([\d,]*)\]", text)
    return [math.prod(int(n) for n in dims.split(",") if n) for dims in shapes]


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize(
    "how",
    [{"moments": "bfloat16"}, pytest.param({"name": "adafactor"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_random_state_is_made_in_shards(mesh, monkeypatch, how):
    """The program that draws it: per device, nothing is larger than the largest share, and nothing
    is sent."""
    programs, jit = [], jax.jit

    def watched(function, **options):
        compiled = jit(function, **options)
        programs.append(lambda *arguments: compiled.lower(*arguments).compile())
        return lambda *arguments: programs.append(arguments) or compiled(*arguments)

    optimizer = make_optimizer(OptimizerConfig(**how), lambda step: 1e-3)
    with jax.set_mesh(mesh):
        monkeypatch.setattr("grit_jax.training.state.jax.jit", watched)
        state = init_state(CONFIG, optimizer, jax.random.key(0), mesh)
        monkeypatch.undo()
        compile_it, arguments = programs
        compiled = compile_it(*arguments)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    expected = jax.tree.leaves(state_shardings(shapes, mesh))
    shares = []
    for leaf, sharding in zip(jax.tree.leaves(state), expected, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        shares.append(math.prod(sharding.shard_shape(leaf.shape)))
    assert max(result_sizes(compiled.as_text())) <= max(shares) == 2 * 128 * 128 / 8
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())


class Recorded:
    """A weight on the host that remembers what is read of it."""

    def __init__(self, array):
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, index):
        self.read.append(self.array[index].size)
        return self.array[index]


def test_an_imported_weight_is_read_in_shards(mesh):
    for name, shape in parameter_shapes(CONFIG).items():
        weight = Recorded(np.arange(math.prod(shape), dtype=np.float32).reshape(shape))
        placed = put_weight(name, weight, PARAMETER_AXES, mesh)
        share = math.prod(placed.sharding.shard_shape(shape))
        assert set(weight.read) == {share} and (share < math.prod(shape)) != name.endswith(
            "_norm"
        ), name
        np.testing.assert_array_equal(placed, weight.array)


def test_a_state_of_imported_weights_stays_in_shards(mesh):
    """They are taken as they lie, cast where they are."""
    shapes = parameter_shapes(CONFIG)
    optimizer = make_optimizer(OptimizerConfig(), lambda step: 1e-3)
    put = lambda name, shape: put_weight(name, np.ones(shape, np.float32), PARAMETER_AXES, mesh)
    with jax.set_mesh(mesh):
        given = {name: put(name, shape) for name, shape in shapes.items()}
        state = init_state(CONFIG, optimizer, jax.random.key(0), mesh, given)
    for name, weight in given.items():
        assert state.params[name].sharding.is_equivalent_to(weight.sharding, weight.ndim), name
        assert len(state.params[name].sharding.device_set) == 8
