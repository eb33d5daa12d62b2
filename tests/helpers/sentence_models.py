"""Tiny models as sentence-transformers saves them; made with torch, transformers and
sentence-transformers, which only the functions import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizer_kinds

TEXTS = [
    "The river runs past the old stone house.",
    "def area(r):\n    return 3.14 * r * r\n",
    "amber",
    "Why is the sky blue? Because of Rayleigh scattering, which is stronger for short waves.",
]
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}


def backbone(folder: Path, kind: str, **settings: Any) -> Path:
    """Random weights and a tokenizer of a family (`gemma`, `qwen`, `llama3`) in `folder`."""
    import torch
    import transformers

    tokenizer_kinds.make(kind, folder / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "gemma":
        config = transformers.Gemma3TextConfig(
            **sizes,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=12,
            **settings,
        )
        cls = transformers.Gemma3TextModel
    else:
        config = transformers.Qwen3Config(**sizes, **settings)
        cls = transformers.Qwen3Model
    torch.manual_seed(0)
    model = cls(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, std=0.1, mean=0.0 if kind == "gemma" else 1.0)
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    return folder / "hf"


def sentence_model(model: Path, pooling: str = "mean", *, dense: Any = (), **options: Any):
    """A SentenceTransformer over a directory of `backbone`.

    Args:
      dense: (width, bias, torch module class) of each Dense module.
      options: `include_prompt`, `normalize`, `prompts`, `default_prompt_name`.
    """
    import torch
    from sentence_transformers import SentenceTransformer, models

    modules = [
        models.Transformer(str(model)),
        models.Pooling(24, pooling, include_prompt=options.get("include_prompt", True)),
    ]
    width = 24
    torch.manual_seed(1)
    for out, bias, activation in dense:
        modules.append(models.Dense(width, out, bias=bias, activation_function=activation()))
        width = out
    if options.get("normalize", True):
        modules.append(models.Normalize())
    return SentenceTransformer(
        modules=modules,
        prompts=options.get("prompts"),
        default_prompt_name=options.get("default_prompt_name"),
        device="cpu",
    )


def embedding_gemma(folder: Path) -> Any:
    """EmbeddingGemma in small: bidirectional Gemma 3, mean pooling, two Dense modules, Normalize."""
    import torch

    model = backbone(folder, "gemma", use_bidirectional_attention=True)
    linear = torch.nn.Identity
    return sentence_model(model, dense=[(40, False, linear), (24, False, linear)], prompts=PROMPTS)
