"""Attention codes end to end: what a run trains, what its model computes, and a dense mask written
from the letters."""

from __future__ import annotations

import json

import dense_reference as dense
import jax
import numpy as np
import pytest

from grit_jax.data.config import DataConfig
from grit_jax.data.example_tokenizer import ExampleTokenizer
from grit_jax.data.formats import CachedExample, GenerativeExample
from grit_jax.data.pipeline import JointBatches
from grit_jax.evaluation.perplexity import evaluate_perplexity
from grit_jax.inference.model import GritLM, ModelOptions
from grit_jax.inference.sampling import Sampling
from grit_jax.run_config import ATTENTION_CODES, ModelSection, RunConfig, batch_needs, step_config
from grit_jax.runtime.files import write_jsonl
from grit_jax.text.chat import GRIT
from grit_jax.training.joint import embed_sides, joint_loss
from grit_jax.types import AttentionMode

INSTRUCTION = "Find the sentence"
CODES = ["bbcc", "cccc", "cbbc"]


@pytest.fixture(scope="module")
def files(tmp_path_factory, sentences):
    folder = tmp_path_factory.mktemp("codes")
    short = [" ".join(sentence.split()[:9]) for sentence in sentences]
    data = {
        "embedding": [
            {"query": [INSTRUCTION, a], "pos": [["", b]], "neg": [["", c]]}
            for a, b, c in zip(short, short[9:], short[18:])
        ][:8],
        "generative": [
            {"text": [a, b, c, d]} for a, b, c, d in zip(short, short[5:], short[10:], short[15:])
        ][:4],
        "cached": [
            {"docs": [a, b], "text": [c, d]}
            for a, b, c, d in zip(short, short[3:], short[6:], short[9:])
        ][:4],
    }
    for name, lines in data.items():
        write_jsonl(folder / f"{name}.jsonl", lines)
    return data, {name: [str(folder / f"{name}.jsonl")] for name in data}


def run(code, config, files):
    return RunConfig(
        ModelSection(shape=config, attention=code, dtype="float32"),
        "out",
        data=DataConfig(
            **files,
            **{f"{kind}_batch": 4 for kind in files},
            row_multiple=1,
            layouts=["doc"],
            query_max_length=64,
            passage_max_length=64,
            generative_max_length=160,
            document_max_length=64,
        ),
    )


def model_of(code, tiny_model, tiny_config):
    modes = ATTENTION_CODES[code]
    m = tiny_model
    return GritLM(
        tiny_config,
        m.params,
        m.tokenizer,
        m.chat,
        ModelOptions(mode=modes.embedding, generation_mode=modes.generation),
    )


def by_letters(instruction, sample, first, second):
    """Who sees whom in a text: letter by letter, `b` sees all of its own part, `c` what stands
    before it."""
    total = instruction + sample
    mask = np.tril(np.ones((total, total), bool))
    if first == "b":
        mask[:instruction, :instruction] = True
    if second == "b":
        mask[instruction:, instruction:] = True
    if first + second == "bb":
        mask[:] = True
    return mask


def nll(logits, ids, start):
    logits = logits[start - 1 : -1]
    chosen = logits[np.arange(len(logits)), ids[start:]]
    return np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1) - chosen


@pytest.mark.parametrize("code", CODES)
def test_training_and_serving_compute_what_the_letters_say(code, tiny_model, tiny_config, files):
    """Vectors of the training pass = those of `encode` = the dense mask's; the language losses are
    the dense ones."""
    data, paths = files
    config = run(code, tiny_config, paths)
    tokenizer, params = tiny_model.tokenizer, tiny_model.params
    batches = JointBatches(
        config.data, tokenizer, tiny_model.chat, num_steps=2, needs=batch_needs(config)
    )
    batch, how = batches[1], step_config(config, tiny_config)
    sides, (_, parts) = jax.jit(
        lambda p, b: (embed_sides(p, b.embedding, how), joint_loss(p, b, how))
    )(params, batch)
    model = model_of(code, tiny_model, tiny_config)
    lines = [int(place.rsplit(":", 1)[1]) - 1 for place in batches.ids(1)["embedding"]]
    queries = [data["embedding"][line]["query"][1] for line in lines]
    passages = [data["embedding"][line][key][0][1] for line in lines for key in ("pos", "neg")]
    np.testing.assert_allclose(sides.queries, model.encode(queries, INSTRUCTION), atol=1e-5)
    np.testing.assert_allclose(sides.passages, model.encode(passages), atol=1e-5)
    for texts, instruction, found in (
        (queries, INSTRUCTION, sides.queries),
        (passages, "", sides.passages),
    ):
        formatted = model.encoder.format(texts[:2], instruction)
        for ids, vector in zip(formatted.ids, found):
            mask = by_letters(formatted.prompt, len(ids) - formatted.prompt, code[0], code[1])
            hidden = dense.forward(params, tiny_config, ids, np.arange(len(ids)), mask).hidden[
                formatted.prompt :
            ]
            np.testing.assert_allclose(
                vector, hidden.mean(0) / np.linalg.norm(hidden.mean(0)), atol=1e-5
            )

    reader = ExampleTokenizer(tokenizer, tiny_model.chat, config.data.limits())
    prefix = code[2] == "b"
    losses = []
    for text in reader.generative(
        [GenerativeExample(tuple(line["text"])) for line in data["generative"]]
    ):
        ids, targets = np.array(text.ids), np.array(text.targets)
        last = int(np.flatnonzero(~targets)[-1]) + 1  # where the last answer begins
        mask = by_letters(last, len(ids) - last, *code[2:])
        logits = dense.forward(params, tiny_config, ids, np.arange(len(ids)), mask).logits
        every = np.concatenate([[0], nll(logits, ids, 1)])
        losses.append(every[last:] if prefix else every[targets])
    assert float(parts["loss_gen"]) == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
    losses = []
    examples = [CachedExample(tuple(line["docs"]), *line["text"]) for line in data["cached"]]
    for text in reader.cached(examples, ["doc"] * 4):
        lengths = [len(piece) for piece in text.cached_texts]
        ids = np.array([i for piece in text.cached_texts for i in piece] + list(text.text.ids))
        mask, start = np.tril(np.ones((len(ids), len(ids)), bool)), 0
        for length in (
            lengths
        ):  # each piece is a text to embed, behind two tokens of tags, blind to the others
            mask[start : start + length] = False
            mask[start : start + length, start : start + length] = by_letters(
                2, length - 2, code[0], code[1]
            )
            start += length
        question = len(ids) - sum(text.text.targets)
        mask[start:question, start:question] |= prefix
        logits = dense.forward(params, tiny_config, ids, np.arange(len(ids)), mask).logits
        losses.append(nll(logits, ids, question))
    assert float(parts["loss_cached"]) == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)


