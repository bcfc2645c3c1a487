"""Stop strings of answers that have more than one part: they end what the client reads as content.

Reasoning, control tokens and the markup of calls are not searched: the client never sees them as
text, and a thought or a promised call would be broken off in the middle. So the engine, which knows
text alone, is told when to stop by a rule that reads the answer as `Reply` does.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, runtime_checkable

from sounding.engine.requests import StoppingRule
from sounding.engine.stop import StopStrings
from sounding.text import ContentDelta, End, Event, Parser, Repair
from sounding.text.tokenizer import TextStream


@runtime_checkable
class StopRule(Protocol):
    """An `StoppingRule` that may be over by a stop string."""

    stops: Sequence[str]

    @property
    def found(self) -> str | None:
        """The stop string that ended it."""


class ContentStops:
    """Passes a parser's events on until a stop string is complete in the content."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string."""
        self._strings = StopStrings(stops)

    @property
    def found(self) -> str | None:
        return self._strings.found

    def feed(self, events: Iterable[Event]) -> list[Event]:
        """The events that may be shown now, the stop string and what follows it cut off."""
        shown: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta):
                text = self._strings.feed(event.text)
            else:  # a string does not go on behind a call
                text = "" if isinstance(event, Repair) else self._strings.flush()
            if text:
                shown.append(ContentDelta(text))
            over = self.found is not None and not isinstance(event, End)
            if not over and not isinstance(event, ContentDelta):
                shown.append(event)
        return shown


class ContentRule:
    """An `StoppingRule` that is over when a stop string is complete in the content."""

    def __init__(
        self,
        stops: Sequence[str],
        parser: Parser,
        decoder: TextStream,
        inner: StoppingRule | None = None,
    ) -> None:
        """`inner` is another rule to keep."""
        self.stops: Sequence[str] = tuple(stops)
        self._content = ContentStops(stops)
        self._parser, self._decoder, self._inner = parser, decoder, inner

    @property
    def found(self) -> str | None:
        """See `StopRule`."""
        return self._content.found

    def allowed(self) -> Collection[int] | None:
        return self._inner.allowed() if self._inner is not None else None

    def push(self, token: int, logprob: float = 0.0) -> bool:
        more = self._inner is None or self._inner.push(token, logprob)
        self._content.feed(self._parser.feed(self._decoder.push(token)))
        return more and self.found is None
