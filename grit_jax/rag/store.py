"""The document store: records by content-addressed key, in a transactional TensorStore OCDBT database.

A key says everything that a record depends on (see `record.document_key`), so a record is never stale: another
model, format or document is another key. Records are written when documents are indexed, never by questions. A
transaction holds a batch of them: after a crash each batch is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorstore as ts

from grit_jax.rag.record import RecordError, RecordIdentity, decode_record, document_key, encode_record
from grit_jax.types import DocumentKV, GritError

META = "meta"
RECORDS = "doc/"
NODE_CACHE = 64 << 20  # bytes of the tree's nodes kept in memory; records themselves are not


@dataclasses.dataclass(frozen=True)
class StoreSize:
    """What a store holds: records, their tokens, and their bytes (headers included)."""

    records: int = 0
    tokens: int = 0
    bytes: int = 0


class DocumentStore:
    """Records of documents. Open one with `DocumentStore.open`."""

    def __init__(self, kv: ts.KvStore, path: str, identity: RecordIdentity):
        self._kv, self.path, self.identity = kv, path, identity
        # What was read since is not asked for again on disk: keys are content-addressed, records do not change.
        self._fresh = time.time()

    @classmethod
    def open(cls, path: str | Path, identity: RecordIdentity, create: bool = False) -> DocumentStore:
        """Opens a store for the records of one model.

        Args:
          path: a directory, or a URL that TensorStore knows (`gs://bucket/path`).
          identity: what its records must be (`RecordIdentity.of(model)`).
          create: makes an empty store where there is none.

        Raises:
          GritError: nothing there, unreadable, or the store of another model.
        """
        text = str(path)
        base: Any = text.rstrip("/") + "/"
        if "://" not in text:
            base = {"driver": "file", "path": str(Path(text).absolute()) + "/"}
        context = ts.Context({"cache_pool": {"total_bytes_limit": NODE_CACHE}})
        try:
            kv = ts.KvStore.open({"driver": "ocdbt", "base": base}, context=context).result()
            store = cls(kv, text, identity)
            meta = store._meta(kv)
            if meta is None and create:
                with ts.Transaction(atomic=True) as transaction:
                    store._write_meta(kv.with_transaction(transaction), StoreSize())
                return store
        except (ValueError, OSError) as error:
            raise GritError(f"{text}: cannot be opened as a document store ({_short(error)})") from None
        if meta is None:
            raise GritError(f"{text}: there is no document store; make one with: grit index")
        difference = identity.difference(meta["identity"])
        if difference is not None:
            raise GritError(f"{text}: this store was made by {difference}; run grit index again with this model")
        return store

    @property
    def size(self) -> StoreSize:
        """Records, tokens and bytes held."""
        meta = self._meta(self._kv)
        return StoreSize(**meta["size"]) if meta else StoreSize()

    @property
    def bytes_used(self) -> int:
        """Bytes of all records."""
        return self.size.bytes

    def key(self, tokens: Sequence[int]) -> str:
        """The key of a document's record."""
        return document_key(tokens, self.identity)

    def has(self, key: str) -> bool:
        """Whether there is a record under `key`; it is not read."""
        return self.has_many([key])[0]

    def has_many(self, keys: Sequence[str]) -> list[bool]:
        """`has` of many keys at once."""
        nothing = slice(0, 0)
        reads = [self._kv.read(RECORDS + key, byte_range=nothing, staleness_bound=self._fresh) for key in keys]
        try:
            return [read.result().state == "value" for read in reads]
        except (ValueError, OSError) as error:
            raise GritError(f"{self.path}: cannot be read ({_short(error)})") from None

    def put_many(self, documents: Iterable[DocumentKV]) -> list[str]:
        """Writes records in one transaction; when it returns they are on disk. Those already there are not rewritten.

        Returns:
          Their keys, in the order of the documents.

        Raises:
          GritError: the disk is full or the store cannot be written; nothing of the batch is in it then.
        """
        batch = list(documents)
        keys = [self.key(document.tokens) for document in batch]
        new = {key: document for key, document in zip(keys, batch, strict=True)}
        there = self.has_many(list(new))
        new = {key: document for (key, document), found in zip(new.items(), there, strict=True) if not found}
        if not new:
            return keys
        blobs = {RECORDS + key: encode_record(document, self.identity) for key, document in new.items()}
        was = self.size
        size = StoreSize(
            was.records + len(blobs),
            was.tokens + sum(len(document.tokens) for document in new.values()),
            was.bytes + sum(map(len, blobs.values())),
        )
        try:
            with ts.Transaction(atomic=True) as transaction:
                view = self._kv.with_transaction(transaction)
                for name, blob in blobs.items():
                    view.write(name, blob).result()
                self._write_meta(view, size)
        except (ValueError, OSError) as error:
            raise GritError(f"{self.path}: cannot be written ({_short(error)})") from None
        self._fresh = time.time()
        return keys

    def get_many(self, keys: Sequence[str], names: Sequence[str] | None = None) -> list[DocumentKV]:
        """Documents by key, read together.

        Args:
          names: what to call them in messages; None: by their keys.

        Raises:
          RecordError: a record is absent, damaged, cut short or another model's; the message names the document.
        """
        found = self.fetch(keys, names)
        for document in found:
            if isinstance(document, RecordError):
                raise document
        return found  # type: ignore[return-value]

    def fetch(self, keys: Sequence[str], names: Sequence[str] | None = None) -> list[DocumentKV | RecordError]:
        """`get_many` that returns what is wrong with a record in its place instead of raising it."""
        names = [f"document {key[:12]}" for key in keys] if names is None else names
        reads = [self._kv.read(RECORDS + key, staleness_bound=self._fresh) for key in keys]
        return [self._one(read, key, name) for read, key, name in zip(reads, keys, names, strict=True)]

    def _one(self, read: Any, key: str, name: str) -> DocumentKV | RecordError:
        try:
            result = read.result()
            if result.state != "value":
                return RecordError(key, f"{name}: has no record in {self.path}")
            return decode_record(result.value, key, self.identity, name)
        except RecordError as error:
            return error
        except (ValueError, OSError) as error:
            return RecordError(key, f"{name}: its record in {self.path} cannot be read ({_short(error)})")

    def _meta(self, kv: ts.KvStore) -> dict[str, Any] | None:
        result = kv.read(META).result()
        return json.loads(result.value) if result.state == "value" else None

    def _write_meta(self, kv: ts.KvStore, size: StoreSize) -> None:
        meta = {"identity": self.identity.to_json(), "size": dataclasses.asdict(size)}
        kv.write(META, json.dumps(meta).encode()).result()


def _short(error: Exception) -> str:
    """The first sentence of TensorStore's message, without the trace of its sources."""
    return str(error).split(" [")[0][:200]
