"""The table of chips agrees with itself, whoever reads it."""

from __future__ import annotations

import math
import re

import pytest

from grit_jax.runtime.chips import ACCELERATORS, CHIPS, PEAK_FLOPS, SHAPES


@pytest.mark.parametrize("name", CHIPS)
def test_every_slice_of_a_chip_is_one_that_can_be_rented(name):
    chip = CHIPS[name]
    family = ACCELERATORS[chip.accelerator]
    shapes = list(SHAPES[chip.axes])
    if chip.axes == 3:
        shapes += [(4, 4, 4), (4, 4, 8), (8, 8, 16)]
    for shape in shapes:
        rented = chip.accelerator_type(shape)
        assert rented is not None, shape
        family_name, number = re.fullmatch(r"(\w+)-(\d+)", rented).groups()
        assert family_name == chip.accelerator and int(number) in family.sizes, rented
        assert int(number) == math.prod(shape) * family.counted_per_chip
    # The largest slice that is planned is a pod at most, and so is the largest that is rented.
    assert max(family.sizes) <= chip.pod * family.counted_per_chip
    assert chip.accelerator_type((3, 3, 3)[: chip.axes]) is None


def test_peaks_go_by_the_names_that_jax_gives():
    for kind, peak in {
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5": 459e12,
        "TPU v6 lite": 918e12,
        "NVIDIA H100 80GB HBM3": 989e12,
    }.items():
        assert PEAK_FLOPS[kind] == peak
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds)) and set(kinds) < PEAK_FLOPS.keys()


def test_slices_as_they_are_rented():
    """cloud.google.com/tpu/docs: v4 and v5p are counted in cores, two of a chip; v5e and v6e in
    chips."""
    rented = {
        name: chip.accelerator_type((8, 8) if chip.axes == 2 else (4, 4, 4))
        for name, chip in CHIPS.items()
    }
    assert rented == {"v4": "v4-128", "v5e": "v5litepod-64", "v5p": "v5p-128", "v6e": "v6e-64"}
    odd = [
        ("v5e", (2, 8)),
        ("v5e", (6, 10)),
        ("v6e", (2, 1)),
        ("v5p", (1, 1, 1)),
        ("v5p", (2, 2, 6)),
        ("v4", (4, 4, 2)),
    ]
    assert [CHIPS[name].accelerator_type(shape) for name, shape in odd] == [None] * len(odd)
    assert [CHIPS["v5p"].accelerator_type(s) for s in ((2, 2, 1), (4, 8, 12))] == [
        "v5p-8",
        "v5p-768",
    ]
