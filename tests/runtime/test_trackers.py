"""TensorBoard and W&B: what the libraries themselves read back, and what is said where they are not
installed."""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

import pytest

from grit_jax.errors import GritError
from grit_jax.runtime.trackers import WANDB_ID_FILE, open_trackers

LINE = {"loss": 2.5, "mfu": None, "grad_norm": float("nan"), "tokens": 7}


@pytest.mark.parametrize(
    "asked, module, words",
    [
        (
            {"tensorboard": True},
            "tensorboardX",
            r"train.tensorboard .* pip install 'grit_jax\[tensorboard\]'",
        ),
        ({"wandb": "project"}, "wandb", r"train.wandb .* pip install 'grit_jax\[wandb\]'"),
    ],
)
def test_a_library_that_is_not_installed(tmp_path, monkeypatch, asked, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GritError, match=words):
        open_trackers(tmp_path, 0, **asked)
    assert open_trackers(tmp_path, 0) == []


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    for start, losses in ((0, (3.0, 2.0)), (1, (2.0, 1.0))):  # killed, and on from step 1
        (tracker,) = open_trackers(tmp_path, start, tensorboard=True)
        for step, loss in enumerate(losses, start):
            tracker.write(step, LINE | {"loss": loss})
        tracker.close()
    events = []
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name.split(".")[-1])
    for path in files:  # TFRecords: length, checksum, bytes, checksum
        data = path.read_bytes()
        while data:
            (n,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + n]))
            data = data[16 + n :]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values[:4] == [
        (0, "loss", 3.0),
        (0, "tokens", 7.0),
        (1, "loss", 2.0),
        (1, "tokens", 7.0),
    ]
    assert values[4::2] == [(1, "loss", 2.0), (2, "loss", 1.0)]
    # By this mark TensorBoard leaves out what the killed run had written from step 1 on.
    assert [e.step for e in events if e.session_log.status == e.session_log.START] == [1]


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for start in (0, 2):
        (tracker,) = open_trackers(
            tmp_path, start, wandb="grit-test", config={"train": {"steps": 4}}
        )
        for step in (start, start + 1):
            tracker.write(step, LINE | {"loss": step + 0.5})
        tracker.close()
        ids.append((tmp_path / WANDB_ID_FILE).read_text())
    assert ids[0] == ids[1]
    deadline = time.monotonic() + 600  # the library's own process may still be writing
    while (found := history(tmp_path / "wandb", Record))[0] != [
        0.5,
        1.5,
        2.5,
        3.5,
    ] and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == ([0.5, 1.5, 2.5, 3.5], {"loss", "tokens"}, {(ids[0], "grit-test")})


def history(folder: Path, record_type: type) -> tuple[list[float], set[str], set[tuple[str, str]]]:
    """Losses in order, names of all numbers, and (id, project) of the runs in W&B's own logs."""
    losses, names, runs = [], set(), set()
    for file in sorted(folder.glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        data = file.read_bytes()
        assert len(data) < 1 << 15, "one block of the log, or records may lie in two"
        data = data[7:]  # the file's mark; then checksum, length, kind, bytes of each record
        while data:
            n = int.from_bytes(data[4:6], "little")
            record = record_type.FromString(data[7 : 7 + n])
            data = data[7 + n :]
            items = {item.nested_key[0]: item.value_json for item in record.history.item}
            losses += [float(items["loss"])] if "loss" in items else []
            names |= {name for name in items if not name.startswith("_")}
            runs |= {(record.run.run_id, record.run.project)} if record.run.run_id else set()
    return losses, names, runs
