"""Turn a conversation of any protocol into a request for the engine.

Each protocol translates its request into a `Conversation`, whose messages have the shape that
`sounding.text.encode` reads. reply.py parses what the model generates.
"""

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sounding.engine.requests import GenerationRequest, Grammar, Priority, StoppingRule
from sounding.engine.sampling import SamplingParams
from sounding.server.content_stops import ContentRule
from sounding.server.http.errors import Refusal, context_overflow
from sounding.server.options import ServerOptions
from sounding.server.turn_memory import RenderedTurns, TurnMemory
from sounding.text import Parser, parser
from sounding.text.grammar import turn_grammar
from sounding.text.markup import EFFORT_TEXTS, END_THINK, to_json
from sounding.text.tokenizer import Tokenizer, TooManyTokens

Message = dict[str, Any]
Choice = Literal["auto", "none", "required"]

# Values of reasoning_effort and the level each selects, mapped as the hosted service does.
EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation to answer and its options, in the terms of the prompt format."""

    messages: Sequence[Message]
    tools: Sequence[Message] = ()
    """OpenAI shape, `strict` within the function."""
    later: Collection[str] = ()
    """Tools that a message describes, so that the prompt's prefix does not change."""
    choice: Choice = "auto"
    callable: Collection[str] | None = None
    """Names of tools that may be called; None allows all."""
    parallel: bool = True
    """Whether one turn may contain several calls."""
    schema: Any = None
    """JSON schema of the content; None for free text."""
    show_schema: bool = True
    """Whether the prompt contains the schema; decoding is constrained to it either way."""
    thinking: bool = True
    effort: str = "high"
    prefix: bool = False
    """Whether the last message is the beginning of the answer, to be continued."""
    thinking_budget: int | None = None
    """Maximum number of reasoning tokens; then the answer begins."""

    @property
    def thinking_mode(self) -> str:
        return "thinking" if self.thinking else "chat"

    @property
    def begins_in(self) -> str:
        """The mode the parser starts in: a continued answer has no reasoning before it."""
        return "chat" if self.prefix else self.thinking_mode

    def parser(self) -> Parser:
        """A parser for an answer to this conversation."""
        return parser(self.begins_in, tolerant=True, tools=list(self.tools))

    @property
    def question(self) -> Message | None:
        """The message to answer."""
        messages = self.messages[:-1] if self.prefix else self.messages
        return messages[-1] if messages else None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Generation parameters that all protocols have, under one set of names."""

    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    top_logprobs: int | None = None


def render(
    memory: TurnMemory, owner: str, chat: Conversation, settings: ServerOptions, context_tokens: int
) -> RenderedTurns:
    """Render the prompt. Raises Refusal where the format or the context does not allow it."""
    messages = _with_instructions(chat)
    if chat.prefix:
        messages[-1] = {**messages[-1], "wo_eos": True}
    levels = EFFORT_TEXTS[settings.effort_scheme]
    effort = chat.effort if chat.effort in levels else "high"
    try:
        return memory.render(
            owner,
            messages,
            most_tokens=context_tokens,
            thinking_mode=chat.thinking_mode,
            reasoning_effort=effort,
            effort_scheme=settings.effort_scheme,
        )
    except TooManyTokens as error:
        raise context_overflow(error.num_tokens, context_tokens, exact=error.exact) from None
    except ValueError as error:
        raise Refusal(400, f"{error}", param="messages", code="invalid_value") from None


def request_for(
    prompt: RenderedTurns,
    chat: Conversation,
    sampling: Sampling,
    tokenizer: Tokenizer,
    context_tokens: int,
    settings: ServerOptions,
) -> GenerationRequest:
    """Build the engine's request. Raises Refusal where the context or a grammar forbids it."""
    try:
        grammar = grammar_for(chat)
    except ValueError as error:
        raise Refusal(400, f"{error}", param="tools", code="invalid_value") from None
    rule: StoppingRule | None = None
    if chat.thinking_budget is not None and chat.begins_in == "thinking":
        rule = ThinkingBudget(chat.thinking_budget, tokenizer.id_of(END_THINK))
    if sampling.stop:
        rule = ContentRule(sampling.stop, chat.parser(), tokenizer.stream(), rule)
    return GenerationRequest(
        prompt=prompt.ids,
        params=sampling.params,
        max_tokens=answer_tokens(len(prompt.ids), sampling.max_tokens, context_tokens),
        max_seconds=settings.max_seconds,
        top_logprobs=sampling.top_logprobs,
        grammar=grammar,
        answer=rule,
        priority=Priority.CHAT,
    )


