"""`/api/generate` of Ollama's protocol, and parts shared with `/api/chat` (ollama_chat.py).

A prompt is a question to answer, unless it is `raw` or has a `suffix`: then it is text to continue.
Answers stream as lines of JSON.
"""

import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from sounding.completion.gap import Gap
from sounding.engine.requests import Finished, GenerationRequest, Usage
from sounding.server.conversation import (
    EFFORTS,
    Conversation,
    Sampling,
    answer_tokens,
    sampling_params,
)
from sounding.server.exchange import Exchange, failure
from sounding.server.http.errors import Refusal, ollama_error
from sounding.server.http.streaming import Frames, JSONAnswer, to_json, whole
from sounding.server.http.wire import Json, Refused, Wire, fault
from sounding.server.protocols.answering import Answering, answer
from sounding.server.protocols.fields import ONLY_TEXT, stop_strings
from sounding.server.protocols.filling import Filling, Plain, fill_in, marked_gap, text_of
from sounding.server.reply import Answered, AnswerPiece
from sounding.server.service import Service, owner_of
from sounding.text import ContentDelta, ReasoningDelta

ROUTE = "/api/generate"
# Zero durations in Go's format.
_NO_TIME = re.compile(r"[+-]?0*(\.0*)?(ns|us|µs|ms|s|m|h)?")


class Options(Wire):
    accepted: ClassVar = {
        "num_ctx": "the context length is fixed when the server starts",
        "num_keep": "the prompt is never cut",
        "num_batch": "the server decides",
        "num_gpu": "the server decides",
        "main_gpu": "the server decides",
        "num_thread": "the server decides",
        "use_mmap": "the server decides",
        "numa": "the server decides",
        "low_vram": "the server decides",
    }
    refused: ClassVar = {
        "repeat_penalty": Refused("penalties are not supported", (1, 1.0)),
        "repeat_last_n": Refused("penalties are not supported", (0, 64)),
        "presence_penalty": Refused("penalties are not supported", (0, 0.0)),
        "frequency_penalty": Refused("penalties are not supported", (0, 0.0)),
        "mirostat": Refused("this sampler is not supported", (0,)),
        "typical_p": Refused("this sampler is not supported", (1, 1.0)),
        "tfs_z": Refused("this sampler is not supported", (1, 1.0)),
    }

    num_predict: int | None = Field(default=None, ge=-2)
    """-1 and -2: as many as the context allows."""
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None


Format = Literal["", "json"] | dict[str, Any] | None
Think = bool | Literal["low", "medium", "high", "max"] | None


class GenerateRequest(Wire):
    accepted: ClassVar = {
        "truncate": "the prompt is never cut",
        "shift": "the context is never shifted",
    }
    refused: ClassVar = {
        "images": Refused(ONLY_TEXT, ([],)),
        "template": Refused(
            "the prompt format belongs to the model; use raw: true with your own format", ("",)
        ),
        "context": Refused("send the text; its prefix is cached", ([],)),
        "logprobs": Refused("logprobs are only available from /v1/completions", (False,)),
        "top_logprobs": Refused("logprobs are only available from /v1/completions", (0,)),
    }
    streams_by_default: ClassVar = True

    model: str | None = None
    """Empty or absent: the model that is served."""
    prompt: str = ""
    suffix: str | None = None
    """The text after the cursor; the answer goes between prompt and suffix."""
    system: str | None = None
    stream: bool | None = None
    """Default true."""
    raw: bool | None = None
    """Continue the prompt as it is; names of special tokens in it are those tokens. A gap marked by
    FIM tokens is filled in, rendered in the order that the model was trained on."""
    format: Format = None
    """`json` for any object, or the JSON schema of the answer."""
    think: Think = None
    options: Options | None = None
    keep_alive: int | float | str | None = None
    """Without a prompt the answer confirms loading, or with 0 unloading; the model stays."""

    @model_validator(mode="after")
    def _belong_together(self) -> "GenerateRequest":
        if self.continues:
            for name in ("system", "format", "think"):
                if getattr(self, name):
                    raise fault(name, f"{name} is not allowed with raw or suffix")
        return self

    @property
    def continues(self) -> bool:
        return bool(self.raw or self.suffix)


