"""`/v1/completions`: continue a raw text, or with a `suffix` fill in at a cursor.

In a raw prompt the names of special tokens are those tokens, and a BOS is added if missing. Around
a cursor (`suffix`) they are ordinary characters. A prompt that marks a gap with FIM tokens is
that gap, rendered in the order that the model was trained on.
"""

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from sounding.completion.gap import Gap
from sounding.engine.requests import Event, Finished, GenerationRequest, TokenEvent
from sounding.server.conversation import Sampling, answer_tokens, sampling_params
from sounding.server.exchange import Exchange, require_ended
from sounding.server.http.errors import Refusal, context_overflow, openai_error
from sounding.server.http.streaming import DONE, Frames, JSONAnswer, sse, whole
from sounding.server.http.wire import Json, Wire, fault
from sounding.server.protocols.answering import several
from sounding.server.protocols.fields import (
    METADATA,
    MOST_CHOICES,
    UNSUPPORTED_SAMPLING,
    StreamOptions,
    most_tokens,
    stop_strings,
)
from sounding.server.protocols.filling import Filling, Plain, fill_in, marked_gap, text_of
from sounding.server.protocols.logprobs import completion_logprobs
from sounding.server.protocols.usage import openai_usage
from sounding.server.service import Service

ROUTE = "/v1/completions"
_DEFAULT_TOKENS = 16  # OpenAI's documented default
_MOST_PROMPTS = 64


class CompletionRequest(Wire):
    accepted: ClassVar = METADATA
    refused: ClassVar = UNSUPPORTED_SAMPLING

    model: str | None = None
    """Empty or absent: the model that is served."""
    prompt: str | list[str] | list[int] | list[list[int]]
    """Text or token ids, one or several."""
    suffix: str | None = None
    """The text after the cursor; the answer goes between prompt and suffix."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Default 16; 0 only caches the prompt."""
    n_predict: int | None = Field(default=None, ge=-1)
    """llama.cpp's name of max_tokens; -1: as many as the context allows."""
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(default=None, ge=1)
    """Must equal n: all answers are returned."""
    echo: bool | None = None
    """Return the prompt before each answer."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Default 1; 0 for a gap marked by FIM tokens."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _belong_together(self) -> "CompletionRequest":
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "stream_options requires stream: true")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise fault("best_of", "best_of must equal n: every answer is returned")
        if self.echo and self.logprobs is not None:
            raise fault(
                "echo",
                "echo with logprobs is not supported: logprobs of the prompt are not computed",
            )
        if self.suffix is not None and (self.echo or not isinstance(self.prompt, str)):
            name = "echo" if self.echo else "prompt"
            raise fault(name, "suffix requires a single text prompt without echo")
        if not 1 <= len(_prompts(self.prompt)) <= _MOST_PROMPTS:
            raise fault("prompt", f"prompt: give 1 to {_MOST_PROMPTS}")
        return self


@dataclass
class _Choice:
    """One answer in progress."""

    source: Filling | Plain
    prompt: str
    text: str = ""
    events: list[TokenEvent] = field(default_factory=list)
    end: Finished | None = None


class Completions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, CompletionRequest)
        writer = _Writer(self._service, self._service.require_model(asked.model), asked)
        if not asked.stream:
            return JSONAnswer(await whole(request, self._complete(asked, writer)))
        exchange, choices = await whole(request, self._begin(asked))
        return Frames(
            writer.frames(exchange, choices),
            exchange.cancel,
            keep_alive_seconds=self._service.settings.keep_alive_seconds,
        )

    async def _complete(self, asked: CompletionRequest, writer: "_Writer") -> Json:
        exchange, choices = await self._begin(asked)
        async with exchange:
            async for index, event in exchange:
                await _take(self._service, exchange, choices[index], event)
        return writer.whole(choices)

    async def _begin(self, asked: CompletionRequest) -> tuple[Exchange, list[_Choice]]:
        pairs: list[tuple[GenerationRequest, _Choice]] = []
        for prompt in _prompts(asked.prompt):
            gap = _gap(prompt, asked)
            marked = gap is not None and asked.suffix is None
            samplings = several(self._sampling(asked, 0.0 if marked else 1.0), asked.n or 1)
            if gap is not None:
                pairs += [await self._fill(gap, one) for one in samplings]
            else:
                pairs += await self._service.threads.run(partial(self._continue, prompt, samplings))
        requests = [request for request, _ in pairs]
        exchange = await self._service.begin(ROUTE, requests, asked.model)
        return exchange, [choice for _, choice in pairs]

    def _sampling(self, asked: CompletionRequest, temperature: float) -> Sampling:
        given = asked.max_tokens is not None or asked.n_predict is not None
        return Sampling(
            params=sampling_params(
                temperature=asked.temperature,
                top_p=asked.top_p,
                top_k=asked.top_k,
                min_p=asked.min_p,
                seed=asked.seed,
                default_temperature=temperature,
            ),
            max_tokens=most_tokens(asked.max_tokens, asked.n_predict) if given else _DEFAULT_TOKENS,
            stop=stop_strings(asked.stop),
            top_logprobs=asked.logprobs,
        )

    async def _fill(self, gap: Gap, sampling: Sampling) -> tuple[GenerationRequest, _Choice]:
        service = self._service
        context = service.engine.context_tokens
        if sampling.max_tokens is None:
            sampling = dataclasses.replace(sampling, max_tokens=context // 4)
        filling = await fill_in(
            service,
            gap,
            sampling=sampling,
            context_tokens=context,
            whole=True,
            untouched=sampling.top_logprobs is not None,  # whose tokens are the text
        )
        return filling.request(service.settings.max_seconds), _Choice(filling, "")

    def _continue(
        self, prompt: str | list[int], samplings: Sequence[Sampling]
    ) -> list[tuple[GenerationRequest, _Choice]]:
        service, tokenizer = self._service, self._service.tokenizer
        ids = self._ids(prompt)
        shown = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        pairs = []
        for sampling in samplings:
            wanted = sampling.max_tokens
            room = answer_tokens(len(ids), wanted, service.engine.context_tokens, "prompt")
            request = GenerationRequest(
                prompt=ids,
                params=sampling.params,
                max_tokens=room,
                max_seconds=service.settings.max_seconds,
                stop=tuple(sampling.stop),
                top_logprobs=sampling.top_logprobs,
            )
            pairs.append((request, _Choice(Plain(tokenizer.eos_id), shown)))
        return pairs

    def _ids(self, prompt: str | list[int]) -> list[int]:
        tokenizer = self._service.tokenizer
        if isinstance(prompt, str):
            return self._service.raw_prompt(prompt)
        context = self._service.engine.context_tokens
        if len(prompt) > context:
            raise context_overflow(len(prompt), context, "prompt")
        if not prompt or not all(0 <= token < tokenizer.num_tokens for token in prompt):
            raise Refusal(
                400,
                f"prompt: token ids are 0 to {tokenizer.num_tokens - 1}, at least one of them",
                param="prompt",
                code="invalid_value",
            )
        return prompt


def _prompts(prompt: Any) -> list[Any]:
    """The prompts as a list of texts or token ids."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _gap(prompt: str | list[int], asked: CompletionRequest) -> Gap | None:
    """The gap to fill; None for text to continue."""
    if asked.suffix is not None and isinstance(prompt, str):
        return Gap(prompt, asked.suffix)
    return marked_gap(prompt) if isinstance(prompt, str) and not asked.echo else None


