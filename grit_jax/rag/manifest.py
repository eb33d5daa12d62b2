"""The manifest of an index, `index.json`: what made the index, where its parts are, and how much of
its files is committed.

Replacing the manifest is what commits a change. It is read (`read_manifest`) and written
(`write_manifest`) here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.runtime.files import write_json

FORMAT_VERSION = 3
# Format 2 had no identity, called deleted rows dead, and kept a relative store as it was typed.
OLDEST_FORMAT = 2
MANIFEST = "index.json"
KV_FOLDER = "kv"  # of the records, where they are kept in the index's folder
AGAIN = "make the index again with: grit index"


@dataclasses.dataclass(frozen=True)
class MilvusCollection:
    """The Milvus collection of an index.

    Attributes:
      uri: of the server; None: embedded, in the index's folder.
      name: drawn at random for each index; the collection's name is this and the generation.
      generation, rows, deleted: how much of the index's files the collection holds.
    """

    uri: str | None
    name: str
    generation: int = 0
    rows: int = 0
    deleted: int = 0


@dataclasses.dataclass(frozen=True)
class LexicalFiles:
    """The BM25 index of an index.

    Attributes:
      folder: its name in the index's folder.
      generation, rows, deleted: how much of the index's files it covers.
      words: version of the way texts are split into words.
    """

    folder: str
    generation: int
    rows: int
    deleted: int
    words: int


@dataclasses.dataclass(frozen=True)
class IndexManifest:
    """What `index.json` holds.

    Attributes:
      model: identity of the model (`RecordIdentity.to_json`).
      kv: how records are kept: a codec's kind, "native", or "none".
      dim: dimensions of the vectors.
      max_length: tokens of a document; what is beyond is not in the index.
      index_id: drawn at random when the index is made; its document stores carry it. Empty for an
        index of format 2 that has not been written to since.
      folder: absolute path of the index when it was last written to.
      compression: `RecordIdentity.compression` of the records; None before the store is made.
      store: where the records are: a URL, an absolute path, or a path relative to the index's
        folder; None: `kv` in that folder.
      milvus, lexical: the copies of the documents that search them, if there are any.
      documents, tokens: of the rows that are not deleted.
      rows, deleted, documents_bytes: of the files, deleted rows included.
      generation: of the files; see `index_files`.
      complete: the whole corpus is indexed.
    """

    model: dict[str, Any]
    pooling: str
    kv: str
    dim: int
    max_length: int
    index_id: str = ""
    folder: str = ""
    compression: str | None = None
    store: str | None = None
    milvus: MilvusCollection | None = None
    lexical: LexicalFiles | None = None
    documents: int = 0
    tokens: int = 0
    rows: int = 0
    deleted: int = 0
    documents_bytes: int = 0
    generation: int = 0
    complete: bool = False
    format: int = FORMAT_VERSION

    @property
    def was_filled(self) -> bool:
        """Whether it has documents, or had some that were deleted since."""
        return self.rows > 0 or self.generation > 0

    @property
    def relative_store_of_format_2(self) -> bool:
        """True if `store` is relative to a working directory that is no longer known."""
        return (
            self.format == OLDEST_FORMAT
            and self.store is not None
            and "://" not in self.store
            and not os.path.isabs(self.store)
        )


COUNTS = ("dim", "max_length", "documents", "tokens", "rows", "deleted", "documents_bytes")
REQUIRED = ("model", "kv", "compression", "store", "pooling", "complete", "generation", *COUNTS)


def new_index_id() -> str:
    """An identity for a new index."""
    return secrets.token_hex(16)


def read_manifest(path: Path) -> IndexManifest:
    """The manifest of the index in folder `path`.

    Raises:
      GritError: there is none, it cannot be read, or it has a format that this version does not
        read.
    """
    try:
        values = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise GritError(
            f"{path}: there is no index; make one with: grit index MODEL --input corpus.jsonl"
            f" --output {path}"
        ) from None
    except (OSError, ValueError) as error:
        raise GritError(f"{path / MANIFEST}: cannot be read ({error}); {AGAIN}") from None
    if not isinstance(values, dict) or "format" not in values:
        raise GritError(f"{path / MANIFEST}: is not the manifest of an index; {AGAIN}")
    if values["format"] not in (OLDEST_FORMAT, FORMAT_VERSION):
        raise GritError(
            f"{path}: the index has format {values['format']}, this version reads formats"
            f" {OLDEST_FORMAT} and {FORMAT_VERSION}; {AGAIN}"
        )
    if values["format"] == OLDEST_FORMAT:
        values = _from_format_2(values)
    if not _is_valid(values):
        raise GritError(f"{path / MANIFEST}: is not the manifest of an index; {AGAIN}")
    names = {field.name for field in dataclasses.fields(IndexManifest)}
    known = {name: value for name, value in values.items() if name in names}
    if known.get("milvus") is not None:
        known["milvus"] = MilvusCollection(**known["milvus"])
    if known.get("lexical") is not None:
        known["lexical"] = LexicalFiles(**known["lexical"])
    return IndexManifest(**known)


def _from_format_2(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 2 with the names of today."""
    values = {("deleted" if name == "dead" else name): value for name, value in values.items()}
    if isinstance(values.get("milvus"), dict):
        values["milvus"] = {
            ("deleted" if name == "dead" else name): value
            for name, value in values["milvus"].items()
        }
    return values


