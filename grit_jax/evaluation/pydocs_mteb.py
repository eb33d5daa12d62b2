"""mteb tasks from the documentation of packages: folders that `grit eval mteb --task-files` reads.

Texts are those of the held-out documents that `grit data pydocs` writes. Labels are what the
documentation itself says: which document a sentence begins or a question was made from, the package
and the module in an object's name, and how much of their names two objects share. There is no
Summarization task, whose scores are judgements of people.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from grit_jax.data.bm25 import BM25
from grit_jax.data.formats import Kind, titled
from grit_jax.data.lines import read_examples
from grit_jax.errors import GritError
from grit_jax.pydocs.passages import NEGATIVES, QUESTION_INSTRUCTION, SUMMARY_INSTRUCTION
from grit_jax.rag.corpus import Corpus
from grit_jax.runtime.files import new_folder, write_json, write_jsonl, write_text

SPLITS = ("heldout", "heldout_packages")  # of a corpus; the second may be missing
TRAIN_TEXTS = 8  # of a label, which is what mteb draws
MOST_LABELS = 10
LEAST_ROWS = 8  # of a task
MOST_SIMILAR = 5.0  # mteb's range of a score of similarity is 0 to 5
PACKAGE_PROMPT = "Identify the Python package that this documentation belongs to"
MODULE_PROMPT = "Identify the Python module that this documentation belongs to"
SAME_MODULE_PROMPT = "Find documentation of the same Python module"

Row: TypeAlias = dict[str, Any]
# Rows by the name of their file, and how many queries, pairs or texts are scored.
Made: TypeAlias = tuple[dict[str, list[Row]], int]


@dataclasses.dataclass(frozen=True)
class TaskFolder:
    """A task that was written; `rows` queries, pairs or texts are scored."""

    name: str
    type: str
    rows: int


@dataclasses.dataclass(frozen=True)
class _Object:
    """A documented object: its qualified name, and its text, which does not begin with that."""

    id: str
    text: str

    @property
    def package(self) -> str:
        return self.id.split(".")[0]

    @property
    def module(self) -> str:
        """The package and the first name below it; "" for what lies directly in the package."""
        path = self.id.split(".")
        return ".".join(path[:2]) if len(path) > 2 else ""


@dataclasses.dataclass(frozen=True)
class _Query:
    """A text, the passage that it belongs to, and passages with many of the same words. Passages
    are `{name of the object} {text}`."""

    text: str
    passage: str
    others: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Source:
    """What tasks are made of, each list in a drawn order, and how many rows a task may have."""

    objects: list[_Object]
    summaries: list[_Query]
    questions: list[_Query]
    rows: int


def write_mteb_tasks(
    corpus: Path, output: Path, *, rows: int = 200, seed: int = 0
) -> list[TaskFolder]:
    """Writes a folder with a folder for each task, two tasks of each type but Summarization.

    Args:
      corpus: the folder that `grit data pydocs` wrote, or `data` of a quickstart.
      output: a folder that is empty or does not exist.
      rows: the most queries, pairs or texts that a task scores.
      seed: decides which.

    Raises:
      GritError: no held-out files there, a bad line, too few documents for a task, or an output
        that cannot be written.
    """
    source = _read(corpus, rows, seed)
    written = []
    with new_folder(output) as folder:
        for name, (kind, prompt, description, make) in _TASKS.items():
            files, scored = make(source, random.Random(f"{seed} {name}"))
            if scored < LEAST_ROWS:
                raise GritError(
                    f"{corpus}: {scored} rows are too few for the task {name}; a larger corpus has"
                    " more (grit data pydocs without --documents)"
                )
            settings = {"name": name, "type": kind, "description": description, "prompt": prompt}
            _write(folder / name, settings, files)
            written.append(TaskFolder(name, kind, scored))
    return written


def _write(folder: Path, settings: Row, files: Mapping[str, list[Row]]) -> None:
    folder.mkdir()
    write_json(folder / "task.json", settings)
    for name, lines in files.items():
        if name == "qrels":
            (folder / name).mkdir()
            judged = "".join(f"{line['query']}\t{line['document']}\t1\n" for line in lines)
            write_text(folder / name / "test.tsv", f"query-id\tcorpus-id\tscore\n{judged}")
        else:
            write_jsonl(folder / f"{name}.jsonl", lines)


def _read(corpus: Path, rows: int, seed: int) -> _Source:
    """The held-out objects, summaries and questions, those of packages that are held out whole
    among them."""
    folders = [corpus / split for split in SPLITS]
    if not (folders[0] / "rag.jsonl").is_file():
        raise GritError(
            f"--input {corpus}: there is no heldout/rag.jsonl; expected the folder that grit data"
            " pydocs wrote"
        )
    folders = [folder for folder in folders if folder.is_dir()]
    draw = random.Random(f"{seed} mteb-tasks")
    documents = [d for folder in folders for d in Corpus(folder / "documents.jsonl")]

    def drawn(name: str, kind: Kind) -> list[Any]:
        files = [read_examples(folder / f"{name}.jsonl", kind) for folder in folders]
        found = [file[i] for file in files for i in range(len(file))]
        return draw.sample(found, min(rows, len(found)))

    summaries = [
        _Query(row.query.text, row.positives[0].text, tuple(text.text for text in row.negatives))
        for row in drawn("embedding", "embedding")
        if row.negatives
    ]
    passages = [titled(document.id, document.text) for document in documents]
    search = BM25(passages)
    questions = []
    for row in drawn("rag", "cached"):
        found = [passages[i] for i in search.search(row.question, NEGATIVES + 1)]
        others = [text for text in found if text != row.docs[0]][:NEGATIVES]
        questions.append(_Query(row.question, row.docs[0], tuple(others)))
    objects = [_Object(document.id, document.text) for document in documents]
    return _Source(draw.sample(objects, len(objects)), summaries, questions, rows)


# ---- the tasks -----------------------------------------------------------------------------------


def _retrieval(queries: Sequence[_Query]) -> Made:
    """As BEIR: passages of all queries are the corpus, each query's own the relevant one."""
    passages = itertools.chain.from_iterable((q.passage, *q.others) for q in queries)
    number = {text: f"d{i}" for i, text in enumerate(dict.fromkeys(passages))}
    return {
        "corpus": [{"_id": name, "title": "", "text": text} for text, name in number.items()],
        "queries": [{"_id": f"q{i}", "text": query.text} for i, query in enumerate(queries)],
        "qrels": [{"query": f"q{i}", "document": number[q.passage]} for i, q in enumerate(queries)],
    }, len(queries)


