"""`grit plan`: from flags to the plan; a mistake is one line."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from planned_run import write_run

from grit_jax.cli.main import main


@pytest.fixture
def config(tmp_path):
    return write_run(tmp_path)


def test_without_the_compiler(config, capsys, monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stopped:
        main(["plan", str(config), "--topology", "v5e:2x2", "--json"])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    assert (
        said.err
        == "grit plan: planning needs the TPU compiler (libtpu): pip install 'grit_jax[tpu]'\n"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology", "v5x:1"], "--topology v5x:1: not a topology"),
        (["--topology", "v5e:2x2", "--train.stepz", "3"], "train.steps"),
        (["--topology", "v5e:2x2", "--tries", "3"], "add --search"),
        (["--topology", "v5e:2x2", "--margin", "0.1"], "--margin limits what --search compiles"),
        (["--topology", "v5e:2x2", "--search", "--margin", "1"], "--margin 1.0: expected a share"),
        (["--topology", "v5e:2x2", "--slots", "3"], "--slots is for the programs that run a model"),
        (["--topology", "v5e:2x2", "--serve", "--search"], "--serve: not with --search"),
        (["--topology", "v9e:2x2", "--serve"], "--topology v9e:2x2: unknown chip 'v9e'"),
        (["--topology", "v5e:2x2", "--serve", "--dtype", "int4"], "--dtype"),
        (["--topology", "v5e:2x2", "--slices", "0"], "--slices"),
        ([], "--topology"),
        (["--topology", "v5e:2x2", "--serch"], "did you mean --search"),
    ],
)
def test_what_is_typed_wrong_is_one_line(config, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", str(config), *arguments])
    said = capsys.readouterr()
    assert (
        stopped.value.code == 2
        and said.out == ""
        and words in said.err
        and len(said.err.splitlines()) == 1
    )
