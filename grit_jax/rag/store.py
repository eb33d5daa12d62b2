"""The document store: records by content-addressed key, in a transactional TensorStore OCDBT
database.

A key says everything that a record depends on (see `record.document_key`), so a record is never
stale: another model, format or document is another key. Records are written when documents are
indexed, never by questions. A transaction holds a batch of them: after a crash each batch is there
whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorstore as ts

from grit_jax.errors import GritError
from grit_jax.inference.records import KVRecord
from grit_jax.rag.codecs.codecs import StoredCodec, codec_from_bytes, kind_of, to_bytes
from grit_jax.rag.record_format import (
    Layout,
    RecordBody,
    RecordError,
    RecordIdentity,
    StreamedDocument,
    decode_record,
    document_key,
    encode_record,
    read_layout,
)

META, CALIBRATION, RECORDS = "meta", "calibration", "doc/"
CONTEXT = {
    "cache_pool": {
        "total_bytes_limit": 64 << 20
    },  # of the tree's nodes; records themselves are not kept in memory
    # Each file is written under a name of its own and renamed. With locks it would be written over
    # what a killed writer left under the lock's name, and keep the end of that where it is longer
    # (TensorStore 0.1.86). There is only one writer: the index sees to that.
    "file_io_locking": {"mode": "none"},
}
# A record longer than HEAD is read in parts of whole layers, several at once: checking one overlaps
# with reading the next, and malloc recycles buffers of a part's size where it maps one of 65 MB
# anew each time, page by page.
HEAD, PART, READERS = 256 << 10, 4 << 20, 8
OCDBT_MANIFEST, OCDBT_DATA = "manifest.ocdbt", "d/"  # its files
COPY_BYTES = 64 << 20  # of records copied in one transaction


@dataclasses.dataclass(frozen=True)
class StoreSize:
    """What a store holds: records, their tokens, and their bytes (headers included)."""

    records: int = 0
    tokens: int = 0
    bytes: int = 0


class DocumentStore:
    """Records of documents. Open one with `DocumentStore.open`, make one with
    `DocumentStore.create`.

    Attributes:
      identity: what its records must be.
      codec: what they are packed with; None where they are plain.
    """

    def __init__(
        self, kv: ts.KvStore, path: str, identity: RecordIdentity, codec: StoredCodec | None
    ):
        self._kv, self.path, self.identity, self.codec = kv, path, identity, codec
        # What was read since is not asked for again on disk: keys are content-addressed, records do
        # not change.
        self._fresh = time.time()

    @classmethod
    def open(
        cls, path: str | Path, identity: RecordIdentity, context: ts.Context | None = None
    ) -> DocumentStore:
        """Opens a store.

        Args:
          path: a directory, or a URL that TensorStore knows (`gs://bucket/path`).
          identity: what its records must be.
          context: of TensorStore; None makes one.

        Raises:
          GritError: nothing there, unreadable, or the store of another model or compression.
        """
        kv, meta = _open(path, context)
        if meta is None:
            raise GritError(f"{path}: there is no document store; make one with: grit index")
        difference = identity.difference(meta.get("identity") or {})
        if difference is not None:
            raise GritError(
                f"{path}: this store was made by {difference}; run grit index again with this model"
            )
        with _told(path, "cannot be opened as a document store"):
            calibration = kv.read(CALIBRATION).result()
        codec = codec_from_bytes(calibration.value, identity.compression, str(path))
        return cls(kv, str(path), identity, codec)

    @classmethod
    def create(
        cls,
        path: str | Path,
        identity: RecordIdentity,
        codec: StoredCodec | None = None,
        context: ts.Context | None = None,
    ) -> DocumentStore:
        """Makes an empty store, or opens the one that is there.

        One of the same model and kind of compression, but with another calibration, is opened as it
        is: its maker was killed before anything else knew of it.

        Raises:
          GritError: as `open`, and a place that cannot be written.
        """
        kv, meta = _open(path, context)
        if meta is not None:
            found = str((meta.get("identity") or {}).get("compression"))
            if kind_of(found) == kind_of(identity.compression):
                identity = dataclasses.replace(identity, compression=found)
            return cls.open(path, identity, context)
        store = cls(kv, str(path), identity, codec)
        with _told(path, "cannot be written"), ts.Transaction(atomic=True) as transaction:
            view = kv.with_transaction(transaction)
            view.write(CALIBRATION, to_bytes(codec)).result()
            store._write_meta(view, StoreSize())
        return store

    @property
    def size(self) -> StoreSize:
        """Records, tokens and bytes held."""
        with _told(self.path, "cannot be read"):
            meta = _read_meta(self._kv)
        return StoreSize(**meta["size"]) if meta else StoreSize()

    def key(self, tokens: Sequence[int]) -> str:
        """The key of a document's record."""
        return document_key(tokens, self.identity)

    def has_many(self, keys: Sequence[str]) -> list[bool]:
        """Whether there is a record under each key; none is read."""
        with _told(self.path, "cannot be read"):
            return [
                read.result().state == "value"
                for read in [self._read(key, slice(0, 0)) for key in keys]
            ]

    def put_many(self, documents: Iterable[KVRecord]) -> list[str]:
        """Writes records in one transaction; when it returns they are on disk. Those already there
        are not rewritten.

        Returns:
          Their keys, in the order of the documents.

        Raises:
          GritError: the disk is full or the store cannot be written; nothing of the batch is in it
            then.
        """
        batch = list(documents)
        keys = [self.key(document.tokens) for document in batch]
        new = {key: document for key, document in zip(keys, batch, strict=True)}
        there = self.has_many(list(new))
        new = {
            key: document
            for (key, document), found in zip(new.items(), there, strict=True)
            if not found
        }
        blobs = {key: encode_record(document, self.identity) for key, document in new.items()}
        self._write(
            blobs,
            sum(len(document.tokens) for document in new.values()),
            sum(map(len, blobs.values())),
        )
        return keys

    def delete_many(self, keys: Iterable[str]) -> None:
        """Removes records in one transaction; keys without one are passed over.

        The store's files only grow: their bytes come free when what is left is copied (`copy_to`).

        Raises:
          GritError: the store cannot be written.
        """
        keys = list(keys)
        gone: dict[str, None] = {}
        tokens = size = 0
        for key, head in zip(keys, self._heads(keys), strict=True):
            if head is not None:
                gone[key] = None
                if (layout := self._layout(head, key)) is not None:
                    tokens, size = tokens + len(layout.tokens), size + layout.size
        self._write(gone, -tokens, -size)

    def copy_to(self, other: DocumentStore, keys: Sequence[str]) -> None:
        """Copies records into another store of the same identity; those that are there or cannot be
        read are not.

        Raises:
          GritError: one of the stores cannot be read or written.
        """
        size = self.size
        together = max(1, COPY_BYTES * size.records // max(size.bytes, 1))
        keys = [key for key, there in zip(keys, other.has_many(keys), strict=True) if not there]
        for start in range(0, len(keys), together):
            part = keys[start : start + together]
            blobs = {}
            for key, read in zip(part, [self._read(key) for key in part], strict=True):
                with contextlib.suppress(ValueError, OSError):
                    blobs[key] = read.result().value
            found = {
                key: layout
                for key in blobs
                if (layout := self._layout(blobs[key], key)) is not None
            }
            tokens = sum(len(layout.tokens) for layout in found.values())
            other._write(
                {key: blobs[key] for key in found},
                tokens,
                sum(layout.size for layout in found.values()),
            )

    def get_many(self, keys: Sequence[str], names: Sequence[str] | None = None) -> list[KVRecord]:
        """Documents by key, read together.

        Args:
          names: what to call them in messages; None: by their keys.

        Raises:
          RecordError: a record is absent, damaged, cut short or another model's; the message names
            the document.
        """
        found = self.fetch(keys, names)
        for document in found:
            if isinstance(document, RecordError):
                raise document
        return found  # type: ignore[return-value]

    def fetch(
        self, keys: Sequence[str], names: Sequence[str] | None = None
    ) -> list[KVRecord | RecordError]:
        """`get_many` that returns what is wrong with a record in its place instead of raising
        it."""
        return [self._whole(document) for document in self.stream(keys, names)]

    def stream(
        self, keys: Sequence[str], names: Sequence[str] | None = None
    ) -> list[KVRecord | RecordError]:
        """`fetch` that returns as soon as the records' beginnings are there.

        Layers of long records (`StreamedRecord`) come while the first ones are used. What is wrong
        with a layer is raised, as a RecordError, where it is asked for.
        """
        names = [f"document {key[:12]}" for key in keys] if names is None else names
        heads = [self._read(key, slice(0, HEAD)) for key in keys]
        started = [self._start(*one) for one in zip(heads, keys, names, strict=True)]
        return [self._finish(*one) for one in zip(started, keys, names, strict=True)]

    def _start(self, head: Any, key: str, name: str) -> StreamedDocument | Any:
        """A long record on its way in parts; or the read of the whole of one shorter than a
        head."""
        try:
            result = head.result()
            layout = read_layout(result.value, key, self.identity, name)
        except (RecordError, ValueError, OSError):
            return self._read(key)  # also what is wrong with a record: the whole of it will say
        body = RecordBody(layout, key, name)
        together = max(1, PART // layout.layer_bytes)
        return StreamedDocument(
            layout.tokens,
            self.codec,
            body,
            together,
            [
                self._readers.submit(
                    self._part, body, name, first, min(first + together, layout.layers)
                )
                for first in range(0, layout.layers, together)
            ],
        )

    def _whole(self, document: KVRecord | RecordError) -> KVRecord | RecordError:
        if not isinstance(document, StreamedDocument):
            return document
        try:
            return document.whole()
        except RecordError as error:
            return error

    @functools.cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READERS, "records")

    def _part(self, body: RecordBody, name: str, first: int, last: int) -> None:
        layout = body.layout
        a, b = (layout.start + layer * layout.layer_bytes for layer in (first, last))
        try:
            body.fill(first, self._read(body.key, slice(a, b)).result().value)
        except (ValueError, OSError) as error:
            raise self._unreadable(body.key, name, error) from None

    def _unreadable(self, key: str, name: str, error: Exception) -> RecordError:
        return RecordError(
            key, f"{name}: its record in {self.path} cannot be read ({_short(error)})"
        )

    def _finish(self, started: Any, key: str, name: str) -> KVRecord | RecordError:
        if isinstance(started, StreamedDocument):
            return started
        try:
            result = started.result()
            if result.state != "value":
                return RecordError(key, f"{name}: has no record in {self.path}")
            return decode_record(result.value, key, self.identity, name, self.codec)
        except RecordError as error:
            return error
        except (ValueError, OSError) as error:
            return self._unreadable(key, name, error)

    def _heads(self, keys: Sequence[str]) -> Iterator[bytes | None]:
        """The beginning of each record, or all of a short one; None where there is none."""
        for key, read in zip(keys, [self._read(key, slice(0, HEAD)) for key in keys], strict=True):
            try:
                result = read.result()
            except (ValueError, OSError):  # shorter than that
                with _told(self.path, "cannot be read"):
                    result = self._read(key).result()
            yield result.value if result.state == "value" else None

    def _layout(self, head: bytes, key: str) -> Layout | None:
        try:
            return read_layout(head, key, self.identity, key)
        except RecordError:
            return None

    def _read(self, key: str, part: slice | None = None) -> Any:
        return self._kv.read(
            RECORDS + key, byte_range=part or slice(None), staleness_bound=self._fresh
        )

    def _write(self, records: Mapping[str, bytes | None], tokens: int, size: int) -> None:
        """Writes (None: removes) records and the new size, all in one transaction."""
        if not records:
            return
        was, sign = self.size, -1 if None in records.values() else 1
        now = StoreSize(was.records + sign * len(records), was.tokens + tokens, was.bytes + size)
        with _told(self.path, "cannot be written"), ts.Transaction(atomic=True) as transaction:
            view = self._kv.with_transaction(transaction)
            for key, blob in records.items():
                view.write(RECORDS + key, blob).result()
            self._write_meta(view, now)
        self._fresh = time.time()

    def _write_meta(self, kv: ts.KvStore, size: StoreSize) -> None:
        meta = {"identity": self.identity.to_json(), "size": dataclasses.asdict(size)}
        kv.write(META, json.dumps(meta).encode()).result()


def remove_store(path: str | Path, context: ts.Context | None = None) -> None:
    """Removes a store, if there is one; what else there is below its path stays.

    Raises:
      GritError: it cannot be removed.
    """
    with _told(path, "cannot be removed"):
        if isinstance(base := _base(path), str):
            files = ts.KvStore.open(base, context=context or ts.Context()).result()
            for prefix in (OCDBT_MANIFEST, OCDBT_DATA):
                files.delete_range(ts.KvStore.KeyRange(prefix, prefix + "~")).result()
        elif Path(path).exists():
            for file in Path(path).glob(OCDBT_MANIFEST + "*"):
                file.unlink()
            shutil.rmtree(Path(path) / OCDBT_DATA, ignore_errors=True)
            if not any(Path(path).iterdir()):
                Path(path).rmdir()


def _open(path: str | Path, context: ts.Context | None) -> tuple[ts.KvStore, dict[str, Any] | None]:
    """The database and what stands in it about itself, None where there is nothing yet."""
    context = context or ts.Context(CONTEXT)
    with _told(path, "cannot be opened as a document store"):
        kv = ts.KvStore.open({"driver": "ocdbt", "base": _base(path)}, context=context).result()
        return kv, _read_meta(kv)


def _base(path: str | Path) -> Any:
    """A path or URL in TensorStore's terms."""
    text = str(path)
    return (
        text.rstrip("/") + "/"
        if "://" in text
        else {"driver": "file", "path": str(Path(text).absolute()) + "/"}
    )


def _read_meta(kv: ts.KvStore) -> dict[str, Any] | None:
    result = kv.read(META).result()
    return json.loads(result.value) if result.state == "value" else None


@contextlib.contextmanager
def _told(path: str | Path, what: str) -> Iterator[None]:
    """TensorStore's errors in words for the person."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise GritError(f"{path}: {what} ({_short(error)})") from None


def _short(error: Exception) -> str:
    """The first sentence of TensorStore's message, without the trace of its sources."""
    return str(error).split(" [")[0][:200]
