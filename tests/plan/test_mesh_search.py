"""The search for a mesh and a chunk size: what it compiles, what it skips, how it ranks."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest
from planned_run import a_plan

from grit_jax.cli.main import main
from grit_jax.errors import GritError
from grit_jax.plan.chips import Slices
from grit_jax.plan.mesh_search import MAX_TRIES, candidate_table, search_meshes
from grit_jax.run_config import read_run_config
from grit_jax.runtime.chips import CHIPS

EIGHT_HEADS = {"model.shape.num_attention_heads": "8", "model.shape.num_key_value_heads": "8"}


@pytest.fixture
def search_of(config, monkeypatch):
    """A search on eight chips that need not be compiled for, and the (tensor, chunk) it asked a
    plan for."""
    asked = []

    def search_of(plan_of, overrides=EIGHT_HEADS, tries=MAX_TRIES, chip=CHIPS["v5e"], slices=1):
        def fake_plan(run, where, mesh, serving):
            asked.append((mesh.shape["tensor"], run.train.embedding_chunk))
            return plan_of(*asked[-1])

        monkeypatch.setattr(
            "grit_jax.plan.mesh_search.open_slices",
            lambda name, count: Slices(name, chip, jax.devices()[:8], count),
        )
        monkeypatch.setattr("grit_jax.plan.mesh_search.plan_on_mesh", fake_plan)
        return search_meshes(read_run_config(config, overrides), "v5e:2x4", tries, slices=slices)

    return search_of, asked


def test_a_search_ranks_what_fits(config, search_of, capsys):
    """Eight chips, of which two and more along `tensor` hold a quarter of the rows, and eight none;
    two are fastest."""
    run, asked = search_of
    found = run(
        lambda tensor, chunk: a_plan(abs(tensor - 2) + 1, fits=tensor < 8 and chunk is not None)
    )
    assert [one.mesh.tensor for one in found] == [2, 1, 4]
    assert asked[:4] == [(1, None), (2, None), (4, None), (8, None)] and len(asked) <= MAX_TRIES
    rows = 40  # 32 passages, and 16 queries two in a row
    assert [one.chunk for one in found] == [rows // 4 // ways * ways for ways in (4, 8, 2)]
    best = candidate_table(found).splitlines()[1]
    typed = "--mesh.data 1 --mesh.fsdp 4 --mesh.context 1 --mesh.tensor 2 --train.embedding_chunk 8"
    assert typed in best and " 4.0 " in best  # chip-hours
    said = capsys.readouterr().err
    assert (
        "--mesh.fsdp 8 --mesh.context 1 --mesh.tensor 1 --train.embedding_chunk null: number 1 of"
        " 12 at most" in said
    )
    assert "--train.embedding_chunk null: 9.00 GiB, too large" in said and "9.00 GiB, fits" in said
    main(["plan", str(config), "--topology", "v5e:2x4", "--search", "--json"])
    candidates = json.loads(capsys.readouterr().out)["candidates"]
    assert [one["train.embedding_chunk"] for one in candidates] == [
        8,
        8,
    ]  # for 1 and 2: four do not divide two heads
    with pytest.raises(GritError, match="no mesh and chunk that was tried fits"):
        run(lambda *_: a_plan(fits=False))


def test_a_search_over_slices_keeps_all_weights_in_each(config, search_of, capsys):
    """The network between them is slow: along mesh.data there are copies. Tokens stay split."""
    run, _ = search_of
    found = run(lambda *_: a_plan(), EIGHT_HEADS | {"mesh.context": "2"}, slices=2)
    assert {
        (one.mesh.data, one.mesh.context, one.mesh.fsdp * one.mesh.tensor) for one in found
    } == {(2, 2, 2)}
    assert (
        "--mesh.data 2 --mesh.fsdp 2 --mesh.context 2 --mesh.tensor 1 --train.embedding_chunk null"
        in candidate_table(found)
    )


def test_a_search_compiles_nothing_in_vain(search_of, capsys):
    """Not what cannot work, nor more than it may."""
    run, asked = search_of
    assert [one.mesh.tensor for one in run(lambda *_: a_plan(), {})] == [1, 2]
    assert asked == [(1, None), (2, None)]
    said = capsys.readouterr().err
    assert "--mesh.tensor 4: skipped, 4 heads with 2 of keys do not divide among 4 chips" in said
    asked.clear()
    # Of 40 rows of 256 tokens five are a chip's: two layers take 1.25 MiB of them, weights and
    # their optimizer's 1.9.
    small = dataclasses.replace(CHIPS["v5e"], memory=3 * 2**20)
    assert [one.chunk for one in run(lambda *_: a_plan(), {}, chip=small)] == [8] and asked == [
        (1, 8)
    ]
    assert (
        "embedding_chunk null: skipped, it needs at least 0.00 GiB per chip"
        in capsys.readouterr().err
    )
    assert (
        run(lambda *_: a_plan(), {"model.remat": "offload"}, chip=small)[0].chunk is None
    )  # on the host
    asked.clear()
    assert [
        one.mesh.tensor for one in run(lambda tensor, _: a_plan(fits=tensor == 2), tries=3)
    ] == [2]
    assert len(asked) == 3 and "3 programs were compiled; " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "run.yaml", "--topology", "v5e:2x4", "--tries", "0"])
