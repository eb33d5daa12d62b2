"""`grit quickstart` and `grit evidence`: from flags to settings, from a report to what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import run
from pretrained_fixture import made_up_pretrained
from report_fixture import made_up_json

from grit_jax.evidence import run as evidence
from grit_jax.quickstart import pretrained
from grit_jax.quickstart import run as quickstart
from grit_jax.quickstart.settings import PretrainedSettings, QuickstartSettings


def test_a_finished_quickstart_is_reported(capsys, tmp_path):
    report = made_up_json()
    (tmp_path / "quickstart.json").write_text('{"seed": 0, "from_scratch": false}')
    (tmp_path / "report.json").write_text(json.dumps(report))
    result = run(capsys, f"quickstart --out {tmp_path} --json")
    assert result.json == json.loads(json.dumps(report)) and "reporting it" in result.err
    assert "untrained" in run(capsys, f"quickstart --out {tmp_path}").out


@pytest.mark.parametrize(
    "command, folder, settings",
    [
        ("quickstart", "runs/quickstart", QuickstartSettings()),
        (
            "quickstart --out q --seed 3 --from-scratch --documents 40 --steps 5",
            "q",
            QuickstartSettings(seed=3, from_scratch=True, documents=40, steps=5),
        ),
    ],
)
def test_flags_are_the_settings_of_a_quickstart(command, folder, settings, capsys, monkeypatch):
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "run_quickstart", interrupted)
    result = run(capsys, command)
    assert calls == [(Path(folder), settings)] and result.status == 130
    assert "the same command continues where it stopped" in result.err


@pytest.mark.parametrize(
    "command, folder, settings",
    [
        ("quickstart --base smollm2", "runs/smollm2", PretrainedSettings("smollm2")),
        (
            "quickstart --base some/dir --out q --seed 3 --documents 40 --steps 5",
            "q",
            PretrainedSettings("some/dir", seed=3, documents=40, steps=5),
        ),
    ],
)
def test_flags_with_a_pretrained_model(command, folder, settings, capsys, monkeypatch):
    calls = []
    report = made_up_pretrained()
    monkeypatch.setattr(pretrained, "run_pretrained", lambda *a: calls.append(a) or report)
    assert "BM25" in run(capsys, command).out and calls == [(Path(folder), settings)]
    assert run(capsys, f"{command} --json").json == report.to_dict()
    refused = run(capsys, f"{command} --from-scratch")
    assert refused.status == 2 and "--from-scratch: not with --base" in refused.err


def test_flags_of_evidence(capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(
        evidence, "run_evidence", lambda *how, **more: calls.append((*how, more)) or {"seeds": [0]}
    )
    monkeypatch.setattr(evidence, "markdown", lambda report: f"of {report['seeds']}\n\n")
    assert run(capsys, "evidence").out == "of [0]\n"
    assert run(capsys, "evidence --part cached --seeds 1 --out e --json").json == {"seeds": [0]}
    assert calls == [
        (Path("runs/evidence"), {"seeds": 3, "part": "all"}),
        (Path("e"), {"seeds": 1, "part": "cached"}),
    ]
