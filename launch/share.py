"""`grit index` and `grit encode` on the workers of a slice: what they read from a bucket, and what
is copied back.

Shards and the records of an index go to the bucket by themselves (`OUTPUT/shards`, `OUTPUT/kv`).
The rest of an index, or the file of vectors, is on the disk of the worker with process 0, which
copies it to `OUTPUT/index` or `OUTPUT/vectors.npy`. All workers bring the index back before they
start; those where it does not change copy nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mirror import MirrorError

VERBS = ("index", "encode")
MANIFEST, VECTORS = "index.json", "vectors.npy"
# For `gcloud storage rsync --exclude`: the manifest commits what the other files hold, and is
# copied after them.
NOT_SYNCED = r"^(index\.json|\.lock|shards/.*)$|.*\.tmp$"

Run = Callable[[Sequence[str]], str]  # runs a command, returns its stdout, raises MirrorError


def command(verb: str, local: Path, remote: str) -> list[str]:
    """The flags of the verb that name its output."""
    where = local if verb == "index" else local / VECTORS
    store = ["--store", f"{remote}/kv"] if verb == "index" else []
    return ["--output", str(where), "--shards", f"{remote}/shards", *store]


class Shared:
    """The output of a verb, on this disk and as `gs://...`; has the methods of `mirror.Mirror` that
    a run needs."""

    def __init__(self, verb: str, local: Path, remote: str, run: Run):
        self._verb, self._local, self._remote, self._run = verb, local, remote, run
        self._snapshot = local.with_name(f"{local.name}.copying.json")
        self._copied = b""  # the manifest as the bucket has it

    def restore(self, dry_run: bool = False) -> int:
        """Copies the index from the bucket; how many documents it has.

        Records without an index, of a machine that died before the index was first copied, are
        removed: no other index may use them. No process writes some before all have started.
        """
        if self._verb != "index":
            return 0
        try:
            self._storage("ls", f"{self._remote}/index/{MANIFEST}")
        except MirrorError as error:
            if "matched no objects" not in str(error):
                raise
            with contextlib.suppress(MirrorError):  # there are none
                self._storage("rm", "--recursive", f"{self._remote}/kv")
            return 0
        self._storage("rsync", "--recursive", f"{self._remote}/index", str(self._local))
        if dry_run:
            return 0
        self._copied = (self._local / MANIFEST).read_bytes()
        return int(json.loads(self._copied)["documents"])

    def sync(self, last: bool = False) -> None:
        """Copies to the bucket what is new here."""
        if self._verb == "encode":
            if last and (self._local / VECTORS).exists():
                self._storage("cp", str(self._local / VECTORS), f"{self._remote}/{VECTORS}")
            return
        manifest = self._local / MANIFEST
        if not manifest.exists() or (now := manifest.read_bytes()) == self._copied:
            return
        self._snapshot.write_bytes(now)
        self.copy_index()
        if _generation(manifest.read_bytes()) != _generation(now):
            return  # its files have been replaced meanwhile; next time
        self.commit()
        self._copied = now

    def copy_index(self) -> None:
        """Copies the files of the index but its manifest."""
        exclude = f"--exclude={NOT_SYNCED}"
        self._storage("rsync", "--recursive", exclude, str(self._local), f"{self._remote}/index")

    def commit(self) -> None:
        """Copies the manifest that was there before the other files were copied."""
        self._storage("cp", str(self._snapshot), f"{self._remote}/index/{MANIFEST}")

    def add(self, file: Path, name: str) -> None:
        """Copies one file, such as the log."""
        self._storage("cp", str(file), f"{self._remote}/{name}")

    def _storage(self, *words: str) -> str:
        return self._run(["gcloud", "storage", *words])


def _generation(manifest: bytes) -> int:
    return int(json.loads(manifest).get("generation", 0))
