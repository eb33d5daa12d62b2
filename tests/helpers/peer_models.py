"""A model that torch and we both hold."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

MAKE_GOLDEN = Path(__file__).parents[1] / "training" / "make_golden.py"


def load_make_golden() -> Any:
    """The generator of the training golden files; by path, because another program has the same
    name."""
    spec = importlib.util.spec_from_file_location("make_training_golden", MAKE_GOLDEN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass
class Peer:
    """One model on both sides: transformers' with its tokenizer, and ours, opened from the same
    `directory`."""

    model: Any
    tokenizer: Any
    ours: Any
    directory: Path


def open_both(directory: Path) -> Peer:
    """What transformers and what we make of a directory."""
    import torch
    import transformers

    from grit_jax.inference.model import GritLM

    torch.set_num_threads(1)  # such small matrices gain nothing from more
    return Peer(
        transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval(),
        transformers.AutoTokenizer.from_pretrained(directory, padding_side="right"),
        GritLM.from_pretrained(directory),
        directory,
    )
