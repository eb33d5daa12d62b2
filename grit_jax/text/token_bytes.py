"""The bytes that each token of a vocabulary stands for."""

from __future__ import annotations

import functools
import json
import re

from grit_jax.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


class TokenBytes:
    """Bytes of tokens as they stand inside a text; a character may be spread over several tokens.

    Special tokens have the bytes of their spelling.
    """

    def __init__(self, tokenizer: Tokenizer):
        file = json.loads(tokenizer.json)
        self._added = {token["id"]: token["content"] for token in file.get("added_tokens") or ()}
        kinds = _kinds(file.get("decoder"))
        self._byte_level = "ByteLevel" in kinds
        self._fallback = "ByteFallback" in kinds
        self._spaces = "Metaspace" in kinds or _SPACE in json.dumps(
            file.get("decoder"), ensure_ascii=False
        )
        self._text = tokenizer.token_text

    def __getitem__(self, token: int) -> bytes:
        """The bytes of a token id; none for an id that no token has."""
        if token in self._added:
            text = self._added[token]
            return (text.replace(_SPACE, " ") if self._spaces else text).encode()
        text = self._text(token)
        if text is None:
            return b""
        if self._byte_level:
            table = _bytes_of_characters()
            if all(character in table for character in text):
                return bytes(table[character] for character in text)
            return text.encode()
        if self._fallback and (byte := _BYTE.fullmatch(text)):
            return bytes([int(byte[1], 16)])
        return (text.replace(_SPACE, " ") if self._spaces else text).encode()


def _kinds(decoder: dict | None) -> set[str]:
    """The types of a tokenizer's decoders."""
    if decoder is None:
        return set()
    inside = [_kinds(part) for part in decoder.get("decoders", ())]
    return {decoder.get("type", "")}.union(*inside)


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
