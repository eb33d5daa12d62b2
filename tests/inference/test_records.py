"""Records side by side: packed ones are expanded on the way in, beside plain ones, in the order of
reading."""

from __future__ import annotations

import dataclasses
import threading
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generation import generate

from grit_jax.errors import GritError
from grit_jax.inference import prefill
from grit_jax.inference import records as module
from grit_jax.inference.encoder import Encoder
from grit_jax.inference.records import PackedRecord, load_records
from grit_jax.inference.sampling import Sampling
from grit_jax.text.chat import GRIT
from grit_jax.types import KV, DocumentKV


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Halves:
    """A codec that keeps half of everything, and nothing of what is odd."""

    factor: jax.Array

    # Named as no other array is, with the tokens in the middle: a layer is [2 K T H].
    token_axes: ClassVar[dict[str, int]] = {"both": 2}

    def pack(self, kv: KV) -> dict[str, jax.Array]:
        both = jnp.stack([jnp.round(kv.k).swapaxes(-1, -2), jnp.round(kv.v)], 2)
        return {"both": both / self.factor}

    def expand(self, arrays: dict[str, jax.Array]) -> KV:
        both = arrays["both"] * self.factor
        return KV(both[:, :, 0].swapaxes(-1, -2), both[:, :, 1])

    def expand_layer(self, arrays: dict[str, jax.Array], layer: jax.Array) -> KV:
        kv = self.expand({"both": arrays["both"][None]})
        return KV(kv.k[0], kv.v[0])


CODEC, OTHER = Halves(jnp.asarray(2.0)), Halves(jnp.asarray(4.0))


@pytest.fixture(scope="module")
def encoder(tiny_config, tiny_params, tiny_tokenizer):
    return Encoder(tiny_config, tiny_params, tiny_tokenizer, tiny_tokenizer.format(GRIT))


@pytest.fixture(scope="module")
def texts(encoder, sentences) -> list[list[int]]:
    return encoder.format([text for text in sentences if len(text) < 80][:6]).ids


@pytest.fixture(scope="module")
def plain(encoder, texts) -> list[DocumentKV]:
    return encoder.encode_ids(texts, return_cache=True).caches


@pytest.fixture(scope="module")
def packed(encoder, texts) -> list[PackedRecord]:
    return encoder.encode_ids(texts, return_cache=True, codec=CODEC).caches


def rounded(document: DocumentKV) -> DocumentKV:
    return DocumentKV(document.tokens, np.round(document.k), np.round(document.v))


def test_the_encoder_packs_each_text_by_itself(encoder, texts, plain, packed):
    assert encoder.encode_ids(texts, codec=CODEC).caches is None
    for document, one in zip(plain, packed, strict=True):
        assert one.codec is CODEC and list(one.arrays) == ["both"]
        np.testing.assert_array_equal(one.tokens, document.tokens)
        # At .5 the rounding may go either way: the two are passes of different programs.
        both = np.stack([document.k.swapaxes(2, 3), document.v], 1)
        np.testing.assert_allclose(2 * one.arrays["both"], both, atol=0.501)
        assert (np.abs(2 * one.arrays["both"] - np.round(both)) > 0).mean() < 1e-3


def test_rows_of_packed_and_plain_pieces(tiny_config, plain, packed):
    other = PackedRecord(plain[2].tokens, {"both": packed[2].arrays["both"] / 2}, OTHER)
    rows = [[plain[0], packed[1]], [], [packed[3], plain[4], packed[5], other]]
    loaded = load_records(rows, tiny_config, 4)
    layers = [loaded.layer(i) for i in range(tiny_config.num_hidden_layers)]
    expanded = [[group.expand(i) for group in layer] for i, layer in enumerate(layers)]
    join = lambda name, axis: np.stack(
        [np.concatenate([getattr(kv, name) for kv in layer], axis) for layer in expanded]
    )
    kv = KV(join("k", 3), join("v", 2))
    codecs = [group.codec for group in loaded.groups]
    assert len(codecs) == 3 and codecs[-1] is None
    for r, row in enumerate(rows):
        found = {int(p): s for s, p in enumerate(loaded.positions[r]) if loaded.segments[r, s]}
        assert sorted(found) == list(range(sum(len(piece.tokens) for piece in row)))
        numbers = (
            {id(plain[i]): i for i in range(6)}
            | {id(packed[i]): i for i in range(6)}
            | {id(other): 2}
        )
        position = 0
        for piece in row:
            expected = plain[numbers[id(piece)]]
            expected = expected if isinstance(piece, DocumentKV) else rounded(expected)
            slots = [found[position + t] for t in range(len(piece.tokens))]
            np.testing.assert_allclose(
                kv.k[:, r, :, :, slots].transpose(1, 2, 3, 0),
                expected.k,
                atol=1e-5 if isinstance(piece, DocumentKV) else 1.01,
            )
            if isinstance(piece, PackedRecord):
                whole = piece.arrays["both"] * np.asarray(piece.codec.factor)
                np.testing.assert_array_equal(kv.v[:, r][:, :, slots], whole[:, 1])
            position += len(piece.tokens)
    assert not loaded.segments[1].any() and not loaded.segments[3].any()
    colliding = load_records(rows, tiny_config, 4, "colliding")
    np.testing.assert_array_equal(colliding.segments, loaded.segments)
    for r, row in enumerate(rows):
        expected = sorted(t for piece in row for t in range(len(piece.tokens)))
        assert sorted(colliding.positions[r][colliding.segments[r] > 0].tolist()) == expected


