"""Milvus search, for vectors that outgrow the devices: an embedded file, or a server or cluster.

The index's own files are authoritative. A collection holds the vectors of the rows that are not
deleted, under the rows' numbers. A row never changes, so sending it twice does no harm, and a
writer that is killed leaves at worst a collection that is behind the files. How much it holds is in
the manifest (`MilvusCollection`).

An index's name is drawn at random, and the collection's name is that and the generation of the
files, so that indexes in one cluster do not collide. `fill` ends by checking what the collection
holds, and opening an index checks it too.

Metric and index: inner product, and AUTOINDEX, which leaves the choice to the deployment (HNSW in
memory in the embedded one): whoever needs Milvus for its size does not want every vector compared.
Its results are candidates (`SearchSettings.oversampling`) whose stored vectors decide, so that
order and scores are those of exact search.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.rag.index_files import IndexWriter, deleted_rows, kept_rows, kept_vectors
from grit_jax.rag.indexed_documents import IndexedDocuments, non_finite_documents
from grit_jax.rag.manifest import IndexManifest, MilvusCollection
from grit_jax.rag.search.exact import (
    NonFiniteRows,
    SearchResult,
    SearchSettings,
    StoredVectors,
    check_rows,
    checked_queries,
    no_results,
    rescored,
)
from grit_jax.rag.search.milvus_server import (
    EMBEDDED,
    ROW,
    VECTOR,
    MilvusServer,
    checked_uri,
    refuse_a_second_process,
)
from grit_jax.runtime.progress import progress, say

MOST_FILTERED = 1_000_000  # rows named in a filter: 8 MB of text
MOST_RESULTS = 16384  # Milvus gives no more for a query
# Sent in one request, and the most that is lost when a writer is killed. Milvus accepts messages of
# up to 64 MB.
BLOCK_BYTES = 8 << 20
DELETED_TOGETHER = 8192
SAMPLE = 8  # vectors that are compared with the files when an index is opened


def choose(writer: IndexWriter, vectors: str | None, uri: str | None) -> None:
    """Decides what searches an index, writes it to the manifest, and checks that Milvus answers,
    before anything is encoded.

    Args:
      vectors: "exact" or "milvus"; None: as it is, for a new index exact.
      uri: "embedded" or that of a server; None: where it is, for a new collection embedded.

    Raises:
      GritError: an unknown name, a URI without Milvus, or a Milvus that is not installed (the
        message names the extra) or cannot be reached.
    """
    old = writer.manifest.milvus
    if vectors not in (None, "exact", "milvus"):
        raise GritError(f"--vectors: expected exact or milvus, got {vectors!r}")
    vectors = vectors or ("milvus" if old is not None else "exact")
    new = None
    if vectors == "milvus":
        if uri is not None:
            place = checked_uri(uri)
        else:
            place = old.uri if old is not None else None
        if old is not None and old.uri == place:
            new = old
        else:
            name = f"grit_{secrets.token_hex(8)}"
            new = MilvusCollection(place, name, writer.manifest.generation)
        with MilvusServer(writer.path, place):
            pass
    elif uri is not None:
        raise GritError(f"--milvus {uri}: needs --vectors milvus as well")
    if old is not None and new != old:
        _drop_collections(writer.path, old)
    writer.commit(milvus=new)


def fill(writer: IndexWriter, quiet: bool = False) -> None:
    """Brings the collection of an index to what its files hold, from where an earlier call stopped.

    Raises:
      GritError: Milvus cannot be reached or refuses, or does not hold afterwards what was sent; or
        a vector holds NaN or infinity (the message names the document).
    """
    manifest, collection = writer.manifest, writer.manifest.milvus
    if collection is None:
        return
    rows = kept_rows(writer.path, manifest)
    deleted = deleted_rows(writer.path, manifest)
    stored = kept_vectors(writer.path, manifest, rows)
    empty = MilvusCollection(collection.uri, collection.name, manifest.generation)
    with MilvusServer(writer.path, collection.uri) as server:
        name = _collection_name(manifest)
        for other in server.call("list_collections"):
            if other.startswith(collection.name + "_") and other != name:
                server.call("drop_collection", other)
        for anew in (False, True):
            if anew or not server.call("has_collection", name):
                server.call("drop_collection", name)
                server.create(name, manifest.dim)
                writer.commit(milvus=empty)
            elif not server.fits(name, manifest.dim):
                raise GritError(
                    f"{server.place}: the collection {name} was not made by grit; rename or remove"
                    " it"
                )
            elif collection.generation != manifest.generation:
                writer.commit(milvus=empty)
            try:
                collection = _send(server, name, writer, rows, stored, quiet)
            except NonFiniteRows as error:
                documents = IndexedDocuments(writer.path, manifest)
                raise non_finite_documents(writer.path, documents, error) from None
            for start in range(collection.deleted, len(deleted), DELETED_TOGETHER):
                server.call("delete", name, ids=deleted[start : start + DELETED_TOGETHER].tolist())
            server.finish(name)
            full = dataclasses.replace(collection, rows=manifest.rows, deleted=manifest.deleted)
            writer.commit(milvus=full)
            difference = _difference(server, writer.manifest, rows, stored)
            if difference is None:
                return
    raise GritError(
        f"{server.place}: the collection {name} {difference}, although it has just been filled"
    )


class MilvusSearch:
    """The collection of an index, for reading; one that differs from the index's files is refused.

    Args:
      stored, rows: vectors of the rows that are not deleted, and their numbers in the files.
      settings: `oversampling` alone; Milvus decides how it searches.

    Raises:
      GritError: the extra is not installed, Milvus cannot be reached, or the collection is missing,
        behind the index or another index's.
    """

    def __init__(
        self,
        path: Path,
        manifest: IndexManifest,
        stored: StoredVectors,
        rows: np.ndarray,
        settings: SearchSettings = SearchSettings(),
    ):
        if (settings.precision, settings.dim) != ("float32", None):
            raise GritError(
                f"{path}: Milvus searches this index, by whole float32 vectors; fewer bits or"
                " dimensions need exact search (change to it with grit index --vectors exact)"
            )
        assert manifest.milvus is not None
        self._stored, self._rows, self._settings = stored, rows, settings
        self._name = _collection_name(manifest)
        self._server = MilvusServer(path, manifest.milvus.uri)
        self.close = weakref.finalize(self, self._server.close)
        try:
            difference = _difference(self._server, manifest, rows, stored)
        except GritError:
            self.close()
            raise
        if difference is not None:
            self.close()
            raise GritError(
                f"{path}: its Milvus collection {self._name} in {self._server.place} {difference}; "
                "run the same grit index again, which fills it from the index's own files"
            )

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> SearchResult:
        """The `k` best allowed rows for each query; see `ExactSearch.search`.

        Raises:
          GritError: `k` below 1 or more than Milvus returns, queries of another dimension or not
            finite, Milvus does not answer, or a writer has changed the collection.
          NonFiniteRows: a stored vector holds NaN or infinity.
        """
        queries = checked_queries(queries, k, self._stored.shape[1])
        numbers = np.arange(len(self._rows)) if allowed is None else np.flatnonzero(allowed)
        count = len(numbers)
        k = min(k, count)
        if not k:
            return no_results(len(queries))
        candidates = self._settings.candidates(k, count)
        if candidates == count or not len(queries):
            return rescored(self._stored, queries, [numbers] * len(queries), k)
        if k > MOST_RESULTS:
            raise GritError(f"k: Milvus returns at most {MOST_RESULTS} results, got {k}")
        results = self._server.call(
            "search",
            self._name,
            data=list(queries),
            limit=min(candidates, MOST_RESULTS),
            anns_field=VECTOR,
            output_fields=[ROW],
            search_params={"metric_type": "IP"},
            filter="" if allowed is None else self._filter(allowed),
            consistency_level="Strong",
        )
        return rescored(self._stored, queries, [self._positions(hits, k) for hits in results], k)

    def _filter(self, allowed: np.ndarray) -> str:
        """Milvus' expression for the allowed rows: their numbers, or those of the others where
        these are fewer. Which they are is decided by the index's own files."""
        few = np.count_nonzero(allowed) <= len(allowed) / 2
        rows = self._rows[allowed if few else ~allowed]
        if len(rows) > MOST_FILTERED:
            raise GritError(
                f"the filter keeps {np.count_nonzero(allowed)} of {len(allowed)} documents, and"
                f" Milvus is told at most {MOST_FILTERED} rows; keep or leave out fewer, or search"
                " exactly (grit index --vectors exact)"
            )
        # As text: Milvus Lite knows no parameters of an expression.
        return f"{ROW} {'in' if few else 'not in'} [{','.join(map(str, rows.tolist()))}]"

    def _positions(self, hits: Any, k: int) -> np.ndarray:
        """Numbers of the hits' rows among those that are not deleted."""
        rows = np.unique(np.fromiter((hit[ROW] for hit in hits), np.int64))
        numbers = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if len(rows) < k or (self._rows[numbers] != rows).any():
            raise GritError(
                f"the Milvus collection {self._name} has changed since the index was opened; open"
                " it again"
            )
        return numbers


