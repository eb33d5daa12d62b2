"""Texts to a file of vectors in blocks: each block as if it were encoded by itself, and what a kill
leaves is not encoded again."""

from __future__ import annotations

import fcntl

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference import vector_file
from grit_jax.inference.vector_file import VectorOptions, encode_file


@pytest.fixture
def texts(sentences) -> list[str]:
    return [sentence[:40] for sentence in sentences[:20]]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(vector_file, "BLOCK_TEXTS", 8)


@pytest.fixture
def calls(tiny_model, monkeypatch) -> list[int]:
    """How many texts each forward pass was given."""
    counts: list[int] = []
    encode_ids = type(tiny_model.encoder).encode_ids

    def counted(self, ids, *args, **options):
        counts.append(len(ids))
        return encode_ids(self, ids, *args, **options)

    monkeypatch.setattr(type(tiny_model.encoder), "encode_ids", counted)
    return counts


def test_each_block_is_encoded_by_itself(tiny_model, texts, tmp_path, calls):
    summary = encode_file(tiny_model, texts, tmp_path / "v.npy")
    assert calls == [8, 8, 4] and summary["texts"] == 20
    parts = [tiny_model.encode(texts[start : start + 8]) for start in (0, 8, 16)]
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), np.concatenate(parts))
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_what_was_encoded_before_a_kill_is_not_encoded_again(
    tiny_model, texts, tmp_path, calls, monkeypatch
):
    encode_file(tiny_model, texts, tmp_path / "whole.npy")
    calls.clear()
    encode_ids = type(tiny_model.encoder).encode_ids

    def killed(self, ids, *args, **options):
        if len(ids) == 4:
            raise KeyboardInterrupt
        return encode_ids(self, ids, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(tiny_model.encoder), "encode_ids", killed)
        with pytest.raises(KeyboardInterrupt):
            encode_file(tiny_model, texts, tmp_path / "v.npy")
    assert calls == [8, 8] and not (tmp_path / "v.npy").exists()
    # Another instruction is another vector: nothing of the first run fits.
    encode_file(tiny_model, texts[:8], tmp_path / "v.npy", VectorOptions("say"))
    assert calls == [8, 8, 8]
    encode_file(tiny_model, texts, tmp_path / "v.npy")
    assert calls == [8, 8, 8, 4]
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not (tmp_path / "v.npy.shards").exists()


def test_a_second_run_of_one_output_is_refused(tiny_model, texts, tmp_path):
    folder = tmp_path / "v.npy.shards"
    folder.mkdir()
    with open(folder / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GritError, match="another grit encode is writing here"):
            encode_file(tiny_model, texts, tmp_path / "v.npy")
