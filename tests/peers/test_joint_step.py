"""The joint step against torch: losses and the gradient of every weight, from strings to packed
rows on our side and to padded batches on the original's."""

from __future__ import annotations

import dataclasses

import numpy as np
import parity
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import original  # noqa: E402
from peer_models import load_make_golden, open_both  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from grit_jax.data.example_tokenizer import ExampleTokenizer, LengthLimits  # noqa: E402
from grit_jax.data.formats import GenerativeExample, Text  # noqa: E402
from grit_jax.data.packing import (  # noqa: E402
    EmbeddingPacking,
    GenerativePacking,
    embedding_batch,
    generative_batch,
)
from grit_jax.text.chat import GRIT  # noqa: E402
from grit_jax.training.losses import LossConfig  # noqa: E402
from grit_jax.training.step import StepConfig  # noqa: E402
from grit_jax.types import AttentionMode, Batch  # noqa: E402

pytestmark = pytest.mark.peers

make_golden = load_make_golden()
LIMITS = LengthLimits(
    query=40, passage=48, generative=64, document=48, cached_row=96, continuation_row=96
)
QUERIES, GROUP, SEQUENCES = 8, 3, 8
RANKS = 4


@pytest.fixture(scope="module")
def peer(tmp_path_factory, tiny_tokenizer):
    """A model whose contrastive loss is no foregone conclusion."""
    directory = tmp_path_factory.mktemp("joint")
    model = make_golden.make_model(
        seed=2,
        common=0.35,
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        bos_token_id=tiny_tokenizer.bos_id,
        eos_token_id=tiny_tokenizer.eos_id,
        pad_token_id=tiny_tokenizer.pad_id,
    )
    model.save_pretrained(directory)
    tiny_tokenizer.save(directory, GRIT)
    return open_both(directory)


@dataclasses.dataclass
class Strings:
    """What a data file has of one step."""

    queries: list[tuple[str, str]]
    passages: list[tuple[str, str]]
    conversations: list[tuple[str, str]]


@pytest.fixture(scope="module")
def strings(sentences) -> Strings:
    """With and without an instruction, ragged, some longer than the limits."""
    instructions = ["Find it", "", " a: tale :\n", "größer"]
    queries = [(instructions[i % 4], sentences[i]) for i in range(QUERIES)]
    passages = [
        ("Say it" if i % 5 == 0 else "", text)
        for i, text in enumerate(sentences[20 : 20 + GROUP * QUERIES])
    ]
    passages[3] = ("", "long " * 60)
    conversations = list(zip(sentences[60 : 60 + SEQUENCES], sentences[80 : 80 + SEQUENCES]))
    conversations[2] = ("  Why? 北京 ", " \n" + conversations[2][1] + "  ")
    conversations[5] = ("Go on", "long " * 90)
    return Strings(queries, passages, conversations)


@pytest.fixture(scope="module")
def theirs(peer, strings):
    """Padded batches by the original's collator: queries, passages, sequences."""
    return {
        "queries": original.collate_embedding(peer.tokenizer, strings.queries, LIMITS.query),
        "passages": original.collate_embedding(peer.tokenizer, strings.passages, LIMITS.passage),
        "sequences": original.collate_generative(
            peer.tokenizer, strings.conversations, LIMITS.generative
        ),
    }


@pytest.fixture(scope="module")
def ours(tiny_tokenizer, strings) -> Batch:
    """Packed rows by our data room."""
    reader = ExampleTokenizer(tiny_tokenizer, GRIT, LIMITS)
    texts = [Text(*pair) for pair in strings.queries + strings.passages]
    limits = [LIMITS.query] * len(strings.queries) + [LIMITS.passage] * len(strings.passages)
    prompted = reader.embedding(texts, limits)
    ids = [text.ids for text in prompted]
    prompts = [text.prompt_length for text in prompted]
    embedding = embedding_batch(
        ids[:QUERIES], ids[QUERIES:], prompts, EmbeddingPacking(row_length=128, row_multiple=4)
    )
    sequences = reader.generative([GenerativeExample(turns) for turns in strings.conversations])
    return Batch(
        embedding, generative_batch(sequences, GenerativePacking(row_length=160, row_multiple=2))
    )


