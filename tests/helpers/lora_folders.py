"""Adapters of a tiny model as PEFT's directories, and the merged models as independent truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from grit_jax.inference.model import GritLM
from grit_jax.models.hf.directory import DirectorySettings
from grit_jax.models.hf.merge import write_merged
from grit_jax.models.hf.peft import AdapterBase, write_adapter
from grit_jax.models.hf.sentence_transformers import modules_for_prompt
from grit_jax.models.lora import LoraConfig, adapter_shapes
from grit_jax.models.parameters import parameter_shapes

# Different ranks, scales (2 and 1.4) and targets.
LORAS = {
    "red": LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj")),
    "blue": LoraConfig(rank=5, alpha=7.0, targets=("k_proj", "v_proj", "gate_proj", "o_proj")),
}
POOLING = {"red": "mean", "blue": "lasttoken"}


@dataclasses.dataclass(frozen=True)
class AdapterFolders:
    """A base's directory, its adapters' directories, and the merged models by name."""

    base: Path
    adapters: dict[str, Path]
    merged: dict[str, GritLM]


def write_folders(model: GritLM, root: Path) -> AdapterFolders:
    """Adapters with random factors, large enough to change every answer."""
    model.save_pretrained(root / "base")
    folders, merged = {}, {}
    for number, (name, lora) in enumerate(LORAS.items()):
        rng = np.random.default_rng(number)
        shapes = adapter_shapes(lora, parameter_shapes(model.config))
        factors = {
            key: rng.normal(scale=0.3, size=shape).astype(np.float32)
            for key, shape in shapes.items()
        }
        pooling = POOLING[name]
        settings = DirectorySettings(pooling, sentence=modules_for_prompt(pooling, "<|embed|>"))
        folders[name] = root / name
        folders[name].mkdir()
        base = AdapterBase("the/base", model.weights_hash)
        write_adapter(folders[name], model.config, lora, factors, base, settings)
        write_merged(root / "base", folders[name], root / f"merged-{name}")
        merged[name] = GritLM.from_pretrained(root / f"merged-{name}")
    return AdapterFolders(root / "base", folders, merged)
