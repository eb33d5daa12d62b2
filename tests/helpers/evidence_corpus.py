"""A corpus of a few lines, as `grit data pydocs` leaves it."""

from __future__ import annotations

from pathlib import Path

from grit_jax.runtime.files import write_json, write_jsonl


def write_corpus(data: Path, sentences: list[str], questions: int = 6) -> Path:
    """Writes held-out and training files; returns the folder."""
    for folder, first in (("heldout", 0), ("train", 60)):
        documents = [
            {"id": f"pkg.f{i}", "title": f"pkg.f{i}", "text": sentences[i]}
            for i in range(first, first + 40)
        ]
        pair = lambda i: {
            "query": ["find it", sentences[i][:25]],
            "pos": [["", sentences[i]]],
            "neg": [["", sentences[i + 20]]],
        }
        question = lambda d: {
            "docs": [f"{d['title']} {d['text']}"],
            "text": [f"What does `{d['id']}` begin with?", f"With {d['text'].split()[0]}."],
            "answer": d["text"].split()[0],
        }
        files = {
            "embedding_summary" if folder == "train" else "embedding": list(
                map(pair, range(first, first + (24 if folder == "train" else 12)))
            ),
            "generative": [{"text": [f"Write {d['id']}.", d["text"]]} for d in documents],
            "rag": [question(d) for d in documents[: questions if folder == "heldout" else 40]],
            "documents": documents,
        }
        if folder == "train":
            files["embedding_question"] = [
                {**pair(i), "query": ["answer it", f"Where is {sentences[i][:20]}?"]}
                for i in range(first, first + 24)
            ]
        (data / folder).mkdir(parents=True)
        for name, rows in files.items():
            write_jsonl(data / folder / f"{name}.jsonl", rows)
    write_json(data / "corpus.json", {"documents": 80, "train": 40, "held_out": 40})
    return data
