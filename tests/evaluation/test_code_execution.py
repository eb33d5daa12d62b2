"""Programs that a model wrote: what passes, and what the limits end."""

from __future__ import annotations

import time

import pytest

from grit_jax.evaluation.code_execution import IMPORTS, run_all, runs

SECONDS = 60.0  # of a program that is to pass, on a busy machine


def test_programs_that_pass():
    program = f"{IMPORTS}\nassert math.gcd(4, 6) == 2 and Counter('aa')['a'] == 2"
    writes = "open('x', 'w').write('a'); assert open('x').read() == 'a'"
    assert run_all([program, writes, "print('x' * 10**6)"], SECONDS) == [True, True, True]


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "def broken(:",
        "raise SystemExit(0)",
        "import os; os._exit(0)",  # before its tests
        "x = bytearray(10**9); assert len(x)",
        "open('x', 'wb').write(b'a' * (20 * 2**20))",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "open('{outside}/x', 'w')",
        "import os; os.remove('{outside}/kept')",
        "import os; assert os.environ.get('GRIT_SECRET')",
    ],
)
def test_programs_that_fail(program, tmp_path, monkeypatch):
    monkeypatch.setenv("GRIT_SECRET", "1")
    (tmp_path / "kept").write_text("a")
    assert not runs(program.replace("{outside}", str(tmp_path)), SECONDS, memory=2**29)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_program_that_does_not_end():
    start = time.monotonic()
    assert not runs("while True: pass", 1.0)
    assert time.monotonic() - start < 30
