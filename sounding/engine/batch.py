"""Many continuations for a caller that brings its own rule of when each is done.

Evaluation and completions run on this; what it needs of an engine is `submit` alone.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sounding.engine.engine import Engine
from sounding.engine.requests import (
    Answer,
    EngineFault,
    Finished,
    GenerationRequest,
    Overloaded,
    Priority,
    Stream,
)
from sounding.engine.sampling import SamplingParams

__all__ = ["Answer", "Batch", "Generate", "Request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to continue."""

    prompt: Sequence[int]
    answer: Answer
    params: SamplingParams
    max_tokens: int


@runtime_checkable
class Generate(Protocol):
    """What continues prompts: an engine, or a script in a test."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        """Feed each request's answer; yield its number as tokens come, and whether it is over.

        It is over when the answer wants no more, after `max_tokens`, and at the end of the text,
        whose token the answer is not told. Answers may be fed from another thread.
        """


class Batch:
    """`Generate` on an engine; nothing depends on which requests are asked together."""

    def __init__(
        self,
        engine: Engine,
        priority: Priority = Priority.BATCH,
        *,
        begun: Callable[[Stream], object] = lambda stream: None,
    ) -> None:
        """`begun` is told each stream, so that it can be cancelled from another thread."""
        self._engine, self._priority, self._begun = engine, priority, begun

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        """See `Generate`. Raises ValueError for a request the engine cannot answer, before any is
        begun, and EngineFault where one fails."""
        asked = [self._message(request) for request in requests]
        for message in asked:
            self._engine.check(message)
        running: deque[tuple[int, Stream]] = deque()
        waiting = deque(enumerate(asked))
        try:
            while waiting or running:
                while waiting:
                    index, message = waiting[0]
                    try:
                        fresh = self._engine.submit(message)
                    except Overloaded:
                        if not running:
                            raise
                        break
                    running.append((index, fresh))
                    self._begun(fresh)
                    waiting.popleft()
                yield from self._events(*running[0])
                running.popleft()
        finally:
            for _, stream in running:  # whoever asked has stopped reading
                stream.cancel()

    def _events(self, index: int, stream: Stream) -> Iterator[tuple[int, bool]]:
        for event in stream:
            if not isinstance(event, Finished):
                yield index, False
            elif event.reason in ("error", "cancelled"):
                raise EngineFault(f"continuing prompt {index} failed: {event.error or 'closed'}")
            else:
                yield index, True

    def _message(self, request: Request) -> GenerationRequest:
        return GenerationRequest(
            prompt=request.prompt,
            params=request.params,
            max_tokens=request.max_tokens,
            answer=request.answer,
            priority=self._priority,
            markup=False,
            guard_repetition=False,
        )
