"""The tokenizer files of Hugging Face directories: where tokens are named, and what is written."""

from __future__ import annotations

import json

import pytest
import tokenizer_kinds
from small_tokenizers import byte_level, llama, read_back

from grit_jax.errors import GritError
from grit_jax.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    "files, bos, eos",
    [
        ({"tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}}}, 1, 2),
        ({"special_tokens_map.json": {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}}, 1, 2),
        ({"config.json": {"bos_token_id": 1, "eos_token_id": [2, 0]}}, 1, 2),
        (
            {"tokenizer_config.json": {"bos_token": None}, "config.json": {"bos_token_id": 1}},
            None,
            None,
        ),
        ({}, None, None),
    ],
)
def test_where_special_tokens_are_named(tmp_path, files, bos, eos):
    (tmp_path / "tokenizer.json").write_text(llama("none")._json)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (bos, eos)


def test_what_a_directory_says_besides_is_kept(tmp_path):
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 77,
        "chat_template": "theirs",
    }
    (tmp_path / "tokenizer.json").write_text(llama("none")._json)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer.from_pretrained(tmp_path).save(tmp_path / "new", chat=None)
    assert (
        json.loads((tmp_path / "new/tokenizer_config.json").read_text()).items() >= config.items()
    )


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "no tokenizer.json there, nor a tokenizer.model$"),
        (
            {"tekken.json": "{}"},
            "it has tekken.json, which is not supported: convert it once: transformers' AutoTokenizer",
        ),
        ({"qwen.tiktoken": "IQ== 0\n"}, "it has qwen.tiktoken, which is not supported"),
        ({"spiece.model": "x"}, "it has spiece.model, which is not supported"),
        ({"vocab.json": "{}", "merges.txt": ""}, "it has vocab.json, which is not supported"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json: not a tokenizer\.json"),
        ({"tokenizer.json": "<html>"}, r"tokenizer\.json: not a tokenizer\.json"),
        ({"tokenizer.json": b"\xff\xfe"}, r"tokenizer\.json: not UTF-8 text"),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": "[1]"},
            r"tokenizer_config\.json: expected a JSON object",
        ),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": "{"},
            r"tokenizer_config\.json: not valid JSON",
        ),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": {"eos_token": 2}},
            "'eos_token' must be a token",
        ),
        (
            {"tokenizer.json": ..., "special_tokens_map.json": {"pad_token": {}}},
            "'pad_token' must be a token",
        ),
        (
            {
                "tokenizer.json": ...,
                "tokenizer_config.json": {"additional_special_tokens": [["<x>"]]},
            },
            "must be a token",
        ),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": {"added_tokens_decoder": [1]}},
            "must be an object of id",
        ),
        (
            {"tokenizer.json": ..., "tokenizer_config.json": {"added_tokens_decoder": {"9": "x"}}},
            "which is not a token",
        ),
        (
            {
                "tokenizer.json": ...,
                "tokenizer_config.json": {"added_tokens_decoder": {"5000": {"content": "<x>"}}},
            },
            "'<x>' has id 5000, but 3[0-9]+ in the vocabulary",
        ),
        (
            {"tokenizer.json": ..., "added_tokens.json": {"<x>": 9}},
            "added_tokens.json: '<x>' has id 9",
        ),
        (
            {"tokenizer.json": ..., "added_tokens.json": {"<x>": "9"}},
            "the id of '<x>' must be a number",
        ),
    ],
)
def test_directories_that_are_not_tokenizers(tmp_path, files, message):
    for name, content in files.items():
        content = llama("none")._json if content is ... else content
        content = json.dumps(content) if isinstance(content, dict | list) else content
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GritError, match=message):
        Tokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_json_cut_anywhere(tmp_path):
    whole = llama("first")._json
    for size in range(0, len(whole) - 1, len(whole) // 40):
        (tmp_path / "tokenizer.json").write_text(whole[:size])
        with pytest.raises(GritError, match=r"not a tokenizer\.json"):
            Tokenizer.from_pretrained(tmp_path)


def test_tokens_of_the_other_files(tmp_path):
    """Added in the order of their ids, special where a file calls them so; the saved tokenizer.json
    has them all."""
    plain = llama("none")
    n = plain.vocab_size
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {
        str(n + 1): {"content": "<b>", "special": True, **flags},
        str(n): {"content": "<a>", "special": False, **flags},
    }
    config = {
        "added_tokens_decoder": decoder,
        "eos_token": "</s>",
        "mask_token": "<a>",
        "extra_special_tokens": ["<c>"],
    }
    tokenizer = read_back(tmp_path, plain, tokenizer_config=config)
    assert tokenizer.encode_rendered("<a><b><c></s>") == [n, n + 1, n + 2, 2]
    assert set(tokenizer.special_tokens) == {"<unk>", "<s>", "</s>", "<a>", "<b>", "<c>"}
    assert tokenizer.vocab_size == n + 3
    tokenizer.save(tmp_path / "new")
    again = Tokenizer.from_pretrained(tmp_path / "new")
    assert again.encode_rendered("<a><b><c></s>") == [n, n + 1, n + 2, 2]
    assert again.special_tokens == tokenizer.special_tokens
    assert "added_tokens_decoder" not in json.loads(
        (tmp_path / "new/tokenizer_config.json").read_text()
    )


def test_an_end_of_sequence_that_the_vocabulary_lacks_gets_an_id(tmp_path):
    tokenizer = read_back(tmp_path, llama("none"), tokenizer_config={"eos_token": "<|end|>"})
    assert tokenizer.eos_id == llama("none").vocab_size == tokenizer.vocab_size - 1


@pytest.mark.parametrize(
    "make", [lambda: llama("none"), lambda: llama("first"), lambda: llama("prepend"), byte_level]
)
def test_a_piece_of_the_vocabulary_may_be_called_special(tmp_path, make):
    """It is then no text any more, wherever a user types it."""
    (number,) = make().encode("hello", continues=True)
    piece = make()._template.id_to_token(number)
    tokenizer = read_back(
        tmp_path, make(), tokenizer_config={"pad_token": piece, "eos_token": "</s>"}
    )
    assert tokenizer.pad_id == number and tokenizer.encode_rendered(piece)[-1:] == [number]
    for text in ("hello", "hello hello", "ahellob", "hhello"):
        for continues in (False, True):
            ids = tokenizer.encode(text, continues=continues)
            assert number not in ids
            assert tokenizer.decode(ids).strip() == text


def test_a_llama_tokenizer_goes_by_its_config(tmp_path):
    """transformers builds its space rules anew from tokenizer_config.json, whatever tokenizer.json
    says."""
    plain, text = llama("prepend"), "<s>hello</s>hello"
    config = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    model = {"model_type": "llama"}
    as_written = plain._template.encode(text, add_special_tokens=False).ids
    legacy = read_back(tmp_path, plain, tokenizer_config=config | {"legacy": True}, config=model)
    assert legacy.encode_rendered(text) == as_written and legacy.encode(" hello") == plain.encode(
        "hello"
    )
    new = read_back(tmp_path, plain, tokenizer_config=config, config=model)
    assert new.encode_rendered(text)[:-1] != as_written[:-1] and new.encode(
        "hello"
    ) == plain.encode("hello")
    never = read_back(
        tmp_path, plain, tokenizer_config=config | {"add_prefix_space": False}, config=model
    )
    assert never.encode("hello") == plain.encode("hello", continues=True)
    # But not beside a Mistral model, nor where the file is byte-level.
    mistral = read_back(tmp_path, plain, tokenizer_config=config, config={"model_type": "mistral"})
    assert mistral.encode_rendered(text) == as_written and mistral.encode(" hello") == plain.encode(
        " hello"
    )
    level = read_back(
        tmp_path, byte_level(), tokenizer_config=config | {"bos_token": None}, config=model
    )
    assert level.encode("hello é") == byte_level().encode("hello é")
    # Saved, tokenizer.json says it all.
    new.save(tmp_path / "new")
    (tmp_path / "new/config.json").write_text(json.dumps(model))
    saved = json.loads((tmp_path / "new/tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast" and "legacy" not in saved
    assert Tokenizer.from_pretrained(tmp_path / "new").encode_rendered(text) == new.encode_rendered(
        text
    )


def test_saved_beside_a_qwen2_model(tmp_path):
    """transformers would make a Qwen2Tokenizer of anything else
    (tests/peers/test_tokenizers.py)."""

    def config(tokenizer, architecture):
        tokenizer.save(tmp_path, architecture=architecture)
        return json.loads((tmp_path / "tokenizer_config.json").read_text())

    assert config(byte_level(), "qwen2")["auto_map"] == {"AutoTokenizer": [None, None]}
    assert "auto_map" not in config(byte_level(), "qwen3")
    (tmp_path / "qwen").mkdir()
    genuine = Tokenizer.from_pretrained(tokenizer_kinds.make("qwen", tmp_path / "qwen"))
    assert "auto_map" not in config(genuine, "qwen2")


def test_saving_leaves_nothing_that_contradicts(tmp_path):
    llama("none").save(tmp_path)
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
        (tmp_path / name).write_text('{"<old>": 1}')
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/old.jinja").write_text("old")
    llama("none").save(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
