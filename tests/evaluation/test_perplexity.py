"""Perplexity against a plain loop over texts with all logits at hand."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import dense_reference as dense
import numpy as np
import pytest

import grit_jax
from grit_jax import GritLM
from grit_jax.data.formats import GenerativeExample
from grit_jax.errors import GritError
from grit_jax.evaluation.perplexity import evaluate_perplexity, score_perplexity, text_losses


def reference(model, rows, limit: int = 10**9) -> float:
    """exp of the mean over all predicted tokens, each text by itself in float64, its format spelt
    out."""
    total, count = 0.0, 0
    encode = lambda text, inside: model.tokenizer.encode(text, continues=inside)
    bos, eos = [model.tokenizer.bos_id], [model.tokenizer.eos_id]
    tag = lambda text: model.tokenizer.encode_parts([[_template(text)]])[0][0]
    for row in rows:
        if isinstance(row, str):
            ids = bos + model.tokenizer.encode_parts([[_template("<s>"), _text(row)]])[0][1]
            ids += eos
            answer = [False] + [True] * (len(ids) - 1)
        else:
            ids, answer = [], []
            for n, turn in enumerate(row):
                if n % 2 == 0:
                    opening = "<s>" if n == 0 else "\n"
                    part = (
                        tag(opening + "<|user|>\n") + encode(turn, True) + tag("\n<|assistant|>\n")
                    )
                else:
                    part = encode(turn.strip(), True) + eos
                ids += part
                answer += [n % 2 == 1] * len(part)
        ids, answer = ids[:limit], answer[:limit]
        logits = dense.layout(model.params, model.config, [], ids).logits
        for t in range(1, len(ids)):
            if answer[t]:
                z = logits[t - 1]
                total += np.log(np.exp(z - z.max()).sum()) + z.max() - z[ids[t]]
                count += 1
    return float(np.exp(total / count))


def _template(text):
    from grit_jax.text.chat import PromptPart

    return PromptPart(text, is_template=True)


def _text(text):
    from grit_jax.text.chat import PromptPart

    return PromptPart(text)


@pytest.fixture(scope="module")
def rows(sentences):
    conversations = [
        [sentences[i], sentences[i + 1][:60], sentences[i + 2][:20], "Yes."] for i in range(0, 9, 3)
    ]
    pairs = [[sentences[i], " " + sentences[i + 1][:40] + "\n"] for i in range(10, 16)]
    return [*conversations, *pairs, *sentences[30:33]]


def write(path, rows):
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def test_equals_a_loop_over_texts(tiny_model, rows, tmp_path):
    found = evaluate_perplexity(tiny_model, write(tmp_path / "g.jsonl", rows), quiet=True)
    assert isinstance(found, float) and found == pytest.approx(
        reference(tiny_model, rows), rel=1e-4
    )


def test_texts_are_cut_at_the_limit(tiny_model, rows):
    examples = [
        GenerativeExample(text=r) if isinstance(r, str) else GenerativeExample(tuple(r))
        for r in rows
    ]
    found = evaluate_perplexity(tiny_model, examples, max_length=40, quiet=True)
    assert found == pytest.approx(reference(tiny_model, rows, 40), rel=1e-4)


def test_company_and_calls_do_not_matter(tiny_model, rows, monkeypatch):
    """Nor how many calls the rows are spread over, with empty rows at the end."""
    import grit_jax.evaluation.perplexity as module

    examples = [GenerativeExample(tuple(row)) for row in rows if not isinstance(row, str)]
    whole = evaluate_perplexity(tiny_model, examples, quiet=True)
    monkeypatch.setattr(module, "TOKENS_PER_CALL", 512)
    assert evaluate_perplexity(tiny_model, examples[::-1], quiet=True) == pytest.approx(
        whole, rel=1e-5
    )


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tiny_model, rows):
    flat = type(tiny_model)(
        tiny_model.config,
        {**tiny_model.params, "head": 0 * tiny_model.params["head"]},
        tiny_model.tokenizer,
        tiny_model.chat,
    )
    found = evaluate_perplexity(flat, [GenerativeExample(("a", "river"))], quiet=True)
    assert found == pytest.approx(tiny_model.config.vocab_size, rel=1e-5)


def test_what_has_nothing_to_predict_is_counted(tiny_model, capsys):
    fine, long = GenerativeExample(("a", "river")), GenerativeExample(("word " * 50, "x"))
    found = evaluate_perplexity(tiny_model, [fine, long, long], max_length=20)
    assert (
        "perplexity: 2 of 3 examples have nothing to predict within 20 tokens\n"
        in capsys.readouterr().err
    )
    assert found == pytest.approx(evaluate_perplexity(tiny_model, [fine], max_length=20), rel=1e-6)
    assert "nothing to predict" not in capsys.readouterr().err


def test_mistakes_are_named(tiny_model, tmp_path):
    (tmp_path / "g.jsonl").write_text('{"text": ["only a question"]}\n')
    with pytest.raises(GritError, match=r"g\.jsonl:1.*odd"):
        evaluate_perplexity(tiny_model, tmp_path / "g.jsonl")
    with pytest.raises(GritError, match="predict"):
        evaluate_perplexity(tiny_model, [GenerativeExample(("word " * 50, "x"))], max_length=20)
    with pytest.raises(GritError, match="predict"):
        evaluate_perplexity(tiny_model, [])


def test_what_is_cut_is_counted_and_the_context_is_the_limit(tiny_model, rows):
    examples = [GenerativeExample(tuple(row)) for row in rows if not isinstance(row, str)]
    lengths = [len(dense_ids(tiny_model, row)) for row in rows if not isinstance(row, str)]
    assert min(lengths) < 24 < max(lengths)
    with pytest.warns(UserWarning, match=f"of {len(examples)} texts .* cut to 24 tokens"):
        score = score_perplexity(tiny_model, examples, max_length=24, quiet=True)
    assert score.truncated == sum(length > 24 for length in lengths)
    assert score_perplexity(tiny_model, examples, quiet=True).truncated == 0
    short = copy.copy(tiny_model)
    short.config = dataclasses.replace(tiny_model.config, max_position_embeddings=24)
    with pytest.warns(UserWarning, match="cut to 24 tokens"):
        assert score_perplexity(short, examples, quiet=True) == score
    with pytest.raises(GritError, match="max_length is 25 tokens.*context is 24"):
        score_perplexity(short, examples, max_length=25)


def dense_ids(model, row):
    """Ids of a whole conversation in the chat format."""
    parts = model.chat.render_turns(list(row))
    return [i for part in model.tokenizer.encode_parts([parts])[0] for i in part]


def test_int8_weights_keep_the_perplexity_of_the_shipped_model(tmp_path):
    """Within 1%, over the documentation of built-in types."""
    names = [(kind, name) for kind in (str, list, dict, set) for name in dir(kind)]
    texts = {name: getattr(kind, name).__doc__ or "None." for kind, name in names}
    file = tmp_path / "generative.jsonl"
    lines = [
        json.dumps({"text": [f"Write the documentation of `{name}`.", text]}) + "\n"
        for name, text in texts.items()
    ]
    file.write_text("".join(lines), encoding="utf-8")
    base_model = Path(grit_jax.__file__).parent / "quickstart" / "base_model"
    score = lambda dtype: (
        score_perplexity(GritLM.from_pretrained(base_model, dtype), file, quiet=True).perplexity
    )
    expected = score("float32")
    assert 3 < expected < 200
    assert score("int8") == pytest.approx(expected, rel=0.01)


def test_losses_by_text_are_those_of_each_text_alone(tiny_model, rows):
    """Packed beside others in a row or not; together they are the perplexity of the file."""
    examples = [GenerativeExample(tuple(row)) for row in rows[:7]]
    losses = text_losses(tiny_model, examples, quiet=True)
    assert losses.perplexity == pytest.approx(
        evaluate_perplexity(tiny_model, examples, quiet=True), rel=1e-6
    )
    for i, example in enumerate(examples):
        alone = evaluate_perplexity(tiny_model, [example], quiet=True)
        assert np.exp(losses.nll[i] / losses.tokens[i]) == pytest.approx(alone, rel=1e-5)
