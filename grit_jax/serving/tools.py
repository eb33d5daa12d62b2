"""Functions that a model may call, written and read in its own template's form: those of chat, and
of responses."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any

from grit_jax.inference.model import GritLM
from grit_jax.serving.answers import Delta
from grit_jax.serving.errors import ApiError, bad_request
from grit_jax.serving.protocol import ChatBody
from grit_jax.serving.service import Service
from grit_jax.text.tool_calls import FORMATS, CallPart, ToolCallParser, ToolFormat, format_of

MOST_TOOLS = 128  # OpenAI's
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """The tools of a request.

    Attributes:
      shown: what the chat template gets; None: no tools, only calls and results in messages.
      form: how the model writes calls.
      functions: the JSON schemas of the functions' arguments by name.
      required: the functions of which one must be called; empty: none has to be.
      parallel: whether an answer may have several calls.
    """

    shown: Sequence[Mapping[str, Any]] | None
    form: ToolFormat | None
    functions: Mapping[str, Any]
    required: Sequence[str] = ()
    parallel: bool = True

    def parser(self) -> ToolCallParser | None:
        """What finds the calls in an answer; None where none may come."""
        if self.form is None or self.shown is None:
            return None
        return ToolCallParser(self.form, self.functions, None if self.parallel else 1)

    def kept(self, model: GritLM) -> dict[int, str]:
        """Special tokens of the model that belong to the form of calls, and their texts."""
        return _special_marks(self.form, model) if self.form is not None else {}

    def grammar(self, model: GritLM) -> str | None:
        """A grammar (llguidance's Lark) of the calls that are required; None where none is."""
        if not self.required or self.form is None:
            return None
        form, special = self.form, {text: i for i, text in _special_marks(self.form, model).items()}

        def literal(text: str) -> str:
            for mark, token in special.items():
                if mark in text:
                    before, _, after = text.partition(mark)
                    parts = (literal(before), f"<[{token}]>", literal(after))
                    return " ".join(filter(None, parts))
            return json.dumps(text, ensure_ascii=False) if text else ""

        rules, names = [], []
        for number, name in enumerate(self.required):
            head = f'{{"name": {json.dumps(name)}, {json.dumps(form.arguments)}: '
            rules.append(f"call_{number}: {literal(head)} arguments_{number} {literal('}')}")
            rules.append(f"arguments_{number}: %json {json.dumps(_spaced(self.functions[name]))}")
            names.append(f"call_{number}")
        one = f"({' | '.join(names)})"
        if form.separator is None:
            one = f"{literal(form.opening)} {one} {literal(form.closing)}"
            more = f' ("\\n" {one})*'
            start = one + (more if self.parallel else "")
        else:
            more = f" ({literal(form.separator)} {one})*" if self.parallel else ""
            start = f"{literal(form.opening)} {one}{more} {literal(form.closing)}"
        return "\n".join([f"start: {start}", *rules])

    def call_id(self) -> str:
        """A new id of a call."""
        length = self.form.id_length if self.form is not None else None
        if length is None:
            return f"call_{secrets.token_hex(12)}"
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(length))


@dataclasses.dataclass(frozen=True)
class ToolRequest:
    """What a request says of functions.

    Attributes:
      functions: with the place of each in the request, for errors.
      choice: "auto", "none", "required", or the name of the function in a tuple.
      parallel: whether an answer may have several calls.
      has_calls: the conversation has calls of functions, or their results.
      form: the type of the answer's form, "text" for none, and the field that says so.
      ignore_eos: the answer goes on after its end.
    """

    functions: Sequence[tuple[str, Mapping[str, Any]]]
    choice: str | tuple[str] = "auto"
    parallel: bool = True
    has_calls: bool = False
    form: tuple[str, str] = ("text", "response_format")
    ignore_eos: bool = False


