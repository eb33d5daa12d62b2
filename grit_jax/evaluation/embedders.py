"""What turns the texts of a retrieval task into vectors: a model in this process, or a server.

The vectors of a large corpus go to a file, a block of texts at a time: memory holds one block. In a
folder that is kept, a run that was killed goes on after its last whole block, and another run over
the same documents reads the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from grit_jax.data.formats import Text
from grit_jax.evaluation.endpoint import Endpoint
from grit_jax.evaluation.retrieval import encode_texts
from grit_jax.evaluation.retrieval_data import Documents, RetrievalTask
from grit_jax.inference.blocks import model_identity
from grit_jax.inference.model import GritLM
from grit_jax.rag.search.exact import StoredVectors
from grit_jax.runtime.files import lock_folder, read_json, writable_folder, write_json
from grit_jax.runtime.progress import progress
from grit_jax.text.length import MAX_LENGTH, length_limit

BLOCK = 4096  # documents that are encoded together, and the most that a killed run loses


class Embedder(Protocol):
    """Makes unit vectors of texts.

    Attributes:
      name: of the model, for reports. mesh: where vectors are searched; None: the default device.
      counts_truncated: whether `embed` knows how many texts were truncated; if not, it says 0.
    """

    name: str
    mesh: Mesh | None
    counts_truncated: bool

    def embed(self, texts: Sequence[Text], *, show: bool = True) -> tuple[np.ndarray, int]:
        """Vectors `[N, D]`, float32, and how many texts were truncated."""

    def identity(self) -> str:
        """What the vectors depend on beside the texts, as a string."""


class ModelEmbedder:
    """A model in this process.

    Args:
      max_length: tokens of a text, instruction and tags included.

    Raises:
      GritError: a `max_length` beyond the model's context.
    """

    def __init__(self, model: GritLM, name: str = "", max_length: int = MAX_LENGTH):
        self.model, self.name, self.mesh = model, name, model.mesh
        self.max_length = length_limit(max_length, model.config.context_length)
        self.counts_truncated = True

    def embed(self, texts: Sequence[Text], *, show: bool = True) -> tuple[np.ndarray, int]:
        return encode_texts(self.model, texts, self.max_length, quiet=not show)

    def identity(self) -> str:
        return f"{model_identity(self.model)} {self.max_length}"


class EndpointEmbedder:
    """A model behind a URL. How many texts it truncates is not known.

    Args:
      max_length: tokens of a text; None: as the server does by itself.
    """

    def __init__(self, endpoint: Endpoint, max_length: int | None = None):
        self.endpoint, self.name = endpoint, repr(endpoint)
        self.mesh: Mesh | None = None
        self.max_length, self.counts_truncated = max_length, False

    def embed(self, texts: Sequence[Text], *, show: bool = True) -> tuple[np.ndarray, int]:
        numbers: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            numbers.setdefault(text.instruction or "", []).append(number)
        vectors: np.ndarray | None = None
        for instruction, group in numbers.items():
            block = self.endpoint.encode(
                [texts[i].text for i in group], instruction, self.max_length, progress=show
            )
            if vectors is None:
                vectors = np.zeros((len(texts), block.shape[1]), np.float32)
            vectors[group] = block
        assert vectors is not None
        return vectors, 0

    def identity(self) -> str:
        return f"{self.endpoint!r} {self.max_length}"


@dataclasses.dataclass(frozen=True)
class DocumentVectors:
    """Vectors of all documents, in memory or mapped, and how many documents were truncated."""

    vectors: StoredVectors
    truncated: int


@contextlib.contextmanager
def document_vectors(
    task: RetrievalTask, embedder: Embedder, folder: Path | None = None
) -> Iterator[DocumentVectors]:
    """The vectors of a task's documents.

    Args:
      folder: keeps the vectors; the same run again goes on where a killed one stopped. None: a
        temporary folder, if the documents are more than one block.

    Raises:
      GritError: a vector that is not finite, or a folder that cannot be written.
    """
    if task.passages is not None or (folder is None and len(task.documents) <= BLOCK):
        texts = task.passages or [Text(None, document.content) for document in task.documents]
        yield DocumentVectors(*embedder.embed(texts))
    elif folder is not None:
        name = _name(task.documents, embedder)
        writable_folder(folder)
        with lock_folder(folder, "grit eval retrieval"):
            yield _stored(task.documents, embedder, folder / name)
    else:
        with tempfile.TemporaryDirectory(prefix="grit-") as temporary:
            yield _stored(task.documents, embedder, Path(temporary) / "documents")


def _stored(documents: Documents, embedder: Embedder, path: Path) -> DocumentVectors:
    """The vectors in `path`.npy, encoded as far as they are not there yet."""
    file, state = path.with_suffix(".npy"), path.with_suffix(".json")
    done = truncated = 0
    if state.exists() and file.exists():
        saved = read_json(state)
        done, truncated = saved["done"], saved["truncated"]
    stored = np.load(file, mmap_mode="r+") if done else None
    remaining = itertools.islice(iter(documents), done, None)
    with progress(len(documents), "encode", "documents", initial=done) as bar:
        while done < len(documents):
            block = [Text(None, d.content) for d in itertools.islice(remaining, BLOCK)]
            vectors, cut = embedder.embed(block, show=False)
            if stored is None:
                stored = np.lib.format.open_memmap(
                    file, "w+", np.float32, (len(documents), vectors.shape[1])
                )
            stored[done : done + len(block)] = vectors
            stored.flush()  # before the state says that it is there
            done, truncated = done + len(block), truncated + cut
            write_json(state, {"done": done, "truncated": truncated})
            bar.update(len(block))
    return DocumentVectors(np.load(file, mmap_mode="r"), truncated)


def _name(documents: Documents, embedder: Embedder) -> str:
    """A name that documents and what their vectors depend on decide."""
    content = hashlib.blake2b(digest_size=16)
    content.update(embedder.identity().encode())
    for document in documents:
        text = document.content.encode()
        content.update(len(text).to_bytes(8, "little") + text)
    return content.hexdigest()
