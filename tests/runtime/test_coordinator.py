"""The address of process 0 is checked and waited for before JAX uses it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from grit_jax.errors import GritError
from grit_jax.runtime import coordinator
from grit_jax.runtime.coordinator import await_coordinator, parse_address


@pytest.mark.parametrize(
    "address, parts",
    [
        ("host0:8476", ("host0", 8476)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(address, parts):
    assert parse_address("X", address) == parts


@pytest.mark.parametrize(
    "address",
    ["host0", "host0:", ":8476", "host0:0", "host0:65536", "host0:http", "host0:-1", "a b:1", ""]
    + ["host0:99999999999", "::1:80", "http://host0:80", "host0:8476 "],
)
def test_what_is_no_address(address):
    with pytest.raises(GritError, match=r"^GRIT_COORDINATOR=.*: expected HOST:PORT with a port"):
        await_coordinator("GRIT_COORDINATOR", address, 1, 2)


@pytest.fixture()
def impatient(monkeypatch):
    monkeypatch.setattr(coordinator, "JOIN_SECONDS", 0)
    monkeypatch.setattr(coordinator, "NAME_SECONDS", 0)
    monkeypatch.setattr(coordinator, "RETRY_SECONDS", 0)


def test_a_name_that_no_host_has(impatient):
    with pytest.raises(GritError, match=r"^V=none.invalid:80: no host has the name none.invalid"):
        await_coordinator("V", "none.invalid:80", 1, 2)


def test_a_name_that_is_known_late(monkeypatch, capsys):
    """As that of a machine that has just been made."""
    answers = iter([socket.gaierror(-2, "Name or service not known"), None])

    def lookup(*_, **__):
        if error := next(answers):
            raise error

    monkeypatch.setattr(coordinator, "RETRY_SECONDS", 0)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    coordinator.resolve("V", "new:80")
    assert capsys.readouterr().err == "V=new:80: Name or service not known; trying for 30 s\n"


@contextlib.contextmanager
def listening():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        server.listen()
        yield server.getsockname()[1]


def test_it_says_what_it_waits_for(impatient, capsys):
    with listening() as port:
        await_coordinator("V", f"localhost:{port}", 2, 4)
    line = f"process 2 of 4 waits for the coordinator localhost:{port}, up to 0 s\n"
    assert capsys.readouterr().err == line
    with pytest.raises(GritError, match=r"no answer within 0 s \(.*refused\); start process 0"):
        await_coordinator("V", f"localhost:{port}", 2, 4)
    capsys.readouterr()
    await_coordinator("V", f"localhost:{port}", 0, 4)
    line = f"process 0 of 4 waits for the other 3 processes at localhost:{port}, up to 0 s\n"
    assert capsys.readouterr().err == line


def test_a_coordinator_that_starts_late_is_waited_for(monkeypatch):
    refused = threading.Event()
    monkeypatch.setattr(coordinator.time, "sleep", lambda _: refused.set())
    with socket.socket() as server:
        server.bind(("localhost", 0))
        late = threading.Thread(target=lambda: refused.wait() and server.listen())
        late.start()
        await_coordinator("V", f"localhost:{server.getsockname()[1]}", 1, 2)
        late.join()


def test_a_port_in_use_is_refused_by_process_0():
    with listening() as port, pytest.raises(GritError, match="the port cannot be used"):
        await_coordinator("V", f"localhost:{port}", 0, 2)


@pytest.mark.parametrize("address", ["localhost", "localhost:123456"])
def test_the_command_exits_with_a_line(address, tmp_path):
    """Of a real process: no traceback and no segmentation fault."""
    (tmp_path / "c.yaml").write_text("model: {preset: mistral_7b}\noutput: out\n")
    environment = {
        **os.environ,
        "GRIT_COORDINATOR": address,
        "GRIT_NUM_PROCESSES": "2",
        "GRIT_PROCESS_ID": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    }
    command = [sys.executable, "-m", "grit_jax", "train", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 != -signal.SIGSEGV, done.stderr
    assert "expected HOST:PORT" in done.stderr and "Traceback" not in done.stderr