def _reranking(queries: Sequence[_Query], draw: random.Random) -> Made:
    """The same with each query's own passages as its candidates, in a drawn order."""
    files, count = _retrieval(queries)
    number = {row["text"]: row["_id"] for row in files["corpus"]}
    candidates = [[number[text] for text in (q.passage, *q.others)] for q in queries]
    ranked = [
        {"query": f"q{i}", "documents": draw.sample(own, len(own))}
        for i, own in enumerate(candidates)
    ]
    return files | {"top_ranked": ranked}, count


def _classification(source: _Source, label: Callable[[_Object], str]) -> Made:
    """Texts by label: the first ones of each label are for training."""
    groups = _groups(source.objects, label, 2 * TRAIN_TEXTS)
    rows = {
        name: [{"text": o.text, "label": name} for o in objects] for name, objects in groups.items()
    }
    test = _in_turn([own[TRAIN_TEXTS:] for own in rows.values()])[: source.rows]
    train = [row for own in rows.values() for row in own[:TRAIN_TEXTS]]
    return {"train": train, "test": test}, len(test) if len(groups) > 1 else 0


def _clustering(source: _Source, label: Callable[[_Object], str]) -> Made:
    groups = _groups(source.objects, label, LEAST_ROWS)
    rows = [[{"text": o.text, "label": name} for o in own] for name, own in groups.items()]
    test = _in_turn(rows)[: source.rows]
    return {"test": test}, len(test) if len(groups) > 1 else 0


def _summary_pairs(source: _Source, draw: random.Random) -> Made:
    """A sentence and the rest of its document, or of one with many of its words."""
    rows = [
        {
            "text1": query.text,
            "text2": query.passage if number % 2 else query.others[0],
            "label": number % 2,
        }
        for number, query in enumerate(source.summaries)
    ]
    return {"test": rows}, len(rows)


