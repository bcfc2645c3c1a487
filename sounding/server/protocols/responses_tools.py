"""The tools of `/v1/responses`: how the prompt describes each kind, and how calls are sent back.

The prompt format has functions with plain names. A function of a namespace gets a joined name,
which its calls split again; a custom tool, whose input is free text, becomes a function with one
string; a tool search that the client runs becomes a function, too. Hosted tools are left out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator
from pydantic.types import Discriminator

from sounding.server.conversation import Choice, Message
from sounding.server.http.errors import Refusal
from sounding.server.http.wire import Wire
from sounding.server.protocols.fields import check_choice

CallType = Literal["function_call", "custom_tool_call", "tool_search_call"]

# Hosted tools. Also shells and patches, whose calls are items of their own.
_HOSTED = (
    "web_search",
    "web_search_preview",
    "file_search",
    "code_interpreter",
    "image_generation",
    "computer",
    "computer_use",
    "computer_use_preview",
    "mcp",
    "local_shell",
    "shell",
    "apply_patch",
    "programmatic_tool_calling",
)
_TYPES = ("function", "custom", "namespace", "tool_search", "web_search")
_SEARCH = "tool_search"
INPUT = "input"  # the one parameter of a custom tool


class FunctionTool(Wire):
    accepted: ClassVar = {
        "defer_loading": "all tools are described at the start",
        "output_schema": "results are not validated",
    }

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomFormat(Wire):
    type: Literal["text", "grammar"] = "text"
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None
    """Part of the description; decoding is not constrained to it."""


class CustomTool(Wire):
    accepted: ClassVar = {"defer_loading": "all tools are described at the start"}

    type: Literal["custom"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    format: CustomFormat | None = None


def type_of(given: Any) -> Any:
    """The type of a JSON object or of its parsed model; "other" for an unknown type."""
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return kind if isinstance(kind, str) else None


def _tool_type(given: Any) -> Any:
    kind = type_of(given)
    # Dated names, such as web_search_2025_08_26.
    hosted = kind is not None and (kind in _HOSTED or kind.startswith("web_search_"))
    return "hosted" if hosted else kind


class Namespace(Wire):
    """The functions of one source, such as an MCP server."""

    type: Literal["namespace"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    tools: list[
        Annotated[
            Annotated[FunctionTool, Tag("function")] | Annotated[CustomTool, Tag("custom")],
            Discriminator(type_of),
        ]
    ]


class ToolSearch(Wire):
    """A search for further tools; a function if the client runs it, else without effect."""

    type: Literal["tool_search"]
    execution: Literal["client", "server"] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


class HostedTool(Wire):
    """A hosted tool; left out of the prompt with any content."""

    type: str

    @model_validator(mode="before")
    @classmethod
    def _know_every_name(cls, given: Any) -> Any:
        return {"type": given["type"]} if isinstance(given, dict) else given


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[Namespace, Tag("namespace")]
    | Annotated[ToolSearch, Tag("tool_search")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(
        _tool_type,
        custom_error_type="tool",
        custom_error_message=f"a tool's type is one of {', '.join(_TYPES)} and the like",
    ),
]


class NamedTool(Wire):
    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


def _named_type(given: Any) -> Any:
    kind = _tool_type(given)
    return "named" if kind in ("function", "custom") else kind


_UNKNOWN = "tool_choice must name a function, a custom tool or allowed_tools"


class AllowedTools(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[
        Annotated[
            Annotated[NamedTool, Tag("named")]
            | Annotated[ToolSearch, Tag("tool_search")]
            | Annotated[HostedTool, Tag("hosted")],
            Discriminator(_named_type, custom_error_type="tool", custom_error_message=_UNKNOWN),
        ]
    ] = Field(min_length=1)


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[
        Annotated[NamedTool, Tag("named")]
        | Annotated[AllowedTools, Tag("allowed_tools")]
        | Annotated[ToolSearch, Tag("tool_search")]
        | Annotated[HostedTool, Tag("hosted")],
        Discriminator(_named_type, custom_error_type="tool", custom_error_message=_UNKNOWN),
    ]
)


# --------------------------------------------------------------------------------------------------
# Conversion


@dataclass(frozen=True)
class Called:
    """How a call goes back to the client."""

    type: CallType
    name: str
    namespace: str | None = None


def joined(name: str, namespace: str | None) -> str:
    """The name of a tool in the prompt."""
    if not namespace:
        return name
    return namespace + ("" if namespace.endswith("__") else "__") + name


class Offer:
    """The tools of a request as functions, in order, and the call type of each."""

    def __init__(self, tools: Iterable[Any]) -> None:
        self.functions: list[Message] = []
        self.called: dict[str, Called] = {}
        self.later: list[str] = []
        """Names of tools that the conversation added."""
        for tool in tools:
            self._add(tool, None)

    def _add(self, tool: Any, namespace: str | None) -> None:
        match tool:
            case Namespace():
                for inner in tool.tools:
                    self._add(inner, tool.name)
            case FunctionTool():
                shown = {"name": joined(tool.name, namespace)}
                more = tool.model_dump(exclude_none=True, exclude={"type", "name"})
                self._offer(shown | more, Called("function_call", tool.name, namespace))
            case CustomTool():
                shown = _custom(tool, joined(tool.name, namespace))
                self._offer(shown, Called("custom_tool_call", tool.name, namespace))
            case ToolSearch(execution="client"):
                shown = {"name": _SEARCH}
                more = tool.model_dump(include={"description", "parameters"}, exclude_none=True)
                self._offer(shown | more, Called("tool_search_call", _SEARCH))

    def _offer(self, function: Message, called: Called) -> None:
        self.functions.append({"type": "function", "function": function})
        self.called[function["name"]] = called

    def extend(self, later: "Offer") -> None:
        """Add tools of a message, which describes them; the first of a name wins."""
        for tool in later.functions:
            name = tool["function"]["name"]
            if name not in self.called:
                self.functions.append(tool)
                self.called[name] = later.called[name]
                self.later.append(name)


def _custom(tool: CustomTool, name: str) -> Message:
    description = tool.description or ""
    form = tool.format
    if form is not None and form.definition:
        syntax = form.syntax or "given"
        description += f"\n\nThe input follows this {syntax} grammar:\n{form.definition}"
    parameters = {
        "type": "object",
        "properties": {INPUT: {"type": "string"}},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return {"name": name, "description": description.strip(), "parameters": parameters}


def choice_of(
    choice: ToolChoice | None, functions: list[Message]
) -> tuple[Choice, tuple[str, ...] | None]:
    """Whether to call, and which tools. Raises Refusal for an unknown or hosted tool."""
    match choice:
        case NamedTool():
            return check_choice("required", (joined(choice.name, choice.namespace),), functions)
        case ToolSearch():
            return check_choice("required", (_SEARCH,), functions)
        case HostedTool():
            raise _not_run(choice.type)
        case AllowedTools():
            names = [
                joined(tool.name, tool.namespace) if isinstance(tool, NamedTool) else _SEARCH
                for tool in choice.tools
                if not isinstance(tool, HostedTool)
            ]
            if not names:
                raise _not_run(choice.tools[0].type)
            return check_choice(choice.mode, tuple(names), functions)
    return check_choice(choice or "auto", None, functions)


def _not_run(kind: str) -> Refusal:
    return Refusal(
        400,
        f"tool_choice: hosted tools such as {kind[:60]!r} are not available; use a function",
        param="tool_choice",
        code="unsupported_parameter",
    )


def item_of(called: Mapping[str, Called], name: str) -> Called:
    """The call type of a name; the model may have invented the name."""
    return called.get(name, Called("function_call", name))


def input_of(arguments: str) -> str:
    """The free text of a call to a custom tool; all arguments if the model wrote others."""
    given = json.loads(arguments)
    text = given.get(INPUT) if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments
