"""Runs the application: sockets, the warm-up, and an orderly end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from types import FrameType

import uvicorn

from grit_jax.errors import GritError
from grit_jax.inference.model import GritLM
from grit_jax.serving.app import create_app
from grit_jax.serving.service import Service
from grit_jax.serving.settings import ServeSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Server(uvicorn.Server):
    """On SIGTERM or SIGINT: no new connections, open requests are answered, then the end."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own, which raises the signal again when all is done.
        self._service.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class PreparedServer:
    """A socket, a model's engine and the application; `run` serves until `end`, SIGTERM or SIGINT.

    Args:
      port: 0 takes a free one.
      log: write the access log to standard error.

    Raises:
      GritError: the address cannot be used.
    """

    def __init__(
        self, model: GritLM, settings: ServeSettings, host: str, port: int, *, log: bool = True
    ):
        self._listening = _listen(host, port)
        self.host, self.port = self._listening.getsockname()[:2]
        address = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"http://{address}:{self.port}"
        try:
            self.service = Service(model, settings)
        except BaseException:
            self._listening.close()
            raise
        config = uvicorn.Config(
            create_app(self.service, log=log),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.grace) or None,
        )
        self._server = _Server(config, self.service)
        self._failures: list[BaseException] = []

    def run(self) -> None:
        """Compiles programs beside the requests, and serves; in the main thread or another one."""
        warming = threading.Thread(target=self._warm_up, name="warm-up", daemon=True)
        warming.start()
        self._server.run(sockets=[self._listening])

    def end(self) -> None:
        """Takes no new connections; `run` returns when the open requests are answered."""
        self._server.handle_exit(signal.SIGTERM, None)

    def close(self) -> bool:
        """Frees the engine and the address, after `run`.

        Returns:
          Whether all has ended; False: a file is still being added to a store.

        Raises:
          Exception: what the warm-up failed with.
        """
        has_ended = self.service.close()
        self._listening.close()
        if self._failures:
            raise self._failures[0]
        return has_ended

    def _warm_up(self) -> None:
        if self.service.compiled:
            return
        try:
            programs = self.service.warm_up()
        except Exception as error:
            if not self.service.draining:
                self._failures.append(error)
                self.end()
            return
        print(f"ready: {programs} programs compiled", file=sys.stderr, flush=True)


def serve(
    model: GritLM, settings: ServeSettings, host: str = "127.0.0.1", port: int = 8000
) -> None:
    """Serves a model until SIGTERM or SIGINT; open requests are answered first.

    Args:
      port: 0 takes a free one.

    Raises:
      GritError: the address cannot be used, or the model's programs cannot be compiled.
    """
    server = PreparedServer(model, settings, host, port)
    if server.host not in LOOPBACK and not settings.api_keys:
        print(
            f"warning: {server.host} can be reached from other machines, and no key is needed;"
            " --api-keys FILE demands one",
            file=sys.stderr,
        )
    print(f"serving {settings.name} on {server.url}", file=sys.stderr, flush=True)
    try:
        server.run()
    finally:
        if not server.close():
            print(
                "a file is still being added to a store; the next server with the same --files goes"
                " on with it",
                file=sys.stderr,
                flush=True,
            )
            os._exit(0)  # the interpreter would wait for the writer's thread


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
      GritError: the address is unknown or in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GritError(f"--host {host} --port {port}: {reason}; choose another") from None
    return listening
