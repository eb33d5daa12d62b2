"""Where a run's output goes: a folder here, or an address in an object store
(`gs://BUCKET/FOLDER`).

Objects are neither appended to nor renamed. So checkpoints go straight to the store, which Orbax
knows how to do, and everything else is a file in a folder of this machine that is copied there
whole: before each checkpoint that counts on it, now and then in between, and at the end. The store
is the truth: a run that goes on begins from what is there.

Most failures of a store are temporary, so each request is tried three times. If a periodic copy
still fails, a line is printed and the next copy includes its files; any other failure ends the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.runtime.cache_folder import cache_folder
from grit_jax.runtime.files import expand_home, is_temporary
from grit_jax.runtime.hosts import is_first
from grit_jax.runtime.progress import say
from grit_jax.runtime.run_lock import MARKER, StoreMarker, folder_lock

# Scheme of an address -> the extra of this package that installs its client.
SCHEMES = {"gs": "gcs"}
COPY_SECONDS = 60  # between copies of what has changed
RENEWALS = 3  # of a marker in a store, each with a copy; a run without one in that time has ended
PAUSES = (1.0, 5.0)  # seconds before a store that failed is asked again
CHECKPOINTS, MODEL = "checkpoints", "model"
# Not needed on this machine by a run that resumes.
NOT_FETCHED = (CHECKPOINTS, MODEL, "profile", "tensorboard", "wandb", "logs", MARKER)


class RunFolder:
    """A run's output folder.

    Args:
      reads: open the output for reading only, since a run may be writing to it. A remote output
        gets a temporary `local` folder, which `close` removes.

    Attributes:
      address: the output as the user named it.
      local: the folder on this machine for everything but checkpoints; of a local output, the
        output itself.
      remote: whether the output is in an object store.

    Raises:
      GritError: not a folder or a known kind of address, or the store's client is not installed.
    """

    def __init__(self, address: str | Path, *, reads: bool = False):
        text, self._reads = os.fspath(address), reads
        self._held: contextlib.ExitStack | None = None  # the lock of a folder
        self._marker: StoreMarker | None = None  # what takes its place in a store
        scheme = match[1] if (match := re.match(r"([a-z][a-z0-9+.-]*):/", text)) else None
        self.remote = scheme not in (None, "file")
        if not self.remote:
            self.address = expand_home(text.removeprefix("file://") if scheme else text)
            self.local, self.checkpoints = (
                Path(self.address),
                os.path.join(self.address, CHECKPOINTS),
            )
            return
        if scheme not in SCHEMES or not re.fullmatch(r"[a-z0-9]+://[^/\s]+/\S+", text):
            wanted = ", ".join(f"{known}://BUCKET/FOLDER" for known in SCHEMES)
            raise GritError(f"output {text}: expected a folder, or {wanted}")
        self.address = text.rstrip("/")
        self.checkpoints = f"{self.address}/{CHECKPOINTS}"
        self._copied: dict[str, tuple[int, int]] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._store, self._root = _open_store(self.address, SCHEMES[scheme])
        self._copier: threading.Thread | None = None
        self._temporary = tempfile.TemporaryDirectory(prefix="grit_jax-") if reads else None
        self.local = Path(self._temporary.name) if self._temporary else _scratch(self.address)

    def begin(self) -> None:
        """Makes `local` a copy of the store, without checkpoints and other large folders.

        Raises:
          GritError: the store cannot be read.
        """
        if self.remote:
            if not self._reads:
                shutil.rmtree(self.local, ignore_errors=True)
                self.local.mkdir(parents=True)
            self.fetch()

    def lock(self) -> None:
        """Keeps other runs away until `close`; in process 0, which writes.

        Raises:
          GritError: another run writes there.
        """
        if self._reads or not is_first():
            return
        if not self.remote:
            self._held = folder_lock(self.local)
            return
        path = f"{self._root}/{MARKER}"
        content = lambda: self._store.cat_file(path) if self._store.exists(path) else None
        read = lambda: text if (text := self._ask("read", content)) is None else text.decode()
        write = lambda text: self._ask("written", self._store.pipe_file, path, text.encode())
        remove = lambda: self._ask("written", self._remove, path)
        marker = StoreMarker(self.address, read, write, remove)
        marker.take(RENEWALS * COPY_SECONDS)
        self._marker = marker

    def copy_now_and_then(self) -> None:
        """Starts a thread in process 0 that copies changed files of `local` to the store until
        `close`. A failed copy is reported and tried again."""
        if self._writes():
            self._copier = threading.Thread(target=self._copy_until_closed, daemon=True)
            self._copier.start()

    def fetch(self) -> None:
        """Copies files of the store that are missing in `local`.

        Raises:
          GritError: the store cannot be read.
        """
        if not self.remote:
            return
        for path in self._ask("read", self._store.find, self._root):
            name = path[len(self._root) :].lstrip("/")
            target = self.local / name
            if name and name.split("/")[0] not in NOT_FETCHED and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                self._ask("read", self._store.get_file, path, str(target))

    def copy(self) -> None:
        """Copies changed files to the store, the model left out; only in process 0.

        Raises:
          GritError: the store cannot be written.
        """
        if not self._writes():
            return
        with self._lock:
            for name, file in _files(self.local):
                if name.split("/")[0] == MODEL:
                    continue
                try:
                    stat = file.stat()
                except FileNotFoundError:  # other libraries (W&B) add and remove files here, too
                    continue
                mark = (stat.st_mtime_ns, stat.st_size)
                if self._copied.get(name) != mark:
                    self._ask("written", self._put_if_here, name, file)
                    self._copied[name] = mark

    def copy_model(self, last: str) -> None:
        """Copies the model's directory. The file `last`, which marks a complete model, comes after
        all others.

        Raises:
          GritError: the store cannot be written.
        """
        if not self._writes():
            return
        for name, file in sorted(_files(self.local / MODEL), key=lambda entry: entry[0] == last):
            self._ask("written", self._store.put_file, str(file), f"{self._root}/{MODEL}/{name}")

    def has_model(self, mark: str) -> bool:
        """Whether the model's directory is complete, that is, has its file `mark`.

        Raises:
          GritError: the store cannot be read.
        """
        if not self.remote:
            return (self.local / MODEL / mark).exists()
        return bool(self._ask("read", self._store.exists, f"{self._root}/{MODEL}/{mark}"))

    def unmark_model(self, mark: str) -> None:
        """Removes the file `mark` from the model's directory, which is then incomplete.

        Raises:
          GritError: the store cannot be written.
        """
        (self.local / MODEL / mark).unlink(missing_ok=True)
        if self._writes():
            self._ask("written", self._remove, f"{self._root}/{MODEL}/{mark}")

    def close(self) -> None:
        """Copies the last changes, and releases the folder. A reader removes its temporary folder.

        Raises:
          GritError: the store cannot be written.
        """
        if self._held:
            self._held.close()
        if not self.remote:
            return
        if self._temporary:
            self._temporary.cleanup()
        if self._copier:
            self._ended.set()
            self._copier.join()
            self.copy()
        if self._marker:
            self._marker.release()

    def under(self, name: str) -> str | Path:
        """The name of a file in the output, as the user would write it."""
        return f"{self.address}/{name}".rstrip("/") if self.remote else self.local / name

    def __str__(self) -> str:
        return self.address

    def _writes(self) -> bool:
        """Whether this process copies to a store."""
        return self.remote and not self._reads and is_first()

    def _copy_until_closed(self) -> None:
        while not self._ended.wait(COPY_SECONDS):
            try:
                self.copy()
                if self._marker:
                    self._marker.renew()
            except Exception as error:
                # All of it is still here, and the copy before the next checkpoint must succeed.
                say(f"{error} (tried again in {COPY_SECONDS} s)")

    def _put_if_here(self, name: str, file: Path) -> None:
        try:
            self._store.put_file(str(file), f"{self._root}/{name}")
        except FileNotFoundError:
            # There is no such bucket, unless the file has been removed meanwhile.
            if file.exists():
                raise

    def _remove(self, path: str) -> None:
        if self._store.exists(path):  # not after a try whose answer was lost
            self._store.rm_file(path)

    def _ask(self, what: str, action: Callable[..., Any], *arguments: Any) -> Any:
        """Calls the store's client, again where it fails.

        Raises:
          GritError: it fails three times. Clients raise exceptions of many libraries.
        """
        for pause in (*PAUSES, None):
            try:
                return action(*arguments)
            except Exception as error:
                if pause is None:
                    reason = (str(error) or type(error).__name__).splitlines()[0][:300]
                    raise GritError(
                        f"{self.address}: cannot be {what} ({reason}); look at the bucket's name"
                        " and at the rights of this machine's account (gcloud auth"
                        " application-default login)"
                    ) from None
            time.sleep(pause)


def _scratch(address: str) -> Path:
    """A folder of this machine for one output and process."""
    name = (
        re.sub(r"[^-\w.]+", "_", address)[-60:]
        + "-"
        + hashlib.sha256(address.encode()).hexdigest()[:8]
    )
    return cache_folder() / "outputs" / name / str(_number())


def _number() -> int:
    import jax

    return jax.process_index()


def _open_store(address: str, extra: str) -> tuple[Any, str]:
    """The file system of an address by fsspec, and the folder in it."""
    import fsspec

    try:
        # Nothing is remembered of listings: Orbax and other hosts write there, too.
        return fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError:
        raise GritError(
            f"{address} needs the extra '{extra}': pip install 'grit_jax[{extra}]'"
        ) from None


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files under a folder with their names in it, those being written left out."""
    # os.walk passes over a folder that goes away meanwhile, which Path.rglob does not.
    paths = sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return [
        (path.relative_to(folder).as_posix(), path)
        for path in paths
        if not is_temporary(path) and path.is_file()
    ]
