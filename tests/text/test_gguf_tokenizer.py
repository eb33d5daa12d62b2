"""Tokenizers out of a GGUF file's metadata."""

from __future__ import annotations

import warnings

import pytest
import tokenizers

gguf_files = pytest.importorskip("gguf_files", reason="needs the extra 'gguf'")

from grit_jax.errors import GritError
from grit_jax.text.gguf_tokenizer import end_tokens, read


def metadata(kind: str, architecture: str = "llama", **changed) -> dict:
    keys = {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    return {
        "general.architecture": architecture,
        **gguf_files.tokenizer_keys(kind),
        **keys,
    }


def encode(text: str, kind: str, **changed) -> list[str]:
    files = read(metadata(kind, **changed), "F")
    return tokenizers.Tokenizer.from_str(files.tokenizer_json).encode(text).tokens


def vocabulary(*more: tuple[str, int]) -> dict:
    """The keys of a SentencePiece tokenizer with more tokens, each with its kind."""
    tokens, scores, kinds = gguf_files.sentencepiece()
    texts, more_kinds = zip(*more, strict=True)
    return {
        "tokens": [*tokens, *texts],
        "scores": [*scores, *(-1000.0 for _ in more)],
        "token_type": [*kinds, *more_kinds],
    }


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
    more = {
        "tokens": [*tokens, "12", "123"],
        "merges": [*merges, "1 2", "12 3"],
        "token_type": None,
        "add_bos_token": False,
    }
    assert encode("1234", "gpt2", pre="gpt-2", **more) == ["123", "4"]
    assert encode("1234", "gpt2", pre="llama-bpe", **more) == ["123", "4"]
    assert encode("1234", "gpt2", pre="qwen2", **more) == ["1", "2", "3", "4"]
    assert encode("1234", "gpt2", pre="smollm", **more) == ["1", "2", "3", "4"]


def test_llama3_takes_whole_words_and_adds_the_beginning():
    """A word that is a token, though its parts do not merge to it, and `<s>` where no key says
    whether to add it: as in Llama 3's tokenizer.json."""
    tokens, _ = gguf_files.byte_level()
    more = {"tokens": [*tokens, "dog"], "token_type": None}
    assert encode("dog", "gpt2", pre="llama-bpe", **more) == ["<s>", "dog"]
    assert encode("dog", "gpt2", pre="smaug-bpe", **more) == ["d", "o", "g"]
    assert encode("dog", "gpt2", pre="llama-bpe", add_bos_token=False, **more) == ["dog"]


def test_a_file_that_does_not_say_how_texts_are_split():
    for how in (None, "default"):
        with pytest.warns(UserWarning, match=r"^F: it does not say how texts are split"):
            assert encode("the fox's", "gpt2", pre=how)[:2] == ["the", "Ġf"]


def test_tokens_of_the_user():
    """They match as they are written, with spaces; those of control are special."""
    tokens, _ = gguf_files.byte_level()
    more = {"tokens": [*tokens, "<tool call>", "  "], "token_type": [3] * 4 + [1] * 262 + [4, 4]}
    assert encode("the<tool call>  the", "gpt2", **more) == ["the", "<tool call>", "  ", "the"]
    files = read(metadata("gpt2", **more), "F")
    core = tokenizers.Tokenizer.from_str(files.tokenizer_json)
    added = core.get_added_tokens_decoder()
    assert [added[i].special for i in (1, 3, 266)] == [True, True, False]


def test_several_chat_templates():
    key = "tokenizer.chat_template"
    more = {key: "A", f"{key}s": ["tool_use"], f"{key}.tool_use": "B"}
    assert read(metadata("gpt2") | {key: "A"}, "F").config["chat_template"] == "A"
    assert read(metadata("gpt2") | more, "F").config["chat_template"] == [
        {"name": "default", "template": "A"},
        {"name": "tool_use", "template": "B"},
    ]
    assert "chat_template" not in read(metadata("gpt2"), "F").config


def test_ends_of_turns_are_found_by_their_text():
    tokens, scores, kinds = gguf_files.sentencepiece()
    assert tokens[3] == "<|im_end|>"
    assert end_tokens(metadata("llama")) == [2, 3]
    assert end_tokens(metadata("llama", eos_token_id=3, eot_token_id=2)) == [3, 2]
    assert end_tokens(metadata("llama", token_type=[1] * len(kinds))) == [2]
    assert end_tokens(metadata("llama", token_type=None, eom_token_id=2**32 - 1)) == [2]


def test_special_tokens_that_do_not_exist():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = read(metadata("llama", padding_token_id=2**32 - 1), "F")
    assert files.names == {"bos": "<s>", "eos": "</s>", "pad": None}
    with pytest.warns(UserWarning, match="'tokenizer.ggml.eos_token_id' is 5000, but there are"):
        assert read(metadata("llama", eos_token_id=5000), "F").names["eos"] is None


def test_sentencepiece():
    assert encode("the fox", "llama")[:2] == ["<s>", "▁the"]
    assert encode("the", "llama", add_bos_token=False) == ["▁the"]
    assert encode("the", "llama", add_bos_token=False, add_space_prefix=False) == ["th", "e"]
    assert encode("é", "llama", add_eos_token=True)[-3:] == ["<0xC3>", "<0xA9>", "</s>"]


def test_sentencepiece_with_merges_instead_of_scores():
    more = vocabulary(("he", 1), ("the", 1))
    keys = {"add_bos_token": False, "add_space_prefix": False, **more}
    assert encode("her", "llama", **keys) == ["h", "er"]  # as the scores say
    merges = ["h e", "t he"]
    assert encode("her", "llama", merges=merges, **keys) == ["he", "r"]
    keys["scores"] = None
    assert encode("theé", "llama", merges=merges, **keys) == ["the", "<0xC3>", "<0xA9>"]


def test_kinds_of_sentencepiece_tokens():
    keys = {"add_bos_token": False, **vocabulary(("<tool>", 4), ("[PAD]", 5), ("\n\n", 4))}
    assert encode("the<tool>the", "llama", **keys) == ["▁the", "<tool>", "th", "e"]
    assert encode("the\n\n\n", "llama", **keys) == ["▁the", "\n\n", "<0x0A>"]
    spelled = encode("[PAD]<0x09>", "llama", **keys)
    assert "[PAD]" not in spelled and "<0x09>" not in spelled
    # The unknown token by its number, where no token is of that kind.
    kinds = [1, *keys["token_type"][1:]]
    assert encode("the", "llama", **keys | {"token_type": kinds}) == ["▁the"]


def test_gemmas_runs_of_spaces():
    """They are stored as spaces, and the vocabulary's order says what merges first."""
    tokens, scores, kinds = gguf_files.sentencepiece()
    tokens, kinds = [*tokens[:260], "  ", "   ", *tokens[260:]], [*kinds[:260], 4, 4, *kinds[260:]]
    keys = {"tokens": tokens, "scores": [0.0] * len(tokens), "token_type": kinds}
    keys |= {"architecture": "gemma2", "add_bos_token": False}
    assert encode("the   fox", "llama", **keys)[:3] == ["th", "e", "▁▁▁"]
    assert encode(" the", "llama", **keys) == ["▁the"]
    keys["token_type"] = [*kinds[:260], 1, 1, *kinds[262:]]  # by merges then
    assert encode("the   fox", "llama", **keys)[:3] == ["th", "e", "▁▁▁"]


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("gpt2", {"pre": "klingon"}, "F: texts are split by 'klingon' .* not supported"),
        ("gpt2", {"model": "rwkv"}, "F: a tokenizer of the kind 'rwkv' is not supported"),
        ("gpt2", {"tokens": []}, "F: it has no tokenizer"),
        ("gpt2", {"tokens": ["a", "b", "a"], "token_type": None}, "the token 'a' is 2 times"),
        ("gpt2", {"token_type": [1]}, "'tokenizer.ggml.token_type' has 1 values for 266 tokens"),
        ("gpt2", {"merges": ["a zzz"]}, "F: 'tokenizer.ggml.merges' do not fit the tokens"),
        ("gpt2", {"add_sep_token": True}, "'tokenizer.ggml.add_sep_token' adds a separator"),
        ("llama", {"scores": None}, "F: its tokenizer has no scores"),
        ("llama", {"token_type": None}, "F: its tokenizer has no scores, or no kinds"),
        ("llama", {"remove_extra_whitespaces": True}, "removes spaces, which is not supported"),
        ("llama", {"precompiled_charsmap": [1]}, "normalises texts, which is not supported"),
    ],
)
def test_what_is_not_known_is_named(kind, changed, message):
    with pytest.raises(GritError, match=message):
        read(metadata(kind, **changed), "F")
