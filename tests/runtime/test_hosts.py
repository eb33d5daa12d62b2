"""How processes find each other: by three variables, by JAX's own, by Slurm, or not at all."""

from __future__ import annotations

import contextlib
import json

import jax
import pytest

from grit_jax.errors import GritError
from grit_jax.runtime import hosts
from grit_jax.runtime.hosts import Agreement, asks_for_hosts, check_same_folder, join_hosts
from grit_jax.sharding import MeshConfig, make_mesh

SLURM = {
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
THREE = {"GRIT_COORDINATOR": "node1:8476", "GRIT_NUM_PROCESSES": "4", "GRIT_PROCESS_ID": "3"}


@pytest.fixture()
def joined(monkeypatch):
    """What jax.distributed was asked for."""
    calls = []

    def initialize(heartbeat_timeout_seconds, initialization_timeout, **how):
        assert heartbeat_timeout_seconds < 60 < initialization_timeout
        calls.append(how)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)
    monkeypatch.setattr(hosts.coordinator, "await_coordinator", lambda *address, **numbers: None)
    monkeypatch.setattr(hosts.coordinator, "resolve", lambda *address: None)
    return calls


@pytest.mark.parametrize(
    "environment, how",
    [
        ({}, []),
        (THREE, [{"coordinator_address": "node1:8476", "num_processes": 4, "process_id": 3}]),
        ({"JAX_COORDINATOR_ADDRESS": "node1:1"}, [{}]),
        (SLURM | {"SLURM_NTASKS": "2"}, [{}]),
        (SLURM | {"SLURM_NTASKS": "1"}, []),
        (
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"},
            [],
        ),  # a batch script outside of srun is no task of it
        (SLURM | {"SLURM_NTASKS": "2", "GRIT_NUM_PROCESSES": "1"}, []),
    ],
)
def test_who_joins(joined, environment, how):
    join_hosts(environment)
    assert joined == how
    assert asks_for_hosts(environment) is bool(how), "whether the run is watched"


def test_the_coordinator_is_waited_for_by_this_process(joined, monkeypatch):
    waits = []
    monkeypatch.setattr(
        hosts.coordinator, "await_coordinator", lambda *address, **numbers: waits.append(numbers)
    )
    join_hosts(THREE)
    assert waits == [{"process": 3, "processes": 4}]


@pytest.mark.parametrize("libtpu, asked", [(True, [{}]), (False, [])])
def test_a_host_with_tpu_chips_asks_for_its_slice(joined, monkeypatch, tmp_path, libtpu, asked):
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(hosts, "DEVICES", tmp_path)
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: libtpu or None)
    join_hosts({})
    join_hosts({"JAX_PLATFORMS": "tpu,cpu"})
    assert joined == 2 * asked
    join_hosts({"JAX_PLATFORMS": "cpu"})
    join_hosts({"JAX_PLATFORMS": "cuda,cpu"})
    join_hosts({"GRIT_NUM_PROCESSES": "1"})
    assert joined == 2 * asked


@pytest.mark.parametrize(
    "environment, words",
    [
        (
            {"GRIT_COORDINATOR": "a:1", "GRIT_PROCESS_ID": "0"},
            "without GRIT_NUM_PROCESSES; set all three",
        ),
        ({"GRIT_NUM_PROCESSES": "2"}, "without GRIT_COORDINATOR, GRIT_PROCESS_ID"),
        (THREE | {"GRIT_PROCESS_ID": "4"}, "GRIT_PROCESS_ID=4, GRIT_NUM_PROCESSES=4: expected"),
        (THREE | {"GRIT_NUM_PROCESSES": "four"}, "GRIT_NUM_PROCESSES=four: expected"),
    ],
)
def test_variables_that_contradict_each_other(joined, environment, words):
    with pytest.raises(GritError, match=words):
        join_hosts(environment)
    assert joined == []


def test_hosts_that_cannot_be_reached(joined, monkeypatch):
    def late(**how):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore of it")

    monkeypatch.setattr(jax.distributed, "initialize", late)
    with pytest.raises(
        GritError, match=r"cannot be joined \(DEADLINE_EXCEEDED: no answer\); set GRIT_COORDINATOR"
    ):
        join_hosts(THREE)


