"""Loads the records of a request while the device works on what has come."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Any

import numpy as np

from grit_jax.inference.records import LayerRecords, RecordRows, load_records
from grit_jax.inference.requests import GenerateRequest
from grit_jax.models.config import ModelConfig

LAYERS_AHEAD = 2  # layers of a record that are loaded before the device takes them


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
            tokens = rows.segments[0] > 0
            if len(rows.groups) > 1:
                order = np.argsort(~tokens, kind="stable").astype(np.int32)
                self.order = order[: min(len(order), self._capacity)]
                self.positions = rows.positions[:, self.order]
            else:
                self.positions = rows.positions
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