def our_gradients(peer, batch, loss=LossConfig(), **how) -> parity.Gradients:
    return parity.joint_gradients(
        peer.ours.params, batch, StepConfig(peer.ours.config, loss, **how)
    )


def their_gradients(peer, loss):
    total, gradients = original.gradients(peer.model, loss)
    return total, make_golden.as_ours(peer.model, gradients)


def contrastive(peer, theirs, pooling="mean", attention="bb"):
    vectors = [
        original.embed(peer.model, theirs[side], pooling, attention)
        for side in ("queries", "passages")
    ]
    return original.contrastive(*vectors)


def without_head(gradients):
    """The embedding pass never touches the vocabulary."""
    assert not np.abs(gradients["head"]).any()
    return {name: gradient for name, gradient in gradients.items() if name != "head"}


@pytest.fixture(scope="module")
def plain(peer, ours):
    """Our contrastive gradients, mean pooled and bidirectional."""
    return our_gradients(peer, Batch(embedding=ours.embedding))


def test_padded_and_packed_batches_hold_the_same(theirs, ours):
    """Tokens, pooled tokens and labels, text by text."""
    again = parity.embedding(theirs["queries"], theirs["passages"], row_length=128)
    sequences = parity.generative(theirs["sequences"], row_length=160)

    def texts(rows, marks, locations, per_row):
        for location in locations:
            row, segment = location // per_row, location % per_row + 1
            chosen = rows.segments[row] == segment
            yield rows.tokens[row][chosen].tolist(), marks[row][chosen].tolist()

    def all_texts(batch):
        locations = [*batch.queries, *batch.passages]
        return list(texts(batch.rows, batch.pool, locations, batch.segments_per_row))

    assert all_texts(ours.embedding) == all_texts(again)
    np.testing.assert_array_equal(ours.generative.targets, sequences.targets)
    np.testing.assert_array_equal(ours.generative.rows.tokens, sequences.rows.tokens)
    np.testing.assert_array_equal(ours.generative.sequence, sequences.sequence)
    lengths = [len(tokens) for tokens, _ in all_texts(ours.embedding)]
    assert (
        max(lengths) == LIMITS.passage
        and len(set(lengths)) > 8
        and len(ours.embedding.pool) < len(lengths) / 2
    )


# Not `cls` with `cc`: the first token sees itself alone, so that all vectors are the same.
@pytest.mark.parametrize(
    "pooling, attention",
    [
        (p, a)
        for p in ("mean", "weightedmean", "lasttoken", "cls")
        for a in ("bb", "cc")
        if (p, a) != ("cls", "cc")
    ],
)
def test_contrastive_loss_and_gradients(peer, theirs, ours, pooling, attention):
    mode = AttentionMode.BIDIRECTIONAL if attention == "bb" else AttentionMode.CAUSAL
    found = our_gradients(
        peer, Batch(embedding=ours.embedding), pooling=pooling, embedding_mode=mode
    )
    loss, expected = their_gradients(peer, lambda: contrastive(peer, theirs, pooling, attention))
    assert found.parts["loss_emb"] == pytest.approx(loss, rel=1e-5)
    parity.assert_gradients_agree(without_head(found.gradients), without_head(expected))
    assert abs(loss - np.log(GROUP * QUERIES)) > 0.3  # a guess is far from it


@pytest.mark.parametrize(
    "kind, factor", [("token", 0.003), ("token", 6.0), ("mixed", 1.0), ("mixed", 0.5)]
)
def test_language_loss_and_gradients(peer, theirs, ours, kind, factor):
    loss = LossConfig(generative=kind, generative_factor=factor)
    found = our_gradients(peer, Batch(generative=ours.generative), loss)
    expected_loss, expected = their_gradients(
        peer, lambda: original.language(peer.model, theirs["sequences"], kind, factor)
    )
    assert found.loss == pytest.approx(expected_loss, rel=1e-5)
    scale = lambda gradients: {name: gradient / factor for name, gradient in gradients.items()}
    parity.assert_gradients_agree(scale(found.gradients), scale(expected))


