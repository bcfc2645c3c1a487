"""Turn the engine's tokens into the parts of a chat answer: reasoning, content, calls, the end.

Streaming is the only path: an answer sent in one piece is the sum of the streamed parts.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sounding.engine.requests import Event, Finished, TokenEvent, Usage
from sounding.server.content_stops import ContentStops
from sounding.server.conversation import Conversation
from sounding.server.exchange import failure
from sounding.server.http.errors import Refusal
from sounding.server.turn_memory import RenderedTurns, TurnMemory
from sounding.text import (
    CallBegun,
    ContentDelta,
    End,
    ParsedCompletion,
    ReasoningDelta,
    collect,
)
from sounding.text import Event as TextEvent
from sounding.text.markup import END_THINK, EOS
from sounding.text.tokenizer import Tokenizer

Finish = Literal["stop", "tool_calls", "length"]


@dataclass(frozen=True)
class AnswerPiece:
    """An event of the parser and, for text, the tokens it consists of (for logprobs)."""

    event: TextEvent
    tokens: tuple[TokenEvent, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answered:
    """How an answer ended, and its usage."""

    finish: Finish
    reason: str
    """The engine's reason; most protocols report "time" and "repetition" as a length."""
    stop: str | None
    usage: Usage
    reasoning_tokens: int
    failure: Refusal | None
    """Why there is no answer; None if there is one."""


class AnswerReader:
    """Parses the events of one run."""

    def __init__(
        self,
        chat: Conversation,
        prompt: RenderedTurns,
        *,
        tokenizer: Tokenizer,
        memory: TurnMemory,
        owner: str,
        stop: Sequence[str] = (),
        call_prefix: str = "call_",
    ) -> None:
        """`stop` are strings that end the content."""
        self.call_ids: list[str] = []
        self._chat, self._prompt, self._owner = chat, prompt, owner
        self._tokenizer, self._memory, self._call_prefix = tokenizer, memory, call_prefix
        self._parser, self._stops = chat.parser(), ContentStops(stop)
        self.pieces: list[AnswerPiece] = []
        self._ids: list[int] = []
        self._waiting: list[TokenEvent] = []  # tokens whose text the parser still holds back
        self._named = frozenset(tokenizer.named.values())
        self._end_think = tokenizer.id_of(END_THINK)
        self._reasoning_tokens = 0
        self._thinks = chat.begins_in == "thinking"

    @property
    def completion(self) -> ParsedCompletion:
        """The message so far."""
        return collect(piece.event for piece in self.pieces)

    def feed(self, event: Event) -> list[AnswerPiece | Answered]:
        """Parse an event of the engine; the last list ends with Answered."""
        if isinstance(event, Finished):
            return self._finish(event)
        self._ids.append(event.token)
        self._reasoning_tokens += self._thinks
        self._thinks = self._thinks and event.token != self._end_think
        if event.token not in self._named:
            self._waiting.append(event)
        text = "" if event.token == self._tokenizer.eos_id else event.text
        return [*self._pieces(self._parser.feed(text))]

    def _pieces(self, events: list[TextEvent]) -> list[AnswerPiece]:
        pieces = []
        for event in self._stops.feed(events):
            tokens: tuple[TokenEvent, ...] = ()
            if isinstance(event, ReasoningDelta | ContentDelta):
                tokens, self._waiting = tuple(self._waiting), []
            elif isinstance(event, CallBegun):
                self._waiting = []
                self.call_ids.append(self._call_prefix + secrets.token_hex(12))
            pieces.append(AnswerPiece(event, tokens))
        self.pieces += pieces
        return pieces

    def _finish(self, finished: Finished) -> list[AnswerPiece | Answered]:
        ended = finished.reason == "stop" and self._stops.found is None
        events = self._parser.feed(finished.text + (EOS if ended else ""))
        pieces = self._pieces(events + self._parser.finish())
        completion, stop = self.completion, self._stops.found
        natural = ended and stop is None
        finish: Finish = "length"
        if finished.reason == "stop" or (stop is not None and failure(finished) is None):
            called = natural and completion.finish_reason == "tool_calls"
            finish = "tool_calls" if called else "stop"
            self._keep(completion, natural=natural)
        end = Answered(
            finish=finish,
            reason="stop" if finish == "stop" else finished.reason,
            stop=stop,
            usage=finished.usage,
            reasoning_tokens=self._reasoning_tokens,
            failure=failure(finished),
        )
        return [*(piece for piece in pieces if not isinstance(piece.event, End)), end]

    def _keep(self, completion: ParsedCompletion, *, natural: bool) -> None:
        self._memory.keep_turn(self._owner, self._chat.question, self.call_ids, completion)
        if natural:
            eos = self._tokenizer.eos_id
            ids = self._ids[:-1] if self._ids[-1:] == [eos] else self._ids
            self._memory.keep_tokens(self._prompt, ids)
