"""An engine in this process as something to chat with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sounding.agent.loop import Message, Turn
from sounding.engine.requests import (
    EngineFault,
    EngineLike,
    Finished,
    GenerationRequest,
    Priority,
    Stream,
)
from sounding.engine.sampling import SamplingParams
from sounding.text import encode, parse
from sounding.text.markup import EOS
from sounding.text.tokenizer import Tokenizer, TooManyTokens


class EngineChat:
    """Answers conversations with an engine; a conversation that is too long ends at its limit."""

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: Tokenizer,
        params: SamplingParams,
        max_tokens: int,
        *,
        context_tokens: int | None = None,
    ) -> None:
        """`max_tokens` of an answer; `context_tokens` of the whole, by default what the engine
        allows. Seeds of `params` are not used."""
        self._engine, self._tokenizer = engine, tokenizer
        self._params, self._max_tokens = params, max_tokens
        self._context = min(context_tokens or engine.context_tokens, engine.context_tokens)

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Message], *, thinking: bool, seed: int
    ) -> Turn:
        """See `Chat`. Raises ValueError for messages that cannot be encoded, and EngineFault.

        More calls at a time than the engine has places for are refused with its Overloaded.
        """
        mode = "thinking" if thinking else "chat"
        text = encode(with_tools(messages, tools), mode, always_answer=True)
        try:
            prompt = self._tokenizer.encode(text, most_tokens=self._context - 1)
        except TooManyTokens:
            return Turn({"role": "assistant", "content": ""}, finished=False)
        left = min(self._max_tokens, self._context - len(prompt))
        pieces, reason = [], ""
        for event in self._submit(prompt, seed, left):
            pieces.append(event.text)
            if isinstance(event, Finished):
                reason = event.reason
                if reason in ("error", "cancelled"):
                    raise EngineFault(f"the model could not answer: {event.error or 'closed'}")
        whole = "".join(pieces) + (EOS if reason == "stop" else "")
        message = parse(whole, mode, tolerant=True, tools=tools).message()
        return Turn(message, finished=reason == "stop")

    def _submit(self, prompt: Sequence[int], seed: int, max_tokens: int) -> Stream:
        request = GenerationRequest(
            prompt=prompt,
            params=replace(self._params, seed=seed),
            max_tokens=max_tokens,
            priority=Priority.BATCH,
            guard_repetition=False,
        )
        return self._engine.submit(request)


def with_tools(messages: Sequence[Message], tools: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages, tools on the first of them as the prompt format wants it."""
    given = [dict(message) for message in messages]
    if tools:
        if not given or given[0].get("role") != "system":
            given.insert(0, {"role": "system", "content": ""})
        given[0]["tools"] = list(tools)
    return given
