"""Answer a conversation, for every protocol that has them: prompt, runs, replies."""

import dataclasses
from collections.abc import AsyncIterator, Sequence

from sounding.engine.requests import GenerationRequest
from sounding.server.conversation import Conversation, Sampling, render, request_for
from sounding.server.exchange import Exchange
from sounding.server.reply import Answered, AnswerPiece, AnswerReader
from sounding.server.service import Service
from sounding.server.turn_memory import RenderedTurns


class Answering:
    """Answers to one conversation, in progress."""

    def __init__(self, exchange: Exchange, replies: Sequence[AnswerReader]) -> None:
        self.exchange, self.replies = exchange, replies

    async def __aiter__(self) -> AsyncIterator[tuple[int, AnswerPiece | Answered]]:
        """Yield (index of the answer, its next part); each answer ends with Answered."""
        async for index, event in self.exchange:
            for said in self.replies[index].feed(event):
                yield index, said

    async def ends(self) -> list[Answered]:
        """Wait for all answers. Raises Refusal if one failed."""
        ends: dict[int, Answered] = {}
        async with self.exchange:
            async for index, said in self:
                if isinstance(said, Answered):
                    ends[index] = said
                    if said.failure is not None:
                        raise said.failure
        return [ends[index] for index in sorted(ends)]


async def answer(
    service: Service,
    route: str,
    owner: str,
    chat: Conversation,
    sampling: Sampling,
    count: int = 1,
    *,
    model: str | None,
    call_prefix: str = "call_",
) -> Answering:
    """Start `count` answers to a conversation. Raises Refusal if it cannot be answered.

    `model` is the requested name. The ids of calls begin with `call_prefix`, by which some clients
    recognise the protocol.
    """
    settings, tokenizer = service.settings, service.tokenizer
    context = service.engine.context_tokens

    def prepare() -> tuple[RenderedTurns, list[GenerationRequest]]:
        prompt = render(service.memory, owner, chat, settings, context)
        return prompt, [
            request_for(prompt, chat, one, tokenizer, context, settings)
            for one in several(sampling, count)
        ]

    prompt, requests = await service.threads.run(prepare)
    exchange = await service.begin(route, requests, model)
    replies = [
        AnswerReader(
            chat,
            prompt,
            tokenizer=tokenizer,
            memory=service.memory,
            owner=owner,
            stop=sampling.stop,
            call_prefix=call_prefix,
        )
        for _ in requests
    ]
    return Answering(exchange, replies)


def several(sampling: Sampling, count: int) -> list[Sampling]:
    """The same sampling parameters with a seed of its own for each answer."""
    params = sampling.params
    return [
        dataclasses.replace(
            sampling, params=dataclasses.replace(params, seed=(params.seed + index) % 2**63)
        )
        for index in range(count)
    ]
