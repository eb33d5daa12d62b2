"""Loads the records of a request while the device works on what has come."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from grit_jax.inference.records import (
    Codec,
    KVRecord,
    LayerRecords,
    PackedRecord,
    RecordRows,
    load_records,
)
from grit_jax.inference.requests import GenerateRequest
from grit_jax.models.config import ModelConfig
from grit_jax.types import DocumentKV

LAYERS_AHEAD = 2  # layers of a record that are loaded before the device takes them
# Records in memory of up to so many tokens are inserted by one call: one for each layer would take
# longer than their numbers do.
WHOLE_TOKENS = 512


@dataclasses.dataclass
class WholeRecords:
    """A request's records, all layers at once.

    Attributes:
      positions, order: see `engine_steps.insert_records`.
      groups: side by side, arrays `[L 1 ..]` by name.
    """

    positions: Int[np.ndarray, "1 S"]
    order: Int[np.ndarray, " S"] | None
    groups: tuple[LayerRecords, ...]


@dataclasses.dataclass
class Layered:
    """A record that is inserted layer by layer, however short it is."""

    record: KVRecord

    @property
    def tokens(self) -> Int[np.ndarray, " T"]:
        return self.record.tokens

    @property
    def codec(self) -> Codec | None:
        return self.record.codec

    def layer(self, layer: int) -> dict[str, np.ndarray]:
        return self.record.layer(layer)


def in_one_piece(records: Sequence[KVRecord]) -> bool:
    """Whether records are there, and short enough to be inserted by one call."""
    there = all(isinstance(record, DocumentKV | PackedRecord) for record in records)
    return there and sum(len(record.tokens) for record in records) <= WHOLE_TOKENS


def lay_out_whole(request: GenerateRequest, config: ModelConfig, capacity: int) -> WholeRecords:
    """A request's records as arrays of all layers.

    Args:
      capacity: tokens of records that a slot holds.
    """
    rows = load_records([request.records], config, 1, request.positions)
    layers = [rows.layer(layer) for layer in range(config.num_hidden_layers)]
    groups = [
        LayerRecords(
            {name: np.stack([layer[n].arrays[name] for layer in layers]) for name in group.arrays},
            group.codec,
        )
        for n, group in enumerate(layers[0])
    ]
    return WholeRecords(*_places(rows, capacity), tuple(groups))


def _places(rows: RecordRows, capacity: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions of the tokens as they are stored, and their order if there are several groups."""
    if len(rows.groups) == 1:
        return rows.positions, None
    order = np.argsort(rows.segments[0] == 0, kind="stable").astype(np.int32)[:capacity]
    return rows.positions[:, order], order


class RecordLoader:
    """Lays a request's records out layer by layer, in a thread of its own, ahead of the device.

    Attributes:
      rows, positions, order, span, chunk, last, x: what the runner inserts the layers with.
    """

    def __init__(self, request: GenerateRequest, config: ModelConfig, capacity: int):
        self._request, self._config, self._capacity = request, config, capacity
        self._layers: queue.Queue[tuple[int, tuple[LayerRecords, ...]] | BaseException]
        self._layers = queue.Queue(LAYERS_AHEAD)
        self._closed = threading.Event()
        self.rows: RecordRows | None = None
        self.positions = np.zeros((1, 0), np.int32)
        self.order: np.ndarray | None = None
        self.span: Any = None
        self.chunk: Any = None
        self.last: Any = None
        self.x: Any = None
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    def get(self, wait: float) -> tuple[int, tuple[LayerRecords, ...]]:
        """The next layer.

        Raises:
          queue.Empty: it has not come within `wait` seconds.
          GritError: it cannot be read.
        """
        item = self._layers.get(timeout=wait) if wait > 0 else self._layers.get_nowait()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Ends the thread at the next layer."""
        self._closed.set()

    def _run(self) -> None:
        try:
            rows = load_records([self._request.records], self._config, 1, self._request.positions)
            self.positions, self.order = _places(rows, self._capacity)
            self.rows = rows
            for layer in range(self._config.num_hidden_layers):
                if not self._put((layer, rows.layer(layer))):
                    return
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._layers.put(item, timeout=0.1)
                return True
        return False