@pytest.mark.parametrize("code", ["bbcc", "bc"])
def test_a_prompt_is_read_as_it_was_trained(code, tiny_model, tiny_config):
    """Generation token by token beside the dense mask, plain and over cached documents; the answer
    is causal."""
    model = model_of(code, tiny_model, tiny_config)
    prompt = model.prompt_ids("which river, which stone?")[0]
    documents = model.encode(["amber river stone", "a quiet engine"], return_cache=True).caches
    for pieces in ([], documents):
        found = model.generate_ids(
            [prompt],
            records=[pieces],
            sampling=Sampling(max_new_tokens=5, ignore_eos=True),
            return_logits=True,
        )
        before = sum(len(piece.tokens) for piece in pieces)
        ids = [*(i for piece in pieces for i in piece.tokens), *prompt, *found.tokens[0]]
        mask = dense.composition_mask([len(piece.tokens) for piece in pieces], len(ids) - before)
        mask[before : before + len(prompt), before : before + len(prompt)] |= code == "bc"
        expected = dense.forward(model.params, tiny_config, ids, np.arange(len(ids)), mask).logits
        np.testing.assert_allclose(
            found.logits[0], expected[before + len(prompt) - 1 : -1], atol=2e-4
        )
        assert found.tokens[0] == expected[before + len(prompt) - 1 : -1].argmax(-1).tolist()


def test_perplexity_of_a_prefix_language_model(tiny_model, tiny_config, files):
    """Of the last answers, on a prompt read bidirectionally: the loss that it was trained with."""
    _, paths = files
    config = run("bc", tiny_config, {"generative": paths["generative"]})
    batch = JointBatches(
        config.data, tiny_model.tokenizer, tiny_model.chat, num_steps=1, needs=batch_needs(config)
    )[0]
    _, parts = jax.jit(lambda p: joint_loss(p, batch, step_config(config, tiny_config)))(
        tiny_model.params
    )
    found = evaluate_perplexity(
        model_of("bc", tiny_model, tiny_config), paths["generative"][0], quiet=True
    )
    assert np.log(found) == pytest.approx(float(parts["loss_gen"]), rel=1e-5)
    causal = evaluate_perplexity(tiny_model, paths["generative"][0], quiet=True)
    assert abs(np.log(causal) - np.log(found)) > 1e-3


def test_the_directory_remembers(tiny_model, tiny_config, tmp_path):
    modes = ATTENTION_CODES["cbbc"]
    with pytest.warns(UserWarning, match="embedding_mode prefix|generation_mode prefix") as warned:
        model_of("cbbc", tiny_model, tiny_config).save_pretrained(tmp_path)
    assert len(warned) == 2  # of what sentence-transformers, and of what transformers cannot say
    again = GritLM.from_pretrained(tmp_path)
    assert (again.mode, again.generation_mode) == (modes.embedding, modes.generation)
    grit = json.loads((tmp_path / "grit.json").read_text())
    assert (grit["embedding_mode"], grit["generation_mode"]) == ("prefix", "prefix")


def test_codes():
    B, C, P = AttentionMode.BIDIRECTIONAL, AttentionMode.CAUSAL, AttentionMode.PREFIX
    meant = {
        "bbcc": (B, C),
        "bbbc": (B, P),
        "cccc": (C, C),
        "ccbc": (C, P),
        "cbcc": (P, C),
        "cbbc": (P, P),
        "bb": (B, C),
        "cc": (C, C),
        "cb": (P, C),
        "bc": (B, P),
    }
    assert {
        code: (modes.embedding, modes.generation) for code, modes in ATTENTION_CODES.items()
    } == meant
    for wrong in ("", "b", "bccc", "bbbb", "bbcb", "xx"):
        with pytest.raises(ValueError, match="model.attention: must be one of bbcc, "):
            ModelSection(path="m", attention=wrong)


def test_formats_have_the_tags_that_documents_stand_behind(tiny_tokenizer):
    """What `test_training_and_serving...` takes for granted of a cached document."""
    assert [len(ids) for ids in tiny_tokenizer.encode_parts([GRIT.embed_parts("", "")])[0]] == [
        2,
        0,
    ]
