"""Small tokenizers of every kind that language models have, as the directories in which they are
published."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import sentencepiece
import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

VOCAB = 700
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_REGEX = LLAMA3_REGEX.replace("{1,3}", "")


def make(kind: str, directory: Path) -> Path:
    """Writes the tokenizer of a kind, and a config.json that says whose it is."""
    directory.mkdir(parents=True, exist_ok=True)
    MAKERS[kind](directory)
    model_type = MODEL_TYPES[kind]
    _json(directory / "config.json", {"model_type": model_type})
    return directory


def texts() -> list[str]:
    """What they are trained on; not what they are tested on."""
    rng = np.random.default_rng(7)
    return [maker(rng) for _ in range(400) for maker in (corpus.prose, corpus.code, corpus.number)]


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _byte_level(
    directory: Path, core: tokenizers.Tokenizer, special: list[str], config: dict[str, Any]
) -> None:
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts(),
        trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False),
    )
    core.add_special_tokens(special)
    core.save(str(directory / "tokenizer.json"))
    _json(directory / "tokenizer_config.json", config)


def _gpt2(directory: Path) -> None:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end}
    _byte_level(directory, core, [end], config)


def _llama3(directory: Path) -> None:
    core = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": "<|eot_id|>",
    }
    _byte_level(directory, core, special, config)
    core = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    bos = special[0]
    template = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0",
        pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
        special_tokens=[(bos, core.token_to_id(bos))],
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    core.save(str(directory / "tokenizer.json"))


def _qwen(directory: Path) -> None:
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": special[0],
    }
    _byte_level(directory, core, special, config)
    core = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    core.add_tokens(
        [AddedToken(tag, normalized=False, special=False) for tag in ("<think>", "</think>")]
    )
    core.save(str(directory / "tokenizer.json"))


def sentencepiece_model(**options: Any) -> bytes:
    """A SentencePiece model file trained on `texts`, line by line as they all are."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts() for line in text.split("\n")]),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        **{
            "vocab_size": VOCAB,
            "character_coverage": 0.999,
            "max_sentence_length": 20_000,
            **options,
        },
    )
    return model.getvalue()


# How Llama 2, Mistral and Gemma were trained, as far as it shows in ids.
PLAIN = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "required_chars": "".join(map(chr, range(33, 127))),
}
_LLAMA = {"model_type": "bpe", **PLAIN, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}


def _llama2(directory: Path, legacy: bool | None) -> None:
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(**_LLAMA))
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    config |= {
        f"{name}_token": {
            "content": f"<{text}>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "__type": "AddedToken",
        }
        for name, text in (("bos", "s"), ("eos", "/s"), ("unk", "unk"))
    }
    _json(
        directory / "tokenizer_config.json",
        config if legacy is None else config | {"legacy": legacy},
    )


def _mistral(directory: Path) -> None:
    """Its tokenizer.json, as transformers 4 wrote it from the tokenizer.model beside it."""
    from grit_jax.text.sentencepiece_model import convert

    model = sentencepiece_model(**_LLAMA)
    core = convert(model, "tokenizer.model").core
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.pre_tokenizer = None
    (directory / "tokenizer.model").write_bytes(model)
    core.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    added = {"0": "<unk>", "1": "<s>", "2": "</s>"}
    flags = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    config["added_tokens_decoder"] = {i: {"content": text, **flags} for i, text in added.items()}
    _json(directory / "tokenizer_config.json", config)


def _gemma(directory: Path) -> None:
    runs = ["▁" * n for n in range(2, 12)] + ["\n" * n for n in range(1, 6)]
    model = sentencepiece_model(
        model_type="bpe",
        **PLAIN,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece="<bos>",
        eos_piece="<eos>",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", *runs],
    )
    (directory / "tokenizer.model").write_bytes(model)
    turns = ["<start_of_turn>", "<end_of_turn>"]
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "additional_special_tokens": turns,
        "add_bos_token": True,
    }
    config |= {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    _json(directory / "tokenizer_config.json", config)


def _unigram(directory: Path, **options: Any) -> None:
    (directory / "tokenizer.model").write_bytes(
        sentencepiece_model(model_type="unigram", **options)
    )
    _json(
        directory / "tokenizer_config.json",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )


MAKERS = {
    "gpt2": _gpt2,
    "llama3": _llama3,
    "qwen": _qwen,
    "llama2": lambda d: _llama2(d, None),
    "llama2-legacy": lambda d: _llama2(d, True),
    "mistral": _mistral,
    "gemma": _gemma,
    "unigram": lambda d: _unigram(d, **PLAIN, add_dummy_prefix=False, user_defined_symbols=["\n"]),
    # SentencePiece's defaults: NFKC, dummy prefix, extra whitespace removed, no bytes.
    "unigram-nfkc": _unigram,
}
MODEL_TYPES = {
    "gpt2": "gpt2",
    "llama3": "llama",
    "qwen": "qwen3",
    "llama2": "llama",
    "llama2-legacy": "llama",
    "mistral": "mistral",
    "gemma": "gemma2",
    "unigram": "mistral",
    "unigram-nfkc": "mistral",
}
BYTE_LEVEL = ("gpt2", "llama3", "qwen")
SENTENCEPIECE = tuple(kind for kind in MAKERS if kind not in BYTE_LEVEL)
