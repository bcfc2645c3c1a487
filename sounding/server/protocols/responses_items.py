"""The input items of `/v1/responses`, and their conversion to a conversation.

An agent sends its whole history each time, so one refused item would end the conversation. Calls
and results of every tool that clients run are read, items of hosted tools are left out, and only
the newest question must be text.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, Tag, model_validator
from pydantic.types import Discriminator

from sounding.server.conversation import Message, described
from sounding.server.http.errors import Refusal
from sounding.server.http.wire import Refused, Wire, fault
from sounding.server.protocols.fields import ONLY_TEXT, arguments_of
from sounding.server.protocols.opaque import unwrap
from sounding.server.protocols.responses_tools import INPUT, Offer, Tool, joined, type_of
from sounding.text.markup import to_json

_LEFT_OVER = {"id": "belongs to an earlier answer", "status": "belongs to an earlier answer"}
_STATUS = {"status": "belongs to an earlier answer"}
_TURN = {"internal_chat_message_metadata_passthrough": "metadata"}
_UNSEEN = ("input_image", "input_file", "input_audio", "computer_screenshot", "encrypted_content")
# Items of hosted tools, or readable by the hosted service only.
_LEFT_OUT = (
    "web_search_call",
    "file_search_call",
    "image_generation_call",
    "code_interpreter_call",
    "computer_call",
    "computer_call_output",
    "mcp_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "compaction",
    "compaction_summary",
    "compaction_trigger",
    "context_compaction",
    "ghost_snapshot",
    "program",
    "program_output",
)


class Anything(Wire):
    """An object whose type alone is read."""

    type: str

    @model_validator(mode="before")
    @classmethod
    def _know_every_name(cls, given: Any) -> Any:
        return {"type": given["type"]} if isinstance(given, dict) else given


class InputText(Wire):
    accepted: ClassVar = {
        "annotations": "belongs to an earlier answer",
        "logprobs": "belongs to an earlier answer",
        "prompt_cache_breakpoint": "every prefix is cached without markers",
    }

    type: Literal["input_text", "output_text", "text"]
    text: str


class ShellOutput(Wire):
    """The output of a command of a shell_call."""

    accepted: ClassVar = {"outcome": "the text contains it", "created_by": "metadata"}

    stdout: str = ""
    stderr: str = ""

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


class RefusalText(Wire):
    """The refusal of another model, in place of an answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def _part_type(part: Any) -> Any:
    kind = type_of(part)
    if kind in _UNSEEN:
        return "unseen"
    if kind is None and isinstance(part, dict) and "stdout" in part:
        return "shell"
    return "text" if kind in ("input_text", "output_text") else kind


Part = Annotated[
    Annotated[InputText, Tag("text")]
    | Annotated[RefusalText, Tag("refusal")]
    | Annotated[ShellOutput, Tag("shell")]
    | Annotated[Anything, Tag("unseen")],
    Discriminator(
        _part_type,
        custom_error_type="part",
        custom_error_message=f"a content part is input_text or output_text; {ONLY_TEXT}",
    ),
]


class InputMessage(Wire):
    accepted: ClassVar = _LEFT_OVER | _TURN | {"phase": "belongs to an earlier answer"}

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class FunctionCall(Wire):
    accepted: ClassVar = _LEFT_OVER | _TURN
    refused: ClassVar = {
        "caller": Refused("only the model calls tools", ({"type": "direct"},)),
        "async": Refused("asynchronous calls are not supported", (False,)),
    }

    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    """Namespace of the tool; the prompt joins both into one name."""
    arguments: Annotated[str, AfterValidator(arguments_of)] = "{}"

    @property
    def shown(self) -> tuple[str, str]:
        return joined(self.name, self.namespace), self.arguments


class CustomCall(Wire):
    accepted: ClassVar = _LEFT_OVER | _TURN

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    namespace: str | None = None
    input: str = ""

    @property
    def shown(self) -> tuple[str, str]:
        return joined(self.name, self.namespace), to_json({INPUT: self.input})


class ActionCall(Wire):
    """A call of a tool whose arguments have an object type of their own."""

    accepted: ClassVar = _STATUS | _TURN | {"environment": "the client's own"}

    type: Literal["local_shell_call", "shell_call", "apply_patch_call"]
    id: str | None = None
    call_id: str | None = None
    action: dict[str, Any] = Field(default_factory=dict)
    operation: dict[str, Any] = Field(default_factory=dict)

    @property
    def shown(self) -> tuple[str, str]:
        return self.type.removesuffix("_call"), to_json(self.action or self.operation)


class ToolSearchCall(Wire):
    accepted: ClassVar = _LEFT_OVER | _TURN | {"execution": "the client's or another service's"}

    type: Literal["tool_search_call"]
    call_id: str | None = None
    arguments: Any = None

    @property
    def shown(self) -> tuple[str, str]:
        given = self.arguments if isinstance(self.arguments, dict) else {}
        return "tool_search", to_json(given)


