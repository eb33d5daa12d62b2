"""How a GGUF file's tokenizer splits texts: the `pre_tokenizer` of the published tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from grit_jax.text.gguf_splits import SPLITS

TEXT = (
    "I'VE  got 12345 北京カナ한국 naïve's\n\n  x=1; foo/bar\tcafé ½² '99 HTMLParser"
    " こんにちは 3.14\r\n Ünï-Ωmega!? $5,000 […] нещо កាន់ #tag  "
)


def split(pattern: str) -> dict:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def byte_level(use_regex: bool) -> dict:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


DIGITS = {"type": "Digits", "individual_digits": True}
# `pre_tokenizer` of published tokenizer.json files.
LLAMA3 = [
    split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    byte_level(False),
]
QWEN2 = [
    split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    byte_level(False),
]
QWEN35 = [
    split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    byte_level(False),
]
TEKKEN = [
    split(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    byte_level(False),
]
GPT4O = [
    split(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    byte_level(False),
]
SEED_CODER = [
    split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}|"
        r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    byte_level(False),
]
DEEPSEEK_CODER = [
    split("[\r\n]"),
    split(r"\s?\p{L}+"),
    split(r"\s?\p{P}+"),
    split("[一-龥ࠀ-一가-퟿]+"),
    DIGITS,
    byte_level(False),
]
DEEPSEEK_V3 = [
    split(r"\p{N}{1,3}"),
    split("[一-龥぀-ゟ゠-ヿ]+"),
    split(
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
        "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    ),
    byte_level(False),
]
BLOOM = [split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), byte_level(False)]
VIKING = [BLOOM[0], DIGITS, byte_level(False)]
PUBLISHED = {
    "llama-bpe": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "qwen35": QWEN35,
    "tekken": TEKKEN,
    "gpt-4o": GPT4O,
    "seed-coder": SEED_CODER,
    "gpt-2": [byte_level(True)],
    "smollm": [DIGITS, byte_level(True)],
    "starcoder": [DIGITS, byte_level(True)],
    "deepseek-coder": DEEPSEEK_CODER,
    "deepseek-v3": DEEPSEEK_V3,
    "bloom": BLOOM,
    "viking": VIKING,
}


def words(pre_tokenizer: pre_tokenizers.PreTokenizer) -> list[str]:
    return [TEXT[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(TEXT)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_are_those_of_the_published_tokenizer(name):
    """A tokenizer is trained with the published steps, and again without any, so that its merges
    run over words wherever the steps let them."""
    published = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    published.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    published.train_from_iterator([TEXT, TEXT[3:], "123456789" * 3, TEXT[9:]], trainer)
    tree = json.loads(published.to_str())
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": PUBLISHED[name]}
    published = tokenizers.Tokenizer.from_str(json.dumps(tree))
    published.decoder = decoders.ByteLevel()
    ours = tokenizers.Tokenizer.from_str(published.to_str())
    ours.pre_tokenizer = SPLITS[name].pre_tokenizer()
    for text in (TEXT, "123456789", TEXT[40:], "  \n\n \t\n", "", "I'll we'Re İ'S"):
        assert ours.encode(text).ids == published.encode(text).ids, text
    assert words(ours.pre_tokenizer) == words(published.pre_tokenizer)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("llama-bpe", "12345 I'VE\n\n x", "123|45| I|'VE|\n\n| x"),
        ("dbrx", "1234", "123|4"),
        ("qwen2", "123 I'VE", "1|2|3| I|'VE"),
        ("ufakzeka", "Ankara'da'", "Ankara|'da|'"),
        ("qwen35", "កាន់ 12", "កាន់| |1|2"),
        ("qwen2", "កាន់", "ក|ាន|់"),
        ("tekken", "HTMLParser a/\n//", "HTMLParser| a|/\n//"),
        ("gpt-4o", "you'll fooBar 1234", "you'll| foo|Bar| |123|4"),
        ("seed-coder", ");\n\n", ");|\n\n"),
        ("llama-bpe", ");\n\n", ");\n\n"),
        ("bailingmoe", "a\n\nb 12'S", "a|\n\n|b| |1|2|'S"),
        ("minicpm5", "12345 x", "123|45| x"),
        ("gpt-2", "x1234 I'VE I've", "x|1234| I|'|VE| I|'ve"),
        ("smollm", "x 12", "x| |1|2"),
        ("deepseek-llm", " a1\n\n你好，b", " a|1|\n|\n|你好|，|b"),
        ("deepseek-coder", " naïve.12", " naïve|.|1|2"),
        ("deepseek-v3", "1234北京x.join", "123|4|北京|x|.join"),
        ("bloom", "one,two 12", "one|,|two| 12"),
        ("viking", "one,two 12", "one|,|two| |1|2"),
    ],
)
def test_words(name, text, expected):
    pre_tokenizer = SPLITS[name].pre_tokenizer()
    found = [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]
    assert found == expected.split("|")


def test_every_name_splits_without_losing_text():
    for name, splits in SPLITS.items():
        assert "".join(words(splits.pre_tokenizer())) == TEXT, name
    assert len(SPLITS) > 60


def test_the_documentation_lists_every_name():
    """Messages refer to it."""
    page = (Path(__file__).parents[2] / "docs/import.md").read_text(encoding="utf-8")
    assert [name for name in SPLITS if f"`{name}`" not in page] == []


def test_names_that_also_change_merges_and_the_beginning():
    assert [name for name in SPLITS if SPLITS[name].adds_bos] == [
        *[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        "tekken",
    ]
    assert SPLITS["minicpm5"].ignore_merges and not SPLITS["smaug-bpe"].ignore_merges
