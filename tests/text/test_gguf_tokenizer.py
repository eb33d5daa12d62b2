"""Tokenizers out of a GGUF file's metadata."""

from __future__ import annotations

import pytest
import tokenizers

gguf_files = pytest.importorskip("gguf_files", reason="needs the extra 'gguf'")

from grit_jax.errors import GritError
from grit_jax.text.gguf_tokenizer import read


def metadata(kind: str, **changed) -> dict:
    keys = {"model": kind, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        keys["tokens"], keys["merges"] = gguf_files.byte_level()
        keys["token_type"] = [3] * 4 + [1] * (len(keys["tokens"]) - 4)
    else:
        keys["tokens"], keys["scores"], keys["token_type"] = gguf_files.sentencepiece()
    keys |= changed
    return {"general.architecture": "llama"} | {f"tokenizer.ggml.{k}": v for k, v in keys.items()}


def encode(text: str, kind: str, **changed) -> list[str]:
    files = read(metadata(kind, **changed), "F")
    return tokenizers.Tokenizer.from_str(files.tokenizer_json).encode(text).tokens


@pytest.mark.parametrize(
    ("how", "tokens"),
    [
        ("gpt-2", ["the", "Ġ", "1", "2", "3", "4"]),
        ("smollm", ["the", "Ġ", "1", "2", "3", "4"]),
        ("qwen2", ["the", "Ġ", "1", "2", "3", "4"]),
    ],
)
def test_byte_level(how, tokens):
    assert encode("the 1234", "gpt2", pre=how) == tokens
    assert encode("the the<|im_end|>", "gpt2", pre=how) == ["the", "Ġthe", "<|im_end|>"]


def test_digits_are_split_before_merges_as_the_file_says():
    tokens, merges = gguf_files.byte_level()
    more = {"tokens": [*tokens, "12", "123"], "merges": [*merges, "1 2", "12 3"]}
    assert encode("1234", "gpt2", pre="gpt-2", **more) == ["123", "4"]
    assert encode("1234", "gpt2", pre="llama-bpe", **more) == ["123", "4"]
    assert encode("1234", "gpt2", pre="qwen2", **more) == ["1", "2", "3", "4"]
    assert encode("1234", "gpt2", pre="smollm", **more) == ["1", "2", "3", "4"]


def test_sentencepiece():
    assert encode("the fox", "llama")[:2] == ["<s>", "▁the"]
    assert encode("the", "llama", add_bos_token=False) == ["▁the"]
    assert encode("the", "llama", add_bos_token=False, add_space_prefix=False) == ["th", "e"]
    assert encode("é", "llama", add_eos_token=True)[-3:] == ["<0xC3>", "<0xA9>", "</s>"]


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("gpt2", {"pre": "klingon"}, "F: texts are split by 'klingon' .* known are default"),
        ("gpt2", {"model": "rwkv"}, "F: a tokenizer of the kind 'rwkv' is not supported"),
        ("gpt2", {"tokens": []}, "F: it has no tokenizer"),
        ("llama", {"scores": None}, "F: its tokenizer has no scores"),
    ],
)
def test_what_is_not_known_is_named(kind, changed, message):
    with pytest.raises(GritError, match=message):
        read(metadata(kind, **changed), "F")
