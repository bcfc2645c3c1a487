"""`/v1/chat/completions`: OpenAI's protocol as DeepSeek documents it.

DeepSeek's additions: `thinking`, `reasoning_content` in requests and answers, `prefix` on a last
assistant message, cache hits in `usage`.
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
    sampling_params,
)
from sounding.server.http.streaming import Frames, JSONAnswer, whole
from sounding.server.http.wire import Json, Refused, Wire, fault
from sounding.server.protocols.answering import Answering, answer
from sounding.server.protocols.chat_completions_writer import ChatWriter
from sounding.server.protocols.fields import (
    METADATA,
    MOST_CHOICES,
    MOST_TOOLS,
    ONLY_TEXT,
    UNSUPPORTED_SAMPLING,
    Effort,
    StreamOptions,
    arguments_of,
    check_choice,
    most_tokens,
    stop_strings,
)
from sounding.server.service import Service, owner_of

ROUTE = "/v1/chat/completions"


# --------------------------------------------------------------------------------------------------
# Requests


class TextPart(Wire):
    """A piece of a message's content."""

    accepted: ClassVar = {"cache_control": "every prefix is cached without markers"}

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise fault(
                "type", f"content parts of type {kind[:40]!r} are not supported: {ONLY_TEXT}"
            )
        return given


class CalledFunction(Wire):
    name: str
    arguments: Annotated[str, AfterValidator(arguments_of)] = "{}"
    """JSON; blank or null is `{}`."""


class ToolCall(Wire):
    """A call of the assistant in an earlier turn."""

    accepted: ClassVar = {"index": "an artefact of streaming"}

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Wire):
    """One message. `developer` is the newer name of `system`."""

    accepted: ClassVar = {
        "name": "the prompt format has no speaker names",
        "annotations": "belongs to an earlier answer",
    }
    refused: ClassVar = {
        "refusal": Refused("the prompt format has no refusals"),
        "audio": Refused(ONLY_TEXT),
        "function_call": Refused("`function_call` is deprecated; use `tool_calls`"),
    }

    role: Literal["system", "developer", "user", "assistant", "tool", "latest_reminder"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    """The assistant's reasoning. Restored from the server's turn memory if missing."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None
    """On a last assistant message: continue it."""

    @model_validator(mode="after")
    def _belong_together(self) -> "ChatMessage":
        if self.role != "assistant":
            for name in ("reasoning_content", "tool_calls", "prefix"):
                if getattr(self, name):
                    raise fault(
                        name,
                        f"{name} is not allowed in {self.role} messages, only in assistant's",
                    )
            if self.content is None:
                raise fault("content", f"a {self.role} message needs content")
        if (self.role == "tool") != (self.tool_call_id is not None):
            rule = "tool messages need it" if self.role == "tool" else "only tool messages have it"
            raise fault("tool_call_id", f"tool_call_id: {rule}")
        return self

    def as_message(self) -> Message:
        """Convert to the shape that the prompt encoder reads."""
        role = "system" if self.role == "developer" else self.role
        message: Message = {"role": role}
        if isinstance(self.content, list) and role == "user":
            texts = [{"type": "text", "text": part.text} for part in self.content]
            return message | ({"content_blocks": texts} if texts else {"content": ""})
        message["content"] = text_of(self.content, "" if role == "assistant" else "\n\n")
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class FunctionDefinition(Wire):
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None
    """Constrain the decoding of calls to the schema."""


class FunctionTool(Wire):
    accepted: ClassVar = {"cache_control": "every prefix is cached without markers"}

    type: Literal["function"]
    function: FunctionDefinition

    def as_tool(self) -> Message:
        function = self.function.model_dump(exclude_none=True)
        return {"type": "function", "function": function}


class FunctionName(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


class SchemaFormat(Wire):
    accepted: ClassVar = {
        "name": "ignored: schemas are matched by content",
        "description": "ignored: schemas are matched by content",
        "strict": "the answer always follows the schema",
    }

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Wire):
    """`json_object` allows any object; `json_schema` follows a schema, shown in the prompt."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: SchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_due(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise fault(
                "json_schema",
                "json_schema is required with type 'json_schema', and only allowed there",
            )
        return self


