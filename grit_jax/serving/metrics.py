"""Prometheus metrics: vLLM's names, so that its Grafana board works, and ours beside them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from grit_jax.inference.engine import Engine
from grit_jax.inference.requests import Times

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
TIMES = {
    "time_to_first_token": "from the arrival of a request to its first token",
    "inter_token_latency": "between two tokens of an answer, its mean",
    # The same under the names that vLLM's boards of other versions have.
    "time_per_output_token": "of a token after the first, the mean of an answer",
    "request_time_per_output_token": "of a token after the first, the mean of an answer",
    "e2e_request_latency": "from the arrival of a request to its last token",
    "request_queue_time": "of waiting for a slot",
    "request_prefill_time": "from the slot to the first token",
    "request_decode_time": "from the first token to the last",
    "request_inference_time": "from the slot to the last token",
}
PER_TOKEN = ("inter_token_latency", "time_per_output_token", "request_time_per_output_token")
FINISHED = ("stop", "length", "abort")  # why an answer ends
SIZES = {
    "request_prompt_tokens": "of a prompt, documents included",
    "request_generation_tokens": "of an answer",
    "request_max_num_generation_tokens": "that a request allowed at most",
    "request_params_n": "answers asked for",
}


class ServerMetrics:
    """The metrics of one server.

    Args:
      model: the label `model_name` of vLLM's metrics; those of the engine as a whole have it too.
      adapters: the names of the model's adapters, each of which is a label of its own.
    """

    def __init__(self, engine: Engine, model: str, adapters: Sequence[str] = ()):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._model = model
        self.registry.register(_EngineMetrics(engine, model))
        histogram = lambda name, text, buckets, labels=("model_name",): Histogram(
            name, text, labels, buckets=buckets, registry=self.registry
        )
        counter = lambda name, text, labels: Counter(name, text, labels, registry=self.registry)
        self._times = {
            name: histogram(f"vllm:{name}_seconds", f"Seconds {text}", SECONDS)
            for name, text in TIMES.items()
        }
        self._sizes = {
            name: histogram(f"vllm:{name}", f"Tokens {text}", TOKENS)
            for name, text in SIZES.items()
        }
        self._prompt = counter("vllm:prompt_tokens", "Tokens of prompts", ["model_name"])
        self._generated = counter("vllm:generation_tokens", "Tokens generated", ["model_name"])
        self._success = counter(
            "vllm:request_success", "Answers by why they ended", ["model_name", "finished_reason"]
        )
        self._queries = counter(
            "vllm:prefix_cache_queries", "Tokens that a cache could hold", ["model_name"]
        )
        self._hits = counter("vllm:prefix_cache_hits", "Tokens from caches", ["model_name"])
        # All are 0 from the start on: a board shows nothing of a series that is not there, and a
        # rate misses what a series begins with.
        per_model = (self._prompt, self._generated, self._queries, self._hits)
        for name in (model, *adapters):
            for metric in (*per_model, *self._times.values(), *self._sizes.values()):
                metric.labels(name)
            for reason in FINISHED:
                self._success.labels(name, reason)
        self._http = counter(
            "http_requests", "Requests by method, path and status", ["method", "handler", "status"]
        )
        self._http_seconds = histogram(
            "http_request_duration_seconds",
            "Seconds of a request, to the last byte of the reply",
            SECONDS,
            ("method", "handler"),
        )
        self._ignored = counter("grit_ignored_fields", "Fields without effect", ["field"])
        self._embedded = counter("grit_embedded_tokens", "Tokens of embedded texts", [])
        self._embedded_texts = counter("grit_embedded_texts", "Texts that were embedded", [])
        self._refused = counter("grit_refused_requests", "Requests refused as overload", [])
        self._load = histogram(
            "grit_record_load_seconds", "Seconds of waiting for records", SECONDS, ()
        )

    def for_model(self, name: str) -> ServerMetrics:
        """The same metrics; what is counted through these has another `model_name`."""
        metrics = copy.copy(self)
        metrics._model = name
        return metrics

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def answered(
        self, times: Times, prompt: int, cached: int, generated: int, most: int, finished: str
    ) -> None:
        """Counts an answer that has ended.

        Args:
          prompt: tokens read, `cached` of them from records.
          most: tokens that the request allowed.
          finished: "stop", "length" or "abort".
        """
        self._prompt.labels(self._model).inc(prompt)
        self._generated.labels(self._model).inc(generated)
        self._queries.labels(self._model).inc(prompt)
        self._hits.labels(self._model).inc(cached)
        self._success.labels(self._model, finished).inc()
        for name, size in (
            ("request_prompt_tokens", prompt),
            ("request_generation_tokens", generated),
            ("request_max_num_generation_tokens", most),
        ):
            self._sizes[name].labels(self._model).observe(size)
        if times.load:
            self._load.observe(times.load)
        if times.finished is None or times.admitted is None:
            return
        first = times.first_token if times.first_token is not None else times.finished
        seconds: dict[str, float] = {
            "time_to_first_token": first - times.submitted,
            "e2e_request_latency": times.finished - times.submitted,
            "request_queue_time": times.admitted - times.submitted,
            "request_prefill_time": first - times.admitted,
            "request_decode_time": times.finished - first,
            "request_inference_time": times.finished - times.admitted,
        }
        if generated > 1:
            seconds |= dict.fromkeys(PER_TOKEN, (times.finished - first) / (generated - 1))
        for name, value in seconds.items():
            self._times[name].labels(self._model).observe(max(value, 0.0))

    def asked(self, answers: int) -> None:
        """Counts a request for so many answers."""
        self._sizes["request_params_n"].labels(self._model).observe(answers)

    def embedded(self, texts: int, tokens: int) -> None:
        """Counts embedded texts."""
        self._embedded_texts.inc(texts)
        self._embedded.inc(tokens)

    def ignored(self, field: str) -> None:
        """Counts a field without effect."""
        self._ignored.labels(field).inc()

    def refused(self) -> None:
        """Counts a request for which there was no room."""
        self._refused.inc()

    def http(self, method: str, handler: str, status: int, seconds: float) -> None:
        """Counts a reply."""
        self._http.labels(method, handler, str(status)).inc()
        self._http_seconds.labels(method, handler).observe(seconds)


class _EngineMetrics(Collector):
    """What the engine knows, read when it is asked for."""

    def __init__(self, engine: Engine, model: str):
        self._engine, self._model = engine, model

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        named = {
            "vllm:num_requests_running": ("Requests in slots", stats.slots_in_use),
            "vllm:num_requests_waiting": ("Requests that wait for a slot", stats.waiting),
            "vllm:kv_cache_usage_perc": (
                "Slots in use, from 0 to 1",
                stats.slots_in_use / stats.slots,
            ),
        }
        for name, (text, value) in named.items():
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            yield family
        yield GaugeMetricFamily("grit_slots", "Slots", value=stats.slots)
        yield GaugeMetricFamily(
            "grit_waiting_passes", "Embeddings and scores that wait", value=stats.waiting_passes
        )
        yield GaugeMetricFamily("grit_healthy", "1 while the engine runs", value=stats.healthy)
        for name, text, value in (
            ("grit_compilations", "Programs compiled since the warm-up", stats.compilations),
            ("grit_requests_submitted", "Requests to the engine", stats.submitted),
            ("grit_requests_failed", "Requests that failed", stats.failed),
            ("grit_requests_cancelled", "Requests whose client left", stats.cancelled),
            ("grit_leaks", "Times that the idle engine held what it should not", stats.leaks),
        ):
            yield CounterMetricFamily(name, text, value=value)
