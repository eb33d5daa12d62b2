"""Where arrays live: a mesh, and one table from logical axes to mesh axes.

Models and steps name *logical* axes ("embed", "heads", "rows", ...); only this file names mesh
axes. The same program therefore runs on one device, on simulated CPU devices and on a pod.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grit_jax.errors import GritError

MESH_AXES = ("data", "fsdp", "context", "tensor")
Axes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (one of them at most) takes what the others leave.

    `data` copies the weights, and where the devices are of several TPU slices it is the axis that
    goes from slice to slice (over the data-centre network); `fsdp` splits weights and rows;
    `tensor` splits heads and feed-forward; `context` splits the tokens of every row, for rows that
    are too long for one device.

    >>> make_mesh(MeshConfig()).shape["fsdp"] == len(jax.devices())
    True
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1


# The one table: a logical axis -> the mesh axes that split it (None: not split).
#
# `fsdp` splits every weight along `embed`, and the weight is gathered where it is used; `tensor`
# splits heads, the feed-forward and the vocabulary's logits. The embedding table is split along
# `embed` alone: for a gather from a table that is split along the vocabulary, XLA would materialise
# the whole table on every device.
LOGICAL_AXES: Mapping[str, Axes] = {
    "rows": ("data", "fsdp"),  # B: rows of a batch, texts of a similarity matrix
    "replicas": "data",  # what is left of `rows` in an array that is split along `embed` as well
    "tokens": "context",  # T of a row
    "embed": "fsdp",  # D of weights
    "vocab": None,  # V of the embedding table
    "vocab_out": "tensor",  # V of the output head
    "heads": "tensor",  # N * H of the query projection
    "kv_heads": "tensor",  # K * H of the key and value projections
    "ffn": "tensor",  # F
    # E. Tokens are whole along `tensor`: each device computes its own experts' share, and one sum
    # over the devices joins the shares, as for F. No token is sent. `drop_indivisible` gives the
    # mesh axis to the experts, and to F where E does not divide.
    "experts": "tensor",
    "layers": None,  # L, the scanned axis
}


def mesh_axes(axis: str) -> tuple[str, ...]:
    """The mesh axes that split a logical axis, for `jax.shard_map` and collectives."""
    return _names(LOGICAL_AXES[axis])


def partition_spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes (None: a dimension that is not split).

    >>> partition_spec(("layers", "embed", "heads")) == PartitionSpec(None, "fsdp", "tensor")
    True
    """
    return PartitionSpec(*(LOGICAL_AXES[axis] if axis else None for axis in axes))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all), axes `data, fsdp, context, tensor`.

    Raises:
      GritError: the axes do not multiply to the number of devices, or `data` does not go over their
        slices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise GritError(
            "mesh: every axis must be at least 1, or -1 for one of them, got"
            f" {dataclasses.asdict(config)}"
        )
    fixed = int(np.prod([n for n in sizes if n != -1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // fixed)
    if int(np.prod(sizes)) != len(devices):
        raise GritError(
            f"mesh: {' x '.join(MESH_AXES)} = {' x '.join(map(str, sizes))} needs"
            f" {int(np.prod(sizes))} devices, got {len(devices)}; set"
            f" {', '.join('mesh.' + axis for axis in MESH_AXES)} to a product of {len(devices)}"
        )
    return Mesh(arrange(devices, sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def arrange(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
    """Devices in the order of a mesh.

    Neighbours along the last axes are neighbours on the interconnect. Only the first axis spans
    several TPU slices (devices with different `slice_index`).

    Raises:
      GritError: the first axis is not a multiple of the number of slices, or the slices have
        different sizes.
    """
    # On GPUs JAX reports every host as a slice, but weights may be sharded over hosts there.
    tpu = devices[0].platform == "tpu"
    slices = collections.Counter(
        getattr(device, "slice_index", 0) if tpu else 0 for device in devices
    )
    if len(slices) == 1:
        return _on_torus(mesh_utils.create_device_mesh, tuple(sizes), devices=devices)
    if len(set(slices.values())) > 1:
        held = ", ".join(f"slice {number}: {count}" for number, count in sorted(slices.items()))
        raise GritError(f"mesh: all slices must have the same size, got {held} devices")
    first, *rest = sizes
    if first % len(slices):
        raise GritError(
            f"mesh.data: must be a multiple of the number of slices ({len(slices)}), got {first};"
            " no other axis can span slices (weights are not gathered over the network between"
            " them)"
        )
    inside, across = (first // len(slices), *rest), (len(slices), *[1] * len(rest))
    return _on_torus(mesh_utils.create_hybrid_device_mesh, inside, across, devices=devices)


def _on_torus(
    create: Callable[..., np.ndarray], *shape: tuple[int, ...], devices: Sequence[Any]
) -> np.ndarray:
    """Whole axes of a TPU's torus for each axis of the mesh where that is possible; of a v5e's,
    parts from the start (as `jax.make_mesh` has it)."""
    if devices[0].device_kind in ("TPU v5 lite", "TPU v5e"):
        return create(*shape, devices=devices, allow_split_physical_axes=True)
    try:
        return create(*shape, devices=devices)
    except NotImplementedError:
        return create(*shape, devices=devices, allow_split_physical_axes=True)


def drop_indivisible(spec: PartitionSpec, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """`spec` without the mesh axes that do not divide the dimension (small models stay whole
    there), or that an earlier dimension has taken."""
    fitted: list[Axes] = []
    taken: set[str] = set()
    for size, axes in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        names = _names(axes)
        ways = int(np.prod([mesh.shape[name] for name in names])) if names else 1
        fits = ways > 1 and size % ways == 0 and taken.isdisjoint(names)
        taken |= set(names) if fits else set()
        fitted.append(axes if fits else None)
    return PartitionSpec(*fitted)


def fitted_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The PartitionSpec of an array of this shape on this mesh: that of its logical axes, without
    what `drop_indivisible` drops."""
    return drop_indivisible(partition_spec(axes), shape, mesh)


def fitted_sharding(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """`fitted_spec` as a sharding on the mesh."""
    return NamedSharding(mesh, fitted_spec(axes, shape, mesh))


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """States the sharding of an intermediate array; outside a mesh context it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, fitted_spec(axes, x.shape, mesh))


def tree_shardings(shapes: Mapping[str, Any], axes: Mapping[str, Any], mesh: Mesh) -> Any:
    """The shardings of a dictionary of arrays (or shapes), whose logical axes stand under the same
    keys."""
    return {name: fitted_sharding(axes[name], value.shape, mesh) for name, value in shapes.items()}


def num_row_shards(mesh: Any) -> int:
    """The number of parts that the mesh splits rows into."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes("rows"))


def num_token_shards(mesh: Any) -> int:
    """The number of parts that the mesh splits the tokens of a row into."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes("tokens"))


def num_shards(axis: str | None, size: int) -> int:
    """The number of parts that the mesh in use splits a logical axis of this size into.

    1 where it does not split it: no mesh, no axis, or a size that does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = mesh_axes(axis) if axis else ()
    count = 1 if mesh.empty else math.prod(mesh.shape[name] for name in names)
    return count if size % count == 0 else 1


def _names(axes: Axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def to_host(x: Any) -> np.ndarray:
    """The whole array as NumPy in this process.

    Where its parts lie in several processes, all of them must call this.
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def put_weight(name: str, array: np.ndarray, axes: Mapping[str, Any], mesh: Mesh) -> jax.Array:
    """A weight from the host's memory, of which each device gets its own part."""
    sharding = fitted_sharding(axes[name], array.shape, mesh)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def row_shardings(tree: Any, mesh: Mesh) -> Any:
    """The shardings of arrays of rows `[B, T, ...]` (or of their shapes): split over the mesh axes
    of `rows` and of `tokens`.

    A dimension that does not divide evenly is replicated, as is an array of one dimension (a list
    of a few hundred indices).
    """

    def sharding(x: Any) -> NamedSharding:
        if len(x.shape) < 2:
            return NamedSharding(mesh, PartitionSpec())
        return fitted_sharding(("rows", "tokens"), x.shape[:2], mesh)

    return jax.tree.map(sharding, tree)


def put_rows(tree: Any, mesh: Mesh) -> Any:
    """Host arrays as global arrays with the shardings of `row_shardings`."""
    tree = jax.tree.map(np.asarray, tree)
    put = lambda x, sharding: jax.make_array_from_callback(
        x.shape, sharding, lambda index: x[index]
    )
    return jax.tree.map(put, tree, row_shardings(tree, mesh))


def rows_by_host(height: int, mesh: Mesh) -> np.ndarray:
    """Which rows of an array `[height, T]` the devices of each process hold, `bool [processes,
    height]`."""
    held = np.zeros((jax.process_count(), height), bool)
    shape = jax.ShapeDtypeStruct((height, 1), np.int32)
    for device, index in row_shardings(shape, mesh).devices_indices_map(shape.shape).items():
        held[device.process_index, index[0]] = True
    return held