def answer_tokens(
    prompt_tokens: int, wanted: int | None, context_tokens: int, param: str = "messages"
) -> int:
    """Maximum number of tokens of the answer: the smaller of the limit asked for and the room left.

    Clients often send the limit of the model they were written for, so a limit beyond the context
    is no error. Raises Refusal if no room is left.
    """
    room = context_tokens - prompt_tokens
    if room < 1:
        raise context_overflow(prompt_tokens, context_tokens, param)
    return room if wanted is None else min(wanted, room)


def grammar_for(chat: Conversation) -> Grammar | None:
    """The grammar that the answer must follow, None if the request asks for none.

    Raises ValueError for tools or schemas that a grammar cannot express.
    """
    strict = any(tool["function"].get("strict") for tool in chat.tools)
    limited = chat.callable is not None or not chat.parallel or chat.choice != "auto"
    if chat.schema is None and not (chat.tools and (strict or limited)):
        return None
    text = turn_grammar(
        [t for t in chat.tools if chat.callable is None or t["function"]["name"] in chat.callable],
        chat.begins_in,
        calls=chat.choice,
        parallel=chat.parallel,
        schema=chat.schema,
    )
    return Grammar(kind="lark", text=text)


def _with_instructions(chat: Conversation) -> list[Message]:
    """The messages, with tools and response format in a system message as the format requires."""
    messages = list(chat.messages)
    added: Message = {}
    shown = [_shown(tool) for tool in chat.tools if tool["function"]["name"] not in chat.later]
    if shown:
        added["tools"] = shown
    if chat.schema is not None and chat.show_schema:
        added["response_format"] = chat.schema
    if not added:
        return messages
    if messages and messages[0]["role"] == "system" and "tools" not in messages[0]:
        return [{**messages[0], **added}, *messages[1:]]
    return [{"role": "system", "content": "", **added}, *messages]


def described(tools: Iterable[Message]) -> str:
    """Describe tools in a message: one line of JSON each, as at the start of the prompt."""
    return "\n".join(to_json(_shown(tool)["function"]) for tool in tools)


def _shown(tool: Message) -> Message:
    """A tool as the prompt describes it: without `strict`, which concerns decoding only."""
    function = {name: value for name, value in tool["function"].items() if name != "strict"}
    return {"type": "function", "function": function}


class ThinkingBudget:
    """A `StoppingRule` that ends the reasoning after a number of tokens."""

    def __init__(self, most_tokens: int, end_think: int) -> None:
        self._left: int | None = most_tokens
        self._end_think = end_think

    def allowed(self) -> Collection[int] | None:
        return [self._end_think] if self._left is not None and self._left <= 0 else None

    def push(self, token: int, logprob: float = 0.0) -> bool:
        if token == self._end_think:
            self._left = None
        elif self._left is not None:
            self._left -= 1
        return True


def sampling_params(
    *,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    top_k: int | None = None,
    min_p: float | None = None,
    default_temperature: float = 1.0,
) -> SamplingParams:
    """Build the engine's sampling parameters; the protocols have checked the ranges.

    A request without a seed gets a random one, so that equal requests give different answers.
    """
    return SamplingParams(
        temperature=default_temperature if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=min(top_k or 0, 2**31),
        min_p=min_p or 0.0,
        seed=secrets.randbits(63) if seed is None else seed % 2**63,
    )
