"""Copies the output folder of a run to a bucket and back, so that another machine can resume it.

`grit train` writes to a local folder. A checkpoint in the bucket is complete once its
`commit_success.txt` is there (Orbax's own marker, which it looks for in a bucket). That file is
copied last and removed first, and the metrics up to the checkpoint are copied before it, so a
machine that dies at any instant leaves complete checkpoints only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

MARK = "commit_success.txt"
KEEP = 2  # complete checkpoints in the bucket, in case the newest is damaged
FINAL_ONLY = "model"  # copied at the end; a part of it would look like a finished run
# For `gcloud storage rsync --exclude`: regular expressions over the path in the folder.
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
        self._whole: set[int] = set()  # steps of the complete checkpoints in the bucket

    def restore(self) -> int | None:
        """Copies the newest complete checkpoint here, with the metrics and the tokenizer, unless
        the local one is as new.

        Returns:
          its step, or None when there is no checkpoint.
        """
        self._whole = self._list(f"*/{MARK}")
        for step in sorted(self._list("") - self._whole):  # incomplete, from a machine that died
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
            raise MirrorError(f"{self._there(newest)}: was restored without {MARK}")
        half.rename(target)
        return newest

    def sync(self, last: bool = False) -> None:
        """Copies what is new to the bucket: the newest checkpoint, and all other files."""
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
        """Copies a checkpoint without its marker."""
        self._storage(
            "rsync", "--recursive", f"--exclude=^{MARK}$", f"{self._held}/{step}", self._there(step)
        )

    def mark(self, step: int | str) -> None:
        """Marks a copied checkpoint as complete."""
        self._storage("cp", f"{self._held}/{step}/{MARK}", f"{self._there(step)}/{MARK}")

    def copy_rest(self, model: bool) -> None:
        """Copies metrics, configuration and tokenizer, and with `model` the model."""
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
        """Hard-links the newest checkpoint if the bucket lacks it, as the run may delete it during
        the copy.

        A run never deletes its newest checkpoint, so one that is still the newest after linking was
        linked completely.
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
        """Removes a checkpoint from the bucket. One that cannot be removed costs little, and the
        next machine tries again."""
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
        """Steps of the complete local checkpoints. One that is being written has another name."""
        folders = (self.local / "checkpoints").glob("*")
        return {int(f.name) for f in folders if f.name.isdecimal() and (f / MARK).exists()}

    def _storage(self, *words: str) -> str:
        return self._run(["gcloud", "storage", *words])
