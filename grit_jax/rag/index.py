"""An index opened for reading: search over its vectors, its documents' texts and records."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.rag.build import IndexSummary, build_index
from grit_jax.rag.corpus import CorpusDocument
from grit_jax.rag.index_files import (
    FORMAT_VERSION,
    IndexedDocuments,
    living_vectors,
    read_manifest,
    store_path,
)
from grit_jax.rag.record_format import NATIVE, RecordIdentity
from grit_jax.rag.search.exact import (
    Search,
    SearchResult,
    SearchSettings,
    StoredVectors,
    VectorSearch,
)
from grit_jax.rag.search.milvus import MilvusSearch
from grit_jax.rag.store import DocumentStore
from grit_jax.runtime.progress import say

__all__ = ["Index", "IndexSummary", "SearchSettings", "build_index"]


class Index:
    """An index opened for reading, with the model that made it; see `open`.

    Attributes:
      path, kv (how caches are kept, or "none"), max_length (tokens of a document).
      documents: `documents[row]` is `{"id", "title", "text", "key", "tokens"}`.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        model: GritLM,
        search: SearchSettings = SearchSettings(),
    ):
        self.path, self.manifest, self._model, self._settings = path, manifest, model, search
        self.kv: str = manifest["kv"]
        self.max_length: int = manifest["max_length"]
        self.documents = IndexedDocuments(path, manifest)
        self._stored: StoredVectors = living_vectors(path, manifest, self.documents.rows)
        self._milvus: Search | None = None
        if manifest.get("milvus"):
            self._milvus = MilvusSearch(path, manifest, self._stored, self.documents.rows, search)

    @classmethod
    def open(
        cls, path: str | Path, model: GritLM, search: SearchSettings = SearchSettings()
    ) -> Index:
        """Opens an index. One that is not finished opens too, with a warning and the documents that
        it has.

        Args:
          search: in which precision and how many dimensions its vectors are searched; whole in
            float32 unless told.

        Raises:
          GritError: no index there, an empty or damaged one, one that another model, chat format,
            pooling or version of the format made, fewer dimensions than `search` asks for, or a
            Milvus collection that cannot be reached or does not hold what the index does.
        """
        path = Path(path)
        manifest = read_manifest(path)
        again = "make it again with: grit index"
        if manifest["format"] != FORMAT_VERSION:
            raise GritError(
                f"{path}: format {manifest['format']}, this version reads {FORMAT_VERSION}; {again}"
            )
        difference = RecordIdentity.of(model).difference(manifest["model"])
        if difference is not None:
            raise GritError(
                f"{path}: this index was made by {difference}; {again}, with this model"
            )
        if manifest["pooling"] != model.pooling or manifest["dim"] != model.embedding_width:
            raise GritError(
                f"{path}: this index was made with pooling {manifest['pooling']}; {again}, with"
                " this model"
            )
        search.check(manifest["dim"])
        if not manifest["documents"]:
            raise GritError(
                f"{path}: there is no document in this index yet; run the same grit index again"
            )
        if not manifest["complete"]:
            say(
                f"warning: {path}: this index is not finished ({manifest['documents']} documents so"
                " far); the same grit index, run again, goes on with it"
            )
        try:
            return cls(path, manifest, model, search)
        except GritError:
            if read_manifest(path)["generation"] == manifest["generation"]:
                raise
            return cls.open(path, model, search)  # a writer has just changed over to other files

    def __len__(self) -> int:
        return self.manifest["documents"]

    @functools.cached_property
    def store(self) -> DocumentStore:
        """The documents' records, opened when first needed."""
        compression = self.manifest["compression"] or NATIVE
        identity = dataclasses.replace(RecordIdentity.of(self._model), compression=compression)
        return DocumentStore.open(store_path(self.path, self.manifest), identity)

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """Rows of the `k` best documents for query vectors `[Q, D]`, best first, with their inner
        products."""
        return self._search.search(queries, k)

    def text(self, document: int | str) -> str:
        """A document, by row or id, as it was encoded: `{title} {text}`."""
        line = self.documents[self._rows[document] if isinstance(document, str) else document]
        return CorpusDocument(line["id"], line["title"], line["text"]).content

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """Float32 `[N, D]`, in the order of the documents; memory-mapped where none was replaced or
        deleted."""
        return self._stored[:]

    @functools.cached_property
    def _search(self) -> Search:
        return self._milvus or VectorSearch(self._stored, self._model.mesh, settings=self._settings)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {self.documents[row]["id"]: row for row in range(len(self))}
