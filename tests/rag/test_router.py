"""`auto` takes the cheapest way: long parts from records, short ones read anew, by costs measured
once."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest

from grit_jax.models.config import ModelConfig, RopeScaling
from grit_jax.rag import route_costs as measuring
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, build_index
from grit_jax.rag.route_costs import load_costs, measure_costs
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


@pytest.fixture(scope="module")
def built(tiny_model, sentences, tmp_path_factory):
    """An index with a short document, a long one and some others."""
    folder = tmp_path_factory.mktemp("costs")
    texts = [sentences[0][:8], " ".join(sentences[:40]), *sentences[:10]]
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(tiny_model, folder / "c.jsonl", folder / "index", quiet=True)
    return Index.open(folder / "index", tiny_model)


def kept(index) -> list:
    return sorted(index.path.glob("costs-*.json"))


@pytest.fixture
def index(built):
    """The index without any costs beside it."""
    yield built
    for path in kept(built):
        path.unlink()


def test_costs_are_measured_once_and_kept_with_the_index(tiny_model, index, monkeypatch):
    first = load_costs(tiny_model, index)
    assert first.work == PassWork.of(tiny_model.config) and first.flops > 0
    assert 0 < first.load(1000) < 100 and 0 <= first.place(1000) < 100
    # What the paper measures is no close call on a CPU.
    assert (route(1, [4000], first).mode, route(4000, [1], first).mode) == ("doc", "query")
    assert len(kept(index)) == 1 and not list(index.path.glob(".costs*"))
    monkeypatch.setattr(measuring, "measure_costs", lambda *_: pytest.fail("measured again"))
    assert load_costs(tiny_model, index) == first
    # Another machine has costs of its own.
    monkeypatch.setattr(measuring.platform, "node", lambda: "another")
    slower = dataclasses.replace(first, flops=first.flops / 2)
    monkeypatch.setattr(measuring, "measure_costs", lambda *_: slower)
    assert load_costs(tiny_model, index) == slower and len(kept(index)) == 2


def test_costs_follow_from_what_was_timed(tiny_model, index, monkeypatch):
    """A prompt of 32 tokens in 0.1 s, of 256 in 0.5 s, of 32 after a record in 0.3 s; 1 ms and 2 us
    a token to load."""
    work, tokens = (
        PassWork.of(tiny_model.config),
        [document["tokens"] for document in map(index.documents.__getitem__, range(12))],
    )
    few, many = min(tokens), max(tokens)
    monkeypatch.setattr(
        measuring, "_read", lambda model, n, pieces=(): 0.3 if pieces else {32: 0.1, 256: 0.5}[n]
    )
    load = measuring._load
    monkeypatch.setattr(
        measuring, "_load", lambda *a: (1e-3 + 2e-6 * len((found := load(*a)[1]).tokens), found)
    )
    found = load_costs(tiny_model, index)
    assert found.flops == pytest.approx((work.reading(256) - work.reading(32)) / 0.4)
    assert few < many
    assert (found.load_seconds, found.load_seconds_per_token) == pytest.approx((1e-3, 2e-6))
    # The prompt also sees the record's keys.
    assert found.place(many) == pytest.approx(0.2 - 32 * many * work.pair / found.flops)
    assert load_costs(tiny_model, index) == found  # as it was kept


def test_placing_is_measured_on_a_long_record(tiny_model, index, monkeypatch):
    """One of a few tokens takes as long as a whole bucket, which is not to be multiplied by a long
    question."""
    placed = []
    monkeypatch.setattr(
        measuring,
        "_read",
        lambda model, n, pieces=(): placed.extend(len(p.tokens) for p in pieces) or n / 1000,
    )
    load = measuring._load
    short = min(range(len(index)), key=lambda row: index.documents[row]["tokens"])
    monkeypatch.setattr(
        measuring, "_load", lambda index, key: load(index, index.documents[short]["key"])
    )
    load_costs(tiny_model, index)
    assert index.documents[short]["tokens"] < 32 and placed == [256]


def test_the_first_measurement_counts(tiny_model, index, monkeypatch):
    """Of two processes that measure at once both use what the quicker one found."""

    def slower(*_):
        monkeypatch.setattr(measuring, "measure_costs", lambda *_: COSTS)
        load_costs(tiny_model, index)
        return dataclasses.replace(COSTS, flops=1.0)

    monkeypatch.setattr(measuring, "measure_costs", slower)
    assert load_costs(tiny_model, index).flops == COSTS.flops


def test_an_index_that_cannot_be_written_is_measured_each_time(
    tiny_model, index, monkeypatch, tmp_path
):
    """Nothing can be created below a file, whoever runs the test."""
    locked = copy.copy(index)
    locked.path = tmp_path / "file"
    locked.path.write_text("")
    measured = []
    monkeypatch.setattr(measuring, "measure_costs", lambda *_: measured.append(1) or COSTS)
    assert load_costs(tiny_model, locked) is COSTS
    assert load_costs(tiny_model, locked) is COSTS and len(measured) == 2


def test_the_long_prompt_goes_by_the_context_that_scaling_extends(tiny_model, index, monkeypatch):
    """yarn extends 100 positions four times: 400 tokens, so that 256 fit."""
    yarn = RopeScaling("yarn", 4.0, original_max_position_embeddings=100)
    extended = copy.copy(tiny_model)
    extended.config = dataclasses.replace(
        tiny_model.config, max_position_embeddings=100, rope_scaling=yarn
    )
    lengths = []
    monkeypatch.setattr(
        measuring, "_read", lambda model, n, pieces=(): lengths.append(n) or n / 1000
    )
    measure_costs(extended, index)
    assert max(lengths) == 256


def test_records_that_cannot_be_loaded_are_not_counted_on(tiny_model, index, monkeypatch):
    monkeypatch.setattr(measuring, "_read", lambda model, n, pieces=(): n / 1000)
    monkeypatch.setattr(measuring, "_load", lambda *_: None)
    found = load_costs(tiny_model, index)
    assert math.isinf(found.load(10)) and math.isfinite(found.place(10)) and not kept(index)


@pytest.mark.parametrize(
    "flops, load, modes", [(1e6, 1e-9, ("doc", "query")), (1e15, 10.0, ("doc-then-query",))]
)
def test_questions_go_by_the_costs_that_are_kept(
    flops, load, modes, tiny_model, index, monkeypatch
):
    costs = RouteCosts(PassWork.of(tiny_model.config), flops, load, load, load)
    monkeypatch.setattr(measuring, "measure_costs", lambda *_: costs)
    found = []
    for _ in range(2):
        asker = Asker(tiny_model, Index.open(index.path, tiny_model))
        found.append(asker.ask("Which river is quiet?", max_new_tokens=1)[0].mode)
        monkeypatch.setattr(measuring, "measure_costs", lambda *_: pytest.fail("measured again"))
    assert found[0] in modes and found[1] == found[0]
