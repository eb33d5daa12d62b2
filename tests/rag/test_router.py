"""`auto` takes the cheapest way: long parts from records, short ones read anew."""

from __future__ import annotations

import pytest

from grit_jax.models.config import ModelConfig
from grit_jax.rag.router import ROUTED, TEMPLATE_TOKENS, Costs, route

# 1000 tokens/s read, 10 000 tokens/s loaded.
COSTS = Costs(prefill_tokens_per_s=1000, load_bytes_per_s=1e6, bytes_per_token=100, load_seconds=0.01)


def test_estimates_are_tokens_to_read_and_bytes_to_load():
    found = route(100, [400, 600], COSTS, among=("none", "doc-then-query", "doc", "query", "query-doc"))
    assert found.seconds == pytest.approx({
        "none": (100 + TEMPLATE_TOKENS) / 1000,
        "doc-then-query": (1100 + TEMPLATE_TOKENS) / 1000,
        "doc": 0.01 + 0.1 + (100 + TEMPLATE_TOKENS) / 1000,
        "query": (1000 + TEMPLATE_TOKENS) / 1000,
        "query-doc": 0.01 + 0.1 + TEMPLATE_TOKENS / 1000,
    })  # fmt: skip


@pytest.mark.parametrize(
    "query, documents, how, mode",
    [
        (10, [4000], {}, "doc"),  # the paper's sample A
        (4000, [10], {}, "query"),  # its sample B
        (0, [5], {"query_recorded": False}, "doc-then-query"),  # loading takes longer than reading
        (10, [4000], {"documents_stored": False}, "query"),
        (10, [4000], {"documents_stored": False, "query_recorded": False}, "doc-then-query"),
    ],
)
def test_the_long_part_comes_from_its_record(query, documents, how, mode):
    assert route(query, documents, COSTS, **how).mode == mode


def test_only_ways_that_use_documents_are_chosen_among():
    assert route(10, [10_000], COSTS).mode in ROUTED and "none" not in ROUTED


def test_costs_follow_the_model():
    small, large = ModelConfig(num_hidden_layers=2), ModelConfig(num_hidden_layers=4)
    assert Costs.estimate(small, "cpu").prefill_tokens_per_s > Costs.estimate(large, "cpu").prefill_tokens_per_s
    assert Costs.estimate(large, "tpu").bytes_per_token == 2 * 4 * 8 * 128 * 2  # K and V, L, K, H, bfloat16
