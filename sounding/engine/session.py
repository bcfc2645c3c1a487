"""One timeline on an engine: tokens that are gone along, gone back on, and continued.

For a conversation, an agent, a notebook. The engine remembers what was read, so after going back or
giving a longer text only what is new is computed; the session itself is a list of tokens.
"""

from collections.abc import Iterator, Sequence

from sounding.engine.engine import Engine
from sounding.engine.prefix.cache import common_prefix
from sounding.engine.requests import (
    Event,
    Finished,
    GenerationRequest,
    Priority,
    TokenEvent,
    Usage,
)
from sounding.engine.sampling import SamplingParams


class Session:
    """A text in tokens. Not for several threads at once; sessions of one engine may be."""

    def __init__(self, engine: Engine, priority: Priority = Priority.CHAT) -> None:
        self._engine, self._priority = engine, priority
        self.tokens: list[int] = []

    def sync(self, tokens: Sequence[int]) -> int:
        """Make this the text; how many tokens of the old one it keeps."""
        kept = common_prefix(self.tokens, list(tokens))
        self.tokens = list(tokens)
        return kept

    def rewind(self, length: int) -> None:
        """Go back to the first tokens. Raises ValueError for a length that lies ahead."""
        if not 0 <= length <= len(self.tokens):
            raise ValueError(f"cannot go back to {length} of {len(self.tokens)} tokens")
        del self.tokens[length:]

    def fork(self) -> "Session":
        """Another timeline that goes on from here."""
        twin = Session(self._engine, self._priority)
        twin.sync(self.tokens)
        return twin

    def read(self) -> Usage:
        """Let the engine read the text now, so that continuing it begins at once."""
        request = GenerationRequest(prompt=list(self.tokens), max_tokens=0, priority=self._priority)
        *_, last = self._engine.submit(request)
        assert isinstance(last, Finished)
        return last.usage

    def generate(
        self, params: SamplingParams, *, max_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[Event]:
        """Continue the text, which grows by what is generated; closing the iterator ends it."""
        stream = self._engine.submit(
            GenerationRequest(
                prompt=list(self.tokens),
                params=params,
                max_tokens=max_tokens,
                stop=stop,
                priority=self._priority,
            )
        )
        try:
            for event in stream:
                if isinstance(event, TokenEvent):
                    self.tokens.append(event.token)
                yield event
        finally:
            stream.cancel()
