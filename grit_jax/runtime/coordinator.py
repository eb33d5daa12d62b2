"""The address at which the processes of a run meet: checked before JAX uses it, which ends the
process by a signal where it is wrong, or waits for minutes without a word."""

from __future__ import annotations

import re
import socket
import time

from grit_jax.errors import GritError
from grit_jax.runtime.progress import say

JOIN_SECONDS = 300  # until all processes have started
NAME_SECONDS = 30  # until a host's name is known; that of a new machine may take a while
RETRY_SECONDS = 1.0
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})")


def parse_address(variable: str, address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 address stands in brackets.

    Raises:
      GritError: something else; the message names the variable.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise GritError(
            f"{variable}={address}: expected HOST:PORT with a port from 1 to 65535, such as"
            " host0:8476"
        )
    return match[1].strip("[]"), int(match[2])


def resolve(variable: str, address: str) -> None:
    """Looks up the host's name.

    Raises:
      GritError: not an address, or a name that is not known for `NAME_SECONDS`.
    """
    host, port = parse_address(variable, address)
    ends = time.monotonic() + NAME_SECONDS
    printed = False
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if time.monotonic() >= ends:
                raise GritError(
                    f"{variable}={address}: no host has the name {host} ({reason}); give the name"
                    " or the IP address of the machine that process 0 runs on"
                ) from None
            if not printed:
                say(f"{variable}={address}: {reason}; trying for {NAME_SECONDS} s")
                printed = True
            time.sleep(RETRY_SECONDS)


def await_coordinator(variable: str, address: str, process: int, processes: int) -> None:
    """Returns once process 0 can be reached, or in process 0 once its port is free.

    Raises:
      GritError: the port is in use, or nothing answers for `JOIN_SECONDS`.
    """
    resolve(variable, address)
    host, port = parse_address(variable, address)
    if process == 0:
        _check_free(variable, address, port)
        others = "the other process" if processes == 2 else f"the other {processes - 1} processes"
        say(f"process 0 of {processes} waits for {others} at {address}, up to {JOIN_SECONDS} s")
        return
    say(
        f"process {process} of {processes} waits for the coordinator {address}, up to"
        f" {JOIN_SECONDS} s"
    )
    ends = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() >= ends:
                raise GritError(
                    f"{variable}={address}: no answer within {JOIN_SECONDS} s"
                    f" ({error.strerror or error}); start process 0 there, and open the port to"
                    " this machine"
                ) from None
        time.sleep(RETRY_SECONDS)


def _check_free(variable: str, address: str, port: int) -> None:
    """Two coordinators could listen at one port, and their processes would be mixed up."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise GritError(
                f"{variable}={address}: the port cannot be used ({error.strerror}); choose another"
            ) from None
