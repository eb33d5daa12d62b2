"""metrics.jsonl: exactly one parsable line for each step, whatever a run was killed at."""

from __future__ import annotations

import json
import math

import pytest

from grit_jax.runtime.metrics import MetricsFile, read_lines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def steps(path) -> list[int]:
    """The steps of the lines, each of which must be JSON."""
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_line_is_there_as_soon_as_it_is_written(path):
    metrics = MetricsFile(path)
    for step in range(3):
        metrics.write(step, {"loss": 2.5 - step, "tokens": 7})
        assert steps(path) == list(range(step + 1))
    assert metrics.last == {"step": 2, "loss": 0.5, "tokens": 7} == read_lines(path)[-1]
    metrics.close()


def test_numbers_that_json_lacks_are_null(path):
    metrics = MetricsFile(path)
    metrics.write(0, {"loss": math.nan, "grad_norm": math.inf, "lr": -math.inf, "n": 1, "s": "a"})
    text = path.read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 0,
        "loss": None,
        "grad_norm": None,
        "lr": None,
        "n": 1,
        "s": "a",
    }


def test_values_of_the_same_step_are_added_to_its_line(path):
    """An evaluation comes after the step's own line."""
    metrics = MetricsFile(path)
    for step in (0, 1):
        metrics.write(step, {"loss": 1.0})
    metrics.write(1, {"eval_perplexity": 9.0, "loss": 1.5})
    metrics.write(2, {"loss": 0.5})
    assert read_lines(path) == [
        {"step": 0, "loss": 1.0},
        {"step": 1, "loss": 1.5, "eval_perplexity": 9.0},
        {"step": 2, "loss": 0.5},
    ]
    assert steps(path) == [0, 1, 2]


@pytest.mark.parametrize("start, kept", [(0, []), (2, [0, 1]), (3, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_a_resumed_run_has_the_lines_before_its_step(path, start, kept):
    """After a kill in the middle of a line; two lines of one step count once, the later one."""
    lines = [{"step": step, "loss": 1.0} for step in (0, 1, 2, 3)]
    lines.insert(2, {"step": 1, "loss": 7.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"step": 4, "loss": 0.')
    metrics = MetricsFile(path, start)
    assert steps(path) == kept
    assert metrics.last == (
        {"step": kept[-1], "loss": 7.0 if kept[-1] == 1 else 1.0} if kept else {}
    )
    metrics.write(start, {"loss": 2.0})
    assert steps(path) == [*kept, start] and read_lines(path)[-1]["loss"] == 2.0


def test_what_is_no_line_is_left_out(path):
    assert read_lines(path) == []
    path.write_bytes(
        b'5\n{"loss": 1}\n{"step": "x"}\n{"step": null}\n\n\xff\xfe\n{"step": 3}\n[]\n'
    )
    assert read_lines(path) == [{"step": 3}]
