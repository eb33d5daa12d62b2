"""mteb's tasks by name, and tasks of one's own: a folder of data files, or a Python file.

A folder with a `task.json` is a task (docs/evaluation.md has its files by type); so is each folder
in a folder. A Python file defines tasks as mteb's documentation says. Neither needs a network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_jax.errors import GritError
from grit_jax.evaluation.mteb_instructions import TaskPrompt

# What a folder's `task.json` may say; the first two must be there.
KEYS = (
    "name", "type", "description", "prompt", "languages", "main_score", "min_score", "max_score"
)  # fmt: skip
SCORES = {
    "Retrieval": "ndcg_at_10",
    "Reranking": "map_at_1000",
    "Classification": "accuracy",
    "Clustering": "v_measure",
    "PairClassification": "max_ap",
    "STS": "cosine_spearman",
    "Summarization": "cosine_spearman",
}
SPLIT = "test"


def tasks_named(names: Sequence[str], files: Sequence[Path] = ()) -> list[Any]:
    """mteb's tasks: those of benchmarks and tasks by name, once each, and local ones.

    Args:
      names: of tasks and of benchmarks (`MTEB(eng, v2)`); none: all local tasks.
      files: folders and Python files of local tasks, which names are looked up in first.

    Raises:
      GritError: an unknown name, with the nearest ones; a file that is no task; two local tasks of
        one name; nothing to do.
    """
    local: dict[str, Any] = {}
    for path in files:
        for task in local_tasks(path):
            name = task.metadata.name
            if name in local:
                raise GritError(f"{path}: a second task {name}")
            local[name] = task
    if not names:
        if not local:
            raise GritError("--tasks: name tasks or benchmarks, or give --task-files")
        return list(local.values())
    chosen: dict[str, Any] = {}
    for name in names:
        for task in [local[name]] if name in local else _of_mteb(name, list(local)):
            chosen.setdefault(task.metadata.name, task)
    return list(chosen.values())


def prompt_of(task: Any) -> TaskPrompt:
    """What mteb knows of a task's instruction."""
    meta = task.metadata
    return TaskPrompt(meta.name, meta.type, meta.prompt, getattr(task, "abstask_prompt", ""))


def _of_mteb(name: str, local: Sequence[str]) -> list[Any]:
    import difflib

    import mteb
    from mteb.get_tasks import _TASKS_REGISTRY

    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError:
        pass
    try:
        return [mteb.get_task(name)]
    except KeyError:
        benchmarks = [b.name for b in mteb.get_benchmarks()]
        known = [*local, *benchmarks, *_TASKS_REGISTRY]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f", did you mean {' or '.join(near)}?" if near else ""
        raise GritError(f"--tasks: no task or benchmark {name!r:.80}{hint}") from None


def local_tasks(path: Path) -> list[Any]:
    """The tasks of a Python file, of a task's folder, or of a folder of such folders.

    Raises:
      GritError: there is none, or a file is not as it should be.
    """
    if path.is_file() and path.suffix == ".py":
        return _tasks_of_code(path)
    if not path.is_dir():
        raise GritError(f"{path}: expected a folder with a task.json, or a Python file")
    folders = (
        [path]
        if (path / "task.json").is_file()
        else sorted(child.parent for child in path.glob("*/task.json"))
    )
    if not folders:
        raise GritError(f"{path}: there is no task.json here, nor in a folder of it")
    return [folder_task(folder) for folder in folders]


def _tasks_of_code(path: Path) -> list[Any]:
    """The task classes that a Python file defines, which is run."""
    from mteb.abstasks.abstask import AbsTask

    name = f"grit_mteb_tasks_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise GritError(f"{path}: {type(error).__name__}: {error}") from error
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, AbsTask)
        and value.__module__ == name
        and "metadata" in vars(value)
    ]
    if not classes:
        raise GritError(
            f"{path}: defines no task: expected classes of mteb's AbsTask with metadata"
        )
    return [task() for task in classes]


def folder_task(folder: Path) -> Any:
    """The task that a folder's `task.json` describes. Its data are read when it is evaluated.

    Raises:
      GritError: a key that is missing, unknown or of another kind, or a missing data file.
    """
    settings = _settings(folder)
    kind = settings["type"]
    files = _FILES[kind]
    for file in files:
        if not (folder / file).is_file():
            raise GritError(f"{folder}: a task of type {kind} needs {', '.join(files)}; no {file}")
    from mteb.abstasks.task_metadata import TaskMetadata

    metadata = TaskMetadata(
        name=settings["name"],
        description=settings.get("description", "A local task."),
        prompt=settings.get("prompt"),
        type=kind,
        category="t2c" if kind in ("Classification", "Clustering") else "t2t",
        eval_splits=[SPLIT],
        eval_langs=settings.get("languages", ["eng-Latn"]),
        main_score=settings.get("main_score", SCORES[kind]),
        dataset={"path": f"local/{settings['name']}", "revision": _revision(folder, files)},
    )
    read = _READERS[kind]

    def load_data(self: Any, *args: Any, **options: Any) -> None:
        if not self.data_loaded:
            self.dataset = read(folder)
            self.data_loaded = True

    members: dict[str, Any] = {"metadata": metadata, "load_data": load_data}
    if kind == "Clustering":
        members["max_fraction_of_documents_to_embed"] = None  # all of them
    if kind in ("STS", "Summarization"):
        members["min_score"] = settings.get("min_score", 0)
        members["max_score"] = settings.get("max_score", 5)
    name = f"Local{kind}"
    return type(name, (_base(kind),), members)()


