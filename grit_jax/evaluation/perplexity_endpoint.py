"""Perplexity of a model behind an OpenAI-compatible server, by `/v1/completions` with `echo` and
`logprobs`.

With the model's tokenizer, prompts are token ids, the same as in this process. Without it they are
texts, which the server tokenises; the places of its tokens in the text say which ones are answers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from grit_jax.data.formats import GenerativeExample
from grit_jax.data.token_texts import TokenText
from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.harness_endpoint import server_context
from grit_jax.evaluation.perplexity import (
    MAX_LENGTH,
    MAX_MEAN_LOSS,
    PerplexityScore,
    TextFormat,
    read_generative,
    tokenised,
)
from grit_jax.inference.opening import text_settings
from grit_jax.models.hf.sources import resolve
from grit_jax.text.chat import FORMATS, ChatFormat
from grit_jax.text.length import DefaultLength
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import AttentionMode

TOKENS_PER_REQUEST, TEXTS_PER_REQUEST = 8192, 16
CHARACTERS_PER_TOKEN = 4  # about
# Servers send -9999 where a log-probability is too low for JSON.
LEAST_LOGPROB = -9000.0
UNKNOWN = "\ufffd"  # in the text of a token that is a part of a character

T = TypeVar("T")


def score_served_perplexity(
    endpoint: Endpoint,
    examples: str | Path | Iterable[GenerativeExample],
    *,
    tokenizer: str | Path | None = None,
    max_length: int = MAX_LENGTH,
    chat_format: str | None = None,
    quiet: bool = False,
) -> PerplexityScore:
    """`score_perplexity` of a model behind a server.

    Args:
      tokenizer: a directory or hub id with the tokenizer of the model and, where its format is not
        GRIT's, the `grit.json` or chat template that names it. The score is then that of
        `score_perplexity`, up to rounding. None: the server tokenises texts; the ends of sequence
        after the last answers are not scored.
      max_length: tokens of a sequence, with a tokenizer: as in `score_perplexity`. A server that
        does not say how long its context is needs one.
      chat_format: of the texts without a tokenizer (`FORMATS`); None: GRIT's.

    Raises:
      GritError: as `score_perplexity`; or a server that returns no log-probabilities of a prompt,
        cannot be sent text, or whose tokens do not spell it.
    """
    examples = read_generative(examples)
    if tokenizer is not None:
        if chat_format is not None:
            raise GritError("--chat-format: the directory of --tokenizer names the format")
        form = _text_format(endpoint, tokenizer, max_length)
        texts, truncated = tokenised(form, examples, max_length)
        sizes = [len(text.ids) for text in texts]
        score = lambda batch: _of_ids(endpoint, batch)
        return PerplexityScore(_perplexity(endpoint, texts, sizes, score, quiet), truncated)
    if endpoint.is_ours:
        raise GritError(
            f"{endpoint.url}: a grit serve, to which special tokens cannot be sent as text; name"
            " the model's directory or hub id with --tokenizer"
        )
    if not isinstance(max_length, DefaultLength):
        raise GritError("--max-length counts tokens, which needs --tokenizer")
    chat = _format_named(chat_format or "grit")
    prompts = [_spelled(chat, example) for example in examples]
    sizes = [len(prompt.text) // CHARACTERS_PER_TOKEN for prompt in prompts]
    perplexity = _perplexity(
        endpoint, prompts, sizes, lambda batch: _of_texts(endpoint, batch), quiet
    )
    warnings.warn(
        "without --tokenizer the server tokenises the texts, and ends of sequence are not scored:"
        " the perplexity is not that of other tokens",
        stacklevel=2,
    )
    return PerplexityScore(perplexity, 0)


class _Spelled:
    """An example as one text, and the places `(start, end)` of its answers."""

    def __init__(self, text: str, answers: Sequence[tuple[int, int]]):
        self.text, self.answers = text, answers


def _text_format(endpoint: Endpoint, tokenizer: str | Path, max_length: int) -> TextFormat:
    path = resolve(tokenizer)
    opened = Tokenizer.from_pretrained(path)
    chat, mode = text_settings(path, opened)
    if mode is AttentionMode.PREFIX:
        raise GritError(
            f"{path}: a prefix language model reads prompts bidirectionally, which /v1/completions"
            " does not do; score the model itself, not its server"
        )
    known = not isinstance(max_length, DefaultLength) and not endpoint.is_ours
    context = max_length if known else server_context(endpoint) - _generated(endpoint)
    return TextFormat(opened, chat, context)


def _generated(endpoint: Endpoint) -> int:
    """Tokens to ask for: many servers refuse to generate none."""
    return 0 if endpoint.is_ours else 1


def _format_named(name: str) -> ChatFormat:
    if name not in FORMATS:
        raise GritError(f"--chat-format: {name!r} is unknown; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _spelled(chat: ChatFormat, example: GenerativeExample) -> _Spelled:
    """An example without its beginning of sequence, which the server adds, and its last end."""
    parts = (
        chat.plain_parts(example.text)
        if example.text is not None
        else chat.render_turns(example.turns)
    )
    text, answers = "", []
    for part in parts[:-1]:
        added = part.text.removeprefix(chat.bos) if not text else part.text
        if part.is_answer and not part.is_template:
            answers.append((len(text), len(text) + len(added)))
        text += added
    return _Spelled(text, answers)


def _perplexity(
    endpoint: Endpoint,
    texts: Sequence[T],
    sizes: Sequence[int],
    score: Callable[[Sequence[T]], list[float]],
    quiet: bool,
) -> float:
    """Of all scored tokens together."""
    batches = _batches(texts, sizes)
    losses = [
        loss
        for of_batch in endpoint.map(score, batches, "perplexity", progress=not quiet)
        for loss in of_batch
    ]
    if not losses:
        raise GritError("perplexity: no example has a token to predict")
    mean = math.fsum(losses) / len(losses)
    if not math.isfinite(mean) or mean > MAX_MEAN_LOSS:
        raise GritError(f"{endpoint.url}: perplexity: the mean loss is {mean}")
    return math.exp(mean)


def _batches(texts: Sequence[T], sizes: Sequence[int]) -> list[list[T]]:
    batches: list[list[T]] = []
    room = 0
    for text, size in zip(texts, sizes, strict=True):
        if not batches or size > room or len(batches[-1]) == TEXTS_PER_REQUEST:
            batches.append([])
            room = TOKENS_PER_REQUEST
        batches[-1].append(text)
        room -= size
    return batches


def _echoed(endpoint: Endpoint, prompts: Sequence[Any]) -> list[dict[str, Any]]:
    """The server's choices for prompts that it echoes; each has `logprobs`."""
    choices = endpoint.complete(
        prompts, max_tokens=_generated(endpoint), temperature=0, echo=True, logprobs=1
    )
    address = f"{endpoint.url}/completions"
    if len(choices) != len(prompts):
        raise GritError(f"{address}: {len(prompts)} prompts, and {len(choices)} choices")
    for choice in choices:
        if not isinstance((choice.get("logprobs") or {}).get("token_logprobs"), list):
            raise GritError(
                f"{address}: no log-probabilities in the reply; the server must support echo with"
                " logprobs"
            )
    return choices


