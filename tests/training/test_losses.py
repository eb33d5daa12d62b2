"""What a configuration of the losses may not say."""

from __future__ import annotations

import pytest

from grit_jax.training.losses import LossConfig


@pytest.mark.parametrize(
    "change, message",
    [
        ({"temperature": 0.0}, "train.loss.temperature: must be a finite number above 0"),
        ({"temperature": float("nan")}, "train.loss.temperature"),
        (
            {"distillation_temperature": -1.0},
            "train.loss.distillation_temperature: must be a finite number above 0",
        ),
        ({"generative_factor": -1.0}, "train.loss.generative_factor: must be"),
        ({"cached_distillation": -0.1}, "train.loss.cached_distillation: must be a finite number"),
        ({"generative_distillation": float("nan")}, "train.loss.generative_distillation: must be"),
        ({"distillation_factor": float("inf")}, "train.loss.distillation_factor"),
        ({"emb_grad_scale": -0.5}, "train.loss.emb_grad_scale"),
        ({"beta": 0.0}, "train.loss.beta: must be a finite number above 0"),
        ({"preference_factor": -1.0}, "train.loss.preference_factor: must be"),
        (
            {"preference": "dpo", "label_smoothing": 0.5},
            "label_smoothing: must be at least 0 and below 0.5, got 0.5",
        ),
        ({"label_smoothing": 0.1}, "label_smoothing has no effect with .*preference: kto"),
        (
            {"preference": "dpo", "undesirable_weight": 2.0},
            "undesirable_weight has no effect with train.loss.preference: dpo",
        ),
        ({"mix_group_size": 0}, "train.loss.mix_group_size: must be at least 1, got 0"),
        ({"similarity_block": 0}, "train.loss.similarity_block: must be at least 1"),
        (
            {"false_negatives": "relative", "false_negative_margin": float("nan")},
            "false_negative_margin: must be a finite number",
        ),
        ({"false_negative_margin": 0.1}, "no effect with train.loss.false_negatives: none"),
        ({"distilled_language": 0.0}, "no effect with train.loss.generative_distillation: 0"),
        (
            {"distilled_language": -1.0, "generative_distillation": 1.0},
            "distilled_language: must be a finite number >= 0",
        ),
        ({"matryoshka_dims": [64, 0]}, "matryoshka_dims: must be different numbers of at least 1"),
        ({"matryoshka_dims": [64, 64]}, "matryoshka_dims: must be different"),
        (
            {"matryoshka_dims": [64, 32], "matryoshka_weights": [1.0]},
            "has 1 numbers, matryoshka_dims 2",
        ),
        ({"matryoshka_weights": [1.0]}, "has 1 numbers, matryoshka_dims 0"),
        (
            {"matryoshka_dims": [64], "matryoshka_weights": [-1.0]},
            "matryoshka_weights: must be",
        ),
    ],
)
def test_nonsense_is_refused_by_key(change, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**change)
