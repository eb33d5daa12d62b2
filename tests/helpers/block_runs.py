"""Real processes that run `grit index` and `grit encode` together over the loopback, with small
blocks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from grit_jax.rag.index_files import DELETED, DOCUMENTS, VECTORS
from grit_jax.rag.manifest import MANIFEST, read_manifest, store_path
from grit_jax.rag.store import RECORDS, _open

# `grit` with small blocks, each of which takes a while; what is encoded is written to a file first.
PROGRAM = """
import os, sys, time
from grit_jax.cli import main as cli
from grit_jax.inference import encoder, vector_file
from grit_jax.rag import build
from grit_jax.runtime import hosts

hosts.HEARTBEAT_SECONDS = int(os.environ.get("HEARTBEAT_SECONDS", hosts.HEARTBEAT_SECONDS))
vector_file.BLOCK_TEXTS = 8
build.block_tokens = lambda model, records: 64
encode_ids = encoder.Encoder.encode_ids

def slowly(self, ids, *args, names=None, **options):
    calibrating = names and names[0].endswith("of the corpus")
    if names and not calibrating:
        with open(os.environ["ENCODED"], "a") as file:
            file.write("".join(name + "\\n" for name in names))
        time.sleep(float(os.environ.get("BLOCK_SECONDS", 0)))
    return encode_ids(self, ids, *args, names=names, **options)

encoder.Encoder.encode_ids = slowly
cli.main()
"""


def start(
    folder: Path,
    words: list[str],
    processes: int,
    *,
    environment: Mapping[str, str] = {},
    own: Mapping[int, list[str]] = {},
    program: str = PROGRAM,
) -> list[subprocess.Popen]:
    """`grit` with these words in so many processes of one device each; `own` words to some.

    The output of process `i` is in `folder/i.log`; the names of what is encoded are added to
    `folder/encoded`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(processes):
        mine = {
            **os.environ,
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "ENCODED": str(folder / "encoded"),
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environment,
        }
        if processes > 1:
            mine |= {
                "GRIT_COORDINATOR": f"localhost:{port}",
                "GRIT_NUM_PROCESSES": str(processes),
                "GRIT_PROCESS_ID": str(number),
            }
        with (folder / f"{number}.log").open("w") as log:
            command = [sys.executable, "-c", program, *words, *own.get(number, [])]
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=mine))
    return started


def wait(processes: list[subprocess.Popen], seconds: float = 300) -> list[int]:
    """Their exit statuses; none outlives the test."""
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def logs(folder: Path) -> list[str]:
    """What each process printed."""
    return [path.read_text() for path in sorted(folder.glob("[0-9].log"))]


def finish(folder: Path, words: list[str], processes: int, **how) -> list[str]:
    """A run to its end; what each process printed."""
    statuses = wait(start(folder, words, processes, **how))
    assert statuses == [0] * processes, logs(folder)
    return logs(folder)[:processes]


def encoded(folder: Path) -> list[str]:
    """The names of what was encoded, in order."""
    path = folder / "encoded"
    return path.read_text().splitlines() if path.exists() else []


def records(index: Path) -> dict[str, bytes]:
    """The bytes of all records of an index, by key."""
    path = store_path(index, read_manifest(index))
    kv, _ = _open(path, None)
    keys = [key for key in kv.list().result() if key.startswith(RECORDS.encode())]
    return {key.decode(): kv.read(key).result().value for key in keys}


def contents(index: Path) -> dict[str, object]:
    """All that an index holds, what is drawn at random or says where it is left out."""
    manifest = json.loads((index / MANIFEST).read_text())
    assert not list(index.glob("shards/block-*"))
    words = index / manifest["lexical"].pop("folder")  # numbered anew after a kill
    return {
        "manifest": {k: v for k, v in manifest.items() if k not in ("index_id", "folder")},
        "lexical": {path.name: path.read_bytes() for path in words.iterdir()},
        "files": [(index / name).read_bytes() for name in (DOCUMENTS, VECTORS, DELETED)],
        "records": records(index) if manifest["kv"] != "none" else {},
    }
