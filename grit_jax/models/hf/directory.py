"""Model directories in Hugging Face's layout: what stands in which file, and how to find one.

A directory written here opens in transformers (causal), in sentence-transformers (as the model
embeds) and in vLLM. What those formats have no word for stands in `grit.json`. The tokenizer's
files belong to `data/tokenizer.py`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.read_config import config_from_hf, token_ids
from grit_jax.models.hf.weights import MAX_SHARD_BYTES, load_params, read_along, save_params
from grit_jax.models.hf.write_config import config_to_hf
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.projection import (
    PROJECTION,
    PROJECTION_FOLDER,
    read_projection,
    write_projection,
)
from grit_jax.models.transformer import Params
from grit_jax.runtime.files import read_json, write_json
from grit_jax.types import AttentionMode

__all__ = [
    "GRIT_PROMPTS",
    "ModelDirectory",
    "config_from_hf",
    "config_to_hf",
    "load_params",
    "read_along",
    "read_model_directory",
    "resolve",
    "save_params",
    "write_model_directory",
]

GRIT_FILE = "grit.json"
# What sentence-transformers puts before a text without an instruction; the tokenizer itself adds
# the `<s>`.
GRIT_PROMPTS = {"query": "<|embed|>\n", "document": "<|embed|>\n"}


@dataclasses.dataclass
class ModelDirectory:
    """What a directory says of a model.

    Attributes:
      params: name -> array, or None where only the description was asked for.
      chat_format: name of the `ChatFormat` it was trained with, "grit" where nothing is said.
      names_chat_format: whether grit.json names one; if not, a chat template of the directory's own
        may count.
      stop_token_ids: every id that ends a generation.
    """

    path: Path
    config: ModelConfig
    params: Params | None
    pooling: PoolingMethod
    embedding_mode: AttentionMode
    generation_mode: AttentionMode
    chat_format: str
    stop_token_ids: tuple[int, ...]
    names_chat_format: bool = True


def write_model_directory(
    directory: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    pooling: PoolingMethod = "mean",
    dtype: str = "float32",
    *,
    embedding_mode: AttentionMode = AttentionMode.BIDIRECTIONAL,
    generation_mode: AttentionMode = AttentionMode.CAUSAL,
    chat_format: str | None = "grit",
    prompts: Mapping[str, str] | None = None,
    stop_token_ids: Sequence[int] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes everything of a model directory but the tokenizer.

    transformers generates from it causally; sentence-transformers embeds in `embedding_mode`, the
    prompt's tokens attended to and not pooled, as `encode` does. (One that sentence-transformers
    has saved again says `is_causal: false` in config.json, and transformers no longer generates
    from that.)

    A projection among the weights goes into a safetensors file of its own, in the Dense module of
    sentence-transformers; that applies it after pooling, which is the same (see
    `pooling.text_vectors`).

    Args:
      chat_format: name of the `ChatFormat` it was trained with; None: it goes by a chat template of
        its own.
      prompts: what sentence-transformers puts before a text, by kind; the one named `document` is
        its default. None: those of the GRIT format for a tokenizer that adds the beginning of
          sequence itself.
      stop_token_ids: ids that end a generation beside `config.eos_token_id`.

    Raises:
      GritError: a config that no family of transformers can express.
    """
    directory = Path(directory)
    hf = config_to_hf(config, dtype)  # may refuse: before anything is written
    if pooling not in get_args(PoolingMethod):
        raise GritError(
            f"pooling must be one of {', '.join(get_args(PoolingMethod))}, is {pooling!r}"
        )
    if pooling == "weightedmean":
        warnings.warn(
            "weightedmean pooling: sentence-transformers counts a token's place from the start of"
            " the text, GRIT from the end of the prompt, so its vectors of this directory will"
            " differ from ours",
            stacklevel=2,
        )
    if embedding_mode is AttentionMode.PREFIX:
        warnings.warn(
            "embedding_mode prefix: sentence-transformers has no causal instruction before a"
            " bidirectional text and embeds all of it bidirectionally, so its vectors of this"
            " directory will differ from ours",
            stacklevel=2,
        )
    if generation_mode is AttentionMode.PREFIX:
        warnings.warn(
            "generation_mode prefix: transformers and vLLM read a prompt causally, so their answers"
            " from this directory will differ from ours",
            stacklevel=2,
        )
    save_params(directory, params, config, dtype, max_shard_bytes)
    write_json(directory / "config.json", hf)
    stops = list(dict.fromkeys(i for i in (config.eos_token_id, *stop_token_ids) if i is not None))
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": stops if len(stops) > 1 else config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    write_json(
        directory / "generation_config.json", {k: v for k, v in generation.items() if v is not None}
    )
    projected = PROJECTION in params
    _write_sentence_transformers(
        directory, config, pooling, embedding_mode, dict(prompts or GRIT_PROMPTS), projected
    )
    if projected:
        write_projection(directory / PROJECTION_FOLDER, params, dtype)
    # The last file: a directory that has it is complete.
    grit = {
        "pooling": pooling,
        "embedding_mode": embedding_mode.value,
        "generation_mode": generation_mode.value,
    }
    grit |= {} if chat_format is None else {"chat_format": chat_format}
    grit |= {"projection": PROJECTION_FOLDER} if projected else {}
    write_json(directory / GRIT_FILE, grit)


