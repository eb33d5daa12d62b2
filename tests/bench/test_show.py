"""The tables and the plot of `grit bench rag`."""

from __future__ import annotations

import copy
import json
import sys

import pytest
from rag_timings import TOTAL, made_up_bench

from grit_jax.bench import show
from grit_jax.models.quantise import quantise
from grit_jax.sharding import MeshConfig, make_mesh


def test_a_table_of_every_layout_and_what_it_shows(tiny_model):
    text = show.markdown(made_up_bench(), tiny_model)
    for mode, seconds in TOTAL.items():
        name = "auto (doc)" if mode == "auto" else mode
        [row] = [line for line in text.splitlines() if line.startswith(f"| {name} ")][:1]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        total = [seconds / 2, seconds, seconds * 0.9, seconds * 1.25]  # first token, least, most
        parts = [0.011, 0.012, 0.013, seconds / 2, seconds / 4]
        assert cells[1:-1] == [f"{value:.3f}" for value in (*total, *parts)]
        assert cells[-1] == ("1.2 MB" if mode == "doc" else "192 B")
    assert "**A**: a question of 1 token, a document of 48 tokens, 3 new tokens; seconds" in text
    assert "**B**: a question of 48 tokens, a document of 1 token, 3 new tokens; seconds" in text
    # The columns of the source line up: each row of a table is as long as the others.
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (2 + len(TOTAL)) and len({len(row) for row in rows[:10]}) == 1


def test_the_ratios_under_a_table(tiny_model):
    """0.2 s beside 0.1 s without a document and 0.8 s that read it; the best layout took 0.16 s."""
    text = show.markdown(made_up_bench(), tiny_model)
    assert "doc takes 2.00 times as long as an answer without a document" in text
    assert "is 4.0 times as fast as reading it" in text
    assert "auto took doc and +25% of the time of the best (doc-query)." in text


def test_the_conditions_above_the_tables(tiny_model):
    """Three layers of two heads of 16 numbers, keys and values, 4 bytes each: 768 bytes a token."""
    text = show.markdown(made_up_bench(48_000), tiny_model)
    assert "Medians of 2 rounds" in text and "float32, records native" in text
    assert "a record at 0.50 GB/s once, and for each token 3.0 MB of weights" in text
    assert "and 36.9 MB of keys and values (48000 tokens) at 2.00 GB/s" in text
    assert "The document's record comes from the disk each time." in text
    assert "come from its page cache" in show.markdown(made_up_bench(cold=False), tiny_model)


def test_the_conditions_name_devices_and_the_dtype_of_the_weights(tiny_model):
    model = copy.copy(tiny_model)
    model.params = {**tiny_model.params, "up": quantise(tiny_model.params["up"], "int8")}
    model.mesh = make_mesh(MeshConfig(data=8, fsdp=1))
    assert "int8, records native; 8 x cpu, jax" in show.markdown(made_up_bench(), model)


def test_the_files_without_matplotlib(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    bench = made_up_bench()
    show.write(bench, tiny_model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "rag.json"}
    assert (tmp_path / "table.md").read_text() == show.markdown(bench, tiny_model)
    assert json.loads((tmp_path / "rag.json").read_text()) == [vars(row) for row in bench.curve]
    assert "grit-jax[plot]" in capsys.readouterr().err
    bench.curve = []  # only the full length was measured
    show.write(bench, tiny_model, tmp_path)
    assert json.loads((tmp_path / "rag.json").read_text()) == bench.rows()


def test_the_plot(tiny_model, tmp_path):
    pytest.importorskip("matplotlib")
    show.write(made_up_bench(), tiny_model, tmp_path)
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
