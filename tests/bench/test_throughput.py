"""`grit bench encode|decode|train`: tokens that were really read, by the seconds that it took."""

from __future__ import annotations

import pytest

from grit_jax.bench import throughput
from grit_jax.bench.throughput import bench_decode, bench_encode, bench_train

KEYS = {"tokens_per_s", "seconds", "least_s", "most_s", "repeats", "tokens"}


def assert_rates(results, repeats):
    for values in results.values():
        assert values.keys() >= KEYS and values["repeats"] == repeats
        assert values["least_s"] <= values["seconds"] <= values["most_s"]
        assert values["tokens_per_s"] == pytest.approx(
            values["tokens"] / values["seconds"], rel=1e-2
        )


def test_a_median_that_leaves_the_first_one_out(monkeypatch):
    clock = iter([0, 100, 200, 204, 300, 301, 400, 402])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(next(clock)))
    found = throughput._rates(10, throughput._seconds(lambda: None, 3), rows=7)
    assert found == {
        "tokens_per_s": 5.0,
        "seconds": 2.0,
        "least_s": 1.0,
        "most_s": 4.0,
        "repeats": 3,
        "tokens": 10,
        "rows": 7,
    }


def test_encode(tiny_model, monkeypatch):
    read = []
    encode = type(tiny_model.encoder).encode_ids

    def spy(self, ids, *args, **kwargs):
        read.append((sum(map(len, ids)), bool(kwargs.get("return_cache"))))
        return encode(self, ids, *args, **kwargs)

    monkeypatch.setattr(type(tiny_model.encoder), "encode_ids", spy)
    found = bench_encode(tiny_model, batch_tokens=256, repeats=2)
    assert_rates(found, 2)
    assert list(found) == ["queries", "passages", "mixed", "passages_with_kv"]
    assert read == [
        (values["tokens"], name.endswith("kv")) for name, values in found.items() for _ in range(3)
    ]
    assert found["queries"]["tokens"] == found["passages"]["tokens"] == 256


@pytest.mark.slow
def test_decode_ignores_the_end_of_sequence(tiny_model, monkeypatch):
    monkeypatch.setattr(throughput, "NEW", 5)
    monkeypatch.setattr(throughput, "PROMPT", 20)
    made = []
    generate = tiny_model.generate_ids
    monkeypatch.setattr(tiny_model, "stop_ids", tuple(range(tiny_model.config.vocab_size)))
    monkeypatch.setattr(
        tiny_model, "generate_ids", lambda *a, **k: made.append(generate(*a, **k)) or made[-1]
    )
    found = bench_decode(tiny_model, repeats=2)
    assert_rates(found, 2)
    mixed = found.pop("mixed")
    assert {name: (values["rows"], values["tokens"]) for name, values in found.items()} == {
        "rows_1": (1, 4),
        "rows_8": (8, 32),
    }
    assert all(values["prefill_tokens_per_s"] > 0 for values in found.values())
    *uniform, last = made
    lengths = [len(tokens) for tokens in last.tokens]
    assert mixed["requests"] == len(lengths) == 48 and mixed["tokens"] == sum(lengths)
    assert set(lengths) == {1, 2, 3, 4, 5}
    of_one_length = [generation for generation in uniform if len(generation.tokens) < 48]
    assert {len(tokens) for generation in of_one_length for tokens in generation.tokens} == {5}


@pytest.mark.slow
def test_train(tiny_model):
    found = bench_train(tiny_model, batch_tokens=600, repeats=1)
    assert_rates(found, 1)
    assert found["joint"]["tokens"] == found["embedding"]["tokens"] + found["generative"]["tokens"]
    assert found["embedding"]["tokens"] == throughput.QUERY + throughput.PASSAGE
