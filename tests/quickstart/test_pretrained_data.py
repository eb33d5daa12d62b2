"""The parts of held-out files that a pretrained model is scored on."""

from __future__ import annotations

import json

from grit_jax.quickstart import pretrained_data
from grit_jax.quickstart.pretrained_data import write_scored
from grit_jax.runtime.files import write_jsonl


def read(path):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_the_first_lines_and_the_documents_asked_about(tmp_path, monkeypatch):
    for name, count in (("QUERIES", 3), ("LANGUAGE_TEXTS", 2), ("QUESTIONS", 2), ("DOCUMENTS", 4)):
        monkeypatch.setattr(pretrained_data, name, count)
    held_out = tmp_path / "data" / "heldout"
    held_out.mkdir(parents=True)
    rows = {
        "embedding": [{"query": str(i), "pos": ["a"], "neg": []} for i in range(5)],
        "generative": [{"text": ["q", f"line\u2028{i}"]} for i in range(5)],
        "rag": [{"docs": [f"d{i} text {i}"], "text": ["q", "a"]} for i in (7, 5, 3)],
        "documents": [{"id": f"d{i}", "title": f"d{i}", "text": f"text {i}"} for i in range(12)],
    }
    for name, lines in rows.items():
        write_jsonl(held_out / f"{name}.jsonl", lines)
    parts = write_scored(tmp_path / "data", tmp_path / "scored")
    assert parts.packages is None
    assert read(parts.names.path) == rows["embedding"][:3]
    assert (parts.names.used, parts.names.all) == (3, 5)
    assert read(parts.language.path) == rows["generative"][:2]
    assert read(parts.questions.path) == rows["rag"][:2]
    found = [row["id"] for row in read(parts.documents.path)]
    assert {"d5", "d7"} <= set(found) and len(found) == 4
    assert found == sorted(found, key=lambda name: int(name[1:]))
    assert (parts.documents.used, parts.documents.all) == (4, 12)
    (tmp_path / "data" / "heldout_packages").mkdir()
    write_jsonl(tmp_path / "data" / "heldout_packages" / "embedding.jsonl", rows["embedding"])
    again = write_scored(tmp_path / "data", tmp_path / "scored")
    assert again.packages.used == 5 and again.names == parts.names
