"""Converts a SentencePiece `tokenizer.model` (BPE or unigram) to a tokenizer of the `tokenizers`
library with the same ids.

As in SentencePiece, control, unknown and byte pieces never match a text that spells them. Merges of
a BPE model follow its scores. Spaces follow the model's normalizer, applied to each stretch of text
between two added tokens, unless the directory names a `LlamaTokenizer`: then they follow the rules
of transformers (`llama_spaces`). Sources:
`sentencepiece: src/{bpe_model,unigram_model,normalizer}.cc`, `transformers:
convert_slow_tokenizer.py, models/llama/tokenization_llama.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from grit_jax.errors import GritError

SPACE = "\u2581"  # stands for a space in pieces
# Below every real score, so that such a piece loses against the characters that spell it.
NEVER = -10_000.0
# Kinds of pieces and of models, as `sentencepiece: src/sentencepiece_model.proto` numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
_MODELS = {3: "WORD", 4: "CHAR"}


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """The converted model and the special tokens that it defines (None: it has none)."""

    core: tokenizers.Tokenizer
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None


def convert(model: bytes, location: str) -> SentencePieceModel:
    """Converts the bytes of a model file; `location` is its name in messages.

    Raises:
      GritError: not a SentencePiece model, or a kind of model that is not supported.
    """
    proto = _parse(model, location)
    kind, spec = proto.trainer_spec.model_type, proto.normalizer_spec
    refused = (
        f"a {_MODELS[kind]} model"
        if kind in _MODELS
        else (
            "whitespace as suffix"
            if proto.trainer_spec.treat_whitespace_as_suffix
            else "unescaped whitespace"
            if not spec.escape_whitespaces
            else None
        )
    )
    if refused:
        raise GritError(
            f"{location}: SentencePiece with {refused} is not supported, only BPE and unigram with"
            " U+2581"
        )
    unknown = next((i for i, piece in enumerate(proto.pieces) if piece.type == UNKNOWN), 0)
    if kind == BPE:
        core = tokenizers.Tokenizer(
            models.BPE(
                {piece.piece: i for i, piece in enumerate(proto.pieces)},
                _merges(proto.pieces),
                unk_token=proto.pieces[unknown].piece,
                fuse_unk=True,
                byte_fallback=proto.trainer_spec.byte_fallback,
            )
        )
    else:
        core = tokenizers.Tokenizer(
            models.Unigram(
                _scores(proto.pieces),
                unk_id=unknown,
                byte_fallback=proto.trainer_spec.byte_fallback,
            )
        )
        if splits := _splits(proto.pieces):
            core.pre_tokenizer = splits
    try:
        core.normalizer = _normalizer(spec)
    except Exception as error:  # the library raises a bare Exception
        raise GritError(
            f"{location}: damaged: its normalizer cannot be read ({error}); download it again"
        ) from None
    core.decoder = _decoder(prefix=spec.add_dummy_prefix)
    core.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=True)
            for piece in proto.pieces
            if piece.type in (UNKNOWN, CONTROL)
        ]
        # Symbols such as Gemma's runs of spaces match in the normalized text, the longest first. A
        # normalizer with a dummy prefix would prefix the symbol, too, so that it never matches.
        + [
            AddedToken(piece.piece, normalized=not spec.add_dummy_prefix, special=False)
            for piece in proto.pieces
            if piece.type == USER_DEFINED
        ]
    )

    def token(number: int) -> str | None:
        if not 0 <= number < len(proto.pieces):
            return None
        piece = proto.pieces[number]
        return piece.piece if piece.type in (CONTROL, USER_DEFINED) else None

    ids = proto.trainer_spec
    return SentencePieceModel(core, token(ids.bos_id), token(ids.eos_id), token(ids.pad_id))


def llama_spaces(core: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Gives a tokenizer the space rules of transformers' `LlamaTokenizer`, which depend on the
    config only.

    A text gets a dummy prefix unless it begins with a space. With `legacy: true` in
    tokenizer_config.json, every stretch of text after an added token gets one, too. (SentencePiece
    itself also prefixes texts that begin with a space.)
    """
    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = "never" if not prefix else "always" if config.get("legacy", False) else "first"
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme=scheme, split=False
    )
    core.decoder = _decoder(prefix=prefix)


def new_model() -> Any:
    """An empty model in SentencePiece's own format."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time


def _parse(model: bytes, location: str) -> Any:
    from google.protobuf.message import DecodeError

    proto = new_model()
    try:
        proto.ParseFromString(model)
    except DecodeError:
        proto.Clear()
    # Random bytes can parse as an empty message, a truncated or altered file as an incomplete one.
    pieces = [piece.piece for piece in proto.pieces]
    valid = (
        proto.trainer_spec.ByteSize() > 0
        and any(piece.type == UNKNOWN for piece in proto.pieces)
        and all(isinstance(text, str) and text for text in pieces)
        and all(map(math.isfinite, (piece.score for piece in proto.pieces)))
        and len(set(pieces)) == len(pieces)
    )
    if not valid:
        raise GritError(f"{location}: damaged, or not a SentencePiece model; download it again")
    return proto


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """Pairs in the order in which they are merged: by the score of the result, then as in
    transformers."""
    ids = {p.piece: i for i, p in enumerate(pieces) if p.type in (NORMAL, USER_DEFINED)}
    merges: list[tuple[tuple[float, int, int, int, int], tuple[str, str]]] = []
    for text, i in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                key = (-pieces[i].score, i, len(left), ids[left], ids[right])
                merges.append((key, (left, right)))
    return [pair for _, pair in sorted(merges)]


def _scores(pieces: Any) -> list[tuple[str, float]]:
    best = max((p.score for p in pieces if p.type == NORMAL), default=0.0)

    def score(piece: Any) -> float:
        if piece.type == NORMAL:
            return piece.score
        # Always chosen: SentencePiece scores such a symbol as if each byte were the best piece.
        return len(piece.piece.encode()) * best - 0.1 if piece.type == USER_DEFINED else NEVER

    return [(piece.piece, score(piece)) for piece in pieces]


def _splits(pieces: Any) -> pre_tokenizers.PreTokenizer | None:
    """Keeps control, unknown and byte pieces from matching a text where `NEVER` does not.

    A piece with a character that is no piece by itself would win, since unknown characters cost
    even more than `NEVER`. The text is split after the first character of such a piece.
    """
    known = {p.piece for p in pieces if p.type == NORMAL}
    spellings = {
        p.piece
        for p in pieces
        if p.type in (UNKNOWN, CONTROL, BYTE) and not known.issuperset(p.piece)
    }
    if not spellings:
        return None
    pattern = "|".join(
        f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in sorted(spellings)
    )
    return pre_tokenizers.Split(Regex(pattern), behavior="merged_with_previous")


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(rf"[ {SPACE}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _decoder(prefix: bool) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    return decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
