"""`/v1/responses`: OpenAI's newer protocol, stateless: every request brings its whole input.

Reasoning comes as text in a reasoning item, and in its `encrypted_content` where that is asked
for, which here is the same text in disguise (opaque.py).
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator
from pydantic.types import Discriminator
from starlette.requests import Request
from starlette.responses import Response

from sounding.server.conversation import (
    EFFORTS,
    Choice,
    Conversation,
    Message,
    Sampling,
    sampling_params,
)
from sounding.server.http.errors import Refusal
from sounding.server.http.streaming import Answer, Frames, whole
from sounding.server.http.wire import Json, Refused, Wire, fault
from sounding.server.protocols.answering import Answering, answer
from sounding.server.protocols.fields import (
    METADATA,
    MOST_TOOLS,
    ONLY_TEXT,
    Effort,
    check_choice,
)
from sounding.server.protocols.opaque import unwrap
from sounding.server.protocols.responses_writer import ResponseWriter
from sounding.server.reply import Answered
from sounding.server.service import Service, owner_of

ROUTE = "/v1/responses"

_STATELESS = "nothing is stored: send the earlier items themselves as input"


# --------------------------------------------------------------------------------------------------
# The wire


class InputText(Wire):
    accepted: ClassVar = {
        "annotations": "left over from an answer",
        "logprobs": "left over from an answer",
        "prompt_cache_breakpoint": "every prefix is cached as it is",
    }

    type: Literal["input_text", "output_text", "text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind not in ("input_text", "output_text", "text"):
            raise fault("type", f"a content part of type {kind[:40]!r}: {ONLY_TEXT}")
        return given


_LEFT_OVER = {"id": "left over from an answer", "status": "left over from an answer"}


class InputMessage(Wire):
    accepted: ClassVar = _LEFT_OVER | {"phase": "left over from an answer"}

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText]


class FunctionCall(Wire):
    accepted: ClassVar = _LEFT_OVER
    refused: ClassVar = {
        "namespace": Refused("tools have plain names"),
        "caller": Refused("every call is the model's own", ({"type": "direct"},)),
        "async": Refused("calls are answered before the next turn", (False,)),
    }

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(Wire):
    accepted: ClassVar = _LEFT_OVER

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]


class ReasoningText(Wire):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Wire):
    accepted: ClassVar = _LEFT_OVER | {"summary": "the reasoning itself counts"}

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def _item_type(item: Any) -> Any:
    if isinstance(item, dict):
        return item.get("type") or ("message" if "role" in item else None)
    return getattr(item, "type", None)


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _item_type,
        custom_error_type="item",
        custom_error_message=f"an input item is one of {', '.join(_ITEMS)}",
    ),
]


class FunctionTool(Wire):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_functions(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise fault("type", f"there is no tool of type {kind[:60]!r} here, only functions")
        return given

    def as_tool(self) -> Message:
        function = self.model_dump(exclude_none=True, exclude={"type"})
        return {"type": "function", "function": function}


class NamedFunction(Wire):
    type: Literal["function"]
    name: str


class AllowedFunctions(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedFunction] = Field(min_length=1)


class Reasoning(Wire):
    accepted: ClassVar = {
        "summary": "the reasoning comes whole; there are no summaries",
        "generate_summary": "the reasoning comes whole; there are no summaries",
        "context": "the format says which reasoning stays in the prompt",
    }

    effort: Effort | None = None


class TextFormat(Wire):
    accepted: ClassVar = {
        "name": "a schema is told by its content",
        "description": "a schema is told by its content",
        "strict": "the answer always follows the schema",
    }

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _schema_where_due(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise fault("schema", "schema goes with the type 'json_schema', and with it only")
        return self


class TextConfig(Wire):
    refused: ClassVar = {"verbosity": Refused("ask for it in words", ("medium",))}

    format: TextFormat | None = None


class ResponseStreamOptions(Wire):
    accepted: ClassVar = {"include_obfuscation": "nothing is obfuscated"}


class ResponseRequest(Wire):
    accepted: ClassVar = {
        **{name: why for name, why in METADATA.items() if name not in ("metadata", "samplers")},
        "client_metadata": "metadata",
        "max_tool_calls": "the server calls no tools itself",
        "context_management": "the input is taken as it is sent; nothing is cleared from it",
    }
    refused: ClassVar = {
        "previous_response_id": Refused(_STATELESS),
        "conversation": Refused(_STATELESS),
        "store": Refused(_STATELESS, (False,)),
        "background": Refused("an answer is sent to whoever waits for it", (False,)),
        "prompt": Refused("there are no stored prompts"),
        "truncation": Refused("nothing is left out of the input; shorten it", ("disabled",)),
        "moderation": Refused("nothing is moderated"),
    }

    model: str
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Reasoning counts."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Of the text, with include: ["message.output_text.logprobs"]."""
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = (
        None
    )
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions | None = (
        None
    )
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    """Given back."""


