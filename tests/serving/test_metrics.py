"""Metrics under vLLM's names, and numbers that add up."""

from __future__ import annotations

import re

from grit_jax.serving.metrics import ServerMetrics

LABEL = '{model_name="tiny"}'
# What the panels of vLLM's board ask for, in their order: its
# examples/observability/prometheus_grafana/grafana.json at commit 4b5c627c, without the quantiles
# other than the first. The board fills in $model_name from label_values(model_name).
BOARD = """
histogram_quantile(0.99, sum by(le) (rate(vllm:e2e_request_latency_seconds_bucket{model_name="$model_name"}[$__rate_interval])))
rate(vllm:e2e_request_latency_seconds_sum{model_name="$model_name"}[$__rate_interval])
rate(vllm:e2e_request_latency_seconds_count{model_name="$model_name"}[$__rate_interval])
rate(vllm:prompt_tokens_total{model_name="$model_name"}[$__rate_interval])
rate(vllm:generation_tokens_total{model_name="$model_name"}[$__rate_interval])
histogram_quantile(0.99, sum by(le) (rate(vllm:inter_token_latency_seconds_bucket{model_name="$model_name"}[$__rate_interval])))
rate(vllm:inter_token_latency_seconds_sum{model_name="$model_name"}[$__rate_interval])
rate(vllm:inter_token_latency_seconds_count{model_name="$model_name"}[$__rate_interval])
vllm:num_requests_running{model_name="$model_name"}
vllm:num_requests_waiting{model_name="$model_name"}
histogram_quantile(0.99, sum by(le) (rate(vllm:time_to_first_token_seconds_bucket{model_name="$model_name"}[$__rate_interval])))
rate(vllm:time_to_first_token_seconds_sum{model_name="$model_name"}[$__rate_interval])
rate(vllm:time_to_first_token_seconds_count{model_name="$model_name"}[$__rate_interval])
vllm:kv_cache_usage_perc{model_name="$model_name"}
sum by(le) (increase(vllm:request_prompt_tokens_bucket{model_name="$model_name"}[$__rate_interval]))
sum by(le) (increase(vllm:request_generation_tokens_bucket{model_name="$model_name"}[$__rate_interval]))
sum by(finished_reason) (increase(vllm:request_success_total{model_name="$model_name"}[$__rate_interval]))
rate(vllm:request_queue_time_seconds_sum{model_name="$model_name"}[$__rate_interval])
rate(vllm:request_prefill_time_seconds_sum{model_name="$model_name"}[$__rate_interval])
rate(vllm:request_decode_time_seconds_sum{model_name="$model_name"}[$__rate_interval])
rate(vllm:request_max_num_generation_tokens_sum{model_name="$model_name"}[$__rate_interval])
"""
# Beside those: of vLLM's docs/design/metrics.md and its board of earlier versions.
OTHERS = [
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "request_inference_time_seconds_count",
    "request_params_n_count",
    "time_per_output_token_seconds_bucket",
    "request_time_per_output_token_seconds_bucket",
]
HISTOGRAMS = [
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "time_per_output_token_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "request_params_n",
]


def test_an_answer_is_counted(server):
    before = server.metrics()
    body = {"messages": [{"role": "user", "content": "Amber?"}], "max_tokens": 9, "n": 2}
    usage = server.post("/v1/chat/completions", **body, ignore_eos=True)["usage"]
    server.wait_until_idle()
    after = server.metrics()
    grown = lambda name: after[name] - before.get(name, 0)
    assert grown(f"vllm:generation_tokens_total{LABEL}") == usage["completion_tokens"] == 18
    assert grown(f"vllm:prompt_tokens_total{LABEL}") == 2 * usage["prompt_tokens"]
    finished = 'vllm:request_success_total{finished_reason="length",model_name="tiny"}'
    assert grown(finished) == 2
    for name in HISTOGRAMS:
        count = 1 if name == "request_params_n" else 2
        assert grown(f"vllm:{name}_count{LABEL}") == count, name
    e2e = grown(f"vllm:e2e_request_latency_seconds_sum{LABEL}")
    parts = [
        grown(f"vllm:request_{part}_time_seconds_sum{LABEL}") for part in ("queue", "inference")
    ]
    assert e2e > 0 and abs(sum(parts) - e2e) < 1e-3
    handler = 'handler="/v1/chat/completions",method="POST"'
    assert grown(f'http_requests_total{{{handler},status="200"}}') == 1
    assert grown(f"http_request_duration_seconds_count{{{handler}}}") == 1


def test_the_board_of_vllm_shows_a_server_that_nobody_has_asked(tiny_model):
    """Each series is there, with the labels that the panels select and group by."""
    engine = tiny_model.engine(1, 64)
    samples = ServerMetrics(engine, "tiny").registry.collect()
    engine.close()
    labels: dict[str, list[dict[str, str]]] = {}
    for family in samples:
        for sample in family.samples:
            labels.setdefault(sample.name, []).append(sample.labels)
    asked = [*re.findall(r"vllm:\w+", BOARD), *(f"vllm:{name}" for name in OTHERS)]
    assert len(asked) == 27
    for name in asked:
        assert name in labels, name
        assert all(each["model_name"] == "tiny" for each in labels[name]), name
        if name.endswith("_bucket"):
            assert {"+Inf"} < {each["le"] for each in labels[name]}
    reasons = {each["finished_reason"] for each in labels["vllm:request_success_total"]}
    assert reasons == {"stop", "length", "abort"}


def test_the_state_of_the_engine(server):
    samples = server.metrics()
    assert samples["grit_healthy"] == 1 and samples["grit_slots"] == 4


def test_embedded_texts_are_counted(server):
    before = server.metrics()
    usage = server.post("/v1/embeddings", input=["amber", "stone"])["usage"]
    after = server.metrics()
    assert after["grit_embedded_texts_total"] - before["grit_embedded_texts_total"] == 2
    tokens = after["grit_embedded_tokens_total"] - before["grit_embedded_tokens_total"]
    assert tokens == usage["prompt_tokens"]
