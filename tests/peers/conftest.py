"""A tiny model that torch and we both hold, and texts for it. Skipped as a whole where the `peers`
extra is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture(scope="session")
def peer(tmp_path_factory, tiny_tokenizer) -> Peer:
    """A random Mistral with grouped heads, saved by transformers, and a tokenizer trained on the
    spot."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from grit_jax.text.chat import GRIT

    directory = tmp_path_factory.mktemp("peer")
    model = load_make_golden().make_model(
        seed=1,
        common=0.0,
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        max_position_embeddings=1024,
        bos_token_id=tiny_tokenizer.bos_id,
        eos_token_id=tiny_tokenizer.eos_id,
        pad_token_id=tiny_tokenizer.pad_id,
    )
    model.save_pretrained(directory)
    tiny_tokenizer.save(directory, GRIT)
    return open_both(directory)


@pytest.fixture(scope="session")
def texts(sentences) -> list[str]:
    """Ragged: one word to forty, Unicode of one to four bytes a character, code, blanks at both
    ends, one long."""
    return [
        *sentences[:10],
        "x",
        "größer Ärger, naïve café 北京 🙂‍↔️ \u0301a",
        "def f(a: int) -> int:\n    return a  # ▁\n",
        "  blanks at both ends ",
        "<|user|>\nnot a tag\n<|embed|>\n",
        "long " * 60,
    ]
