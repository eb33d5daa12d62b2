"""Rows of every container, against what was written into it."""

from __future__ import annotations

import gzip
import json
import os
import threading

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from grit_jax.data import raw_rows
from grit_jax.data.lines import JsonlFile
from grit_jax.data.raw_rows import iter_rows
from grit_jax.errors import GritError

ROWS = [
    {"text": [f"question {n} é\u2028", "x" * (n % 7 * 40)], **({"id": n} if n % 3 == 0 else {})}
    for n in range(2500)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(folder, kind):
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_bytes(LINES)
    elif kind == "gz":
        path.write_bytes(gzip.compress(LINES[:9000]) + gzip.compress(LINES[9000:]))
    elif kind == "zst":
        path.write_bytes(zstandard.compress(LINES[:9000]) + zstandard.compress(LINES[9000:]))
    elif kind == "json":
        path.write_text("\ufeff" + json.dumps(ROWS, indent=1, ensure_ascii=False), "utf-8")
    elif kind == "json.gz":
        path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    elif kind == "json.zst":
        path.write_bytes(zstandard.compress(json.dumps(ROWS).encode()))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=700)
    else:
        os.mkfifo(path)
        threading.Thread(target=path.write_bytes, args=(LINES,), daemon=True).start()
    return path


@pytest.mark.parametrize(
    "kind", ["jsonl", "gz", "zst", "json", "json.gz", "json.zst", "parquet", "pipe"]
)
@pytest.mark.parametrize("chunk", [1 << 20, 777])
def test_rows_are_those_that_were_written(tmp_path, kind, chunk, monkeypatch):
    monkeypatch.setattr("grit_jax.data.spool._CHUNK", chunk)
    path = write(tmp_path, kind)
    rows = list(iter_rows(path))
    assert [row.json() for row in rows] == ROWS
    number = ":2500" if kind in ("jsonl", "gz", "zst", "pipe") else ": row 2500"
    assert rows[-1].place == f"{path}{number}"


@pytest.mark.parametrize("chunk", [1 << 20, 3])
def test_lines_are_those_of_random_access(tmp_path, chunk, monkeypatch):
    monkeypatch.setattr("grit_jax.data.spool._CHUNK", chunk)
    path = tmp_path / "lines"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n {"a": 2}\r{"a": 3}\n\r\n{"a": 4}\r\r{"a": 5}')
    file = JsonlFile(path)
    rows = list(iter_rows(path))
    assert [row.line for row in rows] == [line.rstrip(b"\r\n") for line in file]
    assert [row.place for row in rows] == [file.where(i) for i in range(len(file))]
    assert len(rows) == 5


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty; expected one JSON object a line"),
        (b" \n\n", "empty; expected"),
        (b"\x89PNG\0", "binary data, not a text file"),
        (b"[]", "empty; expected"),
        (b'[{"a": 1}, {"a"', "row 2: not valid JSON"),
        (b'[{"a": 1}', "row 2: not valid JSON: the array does not end"),
        (b'[{"a": "\xff"}]', "row 1: not UTF-8 text"),
        (b"PAR1 and nothing else", "cannot be read as parquet"),
        (gzip.compress(LINES)[:-9000], "the compressed data are damaged or cut short"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(GritError, match=message):
        list(iter_rows(path))


def test_names_with_nothing_behind_them(tmp_path):
    with pytest.raises(GritError, match="absent: no such file"):
        list(iter_rows(tmp_path / "absent"))
    with pytest.raises(GritError, match="a folder, not a data file"):
        list(iter_rows(tmp_path))


def test_a_bad_line_is_found_when_it_is_parsed(tmp_path):
    (tmp_path / "x").write_text('{"a": 1}\n{"a"\n')
    rows = list(iter_rows(tmp_path / "x"))
    with pytest.raises(GritError, match="x:2: not valid JSON"):
        rows[1].json()
    assert raw_rows.PARQUET == b"PAR1"
