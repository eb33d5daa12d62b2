"""`grit bench`: from flags to what is measured, from timings to what is printed."""

from __future__ import annotations

import dataclasses
import json

import pytest
from cli_world import run
from rag_timings import made_up_bench

from grit_jax.bench import rag, show, throughput

pytestmark = pytest.mark.usefixtures("in_world")


@pytest.fixture
def asked(monkeypatch) -> list:
    """What was measured: the functions' keyword arguments. None of them measures anything."""
    calls = []

    def fake_rag(model, options, folder):
        calls.append({**dataclasses.asdict(options), "folder": folder})
        return made_up_bench()

    monkeypatch.setattr(rag, "bench_rag", fake_rag)
    for name in ("encode", "decode", "train"):
        result = {f"{name}s": {"tokens_per_s": 4.0, "seconds": 2.0, "tokens": 8}}
        monkeypatch.setattr(
            throughput, f"bench_{name}", lambda _, r=result, **how: calls.append(how) or r
        )
    return calls


def test_bench_rag(asked, capsys, tiny_model, tmp_path):
    command = "bench rag model --tokens 48 --new-tokens 3 --repeats 2 --kv int8"
    result = run(capsys, f"{command} --output {tmp_path}/out --json")
    assert (result.status, json.loads(result.out)) == (0, made_up_bench().rows())
    assert asked == [
        {
            "kv": "int8",
            "tokens": 48,
            "new_tokens": 3,
            "repeats": 2,
            "seed": 0,
            "curve": True,
            "folder": tmp_path / "out",
        }
    ]
    assert (tmp_path / "out" / "table.md").exists()
    shown = run(capsys, "bench rag model --tokens 48").out
    assert shown == show.markdown(made_up_bench(), tiny_model)
    assert not asked[1]["curve"] and asked[1]["folder"] is None


@pytest.mark.parametrize("name", ["encode", "decode", "train"])
def test_bench_of_one_kind(asked, name, capsys):
    result = run(capsys, f"bench {name} model --repeats 2 --json")
    assert result.json == {f"{name}s": {"tokens_per_s": 4.0, "seconds": 2.0, "tokens": 8}}
    shown = run(capsys, f"bench {name} model --seed 1").out.splitlines()
    assert shown[0] == name and shown[1].split()[:3] == [f"{name}s", "4.0", "tokens/s"]
    size = {} if name == "decode" else {"batch_tokens": 4096}
    assert asked == [{"repeats": 2, "seed": 0, **size}, {"repeats": 3, "seed": 1, **size}]


def test_bench_all(asked, capsys):
    result = run(capsys, "bench all model --batch-tokens 64 --json").json
    assert list(result) == ["encode", "decode", "train", "rag"] and len(asked) == 4
    assert [call.get("batch_tokens") for call in asked] == [64, None, 64, None]
