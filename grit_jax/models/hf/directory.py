"""Reading and writing model directories in Hugging Face's layout.

A directory written here opens in transformers (causal), in sentence-transformers (as the model
embeds) and in vLLM. Settings that those formats cannot express are in `grit.json`. A directory of
sentence-transformers without it is read as that library reads it (`sentence_transformers.py`). The
tokenizer's files are read by `text/tokenizer.py`.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.read_config import config_from_hf, token_ids
from grit_jax.models.hf.sentence_transformers import (
    SentenceModules,
    modules_for_prompt,
    read_dense,
    read_modules,
    write_modules,
)
from grit_jax.models.hf.weights import MAX_SHARD_BYTES, load_params, read_along, save_params
from grit_jax.models.hf.write_config import config_to_hf
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.projection import Dense, dense_modules, read_projection, write_projection
from grit_jax.models.transformer import Params
from grit_jax.runtime.files import read_json, write_json
from grit_jax.types import AttentionMode

__all__ = [
    "GRIT_TAG",
    "SENTENCE_FORMAT",
    "DirectorySettings",
    "ModelDirectory",
    "config_from_hf",
    "config_to_hf",
    "load_params",
    "read_along",
    "read_model_directory",
    "read_settings",
    "save_params",
    "write_model_directory",
    "write_settings",
]

GRIT_FILE = "grit.json"
# The prompt of sentence-transformers for texts without an instruction; the tokenizer adds `<s>`.
GRIT_TAG = "<|embed|>\n"
# `chat_format` of a model whose texts are formatted by the files of sentence-transformers.
SENTENCE_FORMAT = "sentence-transformers"


@dataclasses.dataclass(frozen=True)
class DirectorySettings:
    """The settings of a model directory beside the model's shape and weights.

    Attributes:
      chat_format: name of the `ChatFormat` that it was trained with, or `SENTENCE_FORMAT`; None
        if none is named: then the directory's own chat template may be used.
      stop_token_ids: ids that end a generation (when writing: besides `config.eos_token_id`).
      sentence: the settings of sentence-transformers, if its files define how texts are read. When
        writing, None means those of the GRIT format, with a tokenizer that adds the beginning of
        sequence by itself.
    """

    pooling: PoolingMethod = "mean"
    embedding_mode: AttentionMode = AttentionMode.BIDIRECTIONAL
    generation_mode: AttentionMode = AttentionMode.CAUSAL
    chat_format: str | None = "grit"
    stop_token_ids: tuple[int, ...] = ()
    sentence: SentenceModules | None = None


@dataclasses.dataclass
class ModelDirectory:
    """A model as a directory has it.

    Attributes:
      params: name -> array, or None where only the description was asked for.
    """

    path: Path
    config: ModelConfig
    params: Params | None
    settings: DirectorySettings


def write_model_directory(
    directory: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    settings: DirectorySettings = DirectorySettings(),
    dtype: str = "float32",
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes everything of a model directory but the tokenizer.

    transformers generates from it causally; sentence-transformers embeds in
    `settings.embedding_mode`, the prompt's tokens attended to and not pooled, as `encode` does. (A
    directory that sentence-transformers has saved again says `is_causal: false` in config.json, and
    transformers no longer generates from that.)

    A projection among the weights goes into the Dense modules of sentence-transformers.

    Args:
      dtype: float32 or bfloat16.
      max_shard_bytes: see `save_params`.

    Raises:
      GritError: a config that no family of transformers can express, or an unknown pooling.
    """
    directory = Path(directory)
    hf = config_to_hf(config, dtype)  # may refuse: before anything is written
    _warn_of_differences(settings)
    save_params(directory, params, config, dtype, max_shard_bytes)
    write_json(directory / "config.json", hf)
    stops = (config.eos_token_id, *settings.stop_token_ids)
    ends = list(dict.fromkeys(i for i in stops if i is not None))
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends if len(ends) > 1 else config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    write_json(
        directory / "generation_config.json", {k: v for k, v in generation.items() if v is not None}
    )
    bidirectional = settings.embedding_mode is not AttentionMode.CAUSAL
    dense = dense_modules(params)
    modules = settings.sentence or modules_for_prompt(settings.pooling, GRIT_TAG)
    modules = dataclasses.replace(
        modules, pooling=settings.pooling, bidirectional=bidirectional, dense=tuple(dense)
    )
    # Of Gemma 3's two settings only its own one leaves the windows as wide as they are here.
    gemma3 = "use_bidirectional_attention" in hf
    key = "use_bidirectional_attention" if gemma3 else "is_causal"
    write_modules(directory, modules, config.hidden_size, key)
    write_projection(directory, params, dtype)
    write_settings(directory, settings, dense)  # the last file: a directory that has it is complete


