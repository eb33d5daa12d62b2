"""A server in a thread of this process, beside other work on the same model.

For notebooks and tests: a TPU belongs to one process, so that a `grit serve` beside a notebook that
holds it could not start.
"""

from __future__ import annotations

import http.client
import threading
import time
from types import TracebackType

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.serving.server import PreparedServer
from grit_jax.serving.settings import ServeSettings


class BackgroundServer:
    """A running server; as a context manager it ends with its block.

    Args:
      port: 0 takes a free one.
      log: write the access log to standard error.

    Attributes:
      url: its address, such as http://127.0.0.1:8000.

    Raises:
      GritError: the address cannot be used.
    """

    def __init__(
        self,
        model: GritLM,
        settings: ServeSettings,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        log: bool = False,
    ):
        self._server = PreparedServer(model, settings, host, port, log=log)
        self.url = self._server.url
        self._thread = threading.Thread(target=self._server.run, name="server", daemon=True)
        self._thread.start()
        self._stopped = False

    def wait_until_ready(self, timeout: float = 1800.0) -> None:
        """Returns once the server says at `/ready` that its programs are compiled.

        Raises:
          GritError: it has ended, or it took longer than `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while not self._is_ready():
            if not self._thread.is_alive():
                raise GritError(f"{self.url}: the server has ended; stop() says why")
            if time.monotonic() > until:
                raise GritError(f"{self.url}: not ready after {timeout:g} s")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server once the requests under way are answered; nothing if it has ended.

        Raises:
          Exception: what its warm-up failed with.
        """
        if self._stopped:
            return
        self._stopped = True
        self._server.end()
        self._thread.join()
        self._server.close()

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def __enter__(self) -> BackgroundServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
