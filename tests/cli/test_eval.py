"""What `grit eval` prints and writes when all is well."""

from __future__ import annotations

import pytest
from cli_world import run

pytestmark = pytest.mark.usefixtures("in_world")


def test_perplexity(capsys):
    found = run(capsys, "eval perplexity model --input generative.jsonl --json").json
    assert found.keys() == {"perplexity", "truncated"} and found["perplexity"] > 1
