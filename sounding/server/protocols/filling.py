"""Completions at a cursor, for the protocols that fill in the middle."""

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial

from sounding.completion.completer import Completer, CompletionPlan
from sounding.completion.context import File
from sounding.completion.gap import Gap, Kind
from sounding.completion.prompt import TYPING_CANDIDATES, CompletionSettings
from sounding.completion.trimming import trim
from sounding.engine.batch import Batch
from sounding.engine.requests import (
    EngineFault,
    Event,
    Finished,
    GenerationRequest,
    Overloaded,
    Priority,
    Stream,
    TokenEvent,
)
from sounding.server.conversation import Sampling
from sounding.server.exchange import Exchange
from sounding.server.http.errors import Refusal, context_overflow
from sounding.server.service import Service
from sounding.text.markup import BOS, FIM_BEGIN, FIM_END, FIM_HOLE
from sounding.text.tokenizer import TooManyTokens

_log = logging.getLogger(__name__)


def marked_gap(prompt: str) -> Gap | None:
    """The gap of a prompt of the form begin, prefix, hole, suffix, end; None for any other.

    Editors use this order for every DeepSeek model, but not every model was trained on it.
    """
    text = prompt.removeprefix(BOS)
    if not (text.startswith(FIM_BEGIN) and text.endswith(FIM_END)):
        return None
    parts = text[len(FIM_BEGIN) : -len(FIM_END)].split(FIM_HOLE)
    if len(parts) != 2 or any(token in part for part in parts for token in (FIM_BEGIN, FIM_END)):
        return None
    return Gap(*parts)


class Newlines:
    """The line ends of a client's text: the model knows `\\n` alone, the answer has the text's."""

    def __init__(self, text: str) -> None:
        """Those that most lines of the text have."""
        both = text.count("\r\n")
        counts = {"\n": text.count("\n") - both, "\r\n": both, "\r": text.count("\r") - both}
        self._end = max(counts, key=lambda end: counts[end])

    @staticmethod
    def read(text: str) -> str:
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text

    def write(self, text: str) -> str:
        return text if self._end == "\n" else text.replace("\n", self._end)


class Filling:
    """One completion at a cursor in the making."""

    def __init__(
        self,
        completer: Completer,
        plan: CompletionPlan,
        newlines: Newlines,
        stops: Mapping[str, str],
        sampling: Sampling,
        *,
        min_confidence: float = 0.0,
    ) -> None:
        """`stops` has the client's stop strings by what is looked for. Of a line that is less sure
        than `min_confidence` there is no text."""
        self._completer, self.plan = completer, plan
        self._newlines, self._stops, self._sampling = newlines, stops, sampling
        self._answer, self._reader = (completer.decoder(plan, stop=tuple(stops)) for _ in range(2))
        self._min_confidence = min_confidence
        self._settled: str | None = None
        self._until: float | None = None  # of time.monotonic
        self._shown = 0

    @property
    def truncated(self) -> bool:
        return self.plan.truncated

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer."""
        found = self._reader.found
        return None if found is None else self._stops.get(found, found)

    @property
    def competes(self) -> bool:
        """True if other candidates may take the place of what is generated, so that nothing of it
        is certain before its end."""
        return self.plan.competes and not self._sampling.params.temperature

    def feed(self, event: Event) -> str:
        """The text that became certain with an event of the engine; the rest with the last."""
        if isinstance(event, TokenEvent):
            self._reader.push(event.token, 0.0)
            certain = "" if self.competes else self._reader.certain
        elif self._settled is not None:
            certain = self._settled
        else:
            certain = self._answer.finish()
            if self.plan.kind is not None:
                certain = trim(certain, self.plan.gap, cut_short=self._cut(event))
        more = certain[self._shown :]
        self._shown = max(self._shown, len(certain))
        return self._newlines.write(more)

    async def settle(self, event: Finished, service: Service, adapter: str | None = None) -> None:
        """Choose among candidates, where they compete, before the last event is fed.

        `adapter` is that of the request, which writes the candidates too.
        The engine works on them before all others' requests; where it cannot, or the time was up,
        what was generated stands.
        """
        if not self.competes or self.plan.blank or self.stop or event.reason != "stop":
            return
        streams: list[Stream] = []
        batch = Batch(service.engine, Priority.KEYSTROKE, begun=streams.append, adapter=adapter)
        work = partial(
            self._completer.using(batch).settle,
            *(self.plan, self._sampling.params, self._answer),
            cut=self._cut(event),
        )
        left = None if self._until is None else self._until - time.monotonic()
        try:
            async with asyncio.timeout(left):
                found = await service.threads.run(work)
            self._settled = found.text if found.confidence >= self._min_confidence else ""
        except (asyncio.CancelledError, TimeoutError) as ended:
            for stream in streams:
                stream.cancel()
            if not isinstance(ended, TimeoutError):
                raise
        except (EngineFault, Overloaded, ValueError) as error:
            _log.warning("no other candidates for a line: %s", error)

    def request(self, max_seconds: float | None) -> GenerationRequest:
        """The first request. Its seconds are those of the whole completion."""
        sampling = self._sampling
        self._until = None if max_seconds is None else time.monotonic() + max_seconds
        return GenerationRequest(
            prompt=self.plan.prompt,
            params=sampling.params,
            max_tokens=0 if self.plan.blank else sampling.max_tokens or 0,
            max_seconds=max_seconds,
            top_logprobs=sampling.top_logprobs,
            answer=self._answer,
            priority=Priority.KEYSTROKE,
            markup=False,
        )

    def _cut(self, event: Finished) -> bool:
        return self._reader.cut_short or event.reason in ("length", "time")


class Plain:
    """Text that simply goes on: every event's, in order."""

    truncated = False

    def __init__(self, eos_id: int) -> None:
        self._eos_id = eos_id
        self.stop: str | None = None
        """The stop string that ended the answer."""

    def feed(self, event: Event) -> str:
        if isinstance(event, Finished):
            self.stop = event.stop
        if isinstance(event, TokenEvent) and event.token == self._eos_id:
            return ""
        return event.text


