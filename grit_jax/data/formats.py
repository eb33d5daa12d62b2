"""The line formats of data files, and errors that say what is wrong with a line.

There are four kinds, distinguished by their keys (texts are strings, or `[instruction, text]`):

    embedding   {"query": text, "pos": [text, ...], "neg": [text, ...]}
    generative  {"text": "a document"} or {"text": [user, assistant, user, assistant, ...]}
    cached      {"docs": ["a document", {"title": ..., "text": ...}, ...], "text": [question,
    answer]}
    preference  {"prompt": prompt, "chosen": answer, "rejected": answer} or
    {"prompt": prompt, "completion": answer, "label": true}; a prompt is a string or a conversation
    [user, assistant, ..., user]

An embedding line may have the scores of a teacher for its "pos" and then its "neg": "scores": [9.1,
2.5, ...].

The first two are the original's (`gritlm/training/data.py`); the third trains answers over cached
documents; the fourth is TRL's, whose conversational form (messages with "role" and "content") is
read as well.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal, TypeAlias

from grit_jax.errors import GritError
from grit_jax.text.answer_matching import normalise_answer
from grit_jax.text.chat import turns_of

MOST_SCORE = 1e30  # a teacher's score beyond it would not survive float32

Kind: TypeAlias = Literal["embedding", "generative", "cached", "preference"]


@dataclasses.dataclass(frozen=True)
class Text:
    """A text to embed. `instruction` is None for a bare string, which `raw_strings` leaves
    unformatted."""

    instruction: str | None
    text: str


@dataclasses.dataclass(frozen=True)
class EmbeddingExample:
    """A query, texts that answer it (at least one) and texts that do not; a teacher's scores of
    both, in that order."""

    query: Text
    positives: tuple[Text, ...]
    negatives: tuple[Text, ...]
    scores: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class GenerativeExample:
    """A conversation `(user, assistant, ...)`, or a document (`text`) to be modelled whole."""

    turns: tuple[str, ...] = ()
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class CachedExample:
    """A question over documents, each of them `{title} {text}`, and its answer.

    Attributes:
      expected: the part of the answer that an answer must contain to match (`match` of
        `grit_jax.text.answer_matching`); "" stands for the whole answer.
    """

    docs: tuple[str, ...]
    question: str
    answer: str
    expected: str = ""


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """Two answers to a prompt `(user, assistant, ..., user)`: a preferred one and another."""

    prompt: tuple[str, ...]
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class LabelledAnswer:
    """An answer to a prompt `(user, assistant, ..., user)`, and whether it is a desirable one."""

    prompt: tuple[str, ...]
    completion: str
    desirable: bool


Example: TypeAlias = (
    EmbeddingExample | GenerativeExample | CachedExample | PreferencePair | LabelledAnswer
)

KIND_OF_TYPE: dict[type, Kind] = {
    EmbeddingExample: "embedding",
    GenerativeExample: "generative",
    CachedExample: "cached",
    PreferencePair: "preference",
    LabelledAnswer: "preference",
}


class LineError(GritError):
    """A line that is not an example. `reason` is the message without its place, for counting."""

    def __init__(self, place: str, reason: str):
        super().__init__(f"{place}: {reason}")
        self.reason = reason


def kind_of(data: dict[str, Any]) -> Kind | None:
    """The kind of a line by its keys, None if it has none of the known ones."""
    if "query" in data:
        return "embedding"
    if "docs" in data:
        return "cached"
    if "text" in data:
        return "generative"
    return "preference" if {"prompt", "chosen"} & data.keys() else None


def parse_line(line: str | bytes, place: str) -> Example:
    """One line of a data file as an example; the kind follows from its keys.

    Raises:
      LineError (a GritError): `place: what is wrong`.

    >>> parse_line('{"text": ["Who built it?", "Eiffel."]}', "chat.jsonl:1").turns
    ('Who built it?', 'Eiffel.')
    >>> example = parse_line('{"query": "Who?", "pos": [["", "Eiffel."]]}', "pairs.jsonl:1")
    >>> example.positives
    (Text(instruction='', text='Eiffel.'),)
    >>> parse_line('{"query": "Who?"}', "pairs.jsonl:2")
    Traceback (most recent call last):
    grit_jax.data.formats.LineError: pairs.jsonl:2: the key "pos" is missing; got "query"
    """
    data = _load(line, place)
    kind = kind_of(data)
    if kind == "embedding":
        return _embedding(data, place)
    if kind == "cached":
        return _cached(data, place)
    if kind == "generative":
        return _generative(data, place)
    if kind == "preference":
        return _preference(data, place)
    raise LineError(
        place,
        'no known key; expected "query" and "pos" (embedding), "text" (generative), "docs" and'
        ' "text" (cached) or "prompt" (preference), '
        f"got {_names(data)}",
    )


def titled(title: str, text: str) -> str:
    """The text of a document that is encoded: `{title} {text}`, or the one that is not empty."""
    if not text.strip():
        return title or text
    return f"{title} {text}" if title else text


def document_text(document: Any, place: str, name: str = "document") -> str:
    """A document as it is encoded; see `titled`.

    Args:
      document: a string, `{"title"?, "text"}`, or `["", text]`. Beside a title the text may be
        empty, as in some of BEIR's corpora.

    Raises:
      LineError (a GritError): it is none of these, is empty, or holds half of a surrogate pair.
    """
    if isinstance(document, dict):
        title, text = document.get("title") or "", document.get("text")
        if not isinstance(title, str):
            raise LineError(place, f"the title of {name} must be a string, got {_type(title)}")
        check_unicode(title, place, f"the title of {name}")
        if not (title.strip() and isinstance(text, str) and not text.strip()):
            text = _string(text, place, f"the text of {name}")
        return titled(title, text)
    if isinstance(document, list):
        pair = _text(document, place, name)
        if pair.instruction and pair.instruction.strip():
            raise LineError(place, f"{name} has an instruction; documents are encoded without one")
        return pair.text
    return _string(document, place, name)


def _embedding(data: dict[str, Any], place: str) -> EmbeddingExample:
    if "pos" not in data:
        raise LineError(place, f'the key "pos" is missing; got {_names(data)}')
    lists: dict[str, tuple[Text, ...]] = {}
    for key in ("pos", "neg"):
        value = data.get(key)
        value = [] if value is None else value
        if not isinstance(value, list):
            raise LineError(place, f'"{key}" must be a list of texts, got {_type(value)}')
        lists[key] = tuple(_text(item, place, f"{key}[{i}]") for i, item in enumerate(value))
    if not lists["pos"]:
        raise LineError(place, '"pos" is empty; a query needs at least one positive')
    scores = _scores(data.get("scores"), place, len(lists["pos"]) + len(lists["neg"]))
    return EmbeddingExample(
        _text(data["query"], place, "query"), lists["pos"], lists["neg"], scores
    )


def _scores(value: Any, place: str, count: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count:
        raise LineError(
            place,
            f'"scores" must be a list of {count} numbers, one for each of "pos" and "neg", got'
            f" {_type(value)}",
        )
    for i, score in enumerate(value):
        # json reads NaN and Infinity, and true is an int to Python.
        if (
            isinstance(score, bool)
            or not isinstance(score, (int, float))
            or not -MOST_SCORE < score < MOST_SCORE
        ):
            raise LineError(place, f"scores[{i}] must be a finite number, got {_type(score)}")
    return tuple(float(score) for score in value)


def _generative(data: dict[str, Any], place: str) -> GenerativeExample:
    value = data["text"]
    if isinstance(value, list):
        if not value:
            raise LineError(place, '"text" has no turns')
        turns = tuple(_string(turn, place, f"turn {i + 1}") for i, turn in enumerate(value))
        if len(turns) % 2:
            raise LineError(
                place,
                f'"text" has an odd number of turns ({len(turns)}); expected [user, assistant, ...]'
                " in pairs",
            )
        return GenerativeExample(turns=turns)
    return GenerativeExample(text=_string(value, place, '"text"'))


def _cached(data: dict[str, Any], place: str) -> CachedExample:
    if "text" not in data:
        raise LineError(
            place, f'the key "text" ([question, answer]) is missing; got {_names(data)}'
        )
    docs, text = data["docs"], data["text"]
    if not isinstance(docs, list) or not docs:
        raise LineError(place, f'"docs" must be a list of at least one document, got {_type(docs)}')
    if not isinstance(text, list) or len(text) != 2:
        raise LineError(place, f'"text" must be [question, answer], got {_type(text)}')
    return CachedExample(
        tuple(document_text(d, place, f"docs[{i}]") for i, d in enumerate(docs)),
        _string(text[0], place, "the question"),
        _string(text[1], place, "the answer"),
        _expected(data, place),
    )


def _expected(data: dict[str, Any], place: str) -> str:
    expected = data.get("answer", "")
    if not isinstance(expected, str):
        raise LineError(place, f'"answer" must be a string, got {_type(expected)}')
    if normalise_answer(expected) not in normalise_answer(data["text"][1]):
        raise LineError(
            place, f'"answer" must be a part of the answer in "text", got {expected!r:.60}'
        )
    return expected


def _preference(data: dict[str, Any], place: str) -> PreferencePair | LabelledAnswer:
    if "chosen" in data or "rejected" in data:
        keys: tuple[str, ...] = ("chosen", "rejected")
    else:
        keys = ("completion", "label")
    if missing := [key for key in keys if key not in data]:
        raise LineError(
            place,
            f'the key "{missing[0]}" is missing; expected "prompt" with "completion" and "label",'
            f' or with "chosen" and "rejected", got {_names(data)}',
        )
    prompt = _prompt(data["prompt"], place) if "prompt" in data else None
    if keys[1] == "label":
        assert prompt is not None
        before, completion = _answer(data["completion"], place, "completion")
        if before is not None:
            raise LineError(place, '"completion" must be the answer alone, without its prompt')
        if not isinstance(data["label"], bool):
            raise LineError(place, f'"label" must be true or false, got {_type(data["label"])}')
        return LabelledAnswer(prompt, completion, data["label"])
    (before, chosen), (other, rejected) = (_answer(data[key], place, key) for key in keys)
    if before != other:
        raise LineError(place, '"chosen" and "rejected" have different messages before the answer')
    if None not in (before, prompt) and before != prompt:
        raise LineError(
            place, '"prompt" is not what the messages of "chosen" and "rejected" begin with'
        )
    prompt = before or prompt  # UltraFeedback has it in both places
    if prompt is None:
        raise LineError(place, f'the key "prompt" is missing; got {_names(data)}')
    return PreferencePair(prompt, chosen, rejected)


def _prompt(value: Any, place: str) -> tuple[str, ...]:
    """The turns of a prompt: a string, `[user, assistant, ..., user]`, or messages."""
    if isinstance(value, str):
        return (_string(value, place, '"prompt"'),)
    if not isinstance(value, list) or not value:
        raise LineError(place, f'"prompt" must be a string or a list of turns, got {_type(value)}')
    if isinstance(value[0], dict):
        turns = _turns(value, place, "prompt")
    else:
        turns = tuple(_string(turn, place, f"turn {i + 1}") for i, turn in enumerate(value))
    if len(turns) % 2 == 0:
        raise LineError(
            place,
            f'"prompt" has an even number of turns ({len(turns)}); expected [user, assistant, ...,'
            " user], the last one to be answered",
        )
    return turns


def _answer(value: Any, place: str, key: str) -> tuple[tuple[str, ...] | None, str]:
    """An answer, and the turns before it where `value` is a whole conversation (None: it is the
    answer alone)."""
    if not isinstance(value, list):
        return None, _string(value, place, f'"{key}"')
    messages = list(value)
    if len(messages) == 1 and isinstance(messages[0], dict):
        role, content = messages[0].get("role"), messages[0].get("content")
        if role != "assistant":
            raise LineError(place, f'"{key}" must be a message of the assistant, got {role!r}')
        return None, _string(content, place, f'"{key}"')
    turns = _turns(messages, place, key)
    if len(turns) < 2 or len(turns) % 2:
        raise LineError(place, f'"{key}" must end with a message of the assistant')
    return turns[:-1], turns[-1]


def _turns(messages: list[Any], place: str, key: str) -> tuple[str, ...]:
    """OpenAI-style messages as turns `(user, assistant, ...)`."""
    if not all(isinstance(message, dict) for message in messages):
        raise LineError(place, f'"{key}" must be a string or a list of messages')
    try:
        turns = turns_of(messages)
    except GritError as error:
        raise LineError(place, f'"{key}": {error}') from None
    return tuple(_string(turn, place, f'turn {i + 1} of "{key}"') for i, turn in enumerate(turns))


def parse_json(line: str | bytes, place: str) -> Any:
    """The JSON value of a line.

    Raises:
      LineError (a GritError): it is not UTF-8 or not JSON.
    """
    try:
        # Not json's own guess of an encoding: it takes two odd bytes for UTF-16.
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        # Stripped, or the error of a truncated line would be at column 1 of the next line.
        return json.loads(text.rstrip())
    except UnicodeDecodeError as error:
        raise LineError(place, f"not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        what = (
            f"{error.msg} at column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
        raise LineError(place, f"not valid JSON: {what}") from None
    except RecursionError:
        raise LineError(place, "not usable JSON: nested too deeply") from None


def _load(line: str | bytes, place: str) -> dict[str, Any]:
    data = parse_json(line, place)
    if not isinstance(data, dict):
        raise LineError(place, f"expected a JSON object, got {_type(data)}")
    return data


def _text(value: Any, place: str, name: str) -> Text:
    if isinstance(value, list):
        if len(value) != 2:
            raise LineError(
                place, f"{name} must be a string or [instruction, text], got {_type(value)}"
            )
        instruction = value[0]
        if not isinstance(instruction, str):
            raise LineError(
                place, f"the instruction of {name} must be a string, got {_type(instruction)}"
            )
        check_unicode(instruction, place, f"the instruction of {name}")
        return Text(instruction, _string(value[1], place, f"the text of {name}"))
    return Text(None, _string(value, place, name))


def _string(value: Any, place: str, name: str) -> str:
    if not isinstance(value, str):
        raise LineError(place, f"{name} must be a string, got {_type(value)}")
    if not value.strip():
        raise LineError(place, f"{name} is empty")
    check_unicode(value, place, name)
    return value


def check_unicode(value: str, place: str, name: str) -> None:
    """Raises LineError for half of a surrogate pair, which JSON can spell and UTF-8 cannot hold."""
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise LineError(
                place, f"{name} holds half of a surrogate pair (\\ud800 to \\udfff)"
            ) from None


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return f"{type(value).__name__} ({str(value)[:40]!r})"


def _names(data: dict[str, Any]) -> str:
    return ", ".join(f'"{key}"' for key in list(data)[:8]) or "nothing"
