"""tokenizer.model files against the SentencePiece library itself, on odd lines of every kind."""

from __future__ import annotations

import json
import re
import unicodedata

import corpus
import numpy as np
import pytest
import sentencepiece
import tokenizer_kinds

from grit_jax.errors import GritError
from grit_jax.text.sentencepiece_model import convert
from grit_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["llama2", "gemma", "unigram", "unigram-nfkc"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def directory(kind, tmp_path_factory):
    return tokenizer_kinds.make(kind, tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def processor(directory):
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


@pytest.fixture(scope="module")
def core(directory):
    core = convert((directory / "tokenizer.model").read_bytes(), "tokenizer.model").core
    core.encode_special_tokens = True
    return core


def ids(core, lines):
    return [found.ids for found in core.encode_batch_fast(lines, add_special_tokens=False)]


def test_ids_equal_sentencepiece(kind, core, processor):
    """Typed `<s>`, `<0x0A>` and the like included: SentencePiece does not read them either."""
    lines = corpus.lines(1000 if kind == "llama2" else 800)
    if kind == "unigram-nfkc":  # the library composes marks otherwise, in clusters of characters
        lines = [
            line
            for line in lines
            if not any(map(unicodedata.combining, unicodedata.normalize("NFD", line)))
        ]
        # No byte, and `<unk>` has a letter that this vocabulary lacks: see `_cuts`.
        lines = [line for line in lines if "<unk>" not in line]
    assert len(lines) > 500 and max(map(len, lines)) > (100_000 if kind == "llama2" else 100)
    for line, ours, theirs in zip(lines, ids(core, lines), processor.encode(lines)):
        if ours != theirs:
            # `...` may be `.` and `..` in either order: equal scores, added up in float32 there, in
            # float64 here.
            assert kind.startswith("unigram") and sorted(ours) == sorted(theirs), line[:200]
            assert re.search(r"(.)\1\1", line), line


def test_no_text_has_the_id_of_a_control_unknown_or_byte_piece(kind, core, processor):
    spelled = [
        processor.id_to_piece(i)
        for i in range(processor.get_piece_size())
        if processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i)
    ]
    assert len(spelled) >= 3
    rng = np.random.default_rng(0)
    texts = [f"{a}{b}k {c}" for a, b, c in rng.choice(spelled, (400, 3))] + spelled
    for text, found in zip(texts, ids(core, texts)):
        for i in found:
            assert not processor.is_control(i), text
            # Characters that no piece has are bytes, or unknown where there are none: never more
            # than those.
        bytes_ = sum(map(processor.is_byte, found))
        unknown = sum(processor.is_unknown(i) for i in found)
        missing = [c for c in text if processor.piece_to_id(c) == processor.unk_id() and c != " "]
        assert bytes_ <= len(missing) and unknown <= len(missing), text


def test_texts_come_back(kind, directory, processor):
    tokenizer = Tokenizer.from_pretrained(directory)
    for line in corpus.lines(400):
        found = tokenizer.encode(line)
        if kind == "unigram-nfkc":  # what it normalizes and what it has no byte for is lost
            if not any(map(processor.is_unknown, found)):
                assert tokenizer.decode(found) == processor.decode(found)
        elif kind == "llama2":
            # U+2581 is a space to SentencePiece; LlamaTokenizer takes the leading one for the dummy
            # prefix.
            assert tokenizer.decode(found).lstrip() == line.replace("▁", " ").lstrip()
        else:
            assert tokenizer.decode(found) == line.replace("▁", " ")


def test_llama_spaces(tmp_path):
    """As transformers: no second prefix before a leading space; after a special token only with
    `legacy`."""
    for name, kind, legacy in (("new", "llama2", False), ("old", "llama2-legacy", True)):
        directory = tokenizer_kinds.make(kind, tmp_path / name)
        tokenizer = Tokenizer.from_pretrained(directory)
        processor = sentencepiece.SentencePieceProcessor(
            model_file=str(directory / "tokenizer.model")
        )
        assert tokenizer.encode("river") == processor.encode("river")
        assert tokenizer.encode(" river") == processor.encode("river") != processor.encode(" river")
        inside = processor.encode("\nriver")[len(processor.encode("\n")) :]
        assert inside != processor.encode("river")
        after = tokenizer.encode_rendered("<s>river</s>river")
        want = processor.encode("river") if legacy else inside
        assert after == [1, *want, 2, *want]


def test_special_tokens_and_symbols(tmp_path):
    tokenizer = Tokenizer.from_pretrained(tokenizer_kinds.make("gemma", tmp_path / "gemma"))
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    # User-defined symbols that the config calls special are, the others are found in every text.
    assert {"<start_of_turn>", "<end_of_turn>", "<bos>"} <= set(tokenizer.special_tokens)
    assert "\n\n" not in tokenizer.special_tokens and len(tokenizer.encode("\n\n")) == 1
    assert len(tokenizer.encode(" " * 11)) == 1 and len(tokenizer.encode(" " * 13)) == 2
    assert tokenizer.encode_rendered("<start_of_turn>") not in (
        tokenizer.encode("<start_of_turn>"),
        [],
    )


def test_names_come_from_the_model_where_no_file_says_them(tmp_path):
    tokenizer_kinds.make("gemma", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<bos>",
        "<eos>",
        "<pad>",
    )


def test_saved_as_tokenizer_json_with_the_model_beside_it(directory, tmp_path):
    tokenizer = Tokenizer.from_pretrained(directory)
    tokenizer.save(tmp_path / "new")
    assert (tmp_path / "new/tokenizer.model").read_bytes() == (
        directory / "tokenizer.model"
    ).read_bytes()
    again = Tokenizer.from_pretrained(tmp_path / "new")
    lines = corpus.lines(300)
    assert again.encode_batch(lines) == tokenizer.encode_batch(lines)
    assert again.encode_batch(lines, continues=True) == tokenizer.encode_batch(
        lines, continues=True
    )
    assert (again.bos_id, again.eos_id, again.pad_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    # Callers that ask for special tokens get the beginning of sequence, as the family's own
    # tokenizer gives it.
    assert again._template.encode("a").ids == [tokenizer.bos_id, *again.encode("a")]
    # A tokenizer that comes from elsewhere leaves no other's model behind.
    other = tokenizer_kinds.make("gpt2", tmp_path / "gpt2")
    Tokenizer.from_pretrained(other).save(tmp_path / "new")
    assert not (tmp_path / "new/tokenizer.model").exists()


def model(**options):
    return tokenizer_kinds.sentencepiece_model(
        vocab_size=400, **{"character_coverage": 0.99, **options}
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "damaged, or not a SentencePiece model"),
        (b"\x00\x01\x02 not a model", "damaged, or not a SentencePiece model"),
        (b"<!DOCTYPE html><html>", "damaged, or not a SentencePiece model"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n",
            "damaged, or not a SentencePiece",
        ),
        (b"IQ== 0\nIg== 1\n", "a tiktoken file, which is not supported; convert it once"),
    ],
)
def test_files_that_are_no_model(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(GritError, match=f"tokenizer.model: {message}"):
        Tokenizer.from_pretrained(tmp_path)


def test_models_that_are_cut_or_of_a_kind_not_read(tmp_path):
    whole = model(model_type="bpe")
    for size in (len(whole) // 3, len(whole) - 200, len(whole) - 20):
        (tmp_path / "tokenizer.model").write_bytes(whole[:size])
        with pytest.raises(GritError, match="damaged"):
            Tokenizer.from_pretrained(tmp_path)
    for options, message in (
        ({"model_type": "char"}, "a CHAR model is not supported"),
        ({"model_type": "word"}, "a WORD model is not supported"),
        ({"treat_whitespace_as_suffix": True}, "whitespace as suffix is not supported"),
        ({"escape_whitespaces": False}, "unescaped whitespace is not supported"),
    ):
        try:
            content = model(**options)
        except (RuntimeError, OSError):  # this version of the library has no such option
            continue
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(GritError, match=message):
            Tokenizer.from_pretrained(tmp_path)


def test_models_that_are_altered(tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    whole = model(model_type="unigram")

    def damaged(change):
        proto = sentencepiece_model_pb2.ModelProto.FromString(whole)
        change(proto)
        return proto.SerializeToString()

    cases = [
        damaged(
            lambda proto: setattr(
                proto.normalizer_spec, "precompiled_charsmap", b"\x08\x00\x00\x00abc"
            )
        ),
        damaged(lambda proto: setattr(proto.pieces[40], "piece", proto.pieces[41].piece)),
        damaged(lambda proto: setattr(proto.pieces[40], "piece", "")),
        damaged(lambda proto: setattr(proto.pieces[40], "score", float("nan"))),
        damaged(lambda proto: setattr(proto.pieces[0], "type", 1)),
        damaged(lambda proto: setattr(proto.pieces[40], "piece", "zzzzz")).replace(
            b"zzzzz", b"zz\xffzz"
        ),
    ]
    for content in cases:
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(GritError, match="tokenizer.model: damaged"):
            Tokenizer.from_pretrained(tmp_path)


def test_every_token_of_the_config_is_there(tmp_path):
    tokenizer_kinds.make("llama2", tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = ["<|user|>"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    size = Tokenizer.from_pretrained(tmp_path).vocab_size
    assert (
        size
        == sentencepiece.SentencePieceProcessor(
            model_file=str(tmp_path / "tokenizer.model")
        ).vocab_size()
        + 1
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|user|>": size - 1, "<new>": size}))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode_rendered("<|user|><new>") == [size - 1, size]
    assert "<new>" not in tokenizer.special_tokens and "<|user|>" in tokenizer.special_tokens


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_pieces_added_to_a_model_later(model_type, tmp_path):
    """Pieces at the end with the best scores, as vocabularies are extended, and such as complete a
    control piece."""
    from sentencepiece import sentencepiece_model_pb2

    trained = tokenizer_kinds.sentencepiece_model(
        **{**tokenizer_kinds.PLAIN, "model_type": model_type}
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained)
    known = {piece.piece for piece in proto.pieces}
    for text, score in (
        ("s>", 0.0),
        ("</", 0.0),
        ("/s", -0.1),
        ("0A>", -0.2),
        ("<0x", -0.3),
        ("k>", 0.0),
        ("er", 0.0),
    ):
        if text not in known:
            proto.pieces.add(piece=text, score=score, type=1)
    content = proto.SerializeToString()
    (tmp_path / "tokenizer.model").write_bytes(content)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    lines = [
        *corpus.lines(300),
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "<s></s> <unk>x<0x0A>",
        "river forest lantern",
    ]
    assert processor.piece_to_id("s>") in tokenizer.encode("<s>")
    for line, ours, theirs in zip(lines, tokenizer.encode_batch(lines), processor.encode(lines)):
        assert ours == theirs or (sorted(ours) == sorted(theirs) and re.search(r"(.)\1\1", line)), (
            line
        )
