"""Reranking and scoring: the probabilities of whole forward passes over the judgement's prompt."""

from __future__ import annotations

import numpy as np
import pytest

QUERY = "Which river is quiet?"
# The words of reranking after the document, as the layout doc-then-query reads both.
PROMPT = (
    "<s><|user|>\n{text}\n\nJudge whether the context is relevant to the query or not.\n\n"
    "Query: {query}\n\nAnswer with yes if the context is relevant to the query, and no otherwise.\n\n"
    "Answer the prior query while optionally using the context prior to it\n<|assistant|>\n"
)


def logits_after(model, ids: list[int]) -> np.ndarray:
    return np.asarray(model(np.asarray([ids])).logits)[0, -1].astype(np.float64)


@pytest.fixture(scope="module")
def expected(tiny_model, sentences) -> np.ndarray:
    """The probability of "yes" against "no" for some documents."""
    tokenizer = tiny_model.tokenizer
    yes, no = (tokenizer.encode(word, continues=True)[0] for word in ("yes", "no"))
    scores = []
    for text in sentences[:6]:
        prompt = PROMPT.format(query=QUERY, text=text)
        logits = logits_after(tiny_model, tokenizer.encode_rendered(prompt))
        scores.append(1 / (1 + np.exp(logits[no] - logits[yes])))
    return np.asarray(scores)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_cohere_and_jina(server, sentences, expected, path):
    documents = [*sentences[:3], *({"text": text} for text in sentences[3:6])]
    reply = server.post(path, model="tiny", query=QUERY, documents=documents, top_n=4)
    order = np.argsort(-expected)[:4]
    assert [item["index"] for item in reply["results"]] == order.tolist()
    scores = [item["relevance_score"] for item in reply["results"]]
    np.testing.assert_allclose(scores, expected[order], atol=1e-5)
    assert [item["document"]["text"] for item in reply["results"]] == [sentences[i] for i in order]
    bare = server.post(path, query=QUERY, documents=documents, return_documents=False)
    assert len(bare["results"]) == 6 and "document" not in bare["results"][0]
    assert bare["usage"]["total_tokens"] > 6 * 40


def test_tei(server, sentences, expected):
    reply = server.post("/rerank", query=QUERY, texts=sentences[:6], return_text=True)
    order = np.argsort(-expected)
    assert [item["index"] for item in reply] == order.tolist()
    np.testing.assert_allclose([item["score"] for item in reply], expected[order], atol=1e-5)
    assert reply[0]["text"] == sentences[order[0]]
    raw = server.post("/rerank", query=QUERY, texts=sentences[:6], raw_scores=True)
    other = server.post("/rerank", query=QUERY, documents=sentences[:6], raw_scores=True)["results"]
    assert [r["relevance_score"] for r in other] == pytest.approx([r["score"] for r in raw])
    bare = server.post("/rerank", query=QUERY, documents=sentences[:6], return_text=False)
    assert not any("document" in r for r in bare["results"])
    told = server.post("/rerank", query=QUERY, texts=sentences[:6], return_documents=True)
    assert told == reply
    logits = np.log(expected[order] / (1 - expected[order]))
    np.testing.assert_allclose([item["score"] for item in raw], logits, atol=1e-4)


def test_scores(server, sentences, expected):
    reply = server.post("/v1/score", queries=QUERY, documents=sentences[:6])
    np.testing.assert_allclose([item["score"] for item in reply["data"]], expected, atol=1e-5)
    pairs = server.post("/score", text_1=[QUERY, "x"], text_2=sentences[:2])
    assert abs(pairs["data"][0]["score"] - expected[0]) < 1e-5
    assert abs(pairs["data"][1]["score"] - expected[1]) > 1e-7


def test_long_documents_are_cut_where_asked(server, tiny_model, sentences):
    tokens = tiny_model.tokenizer.encode(sentences[1], continues=True)
    cut = tiny_model.tokenizer.decode(tokens[:3])
    send = lambda document, **more: server.post(
        "/v1/rerank", query=QUERY, documents=[document], **more
    )["results"][0]["relevance_score"]
    assert abs(send(sentences[1], max_tokens_per_doc=3) - send(cut)) < 1e-6
    status, error = server.error("/v1/rerank", query=QUERY, documents=["word " * 9000])
    assert status == 400 and "max_tokens_per_doc" in error["message"]


def test_generative_scoring(server, tiny_model):
    tokenizer, labels = tiny_model.tokenizer, [40, 7, 300]
    body = {"query": "Is it amber? ", "items": ["stone", "river"], "label_token_ids": labels}
    reply = server.post("/generative_scoring", **body)
    raw = server.post("/generative_scoring", **body, apply_softmax=False)
    for item, one, other in zip(body["items"], reply["data"], raw["data"]):
        ids = [tokenizer.bos_id, *tokenizer.encode(body["query"] + item)]
        logits = logits_after(tiny_model, ids)
        whole = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose(other["label_scores"], whole[labels], rtol=1e-3)
        among = whole[labels] / whole[labels].sum()
        np.testing.assert_allclose(one["label_scores"], among, rtol=1e-3)
        assert one["score"] == one["label_scores"][0]
    ids = {"query": [5, 6], "items": [[7], [8, 9]], "label_token_ids": labels, "item_first": True}
    data = server.post("/generative_scoring", **ids)["data"]
    logits = logits_after(tiny_model, [8, 9, 5, 6])[labels]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(data[1]["label_scores"], expected, rtol=1e-3)


@pytest.mark.parametrize(
    "path, body, words",
    [
        ("/v1/rerank", {"query": QUERY}, "give documents, or texts"),
        ("/v1/rerank", {"query": QUERY, "documents": []}, "documents: the list is empty"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query: must not be empty"),
        ("/v1/rerank", {"query": QUERY, "documents": [{"t": 1}]}, "documents[0]"),
        ("/v1/rerank", {"query": QUERY, "documents": ["a"] * 65}, "65 items"),
        ("/v1/rerank", {"query": QUERY, "documents": ["a"], "top_n": 0}, "top_n"),
        ("/rerank", {"query": QUERY, "documents": ["a"], "texts": ["a"]}, "documents, or texts"),
        ("/v1/score", {"queries": QUERY}, "queries and documents"),
        ("/v1/score", {"queries": ["a", "b"], "documents": ["a"] * 3}, "one for each of 3"),
        ("/generative_scoring", {"query": "a", "items": ["b"], "label_token_ids": []}, "1 to 64"),
        ("/generative_scoring", {"query": "a", "items": [[1]], "label_token_ids": [1]}, "items"),
        (
            "/generative_scoring",
            {"query": "a", "items": ["b"], "label_token_ids": [10**6]},
            "outside the vocabulary",
        ),
    ],
)
def test_a_bad_request_is_refused(server, path, body, words):
    status, error = server.error(path, **body)
    assert status == 400 and words in error["message"], error
