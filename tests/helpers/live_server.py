"""A server on a real socket, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from grit_jax.inference.model import GritLM
from grit_jax.serving.app import create_app
from grit_jax.serving.service import Service
from grit_jax.serving.settings import ServeSettings


class Client:
    """Sends requests over sockets of its own and reads whole replies."""

    def __init__(self, port: int):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def send(
        self,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
        method: str | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (parsed where it is JSON) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            if raw is None and body is not None:
                raw = json.dumps(body).encode()
            method = method or ("GET" if raw is None else "POST")
            given = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, raw, given)
            reply = connection.getresponse()
            text = reply.read()
            kind = reply.headers.get("content-type", "")
            value = json.loads(text) if kind.startswith("application/json") else text.decode()
            return reply.status, value, {k.lower(): v for k, v in reply.headers.items()}

    def post(self, path: str, **body: Any) -> Any:
        """The JSON of a reply that must be a 200."""
        status, value, _ = self.send(path, body)
        assert status == 200, value
        return value

    def error(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """Status and error of a reply that must be an error in OpenAI's form."""
        status, value, _ = self.send(path, body)
        assert status >= 400 and set(value) == {"error"}, (status, value)
        assert set(value["error"]) == {"message", "type", "param", "code"}
        return status, value["error"]

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by name and labels."""
        lines = self.send("/metrics")[1].splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}


class LiveServer(Client):
    """A running server."""

    def __init__(self, service: Service, port: int):
        super().__init__(port)
        self.service = service

    def wait_until_idle(self) -> None:
        """Until no request is in the engine."""
        assert self.service.engine.wait_until_idle(60)


@contextlib.contextmanager
def live_server(model: GritLM, settings: ServeSettings, **options: Any) -> Iterator[LiveServer]:
    """A server of a model, without warm-up unless the settings say so."""
    service = Service(model, settings, **options)
    config = uvicorn.Config(
        create_app(service, log=False), port=0, log_config=None, access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield LiveServer(service, port)
    finally:
        server.should_exit = True
        thread.join(30)
        service.close()
