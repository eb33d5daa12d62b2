"""Chat templates of models: jinja2 code, rendered as in transformers, then tokenised safely.

A template writes special tokens and messages into one string. A user who types `<|im_end|>` must
not end a turn, so the two have to be distinguished: everything in a message that spells a special
token, or could become one beside other text, is put between two marks, characters that occur
nowhere else. In the rendered string, special tokens between marks are text; everything else has the
ids of the whole string.

Rendering happens in a separate process with limits on time, memory and output
(`chat_template_worker.py`).
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.text.tokenizer import Tokenizer
from grit_jax.text.tokenizer_files import CONFIG, TEMPLATE

SECONDS = 10.0  # limit of one rendering; real templates take about 10 ms
# Characters a template may add to a conversation, and how often it may repeat one.
OUTPUT, REPEATS = 1 << 20, 16
SOURCE = 1 << 20  # characters of a template
_PRIVATE = range(0xF0000, 0xFFFFE)  # private-use characters, of which two become marks
# The environment variables that the process needs; templates must not see any others.
_ENVIRONMENT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "TZ")


class ChatTemplate:
    """A template and the tokenizer whose special tokens it writes.

    `location` is its file, named in every error.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, location: str):
        if len(source) > SOURCE:
            raise GritError(f"{location}: the chat template is longer than {SOURCE} characters")
        self.source, self.tokenizer, self.location = source, tokenizer, location
        config = tokenizer.config
        named = {key: _content(value) for key, value in config.items() if key.endswith("_token")}
        named |= {
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
        }
        self._variables = {key: text for key, text in named.items() if text is not None}
        special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._longest = max(map(len, special), default=0)
        self._beginnings = {text[:n] for text in special for n in range(1, len(text))}
        self._endings = {text[n:] for text in special for n in range(1, len(text))}
        self._with_tools: ChatTemplate = self  # that renders conversations with tools

    @classmethod
    def from_pretrained(cls, directory: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of the directory from which `tokenizer` comes; None if it has none.

        Raises:
          GritError: several templates and none is the default, or something that is not a template.
        """
        directory, source = Path(directory), tokenizer.config.get("chat_template")
        file = TEMPLATE if (directory / TEMPLATE).is_file() else CONFIG
        location = f"{directory / file}: chat_template"
        if isinstance(source, list):
            source = {
                item.get("name"): item.get("template")
                for item in source
                if isinstance(item, Mapping)
            }
        with_tools = None
        if isinstance(source, Mapping):
            with_tools = source.get("tool_use")
            if "default" not in source:
                raise GritError(
                    f"{location}: none of its templates is named 'default'"
                    f" ({', '.join(map(str, source))})"
                )
            source = source["default"]
        if source is None:
            return None
        if not isinstance(source, str):
            raise GritError(
                f"{location} must be a string or a list of named ones, got {source!r:.60}"
            )
        template = cls(source, tokenizer, location)
        if isinstance(with_tools, str):  # as transformers chooses it
            template._with_tools = cls(with_tools, tokenizer, location)
        return template

    @functools.cached_property
    def reads_tools(self) -> bool:
        """Whether the template writes the tools that it is given."""
        name = "probe_of_tools"
        function = {"name": name, "description": "", "parameters": {"type": "object"}}
        try:
            text = self.render(
                [{"role": "user", "content": "-"}],
                tools=[{"type": "function", "function": function}],
            )
        except GritError:
            return False
        return name in text

    @property
    def tool_source(self) -> str:
        """The template that writes conversations with tools."""
        return self._with_tools.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """A conversation as transformers' `apply_chat_template` writes it.

        Args:
          tools: functions that may be called, as OpenAI describes them.

        Raises:
          GritError: invalid messages, or a template that refuses them, has a mistake, or does not
            end.
        """
        if tools and self._with_tools is not self:
            return self._with_tools.render(
                messages, tools=tools, add_generation_prompt=add_generation_prompt
            )
        return self._render(_plain(messages), _plain_tools(tools), add_generation_prompt)

    def prompt_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation; special tokens that a message or a tool spells are text.

        Args:
          tools: as of `render`.

        Raises:
          GritError: as `render`; the template changes such a message, so that its tokens cannot be
            distinguished from the template's own; or a key in tools or calls spells a special
            token.
        """
        if tools and self._with_tools is not self:
            return self._with_tools.prompt_ids(
                messages, tools=tools, add_generation_prompt=add_generation_prompt
            )
        plain, plain_tools = _plain(messages), _plain_tools(tools)
        if key := next(filter(self._special.search, _keys([plain, plain_tools])), None):
            raise GritError(f"{self.location}: the key {key!r:.60} spells a special token")
        text = self._render(plain, plain_tools, add_generation_prompt)
        marks = _unused([plain, plain_tools], self.source)
        marked, marked_tools = self._mark(plain, *marks), self._mark(plain_tools, *marks)
        typed: list[tuple[int, int]] = []
        if marked != plain or marked_tools != plain_tools:
            rendered = self._render(marked, marked_tools, add_generation_prompt)
            rest, typed = _without_marks(rendered, *marks)
            if rest != text:
                raise GritError(
                    f"{self.location}: a message spells a special token, and the template changes"
                    " it so that it cannot be distinguished from the template's own; remove it from"
                    " the message"
                )
        return self.tokenizer.encode_rendered(text, typed)

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        variables = self._variables | {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        longest = OUTPUT + REPEATS * sum(map(len, _strings([messages, tools])))
        answer = _WORKER.ask(
            {"template": self.source, "variables": variables, "longest": longest}, self.location
        )
        if "text" in answer:
            return answer["text"]
        line = f", line {answer['line']}" if answer.get("line") else ""
        says = (
            "the template refuses this conversation: "
            if answer.get("refused")
            else "the template fails: "
        )
        raise GritError(f"{self.location}{line}: {says}{answer['error']}")

    def _mark(self, value: Any, left: str, right: str) -> Any:
        """Strings with marks around what a special token may be read from, alone or beside other
        text."""
        if isinstance(value, dict):
            return {key: self._mark(item, left, right) for key, item in value.items()}
        if isinstance(value, list):
            return [self._mark(item, left, right) for item in value]
        if not isinstance(value, str) or not value:
            return value
        spans = [match.span() for match in self._special.finditer(value)]
        sizes = range(min(self._longest, len(value)), 0, -1)
        spans += [(0, n) for n in sizes if value[:n] in self._endings][:1]
        spans += [(len(value) - n, len(value)) for n in sizes if value[-n:] in self._beginnings][:1]
        marked, place = "", 0
        for start, end in _merged(spans):
            marked += value[place:start] + left + value[start:end] + right
            place = end
        return marked + value[place:]


class _Worker:
    """The process that renders; started when it is first needed, and again after it had to be
    killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # the pipes of a forked process are those of its parent

    def ask(self, request: dict[str, Any], location: str) -> dict[str, Any]:
        """The answer to a request; `location` is the template's name in messages.

        Raises:
          GritError: there was none in time, or the process died over it.
        """
        with self._lock:
            process = self._running()
            late = threading.Event()

            def kill() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(SECONDS, kill)
            timer.start()
            line = ""
            try:
                assert process.stdin is not None and process.stdout is not None
                print(json.dumps(request), file=process.stdin, flush=True)
                line = process.stdout.readline()
            except OSError:  # it died with the request half read
                pass
            finally:
                timer.cancel()
            if line.endswith("\n"):
                return json.loads(line)
            self.close()
        if late.is_set():
            raise GritError(
                f"{location}: the template took longer than {SECONDS:g} s, and was stopped"
            )
        raise GritError(f"{location}: the process that renders the template died")

    def close(self) -> None:
        """Ends the process; the next request starts another one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if (
            self._process is not None
            and self._owner == os.getpid()
            and self._process.poll() is None
        ):
            return self._process
        self.close()
        packages = [_folder(name) for name in ("jinja2", "markupsafe")]
        script = str(Path(__file__).with_name("chat_template_worker.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-I", script, *packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        self._owner = os.getpid()
        return self._process


_WORKER = _Worker()
atexit.register(_WORKER.close)


def _folder(package: str) -> str:
    """The folder that a package is installed in; the process may have another search path."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise GritError(
            f"chat templates need {package}, which is not installed: pip install {package}"
        )
    return str(Path(spec.origin).parent.parent)


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as plain data; a key without a value is as good as none, as in transformers.

    Raises:
      GritError: something that is no conversation, or holds what JSON cannot.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise GritError(
            f"messages must be a list of {{'role', 'content'}} objects, got {messages!r:.60}"
        )
    plain = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise GritError(
                f"messages[{number}]: expected an object with 'role' and 'content', got"
                f" {message!r:.60}"
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                kind = type(message.get(key)).__name__
                raise GritError(f"messages[{number}]: '{key}' must be a string, got {kind}")
        try:
            plain.append(
                json.loads(json.dumps({k: v for k, v in message.items() if v is not None}))
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise GritError(f"messages[{number}]: {error}") from None
    return plain


def _plain_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as plain data; None: there are none.

    Raises:
      GritError: something that JSON cannot hold.
    """
    try:
        return json.loads(json.dumps(list(tools))) if tools else None
    except (TypeError, ValueError, RecursionError) as error:
        raise GritError(f"tools: {error}") from None


def _content(token: Any) -> str | None:
    """A token as tokenizer_config.json writes it: a string, or an object with `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        yield from _keys(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _unused(given: Any, source: str) -> tuple[str, str]:
    """Two characters that occur nowhere in what is given and not in the template."""
    used = set(source).union(*_strings(given))
    left, right = itertools.islice((c for c in map(chr, _PRIVATE) if c not in used), 2)
    return left, right


def _without_marks(text: str, left: str, right: str) -> tuple[str, list[tuple[int, int]]]:
    """A rendered text without its marks, and the spans between pairs of them. A single mark counts
    for nothing."""
    parts: list[str] = []
    typed: list[tuple[int, int]] = []
    length, opened = 0, None
    for part in re.split(f"([{left}{right}])", text):
        if part == left:
            opened = length
        elif part == right:
            if opened is not None:
                typed.append((opened, length))
            opened = None
        else:
            parts.append(part)
            length += len(part)
    return "".join(parts), typed
