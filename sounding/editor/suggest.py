"""What an editor's request for a completion is answered with: by a model here, or by a server.

Both block and are called in a worker thread; a `Stop` ends them from any other.
"""

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sounding.completion.completer import Completer
from sounding.completion.context import File
from sounding.completion.gap import Gap
from sounding.completion.prompt import CompletionSettings
from sounding.engine.batch import Batch, Generate, Request
from sounding.engine.engine import Engine
from sounding.engine.requests import Priority
from sounding.engine.sampling import SamplingParams
from sounding.text.fim_format import FimFormat
from sounding.text.tokenizer import Tokenizer

_SENT_CHARACTERS = 50_000  # on either side of the cursor: more than a prompt can hold
_SENT_STEP = 4096
_TIMEOUT_SECONDS = 30.0
_PROMPT_MS = 1000  # for reading a long prompt that is in no cache


@dataclass(frozen=True)
class Ask:
    """A cursor in a text, and what else is open."""

    gap: Gap
    files: Sequence[File] = ()
    """The other documents, the most important first."""
    python: bool = False


class Stopped(Exception):
    """The completion is not wanted any more."""


class Stop:
    """Asks a running completion to end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._actions: list[Callable[[], None]] = []

    def set(self) -> None:
        """End it; safe to call twice."""
        with self._lock:
            self._stopped = True
            actions, self._actions = self._actions, []
        for action in actions:
            action()

    def then(self, action: Callable[[], None]) -> None:
        """Run `action` when it is set, at once if it is already."""
        with self._lock:
            if not self._stopped:
                self._actions.append(action)
                return
        action()

    def check(self) -> None:
        """Raise Stopped once it is set."""
        if self._stopped:
            raise Stopped


class Suggest(Protocol):
    """What makes completions."""

    def __call__(self, ask: Ask, stop: Stop) -> str:
        """The text to insert, "" for none. Raises Stopped within a step after `stop` is set."""


def through(engine: Engine) -> Callable[[Stop], Generate]:
    """What generates through an engine, before everything else it has to do.

    Stopping reaches the engine at once, also while it reads the prompt.
    """
    return lambda stop: Batch(
        engine, Priority.KEYSTROKE, begun=lambda stream: stop.then(stream.cancel)
    )


class FromModel:
    """Completions of a model in this process."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        fim_format: FimFormat,
        generate: Callable[[Stop], Generate],
        settings: CompletionSettings | None = None,
        *,
        seconds: float = 0.25,
        min_confidence: float = 0.0,
    ) -> None:
        """`seconds` is the time from the first token on; what is there then is used. 0: no limit.
        Lines that are less sure than `min_confidence` are not suggested.

        Raises ValueError for a tokenizer without the FIM tokens.
        """
        self._completer = Completer(tokenizer, fim_format, generate(Stop()))
        self._generate, self._seconds = generate, seconds
        self._min_confidence = min_confidence
        self._settings = settings or CompletionSettings()

    def __call__(self, ask: Ask, stop: Stop) -> str:
        """See `Suggest`."""
        completer = self._completer.using(self._limited(stop))
        plan = completer.plan(
            ask.gap,
            ask.gap.natural_kind(),
            self._settings,
            files=ask.files,
            python=ask.python,
        )
        found = completer.complete(plan, SamplingParams())
        unsure = plan.competes and found and found[0].confidence < self._min_confidence
        return found[0].text if found and not unsure else ""

    def _limited(self, stop: Stop) -> Generate:
        """What generates for all attempts at one completion, until stopped or time is up."""
        deadline = float("inf")
        unlimited = self._generate(stop)

        def generate(requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
            nonlocal deadline
            stop.check()
            if time.monotonic() >= deadline:
                return
            try:
                for step in unlimited(requests):
                    stop.check()
                    if self._seconds and deadline == float("inf"):
                        deadline = time.monotonic() + self._seconds
                    yield step
                    if time.monotonic() >= deadline:
                        return
            except RuntimeError:
                stop.check()  # it failed because it was stopped
                raise

        return generate


class FromServer:
    """Completions of a running `sounding serve`, or of another server with its /infill."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        max_tokens: int = 128,
        seconds: float = 0.25,
        min_confidence: float = 0.0,
    ) -> None:
        """Raises ValueError for what is not the http(s) address of a server."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} must be the address of a server, such as {_EXAMPLE}")
        self._url, self._parts = url, parts
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._limits: dict[str, float] = {"n_predict": max_tokens}
        if min_confidence:  # other servers' /infill do not know it
            self._limits["min_confidence"] = min_confidence
        if seconds:
            milliseconds = round(seconds * 1000)
            self._limits |= {"t_max_predict_ms": milliseconds, "t_max_prompt_ms": _PROMPT_MS}

    def __call__(self, ask: Ask, stop: Stop) -> str:
        """See `Suggest`. Raises OSError without a server, ValueError with what it refuses."""
        body = {
            "input_prefix": _end_of(ask.gap.prefix),
            "input_suffix": ask.gap.suffix[:_SENT_CHARACTERS],
            "input_extra": [{"filename": path, "text": text} for path, text in ask.files],
            "stream": False,
            **self._limits,
        }
        stop.check()
        connection = self._connect()
        stop.then(lambda: _hang_up(connection))
        try:
            path = self._parts.path.rstrip("/") + "/infill"
            connection.request("POST", path, json.dumps(body), self._headers)
            response = connection.getresponse()
            status, text = response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            stop.check()  # hung up by ourselves
            raise OSError(f"no answer from {self._url} ({error}): is the server running?") from None
        finally:
            connection.close()
        stop.check()
        return _content(status, text, self._url)

    def _connect(self) -> http.client.HTTPConnection:
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        host, port = self._parts.hostname or "", self._parts.port
        connection = kind[self._parts.scheme](host, port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.connect()
        except OSError as error:
            raise OSError(f"cannot reach {self._url} ({error}): is the server running?") from None
        return connection


_EXAMPLE = "http://127.0.0.1:8000"


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """Wake the thread that waits for an answer; the server sees that nobody listens any more."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):  # the answer came at the same time
            connection.sock.shutdown(socket.SHUT_RDWR)


def _content(status: int, text: str, url: str) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if status == 200 and isinstance(answer, dict) and isinstance(answer.get("content"), str):
        return answer["content"]
    error = answer.get("error") if isinstance(answer, dict) else None
    reason = error.get("message") if isinstance(error, dict) else error
    raise ValueError(f"{url} answered {status}: {reason or text[:200] or 'nothing'}")


def _end_of(text: str) -> str:
    """As much of a long text as is sent; it begins at the same place for a while as it grows, for
    the sake of what the server remembers."""
    start = max(0, len(text) - _SENT_CHARACTERS)
    return text[start - start % _SENT_STEP :]
