"""Public names of a package that are imported when they are first used.

A package's `__init__` lists where each of its public names lives. Importing the package imports
none of these modules, so `import grit_jax.text` needs no JAX and the command line stays quick.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package.

    Args:
      package: the package's `__name__`.
      names: public name -> the module of the package that defines it, `chat` or `search.exact`.

    >>> all_names, get, _ = lazy_names("grit_jax", {"GritError": "errors"})
    >>> all_names, get("GritError").__name__
    (['GritError'], 'GritError')
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return sorted(names), get, directory
