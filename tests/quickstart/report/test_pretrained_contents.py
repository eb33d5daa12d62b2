"""report.json of a pretrained model: what it holds, and how it is read."""

from __future__ import annotations

import json

import pytest
from pretrained_fixture import made_up_pretrained, made_up_pretrained_json
from report_fixture import made_up_json

from grit_jax.errors import GritError
from grit_jax.quickstart.report import PretrainedReport


def test_a_report_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "report.json"
    for changes in ({}, {"training": None}):
        report = made_up_pretrained(**changes)
        path.write_text(json.dumps(report.to_dict()))
        assert PretrainedReport.read(path) == report
        assert json.loads(path.read_text()) == made_up_pretrained_json() | changes


def test_another_report_is_refused(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(made_up_json()))
    with pytest.raises(GritError, match="report.json: "):
        PretrainedReport.read(path)
    path.write_text(json.dumps(made_up_pretrained_json() | {"format": 9}))
    with pytest.raises(GritError, match="written by another version"):
        PretrainedReport.read(path)
