"""The middleware before every route: origin, host, key, size, load, and errors.

A plain ASGI layer: it sees each request before any of its body is read, and each failure after
everything else, so that a client always gets its protocol's error and never a traceback.
"""

import asyncio
import logging
import re
import time
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sounding.server.http.errors import Refusal, shape_for
from sounding.server.http.streaming import JSONAnswer
from sounding.server.service import Service

log = logging.getLogger(__name__)

# Browsers load these before a user can enter a key, and supervisors poll /health without one.
_OPEN = ("/", "/health", "/ui", "/openapi.json")
# A name or an address and a port, nothing else: no user, nothing behind a bracket.
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::\d*)?", re.ASCII)
_LARGE_BYTES = 1 << 20  # free memory is released after a body of this size


class AccessMiddleware:
    """Middleware around the routes of a service."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(self._service, scope, receive, send)
        try:
            if await visit.preflight():
                return
            visit.admit()
            await self._app(scope, visit.receive, visit.send)
        except Refusal as refusal:
            await visit.refuse(refusal)
        except ClientDisconnect:
            pass  # nobody reads the answer
        except HTTPException as error:  # raised for static files
            await visit.refuse(Refusal(error.status_code, error.detail, code="not_found"))
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            await visit.refuse(
                Refusal(
                    500, "internal error; the server's log has the traceback", code="internal_error"
                )
            )
        finally:
            visit.leave()


class _Visit:
    """One request on its way through the middleware."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service, self._settings = service, service.settings
        self._scope, self._receive, self._send = scope, receive, send
        self._headers = Headers(scope=scope)
        self._path: str = scope["path"]
        self._status: int | None = None
        self._counted = False
        self._body_bytes = 0
        self._body_read = False
        self._deadline = time.monotonic() + self._settings.body_seconds

    # -- requests ----------------------------------------------------------------------------------

    async def preflight(self) -> bool:
        """Answer a browser's CORS preflight."""
        asks = self._scope["method"] == "OPTIONS" and "access-control-request-method" in (
            self._headers
        )
        if asks and self._allowed_origin() is not None:
            headers = {
                "access-control-allow-methods": "GET, POST",
                "access-control-allow-headers": self._headers.get(
                    "access-control-request-headers", "content-type"
                ),
                "access-control-max-age": "600",
            }
            await JSONAnswer({}, headers=headers)(self._scope, self._receive, self.send)
            return True
        return False

    def admit(self) -> None:
        """Reject requests without access (host, origin, key, size, load). Raises Refusal."""
        self._check_host()
        self._check_origin()
        self._check_key()
        if self._scope["method"] == "POST":
            if self._service.draining:
                raise Refusal(503, "the server is stopping", code="draining", retry_after_seconds=5)
            if self._service.in_flight >= self._settings.max_requests:
                raise Refusal(
                    429,
                    f"{self._service.in_flight} requests are in progress, as many as allowed; "
                    "try again in a moment",
                    code="overloaded",
                    retry_after_seconds=1,
                )
            self._counted = True
            self._service.in_flight += 1
        self._check_encoding()
        length = self._headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20:
            self._check_size(int(length))

    def _check_host(self) -> None:
        hosts = self._settings.hosts
        if hosts is None:
            return
        given = self._headers.get("host", "")
        parts = _HOST.fullmatch(given)
        host = (parts[1] or parts[2]).lower() if parts is not None else None
        if host not in hosts:
            raise Refusal(
                403,
                f"the Host header {given[:200]!r} is not allowed; use one of "
                f"{list(hosts)} (serve --allowed-host adds names)",
                code="wrong_host",
            )

    def _check_origin(self) -> None:
        """Reject requests of web pages from other origins, unless they are allowed."""
        origin = self._headers.get("origin")
        if origin is None or self._allowed_origin() is not None:
            return
        place = _split(origin).netloc
        if not place or place != self._headers.get("host"):
            raise Refusal(
                403,
                f"the origin {origin[:200]!r} is not allowed; serve --cors-origin allows it",
                code="origin_not_allowed",
            )

    def _allowed_origin(self) -> str | None:
        origin = self._headers.get("origin")
        allowed = self._settings.cors_origins
        return origin if origin is not None and (origin in allowed or "*" in allowed) else None

    def _check_key(self) -> None:
        keys = self._settings.keys
        if keys is None or self._path in _OPEN or self._path.startswith("/ui/"):
            return
        scheme, _, bearer = self._headers.get("authorization", "").partition(" ")
        # Libraries may send both headers, one of them often empty or a placeholder.
        given = [self._headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        given = [key.strip() for key in given if key.strip()]
        owner = next((owner for owner in map(keys.owner, given) if owner is not None), None)
        if owner is None:
            what = "is not valid" if given else "is missing"
            raise Refusal(
                401,
                f"the API key {what}; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                code="invalid_api_key",
            )
        self._scope["sounding.owner"] = owner

    def _check_encoding(self) -> None:
        given = self._headers.get("content-encoding", "").strip()
        if given.lower() not in ("", "identity"):
            raise Refusal(
                415,
                f"Content-Encoding {given[:60]!r} is not supported; send the body uncompressed",
                code="unsupported_encoding",
                headers={"accept-encoding": "identity"},
            )

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._settings.max_body_bytes:
            raise Refusal(
                413,
                f"the body is larger than {self._settings.max_body_bytes} bytes",
                code="body_too_large",
            )

    async def receive(self) -> Message:
        """Receive the next part of the request. Raises Refusal if it is too large or too slow."""
        if self._body_read:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(
                408,
                f"the request did not arrive within {self._settings.body_seconds:g} seconds",
                code="request_timeout",
            ) from None
        self._body_bytes += len(message.get("body", b""))
        self._check_size(self._body_bytes)
        self._body_read = not message.get("more_body", False)
        return message

    # -- responses ---------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            origin = self._allowed_origin()
            if origin is not None:
                allow = (b"access-control-allow-origin", origin.encode("latin-1"))
                headers = [*message.get("headers", ()), allow, (b"vary", b"origin")]
                message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        if self._status is not None:
            return  # the response has begun: only closing the connection can report the failure
        shape = shape_for(self._path)
        answer = JSONAnswer(shape(refusal), status_code=refusal.status, headers=refusal.headers)
        await answer(self._scope, self._receive, self.send)

    def leave(self) -> None:
        if self._counted:
            self._service.in_flight -= 1
        if self._body_bytes > _LARGE_BYTES:
            self._service.give_back_memory()
        route = self._scope.get("sounding.route", "other")
        self._service.metrics.answers.labels(route, str(self._status or "none")).inc()


def _split(address: str) -> SplitResult:
    """The parts of an address; all empty if it is not valid."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
