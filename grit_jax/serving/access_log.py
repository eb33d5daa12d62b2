"""The access log: one JSON object a line for each request."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import secrets
import sys
from typing import TextIO

_GIVEN_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclasses.dataclass
class RequestRecord:
    """What is known of a request; its JSON is a line of the log.

    Attributes:
      id: the client's X-Request-Id, or a new one; the reply carries it.
      handler: the path of the endpoint, "other" where there is none.
      status: of the reply; 499: the client left before it.
      seconds: to the last byte of the reply.
      trace_id: of its span, where requests are traced; the line has it only then.
    """

    id: str
    method: str
    path: str
    client: str = ""
    user: str = ""
    handler: str = "other"
    status: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    trace_id: str | None = None

    def line(self) -> str:
        """One line of JSON."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        values = {"time": time, **dataclasses.asdict(self), "seconds": round(self.seconds, 6)}
        if self.trace_id is None:
            del values["trace_id"]
        return json.dumps(values)


def request_id(given: str | None) -> str:
    """The identifier that a client gives its request, if it is printable ASCII of at most 128
    characters, or a new one."""
    if given is not None and _GIVEN_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(12)}"


def write(record: RequestRecord, file: TextIO | None = None) -> None:
    """Writes a line to a file, standard error by default."""
    print(record.line(), file=file or sys.stderr, flush=True)
