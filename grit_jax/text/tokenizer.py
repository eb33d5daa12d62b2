"""Texts to token ids and back, with whatever tokenizer a directory has.

`Tokenizer` wraps `tokenizers.Tokenizer` and takes care of three things: text typed by a user never
becomes a special token, each part of a prompt is tokenised once, and the dummy prefix that
Llama-like tokenizers put before a text appears only where the tokenisation of the whole string has
it. `tokenizer_files.py` reads the files of a directory.

"Never a special token" means the tokens that the files call special, `<s>` or `<|im_end|>`: a text
that holds their spelling has the ids that transformers gives it with `split_special_tokens=True`,
not those of its default, which lets anyone who types `</s>` end a sequence. Tokens that are added
but not special (`<think>`, Gemma's runs of spaces) are found in any text, there as here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from grit_jax.errors import GritError
from grit_jax.text import tokenizer_files
from grit_jax.text.chat import GRIT, ChatFormat, PromptPart
from grit_jax.text.prompt_encoding import PartEncoder, unicode_text

# Precedes a text that continues a prompt; a newline ends every tag and merges with nothing in
# Llama-like vocabularies.
_ANCHOR = "\n"


class Tokenizer:
    """Texts to ids and back.

    Attributes:
      bos_token, eos_token: strings, or None where the tokenizer has none; `bos_id`, `eos_id`
        likewise.
      special_tokens: the strings of all tokens that no text of a user becomes.
      pad_id: an id that fills padding (never attended to): the pad token, else end of sequence,
        else 0.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        bos_token: str | None,
        eos_token: str | None,
        pad_token: str | None = None,
        config: dict[str, Any] | None = None,
        model: bytes | None = None,
    ):
        # Two copies of one tokenizer; `_plain` reads special tokens as ordinary text.
        self._json = tokenizer_json
        self._template = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._plain = tokenizers.Tokenizer.from_str(tokenizer_json)
        for reader in (self._template, self._plain):
            reader.no_truncation()
            reader.no_padding()
        self._plain.encode_special_tokens = True
        self._plain.post_processor = None  # byte-level ones trim the offsets of spaces
        self.config = dict(config or {})
        self._model = model
        self.bos_token, self.eos_token, self.pad_token = bos_token, eos_token, pad_token
        self.bos_id, self.eos_id = self._special_id(bos_token), self._special_id(eos_token)
        pad = self._special_id(pad_token)
        self.pad_id: int = pad if pad is not None else (self.eos_id or 0)
        added = self._template.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self.special_tokens = tuple(token.content for token in added.values() if token.special)
        ids = self._template.get_vocab(with_added_tokens=True).values()
        self.vocab_size: int = 1 + max(ids, default=-1)  # ids may have gaps
        self._keep_out(added)
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
        self._parts = PartEncoder(self._plain, self._template, self.encode_batch)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Tokenizer:
        """Reads tokenizer.json or tokenizer.model, and the files beside it that add to it.

        Which tokens begin and end a sequence comes from tokenizer_config.json, else
        special_tokens_map.json, else the ids in config.json, else from tokenizer.model itself.

        Raises:
          GritError: the directory has no tokenizer that can be read, or a damaged file.
        """
        files = tokenizer_files.read(Path(directory))
        return cls(
            files.tokenizer_json,
            bos_token=files.names["bos"],
            eos_token=files.names["eos"],
            pad_token=files.names["pad"],
            config=files.config,
            model=files.model,
        )

    def save(
        self,
        directory: str | Path,
        chat: ChatFormat | None = GRIT,
        *,
        architecture: str | None = None,
    ) -> None:
        """Writes the files of a tokenizer that transformers opens with the same ids.

        Args:
          chat: becomes the chat template, with this tokenizer's begin and end (see `format`);
            None keeps the one that the tokenizer came with.
          architecture: of the model beside it, for which transformers may choose another class of
            tokenizer.
        """
        names = {"bos": self.bos_token, "eos": self.eos_token, "pad": self.pad_token}
        template = self.config.get("chat_template") if chat is None else self.format(chat).jinja()
        config = self.config | {"chat_template": template} if template is not None else self.config
        files = tokenizer_files.TokenizerFiles(self._json, names, config, self._model)
        tokenizer_files.write(Path(directory), files, architecture)

    @property
    def digest(self) -> str:
        """A hash of its file and of what begins, ends and fills a sequence."""
        names = json.dumps([self._json, self.bos_token, self.eos_token, self.pad_token])
        return hashlib.blake2b(names.encode(), digest_size=16).hexdigest()

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, nothing added; special tokens written in it are read as ordinary
        characters.

        `continues`: the text stands inside a prompt, so a tokenizer with a dummy prefix must not
        add it.
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
        except (UnicodeEncodeError, TypeError):
            for number, text in enumerate(texts):
                unicode_text(text, number)
            raise
        if not cut:
            return [item.ids for item in encoded]
        # A vocabulary may merge the anchor with the text; such a text is tokenised by itself.
        return [
            (
                ids[cut:]
                if ids[:cut] == self._anchor
                else self._raw(self._plain, texts[i][len(_ANCHOR) :])
            )
            for i, ids in enumerate(item.ids for item in encoded)
        ]

    def encode_parts(self, prompts: Sequence[Sequence[PromptPart]]) -> list[list[list[int]]]:
        """Ids of every part of every prompt; concatenated they are the prompt.

        They equal those of the whole string tokenised at once, except for typed special tokens and
        at the borders that `prompt_encoding.py` names. Templates are cached and texts go through
        two batch calls, so this is the fast way for many prompts.
        """
        if not self._has_prefix:
            return self._parts.encode(prompts)
        # A tokenizer with a dummy prefix adds one to every run; but its vocabulary has no token
        # across a line break, so that the parts can be tokenised one by one.
        result: list[list[list[int]]] = [[[] for _ in prompt] for prompt in prompts]
        queue: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])  # by `continues`
        for row, prompt in enumerate(prompts):
            inside = False  # whether the next part stands inside running text
            for column, part in enumerate(prompt):
                if not part.text:
                    continue
                if part.is_template:
                    ids = self._template_ids(part.text, inside)
                    result[row][column] = list(ids)
                    inside = not (
                        ids and ids[-1] in self._special_ids and self._prefix_after_special
                    )
                else:
                    queue[inside].append((row, column))
                    inside = True
        for continues, places in enumerate(queue):
            texts = [prompts[row][column].text for row, column in places]
            encoded = self.encode_batch(texts, continues=bool(continues))
            for (row, column), text_ids in zip(places, encoded, strict=True):
                result[row][column] = text_ids
        return result

    def encode_rendered(self, text: str, typed: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Ids of a text that a chat template wrote, tokenised as one string.

        Args:
          typed: (start, end) of what a user wrote; special tokens spelled there are text, all
            others are real.

        Raises:
          GritError: half of a surrogate pair.
        """
        if not typed:
            return self._raw(self._template, unicode_text(text))
        # Special tokens are found in a copy in which the typed text is replaced by "x".
        crossed = list(unicode_text(text))
        for start, end in typed:
            crossed[start:end] = "x" * (end - start)
        encoding = self._template.encode("".join(crossed), add_special_tokens=False)
        ids: list[int] = []
        place, continues = 0, False
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if i in self._special_ids:
                ids += self.encode(text[place:start], continues=continues)
                ids.append(i)
                place, continues = end, not self._prefix_after_special
        return ids + self.encode(text[place:], continues=continues)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids; special tokens are left out unless `skip_special` is False."""
        return self._template.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @property
    def json(self) -> str:
        """The content of its tokenizer.json."""
        return self._json

    def token_text(self, token: int) -> str | None:
        """How the vocabulary spells a token; None for an id that no token has."""
        return self._template.id_to_token(token)

    def format(self, chat: ChatFormat = GRIT) -> ChatFormat:
        """`chat` with this tokenizer's own begin and end of sequence, unless the format's are
        special tokens here.

        An ordinary token of the same spelling does not count: Gemma's vocabulary has `<s>` and
        `</s>` as the HTML tags, which end no sequence.

        Raises:
          GritError: the tokenizer has no end of sequence either, so no answer could end.
        """
        needed = [token for token in (chat.bos, chat.eos) if token]
        special = [token for token in needed if token in self.special_tokens]
        if special == needed:
            return chat
        eos = self.eos_token or (chat.eos if chat.eos in special else None)
        if eos is None:
            raise GritError(
                f"the tokenizer has no special token '{chat.eos}', with which the format"
                f" '{chat.name}' ends an answer, and no end of sequence of its own; name one as"
                " 'eos_token' in tokenizer_config.json"
            )
        return chat.with_tokens(self.bos_token, eos)

    def answer_ends(self, chat: ChatFormat) -> tuple[int, ...]:
        """Token ids that end an answer in a format of this tokenizer."""
        end = self.encode_parts([chat.answer_parts("")[1:]])[0][0]
        ends = [*(end if len(end) == 1 else ()), self.eos_id]
        return tuple(dict.fromkeys(i for i in ends if i is not None))

    def check_fits(self, vocab_size: int, location: str) -> None:
        """Raises GritError if the tokenizer has ids beyond a model's vocabulary.

        Args:
          location: the model's name in the message.
        """
        if self.vocab_size <= vocab_size:
            return
        vocabulary = self._template.get_vocab(with_added_tokens=True)
        beyond = sorted((i, text) for text, i in vocabulary.items() if i >= vocab_size)
        names = ", ".join(f"{text!r}" for _, text in beyond[:4]) + (", ..." * (len(beyond) > 4))
        added = self._template.get_added_tokens_decoder().keys() >= {i for i, _ in beyond}
        remedy = (
            "they were added to the tokenizer and not to the model: remove them from"
            " tokenizer.json, tokenizer_config.json and added_tokens.json, or give the model rows"
            " for them (transformers: model.resize_token_embeddings(len(tokenizer)), then save it)"
            if added
            else "they do not belong together; take the tokenizer that was published with the model"
        )
        raise GritError(
            f"{location}: the model's vocabulary has {vocab_size} ids, the tokenizer's"
            f" {self.vocab_size} ({names} beyond it); {remedy}"
        )

    def added_around(self) -> tuple[str, str]:
        """The special tokens that transformers' tokenizer adds before and after a text by default.

        They come from tokenizer.json. `add_bos_token` and `add_eos_token` of tokenizer_config.json
        are used only if it has none.
        """
        if self._template.post_processor is None:
            kinds = (("bos", self.bos_token), ("eos", self.eos_token))
            begin, end = (
                (token or "") if self.config.get(f"add_{kind}_token") else ""
                for kind, token in kinds
            )
            return begin, end
        encoding = self._template.encode("a", add_special_tokens=True)
        added = [bool(mark) for mark in encoding.special_tokens_mask]
        inside = added.index(False) if False in added else len(added)
        after = len(added) - added[::-1].index(False) if False in added else len(added)
        return "".join(encoding.tokens[:inside]), "".join(encoding.tokens[after:])

    def _keep_out(self, added: dict[int, tokenizers.AddedToken]) -> None:
        """Cuts texts behind the first character of a special token where the model itself would
        read one.

        Some models have special tokens among the pieces that they find in a text (unigram ones
        converted by others).
        """
        leaks = [
            t.content
            for i, t in added.items()
            if t.special and i in self._raw(self._plain, t.content)
        ]
        cuts = "|".join(
            f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in leaks if len(text) > 1
        )
        if cuts:
            steps = [self._plain.pre_tokenizer] if self._plain.pre_tokenizer is not None else []
            split = pre_tokenizers.Split(tokenizers.Regex(cuts), behavior="merged_with_previous")
            # After what treats a text's beginning, before what turns characters into bytes.
            steps = [split, *steps] if '"ByteLevel"' in self._json else [*steps, split]
            self._plain.pre_tokenizer = pre_tokenizers.Sequence(steps)

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
