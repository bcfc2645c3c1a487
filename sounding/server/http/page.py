"""The page at `/`: the static files of server/web, with a strict content security policy.

Scripts, styles and connections are limited to this server, and no other site may frame the page.
Files are small and read once; browsers revalidate them by their hash (ETag).
"""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from sounding.server.http.streaming import Endpoint

FOLDER = Path(__file__).parents[1] / "web"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def endpoints() -> dict[str, Endpoint]:
    """Routes by path, all GET: the page itself, and each file under /ui/."""
    files = {path.name: _File(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    served: dict[str, Endpoint] = {"/": files["index.html"].answer}
    return served | {f"/ui/{name}": file.answer for name, file in files.items()}


class _File:
    """A static file in memory."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._tag = f'"{hashlib.sha256(self._data).hexdigest()[:32]}"'
        self._type = TYPES[path.suffix]

    async def answer(self, request: Request) -> Response:
        headers = {**HEADERS, "etag": self._tag}
        known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if self._tag in known or f"W/{self._tag}" in known:
            return Response(status_code=304, headers=headers)
        return Response(self._data, headers=headers, media_type=self._type)
