"""Spans of requests for OpenTelemetry, sent by OTLP over HTTP: extra `otel`.

A span for each request, with the attributes of the semantic conventions for HTTP servers and for
generative AI, the times under the names that vLLM gives them (`gen_ai.latency.*`), and `grit.*`;
below it a span for each stage. A caller's `traceparent` (W3C Trace Context) is continued.
"""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grit_jax import __version__
from grit_jax.errors import GritError
from grit_jax.serving.access_log import RequestRecord
from grit_jax.serving.request_trace import RequestTrace

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

FLAG = "--otlp-traces-endpoint"
TRACES_PATH = "/v1/traces"  # of OTLP over HTTP
SERVICE = "grit-serve"  # unless OTEL_SERVICE_NAME says otherwise
PROVIDER = "grit_jax"
# gen_ai.operation.name by endpoint.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/vector_stores/{name}/search": "retrieval",
}
# Fields of requests -> attributes; the first field of each attribute that is given counts.
REQUEST_FIELDS = {
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "n": "gen_ai.request.choice.count",
    "stream": "gen_ai.request.stream",
    "dimensions": "gen_ai.embeddings.dimension.count",
}
# gen_ai.latency.* -> the moments of `requests.Times` that it is between.
PERIODS = (
    ("time_in_queue", "submitted", "admitted"),
    ("time_in_model_prefill", "admitted", "first_token"),
    ("time_in_model_decode", "first_token", "finished"),
    ("time_in_model_inference", "admitted", "finished"),
)
# Asked for every few seconds by machines.
UNTRACED = ("/health", "/ready", "/metrics")


