"""Ids that transformers gave, written down by `make_tokenizer_golden.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grit_jax.text.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "ids.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=GOLDEN["text"])
def kind(request):
    return request.param


# Gemma's runs of spaces and line breaks are symbols of its tokenizer.model, found the longest first
# by SentencePiece and by the tokenizer.json that is published beside it; transformers joins them
# pair by pair when it has only the model.
def comparable(kind, line):
    return kind != "gemma" or ("  " not in line and "\n\n" not in line and "▁" not in line)


@pytest.mark.parametrize("how", ["text", "default"])
def test_ids_of_transformers(kind, how):
    tokenizer = Tokenizer.from_pretrained(FOLDER / kind)
    checked = 0
    for line, ids in zip(GOLDEN["lines"], GOLDEN[how][kind], strict=True):
        if comparable(kind, line):
            assert (
                tokenizer.encode(line) if how == "text" else tokenizer.encode_rendered(line)
            ) == ids, line
            checked += 1
    assert checked > 20


def test_ids_after_saving(kind, tmp_path):
    tokenizer = Tokenizer.from_pretrained(FOLDER / kind)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_bytes((FOLDER / kind / "config.json").read_bytes())
    again = Tokenizer.from_pretrained(tmp_path)
    for line in GOLDEN["lines"]:
        assert again.encode(line) == tokenizer.encode(line)
        assert again.encode_rendered(line) == tokenizer.encode_rendered(line)
