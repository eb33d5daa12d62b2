"""The errors that a user sees, and which failures of XLA are a full device."""

from __future__ import annotations

import subprocess
import sys

import pytest

from grit_jax.errors import GritError, out_of_memory


def test_importing_it_imports_the_standard_library_alone():
    """So that `grit --help` answers at once."""
    code = "import sys; before = set(sys.modules); import grit_jax.errors; print(*(set(sys.modules) - before))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    names = {name.split(".")[0] for name in loaded.stdout.split()} - sys.stdlib_module_names
    assert names == {"grit_jax"}


def test_it_is_no_kind_of_another_error():
    """An `except ValueError` or `except OSError` between a mistake and the command line must not
    take it for its own."""
    assert GritError.__mro__[1] is Exception and str(GritError("a: b")) == "a: b"


@pytest.mark.parametrize(
    "message, shown",
    [
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 137438953472 bytes.",
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 137438953472 bytes",
        ),
        (
            "INTERNAL: RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate"
            " 16.00G.\nMore.",
            "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 16.00G",
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory"
            " space hbm. Used 2G of 1G.",
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory"
            " space hbm. Used 2G of 1G",
        ),
        # A core's own memory, which no larger device has more of; a network message; another error.
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory"
            " space vmem.",
            None,
        ),
        ("RESOURCE_EXHAUSTED: Received message larger than max (5242880 vs. 4194304)", None),
        ("INTERNAL: Failed to allocate a stream", None),
    ],
)
def test_a_full_device_is_told_from_other_failures(message, shown):
    assert out_of_memory(RuntimeError(message)) == shown


def test_a_long_message_is_cut():
    message = "RESOURCE_EXHAUSTED: Out of memory " + "x" * 500
    assert out_of_memory(RuntimeError(message)) == message[:200]
