"""Tests compile quickly (see conftest.py); those that look at what the compiler made of a program
ask for all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def fully_compiled() -> Iterator[None]:
    """Compiles with all optimizations, and leaves the setting as it was."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
