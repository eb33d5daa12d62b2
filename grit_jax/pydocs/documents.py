"""Documents, the string that stands for each in every data file, and their split into training and
held-out documents."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

MAX_CHARACTERS = 300  # of a document's text: about 80 tokens of a vocabulary of 2,048
# Of a document's text: a longer signature would leave no room for the description.
MAX_SIGNATURE = 160
MAX_DEFAULT = 40  # of the source text of a default; a longer one is written `...`
HELD_OUT_PERCENT = 10
NEAR_DUPLICATE = (
    0.7  # two texts with at least this Jaccard similarity of word 3-shingles are duplicates
)


@dataclasses.dataclass(frozen=True)
class Document:
    """One docstring.

    Attributes:
      id: public qualified name.
      signature: text of the call, `""` if there is none.
      parameters: (name, source text of the default or None), without self and cls.
      doc: cleaned docstring.
      package: the package it was read from.
      max_characters: of `text`.
    """

    id: str
    kind: str  # function, class, method or module
    signature: str
    parameters: tuple[tuple[str, str | None], ...]
    doc: str
    package: str
    max_characters: int = MAX_CHARACTERS

    @functools.cached_property
    def _parts(self) -> tuple[str, str, str]:
        """The first sentence, the rest of its paragraph, and the other paragraphs without blank
        lines and underlines."""
        head, _, tail = self.doc.partition("\n\n")
        head = " ".join(head.split())
        end = re.search(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[.!?](?=\s+[^a-z]|$)", head)
        cut = end.end() if end else len(head)
        joined = (" ".join(line.split()) for line in tail.splitlines())
        lines = [line for line in joined if line and not re.fullmatch(r"[-=~^*#. ]{3,}", line)]
        return head[:cut], head[cut:].strip(), "\n".join(lines)

    @property
    def summary(self) -> str:
        """The first sentence, whitespace-normalised."""
        return self._parts[0]

    @property
    def rest(self) -> str:
        """The docstring after its first sentence."""
        return "\n".join(filter(None, self._parts[1:]))

    @functools.cached_property
    def text(self) -> str:
        """Signature and docstring, truncated to `max_characters` characters at the end of a line
        or a sentence."""
        summary, paragraph, others = self._parts
        return self._shown(f"{summary} {paragraph}".strip() + "\n" + others)

    @functools.cached_property
    def text_without_summary(self) -> str:
        """As `text`, without the first sentence: the target of a search with the summary."""
        return self._shown(self.rest)

    def _shown(self, body: str) -> str:
        return clip(f"{clip_signature(self.signature)}\n{body}".strip(), self.max_characters)


def clip(text: str, limit: int) -> str:
    """The longest prefix of `text` with at most `limit` characters that ends at the end of a line,
    a sentence or a word."""
    if len(text) <= limit:
        return text.strip()
    window = text[:limit]
    end = max(window.rfind("\n"), window.rfind(". ") + 1)
    if end < limit // 2:
        end = window.rfind(" ")
    return window[: end if end > 0 else limit].strip()


def clip_signature(signature: str) -> str:
    """`signature` with its last parameters replaced by `...` where it is longer than
    `MAX_SIGNATURE`."""
    if len(signature) <= MAX_SIGNATURE:
        return signature
    end = signature[: MAX_SIGNATURE - 6].rfind(", ")
    return f"{signature[:end]}, ...)" if end > 0 else ""


def signature_items(arguments: ast.arguments) -> list[tuple[str, str | None]]:
    """(name, source text of the default or None) of each item of a parameter list in order,
    including `/`, `*` and `*args`."""
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    items = [(a.arg, source_text(d)) for a, d in zip(positional, defaults, strict=False)]
    if arguments.posonlyargs:
        items.insert(len(arguments.posonlyargs), ("/", None))
    if arguments.vararg:
        items.append(("*" + arguments.vararg.arg, None))
    elif arguments.kwonlyargs:
        items.append(("*", None))
    items += [
        (a.arg, source_text(d))
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=False)
    ]
    if arguments.kwarg:
        items.append(("**" + arguments.kwarg.arg, None))
    return items


def parse_signature(signature: str) -> list[tuple[str, str | None]]:
    """The items of a signature's text (see `signature_items`), `[]` if it is not Python (as in
    older docstrings of C functions)."""
    try:
        parsed = ast.parse(f"def {signature}: pass").body[0]
        return signature_items(parsed.args) if isinstance(parsed, ast.FunctionDef) else []
    except (SyntaxError, ValueError, AttributeError, IndexError):
        return []


def render_signature(name: str, items: Iterable[tuple[str, str | None]]) -> str:
    """The call's text: `norm(x, ord=None, axis=None)`."""
    return f"{name}({', '.join(n if d is None else f'{n}={d}' for n, d in items)})"


