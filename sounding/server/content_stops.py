"""Stop strings of chat answers: they end the content, the part that clients read as text.

Reasoning, control tokens and the markup of calls are not searched: clients do not see them as
text, and a match would cut off a thought or a required call. The engine searches plain text only,
so a `StoppingRule` parses the answer as `Reply` does and ends it.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, runtime_checkable

from sounding.engine.requests import StoppingRule
from sounding.engine.stop import StopStrings
from sounding.text import ContentDelta, End, Event, Parser, Repair
from sounding.text.tokenizer import TextStream


@runtime_checkable
class StopRule(Protocol):
    """A `StoppingRule` that a stop string can end."""

    stops: Sequence[str]

    @property
    def found(self) -> str | None:
        """The stop string that ended the answer."""


class ContentStops:
    """Forwards a parser's events until the content contains a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string."""
        self._strings = StopStrings(stops)

    @property
    def found(self) -> str | None:
        return self._strings.found

    def feed(self, events: Iterable[Event]) -> list[Event]:
        """The events that can be sent now, cut off at the stop string."""
        shown: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta):
                text = self._strings.feed(event.text)
            else:  # a match does not continue behind a call
                text = "" if isinstance(event, Repair) else self._strings.flush()
            if text:
                shown.append(ContentDelta(text))
            over = self.found is not None and not isinstance(event, End)
            if not over and not isinstance(event, ContentDelta):
                shown.append(event)
        return shown


class ContentRule:
    """A `StoppingRule` that ends the answer when its content contains a stop string."""

    def __init__(
        self,
        stops: Sequence[str],
        parser: Parser,
        decoder: TextStream,
        inner: StoppingRule | None = None,
    ) -> None:
        """`inner` is another rule, applied as well."""
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
