"""Sources of the editor's completions: a model in this process, or a server.

Both block and are called in a worker thread; a `Stop` ends them from another thread.
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
from sounding.engine.requests import Priority, Stream
from sounding.engine.sampling import SamplingParams
from sounding.text.fim_format import FimFormat
from sounding.text.tokenizer import Tokenizer

_SENT_CHARACTERS = 50_000  # on each side of the cursor: more than a prompt can hold
_SENT_STEP = 4096
_TIMEOUT_SECONDS = 30.0
_PROMPT_MS = 1000  # to prefill a long prompt that is not cached


@dataclass(frozen=True)
class Ask:
    """A cursor in a text, with the other open documents."""

    gap: Gap
    files: Sequence[File] = ()
    """The other documents, most important first."""
    python: bool = False


class Stopped(Exception):
    """The completion was cancelled."""


class Stop:
    """Cancels a running completion."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._actions: list[Callable[[], None]] = []

    def set(self) -> None:
        """Cancel it; safe to call twice."""
        with self._lock:
            self._stopped = True
            actions, self._actions = self._actions, []
        for action in actions:
            action()

    def then(self, action: Callable[[], None]) -> None:
        """Run `action` when it is cancelled, at once if it already is."""
        with self._lock:
            if not self._stopped:
                self._actions.append(action)
                return
        action()

    def check(self) -> None:
        """Raise Stopped if it is cancelled."""
        if self._stopped:
            raise Stopped


class Suggest(Protocol):
    """A source of completions."""

    def __call__(self, ask: Ask, stop: Stop) -> str:
        """Return the text to insert, "" for none. Raises Stopped within a step of `stop.set()`."""


def through(
    engine: Engine, adapter: Callable[[], str | None] = lambda: None
) -> Callable[[Stop], Generate]:
    """Return a generator that uses the engine with its highest priority.

    A `Stop` cancels the engine's request at once, also during prefill. `adapter` is called for
    every completion and names the adapter to use.
    """

    def generate(stop: Stop) -> Generate:
        def begun(stream: Stream) -> None:
            stop.then(stream.cancel)

        return Batch(engine, Priority.KEYSTROKE, begun=begun, adapter=adapter())

    return generate


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
        """`seconds` limits the time from the first token on; the text so far is then used. 0 sets
        no limit. Lines with a confidence below `min_confidence` are not suggested.

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
        """Return a generator for all attempts at one completion, until stopped or out of time."""
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
                stop.check()  # it failed because it was cancelled
                raise

        return generate


class FromServer:
    """Completions of a running `sounding serve`, or of another server that has /infill."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        max_tokens: int = 128,
        seconds: float = 0.25,
        min_confidence: float = 0.0,
    ) -> None:
        """Raises ValueError if `url` is not an http(s) address."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} must be the http(s) address of a server, such as {_EXAMPLE}")
        self._url, self._parts = url, parts
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._limits: dict[str, float] = {"n_predict": max_tokens}
        if min_confidence:  # /infill of other servers does not have it
            self._limits["min_confidence"] = min_confidence
        if seconds:
            milliseconds = round(seconds * 1000)
            self._limits |= {"t_max_predict_ms": milliseconds, "t_max_prompt_ms": _PROMPT_MS}

    def __call__(self, ask: Ask, stop: Stop) -> str:
        """See `Suggest`. Raises OSError if no server answers, ValueError if it refuses."""
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
            stop.check()  # we closed the connection
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
    """Wake the thread that waits for the response; the server sees a disconnect."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):  # the response arrived at the same time
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
    """The end of a long text, as much as is sent. Its start moves in steps as the text grows, so
    that the server's prefix cache hits."""
    start = max(0, len(text) - _SENT_CHARACTERS)
    return text[start - start % _SENT_STEP :]
