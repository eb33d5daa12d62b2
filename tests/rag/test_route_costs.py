"""What reading and loading cost: measured once on a machine, and kept with the index."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest

from grit_jax.models.config import RopeScaling
from grit_jax.rag import route_costs
from grit_jax.rag.answer import Asker
from grit_jax.rag.index import Index, build_index
from grit_jax.rag.route_costs import load_costs, measure_costs
from grit_jax.rag.router import PassWork, RouteCosts, route

COSTS = RouteCosts(PassWork(token=1, pair=0), 1000, 0.01, 1e-4, 5e-5)  # any


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
    monkeypatch.setattr(route_costs, "measure_costs", lambda *_: pytest.fail("measured again"))
    assert load_costs(tiny_model, index) == first
    # Another machine has costs of its own.
    monkeypatch.setattr(route_costs.platform, "node", lambda: "another")
    slower = dataclasses.replace(first, flops=first.flops / 2)
    monkeypatch.setattr(route_costs, "measure_costs", lambda *_: slower)
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
        route_costs, "_read", lambda model, n, pieces=(): 0.3 if pieces else {32: 0.1, 256: 0.5}[n]
    )
    load = route_costs._load
    monkeypatch.setattr(
        route_costs, "_load", lambda *a: (1e-3 + 2e-6 * len((found := load(*a)[1]).tokens), found)
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
        route_costs,
        "_read",
        lambda model, n, pieces=(): placed.extend(len(p.tokens) for p in pieces) or n / 1000,
    )
    load = route_costs._load
    short = min(range(len(index)), key=lambda row: index.documents[row]["tokens"])
    monkeypatch.setattr(
        route_costs, "_load", lambda index, key: load(index, index.documents[short]["key"])
    )
    load_costs(tiny_model, index)
    assert index.documents[short]["tokens"] < 32 and placed == [256]


def test_the_first_measurement_counts(tiny_model, index, monkeypatch):
    """Of two processes that measure at once both use what the quicker one found."""

    def slower(*_):
        monkeypatch.setattr(route_costs, "measure_costs", lambda *_: COSTS)
        load_costs(tiny_model, index)
        return dataclasses.replace(COSTS, flops=1.0)

    monkeypatch.setattr(route_costs, "measure_costs", slower)
    assert load_costs(tiny_model, index).flops == COSTS.flops


def test_an_index_that_cannot_be_written_is_measured_each_time(
    tiny_model, index, monkeypatch, tmp_path
):
    """Nothing can be created below a file, whoever runs the test."""
    locked = copy.copy(index)
    locked.path = tmp_path / "file"
    locked.path.write_text("")
    measured = []
    monkeypatch.setattr(route_costs, "measure_costs", lambda *_: measured.append(1) or COSTS)
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
        route_costs, "_read", lambda model, n, pieces=(): lengths.append(n) or n / 1000
    )
    measure_costs(extended, index)
    assert max(lengths) == 256


def test_records_that_cannot_be_loaded_are_not_counted_on(tiny_model, index, monkeypatch):
    monkeypatch.setattr(route_costs, "_read", lambda model, n, pieces=(): n / 1000)
    monkeypatch.setattr(route_costs, "_load", lambda *_: None)
    found = load_costs(tiny_model, index)
    assert math.isinf(found.load(10)) and math.isfinite(found.place(10)) and not kept(index)


@pytest.mark.parametrize(
    "flops, load, modes", [(1e6, 1e-9, ("doc", "query")), (1e15, 10.0, ("doc-then-query",))]
)
def test_questions_go_by_the_costs_that_are_kept(
    flops, load, modes, tiny_model, index, monkeypatch
):
    costs = RouteCosts(PassWork.of(tiny_model.config), flops, load, load, load)
    monkeypatch.setattr(route_costs, "measure_costs", lambda *_: costs)
    found = []
    for _ in range(2):
        asker = Asker(tiny_model, Index.open(index.path, tiny_model))
        found.append(asker.ask("Which river is quiet?", max_new_tokens=1)[0].mode)
        monkeypatch.setattr(route_costs, "measure_costs", lambda *_: pytest.fail("measured again"))
    assert found[0] in modes and found[1] == found[0]
