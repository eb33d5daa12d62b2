"""Tiny GGUF files, written by the format's library under its own names for the tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np

from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.weights import hf_names
from grit_jax.models.parameters import init_params, layers_with
from grit_jax.sharding import to_host

TEXT = "the quick brown fox jumps over the lazy dog in 1999"
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
_GEMMA: dict[str, Any] = dict(
    hidden_act="gelu_pytorch_tanh",
    zero_centered_norm=True,
    post_norms=True,
    scale_embeddings=True,
    tie_word_embeddings=True,
    query_pre_attn_scalar=256,
    sliding_window=8,
)
# By the format's word for the architecture; mixtral says llama.
MODELS: dict[str, dict[str, Any]] = {
    "llama": dict(architecture="llama"),
    "qwen2": dict(architecture="qwen2", attention_bias=True),
    "qwen3": dict(architecture="qwen3", qk_norm=True),
    "gemma2": dict(
        architecture="gemma2",
        layer_types=("sliding_attention", "full_attention"),
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        **_GEMMA,
    ),
    "gemma3": dict(
        architecture="gemma3_text",
        layer_types=("sliding_attention",) * 2,
        qk_norm=True,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        **_GEMMA,
    ),
    "mixtral": dict(architecture="mixtral", num_experts=4, num_experts_per_tok=2),
}


# What transformers takes for granted, which does not read all of the file's metadata.
HEAD_DIMS = {"qwen3": 128, "gemma2": 256, "gemma3": 256}


def byte_level() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level tokenizer."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["t h", "th e", "Ġ the", "o w", "q u", "Ġ f"]
    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in merges)], merges


def sentencepiece() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and kinds of a SentencePiece tokenizer."""
    kind = gguf.TokenType
    pieces = [(text, 0.0, kind.UNKNOWN if text == "<unk>" else kind.CONTROL) for text in SPECIAL]
    pieces += [(f"<0x{i:02X}>", 0.0, kind.BYTE) for i in range(256)]
    words = ["th", "▁th", "▁the", "qu", "ow", "er", *sorted({*TEXT.replace(" ", "▁")})]
    pieces += [(word, -float(i), kind.NORMAL) for i, word in enumerate(words)]
    texts, scores, kinds = zip(*pieces, strict=True)
    return list(texts), list(scores), [int(k) for k in kinds]


def tokenizer_keys(kind: str) -> dict[str, Any]:
    """The metadata of a tokenizer, gpt2 or llama as the format calls the kinds."""
    keys: dict[str, Any] = {"model": kind, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        keys["tokens"], keys["merges"] = byte_level()
        keys["token_type"] = [3] * len(SPECIAL) + [1] * (len(keys["tokens"]) - len(SPECIAL))
        keys["pre"] = "qwen2"
    else:
        keys["tokens"], keys["scores"], keys["token_type"] = sentencepiece()
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def write(
    path: Path,
    name: str,
    tokenizer: str = "gpt2",
    *,
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    without: str | None = None,
    sizes: Mapping[str, Any] | None = None,
    **changed: Any,
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Writes a file with random weights; returns the model that it holds.

    Args:
      name: of `MODELS`.
      tokenizer: gpt2 or llama, as the format calls the kinds.
      types: tensors that are quantised, and how; with a type to which the library cannot
        quantise, their values are random.
      extra: tensors to add.
      without: a part of the names of tensors to leave out.
      sizes: of `ModelConfig`, to replace.
      changed: metadata to add, to replace or (None) to leave out, `__` for a dot and ARCH for the
        architecture. Numbers are written as 32 bits.
    """
    keys = tokenizer_keys(tokenizer)
    fields = {key.replace("__", "."): value for key, value in changed.items()}
    tokens = fields.get("tokenizer.ggml.tokens", keys["tokenizer.ggml.tokens"])
    config = ModelConfig(
        **dict(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=HEAD_DIMS.get(name, 8),
            max_position_embeddings=128,
            rms_norm_eps=1e-6,
            dtype="float32",
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
        )
        | MODELS[name]
        | (sizes or {})
    )
    params = {key: to_host(value) for key, value in init_params(config, jax.random.key(0)).items()}
    rng = np.random.default_rng(0)
    for key, value in params.items():  # norms and biases that are not ones and zeros
        if value.ndim < 3 and key not in ("embed", "head"):
            params[key] = (value + rng.normal(size=value.shape) / 10).astype(np.float32)
    arch = "llama" if name == "mixtral" else name
    keys |= {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": config.rope_theta,
    }
    if config.num_experts:
        keys |= {"expert_count": 4, "expert_used_count": 2}
    if config.sliding_window:
        keys["attention.sliding_window"] = config.sliding_window
    keys["tokenizer.chat_template"] = "{{ messages[0]['content'] }}<|im_end|>"
    keys = {key if key.startswith("tokenizer.") else f"{arch}.{key}": v for key, v in keys.items()}
    keys |= {key.replace("ARCH", arch): value for key, value in fields.items()}
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        _add(writer, key, value)
    for target, array in [*_tensors(config, params, arch), *(extra or {}).items()]:
        if without is not None and without in target:
            continue
        array = np.ascontiguousarray(array, np.float32)
        kind = (types or {}).get(target)
        if kind is None:
            writer.add_tensor(target, array)
        else:
            writer.add_tensor(target, _stored(array, kind, rng), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config, params


def _stored(
    array: np.ndarray, kind: gguf.GGMLQuantizationType, rng: np.random.Generator
) -> np.ndarray:
    """The blocks of an array, or random ones with finite values."""
    try:
        return gguf.quantize(array, kind)
    except NotImplementedError:
        size, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (array.size // size, width), np.uint8)
    with contextlib.suppress(NotImplementedError), np.errstate(all="ignore"):
        blocks[~np.isfinite(gguf.dequantize(blocks, kind)).all(axis=1)] = 0
    return blocks.reshape(*array.shape[:-1], -1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _tensors(config: ModelConfig, params: dict[str, np.ndarray], arch: str):
    """What llama.cpp's converter stores for each tensor of a Hugging Face model."""
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)

    def stored(key: str, array: np.ndarray) -> np.ndarray:
        if arch == "llama" and key in ("query", "key"):
            heads = config.num_attention_heads if key == "query" else config.num_key_value_heads
            array = (
                array.reshape(heads, 2, config.head_dim // 2, -1)
                .swapaxes(1, 2)
                .reshape(array.shape)
            )
        return array + 1 if config.zero_centered_norm and key.endswith("norm") else array

    for key, value in params.items():
        template, linear = hf_names(config)[key]
        template = template if key == "head" else "model." + template
        template = template.replace(".{expert}", "")
        turn = lambda a, linear=linear: a.swapaxes(-1, -2) if linear else a
        rows = layers_with(key, config.layer_kinds) if "{layer}" in template else [None]
        for row, layer in enumerate(rows):
            target = known.get_name(template.format(layer=layer), (".weight", ".bias"))
            assert target is not None, template
            yield target, stored(key, turn(value if layer is None else value[row]))
