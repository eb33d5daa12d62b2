"""What the names of slices stand for, against Google's tables and jax's own topologies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import accelerators
import pytest
from accelerators import ACCELERATORS, accelerator, check_zone
from shell import LaunchError

# cloud.google.com/tpu/docs/v4, v5e, v5p, v6e: chips and machines of a slice; on GKE: xpk's table.
TABLE = {
    "v2-8": (4, 1, 1),
    "v3-32": (16, 4, 4),
    "v4-8": (4, 1, 1),
    "v4-16": (8, 2, 2),
    "v4-4096": (2048, 512, 512),
    "v5litepod-1": (1, 1, 1),
    "v5litepod-4": (4, 1, 1),
    "v5litepod-8": (8, 1, 2),
    "v5litepod-16": (16, 4, 4),
    "v5litepod-256": (256, 64, 64),
    "v5p-8": (4, 1, 1),
    "v5p-16": (8, 2, 2),
    "v5p-128": (64, 16, 16),
    "v5p-512": (256, 64, 64),
    "v6e-1": (1, 1, 1),
    "v6e-4": (4, 1, 1),
    "v6e-8": (8, 1, 2),
    "v6e-64": (64, 16, 16),
    "tpu7x-16": (8, 2, 2),
}


@pytest.mark.parametrize("name", TABLE)
def test_chips_and_hosts(name):
    found = accelerator(name)
    assert (found.chips, found.hosts, found.hosts_on_gke) == TABLE[name]
    assert found.name == name


def test_images():
    images = {accelerator(f"{name}-8").image for name in ("v4", "v5litepod", "v5p", "v6e")}
    assert images == {
        "tpu-ubuntu2204-base",
        "v2-alpha-tpuv5-lite",
        "v2-alpha-tpuv5",
        "v2-alpha-tpuv6e",
    }
    assert ACCELERATORS["tpu7x"].image is None


@pytest.mark.parametrize(
    "name",
    [
        "v5litepod-2",
        "v5litepod-512",
        "v5p-4",
        "v5p-129",
        "v6e-0",
        "v4-",
        "v9-8",
        "",
        "v5p",
        "v5p-+8",
        "v5p-٨",
    ],
)
def test_no_such_slice(name):
    with pytest.raises(LaunchError, match="--type"):
        accelerator(name)


def test_zones():
    for zone in ("us-central1-a", "europe-west4-b", "us-south1-ai1b"):
        assert check_zone(zone) == zone
    for zone in ("us-central1", "us-central1-", "US-central1-a", "us central1-a", ""):
        with pytest.raises(LaunchError, match="--zone"):
            check_zone(zone)


def test_the_launcher_needs_the_standard_library_alone():
    """-S: without site-packages; -I: without the environment's paths."""
    launch = Path(accelerators.__file__).parent
    code = f"import sys; sys.path.insert(0, {str(launch)!r}); import tpu; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not {"jax", "numpy", "yaml"} & set(done.stdout.split())
