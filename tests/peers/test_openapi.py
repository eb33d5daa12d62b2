"""Schemathesis over the server's OpenAPI description: no request that it generates gets a 5xx or an
answer that the description does not allow, and the server goes on serving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served_folders import save_served
from served_process import running

pytest.importorskip("schemathesis")
pytestmark = pytest.mark.peers

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
HOOKS = Path(__file__).parents[1] / "helpers"
SMALL = ("--slots", "4", "--context", "256", "--no-warm-up", "--max-body-bytes", "200000")
# Bounded: values at the ends of every range, and a few drawn requests an operation.
PHASES = {
    "coverage": ["--max-examples", "1"],
    "fuzzing": ["--max-examples", "8", "--max-time", "90"],
}


@pytest.fixture(scope="module")
def served(tiny_model, sentences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    arguments = save_served(tiny_model, sentences[:8], folder)
    files = ["--files", str(folder / "files"), "--max-request-tokens", "20000"]
    with running(*arguments, *SMALL, *files) as (process, client, lines):
        yield client, lines
        process.terminate()


@pytest.mark.parametrize("phase", list(PHASES))
def test_no_generated_request_gets_a_5xx(served, phase, tmp_path):
    client, lines = served
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    options = ["--checks", ",".join(CHECKS), "--phases", phase, "--seed", "1", "--no-shrink"]
    limits = ["--request-timeout", "120", "--generation-database", "none", "--no-color"]
    environment = os.environ | {"PYTHONPATH": str(HOOKS)}
    if phase == "fuzzing":
        environment["SCHEMATHESIS_HOOKS"] = "api_hooks"
    run = subprocess.run(
        [*command, "run", f"{client.url}/openapi.json", *options, *limits, *PHASES[phase]],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    log = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(log) > 200 and not [line for line in log if line["status"] >= 500]
    if phase == "fuzzing":  # it gets as far as answers
        answered = {line["handler"] for line in log if line["status"] == 200}
        assert {"/v1/completions", "/v1/embeddings"} <= answered
    assert client.post("/v1/completions", prompt="a", max_tokens=2)["choices"]
