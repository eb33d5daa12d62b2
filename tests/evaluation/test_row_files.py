"""Rows of JSONL and parquet files, in order and by number."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from grit_jax.errors import GritError
from grit_jax.evaluation.row_files import open_rows


def test_rows_of_several_files_are_one_list(tmp_path):
    rows = [{"n": n, "text": f"row {n}"} for n in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    for name, part in (("b", rows[4:9]), ("c", rows[9:])):
        table = pyarrow.Table.from_pylist(part)
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    joined = open_rows([tmp_path / name for name in ("a.jsonl", "b.parquet", "c.parquet")])
    assert len(joined) == 10 and list(joined) == rows
    assert [joined[i] for i in (9, 3, 8, 4, 0, 5)] == [rows[i] for i in (9, 3, 8, 4, 0, 5)]
    assert joined.where(3).endswith("a.jsonl:4") and joined.where(5).endswith("b.parquet, row 1")


def test_mistakes_are_named(tmp_path):
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(GritError, match=r"list\.jsonl:1: expected a JSON object, got list"):
        list(open_rows([tmp_path / "list.jsonl"]))
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(GritError, match=r"bad\.parquet: not a parquet file"):
        open_rows([tmp_path / "bad.parquet"])
    with pytest.raises(GritError, match=r"absent\.parquet: no such file"):
        open_rows([tmp_path / "absent.parquet"])
