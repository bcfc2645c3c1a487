"""Encode conversations as prompt text: roles, merging, thinking modes, tools, tasks.

`encode` renders what the published encoder renders, character for character; `encode_parts` returns
the same text in parts that say which the assistant wrote; `encode_completion` renders one assistant
message as the model would generate it. parse.py is the inverse.
Source: docs/prompt.md 2 to 6 and 9.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sounding.text.dsml.calls import call_fields, render_block, render_call
from sounding.text.markup import (
    ASSISTANT,
    BOS,
    EFFORT_TEXTS,
    END_THINK,
    EOS,
    FORBIDDEN_IN_TEXT,
    REMINDER,
    RESPONSE_FORMAT,
    TASKS,
    THINK,
    USER,
    to_json,
    tools_block,
)
from sounding.text.replay import Replay

Message = Mapping[str, Any]

_ASKING = ("user", "developer")
_KEPT_BEFORE_LAST_USER = {"user", "system", "tool", "latest_reminder", "direct_search_results"}


class Part(NamedTuple):
    """A piece of a prompt's text."""

    text: str
    answer: int | None = None
    """Index of the assistant message that the text renders, among the messages given to the
    encoder; None for everything that is no model's writing, its role tokens included."""


@dataclass(slots=True)
class _Turn:
    """One message after merging; `where` names its origin in errors."""

    role: str
    where: str
    message: Message
    index: int  # of the message, or the first of those merged, among the messages given
    blocks: list[Message] | None = None  # of a user turn: its texts and tool results, in order
    forgotten: bool = False  # an assistant turn whose reasoning is not rendered


def encode(
    messages: Sequence[Message],
    thinking_mode: str,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    reasoning_effort: str | None = None,
    *,
    effort_scheme: str = "april",
    replay: Replay | None = None,
    always_answer: bool = False,
) -> str:
    """Turn a conversation into the prompt the model continues.

    `thinking_mode` is "chat" or "thinking". `context` holds earlier messages that are encoded
    already: they count for the rules and are not rendered. `reasoning_effort` is one of the
    levels of `effort_scheme`: "april" has high and max (None means high), "0731" has low, high
    and max (None means low). `replay` supplies the sampled text of earlier calls. With
    `always_answer` the assistant's turn is opened behind a system message, too, that comes last or
    between the user's turn and its answer; in the published form the model continues that
    message. The arguments are not changed. Raises ValueError naming the message for anything the
    format does not define or cannot carry. Source: docs/prompt.md 2.
    """
    parts = encode_parts(
        messages,
        thinking_mode,
        context,
        drop_thinking,
        add_default_bos_token,
        reasoning_effort,
        effort_scheme=effort_scheme,
        replay=replay,
        always_answer=always_answer,
    )
    return "".join(part.text for part in parts)


def encode_parts(
    messages: Sequence[Message],
    thinking_mode: str,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    reasoning_effort: str | None = None,
    *,
    effort_scheme: str = "april",
    replay: Replay | None = None,
    always_answer: bool = False,
) -> list[Part]:
    """The text of `encode` in parts: those that are answers are what training puts a loss on.

    An answer's part holds its reasoning with the token that ends it, its content, its calls and its
    EOS; the role token and the token that opens or skips a thought belong to the prompt before it.
    """
    if thinking_mode not in ("chat", "thinking"):
        raise ValueError(f"thinking_mode is {thinking_mode!r}; it is 'chat' or 'thinking'")
    effort = _effort_text(reasoning_effort, effort_scheme)
    earlier = _merge(context or (), "context")
    turns = earlier + _merge(messages, "messages")
    _order_results(turns)
    start, thinking = len(earlier), thinking_mode == "thinking"
    dropping = drop_thinking and not any(turn.message.get("tools") for turn in turns)
    if thinking and dropping:
        turns, start = _forget(turns, start)
    last_user = _last_user(turns)
    parts = [Part(BOS)] if add_default_bos_token and not earlier else []
    if thinking and not earlier and turns:
        parts.append(Part(effort))
    for index in range(start, len(turns)):
        turn, previous = turns[index], turns[index - 1] if index else None
        keeps = thinking and (not dropping or index > last_user)
        if turn.role == "assistant":
            answers_task = previous is not None and previous.message.get("task") is not None
            parts.append(Part(_assistant(turn, keeps and not answers_task, replay), turn.index))
        else:
            parts.append(Part(_body(turn)))
        opens = thinking and (not dropping or index >= last_user)
        if index + 1 == len(turns) or turns[index + 1].role in ("assistant", "latest_reminder"):
            parts.append(Part(_transition(turn, thinking, opens)))
            if always_answer and _leaves_waiting(turns, index):
                parts.append(Part(ASSISTANT + (THINK if opens else END_THINK)))
    return parts


