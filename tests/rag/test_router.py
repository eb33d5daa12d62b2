"""`auto` takes the cheapest way: long parts from records, short ones read anew."""

from __future__ import annotations

import dataclasses
import math

import pytest

from grit_jax.models.config import ModelConfig
from grit_jax.rag.router import ROUTED, TEMPLATE_TOKENS, PassWork, RouteCosts, route
from grit_jax.text.rag_layouts import MODES

# 1000 tokens/s read, 10 000 tokens/s loaded, 20 000 tokens/s placed.
COSTS = RouteCosts(
    PassWork(token=1, pair=0),
    flops=1000,
    load_seconds=0.01,
    load_seconds_per_token=1e-4,
    place_seconds_per_token=5e-5,
)


def test_estimates_are_tokens_to_read_and_records_to_load_and_place():
    found = route(100, [400, 600], COSTS, among=MODES)
    record, documents = 100 * 5e-5, 0.01 + 1000 * (1e-4 + 5e-5)
    read = lambda tokens: (tokens + TEMPLATE_TOKENS) / 1000
    assert found.seconds == pytest.approx(
        {
            "none": read(100),
            "query-then-doc": read(1100),
            "doc-then-query": read(1100),
            "doc": documents + read(100),
            "query": record + read(1000),
            "query-doc": record + documents + read(0),
            "doc-query": record + documents + read(0),
        }
    )
    assert found.mode == min(found.seconds, key=found.seconds.__getitem__)


def test_what_is_not_recorded_is_encoded_first():
    found = route(
        100, [400, 600], COSTS, documents_stored=False, query_recorded=False, among=MODES
    ).seconds
    assert found["doc"] == pytest.approx(1.0 + 1000 * 5e-5 + (100 + TEMPLATE_TOKENS) / 1000)
    assert found["query"] == pytest.approx(0.1 + 100 * 5e-5 + (1000 + TEMPLATE_TOKENS) / 1000)


@pytest.mark.parametrize(
    "query, documents, how, mode",
    [
        (1, [4000], {}, "doc"),  # the paper's sample A
        (4000, [1], {}, "query"),  # its sample B
        (0, [5], {"query_recorded": False}, "doc-then-query"),  # loading takes longer than reading
        (10, [4000], {"documents_stored": False}, "query"),
        (10, [4000], {"documents_stored": False, "query_recorded": False}, "doc-then-query"),
    ],
)
def test_the_long_part_comes_from_its_record(query, documents, how, mode):
    assert route(query, documents, COSTS, **how).mode == mode


def test_a_slow_disk_makes_reading_the_quicker_way():
    slow = dataclasses.replace(COSTS, load_seconds_per_token=2e-3)
    assert route(1, [4000], slow).mode != "doc" and route(1, [4000], COSTS).mode == "doc"
    nothing = dataclasses.replace(COSTS, load_seconds=math.inf, load_seconds_per_token=math.inf)
    assert route(1, [4000], nothing).mode == "query"


def test_a_query_is_recorded_where_that_is_less_than_reading_it_again():
    assert COSTS.worth_recording(100)
    assert not dataclasses.replace(COSTS, place_seconds_per_token=6e-4).worth_recording(100)


def test_only_ways_that_use_documents_are_chosen_among():
    assert route(10, [10_000], COSTS).mode in ROUTED and "none" not in ROUTED


def test_work_counts_the_products_of_a_pass():
    c = ModelConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12  # query, key and value, output, feed-forward
    norms = 2 * 2 * 8 + 8
    # Scores and weighted sums are 2 H operations each, for every head and layer.
    assert PassWork.of(c) == PassWork(token=2 * (2 * layer + norms), pair=2 * 2 * (2 * 2 * 4))
    assert PassWork(3, 5).reading(10, 100) == 10 * 3 + 10 * 110 * 5
