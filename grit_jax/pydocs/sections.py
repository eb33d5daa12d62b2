"""What the sections of a docstring say: types of parameters, returned values, exceptions, versions.

Three conventions are read: numpydoc (a heading over a line of dashes), Google (`Args:` over an
indented block) and Sphinx (`:param x: ...`). Beside them, directives (`.. versionadded:: 1.2`) and
sentences that are written in a few usual ways ("Raises KeyError if ...").
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

_HEADINGS = {
    "parameters": "parameters",
    "other parameters": "parameters",
    "attributes": "parameters",
    "args": "parameters",
    "arguments": "parameters",
    "keyword args": "parameters",
    "returns": "returns",
    "return": "returns",
    "return value": "returns",
    "yields": "returns",
    "raises": "raises",
}
_EXCEPTION = r"`?(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit|Iteration)`?"
_CONDITION = re.compile(r"(?:if|when|in case|for|unless|on) \S", re.IGNORECASE)
_DISCOURAGED = re.compile(
    r"deprecat|obsolete|legacy|superseded|discouraged|not recommended", re.IGNORECASE
)
_VERSION = r"v?(\d+(?:\.\d+)+)"


@dataclasses.dataclass(frozen=True)
class Sections:
    """The facts that a docstring's sections state; all strings are whitespace-normalised spans of
    it.

    Attributes:
      types: (parameter, its type).
      returns: what is returned: a phrase without its full stop.
      raises: (exception, the condition that begins with "if", "when" or the like).
      added: the version since which the object exists.
      deprecated: the version since which it is deprecated.
      instead: what to use instead of it.
    """

    types: tuple[tuple[str, str], ...] = ()
    returns: tuple[str, ...] = ()
    raises: tuple[tuple[str, str], ...] = ()
    added: str = ""
    deprecated: str = ""
    instead: str = ""


def plain_markup(doc: str) -> str:
    """A docstring without the markup of its roles.

    >>> plain_markup("Like :func:`~os.path.join`, but ``sep`` is `str` <x>.")
    'Like `os.path.join`, but `sep` is `str` <x>.'
    """
    doc = re.sub(r":(?:\w+:){1,2}`[!~]?([^`<\n]+?)(?:\s*<[^>`]*>)?`", r"`\1`", doc)
    return re.sub(r"``([^`\n]+)``", r"`\1`", doc)


def read_sections(doc: str) -> Sections:
    """Reads the sections of a docstring."""
    types: dict[str, str] = {}
    returns: list[str] = []
    raises: list[tuple[str, str]] = []
    for kind, block in _blocks(doc):
        if kind == "parameters":
            for head, _ in _items(block):
                for name, typed in _typed(head):
                    types.setdefault(name, typed)
        elif kind == "returns":
            returns += _returned(block)
        else:
            for head, body in _items(block):
                raises += _raised(head, body)
    for name, typed in re.findall(r"^\s*:type (\w+): *(\S.*)$", doc, re.MULTILINE):
        types.setdefault(name, _type(typed))
    for typed, name in re.findall(r"^\s*:param (\w[\w\[\], .]*?) (\w+):", doc, re.MULTILINE):
        types.setdefault(name, typed)
    fields = r"^\s*:{}((?:\n[ \t]+\S.*|.)*)"
    for phrase in re.findall(fields.format(r"returns?: *"), doc, re.MULTILINE):
        returns.append(_phrase(phrase))
    for name, phrase in re.findall(
        r"^\s*:(?:raises?|except|exception) ([\w.]+): *((?:\n[ \t]+\S.*|.)*)", doc, re.MULTILINE
    ):
        raises += _raised(name, [phrase])
    prose = " ".join(doc.split())
    returns += _returned_in_prose(doc)
    raises += [
        (name.strip("`"), _phrase(condition))
        for name, condition in re.findall(
            rf"\b[Rr]aises? (?:an? )?({_EXCEPTION}) ((?:if|when|unless) [^.;]+)[.;]", prose
        )
    ]
    return Sections(
        tuple((name, typed) for name, typed in types.items() if typed),
        tuple(dict.fromkeys(filter(None, returns))),
        tuple(dict.fromkeys(raises)),
        # Unindented: an indented directive belongs to a parameter.
        _first(rf"^(?:\.\. versionadded::|New in version|Added in version) *{_VERSION}", doc),
        _first(rf"^(?:\.\. deprecated::|Deprecated (?:since|in)(?: version)?) *{_VERSION}", doc),
        _instead(prose) if re.search(_DISCOURAGED, prose) else "",
    )


def _instead(prose: str) -> str:
    kind = "(?:function |method |class )?"
    marked = (
        rf"\b[Uu]se (?:the )?{kind}`((?:\w+\.)*\w+(?:\(\))?)`(?: function| method| class)? instead"
    )
    return _first(marked, prose) or _first(r"\b[Uu]se ((?:\w+[._])+\w+(?:\(\))?) instead", prose)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""


def _blocks(doc: str) -> Iterator[tuple[str, list[str]]]:
    """(kind, lines) of each section of numpydoc and of Google's convention. A block's lines keep
    their indentation, less that of the block."""
    lines = doc.expandtabs().splitlines()
    for at, line in enumerate(lines):
        title = line.strip()
        under = lines[at + 1].strip() if at + 1 < len(lines) else ""
        depth = len(line) - len(line.lstrip())
        if kind := _HEADINGS.get(title.lower()):
            if len(under) >= 3 and set(under) <= {"-", "="}:
                yield kind, _numpydoc_block(lines, at + 2, depth)
        elif title.endswith(":") and (kind := _HEADINGS.get(title[:-1].lower())):
            yield kind, _indented_block(lines, at + 1, depth)


def _numpydoc_block(lines: list[str], start: int, depth: int) -> list[str]:
    end = start
    while end < len(lines):
        under = lines[end + 1].strip() if end + 1 < len(lines) else ""
        if lines[end].strip() and len(under) >= 3 and set(under) <= {"-", "="}:
            break
        if lines[end][depth:].startswith(".. "):
            break
        end += 1
    return [line[depth:] for line in lines[start:end]]


def _indented_block(lines: list[str], start: int, depth: int) -> list[str]:
    block: list[str] = []
    for line in lines[start:]:
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        block.append(line)
    inner = min((len(x) - len(x.lstrip()) for x in block if x.strip()), default=0)
    return [line[inner:] for line in block]


def _items(block: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(first line, the more indented lines below it) of each item of a block."""
    head, body = "", []
    for line in block:
        if not line.strip():
            continue
        if line[0].isspace():
            body.append(line.strip())
            continue
        if head:
            yield head, body
        head, body = line.strip(), []
    if head:
        yield head, body


