"""BM25: scores by the formula of Robertson and Zaragoza (2009), and the order of results."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from grit_jax.data.bm25 import BM25, words
from grit_jax.errors import GritError


def test_words():
    assert words("HTTPServer.read_line(maxSize=10), déjà") == [
        *("http", "server", "read", "line", "max", "size", "10", "d", "j")
    ]
    assert words("") == [] == words("... ?!")


def test_scores_by_hand():
    """Three texts of 2, 4 and 6 words: 4 on average. `river` is in two of them, `stone` in one."""
    texts = ["river stone", "river river boat boat", "a b c d e f"]
    once, twice = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)  # idf of two texts, and of one
    first = 1 * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 2 / 4))
    second = 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 4 / 4))
    index = BM25(texts)
    np.testing.assert_allclose(index.scores("River?"), [once * first, once * second, 0])
    # A word counts once in a query, and one that no text has does not count.
    expected = [once * first + twice * first, once * second, 0]
    np.testing.assert_allclose(index.scores("stone river river whale"), expected)


@pytest.mark.parametrize("k", [1, 3, 40, 99])
def test_the_best_come_first_and_ties_in_the_order_of_the_texts(k):
    rng = np.random.default_rng(k)
    letters = ["ab", "cd", "ef", "gh", "ij"]
    index = BM25([" ".join(rng.choice(letters, rng.integers(1, 4))) for _ in range(40)])
    scores = index.scores("ab ef").tolist()
    assert len(set(scores)) < 30  # there are ties
    assert index.search("ab ef", k) == sorted(range(40), key=lambda i: (-scores[i], i))[:k]


def test_bm25_ranks_the_text_with_the_rare_word_first():
    index = BM25(["a common word", "a common rareWord", "another common text", ""])
    assert index.search("rare common", 2)[0] == 1 and len(index.search("common", 9)) == 4
    assert index.search("common", 0) == [] and BM25([]).search("x", 3) == []


def test_texts_without_words_score_nothing():
    assert BM25(["", "?!"]).scores("x").tolist() == [0, 0] == BM25(["", "?!"]).scores("").tolist()


def test_a_stored_index_is_the_same_and_a_damaged_one_is_named(tmp_path):
    texts = ["river stone", "river river boat boat", "", "rareWord"]
    BM25(texts).save(tmp_path / "index")
    stored = BM25.load(tmp_path / "index")
    assert stored.size == 4
    for query in ("river boat", "word", "whale", ""):
        np.testing.assert_array_equal(stored.scores(query), BM25(texts).scores(query))
    BM25(["", ""]).save(tmp_path / "empty")
    assert BM25.load(tmp_path / "empty").scores("a b").tolist() == [0, 0]
    (tmp_path / "index" / "params.index.json").write_text("{}")
    with pytest.raises(GritError, match="index: cannot be read"):
        BM25.load(tmp_path / "index")


@pytest.mark.parametrize("before", ["import jax", "pass"])
def test_the_library_runs_no_program_of_jax(before):
    """Its import would, and the backends would be initialised before a run has chosen them."""
    code = f"""
import sys
{before}
from grit_jax.data.bm25 import BM25
assert BM25(["one", "two"]).search("two", 1) == [1]
if "jax" in sys.modules:
    import jax.lax
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized()
    assert jax.lax.top_k is not None
assert {before!r} != "pass" or "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
