"""Loading and saving weights: Hugging Face's tensors on disk, `[in, out]` matrices stacked over
layers in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.safetensors_io import DTYPES, Tensor, TensorFiles, write_tensors
from grit_jax.models.int8 import INT8_WEIGHTS, Int8Builder
from grit_jax.models.parameters import Params, layers_with, parameter_shapes
from grit_jax.models.projection import PROJECTION_AXES
from grit_jax.sharding import to_host

MAX_SHARD_BYTES = 5 * 10**9
ALIGNMENT = 64  # bytes

_DERIVED = ".rotary_emb.inv_freq"  # stored by old checkpoints; config.json determines them
_HEAD = "lm_head.weight"
# Prefixes of the text model's tensor names: empty in a model saved without its head, longer in a
# multimodal one.
_PREFIXES = ("model.", "", "language_model.model.", "model.language_model.")
_IMAGES = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


def hf_names(config: ModelConfig) -> dict[str, tuple[str, bool]]:
    """Our name -> Hugging Face's (with `{layer}`, `{expert}`), and True for weights of nn.Linear.

    Linear weights are `[out, in]` there and `[in, out]` here. Experts have one tensor each, as on
    disk.
    """
    layer, c = "layers.{layer}.", config
    names = {
        "embed": ("embed_tokens.weight", False),
        "attention_norm": (layer + "input_layernorm.weight", False),
        "query": (layer + "self_attn.q_proj.weight", True),
        "key": (layer + "self_attn.k_proj.weight", True),
        "value": (layer + "self_attn.v_proj.weight", True),
        "query_bias": (layer + "self_attn.q_proj.bias", False),
        "key_bias": (layer + "self_attn.k_proj.bias", False),
        "value_bias": (layer + "self_attn.v_proj.bias", False),
        "query_norm": (layer + "self_attn.q_norm.weight", False),
        "key_norm": (layer + "self_attn.k_norm.weight", False),
        "attention_out": (layer + "self_attn.o_proj.weight", True),
        "mlp_norm": (layer + "post_attention_layernorm.weight", False),
        "gate": (layer + "mlp.gate_proj.weight", True),
        "up": (layer + "mlp.up_proj.weight", True),
        "down": (layer + "mlp.down_proj.weight", True),
        "final_norm": ("norm.weight", False),
        "head": (_HEAD, True),
    }
    # Gemma's norm after attention has the name that other families use for the norm before the MLP.
    if c.post_norms:
        names |= {
            "attention_post_norm": (layer + "post_attention_layernorm.weight", False),
            "mlp_norm": (layer + "pre_feedforward_layernorm.weight", False),
            "mlp_post_norm": (layer + "post_feedforward_layernorm.weight", False),
        }
    if c.num_experts:
        mixtral = c.architecture == "mixtral"
        block = layer + ("block_sparse_moe." if mixtral else "mlp.")
        gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        names |= {
            "router": (block + "gate.weight", True),
            "expert_gate": (block + "experts.{expert}." + gate + ".weight", True),
            "expert_up": (block + "experts.{expert}." + up + ".weight", True),
            "expert_down": (block + "experts.{expert}." + down + ".weight", True),
        }
    return names


def load_params(
    directory: str | Path,
    config: ModelConfig,
    dtype: str = "float32",
    *,
    int8: bool = False,
    place: Callable[[str, Any], Any] | None = None,
) -> Params:
    """Reads the weights of `config` from safetensors files as NumPy arrays, stacked over layers.

    Apart from the result, one tensor is in memory at a time. A warning names unused tensors.

    Args:
      dtype: float32 or bfloat16.
      int8: quantise the matrices (`int8.INT8_WEIGHTS`), tensor by tensor; they are given as
        `Int8Weight` and `Int8Table` of NumPy arrays, and `dtype` is that of the other weights.
      place: called with each complete weight (its name and array); its result takes the weight's
        place. It can move the weight to the devices, so that the host never holds the whole model.

    Raises:
      GritError: a file or tensor is missing, damaged or of another shape; the message names both.
    """
    if dtype not in DTYPES:
        raise GritError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    params: Params = {}
    with TensorFiles(directory) as files:
        prefix = next((p for p in _PREFIXES if p + "embed_tokens.weight" in files), _PREFIXES[0])
        names, used = hf_names(config), set()
        for name, shape in parameter_shapes(config).items():
            is_linear = names[name][1]
            builder = Int8Builder(name, shape) if int8 and name in INT8_WEIGHTS else None
            array = _empty(shape, DTYPES[dtype]) if builder is None else None
            for index, hf_name in _tensors(name, config, prefix):
                if name == "head" and hf_name not in files and prefix.startswith("language_model."):
                    hf_name = "language_model." + hf_name
                used.add(hf_name)
                tensor_shape = shape[len(index) :]
                tensor = files.read(hf_name, tensor_shape[::-1] if is_linear else tensor_shape)
                if builder is not None:
                    builder.add(index, tensor)
                elif array is not None:
                    array[index] = tensor.T if is_linear else tensor
                del tensor
            weight = builder.weight() if builder is not None else array
            params[name] = place(name, weight) if place else weight
            del array, builder, weight
        _report_unused(files, set(files.names()) - used, config, prefix)
    return params


def save_params(
    directory: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes weights under Hugging Face's names. The same weights give the same bytes.

    Args:
      params: NumPy or JAX arrays. If they are sharded over several processes, process 0 calls this
        function while the others call `read_along`.
      dtype: float32 or bfloat16 (rounded to nearest even).
      max_shard_bytes: a larger model is split into shards with an index.
    """
    write_tensors(directory, _to_write(params, config), dtype, max_shard_bytes)


