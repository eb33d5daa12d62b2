"""The corpus of an index: how its documents are parsed, and the errors of invalid lines."""

from __future__ import annotations

import pytest
from stored_rows import ROWS, content, write_rows

from grit_jax.errors import GritError
from grit_jax.rag.corpus import Corpus, CorpusDocument, parse_document


def test_documents_in_the_order_of_the_file(tmp_path):
    corpus = Corpus(write_rows(tmp_path / "c.jsonl", [*ROWS[:3], "", *ROWS[3:]]))
    assert len(corpus) == len(ROWS)
    documents = [CorpusDocument(row["id"], row["title"], row["text"]) for row in ROWS]
    assert list(corpus) == documents == [corpus[i] for i in range(len(ROWS))]
    assert [document.content for document in corpus] == [content(row) for row in ROWS]
    assert corpus.where("d2") == f"{tmp_path}/c.jsonl:3"
    assert corpus.where("d3") == f"{tmp_path}/c.jsonl:5"  # after the blank line
    assert corpus.digests == {document.id: document.digest for document in documents}


def test_other_ways_to_write_a_document():
    """BEIR's `_id`, numbers as ids, and no title."""
    for line, expected in (
        ('{"_id": "a", "text": "t", "metadata": {}}', CorpusDocument("a", "", "t")),
        ('{"id": 7, "title": null, "text": "t"}', CorpusDocument("7", "", "t")),
        ('{"id": "a", "title": "T", "text": ""}', CorpusDocument("a", "T", "")),
        ('{"id": 7, "text": "t", "metadata": null}', CorpusDocument("7", "", "t")),
        (
            '{"id": "a", "text": "t", "metadata": {"y": [1, "é"]}}',
            CorpusDocument("a", "", "t", {"y": [1, "é"]}),
        ),
        ('{"id": "x", "title": [], "text": "a", "id2": 0}', CorpusDocument("x", "", "a")),
    ):
        assert parse_document(line, "c:1") == expected


def test_a_digest_changes_with_title_and_text():
    digests = {
        CorpusDocument("a", title, text).digest
        for title, text in (
            ("", "ab"),
            ("a", "b"),
            ("ab", ""),
            ("", "ab "),
            ("1 ", "a"),
            ("", "1 a"),
        )
    }
    assert len(digests) == 6
    plain, metadata = CorpusDocument("a", "T", "x"), {"y": 1, "z": 2}
    assert plain.digest != CorpusDocument("a", "T", "x", metadata).digest
    swapped = CorpusDocument("a", "T", "x", dict(reversed(metadata.items())))
    assert swapped.digest == CorpusDocument("a", "T", "x", metadata).digest
    assert CorpusDocument("a", "T", "x").digest == CorpusDocument("b", "T", "x").digest


BAD = [
    {"_id": "empty", "title": "", "text": ""},
    {"_id": "blank", "title": " ", "text": "\n"},
    "{",
    {"id": "d1", "text": "an id that is taken"},
    r'{"id": "\ud800", "text": "half"}',
]


def test_lines_that_are_no_documents_can_be_skipped(tmp_path):
    path = write_rows(tmp_path / "c.jsonl", [BAD[0], *ROWS[:3], *BAD[1:], *ROWS[3:5]])
    with pytest.raises(GritError, match=r"c\.jsonl:1: the text of the document is empty"):
        Corpus(path)
    corpus = Corpus(path, "skip")
    assert [document.id for document in corpus] == ["d0", "d1", "d2", "d3", "d4"]
    assert corpus[1] == CorpusDocument("d1", ROWS[1]["title"], ROWS[1]["text"])  # the first of two
    assert sorted(corpus.skipped.values()) == [1, 1, 1, 2]
    assert corpus.skipped["the text of the document is empty"] == 2
    assert corpus.skipped["an id of an earlier line"] == 1
    path = write_rows(tmp_path / "none.jsonl", BAD[:3])
    with pytest.raises(GritError, match=r"no usable line; the first problem: .*none\.jsonl:1: the"):
        Corpus(path, "skip")


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", r"c\.jsonl:2: not valid JSON"),
        (
            '{"id": "x", "text": "a", "metadata": [1, 2]}',
            r'c\.jsonl:2: "metadata" must be an object, got \[1, 2\]',
        ),
        ('{"id": "x", "text": "a", "metadata": ""}', r'"metadata" must be an object, got ""'),
        ('{"id": "x", "text": "a", "metadata": {"a": NaN}}', "the metadata has NaN or infinity"),
        (r'{"id": "x", "text": "a", "metadata": {"a": "\ud800"}}', "the metadata"),
        ("[1]", r"c\.jsonl:2: expected a JSON object"),
        ('{"text": "a"}', r'c\.jsonl:2: .*"id"'),
        ('{"id": "x"}', r"c\.jsonl:2: the document has no \"text\""),
        ('{"id": "x", "text": ""}', r"c\.jsonl:2: .*empty"),
        ('{"id": "x", "text": 3}', r"c\.jsonl:2: .*string"),
        ('{"id": "x", "title": "T", "text": null}', r"c\.jsonl:2: .*string"),
        (r'{"id": "\ud83d", "text": "a"}', r"c\.jsonl:2: the id holds half of a surrogate pair"),
        (r'{"id": "x", "title": "\udc00", "text": "a"}', r"c\.jsonl:2: the title .* holds half"),
        (r'{"id": "x", "text": "\ud83d"}', r"c\.jsonl:2: the text .* holds half"),
        ('{"id": "a", "text": "other"}', r"c\.jsonl:2: .*'a', first used at .*c\.jsonl:1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write_rows(tmp_path / "c.jsonl", [{"id": "a", "text": "one"}, line])
    with pytest.raises(GritError, match=message):
        Corpus(path)


def test_no_corpus(tmp_path):
    with pytest.raises(GritError, match="no such file"):
        Corpus(tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl").write_text("\n\n")
    with pytest.raises(GritError, match="empty"):
        Corpus(tmp_path / "c.jsonl")
