"""Quick compilation for tests that compile many small programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def quickly_compiled(yes: bool = True) -> Iterator[None]:
    """Compiles without most optimizations (or with them), and leaves the setting as it was."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", yes)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
