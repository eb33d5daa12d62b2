"""The tokenizer in the metadata of a GGUF file, as the files of a Hugging Face directory.

A GGUF file has the vocabulary, the merges or scores, the kinds of tokens and a word for how texts
are split before merging (`tokenizer.ggml.pre`). Kinds of tokens are numbered as SentencePiece
numbers them. Sources: `llama.cpp: src/llama-vocab.cpp, docs of the GGUF format`, `transformers:
integrations/gguf/gguf_tokenizer_mapping.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from grit_jax.errors import GritError
from grit_jax.text import sentencepiece_model
from grit_jax.text.sentencepiece_model import BPE, CONTROL, SPACE, UNKNOWN, USER_DEFINED
from grit_jax.text.tokenizer_files import TokenizerFiles

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How texts are split, by `tokenizer.ggml.pre`; None: as GPT-2 does.
SPLITS: dict[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "smollm": None,  # digits are split one by one before it
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
DIGITS_ALONE = ("smollm",)
# Architectures whose SentencePiece merges follow the order of the vocabulary, not its scores.
GEMMA = ("gemma2", "gemma3")


def read(metadata: Mapping[str, Any], location: str) -> TokenizerFiles:
    """The tokenizer of a GGUF file.

    Args:
      metadata: the file's keys and values.
      location: the file's name in messages.

    Raises:
      GritError: a kind of tokenizer, or a way to split texts, that is not known.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise GritError(f"{location}: it has no tokenizer (no tokenizer.ggml.tokens)")
    gemma = metadata["general.architecture"] in GEMMA
    named = {
        name: metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    names = {name: None if i is None else tokens[i] for name, i in named.items()}
    config: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    if kind == "gpt2":
        core = _byte_level(metadata, tokens, location)
        begins = metadata.get("tokenizer.ggml.add_bos_token", False)
    elif kind == "llama":
        core = _sentencepiece(metadata, tokens, gemma, location)
        begins = metadata.get("tokenizer.ggml.add_bos_token", True)
    else:
        raise GritError(
            f"{location}: a tokenizer of the kind {kind!r} is not supported, only 'gpt2'"
            " (byte-level BPE) and 'llama' (SentencePiece)"
        )
    ends = metadata.get("tokenizer.ggml.add_eos_token", False)
    sequence = [names["bos"]] * bool(begins and names["bos"])
    sequence += ["$A"] + [names["eos"]] * bool(ends and names["eos"])
    if len(sequence) > 1:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=sequence,
            pair=[*sequence, *(part.replace("$A", "$B") + ":1" for part in sequence)],
            special_tokens=[(part, core.token_to_id(part)) for part in {*sequence} - {"$A"}],
        )
    return TokenizerFiles(core.to_str(), names, config, None)


def _added(metadata: Mapping[str, Any], tokens: list[str]) -> list[AddedToken]:
    """Control tokens as special ones, and those of the user as plain ones."""
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    return [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _byte_level(
    metadata: Mapping[str, Any], tokens: list[str], location: str
) -> tokenizers.Tokenizer:
    how = metadata.get("tokenizer.ggml.pre", "default")
    if how not in SPLITS:
        raise GritError(
            f"{location}: texts are split by {how!r} (tokenizer.ggml.pre), which is not known;"
            f" known are {', '.join(SPLITS)}"
        )
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", [])]
    core = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    steps: list[pre_tokenizers.PreTokenizer] = []
    if how in DIGITS_ALONE:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern := SPLITS[how]:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.decoder = decoders.ByteLevel()
    core.add_tokens(_added(metadata, tokens))
    return core


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], gemma: bool, location: str
) -> tokenizers.Tokenizer:
    """Through SentencePiece's own format, whose conversion is tested."""
    kinds = metadata.get("tokenizer.ggml.token_type")
    scores = metadata.get("tokenizer.ggml.scores")
    if not kinds or not scores or UNKNOWN not in kinds:
        raise GritError(f"{location}: its tokenizer has no scores, or no kinds of tokens")
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", not gemma))
    proto = sentencepiece_model.new_model()
    for i, (token, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
        if gemma:
            score = -float(i)
            if " " in token and not token.strip():  # runs of spaces are stored as such
                token = SPACE * len(token)
        proto.pieces.add(piece=token, score=score, type=kind)
    proto.trainer_spec.model_type = BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    core = sentencepiece_model.convert(proto.SerializeToString(), location).core
    if not gemma:
        sentencepiece_model.llama_spaces(core, {"add_prefix_space": prefix})
    return core