def source_text(node: ast.expr | None) -> str | None:
    if node is None:
        return None
    text = ast.unparse(node)
    return text if len(text) <= MAX_DEFAULT and "\n" not in text else "..."


def parameters_of(items: Sequence[tuple[str, str | None]]) -> tuple[tuple[str, str | None], ...]:
    return tuple(p for p in items if p[0] not in ("/", "*"))


# ---- the split -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """Documents by split, each sorted by id. No text of `train` is in another one.

    Attributes:
      heldout: those whose names are held out (`split_of`).
      dropped: duplicates.
      packages: those of packages that are held out whole.
    """

    train: list[Document]
    heldout: list[Document]
    dropped: list[Document]
    packages: list[Document] = dataclasses.field(default_factory=list)


def split_of(name: str) -> str:
    """`"train"` or `"heldout"`, from a hash of the name: the same in every version of a package."""
    return (
        "heldout"
        if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100 < HELD_OUT_PERCENT
        else "train"
    )


def split_documents(documents: Iterable[Document], packages: Collection[str] = ()) -> Split:
    """Splits documents by `split_of`, with equal and near-equal texts (`near_duplicates`) in one
    split only.

    Args:
      packages: those that are held out whole.

    A training document close to a held-out one is dropped, never the other way round, so that a
    model trained on another version's split has not seen a name held out here. `heldout` and
    `packages` keep one document of a cluster of near duplicates, `train` one of equal texts.
    """
    documents = sorted(documents, key=lambda d: d.id)
    splits = ["packages" if d.package in packages else split_of(d.id) for d in documents]
    clusters = _components(
        len(documents),
        near_duplicates([d.doc for d in documents])
        + near_duplicates([d.text.removeprefix(d.signature) for d in documents]),
    )
    heldout_clusters: set[int] = set()
    seen: set[str] = set()
    result = Split([], [], [])
    for document, assigned, cluster in zip(documents, splits, clusters, strict=True):
        if assigned != "train":
            kept = result.heldout if assigned == "heldout" else result.packages
            (result.dropped if cluster in heldout_clusters else kept).append(document)
            heldout_clusters.add(cluster)
    for document, assigned, cluster in zip(documents, splits, clusters, strict=True):
        if assigned == "train":
            text = " ".join(document.doc.split())
            (
                result.dropped if cluster in heldout_clusters or text in seen else result.train
            ).append(document)
            seen.add(text)
    result.dropped.sort(key=lambda d: d.id)
    return result


def near_duplicates(
    texts: Sequence[str], threshold: float = NEAR_DUPLICATE
) -> list[tuple[int, int]]:
    """Pairs of indices that connect all texts whose word 3-shingles have a Jaccard similarity of at
    least `threshold`.

    Exact, by prefix filtering (Chaudhuri et al. 2006): with shingles sorted from rare to frequent,
    two such sets share one of the first `n - ceil(threshold * n) + 1`, so only texts that share a
    rare shingle are compared. Equal texts are connected in a chain.
    """
    pairs: list[tuple[int, int]] = []
    first: dict[frozenset, int] = {}
    for index, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        shingles = frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset(
            [tuple(words)]
        )
        if first.setdefault(shingles, index) != index:
            pairs.append((first[shingles], index))
    count = Counter(shingle for shingles in first for shingle in shingles)
    order = sorted(first.items(), key=lambda item: (len(item[0]), item[1]))
    postings: defaultdict[tuple, list[tuple[frozenset, int]]] = defaultdict(list)
    for shingles, index in order:
        size = len(shingles)
        prefix = sorted(shingles, key=lambda s: (count[s], s))[
            : int(size - threshold * size + 1e-9) + 1
        ]
        tested: set[int] = set()
        for shingle in prefix:
            if count[shingle] == 1:
                continue
            for other, other_index in postings[shingle]:  # never longer than this one
                if other_index not in tested and len(other) >= threshold * size:
                    tested.add(other_index)
                    shared = len(shingles & other)
                    if shared >= threshold * (size + len(other) - shared):
                        pairs.append((other_index, index))
            postings[shingle].append((shingles, index))
    return pairs


def _components(size: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    parent = list(range(size))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in pairs:
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return [root(node) for node in range(size)]
