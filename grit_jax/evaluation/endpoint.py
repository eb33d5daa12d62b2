"""A client of OpenAI-compatible servers, ours or another's, for evaluation.

Embeddings with an instruction, relevance, completions and chats. A server of this package is known
by what it lists as its model (`owned_by`), and is sent its own fields: `instruction`, and how many
tokens of a text to read. Another server gets the instruction in the text, by a template.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float

from grit_jax.errors import GritError
from grit_jax.runtime.progress import progress as show_progress
from grit_jax.text.length import MAX_LENGTH

OURS = "grit_jax"  # what a server of this package says in `owned_by`
# Of E5-Mistral, Qwen3-Embedding and others; texts without an instruction are sent as they are.
INSTRUCTION_TEMPLATE = "Instruct: {instruction}\nQuery: {text}"
MOST_PAIRS = 32  # of query and document in one request
ALL_TOKENS = 2**31 - 1  # more than any context
FIRST_RETRIES = 2  # of the first request: an address where nobody answers is said within seconds
MESSAGE_LENGTH = 400  # characters of a server's message that an error repeats

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


def is_url(name: str) -> bool:
    """Whether a MODEL argument is the address of a server.

    >>> is_url("http://127.0.0.1:8000"), is_url("org/model")
    (True, False)
    """
    return name.startswith(("http://", "https://"))


@dataclasses.dataclass(frozen=True)
class EndpointSettings:
    """How a server is asked.

    Attributes:
      model: the field `model`; None: the only model that the server lists, or the first one of
        `grit serve`, whose others are its adapters.
      api_key_env: the environment variable that holds the key, if the server wants one.
      timeout: seconds that one request may take.
      retries: how often a request is sent again after a 408, 409, 429, 5xx or a lost connection.
        `Retry-After` is honoured up to a minute; otherwise waits double up to 8 seconds.
      connections: requests under way at a time.
      batch: texts in one request.
      instruction_template: how instruction and text become one text where the server is not ours;
        has `{instruction}` and `{text}`.
      document_template: the same for texts without an instruction; has `{text}`.
    """

    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 600.0
    retries: int = 6
    connections: int = 4
    batch: int = 64
    instruction_template: str = INSTRUCTION_TEMPLATE
    document_template: str = "{text}"

    def __post_init__(self) -> None:
        for name, fields in (
            ("instruction_template", ("{instruction}", "{text}")),
            ("document_template", ("{text}",)),
        ):
            for field in fields:
                if field not in getattr(self, name):
                    raise GritError(
                        f"{name}: expected a text with {' and '.join(fields)}, got"
                        f" {getattr(self, name)!r:.80}"
                    )


class Endpoint:
    """A model behind a URL; `Endpoint(url)` asks it what it serves.

    Attributes:
      url: the base address, ending in the version (`http://127.0.0.1:8000/v1`).
      model: the name that requests carry.
      is_ours: whether the server is `grit serve`.
      settings: as given.
      requests: how many requests were answered.

    Raises:
      GritError: an address that is none, a missing package, or a server that cannot be reached,
        refuses the key, lists no model, or does not have the one that `settings` names.
    """

    def __init__(self, url: str, settings: EndpointSettings = EndpointSettings()):
        try:
            import openai
        except ImportError:
            raise GritError(
                "a model behind a URL needs OpenAI's client: pip install 'grit-jax[endpoint]'"
            ) from None
        self.url, self.settings = _base_url(url), settings
        self._errors = openai
        self._client = openai.OpenAI(
            base_url=self.url,
            api_key=os.environ.get(settings.api_key_env) or "none",
            timeout=settings.timeout,
            max_retries=settings.retries,
        )
        self.requests = 0
        self._lock = threading.Lock()
        self.is_ours, self.model, self._width = False, settings.model or "", None
        self._choose_model()

    def __repr__(self) -> str:
        return f"{self.model} at {self.url}"

    def encode(
        self,
        texts: Sequence[str],
        instruction: str = "",
        max_length: int | None = None,
        *,
        progress: bool = False,
    ) -> Float[np.ndarray, "N D"]:
        """Unit vectors of texts, float32 `[N, D]`, in their order.

        Args:
          instruction: what they are embedded for; in the field `instruction` where the server is
            ours, else in the text (`EndpointSettings.instruction_template`).
          max_length: tokens kept of each text (the field `truncate_prompt_tokens`, which vLLM has,
            too). None: 512 where the server is ours, as `GritLM.encode`; nothing is sent to
            another server, which then decides by itself.

        Raises:
          GritError: a server that cannot be reached, refuses a request or answers with something
            that is no list of as many finite vectors of one length.
        """
        texts = list(texts)
        if empty := sum(not text for text in texts):
            # OpenAI's protocol has no empty inputs.
            warnings.warn(f"{empty} empty texts are sent as a space", stacklevel=2)
        template = (
            self.settings.instruction_template if instruction else self.settings.document_template
        )
        body: dict[str, Any] = {}
        if self.is_ours:
            template = "{text}"
            body["instruction"] = instruction
            body["truncate_prompt_tokens"] = int(max_length or MAX_LENGTH)
        elif max_length is not None:
            body["truncate_prompt_tokens"] = int(max_length)
        sent = [
            _filled(template, instruction=instruction, text=text) if text else " " for text in texts
        ]
        batches = [
            sent[start : start + self.settings.batch]
            for start in range(0, len(sent), self.settings.batch)
        ]
        is_default = max_length is None and self.is_ours

        def send(batch: Sequence[str]) -> np.ndarray:
            return self._embed(batch, body, is_default)

        blocks = list(self._map(send, batches, [len(b) for b in batches], "encode", progress))
        if not blocks:
            return np.zeros((0, self._width or 0), np.float32)
        if len(widths := {block.shape[1] for block in blocks}) > 1:
            raise GritError(f"{self.url}: vectors of {sorted(widths)} dimensions in one run")
        return np.concatenate(blocks)

    def relevance(
        self, queries: Sequence[str], documents: Sequence[str], *, progress: bool = False
    ) -> Float[np.ndarray, " P"]:
        """How relevant each document is to the query beside it, by `POST /v1/score`: of our
        server, the probability of "yes" that its generative head gives.

        Raises:
          GritError: as `encode`, or a server without that endpoint.
        """
        pairs = list(zip(queries, documents, strict=True))
        batches = [pairs[i : i + MOST_PAIRS] for i in range(0, len(pairs), MOST_PAIRS)]

        def send(batch: Sequence[tuple[str, str]]) -> np.ndarray:
            body: dict[str, Any] = {
                "text_1": [query for query, _ in batch],
                "text_2": [document for _, document in batch],
            }
            if self.is_ours:  # documents are cut to what fits beside the query
                body["max_tokens_per_doc"] = ALL_TOKENS
            reply = self.post("/score", body)
            return _numbers(self.url, reply, "score", len(batch)).astype(np.float64)

        blocks = self._map(send, batches, [len(b) for b in batches], "rerank", progress)
        return np.concatenate([np.zeros(0), *blocks])

    def complete(self, prompts: Sequence[str] | Sequence[Sequence[int]], **fields: Any) -> Any:
        """`POST /v1/completions`: the reply's `choices`, one or more for each prompt, in order.

        Args:
          fields: others of the request (`max_tokens`, `temperature`, `echo`, `logprobs`, ...).

        Raises:
          GritError: as `encode`.
        """
        return self._choices("/completions", {"prompt": list(prompts), **fields})

    def chat(self, messages: Sequence[Mapping[str, str]], **fields: Any) -> Any:
        """`POST /v1/chat/completions`: the reply's `choices`.

        Raises:
          GritError: as `encode`.
        """
        return self._choices("/chat/completions", {"messages": list(messages), **fields})

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON that the server answers to a request with this model's name.

        Args:
          path: below the version, such as `/embeddings`.

        Raises:
          GritError: a server that cannot be reached or refuses the request, with its own words.
        """
        return self._ask(lambda: self._client.post(path, cast_to=object, body=self._named(body)))

    def map(
        self, ask: Callable[[I], R], items: Sequence[I], name: str, *, progress: bool = False
    ) -> Iterator[R]:
        """Results of `ask` in the order of the items, `settings.connections` of them at a time."""
        return self._map(ask, items, [1] * len(items), name, progress)

    def _named(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self.model, **body}

    def _choices(self, path: str, body: Mapping[str, Any]) -> Any:
        choices = self.post(path, body).get("choices")
        if not isinstance(choices, list) or not choices:
            raise GritError(f"{self.url}{path}: the reply has no choices")
        return sorted(choices, key=lambda choice: choice.get("index", 0))

    def _embed(self, batch: Sequence[str], body: dict[str, Any], is_default: bool) -> np.ndarray:
        """The vectors of one request. A default number of tokens is lowered to the model's context
        where that is shorter."""
        try:
            reply = self.post("/embeddings", {"input": list(batch), **body})
        except _Refused as error:
            if not (is_default and error.param == "truncate_prompt_tokens"):
                raise
            body["truncate_prompt_tokens"] = -1  # as many as the model reads
            reply = self.post("/embeddings", {"input": list(batch), **body})
        vectors = _numbers(self.url, reply, "embedding", len(batch)).astype(np.float32)
        if vectors.ndim != 2:
            raise GritError(f"{self.url}/embeddings: expected vectors of one length")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not self.is_ours:  # ours are unit vectors
            vectors = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
        self._width = vectors.shape[1]
        return vectors

    def _choose_model(self) -> None:
        """Finds out which models there are, and whose server it is.

        A server that has no list of models is asked for the model that the settings name.
        """
        client = self._client.with_options(max_retries=min(self.settings.retries, FIRST_RETRIES))
        try:
            reply = self._ask(lambda: client.get("/models", cast_to=object))
            models = {str(entry["id"]): entry for entry in reply.get("data") or []}
        except _Refused as error:
            if error.status not in (404, 405) or not self.model:
                raise
            return
        except (KeyError, TypeError, AttributeError):
            raise GritError(f"{self.url}/models: the reply is no list of models") from None
        if not models:
            raise GritError(f"{self.url}/models: the server lists no model")
        if not self.model:
            self.model = next(iter(models))
            if len(models) > 1 and models[self.model].get("owned_by") != OURS:
                raise GritError(
                    f"{self.url}: the server has {len(models)} models; name one of them"
                    f" (--endpoint-model): {', '.join(list(models)[:8])}"
                )
        if self.model not in models:
            raise GritError(
                f"{self.url}: no model {self.model!r:.80}; the server lists"
                f" {', '.join(list(models)[:8])}"
            )
        self.is_ours = models[self.model].get("owned_by") == OURS

    def _map(
        self,
        ask: Callable[[I], R],
        items: Sequence[I],
        sizes: Sequence[int],
        name: str,
        progress: bool,
    ) -> Iterator[R]:
        """Results in the order of the items. The first error ends it; requests that were not sent
        yet are not."""
        with (
            ThreadPoolExecutor(self.settings.connections) as pool,
            show_progress(sum(sizes), name, "texts", quiet=not progress) as bar,
        ):
            waiting: collections.deque[Any] = collections.deque()
            todo = iter(items)
            try:
                for size in sizes:
                    while len(waiting) < 2 * self.settings.connections:
                        try:
                            waiting.append(pool.submit(ask, next(todo)))
                        except StopIteration:
                            break
                    yield waiting.popleft().result()
                    bar.update(size)
            finally:
                for future in waiting:
                    future.cancel()

    def _ask(self, send: Callable[[], Any]) -> Any:
        """The reply; what goes wrong becomes one line."""
        openai = self._errors
        try:
            reply = send()
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APITimeoutError:
            raise GritError(
                f"{self.url}: no answer within {self.settings.timeout:g} seconds; raise"
                " --endpoint-timeout"
            ) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise GritError(f"{self.url}: cannot be reached: {cause}") from None
        except openai.OpenAIError as error:
            raise GritError(f"{self.url}: {error}") from None
        with self._lock:
            self.requests += 1
        if not isinstance(reply, dict):
            raise GritError(
                f"{self.url}: the reply is no JSON object; is this an OpenAI-compatible"
                " server, and does the URL end in its version (/v1)?"
            )
        return reply

    def _refusal(self, error: Any) -> GritError:
        body = error.body if isinstance(error.body, dict) else {}
        body = body["error"] if isinstance(body.get("error"), dict) else body
        message = str(body.get("message") or error.response.text or error.response.reason_phrase)
        hint = ""
        if error.status_code in (401, 403):
            hint = f"; put the server's key into ${self.settings.api_key_env}"
        elif error.status_code == 429:
            hint = f" (after {self.settings.retries} retries)"
        path = urlsplit(str(error.request.url)).path
        text = " ".join(message.split())[:MESSAGE_LENGTH]
        return _Refused(
            f"{self.url}: {error.status_code} for {path}: {text}{hint}",
            error.status_code,
            body.get("param"),
        )


