"""A server that says by rote what the page asks: `python -m tests.server.scripted_page PORT`."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sounding.server.http import page

REASONING = "They want the mean. An empty list has none, so that case needs a word."
ANSWER = """The **mean** is the sum over the count; `statistics.fmean` does the same:

```python
def mean(numbers):
    if not numbers:
        raise ValueError("the mean of nothing")
    return sum(numbers) / len(numbers)
```

<b>Mind</b> the empty list."""


class ScriptedServer:
    """What is asked is kept in `asked`; what is answered can be changed between requests."""

    def __init__(self) -> None:
        self.reset()
        self.app = Starlette(
            routes=[
                *(Route(*served) for served in page.endpoints().items()),
                Route("/status", self._status),
                Route("/infill", self._infill, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def reset(self) -> None:
        """As new."""
        self.asked: list[tuple[str, Any]] = []
        self.infill = "sum(numbers)"
        self.refuse: tuple[int, str] | None = None
        self.key: str | None = None
        self.endless = False
        self.converses = True
        self.pause_seconds = 0.0
        self.left = threading.Event()
        """Set when a client leaves an answer, or has all of it."""

    def _refusal(self, request: Request) -> Response | None:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "the API key is missing"}}, 401)
        if self.refuse is not None:
            return JSONResponse({"error": {"message": self.refuse[1]}}, self.refuse[0])
        return None

    async def _status(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse(status() | {"converses": self.converses})

    async def _infill(self, request: Request) -> Response:
        self.asked.append(("/infill", await request.json()))
        await asyncio.sleep(self.pause_seconds)
        answer = {"content": self.infill, "tokens_predicted": 5}
        return self._refusal(request) or JSONResponse(answer)

    async def _chat(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(("/v1/chat/completions", asked))
        thinks = asked["thinking"]["type"] == "enabled"
        refusal = self._refusal(request)
        return refusal or StreamingResponse(self._stream(thinks), media_type="text/event-stream")

    async def _stream(self, thinks: bool) -> AsyncIterator[str]:
        yield ": keep-alive\n\n"
        deltas = [{"reasoning_content": word} for word in _words(REASONING)] if thinks else []
        deltas += [{"content": word} for word in _words(ANSWER)]
        try:
            for delta in deltas:
                yield _frame({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                await asyncio.sleep(self.pause_seconds)
            while self.endless:
                yield _frame({"choices": [{"index": 0, "delta": {"content": " more"}}]})
                await asyncio.sleep(0.01)
        finally:
            self.left.set()
        yield _frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 200, "completion_tokens": 48, "prompt_cache_hit_tokens": 150}
        yield _frame({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


def _words(text: str) -> list[str]:
    return [text[at : at + 7] for at in range(0, len(text), 7)]


def _frame(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


def status(layers: int = 8, experts: int = 32) -> dict[str, Any]:
    """A moment of a busy server; the load of expert e in layer l is known."""
    load = [
        [(layer * 7 + expert * 13) % 29 * 40 + (expert == 3) * 900 for expert in range(experts)]
        for layer in range(layers)
    ]
    return {
        "model": "nano",
        "context_tokens": 32768,
        "uptime_seconds": 3725.0,
        "draining": False,
        "tokens_per_second": 123.4,
        "engine": {
            "running": 3,
            "waiting": 1,
            "prompt_tokens": 4000,
            "hit_tokens": 3000,
            "drafted_tokens": 200,
            "accepted_tokens": 130,
            "state_bytes": 24 << 20,
            "state_limit_bytes": 128 << 20,
            "prefix_bytes": 40 << 20,
            "prefix_limit_bytes": 128 << 20,
            "cached_prefixes": 12,
            "stored_prefixes": 40,
            "stored_bytes": 90 << 20,
            "expert_load": load,
        },
        "cache": {"prompt_tokens": 4000, "hit_tokens": 3000, "hit_rate": 0.75},
        "sessions": [
            _session("decoding", "/v1/chat/completions", 1800, 1664, 212, 0.31),
            _session("decoding", "/infill", 512, 448, 9, 0.04),
            _session("waiting", "/v1/messages", 9000, 0, 0, None),
            _session("stop", "/infill", 500, 384, 12, 0.05),
        ],
    }


def _session(
    state: str, route: str, prompt: int, hit: int, completion: int, first: float | None
) -> dict[str, Any]:
    return {
        "id": route,
        "route": route,
        "state": state,
        "prompt_tokens": prompt,
        "hit_tokens": hit,
        "completion_tokens": completion,
        "miss_reason": "",
        "first_token_seconds": first,
        "seconds": 1.5,
    }


class Running:
    """A scripted server on a port of its own, in a thread."""

    def __init__(self) -> None:
        self.script = ScriptedServer()
        config = uvicorn.Config(self.script.app, port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> "Running":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.script.endless = False
        self._server.should_exit = True
        self._thread.join()


if __name__ == "__main__":
    scripted = ScriptedServer()
    scripted.pause_seconds = 0.02
    uvicorn.run(scripted.app, port=int(sys.argv[1]))
