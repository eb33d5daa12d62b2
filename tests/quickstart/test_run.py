"""The quickstart: its folder, its configurations, and (slow) a small one run twice and killed
once."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from grit_jax.cli.main import build_parser
from grit_jax.errors import GritError
from grit_jax.quickstart import run as quickstart
from grit_jax.quickstart.settings import QuickstartSettings
from grit_jax.text.rag_layouts import MODES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (QuickstartSettings(seed=1), "with --seed 0, not with --seed 1"),
        (QuickstartSettings(from_scratch=True), "without --from-scratch, not with --from-scratch;"),
        (QuickstartSettings(documents=400), "without --documents, not with --documents 400"),
        (QuickstartSettings(steps=9), "without --steps, not with --steps 9"),
    ],
)
def test_a_folder_of_other_settings_is_refused(settings, message, tmp_path):
    quickstart.claim(tmp_path, QuickstartSettings())
    quickstart.claim(tmp_path, QuickstartSettings())
    with pytest.raises(GritError, match=message):
        quickstart.claim(tmp_path, settings)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GritError, match="another --out"):
        quickstart.claim(tmp_path / "file", QuickstartSettings())


def test_the_printed_commands_repeat_the_settings(tmp_path):
    plain = quickstart._commands(Path("q"), "why?", QuickstartSettings())
    assert plain[0] == "grit data pydocs --output q/data"
    other = quickstart._commands(Path("q"), "why?", QuickstartSettings(seed=3, documents=50))
    assert other[0] == "grit data pydocs --output q/data --seed 3 --documents 50"
    assert other[1:] == plain[1:]
    parser = build_parser()
    for command in other:
        parser.parse_args(shlex.split(command)[1:] if "train" not in command else ["train", "x"])


def without_clock(value):
    """A report without what the clock or the folder says."""
    if isinstance(value, dict):
        clock = ("seconds", "timings", "commands")
        return {key: without_clock(item) for key, item in value.items() if key not in clock}
    return [without_clock(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report_also_after_an_interruption(tmp_path, monkeypatch):
    settings = QuickstartSettings(seed=5, documents=400, steps=4)
    first = quickstart.run_quickstart(tmp_path / "one", settings)
    assert set(first.rag) == set(MODES) and set(first.rag_retrieved) == set(MODES) - {"none"}
    assert first.corpus.documents == 400 and first.training.steps == 4
    for name in (
        "report.json",
        "report.html",
        "train.yaml",
        "model/config.json",
        "index/index.json",
    ):
        assert (tmp_path / "one" / name).exists(), name

    build_index = quickstart.build_index
    monkeypatch.setattr(
        quickstart, "build_index", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        quickstart.run_quickstart(tmp_path / "two", settings)
    assert not (tmp_path / "two" / "report.json").exists()
    monkeypatch.setattr(quickstart, "build_index", build_index)
    second = quickstart.run_quickstart(tmp_path / "two", settings)
    assert without_clock(second.to_dict()) == without_clock(first.to_dict())
    # A finished folder is reported, not redone.
    assert quickstart.run_quickstart(tmp_path / "two", settings) == second
