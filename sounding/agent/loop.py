"""The loop of a conversation with tools: the model's turn, its calls, their results, again.

`Chat` answers, be it an engine in this process or a server elsewhere; `Tools` are what it may call.
Rollouts, which sample token by token themselves, use `results_of` alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Message = Mapping[str, Any]
Ended = Literal["answer", "turns", "length"]


@dataclass(frozen=True)
class Turn:
    """One answer of a model."""

    message: Message
    """Of the role assistant, in the form of OpenAI."""
    finished: bool
    """False where it was cut off at a limit."""


@runtime_checkable
class Chat(Protocol):
    """Something that answers conversations; safe to call from several threads."""

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Message], *, thinking: bool, seed: int
    ) -> Turn:
        """The next message of a conversation."""


@runtime_checkable
class Tools(Protocol):
    """Tools of one conversation."""

    @property
    def tools(self) -> Sequence[Message]:
        """Their schemas, in the form of OpenAI."""

    def call(self, name: str, arguments: str) -> str:
        """The result of a call as text; a mistake in it is a result too."""


@dataclass(frozen=True)
class Transcript:
    """What was said behind the first messages, and why it ended."""

    messages: tuple[Message, ...]
    ended: Ended
    """"answer": a message without calls; "turns": the last turn still had some; "length": a
    message was cut off."""
    turns: int


def converse(
    chat: Chat,
    messages: Sequence[Message],
    tools: Tools | None,
    *,
    most_turns: int,
    thinking: bool = False,
    seed: int = 0,
) -> Transcript:
    """Let a model answer, calling tools as often as it wants up to `most_turns` answers.

    Every turn has a seed of its own, made of `seed` and its number.
    """
    if most_turns < 1:
        raise ValueError(f"most_turns = {most_turns} must be at least 1")
    said: list[Message] = []
    schemas = tools.tools if tools is not None else ()
    for number in range(most_turns):
        turn = chat([*messages, *said], schemas, thinking=thinking, seed=seed * most_turns + number)
        message = with_ids(turn.message, number)
        said.append(message)
        if not turn.finished:
            return Transcript(tuple(said), "length", number + 1)
        results = results_of(message, tools)
        if results is None:
            return Transcript(tuple(said), "answer", number + 1)
        said += results
    return Transcript(tuple(said), "turns", most_turns)


def results_of(message: Message, tools: Tools | None) -> list[Message] | None:
    """The results of a message's calls, as messages; None where it has no calls."""
    calls = message.get("tool_calls") or ()
    if not calls:
        return None
    results: list[Message] = []
    for call in calls:
        function = call["function"]
        content = (
            "error: there are no tools"
            if tools is None
            else tools.call(function["name"], function["arguments"])
        )
        results.append({"role": "tool", "tool_call_id": call.get("id", ""), "content": content})
    return results


def with_ids(message: Message, turn: int) -> Message:
    """A message whose calls have ids: an engine's have none, and results are put to them by ids."""
    calls = message.get("tool_calls") or ()
    if not calls:
        return message
    named = [{"id": f"call_{turn}_{number}", **call} for number, call in enumerate(calls)]
    return {**message, "tool_calls": named}
