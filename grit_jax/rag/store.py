"""The document store: records by content-addressed key, in a transactional TensorStore OCDBT
database.

A record's key is a hash of everything that the record depends on (`record_format.document_key`), so
a record is never stale: another model, format or document has another key. Records are written when
documents are indexed, never when questions are asked. A batch of them is one transaction: after a
crash it is there whole or not at all.

A store belongs to one index, whose identity (`IndexManifest.index_id`) it carries in a file of its
own. Nobody else writes to it or removes it.
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
from typing import Any, TypeVar

import tensorstore as ts

from grit_jax.errors import GritError
from grit_jax.inference.records import KVRecord, PackedRecord
from grit_jax.inference.shards import EncodedRecord
from grit_jax.rag.codecs.codecs import StoredCodec, codec_from_bytes, kind_of, to_bytes
from grit_jax.rag.record_format import (
    RecordBody,
    RecordError,
    RecordHeader,
    RecordIdentity,
    StreamedRecord,
    decode_record,
    document_key,
    encode_record,
    read_header,
)
from grit_jax.runtime.blobs import (
    CONTEXT,
    as_grit_error,
    is_url,
    open_files,
    short_error,
    tensorstore_base,
)
from grit_jax.types import DocumentKV

T = TypeVar("T")
META, CALIBRATION, RECORDS = "meta", "calibration", "doc/"
OWNER = "index-id"  # a file beside the database: the identity of the index that the store is of
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
      path: a directory or a URL.
      identity: what every record must have been made by.
      codec: what records are packed with; None: they are plain.
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
        cls,
        path: str | Path,
        identity: RecordIdentity,
        context: ts.Context | None = None,
        *,
        index_id: str = "",
    ) -> DocumentStore:
        """Opens a store.

        Args:
          path: a directory, or a URL that TensorStore knows (`gs://bucket/path`).
          identity: what its records must have been made by.
          context: of TensorStore; None makes one.
          index_id: the index that the store must belong to; empty: any.

        Raises:
          GritError: there is no store, it cannot be read, or it belongs to another model,
            compression or index.
        """
        kv, meta = _open(path, context)
        if meta is None:
            raise GritError(f"{path}: there is no document store; make one with: grit index")
        if index_id and store_owner(path, context) not in (index_id, None):
            raise GritError(
                f"{path}: this document store belongs to another index; the records of this one"
                " were moved or removed, make it again with: grit index"
            )
        difference = identity.difference(meta.get("identity") or {})
        if difference is not None:
            raise GritError(
                f"{path}: this store was made by {difference}; run grit index again with this model"
            )
        with as_grit_error(path, "cannot be opened as a document store"):
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
        *,
        index_id: str = "",
    ) -> DocumentStore:
        """Makes an empty store, or opens the one that is there.

        A store of the same model and kind of compression but with another calibration is opened as
        it is: its writer was killed before the index had recorded the calibration.

        Args:
          path, identity, codec, context: as in `open` and `DocumentStore`.
          index_id: the index that the store is to belong to; empty: none.

        Raises:
          GritError: as `open`, or a place that cannot be written.
        """
        kv, meta = _open(path, context)
        if index_id:
            owner = store_owner(path, context)
            if owner is None and meta is not None and StoreSize(**meta["size"]).records:
                raise GritError(
                    f"{path}: holds the records of another index; choose another --store"
                )
            if owner is None and meta is None and _holds_data(path, context):
                raise GritError(f"{path}: {OCDBT_DATA} holds other files; choose another --store")
            claim_store(path, index_id, context)
        if meta is not None:
            compression = str((meta.get("identity") or {}).get("compression"))
            if kind_of(compression) == kind_of(identity.compression):
                identity = dataclasses.replace(identity, compression=compression)
            return cls.open(path, identity, context, index_id=index_id)
        store = cls(kv, str(path), identity, codec)
        with as_grit_error(path, "cannot be written"), ts.Transaction(atomic=True) as transaction:
            view = kv.with_transaction(transaction)
            view.write(CALIBRATION, to_bytes(codec)).result()
            store._write_meta(view, StoreSize())
        return store

    @property
    def size(self) -> StoreSize:
        """Records, tokens and bytes held."""
        with as_grit_error(self.path, "cannot be read"):
            meta = _read_meta(self._kv)
        return StoreSize(**meta["size"]) if meta else StoreSize()

    def key(self, tokens: Sequence[int]) -> str:
        """The key of a document's record."""
        return document_key(tokens, self.identity)

    def has_many(self, keys: Sequence[str]) -> list[bool]:
        """Whether there is a record under each key; none is read."""
        with as_grit_error(self.path, "cannot be read"):
            return [
                read.result().state == "value"
                for read in [self._read(key, slice(0, 0)) for key in keys]
            ]

    def put_many(self, documents: Iterable[DocumentKV | PackedRecord]) -> list[str]:
        """Writes records in one transaction; when it returns they are on disk. Those already there
        are not rewritten.

        Returns:
          Their keys, in the order of the documents.

        Raises:
          GritError: the disk is full or the store cannot be written; none of the batch is in it.
        """
        batch = list(documents)
        keys = [self.key(document.tokens) for document in batch]
        new = self._missing({key: document for key, document in zip(keys, batch, strict=True)})
        self._put(
            {key: encode_record(document, self.identity) for key, document in new.items()},
            sum(len(document.tokens) for document in new.values()),
        )
        return keys

    def put_encoded(self, records: Mapping[str, EncodedRecord]) -> None:
        """`put_many` for records that are encoded already, by key.

        Raises:
          GritError: as `put_many`.
        """
        new = self._missing(records)
        self._put(
            {key: record.data for key, record in new.items()},
            sum(record.tokens for record in new.values()),
        )

    def _missing(self, records: Mapping[str, T]) -> dict[str, T]:
        stored = self.has_many(list(records))
        return {
            key: record
            for (key, record), is_stored in zip(records.items(), stored, strict=True)
            if not is_stored
        }

    def _put(self, blobs: Mapping[str, bytes], tokens: int) -> None:
        self._write(blobs, tokens, sum(map(len, blobs.values())))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Removes records in one transaction; keys without a record are skipped.

        The store's files only grow: bytes are freed when the remaining records are copied to
        another store (`copy_to`).

        Raises:
          GritError: the store cannot be written.
        """
        keys = list(keys)
        gone: dict[str, None] = {}
        tokens = size = 0
        for key, head in zip(keys, self._heads(keys), strict=True):
            if head is not None:
                gone[key] = None
                if (header := self._header(head, key)) is not None:
                    tokens, size = tokens + len(header.tokens), size + header.size
        self._write(gone, -tokens, -size)

    def copy_to(self, other: DocumentStore, keys: Sequence[str]) -> None:
        """Copies records into another store of the same identity, except those that are in it
        already or cannot be read.

        Raises:
          GritError: one of the stores cannot be read or written.
        """
        size = self.size
        records_per_copy = max(1, COPY_BYTES * size.records // max(size.bytes, 1))
        keys = [key for key, stored in zip(keys, other.has_many(keys), strict=True) if not stored]
        for start in range(0, len(keys), records_per_copy):
            part = keys[start : start + records_per_copy]
            blobs = {}
            for key, read in zip(part, [self._read(key) for key in part], strict=True):
                with contextlib.suppress(ValueError, OSError):
                    blobs[key] = read.result().value
            headers = {
                key: header
                for key in blobs
                if (header := self._header(blobs[key], key)) is not None
            }
            tokens = sum(len(header.tokens) for header in headers.values())
            other._write(
                {key: blobs[key] for key in headers},
                tokens,
                sum(header.size for header in headers.values()),
            )

    def fetch(
        self, keys: Sequence[str], names: Sequence[str] | None = None
    ) -> list[KVRecord | RecordError]:
        """Documents by key, read together.

        Args:
          names: what to call the documents in messages; None: their keys.

        Returns:
          In the place of a record that is absent, damaged or another model's, the error that says
          so and names the document.
        """
        return [self._whole(document) for document in self.stream(keys, names)]

    def stream(
        self, keys: Sequence[str], names: Sequence[str] | None = None
    ) -> list[KVRecord | RecordError]:
        """`fetch` that returns as soon as the beginnings of the records are read.

        The layers of a long record (a `StreamedRecord`) are read while earlier ones are used. A
        damaged layer raises RecordError when it is accessed.
        """
        names = [f"document {key[:12]}" for key in keys] if names is None else names
        heads = [self._read(key, slice(0, HEAD)) for key in keys]
        started = [self._start(*read) for read in zip(heads, keys, names, strict=True)]
        return [self._finish(*read) for read in zip(started, keys, names, strict=True)]

    def _start(self, head: Any, key: str, name: str) -> StreamedRecord | Any:
        """A long record whose parts are being read; or the read of all of a record shorter than a
        head."""
        try:
            result = head.result()
            header = read_header(result.value, key, self.identity, name)
        except (RecordError, ValueError, OSError):
            return self._read(key)  # an error in it is reported by `_finish`
        body = RecordBody(header, key, name)
        layers_per_part = max(1, PART // header.layer_bytes)
        return StreamedRecord(
            header.tokens,
            self.codec,
            body,
            layers_per_part,
            [
                self._readers.submit(
                    self._part, body, name, first, min(first + layers_per_part, header.layers)
                )
                for first in range(0, header.layers, layers_per_part)
            ],
        )

    def _whole(self, document: KVRecord | RecordError) -> KVRecord | RecordError:
        if not isinstance(document, StreamedRecord):
            return document
        try:
            return document.whole()
        except RecordError as error:
            return error

    @functools.cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READERS, "records")

    def _part(self, body: RecordBody, name: str, first: int, last: int) -> None:
        header = body.header
        a, b = (header.start + layer * header.layer_bytes for layer in (first, last))
        try:
            body.fill(first, self._read(body.key, slice(a, b)).result().value)
        except (ValueError, OSError) as error:
            raise self._unreadable(body.key, name, error) from None

    def _unreadable(self, key: str, name: str, error: Exception) -> RecordError:
        return RecordError(
            key, f"{name}: its record in {self.path} cannot be read ({short_error(error)})"
        )

    def _finish(self, started: Any, key: str, name: str) -> KVRecord | RecordError:
        if isinstance(started, StreamedRecord):
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
                with as_grit_error(self.path, "cannot be read"):
                    result = self._read(key).result()
            yield result.value if result.state == "value" else None

    def _header(self, head: bytes, key: str) -> RecordHeader | None:
        try:
            return read_header(head, key, self.identity, key)
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
        with (
            as_grit_error(self.path, "cannot be written"),
            ts.Transaction(atomic=True) as transaction,
        ):
            view = self._kv.with_transaction(transaction)
            for key, blob in records.items():
                view.write(RECORDS + key, blob).result()
            self._write_meta(view, now)
        self._fresh = time.time()

    def _write_meta(self, kv: ts.KvStore, size: StoreSize) -> None:
        meta = {"identity": self.identity.to_json(), "size": dataclasses.asdict(size)}
        kv.write(META, json.dumps(meta).encode()).result()


def store_owner(path: str | Path, context: ts.Context | None = None) -> str | None:
    """The identity of the index that a store belongs to; None: no store, or one that says nothing
    (written by an earlier version).

    Raises:
      GritError: it cannot be read.
    """
    with as_grit_error(path, "cannot be opened as a document store"):
        result = open_files(path, context).read(OWNER).result()
    return result.value.decode(errors="replace").strip() if result.state == "value" else None


def claim_store(path: str | Path, index_id: str, context: ts.Context | None = None) -> None:
    """Writes the identity of its index to a store that has none.

    Raises:
      GritError: it belongs to another index, or cannot be written.
    """
    with as_grit_error(path, "cannot be written"):
        if store_owner(path, context) is None:
            open_files(path, context).write(OWNER, index_id.encode()).result()
    if store_owner(path, context) != index_id:
        raise GritError(
            f"{path}: this document store belongs to another index; choose another --store"
        )


def remove_store(path: str | Path, index_id: str, context: ts.Context | None = None) -> bool:
    """Removes a store if it belongs to the index `index_id`; other files below its path stay.

    Returns:
      Whether it was removed; False: it is not there, or is not that index's.

    Raises:
      GritError: it cannot be removed.
    """
    if store_owner(path, context) != index_id:
        return False
    with as_grit_error(path, "cannot be removed"):
        # The owner's file last: if this is interrupted, the next call removes the rest.
        if is_url(path):
            files = open_files(path, context)
            for prefix in (OCDBT_MANIFEST, OCDBT_DATA):
                files.delete_range(ts.KvStore.KeyRange(prefix, prefix + "~")).result()
            files.write(OWNER, None).result()
        else:
            for file in Path(path).glob(OCDBT_MANIFEST + "*"):
                file.unlink()
            shutil.rmtree(Path(path) / OCDBT_DATA, ignore_errors=True)
            (Path(path) / OWNER).unlink(missing_ok=True)
            if not any(Path(path).iterdir()):
                Path(path).rmdir()
    return True


def _holds_data(path: str | Path, context: ts.Context | None) -> bool:
    """Whether there are files where the database puts its own: they would be removed with it."""
    with as_grit_error(path, "cannot be read"):
        files = open_files(path, context)
        return bool(files.list(ts.KvStore.KeyRange(OCDBT_DATA, "d/~")).result())


def _open(path: str | Path, context: ts.Context | None) -> tuple[ts.KvStore, dict[str, Any] | None]:
    """The database, and what it says about itself; None: it is empty."""
    context = context or ts.Context(CONTEXT)
    with as_grit_error(path, "cannot be opened as a document store"):
        kv = ts.KvStore.open(
            {"driver": "ocdbt", "base": tensorstore_base(path)}, context=context
        ).result()
        return kv, _read_meta(kv)


def _read_meta(kv: ts.KvStore) -> dict[str, Any] | None:
    result = kv.read(META).result()
    return json.loads(result.value) if result.state == "value" else None
