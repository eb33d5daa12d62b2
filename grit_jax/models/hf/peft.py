"""Adapters as a PEFT directory: what `peft.PeftModel.from_pretrained(base, directory)` opens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.directory import (
    GRIT_FILE,
    DirectorySettings,
    read_settings,
    write_settings,
)
from grit_jax.models.hf.safetensors_io import Tensor, TensorFiles, write_shard
from grit_jax.models.hf.sentence_transformers import SentenceModules, read_modules, write_modules
from grit_jax.models.hf.weights import hf_names
from grit_jax.models.lora import TARGETS, A, B, LoraConfig, adapter_shapes
from grit_jax.models.parameters import parameter_shapes
from grit_jax.models.projection import dense_modules, read_projection, write_projection
from grit_jax.runtime.files import read_json, write_file, write_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
BASE_WEIGHTS = "base_weights"  # in grit.json: which weights the adapters were trained on
# Settings of PEFT that change what an adapter computes, and the values that are read here.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None,),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
}


@dataclasses.dataclass(frozen=True)
class AdapterBase:
    """The model that adapters are added to.

    Attributes:
      name: its directory or hub id.
      weights: `WeightsHash` of its weights, None if nobody recorded it.
    """

    name: str
    weights: str | None = None


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a directory of adapters holds.

    Attributes:
      params: the factors by our names, and the projection if there is one.
      settings: of the model with the adapters in it, how sentence-transformers embeds included;
        None: those of the base, as PEFT's own directories have none.
    """

    lora: LoraConfig
    params: dict[str, np.ndarray]
    base: AdapterBase
    settings: DirectorySettings | None


def write_adapter(
    directory: Path,
    config: ModelConfig,
    lora: LoraConfig,
    params: Mapping[str, Any],
    base: AdapterBase,
    settings: DirectorySettings,
    dtype: str = "float32",
) -> None:
    """Writes the adapters for PEFT, and what embeds beside them for sentence-transformers.

    `adapter_config.json` and `adapter_model.safetensors` are PEFT's (`peft:
    src/peft/tuners/lora/config.py`). A projection has no place there: it is the Dense module beside
    them, as in a model directory, to be copied beside the merged model together with
    `modules.json`. `grit.json` has the settings of the merged model and the hash of the base's
    weights.

    Args:
      config: of the base.
      params: the trained factors by our names, and the projection if there is one.
      settings: of the merged model, `settings.sentence` included.
      dtype: float32 or bfloat16.

    Raises:
      GritError: adapters of single experts, for which PEFT has no names.
    """
    if any(name.startswith("expert_") for name in params):
        raise GritError(
            "PEFT has no adapters for single experts; export the merged model, or train with "
            "lora.targets: [q_proj, k_proj, v_proj, o_proj]"
        )
    tensors = []
    for name in (name for names in TARGETS.values() for name in names if name + A in params):
        for ours in (A, B):
            factor = np.asarray(params[name + ours], np.float32)
            for layer, values in enumerate(factor.swapaxes(1, 2)):  # [out, in] there
                key = _tensor_name(config, name, ours, layer)
                tensors.append(Tensor(key, values.shape, lambda values=values: values))
    with write_file(directory / WEIGHTS_FILE) as file:
        write_shard(file, tensors, dtype)
    write_json(
        directory / CONFIG_FILE,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base.name,
            "inference_mode": True,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": list(lora.targets),
            "bias": "none",
            "fan_in_fan_out": False,
        },
    )
    write_projection(directory, params, dtype)
    dense = tuple(dense_modules(params))
    modules = settings.sentence or SentenceModules(pooling=settings.pooling)
    write_modules(directory, dataclasses.replace(modules, dense=dense), config.hidden_size)
    write_settings(directory, settings, dense, **{BASE_WEIGHTS: base.weights})


def read_adapter(directory: Path, config: ModelConfig) -> Adapter:
    """Reads what `write_adapter` or PEFT wrote; the factors as float32.

    Args:
      config: of the base.

    Raises:
      GritError: a file that is missing or damaged, an adapter of another kind than plain LoRA on
        all layers, or one whose shapes do not fit the base.
    """
    path = directory / CONFIG_FILE
    peft = read_json(path)
    for key, known in _PLAIN.items():
        if key in peft and peft[key] not in known:
            raise GritError(f"{path}: '{key}' is {peft[key]!r}; only plain LoRA can be merged here")
    try:
        lora = LoraConfig(
            rank=peft["r"],
            alpha=peft["lora_alpha"],
            dropout=0.0,
            targets=tuple(peft["target_modules"]),
        )
    except KeyError as error:
        raise GritError(f"{path}: {error} is missing") from None
    except (ValueError, TypeError) as error:
        raise GritError(f"{path}: {error}") from None
    params: dict[str, np.ndarray] = {}
    if any(name.startswith("expert_") for name in adapter_shapes(lora, parameter_shapes(config))):
        raise GritError(f"{path}: adapts single experts, which is not supported")
    with TensorFiles(directory, WEIGHTS_FILE) as files:
        shapes = adapter_shapes(lora, parameter_shapes(config))
        unread = set(files.names())
        for full, (layers, *shape) in shapes.items():
            name, kind = (full[: -len(A)], A) if full.endswith(A) else (full[: -len(B)], B)
            keys = [_tensor_name(config, name, kind, layer) for layer in range(layers)]
            unread -= set(keys)
            factors = [files.read(key, shape[::-1]).T for key in keys]
            params[full] = np.stack(factors).astype(np.float32)
    if unread:
        raise GritError(
            f"{directory / WEIGHTS_FILE}: {len(unread)} tensors belong to no weight of the base:"
            f" {', '.join(sorted(unread)[:3])}"
        )
    base = str(peft.get("base_model_name_or_path"))
    if not (directory / GRIT_FILE).is_file():
        return Adapter(lora, params, AdapterBase(base), None)
    settings, dense = read_settings(directory, {})
    modules = read_modules(directory, {})
    params |= read_projection(directory, dense, config.hidden_size, "float32")
    recorded = read_json(directory / GRIT_FILE).get(BASE_WEIGHTS)
    return Adapter(
        lora,
        params,
        AdapterBase(base, recorded),
        dataclasses.replace(settings, sentence=modules),
    )


def _tensor_name(config: ModelConfig, name: str, kind: str, layer: int) -> str:
    """PEFT's name of a factor of our weight `name` in a layer."""
    module = hf_names(config)[name][0].removesuffix(".weight").format(layer=layer)
    factor = {A: "lora_A", B: "lora_B"}[kind]
    return f"base_model.model.model.{module}.{factor}.weight"
