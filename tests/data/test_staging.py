"""Staged rows, and what is left of them after a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest

from grit_jax.data.formats import LineError
from grit_jax.data.staging import STAGED, staging_folder
from grit_jax.errors import GritError

IDENTITY = {"files": [["a", 1, 2]], "options": {"kind": None}}


def add(staging, first, count):
    lines = [(f"é:{n}", b"x" * (n % 5)) for n in range(first, first + count)]
    rows = np.zeros(count, STAGED)
    rows["exact"] = range(first, first + count)
    staging.add_match({"n": first})
    staging.append(rows, lines, {"next": first + count})


def test_rows_are_read_back(tmp_path):
    with staging_folder(tmp_path / "out", IDENTITY, "grit test") as staging:
        add(staging, 0, 7)
        add(staging, 7, 5)
        assert staging.rows == 12 and staging.staged()["exact"].tolist() == list(range(12))
        assert staging.read([11, 0, 8]) == [(b"x", "é:11"), (b"", "é:0"), (b"xxx", "é:8")]
        with (
            pytest.raises(GritError, match="another grit test is writing here"),
            staging_folder(tmp_path / "out", IDENTITY, "grit test"),
        ):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("identity", [IDENTITY, {**IDENTITY, "files": []}])
def test_a_killed_run_finds_what_it_had_committed(tmp_path, identity, capsys):
    with (
        pytest.raises(KeyboardInterrupt),
        staging_folder(tmp_path / "out", IDENTITY, "grit test") as staging,
    ):
        add(staging, 0, 7)
        staging.add_match({"n": "lost"})
        staging._files[0].write(b"lost")
        raise KeyboardInterrupt
    with staging_folder(tmp_path / "out", identity, "grit test") as staging:
        same = identity == IDENTITY
        assert staging.state == ({"next": 7} if same else {}) and staging.rows == 7 * same
        add(staging, 7, 3)
        assert staging.read([staging.rows - 1]) == [(b"xxxx", "é:9")]
        matches = staging.matches_path.read_text().splitlines()
        assert [json.loads(line)["n"] for line in matches] == ([0, 7] if same else [7])
    said = capsys.readouterr().err
    assert ("continuing" in said) == same and ("starting again" in said) != same


def test_errors(tmp_path):
    for error, kept in ((LineError("f:1", "bad"), False), (GritError("disk"), True)):
        with (
            pytest.raises(GritError),
            staging_folder(tmp_path / "out", IDENTITY, "grit test") as staging,
        ):
            add(staging, 0, 2)
            raise error
        assert (tmp_path / ".out.partial").exists() == kept
    (tmp_path / "file").touch()
    with (
        pytest.raises(GritError, match="file/out: cannot be written"),
        staging_folder(tmp_path / "file" / "out", IDENTITY, "grit test"),
    ):
        pass
