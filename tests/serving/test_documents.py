"""Chat over a store: equal to `grit ask`, and the caches are counted."""

from __future__ import annotations

import concurrent.futures

import pytest
from dense_answer import dense_answer

from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index
from grit_jax.rag.search.hybrid import Retrieval

QUESTIONS = ["Which river is quiet?", "What of copper?", "Is the stone amber?"]


@pytest.fixture(scope="module")
def asker(tiny_model, index_path):
    return Asker(tiny_model, Index.open(index_path, tiny_model))


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": QUESTIONS[0]},
    {"role": "assistant", "content": "The amber one."},
    {"role": "user", "content": QUESTIONS[1]},
]


def ask(server, question: str, **fields):
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 6,
        "store": "docs",
    }
    return server.post("/v1/chat/completions", **(body | fields))


@pytest.mark.parametrize("mode", ["none", "doc-then-query", "doc", "query-doc"])
def test_answers_are_those_of_ask(server, asker, mode):
    """Many at once, over records and over texts."""
    expected = asker.ask(QUESTIONS, mode, k=2, max_new_tokens=6)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda q: ask(server, q, mode=mode, k=2), QUESTIONS))
    for answer, reply in zip(expected, replies):
        assert reply["choices"][0]["message"]["content"].strip() == answer.answer
        assert reply["grit"]["mode"] == mode and not reply["grit"]["warnings"]
        assert [d["id"] for d in reply["grit"]["documents"]] == [d["id"] for d in answer.documents]
        usage, cached = reply["usage"], 0
        if mode in ("doc", "query-doc"):
            lines = {line["id"]: line for line in map(asker.index.documents.__getitem__, range(12))}
            cached = sum(lines[d["id"]]["tokens"] for d in answer.documents)
        assert usage["prompt_tokens_details"]["cached_tokens"] == cached
        assert usage["prompt_tokens"] > cached
        assert reply["grit"]["cache"] == answer.cache


@pytest.mark.parametrize("mode", ["none", "query-then-doc", "doc-then-query", "doc", "auto"])
def test_a_conversation_is_continued_over_the_caches(server, tiny_model, asker, mode):
    """As one dense pass over the same texts answers: documents, then the conversation."""
    reply = ask(server, "", messages=CONVERSATION, mode=mode, k=2)
    used = reply["grit"]["mode"]
    assert used == mode if mode != "auto" else used in ("doc-then-query", "doc")
    # The last question alone is searched for.
    [answer] = asker.ask(QUESTIONS[1], mode if mode != "auto" else "doc", k=2, max_new_tokens=6)
    assert [d["id"] for d in reply["grit"]["documents"]] == [d["id"] for d in answer.documents]
    texts = [asker.index.text(d["id"]) for d in answer.documents]
    history = (f"Be brief.\n\n{QUESTIONS[0]}", "The amber one.")
    expected = dense_answer(tiny_model, used, QUESTIONS[1], texts, 6, history)
    assert reply["choices"][0]["message"]["content"].strip() == expected
    cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert (cached > 0) == (used == "doc")
    # A system message alone, before one question.
    reply = ask(server, "", messages=[CONVERSATION[0], CONVERSATION[3]], mode=used, k=2)
    asked = f"Be brief.\n\n{QUESTIONS[1]}"
    expected = dense_answer(tiny_model, used, asked, texts, 6)
    assert reply["choices"][0]["message"]["content"].strip() == expected


def test_auto_searches_and_filters(server, asker):
    auto = ask(server, QUESTIONS[0], k=1)
    [expected] = asker.ask(QUESTIONS[0], auto["grit"]["mode"], k=1, max_new_tokens=6)
    assert auto["choices"][0]["message"]["content"].strip() == expected.answer
    found = ask(server, "river", mode="doc", k=3, search="hybrid", where="n >= 6")
    [expected] = asker.ask(
        "river", "doc", k=3, retrieval=Retrieval("hybrid", where="n >= 6"), max_new_tokens=6
    )
    with_texts = lambda documents: [{**d, "text": asker.index.text(d["id"])} for d in documents]
    assert found["grit"]["documents"] == with_texts(expected.documents)
    assert all(int(d["id"][1:]) >= 6 for d in found["grit"]["documents"])
    judged = ask(server, "river", mode="doc", k=2, rerank=5)
    [expected] = asker.ask("river", "doc", k=2, retrieval=Retrieval(rerank=5), max_new_tokens=6)
    assert judged["grit"]["documents"] == with_texts(expected.documents)
    assert "search_score" in expected.documents[0]


def test_the_official_client_streams_over_documents(openai_client, server):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": QUESTIONS[1]}],
        "temperature": 0,
        "max_tokens": 6,
        "extra_body": {"store": "docs", "mode": "doc", "k": 2},
    }
    whole = openai_client.chat.completions.create(**body)
    *parts, last = openai_client.chat.completions.create(
        **body, stream=True, stream_options={"include_usage": True}
    )
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert last.usage.prompt_tokens_details.cached_tokens > 0 and last.usage == whole.usage
    assert parts[0].grit["documents"] == whole.grit["documents"]
    assert not any(hasattr(part, "grit") for part in parts[1:])  # said once
    stages = {"encode_query", "search", "load", "queue", "prefill", "decode", "total"}
    for timings in (last.grit["timings"], whole.grit["timings"]):
        assert timings.keys() == stages and all(seconds >= 0 for seconds in timings.values())
        parts_of_it = sum(seconds for name, seconds in timings.items() if name != "total")
        assert timings["total"] == pytest.approx(parts_of_it, abs=1e-5) and timings["total"] > 0
    hits = 'vllm:prefix_cache_hits_total{model_name="tiny"}'
    assert server.metrics()[hits] >= 2 * last.usage.prompt_tokens_details.cached_tokens


@pytest.mark.parametrize(
    "change, status, words",
    [
        ({"store": "other"}, 404, "there is no store 'other'; this server has docs"),
        ({"store": None, "k": 2}, 400, "k: only with 'store'"),
        ({"store": True, "mode": "doc"}, 400, "mode: only with 'store'"),
        ({"mode": "song"}, 400, "mode: expected one of"),
        ({"k": 0}, 400, "k: "),
        ({"search": "song"}, 400, "search: expected"),
        ({"where": "n >="}, 400, "where: position 5"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "question is empty"),
        ({"messages": CONVERSATION[:-1]}, 400, "must end with a message of the user"),
        ({"messages": CONVERSATION, "mode": "query"}, 400, "mode 'query' reads one question"),
        (
            {"messages": [CONVERSATION[0], CONVERSATION[-1]], "mode": "query-doc"},
            400,
            "with a system message, use auto or one of none, query-then-doc, doc-then-query, doc",
        ),
        ({"messages": [CONVERSATION[1], CONVERSATION[3]]}, 400, "roles must alternate"),
        (
            {"messages": [{"role": "user", "content": "word " * 900}], "mode": "none"},
            400,
            "context",
        ),
    ],
)
def test_a_bad_request_is_refused(server, change, status, words):
    body = {"messages": [{"role": "user", "content": "x"}], "store": "docs", "max_tokens": 4}
    got, error = server.error("/v1/chat/completions", **(body | change))
    assert got == status and words in error["message"], error
