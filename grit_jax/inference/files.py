"""Files in, files out: what the verbs do around the model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import ml_dtypes
import numpy as np

from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.inference.text import conversations
from grit_jax.text.length import MAX_NEW_TOKENS, DefaultLength

Precision = Literal["float32", "bfloat16", "int8", "binary"]
TextFormat = Literal["auto", "jsonl", "txt"]
INT8_LEVELS = 127
COMPRESSED = (".gz", ".zst")


def read_texts(path: Path, file_format: TextFormat = "auto") -> list[str]:
    """Texts of a file, in order.

    Args:
      file_format: "txt": every line is a text, a blank one an empty text, so that text `i` is line
        `i`. "jsonl": a line is `"text"` or `{"text": "text"}`, and blank lines do not count.
        "auto": "txt" for a name that ends in `.txt` (upper or lower case, before `.gz` or `.zst`),
        else "jsonl".

    Raises:
      GritError: no such file, an empty or binary one, or a line without a text (with `file:line`).
    """
    plain = file_format == "txt" or file_format == "auto" and is_text_file(path)
    # Of a pipe, or of a name without a suffix, the format is not known.
    hint = "" if path.suffix else "; for files with a text a line: --input-format txt"
    texts = []
    for line, place in _lines(path, blank_lines=plain):
        text = line.rstrip("\r\n") if plain else _field(line, ("text",), place, hint)
        texts.append(_unicode(text, place))
    return texts


def is_text_file(path: Path) -> bool:
    """Whether a name ends in `.txt`, compressed or not."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1:] == [".txt"]


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a JSONL file: `"text"`, `{"prompt": ...}`, `{"text": ...}` or `{"messages":
    [...]}`, in order.

    Raises:
      GritError: as `read_texts`; or a conversation that does not end with a user's turn.
    """
    prompts = []
    for line, place in _lines(path):
        prompt = _field(line, ("prompt", "text", "messages"), place)
        try:
            turns = conversations([prompt])[0]
        except GritError as error:  # its message says "prompt 0" for the line
            raise GritError(
                f"{place}: {str(error).removeprefix('prompt 0').lstrip(': ')}"
            ) from None
        for turn in turns:
            _unicode(turn, place)
        prompts.append(prompt)
    return prompts


def _lines(path: Path, *, blank_lines: bool = False) -> Iterator[tuple[str, str]]:
    """The lines of a file, each with its `file:line`."""
    lines = JsonlFile(path, blank_lines=blank_lines)
    for index, line in enumerate(lines):
        place = lines.where(index)
        try:
            yield line.decode("utf-8"), place
        except UnicodeDecodeError as error:
            raise GritError(
                f"{place}: not UTF-8 text ({error.reason} at byte {error.start})"
            ) from None


def _field(line: str, names: tuple[str, ...], place: str, hint: str = "") -> Any:
    try:
        value = json.loads(line.strip())
    except json.JSONDecodeError as error:
        raise GritError(
            f"{place}: not valid JSON: {error.msg} at column {error.colno}{hint}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise GritError(f"{place}: not usable JSON: {error}") from None
    if isinstance(value, str):
        return value
    wanted = " or ".join(f"'{name}'" for name in names)
    if not isinstance(value, dict):
        raise GritError(
            f"{place}: expected a string or an object with {wanted}, got {type(value).__name__}"
        )
    for name in names:
        if name in value:
            if not isinstance(value[name], list if name == "messages" else str):
                kind = "list" if name == "messages" else "string"
                raise GritError(
                    f"{place}: '{name}' must be a {kind}, got {type(value[name]).__name__}"
                )
            return value[name]
    raise GritError(f"{place}: no {wanted} in this line")


def _unicode(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise GritError(f"{place}: holds half of a surrogate pair (\\ud800 to \\udfff)") from None
    return text


def write_npy_header(file: BinaryIO, rows: int, like: np.ndarray) -> None:
    """Writes the header of a `.npy` file of `rows` rows with the width and type of `like` `[*, W]`,
    also to a pipe, where `np.save` fails. The rows follow."""
    with warnings.catch_warnings():  # bfloat16 is stored as two opaque bytes
        warnings.simplefilter("ignore", UserWarning)
        header = np.lib.format.header_data_from_array_1_0(like[:0])
        header["shape"] = (rows, *like.shape[1:])
        np.lib.format.write_array_header_1_0(file, header)


def truncate(vectors: np.ndarray, dim: int | None) -> np.ndarray:
    """The first `dim` dimensions of unit vectors `[N, D]`, normalised again.

    >>> truncate(np.array([[0.6, 0.0, 0.8]]), dim=2).tolist()
    [[1.0, 0.0]]
    """
    if dim is None or dim >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :dim]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)


def quantize(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """Unit vectors at a precision.

    Raises:
      GritError: a vector that is not finite; int8 and binary would store it as a valid one.

    bfloat16: dtype `ml_dtypes.bfloat16` (a reader of the file restores it with `.view`); int8: each
    vector scaled so that its largest entry is 127 (its direction is kept); binary: signs, eight to
    a byte, as `np.packbits`.

    >>> quantize(np.array([[0.6, -0.8]]), "int8").tolist()
    [[95, -127]]
    >>> quantize(np.array([[0.6, -0.8]]), "binary").tolist()
    [[128]]
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise GritError(f"vector {int(np.argmin(finite))} is not finite and cannot be quantised")
    if precision == "bfloat16":
        return vectors.astype(ml_dtypes.bfloat16)
    if precision == "int8":
        scale = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)
        return np.round(vectors / scale * INT8_LEVELS).astype(np.int8)
    if precision == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors


def generate_prompts(
    model: GritLM,
    prompts: list[Any],
    *,
    on_text: Callable[[str], None] | None = None,
    **sampling: Any,
) -> list[str]:
    """Answers in the chat format; with `on_text` each is handed on in pieces while it is made,
    prompt by prompt."""
    # Before the first answer is streamed; `generate` checks the same of each prompt by itself.
    context, new = model.config.context_length, sampling.get("max_new_tokens", MAX_NEW_TOKENS)
    least = 1 if isinstance(new, DefaultLength) else new
    for number, ids in enumerate(model.prompt_ids(prompts)):
        name = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if isinstance(prompts[number], str) and not prompts[number].strip():
            raise GritError(f"{name} is empty")
        if len(ids) + least > context:
            raise GritError(
                f"{name}: {len(ids)} tokens and {int(new)} new ones do not fit this model's context"
                f" of {context}; shorten it or lower --max-new-tokens"
            )
    if on_text is None:
        return model.generate(prompts, **sampling)
    answers = []
    for number, prompt in enumerate(prompts):
        if number:
            on_text("\n---\n")
        answers += model.generate([prompt], on_text=lambda _, text: on_text(text), **sampling)
    return answers
