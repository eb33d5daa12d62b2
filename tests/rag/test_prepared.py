"""Questions prepared for an engine: it answers as `Asker` does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from grit_jax.errors import GritError
from grit_jax.inference.requests import GenerateRequest
from grit_jax.inference.sampling import Sampling
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.prepared import Preparer
from grit_jax.text.rag_layouts import MODES

NEW = 5
QUESTIONS = ["Which river is quiet?", "What is copper?", "Name a stone."]


@pytest.fixture(scope="module", params=["native", "int8"])
def index(request, tiny_model, sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(sentences[:8])]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(
        tiny_model, folder / "c.jsonl", folder / "i", IndexOptions(kv=request.param), quiet=True
    )
    return Index.open(folder / "i", tiny_model)


def test_an_engine_answers_as_ask_does(tiny_model, index):
    """In every layout, from several threads at once."""
    preparer, asker = Preparer(tiny_model, index, 512), Asker(tiny_model, index)
    cases = [(mode, question) for mode in MODES for question in QUESTIONS[:2]]
    with (
        ThreadPoolExecutor(4) as pool,
        tiny_model.engine(4, 512, int8_records=512 * (index.kv == "int8")) as engine,
    ):
        prepared = list(pool.map(lambda c: preparer.prepare(c[1], c[0], 2, new_tokens=NEW), cases))
        requests = [GenerateRequest(p.ids, p.records, Sampling(NEW)) for p in prepared]
        tokens = [pending.result(60).tokens for pending in map(engine.submit, requests)]
    for (mode, question), each, answer in zip(cases, prepared, tokens):
        [expected] = asker.ask(question, mode, 2, max_new_tokens=NEW)
        assert tiny_model.tokenizer.decode(answer).strip() == expected.answer
        assert (each.documents, each.mode, each.warnings) == (
            expected.documents,
            mode,
            expected.warnings,
        )
        assert (each.cached_tokens > 0) == (mode in ("doc", "query-doc", "doc-query"))


def test_what_does_not_fit_is_left_out(tiny_model, index):
    narrow = Preparer(tiny_model, index, 96)
    prepared = narrow.prepare(QUESTIONS[0], "doc", 6, new_tokens=NEW)
    assert len(prepared.documents) < 6 and "left out" in prepared.warnings[0]
    read = sum(len(record.tokens) for record in prepared.records)
    assert read + len(prepared.ids) + NEW <= 96
    for question, mode, words in ((" ", "doc", "empty"), ("x", "song", "unknown mode")):
        with pytest.raises(GritError, match=words):
            narrow.prepare(question, mode, new_tokens=NEW)
