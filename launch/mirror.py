"""Keeps the output folder of a run in a bucket, and brings it back: what one machine leaves, the next one goes on from.

`grit train` writes to a local folder. A checkpoint counts in the bucket once its `commit_success.txt` is there (Orbax's
own mark, and the one it looks for in a bucket): that file goes up last and is removed first, and the metrics that lead
to the checkpoint go up before it. So a machine that dies at any instant leaves whole checkpoints only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

MARK = "commit_success.txt"
FINAL_ONLY = "model"  # written at the end; half of it would pass for a finished run's
# What `gcloud storage rsync --exclude` takes: regular expressions over the path in the folder.
NOT_RESTORED = r"^(checkpoints|model|logs)/.*"
NOT_SYNCED = r"^(checkpoints|model)/.*|.*\.tmp$"

Run = Callable[[Sequence[str]], str]  # runs a command, returns its stdout, raises MirrorError


class MirrorError(Exception):
    """A copy to or from the bucket failed."""


class Mirror:
    """One local output folder and its counterpart `gs://...`."""

    def __init__(self, local: Path, remote: str, run: Run):
        self.local, self.remote, self._run = local, remote.rstrip("/"), run
        self._whole: set[int] = set()  # checkpoints whole in the bucket

    def restore(self) -> int | None:
        """Brings the newest whole checkpoint here, with the metrics and the tokenizer, unless as new a one is here.

        Returns:
          its step, or None when there is nothing to go on from.
        """
        self._whole = self._list()
        here = self._whole_here()
        if not self._whole:
            return max(here, default=None)
        newest = max(self._whole)
        if here and max(here) >= newest:
            return max(here)
        target = self.local / "checkpoints" / str(newest)
        half = target.with_name(f"{newest}.restoring")
        for old in (half, target):
            shutil.rmtree(old, ignore_errors=True)
        half.mkdir(parents=True)
        self._storage("rsync", "--recursive", f"--exclude={NOT_RESTORED}", self.remote, str(self.local))
        self._storage("rsync", "--recursive", f"{self.remote}/checkpoints/{newest}", str(half))
        if not (half / MARK).exists():
            raise MirrorError(f"{self.remote}/checkpoints/{newest}: came back without {MARK}")
        half.rename(target)
        return newest

    def sync(self, last: bool = False) -> None:
        """Copies what is new to the bucket, and removes there the checkpoints that the run has dropped."""
        here = self._whole_here()
        new = sorted(here - self._whole)
        for step in new:
            self.copy_checkpoint(step)
        self.copy_rest(model=last and (self.local / FINAL_ONLY).is_dir())
        for step in new:
            self.mark(step)
            self._whole.add(step)
        for step in sorted(self._whole - here):
            if here and step < max(here):
                self._storage("rm", f"{self.remote}/checkpoints/{step}/{MARK}")
                self._whole.discard(step)
                self._storage("rm", "--recursive", f"{self.remote}/checkpoints/{step}")

    def copy_checkpoint(self, step: int | str) -> None:
        """All of a checkpoint but its mark."""
        here, there = f"{self.local}/checkpoints/{step}", f"{self.remote}/checkpoints/{step}"
        self._storage("rsync", "--recursive", f"--exclude=^{MARK}$", here, there)

    def mark(self, step: int | str) -> None:
        """Makes a copied checkpoint count."""
        self._storage("cp", f"{self.local}/checkpoints/{step}/{MARK}", f"{self.remote}/checkpoints/{step}/{MARK}")

    def copy_rest(self, model: bool) -> None:
        """Metrics, configuration, tokenizer; at the end the model."""
        self._storage("rsync", "--recursive", f"--exclude={NOT_SYNCED}", str(self.local), self.remote)
        if model:
            self._storage("rsync", "--recursive", str(self.local / FINAL_ONLY), f"{self.remote}/{FINAL_ONLY}")

    def add(self, file: Path, name: str) -> None:
        """Copies one file, such as the log."""
        self._storage("cp", str(file), f"{self.remote}/{name}")

    def _list(self) -> set[int]:
        """Steps of the whole checkpoints in the bucket."""
        try:
            text = self._storage("ls", f"{self.remote}/checkpoints/*/{MARK}")
        except MirrorError as error:
            if "matched no objects" in str(error):
                return set()
            raise
        steps = (line.rsplit("/", 2)[-2] for line in text.split())
        return {int(step) for step in steps if step.isdecimal()}

    def _whole_here(self) -> set[int]:
        """Steps of the whole checkpoints on this machine; one being written has another name yet."""
        folders = (self.local / "checkpoints").glob("*")
        return {int(f.name) for f in folders if f.name.isdecimal() and (f / MARK).exists()}

    def _storage(self, *words: str) -> str:
        return self._run(["gcloud", "storage", *words])