class AnswerReader:
    """Reads one answer as OpenAI writes it: content, and calls of functions."""

    def __init__(self, tools: ToolUse | None):
        self._tools, self._parser = tools, tools.parser() if tools is not None else None

    def delta(self, delta: Delta) -> tuple[dict[str, Any], str | None]:
        """The fields that an answer has grown by, and why it has ended."""
        content, parts, finished = self.read(delta)
        fields = {"content": content} if content else {}
        calls = []
        for part in parts:
            function = {"name": part.name} if part.name is not None else {}
            call = {"index": part.index, "function": function | {"arguments": part.arguments}}
            calls.append(call | self._identity() if part.name is not None else call)
        return (fields | {"tool_calls": calls} if calls else fields), finished

    def message(self, delta: Delta) -> tuple[dict[str, Any], str | None]:
        """The content and the calls of a whole answer, and why it has ended."""
        content, parts, finished = self.read(delta)
        calls: list[dict[str, Any]] = []
        for part in parts:
            if part.name is not None:
                function = {"name": part.name, "arguments": ""}
                calls.append(self._identity() | {"function": function})
            calls[part.index]["function"]["arguments"] += part.arguments
        if not calls:
            return {"content": content}, finished
        return {"content": content or None, "tool_calls": calls}, finished

    def read(self, delta: Delta) -> tuple[str, list[CallPart], str | None]:
        """New content, what calls have grown by, and why the answer has ended."""
        if self._parser is None:
            return delta.text, [], delta.finished
        parsed = self._parser.write(delta.text, last=delta.finished is not None)
        called = delta.finished == "stop" and self._parser.calls
        finished = "tool_calls" if called else delta.finished
        return parsed.content, parsed.calls, finished

    def _identity(self) -> dict[str, Any]:
        assert self._tools is not None
        return {"id": self._tools.call_id(), "type": "function"}


async def tool_use(service: Service, asked: ToolRequest) -> ToolUse | None:
    """The functions of a request; None: it has none, and no calls or results of calls.

    Raises:
      ApiError: 400 for a function with a mistake, a choice that there is not, what does not go
        together with functions, or a model whose chat template has no tools.
    """
    functions = _schemas(asked.functions)
    required = _required(asked.choice, functions)
    if not functions and not asked.has_calls:
        return None
    await _check_template(service)
    if not functions or asked.choice == "none":
        return ToolUse(None, None, {})
    form = _form(service)
    kind, field = asked.form
    if kind != "text":
        raise bad_request(f"{field}: not with tools", field)
    if required and asked.ignore_eos:
        raise bad_request("ignore_eos: not where tool_choice requires a call", "ignore_eos")
    shown = [{"type": "function", "function": _shown(each)} for _, each in asked.functions]
    # A function that is named is called once.
    several = asked.parallel and not isinstance(asked.choice, tuple)
    return ToolUse(shown, form, functions, required, several)


def chat_tools(body: ChatBody) -> ToolRequest:
    """What a chat request says of functions.

    Raises:
      ApiError: 400 for a tool that is no function, or a choice with a mistake.
    """
    functions: list[tuple[str, Mapping[str, Any]]] = []
    for number, tool in enumerate(body.tools or []):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise bad_request(
                f"tools[{number}]: expected {{'type': 'function', 'function': {{'name', ...}}}},"
                f" got {json.dumps(tool):.100}",
                "tools",
            )
        functions.append((f"tools[{number}].function", function))
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        named = [tool.get("function") if isinstance(tool, dict) else None for tool in tools or ()]
        functions = allowed_functions(functions, named)
        choice = allowed.get("mode", "auto") if isinstance(allowed, dict) else None
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = choice.get("function")
    return ToolRequest(
        functions,
        choice_of(choice, "{'type': 'function', 'function': {'name'}}"),
        body.parallel_tool_calls is not False,
        any(message.role == "tool" or message.tool_calls for message in body.messages),
        ((body.response_format or {}).get("type", "text"), "response_format"),
        bool(body.ignore_eos),
    )