class CallOutput(Wire):
    accepted: ClassVar = (
        _STATUS
        | _TURN
        | {
            "name": "the call has one",
            "max_output_length": "the output is used as sent",
        }
    )

    type: Literal[
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
    ]
    id: str | None = None
    call_id: str | None = None
    output: str | list[Part] = ""

    @model_validator(mode="after")
    def _named(self) -> "CallOutput":
        if self.call_id is None and (self.id is None or self.type != "local_shell_call_output"):
            raise fault("call_id", "an output requires the call_id of its call")
        return self


class ToolSearchOutput(Wire):
    accepted: ClassVar = _LEFT_OVER | _TURN | {"execution": "the client's or another service's"}

    type: Literal["tool_search_output"]
    call_id: str | None = None
    tools: list[Tool]


class AdditionalTools(Wire):
    accepted: ClassVar = _LEFT_OVER | _TURN | {"role": "tools are described by the system"}

    type: Literal["additional_tools"]
    tools: list[Tool]


class ReasoningText(Wire):
    type: Literal["reasoning_text", "text"]
    text: str


class ReasoningItem(Wire):
    accepted: ClassVar = _LEFT_OVER | _TURN | {"summary": "the full reasoning is used"}

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


def _item_type(item: Any) -> Any:
    if isinstance(item, Wire):
        kind = type_of(item)
    elif isinstance(item, dict):
        kind = type_of(item) or ("message" if "role" in item else None)
    else:
        return None
    if kind in _LEFT_OUT:
        return "left_out"
    if kind in ("local_shell_call", "shell_call", "apply_patch_call"):
        return "action"
    return "output" if isinstance(kind, str) and kind.endswith("_call_output") else kind


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[CustomCall, Tag("custom_tool_call")]
    | Annotated[ActionCall, Tag("action")]
    | Annotated[ToolSearchCall, Tag("tool_search_call")]
    | Annotated[CallOutput, Tag("output")]
    | Annotated[ToolSearchOutput, Tag("tool_search_output")]
    | Annotated[AdditionalTools, Tag("additional_tools")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[Anything, Tag("left_out")],
    Discriminator(
        _item_type,
        custom_error_type="item",
        custom_error_message="an input item is one of message, function_call, "
        "function_call_output, custom_tool_call, custom_tool_call_output, reasoning, "
        "or another item of an agent's history",
    ),
]


# --------------------------------------------------------------------------------------------------
# Conversion


def messages_of(items: str | Sequence[Any]) -> list[Message]:
    """Convert input items to messages; the items of one assistant turn become one message.

    Raises Refusal if the newest question is not text.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    _check_text(items)
    messages: list[Message] = []
    for number, item in enumerate(items):
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
            case FunctionCall() | CustomCall() | ActionCall() | ToolSearchCall():
                name, arguments = item.shown
                call_id = item.call_id or getattr(item, "id", None) or f"item_{number}"
                call = {"type": "function", "function": {"name": name, "arguments": arguments}}
                calls = _assistant_turn(messages).setdefault("tool_calls", [])
                calls.append({"id": call_id, **call})
            case CallOutput() | ToolSearchOutput():
                messages.append(_result(item))
            case AdditionalTools():
                tools = Offer(item.tools).functions
                messages.append({"role": "system", "content": "", "tools": tools})
    return messages


def later_tools(items: str | Sequence[Any]) -> Iterator[Offer]:
    """Tools that the conversation adds; the message that adds them describes them."""
    for item in () if isinstance(items, str) else items:
        if isinstance(item, ToolSearchOutput | AdditionalTools):
            yield Offer(item.tools)


def _check_text(items: Sequence[Any]) -> None:
    """Raises for pictures in the newest question; earlier turns may contain them."""
    for number in reversed(range(len(items))):
        item = items[number]
        if not isinstance(item, InputMessage) or item.role == "assistant":
            return
        for place, part in enumerate(item.content if isinstance(item.content, list) else ()):
            if isinstance(part, Anything):
                raise Refusal(
                    400,
                    f"input[{number}].content[{place}].type: content parts of type "
                    f"{part.type[:40]!r} are not supported: {ONLY_TEXT}",
                    param=f"input[{number}].content[{place}].type",
                    code="unsupported_parameter",
                )


def _result(item: CallOutput | ToolSearchOutput) -> Message:
    if isinstance(item, ToolSearchOutput):
        text = described(Offer(item.tools).functions)
    elif isinstance(item.output, str):
        text = item.output
    else:
        text = _joined(item.output, "\n\n")
    call_id = item.call_id or getattr(item, "id", None) or ""
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _assistant_turn(messages: list[Message], before: Sequence[str] = ()) -> Message:
    """The assistant message in progress; a new one if it already has a part behind this item."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or any(last.get(name) for name in before):
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    return last


def _joined(content: str | Sequence[Any], between: str) -> str:
    return content if isinstance(content, str) else between.join(map(_text, content))


def _text(part: Any) -> str:
    if isinstance(part, Anything):
        kind = part.type.removeprefix("input_")
        return f"[Unsupported {kind}]"  # as the published encoder writes it
    return str(part.text)