# --------------------------------------------------------------------------------------------------
# Into our terms


def conversation_of(asked: ResponseRequest, thinks: bool) -> Conversation:
    """What is asked; `thinks` says whether to think where the request does not."""
    messages = messages_of(asked.input)
    if asked.instructions:
        messages.insert(0, {"role": "system", "content": asked.instructions})
    if not messages or messages[-1]["role"] == "assistant":
        raise Refusal(
            400,
            "input: nothing in it is to be answered; it ends with a message or a call's output",
            param="input",
            code="invalid_value",
        )
    tools = [tool.as_tool() for tool in asked.tools or ()]
    word, names = _choice_of(asked, tools)
    effort = asked.reasoning.effort if asked.reasoning is not None else None
    form = (asked.text or TextConfig()).format or TextFormat()
    schema = {"type": "object"} if form.type == "json_object" else form.schema_
    return Conversation(
        messages=messages,
        tools=tools,
        choice=word,
        callable=names,
        parallel=asked.parallel_tool_calls is not False,
        schema=schema,
        show_schema=form.type == "json_schema",
        thinking=thinks if effort is None else effort != "none",
        effort=EFFORTS.get(effort or "high", "high"),
    )


def messages_of(items: str | Sequence[Any]) -> list[Message]:
    """Input items as messages; those that make one assistant turn become one message."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[Message] = []
    for item in items:
        match item:
            case InputMessage(role="assistant"):
                turn = _assistant_turn(messages, before=("tool_calls",))
                turn["content"] += _joined(item.content, "")
            case InputMessage():
                role = "system" if item.role == "developer" else item.role
                messages.append({"role": role, "content": _joined(item.content, "\n\n")})
            case ReasoningItem():
                text = "".join(part.text for part in item.content or ())
                text = text or unwrap(item.encrypted_content or "") or ""
                if text:
                    turn = _assistant_turn(messages, before=("content", "tool_calls"))
                    turn["reasoning_content"] = turn.get("reasoning_content", "") + text
            case FunctionCall():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                _assistant_turn(messages).setdefault("tool_calls", []).append(call)
            case FunctionCallOutput():
                output = _joined(item.output, "\n\n")
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
    return messages


def _assistant_turn(messages: list[Message], before: Sequence[str] = ()) -> Message:
    """The assistant message in the making; a new one where it has what the item comes before."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or any(last.get(name) for name in before):
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    return last


def _joined(content: str | list[InputText], between: str) -> str:
    return content if isinstance(content, str) else between.join(part.text for part in content)


def _choice_of(
    asked: ResponseRequest, tools: list[Message]
) -> tuple[Choice, tuple[str, ...] | None]:
    choice = asked.tool_choice
    if isinstance(choice, NamedFunction):
        return check_choice("required", (choice.name,), tools)
    if isinstance(choice, AllowedFunctions):
        return check_choice(choice.mode, tuple(tool.name for tool in choice.tools), tools)
    return check_choice(choice or "auto", None, tools)


# --------------------------------------------------------------------------------------------------
# The answer


class Responses:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, ResponseRequest)
        model = self._service.require_model(asked.model)
        chat = await self._service.threads.run(
            partial(conversation_of, asked, self._service.settings.thinking)
        )
        echoed = await self._service.threads.run(partial(_echoed, asked))
        writer = ResponseWriter(self._service.tokenizer, model, echoed, asked.include or ())

        async def begin() -> Answering:
            wants_logprobs = "message.output_text.logprobs" in (asked.include or ())
            sampling = Sampling(
                params=sampling_params(temperature=asked.temperature, top_p=asked.top_p, seed=None),
                max_tokens=asked.max_output_tokens,
                top_logprobs=(asked.top_logprobs or 0) if wants_logprobs else None,
            )
            return await answer(self._service, ROUTE, owner_of(request), chat, sampling)

        async def complete() -> Json:
            answering = await begin()
            async with answering.exchange:
                async for _, said in answering:
                    writer.take(answering.replies[0], said)
                    if isinstance(said, Answered) and said.failure is not None:
                        raise said.failure
            return writer.response()

        if not asked.stream:
            return Answer(await whole(request, complete()))
        answering = await whole(request, begin())
        return Frames(
            writer.frames(answering),
            answering.exchange.cancel,
            keep_alive_seconds=self._service.settings.keep_alive_seconds,
        )


def _echoed(asked: ResponseRequest) -> Json:
    """What a response repeats of its request."""
    repeated = {"text", "tool_choice", "tools"}
    given = asked.model_dump(by_alias=True, exclude_none=True, include=repeated)
    effort = asked.reasoning.effort if asked.reasoning is not None else None
    return {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": effort, "summary": None},
        "store": False,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": given.get("text") or {"format": {"type": "text"}},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": "disabled",
        "background": False,
    }