def write_settings(
    directory: Path, settings: DirectorySettings, dense: Sequence[Dense], **more: Any
) -> None:
    """Writes grit.json.

    Args:
      dense: the Dense modules of the projection, in order.
      more: further keys, which `read_settings` does not read.
    """
    grit: dict[str, Any] = {
        "pooling": settings.pooling,
        "embedding_mode": settings.embedding_mode.value,
        "generation_mode": settings.generation_mode.value,
    }
    grit |= {} if settings.chat_format is None else {"chat_format": settings.chat_format}
    folders = [module.folder for module in dense]
    grit |= {"projection": folders[0] if len(folders) == 1 else folders} if folders else {}
    write_json(directory / GRIT_FILE, grit | more)


def read_model_directory(
    directory: str | Path,
    dtype: str = "float32",
    *,
    int8: bool = False,
    place: Callable[[str, Any], Any] | None = None,
    with_params: bool = True,
) -> ModelDirectory:
    """Reads a model directory: of ours, of sentence-transformers, or a plain Hugging Face one
    (mean pooling, bidirectional embedding, GRIT format).

    Args:
      dtype: of the weights, and of the computation (`config.dtype`).
      int8, place: see `load_params`.
      with_params: False reads the description alone.

    Raises:
      GritError: a file that is missing, damaged, or says something unknown.
    """
    directory = Path(directory)
    _check_model(directory)
    hf = read_json(directory / "config.json")
    config = config_from_hf(hf, str(directory / "config.json"))
    grit_path = directory / GRIT_FILE
    if grit_path.exists():
        settings, dense = read_settings(directory, hf)
    else:
        # GritLM's own hub directories have files of sentence-transformers, with which it would
        # embed causally and without its format; their code, named in auto_map, does not.
        original = "gritlm" in str(hf.get("auto_map"))
        sentence = None if original else read_modules(directory, hf)
        settings, dense = DirectorySettings(chat_format=None), ()
        if sentence is not None:
            mode = AttentionMode.BIDIRECTIONAL if sentence.bidirectional else AttentionMode.CAUSAL
            settings = dataclasses.replace(
                settings, pooling=sentence.pooling, embedding_mode=mode, sentence=sentence
            )
            dense = sentence.dense
            config = _without_head(directory, hf, config)
    stops: tuple[int, ...] = ()
    for file, content in (("generation_config.json", None), ("config.json", hf)):
        if content is None:
            content = read_json(directory / file) if (directory / file).exists() else {}
        stops += token_ids(content.get("eos_token_id"), f"{directory / file}: 'eos_token_id'")
    params = load_params(directory, config, dtype, int8=int8, place=place) if with_params else None
    if params is not None and dense:
        params |= read_projection(directory, dense, config.hidden_size, dtype, place)
    return ModelDirectory(
        path=directory,
        config=dataclasses.replace(config, dtype=dtype),
        params=params,
        settings=dataclasses.replace(settings, stop_token_ids=tuple(dict.fromkeys(stops))),
    )


