"""Send JSON requests to a server under test and keep its responses unchanged."""

import codecs
import http.client
import json
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

_SHOWN = 400  # characters of a request or a response in a report
_MOST_SECONDS = 30.0  # timeout of one response: a small model needs a few


class BadAnswer(Exception):
    """A response does not have the expected status."""

    def __init__(self, status: int, wanted: str, text: str) -> None:
        super().__init__(f"status {status}, expected {wanted}: {text[:200]}")
        self.status = status


class OutOfBudget(Exception):
    """The budget of requests or seconds is spent."""


@dataclass(frozen=True)
class Event:
    """One event of a stream; `name` is "" if the event has none."""

    name: str
    data: str

    @property
    def json(self) -> dict[str, Any]:
        """The event's JSON object. Raises ValueError if it is not one."""
        value = json.loads(self.data)
        if not isinstance(value, dict):
            raise ValueError(f"an event has {self.data[:80]!r}, which is not a JSON object")
        return value


@dataclass(frozen=True)
class ServerAnswer:
    """A complete response."""

    status: int
    content_type: str
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    @property
    def json(self) -> Any:
        """The body as JSON. Raises ValueError if it is not JSON."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Event]:
        """The events of a stream (Server-Sent Events), without comments.

        Raises ValueError if the body is not UTF-8: a character must not be split between events.
        """
        text = codecs.decode(self.body, "utf-8").replace("\r\n", "\n")
        found = []
        for block in text.split("\n\n"):
            lines = [line.partition(":") for line in block.split("\n") if line]
            fields = [(name, value.removeprefix(" ")) for name, _, value in lines if name]
            data = [value for name, value in fields if name == "data"]
            if data:
                names = [value for name, value in fields if name == "event"]
                found.append(Event(names[-1] if names else "", "\n".join(data)))
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The objects of a stream of JSON lines."""
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]


class RemoteServer:
    """A server under test, with the remaining budget of requests and seconds."""

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        *,
        requests: int = 400,
        seconds: float = 300.0,
    ) -> None:
        """`requests` and `seconds` limit the whole run.

        Raises ValueError if `url` is not an http(s) address.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"{url!r} must be the http(s) address of a server, such as http://127.0.0.1:8000"
            )
        self.model, self.api_key = model, api_key
        self._parts = parts
        self._requests = requests
        self._until = time.monotonic() + seconds
        self.last = ("", "")

    def forget(self) -> None:
        """Clear the recorded last request and response."""
        self.last = ("", "")

    def get(self, path: str, *, wanted: int | None = 200) -> ServerAnswer:
        """Send a GET request."""
        return self._send("GET", path, None, wanted)

    def post(
        self,
        path: str,
        body: dict[str, Any] | bytes,
        *,
        wanted: int | None = 200,
        headers: dict[str, str] | None = None,
    ) -> ServerAnswer:
        """Send a POST request with a JSON object, or with raw bytes.

        Raises BadAnswer if the status is not `wanted` (None accepts any), OutOfBudget, and OSError
        if there is no complete response.
        """
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._send("POST", path, content, wanted, headers)

    def refuses(self, path: str, body: dict[str, Any] | bytes) -> ServerAnswer:
        """Send a request that the server must refuse as a client error (status 400 to 499)."""
        answer = self.post(path, body, wanted=None)
        if not 400 <= answer.status < 500:
            raise BadAnswer(answer.status, "a refusal (400 to 499)", answer.text)
        return answer

    def leaves(self, path: str, body: dict[str, Any]) -> None:
        """Send a request, read the first byte of the response and disconnect."""
        connection = self._connect()
        try:
            connection.request(
                "POST", self._parts.path.rstrip("/") + path, json.dumps(body), self._headers(None)
            )
            connection.getresponse().read(1)
        except http.client.HTTPException as error:
            raise OSError(f"{path}: the answer broke off: {error}") from error
        finally:
            connection.close()

    def _send(
        self,
        method: str,
        path: str,
        content: bytes | None,
        wanted: int | None,
        headers: dict[str, str] | None = None,
    ) -> ServerAnswer:
        self.last = (f"{method} {path} {(content or b'').decode('utf-8', 'replace')[:_SHOWN]}", "")
        connection = self._connect()
        try:
            url = self._parts.path.rstrip("/") + path
            connection.request(method, url, content, self._headers(headers))
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{path}: the answer broke off: {error}") from error
        finally:
            connection.close()
        kind = response.getheader("Content-Type", "")
        answer = ServerAnswer(response.status, kind, body)
        self.last = (self.last[0], f"{answer.status} {answer.text[:_SHOWN]}")
        if wanted is not None and answer.status != wanted:
            raise BadAnswer(answer.status, str(wanted), answer.text)
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        left = self._until - time.monotonic()
        if self._requests <= 0 or left <= 0:
            raise OutOfBudget("the budget of requests or seconds is spent")
        self._requests -= 1
        https = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        assert self._parts.hostname is not None
        return kind(
            self._parts.hostname, self._parts.port, timeout=min(max(1.0, left), _MOST_SECONDS)
        )

    def _headers(self, more: dict[str, str] | None) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
        if self.api_key:
            headers |= {"Authorization": f"Bearer {self.api_key}", "x-api-key": self.api_key}
        return headers | (more or {})