def traces_endpoint(address: str) -> str:
    """The URL that spans are posted to; `/v1/traces` is added to an address without a path.

    Raises:
      GritError: it is not one of HTTP, or the extra is not installed.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise GritError(f"{FLAG} {address}: expected http://HOST:4318 or https://HOST:PORT/PATH")
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError:
        raise GritError(
            f"{FLAG}: OpenTelemetry is not installed; run pip install 'grit-jax[otel]' first"
        ) from None
    if parts.path in ("", "/"):
        parts = parts._replace(path=TRACES_PATH)
    return urllib.parse.urlunsplit(parts)


class TracedRequest:
    """The span of a request under way, and what is noted for it."""

    def __init__(self, span: Span):
        self.span, self.trace = span, RequestTrace()
        # Spans have the time of day, stages that of a clock that is never set back.
        self._day, self._began = time.time_ns(), time.monotonic()

    @property
    def began(self) -> float:
        """In seconds of `time.monotonic`."""
        return self._began

    @property
    def trace_id(self) -> str:
        """As `traceparent` writes it."""
        return format(self.span.get_span_context().trace_id, "032x")

    def nanoseconds(self, moment: float) -> int:
        """The time of day of a moment, since 1970."""
        return self._day + round((moment - self._began) * 1e9)


class Tracing:
    """Makes the spans of a server and sends them, in a thread of its own.

    Args:
      endpoint: of `traces_endpoint`.
      model: what spans say of a request that names no model.
    """

    def __init__(self, endpoint: str, model: str):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        given = OTELResourceDetector().detect().attributes  # of the environment
        service = {"service.name": SERVICE, "service.version": __version__}
        self._provider = TracerProvider(resource=Resource.create({**service, **given}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer(PROVIDER, __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> TracedRequest | None:
        """The span of a request; None: it is not traced.

        Args:
          headers: by their names in lower case.
        """
        from opentelemetry.trace import SpanKind

        if path in UNTRACED:
            return None
        context = self._propagator.extract(headers)
        span = self._tracer.start_span(f"{method} {path}", context, SpanKind.SERVER)
        return TracedRequest(span) if span.is_recording() else None

    def end(self, request: TracedRequest, record: RequestRecord) -> None:
        """Ends the span of a request that `record` describes, and makes those of its stages."""
        from opentelemetry import trace

        span = request.span
        operation = OPERATIONS.get(record.handler)
        model = getattr(request.trace.body, "model", None) or self._model
        if operation is None:
            span.update_name(f"{record.method} {record.handler}")
        else:
            span.update_name(f"{operation} {model}")
            span.set_attributes(_generation(operation, model, request, record))
        span.set_attributes(
            {
                "http.request.method": record.method,
                "http.route": record.handler,
                "url.path": record.path,
                "http.response.status_code": record.status,
                "client.address": record.client,
                "gen_ai.request.id": record.id,
                **request.trace.attributes,
            }
        )
        failures = [answer.error for answer in request.trace.answers if answer.error]
        error = record.error or (failures[0] if failures else None)
        if record.status >= 400 or error:
            span.set_attribute("error.type", str(record.status) if record.status >= 400 else "500")
        if record.status >= 500 or error:
            span.set_status(trace.Status(trace.StatusCode.ERROR, error))
        context = trace.set_span_in_context(span)
        self._stages(request, context)
        span.end()

    def flush(self) -> None:
        """Sends what is not sent yet."""
        self._provider.force_flush()

    def close(self) -> None:
        """Sends what is not sent yet, and ends the thread."""
        self._provider.shutdown()

    def _stages(self, request: TracedRequest, context: Context) -> None:
        for stage in request.trace.stages:
            self._child(request, context, stage.name, stage.began, stage.seconds, stage.attributes)
        for number, answer in enumerate(request.trace.answers):
            about = {"gen_ai.choice.index": number} if len(request.trace.answers) > 1 else {}
            times = answer.times
            if times.finished is None:
                continue
            admitted = times.admitted if times.admitted is not None else times.finished
            first = times.first_token if times.first_token is not None else times.finished
            queued = admitted - times.submitted
            self._child(request, context, "queue", times.submitted, queued, about)
            if times.admitted is None:
                continue
            if times.load:
                self._child(request, context, "records", admitted, times.load, about)
            begun = admitted + times.load
            self._child(request, context, "prefill", begun, first - begun, about)
            if times.first_token is not None:
                tokens = about | {"gen_ai.usage.output_tokens": answer.tokens}
                self._child(request, context, "decode", first, times.finished - first, tokens)

    def _child(
        self,
        request: TracedRequest,
        context: Context,
        name: str,
        began: float,
        seconds: float,
        attributes: Mapping[str, Any],
    ) -> None:
        start = request.nanoseconds(began)
        child = self._tracer.start_span(name, context, attributes=attributes, start_time=start)
        child.end(request.nanoseconds(began + max(seconds, 0.0)))


def _generation(
    operation: str, model: str, request: TracedRequest, record: RequestRecord
) -> dict[str, Any]:
    """The attributes of a request to the model."""
    body, answers = request.trace.body, request.trace.answers
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.latency.e2e": record.seconds,
    }
    for field, name in REQUEST_FIELDS.items():
        if (value := getattr(body, field, None)) is not None:
            attributes.setdefault(name, value)
    if stops := getattr(body, "stop", None):
        attributes["gen_ai.request.stop_sequences"] = [stops] if isinstance(stops, str) else stops
    if encoding := getattr(body, "encoding_format", None):
        attributes["gen_ai.request.encoding_formats"] = [encoding]
    if record.status == 200:
        attributes |= {
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.prompt_tokens": record.prompt_tokens,
        }
    if not answers:
        return attributes
    attributes |= {
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.completion_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "grit.cached_tokens": record.cached_tokens,
        "gen_ai.response.finish_reasons": [answer.finished for answer in answers],
    }
    times = [answer.times for answer in answers]
    if firsts := [each.first_token for each in times if each.first_token is not None]:
        waited = min(firsts) - request.began
        attributes["gen_ai.latency.time_to_first_token"] = waited
        if getattr(body, "stream", None):
            attributes["gen_ai.response.time_to_first_chunk"] = waited
    # Of several answers the longest.
    latencies: dict[str, float] = {}
    for name, start, end in PERIODS:
        for each in times:
            moments = getattr(each, start), getattr(each, end)
            if None not in moments:
                seconds = moments[1] - moments[0]
                latencies[name] = max(seconds, latencies.get(name, 0.0))
    return attributes | {f"gen_ai.latency.{name}": value for name, value in latencies.items()}
