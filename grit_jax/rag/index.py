"""An index opened for reading: search over its vectors, its documents' texts and records."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.data.bm25 import BM25
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.rag.build import build_index
from grit_jax.rag.filters import check_fields, parse_filter
from grit_jax.rag.index_files import kept_vectors
from grit_jax.rag.index_options import IndexOptions, IndexSummary
from grit_jax.rag.indexed_documents import (
    IndexedDocuments,
    indexed_document,
    non_finite_documents,
)
from grit_jax.rag.manifest import AGAIN, IndexManifest, read_manifest, store_path
from grit_jax.rag.record_format import NATIVE, RecordIdentity
from grit_jax.rag.search.exact import (
    EmptySearch,
    ExactSearch,
    NonFiniteRows,
    Searcher,
    SearchResult,
    SearchSettings,
    StoredVectors,
)
from grit_jax.rag.search.hybrid import (
    Hits,
    HybridSearch,
    Retrieval,
    dense_hits,
    lexical_hits,
)
from grit_jax.rag.search.lexical import open_lexical
from grit_jax.rag.search.milvus import MilvusSearch
from grit_jax.rag.store import DocumentStore
from grit_jax.runtime.files import home_path
from grit_jax.runtime.progress import say

__all__ = ["Index", "IndexOptions", "IndexSummary", "Retrieval", "SearchSettings", "build_index"]


MOST_FILTERS = 64  # whose masks are kept


class Index:
    """An index opened for reading, with the model that made it; see `open`.

    Attributes:
      path: the index's folder.
      kv: how records are kept, or "none".
      max_length: tokens of a document.
      documents: `documents[row]` is a line of the index (`indexed_documents.py`); rows are
        numbered without the deleted ones.
    """

    def __init__(
        self,
        path: Path,
        manifest: IndexManifest,
        model: GritLM,
        search: SearchSettings = SearchSettings(),
    ):
        self.path, self.manifest, self._model, self._settings = path, manifest, model, search
        self.kv, self.max_length = manifest.kv, manifest.max_length
        self.documents = IndexedDocuments(path, manifest)
        self._stored: StoredVectors = kept_vectors(path, manifest, self.documents.rows)
        self._allowed: dict[str, np.ndarray] = {}  # by filter
        self._milvus: Searcher | None = None
        if manifest.milvus is not None:
            self._milvus = MilvusSearch(path, manifest, self._stored, self.documents.rows, search)

    @classmethod
    def open(
        cls, path: str | Path, model: GritLM, search: SearchSettings = SearchSettings()
    ) -> Index:
        """Opens an index. An unfinished one opens too, with a warning and the documents that it
        has so far; one whose documents were all deleted is searched without a result.

        Args:
          search: the precision and the number of dimensions in which vectors are searched.

        Raises:
          GritError: there is no index, it never had a document or is damaged, it was made by
            another model, chat format, pooling or format version, it has fewer dimensions than
            `search` asks for, or its Milvus collection cannot be reached or differs from it.
        """
        path = home_path(path)
        manifest = read_manifest(path)
        difference = RecordIdentity.of(model).difference(manifest.model)
        if difference is not None:
            raise GritError(
                f"{path}: this index was made by {difference}; {AGAIN}, with this model"
            )
        if (manifest.pooling, manifest.dim) != (model.pooling, model.embedding_width):
            raise GritError(
                f"{path}: this index was made with pooling {manifest.pooling} and"
                f" {manifest.dim} dimensions, the model has {model.pooling} and"
                f" {model.embedding_width}; {AGAIN}, with this model"
            )
        search.check(manifest.dim)
        if not manifest.was_filled:
            raise GritError(
                f"{path}: there is no document in this index yet; run the same grit index again"
            )
        if not manifest.complete:
            say(
                f"warning: {path}: this index is not finished ({manifest.documents} documents so"
                " far); run the same grit index again to continue it"
            )
        try:
            return cls(path, manifest, model, search)
        except GritError:
            now = read_manifest(path)
            if (now.generation, now.format) == (manifest.generation, manifest.format):
                raise
            return cls.open(path, model, search)  # a writer has just changed over to other files

    def __len__(self) -> int:
        return self.manifest.documents

    @functools.cached_property
    def store(self) -> DocumentStore:
        """The documents' records, opened when first needed."""
        manifest = self.manifest
        identity = RecordIdentity.of(self._model, manifest.compression or NATIVE)
        return DocumentStore.open(
            store_path(self.path, manifest), identity, index_id=manifest.index_id
        )

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> SearchResult:
        """Rows of the `k` best documents for query vectors `[Q, D]`, best first, with their inner
        products; of the `allowed` ones alone, if a mask is given.

        Raises:
          GritError: a query or a stored vector that is not finite (the message names the document).

        >>> from grit_jax import GritLM
        >>> model = GritLM.from_pretrained("model")
        >>> index = Index.open("index", model)
        >>> result = index.search(model.encode(["list.sort sorts a list in place"]), k=1)
        >>> [index.documents[row]["id"] for row in result.rows[0].tolist()]
        ['list.sort']
        """
        with self._naming_documents():
            return self._search.search(queries, k, allowed)

    def find(
        self,
        texts: Sequence[str],
        queries: np.ndarray | None,
        k: int,
        retrieval: Retrieval = Retrieval(),
        among: np.ndarray | None = None,
    ) -> list[Hits]:
        """The `k` best documents for each query.

        Args:
          texts: of the queries.
          queries: their vectors `[Q, D]`; None for a search by words alone.
          retrieval: what searches, and among which documents. There are fewer than `k` results
            where fewer fulfil the filter, or have a word of the query in a search by words.
          among: a mask `[N]` of the documents that are searched; None: all of them.

        Raises:
          GritError: as `search` and `allowed`.
        """
        allowed = self.allowed(retrieval.where) if retrieval.where else among
        if retrieval.where and among is not None:
            allowed = allowed & among
        if retrieval.search == "lexical":
            return [lexical_hits(self.lexical.scores(text), k, allowed) for text in texts]
        if queries is None:
            raise ValueError(f"{retrieval.search} search needs the queries' vectors")
        if retrieval.search == "dense":
            return dense_hits(self.search(queries, k, allowed))
        hybrid = HybridSearch(self._search, self.lexical)
        with self._naming_documents():
            return hybrid.search(texts, queries, k, retrieval, allowed)

    def allowed(self, where: str) -> np.ndarray:
        """Which documents fulfil a filter (`filters.py`): bool `[N]`.

        Raises:
          GritError: a mistake in the expression, or a field that no document has.
        """
        if where not in self._allowed:
            keep = parse_filter(where)
            if len(self):
                check_fields(keep, self._metadata, str(self.path))
            mask = np.fromiter(map(keep.matches, self._metadata), bool, len(self))
            if len(self._allowed) == MOST_FILTERS:
                del self._allowed[next(iter(self._allowed))]
            self._allowed[where] = mask
        return self._allowed[where]

    @functools.cached_property
    def _metadata(self) -> list[dict[str, Any]]:
        return self.documents.metadata()

    @functools.cached_property
    def lexical(self) -> BM25:
        """BM25 over the documents as they are encoded, opened (or, where the index has none, built)
        when first needed."""
        return open_lexical(self.path, self.manifest, self.documents)

    @contextlib.contextmanager
    def _naming_documents(self) -> Iterator[None]:
        """Vectors that are not finite are an error that names their documents."""
        try:
            yield
        except NonFiniteRows as error:
            raise non_finite_documents(self.path, self.documents, error) from None

    def text(self, document: int | str) -> str:
        """A document, by row or id, as it is encoded: `{title} {text}`."""
        line = self.documents[self._rows[document] if isinstance(document, str) else document]
        return indexed_document(line).content

    def row_of(self, id: str) -> int:
        """The row of the document with an id. The first call reads all lines of the documents.

        Raises:
          GritError: there is no such document.
        """
        if id not in self._rows:
            raise GritError(f"{self.path}: there is no document {id!r:.100}")
        return self._rows[id]

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """Float32 `[N, D]`, in the order of the documents; memory-mapped where none is deleted."""
        return self._stored[:]

    def vectors_at(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Float32 `[n, D]`: the vectors of some documents, read from the file."""
        return np.asarray(self._stored[np.asarray(rows, np.int64)])

    @functools.cached_property
    def _search(self) -> Searcher:
        if self._milvus is not None:
            return self._milvus
        if not len(self):
            return EmptySearch(self.manifest.dim)
        return ExactSearch(self._stored, self._model.mesh, settings=self._settings)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {self.documents[row]["id"]: row for row in range(len(self))}
