"""`/api/chat`: a conversation in Ollama's protocol, with tools and thinking.

Calls are sent whole, their arguments as an object. Most clients send no ids back: a result then
belongs to the call with its tool's name, or to the first call without a result.
"""

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from sounding.server.conversation import Conversation, Message
from sounding.server.exchange import Exchange
from sounding.server.http.errors import Refusal
from sounding.server.http.streaming import JSONAnswer, whole
from sounding.server.http.wire import Json, Refused, Wire, fault
from sounding.server.protocols import chat_completions
from sounding.server.protocols.answering import Answering, answer
from sounding.server.protocols.fields import MOST_TOOLS, ONLY_TEXT, check_choice
from sounding.server.protocols.ollama import (
    Format,
    Objects,
    Options,
    Think,
    how_of,
    sampling_of,
    stream,
)
from sounding.server.reply import Answered, AnswerPiece
from sounding.server.service import Service, owner_of
from sounding.text import CallBegun, CallDone, ContentDelta, ReasoningDelta
from sounding.text.markup import to_json

ROUTE = "/api/chat"


# --------------------------------------------------------------------------------------------------
# Requests


def _object(given: Any) -> Any:
    return {} if isinstance(given, str) and given.strip() in ("", "null") else given


class CalledFunction(Wire):
    accepted: ClassVar = {"index": "calls are in order", "description": "the tool has one"}

    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(default_factory=dict)


class Call(Wire):
    accepted: ClassVar = {"type": "all tools are functions"}

    id: str | None = None
    function: CalledFunction


class ChatMessage(Wire):
    refused: ClassVar = {"images": Refused(ONLY_TEXT, ([],))}

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    """The assistant's reasoning. Restored from the server's turn memory if missing."""
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    """The tool of this result, if there is no id."""
    name: str | None = None
    """The older name of tool_name."""


class Tool(chat_completions.FunctionTool):
    type: Literal["function"] = "function"


class ChatRequest(Wire):
    accepted: ClassVar = {
        "truncate": "the prompt is never cut",
        "shift": "the context is never shifted",
    }
    refused: ClassVar = {
        "logprobs": Refused("logprobs are only available from /v1/chat/completions", (False,)),
        "top_logprobs": Refused("logprobs are only available from /v1/chat/completions", (0,)),
    }
    streams_by_default: ClassVar = True

    model: str | None = None
    """Empty or absent: the model that is served."""
    messages: list[ChatMessage] = Field(default_factory=list)
    """If the last message is the assistant's, it is continued."""
    tools: list[Tool] | None = Field(default=None, max_length=MOST_TOOLS)
    stream: bool | None = None
    """Default true."""
    format: Format = None
    """`json` for any object, or the JSON schema of the answer."""
    think: Think = None
    options: Options | None = None
    keep_alive: int | float | str | None = None
    """Without messages the answer confirms loading, or with 0 unloading; the model stays."""

    @model_validator(mode="after")
    def _answerable(self) -> "ChatRequest":
        if self.messages and self.messages[-1].tool_calls:
            raise fault("messages", "the last message has calls; append their results")
        return self


# --------------------------------------------------------------------------------------------------
# Conversion


def conversation_of(asked: ChatRequest, thinks: bool) -> Conversation:
    """Convert to a `Conversation`; `thinks` is the default for thinking."""
    tools = [tool.as_tool() for tool in asked.tools or ()]
    check_choice("auto", None, tools)
    return Conversation(
        messages=messages_of(asked.messages),
        tools=tools,
        prefix=asked.messages[-1].role == "assistant",
        **how_of(asked.format, asked.think, thinks),
    )


def messages_of(given: Sequence[ChatMessage]) -> list[Message]:
    """Convert to the shape that the prompt encoder reads."""
    messages: list[Message] = []
    unanswered: list[tuple[str, str]] = []  # the ids and names of the last calls
    for number, one in enumerate(given):
        message: Message = {"role": one.role, "content": one.content}
        if one.role == "assistant":
            if one.thinking is not None:
                message["reasoning_content"] = one.thinking
            calls = [_call(call, f"{number}.{i}") for i, call in enumerate(one.tool_calls or ())]
            if calls:
                message["tool_calls"] = calls
            functions = [call["function"] for call in calls]
            unanswered = [(function["id"], function["name"]) for function in functions]
        elif one.role == "tool":
            name = one.tool_name or one.name
            ids = [call_id for call_id, called in unanswered if name in (None, called)]
            call_id = one.tool_call_id or next(iter(ids), "")
            unanswered = [call for call in unanswered if call[0] != call_id]
            message["tool_call_id"] = call_id
        messages.append(message)
    return messages


def _call(call: Call, place: str) -> Message:
    """Convert a call. Missing ids are assigned only to match results with calls: the turn memory
    looks turns up by the ids that the server sent."""
    function = call.function
    shown = {"name": function.name, "arguments": to_json(function.arguments)}
    made = {"type": "function", "function": {**shown, "id": call.id or place}}
    return made if call.id is None else {"id": call.id, **made}


# --------------------------------------------------------------------------------------------------
# The answer


class OllamaChat:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        service = self._service
        asked = await service.read(request, ChatRequest)
        objects = Objects(service.require_model(asked.model))
        if not asked.messages:
            return JSONAnswer(objects.loaded(asked.keep_alive, _says("")))
        chat = await service.threads.run(partial(conversation_of, asked, service.settings.thinking))
        sampling = sampling_of(asked.options)
        how = (service, ROUTE, owner_of(request), chat, sampling)
        answering = await whole(request, answer(*how, model=asked.model))
        parts = _parts(answering, objects)
        if asked.streamed:
            return stream(service, answering.exchange, parts)
        return JSONAnswer(await whole(request, _added(answering.exchange, parts)))


def _says(content: str, **more: Any) -> Json:
    return {"message": {"role": "assistant", "content": content, **more}}


async def _parts(answering: Answering, objects: Objects) -> AsyncIterator[Json | Refusal]:
    name = ""
    async for _, said in answering:
        match said:
            case AnswerPiece(ContentDelta(text)):
                yield objects.part(_says(text))
            case AnswerPiece(ReasoningDelta(text)):
                yield objects.part(_says("", thinking=text))
            case AnswerPiece(CallBegun(_, begun)):
                name = begun
            case AnswerPiece(CallDone(index, arguments)):
                function = {"index": index, "name": name, "arguments": json.loads(arguments)}
                call = {"id": answering.replies[0].call_ids[index], "function": function}
                yield objects.part(_says("", tool_calls=[call]))
            case Answered():
                yield said.failure or objects.end(said.reason, said.usage, _says(""))


async def _added(exchange: Exchange, parts: AsyncIterator[Json | Refusal]) -> Json:
    """Merge all parts into one object. Raises Refusal for a failed run."""
    content, thinking, last = "", "", {}
    calls: list[Json] = []
    async with exchange:
        async for part in parts:
            if isinstance(part, Refusal):
                raise part
            message, last = part["message"], part
            content += message["content"]
            thinking += message.get("thinking", "")
            calls += message.get("tool_calls", ())
    more = ({"thinking": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
    return last | _says(content, **more)
