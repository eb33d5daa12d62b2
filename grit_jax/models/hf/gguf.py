"""A GGUF file (the format of llama.cpp) as a Hugging Face directory.

Weights are dequantised to float32 by the format's own library. What llama.cpp's converter changed
is undone: the rows of a Llama's query and key, which it reorders for another form of rotary
embedding, and Gemma's norms, to which it adds one. Sources: `llama.cpp: convert_hf_to_gguf.py`,
`transformers: integrations/gguf`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.hf import gguf_config
from grit_jax.models.hf.read_config import config_from_hf
from grit_jax.models.hf.safetensors_io import Tensor, write_tensors
from grit_jax.models.hf.sentence_transformers import SentenceModules, write_modules
from grit_jax.models.hf.weights import MAX_SHARD_BYTES, hf_names
from grit_jax.models.parameters import layers_with, parameter_shapes
from grit_jax.runtime.files import write_json
from grit_jax.text import gguf_tokenizer, tokenizer_files

# Our name -> the tensor's in a layer.
LAYER_NAMES = {
    "attention_norm": "attn_norm.weight",
    "query": "attn_q.weight",
    "key": "attn_k.weight",
    "value": "attn_v.weight",
    "query_bias": "attn_q.bias",
    "key_bias": "attn_k.bias",
    "value_bias": "attn_v.bias",
    "query_norm": "attn_q_norm.weight",
    "key_norm": "attn_k_norm.weight",
    "attention_out": "attn_output.weight",
    "attention_post_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "mlp_post_norm": "post_ffw_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "router": "ffn_gate_inp.weight",
    "expert_gate": "ffn_gate_exps.weight",
    "expert_up": "ffn_up_exps.weight",
    "expert_down": "ffn_down_exps.weight",
}
OTHER_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
}
FREQUENCIES = "rope_freqs.weight"
VERSIONS = (2, 3)
# What a file may hold other than a model, by `general.type`.
_NO_MODEL = {
    "adapter": "a LoRA adapter, not a model; merge it into its base first (llama-export-lora)",
    "mmproj": "the vision or audio part of a model; import the file of its language model",
    "imatrix": "an importance matrix, not a model",
}


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, by its name or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def write_directory(path: Path, directory: Path) -> None:
    """Writes what a GGUF file holds as a plain Hugging Face directory, with weights in float32.

    Raises:
      GritError: no GGUF file, one of several parts, a damaged or truncated one, no model of
        supported architecture and tokenizer, or the library is missing.
    """
    _check_header(path)
    try:
        import gguf
    except ImportError:
        raise GritError(
            f"{path}: a GGUF file needs the extra 'gguf': pip install 'grit_jax[gguf]'"
        ) from None
    reader = _open(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    _check_kind(path, metadata)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _check_types(path, tensors.values())

    def read(name: str, expert: int | None = None) -> np.ndarray:
        tensor = tensors[name]
        data = tensor.data if expert is None else tensor.data[expert]
        return gguf.dequantize(data, tensor.tensor_type)

    shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}
    factors = read(FREQUENCIES) if FREQUENCIES in tensors else None
    hf = gguf_config.hf_config(metadata, shapes, factors, str(path))
    embeds = gguf_config.pooling(metadata, str(path))
    config = config_from_hf(hf, str(path))
    tokenizer = gguf_tokenizer.read(metadata, str(path))
    written = _weights(config, shapes, read, str(path))
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, written, "float32", MAX_SHARD_BYTES)
    write_json(directory / "config.json", hf)
    ends = gguf_tokenizer.end_tokens(metadata)
    write_json(directory / "generation_config.json", {"eos_token_id": ends})
    tokenizer_files.write(directory, tokenizer, config.architecture)
    if embeds is not None:
        modules = SentenceModules(pooling=embeds[0], bidirectional=embeds[1])
        write_modules(directory, modules, config.hidden_size)


def _check_header(path: Path) -> None:
    """Raises GritError for a file that does not begin as a GGUF file in little-endian order."""
    try:
        with path.open("rb") as stream:
            start = stream.read(24)
    except OSError as error:
        raise GritError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise GritError(f"{path}: the file is empty; download it again")
    if start.startswith(b"version https://git-"):
        raise GritError(f"{path}: a pointer of Git LFS, not the file itself; run git lfs pull")
    if not start.startswith(b"GGUF"):
        raise GritError(f"{path}: not a GGUF file (it begins with {start[:4]!r}, not b'GGUF')")
    if len(start) < 24:
        raise GritError(f"{path}: truncated after {len(start)} bytes; download it again")
    version = int.from_bytes(start[4:8], "little")
    if not version & 0xFFFF:
        raise GritError(
            f"{path}: in big-endian order, which is not supported; convert it first:"
            " gguf-convert-endian FILE little (it belongs to the package gguf)"
        )
    if version not in VERSIONS:
        raise GritError(
            f"{path}: GGUF version {version}, only {' and '.join(map(str, VERSIONS))} are"
            " supported; take a file of a newer converter"
        )


def _open(path: Path) -> Any:
    """The library's reader of a file; metadata and the table of tensors are read and checked."""
    import gguf

    class Reader(gguf.GGUFReader):
        def _build_tensors(self, *args: Any) -> None:  # type: ignore[override]
            if len(args) == 2:
                _check_table(path, self.data, *args)
            super()._build_tensors(*args)

    try:
        return Reader(path)
    except GritError:
        raise
    except Exception as error:  # of a damaged file: many classes
        raise GritError(f"{path}: not a whole GGUF file ({error}); download it again") from None