def read_along(params: Mapping[str, Any], config: ModelConfig) -> None:
    """Takes part in gathering each tensor; the other processes call it while process 0 saves."""
    for tensor in _to_write(params, config):
        tensor.values()
    for name in PROJECTION_AXES:
        if name in params:
            to_host(params[name])


def _to_write(params: Mapping[str, Any], config: ModelConfig) -> list[Tensor]:
    tensors = []
    names, shapes = hf_names(config), parameter_shapes(config)
    for name, index, hf_name in _on_disk_order(config):
        is_linear = names[name][1]
        shape = shapes[name][len(index) :]

        def values(
            name: str = name, index: tuple[int, ...] = index, is_linear: bool = is_linear
        ) -> np.ndarray:
            weight = params[name]
            if _on_host(weight):
                weight = np.asarray(weight)  # no copy, and no compiled program to slice a layer
            array = to_host(weight[index] if index else weight)
            return array.T if is_linear else array

        tensors.append(Tensor(hf_name, shape[::-1] if is_linear else shape, values))
    return tensors


def _tensors(name: str, config: ModelConfig, prefix: str) -> Iterator[tuple[tuple[int, ...], str]]:
    """The index in our stacked weight, and the name, of each tensor of a weight."""
    template = hf_names(config)[name][0]
    template = template if name == "head" else prefix + template
    if "{layer}" not in template:
        yield (), template
        return
    for row, layer in enumerate(layers_with(name, config.layer_kinds)):
        if "{expert}" not in template:
            yield (row,), template.format(layer=layer)
        else:
            for expert in range(config.num_experts):
                yield (row, expert), template.format(layer=layer, expert=expert)


def _on_disk_order(config: ModelConfig) -> list[tuple[str, tuple[int, ...], str]]:
    """(Our name, index, tensor's name), layer by layer, so that a shard holds neighbouring
    layers."""
    entries = []
    for name in parameter_shapes(config):
        layers = layers_with(name, config.layer_kinds)
        for index, hf_name in _tensors(name, config, _PREFIXES[0]):
            # The embedding table comes first, the final norm and the head last.
            layer = (
                layers[index[0]] if index else -1 if name == "embed" else config.num_hidden_layers
            )
            entries.append((layer, (name, index, hf_name)))
    return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array with the alignment that JAX needs to use it without a copy on CPU."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _on_host(weight: Any) -> bool:
    """True if a JAX array is on one CPU device."""
    devices = weight.devices() if hasattr(weight, "devices") else ()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def _report_unused(files: TensorFiles, names: set[str], config: ModelConfig, prefix: str) -> None:
    """Warns of tensors that were not used."""
    names = {name for name in names if not name.endswith(_DERIVED)}
    head = next((name for name in names if name.endswith(_HEAD)), None)
    if config.tie_word_embeddings and head and files.same(head, prefix + "embed_tokens.weight"):
        names.discard(head)  # a copy of the embedding table
    if images := {name for name in names if name.startswith(_IMAGES)}:
        names -= images
        warnings.warn(
            f"{files.directory}: a multimodal model; only its text part is read, {len(images)}"
            " tensors of its image part are not",
            stacklevel=3,
        )
    if names:
        shown = sorted(names)[:8]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        warnings.warn(
            f"{files.directory}: {len(names)} tensors are not part of the {config.architecture}"
            f" model that config.json describes and were not used: {', '.join(shown)}{more}",
            stacklevel=3,
        )
