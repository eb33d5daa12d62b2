"""The record of a run: its settings, and a digest of everything that it reads.

Hosts compare their records before the first step. Every checkpoint has it, so that a resumed run
can report what has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grit_jax.data.sources import open_source
from grit_jax.errors import GritError
from grit_jax.runtime.files import read_json
from grit_jax.runtime.hosts import setting_text

VERSION = 1
# Settings that decide what the weights mean: with another value they are another model's.
MEANING = (
    "model.attention",
    "model.pooling",
    "model.projection",
    "model.shape",
    "tokenizer.chat",
    "data.raw_strings",
    "lora.alpha",
    "lora.base",
    "lora.rank",
    "lora.targets",
)
# Parts of a shape that concern training alone.
TRAINING_ONLY = ("model.shape.initializer_range", "model.shape.router_aux_loss_coef")
# Settings that change no number, or that the machine decides.
MACHINE = ("mesh", "data.workers", "data.prefetch", "model.remat", "model.scan_layers")
# Settings on which the batches of a step depend.
BATCHES = ("data", "train.seed")
WHOLE_FILE = 1 << 26  # bytes; of larger files of weights, samples of every tensor are hashed
SAMPLE, SAMPLES = 1 << 14, 4  # bytes of a sample, and samples of a tensor


@dataclasses.dataclass(frozen=True)
class Input:
    """Something that a run reads.

    Attributes:
      name: its path or name in the configuration; it may have moved.
      size: as text, such as "40 lines".
      digest: of its content.
    """

    name: str
    size: str
    digest: str

    def __str__(self) -> str:
        return f"{self.size}, content {self.digest[:8]}"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run was made of.

    Attributes:
      settings: by dotted key, file names left out, with lengths as the run had them.
      inputs: what it read, by the key that names it.
      context: tokens that its model reads, to which lengths that nobody set are lowered; None: the
        record does not say, and its settings have them as they were before that.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, Input]
    context: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as a checkpoint keeps it."""
        inputs = {key: dataclasses.asdict(value) for key, value in self.inputs.items()}
        return {
            "version": VERSION,
            "settings": dict(self.settings),
            "inputs": inputs,
            "context": self.context,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> RunRecord | None:
        """The record in a checkpoint; None where it is of another version, or damaged."""
        try:
            if tree["version"] != VERSION:
                return None
            inputs = {key: Input(**value) for key, value in tree["inputs"].items()}
            return cls(tree["settings"], inputs, tree.get("context"))
        except (KeyError, TypeError, AttributeError):
            return None


def check_settings(before: RunRecord, settings: Mapping[str, Any], checkpoint: str) -> list[str]:
    """The settings that have changed, as text for a warning.

    Raises:
      GritError: a setting has changed that the meaning of the weights, or of a preference loss,
        depends on.
    """
    changes = _changed(before.settings, settings)
    had, has = (
        any(key.startswith("lora.") for key in side) for side in (before.settings, settings)
    )
    if had != has:
        kinds = "all weights", "adapters (lora)"
        raise GritError(
            f"{checkpoint} holds {kinds[had]}, this configuration trains {kinds[has]}; choose"
            " another output"
        )
    for key in changes:
        if _under(key, MEANING) and key not in TRAINING_ONLY:
            raise GritError(
                f"{checkpoint} was made with {key} {setting_text(before.settings.get(key))}, this"
                f" configuration has {setting_text(settings.get(key))}: that is another model; set"
                " it back, or train into another output"
            )
    if "train.seed" in changes and "model.path" not in before.inputs and has_reference(settings):
        raise GritError(
            f"{checkpoint} was made with train.seed {before.settings.get('train.seed')}, which drew"
            " the reference model of its preference loss; set it back, or train into another output"
        )
    return [
        f"{key} {setting_text(before.settings.get(key))} -> {setting_text(settings.get(key))}"
        for key in changes
        if not _under(key, MACHINE)
    ]


def has_reference(settings: Mapping[str, Any]) -> bool:
    """Whether a run of these settings has a preference loss, and so a reference model: the weights
    that it starts from, which no checkpoint holds."""
    return bool(settings.get("data.preference_batch"))


def check_inputs(before: RunRecord, inputs: Mapping[str, Input], checkpoint: str) -> list[str]:
    """The inputs that have changed, as text for a warning.

    Raises:
      GritError: the tokenizer has changed, or the reference model of a preference loss.
    """
    changes = []
    for key in sorted(before.inputs.keys() | inputs.keys()):
        was, now = before.inputs.get(key), inputs.get(key)
        if was is None or now is None:
            changes.append(f"{key} is gone" if now is None else f"{key} {now.name} is new")
        elif was.digest != now.digest or was.size != now.size:
            if key == "tokenizer":
                raise GritError(
                    f"{checkpoint} was made with another tokenizer ({was}; {now.name} has {now});"
                    " give tokenizer.path the one that it was trained with, or train into another"
                    " output"
                )
            if key == "model.path" and has_reference(before.settings):
                raise GritError(
                    f"{checkpoint} was made with a preference loss whose reference model was"
                    f" {was.name} ({was}); {now.name} is another one ({now}): give model.path the"
                    " weights that the run started from, or train into another output"
                )
            sizes = f"{was.size} -> {now.size}" if was.size != now.size else f"{now.size} as before"
            content = ", other content" if was.digest != now.digest else ""
            changes.append(f"{key} {now.name}: {sizes}{content}")
    return changes


def is_about_batches(change: str) -> bool:
    """Whether a change of settings or inputs makes the steps that follow other ones."""
    return _under(change.split()[0].split("[")[0], BATCHES)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]


def _under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def describe_file(path: str | Path, kind: Any) -> Input:
    """A held-out file, each line checked: a mistake in it shows before the first step.

    Raises:
      GritError: an unreadable file, or a bad line.
    """
    source = open_source(path, kind)
    return Input(str(path), f"{source.num_lines} lines", source.digest)


def describe_weights(directory: Path, name: str) -> Input:
    """A model directory by its description and its weights. Of large files, the list of tensors and
    samples of each are read, which takes no more than some seconds.

    Raises:
      GritError: a file that cannot be read.
    """
    files = sorted(directory.rglob("*.safetensors"))
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(read_json(directory / "config.json"), sort_keys=True).encode())
    total = 0
    for file in files:
        total += file.stat().st_size
        digest.update(file.relative_to(directory).as_posix().encode())
        try:
            for part in _parts(file):
                digest.update(part)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            raise GritError(f"{file}: not a readable safetensors file") from None
    return Input(name, f"{total} bytes of weights", digest.hexdigest())


def _parts(file: Path) -> Iterator[bytes]:
    """What of a safetensors file is hashed."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE_FILE:
            yield stream.read()
            return
        length = struct.unpack("<Q", stream.read(8))[0]
        header = stream.read(min(length, size))
        yield header
        tensors = {name: about for name, about in json.loads(header).items() if name[:2] != "__"}
        for about in tensors.values():
            start, end = about["data_offsets"]
            for number in range(SAMPLES):
                room = max(end - start - SAMPLE, 0)
                stream.seek(8 + length + start + room * number // (SAMPLES - 1))
                yield stream.read(min(SAMPLE, end - start))