def encode_completion(message: Message, thinking_mode: str) -> str:
    """Write an assistant message as the model writes it after the prompt, up to and with EOS.

    Raises ValueError for a message that parse would not give back: markup in its content or
    reasoning, reasoning in chat mode, values with their own closing tag. Source: docs/prompt.md 7.
    """
    if thinking_mode not in ("chat", "thinking"):
        raise ValueError(f"thinking_mode is {thinking_mode!r}; it is 'chat' or 'thinking'")
    turn = _Turn("assistant", "the message", message, 0)
    for field in ("content", "reasoning_content"):
        text = _text(turn, field, missing="")
        for token in FORBIDDEN_IN_TEXT:
            if token in text:
                raise ValueError(
                    f"{field} contains {token!r} and could not be read back; write it differently"
                )
    if thinking_mode == "chat" and message.get("reasoning_content"):
        raise ValueError("reasoning_content cannot be written in chat mode; use thinking_mode")
    return _assistant(turn, thinking_mode == "thinking", None)


def _effort_text(effort: str | None, scheme: str) -> str:
    if not isinstance(scheme, str) or scheme not in EFFORT_TEXTS:
        raise ValueError(f"effort_scheme is {scheme!r}; it is one of {list(EFFORT_TEXTS)}")
    levels = EFFORT_TEXTS[scheme]
    if not (effort is None or isinstance(effort, str)) or effort not in levels:
        raise ValueError(
            f"reasoning_effort is {effort!r}; the {scheme} scheme has {list(levels)} "
            "(effort_scheme chooses another)"
        )
    return levels[effort]


def _merge(messages: Sequence[Message], name: str) -> list[_Turn]:
    """Turn tool messages into user blocks and join the blocks of one user turn (2.1)."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise ValueError(f"{name} is {messages!r:.80}; it is a list of messages")
    turns: list[_Turn] = []
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"{where} is {message!r:.80}; a message is an object with a role")
        turn = _Turn(message["role"], f"{where} ({message['role']})", message, index)
        last = turns[-1] if turns else None
        if turn.role == "tool":
            result = {
                "type": "tool_result",
                "tool_use_id": message.get("tool_call_id", ""),
                "content": message.get("content", ""),
            }
            if last is not None and last.blocks is not None:
                last.blocks.append(result)
            else:
                turns.append(_Turn("user", turn.where, {}, index, [result]))
        elif turn.role == "user":
            _refuse_tools(turn)
            blocks = _user_blocks(turn)
            if last is not None and last.blocks is not None and last.message.get("task") is None:
                last.blocks.extend(blocks)
            else:
                turn.blocks = blocks
                turns.append(turn)
        else:
            turns.append(turn)
    return turns


def _refuse_tools(turn: _Turn) -> None:
    # The published encoder loses these in silence.
    for field in ("tools", "response_format"):
        if turn.message.get(field):
            raise ValueError(
                f"{turn.where} carries {field}, which would not be rendered; "
                "put it on a system or developer message"
            )


def _user_blocks(turn: _Turn) -> list[Message]:
    blocks = turn.message.get("content_blocks")
    if not blocks:
        return [{"type": "text", "text": _text(turn, "content", missing="", null=None)}]
    if turn.message.get("content"):
        raise ValueError(f"{turn.where} has both content and content_blocks; give one of them")
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise ValueError(f"{turn.where} has content_blocks {blocks!r:.80}; it is a list of objects")
    return list(blocks)


def _order_results(turns: list[_Turn]) -> None:
    """Put the tool results of each user turn into the order of the calls they answer (2.1)."""
    order: dict[Any, int] = {}
    for turn in turns:
        if turn.role == "assistant" and turn.message.get("tool_calls"):
            order = {}
            for index, call in enumerate(_calls(turn)):
                function = call.get("function")
                inner = function.get("id") if isinstance(function, Mapping) else None
                call_id = call.get("id") or inner
                if isinstance(call_id, str | int) and call_id:
                    order[call_id] = index
        elif turn.blocks is not None:
            results = [block for block in turn.blocks if block.get("type") == "tool_result"]
            results.sort(key=lambda block: _place(order, block.get("tool_use_id")))
            in_order = iter(results)
            turn.blocks = [
                next(in_order) if block.get("type") == "tool_result" else block
                for block in turn.blocks
            ]


def _place(order: dict[Any, int], call_id: Any) -> int:
    return order.get(call_id, 0) if isinstance(call_id, str | int) else 0


def _last_user(turns: list[_Turn]) -> int:
    users = (i for i in reversed(range(len(turns))) if turns[i].role in _ASKING)
    return next(users, -1)


def _forget(turns: list[_Turn], start: int) -> tuple[list[_Turn], int]:
    """Drop what is not kept after the last user turn; also return where rendering starts then.

    The published encoder counts the surviving context with the context's own last user turn and
    so renders too little when a developer message there is superseded; we count what survived.
    """
    last_user = _last_user(turns)
    keeps = [
        index >= last_user or turn.role in _KEPT_BEFORE_LAST_USER or turn.role == "assistant"
        for index, turn in enumerate(turns)
    ]
    kept = [turn for turn, keep in zip(turns, keeps, strict=True) if keep]
    return kept, sum(keeps[:start])


def _body(turn: _Turn) -> str:
    """Render any turn but an assistant's, without what follows it (2.2)."""
    if turn.role == "system":
        return _text(turn, "content", missing="") + _instructions(turn)
    if turn.role == "developer":
        content = _text(turn, "content", missing="")
        if not content:
            raise ValueError(f"{turn.where} has no content; a developer message needs some")
        return USER + content + _instructions(turn)
    if turn.blocks is not None:
        return USER + "\n\n".join(_block(turn, block) for block in turn.blocks)
    if turn.role == "latest_reminder":
        return REMINDER + _text(turn, "content", missing=None)
    raise ValueError(
        f"{turn.where} has an unknown role; "
        "the roles are system, user, assistant, tool, latest_reminder and developer"
    )