async def _take(service: Service, exchange: Exchange, choice: _Choice, event: Event) -> str:
    """Add an event to an answer and return the text it adds. Raises Refusal for a failed run."""
    if isinstance(event, Finished):
        choice.end = event
        require_ended(event)
    else:
        choice.events.append(event)
    more = await text_of(choice.source, event, service, exchange)
    choice.text += more
    return more


class _Writer:
    """Writes one completion's objects."""

    def __init__(self, service: Service, model: str, asked: CompletionRequest) -> None:
        self._service, self._tokenizer, self._asked = service, service.tokenizer, asked
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def whole(self, choices: Sequence[_Choice]) -> Json:
        written = []
        for index, choice in enumerate(choices):
            text = (choice.prompt if self._asked.echo else "") + choice.text
            logprobs = self._logprobs(choice.events, 0)
            written.append(
                {"text": text, "index": index, "logprobs": logprobs, **_finish(choice.end)}
            )
        return self._head | {"choices": written, "usage": self._usage(choices)}

    async def frames(self, exchange: Exchange, choices: Sequence[_Choice]) -> AsyncIterator[bytes]:
        if self._asked.echo:
            for index, choice in enumerate(choices):
                yield self._chunk(index, choice.prompt)
        async for index, event in exchange:
            choice = choices[index]
            at = len(choice.text)
            try:
                text = await _take(self._service, exchange, choice, event)
            except Refusal as refusal:
                yield sse(openai_error(refusal))
                return
            if isinstance(event, Finished):
                yield self._chunk(index, text, **_finish(event))
            elif text or self._asked.logprobs is not None:
                yield self._chunk(index, text, logprobs=self._logprobs([event], at))
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield sse(self._head | {"choices": [], "usage": self._usage(choices)})
        yield DONE

    def _chunk(self, index: int, text: str, **more: Any) -> bytes:
        choice = {"text": text, "index": index, "logprobs": None, "finish_reason": None}
        return sse(self._head | {"choices": [choice | more], "usage": None})

    def _logprobs(self, events: Sequence[TokenEvent], offset: int) -> Json | None:
        if self._asked.logprobs is None:
            return None
        return completion_logprobs(self._tokenizer, events, offset)

    def _usage(self, choices: Sequence[_Choice]) -> Json:
        usages = [choice.end.usage for choice in choices if choice.end is not None]
        usage = openai_usage(usages)
        # Prompts add up; several answers to one prompt share it.
        firsts = usages[:: self._asked.n or 1]
        prompt, hit = sum(u.prompt_tokens for u in firsts), sum(u.hit_tokens for u in firsts)
        return usage | {
            "prompt_tokens": prompt,
            "total_tokens": prompt + usage["completion_tokens"],
            "prompt_cache_hit_tokens": hit,
            "prompt_cache_miss_tokens": prompt - hit,
            "prompt_tokens_details": {"cached_tokens": hit},
        }


def _finish(end: Finished | None) -> Json:
    reason = end.reason if end is not None else "stop"
    detail = {"finish_detail": reason} if reason in ("time", "repetition") else {}
    return {"finish_reason": "stop" if reason == "stop" else "length", **detail}