def _module_pairs(source: _Source, draw: random.Random) -> Made:
    """Two objects of one module, or of two modules of one package."""
    packages = _groups([o for o in source.objects if o.module], lambda o: o.package, 4)
    same, other = [], []
    for objects in packages.values():
        for first, second in itertools.combinations(objects, 2):
            (same if first.module == second.module else other).append((first, second))
    count = min(len(same), len(other), source.rows // 2)
    pairs = [
        *((pair, 1) for pair in draw.sample(same, count)),
        *((pair, 0) for pair in draw.sample(other, count)),
    ]
    rows = [{"text1": a.text, "text2": b.text, "label": label} for (a, b), label in pairs]
    return {"test": rows}, len(rows)


def _object_similarity(source: _Source, draw: random.Random) -> Made:
    """Texts of two objects, scored by their names: from all of one package and of any two."""
    objects = source.objects[: 4 * source.rows]
    within = [
        pair
        for own in _groups(objects, lambda o: o.package, 2).values()
        for pair in itertools.combinations(own, 2)
    ]
    by_score: dict[float, list[tuple[_Object, _Object]]] = defaultdict(list)
    for pair in within:
        by_score[name_similarity(pair[0].id, pair[1].id)].append(pair)
    # Each degree of similarity in turn: most pairs of a package are of its lowest.
    levels = [draw.sample(pairs, len(pairs)) for _, pairs in sorted(by_score.items())]
    far = [pair for pair in itertools.pairwise(objects) if pair[0].package != pair[1].package]
    chosen = _in_turn([far[: source.rows // 4], *levels])[: source.rows]
    rows = [
        {"text1": a.text, "text2": b.text, "score": name_similarity(a.id, b.id)} for a, b in chosen
    ]
    return {"test": rows}, len(rows)


def _summary_similarity(source: _Source, draw: random.Random) -> Made:
    """Sentences and passages without the sentence, scored by the names of their objects: a
    sentence's own passage, one with many of its words, one drawn at random."""
    rows = []
    for number, query in enumerate(source.summaries):
        others = [query.passage, *query.others[:1], draw.choice(source.summaries).passage]
        text = others[number % len(others)]
        # A passage begins with the name of its object.
        score = name_similarity(query.passage.split(" ")[0], text.split(" ")[0])
        rows.append({"text1": query.text, "text2": text.partition(" ")[2], "score": score})
    return {"test": rows}, len(rows)


def name_similarity(first: str, second: str) -> float:
    """From 0 to 5: the share of two qualified names that is the same, by 2 * common parts / parts
    of both (Wu and Palmer 1994, on the tree of names); the same name has 5.

    >>> name_similarity("json.dumps", "json.loads"), name_similarity("json.dumps", "re.match")
    (2.5, 0.0)
    """
    a, b = first.split("."), second.split(".")
    common = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    )
    return round(MOST_SIMILAR * 2 * common / (len(a) + len(b)), 4)


def _groups(
    objects: Sequence[_Object], label: Callable[[_Object], str], least: int
) -> dict[str, list[_Object]]:
    """The labels with at least so many objects, the most frequent ones first; "" is no label."""
    groups: dict[str, list[_Object]] = defaultdict(list)
    for item in objects:
        if name := label(item):
            groups[name].append(item)
    largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: own for name, own in largest[:MOST_LABELS] if len(own) >= least}


def _in_turn(lists: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of each list, then the second of each, and so on."""
    missing = object()
    turns = itertools.zip_longest(*lists, fillvalue=missing)
    return [item for turn in turns for item in turn if item is not missing]


_package: Callable[[_Object], str] = lambda item: item.package
_module: Callable[[_Object], str] = lambda item: item.module
# Name: type, instruction, description, what makes it.
_TASKS: dict[str, tuple[str, str, str, Callable[[_Source, random.Random], Made]]] = {
    "PydocsSummaryRetrieval": (
        "Retrieval",
        SUMMARY_INSTRUCTION,
        "The first sentence of a document finds the rest of it.",
        lambda source, draw: _retrieval(source.summaries),
    ),
    "PydocsQuestionRetrieval": (
        "Retrieval",
        QUESTION_INSTRUCTION,
        "A question finds the document that it was made from.",
        lambda source, draw: _retrieval(source.questions),
    ),
    "PydocsSummaryReranking": (
        "Reranking",
        SUMMARY_INSTRUCTION,
        "The rest of a sentence's document among documents with many of its words.",
        lambda source, draw: _reranking(source.summaries, draw),
    ),
    "PydocsQuestionReranking": (
        "Reranking",
        QUESTION_INSTRUCTION,
        "A question's document among documents with many of its words.",
        lambda source, draw: _reranking(source.questions, draw),
    ),
    "PydocsPackageClassification": (
        "Classification",
        PACKAGE_PROMPT,
        "Documentation without its name, by package.",
        lambda source, draw: _classification(source, _package),
    ),
    "PydocsModuleClassification": (
        "Classification",
        MODULE_PROMPT,
        "Documentation without its name, by the first module below the package.",
        lambda source, draw: _classification(source, _module),
    ),
    "PydocsPackageClustering": (
        "Clustering",
        PACKAGE_PROMPT,
        "Documentation without its name, by package.",
        lambda source, draw: _clustering(source, _package),
    ),
    "PydocsModuleClustering": (
        "Clustering",
        MODULE_PROMPT,
        "Documentation without its name, by the first module below the package.",
        lambda source, draw: _clustering(source, _module),
    ),
    "PydocsSummaryPairs": (
        "PairClassification",
        SUMMARY_INSTRUCTION,
        "A sentence and the rest of its document, or of one with many of its words.",
        _summary_pairs,
    ),
    "PydocsModulePairs": (
        "PairClassification",
        SAME_MODULE_PROMPT,
        "Documentation of one module of a package, or of two.",
        _module_pairs,
    ),
    "PydocsObjectSTS": (
        "STS",
        SAME_MODULE_PROMPT,
        "Documentation of two objects, by how much of their names is the same.",
        _object_similarity,
    ),
    "PydocsSummarySTS": (
        "STS",
        SUMMARY_INSTRUCTION,
        "A sentence and a document, by how much of their objects' names is the same.",
        _summary_similarity,
    ),
}
