"""`--search-*`: from flags to the settings of a search."""

from __future__ import annotations

import pytest

from grit_jax.cli import flags
from grit_jax.cli.search import (
    FUSIONS,
    SEARCH_PRECISIONS,
    SEARCHES,
    add_retrieval_flags,
    add_search_flags,
    retrieval_settings,
    search_settings,
)
from grit_jax.errors import GritError
from grit_jax.rag.search import hybrid
from grit_jax.rag.search.exact import PRECISIONS, SearchSettings


@pytest.fixture
def parser():
    parser = flags.Parser(prog="grit try")
    add_search_flags(parser)
    return parser


def test_precisions_are_those_of_the_search():
    """Its module imports JAX, the command line does not."""
    assert SEARCH_PRECISIONS == PRECISIONS
    assert (SEARCHES, FUSIONS) == (hybrid.SEARCHES, hybrid.FUSIONS)


def test_how_documents_are_found():
    parser = flags.Parser(prog="grit try")
    add_retrieval_flags(parser, "dense")
    assert retrieval_settings(parser.parse_args([])) == hybrid.Retrieval()
    args = parser.parse_args(["--search", "hybrid", "--fusion", "ranks"])
    assert retrieval_settings(args) == hybrid.Retrieval("hybrid", "ranks")


def test_settings(parser):
    assert search_settings(parser.parse_args([])) == SearchSettings()
    args = parser.parse_args(
        ["--search-precision", "int8", "--search-dim", "24", "--search-oversampling", "8"]
    )
    settings = search_settings(args)
    assert (settings.precision, settings.dim, settings.oversampling) == ("int8", 24, 8)


@pytest.mark.parametrize(
    "arguments",
    [["--search-dim", "3"], ["--search-precision", "int8"], ["--search-oversampling", "2"]],
)
def test_without_an_index_there_is_nothing_to_search(parser, arguments):
    parser.add_argument("--index")
    with pytest.raises(GritError, match="--search-... says how an index is searched"):
        search_settings(parser.parse_args(arguments))
    assert search_settings(parser.parse_args([*arguments, "--index", "i"])) != SearchSettings()
    assert search_settings(parser.parse_args([])) == SearchSettings()
