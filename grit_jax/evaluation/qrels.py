"""Graded judgements of documents: BEIR's and mteb's tables, and TREC's qrels files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from grit_jax.data.formats import LineError
from grit_jax.data.lines import JsonlFile
from grit_jax.errors import GritError
from grit_jax.evaluation.row_files import open_rows

Judgements: TypeAlias = dict[str, int]  # the grade of each judged document of a query, by id

QUERY, DOCUMENT, GRADE = "query-id", "corpus-id", "score"


def read_qrels(paths: Sequence[Path]) -> dict[str, Judgements]:
    """The judgements of each query.

    A `.tsv` file has the columns `query-id, corpus-id, score` below a header, as BEIR's, or the
    four of TREC, `query 0 document grade`, without one.

    Raises:
      GritError: a file that cannot be read, a row of another form, or two grades of one document.
    """
    judgements: dict[str, Judgements] = {}
    for path in paths:
        rows = _table(path) if ".tsv" in path.name else _objects(path)
        for query, document, grade, place in rows:
            of_query = judgements.setdefault(query, {})
            if of_query.setdefault(document, grade) != grade:
                raise LineError(
                    place,
                    f"document {document!r} of query {query!r} has the grade {grade} here and"
                    f" {of_query[document]} before",
                )
    if not judgements:
        raise GritError(f"{paths[0]}: no judgement")
    return judgements


def _table(path: Path) -> Iterator[tuple[str, str, int, str]]:
    lines = JsonlFile(path)
    for index, line in enumerate(lines):
        place = lines.where(index)
        try:
            text = line.decode("utf-8").strip("\r\n")
        except UnicodeDecodeError:
            raise LineError(place, "not UTF-8 text") from None
        fields = text.split("\t") if "\t" in text else text.split()
        if index == 0 and fields[-1].strip() == GRADE:
            continue
        if len(fields) not in (3, 4):
            raise LineError(
                place,
                f"expected {QUERY}, {DOCUMENT} and {GRADE}, or TREC's four columns, got"
                f" {len(fields)} columns",
            )
        grade = _grade(fields[-1], place)
        yield fields[0].strip(), fields[-2].strip(), grade, place


def _objects(path: Path) -> Iterator[tuple[str, str, int, str]]:
    rows = open_rows([path])
    for index, row in enumerate(rows):
        place = rows.where(index)
        yield (
            _key(row, QUERY, place),
            _key(row, DOCUMENT, place),
            _grade(row.get(GRADE), place),
            place,
        )


def _key(row: dict[str, Any], name: str, place: str) -> str:
    value = row.get(name, row.get(name.replace("-", "_")))
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise LineError(place, f'expected a string as "{name}", got {value!r:.40}')
    return value


def _grade(value: Any, place: str) -> int:
    """A whole number; mteb's tables have some as floats."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise LineError(place, f'expected a whole number as "{GRADE}", got {value!r:.40}')
    return int(number)
