"""A client's connection: sends JSON and returns responses with their timing."""

import contextlib
import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class HTTPReply:
    """A complete response."""

    status: int
    text: str
    first_seconds: float  # from the request to the first bytes of the body
    seconds: float

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON objects of a stream of events."""
        lines = (line.removeprefix("data: ") for line in self.text.splitlines())
        return [json.loads(line) for line in lines if line.startswith("{")]


class Client:
    """Sends one request at a time over a persistent connection."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Raises ValueError if `url` is not an http address."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(
                f"{url!r} must be the http address of a server, such as http://127.0.0.1:8000"
            )
        self._connection = http.client.HTTPConnection(
            parts.hostname, parts.port or 80, timeout=_TIMEOUT_SECONDS
        )
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers |= {"Authorization": f"Bearer {api_key}", "x-api-key": api_key}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> str:
        """Return a response's text, whatever its status. Raises OSError if there is none."""
        return self._send("GET", path, None).text

    def ask(self, path: str, body: dict[str, Any]) -> HTTPReply:
        """Send a request. Raises OSError without a complete response, ValueError if refused."""
        reply = self._send("POST", path, json.dumps(body))
        if reply.status != 200:
            raise ValueError(f"{path} answered {reply.status}: {reply.text[:200]}")
        return reply

    def abandon(self, path: str, body: dict[str, Any], leave: Callable[[], None]) -> None:
        """Send a request, call `leave`, and disconnect. Raises OSError if no server answers."""
        with self._told(f"POST {path}"):
            self._connection.request("POST", path, json.dumps(body), self._headers)
        leave()
        self._connection.close()

    def _send(self, method: str, path: str, body: str | None) -> HTTPReply:
        start = time.perf_counter()
        with self._told(f"{method} {path}"):
            self._connection.request(method, path, body, self._headers)
            response = self._connection.getresponse()
            first = response.read(1)
            first_seconds = time.perf_counter() - start
            text = (first + response.read()).decode("utf-8", "replace")
        return HTTPReply(response.status, text, first_seconds, time.perf_counter() - start)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request reopens it
            raise OSError(f"{what}: no complete response ({error!r})") from error


def said(path: str, reply: HTTPReply) -> str:
    """The text of a response, streamed or not, by the protocol of its path.

    Raises ValueError if it has no text.
    """
    try:
        if reply.text.startswith(("data:", ":")):
            choices = [event["choices"] for event in reply.events if event.get("choices")]
            return "".join(part[0]["delta"].get("content") or "" for part in choices)
        answer = json.loads(reply.text)
        if path == "/infill":
            return str(answer["content"])
        if path == "/v1/messages":
            return "".join(part.get("text", "") for part in answer["content"])
        choice = answer["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"].get("content") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"{path} answered without text: {reply.text[:200]}") from None