def test_the_sum_of_both(peer, theirs, ours):
    """`loss_emb + factor * loss_gen`, one gradient of one step."""
    loss = LossConfig(generative="token", generative_factor=0.2)
    found = our_gradients(peer, ours, loss)
    both = lambda: (
        contrastive(peer, theirs) + original.language(peer.model, theirs["sequences"], "token", 0.2)
    )
    expected_loss, expected = their_gradients(peer, both)
    assert found.loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.loss == pytest.approx(
        found.parts["loss_emb"] + 0.2 * found.parts["loss_gen"], rel=1e-6
    )
    parity.assert_gradients_agree(found.gradients, expected)


@pytest.mark.parametrize("chunk", [3, 4])
def test_grad_cache_equals_the_plain_step(peer, theirs, ours, plain, chunk):
    """Chunks of rows here (also where they do not divide), of texts in two passes there: always the
    plain gradient."""
    found = our_gradients(peer, Batch(embedding=ours.embedding), embedding_chunk=chunk)
    assert len(ours.embedding.pool) > chunk
    assert found.parts["loss_emb"] == pytest.approx(plain.parts["loss_emb"], rel=1e-6)
    parity.assert_gradients_agree(
        without_head(found.gradients), without_head(plain.gradients), relative=1e-5
    )
    loss, expected = original.grad_cache(peer.model, theirs["queries"], theirs["passages"], chunk)
    assert found.parts["loss_emb"] == pytest.approx(loss, rel=1e-5)
    parity.assert_gradients_agree(
        without_head(found.gradients), without_head(make_golden.as_ours(peer.model, expected))
    )


def test_what_several_devices_did_there(peer, theirs, ours, plain):
    """The original on `RANKS` devices with negatives across them: `emb_grad_scale: 1/RANKS` and
    `mix_group_size` the sequences of one device give its losses and its gradients, on any number of
    devices."""
    emb, gen, expected = original.ranks_step(
        peer.model,
        RANKS,
        theirs["queries"],
        theirs["passages"],
        theirs["sequences"],
        "mixed",
        factor=1.0,
    )
    expected = make_golden.as_ours(peer.model, expected)
    loss = LossConfig(emb_grad_scale=1 / RANKS, mix_group_size=SEQUENCES // RANKS)
    found = our_gradients(peer, ours, loss)
    assert found.parts["loss_emb"] == pytest.approx(emb, rel=1e-5) and found.parts[
        "loss_gen"
    ] == pytest.approx(gen, rel=1e-5)
    parity.assert_gradients_agree(found.gradients, expected)
    # Neither option is idle: without one of them the gradient is another.
    for other in (
        dataclasses.replace(loss, emb_grad_scale=1.0),
        dataclasses.replace(loss, mix_group_size=None),
    ):
        wrong = our_gradients(peer, ours, other).gradients
        assert max(parity.norm_gap(wrong[name], expected[name]) for name in expected) > 1e-2


def test_chunks_of_sequences_are_groups(peer, theirs, ours):
    """Gradient accumulation over chunks of sequences there (each mixed loss divided by the number
    of chunks)."""
    loss, expected = their_gradients(
        peer, lambda: make_golden.grouped(peer.model, theirs["sequences"])
    )
    found = our_gradients(
        peer, Batch(generative=ours.generative), LossConfig(mix_group_size=make_golden.GROUP)
    )
    assert found.loss == pytest.approx(loss, rel=1e-5)
    parity.assert_gradients_agree(found.gradients, expected)


def test_the_golden_files_are_what_their_program_makes():
    files = load_file(make_golden.GOLDEN / "golden.safetensors")
    model, batch = make_golden.make_model(), make_golden.make_batch()
    saved = load_file(make_golden.GOLDEN / "model.safetensors")
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(weight.numpy(), saved[name])
    made = make_golden.compute(model, batch)
    made |= {
        f"{kind}/{name}": array for kind, part in batch.items() for name, array in part.items()
    }
    assert made.keys() == files.keys()
    for name, array in made.items():
        np.testing.assert_allclose(array, files[name], rtol=1e-4, atol=1e-6, err_msg=name)
