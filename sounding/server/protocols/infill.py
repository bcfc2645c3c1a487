"""`/infill`: llama.cpp's protocol for completions at a cursor, as its editor plug-ins speak it.

The prompt is that of our own completions (completion/completer.py), the answer ends with its line
or block, and the request has the highest priority in the engine: a person is typing.
"""

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from sounding.completion.gap import Gap
from sounding.engine.requests import Finished, Usage
from sounding.server.conversation import Sampling, sampling_params
from sounding.server.exchange import Exchange, failure, require_ended
from sounding.server.http.errors import llama_error
from sounding.server.http.streaming import Frames, JSONAnswer, sse, whole
from sounding.server.http.wire import Json, Refused, Wire
from sounding.server.protocols.fields import stop_strings
from sounding.server.protocols.filling import Filling, Plain, fill_in, text_of
from sounding.server.service import Service

ROUTE = "/infill"
_DEFAULT_TOKENS = 128

_NO_PENALTY = "penalties are not supported"
_NO_SAMPLER = "this sampler is not supported"


class ExtraText(Wire):
    """A piece of another file."""

    accepted: ClassVar = {"time": "pieces are read in the order given"}

    filename: str = ""
    text: str


class LlamaRequest(Wire):
    """Fields that llama.cpp's routes share."""

    accepted: ClassVar = {
        "cache_prompt": "prefixes are always cached",
        "id_slot": "the prefix cache is shared by all slots",
        "n_indent": "the cursor's line determines the depth of its block",
        "n_cmpl": "there is one answer; at temperature 0 others would equal it",
        "n_keep": "the prompt is cut at the ends far from the cursor",
        "samplers": "parameters select samplers; their order is fixed",
        "timings_per_token": "timings are in the last object",
        "user": "metadata",
    }
    refused: ClassVar = {
        "n_probs": Refused("logprobs are only available from /v1/completions", (0,)),
        "grammar": Refused("answers follow the text around the cursor", ("",)),
        "json_schema": Refused("answers follow the text around the cursor"),
        "ignore_eos": Refused("EOS always ends an answer", (False,)),
        "logit_bias": Refused("token biases are not supported", ([], {})),
        "repeat_penalty": Refused(_NO_PENALTY, (1, 1.0)),
        "presence_penalty": Refused(_NO_PENALTY, (0, 0.0)),
        "frequency_penalty": Refused(_NO_PENALTY, (0, 0.0)),
        "dry_multiplier": Refused(_NO_PENALTY, (0, 0.0)),
        "typical_p": Refused(_NO_SAMPLER, (1, 1.0)),
        "xtc_probability": Refused(_NO_SAMPLER, (0, 0.0)),
        "mirostat": Refused(_NO_SAMPLER, (0,)),
        "dynatemp_range": Refused(_NO_SAMPLER, (0, 0.0)),
        "return_tokens": Refused("token ids are in traces", (False,)),
        "lora": Refused("there are no adapters", ([],)),
    }

    model: str | None = None
    n_predict: int | None = Field(default=None, ge=-1)
    """-1: as many as the context allows; 0 only caches the prompt."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Another name of n_predict."""
    t_max_prompt_ms: float | None = Field(default=None, ge=0)
    t_max_predict_ms: float | None = Field(default=None, ge=0)
    """Time limits that add up; then the answer ends with the text so far. 0 is no limit."""
    stream: bool | None = None
    stop: str | list[str] | None = None
    temperature: float | None = Field(default=None, ge=0)
    """Default 0: the most likely token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    """-1: a random seed."""
    response_fields: list[str] | None = Field(default=None, max_length=100)
    """Fields to send, such as "content" and "timings/prompt_n"; all others are left out."""


class InfillRequest(LlamaRequest):
    input_prefix: str = ""
    """The text before the cursor's line, or before the cursor."""
    input_suffix: str = ""
    input_extra: list[ExtraText] = Field(default_factory=list)
    """Pieces of other files; the most relevant ones go into the prompt."""
    prompt: str = ""
    """The cursor's line up to the cursor, appended to input_prefix."""
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    """Give no text for a missing line that is less likely to be exactly right."""


