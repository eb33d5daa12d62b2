"""Uploaded files and the stores that they were added to, in a folder.

    ID/file.json  an `UploadedFile`
    ID/content    the file as it was sent

`file.json` is replaced as a whole. A file whose addition to a store was interrupted, by the end of
the process or of the machine, is still "in_progress" there, and is added again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Literal, TypeAlias

from grit_jax.errors import GritError
from grit_jax.runtime.files import lock_folder, read_json, write_file, write_json
from grit_jax.runtime.json_dataclass import from_json
from grit_jax.serving.errors import ApiError
from grit_jax.serving.sources import PREFIX

RECORD, CONTENT = "file.json", "content"
VERSION = 1
Status: TypeAlias = Literal["in_progress", "completed", "failed"]


@dataclasses.dataclass
class Attachment:
    """A file in a store.

    Attributes:
      attributes: metadata of its documents, for filters.
      tokens, overlap: of the chunks of a text (`rag.chunking.Chunking`); None: as the index is best
        filled.
      error_code, error: why it failed.
      documents, usage_bytes: of the file in the store, once it is completed.
    """

    created_at: int
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokens: int | None = None
    overlap: int | None = None
    status: Status = "in_progress"
    error_code: str | None = None
    error: str | None = None
    documents: int = 0
    usage_bytes: int = 0


@dataclasses.dataclass
class UploadedFile:
    """A file.

    Attributes:
      stores: where it was added, by the names of the stores.
    """

    id: str
    filename: str
    bytes: int
    created_at: int
    purpose: str
    stores: dict[str, Attachment] = dataclasses.field(default_factory=dict)
    version: int = VERSION

    def body(self) -> dict[str, Any]:
        """As OpenAI describes a file."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class FileFolder:
    """The files of a server; may be used from many threads.

    Raises:
      GritError: the folder cannot be written, another server uses it, or a file in it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock, self._opened = threading.Lock(), contextlib.ExitStack()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._opened.enter_context(lock_folder(path, "grit serve"))
        except OSError as error:
            reason = error.strerror or error
            raise GritError(f"--files {path}: cannot be written ({reason})") from None
        self._files: dict[str, UploadedFile] = {}
        for folder in path.iterdir():
            if not folder.name.startswith(PREFIX):
                continue
            if (folder / RECORD).exists():
                file = from_json(UploadedFile, read_json(folder / RECORD), str(folder / RECORD))
                self._files[file.id] = file
            else:  # left by a process that was killed while it wrote or deleted the file
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Lets another server use the folder."""
        self._opened.close()

    def add(self, filename: str, purpose: str, content: bytes) -> UploadedFile:
        """Keeps a file; it is on disk once this returns."""
        file = UploadedFile(
            PREFIX + secrets.token_hex(12), filename, len(content), int(time.time()), purpose
        )
        folder = self.path / file.id
        folder.mkdir()
        with write_file(folder / CONTENT) as writing:
            writing.write(content)
        self.save(file)
        return file

    def save(self, file: UploadedFile) -> None:
        """Writes what is known of a file."""
        with self._lock:
            write_json(self.path / file.id / RECORD, dataclasses.asdict(file))
            self._files[file.id] = file

    def files(self) -> list[UploadedFile]:
        """All files, the oldest first."""
        with self._lock:
            return sorted(self._files.values(), key=lambda file: (file.created_at, file.id))

    def get(self, id: str, param: str = "file_id") -> UploadedFile:
        """A file.

        Raises:
          ApiError: 404, there is none.
        """
        file = self._files.get(id)
        if file is None:
            raise ApiError(
                404,
                f"{param}: there is no uploaded file {id!r:.100}",
                param=param,
                code="not_found",
            )
        return file

    def content(self, id: str) -> bytes:
        """A file as it was sent.

        Raises:
          ApiError: 404, there is none.
        """
        file = self.get(id)
        return (self.path / file.id / CONTENT).read_bytes()

    def remove(self, id: str) -> None:
        """Forgets a file and removes what is kept of it."""
        with self._lock:
            self._files.pop(id, None)
            (self.path / id / RECORD).unlink(missing_ok=True)
            shutil.rmtree(self.path / id, ignore_errors=True)

    def attachments(self, store: str) -> dict[str, Attachment]:
        """The files that were added to a store, by their ids, in the order in which they were."""
        added = [
            (file.stores[store].created_at, file.id, file.stores[store])
            for file in self.files()
            if store in file.stores
        ]
        return {id: attachment for _, id, attachment in sorted(added, key=lambda a: a[:2])}
