"""The receipt of an index: what layouts over records lose is what their own answers say."""

from __future__ import annotations

import collections
import json
import math
import string

import pytest
from dense_answer import dense_answer

from grit_jax.errors import GritError
from grit_jax.rag import quality
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.quality import LayoutQuality, QualityReceipt, keep_receipt, receipt_of

DOCUMENTS, NEW = 9, 3  # short answers: the reader without caches is slow


def write_corpus(path, texts):
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def index(tiny_model, sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    corpus = write_corpus(folder / "c.jsonl", sentences[:DOCUMENTS])
    build_index(tiny_model, corpus, folder / "index", quiet=True)
    return Index.open(folder / "index", tiny_model)


@pytest.fixture(scope="module")
def receipt(tiny_model, index):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "ANSWER_TOKENS", NEW)
        kept, measured = keep_receipt(tiny_model, index)
    assert measured
    return kept


def f1(answer: str, reference: str) -> float:
    """SQuAD's, written out for answers without articles."""
    a, b = (
        "".join(c for c in text.lower() if c not in string.punctuation).split()
        for text in (answer, reference)
    )
    a, b = ([word for word in words if word not in ("a", "an", "the")] for words in (a, b))
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    if not a and not b:
        return 1.0
    return 2 * common / (len(a) + len(b)) if common else 0.0


def test_what_a_layout_loses(tiny_model, index, receipt):
    """Against the same answers from a reader without caches, and scores written out."""
    asked = quality._ask_itself(tiny_model, [index.text(row) for row in range(DOCUMENTS)])
    assert receipt.questions == DOCUMENTS and all(asked)
    points = {
        mode: [
            100
            * f1(
                *(
                    dense_answer(tiny_model, m, question, [index.text(row)], NEW)
                    for m in (mode, "doc-then-query")
                )
            )
            for row, question in enumerate(asked)
        ]
        for mode in ("query-then-doc", "doc")
    }
    reading, doc = points["query-then-doc"], points["doc"]
    lost = [a - b for a, b in zip(reading, doc, strict=True)]
    mean = sum(lost) / DOCUMENTS
    error = math.sqrt(sum((x - mean) ** 2 for x in lost) / (DOCUMENTS - 1) / DOCUMENTS)
    assert receipt.reading == pytest.approx(sum(reading) / DOCUMENTS, abs=0.01)
    assert receipt.layouts["doc"].agreement == pytest.approx(sum(doc) / DOCUMENTS, abs=0.01)
    assert receipt.layouts["doc"].lost == pytest.approx(mean, abs=0.01)
    assert receipt.layouts["doc"].error == pytest.approx(error, abs=0.01) and error > 0
    assert set(receipt.layouts) == {"doc", "query", "query-doc", "doc-query"}


def test_it_is_kept_with_what_it_holds_for(tiny_model, index, receipt):
    assert receipt_of(index) == receipt
    assert receipt.model["weights"] == tiny_model.weights_hash
    assert receipt.compression == "native" and receipt.positions == "running"
    assert keep_receipt(tiny_model, index) == (receipt, False)  # not measured again
    path = index.path / quality.RECEIPT
    text = path.read_text()
    for key, value in (("compression", "int8:1"), ("version", 0), ("model", {})):
        path.write_text(json.dumps(json.loads(text) | {key: value}))
        assert receipt_of(index) is None, key
    path.write_text("{")
    assert receipt_of(index) is None
    path.write_text(text)


def test_an_index_that_has_grown_is_measured_again(tiny_model, sentences, tmp_path, monkeypatch):
    sizes = []

    def measure(model, index, questions):
        sizes.append(len(index))
        manifest = index.manifest
        return QualityReceipt({}, 0.0, 8, 0, len(index), manifest.model, manifest.compression)

    monkeypatch.setattr(quality, "measure_quality", measure)
    for documents in (7, 9, 12, 18):
        corpus = write_corpus(tmp_path / "c.jsonl", sentences[:documents])
        build_index(tiny_model, corpus, tmp_path / "index", quiet=True)
        keep_receipt(tiny_model, Index.open(tmp_path / "index", tiny_model))
    assert sizes == [9, 18]


def test_what_gets_no_receipt(tiny_model, sentences, tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "c.jsonl", sentences[:DOCUMENTS])
    build_index(tiny_model, corpus, tmp_path / "bare", IndexOptions(kv="none"), quiet=True)
    bare = Index.open(tmp_path / "bare", tiny_model)
    assert keep_receipt(tiny_model, bare) == (None, False)
    with pytest.raises(GritError, match="--quality-questions 3: expected at least 8, or 0"):
        keep_receipt(tiny_model, bare, 3)
    build_index(tiny_model, corpus, tmp_path / "index", quiet=True)
    index = Index.open(tmp_path / "index", tiny_model)
    monkeypatch.setattr(quality, "_ask_itself", lambda model, texts: [""] * len(texts))
    assert keep_receipt(tiny_model, index) == (None, False)  # no question to measure it with
    assert not (index.path / quality.RECEIPT).exists()


@pytest.mark.parametrize(
    "lost, error, allowed", [(1.9, 0.0, True), (2.1, 0.0, False), (5.0, 3.5, True), (-4, 1, True)]
)
def test_what_a_receipt_allows(lost, error, allowed):
    receipt = QualityReceipt({"doc": LayoutQuality(50.0, lost, error)}, 60.0, 8, 0, 9, {}, "native")
    assert receipt.allows("doc", 2.0) is allowed
    assert receipt.allows("doc-then-query", 2.0)
