"""Makes tests/models/golden: tiny random models of each family, and what transformers computes with
them.

Run it with torch and transformers installed (the `peers` extra): `python
tests/models/make_golden.py [FAMILY ...]`. The tests that read the files need neither. tests/peers
compares with the same models, live.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
LENGTHS = (13, 7, 1)  # tokens of each row; the rest is padding
LONG = (40, 25, 7)  # beyond the original maximum of the scaled rotary embeddings
COMMON: dict[str, Any] = dict(
    vocab_size=160, max_position_embeddings=64, bos_token_id=1, eos_token_id=2
)
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
TINY = dict(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=40,
    max_position_embeddings=24,
)
ROPE = lambda theta: {"rope_type": "default", "rope_theta": theta}
SCALED = lambda kind, factor, **more: {
    "rope_type": kind,
    "rope_theta": 100.0,
    "factor": factor,
    **more,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": (
        "Mistral",
        dict(**SMALL, intermediate_size=48, pad_token_id=0, rms_norm_eps=1e-5, sliding_window=4),
    ),  # much smaller than the input
    "llama": (
        "Llama",
        dict(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=1,
            intermediate_size=64,
            rope_parameters=ROPE(500000.0),
        ),
    ),  # multi-query attention
    "qwen2": (
        "Qwen2",
        dict(
            **SMALL, intermediate_size=64, tie_word_embeddings=True, rope_parameters=ROPE(1000000.0)
        ),
    ),  # biases
    "qwen3": (
        "Qwen3",
        dict(**SMALL, intermediate_size=64, pad_token_id=5, head_dim=16),
    ),  # heads wider than hidden_size / num_attention_heads, norms on them
    "qwen2_windows": (
        "Qwen2",
        dict(
            SMALL,
            num_hidden_layers=3,
            intermediate_size=40,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
        ),
    ),  # the first layer sees everything, the others have a window
    "mixtral": (
        "Mixtral",
        dict(
            **SMALL,
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            router_aux_loss_coef=0.02,
        ),
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(
            SMALL,
            num_hidden_layers=4,
            intermediate_size=24,
            head_dim=16,
            num_experts=5,
            num_experts_per_tok=3,
            moe_intermediate_size=12,
            norm_topk_prob=False,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
        ),
    ),  # one layer with experts, one that would have them, two without
    "gemma2": (
        "Gemma2",
        dict(
            SMALL,
            num_hidden_layers=3,
            intermediate_size=40,
            head_dim=16,
            pad_token_id=0,
            sliding_window=4,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),  # caps that bend
    "gemma3": (
        "Gemma3Text",
        dict(
            hidden_size=24,
            num_hidden_layers=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=32,
            pad_token_id=0,
            sliding_window=4,
            query_pre_attn_scalar=24,
            layer_types=(["sliding_attention"] * 2 + ["full_attention"]) * 2
            + ["sliding_attention"] * 2,  # with a remainder
            rope_parameters={
                "full_attention": SCALED("linear", 3.0),
                "sliding_attention": ROPE(10.0),
            },
        ),
    ),
    "rope_linear": ("Llama", dict(TINY, rope_parameters=SCALED("linear", 2.5))),
    "rope_dynamic": ("Llama", dict(TINY, rope_parameters=SCALED("dynamic", 2.0))),
    "rope_llama3": (
        "Llama",
        dict(
            TINY,
            max_position_embeddings=96,
            rope_parameters=SCALED(
                "llama3",
                4.0,
                low_freq_factor=1.0,
                high_freq_factor=3.0,
                original_max_position_embeddings=24,
            ),
        ),
    ),
    "rope_yarn": (
        "Qwen3",
        dict(
            TINY,
            head_dim=16,
            max_position_embeddings=96,
            rope_parameters=SCALED(
                "yarn", 4.0, beta_fast=4.0, beta_slow=0.5, original_max_position_embeddings=24
            ),
        ),
    ),
    "rope_yarn_mscale": (
        "Llama",
        dict(
            TINY,
            max_position_embeddings=96,
            rope_parameters=SCALED(
                "yarn",
                4.0,
                original_max_position_embeddings=24,
                mscale=0.7,
                mscale_all_dim=1.3,
                truncate=False,
            ),
        ),
    ),
}


def make_model(name: str, seed: int = 0) -> Any:
    """A transformers model with random weights, biases and norms (its own are zeros and ones)."""
    import torch
    import transformers

    kind, sizes = FAMILIES[name]
    config = getattr(transformers, f"{kind}Config")(**COMMON | sizes)
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    zero_centered = kind.startswith("Gemma")
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in key and not zero_centered else 0.2 * noise)
    return model


def make_inputs(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask `[B T]`, ragged, padded on the right."""
    lengths = LONG if name.startswith("rope_") else LENGTHS
    vocabulary = (COMMON | FAMILIES[name][1])["vocab_size"]
    ids = np.random.default_rng(seed).integers(3, vocabulary, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return np.where(mask, ids, 0), mask


def run_model(model: Any, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Causal logits, hidden states (after the final norm) with `is_causal=False`, and the router's
    loss.

    With a sliding window transformers' bidirectional mask depends on the kernel: eager and sdpa see
    `|i - j| <= window`, flash attention `|i - j| < window`. `bidirectional_hidden` is the latter,
    by an explicit mask; `bidirectional_hidden_sdpa` what the call itself gives here.

    Dynamic rotary scaling goes by the longest text that the model has seen: there each text runs
    alone, shortest first.
    """
    import torch

    if "dynamic" in str(getattr(model.config, "rope_parameters", "")):
        lengths = mask.sum(1)
        parts = {
            i: _run(model, ids[i : i + 1, : lengths[i]], mask[i : i + 1, : lengths[i]])
            for i in np.argsort(lengths)
        }
        whole = {}
        for key, value in parts[0].items():
            whole[key] = np.zeros((*ids.shape, value.shape[-1]), np.float32)
            for i, part in parts.items():
                whole[key][i, : lengths[i]] = part[key][0]
        return whole
    with torch.no_grad():
        return _run(model, ids, mask)


def _run(model: Any, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    place = torch.arange(ids.shape[1])
    distance = (place[:, None] - place[None, :]).abs()

    def additive(window: int) -> Any:
        allowed = (distance < window)[None] & mask[:, None, :].bool()
        return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]

    with torch.no_grad():
        out = model(
            ids,
            attention_mask=mask,
            **({"output_router_logits": True} if has_experts(model) else {}),
        )
        native = model.model(ids, attention_mask=mask, is_causal=False).last_hidden_state
        full, window = additive(ids.shape[1]), getattr(model.config, "sliding_window", None)
        near = additive(window) if window else full
        by_layer = {"full_attention": full, "sliding_attention": near}
        mixed = hasattr(
            model.config, "layer_types"
        )  # such models take a mask for each kind of layer
        hidden = model.model(
            ids, attention_mask=by_layer if mixed else near, is_causal=False
        ).last_hidden_state
    found = {
        "causal_logits": out.logits.numpy(),
        "bidirectional_hidden": hidden.numpy(),
        "bidirectional_hidden_sdpa": native.numpy(),
    }
    return found | (
        {"router_aux_loss": out.aux_loss.reshape(1).numpy()} if has_experts(model) else {}
    )


def has_experts(model: Any) -> bool:
    """Whether it is a mixture of experts."""
    return hasattr(model.config, "router_aux_loss_coef")


def main() -> None:
    """Writes one directory a family: what transformers saves, and golden.safetensors."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    torch.set_num_threads(1)
    for name in sys.argv[1:] or FAMILIES:
        ids, mask = make_inputs(name)
        model = make_model(name)
        model.save_pretrained(GOLDEN / name)
        # Ours is to read the description; generation_config.json only repeats the ids.
        (GOLDEN / name / "generation_config.json").unlink(missing_ok=True)
        arrays = {"input_ids": ids, "attention_mask": mask, **run_model(model, ids, mask)}
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        save_file(arrays, GOLDEN / name / "golden.safetensors")
        for file in (GOLDEN / name).glob("*.safetensors"):
            file.chmod(0o644)
        gap = np.abs(arrays["bidirectional_hidden"] - arrays["bidirectional_hidden_sdpa"])[
            mask == 1
        ]
        print(
            f"{name}: native and explicit bidirectional masks differ by {gap.max():.2e}",
            file=sys.stderr,
        )
    made = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    (GOLDEN / "made_with.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
