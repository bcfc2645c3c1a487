"""`/completion`: llama.cpp's route that continues a raw text, with answers like those of `/infill`.

In a prompt the names of special tokens are those tokens; a gap marked by FIM tokens is filled in.
"""

from functools import partial
from typing import Any

from pydantic import Field

from sounding.engine.requests import GenerationRequest
from sounding.server.conversation import answer_tokens
from sounding.server.exchange import Exchange
from sounding.server.protocols.filling import Filling, Plain, fill_in, marked_gap
from sounding.server.protocols.infill import Infill, LlamaRequest, sampling_of, seconds_of

ROUTE = "/completion"


class LlamaCompletionRequest(LlamaRequest):
    prompt: str
    n_predict: int | None = Field(default=None, ge=-1)
    """Default -1: as many as the context allows; 0 only caches the prompt."""
    temperature: float | None = Field(default=None, ge=0)
    """Default 1; 0 for a gap marked by FIM tokens."""


class LlamaCompletion(Infill):
    """The endpoint."""

    route = ROUTE
    model = LlamaCompletionRequest

    async def _begin(self, asked: Any) -> tuple[Exchange, Filling | Plain]:
        service = self._service
        context, limit = service.engine.context_tokens, service.settings.max_seconds
        gap = marked_gap(asked.prompt)
        if gap is not None:
            sampling = sampling_of(asked, context // 4)
            filling = await fill_in(
                service,
                gap,
                sampling=sampling,
                context_tokens=context,
                whole=True,
            )
            request = filling.request(seconds_of(asked, limit))
            return await service.begin(ROUTE, [request], asked.model), filling
        sampling = sampling_of(asked, context, 1.0, -1)
        ids = await service.threads.run(partial(service.raw_prompt, asked.prompt))
        request = GenerationRequest(
            prompt=ids,
            params=sampling.params,
            max_tokens=answer_tokens(len(ids), sampling.max_tokens, context, "prompt"),
            max_seconds=seconds_of(asked, limit),
            stop=tuple(sampling.stop),
        )
        return await service.begin(ROUTE, [request], asked.model), Plain(service.tokenizer.eos_id)
