"""A document, the one string that it is in every data file, and the split of documents into train
and held out."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

MAX_CHARACTERS = 300  # of the text shown: about 80 tokens of a 2,048 vocabulary
MAX_SIGNATURE = 160  # of the text shown: a longer signature would push out what the thing does
MAX_DEFAULT = 40  # of one default's source text; a longer one is written `...`
HELD_OUT_PERCENT = 10
NEAR_DUPLICATE = 0.7  # Jaccard similarity of word 3-shingles from which two texts count as one


@dataclasses.dataclass(frozen=True)
class Document:
    """One docstring: `id` is the public qualified name, `signature` its call (`""` if none),
    `parameters` the (name, default's source text or None) pairs without self/cls, `doc` the cleaned
    docstring."""

    id: str
    kind: str  # function, class, method or module
    signature: str
    parameters: tuple[tuple[str, str | None], ...]
    doc: str
    package: str

    @functools.cached_property
    def _parts(self) -> tuple[str, str, str]:
        """First sentence, what its paragraph says after it, the other paragraphs without blank
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
        """What the docstring says after its first sentence."""
        return "\n".join(filter(None, self._parts[1:]))

    @functools.cached_property
    def text(self) -> str:
        """Signature and docstring, at most `MAX_CHARACTERS` characters, cut where a line or a
        sentence ends."""
        summary, flow, others = self._parts
        return self._shown(f"{summary} {flow}".strip() + "\n" + others)

    @functools.cached_property
    def text_without_summary(self) -> str:
        """As `text`, for the rest only: what a search for the summary has to find."""
        return self._shown(self.rest)

    def _shown(self, body: str) -> str:
        return clip(f"{clip_signature(self.signature)}\n{body}".strip(), MAX_CHARACTERS)


def document_string(title: str, text: str) -> str:
    """The one string a document is in every data file."""
    return f"{title} {text}"


def clip(text: str, limit: int) -> str:
    """The longest beginning of `text` of at most `limit` characters that ends with a line, a
    sentence, or a word."""
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


def signature_pieces(arguments: ast.arguments) -> list[tuple[str, str | None]]:
    """(name, default's source text or None) of each part of a call in order, `/`, `*` and `*args`
    included."""
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pieces = [(a.arg, source_text(d)) for a, d in zip(positional, defaults, strict=False)]
    if arguments.posonlyargs:
        pieces.insert(len(arguments.posonlyargs), ("/", None))
    if arguments.vararg:
        pieces.append(("*" + arguments.vararg.arg, None))
    elif arguments.kwonlyargs:
        pieces.append(("*", None))
    pieces += [
        (a.arg, source_text(d))
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=False)
    ]
    if arguments.kwarg:
        pieces.append(("**" + arguments.kwarg.arg, None))
    return pieces


def parse_signature(signature: str) -> list[tuple[str, str | None]]:
    """`signature_pieces` of a signature's text, `[]` where it is not Python (older C
    docstrings)."""
    try:
        parsed = ast.parse(f"def {signature}: pass").body[0]
        return signature_pieces(parsed.args) if isinstance(parsed, ast.FunctionDef) else []
    except (SyntaxError, ValueError, AttributeError, IndexError):
        return []


def render_signature(name: str, pieces: Iterable[tuple[str, str | None]]) -> str:
    """The call's text: `norm(x, ord=None, axis=None)`."""
    return f"{name}({', '.join(n if d is None else f'{n}={d}' for n, d in pieces)})"


def source_text(node: ast.expr | None) -> str | None:
    if node is None:
        return None
    text = ast.unparse(node)
    return text if len(text) <= MAX_DEFAULT and "\n" not in text else "..."


def parameters_of(pieces: Sequence[tuple[str, str | None]]) -> tuple[tuple[str, str | None], ...]:
    return tuple(p for p in pieces if p[0] not in ("/", "*"))


# ---- the split -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """`train` and `heldout` share no text; `dropped` are the duplicates. Each is sorted by id."""

    train: list[Document]
    heldout: list[Document]
    dropped: list[Document]


def side(name: str) -> str:
    """`"train"` or `"heldout"` by the name alone, so that it is the same in every version of a
    package."""
    return (
        "heldout"
        if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100 < HELD_OUT_PERCENT
        else "train"
    )


def split(documents: Iterable[Document]) -> Split:
    """Splits by `side`, with equal and near-equal texts (`near_duplicates`) on one side only.

    A train-side document close to a held-out one is dropped, never the other way round: a model
    trained on another version's split has then not seen a name held out here. Held-out keeps one
    document of a cluster, train one of equal texts.
    """
    documents = sorted(documents, key=lambda d: d.id)
    sides = [side(d.id) for d in documents]
    clusters = _components(
        len(documents),
        near_duplicates([d.doc for d in documents])
        + near_duplicates([d.text.removeprefix(d.signature) for d in documents]),
    )
    heldout_clusters: set[int] = set()
    seen: set[str] = set()
    result = Split([], [], [])
    for document, where, cluster in zip(documents, sides, clusters, strict=False):
        if where == "heldout":
            (result.dropped if cluster in heldout_clusters else result.heldout).append(document)
            heldout_clusters.add(cluster)
    for document, where, cluster in zip(documents, sides, clusters, strict=False):
        if where == "train":
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
    """Pairs of indices that connect all texts whose word 3-shingles have a Jaccard similarity of
    `threshold` or more.

    Exact, by prefix filtering (Chaudhuri et al. 2006): with shingles sorted from rare to frequent,
    two such sets share one among the first `n - ceil(threshold * n) + 1`, so rare shingles alone
    name the candidates. Equal texts are connected in a chain.
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
