"""The base of both parsers of completions: the buffer of unparsed text, and the events.

A parser takes text in pieces of any size and returns events.
"""

from collections.abc import Callable

from sounding.text.events import (
    ArgumentsDelta,
    CallBegun,
    CallDone,
    ContentDelta,
    End,
    Event,
    ReasoningDelta,
)

_PAGE = 8192  # characters


class Malformed(ValueError):
    """The text is not in the format. `events` are those of the failing piece before the fault."""

    def __init__(self, reason: str, events: list[Event]) -> None:
        super().__init__(reason)
        self.events = events


class Parser:
    """The base of both parsers: the buffer of unparsed text, and the events parsed so far.

    A state is a method that consumes text and returns True to continue; it leaves at most the
    beginning of a marker in the buffer, so that no text is scanned repeatedly.
    """

    def __init__(self, thinking_mode: str) -> None:
        if thinking_mode not in ("chat", "thinking"):
            raise ValueError(f"thinking_mode is {thinking_mode!r}; it is 'chat' or 'thinking'")
        self._buffer = ""
        self._final = False  # no more text will come
        self._events: list[Event] = []
        self._held: list[str] = []  # text taken while waiting for a marker
        self._sampled: list[str] | None = None  # text of the calls since the last one was done
        self._reasoning = thinking_mode == "thinking"
        self._calls = 0
        self._arguments: list[str] = []
        self._step: Callable[[], bool] = self._text

    def feed(self, text: str) -> list[Event]:
        """Take the next piece of text; the events it completes, deltas cut wherever it ends."""
        if self._final:
            raise ValueError("the parser is finished; use a new one for another completion")
        # A long text is taken by the page: each marker in it copies what follows.
        for start in range(0, len(text), _PAGE):
            self._buffer += text[start : start + _PAGE]
            self._run()
        return self._drain()

    def finish(self) -> list[Event]:
        """End the text; return the last events, `End` among them."""
        if self._final:
            raise ValueError("the parser is finished; use a new one for another completion")
        self._final = True
        self._run()
        return self._drain()

    def _run(self) -> None:
        while self._step():
            pass

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _text(self) -> bool:
        raise NotImplementedError

    def _take(self, length: int) -> str:
        if length == len(self._buffer):
            text, self._buffer = self._buffer, ""
        else:
            text, self._buffer = self._buffer[:length], self._buffer[length:]
        if self._sampled is not None:
            self._sampled.append(text)
        return text

    def _take_sampled(self) -> str:
        sampled = "".join(self._sampled or ())
        self._sampled = None if self._sampled is None else []
        return sampled

    def _say(self, text: str) -> None:
        if text:
            delta = ReasoningDelta if self._reasoning else ContentDelta
            self._events.append(delta(text))

    def _argue(self, text: str) -> None:
        if text:
            self._arguments.append(text)
            self._events.append(ArgumentsDelta(self._calls, text))

    def _begin_call(self, name: str) -> None:
        self._arguments = []
        self._events.append(CallBegun(self._calls, name))

    def _end_call(self, complete: bool) -> None:
        arguments = "".join(self._arguments)
        done = CallDone(self._calls, arguments, self._take_sampled(), complete)
        self._events.append(done)
        self._calls += 1

    def _end(self, finish_reason: str) -> None:
        tail = None if self._sampled is None else self._take_sampled()
        self._events.append(End(finish_reason, tail))
