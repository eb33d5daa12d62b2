"""Accelerators by name: published figures of chips, and the TPU slices that can be rented.

Standard library only: training reads the peak rates, `grit plan` the TPU chips, and `launch/`,
which runs without the package's dependencies, the slices.
"""

from __future__ import annotations

import dataclasses
import math

GIB = 2**30
# Bytes per second between a TPU chip and its host's memory, each way: a v4's PCIe
# (jax-ml.github.io/scaling-book/tpus); the figures of later chips are not published.
HOST_RATE = 16e9


# ---- chips ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one TPU chip, from its page at cloud.google.com/tpu/docs (v4, v5e, v5p, v6e,
    as of 2026).

    Attributes:
      flops: bfloat16 operations per second.
      memory, memory_rate: bytes of its HBM, and bytes per second from and to it.
      link_rate: bytes per second that it sends to its neighbours, all links together, one direction
        (the pages name both: 400, 1200 and 800 GB/s for v5e, v5p and v6e; v4 has six links of 50
        GB/s).
      network_rate: bytes per second that it sends to other slices, over the data center's network
        (50, 25 and 100 Gbit/s for v5p, v5e and v6e; of v4 only its hosts' 200 Gbit/s for four chips
        are known).
      axes: of the torus.
      pod: chips of the largest slice.
      accelerator: the name of its slices where they are rented, a key of `ACCELERATORS`.
      device_kinds: how JAX names its devices. All cores of a chip are one device.
    """

    flops: float
    memory: int
    memory_rate: float
    link_rate: float
    network_rate: float
    axes: int
    pod: int
    accelerator: str
    device_kinds: tuple[str, ...]

    def accelerator_type(self, shape: tuple[int, ...]) -> str | None:
        """The name by which a slice is rented: `4x4x4` of v5p is `v5p-128`; None if that shape is
        not."""
        cubes = self.axes == 3 and not any(n % 4 for n in shape)  # of 4 x 4 x 4 chips
        if not cubes and shape not in SHAPES[self.axes]:
            return None
        number = math.prod(shape) * ACCELERATORS[self.accelerator].counted_per_chip
        return f"{self.accelerator}-{number}"


CHIPS = {
    "v4": Chip(
        flops=275e12,
        memory=32 * GIB,
        memory_rate=1228e9,
        link_rate=300e9,
        network_rate=6.25e9,
        axes=3,
        pod=4096,
        accelerator="v4",
        device_kinds=("TPU v4",),
    ),
    "v5e": Chip(
        flops=197e12,
        memory=16 * GIB,
        memory_rate=819e9,
        link_rate=200e9,
        network_rate=3.125e9,
        axes=2,
        pod=256,
        accelerator="v5litepod",
        device_kinds=("TPU v5 lite", "TPU v5e"),
    ),
    "v5p": Chip(
        flops=459e12,
        memory=95 * GIB,
        memory_rate=2765e9,
        link_rate=600e9,
        network_rate=6.25e9,
        axes=3,
        pod=6144,
        accelerator="v5p",
        device_kinds=("TPU v5", "TPU v5p"),
    ),
    "v6e": Chip(
        flops=918e12,
        memory=32 * GIB,
        memory_rate=1640e9,
        link_rate=400e9,
        network_rate=12.5e9,
        axes=2,
        pod=256,
        accelerator="v6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
    ),
}
# Slices by axes of the torus (cloud.google.com/tpu/docs/v5e, /v6e; for /v4 and /v5p beside whole
# cubes of 4 x 4 x 4 chips).
SHAPES = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)),
}
# JAX's `device_kind` of GPUs -> dense bfloat16 operations per second, from NVIDIA's data sheets
# (float16 on the T4 and V100, which have no bfloat16).
GPU_FLOPS = {
    "Tesla T4": 65e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
# JAX's `device_kind` -> peak operations per second of one device.
PEAK_FLOPS = {
    **{kind: chip.flops for chip in CHIPS.values() for kind in chip.device_kinds},
    **GPU_FLOPS,
}


# ---- slices as they are rented -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AcceleratorFamily:
    """The slices of a TPU generation as they are named where they are rented: `v5p-128`.

    Sources: images, cloud.google.com/tpu/docs/runtimes; hosts, cloud.google.com/tpu/docs/v5e, /v5p,
    /v6e; sizes, those and xpk's src/xpk/core/system_characteristics.py.

    Attributes:
      sizes: the numbers that occur in the names.
      counted_per_chip: what the number counts of each chip: 2 (cores) or 1 (chips).
      chips_on_one_host: of a slice with a single host; larger ones have four chips per host.
      image: what its TPU VMs boot; None where there are none.
    """

    sizes: tuple[int, ...]
    counted_per_chip: int
    chips_on_one_host: int
    image: str | None


def _cubes(largest: int) -> tuple[int, ...]:
    """Sizes in cores of the generations built of cubes of 64 chips: parts of a cube, then cubes."""
    return (8, 16, 32, 64, *range(128, largest + 1, 128))


_POWERS = (1, 4, 8, 16, 32, 64, 128, 256)
ACCELERATORS = {
    "v2": AcceleratorFamily((8, 32, 128, 256, 512), 2, 4, "tpu-ubuntu2204-base"),
    "v3": AcceleratorFamily((8, 32, 64, 128, 256, 512, 1024, 2048), 2, 4, "tpu-ubuntu2204-base"),
    "v4": AcceleratorFamily(_cubes(8192), 2, 4, "tpu-ubuntu2204-base"),
    "v5litepod": AcceleratorFamily(_POWERS, 1, 8, "v2-alpha-tpuv5-lite"),
    "v5p": AcceleratorFamily(_cubes(12288), 2, 4, "v2-alpha-tpuv5"),
    "v6e": AcceleratorFamily(_POWERS, 1, 8, "v2-alpha-tpuv6e"),
    "tpu7x": AcceleratorFamily(_cubes(18432), 2, 4, None),
}