def _of_ids(endpoint: Endpoint, texts: Sequence[TokenText]) -> list[float]:
    """Losses of the targets."""
    losses = []
    for text, choice in zip(texts, _echoed(endpoint, [t.ids for t in texts]), strict=True):
        logprobs = choice["logprobs"]["token_logprobs"]
        if len(logprobs) < len(text.ids):
            raise GritError(
                f"{endpoint.url}/completions: expected the log-probabilities of a prompt of"
                f" {len(text.ids)} tokens, got {len(logprobs)}; the server must support echo with"
                " logprobs"
            )
        wanted = zip(logprobs, text.targets, strict=False)
        losses += [_loss(endpoint, value) for value, target in list(wanted)[1:] if target]
    return losses


def _of_texts(endpoint: Endpoint, prompts: Sequence[_Spelled]) -> list[float]:
    """Losses of the tokens that begin and end within an answer."""
    losses = []
    for prompt, choice in zip(prompts, _echoed(endpoint, [p.text for p in prompts]), strict=True):
        found = choice["logprobs"]
        places = _places(endpoint, prompt.text, found)
        for (start, end), value in zip(places, found["token_logprobs"], strict=True):
            within = any(first <= start and end <= last for first, last in prompt.answers)
            if within and value is not None:  # a text's first token has none
                losses.append(_loss(endpoint, value))
    return losses


def _places(endpoint: Endpoint, text: str, logprobs: dict[str, Any]) -> list[tuple[int, int]]:
    """Where each token stands in the text. Servers count the beginning of sequence that they add,
    or do not: the places are right if the tokens stand in the text there.

    Raises:
      GritError: they do so either way.
    """
    tokens, offsets = logprobs.get("tokens") or [], logprobs.get("text_offset") or []
    if tokens and len(tokens) == len(offsets) == len(logprobs["token_logprobs"]):
        ends = [*offsets[1:], offsets[-1] + len(tokens[-1])]
        for shift in (0, len(tokens[0])):
            places = [(a - shift, b - shift) for a, b in zip(offsets, ends, strict=True)]
            inside = [
                (token, start)
                for token, (start, end) in zip(tokens, places, strict=True)
                if 0 <= start < end <= len(text) and UNKNOWN not in token
            ]
            reached = max((b for _, b in places), default=0)
            spelled = all(text[start : start + len(token)] == token for token, start in inside)
            if inside and spelled and reached >= len(text):
                return places
    raise GritError(
        f"{endpoint.url}/completions: the tokens of the reply do not spell the prompt; name the"
        " model's tokenizer with --tokenizer"
    )


def _loss(endpoint: Endpoint, logprob: Any) -> float:
    if not isinstance(logprob, int | float) or not math.isfinite(logprob):
        raise GritError(f"{endpoint.url}/completions: a log-probability is {logprob!r}")
    if logprob < LEAST_LOGPROB:
        raise GritError(f"{endpoint.url}/completions: a token's probability is 0 ({logprob})")
    return -float(logprob)
