"""The TPU slices that can be rented: how many chips and hosts a name stands for, and which image
they boot.

Google counts cores in the names of v2, v3, v4 and v5p (two a chip), chips in those of v5e and v6e.
Images: cloud.google.com/tpu/docs/runtimes; hosts: cloud.google.com/tpu/docs/v5e, /v5p, /v6e; hosts
on GKE, where a machine has four chips at most: xpk: src/xpk/core/system_characteristics.py.
"""

from __future__ import annotations

import dataclasses
import re

from shell import LaunchError

POWERS = (1, 4, 8, 16, 32, 64, 128, 256)


def cubes(most: int) -> tuple[int, ...]:
    """Sizes in cores of the generations built of cubes of 64 chips: parts of one, then whole
    ones."""
    return (8, 16, 32, 64, *range(128, most + 1, 128))


@dataclasses.dataclass(frozen=True)
class Family:
    """A generation: the sizes in its names, cores a chip that the name counts, chips of a slice on
    one host, image."""

    sizes: tuple[int, ...]
    counted_per_chip: int
    one_host: int
    image: str | None


FAMILIES = {
    "v2": Family((8, 32, 128, 256, 512), 2, 4, "tpu-ubuntu2204-base"),
    "v3": Family((8, 32, 64, 128, 256, 512, 1024, 2048), 2, 4, "tpu-ubuntu2204-base"),
    "v4": Family(cubes(8192), 2, 4, "tpu-ubuntu2204-base"),
    "v5litepod": Family(POWERS, 1, 8, "v2-alpha-tpuv5-lite"),
    "v5p": Family(cubes(12288), 2, 4, "v2-alpha-tpuv5"),
    "v6e": Family(POWERS, 1, 8, "v2-alpha-tpuv6e"),
    "tpu7x": Family(cubes(18432), 2, 4, None),
}
OTHER_NAMES = {"v5e": "v5litepod", "v5lite": "v5litepod", "v7x": "tpu7x", "v5": "v5p", "v6": "v6e"}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A slice by its name."""

    name: str
    chips: int
    hosts: int  # of a TPU VM
    hosts_on_gke: int
    image: str | None

    def __str__(self) -> str:
        plural = lambda n, what: f"{n} {what}{'s' * (n != 1)}"
        return f"{self.name} ({plural(self.chips, 'chip')}, {plural(self.hosts, 'host')})"


def accelerator(name: str) -> Accelerator:
    """The slice called `name`.

    Raises:
      LaunchError: there is none; the message has the nearest that there are.
    """
    family, _, size = name.rpartition("-")
    if family not in FAMILIES:
        known = ", ".join(f"{key}-{f.sizes[2]}" for key, f in FAMILIES.items())
        meant = OTHER_NAMES.get(family)
        hint = f"did you mean {meant}-{size}?" if meant else f"they look like {known}"
        raise LaunchError(f"--type {name}: no such accelerator type; {hint}")
    found = FAMILIES[family]
    number = int(size) if re.fullmatch("[0-9]+", size) else 0
    if number not in found.sizes:
        near = sorted(sorted(found.sizes, key=lambda n: abs(n - number))[:4])
        unit = "chips" if found.counted_per_chip == 1 else "cores, two a chip"
        raise LaunchError(
            f"--type {name}: {family} has no slice of that size (the number counts {unit}); "
            f"near it: {', '.join(f'{family}-{n}' for n in near)}"
        )
    chips = number // found.counted_per_chip
    hosts = 1 if chips <= found.one_host else chips // 4
    return Accelerator(name, chips, hosts, max(1, chips // 4), found.image)


def check_zone(zone: str) -> str:
    """`zone`, if it looks like one.

    Raises:
      LaunchError: it is a region, or neither.
    """
    if re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z0-9]+", zone):
        return zone
    if re.fullmatch(r"[a-z]+-[a-z]+\d+", zone):
        raise LaunchError(
            f"--zone {zone}: that is a region; a zone has a letter more, as in {zone}-a"
        )
    raise LaunchError(
        f"--zone {zone}: zones look like us-central1-a; which have TPUs:"
        " https://cloud.google.com/tpu/docs/regions-zones"
    )
