"""How documents are found: the flags of `ask` and `eval`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from grit_jax.cli import flags
from grit_jax.errors import GritError

if TYPE_CHECKING:
    from grit_jax.rag.search.exact import SearchSettings
    from grit_jax.rag.search.hybrid import Retrieval

SEARCHES, FUSIONS = ("dense", "lexical", "hybrid"), ("scores", "ranks")  # rag/search/hybrid.py's
SEARCH_PRECISIONS = ("float32", "bfloat16", "int8")  # rag/search/exact.py's PRECISIONS


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Declares `--search-*`. Whatever they say, the best candidates are compared by their whole
    float32 vectors."""
    parser.add_argument(
        "--search-precision",
        choices=SEARCH_PRECISIONS,
        default="float32",
        help="of the vectors on the devices: fewer bits take less memory (default: %(default)s)",
    )
    parser.add_argument(
        "--search-dim", type=flags.positive, metavar="N", help="search the first N dimensions"
    )
    parser.add_argument(
        "--search-oversampling",
        type=flags.positive,
        default=4,
        metavar="N",
        help="candidates per result that are compared again by their whole vectors, with a "
        "--search-precision or --search-dim (default: %(default)s)",
    )


def add_retrieval_flags(parser: argparse.ArgumentParser, search: str | None) -> None:
    """Declares `--search`, `--fusion` and `--rerank`.

    Args:
      search: the default; None: all three.
    """
    default = "all three" if search is None else "%(default)s"
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        default=search,
        help=f"by vectors, by words (BM25), or by both together (default: {default})",
    )
    parser.add_argument(
        "--fusion",
        choices=FUSIONS,
        default="scores",
        help="how hybrid search puts both together: by their standardised scores, or by their "
        "ranks (default: %(default)s)",
    )
    parser.add_argument(
        "--rerank",
        type=flags.natural,
        default=0,
        metavar="N",
        help="have the model judge the first N documents, from their keys and values, and order "
        "them by it (default: 0, none)",
    )


def add_where_flag(parser: argparse.ArgumentParser) -> None:
    """Declares `--where`."""
    parser.add_argument(
        "--where",
        default="",
        metavar="EXPR",
        help="only documents whose metadata fulfil this, like 'year >= 2020 and lang in"
        ' ["en", "de"]\'; the language is in docs/search.md',
    )


def retrieval_settings(args: argparse.Namespace) -> Retrieval:
    """What `--search`, `--fusion`, `--where` and `--rerank` say.

    Raises:
      GritError: a mistake in the expression, or there is no index to search.
    """
    from grit_jax.rag.search.hybrid import Retrieval

    where = args.where if "where" in args else ""
    retrieval = Retrieval(args.search or "hybrid", args.fusion, where=where, rerank=args.rerank)
    if retrieval != Retrieval() and "index" in args and args.index is None:
        raise GritError(
            "--search, --fusion, --where and --rerank say how an index is searched, and no --index"
            " is given"
        )
    return retrieval


def search_settings(args: argparse.Namespace) -> SearchSettings:
    """The settings that `--search-*` give.

    Raises:
      GritError: they are given, and there is no index to search.
    """
    from grit_jax.rag.search.exact import SearchSettings

    settings = SearchSettings(args.search_precision, args.search_dim, args.search_oversampling)
    if settings != SearchSettings() and "index" in args and args.index is None:
        raise GritError("--search-... says how an index is searched, and no --index is given")
    return settings