class Infill:
    """The endpoint."""

    route = ROUTE
    model: type[LlamaRequest] = InfillRequest

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, self.model)
        model = self._service.require_model(asked.model)
        if not asked.stream:
            return JSONAnswer(await whole(request, self._complete(asked, model)))
        exchange, filling = await whole(request, self._begin(asked))
        return Frames(
            self._frames(exchange, filling, asked, model),
            exchange.cancel,
            keep_alive_seconds=self._service.settings.keep_alive_seconds,
        )

    async def _begin(self, asked: Any) -> tuple[Exchange, Filling | Plain]:
        service = self._service
        context = min(service.settings.infill_context_tokens, service.engine.context_tokens)
        # The prompt gets at least half of the context.
        sampling = sampling_of(asked, context // 2)
        gap = Gap(asked.input_prefix + asked.prompt, asked.input_suffix)
        filling = await fill_in(
            service,
            gap,
            sampling=sampling,
            context_tokens=context,
            files=tuple((extra.filename, extra.text) for extra in asked.input_extra),
            min_confidence=asked.min_confidence,
        )
        request = filling.request(seconds_of(asked, service.settings.max_seconds))
        return await service.begin(self.route, [request], asked.model), filling

    async def _complete(self, asked: LlamaRequest, model: str) -> Json:
        exchange, filling = await self._begin(asked)
        text = ""
        async with exchange:
            async for _, event in exchange:
                text += await text_of(filling, event, self._service, exchange)
        finished = exchange.runs[0].finished
        assert finished is not None
        require_ended(finished)
        return _chosen(self._last(exchange, filling, text, finished, model), asked)

    async def _frames(
        self, exchange: Exchange, filling: Filling | Plain, asked: LlamaRequest, model: str
    ) -> AsyncIterator[bytes]:
        async for _, event in exchange:
            text = await text_of(filling, event, self._service, exchange)
            if isinstance(event, Finished):
                if (fault := failure(event)) is not None:
                    yield sse(llama_error(fault))
                    return
                yield sse(_chosen(self._last(exchange, filling, text, event, model), asked))
            elif text:
                yield sse({"index": 0, "content": text, "stop": False})

    def _last(
        self,
        exchange: Exchange,
        filling: Filling | Plain,
        text: str,
        finished: Finished,
        model: str,
    ) -> Json:
        """The last object of a stream, or the whole answer."""
        request, usage = exchange.runs[0].request, finished.usage
        return {
            "index": 0,
            "content": text,
            "stop": True,
            "model": model,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.hit_tokens,
            "truncated": filling.truncated,
            "has_new_line": "\n" in text,
            "stop_type": _stop_type(finished, filling.stop),
            "stopping_word": filling.stop or "",
            "generation_settings": {
                "n_predict": request.max_tokens,
                "temperature": request.params.temperature,
                "top_p": request.params.top_p,
                "seed": request.params.seed,
            },
            "timings": _timings(usage),
        }


def sampling_of(
    asked: LlamaRequest,
    most_tokens: int,
    default_temperature: float = 0.0,
    default_tokens: int = _DEFAULT_TOKENS,
) -> Sampling:
    wanted = asked.n_predict if asked.n_predict is not None else asked.max_tokens
    most = max(1, most_tokens)
    tokens = default_tokens if wanted is None else wanted
    return Sampling(
        params=sampling_params(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            seed=None if asked.seed == -1 else asked.seed,
            default_temperature=default_temperature,
        ),
        max_tokens=most if tokens < 0 else min(tokens, most),
        stop=stop_strings(asked.stop),
    )


def seconds_of(asked: LlamaRequest, limit: float | None) -> float | None:
    """The smallest time limit."""
    limits = [limit] if limit is not None else []
    if asked.t_max_predict_ms:
        limits.append((asked.t_max_predict_ms + (asked.t_max_prompt_ms or 0)) / 1000)
    return min(limits, default=None)


def _stop_type(finished: Finished, stop: str | None) -> str:
    if finished.reason == "stop":
        return "word" if stop is not None else "eos"
    return "limit"


def _timings(usage: Usage) -> Json:
    read = usage.prompt_tokens - usage.hit_tokens
    return {
        "cache_n": usage.hit_tokens,
        "prompt_n": read,
        **_timing("prompt", read, usage.prefill_seconds),
        "predicted_n": usage.completion_tokens,
        **_timing("predicted", usage.completion_tokens, usage.decode_seconds),
        "draft_n": usage.drafted_tokens,
        "draft_n_accepted": usage.accepted_tokens,
    }


def _timing(name: str, count: int, seconds: float) -> Json:
    return {
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / count if count else 0.0,
        f"{name}_per_second": count / seconds if seconds else 0.0,
    }


def _chosen(whole: Json, asked: LlamaRequest) -> Json:
    """The requested fields, nested ones under their path."""
    if not asked.response_fields:
        return whole
    chosen: Json = {}
    for path in asked.response_fields:
        value: Any = whole
        for step in path.split("/"):
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            chosen[path] = value
    return chosen
