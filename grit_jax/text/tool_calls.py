"""Calls of functions in a model's answer, found while it grows.

Each family of models writes calls in a form of its own (`FORMATS`); a chat template that shows the
form says which one it is (`format_of`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STRUCTURE = re.compile(r'["{}\[\]]')
_SCALAR = re.compile(r"[^\s,:{}\[\]\"]+")
_SEPARATORS = " \t\r\n,;]"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclasses.dataclass(frozen=True)
class ToolFormat:
    """How a model writes calls: `begin`, one or more JSON objects, `end`.

    Attributes:
      begin: what precedes calls; empty: an answer that begins with an object is a call.
      end: what follows them; empty: nothing.
      arguments: the key of the arguments.
      opening, closing: around the calls when an answer is held to this form.
      separator: between calls, with `opening` and `closing` once for all; None: they are repeated
        for each call.
      optional: tokens that may stand at the beginning, without a meaning.
      id_length: characters of a call's id, letters and digits; None: an id as OpenAI has it.
      bare_names: calls may be a name and its arguments, without an object around them.
    """

    name: str
    begin: str
    end: str
    arguments: str = "arguments"
    opening: str = ""
    closing: str = ""
    separator: str | None = None
    optional: tuple[str, ...] = ()
    id_length: int | None = None
    bare_names: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Strings that may be special tokens of a tokenizer, and belong to the form."""
        return tuple(filter(None, (self.begin, self.end, *self.optional)))


FORMATS = {
    each.name: each
    for each in (
        # Qwen 2.5 and 3, Hermes 2 and 3.
        ToolFormat(
            "hermes",
            "<tool_call>",
            "</tool_call>",
            opening="<tool_call>\n",
            closing="\n</tool_call>",
        ),
        ToolFormat(
            "smollm2",
            "<tool_call>",
            "</tool_call>",
            opening="<tool_call>[",
            closing="]</tool_call>",
            separator=", ",
        ),
        ToolFormat(
            "llama3_json", "", "", "parameters", separator="; ", optional=("<|python_tag|>",)
        ),
        ToolFormat(
            "mistral",
            "[TOOL_CALLS]",
            "",
            opening="[TOOL_CALLS][",
            closing="]",
            separator=", ",
            optional=("[ARGS]",),
            id_length=9,
            bare_names=True,
        ),
    )
}


def format_of(template: str) -> ToolFormat | None:
    """The form that a chat template shows, None for one that is not known here."""
    if "[TOOL_CALLS]" in template:
        return FORMATS["mistral"]
    if "<tool_call>[" in template:
        return FORMATS["smollm2"]
    if "<tool_call>" in template:
        return FORMATS["hermes"]
    if re.search(r'\\?"parameters\\?"', template) and re.search("ipython|python_tag", template):
        return FORMATS["llama3_json"]
    return None


@dataclasses.dataclass
class CallPart:
    """What a call has grown by.

    Attributes:
      index: the call's number in the answer.
      name: of the function, with the first part of a call; else None.
      arguments: JSON text, to be joined.
    """

    index: int
    name: str | None
    arguments: str


@dataclasses.dataclass
class ParsedText:
    """Content and calls that are new and certain."""

    content: str = ""
    calls: list[CallPart] = dataclasses.field(default_factory=list)


