"""Rows that train reranking: the words that reranking asks, the right label, and the files."""

from __future__ import annotations

import json

import pytest

from grit_jax.data.lines import read_examples
from grit_jax.data.relevance import write_relevance_rows
from grit_jax.errors import GritError
from grit_jax.rag.rerank import relevance_prompts


@pytest.fixture
def pairs(tmp_path):
    lines = [
        {
            "query": ["Find it", f"what is {n}"],
            "pos": [["", f"good {n} a"], f"good {n} b"],
            "neg": [f"bad {n} {i}" for i in range(n % 4)],
        }
        for n in range(40)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_query_has_a_positive_and_up_to_so_many_negatives(pairs, tmp_path):
    count = write_relevance_rows(pairs, tmp_path / "rows.jsonl", negatives=2)
    rows = rows_of(tmp_path / "rows.jsonl")
    assert count == len(rows) == 40 + 10 * (0 + 1 + 2 + 2)
    for row in rows:
        (document,), (question, label) = row["docs"], row["text"]
        kind, number = document.split()[:2]
        assert label == {"good": "yes", "bad": "no"}[kind]
        assert f"Query: what is {number}\n" in question
    assert len({(row["docs"][0], row["text"][0]) for row in rows}) == len(rows)
    positives = {row["docs"][0].split()[2] for row in rows if row["text"][1] == "yes"}
    assert positives == {"a", "b"}  # drawn, not the first


def test_rows_ask_what_reranking_asks(pairs, tmp_path):
    write_relevance_rows(pairs, tmp_path / "rows.jsonl", rows=5)
    example = read_examples(tmp_path / "rows.jsonl", "cached")[0]
    query = example.question.split("Query: ")[1].split("\n")[0]
    (prompt,) = relevance_prompts(query, example.docs, [None])
    assert (prompt.mode, prompt.question, prompt.documents) == (
        "doc",
        example.question,
        example.docs,
    )


def test_rows_are_a_seeded_part(pairs, tmp_path):
    files = [tmp_path / f"{i}.jsonl" for i in range(4)]
    for path, rows, seed in zip(files, (30, 30, 12, 30), (0, 0, 0, 1), strict=True):
        assert write_relevance_rows(pairs, path, rows=rows, seed=seed) == rows
    first, again, fewer, other = map(rows_of, files)
    assert first == again and fewer == first[:12] and other != first


def test_what_cannot_be_made(pairs, tmp_path):
    with pytest.raises(GritError, match=r"expected enough queries for 500 rows.*got 70 rows"):
        write_relevance_rows(pairs, tmp_path / "rows.jsonl", rows=500)
    with pytest.raises(GritError, match="pairs.jsonl"):
        write_relevance_rows(pairs, pairs)
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"query": "q", "pos": ["p"], "neg": []}) + "\n")
    with pytest.raises(GritError, match="no query has negatives"):
        write_relevance_rows(bare, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
