"""Completions at a cursor, for the protocols that fill in the middle."""

from collections.abc import Mapping, Sequence
from functools import partial

from sounding.completion.completer import Fill
from sounding.completion.context import File
from sounding.completion.endings import Gap, Kind, trim
from sounding.completion.prompt import CompletionSettings
from sounding.engine.requests import (
    Event,
    Finished,
    GenerationRequest,
    Priority,
    TokenEvent,
)
from sounding.server.conversation import Sampling
from sounding.server.http.errors import Refusal, context_overflow
from sounding.server.service import Service
from sounding.text.markup import BOS, FIM_BEGIN, FIM_END, FIM_HOLE
from sounding.text.tokenizer import TooManyTokens


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
        self, gap: Gap, kind: Kind | None, fill: Fill, newlines: Newlines, stops: Mapping[str, str]
    ) -> None:
        """`stops` has the client's stop strings by what is looked for."""
        self._gap, self._kind, self.fill = gap, kind, fill
        self._newlines, self._stops = newlines, stops
        self._shown = 0

    @property
    def truncated(self) -> bool:
        return self.fill.truncated

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer."""
        found = self.fill.reader.found
        return None if found is None else self._stops.get(found, found)

    def feed(self, event: Event) -> str:
        """The text that became certain with an event of the engine; the rest with the last."""
        reader = self.fill.reader
        if isinstance(event, TokenEvent):
            reader.push(event.token, 0.0)
            certain = reader.certain
        else:
            certain = self.fill.answer.finish()[0].text
            if self._kind is not None:
                short = reader.cut_short or event.reason in ("length", "time")
                certain = trim(certain, self._gap, cut_short=short)
        more = certain[self._shown :]
        self._shown = max(self._shown, len(certain))
        return self._newlines.write(more)

    def request(self, sampling: Sampling, max_seconds: float | None) -> GenerationRequest:
        return GenerationRequest(
            prompt=self.fill.prompt,
            params=sampling.params,
            max_tokens=0 if self.fill.blank else sampling.max_tokens or 0,
            max_seconds=max_seconds,
            top_logprobs=sampling.top_logprobs,
            answer=self.fill.answer,
            priority=Priority.KEYSTROKE,
            markup=False,
        )


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


async def fill_in(
    service: Service,
    gap: Gap,
    kind: Kind | None,
    *,
    max_tokens: int,
    context_tokens: int,
    stop: Sequence[str] = (),
    files: tuple[File, ...] = (),
    whole: bool = False,
) -> Filling:
    """Prepare a completion. Raises Refusal where the context leaves no room for it.

    `kind` None goes on to the end of the text. The prompt is what of the text around the cursor
    fits; with `whole` that must be all of it.
    """
    completer, threads = service.require_completer(), service.threads
    newlines = Newlines(gap.prefix + gap.suffix)
    gap = _with_newlines(gap)
    files = tuple((name, Newlines.read(text)) for name, text in files)
    stops = {Newlines.read(one): one for one in stop}
    try:
        settings = CompletionSettings(
            max_tokens=max(1, max_tokens), context_tokens=context_tokens, typing=True
        )
    except ValueError as error:
        raise Refusal(400, f"{error}", param="max_tokens", code="context_length_exceeded") from None
    try:
        if whole:
            await threads.run(partial(completer.count, gap, context_tokens))
        fill = await threads.run(
            partial(completer.begin, gap, kind, settings, files=files, stop=tuple(stops))
        )
    except TooManyTokens as error:
        raise context_overflow(
            error.num_tokens, context_tokens, param="prompt", exact=error.exact
        ) from None
    except ValueError as error:
        raise Refusal(400, f"{error}", code="invalid_value") from None
    if whole and fill.truncated:
        num_tokens = await threads.run(partial(completer.count, gap))
        raise context_overflow(num_tokens, context_tokens, param="prompt")
    return Filling(fill.gap, kind, fill, newlines, stops)


def _with_newlines(gap: Gap) -> Gap:
    prefix = gap.prefix
    if prefix.endswith("\r") and gap.suffix.startswith("\n"):
        prefix = prefix[:-1]  # the cursor is within a line end
    # A byte-order mark is no part of a text; the model never saw one.
    return Gap(Newlines.read(prefix.removeprefix("\ufeff")), Newlines.read(gap.suffix))
