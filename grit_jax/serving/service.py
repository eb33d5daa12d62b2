"""A model and its engine behind the endpoints: what a request needs, and how it waits."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import hashlib
import hmac
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from grit_jax.errors import GritError
from grit_jax.inference.decode import MOST_CACHE_BYTES, bytes_per_token
from grit_jax.inference.engine import EngineLimits
from grit_jax.inference.fair_queue import QueueFull
from grit_jax.inference.model import GritLM
from grit_jax.inference.requests import (
    EmbedRequest,
    GenerateRequest,
    LabelRequest,
    Pending,
    ScoreRequest,
)
from grit_jax.models.config import ModelConfig
from grit_jax.models.slot_cache import KEY_BLOCK
from grit_jax.rag.engine_judge import EngineJudge
from grit_jax.serving.errors import ApiError, FormError, bad_request
from grit_jax.serving.file_folder import FileFolder
from grit_jax.serving.metrics import ServerMetrics
from grit_jax.serving.request_trace import current
from grit_jax.serving.response_store import ResponseStore
from grit_jax.serving.settings import ServeSettings
from grit_jax.serving.store_writer import StoreWriter
from grit_jax.serving.stores import Store, Stores
from grit_jax.serving.structured import Grammars
from grit_jax.serving.tracing import Tracing
from grit_jax.text.token_bytes import TokenBytes

T = TypeVar("T")


def default_context(config: ModelConfig, slots: int) -> int:
    """Tokens of a slot: the model's context, or as many as `MOST_CACHE_BYTES` hold for all
    slots."""
    most = MOST_CACHE_BYTES // (slots * bytes_per_token(config))
    return min(config.context_length, max(KEY_BLOCK, most // KEY_BLOCK * KEY_BLOCK))


@dataclasses.dataclass
class _State:
    """What changes while a server runs."""

    compiled: bool
    draining: bool = False
    answer_seconds: float = 1.0  # of an answer, a moving mean
    store_work: int = 0  # requests that search or read a store, those that wait for a thread too


class Service:
    """One model that is served, and its adapters, each of which is a model to clients.

    Attributes:
      ready: whether all programs are compiled and nothing says that the server shall end.
      name: what the `model` field of requests says.
      adapter: the number of the adapter in the engine; 0 for the model itself.
      models: this service with each model that the field can name, the model itself first.
      created: seconds since 1970, for `/v1/models`.
      context: tokens of a slot.
      writer: of the stores; None: they are only read.

    Args:
      model: with adapters, as `with_adapters` returns it, in the order of the settings.
    """

    def __init__(self, model: GritLM, settings: ServeSettings):
        self.model, self.settings = model, settings
        self.name, self.adapter = settings.name, 0
        self.context = settings.context or default_context(model.config, settings.slots)
        if self.context > model.config.context_length:
            raise GritError(
                f"--context {self.context}: this model's context is {model.config.context_length}"
            )
        served = dict(
            zip((settings.name, *settings.adapters), (model, *model.adapters), strict=True)
        )
        self.stores = Stores(
            [Store(name, path, served, self.context) for name, path in settings.indices.items()]
        )
        # As `grit ask` does: records that are compressed in the store stay so on the device.
        compressed = self.stores and all(store.compressed for store in self.stores)
        self.engine = model.engine(
            settings.slots,
            self.context,
            EngineLimits(waiting=settings.limits.queue),
            int8_records=self.context if compressed else 0,
            adjustable=True,
        )
        numbers = {name: number for number, name in enumerate(served)}
        for store in self.stores:
            store.rerank_in(EngineJudge(self.engine, numbers[store.owners[0]]))
        self.metrics = ServerMetrics(self.engine, settings.name, list(settings.adapters))
        endpoint = settings.traces_endpoint
        self.tracing = Tracing(endpoint, settings.name) if endpoint is not None else None
        self.token_bytes = TokenBytes(model.tokenizer)
        self.grammars = Grammars(model, self.token_bytes)
        self.responses = ResponseStore()
        self.writer: StoreWriter | None = None
        if settings.files is not None:
            folder = FileFolder(settings.files)
            self.writer = StoreWriter(folder, self.stores, settings.limits.queue)
        self.created = int(time.time())
        self._state = _State(compiled=not settings.warm_up)
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self.models = {settings.name: self}
        for number, (name, own) in enumerate(served.items()):
            if number:
                self.models[name] = self._with_adapter(name, own, number)

    def _with_adapter(self, name: str, model: GritLM, number: int) -> Service:
        """This service, with an adapter chosen."""
        other = copy.copy(self)  # the state, the engine and the stores are the same
        other.name, other.model, other.adapter = name, model, number
        other.grammars = Grammars(model, self.token_bytes)
        other.metrics = self.metrics.for_model(name)
        return other

    @property
    def compiled(self) -> bool:
        return self._state.compiled

    @property
    def draining(self) -> bool:
        return self._state.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._state.draining = draining

    @property
    def ready(self) -> bool:
        return self.compiled and not self.draining and self.engine.stats().healthy

    def close(self) -> bool:
        """Ends the engine, and the writer of the stores after the file that it adds; sends the last
        spans. False: the file takes longer than the settings' `grace`, and is still being added."""
        self.engine.close()
        has_ended = self.writer is None or self.writer.close(self.settings.grace)
        if self.tracing is not None:
            self.tracing.close()
        return has_ended

    def warm_up(self) -> int:
        """Compiles what requests need; returns how many programs.

        `grit_compilations_total` counts what is compiled later: for texts to embed or rerank that
        are longer than a slot, log-probabilities of prompts, scores of more than two labels,
        and searches with filters.
        """
        for store in self.stores:
            store.warm_up()
        codecs = {id(codec): codec for store in self.stores for codec in store.codecs()}
        programs = self.engine.warm_up(
            codecs=list(codecs.values()),
            longest_records=max((store.longest for store in self.stores), default=None),
            longest_text=self.context,
            score=False,
            labels=True,
        )
        self._state.compiled = True
        return programs

    def user_of(self, authorization: str | None) -> str | None:
        """Who sends a request, by its key; None: nobody who may.

        All keys are compared, each in constant time.
        """
        if not self._keys:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        same = [hmac.compare_digest(given, known) for known in self._keys]
        return f"key {same.index(True)}" if any(same) and scheme.lower() == "bearer" else None

    def choose(self, name: str | None) -> Service:
        """This service with the model that a request names; None keeps the one that is chosen.

        Raises:
          ApiError: 404 for an unknown name.
        """
        if name is None:
            return self
        if name not in self.models:
            known = ", ".join(map(repr, self.models))
            raise ApiError(
                404,
                f"the model {name!r:.200} does not exist here; this server has {known}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    def check_model(self, name: str | None) -> str:
        """The name of the model that a request gets.

        Raises:
          ApiError: 404 for an unknown name.
        """
        return self.choose(name).name

    def choose_for_store(self, store: Store, name: str | None) -> Service:
        """This service with the model that a request over a store names, by default the one that
        the store belongs to.

        Raises:
          ApiError: 404 for an unknown name, 400 for a model whose weights have not made the store.
        """
        service = self.choose(name if name is not None else store.owners[0])
        self.check_store(store, service.name)
        return service

    def check_store(self, store: Store, name: str) -> None:
        """Raises ApiError: 400 for a store whose records were made by other weights than a
        model's."""
        if name not in store.owners:
            owners = " or ".join(map(repr, store.owners))
            raise bad_request(
                f"model: the records of store {store.name!r} were made by the weights of {owners},"
                f" and {name!r} has others: send model {store.owners[0]!r}, or serve an index that"
                f" was made with {name!r}",
                "model",
                "store_of_another_model",
            )

    def submit(
        self, request: GenerateRequest | EmbedRequest | ScoreRequest | LabelRequest
    ) -> Pending[Any]:
        """Queues a request in the engine.

        Raises:
          ApiError: 400 for a request that does not fit, 429 where too many wait, 503 where the
            engine has ended or is not ready.
        """
        self.check_ready()
        if self.adapter:
            request = dataclasses.replace(request, adapter=self.adapter)
        try:
            return self.engine.submit(request)
        except QueueFull as error:
            raise self._overloaded(str(error)) from None
        except GritError as error:
            if str(error).startswith("the engine"):  # closed or failed
                raise ApiError(503, str(error), code="engine_failed") from None
            raise bad_request(str(error), code=_code(str(error))) from None

    def check_ready(self) -> None:
        """Raises ApiError: 503 while programs are compiled."""
        if not self.compiled:
            raise ApiError(
                503,
                "the server is compiling its programs; /ready says when it is done",
                code="not_ready",
                headers={"Retry-After": "5"},
            )

    def retry_after(self) -> int:
        """Whole seconds after which a queue like the present one has become shorter."""
        stats = self.engine.stats()
        rounds = 1 + stats.waiting / stats.slots
        return max(1, min(60, math.ceil(rounds * self._state.answer_seconds / 2)))

    def took(self, seconds: float) -> None:
        """Notes how long an answer took."""
        self._state.answer_seconds += 0.1 * (seconds - self._state.answer_seconds)

    async def prepare(self, work: Callable[[], T]) -> T:
        """Runs work on texts (tokenising, templates) beside the event loop.

        Raises:
          ApiError: 400 for a `GritError`, 429 where the engine has no room, 503 where it has ended.
        """
        try:
            return await asyncio.to_thread(work)
        except QueueFull as error:
            raise self._overloaded(str(error)) from None
        except GritError as error:
            if str(error).startswith("the engine"):  # closed or failed
                raise ApiError(503, str(error), code="engine_failed") from None
            message = self.stores.named(str(error))
            raise bad_request(message, code=_code(message)) from None

    async def prepare_from_store(self, work: Callable[[], T]) -> T:
        """Runs work that searches or reads a store beside the event loop.

        Raises:
          ApiError: as `prepare`; 429 where as many requests are at it as may wait.
        """
        if self._state.store_work >= self.settings.limits.queue:
            raise self._overloaded(f"{self._state.store_work} requests to stores wait already")
        self._state.store_work += 1
        try:
            return await self.prepare(work)
        finally:
            self._state.store_work -= 1

    def _overloaded(self, message: str) -> ApiError:
        """A 429, which is counted."""
        self.metrics.refused()
        headers = {"Retry-After": str(self.retry_after())}
        return ApiError(429, message, code="overloaded", headers=headers)

    @staticmethod
    async def result(pending: Pending[T]) -> T:
        """Waits for a request; cancels it if the one who waits is cancelled.

        Raises:
          ApiError: 500, it failed; 503, the engine was closed.
        """
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        pending.on_done(lambda: call_in_loop(loop, done.set))
        try:
            await done.wait()
        finally:
            if not pending.done():
                pending.cancel()
        if (trace := current()) is not None:
            trace.batch(pending.times)
        return outcome(pending)


def outcome(pending: Pending[T]) -> T:
    """The result of a request that is done.

    Raises:
      ApiError: 400, it cannot go on in the form that it demands; 500, it failed; 503, the engine
        was closed.
    """
    error = pending.error()
    if error is None:
        return pending.result()
    if isinstance(error, FormError):
        raise bad_request(str(error), error.param) from None
    status = 503 if "engine" in str(error) else 500
    raise ApiError(status, str(error) or type(error).__name__, code="generation_failed")


async def gather(work: list[Awaitable[T]]) -> list[T]:
    """All results; if one fails or the caller is cancelled, the others are cancelled, too."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
    """Calls in the event loop, from another thread, unless the loop has ended."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return


def _code(message: str) -> str | None:
    """OpenAI's word for a text that is too long."""
    long = ("context", "a slot holds", "at most")
    return "context_length_exceeded" if any(word in message for word in long) else None
