"""Every package lists its public names, imports them on first use, and needs no JAX before."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import grit_jax
from grit_jax.lazy import lazy_names

PACKAGES = ["grit_jax"] + [
    module.name for module in pkgutil.walk_packages(grit_jax.__path__, "grit_jax.") if module.ispkg
]


def test_importing_all_packages_imports_no_jax():
    code = (
        f"import sys, importlib; [importlib.import_module(n) for n in {PACKAGES}]; "
        "print(sorted({'jax', 'numpy', 'flax', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    names, get, directory = lazy_names("grit_jax", {"GritError": "errors"})
    assert names == ["GritError"] and "GritError" in directory()
    with pytest.raises(AttributeError, match="module 'grit_jax' has no attribute 'GritLLM'"):
        get("GritLLM")
    with pytest.raises(ImportError, match="cannot import name 'Tokeniser'"):
        from grit_jax.text import Tokeniser  # noqa: F401