class ToolCallParser:
    """Divides an answer into content and calls, as it grows.

    A call begins once its function's name and the beginning of its arguments are there. What is no
    call of a known function is content, word for word. White space around calls is left out.

    Attributes:
      calls: how many there are.

    Args:
      functions: names that may be called.
      most: calls that count; what follows them is left out.
    """

    def __init__(
        self, form: ToolFormat, functions: Collection[str], most: int | None = None
    ) -> None:
        self._form, self._functions, self._most = form, functions, most
        self._text = ""  # not passed on yet
        self._opened = ""  # before it: read since the last call or content, passed on if none comes
        self._step: Callable[[ParsedText, bool], bool] = self._content
        self._at_start, self._trim = True, False
        self._sent: int | None = None  # characters of the arguments of the call under way
        self.calls = 0

    def write(self, text: str, *, last: bool = False) -> ParsedText:
        """Adds text; returns what is certain. `last`: nothing follows."""
        self._text += text
        parsed = ParsedText()
        while self._calls_left and self._step(parsed, last):
            pass
        return parsed

    @property
    def _calls_left(self) -> bool:
        return self._most is None or self.calls < self._most

    # Each step returns False if it needs more text.

    def _content(self, parsed: ParsedText, last: bool) -> bool:
        """Text up to the beginning of calls."""
        if self._trim:
            self._text = self._text.lstrip()
            self._trim = not self._text
        form, text = self._form, self._text
        if not form.begin and self._at_start:  # the first character decides
            start = text.lstrip()
            if start.startswith(("{", *form.optional)):
                self._step = self._between
                return True
            if not last and (not start or _could_be(start, form.optional)):
                return False
        place = text.find(form.begin) if form.begin else -1
        if place >= 0:
            before = text[:place]
            self._pass_on(parsed, before.rstrip())
            self._opened = before[len(before.rstrip()) :] + form.begin
            self._text, self._step = text[place + len(form.begin) :], self._between
            return True
        held = 0 if last else _beginning(text, form.begin)
        certain = text[: len(text) - held]
        if not last or self.calls:
            certain = certain.rstrip()
        self._pass_on(parsed, certain)
        self._text = "" if last else text[len(certain) :]
        return False

    def _between(self, parsed: ParsedText, last: bool) -> bool:
        """Before a call, or after one: separators and marks."""
        form = self._form
        rest = self._text.lstrip(_SEPARATORS)
        self._open(len(self._text) - len(rest))
        if not rest or (not last and _could_be(rest, form.marks)):
            if last:
                self._give_up(parsed)
            return False
        for mark in (form.begin, *form.optional):
            if mark and rest.startswith(mark):
                self._open(len(mark))
                return True
        if form.end and rest.startswith(form.end) and self._after_call:
            self._text, self._step = rest[len(form.end) :], self._content
            self._opened, self._trim = "", True
        elif rest.startswith("["):
            self._open(1)
        elif rest.startswith("{") or (form.bare_names and _NAME.match(rest)):
            self._step = self._call
        else:
            self._give_up(parsed)
        return True

    def _call(self, parsed: ParsedText, last: bool) -> bool:
        """A call as far as it is there."""
        text = self._text
        try:
            call = _object(text, self._form) if text.startswith("{") else _bare(text, self._form)
        except ValueError:
            if self._sent is None:
                self._give_up(parsed)
            else:
                self._end_call("")
            return True
        if call.end is not None and call.start is None and call.name in self._functions:
            parsed.calls.append(CallPart(self.calls, call.name, "{}"))  # no arguments
            self._end_call(text[call.end :])
            return True
        if call.start is None or call.name not in self._functions:
            if last or call.end is not None or call.name is not None and call.start is not None:
                self._give_up(parsed)
                return True
            return False
        if text[call.start] != '"':
            arguments = text[call.start : call.stop]
        elif call.stop is not None:  # a string that holds JSON
            arguments = _loaded(text[call.start : call.stop]).strip() or "{}"
        else:
            arguments = ""
        if self._sent is None and arguments:
            parsed.calls.append(CallPart(self.calls, call.name, arguments))
        elif len(arguments) > (self._sent or 0):
            parsed.calls.append(CallPart(self.calls, None, arguments[self._sent :]))
        self._sent = len(arguments) or None
        if call.end is not None:
            self._end_call(text[call.end :])
            return True
        if last and self._sent is not None:
            self._end_call("")
        elif last:
            self._give_up(parsed)
        return False

    @property
    def _after_call(self) -> bool:
        return self.calls > 0 and self._form.begin not in self._opened

    def _open(self, count: int) -> None:
        self._opened, self._text = self._opened + self._text[:count], self._text[count:]

    def _end_call(self, rest: str) -> None:
        self.calls += 1
        self._text, self._opened, self._sent, self._step = rest, "", None, self._between

    def _give_up(self, parsed: ParsedText) -> None:
        """What was held back is content; a mark later in it may begin a call."""
        if not self.calls or self._opened.strip(_SEPARATORS + "["):
            self._pass_on(parsed, self._opened)
        self._opened, self._sent, self._step = "", None, self._content
        self._at_start = False

    def _pass_on(self, parsed: ParsedText, text: str) -> None:
        self._at_start = self._at_start and not text
        parsed.content += text