def test_the_question_is_answered_at_once_alone_and_a_step_later_among_many(monkeypatch):
    told = [False, True, False, False]
    mesh = make_mesh(MeshConfig(1, -1, 1), jax.devices())
    ask = Agreement(iter(told).__next__, mesh)
    assert [ask() for _ in told] == told
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    ask = Agreement(iter(told).__next__, mesh)
    assert [ask() for _ in told] == [False, False, True, False]


@pytest.fixture()
def two(monkeypatch):
    """A function that makes this process that number of two, and the other one one that says these
    words in turn."""

    def become(number: int, *words: str) -> list[str]:
        said, others = [], iter(words)

        def gather_text(word):
            said.append(word)
            return [word, next(others)] if number == 0 else [next(others), word]

        monkeypatch.setattr(hosts, "gather_text", gather_text)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda: number)
        monkeypatch.setattr(hosts, "FOLDER_SECONDS", 0.3)
        monkeypatch.setattr(hosts.time, "sleep", lambda seconds: None)
        return said

    return become


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_is_the_same_one_where_the_file_of_process_0_is_seen(two, tmp_path, there):
    words = f"output {tmp_path} is not the same folder on process 1; put it where all hosts see it"
    for number, other in ((0, ("", "yes" if there else "no")), (1, (".grit-mark", "yes"))):
        said = two(number, *other)
        if number and there:
            (tmp_path / ".grit-mark").touch()
        with contextlib.nullcontext() if there else pytest.raises(GritError, match=words):
            check_same_folder(tmp_path)
        assert said[0].startswith(".grit-") and said[1] == ("yes" if there or number == 0 else "no")
        assert [path.name for path in tmp_path.iterdir()] == [".grit-mark"] * (number and there), (
            "it removes its own"
        )


def test_a_file_that_shows_late_is_waited_for(two, tmp_path, monkeypatch):
    two(1, ".grit-mark", "yes")
    monkeypatch.setattr(hosts.time, "sleep", lambda seconds: (tmp_path / ".grit-mark").touch())
    check_same_folder(tmp_path)


@pytest.mark.parametrize(
    "values, line",
    [
        ([{"lr": 1, "seed": 0}] * 3, ""),
        ([{"lr": 1}, {"lr": 1}, {"lr": 2}], "lr is 1 on process 0, 1, 2 on process 2;"),
        (
            [{"lr": 1}, {"lr": 1, "b": None}, {"lr": 1, "b": "x"}],
            "b is unset on process 0, 1, x on",
        ),
        ([{"a": 1, "b": 2}, {"a": 2, "b": 3}], "a file.jsonl is 1 on process 0, 2 on process 1; b"),
        ([{str(i): n for i in range(9)} for n in (0, 1)], "; and 4 more; start all of them with"),
        ([{"a": n} for n in range(12)], "a file.jsonl is 0 on process 0, 1 on process 1, 2 on"),
        ([{"a": n > 0} for n in range(12)], "true on process 1, 2, 3, 4, 5, 6, 7, 8 and 3 others;"),
    ],
)
def test_what_the_processes_have_is_compared(monkeypatch, values, line):
    monkeypatch.setattr(jax, "process_count", lambda: len(values))
    monkeypatch.setattr(hosts.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hosts, "gather_text", lambda word: [json.dumps(value) for value in values])
    raises = pytest.raises(GritError, match=f"^the processes of this run differ: .*{line}")
    with raises if line else contextlib.nullcontext():
        hosts.check_hosts_agree(values[0], {"a": "file.jsonl"})


@pytest.mark.parametrize("mine", ["", "mine"])
@pytest.mark.parametrize("other", ["", "other's"])
def test_an_error_of_one_process_is_raised_by_all(monkeypatch, mine, other):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hosts, "gather_text", lambda word: [word, other])
    expected = mine or (other and f"process 1: {other}")
    raises = pytest.raises(GritError, match=f"^{expected}$")
    with raises if expected else contextlib.nullcontext(), hosts.errors_together():
        if mine:
            raise GritError(mine)
