"""Indices that are served: each is a vector store, and chat answers from it."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.records import Codec
from grit_jax.rag.engine_judge import EngineJudge
from grit_jax.rag.index import Index
from grit_jax.rag.manifest import MANIFEST, read_manifest
from grit_jax.rag.prepared import Preparer
from grit_jax.rag.record_format import RecordIdentity
from grit_jax.serving.errors import ApiError
from grit_jax.serving.file_folder import Attachment
from grit_jax.serving.sources import files_of

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StoreFiles:
    """The files of an index.

    Attributes:
      rows: of each file's documents, by the ids of the files.
    """

    index: Index
    rows: dict[str, list[int]]


class Store:
    """An index under a name. What `grit index` adds to it while it is served is taken up.

    Attributes:
      owners: the names of the models whose weights and format made it.
      model: the first of them.

    Args:
      models: those that are served, by name.
      context: tokens of a slot.

    Raises:
      GritError: the index cannot be opened, or none of the models has made it.
    """

    def __init__(self, name: str, path: Path, models: Mapping[str, GritLM], context: int):
        self.name, self.path = name, path
        self.owners = owners_of(path, models)
        self.model, self._context = models[self.owners[0]], context
        self._lock = threading.Lock()
        self._seen = self._changed()
        self._preparer = Preparer(self.model, Index.open(path, self.model), context)
        self._files: StoreFiles | None = None
        self._is_warm = False
        self._judge: EngineJudge | None = None
        self.created = int((path / MANIFEST).stat().st_mtime)

    def named(self, message: str) -> str:
        """A message for clients: it names the store where it named a path in the store's folder."""
        folders = sorted({str(self.path), str(self.path.resolve())}, key=len, reverse=True)
        paths = "|".join(map(re.escape, folders))
        return re.sub(
            rf"(?:{paths})(?:/[^\s:;,()'\"]*)?(?![\w.-])", f"store '{self.name}'", message
        )

    @property
    def index(self) -> Index:
        """The index as it was last opened."""
        assert self._preparer.index is not None
        return self._preparer.index

    @property
    def compressed(self) -> bool:
        """Whether its records are packed by a codec."""
        return self.index.kv not in ("native", "none")

    @property
    def longest(self) -> int:
        """Tokens of its longest documents, at most."""
        return self.index.max_length

    def codecs(self) -> list[Codec | None]:
        """What its records are packed with, None for plain ones."""
        return [None] if self.index.kv == "none" else [self.index.store.codec]

    def rerank_in(self, judge: EngineJudge) -> None:
        """Has candidates judged in an engine from now on; before the first request."""
        self._judge = judge
        self._preparer = Preparer(self.model, self.index, self._context, judge)

    def warm_up(self) -> None:
        """Compiles what questions need before the engine reads them, and measures what layouts
        cost; later openings of the index bring theirs with them."""
        preparer = self.current()
        preparer.measure()
        preparer.warm_up()
        self._is_warm = True

    def current(self) -> Preparer:
        """The index as it is on disk, opened again if it has changed; requests under way keep the
        one that they have. One thread opens it, the others go on with the old one."""
        if self._changed() != self._seen and self._lock.acquire(blocking=False):
            try:
                self._open_again()
            except (
                GritError,
                OSError,
            ) as error:  # the next request tries again
                LOG.warning("%s: the index has changed and cannot be opened: %s", self.name, error)
            finally:
                self._lock.release()
        return self._preparer

    def refresh(self) -> None:
        """Opens the index again if it has changed: later requests have what is on disk now.

        Raises:
          GritError, OSError: it cannot be opened.
        """
        with self._lock:
            self._open_again()

    def _open_again(self) -> None:
        seen = self._changed()
        if seen != self._seen:
            index = Index.open(self.path, self.model)
            preparer = Preparer(self.model, index, self._context, self._judge)
            # Before any request has it: these do not wait for vectors and programs.
            if self._is_warm or self._preparer.measured:
                preparer.measure()
                preparer.warm_up_search()
            self._preparer, self._seen = preparer, seen

    def files(self) -> StoreFiles:
        """The files of the index as it is on disk. The first call for an index reads all lines of
        its documents."""
        self.current()
        index, files = self.index, self._files
        if files is None or files.index is not index:
            self._files = files = StoreFiles(index, files_of(index))
        return files

    def documents_of(self, file: str) -> set[str]:
        """The ids of a file's documents."""
        files = self.files()
        return {files.index.documents[row]["id"] for row in files.rows.get(file, [])}

    def body(self, attachments: Collection[Attachment] = ()) -> dict[str, Any]:
        """As OpenAI describes a vector store.

        Args:
          attachments: the uploaded files that were added to it.
        """
        manifest = self.index.manifest
        counts = {
            status: sum(attachment.status == status for attachment in attachments)
            for status in ("in_progress", "completed", "failed", "cancelled")
        }
        # Every other document is a file of its own.
        uploaded = sum(attachment.documents for attachment in attachments)
        counts["completed"] += max(manifest.documents - uploaded, 0)
        counts["total"] = sum(counts.values())
        is_done = manifest.complete and not counts["in_progress"]
        return {
            "id": self.name,
            "object": "vector_store",
            "created_at": self.created,
            "name": self.name,
            "status": "completed" if is_done else "in_progress",
            "usage_bytes": manifest.documents_bytes,
            "file_counts": counts,
            "last_active_at": int(time.time()),
            "expires_after": None,
            "expires_at": None,
            "metadata": {"kv": self.index.kv},
        }

    def _changed(self) -> tuple[int, int, int]:
        """Differs when the index has been written to."""
        state = os.stat(self.path / MANIFEST)
        return state.st_mtime_ns, state.st_size, state.st_ino


def owners_of(path: Path, models: Mapping[str, GritLM]) -> list[str]:
    """The names of the models that have made an index; where it is none of them, the first one,
    with which opening it says what differs."""
    first = next(iter(models))
    if len(models) == 1:
        return [first]
    manifest = read_manifest(path)
    owners = [
        name
        for name, model in models.items()
        if RecordIdentity.of(model).difference(manifest.model) is None
        and (manifest.pooling, manifest.dim) == (model.pooling, model.embedding_width)
    ]
    return owners or [first]


class Stores:
    """All stores of a server, by name."""

    def __init__(self, stores: Sequence[Store] = ()):
        self._stores = {store.name: store for store in stores}

    def __iter__(self) -> Iterator[Store]:
        return iter(self._stores.values())

    def __bool__(self) -> bool:
        return bool(self._stores)

    def named(self, message: str) -> str:
        """A message for clients, as `Store.named`."""
        for store in self:
            message = store.named(message)
        return message

    def get(self, name: str, param: str = "vector_store_id") -> Store:
        """The store of a name.

        Raises:
          ApiError: 404 for an unknown one.
        """
        if name not in self._stores:
            known = ", ".join(self._stores) or "none; grit serve --index NAME=PATH adds one"
            raise ApiError(
                404,
                f"{param}: there is no store {name!r:.100}; this server has {known}",
                param=param,
                code="not_found",
            )
        return self._stores[name]
