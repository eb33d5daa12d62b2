"""The page at `/`: chat with and without documents, and embeddings compared. Three files of this
package, which load nothing from elsewhere; the page speaks to the endpoints that every client has.
"""

from __future__ import annotations

import dataclasses
from importlib import resources

from fastapi.responses import Response

# Nothing but this server's own files and endpoints; no script in the HTML.
POLICY = (
    "default-src 'self'; img-src data:; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclasses.dataclass(frozen=True)
class PageFile:
    """A file of the page in `web/`."""

    name: str
    media_type: str

    async def response(self) -> Response:
        """The file as a reply."""
        text = (resources.files(__package__) / "web" / self.name).read_text(encoding="utf-8")
        return Response(text, media_type=f"{self.media_type}; charset=utf-8", headers=HEADERS)


PAGE = {
    "/": PageFile("index.html", "text/html"),
    "/page.css": PageFile("page.css", "text/css"),
    "/page.js": PageFile("page.js", "text/javascript"),
}
