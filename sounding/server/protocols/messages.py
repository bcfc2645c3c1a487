"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's protocol.

Thinking is off by default, as in that protocol. With `display: "omitted"` the signature of a
thinking block encodes its reasoning (opaque.py), so that clients send it back.
"""

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from sounding.server.conversation import (
    EFFORTS,
    Choice,
    Conversation,
    Message,
    Sampling,
    render,
    sampling_params,
)
from sounding.server.http.streaming import Frames, JSONAnswer, sse, whole
from sounding.server.http.wire import Json, Refused, Wire, fault
from sounding.server.protocols.answering import Answering, answer
from sounding.server.protocols.fields import MOST_TOOLS, Effort, check_choice, stop_strings
from sounding.server.protocols.messages_blocks import (
    CACHED,
    Library,
    MessageParam,
    TextBlock,
    asked_in_text,
    results_of_calls,
    text_of_system,
)
from sounding.server.protocols.messages_writer import MessageWriter
from sounding.server.service import Service, owner_of
from sounding.server.turn_memory import RenderedTurns

ROUTE = "/v1/messages"
COUNT_ROUTE = "/v1/messages/count_tokens"

# --------------------------------------------------------------------------------------------------
# Requests


class Tool(Wire):
    accepted: ClassVar = CACHED | {"eager_input_streaming": "arguments are always streamed"}
    refused: ClassVar = {
        "allowed_callers": Refused("only the model calls tools", (["direct"],)),
        "input_examples": Refused("put examples into the description", ([],)),
    }

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    defer_loading: bool | None = None
    """Describe the tool where a `tool_reference` first names it, not at the start."""

    @model_validator(mode="before")
    @classmethod
    def _only_custom(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind != "custom":
            raise fault(
                "type",
                f"server tools such as {kind[:60]!r} are not available; define a tool of your own",
            )
        return given

    def as_tool(self) -> Message:
        function: Message = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.input_schema
        if self.strict is not None:
            function["strict"] = self.strict
        return {"type": "function", "function": function}


class ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise fault("name", "name is required with type 'tool', and only allowed there")
        return self


class Thinking(Wire):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of reasoning tokens; then the answer begins."""
    display: Literal["summarized", "omitted"] | None = None
    """`omitted` leaves out the text; the signature still encodes it. Nothing is summarized."""


class OutputFormat(Wire):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Wire):
    effort: Effort | None = None
    """Effort in a message applies from there on; the last one wins."""
    format: OutputFormat | None = None


class CountTokensRequest(Wire):
    accepted: ClassVar = {
        **CACHED,
        "metadata": "metadata",
        "service_tier": "there is only one tier",
        "inference_geo": "there is only one location",
        "user_profile_id": "metadata",
        "workspace_id": "metadata",
        "diagnostics": "they are in traces",
        "context_management": "the history is used as sent; nothing is cleared from it",
    }
    refused: ClassVar = {
        "container": Refused("containers are not available"),
        "mcp_servers": Refused("the server calls no tools itself", ([],)),
        "speed": Refused("only the standard speed is available", ("standard",)),
    }

    model: str | None = None
    """Empty or absent: the model that is served."""
    messages: Annotated[
        list[MessageParam], AfterValidator(asked_in_text), AfterValidator(results_of_calls)
    ] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    """Effort, and a JSON schema for the answer."""


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=0)
    """Includes thinking; 0 only caches the prompt."""
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)


# --------------------------------------------------------------------------------------------------
# Conversion


def conversation_of(asked: CountTokensRequest) -> Conversation:
    choice = asked.tool_choice or ToolChoice(type="auto")
    library = Library(
        [tool.as_tool() for tool in asked.tools or ()],
        {tool.name for tool in asked.tools or () if tool.defer_loading} - {choice.name},
    )
    messages = [each for message in asked.messages for each in message.as_messages(library)]
    system = text_of_system(asked.system or "")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    words: dict[str, Choice] = {"any": "required", "tool": "required", "none": "none"}
    named = None if choice.name is None else (choice.name,)
    word, names = check_choice(words.get(choice.type, "auto"), named, library.known)
    thinking, output = asked.thinking, asked.output_config or OutputConfig()
    effort = output.effort
    for message in asked.messages:
        if message.output_config is not None and message.output_config.effort is not None:
            effort = message.output_config.effort
    return Conversation(
        messages=messages,
        tools=library.known,
        later=library.later,
        choice=word,
        callable=names,
        parallel=not choice.disable_parallel_tool_use,
        schema=output.format.schema_ if output.format is not None else None,
        thinking=thinking is not None and thinking.type != "disabled",
        effort=EFFORTS.get(effort or "high", "high"),
        prefix=asked.messages[-1].role == "assistant",
        thinking_budget=thinking.budget_tokens if thinking is not None else None,
    )


# --------------------------------------------------------------------------------------------------
# The answer


class CountTokens:
    """The endpoint that counts tokens."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, CountTokensRequest)
        self._service.require_model(asked.model)
        service, owner = self._service, owner_of(request)

        def count() -> RenderedTurns:
            context = service.engine.context_tokens
            return render(service.memory, owner, conversation_of(asked), service.settings, context)

        prompt = await service.threads.run(count)
        return JSONAnswer({"input_tokens": len(prompt.ids)})


class Messages:
    """The endpoint that answers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, MessagesRequest)
        writer = MessageWriter(
            self._service.require_model(asked.model),
            asked.max_tokens,
            omits_thinking=asked.thinking is not None and asked.thinking.display == "omitted",
        )
        chat = await self._service.threads.run(partial(conversation_of, asked))

        async def begin() -> Answering:
            sampling = Sampling(
                params=sampling_params(
                    temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k, seed=None
                ),
                max_tokens=asked.max_tokens,
                stop=stop_strings(asked.stop_sequences),
            )
            owner = owner_of(request)
            how = (self._service, ROUTE, owner, chat, sampling)
            return await answer(*how, model=asked.model, call_prefix="toolu_")

        async def complete() -> Json:
            answering = await begin()
            (end,) = await answering.ends()
            return writer.whole(answering, end)

        if not asked.stream:
            return JSONAnswer(await whole(request, complete()))
        answering = await whole(request, begin())
        return Frames(
            writer.frames(answering),
            answering.exchange.cancel,
            keep_alive=sse({"type": "ping"}, "ping"),
            keep_alive_seconds=self._service.settings.keep_alive_seconds,
        )
