"""The search for a mesh, chunks and a rematerialisation policy: what it compiles, what it skips, how it
ranks."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest
from planned_run import a_plan

from grit_jax.cli.main import main
from grit_jax.errors import GritError
from grit_jax.plan.chips import Slices
from grit_jax.plan.search import candidate_table, search_settings
from grit_jax.run_config import read_run_config
from grit_jax.runtime.chips import CHIPS, GIB

EIGHT_HEADS = {"model.shape.num_attention_heads": "8", "model.shape.num_key_value_heads": "8"}


@pytest.fixture
def search_of(config, monkeypatch):
    """A search on eight chips that need not be compiled for, and the (tensor, embedding chunk, policy)
    for which it asked for a plan."""
    asked = []

    def search_of(plan_of, overrides=EIGHT_HEADS, chip=CHIPS["v5e"], **options):
        def fake_plan(run, where, mesh, serving):
            asked.append((mesh.shape["tensor"], run.train.embedding_chunk, run.model.remat))
            return plan_of(*asked[-1])

        monkeypatch.setattr(
            "grit_jax.plan.search.open_slices",
            lambda name, count: Slices(name, chip, jax.devices()[:8], count),
        )
        monkeypatch.setattr("grit_jax.plan.search.plan_on_mesh", fake_plan)
        return search_settings(read_run_config(config, overrides), "v5e:2x4", **options)

    return search_of, asked


def test_a_search_ranks_what_fits(config, search_of, capsys):
    """Eight chips on which only a policy that recomputes fits with all rows at once: the search tries what
    promises most, and lists what does not fit after what does."""
    run, asked = search_of
    fits = lambda tensor, chunk, remat: chunk is not None or remat in ("full", "offload")
    plan_of = lambda *s: a_plan(
        4 if s[1] is None else 5, 9 * GIB if fits(*s) else 18 * GIB, fits(*s)
    )
    found = run(plan_of, tries=7)
    assert asked[0] == (1, None, "none"), "the one with least arithmetic first"
    assert len(asked) == len(set(asked)) == len(found) == 7
    assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)
    assert (found[0].settings.remat, found[0].settings.chunks[0][1]) == ("full", None)
    assert found[0].free_bytes == 7 * GIB and found[-1].free_bytes == -2 * GIB
    table = candidate_table(found)
    flags = "--mesh.data 1 --mesh.fsdp 8 --mesh.context 1 --mesh.tensor 1 --model.remat full"
    flags += " --train.embedding_chunk null --train.generative_chunk null"
    assert f"Best: {flags}" in table and flags in table.splitlines()[1]
    assert "16.0" in table.splitlines()[1].split()  # chip-hours of 1800 steps of 4 s on 8 chips
    said = capsys.readouterr().err
    assert "number 1 of 7 at most" in said and "18.00 GiB, too large" in said
    assert "9.00 GiB, at least 4 s" in said


def test_the_keys_of_a_candidate_can_be_typed(config, search_of, capsys):
    run, asked = search_of
    found = run(lambda *_: a_plan(), tries=1)
    flags = str(found[0].settings).split()
    assert (
        read_run_config(
            config, {key[2:]: value for key, value in zip(flags[::2], flags[1::2], strict=True)}
        ).train.embedding_chunk
        is found[0].settings.chunks[0][1]
    )
    main(["plan", str(config), "--topology", "v5e:2x4", "--search", "--tries", "2", "--json"])
    printed = json.loads(capsys.readouterr().out)
    best = printed["candidates"][0]
    assert printed["margin"] == 0.05 and best["model.remat"] == "none" and best["fits"] is True
    assert best["train.embedding_chunk"] is None and best["mesh.fsdp"] == 8
    assert best["free_bytes"] == best["hbm_bytes_per_chip"] - best["peak_bytes_per_chip"]


def test_nothing_is_compiled_that_cannot_be_better(search_of, capsys):
    run, asked = search_of
    # With the least arithmetic of all in it, and bound by it, the first one ends the search on its mesh.
    compute_bound = lambda *_: dataclasses.replace(
        a_plan(), programs={"train": _bound_by_compute(a_plan().programs["train"])}
    )
    found = run(compute_bound, {"model.shape.num_key_value_heads": "1"})
    assert asked == [(1, None, "none")] and len(found) == 1
    said = capsys.readouterr().err
    assert "keeps less than --mesh.data 1 --mesh.fsdp 8" in said
    assert "--mesh.tensor 2: skipped, 4 heads with 1 of keys do not divide among 2 chips" in said
    # What keeps more, or more rows, than something that was too large.
    asked.clear()
    with pytest.raises(GritError, match="no settings that were tried fit with 5% of the memory"):
        run(lambda *_: a_plan(peak=18 * GIB, fits=False), {"model.shape.num_key_value_heads": "1"})
    assert [remat for _, chunk, remat in asked if chunk is None][-1] == "offload"
    chunks = [chunk for _, chunk, remat in asked if remat == "none"]
    assert chunks == sorted(chunks, key=lambda chunk: -(chunk or 99))
    assert "keeps what is too large with" in capsys.readouterr().err


def test_memory_is_scaled_from_what_was_measured(search_of, capsys):
    """All rows took 100 GiB, so half of them take about 50."""
    run, asked = search_of
    one_head = {"model.shape.num_key_value_heads": "1"}
    peaks = lambda chunk: 100 * GIB * (chunk or 40) // 40
    with pytest.raises(GritError):
        run(lambda t, chunk, r: a_plan(peak=peaks(chunk), fits=False), one_head)
    assert asked[0] == (1, None, "none") and (1, 24, "none") not in asked
    assert "needs about" in capsys.readouterr().err


def test_a_margin_stays_free(search_of):
    run, _ = search_of
    tight = lambda *_: a_plan(peak=round(15.5 * GIB))
    assert run(tight, tries=1, margin=0.0)[0].fits
    with pytest.raises(GritError, match="10% of the memory left free; use more chips"):
        run(tight, tries=1, margin=0.1)


def test_a_search_over_slices_keeps_all_weights_in_each(search_of):
    """The network between them is slow: along mesh.data there are copies. Tokens stay split."""
    run, _ = search_of
    found = run(lambda *_: a_plan(), EIGHT_HEADS | {"mesh.context": "2"}, slices=2, tries=4)
    meshes = [one.settings.mesh for one in found]
    assert {(mesh.data, mesh.context, mesh.fsdp * mesh.tensor) for mesh in meshes} == {(2, 2, 2)}


def test_a_lower_bound_spares_a_compilation(search_of, capsys):
    """Of 40 rows of 256 tokens five are a chip's: two layers' inputs alone take 1.25 MiB of them."""
    run, asked = search_of
    small = dataclasses.replace(CHIPS["v5e"], memory=14 * 2**20)
    plan = a_plan(peak=2**20)
    one_head = {"model.shape.num_key_value_heads": "1"}
    run(lambda *_: plan, one_head, chip=small, tries=2)
    assert asked == [(1, None, "save_attention"), (1, None, "full")]
    assert "embedding_chunk null --train.generative_chunk null: skipped, needs at least 0.0" in (
        capsys.readouterr().err
    )


def _bound_by_compute(step):
    return dataclasses.replace(step, seconds={"compute": 2.0, "memory": 0.1, "interconnect": 0.1})


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
def test_a_search_with_the_compiler(config, capsys):
    """A small model fits as it promises most: nothing recomputed, all rows at once."""
    main(["plan", str(config), "--topology", "v5e:2x2", "--search", "--tries", "1", "--json"])
    printed = json.loads(capsys.readouterr().out)
    (best,) = printed["candidates"]
    assert best["fits"] and 0 < best["free_bytes"] < best["hbm_bytes_per_chip"]
    assert best["model.remat"] == "none" and best["train.embedding_chunk"] is None
    assert 0 < best["mfu_bound"] < 1 and best["roofline_step_seconds"] > 0
