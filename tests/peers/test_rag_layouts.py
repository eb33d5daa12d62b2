"""The seven layouts against the original's evaluation (gritlm: rag/eval.py): strings, documents'
forms, and answers.

It concatenates rotated caches, which keep the places of their own passes; ours are rotated to the
places they get. Over one cached text the two are the same, and so are the answers. Over two they
are not: there ours is given the original's places, which shows that nothing else differs. The
original's forms of a document are made here alone.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import original  # noqa: E402

from grit_jax.data.formats import document_text  # noqa: E402
from grit_jax.inference.sampling import Sampling  # noqa: E402
from grit_jax.models.cache import empty_cache, insert  # noqa: E402
from grit_jax.models.transformer import Transformer  # noqa: E402
from grit_jax.rag.generator import DOCUMENT_CACHES, QUERY_CACHES, RagGenerator, RagPrompt  # noqa: E402
from grit_jax.text.answer_matching import score_answer  # noqa: E402
from grit_jax.text.rag_layouts import CACHED_MODES, MODES, compose  # noqa: E402
from grit_jax.types import KV, AttentionMode, DocumentKV  # noqa: E402

pytestmark = pytest.mark.peers

NEW_TOKENS = 8
GREEDY = Sampling(max_new_tokens=NEW_TOKENS, ignore_eos=True)
CASES = [
    (
        "which river is amber?",
        {"title": "Amber", "text": "A quiet river of the northern forest, copper in the morning."},
    ),
    (
        "größer {query} 北京?",
        {"title": "{title}", "text": "braces {text}\n\nand a paragraph <|user|>\n"},
    ),
]
UNCACHED = [mode for mode in MODES if mode not in CACHED_MODES]


def their_ids(peer, string: str, *, bos: bool) -> list[int]:
    return peer.tokenizer(string, add_special_tokens=bos)["input_ids"]


def their_prompt(peer, mode: str, query: str, document: dict, ending: str = "") -> list[int]:
    """A continuation, or a whole prompt without a cache, as it is tokenised there (gritlm:
    rag/eval.py:276-286)."""
    return their_ids(
        peer,
        original.TEMPLATES[mode].format(query=query, **document) + ending,
        bos=mode in UNCACHED,
    )


def record(peer, ids) -> DocumentKV:
    """Our record of ids that already have their form."""
    return peer.ours.encoder.encode_ids([ids], return_cache=True).caches[0]


def pieces_of(peer, mode: str, query: str, document: dict, *, indexed: bool) -> list[list[int]]:
    """Ids of the cached texts of a layout in the original's forms, in the order in which they are
    read."""
    asked = their_ids(peer, original.QUERY_FORM.format(query), bos=False)
    form = original.document_form(mode, indexed=indexed)
    read = their_ids(peer, form.format(f"{document['title']} {document['text']}"), bos=False)
    return {
        "query": [asked],
        "doc": [read],
        "query-doc": [asked, read],
        "doc-query": [read, asked],
    }[mode]


@pytest.mark.parametrize("query, document", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_prompts_character_for_character(peer, mode, query, document):
    text = document_text(document, "corpus:1")
    layout = compose(mode, query, [text])
    expected = original.TEMPLATES[mode].format(query=query, **document)
    assert layout.text == ("<s>" if mode in UNCACHED else "") + expected
    generator = RagGenerator(peer.ours)
    assert generator.continuations([RagPrompt(mode, query, (text,))])[0] == their_prompt(
        peer, mode, query, document
    )


def test_a_document_without_a_title_begins_with_a_blank_there():
    document = {"title": "", "text": "A river."}
    assert "\n A river." in original.TEMPLATES["query"].format(query="q", **document)
    assert "\nA river." in compose("query", "q", [document_text(document, "corpus:1")]).text


@pytest.mark.parametrize("query, document", CASES)
def test_forms_of_what_is_cached(peer, query, document):
    """One record serves every layout here; there a document has three forms, and the query one,
    which is ours."""
    text = document_text(document, "corpus:1")
    asked, read = (kv.tokens.tolist() for kv in RagGenerator(peer.ours).records([query, text]))
    bos, newline = [peer.ours.tokenizer.bos_id], their_ids(peer, "\n", bos=False)
    for mode in DOCUMENT_CACHES:
        indexed, fresh = (
            pieces_of(peer, mode, query, document, indexed=yes) for yes in (True, False)
        )
        place = 1 if mode == "query-doc" else 0
        assert bos + indexed[place] == read
        if mode == "query-doc":
            # Before `<|embed|>` the line break is no token of its own: the tag has another one.
            merged = their_ids(peer, "\n<|embed|>\n", bos=False)
            assert fresh[place] == (merged if len(merged) == 1 else newline + merged) + read[2:]
            assert fresh[0] == asked
        else:
            assert fresh[place] == read
        if mode == "doc-query":
            assert fresh[1] == asked
    assert pieces_of(peer, "query", query, document, indexed=False) == [asked]


@pytest.mark.parametrize("query, document", CASES)
@pytest.mark.parametrize("mode", UNCACHED)
def test_answers_without_a_cache(peer, mode, query, document):
    prompt = their_prompt(peer, mode, query, document, original.ANSWER_BEGINS)
    assert_same_answer(peer, prompt, [], [])


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("query, document", CASES)
@pytest.mark.parametrize("mode", ["query", "doc"])
def test_answers_over_one_cached_text(peer, mode, query, document, indexed):
    """Through our records and generation, against transformers with `past_key_values`."""
    (ids,) = pieces_of(peer, mode, query, document, indexed=indexed)
    prompt = their_prompt(peer, mode, query, document, original.ANSWER_BEGINS)
    assert_same_answer(peer, prompt, [original.cache_of(peer.model, ids)], [record(peer, ids)])


@pytest.mark.parametrize("mode", ["query", "doc"])
def test_the_answer_itself(peer, mode):
    """As `RagGenerator` gives it, with our records and without `The answer is`."""
    query, document = CASES[0]
    text = document_text(document, "corpus:1")
    generator = RagGenerator(peer.ours)
    asked, read = generator.records([query, text])
    reading = RagPrompt(
        mode,
        query,
        (text,),
        (read,) if mode in DOCUMENT_CACHES else (),
        asked if mode in QUERY_CACHES else None,
    )
    (ids,) = pieces_of(peer, mode, query, document, indexed=False)
    prompt = their_prompt(peer, mode, query, document)
    tokens, _ = original.answer(
        peer.model, [original.cache_of(peer.model, ids)], prompt, NEW_TOKENS
    )
    assert generator.generate([reading], GREEDY).tokens == [tokens]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("mode", ["query-doc", "doc-query"])
def test_two_caches_differ_in_their_places_alone(peer, mode, indexed):
    query, document = CASES[0]
    pieces = pieces_of(peer, mode, query, document, indexed=indexed)
    prompt = their_prompt(peer, mode, query, document, original.ANSWER_BEGINS)
    _, expected = original.answer(
        peer.model, [original.cache_of(peer.model, ids) for ids in pieces], prompt, 1
    )
    records = [record(peer, ids) for ids in pieces]
    own_places = [np.arange(len(ids)) for ids in pieces]
    np.testing.assert_allclose(
        logits_over(peer, records, own_places, prompt), expected[0], atol=2e-4
    )
    # What we do: the second one stands where the first one ends.
    ours = peer.ours.generate_ids(
        [prompt], records=[records], sampling=GREEDY, return_logits=True
    ).logits[0, 0]
    places = [own_places[0], own_places[1] + len(pieces[0])]
    np.testing.assert_allclose(logits_over(peer, records, places, prompt), ours, atol=2e-4)
    assert np.abs(ours - expected[0].numpy()).max() > 0.05


@pytest.mark.parametrize("mode", ["query-doc", "doc-query"])
def test_answers_over_two_caches_with_the_originals_places(peer, mode):
    """`positions="colliding"` is what it does, token for token."""
    query, document = CASES[0]
    pieces = pieces_of(peer, mode, query, document, indexed=True)
    prompt = their_prompt(peer, mode, query, document, original.ANSWER_BEGINS)
    caches = [original.cache_of(peer.model, ids) for ids in pieces]
    tokens, logits = original.answer(peer.model, caches, prompt, NEW_TOKENS)
    found = peer.ours.generate_ids(
        [prompt],
        records=[[record(peer, ids) for ids in pieces]],
        sampling=GREEDY,
        return_logits=True,
        positions="colliding",
    )
    assert found.tokens[0] == tokens
    np.testing.assert_allclose(found.logits[0], logits, atol=2e-4)


@pytest.mark.parametrize("query, document", CASES)
@pytest.mark.parametrize("mode", ["query", "doc"])
def test_the_control_without_a_cache_is_the_cached_layout_read_at_once(peer, mode, query, document):
    """`--prompt queryemb` and `docemb` there: what our layout reads in two passes, in one causal
    one."""
    whole = their_ids(
        peer, original.EMBEDDED_TEMPLATES[mode].format(query=query, **document), bos=True
    )
    text = document_text(document, "corpus:1")
    layout = compose(mode, query, [text])
    (cached,) = RagGenerator(peer.ours).records([piece.text for piece in layout.cached])
    assert whole == [
        *cached.tokens,
        *RagGenerator(peer.ours).continuations([RagPrompt(mode, query, (text,))])[0],
    ]


def test_scores_of_answers():
    """Exact match, match and F1 of a thousand pairs; only of nothing against nothing we think
    better."""
    words = [
        "The",
        "a",
        "river",
        "River!",
        "an",
        "amber,",
        "stone",
        "",
        "--",
        "ÄRGER",
        "北京",
        "it's",
        "  ",
    ]
    rng = np.random.default_rng(0)
    draw = lambda: " ".join(rng.choice(words, rng.integers(0, 6)))
    seen = set()
    for _ in range(1000):
        answer, gold = draw(), draw()
        found, expected = score_answer(answer, gold), original.scores(answer, gold)
        assert (found.exact_match, found.match) == (expected["exact_match"], expected["match"])
        empty = expected["exact_match"] == 1 and expected["f1"] == 0
        assert found.f1 == pytest.approx(1.0 if empty else expected["f1"])
        seen.add((found.exact_match, found.match, empty))
    assert len(seen) == 4


def assert_same_answer(peer, prompt, their_caches, our_records):
    tokens, logits = original.answer(peer.model, their_caches, prompt, NEW_TOKENS)
    found = peer.ours.generate_ids(
        [prompt], records=[our_records], sampling=GREEDY, return_logits=True
    )
    assert found.tokens[0] == tokens
    np.testing.assert_allclose(found.logits[0], logits, atol=2e-4)
    # The cache counts: without it the answer is another.
    if our_records:
        alone = peer.ours.generate_ids([prompt], sampling=GREEDY, return_logits=True)
        assert np.abs(alone.logits[0] - found.logits[0]).max() > 0.05


def logits_over(peer, records, places, prompt) -> np.ndarray:
    """Our logits after a prompt over records that were put at given places; the prompt goes on
    behind all of them."""
    config = peer.ours.config
    total = sum(len(place) for place in places)
    cache = empty_cache(config, rows=1, slots=total)
    for kv, place in zip(records, places, strict=True):
        batched = KV(jnp.asarray(kv.k)[:, None], jnp.asarray(kv.v)[:, None])
        cache = insert(
            cache, batched, jnp.asarray(place)[None], jnp.ones((1, len(place)), jnp.int32), config
        )
    model = Transformer(config, peer.ours.params)
    ids = jnp.asarray([prompt], jnp.int32)
    positions = total + jnp.arange(len(prompt))[None]
    hidden = model(
        ids, positions, jnp.ones_like(ids), mode=AttentionMode.CAUSAL, cache=cache
    ).hidden
    return np.asarray(model.logits(hidden[0, -1]))