def _typed(head: str) -> Iterator[tuple[str, str]]:
    """The (name, type) pairs of an item of parameters: `x, y : int` or `x (int): ...`."""
    numpydoc = re.match(r"([*\w, ]+?) : (.+)$", head)
    found = numpydoc or re.match(r"(\*{0,2}\w+) \(([^()]*(?:\([^()]*\)[^()]*)*)\):", head)
    if not found:
        return
    names, typed = found.groups()
    for name in names.split(","):
        yield name.strip(" *"), _type(typed)


def _type(text: str) -> str:
    """A type without what is said of the default."""
    text = re.split(
        r",? *\(?(?:optional|default\b|by default|required|keyword)|[,;] *optional|\. ", text
    )[0]
    return " ".join(text.split()).strip(" ,.:;").removesuffix(" or")


def _phrase(text: str) -> str:
    """The first sentence of a description, without its full stop."""
    text = " ".join(text.split())
    end = re.search(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.;:](?= |$)", text)
    return (text[: end.start()] if end else text).strip(" ,")


def _returned(block: list[str]) -> list[str]:
    """What a block of returned values says: the description of the first item."""
    item = next(_items(block), None)
    if item is None:
        return []
    head, body = item
    name, _, typed = head.partition(" : ")
    sentence = head.endswith((".", ",", ":")) or head.startswith(("The ", "A ", "An "))
    if body and len(head.split()) < 8 and (typed or not (sentence or ": " in head)):
        return [_phrase(" ".join(body)), _type(typed or name)]
    found = re.match(r"`?[\w.\[\], |]{1,40}`?: +(.+)", head)  # Google's `type: description`
    text = found[1] if found else head
    following = [line.strip() for line in block[1:] if line.strip()]
    return [_phrase(" ".join([text, *(body or following)]))]


def _returned_in_prose(doc: str) -> list[str]:
    """What the first sentence says is returned: "Return the number of items."."""
    head = " ".join(doc.partition("\n\n")[0].split())
    found = re.match(r"Returns?(?: back)? (?!self\b)(.+)", head)
    return [_phrase(found[1])] if found else []


def _raised(head: str, body: list[str]) -> list[tuple[str, str]]:
    name, _, text = head.partition(":")
    condition = _phrase(" ".join([text, *body]))
    if not re.fullmatch(r"`?(?:\w+\.)*[A-Z]\w*`?", name.strip()):
        return []
    found = _CONDITION.search(condition)
    return [(name.strip(" `"), condition[found.start() :])] if found and condition else []
