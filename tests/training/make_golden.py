"""Makes tests/training/golden: losses and gradients of the original's formulas, computed by torch
and transformers.

Run it with the `peers` extra installed: `python tests/training/make_golden.py`. test_golden.py,
which reads the files, needs no torch; tests/peers/test_joint_step.py computes the same live, with
other weights and batches, and checks that the files are what this program makes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
VOCABULARY, TOKEN_FACTOR, GROUP = 64, 0.3, 2
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    rms_norm_eps=1e-5,
    sliding_window=None,
)
COMMON = 0.7
LR, WEIGHT_DECAY, CLIP, SMALL = 1e-2, 0.1, 1.0, 0.02


def make_model(seed: int = 0, common: float = COMMON, **sizes: Any) -> Any:
    """A transformers Mistral whose weights are all random, norms included; `common` as in
    `randomised`."""
    import transformers

    model = transformers.MistralForCausalLM(transformers.MistralConfig(**{**SIZES, **sizes})).eval()
    return randomised(model, seed, common)


def randomised(model: Any, seed: int, common: float = COMMON) -> Any:
    """Weights large enough that attention is far from uniform, and tokens that have something in
    common: the vectors of random ones are so far apart that at a temperature of 0.02 nothing but
    the largest score counts."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            mean = 1.0 if "norm" in name else common if "embed_tokens" in name else 0.0
            weight.copy_(mean + 0.25 * noise)
    return model


def make_batch(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Padded arrays: 4 queries, 12 passages (a positive and two negatives each), 5 sequences of one
    or two turns."""
    rng = np.random.default_rng(seed)

    def padded(lengths: np.ndarray) -> dict[str, np.ndarray]:
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = rng.integers(3, VOCABULARY, mask.shape)
        ids[:, 0] = 1
        return {"input_ids": ids * mask, "attention_mask": mask}

    queries, passages = padded(np.array([9, 5, 12, 7])), padded(rng.integers(3, 15, 12))
    queries["instruction_lens"] = np.array([6, 2, 5, 6])
    passages["instruction_lens"] = np.full(12, 2)
    sequences = padded(np.array([11, 16, 6, 13, 9]))
    labels = np.where(sequences["attention_mask"] == 1, sequences["input_ids"], -100)
    for row, prompts in enumerate(
        [[(0, 4)], [(0, 5), (8, 12)], [(0, 3)], [(0, 2), (5, 9)], [(1, 1)]]
    ):
        for (
            start,
            end,
        ) in prompts:  # the last row trains from its first token on, which nothing predicts
            labels[row, start:end] = -100
    return {"queries": queries, "passages": passages, "sequences": sequences | {"labels": labels}}


def tensors(batch: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """The batch for torch."""
    import torch

    return {kind: {k: torch.from_numpy(v) for k, v in part.items()} for kind, part in batch.items()}


def as_ours(model: Any, values: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensors by the names of the model's weights (gradients, say) under our names and stacked as
    ours are."""
    import copy

    import torch

    from grit_jax.models.hf.directory import read_model_directory

    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(values[name])
    with tempfile.TemporaryDirectory() as folder:
        twin.save_pretrained(folder)
        return dict(read_model_directory(folder).params)


def grouped(model: Any, sequences: dict[str, Any]) -> Any:
    """The mixed loss of groups of `GROUP` sequences, averaged: what as many devices report
    together."""
    import original
    import torch

    starts = range(0, len(sequences["labels"]), GROUP)
    groups = [{k: v[a : a + GROUP] for k, v in sequences.items()} for a in starts]
    return torch.stack([original.language(model, group, "mixed") for group in groups]).mean()


def compute(model: Any, batch: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`loss/NAME` and `gradient/NAME/WEIGHT` of each part; and the steps of AdamW."""
    import original

    parts = tensors(batch)
    contrastive = lambda: original.contrastive(
        *(original.embed(model, parts[side]) for side in ("queries", "passages"))
    )
    losses = {
        "emb": contrastive,
        "token": lambda: original.language(model, parts["sequences"], "token", TOKEN_FACTOR),
        "mixed": lambda: original.language(model, parts["sequences"], "mixed"),
        "groups": lambda: grouped(model, parts["sequences"]),
    }
    found: dict[str, np.ndarray] = {}
    for name, loss in losses.items():
        value, gradient = original.gradients(model, loss)
        found[f"loss/{name}"] = np.array([value], np.float32)
        if name != "mixed":
            found |= {f"gradient/{name}/{k}": v for k, v in as_ours(model, gradient).items()}
    return found | adamw_steps(model, contrastive, losses["token"], parts)


def adamw_steps(
    model: Any, contrastive: Any, token: Any, parts: dict[str, Any]
) -> dict[str, np.ndarray]:
    """`norm` of two gradients, `emb + groups` and a small part of `token`, and `stepped/WEIGHT`
    after a step on each.

    The first is clipped and the second is not: Adam's first step alone would hardly know of the
    clipping.
    """
    import original
    import torch

    optimizer = original.adamw(model, LR, WEIGHT_DECAY)
    first, second = (
        lambda: contrastive() + grouped(model, parts["sequences"]),
        lambda: SMALL * token(),
    )
    gradients, norms = [original.gradients(model, loss)[1] for loss in (first, second)], []
    for gradient in gradients:
        for name, weight in model.named_parameters():
            weight.grad = gradient[name]
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
    stepped = {
        f"stepped/{name}": value
        for name, value in as_ours(model, dict(model.named_parameters())).items()
    }
    return {"norms": np.array(norms, np.float32), **stepped}


def main() -> None:
    """Writes the model directory as transformers saves it, and golden.safetensors beside it."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "helpers")]
    torch.set_num_threads(1)
    model, batch = make_model(), make_batch()
    model.save_pretrained(GOLDEN)
    (GOLDEN / "generation_config.json").unlink(missing_ok=True)
    arrays = {
        f"{kind}/{name}": array for kind, part in batch.items() for name, array in part.items()
    }
    arrays |= compute(model, batch)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        GOLDEN / "golden.safetensors",
    )
    for file in GOLDEN.glob("*.safetensors"):
        file.chmod(0o644)
    made = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    (GOLDEN / "made_with.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