def _check_table(path: Path, data: np.ndarray, start: int, fields: Iterable[Any]) -> None:
    """Raises GritError for a tensor of unknown type, or one that ends after the file.

    Args:
      data: the file's bytes.
      start: where the tensors begin.
      fields: the library's entries of the table.
    """
    import gguf

    for field in fields:
        _, letters, _, dims, number, offset = field.parts
        name, kind = bytes(letters).decode(), int(number[0])
        if kind not in gguf.GGMLQuantizationType._value2member_map_:
            raise GritError(
                f"{path}: {name} has the type {kind}, which the installed package gguf does not"
                " know; update it: pip install -U gguf"
            )
        size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        end = start + int(offset[0]) + math.prod(dims.tolist()) * width // size
        if end > len(data):
            raise GritError(
                f"{path}: truncated: {name} ends at byte {end}, but the file has {len(data)};"
                " download it again"
            )


def _check_kind(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raises GritError for what is no model, or only a part of one."""
    if (parts := metadata.get("split.count", 1)) > 1:
        first = re.sub(r"-\d{5}-of-", "-00001-of-", path.name)
        raise GritError(
            f"{path}: one part of {parts}; merge them first: llama-gguf-split --merge {first}"
            " OUT.gguf"
        )
    kind = metadata.get("general.type", "model")
    kind = "mmproj" if metadata.get("general.architecture") == "clip" else kind
    if kind in _NO_MODEL:
        raise GritError(f"{path}: {_NO_MODEL[kind]}")


def _check_types(path: Path, tensors: Iterable[Any]) -> None:
    """Raises GritError for the first tensor of a type that the library does not dequantise."""
    import gguf

    for kind, tensor in {tensor.tensor_type: tensor for tensor in tensors}.items():
        width = gguf.GGML_QUANT_SIZES[kind][1]
        try:
            gguf.dequantize(np.zeros((1, width), np.uint8), kind)
        except NotImplementedError:
            raise GritError(
                f"{path}: {tensor.name} has the type {kind.name}, which the package gguf does not"
                " dequantise; take a file of another type"
            ) from None


def _weights(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str, int | None], np.ndarray],
    location: str,
) -> list[Tensor]:
    """The tensors as a Hugging Face directory has them; each is read when it is written."""
    names, used, written = hf_names(config), {FREQUENCIES}, []

    def add(
        ours: str, source: str, target: str, expected: tuple[int, ...], expert: int | None = None
    ) -> None:
        if source not in shapes:
            raise GritError(f"{location}: the tensor {source} is missing")
        used.add(source)
        whole = expected if expert is None else (config.num_experts, *expected)
        if shapes[source] != whole:
            raise GritError(
                f"{location}: {source} has the shape {list(shapes[source])}, but the metadata mean"
                f" {list(whole)}; the file is damaged"
            )

        def values() -> np.ndarray:
            return _undone(read(source, expert), ours, config).astype(np.float32)

        written.append(Tensor(target, expected, values))

    for ours, stacked in parameter_shapes(config).items():
        target, linear = names[ours]
        target = target if ours == "head" else "model." + target
        each = stacked if ours in OTHER_NAMES else stacked[2 if "{expert}" in target else 1 :]
        expected = each[::-1] if linear else each  # [out, in] in files
        if ours in OTHER_NAMES:
            add(ours, OTHER_NAMES[ours], target, expected)
            continue
        for layer in layers_with(ours, config.layer_kinds):
            source = f"blk.{layer}.{LAYER_NAMES[ours]}"
            if "{expert}" not in target:
                add(ours, source, target.format(layer=layer), expected)
                continue
            for expert in range(config.num_experts):
                # Files of before 2024-04 have a tensor for each expert.
                alone = re.sub(r"_exps\.", f".{expert}.", source)
                to = target.format(layer=layer, expert=expert)
                if source in shapes:
                    add(ours, source, to, expected, expert)
                else:
                    add(ours, alone, to, expected)
    if unused := sorted(shapes.keys() - used):
        raise GritError(
            f"{location}: unknown tensors for a {config.architecture} model:"
            f" {', '.join(unused[:5])} ({len(unused)} in all); such a model is not supported"
        )
    return written


def _undone(array: np.ndarray, ours: str, config: ModelConfig) -> np.ndarray:
    """A weight as it was before llama.cpp's converter."""
    if config.zero_centered_norm and ours.endswith("norm"):
        return array - 1.0
    if config.architecture in ("llama", "mistral", "mixtral") and ours in ("query", "key"):
        heads = config.num_attention_heads if ours == "query" else config.num_key_value_heads
        halves = array.reshape(heads, -1, 2, array.shape[-1])
        return halves.swapaxes(1, 2).reshape(array.shape)
    return array
