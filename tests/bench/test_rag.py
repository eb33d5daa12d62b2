"""`grit bench rag`: what it measures, and what it says of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from grit_jax.bench import rag
from grit_jax.bench.rag import MEASURED, RagBenchOptions, bench_rag, check_length
from grit_jax.bench.texts import TextMaker
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM, ModelOptions
from grit_jax.inference.sampling import Sampling
from grit_jax.models.config import RopeScaling
from grit_jax.rag import route_costs as costs
from grit_jax.rag.generator import DOCUMENT_CACHES, QUERY_CACHES, RagGenerator, RagPrompt
from grit_jax.rag.router import PassWork, RouteCosts
from grit_jax.text.rag_layouts import MODES

TOKENS, NEW = 48, 3
CONTRACT = {
    "mode",
    "shape",
    "kv",
    "query_tokens",
    "doc_tokens",
    "new_tokens",
    "ttft_s",
    "total_s",
    "search_s",
    "load_s",
    "storage_bytes",
}
PROCESSOR = RouteCosts(
    PassWork(0, 0), 1e8, 1e-3, 1e-6, 1e-6
)  # loading takes less than reading, as on a CPU


@pytest.fixture(scope="module")
def model(tiny_config, tiny_params, tiny_tokenizer, tiny_model):
    """Every token ends its answers."""
    return GritLM(
        tiny_config,
        tiny_params,
        tiny_tokenizer,
        tiny_model.chat,
        ModelOptions(stop_ids=range(tiny_config.vocab_size)),
    )


def run_bench(model, folder, curve):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "measure_costs", lambda *_: PROCESSOR)
        patch.setattr(rag, "CURVE", 2)
        results = bench_rag(
            model,
            RagBenchOptions(tokens=TOKENS, new_tokens=NEW, repeats=2, curve=curve),
            folder=folder,
            quiet=True,
        )
        assert not list(folder.iterdir())  # indices are gone
        return results


@pytest.fixture(scope="module")
def bench(model, tmp_path_factory):
    return run_bench(model, tmp_path_factory.mktemp("bench"), curve=False)


def test_every_layout_on_both_samples(bench):
    rows = json.loads(json.dumps(bench.rows()))
    assert [(row["shape"], row["mode"]) for row in rows] == [
        (shape, mode) for shape in "AB" for mode in MEASURED
    ]
    for row in rows:
        assert row.keys() >= CONTRACT and row["kv"] == "native" and row["repeats"] == 2
        assert (row["query_tokens"], row["doc_tokens"]) == {"A": (1, TOKENS), "B": (TOKENS, 1)}[
            row["shape"]
        ]


def test_the_end_of_sequence_is_ignored(bench, model):
    assert {row.new_tokens for row in bench.table} == {NEW}
    assert model.generate_ids([[5]], sampling=Sampling(max_new_tokens=NEW)).tokens == [[]]


def test_parts_and_wholes(bench):
    for row in bench.table:
        assert (
            row.total_s >= row.ttft_s >= max(row.load_s, row.search_s)
            and row.least_s <= row.total_s <= row.most_s
        )
        assert (
            row.total_s >= row.decode_s + row.ttft_s - 1e-3
            and row.decode_s > 0
            and row.prefill_s > 0
        )
        assert (row.search_s > 0) == (row.mode != "none") and row.floor_s > 0
        assert row.load_s > 1e-4 or row.used not in DOCUMENT_CACHES
    used = {(row.shape, row.mode): row.used for row in bench.table}
    assert all(used[shape, mode] == mode for shape in "AB" for mode in MODES)
    assert (used["A", "auto"], used["B", "auto"]) == ("doc", "query")


def test_bytes_stored(bench, model):
    c, tags = model.config, model.encoder.format([""]).prompt
    vectors, numbers = (
        4 * c.hidden_size,
        2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim,
    )
    for row in bench.table:
        if row.mode == "none":
            assert row.storage_bytes == 0
        elif row.mode in (*DOCUMENT_CACHES, "auto"):
            records = (row.doc_tokens + tags) * numbers * 4
            assert vectors + records < row.storage_bytes < vectors + records + 2000  # a header, too
        else:
            assert row.storage_bytes == vectors


def test_the_floor_is_bytes(bench, model):
    """By hand: 16-dimensional heads, two of them, three layers, float32; weights but for the table
    of embeddings."""
    weights = sum(
        np.prod(value.shape) * 4 for name, value in model.params.items() if name != "embed"
    )
    kv = TOKENS * 2 * 3 * 2 * 16 * 4
    assert bench.weight_bytes == weights
    rows = {(row.shape, row.mode): row for row in bench.table}
    none, doc = rows["A", "none"], rows["A", "doc"]
    one = kv / TOKENS
    assert none.floor_s == pytest.approx(NEW * (weights + one) / bench.rates.memory, abs=2e-6)
    record = doc.storage_bytes - 4 * model.config.hidden_size
    expected = record / bench.rates.store + NEW * (weights + kv + one) / bench.rates.memory
    assert doc.floor_s == pytest.approx(expected, abs=2e-6)


@pytest.mark.slow
def test_the_curve_is_measured_at_every_length(model, tmp_path):
    curve = run_bench(model, tmp_path, curve=True).curve
    assert [(row.shape, row.mode, max(row.query_tokens, row.doc_tokens)) for row in curve] == [
        (shape, mode, tokens)
        for tokens in (TOKENS // 2, TOKENS)
        for shape in "AB"
        for mode in MEASURED
    ]


@pytest.mark.parametrize(
    "scaling", [None, RopeScaling("yarn", 2.0, original_max_position_embeddings=50)]
)
def test_more_than_the_model_reads(model, scaling):
    """The most tokens that the message allows fit in every layout, one more does not. Scaling
    extends 50 positions to 100."""
    positions = 100 if scaling is None else 50
    short = GritLM(
        dataclasses.replace(model.config, max_position_embeddings=positions, rope_scaling=scaling),
        model.params,
        model.tokenizer,
        model.chat,
    )
    with pytest.raises(GritError, match="this model reads 100; take --tokens") as error:
        bench_rag(short, RagBenchOptions(tokens=4000), quiet=True)
    most = int(str(error.value).split("--tokens ")[-1].split()[0])
    texts, tags = TextMaker(short), short.encoder.format([""]).prompt
    check_length(short, texts, most, 16)
    with pytest.raises(GritError, match=f"take --tokens {most} at most"):
        check_length(short, texts, most + 1, 16)
    generator = RagGenerator(short, most + tags)
    lengths = []
    for question, document in (
        (texts.text(1), texts.text(most)),
        (texts.text(most), texts.text(1)),
    ):
        for mode in MODES:
            prompt = generator.continuations(
                [RagPrompt(mode, question, (document,) if mode != "none" else ())]
            )[0]
            cached = (texts.count([document])[0] + tags) * (mode in DOCUMENT_CACHES)
            lengths.append(
                len(prompt)
                + cached
                + (texts.count([question])[0] + tags) * (mode in QUERY_CACHES)
                + 16
            )
    assert max(lengths) == 100
