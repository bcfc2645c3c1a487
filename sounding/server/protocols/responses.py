"""`/v1/responses`: OpenAI's newer protocol, stateless: every request contains its whole input.

Reasoning is sent as text in a reasoning item and, if requested, in its `encrypted_content`, which
here encodes the same text (opaque.py).
"""

from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from sounding.server.conversation import EFFORTS, Conversation, Sampling, sampling_params
from sounding.server.http.errors import Refusal
from sounding.server.http.streaming import Frames, JSONAnswer, whole
from sounding.server.http.wire import Json, Refused, Wire, fault
from sounding.server.protocols.answering import Answering, answer
from sounding.server.protocols.fields import METADATA, MOST_TOOLS, Effort
from sounding.server.protocols.responses_items import Item, later_tools, messages_of
from sounding.server.protocols.responses_tools import Offer, Tool, ToolChoice, choice_of
from sounding.server.protocols.responses_writer import ResponseWriter
from sounding.server.reply import Answered
from sounding.server.service import Service, owner_of

ROUTE = "/v1/responses"

_STATELESS = "the server stores no items: send the earlier items as input"


# --------------------------------------------------------------------------------------------------
# Requests


class Reasoning(Wire):
    accepted: ClassVar = {
        "summary": "reasoning is sent whole, never summarized",
        "generate_summary": "reasoning is sent whole, never summarized",
        "context": "the prompt format decides which reasoning stays",
    }

    effort: Effort | None = None


class TextFormat(Wire):
    accepted: ClassVar = {
        "name": "ignored: schemas are matched by content",
        "description": "ignored: schemas are matched by content",
        "strict": "the answer always follows the schema",
    }

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _schema_where_due(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise fault(
                "schema", "schema is required with type 'json_schema', and only allowed there"
            )
        return self


Include = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]


class TextConfig(Wire):
    accepted: ClassVar = {"verbosity": "a hint that the prompt format cannot express"}

    format: TextFormat | None = None


class ResponseStreamOptions(Wire):
    accepted: ClassVar = {"include_obfuscation": "streams are not obfuscated"}


class ResponseRequest(Wire):
    accepted: ClassVar = {
        **{name: why for name, why in METADATA.items() if name not in ("metadata", "samplers")},
        "client_metadata": "metadata",
        "max_tool_calls": "the server calls no tools itself",
        "context_management": "the input is used as sent; nothing is cleared from it",
    }
    refused: ClassVar = {
        "previous_response_id": Refused(_STATELESS),
        "conversation": Refused(_STATELESS),
        "store": Refused(_STATELESS, (False,)),
        "background": Refused("background responses are not supported", (False,)),
        "prompt": Refused("stored prompts are not available; send the prompt as input"),
        "truncation": Refused("the input is never truncated; shorten it", ("disabled",)),
        "moderation": Refused("moderation is not available"),
    }

    model: str | None = None
    """Empty or absent: the model that is served."""
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Includes reasoning."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """For the text, with include: ["message.output_text.logprobs"]."""
    include: list[Include] | None = None
    """Additions of hosted tools have no effect: there are none."""
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MOST_TOOLS)
    """The prompt describes functions, also those of namespaces, and custom tools; hosted tools are
    left out."""
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    """Returned with the response."""


# --------------------------------------------------------------------------------------------------
# Conversion


def conversation_of(asked: ResponseRequest, offer: Offer, thinks: bool) -> Conversation:
    """Convert to a `Conversation`; `thinks` is the default for thinking."""
    messages = messages_of(asked.input)
    if asked.instructions:
        messages.insert(0, {"role": "system", "content": asked.instructions})
    # A client whose stream broke off sends the items of the answer that it has, to have the rest.
    goes_on = bool(messages) and messages[-1]["role"] == "assistant"
    if not messages or (goes_on and messages[-1].get("tool_calls")):
        raise _unanswerable("the last item must be a message or a call's output")
    word, names = choice_of(asked.tool_choice, offer.functions)
    effort = asked.reasoning.effort if asked.reasoning is not None else None
    form = (asked.text or TextConfig()).format or TextFormat()
    schema = {"type": "object"} if form.type == "json_object" else form.schema_
    if goes_on and schema is not None and messages[-1]["content"]:
        raise _unanswerable("an answer with a format cannot be gone on with; leave it out")
    return Conversation(
        messages=messages,
        prefix=goes_on,
        tools=offer.functions,
        later=offer.later,
        choice=word,
        callable=names,
        parallel=asked.parallel_tool_calls is not False,
        schema=schema,
        show_schema=form.type == "json_schema",
        thinking=thinks if effort is None else effort != "none",
        effort=EFFORTS.get(effort or "high", "high"),
    )


def _unanswerable(rule: str) -> Refusal:
    message = f"input: nothing to answer; {rule}"
    return Refusal(400, message, param="input", code="invalid_value")


def offer_of(asked: ResponseRequest) -> Offer:
    """The tools that can be called, including those that the conversation added."""
    offer = Offer(asked.tools or ())
    for later in later_tools(asked.input):
        offer.extend(later)
    return offer


# --------------------------------------------------------------------------------------------------
# The answer


class Responses:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        asked = await self._service.read(request, ResponseRequest)
        model = self._service.require_model(asked.model)
        offer = await self._service.threads.run(partial(offer_of, asked))
        chat = await self._service.threads.run(
            partial(conversation_of, asked, offer, self._service.settings.thinking)
        )
        echoed = await self._service.threads.run(partial(_echoed, asked))
        writer = ResponseWriter(
            self._service.tokenizer, model, echoed, asked.include or (), offer.called
        )

        async def begin() -> Answering:
            wants_logprobs = "message.output_text.logprobs" in (asked.include or ())
            sampling = Sampling(
                params=sampling_params(temperature=asked.temperature, top_p=asked.top_p, seed=None),
                max_tokens=asked.max_output_tokens,
                top_logprobs=(asked.top_logprobs or 0) if wants_logprobs else None,
            )
            how = (self._service, ROUTE, owner_of(request), chat, sampling)
            return await answer(*how, model=asked.model)

        async def complete() -> Json:
            answering = await begin()
            async with answering.exchange:
                async for _, said in answering:
                    writer.take(answering.replies[0], said)
                    if isinstance(said, Answered) and said.failure is not None:
                        raise said.failure
            return writer.response()

        if not asked.stream:
            return JSONAnswer(await whole(request, complete()))
        answering = await whole(request, begin())
        return Frames(
            writer.frames(answering),
            answering.exchange.cancel,
            keep_alive_seconds=self._service.settings.keep_alive_seconds,
        )


def _echoed(asked: ResponseRequest) -> Json:
    """Fields of the request that a response repeats."""
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
