"""Perplexity of a model behind a socket: that of the same model in this process; and by text, that of
the server's tokens within the answers."""

from __future__ import annotations

import json
import math

import dense_reference as dense
import numpy as np
import pytest

from grit_jax.data.formats import GenerativeExample
from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.perplexity import score_perplexity
from grit_jax.evaluation.perplexity_endpoint import score_served_perplexity

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
from cli_world import run
from live_server import live_server

from grit_jax.serving.settings import ServeSettings

CONTEXT = 128


@pytest.fixture(scope="module")
def directory(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(tiny_model):
    settings = ServeSettings("tiny", slots=2, context=CONTEXT, warm_up=False)
    with live_server(tiny_model, settings) as running:
        yield running


@pytest.fixture
def endpoint(server):
    return Endpoint(server.url)


@pytest.fixture(scope="module")
def examples(sentences):
    said = [GenerativeExample((sentences[i], sentences[i + 1])) for i in range(3)]
    longer = GenerativeExample(("Amber?", sentences[4], "River?", f" {sentences[5]} größer "))
    return [*said, longer, GenerativeExample(text=sentences[6]), GenerativeExample(("a", "b"))]


def test_with_the_tokenizer_it_is_that_of_this_process(endpoint, examples, directory, tiny_model):
    found = score_served_perplexity(endpoint, examples, tokenizer=directory, quiet=True)
    expected = score_perplexity(tiny_model, examples, quiet=True)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert found.truncated == 0


def test_longer_texts_are_cut_to_the_servers_context(endpoint, directory, tiny_model, sentences):
    long = [GenerativeExample((sentences[0], " ".join(sentences[:12])))]
    with pytest.warns(UserWarning, match=f"1 of 1 texts was cut to {CONTEXT} tokens"):
        found = score_served_perplexity(endpoint, long, tokenizer=directory, quiet=True)
    with pytest.warns(UserWarning, match="was cut"):
        expected = score_perplexity(tiny_model, long, max_length=CONTEXT, quiet=True)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert found.truncated == expected.truncated == 1


def of_texts(model, prompts) -> float:
    """The perplexity of texts `(parts, whether they are answers)`, whose tokens are those of the
    whole text: of all tokens that lie within an answer."""
    losses = []
    for parts in prompts:
        text = "".join(part for part, _ in parts)
        inside = np.concatenate([[is_answer] * len(part) for part, is_answer in parts])
        ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
        logits = dense.layout(model.params, model.config, [], ids).logits
        at = 0
        for t, token in enumerate(ids[1:], 1):
            size = len(model.tokenizer.token_text(token))
            if inside[at : at + size].all():
                z = logits[t - 1]
                losses.append(np.log(np.exp(z - z.max()).sum()) + z.max() - z[token])
            at += size
        assert at == len(text)
    return math.exp(np.mean(losses))


def test_text_for_another_server(endpoint, tiny_model, sentences):
    """Answers without their ends, by the tokens of the text as a whole. The server counts the
    beginning of sequence that it adds as a part of the text."""
    a, b, c = sentences[:3]
    examples = [GenerativeExample((a, f" {b}")), GenerativeExample(text=c)]
    prompts = [
        [(f"<|user|>\n{a}\n<|assistant|>\n", False), (b, True)],
        [(c, True)],
    ]
    endpoint.is_ours = False
    with pytest.warns(UserWarning, match="ends of sequence are not scored"):
        found = score_served_perplexity(endpoint, examples, quiet=True)
    expected = of_texts(tiny_model, prompts)
    assert found.perplexity == pytest.approx(expected, rel=1e-5)


def test_command(server, directory, capsys, tmp_path, tiny_model):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": ["Amber?", "River."]}) + "\n")
    command = f"eval perplexity {server.url} --input {rows}"
    said = run(capsys, f"{command} --tokenizer {directory} --json --record {tmp_path}/r.json")
    assert said.status == 0, said.err
    expected = score_perplexity(tiny_model, rows, quiet=True).perplexity
    assert said.json["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert json.loads((tmp_path / "r.json").read_text())["model"] == server.url
    said = run(capsys, command)
    assert said.status == 2 and "a grit serve, to which special tokens cannot be sent" in said.err
    said = run(capsys, f"{command} --tokenizer {directory} --chat-format llama3")
    assert said.status == 2 and "the directory of --tokenizer names the format" in said.err
    said = run(capsys, f"eval perplexity {directory} --input {rows} --tokenizer {directory}")
    assert said.status == 2 and "say how a URL is asked" in said.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda choices: choices[1:], "1 prompts, and 0 choices"),
        (lambda choices: [{"text": "a"}], "no log-probabilities .* must support echo with"),
        (
            lambda choices: [{"logprobs": {"token_logprobs": [None]}}],
            "of a prompt of 6 tokens, got 1",
        ),
        (
            lambda choices: [{"logprobs": {"token_logprobs": [None] * 20}}],
            "a log-probability is None",
        ),
        (
            lambda choices: [{"logprobs": {"token_logprobs": [-9999.0] * 20}}],
            "a token's probability is 0",
        ),
    ],
)
def test_replies_that_lack_something(endpoint, directory, change, message):
    complete = endpoint.complete
    endpoint.complete = lambda prompts, **fields: change(complete(prompts, **fields))
    example = [GenerativeExample(("a", "b"))]
    with pytest.raises(GritError, match=message):
        score_served_perplexity(endpoint, example, tokenizer=directory, quiet=True)


def test_tokens_that_do_not_spell_the_prompt(endpoint):
    endpoint.is_ours = False
    found = {"tokens": ["?", "?"], "text_offset": [0, 1], "token_logprobs": [None, -1.0]}
    for reply in (found, found | {"text_offset": None}, found | {"tokens": ["?"]}):
        endpoint.complete = lambda prompts, reply=reply, **fields: [{"logprobs": reply}]
        with pytest.raises(GritError, match="do not spell the prompt; name .* with --tokenizer"):
            score_served_perplexity(endpoint, [GenerativeExample(("a", "b"))], quiet=True)


def test_a_server_that_does_not_say_how_long_its_context_is(endpoint, directory, monkeypatch):
    example = [GenerativeExample(("a", "b"))]
    ask = lambda **more: score_served_perplexity(endpoint, example, quiet=True, **more)
    endpoint.is_ours = False
    refuse = lambda path, body: {"choices": []} if "completions" in path else {}
    monkeypatch.setattr(endpoint, "post", refuse)
    with pytest.raises(GritError, match="/tokenize does not say .* give --max-length N"):
        ask(tokenizer=directory)
    with pytest.raises(GritError, match="completions: the reply has no choices"):
        ask(tokenizer=directory, max_length=64)
    with pytest.raises(GritError, match="--max-length counts tokens, which needs --tokenizer"):
        ask(max_length=64)


def test_a_prefix_language_model_is_refused(endpoint, directory, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "grit.json"):
        if (directory / name).exists():
            (tmp_path / name).write_bytes((directory / name).read_bytes())
    settings = json.loads((tmp_path / "grit.json").read_text()) | {"generation_mode": "prefix"}
    (tmp_path / "grit.json").write_text(json.dumps(settings))
    with pytest.raises(GritError, match="a prefix language model reads prompts bidirectionally"):
        score_served_perplexity(endpoint, [GenerativeExample(("a", "b"))], tokenizer=tmp_path)
