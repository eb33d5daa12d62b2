"""Makes tests/models/golden: tiny random models of each family, and what transformers computes with them.

Run it with torch and transformers installed (the `peers` extra): `python tests/models/make_golden.py`. The
tests that read the files need neither. tests/peers compares with the same models, live.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
LENGTHS = (13, 7, 1)  # tokens of each row; the rest is padding
COMMON: dict[str, Any] = dict(vocab_size=160, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
ROPE = lambda theta: {"rope_type": "default", "rope_theta": theta}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", dict(
        **SMALL, intermediate_size=48, pad_token_id=0, rms_norm_eps=1e-5,
        sliding_window=4)),  # much smaller than the input
    "llama": ("Llama", dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=1,
        intermediate_size=64, rope_parameters=ROPE(500000.0))),  # multi-query attention
    "qwen2": ("Qwen2", dict(
        **SMALL, intermediate_size=64, tie_word_embeddings=True,
        rope_parameters=ROPE(1000000.0))),  # biases
    "qwen3": ("Qwen3", dict(
        **SMALL, intermediate_size=64, pad_token_id=5,
        head_dim=16)),  # heads wider than hidden_size / num_attention_heads, norms on them
}  # fmt: skip


def make_model(name: str, seed: int = 0) -> Any:
    """A transformers model with random weights, biases and norms (its own are zeros and ones)."""
    import torch
    import transformers

    kind, sizes = FAMILIES[name]
    config = getattr(transformers, f"{kind}Config")(**COMMON, **sizes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in key else 0.2 * noise)
    return model


def make_inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask `[B T]`, ragged, padded on the right."""
    ids = np.random.default_rng(seed).integers(3, COMMON["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    return np.where(mask, ids, 0), mask


def run_model(model: Any, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Causal logits, and hidden states (after the final norm) with `is_causal=False`.

    With a sliding window transformers' bidirectional mask depends on the kernel: eager and sdpa see
    `|i - j| <= window`, flash attention `|i - j| < window`. `bidirectional_hidden` is the latter, by an
    explicit mask; `bidirectional_hidden_sdpa` what the call itself gives here.
    """
    import torch

    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        native = model.model(ids, attention_mask=mask, is_causal=False).last_hidden_state
        place = torch.arange(ids.shape[1])
        window = getattr(model.config, "sliding_window", None) or ids.shape[1]
        near = (place[:, None] - place[None, :]).abs() < window
        allowed = near[None] & mask[:, None, :].bool()
        additive = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]
        hidden = model.model(ids, attention_mask=additive, is_causal=False).last_hidden_state
    return {
        "causal_logits": logits.numpy(),
        "bidirectional_hidden": hidden.numpy(),
        "bidirectional_hidden_sdpa": native.numpy(),
    }


def main() -> None:
    """Writes one directory a family: what transformers saves, and golden.safetensors."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    torch.set_num_threads(1)
    ids, mask = make_inputs()
    for name in FAMILIES:
        model = make_model(name)
        model.save_pretrained(GOLDEN / name)
        # Ours is to read the description; generation_config.json only repeats the ids.
        (GOLDEN / name / "generation_config.json").unlink(missing_ok=True)
        arrays = {"input_ids": ids, "attention_mask": mask, **run_model(model, ids, mask)}
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        save_file(arrays, GOLDEN / name / "golden.safetensors")
        for file in (GOLDEN / name).glob("*.safetensors"):
            file.chmod(0o644)
        gap = np.abs(arrays["bidirectional_hidden"] - arrays["bidirectional_hidden_sdpa"])[mask == 1]
        print(f"{name}: native and explicit bidirectional masks differ by {gap.max():.2e}", file=sys.stderr)
    made = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    (GOLDEN / "made_with.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
