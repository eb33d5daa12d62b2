"""A model in mteb's protocols: encoder, search over an index, and cross-encoder.

mteb calls them with its own data loaders; nothing of mteb is imported here but its similarity
functions, when they are called.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.mteb_instructions import TaskInstruction
from grit_jax.inference.model import GritLM
from grit_jax.rag.index import Index, IndexOptions, build_index
from grit_jax.rag.rerank import read_relevance, reading_prompts
from grit_jax.rag.search.exact import SearchSettings
from grit_jax.rag.search.hybrid import Retrieval
from grit_jax.text.length import MAX_LENGTH

Batches = Iterable[Mapping[str, Sequence[Any]]]


class TextModel(Protocol):
    """What scores texts, in this process or behind a URL.

    Attributes:
      truncated: texts that were cut since the last reset; None: unknown.
    """

    truncated: int | None

    def encode(self, texts: Sequence[str], instruction: str) -> Float[np.ndarray, "N D"]: ...

    def relevance(
        self, queries: Sequence[str], documents: Sequence[str]
    ) -> Float[np.ndarray, " P"]: ...


class LocalTexts:
    """A model of this process; `max_length` tokens are kept of each text to embed."""

    def __init__(self, model: GritLM, max_length: int | None = None, *, progress: bool = False):
        self.model, self.progress = model, progress
        self.max_length = MAX_LENGTH if max_length is None else max_length
        self.truncated: int | None = 0

    def encode(self, texts: Sequence[str], instruction: str) -> Float[np.ndarray, "N D"]:
        """See `GritLM.encode`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # texts that are cut are counted
            encoded = self.model.encoder.encode(
                texts, instruction, self.max_length, progress=self.progress
            )
        self.truncated = (self.truncated or 0) + encoded.truncated
        return encoded.vectors

    def relevance(self, queries: Sequence[str], documents: Sequence[str]) -> Any:
        """See `rag.rerank.read_relevance`; documents are cut to what their query leaves."""
        prompts = reading_prompts(self.model, list(zip(queries, documents, strict=True)), 0)
        self.truncated = (self.truncated or 0) + prompts.truncated
        return read_relevance(self.model, prompts.ids, progress=self.progress)


class ServedTexts:
    """A model behind a URL."""

    def __init__(
        self, endpoint: Endpoint, max_length: int | None = None, *, progress: bool = False
    ):
        self.endpoint, self.max_length, self.progress = endpoint, max_length, progress
        self.truncated: int | None = None  # servers do not say

    def encode(self, texts: Sequence[str], instruction: str) -> Float[np.ndarray, "N D"]:
        """See `Endpoint.encode`."""
        return self.endpoint.encode(texts, instruction, self.max_length, progress=self.progress)

    def relevance(self, queries: Sequence[str], documents: Sequence[str]) -> Any:
        """See `Endpoint.relevance`."""
        return self.endpoint.relevance(queries, documents, progress=self.progress)


class MtebEncoder:
    """mteb's encoder protocol.

    Attributes:
      instructions: of each task, by its name.
      mteb_model_meta: mteb's description of the model.
    """

    def __init__(
        self, texts: TextModel, instructions: Mapping[str, TaskInstruction], meta: Any
    ) -> None:
        self.texts, self.instructions, self.mteb_model_meta = texts, instructions, meta

    def encode(
        self,
        inputs: Batches,
        *,
        task_metadata: Any,
        prompt_type: Any = None,
        **options: Any,
    ) -> Float[np.ndarray, "N D"]:
        """Unit vectors of the texts of all batches together, in their order."""
        return self.encode_texts(texts_of(inputs), task_metadata.name, is_document(prompt_type))

    def encode_texts(
        self, texts: Sequence[str], task: str, document: bool
    ) -> Float[np.ndarray, "N D"]:
        """Unit vectors of texts of a task, with the instruction that they get there."""
        return self.texts.encode(texts, self.instructions[task].of(document))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all pairs, by mteb's own function."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of vectors side by side, by mteb's own function."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


