"""Reading and writing the tokenizer files of a Hugging Face directory.

They are read as transformers does, since published models were trained with its ids:
tokenizer.json, or tokenizer.model if there is none; the tokens that tokenizer_config.json,
special_tokens_map.json and added_tokens.json add; and the space rules of its `LlamaTokenizer`,
which override those of tokenizer.json. Source: `transformers: tokenization_utils_base.py,
tokenization_utils_tokenizers.py, models/auto/tokenization_auto.py`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from grit_jax.errors import GritError
from grit_jax.runtime.files import write_file, write_json, write_text
from grit_jax.text import sentencepiece_model

TOKENIZER, MODEL, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
SPECIAL_MAP, ADDED, TEMPLATE, TEMPLATES = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates",
)
# Model types whose tokenizer.json is used as it is, whatever class tokenizer_config.json names.
_READ_AS_WRITTEN = ("mistral", "mixtral")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONVERT = (
    "convert it once: transformers' AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    " writes one"
)


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer of a directory.

    Attributes:
      tokenizer_json: text of a tokenizer.json that includes the tokens of the other files.
      names: `bos`, `eos` and `pad` -> the token, or None if there is none.
      config: tokenizer_config.json; its `chat_template` comes from the template files if there are
        any.
      model: bytes of tokenizer.model, if the tokenizer was converted from it.
    """

    tokenizer_json: str
    names: dict[str, str | None]
    config: dict[str, Any]
    model: bytes | None


def read(directory: Path) -> TokenizerFiles:
    """Reads the tokenizer files of a directory.

    Raises:
      GritError: there is no tokenizer of a supported kind, or a file is damaged.
    """
    config = read_object(directory / CONFIG)
    config |= _template_files(directory)
    fallback, model_config = (
        read_object(directory / SPECIAL_MAP),
        read_object(directory / "config.json"),
    )
    model: bytes | None = None
    own: dict[str, str | None] = {}
    if (directory / TOKENIZER).is_file():
        text = _text(directory / TOKENIZER)
        core = parse(text, str(directory / TOKENIZER))
        rebuild_spaces = (
            model_config.get("model_type") not in _READ_AS_WRITTEN and '"ByteLevel"' not in text
        )
    elif (directory / MODEL).is_file():
        model = _read(directory / MODEL)
        if _TIKTOKEN_LINE.match(model):
            raise GritError(
                f"{directory / MODEL}: a tiktoken file, which is not supported; {_CONVERT}"
            )
        converted = sentencepiece_model.convert(model, str(directory / MODEL))
        core, rebuild_spaces = converted.core, True
        own = {
            "bos": converted.bos_token,
            "eos": converted.eos_token,
            "pad": converted.pad_token,
        }
    else:
        raise GritError(_nothing(directory))
    before = None if model is not None else core.get_added_tokens_decoder()
    if (
        str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
        and rebuild_spaces
    ):
        sentencepiece_model.llama_spaces(core, config)
        before = None
    _add_tokens(core, directory, config, fallback)
    added = core.get_added_tokens_decoder()

    def name(kind: str) -> str | None:
        for source, file in ((config, CONFIG), (fallback, SPECIAL_MAP)):
            if f"{kind}_token" in source:  # present and null means there is none
                return _content(source[f"{kind}_token"], f"{directory / file}: '{kind}_token'")
        number = model_config.get(f"{kind}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        return (
            added[number].content if isinstance(number, int) and number in added else own.get(kind)
        )

    names = {kind: name(kind) for kind in ("bos", "eos", "pad")}
    if model is not None:
        _begin_and_end(core, config, names)
    if before is None or {i: repr(t) for i, t in before.items()} != {
        i: repr(t) for i, t in added.items()
    }:
        text = core.to_str()
    return TokenizerFiles(text, names, config, model)


