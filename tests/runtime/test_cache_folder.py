"""The cache of a user: where it is, and that a folder in it appears once and whole."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from grit_jax.errors import GritError
from grit_jax.runtime import cache_folder as module
from grit_jax.runtime.cache_folder import cache_folder, cached


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("GRIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "grit_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "grit_jax"
    monkeypatch.setenv("GRIT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


def test_made_once_and_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("GRIT_CACHE", str(tmp_path))
    calls = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("whole")
        assert not (tmp_path / "kind" / "name").exists()

    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise GritError("no more")

    with pytest.raises(GritError, match="^no more$"):
        cached("kind/name", fail)
    assert not list((tmp_path / "kind").glob("*name*"))
    left = tmp_path / "kind" / ".name.1-1.tmp"  # of a killed process
    left.mkdir()
    assert cached("kind/name", fill) == cached("kind/name", fill) == tmp_path / "kind" / "name"
    assert len(calls) == 1 and not left.exists()
    assert (tmp_path / "kind" / "name" / "file").read_text() == "whole"


def _slowly(root: str, number: int, results) -> None:
    os.environ["GRIT_CACHE"] = root

    def fill(folder: Path) -> None:
        results.put(number)
        time.sleep(0.5)
        (folder / "by").write_text(str(number))

    results.put((cached("a/b", fill) / "by").read_text())


def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_slowly, args=(str(tmp_path), i, results)) for i in (1, 2)]
    for process in processes:
        process.start()
    values = [results.get(timeout=30) for _ in range(3)]  # one made it, both read it
    for process in processes:
        process.join()
    made = [value for value in values if isinstance(value, int)]
    assert len(made) == 1 and [v for v in values if isinstance(v, str)] == [str(made[0])] * 2


def test_without_locks_the_faster_process_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("GRIT_CACHE", str(tmp_path))

    def no_locks(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)

    def fill(folder: Path) -> None:
        (folder / "by").write_text("me")
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "b").mkdir()
        (tmp_path / "a" / "b" / "by").write_text("another")

    assert (cached("a/b", fill) / "by").read_text() == "another"


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(GritError, match="cannot be written .*; set GRIT_CACHE to another folder"):
        cached("a/b", lambda folder: None)
