"""Tests compile quickly (see conftest.py); those that look at what the compiler made of a program
ask for all of it."""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
from collections.abc import Iterator
from pathlib import Path


def compiler_has(flag: str) -> bool:
    """Whether this jaxlib knows an XLA flag. (It aborts the process at one that it does not know,
    and has no list of them.)"""
    spec = importlib.util.find_spec("jaxlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in Path(folder).glob("libjax_common*"):
            with (
                library.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                if content.find(flag.encode()) >= 0:
                    return True
    return False


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
