"""The options of the losses, and what they may be."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

TEMPERATURE = 0.02  # of the original's runs; similarities are divided by it


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the losses are formed and added: `contrastive + generative_factor * language +
    cached_factor * cached`.

    Attributes:
      generative: the language loss over tokens: "token" sums over tokens and divides by sequences;
        "mixed" is the mean over tokens of each group of `mix_group_size` sequences (None: the whole
        batch), averaged over groups.
      emb_grad_scale: parity only: the original's effective gradient is 1/devices of the true one.
      symmetric: also the positives' direction, each positive against all queries; the mean of both
        directions.
      false_negatives: leaves out a negative that is too similar to the query to be one: by
        "absolute", its similarity is above `s - false_negative_margin`, `s` being that of the
        positive; by "relative", above `s - false_negative_margin * |s|`. A margin below 0 leaves
        out only what exceeds the positive by so much.
      mask_duplicates: leaves out a passage that is, token for token, one of the query's own
        positives.
      matryoshka_dims: the contrastive loss is the sum, by `matryoshka_weights` (none: 1 each), of
        those of the first `d` dimensions of the vectors, normalised anew. Empty: the whole vector
          alone.
      distillation_factor: adds so much of the divergence KL(teacher, student) over the passages of
        a query: the teacher's is the softmax of the row's `scores / distillation_temperature`, the
          student's that of the
        similarities over `temperature`. Above 0, every embedding row needs `scores`.
    """

    temperature: float = TEMPERATURE
    generative: Literal["token", "mixed"] = "mixed"
    generative_factor: float = 1.0
    cached_factor: float = 1.0
    mix_group_size: int | None = None
    emb_grad_scale: float = 1.0
    symmetric: bool = False
    false_negatives: Literal["none", "absolute", "relative"] = "none"
    false_negative_margin: float = 0.0
    mask_duplicates: bool = False
    matryoshka_dims: list[int] = dataclasses.field(default_factory=list)
    matryoshka_weights: list[float] = dataclasses.field(default_factory=list)
    distillation_factor: float = 0.0
    distillation_temperature: float = 1.0
    similarity_block: int = (
        4096  # a block of the similarity matrix has as many numbers as so many queries' rows of it
    )
    logits_block: int = 4096  # and one of the logits as many as those of so many tokens

    def __post_init__(self) -> None:
        for key in ("temperature", "distillation_temperature"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(
                    f"train.loss.{key}: must be a finite number above 0, got {getattr(self, key)}"
                )
        for key in ("generative_factor", "cached_factor", "distillation_factor", "emb_grad_scale"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"train.loss.{key}: must be a finite number >= 0, got {getattr(self, key)}"
                )
        for key in ("mix_group_size", "similarity_block", "logits_block"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"train.loss.{key}: must be at least 1, got {getattr(self, key)}")
        if not math.isfinite(self.false_negative_margin):
            raise ValueError(
                "train.loss.false_negative_margin: must be a finite number, got"
                f" {self.false_negative_margin}"
            )
        if self.false_negative_margin and self.false_negatives == "none":
            raise ValueError(
                "train.loss.false_negative_margin has no effect with train.loss.false_negatives:"
                " none"
            )
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if any(d < 1 for d in dims) or len(set(dims)) != len(dims):
            raise ValueError(
                f"train.loss.matryoshka_dims: must be different numbers of at least 1, got {dims}"
            )
        if weights and len(weights) != len(dims):
            raise ValueError(
                f"train.loss.matryoshka_weights has {len(weights)} numbers, matryoshka_dims"
                f" {len(dims)}; give one for each, or none"
            )
        if any(not 0 <= w < math.inf for w in weights):
            raise ValueError(
                f"train.loss.matryoshka_weights: must be finite numbers >= 0, got {weights}"
            )
