"""The report for a terminal, from made-up reports only."""

from __future__ import annotations

import dataclasses

from report_fixture import MODES, made_up_hostile_report, made_up_report

from grit_jax.quickstart.report import terminal, terminal_report


def test_terminal_report_fits():
    text = terminal_report(made_up_report())
    assert text.endswith("\n") and "\n\n\n" not in text
    assert max(map(terminal.columns, text.splitlines()), default=0) <= terminal.WIDTH
    assert text.isascii()


def test_terminal_report_says_everything_and_aligns():
    report = made_up_report()
    text = terminal_report(report)
    lines = text.splitlines()
    for mode in MODES:
        row = next(
            line for line in lines if line.startswith(f"  {mode} ") and line.rstrip().endswith("ms")
        )
        assert f"{report.rag[mode].match:.3f}" in row and len(row) == len(
            next(li for li in lines if li.startswith("  mode "))
        )
    assert "0.549" in text and "2,144" in text and "grit train runs/quickstart/train.yaml" in text
    assert "  doc-then-query  right  shape" in lines and "  none            wrong  dtype" in lines


def test_terminal_report_cannot_steer_the_terminal():
    report = made_up_hostile_report()
    report = dataclasses.replace(report, samples=report.samples[::-1])
    text = terminal_report(report)
    assert "\x1b" not in text and "\x00" not in text
    text.encode("utf-8")
    assert all(
        terminal.columns(line) <= terminal.WIDTH
        for line in text.split("WHAT IT RAN")[0].splitlines()
    )


def test_long_commands_fold_between_words():
    command = (
        "grit ask "
        + "x" * 60
        + " 'a question with spaces, long enough to be folded' --mode doc --json"
    )
    folded = terminal.folded(command)
    assert all(len(line) <= terminal.WIDTH for line in folded.splitlines())
    assert folded.replace(" \\\n    ", " ").strip() == command
    assert terminal.folded("it's") == "  it's"


def test_wide_characters_count_twice():
    assert terminal.columns("\u65e5\u672c") == 4 and terminal.columns("e\u0301") == 1
    assert terminal.columns(terminal.fitted("\u65e5" * 80, 20)) <= 20