class OllamaGenerate:
    """`/api/generate`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, GenerateRequest)
        objects = Objects(self._service.require_model(asked.model))
        if not asked.prompt and not asked.suffix:
            return JSONAnswer(objects.loaded(asked.keep_alive, {"response": ""}))
        begun = await whole(request, self._begin(asked, owner_of(request)))
        parts = begun.answer(objects)
        if asked.streamed:
            return stream(self._service, begun.exchange, parts)
        return JSONAnswer(await whole(request, _added(begun.exchange, parts)))

    async def _begin(self, asked: GenerateRequest, owner: str) -> "_Asked | _Continued":
        gap = Gap(asked.prompt, asked.suffix) if asked.suffix else None
        marked = marked_gap(asked.prompt) if asked.raw and gap is None else None
        sampling = sampling_of(asked.options, 1.0 if marked is None else 0.0)
        if asked.continues:
            return await self._continue(asked.prompt, gap or marked, sampling, asked.model)
        chat = self._chat(asked)
        how = (self._service, ROUTE, owner, chat, sampling)
        return _Asked(await answer(*how, model=asked.model))

    def _chat(self, asked: GenerateRequest) -> Conversation:
        messages = [{"role": "user", "content": asked.prompt}]
        if asked.system:
            messages.insert(0, {"role": "system", "content": asked.system})
        return Conversation(
            messages=messages,
            **how_of(asked.format, asked.think, self._service.settings.thinking),
        )

    async def _continue(
        self, prompt: str, gap: Gap | None, sampling: Sampling, model: str | None
    ) -> "_Continued":
        service = self._service
        context, limit = service.engine.context_tokens, service.settings.max_seconds
        source: Filling | Plain
        if gap is not None:
            most = sampling.max_tokens
            sampling = Sampling(
                params=sampling.params,
                max_tokens=context // 4 if most is None else most,
                stop=sampling.stop,
            )
            source = await fill_in(
                service,
                gap,
                sampling=sampling,
                context_tokens=context,
                whole=True,
            )
            request = source.request(limit)
        else:
            source = Plain(service.tokenizer.eos_id)
            ids = await service.threads.run(partial(service.raw_prompt, prompt))
            request = GenerationRequest(
                prompt=ids,
                params=sampling.params,
                max_tokens=answer_tokens(len(ids), sampling.max_tokens, context, "prompt"),
                max_seconds=limit,
                stop=tuple(sampling.stop),
            )
        return _Continued(await service.begin(ROUTE, [request], model), source, service)


def sampling_of(options: Options | None, default_temperature: float = 1.0) -> Sampling:
    options = options or Options()
    wanted = options.num_predict if options.num_predict is not None else -1
    return Sampling(
        params=sampling_params(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            seed=options.seed,
            default_temperature=default_temperature,
        ),
        max_tokens=wanted if wanted >= 0 else None,
        stop=stop_strings(options.stop),
    )


def how_of(form: Format, think: Think, thinks: bool) -> dict[str, Any]:
    """Fields of a `Conversation`; `thinks` is the default for thinking."""
    return {
        "schema": {"type": "object"} if form == "json" else form or None,
        "show_schema": isinstance(form, dict),
        "thinking": thinks if think is None else bool(think),
        "effort": EFFORTS[think] if isinstance(think, str) else "high",
    }


class Objects:
    """Writes the objects of one answer; `said` are the fields of the route."""

    def __init__(self, model: str) -> None:
        self._model, self._began = model, time.monotonic()

    def loaded(self, keep_alive: int | float | str | None, said: Json) -> Json:
        """The answer to an empty request, by which clients load and unload models."""
        unloads = _NO_TIME.fullmatch(str(keep_alive)) is not None and keep_alive != ""
        reason = "unload" if unloads else "load"
        return {**self._head(), **said, "done": True, "done_reason": reason}

    def part(self, said: Json) -> Json:
        return {**self._head(), **said, "done": False}

    def end(self, reason: str, usage: Usage, said: Json) -> Json:
        """The last object; times in nanoseconds."""
        return {
            **self._head(),
            **said,
            "done": True,
            "done_reason": "stop" if reason == "stop" else "length",
            "total_duration": _nanoseconds(time.monotonic() - self._began),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(usage.prefill_seconds),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(usage.decode_seconds),
        }

    def _head(self) -> Json:
        return {"model": self._model, "created_at": datetime.now(UTC).isoformat()}


class _Asked:
    """The answer to a question."""

    def __init__(self, answering: Answering) -> None:
        self.exchange, self._answering = answering.exchange, answering

    async def answer(self, objects: Objects) -> AsyncIterator[Json | Refusal]:
        async for _, said in self._answering:
            match said:
                case AnswerPiece(ContentDelta(text)):
                    yield objects.part({"response": text})
                case AnswerPiece(ReasoningDelta(text)):
                    yield objects.part({"response": "", "thinking": text})
                case Answered():
                    yield said.failure or objects.end(said.reason, said.usage, {"response": ""})


class _Continued:
    """A text continued, or a gap filled."""

    def __init__(self, exchange: Exchange, source: Filling | Plain, service: Service) -> None:
        self.exchange, self._source, self._service = exchange, source, service

    async def answer(self, objects: Objects) -> AsyncIterator[Json | Refusal]:
        async for _, event in self.exchange:
            text = await text_of(self._source, event, self._service, self.exchange)
            if isinstance(event, Finished):
                yield failure(event) or objects.end(event.reason, event.usage, {"response": text})
            elif text:
                yield objects.part({"response": text})


def stream(service: Service, exchange: Exchange, parts: AsyncIterator[Json | Refusal]) -> Frames:
    """A streamed response of JSON lines."""
    return Frames(
        _lines(parts),
        exchange.cancel,
        media_type="application/x-ndjson",
        keep_alive=b"\n",
        keep_alive_seconds=service.settings.keep_alive_seconds,
    )


async def _lines(parts: AsyncIterator[Json | Refusal]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield to_json(ollama_error(part) if isinstance(part, Refusal) else part) + b"\n"


async def _added(exchange: Exchange, parts: AsyncIterator[Json | Refusal]) -> Json:
    """Merge all parts into one object. Raises Refusal for a failed run."""
    response, thinking, last = "", "", {}
    async with exchange:
        async for part in parts:
            if isinstance(part, Refusal):
                raise part
            response += part["response"]
            thinking += part.get("thinking", "")
            last = part
    return last | {"response": response} | ({"thinking": thinking} if thinking else {})


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