def write(directory: Path, files: TokenizerFiles, architecture: str | None = None) -> None:
    """Writes tokenizer.json, tokenizer_config.json and, if the tokenizer was converted from one,
    tokenizer.model.

    The config makes transformers use tokenizer.json unchanged beside a model of `architecture`.
    Files of an earlier tokenizer that would contradict it are removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Keys that make transformers change the tokenizer of tokenizer.json, or run code of the
    # directory.
    dropped = ("added_tokens_decoder", "auto_map", "add_prefix_space", "legacy", "sp_model_kwargs")
    config = {key: value for key, value in files.config.items() if key not in dropped}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.setdefault("clean_up_tokenization_spaces", False)
    config |= {f"{kind}_token": token for kind, token in files.names.items()}
    if architecture == "qwen2" and not _is_qwen2(files.tokenizer_json):
        # In a qwen2 directory, AutoTokenizer ignores the class named in the config and makes a
        # Qwen2Tokenizer of the vocabulary and merges, unless `auto_map` says that the class is
        # custom. There is no custom class here: `trust_remote_code` must be off.
        config["auto_map"] = {"AutoTokenizer": [None, None]}
    for name in (SPECIAL_MAP, ADDED, TEMPLATE, MODEL):
        (directory / name).unlink(missing_ok=True)
    for file in (directory / TEMPLATES).glob("*.jinja"):
        file.unlink()
    write_text(directory / TOKENIZER, files.tokenizer_json)
    if files.model is not None:
        with write_file(directory / MODEL) as stream:
            stream.write(files.model)
    write_json(directory / CONFIG, config)


def _is_qwen2(tokenizer_json: str) -> bool:
    """True if a Qwen2Tokenizer of the same vocabulary and merges is the same tokenizer."""
    file = json.loads(tokenizer_json)
    splits = (file.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    return (
        (file.get("normalizer") or {}).get("type") == "NFC"
        and (splits[0].get("pattern") or {}).get("Regex") == _QWEN2_REGEX
        and [step.get("type") for step in splits] == ["Split", "ByteLevel"]
        and not (file["model"].get("byte_fallback") or file["model"].get("ignore_merges"))
    )


def parse(text: str, location: str) -> tokenizers.Tokenizer:
    """Parses the text of a tokenizer.json; `location` is its name in messages.

    Raises:
      GritError: the text is not a tokenizer.
    """
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises a bare Exception
        raise GritError(f"{location}: not a tokenizer.json ({error}); download it again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; {} if there is no such file.

    Raises:
      GritError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise GritError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise GritError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GritError(f"{path}: cannot be read ({error.strerror})") from None


def _text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise GritError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _nothing(directory: Path) -> str:
    """The message for a directory without a supported tokenizer."""
    missing = f"{directory}: no {TOKENIZER} there, nor a {MODEL}"
    if not directory.is_dir():
        return missing
    others = ("tekken.json", "*.tiktoken", "tiktoken.model", "*.model", "vocab.json", "vocab.txt")
    other = next(
        (path.name for pattern in others for path in sorted(directory.glob(pattern))), None
    )
    return f"{missing}; it has {other}, which is not supported: {_CONVERT}" if other else missing


def _template_files(directory: Path) -> dict[str, Any]:
    """`chat_template` from the template files, which override tokenizer_config.json."""
    files = {path.stem: path for path in sorted((directory / TEMPLATES).glob("*.jinja"))}
    if (directory / TEMPLATE).is_file():
        files["default"] = directory / TEMPLATE
    texts = {name: _text(path) for name, path in files.items()}
    if not texts:
        return {}
    if list(texts) == ["default"]:
        return {"chat_template": texts["default"]}
    return {"chat_template": [{"name": name, "template": text} for name, text in texts.items()]}


def _content(value: Any, location: str) -> str | None:
    """The text of a token, which is null, a string, or an object with `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    if content is None and not isinstance(value, dict):
        return None
    if not isinstance(content, str):
        raise GritError(
            f"{location} must be a token (a string, or an object with 'content'), got {value!r:.60}"
        )
    return content


def _add_tokens(
    core: tokenizers.Tokenizer, directory: Path, config: dict[str, Any], fallback: dict[str, Any]
) -> None:
    """Adds the tokens of the other files in the order of transformers, and marks special tokens."""
    numbered: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        file, source = CONFIG, config["added_tokens_decoder"]
        if not isinstance(source, dict):
            raise GritError(
                f"{directory / CONFIG}: 'added_tokens_decoder' must be an object of id to token"
            )
        numbered = {
            int(i): _added_token(value, directory / CONFIG)
            for i, value in source.items()
            if i.isdigit()
        }
    else:
        file, special_tokens = ADDED, set(_special_tokens(config, fallback, directory))
        for text, number in read_object(directory / ADDED).items():
            if not isinstance(number, int):
                raise GritError(
                    f"{directory / ADDED}: the id of '{text}' must be a number, got {number!r:.40}"
                )
            special = text in special_tokens
            numbered[number] = AddedToken(text, normalized=not special, special=special)
    core.add_tokens([token for _, token in sorted(numbered.items())])
    for number, token in numbered.items():
        if core.token_to_id(token.content) != number:
            raise GritError(
                f"{directory / file}: '{token.content}' has id {number}, but"
                f" {core.token_to_id(token.content)} in the vocabulary; the files do not belong"
                " together"
            )
    known = {token.content: token for token in core.get_added_tokens_decoder().values()}
    for text in _special_tokens(config, fallback, directory):
        token = known.get(text, AddedToken(text))
        if text not in known or not token.special:
            core.add_special_tokens(
                [
                    AddedToken(
                        text,
                        single_word=token.single_word,
                        lstrip=token.lstrip,
                        rstrip=token.rstrip,
                        normalized=False,
                        special=True,
                    )
                ]
            )


def _special_tokens(
    config: dict[str, Any], fallback: dict[str, Any], directory: Path
) -> Iterator[str]:
    """The special tokens that a key names (such as `bos_token`), and those in lists of others."""
    for source, file in ((config, CONFIG), (fallback, SPECIAL_MAP)):
        for key, value in source.items():
            location = f"{directory / file}: '{key}'"
            if re.fullmatch("(bos|eos|unk|sep|pad|cls|mask)_token", key):
                values = [value]
            elif key in ("additional_special_tokens", "extra_special_tokens") and isinstance(
                value, list | dict
            ):
                values = list(value.values()) if isinstance(value, dict) else value
            else:
                continue
            yield from (text for text in (_content(item, location) for item in values) if text)


def _added_token(value: Any, location: Path) -> AddedToken:
    try:
        return AddedToken(**{key: item for key, item in value.items() if key != "__type"})
    except (AttributeError, TypeError) as error:
        raise GritError(
            f"{location}: 'added_tokens_decoder' has {value!r:.80}, which is not a token ({error})"
        ) from None


def _begin_and_end(
    core: tokenizers.Tokenizer, config: dict[str, Any], names: dict[str, str | None]
) -> None:
    """Makes a tokenizer converted from tokenizer.model add begin and end of sequence on request."""
    bos = names["bos"] if config.get("add_bos_token", True) else None
    eos = names["eos"] if config.get("add_eos_token", False) else None
    if not (bos or eos):
        return

    def template(text: str, kind: int) -> list[str]:
        return [f"{part}:{kind}" for part in (bos, text, eos) if part]

    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=template("$A", 0),
        pair=template("$A", 0) + template("$B", 1),
        special_tokens=[(text, core.token_to_id(text)) for text in {bos, eos} if text],
    )
