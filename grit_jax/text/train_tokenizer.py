"""Trains a SentencePiece unigram tokenizer and converts it to a tokenizer.json.

The trained pieces become a `Unigram` model of the `tokenizers` library, which gives the same ids
between tags and line breaks. Tags and line breaks are split off first, the longest first, as
SentencePiece does in training (its encoder would weigh them against other pieces). Spaces stay
spaces instead of becoming `U+2581`, so that a text that contains `U+2581` also decodes to itself.
The vocabulary has every byte: any text can be encoded and decodes exactly.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.text.chat import GRIT
from grit_jax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import sentencepiece

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
_NAMES = ("<|user|>", "<|embed|>", "<|assistant|>")
# Each tag of the GRIT format is one token, line breaks included. Nothing merges across a tag or a
# line break, so a prompt tokenised part by part has the ids that the whole string has in
# transformers or vLLM. The exception is a turn that ends in a line break: in the whole string, two
# line breaks are one token and the tag is split.
TAGS = tuple(dict.fromkeys((GRIT.user, GRIT.embed, GRIT.embed_bare, GRIT.assistant, *_NAMES)))
# Line breaks are tokens, alone and with the indentations that are common in code.
LINE_BREAKS = ("\n", "\n\n", *("\n" + " " * width for width in (2, 3, 4, 8, 12, 16)))
_SPACE = "\u2581"
_ASCII = "".join(map(chr, range(33, 127)))
# Below every real score: where a text spells a piece such as `<0x0A>`, its characters must win.
_NEVER = -10_000.0
_SENTENCE_BYTES = 16_384


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 2048, *, seed: int = 0, max_characters: int = 3_000_000
) -> Tokenizer:
    """Trains a tokenizer with `<pad>` 0, `<s>` 1, `</s>` 2, the GRIT tags, line breaks, all bytes
    and learned pieces.

    The same texts and seed give the same tokenizer on any machine.

    Args:
      texts: the texts to learn from.
      vocab_size: the largest size; uniform texts may give a smaller vocabulary.
      seed: of the choice of texts.
      max_characters: bounds the time: a random subset of the texts of about this size is used.

    Raises:
      GritError: there is no text, or `vocab_size` is too small for the characters in it.
    """
    return from_sentencepiece(
        train_sentencepiece(texts, vocab_size, seed=seed, max_characters=max_characters)
    )


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, *, seed: int = 0, max_characters: int = 3_000_000
) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model behind `train_tokenizer`."""
    import sentencepiece  # not needed to use a tokenizer

    sentences = _sample([text for text in texts if text.strip()], seed, max_characters)
    if not sentences:
        raise GritError("tokenizer training: there is no text to learn from")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            required_chars=_ASCII,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=[*TAGS, *(text.replace(" ", _SPACE) for text in LINE_BREAKS)],
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=2 * _SENTENCE_BYTES,
            # Fixed, since the order of summation and so the last digits of the scores depend on it.
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        least = len(TAGS) + len(LINE_BREAKS) + 4 + 256 + len(_ASCII)
        raise GritError(
            f"tokenizer training: vocab_size {vocab_size} does not work for this text "
            f"(bytes, tags and ASCII alone take {least}): {str(error).splitlines()[0]}"
        ) from None
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def from_sentencepiece(processor: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """Converts a unigram model (byte fallback, no normalisation, no dummy prefix), keeping its
    ids."""
    size = processor.get_piece_size()
    vocabulary: list[tuple[str, float]] = []
    added: list[dict[str, Any]] = []
    for i in range(size):
        text = processor.id_to_piece(i)
        control = processor.is_control(i) or processor.is_unknown(i)
        if not (control or processor.is_byte(i)):
            text = text.replace(_SPACE, " ")
        defined = not control and text in (*TAGS, *LINE_BREAKS)
        score = (
            _NEVER if control or processor.is_byte(i) or defined else float(processor.get_score(i))
        )
        vocabulary.append((text, score))
        if control or defined:
            added.append(_added_token(i, text, special=control))
    bos = processor.id_to_piece(processor.bos_id())
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [processor.bos_id()], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "Unigram",
            "unk_id": processor.unk_id(),
            "vocab": vocabulary,
            "byte_fallback": True,
        },
    }
    return Tokenizer(
        json.dumps(file, ensure_ascii=False), bos_token=bos, eos_token=EOS, pad_token=PAD
    )


def _sample(texts: list[str], seed: int, max_characters: int) -> list[str]:
    """A random subset of about `max_characters`, split into sentences short enough for
    SentencePiece, which skips longer ones."""
    total = sum(map(len, texts))
    order = (
        np.random.default_rng(seed).permutation(len(texts))
        if total > max_characters
        else range(len(texts))
    )
    sentences: list[str] = []
    left = max_characters
    for i in order:
        if left <= 0:
            break
        text = texts[i][:left]
        left -= len(text)
        # NUL and U+2585 make SentencePiece drop the whole sentence.
        text = text.replace("\0", "").replace("\u2585", "")
        block, size = [], 0
        for line in text.split("\n"):
            for start in range(0, max(len(line), 1), _SENTENCE_BYTES // 4):
                part = line[start : start + _SENTENCE_BYTES // 4]
                if size + 4 * len(part) > _SENTENCE_BYTES and block:
                    sentences.append("\n".join(block))
                    block, size = [], 0
                block.append(part)
                size += 4 * len(part) + 1
        sentences.append("\n".join(block))
    return sentences


def _added_token(number: int, text: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }
