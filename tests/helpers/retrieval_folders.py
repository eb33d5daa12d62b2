"""Small retrieval tasks on disk, in the layouts of BEIR and of mteb's data sets on the hub."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

DOCUMENTS = [
    {"_id": "doc-a", "title": "Copper", "text": "a copper lantern shines over the harbor"},
    {"_id": "doc-b", "title": "", "text": "the river and the stone forest"},
    {"_id": "doc-c", "title": "Lantern", "text": "velvet ribbon and a lantern of amber"},
    {"_id": "q2", "title": "", "text": "river stone meadow"},
    {"_id": "doc-e", "title": "", "text": ""},
    {"_id": "doc-f", "title": "Copper", "text": "pepper candle mirror"},
]
QUERIES = [
    {"_id": "q1", "text": "copper lantern", "metadata": {"domain": "metal"}},
    {"_id": "q2", "text": "river stone", "domain": "nature"},
    {"_id": "q3", "text": "amber ribbon", "domain": "metal"},
    {"_id": "q4", "text": "nobody judged this"},
]
QRELS = [
    ("q1", "doc-a", 2),
    ("q1", "doc-c", 1),
    ("q2", "doc-b", 1),
    ("q2", "doc-gone", 1),
    ("q3", "doc-c", 1),
    ("q3", "doc-f", 0),
    ("q9", "doc-a", 1),
]


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def beir_folder(folder: Path, *, compressed: bool = False, documents=DOCUMENTS) -> Path:
    """`corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`, all of them gzipped if asked for."""
    (folder / "qrels").mkdir(parents=True)
    table = "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in QRELS)
    files = {
        "corpus.jsonl": lines(documents),
        "queries.jsonl": lines(QUERIES),
        "qrels/test.tsv": table.encode(),
    }
    for name, content in files.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def mteb_folder(folder: Path) -> Path:
    """Parquet files, a folder for each part, the corpus in two files with several row groups."""

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / name, row_group_size=2)

    renamed = [{"id": d["_id"], "title": d["title"], "text": d["text"]} for d in DOCUMENTS]
    write("corpus/test-00000-of-00002.parquet", renamed[:4])
    write("corpus/test-00001-of-00002.parquet", renamed[4:])
    queries = [
        {"id": q["_id"], "text": q["text"], "domain": q.get("domain", "metal")} for q in QUERIES
    ]
    write("queries/test-00000-of-00001.parquet", queries)
    judged = [{"query-id": q, "corpus-id": d, "score": float(s)} for q, d, s in QRELS]
    write("qrels/test-00000-of-00001.parquet", judged)
    write("qrels/dev-00000-of-00001.parquet", judged[:1])
    return folder
