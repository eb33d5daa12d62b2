"""Files of keys, and what is given by name."""

from __future__ import annotations

import pytest

from grit_jax.errors import GritError
from grit_jax.serving.settings import read_adapters, read_api_keys, read_indices


def test_one_key_a_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nsesame\n\n  other  \n")
    assert read_api_keys(file) == ["sesame", "other"]


def test_a_file_without_keys(tmp_path):
    file = tmp_path / "keys"
    with pytest.raises(GritError, match="No such file"):
        read_api_keys(file)
    file.write_text("# none\n")
    with pytest.raises(GritError, match="no key in this file"):
        read_api_keys(file)


def test_indices_have_names(tmp_path):
    given = [f"docs={tmp_path}", "b.2=rel/x=y"]
    assert {k: str(v) for k, v in read_indices(given).items()} == {
        "docs": str(tmp_path),
        "b.2": "rel/x=y",
    }
    for bad in (["docs"], ["=x"], ["a/b=x"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(GritError, match="--index"):
            read_indices(bad)


def test_adapters_have_names_of_their_own(tmp_path):
    assert {k: str(v) for k, v in read_adapters([f"red={tmp_path}"], "m").items()} == {
        "red": str(tmp_path)
    }
    with pytest.raises(GritError, match="--adapter red: expected NAME=DIR"):
        read_adapters(["red"], "m")
    with pytest.raises(GritError, match="there is an adapter named a already"):
        read_adapters(["a=x", "a=y"], "m")
    with pytest.raises(GritError, match="--adapter m=x: the model itself has this name"):
        read_adapters(["m=x"], "m")