@dataclasses.dataclass
class _Call:
    """A call as far as it is there: its name, where its arguments start and stop, and where it
    ends."""

    name: str | None = None
    start: int | None = None
    stop: int | None = None
    end: int | None = None


def _object(text: str, form: ToolFormat) -> _Call:
    """A JSON object with a name and arguments. A mistake after both are there ends it.

    Raises:
      ValueError: it is none.
    """
    call, place = _Call(), 1
    while (place := _after_space(text, place)) < len(text):
        if text[place] == "}":
            call.end = place + 1
            return call
        if text[place] == ",":
            place += 1
            continue
        try:
            stop = _member(text, place, call, form)
        except ValueError:
            if call.name is None or call.stop is None:
                raise
            call.end = place
            return call
        if stop is None:
            return call
        place = stop
    return call


def _member(text: str, place: int, call: _Call, form: ToolFormat) -> int | None:
    """Reads a key and its value into a call; returns where the value ends, None: not yet.

    Raises:
      ValueError: there is no key, or it has no value.
    """
    if text[place] != '"':
        raise ValueError
    key_end = _value_end(text, place)
    colon = len(text) if key_end is None else _after_space(text, key_end)
    if colon >= len(text):
        return None
    if text[colon] != ":":
        raise ValueError
    key = json.loads(text[place:key_end], strict=False)
    start = _after_space(text, colon + 1)
    if start >= len(text):
        return None
    stop = _value_end(text, start)
    if key in (form.arguments, "arguments", "parameters") and call.start is None:
        if text[start] in '{"':
            call.start, call.stop = start, stop
        elif not "null".startswith(text[start:stop]):
            raise ValueError
    elif key == "name" and stop is not None and call.name is None:
        call.name = str(json.loads(text[start:stop], strict=False))
    return stop


def _bare(text: str, form: ToolFormat) -> _Call:
    """A name and arguments without an object around them, as newer models of Mistral write.

    Raises:
      ValueError: it is none.
    """
    match = _NAME.match(text)
    if match is None:
        raise ValueError
    place = match.end()
    for mark in form.optional:
        if text.startswith(mark, place):
            place += len(mark)
        elif place < len(text) and mark.startswith(text[place:]):
            return _Call()
    place = _after_space(text, place)
    if place >= len(text):
        return _Call()
    if text[place] != "{":
        raise ValueError
    stop = _value_end(text, place)
    return _Call(match.group(), place, stop, stop)


def _loaded(text: str) -> str:
    """The value of a JSON string, or its text where it has a mistake."""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return text


def _value_end(text: str, place: int) -> int | None:
    """Where the JSON value that begins at a place ends; None: not yet.

    Raises:
      ValueError: no value begins there.
    """
    if text[place] == '"':
        match = _STRING.match(text, place)
        return match.end() if match else None
    if text[place] not in "{[":
        match = _SCALAR.match(text, place)
        if match is None:
            raise ValueError
        return match.end() if match.end() < len(text) else None
    depth = 0
    while (mark := _STRUCTURE.search(text, place)) is not None:
        place = mark.end()
        if mark.group() == '"':
            match = _STRING.match(text, mark.start())
            if match is None:
                return None
            place = match.end()
            continue
        depth += 1 if mark.group() in "{[" else -1
        if not depth:
            return place
    return None


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _beginning(text: str, mark: str) -> int:
    """Characters at the end of a text with which a mark may begin."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)


def _could_be(text: str, marks: Collection[str]) -> bool:
    """Whether a text may become one of the marks."""
    return any(mark and len(text) < len(mark) and mark.startswith(text) for mark in marks)