def _base(kind: str) -> type:
    """mteb's class of a type of task."""
    from mteb import abstasks

    name = "Retrieval" if kind == "Reranking" else kind
    return getattr(abstasks, f"AbsTask{name}")


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "task.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GritError(f"{file}: not JSON: {error}") from None
    if not isinstance(settings, dict) or not all(
        isinstance(settings.get(k), str) for k in KEYS[:2]
    ):
        raise GritError(f"{file}: expected an object with the texts name and type")
    if unknown := sorted(settings.keys() - set(KEYS)):
        raise GritError(f"{file}: unknown key {unknown[0]!r}; known: {', '.join(KEYS)}")
    if settings["type"] not in SCORES:
        raise GritError(
            f"{file}: type: expected one of {', '.join(SCORES)}, got {settings['type']!r:.60}"
        )
    prompt = settings.get("prompt")
    texts = prompt.values() if isinstance(prompt, dict) else [prompt or ""]
    if not all(isinstance(text, str) for text in texts) or (
        isinstance(prompt, dict) and not prompt.keys() <= {"query", "document"}
    ):
        raise GritError(f"{file}: prompt: expected a text or an object with query and document")
    return settings


def _revision(folder: Path, files: Sequence[str]) -> str:
    """A hash of the task's files, so that mteb's cache knows other data from these."""
    digest = hashlib.sha256()
    for file in ("task.json", *files):
        data = (folder / file).read_bytes()
        digest.update(f"{file} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def _rows(path: Path, *keys: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file, which have these keys."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise GritError(f"{path}:{number}: not JSON") from None
        missing = [key for key in keys if not isinstance(row, dict) or row.get(key) is None]
        if missing:
            raise GritError(f"{path}:{number}: expected an object with {', '.join(keys)}")
        rows.append(row)
    if not rows:
        raise GritError(f"{path}: the file is empty")
    return rows


def _dataset(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({new: [row[old] for row in rows] for new, old in columns.items()})


def _read_split(
    columns: Mapping[str, str], splits: Sequence[str] = (SPLIT,)
) -> Callable[[Path], Any]:
    """Reads `SPLIT.jsonl` files: mteb's columns by the keys of the lines."""

    def read(folder: Path) -> Any:
        from datasets import DatasetDict

        return DatasetDict(
            {s: _dataset(_rows(folder / f"{s}.jsonl", *columns.values()), columns) for s in splits}
        )

    return read


def _read_retrieval(folder: Path) -> Any:
    """A folder in BEIR's form; `top_ranked.jsonl` has the candidates of each query."""
    from datasets import Dataset

    key = lambda row: str(row.get("_id", row.get("id")))
    corpus, queries = (_rows(folder / f"{part}.jsonl", "text") for part in ("corpus", "queries"))
    for part, rows in (("corpus", corpus), ("queries", queries)):
        names = [key(row) for row in rows]
        if "None" in names or len(set(names)) < len(names):
            raise GritError(f"{folder}/{part}.jsonl: each line needs an _id of its own")
    relevant = _read_qrels(folder / "qrels" / "test.tsv")
    known = {key(row) for row in queries}
    if strange := sorted(relevant.keys() - known):
        raise GritError(f"{folder}/qrels/test.tsv: no query {strange[0]!r:.60} in queries.jsonl")
    top_ranked = None
    if (file := folder / "top_ranked.jsonl").is_file():
        rows = _rows(file, "query", "documents")
        top_ranked = {str(row["query"]): [str(name) for name in row["documents"]] for row in rows}
    data = {
        "corpus": Dataset.from_list(
            [
                {"id": key(row), "title": row.get("title") or "", "text": row["text"]}
                for row in corpus
            ]
        ),
        "queries": Dataset.from_list([{"id": key(row), "text": row["text"]} for row in queries]),
        "relevant_docs": relevant,
        "top_ranked": top_ranked,
    }
    return {"default": {SPLIT: data}}


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """BEIR's judgements: lines of query, document and a whole number, after a line of headings."""
    relevant: dict[str, dict[str, int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split("\t")
        if number == 1 and len(parts) == 3 and not parts[2].lstrip("-").isdigit():
            continue
        if len(parts) != 3 or not parts[2].strip().lstrip("-").isdigit():
            raise GritError(f"{path}:{number}: expected query, document and a number, by tabs")
        relevant.setdefault(parts[0], {})[parts[1]] = int(parts[2])
    return relevant


_PAIR = {"sentence1": "text1", "sentence2": "text2"}
_BEIR = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
_FILES: dict[str, tuple[str, ...]] = {
    "Retrieval": _BEIR,
    "Reranking": (*_BEIR, "top_ranked.jsonl"),
    "Classification": ("train.jsonl", "test.jsonl"),
    **dict.fromkeys(("Clustering", "PairClassification", "STS", "Summarization"), ("test.jsonl",)),
}
_READERS: dict[str, Callable[[Path], Any]] = {
    "Retrieval": _read_retrieval,
    "Reranking": _read_retrieval,
    "Classification": _read_split({"text": "text", "label": "label"}, ("train", SPLIT)),
    "Clustering": _read_split({"sentences": "text", "labels": "label"}),
    "PairClassification": _read_split({**_PAIR, "labels": "label"}),
    "STS": _read_split({**_PAIR, "score": "score"}),
    "Summarization": _read_split(
        {key: key for key in ("text", "human_summaries", "machine_summaries", "relevance")}
    ),
}
