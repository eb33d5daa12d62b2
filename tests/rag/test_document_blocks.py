"""Documents in blocks: named by all that a block depends on; settings survive the way to another
process."""

from __future__ import annotations

import dataclasses
import json

import fake_model
import numpy as np
import pytest

from grit_jax.rag.build import calibrated
from grit_jax.rag.codecs.codecs import codec_from_bytes, compression_of, to_bytes
from grit_jax.rag.corpus import Corpus
from grit_jax.rag.document_blocks import DocumentBlocks, DocumentSettings, block_tokens
from grit_jax.rag.record_format import RecordIdentity, encode_record

ROWS = [{"id": f"d{i}", "title": "t" * (i % 2), "text": f"text {i} " * 9} for i in range(30)]


def corpus(path, rows=ROWS) -> Corpus:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Corpus(path)


def blocks(of: Corpus, numbers=range(30), settings=DocumentSettings(64), identity="m"):
    return DocumentBlocks.of(of, list(numbers), settings, identity, tokens=100)


def test_the_blocks_that_are_left_are_those_of_the_whole_corpus(tmp_path):
    whole = blocks(corpus(tmp_path / "c"))
    assert len(whole.names) == len(set(whole.names)) > 3
    rest = blocks(corpus(tmp_path / "d"), range(len(whole.blocks[0]) + len(whole.blocks[1]), 30))
    assert rest.names == whole.names[2:]
    texts, names = rest.texts(0)
    first = rest.blocks[0][0]
    assert texts[0] == Corpus(tmp_path / "d")[first].content
    assert names[0] == f"{tmp_path / 'd'}:{first + 1}: document 'd{first}'"


@pytest.mark.parametrize("key", ["id", "title", "text"])
def test_a_block_has_another_name_when_a_document_differs(tmp_path, key):
    whole = blocks(corpus(tmp_path / "c"))
    rows = [*ROWS[:-1], {**ROWS[-1], key: ROWS[-1][key][:-1] + "x"}]
    other = blocks(corpus(tmp_path / "d", rows))
    assert other.names[:-1] == whole.names[:-1] and other.names[-1] != whole.names[-1]


def test_a_block_has_another_name_with_other_settings_or_another_model(tmp_path):
    of = corpus(tmp_path / "c")
    names = {
        blocks(of, settings=settings, identity=identity).names[0]
        for settings, identity in (
            (DocumentSettings(64), "m"),
            (DocumentSettings(63), "m"),
            (DocumentSettings(64, "native"), "m"),
            (DocumentSettings(64, "int8-1-0"), "m"),
            (DocumentSettings(64), "n"),
        )
    }
    assert len(names) == 5


def test_a_codec_travels_with_the_settings(tmp_path):
    """Records packed with the calibration that another process has sent are the same bytes."""
    model, of = fake_model.fake_model(), corpus(tmp_path / "c")
    codec = calibrated("int8", model, len(of), lambda n: of[n].content, 64)
    compression = compression_of("int8", codec)
    sent = DocumentSettings(64, compression, to_bytes(codec))
    received = DocumentSettings.from_json(json.loads(json.dumps(sent.to_json())))
    assert received == sent and dataclasses.asdict(received) == dataclasses.asdict(sent)
    shard = received.encoder(model)(["one", "two", "one"], ["a", "b", "c"])()
    own = codec_from_bytes(to_bytes(codec), compression, "")
    ids = [256, *b"two"]
    expected = encode_record(
        fake_model.packed(fake_model.document_kv(ids), own), RecordIdentity.of(model, compression)
    )
    assert shard.records[shard.keys[1]].data == expected and len(shard.records) == 2
    assert shard.keys[0] == shard.keys[2] and shard.lengths == [4, 4, 4]
    np.testing.assert_array_equal(shard.vectors[1], fake_model.vector(ids))


@pytest.mark.parametrize(
    "layers, dtype, expected",
    [
        # 2 x 8 heads x 128 numbers a token and layer; 128 MiB of them.
        (32, "float32", 4096),  # 256 KiB a token: the least
        (16, "bfloat16", 4096),
        (8, "bfloat16", 4096),
        (4, "bfloat16", 8192),
        (4, "float32", 4096),
        (1, "bfloat16", 32768),
    ],
)
def test_tokens_of_a_block_by_the_size_of_their_records(layers, dtype, expected):
    config = dataclasses.replace(
        fake_model.CONFIG,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        dtype=dtype,
    )
    model = fake_model.fake_model(config=config)
    assert block_tokens(model, records=True) == expected
    assert block_tokens(model, records=False) == 65536
    assert block_tokens(fake_model.fake_model(), records=True) == 65536  # small records: the most