def _instructions(turn: _Turn) -> str:
    text = ""
    tools = turn.message.get("tools")
    if tools:
        if not isinstance(tools, list) or not all(
            isinstance(tool, Mapping) and "function" in tool for tool in tools
        ):
            raise ValueError(
                f"{turn.where} has tools {tools!r:.80}; "
                'they are a list of {"type": "function", "function": {...}}'
            )
        text += tools_block([tool["function"] for tool in tools])
    response_format = turn.message.get("response_format")
    if response_format:
        text += RESPONSE_FORMAT + to_json(response_format)
    return text


def _block(turn: _Turn, block: Message) -> str:
    kind = block.get("type")
    if kind == "text":
        return _string(turn, "text", block.get("text", ""))
    if kind != "tool_result":
        return f"[Unsupported {kind}]"
    content = block.get("content", "")
    if isinstance(content, list):
        if not all(isinstance(part, Mapping) for part in content):
            raise ValueError(f"{turn.where} has content {content!r:.80}; its parts are objects")
        content = "\n\n".join(
            _string(turn, "text", part.get("text", ""))
            if part.get("type") == "text"
            else f"[Unsupported {part.get('type')}]"
            for part in content
        )
    return f"<tool_result>{_string(turn, 'content', content)}</tool_result>"


def _assistant(turn: _Turn, with_reasoning: bool, replay: Replay | None) -> str:
    text = _text(turn, "content", missing="")
    if with_reasoning:
        text = _text(turn, "reasoning_content", missing="") + END_THINK + text
    calls = _calls(turn)
    if calls:
        text += replay.block(calls) if replay is not None else _render(calls, turn.where)
    return text if turn.message.get("wo_eos") else text + EOS


def _render(calls: list[Message], where: str) -> str:
    fields = [call_fields(call, f"{where} call {i}") for i, call in enumerate(calls)]
    return render_block([render_call(name, arguments) for name, arguments in fields])


def _calls(turn: _Turn) -> list[Message]:
    calls = turn.message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(f"{turn.where} has tool_calls {calls!r:.80}; it is a list of calls")
    return calls


def _transition(turn: _Turn, thinking: bool, opens: bool) -> str:
    """The transition to the assistant: its prefix, or the token of a quick instruction (2.2)."""
    task = turn.message.get("task")
    if task is not None:
        if not isinstance(task, str) or task not in TASKS:
            raise ValueError(f"{turn.where} has task {task!r:.80}; the tasks are {list(TASKS)}")
        if task != "action":
            return TASKS[task]
        return ASSISTANT + (THINK if thinking else END_THINK) + TASKS[task]
    if turn.role in _ASKING:
        return ASSISTANT + (THINK if opens else END_THINK)
    return ""


def _leaves_waiting(turns: list[_Turn], index: int) -> bool:
    """True if an answer follows this turn and `_transition` has opened none.

    It opens one behind a user's turn, before a reminder that follows; not behind a system message.
    """
    role_above = _role_above(turns, index, ("latest_reminder",))
    if index + 1 == len(turns):
        return role_above in ("", "system") or role_above == "assistant" != turns[index].role
    asked = _role_above(turns, index, ("latest_reminder", "system"))
    return (role_above, turns[index + 1].role) == ("system", "assistant") and asked in _ASKING


def _role_above(turns: list[_Turn], index: int, but: Collection[str]) -> str:
    """The role of a turn, or of the nearest above it that is none of those in `but`; "" if none."""
    while index >= 0 and turns[index].role in but:
        index -= 1
    return turns[index].role if index >= 0 else ""


def _text(turn: _Turn, field: str, *, missing: str | None, null: str | None = "") -> str:
    """A text field; `missing` replaces an absent one and `null` replaces None (None: refused)."""
    value = turn.message.get(field, missing)
    if value is None and missing is not None:
        value = null
    return _string(turn, field, value)


def _string(turn: _Turn, field: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(
        f"{turn.where} has {field} {value!r:.80}; it is a string "
        "(parts go into content_blocks of a user message, or into the content of a tool message)"
    )