def _is_valid(values: dict[str, Any]) -> bool:
    if any(name not in values for name in REQUIRED):
        return False
    counts = [values[name] for name in (*COUNTS, "generation")]
    milvus, lexical = values.get("milvus"), values.get("lexical")
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and isinstance(values["model"], dict)
        and all(isinstance(values[name], str) for name in ("kv", "pooling"))
        and all(isinstance(values[name], (str, type(None))) for name in ("store", "compression"))
        and all(isinstance(values.get(name, ""), str) for name in ("index_id", "folder"))
        and (milvus is None or _has_fields(milvus, MilvusCollection))
        and (lexical is None or _is_valid_lexical(lexical))
    )


def _is_valid_lexical(values: Any) -> bool:
    return (
        _has_fields(values, LexicalFiles) and os.path.basename(values["folder"]) == values["folder"]
    )


def _has_fields(values: Any, type_: type) -> bool:
    return isinstance(values, dict) and set(values) == {f.name for f in dataclasses.fields(type_)}


def write_manifest(path: Path, manifest: IndexManifest) -> None:
    """Replaces the manifest; a reader sees the old one or the new one."""
    write_json(path / MANIFEST, dataclasses.asdict(manifest))


# ---- where records are ---------------------------------------------------------------------------


def store_location(store: str, path: Path) -> str:
    """A store as the manifest of the index in `path` keeps it.

    Args:
      store: a URL, or a path relative to the working directory.

    Returns:
      A URL as it is; a path inside the index's folder relative to that folder, so that they can be
      moved together; any other path absolute, so that it is the same place from everywhere.

    Raises:
      GritError: the index's folder itself.
    """
    if "://" in store:
        return store.rstrip("/")
    absolute = Path(os.path.abspath(Path(store).expanduser()))
    folder, target = path.resolve(), absolute.resolve()
    if target == folder:
        raise GritError(f"--store {store}: is the folder of the index; choose another one")
    if target.is_relative_to(folder):
        return str(target.relative_to(folder))
    return str(absolute)


def store_path(path: Path, manifest: IndexManifest, generation: int | None = None) -> str:
    """Path or URL of an index's document store; that of the committed generation by default."""
    store = manifest.store or KV_FOLDER
    if "://" in store or manifest.relative_store_of_format_2:
        base = store.rstrip("/")
    else:
        base = str(path / store).rstrip("/")
    generation = manifest.generation if generation is None else generation
    return f"{base}.{generation}" if generation else base


def keeps_records_inside(manifest: IndexManifest) -> bool:
    """Whether the document store is in the index's folder."""
    store = manifest.store
    return store is None or (manifest.format > OLDEST_FORMAT and _is_relative(store))


def _is_relative(store: str) -> bool:
    return "://" not in store and not os.path.isabs(store)
