"""Filters over the metadata of documents: the language of `--where`.

    year >= 2020 and (lang == "en" or lang == "de") and not status in ["draft", "old"]

A field is a key of a document's metadata; `a.b` is key `b` of the object under `a`, and a name with
other characters is put in backquotes. A value is a string in single or double quotes (with the
escapes of JSON), a number, `true` or `false`.

- `==` (or `=`), `!=`, `<`, `<=`, `>`, `>=`: numbers with numbers, strings with strings (by code
  points, so that ISO dates are in the order of time); `==` and `!=` for `true` and `false` too.
- `in [VALUE, ...]` and `not in [VALUE, ...]`.
- `not`, `and`, `or`, binding in this order, and parentheses.

Where the metadata has a list, a comparison holds if it holds for one of its entries. A document
without the field, or with a value of another type, fulfils no comparison but `!=` and `not in`,
which are `not ==` and `not ... in`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from grit_jax.errors import GritError

Value: TypeAlias = "str | int | float | bool"
Test: TypeAlias = Callable[[Mapping[str, Any]], bool]

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
MOST_NESTED = 100  # parentheses and `not`s within each other
KEYWORDS = ("and", "or", "not", "in", "true", "false")
_TOKENS = re.compile(
    r"""\s*(?:
      (?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)
    | (?P<quoted>`[^`]*`)
    | (?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w))
    | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<sign>==|!=|<=|>=|[=<>()\[\],])
    )""",
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str  # a group of _TOKENS, "keyword" or "end"
    text: str
    position: int  # from 1


@dataclasses.dataclass(frozen=True)
class Filter:
    """A parsed expression.

    Attributes:
      expression: as it was written.
      fields: that it compares, each a path of keys.
      matches: whether a document's metadata fulfils it.

    >>> keep = parse_filter('year >= 2020 and lang in ["en", "de"]')
    >>> keep.matches({"year": 2021, "lang": "de"}), keep.matches({"year": 2021})
    (True, False)
    """

    expression: str
    fields: frozenset[tuple[str, ...]]
    matches: Test


@functools.lru_cache(256)
def parse_filter(expression: str) -> Filter:
    """Parses an expression.

    Raises:
      GritError: it is not one; the message names the position (from 1) and what was expected.
    """
    parser = _Parser(expression)
    test = parser.disjunction()
    parser.expect_end()
    return Filter(expression, frozenset(parser.fields), test)


def check_fields(keep: Filter, documents: Sequence[Mapping[str, Any]], place: str) -> None:
    """Checks that some document has each field: a mistyped name would filter all out, or none.

    Args:
      documents: the metadata of each.
      place: the index, for the message.

    Raises:
      GritError: no document has a field; the message names those that there are.
    """
    for path in sorted(keep.fields):
        if all(lookup(metadata, path) is None for metadata in documents):
            name = ".".join(path)
            known = ", ".join(sorted({key for metadata in documents for key in metadata}))
            there = f"there are: {known:.200}" if known else "no document has any"
            raise GritError(
                f"where: no document in {place} has the metadata {name!r}; {there} (the key"
                ' "metadata" of corpus lines)'
            )


class _Parser:
    """Recursive descent, with one token of look-ahead."""

    def __init__(self, expression: str):
        self._expression = expression
        self.fields: set[tuple[str, ...]] = set()
        self._tokens = self._split()
        self._token = next(self._tokens)
        self._nested = 0

    def disjunction(self) -> Test:
        tests = [self._conjunction()]
        while self._take("or"):
            tests.append(self._conjunction())
        return tests[0] if len(tests) == 1 else lambda of: any(test(of) for test in tests)

    def expect_end(self) -> None:
        if self._token.kind != "end":
            raise self._error("expected and, or, or the end")

    def _conjunction(self) -> Test:
        tests = [self._negation()]
        while self._take("and"):
            tests.append(self._negation())
        return tests[0] if len(tests) == 1 else lambda of: all(test(of) for test in tests)

    def _negation(self) -> Test:
        self._nested += 1
        if self._nested > MOST_NESTED:
            raise self._error(f"more than {MOST_NESTED} nested expressions")
        if self._take("not"):
            negated = self._negation()
            test: Test = lambda of: not negated(of)
        elif self._take("("):
            test = self.disjunction()
            if not self._take(")"):
                raise self._error("expected and, or, or )")
        else:
            test = self._comparison()
        self._nested -= 1
        return test

    def _comparison(self) -> Test:
        path = self._field()
        sign = self._token.text if self._token.kind == "sign" else ""
        if sign in COMPARISONS:
            self._advance()
            start = self._token
            value = self._value()
            if isinstance(value, bool) and sign not in ("==", "=", "!="):
                raise self._error("true and false are compared by == and != only", start)
            if sign == "!=":
                return lambda of: not _holds(of, path, operator.eq, (value,))
            return lambda of: _holds(of, path, COMPARISONS[sign], (value,))
        negated = self._take("not")
        if not self._take("in"):
            raise self._error("expected in" if negated else "expected ==, !=, <, <=, >, >= or in")
        values = self._values()
        return lambda of: _holds(of, path, operator.eq, values) != negated

    def _field(self) -> tuple[str, ...]:
        token = self._token
        if token.kind not in ("name", "quoted") or token.text == "``":
            raise self._error("expected the name of a field")
        self._advance()
        quoted = token.kind == "quoted"
        path = (token.text[1:-1],) if quoted else tuple(token.text.split("."))
        self.fields.add(path)
        return path

    def _values(self) -> tuple[Value, ...]:
        if not self._take("["):
            raise self._error("expected [")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        if not self._take("]"):
            raise self._error("expected , or ]")
        return tuple(values)

    def _value(self) -> Value:
        token = self._token
        if token.kind == "string":
            value: Value = self._string(token)
        elif token.kind == "number":
            try:
                value = float(token.text) if re.search("[.eE]", token.text) else int(token.text)
            except ValueError:  # Python reads integers of some thousand digits, not of more
                raise self._error("expected a number with fewer digits") from None
        elif token.text in ("true", "false"):
            value = token.text == "true"
        else:
            raise self._error("expected a value: a string in quotes, a number, true or false")
        self._advance()
        return value

    def _string(self, token: _Token) -> str:
        content = token.text[1:-1]
        if token.text[0] == "'":
            content = re.sub(r"\\(.)|(\")", _escaped, content, flags=re.DOTALL)
        try:
            return str(json.loads(f'"{content}"', strict=False))
        except ValueError:
            raise self._error("a string with a wrong escape", token) from None

    def _take(self, text: str) -> bool:
        """Whether the next token is this keyword or sign, which is then taken."""
        if self._token.text != text or self._token.kind not in ("keyword", "sign"):
            return False
        self._advance()
        return True

    def _advance(self) -> None:
        self._token = next(self._tokens)

    def _split(self) -> Iterator[_Token]:
        position, text = 0, self._expression
        while match := _TOKENS.match(text, position):
            kind = str(match.lastgroup)
            is_keyword = kind == "name" and match[kind] in KEYWORDS
            yield _Token("keyword" if is_keyword else kind, match[kind], match.start(kind) + 1)
            position = match.end()
        rest = text[position:]
        start = position + len(rest) - len(rest.lstrip()) + 1
        if rest.strip():
            yield _Token("unknown", rest.strip(), start)
        while True:
            yield _Token("end", "", start)

    def _error(self, message: str, token: _Token | None = None) -> GritError:
        token = token or self._token
        got = f"got {token.text!r:.40}" if token.text else "the expression ends"
        if token.kind == "unknown":
            quote = token.text[0] in "\"'`"
            got = "a quote that is not closed" if quote else f"got {token.text[0]!r}"
        return GritError(f"where: position {token.position}: {message}, {got}")


def _escaped(match: re.Match[str]) -> str:
    """An escape of a string in single quotes, as JSON writes it."""
    if match[2]:
        return '\\"'
    return "'" if match[1] == "'" else match[0]


def _holds(
    metadata: Mapping[str, Any],
    path: Sequence[str],
    compare: Callable[[Any, Any], bool],
    values: Sequence[Value],
) -> bool:
    """Whether the field, or an entry of its list, compares like this with one of the values."""
    field = lookup(metadata, path)
    entries = field if isinstance(field, list) else (field,)
    return any(
        _kind(entry) == _kind(value) is not None and compare(entry, value)
        for entry in entries
        for value in values
    )


def lookup(metadata: Any, path: Sequence[str]) -> Any:
    """The value of a field; None where there is none."""
    for key in path:
        if not isinstance(metadata, Mapping):
            return None
        metadata = metadata.get(key)
    return metadata


def _kind(value: Any) -> type | None:
    """What a value can be compared with; None: nothing."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, (int, float)):
        return float
    return str if isinstance(value, str) else None
