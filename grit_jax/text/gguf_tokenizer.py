"""The tokenizer in the metadata of a GGUF file, as the files of a Hugging Face directory.

A GGUF file has the vocabulary, the merges or scores, the kinds of tokens and a word for how texts
are split before merging (`gguf_splits.py`). Kinds of tokens are numbered as SentencePiece numbers
them. The file has no normalizer, so that texts are not normalised (llama.cpp and transformers read
it the same way). Sources: `llama.cpp: src/llama-vocab.cpp, docs of the GGUF format`, `transformers:
integrations/gguf/gguf_tokenizer_mapping.py`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models

from grit_jax.errors import GritError
from grit_jax.text import sentencepiece_model
from grit_jax.text.gguf_splits import SPLITS
from grit_jax.text.sentencepiece_model import BPE, CONTROL, SPACE, UNKNOWN, USER_DEFINED
from grit_jax.text.tokenizer_files import TokenizerFiles

PREFIX = "tokenizer.ggml."
# Architectures whose SentencePiece merges follow the order of the vocabulary, not its scores.
GEMMA = ("gemma2", "gemma3")
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
# What changes ids and is not supported: the key, and what it does.
_REFUSED = {
    "remove_extra_whitespaces": "removes spaces",
    "precompiled_charsmap": "normalises texts",
    "normalizer.lowercase": "makes texts lower case",
    "normalizer.strip_accents": "removes accents",
    "add_sep_token": "adds a separator",
}


def read(metadata: Mapping[str, Any], location: str) -> TokenizerFiles:
    """The tokenizer of a GGUF file.

    Args:
      metadata: the file's keys and values.
      location: the file's name in messages.

    Raises:
      GritError: a kind of tokenizer, or a way to split texts, that is not known, or metadata that
        contradict each other.
    """
    tokens = _tokens(metadata, location)
    for key, effect in _REFUSED.items():
        if metadata.get(PREFIX + key):
            raise GritError(f"{location}: '{PREFIX}{key}' {effect}, which is not supported")
    names = {
        name: _special(metadata, key, tokens, location)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    kind = metadata.get(f"{PREFIX}model")
    if kind == "gpt2":
        core, adds_bos = _byte_level(metadata, tokens, location)
    elif kind == "llama":
        core, adds_bos = _sentencepiece(metadata, tokens, location), True
    else:
        raise GritError(
            f"{location}: a tokenizer of the kind {kind!r} is not supported, only 'gpt2'"
            " (byte-level BPE) and 'llama' (SentencePiece)"
        )
    bos = names["bos"] if metadata.get(f"{PREFIX}add_bos_token", adds_bos) else None
    eos = names["eos"] if metadata.get(f"{PREFIX}add_eos_token", False) else None
    sequence = [part for part in (bos, "$A", eos) if part]
    if len(sequence) > 1:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=sequence,
            pair=[*sequence, *(part.replace("$A", "$B") + ":1" for part in sequence)],
            special_tokens=[(part, core.token_to_id(part)) for part in {*sequence} - {"$A"}],
        )
    config: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    if template := _chat_template(metadata):
        config["chat_template"] = template
    return TokenizerFiles(core.to_str(), names, config, None)


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """The ids that end an answer: those that the file names, and control tokens that end a turn by
    their text, since converters do not name them all (llama.cpp finds them the same way)."""
    tokens, kinds = metadata[f"{PREFIX}tokens"], metadata.get(f"{PREFIX}token_type") or []
    named = (metadata.get(f"{PREFIX}{kind}_token_id") for kind in ("eos", "eot", "eom"))
    ends = [end for end in named if end is not None and 0 <= end < len(tokens)]
    pairs = enumerate(zip(tokens, kinds, strict=False))
    ends += [i for i, (token, kind) in pairs if kind == CONTROL and token in _TURN_ENDS]
    return list(dict.fromkeys(ends))


def _tokens(metadata: Mapping[str, Any], location: str) -> list[str]:
    """The vocabulary; an empty token has a name, as in llama.cpp."""
    tokens = metadata.get(f"{PREFIX}tokens")
    if not tokens:
        raise GritError(f"{location}: it has no tokenizer (no {PREFIX}tokens)")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        token, count = Counter(tokens).most_common(1)[0]
        raise GritError(
            f"{location}: the token {token!r} is {count} times in the vocabulary; the file is"
            " damaged, or its converter had a fault: take another one"
        )
    for key in ("token_type", "scores"):
        values = metadata.get(PREFIX + key)
        if values and len(values) != len(tokens):
            raise GritError(
                f"{location}: '{PREFIX}{key}' has {len(values)} values for {len(tokens)} tokens"
            )
    return tokens


def _special(metadata: Mapping[str, Any], key: str, tokens: list[str], location: str) -> str | None:
    """The token of an id; files say 2**32 - 1 for none."""
    number = metadata.get(f"{PREFIX}{key}_token_id")
    if number is None or number in (-1, 2**32 - 1):
        return None
    if not 0 <= number < len(tokens):
        warnings.warn(
            f"{location}: '{PREFIX}{key}_token_id' is {number}, but there are {len(tokens)}"
            " tokens; ignored",
            stacklevel=4,
        )
        return None
    return tokens[number]


def _chat_template(metadata: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """The template, or all of them where the file has several."""
    key = "tokenizer.chat_template"
    template = metadata.get(key)
    others = {name: metadata.get(f"{key}.{name}") for name in metadata.get(f"{key}s") or ()}
    named = ({"default": template} | others).items()
    texts = [{"name": name, "template": text} for name, text in named if text]
    return texts if len(texts) > 1 else template


def _added(metadata: Mapping[str, Any], tokens: list[str]) -> list[AddedToken]:
    """Control tokens as special ones, and those of the user as plain ones."""
    kinds = metadata.get(f"{PREFIX}token_type") or []
    return [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of tokens; the first character of a pair may be a space."""
    cuts = ((merge, merge.find(" ", 1)) for merge in metadata.get(f"{PREFIX}merges") or ())
    return [(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts]


def _bpe(tokens: list[str], merges: list[tuple[str, str]], location: str, **options: Any) -> Any:
    try:
        return models.BPE({token: i for i, token in enumerate(tokens)}, merges, **options)
    except Exception as error:  # the library raises a bare Exception
        raise GritError(f"{location}: '{PREFIX}merges' do not fit the tokens: {error}") from None


def _byte_level(
    metadata: Mapping[str, Any], tokens: list[str], location: str
) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether it adds the beginning of sequence where the file does not say."""
    name = metadata.get(f"{PREFIX}pre")
    if name in (None, "default"):
        warnings.warn(
            f"{location}: it does not say how texts are split before merging ({PREFIX}pre); they"
            " are split as GPT-2 does, which may not be how the model was trained: take a file of a"
            " newer converter",
            stacklevel=3,
        )
        name = "default"
    if name not in SPLITS:
        raise GritError(
            f"{location}: texts are split by {name!r} before merging ({PREFIX}pre), which is not"
            " supported; docs/import.md lists the names that are"
        )
    splits = SPLITS[name]
    core = tokenizers.Tokenizer(
        _bpe(tokens, _merges(metadata), location, ignore_merges=splits.ignore_merges)
    )
    core.pre_tokenizer = splits.pre_tokenizer()
    core.decoder = decoders.ByteLevel()
    core.add_tokens(_added(metadata, tokens))
    return core, splits.adds_bos


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], location: str
) -> tokenizers.Tokenizer:
    """Through SentencePiece's own format, whose conversion is tested."""
    gemma = metadata["general.architecture"] in GEMMA
    kinds = metadata.get(f"{PREFIX}token_type")
    scores, merges = metadata.get(f"{PREFIX}scores"), _merges(metadata)
    if not kinds or not (scores or merges):
        raise GritError(f"{location}: its tokenizer has no scores, or no kinds of tokens")
    unknown = metadata.get(f"{PREFIX}unknown_token_id", 0)
    if UNKNOWN not in kinds and 0 <= unknown < len(kinds):
        kinds = [*kinds[:unknown], UNKNOWN, *kinds[unknown + 1 :]]
    prefix = bool(metadata.get(f"{PREFIX}add_space_prefix", not gemma))
    if gemma:
        scores = [-float(i) for i in range(len(tokens))]
        # Runs of spaces are stored as such.
        blank = lambda token: " " in token and not token.strip()
        tokens = [SPACE * len(token) if blank(token) else token for token in tokens]
    proto = sentencepiece_model.new_model()
    for token, score, kind in zip(tokens, scores or [0.0] * len(tokens), kinds, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    proto.trainer_spec.model_type = BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    core = sentencepiece_model.convert(proto.SerializeToString(), location).core
    if merges:
        options = {"unk_token": core.model.unk_token, "fuse_unk": True, "byte_fallback": True}
        core.model = _bpe(tokens, merges, location, **options)
    if not gemma:
        sentencepiece_model.llama_spaces(core, {"add_prefix_space": prefix})
    return core
