"""Continue many prompts, each with the caller's own stopping rule.

Evaluation and completion run on this; of the engine it uses `submit` and `check`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sounding.engine.requests import (
    EngineFault,
    EngineLike,
    Finished,
    GenerationRequest,
    Overloaded,
    Priority,
    StoppingRule,
    Stream,
)
from sounding.engine.sampling import SamplingParams

__all__ = ["Batch", "Generate", "Request", "StoppingRule"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to continue."""

    prompt: Sequence[int]
    answer: StoppingRule
    params: SamplingParams
    max_tokens: int
    scored_from: int | None = None
    """See `GenerationRequest`."""


@runtime_checkable
class Generate(Protocol):
    """A function that continues prompts: an engine, or a script in a test."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        """Feed each request's answer; yield (its number, True at its end) per event.

        A request ends when its answer's `push` returns False, after `max_tokens`, and at a stop
        token, which is not passed to the answer. With `scored_from` the answer is passed tokens of
        the prompt first. Answers may be fed from another thread.
        """


class Batch:
    """`Generate` on an engine; results do not depend on which requests run together."""

    def __init__(
        self,
        engine: EngineLike,
        priority: Priority = Priority.BATCH,
        *,
        begun: Callable[[Stream], object] = lambda stream: None,
        adapter: str | None = None,
    ) -> None:
        """`begun` is called with each stream, so that another thread can cancel it; `adapter` is
        the name of one that the engine has loaded."""
        self._engine, self._priority, self._begun = engine, priority, begun
        self._adapter = adapter

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        """See `Generate`. Raises ValueError for a request the engine cannot answer, before any is
        begun, and EngineFault where one fails."""
        messages = [self._message(request) for request in requests]
        for message in messages:
            self._engine.check(message)
        running: deque[tuple[int, Stream]] = deque()
        waiting = deque(enumerate(messages))
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
            for _, stream in running:  # the caller has stopped reading
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
            adapter=self._adapter,
            scored_from=request.scored_from,
            priority=self._priority,
            markup=False,
            guard_repetition=False,
            streamed=False,
        )
