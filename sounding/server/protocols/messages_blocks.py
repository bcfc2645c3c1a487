"""The messages of `/v1/messages` and their blocks, and their conversion to the prompt format.

Clients send the whole history each time, so a block of another model or of a hosted tool must not
cause a refusal: such blocks are left out, and pictures in results and earlier turns become
`[Unsupported image]`, as in the published encoder. Only the newest question must be text.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator
from pydantic.types import Discriminator

from sounding.server.conversation import Message, described
from sounding.server.http.wire import Refused, Wire, fault
from sounding.server.protocols.fields import ONLY_TEXT, Effort
from sounding.server.protocols.opaque import unwrap
from sounding.text.markup import to_json

CACHED = {"cache_control": "every prefix is cached without markers"}

# Its digits change with each request, so no later prompt would share the prefix.
_BILLING = "x-anthropic-billing-header:"
_UNSEEN = ("image", "document", "search_result", "container_upload")
_HOSTED = ("server_tool_use", "mcp_tool_use", "redacted_thinking", "compaction", "fallback")


# --------------------------------------------------------------------------------------------------
# Requests


class TextBlock(Wire):
    accepted: ClassVar = CACHED
    refused: ClassVar = {"citations": Refused("citations are not available", ([],))}

    type: Literal["text"]
    text: str


class ThinkingBlock(Wire):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


def _object(given: Any) -> Any:
    return {} if isinstance(given, str) and given.strip() in ("", "null") else given


class ToolUseBlock(Wire):
    accepted: ClassVar = CACHED | {"caller": "every call is the model's own"}

    type: Literal["tool_use"]
    id: str
    name: str
    input: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(default_factory=dict)
    """Null or blank means a call without arguments."""


class ToolReferenceBlock(Wire):
    accepted: ClassVar = CACHED

    type: Literal["tool_reference"]
    tool_name: str


class LeftOutBlock(Wire):
    """A block of another model or of a hosted tool; it is left out."""

    type: str

    @model_validator(mode="before")
    @classmethod
    def _know_every_name(cls, given: Any) -> Any:
        return {"type": given["type"]} if isinstance(given, dict) else given


class UnseenBlock(Wire):
    """A block that is not text, or text in another form."""

    accepted: ClassVar = CACHED | {
        "title": "only the text is used",
        "context": "only the text is used",
        "citations": "citations are not available",
        "file_id": "files are not available",
    }

    type: str
    source: Any = None
    content: Any = None

    @property
    def text(self) -> str | None:
        """The text of a document or a search result that consists of text."""
        source = self.source if isinstance(self.source, dict) else {}
        if source.get("type") == "text" and isinstance(source.get("data"), str):
            return str(source["data"])
        inside = source.get("content") if self.type == "document" else self.content
        if isinstance(inside, str):
            return inside
        texts = [part.get("text") if isinstance(part, dict) else None for part in inside or ()]
        return "\n\n".join(map(str, texts)) if texts and None not in texts else None


def _block_type(block: Any) -> Any:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    if not isinstance(kind, str):
        return None
    if kind in _HOSTED or (kind.endswith("_tool_result") and kind != "tool_result"):
        return "left_out"
    return "unseen" if kind in _UNSEEN else kind


class ToolResultBlock(Wire):
    accepted: ClassVar = CACHED | {"is_error": "the content of the result describes the error"}

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        str
        | list[
            Annotated[
                Annotated[TextBlock, Tag("text")]
                | Annotated[ToolReferenceBlock, Tag("tool_reference")]
                | Annotated[UnseenBlock, Tag("unseen")],
                Discriminator(
                    _block_type,
                    custom_error_type="block",
                    custom_error_message="a block of a result is one of text, tool_reference, "
                    "image, document, search_result",
                ),
            ]
        ]
    ) = ""


class MessageEffort(Wire):
    effort: Effort | None = None


class MessageParam(Wire):
    role: Literal["user", "assistant", "system"]
    content: (
        str
        | list[
            Annotated[
                Annotated[TextBlock, Tag("text")]
                | Annotated[ThinkingBlock, Tag("thinking")]
                | Annotated[ToolUseBlock, Tag("tool_use")]
                | Annotated[ToolResultBlock, Tag("tool_result")]
                | Annotated[LeftOutBlock, Tag("left_out")]
                | Annotated[UnseenBlock, Tag("unseen")],
                Discriminator(
                    _block_type,
                    custom_error_type="block",
                    custom_error_message="a content block is one of text, thinking, tool_use, "
                    f"tool_result; {ONLY_TEXT}",
                ),
            ]
        ]
    )
    output_config: MessageEffort | None = None

    @model_validator(mode="after")
    def _blocks_of_the_role(self) -> "MessageParam":
        own = {"assistant": ("thinking", "tool_use"), "user": ("tool_result",)}.get(self.role, ())
        for block in self.content if isinstance(self.content, list) else ():
            if isinstance(block, LeftOutBlock | UnseenBlock) and self.role != "system":
                continue
            if block.type not in ("text", *own):
                raise fault(
                    "content", f"{block.type} blocks are not allowed in {self.role} messages"
                )
        return self

    def as_messages(self, library: "Library") -> Iterator[Message]:
        """Convert to the shape that the prompt encoder reads; each tool result is a message."""
        blocks = self.content
        if isinstance(blocks, str):
            text = _without_billing(blocks) if self.role == "system" else blocks
            yield {"role": self.role, "content": text}
        elif self.role == "assistant":
            yield _assistant(blocks)
        elif self.role == "system":
            for block in blocks:
                if isinstance(block, TextBlock):
                    yield {"role": "system", "content": _without_billing(block.text)}
        else:
            yield from _user(blocks, library)


class Library:
    """The tools of a request; some are described only where a result refers to them."""

    def __init__(self, tools: Sequence[Message], deferred: Collection[str]) -> None:
        self._tools = {tool["function"]["name"]: tool for tool in tools}
        self.known = [tool for tool in tools if tool["function"]["name"] not in deferred]
        """The tools that can be called."""
        self.later: list[str] = []
        """The names of tools that a message describes."""
        self._waiting = set(deferred)

    def reference(self, name: str) -> str:
        """The prompt's text for a reference: the tool itself at its first reference."""
        if name not in self._waiting:
            return name
        self._waiting.remove(name)
        self.later.append(name)
        self.known.append(self._tools[name])
        return described([self._tools[name]])


