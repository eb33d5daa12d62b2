"""TPU chips and slices: published figures, and the devices of a slice that is not here, for the
compiler alone."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from grit_jax.errors import GritError

GIB = 2**30
# What the compiler asks of its surroundings, which no machine without a TPU has.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two may compile: none of them takes a chip
}
TOPOLOGY = re.compile(r"(\w+):(\d+(?:x\d+){1,2})")


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip, as its page at cloud.google.com/tpu/docs says (v4, v5e, v5p, v6e,
    in 2026).

    Attributes:
      flops: bfloat16 operations a second.
      memory, memory_rate: bytes of its HBM, and bytes a second from and to it.
      link_rate: bytes a second that it sends to its neighbours, all links together, one direction
        (the pages name both: 400, 1200 and 800 GB/s for v5e, v5p and v6e; v4 has six links of 50
        GB/s).
      network_rate: bytes a second that it sends to other slices, over the data center's network
        (50, 25 and 100 Gbit/s for v5p, v5e and v6e; of v4 only its hosts' 200 Gbit/s for four chips
        are known).
      axes: of the torus.
      pod: chips of the largest slice.
      rented: how Google names a slice of it, and what the number behind counts of each chip (v4's
        and v5p's two cores).
    """

    flops: float
    memory: int
    memory_rate: float
    link_rate: float
    network_rate: float
    axes: int
    pod: int
    rented: tuple[str, int]

    def accelerator_type(self, shape: tuple[int, ...]) -> str | None:
        """A slice as it is asked for where it is rented: `4x4x4` of v5p is `v5p-128`. None: in that
        shape it is not."""
        name, counted = self.rented
        cubes = self.axes == 3 and not any(n % 4 for n in shape)  # of 4 x 4 x 4 chips
        return (
            f"{name}-{math.prod(shape) * counted}" if cubes or shape in SHAPES[self.axes] else None
        )


# The slices that there are, by axes of the torus (cloud.google.com/tpu/docs/v5e, /v6e; /v4, /v5p,
# beside whole cubes).
SHAPES = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)),
}
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, 6.25e9, axes=3, pod=4096, rented=("v4", 2)),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 3.125e9, axes=2, pod=256, rented=("v5litepod", 1)),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, axes=3, pod=6144, rented=("v5p", 2)),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9, 12.5e9, axes=2, pod=256, rented=("v6e", 1)),
}


@dataclasses.dataclass
class Slices:
    """A slice by name (`v5p:4x4x4`), or `count` of them on one network, and the devices of all, on
    which programs can be compiled but not run."""

    name: str
    chip: Chip
    devices: Sequence[Any]
    count: int = 1


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """`v5p:4x4x4` as its chip and its shape.

    Raises:
      GritError: not a topology, an unknown chip, or a slice that there is not.
    """
    found = TOPOLOGY.fullmatch(name)
    known = ", ".join(CHIPS)
    if not found or found[1] not in CHIPS:
        what = f"no chip '{found[1]}' is known" if found else "not a topology"
        raise GritError(
            f"--topology {name}: {what}; it looks like v5p:4x4x4 or v5e:16x16, chips are {known}"
        )
    shape = tuple(int(n) for n in found[2].split("x"))
    chip = CHIPS[found[1]]
    if len(shape) != chip.axes:
        example = f"{found[1]}:{'x'.join('4' * chip.axes)}"
        raise GritError(
            f"--topology {name}: {found[1]} slices have {chip.axes} sides, such as {example}"
        )
    if not 0 < math.prod(shape) <= chip.pod or any(n > 1 and n % 2 for n in shape):
        most = f"{chip.pod} chips are the most"
        raise GritError(
            f"--topology {name}: there is no such slice; sides are 1 or even, and {most}"
        )
    return chip, shape


def open_slices(name: str, count: int = 1) -> Slices:
    """A slice, or several, for the compiler; sets the environment for it.

    Raises:
      GritError: as `parse_topology`, a slice that does not exist, or no TPU compiler installed.
    """
    chip, shape = parse_topology(name)
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")  # jax may have read its environment before
    from jax.experimental import topologies

    # A host has 2 x 2 chips, and a smaller slice is a part of one.
    how: dict[str, Any] = {"chips_per_host_bounds": (*(min(n, 2) for n in shape[:2]), 1)}
    if count > 1:
        how["num_slices"] = count
    if name.startswith("v4:"):
        how["chip_config_name"] = "megacore"  # both cores of a chip are one device, as on a TPU VM
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **how).devices
    except RuntimeError as error:
        if "not installed" in str(error):
            raise GritError(
                "planning needs the TPU compiler (libtpu): pip install 'grit_jax[tpu]'"
            ) from None
        raise GritError(f"--topology {name}: {str(error).splitlines()[0]}") from None
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # such programs cannot be read back from it
    return Slices(name, chip, devices, count)
