"""Records that are loaded ahead of the device: in order, up to a bound, until they are closed."""

from __future__ import annotations

import dataclasses
import queue
import threading

import numpy as np
import pytest

from grit_jax.errors import GritError
from grit_jax.inference.record_loader import (
    LAYERS_AHEAD,
    WHOLE_TOKENS,
    Layered,
    RecordLoader,
    in_one_piece,
    lay_out_whole,
)
from grit_jax.inference.records import load_records
from grit_jax.inference.requests import GenerateRequest


@dataclasses.dataclass
class Counted:
    """A record that notes the layers that are read, and may fail at one."""

    whole: object
    fails_at: int | None = None
    codec: None = None
    read: list[int] = dataclasses.field(default_factory=list)

    @property
    def tokens(self):
        return self.whole.tokens

    def layer(self, layer):
        self.read.append(layer)
        if layer == self.fails_at:
            raise GritError("layer 1 is damaged")
        return self.whole.layer(layer)


def test_layers_come_in_order_as_they_are_laid_out(tiny_config, documents):
    loader = RecordLoader(GenerateRequest([5], tuple(documents[:2])), tiny_config, 256)
    expected = load_records([documents[:2]], tiny_config, 1)
    for layer in range(tiny_config.num_hidden_layers):
        number, [group] = loader.get(30)
        [wanted] = expected.layer(layer)
        assert number == layer
        for name, array in wanted.arrays.items():
            np.testing.assert_array_equal(group.arrays[name], array)
    np.testing.assert_array_equal(loader.positions, expected.positions)
    assert loader.order is None
    with pytest.raises(queue.Empty):
        loader.get(0)


def test_whole_records_are_all_their_layers(tiny_config, documents):
    request = GenerateRequest([5], tuple(documents[:2]))
    whole = lay_out_whole(request, tiny_config, 256)
    expected = load_records([documents[:2]], tiny_config, 1)
    [group] = whole.groups
    for layer in range(tiny_config.num_hidden_layers):
        [wanted] = expected.layer(layer)
        for name, array in wanted.arrays.items():
            np.testing.assert_array_equal(group.arrays[name][layer], array)
    np.testing.assert_array_equal(whole.positions, expected.positions)
    assert whole.order is None


def test_what_goes_in_by_one_call(documents):
    tokens = len(documents[0].tokens)
    assert in_one_piece(documents[:1] * (WHOLE_TOKENS // tokens))
    assert not in_one_piece(documents[:1] * (WHOLE_TOKENS // tokens + 1))
    assert not in_one_piece([documents[0], Layered(documents[1])])


def test_few_layers_are_loaded_ahead_and_none_after_the_end(tiny_config, documents):
    config = dataclasses.replace(tiny_config, num_hidden_layers=9)
    repeated = [np.repeat(x, 3, axis=0) for x in (documents[0].k, documents[0].v)]
    record = Counted(dataclasses.replace(documents[0], k=repeated[0], v=repeated[1]))
    loader = RecordLoader(GenerateRequest([5], (record,)), config, 256)
    assert loader.get(30)[0] == 0
    threading.Event().wait(0.3)
    assert record.read[-1] <= 1 + LAYERS_AHEAD
    loader.close()
    loader._thread.join(10)
    assert not loader._thread.is_alive() and record.read[-1] < 8


def test_an_error_comes_in_place_of_its_layer(tiny_config, documents):
    record = Counted(documents[0], fails_at=1)
    loader = RecordLoader(GenerateRequest([5], (record,)), tiny_config, 256)
    assert loader.get(30)[0] == 0
    with pytest.raises(GritError, match="layer 1 is damaged"):
        loader.get(30)