def read_model_directory(
    directory: str | Path,
    dtype: str = "float32",
    *,
    place: Callable[[str, np.ndarray], Any] | None = None,
    with_params: bool = True,
) -> ModelDirectory:
    """Reads a model directory of ours, or a plain Hugging Face one (mean, bidirectional, GRIT
    format).

    Args:
      dtype: of the weights, and of the computation (`config.dtype`).
      place: see `load_params`.
      with_params: False reads the description alone.

    Raises:
      GritError: a file that is missing, damaged, or says something unknown.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise GritError(f"{directory}: no such directory")
    hf = read_json(directory / "config.json")
    config = config_from_hf(hf, str(directory / "config.json"))
    grit_path = directory / GRIT_FILE
    grit = read_json(grit_path) if grit_path.exists() else {}

    def choice(key: str, known: Sequence[Any]) -> Any:
        value = grit.get(key, known[0])
        if value not in known:
            raise GritError(
                f"{grit_path}: '{key}' must be one of {', '.join(map(str, known))}, is {value!r}"
            )
        return value

    pooling = choice("pooling", get_args(PoolingMethod))
    mode = AttentionMode(choice("embedding_mode", [mode.value for mode in AttentionMode]))
    generation_mode = AttentionMode(
        choice("generation_mode", [AttentionMode.CAUSAL.value, AttentionMode.PREFIX.value])
    )
    projected = choice("projection", (None, PROJECTION_FOLDER)) is not None
    chat_format = grit.get("chat_format", "grit")
    if not isinstance(chat_format, str):
        raise GritError(
            f"{grit_path}: 'chat_format' must be the name of a format, is {chat_format!r}"
        )
    stops: tuple[int, ...] = ()
    for file, content in (("generation_config.json", None), ("config.json", hf)):
        if content is None:
            content = read_json(directory / file) if (directory / file).exists() else {}
        stops += token_ids(content.get("eos_token_id"), f"{directory / file}: 'eos_token_id'")
    params = load_params(directory, config, dtype, place=place) if with_params else None
    if params is not None and projected:
        params |= read_projection(directory / PROJECTION_FOLDER, config.hidden_size, dtype, place)
    return ModelDirectory(
        path=directory,
        config=dataclasses.replace(config, dtype=dtype),  # type: ignore[arg-type]
        params=params,
        pooling=pooling,  # type: ignore[arg-type]
        embedding_mode=mode,
        generation_mode=generation_mode,
        chat_format=chat_format,
        stop_token_ids=tuple(dict.fromkeys(stops)),
        names_chat_format="chat_format" in grit,
    )


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The directory of a model: `source` itself, or a download of that hub id (weights, JSON,
    tokenizer).

    Raises:
      GritError: absent model: no such directory, and not on the hub, or the hub cannot be reached.
    """
    if not str(source).strip():
        raise GritError("the model's name is empty; give a model directory or a hub id")
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return path
    if path.exists():
        raise GritError(
            f"{source}: a file; expected a model directory (with config.json in it) or a hub id"
        )
    if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", str(source)):
        raise GritError(f"{source}: absent model: no such directory")
    import huggingface_hub  # slow to import, and a local directory does not need it

    try:
        folder = huggingface_hub.snapshot_download(
            str(source),
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.model", "*.jinja"],
            # Mistral's and Meta's own copies of the weights; modules of sentence-transformers begin
            # with a number.
            ignore_patterns=["[!0-9]*/*.safetensors", "consolidated*"],
        )
    except (
        Exception
    ) as error:  # many kinds: not found, gated, offline, no network; all mean the same here
        reason = str(error).strip().partition("\n")[0]
        raise GritError(
            f"{source}: absent model: no such directory, and the hub gave none"
            f" ({type(error).__name__}: {reason}); check the name, the network, and HF_TOKEN for a"
            " gated model"
        ) from None
    return Path(folder)


def _write_sentence_transformers(
    directory: Path,
    config: ModelConfig,
    pooling: str,
    mode: AttentionMode,
    prompts: dict[str, str],
    projected: bool,
) -> None:
    """The files of sentence-transformers 5.4 and later, read by older ones as well (legacy module
    paths)."""
    normalize = "3_Normalize" if projected else "2_Normalize"
    dense = [("Dense", PROJECTION_FOLDER)] if projected else []
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *dense, ("Normalize", normalize)]
    write_json(
        directory / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(modules)
        ],
    )
    causal = mode is AttentionMode.CAUSAL
    write_json(directory / "sentence_bert_config.json", {"config_args": {"is_causal": causal}})
    (directory / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        directory / "1_Pooling" / "config.json",
        {
            "embedding_dimension": config.hidden_size,
            "pooling_mode": pooling,
            # `cls` is the very first token; the others leave the prompt out, or end behind it
            # anyway.
            "include_prompt": pooling == "cls",
        },
    )
    (directory / normalize).mkdir(exist_ok=True)
    write_json(directory / normalize / "config.json", {})
    write_json(
        directory / "config_sentence_transformers.json",
        {
            "prompts": prompts,
            "default_prompt_name": "document" if "document" in prompts else None,
            "similarity_fn_name": "cosine",
        },
    )
