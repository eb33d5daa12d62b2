"""The weights of a checkpoint: Hugging Face's tensors on disk, stacked `[in, out]` layers in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.models.config import ModelConfig
from grit_jax.models.safetensors_io import DTYPES, Tensor, TensorFiles, write_tensors
from grit_jax.models.transformer import Params, parameter_shapes
from grit_jax.types import GritError

MAX_SHARD_BYTES = 5 * 10**9

# Our name -> Hugging Face's, and whether it is an nn.Linear weight ([out, in] there, [in, out] here).
_NAMES: dict[str, tuple[str, bool]] = {
    "embed": ("embed_tokens.weight", False),
    "attention_norm": ("layers.{}.input_layernorm.weight", False),
    "query": ("layers.{}.self_attn.q_proj.weight", True),
    "key": ("layers.{}.self_attn.k_proj.weight", True),
    "value": ("layers.{}.self_attn.v_proj.weight", True),
    "query_bias": ("layers.{}.self_attn.q_proj.bias", False),
    "key_bias": ("layers.{}.self_attn.k_proj.bias", False),
    "value_bias": ("layers.{}.self_attn.v_proj.bias", False),
    "query_norm": ("layers.{}.self_attn.q_norm.weight", False),
    "key_norm": ("layers.{}.self_attn.k_norm.weight", False),
    "attention_out": ("layers.{}.self_attn.o_proj.weight", True),
    "mlp_norm": ("layers.{}.post_attention_layernorm.weight", False),
    "gate": ("layers.{}.mlp.gate_proj.weight", True),
    "up": ("layers.{}.mlp.up_proj.weight", True),
    "down": ("layers.{}.mlp.down_proj.weight", True),
    "final_norm": ("norm.weight", False),
    "head": ("lm_head.weight", True),
}
_HEAD = _NAMES["head"][0]
_DERIVED = ".rotary_emb.inv_freq"  # old checkpoints store these; they follow from config.json


def load_params(
    directory: str | Path,
    config: ModelConfig,
    dtype: str = "float32",
    *,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> Params:
    """Reads the weights of `config` from safetensors files, stacked on the layer axis, as NumPy arrays.

    One tensor is in memory beside the result. Tensors that the model has no use for are named in a warning.

    Args:
      dtype: float32 or bfloat16.
      place: called with each finished weight (its name and array); what it returns stands in the result. It
        can move the weight to its devices, so that the host never holds the whole model.

    Raises:
      GritError: a file or tensor that is missing, damaged or of another shape; the message names both.
    """
    if dtype not in DTYPES:
        raise GritError(f"dtype must be one of {', '.join(DTYPES)}, is {dtype!r}")
    params: Params = {}
    with TensorFiles(directory) as files:
        # A checkpoint saved from the model without its head has no `model.` in its names.
        prefix = "" if _NAMES["embed"][0] in files else "model."
        used: set[str] = set()

        def read(name: str, shape: tuple[int, ...], layer: int) -> np.ndarray:
            hf_name, is_linear = _hf_name(name, layer, prefix)
            used.add(hf_name)
            return files.read(hf_name, shape[::-1]).T if is_linear else files.read(hf_name, shape)

        for name, shape in parameter_shapes(config).items():
            array = np.empty(shape, DTYPES[dtype])
            if _is_layered(name):
                for layer in range(config.num_hidden_layers):
                    array[layer] = read(name, shape[1:], layer)
            else:
                array[...] = read(name, shape, 0)
            params[name] = place(name, array) if place else array
        _report_unused(files, set(files.names()) - used, config, prefix)
    return params


def save_params(
    directory: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes weights under Hugging Face's names; the same weights give the same bytes.

    Args:
      params: arrays that this process can read, NumPy or JAX.
      dtype: float32 or bfloat16 (rounded to nearest even).
      max_shard_bytes: a larger model is split into shards with an index.
    """
    tensors = []
    for name, layer in _on_disk_order(config):
        hf_name, is_linear = _hf_name(name, layer, "model.")
        shape = parameter_shapes(config)[name][1 if _is_layered(name) else 0 :]

        def values(name: str = name, layer: int = layer, is_linear: bool = is_linear) -> np.ndarray:
            array = np.asarray(params[name][layer] if _is_layered(name) else params[name])
            return array.T if is_linear else array

        tensors.append(Tensor(hf_name, shape[::-1] if is_linear else shape, values))
    write_tensors(directory, tensors, dtype, max_shard_bytes)


def _is_layered(name: str) -> bool:
    return "{}" in _NAMES[name][0]


def _hf_name(name: str, layer: int, prefix: str) -> tuple[str, bool]:
    template, is_linear = _NAMES[name]
    return (template if name == "head" else prefix + template).format(layer), is_linear


def _on_disk_order(config: ModelConfig) -> list[tuple[str, int]]:
    """(Our name, layer) in the order on disk: layer by layer, so that a shard holds neighbouring layers."""
    shapes = parameter_shapes(config)
    layered = [name for name in shapes if _is_layered(name)]
    order = [("embed", 0), *((name, i) for i in range(config.num_hidden_layers) for name in layered)]
    return [*order, ("final_norm", 0), *([("head", 0)] if "head" in shapes else [])]


def _report_unused(files: TensorFiles, names: set[str], config: ModelConfig, prefix: str) -> None:
    """Warns of tensors that the model was not made of."""
    names = {name for name in names if not name.endswith(_DERIVED)}
    if config.tie_word_embeddings and _HEAD in names:  # harmless as long as it is the copy it claims to be
        shape = (config.vocab_size, config.hidden_size)
        table = files.read(_hf_name("embed", 0, prefix)[0], shape)
        if np.array_equal(files.read(_HEAD, shape), table):
            names.discard(_HEAD)
    if names:
        shown = sorted(names)[:8]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        warnings.warn(
            f"{files.directory}: {len(names)} tensors are not part of the {config.architecture} model that "
            f"config.json describes and were not used: {', '.join(shown)}{more}",
            stacklevel=3,
        )
