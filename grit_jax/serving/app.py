"""The HTTP application: endpoints, keys, limits, request ids, the log and what becomes of
errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grit_jax import __version__
from grit_jax.serving.access_log import RequestRecord, request_id, write
from grit_jax.serving.chat import chat
from grit_jax.serving.completions import completions
from grit_jax.serving.embeddings import Reply, embeddings
from grit_jax.serving.errors import CLIENT_GONE, ApiError, ClientGone
from grit_jax.serving.file_routes import STORE, STORE_FILE, add_file_routes
from grit_jax.serving.files import AttributesBody, StoreFileBody, add_file, update_attributes
from grit_jax.serving.generation import Stream
from grit_jax.serving.openapi import describe
from grit_jax.serving.page import PAGE
from grit_jax.serving.protocol import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    GenerativeScoringBody,
    RerankBody,
    ScoreBody,
    StoreSearchBody,
    TokenizeBody,
    parse,
)
from grit_jax.serving.ranking import generative_scoring, rerank, score
from grit_jax.serving.request_body import read_json
from grit_jax.serving.request_trace import current, tracing
from grit_jax.serving.response_protocol import ResponseBody
from grit_jax.serving.responses import (
    delete_response,
    responses,
    stored_input,
    stored_response,
)
from grit_jax.serving.service import Service
from grit_jax.serving.tokens import detokenize, tokenize, tokenizer_info
from grit_jax.serving.vector_stores import search_store, store_body, stores_list

LOG = logging.getLogger(__name__)
# Asked for every few seconds; the log has no line of a good answer.
PROBES = ("/health", "/ready")
# What needs no key: the page itself asks for one.
OPEN_PATHS = (*PROBES, *PAGE)
Handler = Callable[..., Awaitable[Reply | Stream]]

POSTS: dict[str, tuple[type[Body], Handler]] = {
    "/v1/embeddings": (EmbeddingBody, embeddings),
    "/v1/chat/completions": (ChatBody, chat),
    "/v1/completions": (CompletionBody, completions),
    "/v1/responses": (ResponseBody, responses),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), (RerankBody, rerank)),
    **dict.fromkeys(("/v1/score", "/score"), (ScoreBody, score)),
    "/generative_scoring": (GenerativeScoringBody, generative_scoring),
    "/v1/vector_stores/{name}/search": (StoreSearchBody, search_store),
    STORE: (StoreFileBody, add_file),
    STORE_FILE: (AttributesBody, update_attributes),
    "/tokenize": (TokenizeBody, lambda service, body, user: tokenize(service, body)),
    "/detokenize": (DetokenizeBody, lambda service, body, user: detokenize(service, body)),
}


def create_app(service: Service, *, log: bool = True) -> FastAPI:
    """The application of a service.

    Args:
      log: write the access log to standard error.
    """
    # No documentation pages: they load scripts from elsewhere.
    app = FastAPI(title="grit_jax", version=__version__, docs_url=None, redoc_url=None)
    for path, (kind, handler) in POSTS.items():
        _add_post(app, service, path, kind, handler)
    add_file_routes(app, service)

    for path, file in PAGE.items():
        app.add_api_route(path, file.response, methods=["GET"], include_in_schema=False)

    @app.get("/health")
    async def health() -> Response:
        """Whether the engine runs."""
        healthy = service.engine.stats().healthy
        return JSONResponse({"status": "ok" if healthy else "failed"}, 200 if healthy else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether requests are taken: programs are compiled, and the server is not ending."""
        state = "draining" if service.draining else "ready" if service.ready else "compiling"
        return JSONResponse({"status": state}, 200 if service.ready else 503)

    @app.get("/v1/models")
    async def models() -> Response:
        """The models of this server."""
        data = [_model(each) for each in service.models.values()]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One model."""
        return JSONResponse(_model(service.choose(name)))

    @app.get("/v1/vector_stores")
    async def vector_stores(request: Request) -> Response:
        """The indices of this server."""
        return JSONResponse(stores_list(service, request.query_params))

    @app.get("/v1/vector_stores/{name}")
    async def vector_store(name: str) -> Response:
        """One index."""
        return JSONResponse(store_body(service, name))

    @app.get("/v1/responses/{id}")
    async def response(request: Request, id: str) -> Response:
        """A response that was given before."""
        return JSONResponse(stored_response(service, id, _user(request)))

    @app.delete("/v1/responses/{id}")
    async def response_deleted(request: Request, id: str) -> Response:
        """Forgets a response."""
        return JSONResponse(delete_response(service, id, _user(request)))

    @app.get("/v1/responses/{id}/input_items")
    async def response_input(request: Request, id: str) -> Response:
        """The input of a response."""
        return JSONResponse(stored_input(service, id, _user(request)))

    @app.get("/tokenizer_info")
    async def info() -> Response:
        """What of the tokenizer a client may want to know."""
        return JSONResponse(tokenizer_info(service).body)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        text = await asyncio.to_thread(service.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/version")
    async def version() -> Response:
        """The version of grit_jax."""
        return JSONResponse({"version": __version__})

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}"
        refusal = ApiError(error.status_code, what, headers=error.headers)
        return JSONResponse(refusal.body(), refusal.status, refusal.headers)

    bodies = {path: kind for path, (kind, _) in POSTS.items()}
    describe(app, bodies, open_paths=OPEN_PATHS, keys=bool(service.settings.api_keys))
    app.add_middleware(_Operations, service=service, log=log)
    return app


def _user(request: Request) -> str:
    """Who sends a request."""
    record: RequestRecord = request.scope["grit.record"]
    return record.user


def _chosen(service: Service, body: Body) -> Service:
    """The service with the model that a request names; one over a store gets the store's own
    unless it names another.

    Raises:
      ApiError: 404 for an unknown model or store.
    """
    if body.model is None and isinstance(body, ChatBody) and body.has_documents:
        return service.choose_for_store(service.stores.get(body.store, "store"), None)
    return service.choose(body.model)


def _model(service: Service) -> dict[str, Any]:
    """A model as OpenAI lists it; an adapter has `root` and `parent` as vLLM does."""
    base = service.settings.name
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "grit_jax",
        "root": str(service.settings.adapters[service.name]) if service.adapter else base,
        "parent": base if service.adapter else None,
        "max_model_len": service.context,
        "embedding_dimensions": service.model.embedding_width,
    }


def _add_post(
    app: FastAPI, service: Service, path: str, kind: type[Body], handler: Handler
) -> None:
    """Adds an endpoint that takes JSON; its handler is given the parts of its path by name."""

    async def endpoint(request: Request) -> Response:
        record: RequestRecord = request.scope["grit.record"]
        raw = await read_json(request, service.settings.limits.body_bytes)
        body = await asyncio.to_thread(parse, kind, raw)
        if (trace := current()) is not None:
            trace.body = body
        ignored = body.ignored()
        for name in ignored:
            service.metrics.ignored(name)
        headers = {"X-Grit-Ignored": ", ".join(ignored)} if ignored else {}
        chosen = _chosen(service, body)
        work = handler(chosen, body=body, user=record.user, **request.path_params)
        reply = await _unless_gone(request, work)
        if isinstance(reply, Stream):
            return _EventStream(reply, record, headers)
        _note(record, reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens)
        # Long lists of numbers: beside the event loop.
        text = await asyncio.to_thread(_json, reply.body)
        return Response(text, media_type="application/json", headers=headers)

    endpoint.__doc__, endpoint.__name__ = kind.__doc__, re.sub(r"\W+", "_", path).strip("_")
    app.post(path)(endpoint)


def _json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _note(record: RequestRecord, prompt: int, cached: int, completion: int) -> None:
    record.prompt_tokens, record.cached_tokens = prompt, cached
    record.completion_tokens = completion


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of work, which is cancelled when the client closes its connection.

    Raises:
      ClientGone: it did.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return await task
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream(Response):
    """Server-sent events; when the client leaves, their answers are cancelled."""

    def __init__(self, stream: Stream, record: RequestRecord, headers: dict[str, str]):
        super().__init__(
            None, headers=headers | {"Cache-Control": "no-cache"}, media_type="text/event-stream"
        )
        del self.headers["content-length"]
        self._stream, self._record = stream, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ClientGone
            await sending
        finally:
            for each in (sending, gone):
                each.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._stream.close()
            usage = self._stream.usage()
            _note(self._record, usage.prompt, usage.cached, usage.completion)

    async def _send(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for event in self._stream.events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Operations:
    """Around every request: its id, key, time, log line and metrics, and unforeseen errors."""

    def __init__(self, app: ASGIApp, service: Service, log: bool):
        self._app, self._service, self._log = app, service, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        header = lambda name: value.decode("latin-1") if (value := headers.get(name)) else None
        client = scope["client"][0] if scope.get("client") else ""
        given = request_id(header("x-request-id"))
        record = RequestRecord(given, scope["method"], scope["path"], client)
        scope["grit.record"] = record
        began = time.monotonic()

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                own = [(b"x-request-id", record.id.encode())]
                if self._service.draining:
                    own.append((b"connection", b"close"))
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        traced = None
        if self._service.tracing is not None:
            named = {name: value.decode("latin-1") for name, value in headers.items()}
            traced = self._service.tracing.begin(record.method, record.path, named)
        if traced is not None:
            record.trace_id = traced.trace_id
        try:
            with tracing(traced.trace) if traced is not None else contextlib.nullcontext():
                await self._answer(scope, receive, sender, record, header("authorization"))
        except (ClientGone, ConnectionError):
            record.status = CLIENT_GONE
        except Exception as error:
            LOG.exception("%s: %s %s failed", record.id, record.method, record.path)
            record.error = f"{type(error).__name__}: {error}"
            if not record.status:
                failure = ApiError(500, f"an error of this server's; its log has {record.id}")
                await JSONResponse(failure.body(), 500)(scope, receive, sender)
            record.status = 500
        finally:
            route = scope.get("route")
            record.handler = getattr(route, "path", "other")
            record.seconds = time.monotonic() - began
            self._service.metrics.http(record.method, record.handler, record.status, record.seconds)
            if traced is not None:
                self._service.tracing.end(traced, record)
            if self._log and not (record.path in PROBES and record.status == 200):
                write(record)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        record: RequestRecord,
        authorization: str | None,
    ) -> None:
        user = self._service.user_of(authorization)
        if user is None and scope["path"] not in OPEN_PATHS:
            refusal = ApiError(
                401,
                "no valid key: send one as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            reply = JSONResponse(refusal.body(), refusal.status, refusal.headers)
            return await reply(scope, receive, send)
        # Of clients without keys each address is one, so that none holds up the others.
        record.user = user or record.client
        await self._app(scope, receive, send)
