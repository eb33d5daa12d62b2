"""What records take, against real ones, and when they pay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from codec_samples import OTHER, SAMPLE, H, K, L, kv

from grit_jax.inference.records import PackedRecord
from grit_jax.models.config import ModelConfig
from grit_jax.plan.answers import CallSeconds, Workload, codecs_for, layer_bytes, record_bytes
from grit_jax.rag.codecs.codecs import KINDS, calibrate
from grit_jax.rag.record_format import RecordIdentity, encode_record

CONFIG = ModelConfig(
    vocab_size=500,
    hidden_size=24,
    num_hidden_layers=L,
    num_attention_heads=K,
    num_key_value_heads=K,
    head_dim=H,
    dtype="float32",
)
IDENTITY = RecordIdentity("0" * 64, (("embed", "<|embed|>"),), "bidirectional")
WORK = Workload(
    document_tokens=500,
    question_tokens=100,
    new_tokens=10,
    chunk=256,
    layers=2,
    slots=8,
    shares=4,
    chips=8,
    encode_tokens=2000,
)
SECONDS = CallSeconds(prefill=0.3, cached_layer=0.05, decode=0.04, encode=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_a_real_record(kind):
    document = OTHER.record
    if kind != "native":
        codec = calibrate(kind, [SAMPLE.record])
        arrays = {name: np.asarray(a)[:, 0] for name, a in codec.pack(kv(OTHER)).items()}
        document = PackedRecord(document.tokens, arrays, codec)
    T, identity = len(document.tokens), dataclasses.replace(IDENTITY, compression=kind)
    assert L * layer_bytes(CONFIG, kind, T) == sum(a.nbytes for a in document.arrays.values())
    size = len(encode_record(document, identity))
    assert abs(record_bytes(CONFIG, kind, T) - size) < 512  # of the header


def test_records_that_do_not_fill_bytes_are_left_out():
    assert codecs_for(CONFIG) == list(KINDS)
    odd = dataclasses.replace(CONFIG, head_dim=6, num_key_value_heads=1)
    assert codecs_for(odd) == ["native", "int8", "int4"]
    half = record_bytes(dataclasses.replace(CONFIG, dtype="bfloat16"), "native", 400)
    assert half == pytest.approx(record_bytes(CONFIG, "native", 400) / 2, rel=0.05)


def test_first_tokens_by_hand():
    """600 tokens are three chunks; a question is one, over two layers."""
    first = WORK.first_token_seconds(SECONDS)
    assert first == {"read": pytest.approx(0.9), "cached": pytest.approx(0.1)}
    long = dataclasses.replace(WORK, question_tokens=300)  # a chunk over the record, and another
    assert long.first_token_seconds(SECONDS)["cached"] == pytest.approx(0.1 + 0.3)


def test_at_the_break_even_rate_loading_takes_what_it_saves():
    size = 10**6
    rate = WORK.break_even_rate(SECONDS, size)
    chips_of_a_share = 2
    first = WORK.first_token_seconds(SECONDS)
    assert first["cached"] + size / (rate * chips_of_a_share) == pytest.approx(first["read"])
    slow = dataclasses.replace(SECONDS, cached_layer=1.0)
    assert WORK.break_even_rate(slow, size) is None


def test_chip_seconds_by_hand():
    """Four prompts are read side by side, eight answers decoded together; a record goes into one slot
    at a time."""
    used = WORK.chip_seconds_per_answer(SECONDS)
    decoding = 10 * 0.04 / 8
    assert used["read"] == pytest.approx(8 * (0.9 / 4 + decoding))
    assert used["cached"] == pytest.approx(8 * (0.1 + decoding))
    assert WORK.chip_seconds_per_document(SECONDS) == pytest.approx(8 * 0.2 * 500 / 2000)