async def text_of(
    source: Filling | Plain, event: Event, service: Service, exchange: Exchange
) -> str:
    """The text that became certain with an event: with the last one, the best candidate's."""
    if isinstance(source, Filling) and isinstance(event, Finished):
        await source.settle(event, service, exchange.runs[0].request.adapter)
    return source.feed(event)


async def fill_in(
    service: Service,
    gap: Gap,
    *,
    sampling: Sampling,
    context_tokens: int,
    files: tuple[File, ...] = (),
    whole: bool = False,
    untouched: bool = False,
    min_confidence: float = 0.0,
) -> Filling:
    """Prepare a completion. Raises Refusal where the context leaves no room for it.

    The prompt is what of the text around the cursor fits; with `whole` that must be all of it. The
    text around decides whether a line or a block is missing, and what repeats it is cut off; with
    `untouched` the answer is what the model writes, token by token, to its end.
    """
    completer, threads = service.require_completer(), service.threads
    newlines = Newlines(gap.prefix + gap.suffix)
    gap = _with_newlines(gap)
    kind: Kind | None = None if untouched else gap.natural_kind()
    files = tuple((name, Newlines.read(text)) for name, text in files)
    stops = {Newlines.read(one): one for one in sampling.stop}
    try:
        settings = CompletionSettings(
            max_tokens=max(1, sampling.max_tokens or 0),
            context_tokens=context_tokens,
            candidates=TYPING_CANDIDATES,
            typing=True,
        )
    except ValueError as error:
        raise Refusal(400, f"{error}", param="max_tokens", code="context_length_exceeded") from None
    try:
        if whole:
            await threads.run(partial(completer.count, gap, context_tokens))
        plan = await threads.run(partial(completer.plan, gap, kind, settings, files=files))
    except TooManyTokens as error:
        raise context_overflow(
            error.num_tokens, context_tokens, param="prompt", exact=error.exact
        ) from None
    except ValueError as error:
        raise Refusal(400, f"{error}", code="invalid_value") from None
    if whole and plan.truncated:
        num_tokens = await threads.run(partial(completer.count, gap))
        raise context_overflow(num_tokens, context_tokens, param="prompt")
    return Filling(completer, plan, newlines, stops, sampling, min_confidence=min_confidence)


def _with_newlines(gap: Gap) -> Gap:
    prefix = gap.prefix
    if prefix.endswith("\r") and gap.suffix.startswith("\n"):
        prefix = prefix[:-1]  # the cursor is within a line end
    # A byte-order mark is no part of a text; the model never saw one.
    return Gap(Newlines.read(prefix.removeprefix("\ufeff")), Newlines.read(gap.suffix))
