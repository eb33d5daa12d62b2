"""Metrics under vLLM's names, and numbers that add up."""

from __future__ import annotations

LABEL = '{model_name="tiny"}'
# Of vLLM's Grafana board.
NAMES = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "prompt_tokens_total",
    "generation_tokens_total",
]
HISTOGRAMS = [
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
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


def test_the_names_of_vllm_are_there_from_the_start(server):
    samples = server.metrics()
    assert all(f"vllm:{name}{LABEL}" in samples for name in NAMES)
    assert samples["grit_healthy"] == 1 and samples["grit_slots"] == 4


def test_embedded_texts_are_counted(server):
    before = server.metrics()
    usage = server.post("/v1/embeddings", input=["amber", "stone"])["usage"]
    after = server.metrics()
    assert after["grit_embedded_texts_total"] - before["grit_embedded_texts_total"] == 2
    tokens = after["grit_embedded_tokens_total"] - before["grit_embedded_tokens_total"]
    assert tokens == usage["prompt_tokens"]
