"""Perplexity of a model over generative examples, on the tokens that the language loss trains:
answers and their end of sequence."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grit_jax.data.example_tokenizer import ExampleTokenizer, LengthLimits
from grit_jax.data.formats import GenerativeExample
from grit_jax.data.lines import read_examples
from grit_jax.data.packing import GenerativePacking, generative_batch, round_up
from grit_jax.data.token_texts import TokenText
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.row_packing import bucket
from grit_jax.models.config import ModelConfig
from grit_jax.models.finite import describe_cause
from grit_jax.models.losses import token_losses
from grit_jax.models.transformer import Params, Transformer
from grit_jax.runtime.progress import progress, say
from grit_jax.sharding import put_rows
from grit_jax.text.chat import ChatFormat
from grit_jax.text.length import DefaultLength, length_limit, warn_truncated
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import AttentionMode, GenerativeBatch

TOKENS_PER_CALL = 8192
SHORTEST_ROW = 256
MAX_MEAN_LOSS = 700.0  # exp() of more overflows
LOGIT_BLOCK = 1024  # tokens whose logits exist at a time
MAX_LENGTH = DefaultLength(2048)  # tokens of a sequence


@dataclasses.dataclass
class PerplexityScore:
    """The perplexity of a file's answers, and how many of its examples were cut to `max_length`."""

    perplexity: float
    truncated: int


def evaluate_perplexity(
    model: GritLM, examples: str | Path | Iterable[GenerativeExample], **options: Any
) -> float:
    """`score_perplexity(...).perplexity`."""
    return score_perplexity(model, examples, **options).perplexity


def score_perplexity(
    model: GritLM,
    examples: str | Path | Iterable[GenerativeExample],
    *,
    max_length: int = MAX_LENGTH,
    raw_strings: bool = False,
    quiet: bool = False,
) -> PerplexityScore:
    """`exp` of the mean negative log-likelihood over all predicted tokens of all texts.

    A prefix language model is scored as it was trained: on the last answer of each example, after a
    bidirectional prompt.

    Args:
      examples: a JSONL file in the generative format, or its examples.
      max_length: tokens of a sequence; longer ones are truncated, counted and warned about. The
        default is lowered to the model's context if that is shorter.
      raw_strings: as `data.raw_strings` in training: documents get no format.
      quiet: no progress bar.

    Raises:
      GritError: an unreadable file, a bad line, nothing to predict, a `max_length` beyond the
        model's context, or a loss that is not finite.
    """
    texts, truncated = _tokenised(model, examples, max_length, raw_strings)
    total, count = 0.0, 0.0
    with progress(sum(len(text.ids) for text in texts), "perplexity", "tokens", quiet=quiet) as bar:
        for batch in _batches(texts, model):
            total += float(_on_mesh(_nll_step, model, batch))
            count += float(np.sum(batch.targets))
            bar.update(int(np.sum(np.asarray(batch.rows.segments) > 0)))
    mean = total / count
    _check_mean(model, mean)
    return PerplexityScore(math.exp(mean), truncated)


@dataclasses.dataclass
class TextLosses:
    """Negative log-likelihoods of whole texts (their answers), and how many tokens each predicts.

    Texts with nothing to predict are left out.
    """

    nll: Float[np.ndarray, " B"]
    tokens: Int[np.ndarray, " B"]

    @property
    def perplexity(self) -> float:
        """Of all texts together: that of `evaluate_perplexity`."""
        return math.exp(float(self.nll.sum() / self.tokens.sum()))


def text_losses(
    model: GritLM, examples: str | Path | Iterable[GenerativeExample], *, quiet: bool = False
) -> TextLosses:
    """The losses whose mean over tokens `evaluate_perplexity` takes, text by text.

    Raises:
      GritError: as `score_perplexity`.
    """
    texts, _ = _tokenised(model, examples, MAX_LENGTH, raw_strings=False)
    nll, tokens = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    with progress(sum(len(text.ids) for text in texts), "perplexity", "tokens", quiet=quiet) as bar:
        for batch in _batches(texts, model):
            losses = np.asarray(_on_mesh(_losses_step, model, batch), np.float64)
            np.add.at(nll, np.asarray(batch.sequence), losses)
            np.add.at(tokens, np.asarray(batch.sequence), np.asarray(batch.targets, np.int64))
            bar.update(int(np.sum(np.asarray(batch.rows.segments) > 0)))
    _check_mean(model, float(nll.sum() / tokens.sum()))
    return TextLosses(nll, tokens)


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """How examples become token ids.

    Attributes:
      context: tokens that the model reads.
      last_answer_only: of a prefix language model.
      raw_strings: documents get no format.
    """

    tokenizer: Tokenizer
    chat: ChatFormat
    context: int
    last_answer_only: bool = False
    raw_strings: bool = False


