"""The TPU slices that can be rented: how many chips and hosts a name stands for, and which image
they boot.

The table of generations is `grit_jax/runtime/chips.py` of this checkout, which needs nothing
installed. Names count cores for v2, v3, v4 and v5p (two per chip), and chips for v5e and v6e. On
GKE a machine has four chips at most.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

from shell import LaunchError

sys.path.append(str(Path(__file__).resolve().parent.parent))  # the checkout, whose package is read

from grit_jax.runtime.chips import ACCELERATORS  # noqa: E402

# Names that people use, and the ones that are rented.
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
      LaunchError: there is none; the message names the nearest ones.
    """
    family, _, size = name.rpartition("-")
    if family not in ACCELERATORS:
        known = ", ".join(f"{key}-{f.sizes[2]}" for key, f in ACCELERATORS.items())
        rented = OTHER_NAMES.get(family)
        hint = f"did you mean {rented}-{size}?" if rented else f"expected one like {known}"
        raise LaunchError(f"--type {name}: no such accelerator type; {hint}")
    slices = ACCELERATORS[family]
    number = int(size) if re.fullmatch("[0-9]+", size) else 0
    if number not in slices.sizes:
        near = sorted(sorted(slices.sizes, key=lambda n: abs(n - number))[:4])
        unit = "chips" if slices.counted_per_chip == 1 else "cores, two per chip"
        raise LaunchError(
            f"--type {name}: {family} has no slice of that size (the number counts {unit}); "
            f"near it: {', '.join(f'{family}-{n}' for n in near)}"
        )
    chips = number // slices.counted_per_chip
    hosts = 1 if chips <= slices.chips_on_one_host else chips // 4
    return Accelerator(name, chips, hosts, max(1, chips // 4), slices.image)


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