class _Refused(GritError):
    """A reply with an error's status."""

    def __init__(self, message: str, status: int, param: str | None):
        super().__init__(message)
        self.status, self.param = status, param


def _base_url(url: str) -> str:
    """The address with its version: `/v1` is added to one without a path.

    Raises:
      GritError: no http address.

    >>> _base_url("http://127.0.0.1:8000/"), _base_url("https://api.openai.com/v1")
    ('http://127.0.0.1:8000/v1', 'https://api.openai.com/v1')
    """
    parts = urlsplit(url)
    if not is_url(url) or not parts.hostname:
        raise GritError(f"{url!r:.100}: expected an address such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise GritError("a URL with a user or password: put the key into the environment instead")
    if parts.query or parts.fragment:
        raise GritError(f"{url!r:.100}: expected an address without ? and #")
    return url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def _filled(template: str, **values: str) -> str:
    """The template with its fields; braces of the values stay as they are."""
    parts = template.split("{text}")
    return values["text"].join(p.replace("{instruction}", values["instruction"]) for p in parts)


def _numbers(url: str, reply: Mapping[str, Any], field: str, count: int) -> np.ndarray:
    """The field of each entry of `data`, by index.

    Raises:
      GritError: another number of entries, indices that are no permutation, entries of different
        lengths, or numbers that are not finite.
    """
    data = reply.get("data")
    if not isinstance(data, list) or len(data) != count:
        number = len(data) if isinstance(data, list) else "no"
        raise GritError(f"{url}: {number} results for {count} texts")
    try:
        by_index = {entry.get("index", i): entry[field] for i, entry in enumerate(data)}
        values = np.array([by_index[i] for i in range(count)], np.float64)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GritError(
            f"{url}: results that are no list of {field}s, each with its index"
        ) from None
    if not np.isfinite(values).all():
        raise GritError(f"{url}: a result that is not finite")
    return values
