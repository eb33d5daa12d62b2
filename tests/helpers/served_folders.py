"""A tiny model on disk with an index of its own, as `grit serve` takes them."""

from __future__ import annotations

import json
from pathlib import Path

from grit_jax.inference.model import GritLM
from grit_jax.rag.index import IndexOptions, build_index


def save_served(model: GritLM, texts: list[str], folder: Path) -> list[str]:
    """Writes `folder/model` and `folder/docs`; returns the arguments of `grit serve`."""
    model.save_pretrained(folder / "model")
    rows = [{"id": f"d{i}", "text": text, "metadata": {"n": i}} for i, text in enumerate(texts)]
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(model, corpus, folder / "docs", IndexOptions(), quiet=True)
    return [str(folder / "model"), "--name", "tiny", "--index", f"docs={folder / 'docs'}"]
