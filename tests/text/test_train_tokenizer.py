"""The trained tokenizer against SentencePiece itself, and against its promise that every text comes
back."""

import argparse
import difflib
import inspect
import json
import re
import textwrap

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.text.chat import GRIT
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.text.train_tokenizer import (
    LINE_BREAKS,
    TAGS,
    from_sentencepiece,
    train_sentencepiece,
    train_tokenizer,
)

ODD = [
    "",
    " ",
    "\n",
    "\n\n\n",
    "a",
    " leading and trailing  ",
    "a  b   c    d        e",
    "tab\tand\r\nreturn",
    "\t\tdeep",
    "naïve café, Straße, Ελληνικά, русский, 漢字かな, العربية",
    "emoji 🙂👩‍👩‍👧 and flags 🇩🇪",
    "<s>typed</s><pad><unk>",
    "<0x0A><0xFF> spelled out",
    "12345 3.14e-10 0x7f",
    "def f(x):\n    if x:\n        return [x,\n                x]\n\n\nclass A:\n   pass\n",
    "x" * 3000,
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋",
]


@pytest.fixture(scope="module")
def texts():
    modules = (argparse, difflib, textwrap, json)
    code = "\n".join(inspect.getsource(module) for module in modules)
    prose = [
        inspect.cleandoc(doc) for doc in re.findall(r'"""(.*?)"""', code, re.DOTALL) if doc.strip()
    ]
    return [*(part for part in code.split("\n\n\n") if part.strip()), *prose]


@pytest.fixture(scope="module")
def processor(texts):
    return train_sentencepiece(texts, 1200)


@pytest.fixture(scope="module")
def tokenizer(processor):
    return from_sentencepiece(processor)


def expected_ids(processor, text):
    """SentencePiece's ids, tags and line breaks cut out first."""
    fixed = sorted((*TAGS, *LINE_BREAKS), key=len, reverse=True)
    ids = []
    for part in re.split("(" + "|".join(map(re.escape, fixed)) + ")", text):
        if part in fixed:
            ids.append(processor.piece_to_id(part.replace(" ", "\u2581")))
        else:
            ids += processor.encode(part)
    return ids


def test_ids_equal_sentencepiece(processor, tokenizer, texts):
    for text in [*ODD, *texts]:
        ids, expected = tokenizer.encode(text), expected_ids(processor, text)
        if ids != expected:
            # A run such as `=====` may be the same pieces in another order: equal scores, which
            # SentencePiece adds up in float32 and tokenizers in float64.
            assert sorted(ids) == sorted(expected), text
            assert re.search(r"(.)\1\1", text), text


def test_every_text_decodes_to_itself(tokenizer, texts):
    rng = np.random.default_rng(0)
    planes = [
        (0, 0x80),
        (0x80, 0x800),
        (0x2500, 0x2600),
        (0x4E00, 0x9FFF),
        (0xE000, 0xFFFF),
        (0x1F300, 0x10FFFF),
    ]
    random = [
        "".join(chr(rng.integers(*planes[rng.integers(6)])) for _ in range(40)) for _ in range(300)
    ]
    special = [
        "\u2581 is SentencePiece's space",
        "\0 \u2585 \u2047 \ufeff \ufffd",
        *TAGS,
        *LINE_BREAKS,
    ]
    every = [*ODD, *random, *special, *texts]
    for text, ids in zip(every, tokenizer.encode_batch(every), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special=False) == text


def test_vocabulary(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 1200
    for text in (*TAGS, *LINE_BREAKS):
        assert len(tokenizer.encode(text)) == 1, text
    assert all(len(tokenizer.encode(chr(code))) == 1 for code in range(33, 127))
    assert len(tokenizer.encode("2024")) == 4
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    assert not special & set(tokenizer.encode("<s>a</s><pad>"))


def test_pieces_and_the_whole_string_have_the_same_ids(tokenizer):
    """What transformers and vLLM tokenise as one string is what we tokenise piece by piece."""
    turns = ["Why is 2 > 1?", "Because.\n\nIt is.", "def f():\n    pass", "ok"]
    for pieces in (GRIT.render_turns(turns), GRIT.embed_parts("Find: it.", "foo(\n    bar)")):
        ids = [i for piece in tokenizer.encode_parts([pieces])[0] for i in piece]
        whole = "".join(piece.text for piece in pieces)
        assert ids == tokenizer._template.encode(whole, add_special_tokens=False).ids


def test_code_takes_few_tokens(tokenizer, texts):
    text = "\n\n".join(texts)
    assert len(text) / len(tokenizer.encode(text)) > 2.8


def test_training_is_deterministic(texts, tmp_path):
    twins = [train_tokenizer(texts, 600, seed=3, max_characters=60_000) for _ in range(2)]
    for name, twin in zip("ab", twins, strict=True):
        twin.save(tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (
        tmp_path / "b/tokenizer.json"
    ).read_bytes()


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (
        1,
        2,
        0,
        tokenizer.vocab_size,
    )
    assert loaded.encode_batch(ODD) == tokenizer.encode_batch(ODD)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["bos_token"] == "<s>" and config["chat_template"] == GRIT.jinja()
    # Callers that ask for special tokens (sentence-transformers, vLLM) get BOS, as with Llama.
    assert loaded._template.encode("a").ids == [1, *loaded.encode("a")]


def test_small_corpus_gives_a_small_vocabulary():
    assert (
        370 < train_tokenizer(["one two three " * 20, "four five six " * 20], 2000).vocab_size < 500
    )


@pytest.mark.parametrize(
    "texts, size, message",
    [([], 500, "no text"), (["  \n"], 500, "no text"), (["abc abd"], 100, "vocab_size 100")],
)
def test_corpora_that_do_not_work(texts, size, message):
    with pytest.raises(GritError, match=message):
        train_tokenizer(texts, size)


def test_transformers_opens_it(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = ["Why?", "Because.\nIt is.", "And now: é?"]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
    ]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pieces = GRIT.render_turns(turns)
    assert text == "".join(piece.text for piece in pieces)
    ids = [i for piece in tokenizer.encode_parts([pieces])[0] for i in piece]
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    for text in ODD[:-6]:
        assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