class MtebSearch(MtebEncoder):
    """mteb's search protocol beside that of an encoder: retrieval and reranking tasks are searched
    with an index of this package, all others are those of `MtebEncoder`.

    Args:
      model: with which the index is built; its vectors are those of `texts`.
      retrieval: what searches: vectors, words, or both.
      settings: the precision and the number of dimensions of the search by vectors.
    """

    def __init__(
        self,
        model: GritLM,
        encoder: MtebEncoder,
        retrieval: Retrieval = Retrieval(),
        settings: SearchSettings = SearchSettings(),
    ) -> None:
        super().__init__(encoder.texts, encoder.instructions, encoder.mteb_model_meta)
        self.model, self.retrieval, self.settings = model, retrieval, settings
        self._index: Index | None = None
        self._rows: dict[str, int] = {}  # of the index, by document
        self._folder: TemporaryDirectory[str] | None = None

    def index(self, corpus: Any, *, task_metadata: Any, **options: Any) -> None:
        """Builds an index of the corpus in a folder that exists as long as it is searched.

        Documents without any text cannot be found; a warning counts them.
        """
        self._close()
        self._folder = TemporaryDirectory(prefix="grit-mteb-")
        folder = Path(self._folder.name)
        empty = 0
        ids = []
        with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
            for row in corpus:
                text = document_text(row)
                if not text:
                    empty += 1
                    continue
                ids.append(str(row["id"]))
                file.write(json.dumps({"id": ids[-1], "text": text}) + "\n")
        if empty:
            warnings.warn(
                f"{task_metadata.name}: {empty} documents have no text and cannot be found",
                stacklevel=2,
            )
        max_length = getattr(self.texts, "max_length", None)
        options_ = IndexOptions(kv="none", max_length=self._length(max_length))
        summary = build_index(
            self.model, folder / "corpus.jsonl", folder / "index", options_, quiet=True
        )
        self.texts.truncated = (self.texts.truncated or 0) + summary.documents_truncated
        self._index = Index.open(folder / "index", self.model, self.settings)
        self._rows = {str(self._index.documents[row]["id"]): row for row in range(len(ids))}

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> dict[str, dict[str, float]]:
        """The best documents of each query with their scores; of its candidates alone, where
        `top_ranked` has them."""
        index, rows = self._index, self._rows
        if index is None:
            raise ValueError("search: there is no index yet")
        names = [str(name) for name in queries["id"]]
        texts = query_texts(queries)
        vectors = None
        if self.retrieval.search != "lexical":
            vectors = self.encode_texts(texts, task_metadata.name, document=False)
        id_of = {row: name for name, row in rows.items()}
        results: dict[str, dict[str, float]] = {}
        if top_ranked is None:
            hits = index.find(texts, vectors, min(top_k, len(rows)), self.retrieval)
            for name, found in zip(names, hits, strict=True):
                results[name] = _scores(found, id_of)
        else:
            for i, name in enumerate(names):
                candidates = [rows[str(d)] for d in top_ranked.get(name, ()) if str(d) in rows]
                results[name] = {}
                if not candidates:
                    continue
                allowed = np.zeros(len(rows), bool)
                allowed[candidates] = True
                query = None if vectors is None else vectors[i : i + 1]
                k = min(top_k, len(candidates))
                [found] = index.find([texts[i]], query, k, self.retrieval, allowed)
                results[name] = _scores(found, id_of)
        self._close()
        return results

    def _length(self, max_length: int | None) -> int | None:
        """Tokens of a document; None: the default of an index, lowered to the context."""
        if max_length is None or max_length is MAX_LENGTH:
            return min(MAX_LENGTH, self.model.config.context_length)
        return max_length

    def _close(self) -> None:
        self._index, self._rows = None, {}
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class MtebCrossEncoder:
    """mteb's cross-encoder protocol: the generative head judges each document with its query."""

    def __init__(self, texts: TextModel, meta: Any) -> None:
        self.texts, self.mteb_model_meta = texts, meta

    def predict(
        self, inputs1: Batches, inputs2: Batches, **options: Any
    ) -> Float[np.ndarray, " P"]:
        """The relevance of each document of `inputs2` to the query beside it."""
        return np.asarray(self.texts.relevance(texts_of(inputs1), texts_of(inputs2)))


def texts_of(batches: Batches) -> list[str]:
    """The texts of mteb's batches; of a document its title and text, as mteb joins them."""
    return [str(text) for batch in batches for text in batch["text"]]


def is_document(prompt_type: Any) -> bool:
    """Whether mteb says that texts are documents."""
    return getattr(prompt_type, "value", prompt_type) == "document"


def document_text(row: Mapping[str, Any]) -> str:
    """The text of a document of a corpus, as mteb's encoders get it: `{title} {text}`."""
    title = row.get("title") or ""
    return f"{title} {row['text']}".strip() if title else row["text"].strip()


def query_texts(queries: Any) -> list[str]:
    """The texts of queries, as mteb's encoders get them: an instruction of the data set follows."""
    texts = [str(text) for text in queries["text"]]
    if "instruction" not in queries.column_names:
        return texts
    pairs = zip(texts, queries["instruction"], strict=True)
    return [text if extra is None else f"{text} {extra}" for text, extra in pairs]


def _scores(hits: Any, id_of: Mapping[int, str]) -> dict[str, float]:
    rows, scores = np.asarray(hits.rows).tolist(), np.asarray(hits.scores).tolist()
    return {id_of[row]: float(score) for row, score in zip(rows, scores, strict=True)}


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What mteb records of a model.

    Attributes:
      name: `organization/model`; results are kept under it.
      revision: of the weights; results of another one are not taken for it.
      experiment: settings that change scores, other than the defaults.
    """

    name: str
    revision: str
    max_tokens: int | None = None
    width: int | None = None
    parameters: int | None = None
    embedding_parameters: int | None = None
    experiment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_cross_encoder: bool = False

    def meta(self) -> Any:
        """As mteb's `ModelMeta`."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        return ModelMeta.create_empty(
            {
                "name": self.name,
                "revision": self.revision,
                "max_tokens": self.max_tokens,
                "embed_dim": self.width,
                "n_parameters": self.parameters,
                "n_embedding_parameters": self.embedding_parameters,
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["GritLM", "JAX"],
                "use_instructions": True,
                "model_type": ["cross-encoder" if self.is_cross_encoder else "dense"],
                "experiment_kwargs": dict(self.experiment) or None,
            }
        )