def _send(
    server: MilvusServer,
    name: str,
    writer: IndexWriter,
    rows: np.ndarray,
    stored: StoredVectors,
    quiet: bool,
) -> MilvusCollection:
    """Sends the rows that the collection does not have yet, and commits them block by block; the
    last block is left for the caller to commit."""
    collection = writer.manifest.milvus
    assert collection is not None
    first = int(np.searchsorted(rows, collection.rows))
    block = max(1, BLOCK_BYTES // (writer.manifest.dim * 4))
    with progress(
        len(rows), "milvus", "vectors", initial=first, quiet=quiet or first == len(rows)
    ) as bar:
        for start in range(first, len(rows), block):
            part, values = rows[start : start + block].tolist(), stored[start : start + block]
            check_rows(values, range(start, start + len(values)))
            server.call(
                "upsert",
                name,
                data=[{ROW: r, VECTOR: v} for r, v in zip(part, values, strict=True)],
            )
            if start + block < len(rows):
                collection = dataclasses.replace(collection, rows=part[-1] + 1)
                writer.commit(milvus=collection)
            bar.update(len(part))
    return collection


def _difference(
    server: MilvusServer, manifest: IndexManifest, rows: np.ndarray, stored: StoredVectors
) -> str | None:
    """How a collection differs from the index's files; None: a count and a sample of vectors
    agree."""
    collection, name = manifest.milvus, _collection_name(manifest)
    assert collection is not None
    if any(
        getattr(collection, field) != getattr(manifest, field)
        for field in ("generation", "rows", "deleted")
    ):
        return "is behind the index's files"
    if not server.call("has_collection", name):
        return "does not exist"
    if not server.fits(name, manifest.dim):
        return "was not made by grit"
    server.call("load_collection", name, timeout=None)
    [counted] = server.query(name, filter="", output_fields=["count(*)"])
    if counted["count(*)"] != len(rows):
        return f"holds {counted['count(*)']} vectors, not {len(rows)}"
    sample = (
        np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64)) if len(rows) else rows
    )
    # `following` is the row that any other writer would have sent next.
    ids, following = rows[sample].tolist(), manifest.rows
    hits = server.call(
        "get", name, ids=[*ids, following], output_fields=[ROW, VECTOR], consistency_level="Strong"
    )
    vectors = {hit[ROW]: np.asarray(hit[VECTOR], np.float32) for hit in hits}
    if following in vectors:
        return "holds vectors that the index does not have"
    if any(
        not np.array_equal(vectors.get(row), vector)
        for row, vector in zip(ids, stored[sample], strict=True)
    ):
        return "holds the vectors of another index"
    return None


def _drop_collections(folder: Path, collection: MilvusCollection) -> None:
    """Removes the collections of an index that is no longer searched there."""
    if collection.uri is None:
        refuse_a_second_process(str(folder / EMBEDDED))
        shutil.rmtree(folder / EMBEDDED, ignore_errors=True)
        return
    try:
        with MilvusServer(folder, collection.uri) as server:
            for name in server.call("list_collections"):
                if name.startswith(collection.name + "_"):
                    server.call("drop_collection", name)
    except GritError as error:
        say(f"warning: the collections {collection.name}_* were not removed: {error}")


def _collection_name(manifest: IndexManifest) -> str:
    assert manifest.milvus is not None
    return f"{manifest.milvus.name}_{manifest.generation}"
