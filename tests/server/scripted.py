"""An engine that writes what it is told, in the tokens of the published vocabulary."""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace

from sounding.engine.requests import (
    DraftCounts,
    EngineStats,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Overloaded,
    TokenEvent,
    Usage,
)
from sounding.engine.stop import StopStrings
from sounding.text.tokenizer import Tokenizer
from tests.text.vectors import published_tokenizer

Script = Callable[[str], str]


class ScriptedStream:
    """The events of one request, written by a thread of its own."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.tokens: list[int] = []
        self.cancelled = threading.Event()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        self._events.put(event)

    def cancel(self) -> None:
        self.cancelled.set()

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, Finished):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                await asyncio.sleep(0.001)
                continue
            yield event
            if isinstance(event, Finished):
                return


class ScriptedEngine:
    """Answers each prompt with `script(prompt text)`, then EOS.

    `hold` makes requests wait until it is set, as behind a long prefill. Prompts seen before are
    hits up to their common beginning, as in a prefix cache that forgets nothing.
    """

    def __init__(
        self, script: Script | str = "Hello!", *, context_tokens: int = 4096, capacity: int = 64
    ) -> None:
        self.tokenizer: Tokenizer = published_tokenizer()
        self.script: Script = script if callable(script) else lambda prompt: script
        self.requests: list[GenerationRequest] = []
        self.streams: list[ScriptedStream] = []
        self.hold = threading.Event()
        self.hold.set()
        self.pace_seconds = 0.0
        self.end: FinishReason = "stop"
        self.fail: str | None = None
        self._context_tokens, self._capacity = context_tokens, capacity
        self._seen: list[tuple[int, ...]] = []
        self._stats = EngineStats(expert_load=((3, 1), (0, 4)), state_limit_bytes=1 << 20)
        self._lock = threading.Lock()

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def prompts(self) -> list[str]:
        return [self.tokenizer.decode(request.prompt) for request in self.requests]

    def check(self, request: GenerationRequest) -> None:
        """All that it refuses, it refuses in `submit`."""

    def submit(self, request: GenerationRequest) -> ScriptedStream:
        if not request.prompt:
            raise ValueError("the prompt has no tokens")
        if len(request.prompt) + request.max_tokens > self._context_tokens:
            raise ValueError(f"more than {self._context_tokens} tokens")
        with self._lock:
            if self._stats.running >= self._capacity:
                raise Overloaded("the queue is full; try again")
            self._stats = replace(self._stats, running=self._stats.running + 1)
            stream = ScriptedStream(f"scripted-{len(self.requests)}")
            self.requests.append(request)
            self.streams.append(stream)
        threading.Thread(target=self._write, args=(request, stream), daemon=True).start()
        return stream

    def stats(self) -> EngineStats:
        return self._stats

    def close(self, grace_seconds: float = 0.0) -> None:
        deadline = time.monotonic() + grace_seconds
        while self._stats.running and time.monotonic() < deadline:
            time.sleep(0.001)
        for stream in self.streams:
            stream.cancel()

    # -- writing -----------------------------------------------------------------------------------

    def _write(self, request: GenerationRequest, stream: ScriptedStream) -> None:
        while not self.hold.wait(0.001):
            if stream.cancelled.is_set():
                break
        hit = self._hit(request.prompt)
        end = self._answer(request, stream)
        count = len(stream.tokens)
        usage = Usage(
            prompt_tokens=len(request.prompt),
            hit_tokens=hit,
            miss_reason="" if hit else "never seen",
            completion_tokens=count,
            drafted_tokens=count // 2,
            accepted_tokens=count // 3,
            drafts=DraftCounts().plus(count // 2, count // 3),
        )
        with self._lock:
            stats = self._stats
            self._stats = replace(
                stats,
                running=stats.running - 1,
                prompt_tokens=stats.prompt_tokens + usage.prompt_tokens,
                hit_tokens=stats.hit_tokens + usage.hit_tokens,
                completion_tokens=stats.completion_tokens + usage.completion_tokens,
                drafted_tokens=stats.drafted_tokens + usage.drafted_tokens,
                accepted_tokens=stats.accepted_tokens + usage.accepted_tokens,
                drafts={"mtp": stats.drafts.get("mtp", DraftCounts()) + usage.drafts},
            )
            self._seen.append((*request.prompt, *stream.tokens))
        stream.put(replace(end, usage=usage))

    def _answer(self, request: GenerationRequest, stream: ScriptedStream) -> Finished:
        """Write the script, until something ends it."""
        stops, decoder = StopStrings(request.stop), self.tokenizer.stream()
        for token in self._tokens(request):
            if len(stream.tokens) == request.max_tokens:
                return Finished(reason="length", text=stops.flush())
            time.sleep(self.pace_seconds)
            if stream.cancelled.is_set():
                return Finished(reason="cancelled")
            text = stops.feed(decoder.push(token))
            more = request.answer is None or request.answer.push(token, 0.0)
            stream.tokens.append(token)
            stream.put(TokenEvent(token, text, *self._logprobs(request, token)))
            if stops.found is not None or not more:
                return Finished(reason="stop", stop=stops.found)
        if stream.cancelled.is_set():
            return Finished(reason="cancelled")
        rest = stops.feed(decoder.finish()) + stops.flush()
        return Finished(reason=self.end, text=rest, error=self.fail)

    def _tokens(self, request: GenerationRequest) -> Iterator[int]:
        """The script in tokens; where only some are allowed, in those, after what they ask for."""
        text = self.script(self.tokenizer.decode(request.prompt))
        healing = getattr(request.answer, "_healing", None)
        left = (healing.rest if healing is not None else b"") + text.encode()
        table = self.tokenizer.token_bytes
        while request.answer is not None and (allowed := request.answer.allowed()) is not None:
            fitting = [token for token in allowed if table[token] and left.startswith(table[token])]
            if not fitting:
                yield min(allowed)
                return
            token = max(fitting, key=lambda token: len(table[token]))
            left = left[len(table[token]) :]
            yield token
        yield from self.tokenizer.encode(left.decode())

    def _logprobs(
        self, request: GenerationRequest, token: int
    ) -> tuple[float | None, Sequence[tuple[int, float]]]:
        if request.top_logprobs is None:
            return None, ()
        top = [(token, -0.5), (0, float("-inf"))]
        return -0.5, top[: request.top_logprobs]

    def _hit(self, prompt: Sequence[int]) -> int:
        best = 0
        for seen in self._seen:
            common = 0
            while common < min(len(seen), len(prompt) - 1) and seen[common] == prompt[common]:
                common += 1
            best = max(best, common)
        return best
