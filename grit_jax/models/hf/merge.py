"""A model directory made of a base's directory and an adapter's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.models.hf.directory import (
    GRIT_FILE,
    read_model_directory,
    write_model_directory,
)
from grit_jax.models.hf.peft import Adapter, read_adapter
from grit_jax.models.lora import attach
from grit_jax.models.weights_hash import WeightsHash
from grit_jax.text.chat import FORMATS
from grit_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Merged:
    """What a merged model was made of.

    Attributes:
      base_weights: `WeightsHash` of the base's weights.
    """

    adapter: Adapter
    base_weights: str


def write_merged(base: Path, adapter: Path, out: Path) -> Merged:
    """Writes the model directory that `grit export` writes for the run that trained the adapter.

    Weights are merged and written in float32.

    Args:
      base: directory of the model that the adapter is added to.
      adapter: directory that `write_adapter` wrote.

    Raises:
      GritError: a damaged file, or an adapter that does not fit the base.
    """
    config = read_model_directory(base, with_params=False).config
    parts = read_adapter(adapter, config)
    if parts.settings is None:
        raise GritError(
            f"{adapter / GRIT_FILE}: no such file; it says how the merged model embeds, and grit"
            " export --adapter writes it"
        )
    name = str(parts.settings.chat_format)
    if name not in FORMATS:
        raise GritError(f"{adapter}: chat format '{name}' is unknown; known: {', '.join(FORMATS)}")
    digest = WeightsHash(config)

    def hashed(name: str, array: Any) -> Any:
        digest.add(name, array)
        return array

    opened = read_model_directory(base, place=hashed)
    assert opened.params is not None
    tokenizer = Tokenizer.from_pretrained(base)
    chat = tokenizer.format(FORMATS[name])
    tokenizer.save(out, chat, architecture=config.architecture)
    write_model_directory(
        out,
        config,
        attach(opened.params, parts.params, parts.lora),
        dataclasses.replace(parts.settings, stop_token_ids=tokenizer.answer_ends(chat)),
    )
    return Merged(parts, digest.hexdigest())
