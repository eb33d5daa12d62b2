"""A connection to Milvus: embedded (a file of the index, served by this process), or a server or
cluster by its URI."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grit_jax.errors import GritError

EMBEDDED = "milvus.db"  # in the index's folder
EMBEDDED_URI = "embedded"
SCHEMES = ("http", "https", "tcp", "unix")
TOKEN = "MILVUS_TOKEN"  # in the environment: never in a manifest
ROW, VECTOR = "row", "vector"  # the fields of a collection
SECONDS = 60.0  # for an answer

_embedded: collections.Counter[str] = collections.Counter()  # connections of this process by file


class MilvusServer:
    """A connection to Milvus. Its errors are raised as GritError with the file or the URI."""

    def __init__(self, folder: Path, uri: str | None):
        self.place = uri or str(folder / EMBEDDED)
        self._file = None if uri else os.path.abspath(folder / EMBEDDED)
        try:
            import pymilvus

            if self._file:
                import milvus_lite  # noqa: F401
        except ImportError:
            raise GritError(
                "Milvus needs packages that are not installed; install them with: pip install"
                " 'grit_jax[milvus]'"
            ) from None
        for logger in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)  # errors are raised instead
        self._pymilvus = pymilvus
        if self._file and not _embedded[self._file]:
            refuse_a_second_process(self._file)
        with self._errors():
            token = "" if self._file else os.environ.get(TOKEN, "")
            self._client = pymilvus.MilvusClient(
                uri=self._file or uri, token=token, timeout=SECONDS
            )
        if self._file:
            _embedded[self._file] += 1

    def __enter__(self) -> MilvusServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the last one of this process ends an embedded Milvus."""
        self._client.close()
        if self._file:
            _embedded[self._file] -= 1
            if not _embedded[self._file]:
                from milvus_lite import server_manager_instance

                server_manager_instance.release_server(self._file)

    def call(self, name: str, *args: Any, timeout: float | None = SECONDS, **kwargs: Any) -> Any:
        """Calls a method of the client."""
        with self._errors():
            return getattr(self._client, name)(*args, timeout=timeout, **kwargs)

    def create(self, name: str, dim: int) -> None:
        """Creates an empty collection. It has no index yet, or each flush would start to build
        one."""
        types, client = self._pymilvus.DataType, self._client
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(ROW, types.INT64, is_primary=True)
        schema.add_field(VECTOR, types.FLOAT_VECTOR, dim=dim)
        self.call("create_collection", name, schema=schema, consistency_level="Strong")

    def finish(self, name: str) -> None:
        """Makes what has been written searchable."""
        self.call("flush", name, timeout=None)
        if not self.call("list_indexes", name):
            index = self._client.prepare_index_params()
            index.add_index(VECTOR, index_type="AUTOINDEX", metric_type="IP")
            self.call("create_index", name, index, sync=False)  # loading it waits, where it must
        self.call("load_collection", name, timeout=None)

    def fits(self, name: str, dim: int) -> bool:
        """Whether a collection has the fields that `create` gives it."""
        fields = {f["name"]: f for f in self.call("describe_collection", name)["fields"]}
        return fields.keys() == {ROW, VECTOR} and int(fields[VECTOR]["params"].get("dim", 0)) == dim

    def query(self, name: str, **arguments: Any) -> list[dict[str, Any]]:
        """Rows of a collection, including everything written before."""
        return list(self.call("query", name, consistency_level="Strong", **arguments))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from grpc import RpcError

        try:
            yield
        except (self._pymilvus.MilvusException, RpcError, OSError) as error:
            what = (
                error.details()
                if isinstance(error, RpcError)
                else getattr(error, "message", None) or str(error)
            )
            hint = (
                f"is a Milvus server there, and does {TOKEN} fit?"
                if self._file is None
                else (
                    "where it is damaged, remove it and run the same grit index again, which fills"
                    " a new one"
                )
            )
            raise GritError(f"{self.place}: Milvus: {what}; {hint}") from None


def refuse_a_second_process(file: str) -> None:
    """Milvus Lite serves one process at a time and locks its folder for it."""
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        open(Path(file) / "LOCK", "rb") as lock,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GritError(
                f"{file}: another process has it open (or an Index of this process), and an"
                " embedded Milvus serves one at a time; wait until it is done, or move to a server"
                " with: grit index ... --milvus http://host:19530"
            ) from None


def checked_uri(uri: str) -> str | None:
    """The URI of a server; None is the embedded one."""
    if uri == EMBEDDED_URI:
        return None
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.path):
        raise GritError(
            f"--milvus: expected {EMBEDDED_URI} or a URI like http://host:19530, got {uri!r}"
        )
    if "@" in parts.netloc:
        raise GritError(
            f"--milvus: put credentials into the environment variable {TOKEN}, not into the URI"
        )
    return uri
