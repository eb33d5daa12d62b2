"""Questions over several documents: which join, where the right one stands, and the files written
of them."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

from grit_jax.data.bm25 import BM25
from grit_jax.data.distractors import Distractors, corpus_texts, write_rows
from grit_jax.data.formats import CachedExample
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError


@pytest.fixture(scope="module")
def examples(sentences):
    """Questions that have words of several documents; every third has two documents of its own."""
    return [
        CachedExample(
            tuple(sentences[i : i + 1 + (i % 3 == 0)]), " ".join(sentences[i].split()[:4]), "yes"
        )
        for i in range(40)
    ]


def test_the_best_other_documents_join_the_own_ones(sentences, examples):
    found = Distractors([*sentences[:100], *sentences[:5]])
    for example in examples:
        scores = BM25(sentences[:100]).scores(example.question)
        ranked = [
            sentences[i]
            for i in np.argsort(-scores, kind="stable")
            if sentences[i] not in example.docs
        ]
        for k in (1, 3, 5):
            row = found.among(example, k)
            others = [text for text in row.docs if text not in example.docs]
            assert [text for text in row.docs if text in example.docs] == list(
                example.docs
            )  # in their order
            assert others == ranked[: max(k - len(example.docs), 0)]  # best first
            assert (row.question, row.answer) == (example.question, example.answer)


def test_the_right_one_stands_anywhere_and_by_the_seed(sentences):
    found = Distractors(sentences[:60])
    rows = [CachedExample((sentences[i % 60],), f"question {i}", "yes") for i in range(300)]
    places = [found.among(row, 3).docs.index(row.docs[0]) for row in rows]
    count = collections.Counter(places)
    assert all(70 < count[place] < 130 for place in range(3))
    again, other = Distractors(sentences[:60]), Distractors(sentences[:60], seed=1)
    assert [again.among(row, 3) for row in reversed(rows)] == [
        found.among(row, 3) for row in reversed(rows)
    ]
    assert [other.among(row, 3) for row in rows] != [found.among(row, 3) for row in rows]


def test_files(sentences, examples, tmp_path):
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "q.jsonl").write_text(
        lines({"docs": list(e.docs), "text": [e.question, e.answer]} for e in examples)
    )
    (tmp_path / "c.jsonl").write_text(
        lines({"id": str(i), "title": "A", "text": t} for i, t in enumerate(sentences))
    )
    out = tmp_path / "several.jsonl"
    how = {"corpus": tmp_path / "c.jsonl", "rows": 20, "quiet": True}
    assert write_rows(tmp_path / "q.jsonl", out, [2, 4], **how) == 20
    written = read_examples(out, "cached")
    by_question = {example.question: example for example in examples}
    distractors = Distractors(corpus_texts(tmp_path / "c.jsonl"))
    for i, k in enumerate([2, 4] * 10):
        assert written[i] == distractors.among(by_question[written[i].question], k)
        assert all(
            text in by_question[written[i].question].docs or text[:2] == "A "
            for text in written[i].docs
        )
    assert len({written[i].question for i in range(20)}) == 20
    first = out.read_bytes()
    write_rows(tmp_path / "q.jsonl", out, [2, 4], **how)
    assert out.read_bytes() == first
    write_rows(tmp_path / "q.jsonl", out, [2, 4], **how, seed=1)
    assert out.read_bytes() != first
    assert (
        write_rows(tmp_path / "q.jsonl", out, [2], quiet=True) == 40
    )  # among the documents of all rows
    assert {text for i in range(40) for text in read_examples(out)[i].docs} <= {
        t for e in examples for t in e.docs
    }


def test_the_expected_part_is_kept(sentences, tmp_path):
    line = {"docs": [sentences[0]], "text": ["q", "It is a."], "answer": "a"}
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n")
    lines = [{"id": str(i), "text": text} for i, text in enumerate(sentences[:9])]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.jsonl"
    write_rows(tmp_path / "q.jsonl", out, [3], corpus=tmp_path / "c.jsonl", quiet=True)
    written = json.loads(out.read_text())
    assert (
        written["answer"] == "a" and written["text"] == line["text"] and len(written["docs"]) == 3
    )


def test_mistakes_are_named(sentences, examples, tmp_path):
    with pytest.raises(
        GritError, match="expected 4 documents beside its own, got 2.*--k.*--corpus"
    ):
        Distractors(sentences[1:4]).among(examples[1], 5)
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    with pytest.raises(GritError, match=r"c\.jsonl:2: the text of document"):
        corpus_texts(tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl").write_text('{"text": "a"\n')
    with pytest.raises(GritError, match=r"c\.jsonl:1: not valid JSON"):
        corpus_texts(tmp_path / "c.jsonl")
