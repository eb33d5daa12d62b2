"""Adapters as a PEFT directory: what `peft.PeftModel.from_pretrained(base, directory)` opens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.sentence_transformers import SentenceModules, write_modules
from grit_jax.models.hf.weights import hf_names
from grit_jax.models.lora import TARGETS, A, B, LoraConfig
from grit_jax.models.projection import dense_modules, write_projection
from grit_jax.runtime.files import write_file, write_json


def write_adapter(
    directory: Path,
    config: ModelConfig,
    lora: LoraConfig,
    params: Mapping[str, Any],
    base: str,
    modules: SentenceModules,
) -> None:
    """Writes the adapters for PEFT, and what embeds beside them for sentence-transformers.

    `adapter_config.json` and `adapter_model.safetensors` are PEFT's (`peft:
    src/peft/tuners/lora/config.py`). A projection has no place there: it is the Dense module beside
    them, as in a model directory, to be copied beside the merged model together with
    `modules.json`.

    Args:
      params: the trained factors by our names, and the projection if there is one.
      base: directory or hub id of the model that they belong to.
      modules: how sentence-transformers embeds with the model.

    Raises:
      GritError: adapters of single experts, for which PEFT has no names.
    """
    if any(name.startswith("expert_") for name in params):
        raise GritError(
            "PEFT has no adapters for single experts; export the merged model, or train with "
            "lora.targets: [q_proj, k_proj, v_proj, o_proj]"
        )
    tensors = {}
    for name in (name for names in TARGETS.values() for name in names if name + A in params):
        module = hf_names(config)[name][0].removesuffix(".weight")
        for ours, theirs in ((A, "lora_A"), (B, "lora_B")):
            factor = np.asarray(params[name + ours], np.float32)
            for layer in range(len(factor)):  # [out, in] there
                key = f"base_model.model.model.{module.format(layer=layer)}.{theirs}.weight"
                tensors[key] = np.ascontiguousarray(factor[layer].T)
    with write_file(directory / "adapter_model.safetensors") as file:
        file.write(save(tensors, {"format": "pt"}))
    write_json(
        directory / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": list(lora.targets),
            "bias": "none",
            "fan_in_fan_out": False,
        },
    )
    write_projection(directory, params, "float32")
    modules = dataclasses.replace(modules, dense=tuple(dense_modules(params)))
    write_modules(directory, modules, config.hidden_size)
