"""Keeps the output folder of a run in a bucket, and brings it back: what one machine leaves, the
next one goes on from.

`grit train` writes to a local folder. A checkpoint counts in the bucket once its
`commit_success.txt` is there (Orbax's own mark, and the one it looks for in a bucket): that file
goes up last and is removed first, and the metrics that lead to the checkpoint go up before it. So a
machine that dies at any instant leaves whole checkpoints only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

MARK = "commit_success.txt"
KEEP = 2  # whole checkpoints in the bucket: should the newest be damaged, there is one before
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
        self._held = local.with_name(f"{local.name}.copying")
        self._whole: set[int] = set()  # checkpoints whole in the bucket

    def restore(self) -> int | None:
        """Brings the newest whole checkpoint here, with the metrics and the tokenizer, unless as
        new a one is here.

        Returns:
          its step, or None when there is nothing to go on from.
        """
        self._whole = self._list(f"*/{MARK}")
        for step in sorted(self._list("") - self._whole):  # half of one, from a machine that died
            self._remove(step, marked=False)
        here = self._whole_here()
        newest = max(self._whole, default=0)
        if not self._whole or max(here, default=0) >= newest:
            return max(here, default=None)
        target = self.local / "checkpoints" / str(newest)
        half = target.with_name(f"{newest}.restoring")
        for old in (half, target):
            shutil.rmtree(old, ignore_errors=True)
        half.mkdir(parents=True)
        self._storage(
            "rsync", "--recursive", f"--exclude={NOT_RESTORED}", self.remote, str(self.local)
        )
        self._storage("rsync", "--recursive", self._there(newest), str(half))
        if not (half / MARK).exists():
            raise MirrorError(f"{self._there(newest)}: came back without {MARK}")
        half.rename(target)
        return newest

    def sync(self, last: bool = False) -> None:
        """Copies what is new to the bucket: the newest checkpoint, and all that is not a
        checkpoint."""
        step = self._hold()
        if step:
            self.copy_checkpoint(step)
        self.copy_rest(model=last and (self.local / FINAL_ONLY).is_dir())
        if step:
            self.mark(step)
            self._whole.add(step)
            shutil.rmtree(self._held)
        for old in sorted(self._whole)[:-KEEP]:
            self._whole.discard(old)
            self._remove(old)

    def copy_checkpoint(self, step: int | str) -> None:
        """All of a checkpoint but its mark."""
        self._storage(
            "rsync", "--recursive", f"--exclude=^{MARK}$", f"{self._held}/{step}", self._there(step)
        )

    def mark(self, step: int | str) -> None:
        """Makes a copied checkpoint count."""
        self._storage("cp", f"{self._held}/{step}/{MARK}", f"{self._there(step)}/{MARK}")

    def copy_rest(self, model: bool) -> None:
        """Metrics, configuration, tokenizer; at the end the model."""
        self._storage(
            "rsync", "--recursive", f"--exclude={NOT_SYNCED}", str(self.local), self.remote
        )
        if model:
            self._storage(
                "rsync", "--recursive", str(self.local / FINAL_ONLY), f"{self.remote}/{FINAL_ONLY}"
            )

    def add(self, file: Path, name: str) -> None:
        """Copies one file, such as the log."""
        self._storage("cp", str(file), f"{self.remote}/{name}")

    def _hold(self) -> int | None:
        """Hard links to the newest checkpoint, if the bucket lacks it: the run may drop it while it
        is being copied.

        A run drops the newest one never, so what was still the newest after the linking was linked
        whole.
        """
        for _ in range(5):
            shutil.rmtree(self._held, ignore_errors=True)
            step = max(self._whole_here(), default=0)
            if step <= max(self._whole, default=0):
                return None
            with contextlib.suppress(shutil.Error, FileNotFoundError):
                shutil.copytree(
                    self.local / "checkpoints" / str(step),
                    self._held / str(step),
                    copy_function=os.link,
                )
                if max(self._whole_here(), default=0) == step:
                    return step
        return None

    def _remove(self, step: int, marked: bool = True) -> None:
        """A checkpoint from the bucket. What stays there by some mishap costs little; the next
        machine tries again."""
        with contextlib.suppress(MirrorError):
            if marked:
                self._storage("rm", f"{self._there(step)}/{MARK}")
            self._storage("rm", "--recursive", self._there(step))

    def _list(self, what: str) -> set[int]:
        """Steps that the bucket has something of under `checkpoints/STEP/`."""
        try:
            text = self._storage("ls", f"{self.remote}/checkpoints/{what}")
        except MirrorError as error:
            if "matched no objects" in str(error):
                return set()
            raise
        names = (
            line.removeprefix(f"{self.remote}/checkpoints/").partition("/")[0]
            for line in text.split()
        )
        return {int(name) for name in names if name.isdecimal()}

    def _there(self, step: int | str) -> str:
        return f"{self.remote}/checkpoints/{step}"

    def _whole_here(self) -> set[int]:
        """Steps of the whole checkpoints on this machine; one being written has another name
        yet."""
        folders = (self.local / "checkpoints").glob("*")
        return {int(f.name) for f in folders if f.name.isdecimal() and (f / MARK).exists()}

    def _storage(self, *words: str) -> str:
        return self._run(["gcloud", "storage", *words])
