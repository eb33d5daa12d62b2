"""Tests compile quickly (see conftest.py); those that look at what the compiler made of a program
ask for all of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator


def has_older_fusion_emitter() -> bool:
    """Whether this jaxlib has both ways to emit fusions on a CPU, and a flag to choose. (It aborts
    the process at a flag that it does not know, and has no list of them: 0.10 has it, 0.12 does
    not.)"""
    return importlib.metadata.version("jaxlib").startswith("0.10.")


@contextlib.contextmanager
def fully_compiled() -> Iterator[None]:
    """Compiles with all optimizations, and leaves the setting as it was."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
