"""The layouts without a cache: one pass over the whole composition with an explicit dense mask, in
NumPy float64.

It shares nothing with the package but the weights and the meaning of a configuration, and is what
every claim of exactness is checked against.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from grit_jax.models.config import ModelConfig


@dataclasses.dataclass
class Dense:
    """Hidden states after the final norm and logits of every token of a composition."""

    hidden: np.ndarray
    logits: np.ndarray


def forward(
    params: dict, config: ModelConfig, tokens: Sequence[int], positions, mask, xp=np
) -> Dense:
    """One text of `T` tokens; `mask[t, s]` says whether token `t` sees token `s`, windows aside.

    A layer's window goes by position on both sides; where nothing later is seen, the second side
    says nothing.

    Args:
      xp: NumPy (in float64), or jax.numpy for gradients.
    """
    c, H = config, config.head_dim
    w = {
        name: np.asarray(value, np.float64) if xp is np else value for name, value in params.items()
    }
    T, N, K = len(tokens), c.num_attention_heads, c.num_key_value_heads
    positions = np.asarray(positions, np.float64)
    near = lambda window: np.abs(positions[:, None] - positions[None, :]) < (window or np.inf)

    def norm(x, weight):
        return (
            x
            / xp.sqrt((x * x).mean(-1, keepdims=True) + c.rms_norm_eps)
            * (weight + c.zero_centered_norm)
        )

    def rotate(x, local):
        # As a complex product: the halves of a head are the real and the imaginary parts.
        frequencies, factor = rotary(c, local)
        turn = factor * np.exp(1j * positions[:, None] * frequencies)[:, None]
        y = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * turn
        return xp.concatenate([y.real, y.imag], -1)

    def activation(x):
        if c.hidden_act == "silu":
            return x / (1 + xp.exp(-x))
        return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def bend(x, cap):
        return x if cap is None else cap * xp.tanh(x / cap)

    def attention(h, i, kind):
        q, k, v = (h @ w[name][i] for name in ("query", "key", "value"))
        if c.attention_bias:
            q, k, v = q + w["query_bias"][i], k + w["key_bias"][i], v + w["value_bias"][i]
        q, k, v = q.reshape(T, N, H), k.reshape(T, K, H), v.reshape(T, K, H)
        if c.qk_norm:
            q, k = norm(q, w["query_norm"][i]), norm(k, w["key_norm"][i])
        q, k = rotate(q, kind.local_rope), rotate(k, kind.local_rope)
        k, v = (xp.repeat(y, N // K, axis=1) for y in (k, v))
        scores = xp.einsum("tnh,snh->nts", q, k) / math.sqrt(c.query_pre_attn_scalar or H)
        scores = xp.where(mask & near(kind.window), bend(scores, c.attn_logit_softcapping), -np.inf)
        p = xp.exp(scores - scores.max(-1, keepdims=True))
        out = xp.einsum("nts,snh->tnh", p / p.sum(-1, keepdims=True), v)
        return out.reshape(T, N * H) @ w["attention_out"][i]

    def feed_forward(h, i):
        return (activation(h @ w["gate"][i]) * (h @ w["up"][i])) @ w["down"][i]

    def experts(h, i):
        """Every expert on every token, weighted by what the router gives it: nothing but what it
        chose."""
        router = xp.exp(h @ w["router"][i])
        router = router / router.sum(-1, keepdims=True)
        threshold = xp.sort(router, -1)[:, -c.num_experts_per_tok][:, None]
        router = xp.where(router >= threshold, router, 0)
        if c.norm_topk_prob:
            router = router / router.sum(-1, keepdims=True)
        gate, up, down = (w[f"expert_{name}"][i] for name in ("gate", "up", "down"))
        wide = activation(xp.einsum("td,edf->etf", h, gate)) * xp.einsum("td,edf->etf", h, up)
        return xp.einsum("te,etf,efd->td", router, wide, down)

    x = w["embed"][np.asarray(tokens)] * (math.sqrt(c.hidden_size) if c.scale_embeddings else 1)
    dense = sparse = 0
    for i, kind in enumerate(c.layer_kinds):
        out = attention(norm(x, w["attention_norm"][i]), i, kind)
        x = x + (norm(out, w["attention_post_norm"][i]) if c.post_norms else out)
        h = norm(x, w["mlp_norm"][i])
        out = experts(h, sparse) if kind.experts else feed_forward(h, dense)
        x = x + (norm(out, w["mlp_post_norm"][i]) if c.post_norms else out)
        dense, sparse = dense + (not kind.experts), sparse + kind.experts
    hidden = norm(x, w["final_norm"])
    logits = hidden @ (w["embed"].T if c.tie_word_embeddings else w["head"])
    return Dense(hidden, bend(logits, c.final_logit_softcapping))


def rotary(config: ModelConfig, local: bool) -> tuple[np.ndarray, float]:
    """Radians a position of every frequency, and what rotated vectors are multiplied by; dimension
    by dimension."""
    c, scaling, H = config, None if local else config.rope_scaling, config.head_dim
    theta = c.rope_local_base_freq if local else c.rope_theta
    frequencies = []
    for i in range(H // 2):
        f = theta ** (-2 * i / H)
        if scaling is None:
            kept = 1.0
        elif scaling.rope_type == "linear":
            kept = 0.0
        elif scaling.rope_type == "llama3":
            turns = scaling.original_max_position_embeddings * f / (2 * math.pi)
            kept = (turns - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
        else:
            assert scaling.rope_type == "yarn" and scaling.truncate
            place = lambda turns: (
                H
                / 2
                * math.log(scaling.original_max_position_embeddings / turns / 2 / math.pi, theta)
            )
            low = max(math.floor(place(scaling.beta_fast)), 0)
            high = min(math.ceil(place(scaling.beta_slow)), H - 1)
            kept = (high - i) / max(high - low, 0.001)
        kept = min(max(kept, 0.0), 1.0)
        frequencies.append(f * kept + (f / scaling.factor * (1 - kept) if scaling else 0))
    yarn = scaling is not None and scaling.rope_type == "yarn"
    return np.array(frequencies), (0.1 * math.log(scaling.factor) + 1 if yarn else 1.0)


def composition_mask(pieces: Sequence[int], continuation: int) -> np.ndarray:
    """Who sees whom: each piece (given by its length) all of itself and nothing else, the
    continuation everything up to itself."""
    total = sum(pieces) + continuation
    mask = np.tril(np.ones((total, total), bool))
    start = 0
    for length in pieces:
        mask[start : start + length] = False
        mask[start : start + length, start : start + length] = True
        start += length
    return mask


def layout(
    params: dict,
    config: ModelConfig,
    pieces: Sequence[Sequence[int]],
    continuation: Sequence[int],
    colliding: bool = False,
) -> Dense:
    """The whole layout in one pass: positions run from the first piece to the end of the
    continuation.

    Args:
      colliding: each piece stands at the positions of its own pass, from 0, and the continuation
        after the number of all pieces' tokens (`gritlm: rag/eval.py`).
    """
    tokens = [i for piece in pieces for i in piece] + list(continuation)
    mask = composition_mask([len(piece) for piece in pieces], len(continuation))
    positions = np.arange(len(tokens))
    if colliding:
        own = [np.arange(len(piece)) for piece in pieces]
        positions = np.concatenate([*own, positions[len(tokens) - len(continuation) :]])
    return forward(params, config, tokens, positions, mask)


@dataclasses.dataclass
class DenseGeneration:
    """Greedy tokens and the logits each was chosen from, `[new, V]`."""

    tokens: list[int]
    logits: np.ndarray


def greedy(
    params: dict,
    config: ModelConfig,
    pieces: Sequence[Sequence[int]],
    prompt: Sequence[int],
    new_tokens: int,
    colliding: bool = False,
) -> DenseGeneration:
    """Greedy generation that computes everything anew for every token."""
    tokens: list[int] = []
    logits = []
    for _ in range(new_tokens):
        logits.append(layout(params, config, pieces, [*prompt, *tokens], colliding).logits[-1])
        tokens.append(int(np.argmax(logits[-1])))
    return DenseGeneration(tokens, np.stack(logits))


def embedding(
    params: dict,
    config: ModelConfig,
    ids: Sequence[int],
    pool_start: int,
    pooling: str,
    mode: str = "bidirectional",
) -> np.ndarray:
    """The unit vector of one text; in mode "prefix" what stands before `pool_start` is causal."""
    T = len(ids)
    mask = np.tril(np.ones((T, T), bool)) if mode != "bidirectional" else composition_mask([T], 0)
    if mode == "prefix":
        mask[pool_start:, pool_start:] = True
    hidden = forward(params, config, ids, np.arange(T), mask).hidden
    if pooling == "cls":
        vector = hidden[0]
    elif pooling == "lasttoken":
        vector = hidden[-1]
    else:
        weights = (
            np.arange(1, T - pool_start + 1)
            if pooling == "weightedmean"
            else np.ones(T - pool_start)
        )
        vector = weights @ hidden[pool_start:] / weights.sum()
    return vector / np.linalg.norm(vector)
