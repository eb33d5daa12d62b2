"""What a model directory says before and beside its weights: its shape, which weights they are, and
how it formats texts and conversations."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf.directory import (
    GRIT_FILE,
    SENTENCE_FORMAT,
    DirectorySettings,
    read_model_directory,
    read_settings,
)
from grit_jax.models.hf.sentence_transformers import SentenceModules, modules_for_prompt
from grit_jax.models.pooling import PoolingMethod
from grit_jax.models.weights_hash import WeightsHash
from grit_jax.runtime.files import read_json
from grit_jax.text.chat import FORMATS, GRIT, ChatFormat, SentenceFormat
from grit_jax.text.chat_template import ChatTemplate
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.types import AttentionMode


@dataclasses.dataclass(frozen=True)
class Formats:
    """What a directory and its tokenizer say together.

    Attributes:
      chat: the format of texts, RAG layouts and, unless there is a template, conversations.
      template: a chat template that is none of our formats.
      sentence: what sentence-transformers does with the model, where texts are read its way.
    """

    chat: ChatFormat
    template: ChatTemplate | None = None
    sentence: SentenceModules | None = None


def model_shape(path: Path) -> ModelConfig:
    """The configuration of a model directory, without its weights and without its warnings, which
    come when it is opened."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_model_directory(path, with_params=False).config


class WeightFiles:
    """The weights of a directory as they are now, to be hashed when that is asked for.

    Args:
      path: of a model directory.
    """

    def __init__(self, path: Path):
        self._path = path
        self._state = self._files()

    def hexdigest(self, config: ModelConfig) -> str:
        """`WeightsHash` of the weights, read again one by one.

        Raises:
          GritError: the files have changed or are gone.
        """
        digest = WeightsHash(config)
        self.visit(digest.add, "bfloat16")
        return digest.hexdigest()

    def visit(self, take: Callable[[str, np.ndarray], Any], dtype: str) -> None:
        """Reads the weights again and passes each one on, with its name.

        Raises:
          GritError: the files have changed or are gone.
        """
        if self._files() == self._state:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_model_directory(self._path, dtype, place=take)
        if self._files() != self._state:
            raise GritError(f"{self._path}: its weights have changed since they were read")

    def _files(self) -> list[tuple[str, int, int]]:
        paths = [*self._path.glob("*.safetensors"), *self._path.glob("*_Dense/*.safetensors")]
        states = ((path, path.stat()) for path in sorted(paths))
        return [(str(path), state.st_size, state.st_mtime_ns) for path, state in states]


def text_settings(path: Path, tokenizer: Tokenizer) -> tuple[ChatFormat, AttentionMode]:
    """How the model of a directory reads conversations: their format and attention. The directory
    needs no weights.

    Raises:
      GritError: as `formats_of`, or a damaged file.
    """
    settings = DirectorySettings(chat_format=None)
    if (path / GRIT_FILE).exists():
        configuration = path / "config.json"
        hf = read_json(configuration) if configuration.exists() else {}
        settings, _ = read_settings(path, hf)
    return formats_of(path, settings, tokenizer).chat, settings.generation_mode


def formats_of(path: Path, settings: DirectorySettings, tokenizer: Tokenizer) -> Formats:
    """The formats of a model.

    A format that grit.json names counts first. Otherwise conversations follow the directory's chat
    template, and texts the files of sentence-transformers, if there are any: as one of our formats
    where they say the same (as those of an export of ours do), else word for word.

    Raises:
      GritError: an unknown format, or a pooling of sentence-transformers that ours is not.
    """
    name = settings.chat_format
    if name not in (None, SENTENCE_FORMAT, *FORMATS):
        raise GritError(f"{path}: chat format '{name}' is unknown; known: {', '.join(FORMATS)}")
    if name in FORMATS:
        return Formats(tokenizer.format(FORMATS[str(name)]))
    chat, template = tokenizer.format(GRIT), ChatTemplate.from_pretrained(path, tokenizer)
    own = (tokenizer.bos_token, tokenizer.eos_token)
    known = [each for item in FORMATS.values() for each in (item, item.with_tokens(*own))]
    same = next((each for each in known if template and each.jinja() == template.source), None)
    if same is not None:
        chat, template = same, None
    sentence = settings.sentence
    if sentence is None:
        return Formats(chat, template)
    begin, end = tokenizer.added_around()
    for each in dict.fromkeys((chat, *map(tokenizer.format, FORMATS.values()))):
        if not end and _same_texts(sentence, begin, each):
            return Formats(each, template)
    if sentence.pooling == "weightedmean" and not sentence.include_prompt:
        raise GritError(
            f"{path / '1_Pooling' / 'config.json'}: weightedmean pooling that leaves the prompt out"
            " counts places from the start of the text in sentence-transformers and is not"
            " supported; set 'include_prompt' to true if the model was trained so"
        )
    others = [name for name, text in sentence.prompts.items() if text != sentence.default_prompt]
    if others:
        default = sentence.default_prompt_name
        warnings.warn(
            f"{path}: texts are read as sentence-transformers reads them,"
            f" {f'with its prompt {default!r}' if default else 'without a prompt'}; it has other"
            f" prompts ({', '.join(others)}), which are given as the instruction"
            " (GritLM.prompts has them)",
            stacklevel=3,
        )
    chat = SentenceFormat.of(
        chat,
        begin=begin,
        prompt=sentence.default_prompt,
        end=end,
        pools_prompt=sentence.include_prompt,
        special_tokens=tokenizer.special_tokens,
    )
    return Formats(chat, template, sentence)


def modules_of(chat: ChatFormat, pooling: PoolingMethod, tokenizer: Tokenizer) -> SentenceModules:
    """How sentence-transformers embeds as `GritLM.encode` does with a format of ours."""
    begin, _ = tokenizer.added_around()
    # Its tokenizer adds the beginning of sequence, if it does so for every text.
    return modules_for_prompt(pooling, ("" if begin == chat.bos else chat.bos) + chat.embed_bare)


def _same_texts(sentence: SentenceModules, begin: str, chat: ChatFormat) -> bool:
    """Whether sentence-transformers reads a text without an instruction as a format of ours."""
    ours = modules_for_prompt(sentence.pooling, sentence.default_prompt)
    pooled = sentence.include_prompt == ours.include_prompt or sentence.pooling == "lasttoken"
    return pooled and begin + sentence.default_prompt == chat.bos + chat.embed_bare