@pytest.mark.parametrize("order", [["p0"], ["p0", "p1"], ["k2", "p0"], ["p0", "k2", "p1"]])
def test_answers_over_packed_records_are_those_over_their_expansion(
    tiny_config, tiny_params, plain, packed, texts, order
):
    """In any order beside plain ones: only the values differ, never where they stand or who sees
    them."""
    pieces = [(packed if name[0] == "p" else plain)[int(name[1])] for name in order]
    expanded = [
        piece
        if isinstance(piece, DocumentKV)
        else DocumentKV(
            piece.tokens,
            piece.arrays["both"][:, 0].swapaxes(2, 3) * 2,
            piece.arrays["both"][:, 1] * 2,
        )
        for piece in pieces
    ]
    run = lambda row: generate(
        tiny_params,
        tiny_config,
        [texts[5], texts[4][:3]],
        records=[row, row[:1]],
        sampling=Sampling(5),
        return_logits=True,
    )
    found, expected = run(pieces), run(expanded)
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    native = run(
        [
            (packed if name[0] == "p" else plain)[int(name[1])] and plain[int(name[1])]
            for name in order
        ]
    )
    assert np.abs(native.logits - found.logits).max() > 1e-2  # the codec does change something


def test_host_arrays_begin_where_the_cpu_reads_them_in_place(tiny_config, plain, packed):
    for one in (plain[0], packed[0]):
        for array in load_records([[one]], tiny_config).layer(0)[0].arrays.values():
            assert array.ctypes.data % module.ALIGNMENT == 0
    array = load_records([[plain[0]]], tiny_config).layer(1)[0].arrays["k"]
    assert jax.device_put(array, jax.devices("cpu")[0]).unsafe_buffer_pointer() == array.ctypes.data


def test_records_come_in_the_type_of_the_computation(tiny_config, plain):
    config = dataclasses.replace(tiny_config, dtype="bfloat16")
    assert {a.dtype for a in jax.tree.leaves(load_records([[plain[0]]], config).layer(0))} == {
        jnp.dtype("bfloat16")
    }


def test_packed_records_of_another_model_are_refused(tiny_config, packed):
    config = dataclasses.replace(tiny_config, num_hidden_layers=2)
    with pytest.raises(GritError, match="prompt 0, record 1.*another model"):
        load_records(
            [
                [
                    PackedRecord(packed[0].tokens, {"both": packed[0].arrays["both"][:2]}, CODEC),
                    packed[1],
                ]
            ],
            config,
        )


def test_a_layer_computes_before_the_next_one_has_come(
    tiny_config, tiny_params, plain, monkeypatch
):
    """Records on their way give what whole ones give, and no layer waits for the one after it: a
    layer comes only once the one before it has its work."""
    layers = tiny_config.num_hidden_layers
    has_work = [threading.Event() for _ in range(layers)]

    @dataclasses.dataclass
    class Coming:
        whole: DocumentKV
        codec: None = None

        @property
        def tokens(self):
            return self.whole.tokens

        def layer(self, layer):
            if layer and not has_work[layer - 1].wait(60):
                raise GritError(f"layer {layer - 1} waits for layer {layer}")
            return self.whole.layer(layer)

    def spy(params, state, x, chunk, layer, *args, **options):
        has_work[int(layer)].set()
        return step(params, state, x, chunk, layer, *args, **options)

    run = lambda pieces: generate(
        tiny_params, tiny_config, [[5, 6, 7]], records=[pieces], sampling=Sampling(4)
    )
    expected = run(plain[:2])
    step = prefill.prefill_layer_step
    monkeypatch.setattr(prefill, "prefill_layer_step", spy)
    assert run([Coming(plain[0]), plain[1]]).tokens == expected.tokens


def test_records_kept_as_int8_change_little(tiny_config, tiny_params, plain):
    """Codes of 127 steps each side of zero: what a step is worth is all that may differ."""
    run = lambda **how: (
        generate(
            tiny_params,
            tiny_config,
            [[5, 6, 7]],
            records=[plain[:2]],
            sampling=Sampling(4),
            return_logits=True,
            **how,
        ).logits
    )
    exact, rounded = run(), run(int8_records=True)
    error = np.abs(exact - rounded).max()
    assert 0 < error < 0.02 * np.ptp(exact)
