"""One run on several hosts: every process runs the same program over one mesh, and process 0 writes
the output.

Processes find each other through jax.distributed, from the environment of a TPU slice or of Slurm,
or from three environment variables:

    GRIT_COORDINATOR=HOST:PORT GRIT_NUM_PROCESSES=4 GRIT_PROCESS_ID=0 grit train CONFIG
    (process 0 runs on HOST)
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from grit_jax.errors import GritError
from grit_jax.runtime import coordinator

DEVICES = Path("/dev")  # where a TPU VM shows its chips
HEARTBEAT_SECONDS = 40  # without one, a process is lost, and JAX aborts the others
WAIT_SECONDS = 1800  # for the slowest host: it may have to fetch a model first
FOLDER_SECONDS = 10  # in which a file that one host writes is there on all
VARIABLES = ("GRIT_COORDINATOR", "GRIT_NUM_PROCESSES", "GRIT_PROCESS_ID")


def asks_for_hosts(environment: Mapping[str, str] = os.environ) -> bool:
    """True if the environment says that this process may be one of several."""
    names = {name for name in (*VARIABLES, "JAX_COORDINATOR_ADDRESS") if name in environment}
    alone = names == {"GRIT_NUM_PROCESSES"} and environment["GRIT_NUM_PROCESSES"] == "1"
    return bool(names) and not alone or _in_a_cluster(environment)


def join_hosts(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of the run, if the environment names any. Call it before JAX is
    used.

    Raises:
      GritError: the variables are incomplete or wrong, or the other processes cannot be reached.
    """
    arguments = _explicit(environment)
    if arguments is None and not _in_a_cluster(environment):
        return
    if arguments:
        coordinator.await_coordinator(
            "GRIT_COORDINATOR",
            arguments["coordinator_address"],
            process=arguments["process_id"],
            processes=arguments["num_processes"],
        )
    elif address := environment.get("JAX_COORDINATOR_ADDRESS"):
        coordinator.resolve("JAX_COORDINATOR_ADDRESS", address)
    # `preemption` handles SIGTERM, and `Agreement` tells the other hosts.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **(arguments or {}),
            initialization_timeout=coordinator.JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise GritError(
            f"the hosts of this run cannot be joined ({str(error).splitlines()[0]}); "
            f"set {', '.join(VARIABLES)}, or GRIT_NUM_PROCESSES=1 for a run on this host alone"
        ) from None


