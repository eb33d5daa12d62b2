"""A tokenizer.json, and the training of one on the spot.

`Tokenizer` wraps `tokenizers.Tokenizer` and settles three things that callers should not have to know: text
typed by a user never becomes a special token, pieces of one prompt are tokenised once each, and the dummy
prefix that Llama-like tokenizers put before a text appears only where the tokenisation of the whole string
would have it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from grit_jax.data.chat import GRIT, ChatFormat, Piece
from grit_jax.types import GritError

# Precedes a text that continues a prompt; a newline ends every tag and merges with nothing in Llama-like
# vocabularies.
_ANCHOR = "\n"


class Tokenizer:
    """Texts to ids and back.

    Attributes:
      bos_token, eos_token: strings, or None where the tokenizer has none; `bos_id`, `eos_id` likewise.
      pad_id: an id that fills padding (never attended to): the pad token, else end of sequence, else 0.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        bos_token: str | None,
        eos_token: str | None,
        pad_token: str | None = None,
        config: dict[str, Any] | None = None,
    ):
        # Two readers of one file: in `_plain` special tokens are text like any other.
        self._json = tokenizer_json
        self._template = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._plain = tokenizers.Tokenizer.from_str(tokenizer_json)
        for reader in (self._template, self._plain):
            reader.no_truncation()
            reader.no_padding()
        self._plain.encode_special_tokens = True
        self.config = dict(config or {})
        self.bos_token, self.eos_token, self.pad_token = bos_token, eos_token, pad_token
        self.bos_id, self.eos_id = self._special_id(bos_token), self._special_id(eos_token)
        pad = self._special_id(pad_token)
        self.pad_id: int = pad if pad is not None else (self.eos_id or 0)
        self.vocab_size: int = self._template.get_vocab_size(with_added_tokens=True)
        added = self._template.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._anchor = self._raw(self._plain, _ANCHOR)
        # Does a text at the start differ from the same text inside a prompt (dummy prefix)?
        self._has_prefix = self._raw(self._plain, _ANCHOR + "a")[len(self._anchor) :] != self._raw(
            self._plain, "a"
        )
        special = bos_token or eos_token
        self._prefix_after_special = self._has_prefix and (
            special is not None
            and self._raw(self._template, special + "a")[1:] == self._raw(self._plain, "a")
        )
        self._template_ids = functools.lru_cache(maxsize=4096)(self._encode_template)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Tokenizer:
        """Reads `tokenizer.json` and, beside it, which tokens begin and end a sequence.

        Those come from tokenizer_config.json, else special_tokens_map.json, else the ids in config.json.

        Raises:
          GritError: the directory has no tokenizer.json, or it is not one.
        """
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            other = next((p.name for p in directory.glob("*.model")), None) if directory.is_dir() else None
            hint = (
                f"; it has {other}: save it once with transformers' AutoTokenizer to get one" if other else ""
            )
            raise GritError(f"{directory}: no tokenizer.json there{hint}")
        try:
            text = path.read_text(encoding="utf-8")
            added = tokenizers.Tokenizer.from_str(text).get_added_tokens_decoder()
        except Exception as error:  # the library raises a bare Exception
            raise GritError(f"{path}: not a tokenizer.json ({error})") from None
        config = _read_json(directory / "tokenizer_config.json")
        fallback = _read_json(directory / "special_tokens_map.json")
        model = _read_json(directory / "config.json")

        def token(name: str) -> str | None:
            for source in (config, fallback):
                if f"{name}_token" in source:  # present and null means there is none
                    value = source[f"{name}_token"]
                    return value["content"] if isinstance(value, dict) else value
            number = model.get(f"{name}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            return added[number].content if isinstance(number, int) and number in added else None

        return cls(
            text, bos_token=token("bos"), eos_token=token("eos"), pad_token=token("pad"), config=config
        )

    def save(self, directory: str | Path, chat: ChatFormat | None = GRIT) -> None:
        """Writes tokenizer.json and tokenizer_config.json, `chat` as the chat template of transformers."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = dict(self.config)
        config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        config.setdefault("clean_up_tokenization_spaces", False)
        config.update(bos_token=self.bos_token, eos_token=self.eos_token, pad_token=self.pad_token)
        if chat is not None:
            config["chat_template"] = chat.jinja()
        (directory / "tokenizer.json").write_text(self._json, encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(
            json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, nothing added; special tokens written in it are read as ordinary characters.

        `continues`: the text stands inside a prompt, so a tokenizer with a dummy prefix must not add it.
        """
        return self.encode_batch([text], continues=continues)[0]

    def encode_batch(self, texts: Sequence[str], *, continues: bool = False) -> list[list[int]]:
        """`encode` of many texts, in parallel.

        Raises:
          GritError: a text holds half of a surrogate pair, which is not Unicode text.
        """
        cut = 0
        if continues and self._has_prefix:
            texts, cut = [_ANCHOR + text for text in texts], len(self._anchor)
        try:
            encoded = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            bad = next((i for i, t in enumerate(texts) if not isinstance(t, str) or not _is_unicode(t)), None)
            if bad is None:
                raise
            raise GritError(
                f"text number {bad} is not Unicode text ({type(error).__name__}): {texts[bad]!r:.60}"
            ) from None
        if not cut:
            return [item.ids for item in encoded]
        # A vocabulary may merge the anchor with what follows; then the text by itself is the best there is.
        return [
            ids[cut:] if ids[:cut] == self._anchor else self._raw(self._plain, texts[i][len(_ANCHOR) :])
            for i, ids in enumerate(item.ids for item in encoded)
        ]

    def encode_pieces(self, prompts: Sequence[Sequence[Piece]]) -> list[list[list[int]]]:
        """Ids of every piece of every prompt; concatenated they are the prompt.

        Templates are cached and texts go through two batch calls, so this is the fast way for many prompts.
        """
        result: list[list[list[int]]] = [[[] for _ in prompt] for prompt in prompts]
        queue: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])  # by `continues`
        for row, prompt in enumerate(prompts):
            inside = False  # whether the next piece stands inside running text
            for column, piece in enumerate(prompt):
                if not piece.text:
                    continue
                if piece.is_template:
                    ids = self._template_ids(piece.text, inside)
                    result[row][column] = list(ids)
                    inside = not (ids and ids[-1] in self._special_ids and self._prefix_after_special)
                else:
                    queue[inside].append((row, column))
                    inside = True
        for continues, places in enumerate(queue):
            texts = [prompts[row][column].text for row, column in places]
            encoded = self.encode_batch(texts, continues=bool(continues))
            for (row, column), found in zip(places, encoded, strict=True):
                result[row][column] = found
        return result

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids; special tokens are left out unless `skip_special` is False."""
        return self._template.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def format(self, chat: ChatFormat = GRIT) -> ChatFormat:
        """`chat` with this tokenizer's own begin and end of sequence where it does not know the format's."""
        known = [t for t in (chat.bos, chat.eos) if t]
        if all(self._template.token_to_id(t) is not None for t in known):
            return chat
        return chat.with_tokens(self.bos_token, self.eos_token)

    def _encode_template(self, text: str, continues: bool) -> tuple[int, ...]:
        if continues and self._has_prefix:
            ids = self._raw(self._template, _ANCHOR + text)
            if ids[: len(self._anchor)] == self._anchor:
                return tuple(ids[len(self._anchor) :])
        return tuple(self._raw(self._template, text))

    def _special_id(self, token: str | None) -> int | None:
        return None if token is None else self._template.token_to_id(token)

    @staticmethod
    def _raw(reader: tokenizers.Tokenizer, text: str) -> list[int]:
        return reader.encode(text, add_special_tokens=False).ids

    def __getstate__(self) -> dict[str, Any]:  # worker processes get the file, not the Rust object
        return {
            "tokenizer_json": self._json,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "config": self.config,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state.pop("tokenizer_json"), **state)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GritError(f"{path}: not valid JSON ({error})") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