def read_generative(
    examples: str | Path | Iterable[GenerativeExample],
) -> list[GenerativeExample]:
    """The examples of a JSONL file in the generative format, or the given ones."""
    if isinstance(examples, (str, Path)):
        source = read_examples(examples, "generative")
        examples = [source[i] for i in range(len(source))]
    return list(examples)


def tokenised(
    form: TextFormat,
    examples: str | Path | Iterable[GenerativeExample],
    max_length: int = MAX_LENGTH,
) -> tuple[list[TokenText], int]:
    """The examples that have something to predict, and how many of all were truncated.

    Raises:
      GritError: an unreadable file, a bad line, nothing to predict, or a `max_length` beyond the
        model's context.
    """
    examples = read_generative(examples)
    max_length = length_limit(max_length, form.context)
    tokenizer = lambda length: ExampleTokenizer(
        form.tokenizer,
        form.chat,
        LengthLimits(*[length] * len(dataclasses.fields(LengthLimits))),
        raw_strings=form.raw_strings,
        last_answer_only=form.last_answer_only,
    )
    tokenized = tokenizer(max_length).generative(examples)
    # An example that fills the limit was truncated if one more token makes it longer.
    full = [e for e, text in zip(examples, tokenized, strict=True) if len(text.ids) == max_length]
    longer = tokenizer(max_length + 1).generative(full)
    truncated = sum(len(text.ids) > max_length for text in longer)
    warn_truncated(truncated, len(tokenized), max_length)
    # The first token of a sequence is never predicted.
    texts = [text for text in tokenized if any(text.targets[1:])]
    if not texts:
        raise GritError("perplexity: no example has a token to predict within max_length")
    if left_out := len(tokenized) - len(texts):
        say(
            f"perplexity: {left_out} of {len(tokenized)} examples have nothing to predict within"
            f" {max_length} tokens"
        )
    return texts, truncated


def _tokenised(
    model: GritLM,
    examples: str | Path | Iterable[GenerativeExample],
    max_length: int,
    raw_strings: bool,
) -> tuple[list[TokenText], int]:
    prefix = model.generation_mode is AttentionMode.PREFIX
    context = model.config.context_length
    form = TextFormat(model.tokenizer, model.chat, context, prefix, raw_strings)
    return tokenised(form, examples, max_length)


def _check_mean(model: GritLM, mean: float) -> None:
    if not math.isfinite(mean) or mean > MAX_MEAN_LOSS:
        cause = describe_cause(model.params, model.config.dtype)
        raise GritError(f"perplexity: the mean loss is {mean}: {cause}")


def _losses(
    params: Params, batch: GenerativeBatch, *, config: ModelConfig, mode: AttentionMode
) -> Float[Array, "B T"]:
    """Losses of the targets; 0 at all other tokens."""
    model = Transformer(config, params)
    rows = batch.rows
    out = model(rows.tokens, rows.positions, rows.segments, mode=mode, blocks=rows.blocks)
    losses = token_losses(
        out.hidden,
        rows.tokens,
        model.params(),
        softcap=config.final_logit_softcapping,
        block=LOGIT_BLOCK,
    )
    return losses * batch.targets


_losses_step = jax.jit(_losses, static_argnames=("config", "mode"))


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def _nll_step(
    params: Params, batch: GenerativeBatch, *, config: ModelConfig, mode: AttentionMode
) -> Float[Array, ""]:
    return jnp.sum(_losses(params, batch, config=config, mode=mode))


def _on_mesh(step: Callable[..., jax.Array], model: GritLM, batch: GenerativeBatch) -> jax.Array:
    """A compiled step with the model's weights, on its devices."""
    with jax.set_mesh(model.mesh) if model.mesh is not None else contextlib.nullcontext():
        if model.mesh is not None:
            batch = put_rows(batch, model.mesh)
        return step(model.params, batch, config=model.config, mode=model.generation_mode)


def _batches(texts: list[TokenText], model: GritLM) -> Iterable[GenerativeBatch]:
    """Packs all texts into batches of one shape; the last one is padded with empty rows."""
    length = bucket(max(len(text.ids) for text in texts), SHORTEST_ROW)
    size = max(1, TOKENS_PER_CALL // length)
    if model.mesh is not None:
        size = round_up(size, model.mesh.size)
    packed = generative_batch(
        texts,
        GenerativePacking(
            length,
            row_multiple=1,
            prefix=model.generation_mode is AttentionMode.PREFIX,
            pad_id=model.tokenizer.pad_id,
        ),
    )
    height = round_up(packed.rows.tokens.shape[0], size)
    fill = lambda a: np.pad(np.asarray(a), ((0, height - a.shape[0]), (0, 0)))
    whole = jax.tree.map(fill, packed)
    for start in range(0, height, size):
        part = jax.tree.map(lambda a, start=start: a[start : start + size], whole)
        # The number of sequences is a static field, not used here: setting it to a constant avoids
        # a compilation for each count.
        part.sequences = 1
        yield part
