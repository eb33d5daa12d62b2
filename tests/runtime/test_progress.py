"""Progress: a bar on a terminal, a line now and then without one, silence when asked and in other
processes."""

from __future__ import annotations

import io
import sys

import pytest

from grit_jax.runtime import progress as module
from grit_jax.runtime.progress import duration, progress, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture()
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_now_and_then(capsys, clock):
    with progress(1000, "encode", "texts") as bar:
        for _ in range(40):
            clock[0] += 1
            bar.update(20, note="loss 1.2")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[-1].startswith("encode: 800/1000")
    assert lines[0] == "encode: 200/1000 texts (20%), 20 texts/s, 40 s left, loss 1.2"


def test_short_work_says_nothing(capsys, clock):
    assert list(progress(range(5), "encode", "texts")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress(["a", "b"], "encode", "texts")) == ["a", "b"]
    shown = stream.getvalue()
    assert "encode" in shown and "2/2" in shown


def test_quiet_and_other_processes_say_nothing(capsys, clock, monkeypatch):
    for settings in ({"quiet": True}, {}):
        with progress(10, "encode", "texts", **settings) as bar:
            clock[0] += 100
            bar.update(5)
        assert bar.done == 5
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(module, "_is_process_zero", lambda: False)
    say("hello")
    assert capsys.readouterr().err == ""


def test_iterators_of_unknown_length(capsys, clock):
    def items():
        for i in range(3):
            clock[0] += 11
            yield i

    assert list(progress(items(), "read", "lines")) == [0, 1, 2]
    assert "read: 2 lines" in capsys.readouterr().err
    with progress(None, "read", "lines") as bar, pytest.raises(TypeError):
        iter(bar).__next__()


def test_a_broken_loop_closes_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = progress(range(5), "encode", "texts")
    with pytest.raises(ZeroDivisionError):
        for _ in bar:
            raise ZeroDivisionError
    del bar


def test_say_goes_to_stderr(capsys):
    say("hello")
    assert capsys.readouterr().err == "hello\n"


def test_duration():
    assert [duration(s) for s in (5, 65, 7300)] == ["5 s", "1 min 5 s", "2 h 1 min"]
