"""Meshes, the table of logical axes, and one program on one device and on eight."""

import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from grit_jax.errors import GritError
from grit_jax.sharding import (
    MeshConfig,
    arrange,
    constrain,
    drop_indivisible,
    make_mesh,
    mesh_axes,
    partition_spec,
    put_rows,
)
from grit_jax.types import Rows


def abstract(data, fsdp, tensor):
    return AbstractMesh(
        (data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )


def test_logical_axes_name_mesh_axes():
    assert partition_spec(("layers", "embed", "heads")) == PartitionSpec(None, "fsdp", "tensor")
    assert partition_spec(("rows", None)) == PartitionSpec(("data", "fsdp"), None)
    assert mesh_axes("rows") == ("data", "fsdp") and mesh_axes("vocab") == ()
    with pytest.raises(KeyError):
        partition_spec(("colums",))  # an axis that the table lacks is no axis left whole


def test_fit_leaves_out_what_does_not_divide():
    mesh = abstract(2, 2, 2)
    rows = partition_spec(("rows", None, "heads"))
    assert drop_indivisible(rows, (8, 5, 6), mesh) == PartitionSpec(
        ("data", "fsdp"), None, "tensor"
    )
    assert drop_indivisible(rows, (6, 5, 6), mesh) == PartitionSpec(None, None, "tensor")
    assert drop_indivisible(rows, (8, 5, 3), mesh) == PartitionSpec(("data", "fsdp"), None, None)
    assert drop_indivisible(PartitionSpec("fsdp"), (4, 4), mesh) == PartitionSpec(
        "fsdp", None
    )  # a shorter spec
    assert drop_indivisible(rows, (8, 5, 6), abstract(1, 1, 1)) == PartitionSpec(None, None, None)


def test_one_device():
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    rows = Rows(*(np.arange(6).reshape(2, 3) + i for i in range(3)))
    put = put_rows(rows, mesh)
    assert isinstance(put.segments, jax.Array)
    np.testing.assert_array_equal(put.segments, rows.segments)
    x = np.ones((2, 3))
    assert constrain(x, ("rows", None)) is x  # outside a mesh it does nothing


@pytest.mark.parametrize(
    "config, words",
    [
        (
            MeshConfig(2, 2, 2),
            "data x fsdp x context x tensor = 2 x 2 x 1 x 2 needs 8 devices, got 1",
        ),
        (MeshConfig(-1, -1, 1), "-1 for one of them"),
        (MeshConfig(0, 1, 1), "every axis must be at least 1"),
        (MeshConfig(3, -1, 1), "mesh.data"),
    ],
)
def test_meshes_that_do_not_fit(config, words):
    with pytest.raises(GritError, match=words):
        make_mesh(config, jax.devices()[:1])


class Chip(types.SimpleNamespace):
    __hash__ = object.__hash__  # a mesh asks for it


def chips(slices, each, platform="tpu"):
    """Devices as several TPU slices (each a line of chips) or hosts with GPUs show them, in no
    order."""
    found = [
        Chip(
            id=i,
            slice_index=i // each,
            process_index=0,
            platform=platform,
            device_kind=platform,
            coords=(i % each, 0, 0),
            core_on_chip=0,
        )
        for i in range(slices * each)
    ]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def test_slices_follow_one_another_along_data_alone():
    for slices, sizes in ((2, (2, 4, 1, 1)), (2, (4, 2, 1, 1)), (4, (4, 1, 2, 2))):
        devices = chips(slices, int(np.prod(sizes)) // slices)
        found = arrange(devices, sizes)
        assert found.shape == sizes and len({d.id for d in found.flat}) == len(devices)
        slice_of = np.vectorize(lambda device: device.slice_index)(found)
        expected = np.arange(sizes[0]) // (sizes[0] // slices)
        assert (slice_of == expected[:, None, None, None]).all()
    assert [d.id for d in arrange(sorted(chips(1, 4), key=lambda d: d.id), (1, 4, 1, 1)).flat] == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    "devices, sizes, words",
    [
        (
            chips(2, 4),
            (1, 8, 1, 1),
            r"mesh.data: must be a multiple of the number of slices \(2\), got 1;",
        ),
        (
            chips(2, 4)[:-1],
            (7, 1, 1, 1),
            r"slices must have the same size.*slice 0: \d, slice 1: \d",
        ),
        (chips(4, 2), (2, 4, 1, 1), r"multiple of the number of slices \(4\), got 2"),
    ],
)
def test_slices_that_make_no_mesh(devices, sizes, words):
    with pytest.raises(GritError, match=words):
        arrange(devices, sizes)


def test_hosts_with_gpus_are_no_slices():
    """Weights are split over all of them: JAX gives the GPUs of each host a `slice_index` of their
    own."""
    mesh = make_mesh(MeshConfig(), chips(2, 2, "gpu"))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 1}
    assert [(device.id, device.slice_index) for device in mesh.devices.flat] == [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 1),
    ]
    with pytest.raises(GritError, match=r"the number of slices \(2\), got 1"):
        make_mesh(MeshConfig(), chips(2, 2))


PROGRAM = """
import functools, jax, numpy as np
from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.transformer import PARAMETER_AXES, Transformer, parameter_shapes
from grit_jax.sharding import MeshConfig, make_mesh, put_rows, tree_shardings
from grit_jax.types import AttentionMode, Rows

assert len(jax.devices()) == 8
assert dict(make_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
assert dict(make_mesh(MeshConfig(2, -1, 2)).shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
try:
    make_mesh(MeshConfig(3, -1, 1))
    raise SystemExit("3 does not divide 8")
except GritError as error:
    assert "got 8" in str(error)

config = ModelConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, dtype="float32", remat="dots")
rng = np.random.default_rng(0)
draw = lambda shape: (0.3 * rng.normal(size=shape)).astype(np.float32)
params = {name: draw(shape) for name, shape in parameter_shapes(config).items()}
rows = Rows(rng.integers(0, 64, (8, 6)).astype(np.int32), np.tile(np.arange(6, dtype=np.int32), (8, 1)),
            np.tile(np.array([1, 1, 1, 1, 1, 0], np.int32), (8, 1)))
mode = ((AttentionMode.BIDIRECTIONAL, 4), (AttentionMode.CAUSAL, 4))

@functools.partial(jax.jit)
@functools.partial(jax.value_and_grad, has_aux=True)
def program(params, rows):
    model = Transformer(config, params)
    logits = model.logits(model(rows.tokens, rows.positions, rows.segments, mode=mode).hidden)
    return jax.nn.logsumexp(logits, axis=-1).mean(), logits

expected = jax.device_get(program(params, rows))
mesh = make_mesh(MeshConfig(2, 2, 2))
shardings = tree_shardings(params, PARAMETER_AXES, mesh)
assert shardings["up"].spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
with jax.set_mesh(mesh):
    split = jax.device_put(params, shardings)
    assert split["up"].addressable_shards[0].data.shape == (2, 8, 16)
    batch = put_rows(rows, mesh)
    assert batch.tokens.addressable_shards[0].data.shape == (2, 6)
    odd = put_rows(np.zeros((3, 2)), mesh)
    assert odd.sharding.is_fully_replicated
    result = program(split, batch)
    assert len(result[0][1].sharding.device_set) == 8
for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(jax.device_get(result)), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
print("equal on eight devices")
"""


def test_one_program_on_one_device_and_on_eight():
    """In a process of its own: the number of simulated devices is fixed when JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal on eight devices" in done.stdout
