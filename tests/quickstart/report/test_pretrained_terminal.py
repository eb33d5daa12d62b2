"""The report of a pretrained model for a terminal, from made-up reports only."""

from __future__ import annotations

from pretrained_fixture import made_up_pretrained
from report_fixture import MODES

from grit_jax.quickstart.report import pretrained_terminal_report, terminal


def test_it_fits_and_says_everything():
    report = made_up_pretrained()
    text = pretrained_terminal_report(report)
    assert text.endswith("\n") and "\n\n\n" not in text and text.isascii()
    lines = text.splitlines()
    assert max(map(terminal.columns, lines)) <= terminal.WIDTH
    for mode in MODES:
        assert any(line.startswith(f"  {mode} ") and line.endswith("ms") for line in lines)
    rows = [line.split() for line in lines]
    assert ["Held-out", "packages", "both", "together", "0.689", "0.889", "0.789"] in rows
    assert ["base", "13.3"] in rows and ["model", "11.1"] in rows and ["before", "12.2"] in rows
    assert "120 of 673 queries" in text and report.commands[0] in text
