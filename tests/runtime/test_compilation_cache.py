"""Compiled programs between processes: found again, with the same results, where nothing else was
asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np

from grit_jax.runtime.compilation_cache import FOLDER, SETTINGS, keep_compiled_programs


def test_a_second_process_finds_the_first_ones_programs(tmp_path, tiny_model, monkeypatch):
    """By JAX's own log; the vectors are equal bit by bit."""
    model = tmp_path / "model"
    tiny_model.save_pretrained(model)
    (tmp_path / "texts.txt").write_text("one\ntwo words\n")
    environment = {name: value for name, value in os.environ.items() if name != FOLDER}
    environment |= {"GRIT_CACHE": str(tmp_path / "cache"), "GLIBC_TUNABLES": ""}
    # Every program is kept here, however quickly it compiles.
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {"JAX_DEBUG_LOG_MODULES": "jax._src.compiler"}

    def encode(name: str) -> str:
        command = [sys.executable, "-m", "grit_jax", "encode", str(model)]
        files = ["--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / name)]
        ran = subprocess.run([*command, *files], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stderr

    first, second = encode("first.npy"), encode("second.npy")
    hits = lambda log: len(re.findall("Persistent compilation cache hit", log))
    assert hits(first) == 0 and hits(second) > 0
    np.testing.assert_array_equal(np.load(tmp_path / "first.npy"), np.load(tmp_path / "second.npy"))
    [folder] = (tmp_path / "cache" / "compiled").iterdir()
    assert any(file.name.endswith("-cache") for file in folder.iterdir())


def test_what_is_set_already_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("GRIT_CACHE", str(tmp_path))
    named = {FOLDER: "elsewhere"}
    keep_compiled_programs(named)
    assert named == {FOLDER: "elsewhere"}
    bounded = {"JAX_COMPILATION_CACHE_MAX_SIZE": "1000"}
    keep_compiled_programs(bounded)
    assert bounded["JAX_COMPILATION_CACHE_MAX_SIZE"] == "1000"
    assert bounded.keys() == {FOLDER, *SETTINGS} and os.path.isdir(bounded[FOLDER])


def test_a_cache_that_cannot_be_written_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRIT_CACHE", str(tmp_path / "file"))
    environment: dict[str, str] = {}
    keep_compiled_programs(environment)
    assert environment == {}
