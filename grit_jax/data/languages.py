"""The language of a text, by a small rule: its script, and in Latin script its commonest words.

It tells ten European languages apart, and others by their script alone. It is made for counting
what a training set holds and for leaving out what is clearly another language; short texts, code
and languages that it does not know are `unknown`.
"""

from __future__ import annotations

import functools
import re
import unicodedata

UNKNOWN = "unknown"
CHARACTERS = 2000  # of a text that are looked at
# The commonest words that few other of these languages have.
WORDS = {
    "en": "the of and to in is that for it with as was on are this be by from or an which not what"
    " how you your who does when where can do has have did were",
    "de": "der die das und ist nicht ein eine mit auf dem den von zu für im sich auch des wie wird"
    " sind oder werden bei nach aus wer",
    "fr": "le la les des est et un une dans que qui pour pas sur au du avec ce plus par sont ne se"
    " cette ou comment quel quelle il elle",
    "es": "el la los las de que y en un una es por con para del se no lo como más su al está cuál"
    " qué son fue",
    "it": "il la che di è e un una per non con del della in sono i le gli si come alla dei nel"
    " questo più anche cosa",
    "pt": "o a os as de que e em um uma é por com para do da não se na no mais como dos foi são ao"
    " qual você",
    "nl": "de het een van en is dat niet op te met voor zijn aan er ook als wat bij naar worden"
    " door wie  hoe",
    "pl": "i w na z się nie do to jest że co jak po od za przez dla są czy oraz jego który",
    "sv": "och i att det som en på är av för med den till inte om har ett de vad kan från var",
    "tr": "ve bir bu için ile de da ne olarak daha çok gibi olan en var mı kadar sonra nasıl",
}
SCRIPTS = {
    "CYRILLIC": "cyrillic",
    "GREEK": "el",
    "ARABIC": "arabic",
    "HEBREW": "he",
    "DEVANAGARI": "devanagari",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
}
LANGUAGES = (UNKNOWN, *WORDS, *dict.fromkeys(SCRIPTS.values()))

# Single letters are names and list items in any language.
_SETS = {
    language: frozenset(word for word in words.split() if len(word) > 1)
    for language, words in WORDS.items()
}
_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str:
    """One of LANGUAGES.

    >>> [language_of(text) for text in ("Who wrote the play?", "Wer hat das Stück geschrieben, und"
    ...  " wann ist es erschienen?", "Кто написал пьесу?", "誰がこの劇を書いたのか", "x = 1")]
    ['en', 'de', 'cyrillic', 'ja', 'unknown']
    """
    text = text[:CHARACTERS]
    if not text.isascii() and (script := _script(text)) is not None:
        return script
    counts: dict[str, int] = {}
    for word in _WORD.findall(text.lower()):
        for language in _languages_with(word):
            counts[language] = counts.get(language, 0) + 1
    if not counts:
        return UNKNOWN
    first, second = sorted([*counts.values(), 0], reverse=True)[:2]
    # Equal counts name no language.
    return max(counts, key=lambda language: counts[language]) if first > second else UNKNOWN


def _script(text: str) -> str | None:
    """The language or script that most letters are of; None: Latin, or no letters."""
    counts: dict[str | None, int] = {}
    for character in text:
        if character.isalpha():
            script = _script_of(character) if ord(character) > 0x24F else None
            counts[script] = counts.get(script, 0) + 1
    if not counts:
        return None
    # Japanese is written with Han characters as well, Chinese never with kana.
    if counts.get("ja", 0) * 10 > sum(counts.values()):
        return "ja"
    return max(counts, key=lambda script: counts[script])


@functools.lru_cache(maxsize=1 << 16)
def _script_of(character: str) -> str | None:
    name = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    return SCRIPTS.get(name)


@functools.lru_cache(maxsize=1 << 16)
def _languages_with(word: str) -> tuple[str, ...]:
    return tuple(language for language, words in _SETS.items() if word in words)
