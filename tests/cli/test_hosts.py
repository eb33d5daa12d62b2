"""Verbs that run on all hosts: without another host they run as ever."""

from __future__ import annotations

from grit_jax.cli import flags
from grit_jax.cli.hosts import add_shared, join_run
from grit_jax.cli.main import VERBS


def test_a_process_alone_joins_nobody(monkeypatch):
    monkeypatch.delenv("GRIT_COORDINATOR", raising=False)
    join_run()


def test_the_verbs_that_share_their_work_are_supervised_and_resumable():
    shared = {name for name, verb in VERBS.items() if verb.supervised}
    assert shared == {"train", "encode", "index"}
    assert all(VERBS[name].resumable for name in shared)


def test_shards_are_a_folder_or_a_url():
    parser = flags.Parser()
    add_shared(parser, "beside")
    assert parser.parse_args(["--shards", "gs://bucket/a"]).shards == "gs://bucket/a"
    assert parser.parse_args([]).shards is None
