"""Tokenizers of a few hundred ids, trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from grit_jax.text.tokenizer import Tokenizer

WORDS = [
    "hello world, user and assistant embed: why so? because! " * 3,
    "a b c d e f <|>\n ▁ é",
] * 5


SPECIAL = ["<unk>", "<s>", "</s>"]


def llama(prefix: str) -> Tokenizer:
    """Byte-fallback BPE as Llama 2 and Mistral have it, with one of the ways to write their dummy
    prefix."""
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "prepend":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif prefix == "first":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    lines = [line for text in WORDS for line in text.split("\n")]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    core.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL + bytes_)
    )
    file = json.loads(core.to_str())
    file["added_tokens"] = file["added_tokens"][:3]  # byte pieces are no added tokens
    return Tokenizer(json.dumps(file), bos_token="<s>", eos_token="</s>")


def byte_level() -> Tokenizer:
    """Byte-level BPE as Qwen and Llama 3 have it: no prefix, tags are special tokens, no BOS."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(core.to_str(), bos_token=None, eos_token="<|im_end|>")


def read_back(directory: Path, tokenizer: Tokenizer, **files: Any) -> Tokenizer:
    """The tokenizer of a directory with this tokenizer.json and other JSON files."""
    (directory / "tokenizer.json").write_text(tokenizer._json)
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer.from_pretrained(directory)
