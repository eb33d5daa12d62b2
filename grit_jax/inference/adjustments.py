"""Logits changed before a token is chosen: penalties, biases and masks of allowed tokens.

Only an engine that is opened with `adjustable` holds the arrays for them. Its program serves every
request: what no slot asks for is skipped when it runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from grit_jax.errors import GritError
from grit_jax.models.slot_cache import put
from grit_jax.runtime.arguments import finite_number, whole_number

MOST_BIASES = 300  # tokens that a request may bias
MOST_FIRST_LABELS = 2  # labels whose log-probabilities a request may ask for: yes and no


@dataclasses.dataclass(frozen=True)
class Adjustments:
    """What a request asks for beside `Sampling`; see OpenAI's API reference, "Create chat
    completion".

    Args:
      presence_penalty: subtracted from the logit of each token that the answer already has.
      frequency_penalty: subtracted once for each time that the answer already has the token.
      logit_bias: (token id, number added to its logit), at most `MOST_BIASES`.
      logprobs: return log-probabilities of the answer's tokens and of the `TOP` most likely ones.
      labels: tokens, at most `MOST_FIRST_LABELS`, whose log-probabilities stand in the place of the
        most likely ones beside the first token; with `logprobs`.

    Raises:
      GritError: a number that is not finite, a negative id, or too many biases.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: bool = False
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        finite_number("presence_penalty", self.presence_penalty)
        finite_number("frequency_penalty", self.frequency_penalty)
        if len(self.logit_bias) > MOST_BIASES:
            raise GritError(
                f"logit_bias: expected at most {MOST_BIASES} tokens, got {len(self.logit_bias)}"
            )
        for token, bias in self.logit_bias:
            whole_number("logit_bias: a token id", token, 0)
            finite_number(f"logit_bias of token {token}", bias)
        for token in self.labels:
            whole_number("labels: a token id", token, 0)
        if len(self.labels) > MOST_FIRST_LABELS or (self.labels and not self.logprobs):
            raise GritError(
                f"labels: expected at most {MOST_FIRST_LABELS} tokens, and logprobs with them"
            )

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are chosen differently than without."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)


