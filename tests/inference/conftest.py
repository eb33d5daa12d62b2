"""These tests compile many small programs: quickly compiled ones will do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import pytest


@contextlib.contextmanager
def quickly_compiled(yes: bool) -> Iterator[None]:
    """Compiles without most optimizations (or with them), and leaves the setting as it was."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", yes)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


# A module, not "package": pytest takes this folder (no __init__.py) for no package, and the setting would stay on for
# whatever runs after it, whose results then differ from another process's in the last bit.
@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    with quickly_compiled(True):
        yield


@pytest.fixture()
def full_optimization() -> Iterator[None]:
    """For tests that look at the compiled program itself."""
    with quickly_compiled(False):
        yield
