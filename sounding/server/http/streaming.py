"""Streamed answers, and detection of disconnects.

A disconnect cancels the work in progress at once, even during the prefill of a long prompt, when
nothing is being sent.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

Endpoint = Callable[[Request], Awaitable[Response]]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8, the encoding of every response.

    Raises ValueError for NaN and infinities, which are not JSON.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def sse(data: Any, event: str | None = None) -> bytes:
    """A server-sent event."""
    name = f"event: {event}\n".encode() if event is not None else b""
    return name + b"data: " + to_json(data) + b"\n\n"


class JSONAnswer(Response):
    """A JSON object."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


class Frames(Response):
    """A streamed response of frames, with `keep_alive` sent after a silent interval.

    `cancel` is called when the response ends, for whatever reason.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        cancel: Callable[[], None],
        *,
        media_type: str = "text/event-stream",
        keep_alive: bytes = KEEP_ALIVE,
        keep_alive_seconds: float = 10.0,
    ) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._frames, self._cancel = frames, cancel
        self._keep_alive, self._seconds = keep_alive, keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send))
        except (ClientDisconnect, OSError):
            pass  # nobody reads the answer
        finally:
            self._cancel()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        frames = self._frames
        waiting: asyncio.Task[bytes] | None = None
        try:
            while True:
                waiting = asyncio.ensure_future(_next(frames))
                while not (await asyncio.wait([waiting], timeout=self._seconds))[0]:
                    await send(_body(self._keep_alive))
                frame = waiting.result()
                if not frame:
                    break
                await send(_body(frame))
            await send({"type": "http.response.body", "body": b""})
        finally:
            if waiting is not None and not waiting.done():
                waiting.cancel()
                await asyncio.wait([waiting])
            await frames.aclose()  # type: ignore[attr-defined]  # they are generators


async def _next(frames: AsyncIterator[bytes]) -> bytes:
    """The next frame; b"" at the end, since a task cannot raise StopAsyncIteration."""
    return await anext(frames, b"")


def _body(frame: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": frame, "more_body": True}


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; on a disconnect cancel it and raise ClientDisconnect.

    The request's body must have been read.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait([working, leaving])


async def whole(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """`while_connected` around an answer that is sent in one piece."""
    return await while_connected(request.receive, work)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
