"""The layouts without a cache: one pass over the whole composition with an explicit dense mask, in NumPy float64.

It shares nothing with the package but the weights and the meaning of a configuration, and is what every claim of
exactness is checked against.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from grit_jax.models.config import ModelConfig


@dataclasses.dataclass
class Dense:
    """Hidden states after the final norm and logits of every token of a composition."""

    hidden: np.ndarray
    logits: np.ndarray


def forward(params: dict, config: ModelConfig, tokens: Sequence[int], positions: np.ndarray, mask: np.ndarray) -> Dense:
    """One text of `T` tokens; `mask[t, s]` says whether token `t` sees token `s`."""
    c = config
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    T, N, K, H = len(tokens), c.num_attention_heads, c.num_key_value_heads, c.head_dim
    frequencies = c.rope_theta ** (-np.arange(0, H, 2) / H)
    angles = np.asarray(positions, np.float64)[:, None] * frequencies
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.rms_norm_eps) * weight

    def rotate(x):
        a, b = x[..., : H // 2], x[..., H // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["embed"][np.asarray(tokens)]
    for i in range(c.num_hidden_layers):
        h = norm(x, w["attention_norm"][i])
        q, k, v = (h @ w[name][i] for name in ("query", "key", "value"))
        if c.attention_bias:
            q, k, v = q + w["query_bias"][i], k + w["key_bias"][i], v + w["value_bias"][i]
        q, k, v = q.reshape(T, N, H), k.reshape(T, K, H), v.reshape(T, K, H)
        if c.qk_norm:
            q, k = norm(q, w["query_norm"][i]), norm(k, w["key_norm"][i])
        q, k = rotate(q), rotate(k)
        out = np.zeros((T, N, H))
        for n in range(N):
            scores = q[:, n] @ k[:, n * K // N].T / np.sqrt(H)
            scores = np.where(mask, scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, n] = p / p.sum(-1, keepdims=True) @ v[:, n * K // N]
        x = x + out.reshape(T, N * H) @ w["attention_out"][i]
        h = norm(x, w["mlp_norm"][i])
        gate = h @ w["gate"][i]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"][i])) @ w["down"][i]
    hidden = norm(x, w["final_norm"])
    return Dense(hidden, hidden @ (w["embed"].T if c.tie_word_embeddings else w["head"]))


def composition_mask(pieces: Sequence[int], continuation: int, window: int | None = None) -> np.ndarray:
    """Who sees whom: each piece (given by its length) all of itself and nothing else, the continuation everything
    up to itself. A window is symmetric inside a piece."""
    total = sum(pieces) + continuation
    mask = np.tril(np.ones((total, total), bool))
    start = 0
    for length in pieces:
        mask[start : start + length] = False
        mask[start : start + length, start : start + length] = True
        start += length
    if window is not None:
        place = np.arange(total)
        mask &= np.abs(place[:, None] - place[None, :]) < window
    return mask


def layout(params: dict, config: ModelConfig, pieces: Sequence[Sequence[int]], continuation: Sequence[int]) -> Dense:
    """The whole layout in one pass: positions run from the first piece to the end of the continuation."""
    tokens = [i for piece in pieces for i in piece] + list(continuation)
    mask = composition_mask([len(piece) for piece in pieces], len(continuation), config.sliding_window)
    return forward(params, config, tokens, np.arange(len(tokens)), mask)


@dataclasses.dataclass
class DenseGeneration:
    """Greedy tokens and the logits each was chosen from, `[new, V]`."""

    tokens: list[int]
    logits: np.ndarray


def greedy(
    params: dict, config: ModelConfig, pieces: Sequence[Sequence[int]], prompt: Sequence[int], new_tokens: int
) -> DenseGeneration:
    """Greedy generation that computes everything anew for every token."""
    tokens: list[int] = []
    logits = []
    for _ in range(new_tokens):
        logits.append(layout(params, config, pieces, [*prompt, *tokens]).logits[-1])
        tokens.append(int(np.argmax(logits[-1])))
    return DenseGeneration(tokens, np.stack(logits))


def embedding(
    params: dict, config: ModelConfig, ids: Sequence[int], pool_start: int, pooling: str, mode: str = "bidirectional"
) -> np.ndarray:
    """The unit vector of one text; in mode "prefix" what stands before `pool_start` is causal."""
    T = len(ids)
    mask = np.tril(np.ones((T, T), bool)) if mode != "bidirectional" else composition_mask([T], 0, config.sliding_window)
    if mode == "prefix":
        mask[pool_start:, pool_start:] = True
    hidden = forward(params, config, ids, np.arange(T), mask).hidden
    if pooling == "cls":
        vector = hidden[0]
    elif pooling == "lasttoken":
        vector = hidden[-1]
    else:
        weights = np.arange(1, T - pool_start + 1) if pooling == "weightedmean" else np.ones(T - pool_start)
        vector = weights @ hidden[pool_start:] / weights.sum()
    return vector / np.linalg.norm(vector)