class Thinking(Wire):
    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of reasoning tokens; then the answer begins."""


class ChatCompletionRequest(Wire):
    accepted: ClassVar = METADATA
    refused: ClassVar = UNSUPPORTED_SAMPLING | {
        "audio": Refused(ONLY_TEXT),
        "modalities": Refused(ONLY_TEXT, (["text"],)),
        "functions": Refused("`functions` is deprecated; use `tools`", ([],)),
        "function_call": Refused(
            "`function_call` is deprecated; use `tool_choice`", ("none", "auto")
        ),
        "web_search_options": Refused("the server does not search the web"),
        "moderation": Refused("moderation is not available"),
        "store": Refused("the server stores no answers", (False,)),
        "verbosity": Refused("request it in the prompt", ("medium",)),
    }

    model: str | None = None
    """Empty or absent: the model that is served."""
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of max_tokens; includes reasoning."""
    n_predict: int | None = Field(default=None, ge=-1)
    """llama.cpp's name of max_tokens; 0 only caches the prompt."""
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    stop: str | list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    thinking: Thinking | None = None
    reasoning_effort: Effort | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise fault("top_logprobs", "top_logprobs requires logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "stream_options requires stream: true")
        last = len(self.messages) - 1
        for index, message in enumerate(self.messages):
            if message.prefix and index < last:
                raise fault(
                    "messages", f"messages[{index}].prefix: only the last message may be a prefix"
                )
        if self.messages[last].role == "assistant" and not self.messages[last].prefix:
            raise fault(
                "messages",
                "the last message is the assistant's; to continue it, set its prefix to true",
            )
        enabled = self.thinking is not None and self.thinking.type == "enabled"
        if enabled and self.reasoning_effort == "none":
            raise fault("reasoning_effort", "reasoning_effort 'none' contradicts thinking")
        return self


def text_of(content: str | list[TextPart] | None, between: str) -> str:
    if isinstance(content, list):
        return between.join(part.text for part in content)
    return content or ""


# --------------------------------------------------------------------------------------------------
# Conversion


def conversation_of(request: ChatCompletionRequest, thinks: bool) -> Conversation:
    """Convert to a `Conversation`; `thinks` is the default for thinking."""
    effort = request.reasoning_effort
    thinking = thinks if effort is None else effort != "none"
    if request.thinking is not None:
        thinking = request.thinking.type == "enabled"
    tools = [tool.as_tool() for tool in request.tools or ()]
    choice, names = read_choice(request.tool_choice, tools)
    schema, shown = _schema_of(request.response_format)
    return Conversation(
        messages=[message.as_message() for message in request.messages],
        tools=tools,
        choice=choice,
        callable=names,
        parallel=request.parallel_tool_calls is not False,
        schema=schema,
        show_schema=shown,
        thinking=thinking,
        effort=EFFORTS.get(effort or "high", "high"),
        prefix=bool(request.messages[-1].prefix),
        thinking_budget=request.thinking.budget_tokens if request.thinking is not None else None,
    )


def read_choice(
    choice: ToolChoice | None, tools: list[Message]
) -> tuple[Choice, tuple[str, ...] | None]:
    """Whether to call, and which tools. Raises Refusal for an unknown tool."""
    names: tuple[str, ...] | None = None
    word: Choice = "auto"
    if isinstance(choice, NamedTool):
        word, names = "required", (choice.function.name,)
    elif isinstance(choice, AllowedToolsChoice):
        word = choice.allowed_tools.mode
        names = tuple(tool.function.name for tool in choice.allowed_tools.tools)
    elif choice is not None:
        word = choice
    return check_choice(word, names, tools)


def _schema_of(form: ResponseFormat | None) -> tuple[Any, bool]:
    """The schema of the content, None for text, and whether the prompt contains it."""
    if form is None or form.type == "text":
        return None, False
    if form.json_schema is None:
        return {"type": "object"}, False
    return form.json_schema.schema_, True


def sampling_of(request: ChatCompletionRequest) -> Sampling:
    return Sampling(
        params=sampling_params(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            seed=request.seed,
        ),
        max_tokens=most_tokens(
            request.max_tokens, request.max_completion_tokens, request.n_predict
        ),
        stop=stop_strings(request.stop),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


# --------------------------------------------------------------------------------------------------
# The answer


class ChatCompletions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, ChatCompletionRequest)
        writer = ChatWriter(
            self._service.tokenizer,
            self._service.require_model(asked.model),
            wants_logprobs=bool(asked.logprobs),
            wants_usage=bool(asked.stream_options and asked.stream_options.include_usage),
        )
        chat = await self._service.threads.run(
            partial(conversation_of, asked, self._service.settings.thinking)
        )

        async def begin() -> Answering:
            return await answer(
                *(self._service, ROUTE, owner_of(request), chat, sampling_of(asked), asked.n or 1),
                model=asked.model,
            )

        async def complete() -> Json:
            answering = await begin()
            ends = await answering.ends()
            return writer.whole(answering.replies, ends)

        if not asked.stream:
            return JSONAnswer(await whole(request, complete()))
        answering = await whole(request, begin())
        return Frames(
            writer.frames(answering),
            answering.exchange.cancel,
            keep_alive_seconds=self._service.settings.keep_alive_seconds,
        )
