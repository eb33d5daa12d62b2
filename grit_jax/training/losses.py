"""The configuration of the losses (`train.loss`), checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from grit_jax.data.config import PreferenceLoss

TEMPERATURE = 0.02  # similarities are divided by it; the value of the original's runs


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The losses and their weights. The total is `contrastive + generative_factor * language +
    cached_factor * cached + preference_factor * preference`, and the factors of distillation times
    their divergences.

    Attributes:
      temperature: similarities are divided by it.
      generative: how the language loss is averaged: "token" sums over all tokens and divides by the
        number of sequences; "mixed" takes the mean over the tokens of each group of
        `mix_group_size` sequences (None: the whole batch), then the mean over groups.
      cached_distillation: weight of the divergence KL(teacher, student) of answers over cached
        documents, over the whole vocabulary, averaged over tokens as `generative` says. The teacher
        is the model itself, with the weights of the step and no gradient: it reads the documents in
        the text, in the order of the data, while the student's are shuffled. 0: no teacher.
      generative_distillation: weight of the divergence KL(teacher, student) of generative answers,
        over the whole vocabulary, averaged in the same way. The teacher is the base of a LoRA run,
        without its adapters, so that its answers are kept; `data.distilled` names the sources that
        it teaches. 0: no teacher.
      distilled_language: weight of the language loss on the examples that the base teaches. At 0
        they are learnt from its distributions alone, so that a sampled answer that the base itself
        would rarely give is not learnt as the right one.
      preference: the loss of preference rows. With `r` the log-probability of an answer (summed
        over its tokens) minus that under the reference model, the weights that the run starts from:
        "dpo" (arXiv 2305.18290) is `-log sigmoid(beta * (r_chosen - r_rejected))`, averaged over
        pairs; "kto" (arXiv 2402.01306) is `desirable_weight * (1 - sigmoid(beta * (r - z)))` for a
        desirable answer and `undesirable_weight * (1 - sigmoid(beta * (z - r)))` for another one,
        averaged over answers, where the reference point `z` is the mean of `r` over the batch's
        prompts, each with the answer to another one, at least 0 and without a gradient.
      preference_factor: its weight in the total.
      beta: how strongly the reference model holds the trained one back.
      desirable_weight, undesirable_weight: of KTO.
      label_smoothing: of DPO: the share of pairs that are taken to be labelled the wrong way round
        (conservative DPO).
      emb_grad_scale: scales the gradient of the contrastive loss. For parity only: the original's
        effective gradient is 1/devices of the true one.
      symmetric: adds the other direction, each positive against all queries, and takes the mean of
        both directions.
      false_negatives: leaves out negatives that are too similar to the query. "absolute" leaves out
        those with a similarity above `s - false_negative_margin`, where `s` is the similarity of
        the positive; "relative" those above `s - false_negative_margin * |s|`. A negative margin
        leaves out only negatives that exceed the positive by more than it.
      mask_duplicates: leaves out passages that equal, token for token, one of the query's own
        positives.
      matryoshka_dims: computes the contrastive loss over the first `d` dimensions of the vectors,
        normalised anew, for each `d`, and adds these losses with `matryoshka_weights` (default: 1
        each). Empty: over the whole vectors only.
      distillation_factor: weight of the divergence KL(teacher, student) over the passages of each
        query. The teacher is the softmax of the row's `scores / distillation_temperature`, the
        student the softmax of the similarities over `temperature`. Above 0, every embedding row
        needs `scores`.
      similarity_block: bounds memory: no more similarities exist at a time than those of this many
        queries to all passages.
      logits_block: likewise, no more logits than those of this many tokens over the vocabulary.
    """

    temperature: float = TEMPERATURE
    generative: Literal["token", "mixed"] = "mixed"
    generative_factor: float = 1.0
    cached_factor: float = 1.0
    cached_distillation: float = 0.0
    generative_distillation: float = 0.0
    distilled_language: float = 1.0
    preference: PreferenceLoss = "kto"
    preference_factor: float = 1.0
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    label_smoothing: float = 0.0
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
    similarity_block: int = 4096
    logits_block: int = 4096

    def __post_init__(self) -> None:
        for key in ("temperature", "distillation_temperature", "beta"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(
                    f"train.loss.{key}: must be a finite number above 0, got {getattr(self, key)}"
                )
        for key in (
            "generative_factor",
            "cached_factor",
            "cached_distillation",
            "generative_distillation",
            "distilled_language",
            "distillation_factor",
            "preference_factor",
            "desirable_weight",
            "undesirable_weight",
            "emb_grad_scale",
        ):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"train.loss.{key}: must be a finite number >= 0, got {getattr(self, key)}"
                )
        for key in ("mix_group_size", "similarity_block", "logits_block"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"train.loss.{key}: must be at least 1, got {getattr(self, key)}")
        if self.distilled_language != 1 and not self.generative_distillation:
            raise ValueError(
                "train.loss.distilled_language has no effect with"
                " train.loss.generative_distillation: 0"
            )
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
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                "train.loss.label_smoothing: must be at least 0 and below 0.5, got"
                f" {self.label_smoothing}"
            )
        for key, loss in (
            ("label_smoothing", "dpo"),
            ("desirable_weight", "kto"),
            ("undesirable_weight", "kto"),
        ):
            default = type(self).__dataclass_fields__[key].default
            if getattr(self, key) != default and self.preference != loss:
                raise ValueError(
                    f"train.loss.{key} has no effect with train.loss.preference: {self.preference}"
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
