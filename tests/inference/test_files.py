"""Texts and prompts from files: row `i` is line `i`, whatever the line ends; vectors as NumPy
reads them."""

from __future__ import annotations

import gzip
import io

import ml_dtypes
import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.files import (
    is_text_file,
    quantize,
    read_prompts,
    read_texts,
    write_npy_header,
)


@pytest.mark.parametrize(
    "content, texts",
    [
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\nb\n\n", ["a", "b", ""]),
        (b"\n", [""]),
        (b"a\r\n\r\n b \r\n", ["a", "", " b "]),
        (b"a\rb\r\rc", ["a", "b", "", "c"]),
        (b"\xef\xbb\xbfa\n", ["a"]),
    ],
)
@pytest.mark.parametrize("name", ["f.txt", "f.TXT", "f.Txt.gz"])
def test_a_line_of_a_text_file_is_a_text(tmp_path, content, texts, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_texts(path) == texts
    lines = [line.rstrip("\r\n") for line in io.TextIOWrapper(io.BytesIO(content), "utf-8-sig")]
    assert texts == lines  # as Python's universal newlines have it


def test_the_format_follows_the_name_unless_given(tmp_path):
    assert [is_text_file(tmp_path / name) for name in ("a.txt", "b.TXT.zst", "a.txt.gz")] == [
        True
    ] * 3
    assert not any(
        is_text_file(tmp_path / name) for name in ("a.jsonl", "txt", "a.txt.jsonl", "gz")
    )
    path = tmp_path / "pipe"
    path.write_text("a text\n")
    with pytest.raises(GritError, match=r"pipe:1: not valid JSON.*--input-format txt"):
        read_texts(path)
    path = tmp_path / "f.dat"
    path.write_text('"a"\n\n{"text": ""}\n')
    assert read_texts(path) == ["a", ""]
    assert read_texts(path, "txt") == ['"a"', "", '{"text": ""}']


@pytest.mark.parametrize("read", [read_texts, read_prompts])
@pytest.mark.parametrize("line", [r'{"text": "half \ud83d"}', r'"\udc00"'])
def test_half_a_surrogate_pair_is_named_with_its_line(tmp_path, read, line):
    path = tmp_path / "f.jsonl"
    path.write_text(f'"good"\n\n{line}\n')
    with pytest.raises(GritError, match=r"f.jsonl:3: holds half of a surrogate pair"):
        read(path)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", ml_dtypes.bfloat16])
def test_an_array_is_written_as_numpy_writes_it(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    ours, theirs = io.BytesIO(), io.BytesIO()
    write_npy_header(ours, len(array), array)
    ours.write(array.tobytes())
    np.save(theirs, array)
    assert ours.getvalue() == theirs.getvalue()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "binary"])
def test_a_vector_that_is_not_finite_is_not_quantised(precision, value):
    """int8 and binary have no number for it and would store a valid vector."""
    vectors = np.eye(4, dtype=np.float32)
    quantize(vectors, precision)
    vectors[2, 1] = value
    with pytest.raises(GritError, match="vector 2 is not finite"):
        quantize(vectors, precision)
