"""How a model is served: names, limits, keys."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from grit_jax.errors import GritError
from grit_jax.runtime.files import home_path

MIB = 2**20
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclasses.dataclass(frozen=True)
class ServeLimits:
    """What a request may ask for. More is a 400, a body that is too large a 413, and one request
    too many a 429.

    Attributes:
      body_bytes: of a request.
      items: inputs of an embedding request, prompts of a completion (OpenAI's limit).
      tokens: of all inputs of a request together (OpenAI's limit for embeddings).
      choices: answers to a request: `n` times its prompts.
      stops: stop strings.
      queue: requests that wait for a slot or for a batch of embeddings.
    """

    body_bytes: int = 32 * MIB
    items: int = 2048
    tokens: int = 300_000
    choices: int = 128
    stops: int = 16
    queue: int = 256


@dataclasses.dataclass(frozen=True)
class ServeSettings:
    """How a model is served.

    Attributes:
      name: what the `model` field of requests says.
      slots: answers that are generated together.
      context: tokens of a slot, records, prompt and answer; None: what `default_context` says.
      instruction: of embedding requests with `input_type` "query" and no instruction of their own.
      indices: folders of indices by the names under which they are served.
      adapters: folders of adapters by the names with which requests choose them.
      tool_parser: how the model writes calls of functions (`tool_calls.FORMATS`); None: as its chat
        template shows.
      api_keys: requests must carry one of them; empty: no key is needed.
      warm_up: compile everything before the server is ready.
      grace: seconds that open requests have after SIGTERM.
      files: the folder of uploaded files, which can be added to the stores; None: the stores are
        only read.
      traces_endpoint: of OTLP over HTTP, to which spans of requests are sent; None: no tracing.
    """

    name: str
    slots: int = 16
    context: int | None = None
    instruction: str = ""
    indices: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    adapters: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    tool_parser: str | None = None
    api_keys: Sequence[str] = ()
    limits: ServeLimits = ServeLimits()
    warm_up: bool = True
    grace: float = 120.0
    files: Path | None = None
    traces_endpoint: str | None = None


def read_indices(arguments: Sequence[str]) -> dict[str, Path]:
    """Indices by name, from `NAME=PATH` each.

    Raises:
      GritError: another form, a name that a URL cannot hold, or a name given twice.
    """
    return _by_name("--index", "an index", arguments, "PATH")


def read_adapters(arguments: Sequence[str], model: str) -> dict[str, Path]:
    """Adapters by name, from `NAME=DIR` each.

    Args:
      model: the name of the model itself.

    Raises:
      GritError: as `read_indices`, or the name of the model.
    """
    adapters = _by_name("--adapter", "an adapter", arguments, "DIR")
    if model in adapters:
        raise GritError(
            f"--adapter {model}={adapters[model]}: the model itself has this name; choose another,"
            " or give the model one with --name"
        )
    return adapters


def _by_name(flag: str, kind: str, arguments: Sequence[str], value: str) -> dict[str, Path]:
    """Paths by name, from `NAME=value` each."""
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or not path or not _NAME.fullmatch(name):
            raise GritError(
                f"{flag} {argument}: expected NAME={value}, NAME of letters, digits, '.', '_', '-'"
            )
        if name in paths:
            raise GritError(f"{flag} {argument}: there is {kind} named {name} already")
        paths[name] = home_path(path)
    return paths


def read_api_keys(path: Path) -> list[str]:
    """The keys of a file, one a line; empty lines and lines that begin with # are left out.

    Raises:
      GritError: the file cannot be read or has no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise GritError(f"--api-keys {path}: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not keys:
        raise GritError(f"--api-keys {path}: there is no key in this file; put one on each line")
    return keys