PLAIN = Adjustments()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class AdjustmentRows:
    """The adjustments of the requests whose prompts end with a chunk, as host arrays.

    Attributes:
      bias_ids: -1 where there is no bias.
      allowed: bit `v % 32` of word `v // 32` says whether token `v` may be the first one.
      labels: -1 where there is none.
    """

    presence: Float[Array, " P"]
    frequency: Float[Array, " P"]
    bias_ids: Int[Array, "P n"]
    biases: Float[Array, "P n"]
    allowed: UInt[Array, "P W"]
    changes: Bool[Array, " P"]
    logprobs: Bool[Array, " P"]
    labels: Int[Array, "P l"]

    def bias(self, vocab_size: int) -> Float[Array, "P V"]:
        """The number to add to each logit."""
        ids = jnp.where(self.bias_ids < 0, vocab_size, self.bias_ids)  # out of bounds: dropped
        zeros = jnp.zeros((len(ids), vocab_size), jnp.float32)
        return jax.vmap(lambda row, i, b: row.at[i].add(b, mode="drop"))(zeros, ids, self.biases)

    def apply(self, logits: Float[Array, "P V"]) -> Float[Array, "P V"]:
        """The logits that first tokens are chosen from: penalties have nothing to count yet."""

        def changed(logits: jax.Array) -> jax.Array:
            value = logits.astype(jnp.float32) + self.bias(logits.shape[-1])
            value = jnp.where(unpacked(self.allowed, logits.shape[-1]), value, -jnp.inf)
            return jnp.where(self.changes[:, None], value, logits).astype(logits.dtype)

        return jax.lax.cond(self.changes.any(), changed, lambda logits: logits, logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SlotAdjustments:
    """The adjustments of all slots of an engine.

    Attributes:
      counts: how often the answer in a slot has each token.
      allowed: as in `AdjustmentRows`, of the next token.
      changes: slots whose logits are changed.
      logprobs: slots whose log-probabilities are returned.
    """

    presence: Float[Array, " B"]
    frequency: Float[Array, " B"]
    bias: Float[Array, "B V"]
    counts: Int[Array, "B V"]
    allowed: UInt[Array, "B W"]
    changes: Bool[Array, " B"]
    logprobs: Bool[Array, " B"]

    @classmethod
    def empty(cls, slots: int, vocab_size: int) -> SlotAdjustments:
        """Those of slots without requests."""
        zeros, no = jnp.zeros(slots), jnp.zeros(slots, bool)
        bias, counts = jnp.zeros((slots, vocab_size)), jnp.zeros((slots, vocab_size), jnp.int32)
        allowed = jnp.full((slots, words(vocab_size)), 0xFFFFFFFF, jnp.uint32)
        return cls(zeros, zeros, bias, counts, allowed, no, no)

    def apply(self, logits: Float[Array, "B V"], active: Bool[Array, " B"]) -> Float[Array, "B V"]:
        """The logits that tokens are chosen from; those of slots without adjustments as they
        are."""

        def changed(logits: jax.Array) -> jax.Array:
            counts = self.counts.astype(jnp.float32)
            penalty = self.frequency[:, None] * counts + self.presence[:, None] * (counts > 0)
            value = logits.astype(jnp.float32) + self.bias - penalty
            value = jnp.where(unpacked(self.allowed, logits.shape[-1]), value, -jnp.inf)
            return jnp.where(self.changes[:, None], value, logits).astype(logits.dtype)

        return jax.lax.cond((self.changes & active).any(), changed, lambda logits: logits, logits)

    def count(self, tokens: Int[Array, " B"], active: Bool[Array, " B"]) -> SlotAdjustments:
        """With one token more in the answers that go on."""
        counts = self.counts.at[jnp.arange(len(tokens)), tokens].add(active.astype(jnp.int32))
        return dataclasses.replace(self, counts=counts)

    def begin(
        self,
        rows: AdjustmentRows,
        tokens: Int[Array, " P"],
        local: Int[Array, " P"],
        here: Bool[Array, " P"],
    ) -> SlotAdjustments:
        """With new requests, whose first tokens were chosen, in one slot of each share."""
        V = self.bias.shape[1]
        first = jax.nn.one_hot(tokens, V, dtype=jnp.int32)
        new = SlotAdjustments(
            rows.presence,
            rows.frequency,
            rows.bias(V),
            first,
            rows.allowed,
            rows.changes,
            rows.logprobs,
        )
        return jax.tree.map(lambda whole, part: _put_rows(whole, local, part, here), self, new)


@functools.partial(jax.jit, donate_argnames=("slots",))
def allow_step(
    slots: SlotAdjustments, allowed: UInt[Array, "B W"], changed: Bool[Array, " B"]
) -> SlotAdjustments:
    """Sets which tokens may come next in some slots."""
    masks = jnp.where(changed[:, None], allowed, slots.allowed)
    return dataclasses.replace(slots, allowed=masks)


def adjustment_rows(
    requests: Sequence[Adjustments],
    vocab_size: int,
    allowed: Sequence[np.ndarray | None] | None = None,
) -> AdjustmentRows:
    """Host arrays of the adjustments of `P` requests.

    Args:
      allowed: packed masks of the tokens that may come first; None: all of a request, or of all.
    """
    P, n = len(requests), MOST_BIASES
    bias_ids, biases = np.full((P, n), -1, np.int32), np.zeros((P, n), np.float32)
    labels = np.full((P, MOST_FIRST_LABELS), -1, np.int32)
    for row, request in enumerate(requests):
        for place, (token, bias) in enumerate(request.logit_bias):
            bias_ids[row, place], biases[row, place] = token, bias
        labels[row, : len(request.labels)] = request.labels
    masks = list(allowed) if allowed is not None else [None] * P
    return AdjustmentRows(
        np.asarray([request.presence_penalty for request in requests], np.float32),
        np.asarray([request.frequency_penalty for request in requests], np.float32),
        bias_ids,
        biases,
        np.stack([all_allowed(vocab_size) if mask is None else mask for mask in masks]),
        np.asarray(
            [r.changes_logits or mask is not None for r, mask in zip(requests, masks, strict=True)]
        ),
        np.asarray([request.logprobs for request in requests]),
        labels,
    )


def words(vocab_size: int) -> int:
    """32-bit words of a packed mask."""
    return -(-vocab_size // 32)


def all_allowed(vocab_size: int) -> UInt[np.ndarray, " W"]:
    """The packed mask that leaves every token."""
    return np.full(words(vocab_size), 0xFFFFFFFF, np.uint32)


def unpacked(allowed: UInt[Array, "B W"], vocab_size: int) -> Bool[Array, "B V"]:
    """Packed masks as one boolean for each token."""
    bits = (allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(len(allowed), -1)[:, :vocab_size].astype(bool)


def check_adjustments(adjustments: Adjustments, vocab_size: int, name: str) -> None:
    """Checks token ids against a vocabulary.

    Raises:
      GritError: a bias or a label of a token that the model does not have.
    """
    ids = [("logit_bias", token) for token, _ in adjustments.logit_bias]
    for field, token in (*ids, *(("labels", token) for token in adjustments.labels)):
        if token >= vocab_size:
            raise GritError(
                f"{name}: {field} has token {token}, and the vocabulary ends at {vocab_size - 1}"
            )


def _put_rows(whole: Array, local: Int[Array, " P"], part: Array, here: Bool[Array, " P"]) -> Array:
    """`slot_cache.put` for rows of any shape."""
    if whole.ndim == 1:
        return put(whole, local, part, here)
    P = len(local)
    shares = whole.reshape(P, -1, whole.shape[-1])
    one = lambda share, i, row, write: jax.lax.dynamic_update_index_in_dim(
        share,
        jnp.where(write, row.astype(share.dtype), jax.lax.dynamic_index_in_dim(share, i, 0, False)),
        i,
        0,
    )
    return jax.vmap(one)(shares, local, part, here).reshape(whole.shape)