def _check_model(directory: Path) -> None:
    """Raises GritError for what is no directory of a whole model."""
    if not directory.is_dir():
        raise GritError(f"{directory}: no such directory")
    if (directory / "config.json").is_file():
        return
    if (directory / "config.yaml").is_file() and (directory / "model" / "config.json").is_file():
        raise GritError(
            f"{directory}: the output folder of a training run; its model is {directory / 'model'}"
        )
    if files := sorted(directory.glob("*.gguf")):
        raise GritError(
            f"{directory}: no config.json there; import {files[0]} first: grit import FILE.gguf OUT"
        )
    adapter = directory / "adapter_config.json"
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        raise GritError(
            f"{directory}: a PEFT adapter, not a model ({adapter.name}, no config.json); merge it"
            f" into its base model{f' {base!r}' if base else ''} first: PeftModel"
            ".from_pretrained(base, DIR).merge_and_unload().save_pretrained(OUT)"
        )


def read_settings(
    directory: Path, hf: Mapping[str, Any]
) -> tuple[DirectorySettings, tuple[Dense, ...]]:
    """The settings of grit.json, and the Dense modules that it names.

    Args:
      hf: config.json of the directory.

    Raises:
      GritError: a damaged file, or a value that is not known.
    """
    path = directory / GRIT_FILE
    grit = read_json(path)

    def choice(key: str, known: Sequence[Any]) -> Any:
        value = grit.get(key, known[0])
        if value not in known:
            raise GritError(
                f"{path}: '{key}' must be one of {', '.join(map(str, known))}, got {value!r}"
            )
        return value

    chat_format = grit.get("chat_format")
    if chat_format is not None and not isinstance(chat_format, str):
        raise GritError(f"{path}: 'chat_format' must be the name of a format, got {chat_format!r}")
    folders = grit.get("projection") or []
    folders = [folders] if isinstance(folders, str) else folders
    if not isinstance(folders, list) or not all(
        isinstance(folder, str) and re.fullmatch(r"\d+_Dense", folder) for folder in folders
    ):
        raise GritError(
            f"{path}: 'projection' must be a folder like 2_Dense or a list of them, got"
            f" {grit['projection']!r}"
        )
    settings = DirectorySettings(
        pooling=choice("pooling", get_args(PoolingMethod)),
        embedding_mode=AttentionMode(
            choice("embedding_mode", [mode.value for mode in AttentionMode])
        ),
        generation_mode=AttentionMode(
            choice("generation_mode", [AttentionMode.CAUSAL.value, AttentionMode.PREFIX.value])
        ),
        chat_format=chat_format,
        sentence=read_modules(directory, hf) if chat_format == SENTENCE_FORMAT else None,
    )
    return settings, tuple(read_dense(directory, folder) for folder in folders)


def _without_head(directory: Path, hf: Mapping[str, Any], config: ModelConfig) -> ModelConfig:
    """The config of a model that was saved without its language-model head, as models that only
    embed are."""
    classes = hf.get("architectures") or [""]
    if config.tie_word_embeddings or not str(classes[0]).endswith("Model"):
        return config
    warnings.warn(
        f"{directory}: a {classes[0]}, saved without the head that predicts tokens; it embeds, and"
        " what it generates means nothing",
        stacklevel=3,
    )
    return dataclasses.replace(config, tie_word_embeddings=True)


def _warn_of_differences(settings: DirectorySettings) -> None:
    """Warns of what other libraries will compute differently from the directory."""
    if settings.pooling not in get_args(PoolingMethod):
        raise GritError(
            f"pooling must be one of {', '.join(get_args(PoolingMethod))}, got {settings.pooling!r}"
        )
    if settings.pooling == "weightedmean" and not (
        settings.sentence and settings.sentence.include_prompt
    ):
        warnings.warn(
            "weightedmean pooling: sentence-transformers counts a token's place from the start of"
            " the text, GRIT from the end of the prompt, so its vectors of this directory will"
            " differ from ours",
            stacklevel=3,
        )
    if settings.embedding_mode is AttentionMode.PREFIX:
        warnings.warn(
            "embedding_mode prefix: sentence-transformers has no causal instruction before a"
            " bidirectional text and embeds all of it bidirectionally, so its vectors of this"
            " directory will differ from ours",
            stacklevel=3,
        )
    if settings.generation_mode is AttentionMode.PREFIX:
        warnings.warn(
            "generation_mode prefix: transformers and vLLM read a prompt causally, so their answers"
            " from this directory will differ from ours",
            stacklevel=3,
        )
