"""Files of examples: random access, skipping with counts, and files that are not what they should
be."""

import gzip
import json
import pickle

import pytest

from grit_jax.data.formats import GenerativeExample
from grit_jax.data.lines import JsonlFile, read_examples
from grit_jax.errors import GritError


def test_random_access_with_blank_lines_and_line_ends(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "\xc3\xa9"}\n{"text": "last"}')
    lines = JsonlFile(path)
    assert len(lines) == 3
    assert [json.loads(lines[i])["text"] for i in (2, 0, 1)] == ["last", "a", "é"]
    assert list(lines) == [lines[i] for i in range(3)]
    assert [lines.where(i) for i in range(3)] == [f"{path}:{n}" for n in (1, 4, 5)]
    assert pickle.loads(pickle.dumps(lines))[1] == lines[1]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty; expected one JSON object a line"),
        (b"\n \n", "empty"),
        (gzip.compress(b"", mtime=0), "empty; expected one JSON object a line"),
        (b"PK\0\0", "binary data"),
    ],
)
def test_files_that_are_not_jsonl(tmp_path, content, message):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(GritError, match=message) as error:
        JsonlFile(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"a\rb\rc", [b"a\r", b"b\r", b"c"]),  # as an old Mac wrote it
        (b"a\r\nb\nc\rd\r\n", [b"a\r\n", b"b\n", b"c\r", b"d\r\n"]),
        (b"\xef\xbb\xbfa\r\n", [b"a\r\n"]),
    ],
)
def test_every_kind_of_line_end(tmp_path, content, lines):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    opened = JsonlFile(path)
    assert list(opened) == lines == [opened[i] for i in range(len(opened))]
    assert opened.where(len(lines) - 1) == f"{path}:{len(lines)}"


def test_blank_lines_may_count(tmp_path):
    path = tmp_path / "f.txt"
    path.write_bytes(b"a\n\n \nb\n\n")
    lines = JsonlFile(path, blank_lines=True)
    assert [line.rstrip(b"\n") for line in lines] == [b"a", b"", b" ", b"b", b""]
    assert [lines.where(i) for i in (1, 4)] == [f"{path}:2", f"{path}:5"]
    assert len(JsonlFile(path)) == 2


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(GritError, match=r"nowhere.jsonl: no such file"):
        JsonlFile(tmp_path / "nowhere.jsonl")
    with pytest.raises(GritError, match="a folder, not a JSONL file"):
        JsonlFile(tmp_path)


LINES = [
    '{"text": "a"}',
    "oops",
    '{"text": 3}',
    '{"query": "q", "pos": ["p"]}',
    "oops",
    '{"text": "b"}',
]


def test_stop_names_the_first_bad_line(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(LINES))
    with pytest.raises(GritError, match=r"f\.jsonl:2: not valid JSON"):
        read_examples(path)


def test_skip_counts_by_reason(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(LINES))
    source = read_examples(path, on_error="skip")
    assert source.kind == "generative" and source.name == str(path)
    assert [source[i] for i in range(len(source))] == [
        GenerativeExample(text="a"),
        GenerativeExample(text="b"),
    ]
    assert [source.where(i) for i in range(2)] == [f"{path}:1", f"{path}:6"]
    assert source.line(1) == b'{"text": "b"}'
    assert dict(source.skipped) == {
        "not valid JSON: Expecting value at column 1": 2,
        "\"text\" must be a string, got int ('3')": 1,
        "an embedding example in a generative file": 1,
    }


def test_filter_counts_apart(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(json.dumps({"text": "x" * n}) for n in range(1, 8)))
    source = read_examples(
        path, check=lambda example, where: "long" if len(example.text) > 4 else None
    )
    assert len(source) == 4 and not source.skipped and dict(source.filtered) == {"long": 3}
    with pytest.raises(GritError, match=r"no usable line; the first problem: .*f\.jsonl:1: never"):
        read_examples(path, check=lambda example, where: "never")


def test_kind_asked_for(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(GritError, match=r"f\.jsonl:1: a generative example in an embedding file"):
        read_examples(path, "embedding")
