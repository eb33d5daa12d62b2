"""Local tasks for mteb, one of each type that a folder may have, over texts of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

INSTRUCTION = "Find the sentence"
TYPES = (
    "Retrieval", "Reranking", "Classification", "Clustering", "PairClassification", "STS",
    "Summarization",
)  # fmt: skip


def write_lines(path: Path, rows: list) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def task_folders(folder: Path, sentences: list[str]) -> Path:
    """Writes `folder/TYPE` for each of `TYPES`; the task of it is called `LocalTYPE`."""
    rng = np.random.default_rng(0)
    words = lambda text, n: " ".join(text.split()[:n])
    data: dict[str, dict[str, list]] = {}
    corpus = [
        {"_id": f"d{i}", "title": f"T{i}" if i % 2 else "", "text": text}
        for i, text in enumerate(sentences[:24])
    ]
    queries = [{"_id": f"q{i}", "text": words(sentences[i], 3)} for i in range(8)]
    beir = {"corpus.jsonl": corpus, "queries.jsonl": queries}
    data["Retrieval"] = beir
    candidates = [
        {"query": f"q{i}", "documents": [f"d{(i * 5 + j * 3) % 24}" for j in range(6)] + [f"d{i}"]}
        for i in range(8)
    ]
    data["Reranking"] = {**beir, "top_ranked.jsonl": candidates}
    labelled = lambda texts: [{"text": t, "label": int(len(t) > 90)} for t in texts]
    train: list = []
    for label in (0, 1):
        train += [row for row in labelled(sentences[24:]) if row["label"] == label][:8]
    data["Classification"] = {"train.jsonl": train, "test.jsonl": labelled(sentences[200:230])}
    data["Clustering"] = {"test.jsonl": [{"text": t, "label": t[0]} for t in sentences[100:140]]}
    pairs = [
        {"text1": sentences[i], "text2": words(sentences[i + i % 3], 6)} for i in range(30, 60)
    ]
    data["PairClassification"] = {
        "test.jsonl": [{**pair, "label": int(i % 3 == 0)} for i, pair in enumerate(pairs)]
    }
    data["STS"] = {"test.jsonl": [{**pair, "score": float(rng.integers(0, 6))} for pair in pairs]}
    data["Summarization"] = {
        "test.jsonl": [
            {
                "text": sentences[i],
                "human_summaries": [words(sentences[i], 4), words(sentences[i], 7)],
                "machine_summaries": sentences[150 + i : 154 + i],
                "relevance": [1, 2, 5, 3],
            }
            for i in range(4)
        ]
    }
    for kind in TYPES:
        settings = {"name": f"Local{kind}", "type": kind, "prompt": INSTRUCTION}
        (folder / kind).mkdir(parents=True)
        (folder / kind / "task.json").write_text(json.dumps(settings))
        for name, rows in data[kind].items():
            write_lines(folder / kind / name, rows)
        if kind in ("Retrieval", "Reranking"):
            lines = [f"q{i}\td{i}\t1\nq{i}\td{i + 1}\t1" for i in range(8)]
            (folder / kind / "qrels").mkdir()
            text = "query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n"
            (folder / kind / "qrels" / "test.tsv").write_text(text)
    return folder
