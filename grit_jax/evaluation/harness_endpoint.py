"""What lm-eval asks of a model, for one behind an OpenAI-compatible URL.

Prompts are sent to `/v1/completions` as token ids, with `echo` and `logprobs` where they are
scored. Texts and conversations become ids here, with the tokenizer of the model, so that contexts
and continuations part where they do in this process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.harness_backend import OnDone, TextRequest, TextRules, cut_before
from grit_jax.inference.continuations import Pair
from grit_jax.models.hf.sources import resolve
from grit_jax.text.chat_template import ChatTemplate
from grit_jax.text.tokenizer import Tokenizer

PAIRS_PER_REQUEST, PROMPTS_PER_REQUEST = 16, 16
MOST_STOPS = 4  # OpenAI's limit; further strings end answers here
# Tokens that a server needs beside those that a model reads: the last one of a continuation, which
# is only predicted, and one that is generated, because many servers refuse to generate none.
ECHO_TOKENS = 2


class EndpointBackend(TextRules):
    """A model behind a URL.

    Args:
      tokenizer: a directory or hub id that has the tokenizer of the model.
      max_length: tokens that the server reads and writes in one request; None: it is asked.

    Raises:
      GritError: no tokenizer there, or a server that does not say how long its context is.
    """

    def __init__(self, endpoint: Endpoint, tokenizer: str | Path, max_length: int | None = None):
        path = resolve(tokenizer)
        opened = Tokenizer.from_pretrained(path)
        super().__init__(opened, ChatTemplate.from_pretrained(path, opened))
        self.endpoint, self.name = endpoint, str(endpoint.model)
        context = max_length or server_context(endpoint)
        self.max_length = context - ECHO_TOKENS

    def score(self, pairs: Sequence[Pair], on_done: OnDone) -> list[tuple[float, bool]]:
        """See `Backend`.

        Raises:
          GritError: the server refuses a request, or returns no log-probabilities of the prompt.
        """
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        chunks = _chunks(order, PAIRS_PER_REQUEST)

        def ask(numbers: Sequence[int]) -> list[tuple[float, bool]]:
            choices = self.endpoint.complete(
                [[*pairs[i][0], *pairs[i][1]] for i in numbers],
                max_tokens=1,
                temperature=0,
                echo=True,
                logprobs=1,
            )
            self._check(choices, len(numbers))
            return [
                self._score(choice, *pairs[i]) for i, choice in zip(numbers, choices, strict=True)
            ]

        found = self.endpoint.map(ask, chunks, "loglikelihood")
        for numbers, part in zip(chunks, found, strict=True):
            for i, score in zip(numbers, part, strict=True):
                scores[i] = score
            on_done(len(numbers))
        return scores

    def generate(self, requests: Sequence[TextRequest], on_done: OnDone) -> list[str]:
        """See `Backend`.

        Raises:
          GritError: the server refuses a request.
        """
        answers = [""] * len(requests)
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            settings = tuple(sorted(_fields(request).items(), key=lambda item: item[0]))
            groups[repr(settings)].append(i)
        chunks = [
            chunk
            for numbers in groups.values()
            for chunk in _chunks(
                sorted(numbers, key=lambda i: -len(requests[i].prompt)), PROMPTS_PER_REQUEST
            )
        ]

        def ask(numbers: Sequence[int]) -> list[str]:
            prompts = [list(requests[i].prompt) for i in numbers]
            choices = self.endpoint.complete(prompts, **_fields(requests[numbers[0]]))
            self._check(choices, len(numbers))
            return [str(choice.get("text") or "") for choice in choices]

        found = self.endpoint.map(ask, chunks, "generate")
        for numbers, texts in zip(chunks, found, strict=True):
            for i, text in zip(numbers, texts, strict=True):
                answers[i] = cut_before(text, [end for end in requests[i].until if end])
            on_done(len(numbers))
        return answers

    def _score(
        self, choice: Any, context: Sequence[int], continuation: Sequence[int]
    ) -> tuple[float, bool]:
        """From the log-probabilities of an echoed prompt and of the token after it."""
        logprobs = choice.get("logprobs") or {}
        chosen, tops = logprobs.get("token_logprobs"), logprobs.get("top_logprobs")
        length = len(context) + len(continuation)
        if not chosen or not tops or len(chosen) < length or len(tops) < length:
            raise GritError(
                f"{self.endpoint.url}/completions: expected the log-probabilities of a prompt of"
                f" {length} tokens, got {len(chosen or [])}; the server must support echo with"
                " logprobs"
            )
        span = slice(len(context), length)
        # Tokens of different ids may have one spelling, so their log-probabilities are compared.
        greedy = all(
            value >= max(top.values(), default=value)
            for value, top in zip(chosen[span], tops[span], strict=True)
        )
        return float(sum(chosen[span])), greedy

    def _check(self, choices: Sequence[Any], number: int) -> None:
        if len(choices) != number:
            raise GritError(
                f"{self.endpoint.url}/completions: {number} prompts, and {len(choices)} choices"
            )


def server_context(endpoint: Endpoint) -> int:
    """Tokens that a server reads and writes in one request, as its `/tokenize` says.

    Raises:
      GritError: it does not say.
    """
    address = endpoint.url.removesuffix("/v1") + "/tokenize"
    try:
        length = endpoint.post(address, {"prompt": "a"}).get("max_model_len")
    except GritError as error:
        length, reason = None, f" ({error})"
    else:
        reason = ""
    if not isinstance(length, int) or length <= ECHO_TOKENS:
        raise GritError(
            f"{address} does not say how many tokens the model reads{reason}; give --max-length N"
        )
    return length


def _fields(request: TextRequest) -> dict[str, Any]:
    """The settings of a request. A seed goes with sampling alone, so that greedy requests share
    one call."""
    sampling = request.sampling
    fields: dict[str, Any] = {
        "max_tokens": int(sampling.max_new_tokens),
        "temperature": sampling.temperature,
    }
    if stops := [end for end in request.until if end][:MOST_STOPS]:
        fields["stop"] = stops
    if sampling.temperature > 0:
        fields |= {"seed": sampling.seed, "top_p": sampling.top_p}
        if sampling.top_k:
            fields["top_k"] = sampling.top_k
    return fields


def _chunks(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
