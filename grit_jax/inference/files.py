"""Files in, files out: what `grit encode` and `grit generate` do around the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from grit_jax.data.formats import JsonlFile
from grit_jax.inference.model import GritLM
from grit_jax.types import GritError

Precision = Literal["float32", "bfloat16", "int8", "binary"]
INT8_LEVELS = 127


def read_texts(path: Path) -> list[str]:
    """Texts of a `.txt` file (a line each) or a JSONL file (`"text"`, or `{"text": "text"}`), in order.

    Raises:
      GritError: no such file, an empty or binary one, or a line without a text (with `file:line`).
    """
    lines = JsonlFile(path)
    texts = []
    for index in range(len(lines)):
        where = lines.where(index)
        text: Any = lines[index].decode("utf-8") if isinstance(lines[index], bytes) else lines[index]
        if path.suffix != ".txt":
            text = _field(text, "text", where)
        texts.append(text.rstrip("\r\n"))
    return texts


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a JSONL file: `{"prompt": ...}`, `{"text": ...}` or `{"messages": [...]}`, in order."""
    lines = JsonlFile(path)
    return [_field(lines[index], ("prompt", "text", "messages"), lines.where(index)) for index in range(len(lines))]


def _field(line: Any, names: str | tuple[str, ...], where: str) -> Any:
    names = (names,) if isinstance(names, str) else names
    try:
        value = json.loads(line)
    except ValueError as error:
        raise GritError(f"{where}: not valid JSON: {error}") from None
    if isinstance(value, str):
        return value
    wanted = " or ".join(f"'{name}'" for name in names)
    if not isinstance(value, dict):
        raise GritError(f"{where}: expected a string or an object with {wanted}")
    for name in names:
        if name in value:
            if not isinstance(value[name], str) and name != "messages":
                raise GritError(f"{where}: '{name}' must be a string, found {type(value[name]).__name__}")
            return value[name]
    raise GritError(f"{where}: no {wanted} in this line")


def encode_file(
    model: GritLM,
    source: Path,
    output: Path,
    *,
    instruction: str = "",
    max_length: int = 512,
    dim: int | None = None,
    precision: Precision = "float32",
) -> dict[str, Any]:
    """Vectors of a file's texts into a `.npy` file, row `i` for text `i`.

    Returns:
      `texts, tokens, seconds, tokens_per_s, dim, precision`.

    Raises:
      GritError: see `read_texts`; `dim` beyond the model's; an output that cannot be written.
    """
    texts = read_texts(source)
    width = model.config.hidden_size
    if dim is not None and dim > width:
        raise GritError(f"--dim {dim}: the model's vectors have {width} dimensions")
    _check_writable(output)
    encoded = model.encoder.encode(texts, instruction, max_length, progress=True)
    vectors = quantize(truncate(encoded.vectors, dim), precision)
    try:
        with output.open("wb") as file:  # np.save would add a suffix to another name
            np.save(file, vectors)
    except OSError as error:
        raise GritError(f"{output}: cannot be written ({error.strerror})") from None
    return {
        "texts": len(texts), "tokens": encoded.tokens, "seconds": encoded.seconds,
        "tokens_per_s": encoded.tokens / max(encoded.seconds, 1e-9), "dim": dim or width, "precision": precision,
    }  # fmt: skip


def truncate(vectors: np.ndarray, dim: int | None) -> np.ndarray:
    """The first `dim` dimensions of unit vectors `[N, D]`, normalised again."""
    if dim is None or dim >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :dim]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)


def quantize(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """Unit vectors at a precision.

    bfloat16: dtype `ml_dtypes.bfloat16` (a reader of the file restores it with `.view`); int8: each vector scaled
    so that its largest entry is 127 (its direction is kept); binary: signs, eight to a byte, as `np.packbits`.
    """
    if precision == "bfloat16":
        return vectors.astype(ml_dtypes.bfloat16)
    if precision == "int8":
        scale = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)
        return np.round(vectors / scale * INT8_LEVELS).astype(np.int8)
    if precision == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors


def generate_prompts(
    model: GritLM, prompts: list[Any], *, on_text: Callable[[str], None] | None = None, **sampling: Any
) -> list[str]:
    """Answers in the chat format; with `on_text` each is handed on in pieces while it is made, prompt by prompt."""
    if sampling.get("temperature", 0.0) < 0:
        raise GritError(f"--temperature must not be negative, is {sampling['temperature']}")
    if not 0 < sampling.get("top_p", 1.0) <= 1:
        raise GritError(f"--top-p must be above 0 and at most 1, is {sampling['top_p']}")
    if sampling.get("top_k", 0) < 0:
        raise GritError(f"--top-k must not be negative, is {sampling['top_k']}")
    if on_text is None:
        return model.generate(prompts, **sampling)
    answers = []
    for number, prompt in enumerate(prompts):
        if number:
            on_text("\n---\n")
        answers += model.generate([prompt], on_text=lambda _, text: on_text(text), **sampling)
    return answers


def _check_writable(output: Path) -> None:
    """Before the work, not after it."""
    if output.is_dir():
        raise GritError(f"{output}: is a folder; name a file")
    try:
        with output.open("ab"):
            pass
    except OSError as error:
        raise GritError(f"{output}: cannot be written ({error.strerror})") from None
