"""Preference losses: KTO (arXiv 2402.01306) and DPO (arXiv 2305.18290), as TRL computes them.

Both compare the log-probability of an answer, summed over its tokens, with that under a frozen
reference model: the weights that the run starts from (of a LoRA run, the base without adapters).
The log-ratio of the two times `beta` is the answer's reward.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grit_jax.models.losses import target_losses
from grit_jax.models.transformer import Params, Transformer
from grit_jax.training.language import (
    LanguagePass,
    Parts,
    read_rows,
    states_at,
    target_columns,
)
from grit_jax.training.losses import LossConfig
from grit_jax.training.step_config import StepConfig, in_chunks
from grit_jax.types import GenerativeBatch, ModelOutput, PreferenceBatch

# Those that are NaN where a batch has no answer of the kind.
REWARDS = ("rewards_chosen", "rewards_rejected", "rewards_margin")


def preference_pass(
    params: Params,
    batch: PreferenceBatch,
    config: StepConfig,
    point: Float[Array, ""] | None = None,
) -> LanguagePass:
    """The preference loss of packed answers; `batch.text` may be a portion of the rows.

    Neither model has dropout: its noise would be part of the log-ratios.

    Args:
      point: the reference point, computed before (None: it is computed here, if there is one).
    """
    text = batch.text
    if point is None and batch.mismatched is not None:
        point = kto_reference_point(params, batch.mismatched, config)
    model = Transformer(config.model, (config.teacher_weights_of or config.weights_of)(params))
    out = read_rows(model, text.rows, config)
    ratios = _log_probs(model, out, text, config) - _reference_log_probs(params, text, config)
    counted = jnp.zeros(text.sequences).at[text.sequence].max(text.targets) > 0
    result = preference_losses(ratios, counted, batch, point, config.loss)
    if point is not None:
        result.metrics["preference_kl"] = point
    return LanguagePass(result.loss, out.router, metrics=result.metrics)


def kto_reference_point(
    params: Params, mismatched: GenerativeBatch, config: StepConfig
) -> Float[Array, ""]:
    """KTO's reference point (see `preference.reference_point`), `preference_chunk` rows at a time;
    no gradient reaches the weights."""
    params = jax.lax.stop_gradient(params)
    model = Transformer(config.model, (config.teacher_weights_of or config.weights_of)(params))

    def ratios(part: GenerativeBatch) -> Float[Array, " n"]:
        own = _log_probs(model, read_rows(model, part.rows, config), part, config)
        return own - _reference_log_probs(params, part, config)

    rows = len(mismatched.targets)
    chunk = config.preference_chunk or rows
    if chunk >= rows:
        return reference_point(ratios(mismatched))
    return reference_point(jax.lax.map(ratios, in_chunks(mismatched, chunk)).sum(axis=0))


def _reference_log_probs(
    params: Params, text: GenerativeBatch, config: StepConfig
) -> Float[Array, " n"]:
    if config.base_weights_of is None:
        raise ValueError("a preference loss needs the weights of a reference model")
    model = Transformer(config.model, config.base_weights_of(jax.lax.stop_gradient(params)))
    return _log_probs(model, read_rows(model, text.rows, config), text, config)


def _log_probs(
    model: Transformer, out: ModelOutput, text: GenerativeBatch, config: StepConfig
) -> Float[Array, " n"]:
    """The log-probability of each sequence's targets, summed; 0 for a sequence that has none
    here."""
    here = target_columns(text)
    at = lambda x: jnp.take_along_axis(x, here, axis=1)
    losses = target_losses(
        states_at(out.hidden, here - 1),
        at(text.rows.tokens),
        model.params(),
        softcap=config.model.final_logit_softcapping,
        block=config.loss.logits_block,
    )
    return jnp.zeros(text.sequences).at[at(text.sequence)].add(-losses * at(text.targets))


@dataclasses.dataclass
class PreferenceLosses:
    """The loss of a batch's answers, or of some of them, and its metrics.

    Each number is a sum over these answers that is divided by counts of the whole batch, so the
    numbers of portions add up. `rewards_chosen` and `rewards_rejected` are mean rewards (KTO: of
    the desirable and of the undesirable answers), `rewards_margin` is their difference, and
    `rewards_accuracy` the share of pairs whose chosen answer has the larger reward (KTO: of answers
    that are on the right side of the reference point).
    """

    loss: Float[Array, ""]
    metrics: Parts


def preference_losses(
    ratios: Float[Array, " n"],
    counted: Bool[Array, " n"],
    batch: PreferenceBatch,
    point: Float[Array, ""] | None,
    config: LossConfig,
) -> PreferenceLosses:
    """The configured loss from the log-ratios of a batch's answers.

    Args:
      ratios: log-probability of each answer minus that under the reference model.
      counted: the answers to sum over.
      point: the reference point, of KTO.
    """
    if config.preference == "dpo":
        return _dpo(ratios, counted, config)
    assert point is not None and batch.desirable is not None
    return _kto(ratios, counted, batch.desirable, point, config)


def reference_point(ratios: Float[Array, " n"]) -> Float[Array, ""]:
    """KTO's estimate of the divergence of the trained model from the reference model: the mean
    log-ratio of mismatched texts, at least 0, a constant to the gradient.

    TRL takes the mean over the batch of each device and then over devices; here it is the mean over
    the global batch.
    """
    return jax.lax.stop_gradient(jnp.maximum(ratios.mean(), 0.0))


def _kto(
    ratios: Float[Array, " n"],
    counted: Bool[Array, " n"],
    desirable: Bool[Array, " n"],
    point: Float[Array, ""],
    config: LossConfig,
) -> PreferenceLosses:
    sign = jnp.where(desirable, 1.0, -1.0)
    weight = jnp.where(desirable, config.desirable_weight, config.undesirable_weight)
    margin = sign * (ratios - point)
    losses = weight * (1 - jax.nn.sigmoid(config.beta * margin))
    rewards = config.beta * jax.lax.stop_gradient(ratios)
    mean = lambda values, among: jnp.where(counted & among, values, 0.0).sum() / among.sum()
    everything = jnp.ones_like(desirable)
    return _with_metrics(
        mean(losses, everything),
        mean(rewards, desirable),
        mean(rewards, ~desirable),
        mean(margin > 0, everything),
    )


def _dpo(
    ratios: Float[Array, " n"], counted: Bool[Array, " n"], config: LossConfig
) -> PreferenceLosses:
    """Pairs share a row, so a portion of the rows has both answers of a pair or none."""
    pairs = ratios.reshape(2, -1)
    logits = config.beta * (pairs[0] - pairs[1])
    losses = -(1 - config.label_smoothing) * jax.nn.log_sigmoid(logits)
    losses -= config.label_smoothing * jax.nn.log_sigmoid(-logits)
    rewards = config.beta * jax.lax.stop_gradient(pairs)
    mean = lambda values: jnp.where(counted.reshape(2, -1)[0], values, 0.0).mean()
    return _with_metrics(
        mean(losses), mean(rewards[0]), mean(rewards[1]), mean(rewards[0] > rewards[1])
    )


def _with_metrics(loss: Array, chosen: Array, rejected: Array, accuracy: Array) -> PreferenceLosses:
    metrics = {
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "rewards_margin": chosen - rejected,
        "rewards_accuracy": accuracy,
    }
    return PreferenceLosses(loss, metrics)
