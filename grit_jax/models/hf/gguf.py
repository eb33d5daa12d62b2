"""A GGUF file (the format of llama.cpp) as a Hugging Face directory.

Weights are dequantised to float32 by the format's own library. What llama.cpp's converter changed
is undone: the rows of a Llama's query and key, which it reorders for another form of rotary
embedding, and Gemma's norms, to which it adds one. Sources: `llama.cpp: convert_hf_to_gguf.py`,
`transformers: integrations/gguf`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.read_config import config_from_hf
from grit_jax.models.hf.safetensors_io import Tensor, write_tensors
from grit_jax.models.hf.weights import MAX_SHARD_BYTES, hf_names
from grit_jax.models.parameters import layers_with, parameter_shapes
from grit_jax.runtime.files import write_json
from grit_jax.text import gguf_tokenizer, tokenizer_files

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}  # and mixtral, which says llama and has experts
# Our name -> the tensor's in a layer.
LAYER_NAMES = {
    "attention_norm": "attn_norm.weight",
    "query": "attn_q.weight",
    "key": "attn_k.weight",
    "value": "attn_v.weight",
    "query_bias": "attn_q.bias",
    "key_bias": "attn_k.bias",
    "value_bias": "attn_v.bias",
    "query_norm": "attn_q_norm.weight",
    "key_norm": "attn_k_norm.weight",
    "attention_out": "attn_output.weight",
    "attention_post_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "mlp_post_norm": "post_ffw_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "router": "ffn_gate_inp.weight",
    "expert_gate": "ffn_gate_exps.weight",
    "expert_up": "ffn_up_exps.weight",
    "expert_down": "ffn_down_exps.weight",
}
OTHER_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
}
# Llama 3's rotary scaling is stored as its factors: those of the published models.
LLAMA3_FACTORS = (8.0, 32.0)
FREQUENCIES = "rope_freqs.weight"


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, by its name or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def write_directory(path: Path, directory: Path) -> None:
    """Writes what a GGUF file holds as a plain Hugging Face directory, with weights in float32.

    Raises:
      GritError: no GGUF file, one of several parts, a damaged or truncated one, an architecture or
        a tokenizer that is not supported, or the library is missing.
    """
    try:
        import gguf
    except ImportError:
        raise GritError(
            f"{path}: a GGUF file needs the extra 'gguf': pip install 'grit_jax[gguf]'"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # of a damaged file: many classes
        raise GritError(f"{path}: not a whole GGUF file ({error}); download it again") from None
    if metadata.get("split.count", 1) > 1:
        raise GritError(
            f"{path}: one part of {metadata['split.count']}; merge them first: llama-gguf-split"
            " --merge FIRST_PART OUT"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        try:
            return gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise GritError(
                f"{path}: {name} has the type {tensor.tensor_type.name}, which the package gguf"
                " does not dequantise; take a file of another type"
            ) from None

    hf = _config(metadata, tensors, read, str(path))
    config = config_from_hf(hf, str(path))
    tokenizer = gguf_tokenizer.read(metadata, str(path))
    written = _weights(config, tensors, read, str(path))
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, written, "float32", MAX_SHARD_BYTES)
    write_json(directory / "config.json", hf)
    named = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
    ends = dict.fromkeys(end for end in named if end is not None)
    write_json(directory / "generation_config.json", {"eos_token_id": list(ends)})
    tokenizer_files.write(directory, tokenizer, config.architecture)


def _config(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
    location: str,
) -> dict[str, Any]:
    """config.json of the file's model."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise GritError(
            f"{location}: the architecture {name!r} is not supported, only"
            f" {', '.join(ARCHITECTURES)} and mixtral"
        )

    def value(key: str, default: Any = None) -> Any:
        found = metadata.get(f"{name}.{key}", default)
        if found is None:
            raise GritError(f"{location}: '{name}.{key}' is missing")
        return found

    optional = lambda key: metadata.get(f"{name}.{key}")
    experts = optional("expert_count") or 0
    model_type = "mixtral" if experts and name == "llama" else ARCHITECTURES[name]
    if experts and model_type != "mixtral":
        raise GritError(f"{location}: a {name} model with experts is not supported")
    heads, hidden = value("attention.head_count"), value("embedding_length")
    layers = value("block_count")
    head_dim = optional("attention.key_length") or optional("rope.dimension_count")
    head_dim = head_dim or hidden // heads
    if "token_embd.weight" not in tensors:
        raise GritError(f"{location}: the tensor token_embd.weight is missing")
    hf: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": optional("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base", 1e6 if name == "gemma3" else 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
    }
    for key, ours in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        hf[f"{ours}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if window := optional("attention.sliding_window"):
        hf["sliding_window"] = window
    elif name == "llama":
        hf["sliding_window"] = None
    if experts:
        hf |= {"num_local_experts": experts, "num_experts_per_tok": value("expert_used_count")}
    if name in ("gemma2", "gemma3"):
        hf.pop("hidden_act")
        hf["hidden_activation"] = "gelu_pytorch_tanh"
        # The largest model of each has queries scaled by hidden_size / heads; no key says so.
        largest = layers == {"gemma2": 46, "gemma3": 62}[name]
        hf["query_pre_attn_scalar"] = hidden // heads if largest else head_dim
    if name == "gemma2":
        hf["attn_logit_softcapping"] = value("attn_logit_softcapping", 50.0)
        hf["final_logit_softcapping"] = value("final_logit_softcapping", 30.0)
    if scaling := _rope_scaling(optional, tensors, read, hf, location):
        hf["rope_scaling"] = scaling
    return hf


def _rope_scaling(
    optional: Callable[[str], Any],
    tensors: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
    hf: Mapping[str, Any],
    location: str,
) -> dict[str, Any] | None:
    kind, factor = optional("rope.scaling.type"), optional("rope.scaling.factor")
    if FREQUENCIES in tensors:
        stored = read(FREQUENCIES)
        if (stored == 1).all():
            return None
        for factor in LLAMA3_FACTORS:
            if np.allclose(stored, _llama3(hf, factor), rtol=1e-4):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
        raise GritError(f"{location}: its rotary frequencies ({FREQUENCIES}) are not known")
    if kind in (None, "none") or factor in (None, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = optional("rope.scaling.original_context_length")
        scaling = {"rope_type": "yarn", "factor": factor}
        return scaling | ({"original_max_position_embeddings": original} if original else {})
    raise GritError(f"{location}: rotary scaling {kind!r} is not supported")


def _llama3(hf: Mapping[str, Any], factor: float) -> np.ndarray:
    """What Llama 3.1's scaling divides each rotary frequency by."""
    exponents = np.arange(0, hf["head_dim"], 2) / hf["head_dim"]
    wavelength = 2 * math.pi * hf["rope_theta"] ** exponents
    smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelength < 8192 / 4, 1.0, np.where(wavelength > 8192, factor, between))


def _weights(
    config: ModelConfig,
    tensors: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
    location: str,
) -> list[Tensor]:
    """The tensors as a Hugging Face directory has them; each is read when it is written."""
    names, used, written = hf_names(config), {FREQUENCIES}, []

    def add(ours: str, source: str, target: str, expert: int | None = None) -> None:
        if source not in tensors:
            raise GritError(f"{location}: the tensor {source} is missing")
        used.add(source)
        shape = tuple(int(n) for n in reversed(tensors[source].shape))
        shape = shape if expert is None else shape[1:]

        def values() -> np.ndarray:
            array = read(source) if expert is None else read(source)[expert]
            return _undone(array, ours, config).astype(np.float32)

        written.append(Tensor(target, shape, values))

    for ours in parameter_shapes(config):
        target = names[ours][0] if ours == "head" else "model." + names[ours][0]
        if ours in OTHER_NAMES:
            add(ours, OTHER_NAMES[ours], target)
            continue
        for layer in layers_with(ours, config.layer_kinds):
            source = f"blk.{layer}.{LAYER_NAMES[ours]}"
            if "{expert}" not in target:
                add(ours, source, target.format(layer=layer))
                continue
            for expert in range(config.num_experts):
                # Files of before 2024-04 have a tensor for each expert.
                alone = re.sub(r"_exps\.", f".{expert}.", source)
                to = target.format(layer=layer, expert=expert)
                if source in tensors:
                    add(ours, source, to, expert)
                else:
                    add(ours, alone, to)
    if unused := sorted(tensors.keys() - used):
        raise GritError(
            f"{location}: {len(unused)} tensors are no part of a {config.architecture} model as it"
            f" is known here: {', '.join(unused[:5])}"
        )
    return written


def _undone(array: np.ndarray, ours: str, config: ModelConfig) -> np.ndarray:
    """A weight as it was before llama.cpp's converter."""
    if config.zero_centered_norm and ours.endswith("norm"):
        return array - 1.0
    if config.architecture in ("llama", "mixtral") and ours in ("query", "key"):
        heads = config.num_attention_heads if ours == "query" else config.num_key_value_heads
        halves = array.reshape(heads, -1, 2, array.shape[-1])
        return halves.swapaxes(1, 2).reshape(array.shape)
    return array
