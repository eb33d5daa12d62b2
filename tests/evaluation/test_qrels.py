"""Tables of judgements: BEIR's, TREC's and mteb's say the same."""

from __future__ import annotations

import json

from retrieval_folders import QRELS, mteb_folder

from grit_jax.evaluation.qrels import read_qrels


def test_every_table_gives_the_same_judgements(tmp_path):
    expected: dict[str, dict[str, int]] = {}
    for query, document, grade in QRELS:
        expected.setdefault(query, {})[document] = grade
    beir, trec, rows = tmp_path / "a.tsv", tmp_path / "b.tsv", tmp_path / "c.jsonl"
    beir.write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in QRELS)
    )
    trec.write_text("".join(f"{q} 0 {d} {s}\n" for q, d, s in QRELS))
    names = ("query_id", "corpus_id", "score")
    rows.write_text("".join(json.dumps(dict(zip(names, row))) + "\n" for row in QRELS))
    parquet = mteb_folder(tmp_path / "task") / "qrels" / "test-00000-of-00001.parquet"
    for path in (beir, trec, rows, parquet):
        assert read_qrels([path]) == expected, path
    # Ids with spaces are possible between tabs.
    beir.write_text("query-id\tcorpus-id\tscore\nq one\td two\t1\n")
    assert read_qrels([beir]) == {"q one": {"d two": 1}}
