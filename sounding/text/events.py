"""The events of a streaming parser, and the message they add up to.

Both parsers emit these events, and a message is always their sum, so that streamed and
whole-text parsing cannot differ.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_OPENING = re.compile("<[｜|]+DSML[｜|]+invoke")
_CLOSING = re.compile(r"</[｜|]+DSML[｜|]+invoke(>?)\s*\Z")


@dataclass(slots=True)
class ReasoningDelta:
    """More text of the reasoning."""

    text: str


@dataclass(slots=True)
class ContentDelta:
    """More text of the answer."""

    text: str


@dataclass(slots=True)
class CallBegun:
    """A call to the tool `name` starts; `index` counts the calls of the message from 0."""

    index: int
    name: str


@dataclass(slots=True)
class ArgumentsDelta:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(slots=True)
class CallDone:
    """The end of a call.

    `arguments` is its whole JSON text; `sampled` the text it was read from, since the call before
    it or the end of the content. A call that the text breaks off in is not `complete`.
    """

    index: int
    arguments: str
    sampled: str
    complete: bool


@dataclass(slots=True)
class Repair:
    """A repair of malformed text (tolerant parsing only).

    `kind` is one of the names in docs/prompt.md, `detail` describes the repair.
    """

    kind: str
    detail: str


@dataclass(slots=True)
class End:
    """The end of the completion: "stop", "tool_calls", or "length" for a text that is cut off.

    `tail` is the sampled text after the last call that closes its block; None when the calls are
    not one block at the end, so that no prompt could repeat the text.
    """

    finish_reason: str
    tail: str | None


Event = ReasoningDelta | ContentDelta | CallBegun | ArgumentsDelta | CallDone | Repair | End


@dataclass(slots=True)
class Call:
    """One finished tool call of a completion."""

    name: str
    arguments: str
    sampled: str
    complete: bool


@dataclass(slots=True)
class ParsedCompletion:
    """The sum of a parser's events."""

    reasoning_content: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    finish_reason: str = ""
    tail: str | None = None

    def message(self) -> dict[str, Any]:
        """The message, its calls in OpenAI shape without ids. Source: docs/prompt.md 7."""
        return {
            "role": "assistant",
            "content": self.content,
            "reasoning_content": self.reasoning_content,
            "tool_calls": [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ],
        }


def collect(events: Iterable[Event]) -> ParsedCompletion:
    """Add events up to the completion they describe."""
    completion, reasoning, content = ParsedCompletion(), [], []
    names: dict[int, str] = {}
    for event in events:
        match event:
            case ReasoningDelta(text):
                reasoning.append(text)
            case ContentDelta(text):
                content.append(text)
            case CallBegun(index, name):
                names[index] = name
            case CallDone(index, arguments, sampled, complete):
                completion.calls.append(Call(names[index], arguments, sampled, complete))
            case Repair():
                completion.repairs.append(event)
            case End(finish_reason, tail):
                completion.finish_reason, completion.tail = finish_reason, tail
    completion.reasoning_content, completion.content = "".join(reasoning), "".join(content)
    return completion


def coalesce(events: Iterable[Event]) -> list[Event]:
    """Join neighbouring deltas of one kind: streams are equivalent if these lists are equal."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        match last, event:
            case (ReasoningDelta(a), ReasoningDelta(b)):
                joined[-1] = ReasoningDelta(a + b)
            case (ContentDelta(a), ContentDelta(b)):
                joined[-1] = ContentDelta(a + b)
            case (ArgumentsDelta(i, a), ArgumentsDelta(j, b)) if i == j:
                joined[-1] = ArgumentsDelta(i, a + b)
            case _:
                joined.append(event)
    return joined


def split_sampled(sampled: str) -> tuple[str, str]:
    """Part the sampled text of a call into what precedes its opening tag and the call itself.

    The call comes with the ">" of its closing tag, which the sampled text may leave to the next;
    it is "" when it has no closing tag.
    """
    # Whatever bars were sampled, the opening tag is the first with that name.
    opening, closing = _OPENING.search(sampled), _CLOSING.search(sampled)
    if opening is None or closing is None:
        return sampled, ""
    call = sampled[opening.start() :]
    return sampled[: opening.start()], call if closing[1] else call + ">"
