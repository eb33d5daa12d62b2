"""The seven layouts against the original's templates, typed out (`rag/eval.py`, without `The answer
is`)."""

import pytest

from grit_jax.errors import GritError
from grit_jax.text.chat import GRIT, LLAMA3
from grit_jax.text.rag_layouts import CACHED_MODES, CONVERSATION_MODES, MODES, compose

Q, D = "who wrote it?", "Title The text."

TEMPLATES = {
    "none": "<s><|user|>\nwho wrote it?\n<|assistant|>\n",
    "query-then-doc": (
        "<s><|user|>\nwho wrote it?\n\nTitle The text.\n\n"
        "Optionally using the prior context answer the query prior to it\n<|assistant|>\n"
    ),
    "doc-then-query": (
        "<s><|user|>\nTitle The text.\n\nwho wrote it?\n\n"
        "Answer the prior query while optionally using the context prior to it\n<|assistant|>\n"
    ),
    "query": (
        "\n<|user|>\nTitle The text.\n\n"
        "Optionally using the prior context answer the query prior to it\n<|assistant|>\n"
    ),
    "doc": (
        "\n<|user|>\nwho wrote it?\n\n"
        "Answer the prior query while optionally using the context prior to it\n<|assistant|>\n"
    ),
    "query-doc": (
        "\n<|user|>\nOptionally using the prior context answer the query prior to"
        " it\n<|assistant|>\n"
    ),
    "doc-query": (
        "\n<|user|>\nAnswer the prior query while optionally using the context prior to"
        " it\n<|assistant|>\n"
    ),
}
CACHED = {
    "none": [],
    "query-then-doc": [],
    "doc-then-query": [],
    "query": ["<s><|embed|>\nwho wrote it?"],
    "doc": ["<s><|embed|>\nTitle The text."],
    "query-doc": ["<s><|embed|>\nwho wrote it?", "<s><|embed|>\nTitle The text."],
    "doc-query": ["<s><|embed|>\nTitle The text.", "<s><|embed|>\nwho wrote it?"],
}


def cached_strings(layout):
    return [
        "".join(piece.text for piece in GRIT.embed_parts("", text.text)) for text in layout.cached
    ]


@pytest.mark.parametrize("mode", MODES)
def test_templates(mode):
    layout = compose(mode, Q, [D])
    assert layout.mode == mode
    assert layout.text == TEMPLATES[mode]
    assert cached_strings(layout) == CACHED[mode]
    assert bool(layout.cached) == (mode in CACHED_MODES)
    # What may be cut is the document and nothing else; user text is never read as a template.
    assert [p.text for p in layout.continuation if p.is_document] == (
        [D] if D in layout.text else []
    )
    assert not any(p.is_template for p in layout.continuation if p.text in (Q, D))
    assert not any(p.is_answer for p in layout.continuation)


def test_seven_modes():
    assert set(MODES) == set(TEMPLATES) and len(MODES) == 7


@pytest.mark.parametrize("mode", MODES)
def test_several_documents_stay_in_order(mode):
    layout = compose(mode, Q, ["one", "two", "three"])
    kinds = [text.kind for text in layout.cached]
    if mode in ("doc", "query-doc", "doc-query"):
        assert [text.text for text in layout.cached if text.kind == "document"] == [
            "one",
            "two",
            "three",
        ]
        expected = {"doc": [], "query-doc": ["query"], "doc-query": []}[mode] + ["document"] * 3
        assert kinds == expected + (["query"] if mode == "doc-query" else [])
    elif mode != "none":
        assert "one\n\ntwo\n\nthree" in layout.text


def test_other_formats():
    layout = compose("doc", Q, [D], LLAMA3)
    assert layout.text.startswith(
        "<|start_header_id|>user<|end_header_id|>\n\nwho wrote it?\n\nAnswer the prior"
    )
    assert compose("none", Q, [], LLAMA3).text.startswith(
        "<|begin_of_text|><|start_header_id|>user"
    )


def test_mistakes():
    with pytest.raises(GritError, match="unknown RAG mode 'docs'; known: none, query-then-doc"):
        compose("docs", Q, [D])
    with pytest.raises(GritError, match="'doc' needs at least one document"):
        compose("doc", Q, [])
    assert compose("none", Q, []).text == TEMPLATES["none"]


HISTORY = ("who reads?", " Eve. ")
IN_CONVERSATION = {
    "none": "<s><|user|>\n{turn}who wrote it?\n<|assistant|>\n",
    "query-then-doc": "<s><|user|>\n{turn}who wrote it?\n\nTitle The text.\n\n"
    "Optionally using the prior context answer the query prior to it\n<|assistant|>\n",
    "doc-then-query": "<s><|user|>\nTitle The text.\n\n{turn}who wrote it?\n\n"
    "Answer the prior query while optionally using the context prior to it\n<|assistant|>\n",
    "doc": "\n<|user|>\n{turn}who wrote it?\n\n"
    "Answer the prior query while optionally using the context prior to it\n<|assistant|>\n",
}


@pytest.mark.parametrize("mode", MODES)
def test_a_conversation(mode):
    """Documents stand before all of it, or beside the last question."""
    if mode not in CONVERSATION_MODES:
        with pytest.raises(GritError, match="reads one question; for a conversation use one of"):
            compose(mode, Q, [D], GRIT, HISTORY)
        return
    layout = compose(mode, Q, [] if mode == "none" else [D], GRIT, HISTORY)
    turn = "who reads?\n<|assistant|>\nEve.</s>\n<|user|>\n"
    assert layout.text == IN_CONVERSATION[mode].replace("{turn}", turn)
    assert [part.text for part in layout.continuation if part.is_document] == (
        [D] if mode.count("-") else []
    )
    assert cached_strings(layout) == CACHED[mode]
