"""Packed preference batches of a few short answers, and what their log-probabilities are, text by
text, in NumPy."""

from __future__ import annotations

import dense_reference as dense
import numpy as np

from grit_jax.data.packing import GenerativePacking
from grit_jax.data.preference import preference_batch
from grit_jax.data.token_texts import TokenText
from grit_jax.models.config import ModelConfig

VOCAB = 64
LABELS = np.array([True, False, False, True, True])
PROMPTS = [[5, 6, 7], [8, 9], [3, 4, 5, 6], [7, 7], [1, 2, 3]]
ANSWERS = [[10, 11], [12, 13, 14], [15], [16, 17, 18, 19], [20, 21]]
REJECTED = [[22], [23, 24], [25, 26, 27], [28, 29], [30, 31, 32]]


def text(prompt: list[int], answer: list[int]) -> TokenText:
    """A prompt with its answer, which is to be predicted."""
    return TokenText([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


MATCHED = [text(p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
# Each prompt with the answer before, the first one with the last.
MISMATCHED = [text(p, a) for p, a in zip(PROMPTS, [ANSWERS[-1], *ANSWERS[:-1]], strict=True)]
OTHERS = [text(p, a) for p, a in zip(PROMPTS, REJECTED, strict=True)]


def packing(rows: int = 1, prefix: bool = False) -> GenerativePacking:
    """Rows that hold two texts each."""
    return GenerativePacking(12, row_multiple=rows, prefix=prefix)


def kto(rows: int = 1, prefix: bool = False):
    """Five labelled answers, two of them undesirable."""
    return preference_batch([*MATCHED, *MISMATCHED], LABELS, packing(rows, prefix))


def dpo(rows: int = 1, prefix: bool = False):
    """Five pairs."""
    return preference_batch([*MATCHED, *OTHERS], None, packing(rows, prefix))


def log_prob(weights: dict, config: ModelConfig, one: TokenText) -> float:
    """The log-probability of a text's answer by the dense reference."""
    n = len(one.ids)
    logits = dense.forward(weights, config, one.ids, np.arange(n), np.tril(np.ones((n, n), bool)))
    x = logits.logits - logits.logits.max(-1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return sum(log_p[t - 1, one.ids[t]] for t in range(n) if one.targets[t])