def _explicit(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` from the three variables.

    {} where JAX reads its own variables instead; None where none is set.
    """
    given = {name: environment[name] for name in VARIABLES if name in environment}
    if not given:
        return {} if "JAX_COORDINATOR_ADDRESS" in environment else None
    missing = [name for name in VARIABLES if name not in given]
    if given == {"GRIT_NUM_PROCESSES": "1"}:
        return None
    if missing:
        raise GritError(
            f"{', '.join(given)} without {', '.join(missing)}; set all three, in every process of"
            " the run"
        )
    address, count, number = (given[name] for name in VARIABLES)
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise GritError(
            f"GRIT_PROCESS_ID={number}, GRIT_NUM_PROCESSES={count}: expected whole numbers, the"
            " first at least 0 and less than the second"
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
    }


def _in_a_cluster(environment: Mapping[str, str]) -> bool:
    """True for a task of a Slurm step with several tasks, and for a host with TPU chips (which may
    belong to a slice of several hosts)."""
    if environment.get("GRIT_NUM_PROCESSES") == "1":
        return False
    if "SLURM_STEP_NODELIST" in environment:
        return int(environment.get("SLURM_NTASKS", "1")) > 1
    if (environment.get("JAX_PLATFORMS") or "tpu").split(",")[
        0
    ] != "tpu" or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    chips = [*DEVICES.glob("accel[0-9]*"), *DEVICES.glob("vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """True in process 0, which writes files and prints."""
    return jax.process_index() == 0


def wait_for_all(barrier: str) -> None:
    """Returns once every process has reached the barrier of this name. Devices are not involved."""
    multihost.get_barrier_sync_fn()(key=barrier, timeout_ms=1000 * WAIT_SECONDS)


def gather_text(text: str) -> list[str]:
    """Gathers a text from every process, ordered by process number. All processes must call it.

    Raises:
      GritError: a process sent nothing in time.
    """
    if jax.process_count() == 1:
        return [text]
    exchange = Exchange()
    messages = [text.encode()] * exchange.hosts
    return [message.decode() for message in exchange("text", messages)]


def fail_together(message: str) -> NoReturn:
    """Raises `GritError`; called by every process. Process 0 does so last, since JAX aborts the
    others when it ends."""
    if jax.process_count() > 1 and is_first():
        time.sleep(1)
    raise GritError(message)


def check_hosts_agree(values: Mapping[str, Any], names: Mapping[str, str] = {}) -> None:
    """Compares a value for each key among all processes. All processes must call it.

    Args:
      names: a text to show after a key, such as the name of a file. These are not compared.

    Raises:
      GritError: a value differs; the message names the keys, the values and the processes.
    """
    if jax.process_count() == 1:
        return
    seen = [json.loads(text) for text in gather_text(json.dumps(dict(values)))]
    differences: dict[str, str] = {}
    for key in [key for host in seen for key in host]:
        groups: dict[str, list[int]] = {}
        for number, host in enumerate(seen):
            groups.setdefault(setting_text(host.get(key)), []).append(number)
        if len(groups) > 1:
            name = f" {names[key]}" if key in names else ""
            differences[key] = f"{key}{name} is " + ", ".join(
                f"{value} on process {', '.join(map(str, numbers[:8]))}"
                + (f" and {len(numbers) - 8} others" if len(numbers) > 8 else "")
                for value, numbers in groups.items()
            )
    if differences:
        shown = list(differences.values())
        more = f"; and {len(shown) - 5} more" if len(shown) > 5 else ""
        fail_together(
            f"the processes of this run differ: {'; '.join(shown[:5])}{more}; start all of them"
            " with the same settings and the same files, lines in the same order"
        )


def setting_text(value: Any) -> str:
    """A setting's value as messages show it."""
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)


@contextlib.contextmanager
def errors_together() -> Iterator[None]:
    """Raises a `GritError` of one process in all of them. All processes must enter it, and none may
    wait for another inside.

    Raises:
      GritError: this process's own, or that of the first process that has one.
    """
    message = ""
    try:
        yield
    except GritError as error:
        if jax.process_count() == 1:
            raise
        message = str(error)
    if jax.process_count() > 1:
        messages = gather_text(message)
        if failed := [number for number, other in enumerate(messages) if other]:
            fail_together(message or f"process {failed[0]}: {messages[failed[0]]}")


def check_same_folder(folder: Path) -> None:
    """Checks that all processes see one folder, by a file that process 0 writes there. All of them
    must call it.

    Raises:
      GritError: some see another folder; their parts of a checkpoint would be missing.
    """
    if jax.process_count() == 1:
        return
    mark = folder / f".grit-{uuid.uuid4().hex}"
    try:
        if is_first():
            mark.touch()
        seen = gather_text("yes" if _appears(folder / gather_text(mark.name)[0]) else "no")
    finally:
        if is_first():
            mark.unlink(missing_ok=True)
    if without := ", ".join(str(number) for number, answer in enumerate(seen) if answer != "yes"):
        fail_together(
            f"output {folder} is not the same folder on process {without}; put it where all hosts"
            " see it"
        )


def _appears(file: Path) -> bool:
    """Waits for a file that another host wrote: network file systems may show it late."""
    ends = time.monotonic() + FOLDER_SECONDS
    while not os.path.exists(file):
        if time.monotonic() > ends:
            return False
        time.sleep(0.2)
    return True


def wait_for_peer_failure() -> None:
    """Waits after an error. If the loss of another process caused it, JAX aborts this process
    meanwhile."""
    if jax.process_count() > 1:
        time.sleep(HEARTBEAT_SECONDS + 10)


class Exchange:
    """Sends messages between hosts through the key-value store of process 0. It may be used from
    any thread; devices are not involved.

    Attributes:
      number: this process's number.
      hosts: how many processes there are.
    """

    _opened = itertools.count()  # every process creates the same exchanges in the same order

    def __init__(self) -> None:
        self.number, self.hosts = jax.process_index(), jax.process_count()
        self._client = multihost.get_jax_distributed_client() if self.hosts > 1 else None
        self._name, self._closed = f"grit/{next(self._opened)}", False

    def __call__(self, key: str, messages: Sequence[bytes]) -> list[bytes]:
        """Sends `messages[i]` to host `i` and returns what each host sent to this one.

        Raises:
          GritError: a host sent nothing in time.
        """
        if self._closed:
            raise Closed(key)
        place = lambda to, sender: f"{self._name}/{key}/{to}/{sender}"
        for host in self._others():
            self._client.key_value_set_bytes(
                place(host, self.number), messages[host], allow_overwrite=True
            )
        received = list(messages)
        for host in self._others():
            received[host] = self._receive(place(self.number, host), host)
        self._client.key_value_delete(f"{self._name}/{key}/{self.number}/")
        return received

    def close(self) -> None:
        """Ends all waiting calls with `Closed`."""
        self._closed = True

    def _others(self) -> list[int]:
        # Each host starts with its neighbour, so that they do not all ask for the same message.
        return [(self.number + i) % self.hosts for i in range(1, self.hosts)]

    def _receive(self, place: str, host: int) -> bytes:
        for _ in range(WAIT_SECONDS):
            try:
                return self._client.blocking_key_value_get_bytes(place, 1000)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            if self._closed:
                raise Closed(place)
        raise GritError(
            f"no message from process {host} of this run for {WAIT_SECONDS} s; see its own output"
        )


class Closed(Exception):
    """The run ended while batches that it does not need were being prepared."""


class Agreement:
    """True in all processes after the same step, once any of them has requested a stop.

    With several processes a call returns the requests made before the previous call, so that the
    reduction overlaps with a step.

    Args:
      requested: whether this process requests a stop.
    """

    def __init__(self, requested: Callable[[], bool], mesh: Mesh):
        self._requested, self._pending = requested, None
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self) -> bool:
        if jax.process_count() == 1:
            return self._requested()
        answer = self._pending is not None and bool(self._pending)
        mine = np.full(self._split.mesh.size, self._requested())
        self._pending = self._any(
            jax.make_array_from_callback(mine.shape, self._split, lambda index: mine[index])
        )
        return answer
