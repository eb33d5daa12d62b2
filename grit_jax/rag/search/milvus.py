"""Milvus in the place of exact search, for vectors that outgrow the devices: an embedded file, or a
server or cluster.

The index's own files are the truth. A collection holds the vectors of their living rows under the
rows' numbers: what stands in a row never changes, so that filling again whatever may have been
filled before does no harm, and a writer that is killed leaves at worst a collection that is behind.
`index.json` says how far it has come:

    "milvus": {"uri": null (embedded) or a URI, "name": "grit_...", "generation", "rows", "dead"}

The name is drawn at random for each index, and the collection's is followed by the generation of
the files, so that the indices in one cluster do not meet. `fill` ends with a look at what the
collection holds, as does opening the index.

Metric and index: inner product, and AUTOINDEX, which leaves the choice to the deployment (HNSW on
graphs in memory in the embedded one): who takes Milvus for its size does not want every vector
compared. What it finds are candidates (`SearchSettings.oversampling`); their stored vectors decide,
so that order and scores are those of exact search.
"""

from __future__ import annotations

import secrets
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.rag.index_files import IndexWriter, dead_rows, living, living_vectors
from grit_jax.rag.search.exact import (
    SearchResult,
    SearchSettings,
    StoredVectors,
    checked_queries,
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

MOST_RESULTS = 16384  # Milvus gives no more for a query
BLOCK_BYTES = (
    8 << 20
)  # sent at once, and lost at most when a writer is killed; Milvus takes messages of up to 64 MB
DELETED_TOGETHER = 8192
SAMPLE = 8  # vectors that are compared with the files when an index is opened


def choose(writer: IndexWriter, vectors: str | None, uri: str | None) -> None:
    """Settles in the manifest what is to search an index, and that it answers, before anything is
    encoded.

    Args:
      vectors: "exact" or "milvus"; None: as it is, of a new index exact.
      uri: "embedded" or that of a server; None: where it is, of a new collection embedded.

    Raises:
      GritError: an unknown name, a URI without Milvus, Milvus cannot be used (the message says
        which extra) or reached.
    """
    old = writer.manifest.get("milvus")
    if vectors not in (None, "exact", "milvus"):
        raise GritError(f"--vectors must be exact or milvus, is {vectors!r}")
    vectors = vectors or ("milvus" if old else "exact")
    wanted = None
    if vectors == "milvus":
        place = checked_uri(uri) if uri is not None else old["uri"] if old else None
        wanted = (
            old
            if old and old["uri"] == place
            else {**_nothing(writer.manifest), "uri": place, "name": _name()}
        )
        with MilvusServer(writer.path, place):
            pass
    elif uri is not None:
        raise GritError(f"--milvus {uri} says where Milvus is; it needs --vectors milvus")
    if old and wanted != old:
        _abandon(writer.path, old)
    writer.commit(milvus=wanted)


def fill(writer: IndexWriter, quiet: bool = False) -> None:
    """Brings the collection of an index to what its files hold, from where an earlier call came to.

    Raises:
      GritError: Milvus cannot be reached or refuses, or does not hold afterwards what it was given.
    """
    m = writer.manifest
    if not m.get("milvus"):
        return
    rows, dead = living(writer.path, m), dead_rows(writer.path, m)
    stored = living_vectors(writer.path, m, rows)
    with MilvusServer(writer.path, m["milvus"]["uri"]) as server:
        name = _collection(m)
        for other in server.call("list_collections"):
            if other.startswith(m["milvus"]["name"] + "_") and other != name:
                server.call("drop_collection", other)
        for anew in (False, True):
            if anew or not server.call("has_collection", name):
                server.call("drop_collection", name)
                server.create(name, m["dim"])
                writer.commit(milvus=m["milvus"] | _nothing(m))
            elif not server.fits(name, m["dim"]):
                raise GritError(
                    f"{server.place}: the collection {name} is not of this program; rename or"
                    " remove it"
                )
            elif m["milvus"]["generation"] != m["generation"]:
                writer.commit(milvus=m["milvus"] | _nothing(m))
            _send(server, name, writer, rows, stored, quiet)
            for start in range(m["milvus"]["dead"], len(dead), DELETED_TOGETHER):
                server.call("delete", name, ids=dead[start : start + DELETED_TOGETHER].tolist())
            server.finish(name)
            writer.commit(milvus=m["milvus"] | {"rows": m["rows"], "dead": m["dead"]})
            difference = _difference(server, m, rows, stored)
            if difference is None:
                return
    raise GritError(
        f"{server.place}: the collection {name} {difference}, although it has just been filled"
    )


class MilvusSearch:
    """The collection of an index, for reading; one that does not hold what the index's files do is
    refused.

    Args:
      stored, rows: vectors of the living rows, and their numbers in the files.
      settings: `oversampling` alone; Milvus decides how it searches.

    Raises:
      GritError: the extra is not installed, Milvus cannot be reached, or the collection is missing,
        behind the index or of another one.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        stored: StoredVectors,
        rows: np.ndarray,
        settings: SearchSettings = SearchSettings(),
    ):
        if (settings.precision, settings.dim) != ("float32", None):
            raise GritError(
                f"{path}: Milvus searches this index, by whole float32 vectors; fewer bits or"
                " dimensions are for exact search (grit index --vectors exact changes to it)"
            )
        self._stored, self._rows, self._settings, self._name = (
            stored,
            rows,
            settings,
            _collection(manifest),
        )
        self._server = MilvusServer(path, manifest["milvus"]["uri"])
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

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """The `k` best rows for each query; see `VectorSearch.search`.

        Raises:
          GritError: `k` below 1 or more than Milvus gives, queries of another dimension, Milvus
            does not answer, or a writer has changed the collection.
        """
        queries = checked_queries(queries, k, self._stored.shape[1])
        count = len(self._rows)
        k = min(k, count)
        wanted = self._settings.candidates(k, count)
        if wanted == count or not len(queries):
            return rescored(self._stored, queries, [np.arange(count)] * len(queries), k)
        if k > MOST_RESULTS:
            raise GritError(f"Milvus gives at most {MOST_RESULTS} results, {k} are asked for")
        found = self._server.call(
            "search",
            self._name,
            data=list(queries),
            limit=min(wanted, MOST_RESULTS),
            anns_field=VECTOR,
            output_fields=[ROW],
            search_params={"metric_type": "IP"},
            consistency_level="Strong",
        )
        return rescored(self._stored, queries, [self._positions(hits, k) for hits in found], k)

    def _positions(self, hits: Any, k: int) -> np.ndarray:
        """Where the found rows stand among the living ones."""
        rows = np.unique(np.fromiter((hit[ROW] for hit in hits), np.int64))
        at = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if len(rows) < k or (self._rows[at] != rows).any():
            raise GritError(
                f"the Milvus collection {self._name} has changed since the index was opened; open"
                " it again"
            )
        return at


def _send(
    server: MilvusServer,
    name: str,
    writer: IndexWriter,
    rows: np.ndarray,
    stored: StoredVectors,
    quiet: bool,
) -> None:
    """The living rows that the collection does not have yet; what is sent is committed block by
    block."""
    m = writer.manifest
    first = int(np.searchsorted(rows, m["milvus"]["rows"]))
    block = max(1, BLOCK_BYTES // (m["dim"] * 4))
    with progress(
        len(rows), "milvus", "vectors", initial=first, quiet=quiet or first == len(rows)
    ) as bar:
        for start in range(first, len(rows), block):
            part, values = rows[start : start + block].tolist(), stored[start : start + block]
            server.call(
                "upsert",
                name,
                data=[{ROW: r, VECTOR: v} for r, v in zip(part, values, strict=True)],
            )
            if start + block < len(
                rows
            ):  # the last are for the caller to commit, who has more to do before
                writer.commit(milvus=m["milvus"] | {"rows": part[-1] + 1})
            bar.update(len(part))


def _difference(
    server: MilvusServer, m: dict[str, Any], rows: np.ndarray, stored: StoredVectors
) -> str | None:
    """In what a collection differs from the index's files; None: in nothing that a count and a
    sample show."""
    entry, name = m["milvus"], _collection(m)
    if any(entry[key] != m[key] for key in ("generation", "rows", "dead")):
        return "is behind the index's files"
    if not server.call("has_collection", name):
        return "is not there"
    if not server.fits(name, m["dim"]):
        return "is not of this program"
    server.call("load_collection", name, timeout=None)
    [counted] = server.query(name, filter="", output_fields=["count(*)"])
    if counted["count(*)"] != len(rows):
        return f"holds {counted['count(*)']} vectors, not {len(rows)}"
    places = (
        np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64)) if len(rows) else rows
    )
    ids, following = (
        rows[places].tolist(),
        m["rows"],
    )  # the row that any other writer would have begun with
    hits = server.call(
        "get", name, ids=[*ids, following], output_fields=[ROW, VECTOR], consistency_level="Strong"
    )
    have = {hit[ROW]: np.asarray(hit[VECTOR], np.float32) for hit in hits}
    if following in have:
        return "holds vectors that the index does not have"
    if any(
        not np.array_equal(have.get(row), vector)
        for row, vector in zip(ids, stored[places], strict=True)
    ):
        return "holds the vectors of another index"
    return None


def _abandon(folder: Path, entry: dict[str, Any]) -> None:
    """Removes the collections of an index that is searched elsewhere from now on."""
    if entry["uri"] is None:
        refuse_a_second_process(str(folder / EMBEDDED))
        shutil.rmtree(folder / EMBEDDED, ignore_errors=True)
        return
    try:
        with MilvusServer(folder, entry["uri"]) as server:
            for name in server.call("list_collections"):
                if name.startswith(entry["name"] + "_"):
                    server.call("drop_collection", name)
    except GritError as error:
        say(f"warning: the collections {entry['name']}_* stay where they are: {error}")


def _name() -> str:
    return f"grit_{secrets.token_hex(8)}"


def _collection(m: dict[str, Any]) -> str:
    return f"{m['milvus']['name']}_{m['generation']}"


def _nothing(m: dict[str, Any]) -> dict[str, int]:
    """How far an empty collection has come."""
    return {"generation": m["generation"], "rows": 0, "dead": 0}
