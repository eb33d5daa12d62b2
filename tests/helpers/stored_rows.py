"""A corpus to index with the fake model, and what an index of it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fake_model import document_kv, vector

from grit_jax.rag.index import Index

ROWS = [
    {"id": f"d{i}", "title": f"title {i}" * (i % 2), "text": f"text number {i} " * (1 + i % 5)}
    for i in range(40)
]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Writes rows as JSONL; a string is a line as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def content(row: dict[str, str]) -> str:
    """The text of a row as it is encoded."""
    return f"{row['title']} {row['text']}" if row.get("title") else row["text"]


def assert_holds(index: Index, rows: Sequence[dict[str, str]]) -> None:
    """Vector, text and record of every row, each from its own ids."""
    assert len(index) == len(rows)
    ids = [[256, *content(row).encode()] for row in rows]
    keys = [index.documents[i]["key"] for i in range(len(rows))]
    for i, (row, record) in enumerate(zip(rows, index.store.fetch(keys), strict=True)):
        assert index.documents[i]["id"] == row["id"] and index.text(i) == index.text(
            row["id"]
        ) == content(row)
        np.testing.assert_array_equal(index.vectors[i], vector(ids[i]))
        np.testing.assert_array_equal(record.tokens, ids[i])
        np.testing.assert_array_equal(record.k, document_kv(ids[i]).k)
        np.testing.assert_array_equal(record.v, document_kv(ids[i]).v)
