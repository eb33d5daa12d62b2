"""TPU slices by topology, and their devices for the compiler, without a TPU.

The chips' figures are in `runtime/chips.py`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from grit_jax.errors import GritError
from grit_jax.runtime.chips import CHIPS, Chip

# What the compiler reads from its environment, and a machine without a TPU does not set.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two may compile: none of them takes a chip
}
TOPOLOGY = re.compile(r"(\w+):(\d+(?:x\d+){1,2})")


@dataclasses.dataclass
class Slices:
    """`count` slices of one topology (`v5p:4x4x4`) on one network, and the devices of all of them,
    for which programs can be compiled but not run."""

    name: str
    chip: Chip
    devices: Sequence[Any]
    count: int = 1


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Reads `v5p:4x4x4` as its chip and its shape.

    Raises:
      GritError: not a topology, an unknown chip, or a slice that does not exist.
    """
    match = TOPOLOGY.fullmatch(name)
    known = ", ".join(CHIPS)
    if not match or match[1] not in CHIPS:
        problem = f"unknown chip '{match[1]}'" if match else "not a topology"
        raise GritError(
            f"--topology {name}: {problem}; expected something like v5p:4x4x4 or v5e:16x16, with"
            f" one of the chips {known}"
        )
    shape = tuple(int(n) for n in match[2].split("x"))
    chip = CHIPS[match[1]]
    if len(shape) != chip.axes:
        example = f"{match[1]}:{'x'.join('4' * chip.axes)}"
        raise GritError(
            f"--topology {name}: {match[1]} slices have {chip.axes} sides, such as {example}"
        )
    if not 0 < math.prod(shape) <= chip.pod or any(n > 1 and n % 2 for n in shape):
        raise GritError(
            f"--topology {name}: no such slice; every side is 1 or even, and the largest slice has"
            f" {chip.pod} chips"
        )
    return chip, shape


def open_slices(name: str, count: int = 1) -> Slices:
    """Opens slices for the compiler, and sets the environment that it needs.

    Raises:
      GritError: see `parse_topology`; or no TPU compiler is installed.
    """
    chip, shape = parse_topology(name)
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")  # jax may have read its environment before
    from jax.experimental import topologies
    from jax.experimental.compilation_cache import compilation_cache

    # A host has 2 x 2 chips, and a smaller slice is a part of one.
    options: dict[str, Any] = {"chips_per_host_bounds": (*(min(n, 2) for n in shape[:2]), 1)}
    if count > 1:
        options["num_slices"] = count
    if name.startswith("v4:"):
        options["chip_config_name"] = (
            "megacore"  # both cores of a chip are one device, as on a TPU VM
        )
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **options
        ).devices
    except RuntimeError as error:
        if "not installed" in str(error):
            raise GritError(
                "planning needs the TPU compiler (libtpu): pip install 'grit_jax[tpu]'"
            ) from None
        raise GritError(f"--topology {name}: {str(error).splitlines()[0]}") from None
    # Programs for absent devices cannot be read back from the cache. JAX looks at the setting once.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    return Slices(name, chip, devices, count)