# --------------------------------------------------------------------------------------------------
# Conversion


def asked_in_text(messages: list[MessageParam]) -> list[MessageParam]:
    """Raises for a picture in the newest question, behind the last assistant message."""
    for number in reversed(range(len(messages))):
        message = messages[number]
        if message.role == "assistant":
            break
        for place, block in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(block, UnseenBlock) and block.text is None:
                where = f"messages[{number}].content[{place}]"
                raise fault(
                    "messages",
                    f"{where}: blocks of type {block.type!r} are not supported: {ONLY_TEXT}",
                )
    return messages


def results_of_calls(messages: list[MessageParam]) -> list[MessageParam]:
    """Raises for the result of a call that no message before it makes."""
    called: set[str] = set()
    for number, message in enumerate(messages):
        for place, block in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(block, ToolUseBlock):
                called.add(block.id)
            elif isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                where = f"messages[{number}].content[{place}]"
                raise fault(
                    "messages",
                    f"{where}: no tool_use before it has the id {block.tool_use_id!r:.80}; send "
                    "the assistant's message with the call, too",
                )
    return messages


def text_of_system(content: str | list[TextBlock]) -> str:
    blocks = [content] if isinstance(content, str) else [block.text for block in content]
    kept = [_without_billing(text) for text in blocks]
    return "\n\n".join(text for text, given in zip(kept, blocks, strict=True) if text or not given)


def _without_billing(text: str) -> str:
    """System text without the first line that Claude Code adds for the hosted service."""
    return text.partition("\n")[2].lstrip("\n") if text.startswith(_BILLING) else text


def _assistant(blocks: Sequence[Any]) -> Message:
    message: Message = {"role": "assistant", "content": ""}
    calls = []
    for block in blocks:
        match block:
            case TextBlock():
                message["content"] += block.text
            case ThinkingBlock():
                text = block.thinking or unwrap(block.signature) or ""
                if text:  # an emptied thought is a lost one, which the server may remember
                    message["reasoning_content"] = message.get("reasoning_content", "") + text
            case ToolUseBlock():
                function = {"name": block.name, "arguments": to_json(block.input)}
                calls.append({"id": block.id, "type": "function", "function": function})
            case UnseenBlock():
                message["content"] += _text(block)
    return message | ({"tool_calls": calls} if calls else {})


def _user(blocks: Sequence[Any], library: Library) -> Iterator[Message]:
    for block in blocks:
        match block:
            case ToolResultBlock():
                content = _result(block, library)
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
            case TextBlock() | UnseenBlock():
                yield {"role": "user", "content": _text(block)}
    if not blocks or all(isinstance(block, LeftOutBlock) for block in blocks):
        yield {"role": "user", "content": ""}


def _result(block: ToolResultBlock, library: Library) -> str:
    if isinstance(block.content, str):
        return block.content
    # Tools are lines, as at the prompt's beginning; texts are paragraphs.
    text, after_tool = "", False
    for index, part in enumerate(block.content):
        refers = isinstance(part, ToolReferenceBlock)
        if index:
            text += "\n" if refers and after_tool else "\n\n"
        if isinstance(part, ToolReferenceBlock):
            text += library.reference(part.tool_name)
        else:
            text += _text(part)
        after_tool = refers
    return text


def _text(block: Any) -> str:
    if isinstance(block, UnseenBlock) and block.text is None:
        return f"[Unsupported {block.type}]"
    return str(block.text)
