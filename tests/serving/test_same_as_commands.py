"""What a server answers is what the commands print, alone and with other requests in flight."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from cli_world import run

from grit_jax.bench.load import Target
from grit_jax.bench.traffic import TrafficOptions, requests
from grit_jax.text.rag_layouts import MODES

pytestmark = pytest.mark.slow
COMPANY = 16  # clients with requests of their own
QUESTIONS = ["Which river is quiet?", "Is the stone amber?"]
PROMPTS = ["What of copper?", "a", "Name each river that is quiet, and each stone. " * 3]
INSTRUCTION = "Find the passage"
TOLERANCE = 1e-5  # of a unit vector's numbers and of a score: other rows in a batch, other rounding


@pytest.fixture(scope="module")
def model_path(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    tiny_model.save_pretrained(path)
    return path


@contextlib.contextmanager
def company(server) -> Iterator[list]:
    """Mixed requests of many clients, some of which leave, from before the body begins until it
    ends; and what became of them."""
    target, stop, outcomes = Target(server.url), threading.Event(), []
    sent = iter(requests(100_000, TrafficOptions(store="docs", new_tokens=12)))
    lock = threading.Lock()

    def client() -> None:
        while not stop.is_set():
            with lock:
                request = next(sent)
            outcomes.append(target.send(request))

    threads = [threading.Thread(target=client) for _ in range(COMPANY)]
    for thread in threads:
        thread.start()
    try:
        while len(outcomes) < COMPANY:
            threads[0].join(0.05)
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)


def twice(server, check) -> None:
    """Checks alone, then in company, in which no request fails."""
    check()
    with company(server) as outcomes:
        before = len(outcomes)
        check()
        while len(outcomes) == before:
            check()
    assert [o.problem for o in outcomes if o.problem] == []


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
def test_embeddings_are_those_of_grit_encode(
    server, model_path, sentences, tmp_path, capsys, instruction
):
    texts, output = [*sentences[:12], " ".join(sentences[:6])], tmp_path / "v.npy"
    (tmp_path / "f.txt").write_text("".join(f"{text}\n" for text in texts))
    command = f"encode {model_path} --input {tmp_path}/f.txt --output {output}"
    assert run(capsys, command, "--instruction", instruction).status == 0
    expected = np.load(output)

    def check() -> None:
        reply = server.post("/v1/embeddings", input=texts, instruction=instruction)
        vectors = [item["embedding"] for item in reply["data"]]
        np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)

    twice(server, check)


def test_chat_is_that_of_grit_generate(server, model_path, capsys, tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps({'text': p})}\n" for p in PROMPTS))
    command = f"generate {model_path} --input {tmp_path}/p.jsonl --max-new-tokens 12 --json"
    expected = [each["text"] for each in run(capsys, command).json["generations"]]
    assert len(expected) == len(PROMPTS)

    def check() -> None:
        body = {"temperature": 0, "max_tokens": 12}
        for prompt, answer in zip(PROMPTS, expected, strict=True):
            messages = [{"role": "user", "content": prompt}]
            reply = server.post("/v1/chat/completions", messages=messages, **body)
            assert reply["choices"][0]["message"]["content"] == answer
            reply = server.post("/v1/responses", input=prompt, temperature=0, max_output_tokens=12)
            assert reply["output"][0]["content"][0]["text"] == answer

    twice(server, check)


def test_answers_over_a_store_are_those_of_grit_ask(server, model_path, index_path, capsys):
    """In every layout, with a filter and hybrid search, and reranked."""
    flags = f"--index {index_path} --k 2 --max-new-tokens 8 --json"
    cases = [(mode, "", {}) for mode in MODES]
    cases.append(
        ("doc", "--search hybrid --where 'n >= 3'", {"search": "hybrid", "where": "n >= 3"})
    )
    cases.append(("doc", "--rerank 5", {"rerank": 5}))
    expected = {}
    for question in QUESTIONS:
        for mode, more, fields in cases:
            said = run(capsys, f"ask {model_path} {flags} --mode {mode} {more}", question).json
            expected[question, mode, more] = said, fields

    def check() -> None:
        for (question, mode, _), (said, fields) in expected.items():
            reply = server.post(
                "/v1/chat/completions",
                messages=[{"role": "user", "content": question}],
                store="docs",
                mode=mode,
                k=2,
                temperature=0,
                max_tokens=8,
                **fields,
            )
            got = reply["grit"]
            assert reply["choices"][0]["message"]["content"].strip() == said["answer"]
            assert (got["mode"], got["cache"]) == (said["mode"], said["cache"])
            assert [d["id"] for d in got["documents"]] == [d["id"] for d in said["documents"]]
            scores = lambda documents: [document["score"] for document in documents]
            np.testing.assert_allclose(
                scores(got["documents"]), scores(said["documents"]), atol=TOLERANCE
            )

    twice(server, check)