def choice_of(choice: Any, named: str) -> str | tuple[str]:
    """A `tool_choice`, as in `ToolRequest`.

    Args:
      choice: a function by an object with its `name`.
      named: how the endpoint names a function, for the error.

    Raises:
      ApiError: 400 for anything else.
    """
    if choice is None:
        return "auto"
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        return choice
    if isinstance(choice, dict) and isinstance(name := choice.get("name"), str):
        return (name,)
    raise bad_request(
        f"tool_choice: expected 'auto', 'none', 'required' or {named}, got"
        f" {json.dumps(choice):.100}",
        "tool_choice",
    )


def allowed_functions(
    functions: Sequence[tuple[str, Mapping[str, Any]]], allowed: Sequence[Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    """The functions that `tool_choice` allows by objects with their names.

    Raises:
      ApiError: 400 where it allows none, or one that is not there.
    """
    names = [each.get("name") if isinstance(each, dict) else None for each in allowed]
    known = [function.get("name") for _, function in functions]
    if not names or any(name is None or name not in known for name in names):
        raise bad_request(
            "tool_choice: expected allowed_tools with a mode and some of the tools by name",
            "tool_choice",
        )
    return [each for each in functions if each[1].get("name") in names]


def _schemas(functions: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The schemas of functions' arguments, by name."""
    if len(functions) > MOST_TOOLS:
        raise bad_request(
            f"tools: {len(functions)} tools, and a request may have {MOST_TOOLS}", "tools"
        )
    schemas: dict[str, Any] = {}
    for place, function in functions:
        name, schema = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise bad_request(
                f"{place}.name: expected up to 64 letters, digits, '_', '-' or '.', got"
                f" {name!r:.80}",
                "tools",
            )
        if name in schemas:
            raise bad_request(f"{place}.name: there is another {name!r}", "tools")
        if not isinstance(schema, dict | None) or (schema or {}).get("type", "object") != "object":
            raise bad_request(f"{place}.parameters: expected the JSON schema of an object", "tools")
        schemas[name] = schema or _NO_PARAMETERS
    return schemas


def _required(choice: str | tuple[str], functions: Mapping[str, Any]) -> list[str]:
    """The functions of which one must be called."""
    if choice == "required":
        if not functions:
            raise bad_request("tool_choice: 'required', and there are no tools", "tool_choice")
        return [*functions]
    if not isinstance(choice, tuple):
        return []
    if choice[0] not in functions:
        raise bad_request(
            f"tool_choice: there is no function {choice[0]!r:.80} among the tools", "tool_choice"
        )
    return [*choice]


def _shown(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function as chat templates are given it: without what is for the server."""
    return {key: value for key, value in function.items() if key != "strict" and value is not None}


async def _check_template(service: Service) -> None:
    """Raises ApiError: 400 for a model whose template has no tools."""
    template = service.model.template
    if template is not None and await service.prepare(lambda: template.reads_tools):
        return
    form = "" if template is not None else f", the format '{service.model.chat.name}',"
    raise ApiError(
        400,
        f"tools: the chat template of {service.name!r}{form} has no tools; describe the functions"
        " in a system message and hold the answer to a schema with response_format",
        param="tools",
        code="tools_not_supported",
    )


def _form(service: Service) -> ToolFormat:
    """How the model writes calls."""
    given = service.settings.tool_parser
    template = service.model.template
    form = FORMATS[given] if given else format_of(template.tool_source) if template else None
    if form is None:
        raise bad_request(
            "tools: the chat template does not show in which form the model writes calls; start the"
            f" server with --tool-parser {', '.join(FORMATS)}",
            "tools",
            "tools_not_supported",
        )
    return form


def _special_marks(form: ToolFormat, model: GritLM) -> dict[int, str]:
    """Marks of a form that are special tokens, by id."""
    tokenizer = model.tokenizer
    marks = [mark for mark in form.marks if mark in tokenizer.special_tokens]
    return {tokenizer.encode_rendered(mark)[0]: mark for mark in marks}


def _spaced(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose values are written with the spaces that templates write."""
    spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {"type": "object", **schema, "x-guidance": spaces}
