"""A folder with everything that a person may hand to `grit`: good files, and each kind of bad
one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from grit_jax.cli import main as cli
from grit_jax.inference.model import GritLM
from grit_jax.rag.index import build_index

PROGRESS = (
    "devices: ",
    "encode: ",
    "index: ",
    "rag: ",
    "perplexity: ",
    "bm25: ",
    "training: ",
    "warning: ",
)


@dataclasses.dataclass
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of stderr, progress aside."""
        return [line for line in self.err.splitlines() if line and not line.startswith(PROGRESS)]

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        assert self.out.endswith("\n") and len(self.out.splitlines()) == 1, self.out
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def run(capsys: pytest.CaptureFixture[str], command: str, *more: Any) -> Said:
    """`grit COMMAND MORE...` in this process, the command split as by a shell. Its traceback is the
    test's."""
    capsys.readouterr()
    status = 0
    try:
        cli.main([*shlex.split(command), *map(str, more)])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    captured = capsys.readouterr()
    return Said(status, captured.out, captured.err)


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file grows beyond `room` bytes: a full disk for every writer, and where root writes,
    too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def good_files(folder: Path, sentences: list[str]) -> None:
    """One file of each kind that a verb reads."""
    texts = sentences[:9]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    write_lines(folder / "texts.jsonl", *texts[:5], *({"text": text} for text in texts[5:]))
    write_lines(
        folder / "prompts.jsonl",
        texts[0],
        {"prompt": texts[1]},
        {"text": texts[2]},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": texts[3]},
            ]
        },
    )
    write_lines(
        folder / "corpus.jsonl",
        *({"id": f"d{i}", "title": f"Title {i}", "text": text} for i, text in enumerate(texts)),
    )
    write_lines(
        folder / "embedding.jsonl",
        *({"query": ["Find it", t], "pos": [["", t]], "neg": [["", texts[0]]]} for t in texts[1:]),
    )
    write_lines(
        folder / "generative.jsonl", *({"text": [t, texts[0]]} for t in texts), {"text": texts[1]}
    )
    write_lines(
        folder / "rag.jsonl", *({"docs": [t], "text": [t[:20], t.split()[0]]} for t in texts[:3])
    )
    (folder / "run.yaml").write_text(
        "model:\n"
        "  shape: {vocab_size: 512, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1,\n"
        "          num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 256}\n"
        "  dtype: float32\n"
        "tokenizer: {path: model}\n"
        "data: {generative: [generative.jsonl], generative_batch: 2, generative_max_length: 64,\n"
        "       row_multiple: 8, probe_steps: 1, workers: 0, prefetch: 0}\n"
        "train: {steps: 2, checkpoint_every: 1}\n"
        "output: run\n",
        encoding="utf-8",
    )


def bad_files(folder: Path) -> None:
    """Files that no verb can use."""
    (folder / "empty").write_bytes(b"")
    (folder / "binary").write_bytes(b"\x89PNG\0\1\2\xff" * 50)
    (folder / "latin1").write_bytes(b'{"text": "caf\xe9", "id": "a", "query": "q"}\n')
    (folder / "broken").write_text(
        '{"id": "a", "text": "good", "query": "q"}\n{"id": "b", "text": \n'
    )
    (folder / "list").write_text("[1, 2]\n")
    (folder / "strange").write_text('{"colour": "red"}\n')
    (folder / "number").write_text(
        '{"id": "a", "text": 5, "query": 5, "pos": 5, "prompt": 5, "docs": 5}\n'
    )
    (folder / "surrogate").write_text('"half \\ud800"\n')
    (folder / "cut.jsonl").write_text('{"text": ["a", "b"]}\n{"text": ["a"\n')
    write_lines(folder / "typed.jsonl", {"text": ["a", 5]})
    write_lines(folder / "blank.jsonl", {"text": ["a", " "]})
    write_lines(folder / "turn.jsonl", {"text": ["long " * 99, "b"]})
    write_lines(folder / "instruction.jsonl", {"query": ["long " * 99, "a"], "pos": ["b"]})
    write_lines(folder / "twice", {"id": "a", "text": "one"}, {"id": "a", "text": "two"})
    write_lines(folder / "messages", {"messages": "hello"})
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_lines(folder / "roles", {"messages": said})
    (folder / "broken.yaml").write_text("output: [\n")
    (folder / "strange.yaml").write_text("output: x\nzebra: red\n")
    (folder / "typo.yaml").write_text("output: x\ntrain: {stepps: 3}\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "note.txt").write_text("not ours\n")


def bad_models(folder: Path, model: Path) -> None:
    """Model directories, each with one thing wrong."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(model, folder / name))

    weights = copy("m-truncated") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (copy("m-no-tokenizer") / "tokenizer.json").unlink()
    (copy("m-bad-tokenizer") / "tokenizer.json").write_text("{}")
    (copy("m-binary-tokenizer") / "tokenizer.json").write_bytes(b"\xff\xfe\0")
    weights = copy("m-no-tensor") / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if k != "model.norm.weight"}, weights)
    pickled = copy("m-pickle")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (copy("m-no-weights") / "model.safetensors").unlink()
    (copy("m-no-config") / "config.json").unlink()
    (copy("m-bad-config") / "config.json").write_text("{")
    (copy("m-bad-grit") / "grit.json").write_text('{"pooling": "median"}')
    for name, change in (
        ("m-unknown", {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}),
        ("m-other-shape", {"hidden_size": 64}),
        ("m-zero-heads", {"num_key_value_heads": 0}),
        ("m-small-vocabulary", {"vocab_size": 100}),
    ):
        path = copy(name) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))


def bad_indexes(folder: Path, model: GritLM, other: GritLM) -> None:
    """A good index, and others with one thing wrong each."""
    good = folder / "index"
    build_index(model, folder / "corpus.jsonl", good, quiet=True)
    build_index(other, folder / "corpus.jsonl", folder / "i-other", quiet=True)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(good, folder / name))

    def manifest(name: str, **change: Any) -> None:
        path = copy(name) / "index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    (copy("i-bad-manifest") / "index.json").write_text('{"format": 1,')
    (copy("i-other-manifest") / "index.json").write_text('{"format": 2}')
    manifest("i-wrong-type", documents="nine")
    manifest("i-unfinished", complete=False)
    manifest("i-nothing", documents=0, rows=0, tokens=0, documents_bytes=0, complete=False)
    manifest("i-format", format=99)
    for name, file in (
        ("i-short-vectors", "vectors.npy"),
        ("i-short-documents", "documents.jsonl"),
    ):
        path = copy(name) / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    path = copy("i-bad-documents") / "documents.jsonl"
    path.write_bytes(b"x" * 40 + path.read_bytes()[40:])
    shutil.rmtree(copy("i-no-kv") / "kv")
    for path in (copy("i-bad-kv") / "kv").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * path.stat().st_size)
