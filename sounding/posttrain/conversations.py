"""Conversations to train on: rows of JSON to tokens, with the tokens that carry loss.

The encoder says which text is an answer; nothing is searched for in the text. Source:
docs/post-training.md 1.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sounding.files import read_json_lines
from sounding.text.encoding import Message, encode_parts
from sounding.text.markup import EFFORT_TEXTS
from sounding.text.tokenizer import Tokenizer

_FIELDS = ("messages", "tools", "thinking")
_LOSS = "loss"  # of an assistant message: false keeps it in the context only
_ASKING = ("user", "developer")


@dataclass(frozen=True)
class ConversationRow:
    """Messages as the encoder takes them, and how the assistant answers."""

    messages: Sequence[Message]
    thinking: bool = False
    effort: str | None = None
    effort_scheme: str = "april"
    where: str = "the conversation"
    """Its origin, for errors."""

    @property
    def mode(self) -> str:
        return "thinking" if self.thinking else "chat"

    @property
    def has_tools(self) -> bool:
        return any(message.get("tools") for message in self.messages)


@dataclass(frozen=True)
class TrainingSample:
    """One sequence to train on."""

    tokens: list[int]
    trained: list[bool]
    """For each token, whether predicting it carries loss."""
    where: str

    @property
    def num_trained(self) -> int:
        """Tokens with loss. The first token of a sequence is never predicted."""
        return sum(self.trained[1:])


def conversation_of(
    row: Mapping[str, Any], where: str = "the conversation", *, effort_scheme: str = "april"
) -> ConversationRow:
    """A conversation from `messages`, `tools` and `thinking` (false, true, or an effort).

    Tools go to the first message if that is a system message, else to one before it. Other keys
    are notes, unless they look like a misspelt one of these. Raises ValueError with the way out.
    """
    for key in row:
        near = difflib.get_close_matches(key, _FIELDS, 1, cutoff=0.75)
        if key not in _FIELDS and near:
            raise ValueError(f"{where} has a key {key!r}; did you mean {near[0]!r}?")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where} has messages {messages!r:.40}; it is a list of at least one")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"{where}: messages[{number}] is {message!r:.40}, not an object")
        if not isinstance(message.get(_LOSS, True), bool):
            raise ValueError(
                f"{where}: messages[{number}] has loss {message[_LOSS]!r:.40}; it is "
                "false for an answer that is context only, or left out"
            )
    thinking = row.get("thinking", False)
    levels = [level for level in EFFORT_TEXTS[effort_scheme] if level is not None]
    if not isinstance(thinking, bool) and thinking not in levels:
        raise ValueError(
            f"{where} has thinking {thinking!r:.40}; it is false, true or one of {levels} "
            f"(efforts of the {effort_scheme} scheme)"
        )
    return ConversationRow(
        _with_tools(messages, row.get("tools"), where),
        bool(thinking),
        None if isinstance(thinking, bool) else thinking,
        effort_scheme,
        where,
    )


def _with_tools(messages: list[Any], tools: Any, where: str) -> list[Message]:
    if not tools:
        return messages
    if messages[0].get("role") != "system":
        return [{"role": "system", "content": "", "tools": tools}, *messages]
    if messages[0].get("tools"):
        raise ValueError(f"{where} has tools of its own and on its system message; give one")
    return [{**messages[0], "tools": tools}, *messages[1:]]


def read_conversations(path: Path, *, effort_scheme: str = "april") -> list[ConversationRow]:
    """The conversations of a file of JSON lines. Raises ValueError naming file, line and rule."""
    found = []
    for number, row in read_json_lines(path):
        where = f"{path}, line {number}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{where} is {row!r:.40}; a row is an object with messages")
        found.append(conversation_of(row, where, effort_scheme=effort_scheme))
    if not found:
        raise ValueError(f'{path} has no conversations; give rows like {{"messages": [...]}}')
    return found


def prompt_of(conversation: ConversationRow, tokenizer: Tokenizer) -> list[int]:
    """The tokens that the next answer follows: answers at the end of the messages are left out.

    Raises ValueError where nobody is left to be answered.
    """
    messages = list(conversation.messages)
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()
    if not any(message.get("role") in (*_ASKING, "tool") for message in messages):
        raise ValueError(f"{conversation.where} asks nothing; a prompt has a user message")
    parts = _encode(conversation, messages)
    return tokenizer.encode_parts([text for text, _ in parts])[0]


def samples_of(
    conversation: ConversationRow, tokenizer: Tokenizer, most_tokens: int
) -> list[TrainingSample]:
    """The sequences that teach every answer of a conversation as it would be generated.

    A thinking conversation without tools becomes one sample per user turn, because earlier
    reasoning is not part of a later prompt. A conversation that is too long is cut behind the last
    answer that fits; what cannot be cut is left out. Raises ValueError for one that cannot be
    encoded, and for one without loss.
    """
    made = []
    wanted = 0
    for end, answers in _spans(conversation):
        wanted += bool(answers)
        sample = _fitting(conversation, end, answers, tokenizer, most_tokens)
        if sample is not None:
            made.append(sample)
    if not wanted:
        raise ValueError(
            f"{conversation.where} has no loss tokens: no assistant message, or all of them with "
            "loss false; take it out, or give it an answer to learn"
        )
    return made


def _spans(conversation: ConversationRow) -> Iterator[tuple[int, list[int]]]:
    """Ends of samples among the messages, each with the answers that carry loss."""
    messages = conversation.messages
    answers = [
        index
        for index, message in enumerate(messages)
        if message.get("role") == "assistant" and message.get(_LOSS, True)
    ]
    if not conversation.thinking or conversation.has_tools:
        yield len(messages), answers
        return
    asked = [i for i, message in enumerate(messages) if message.get("role") in _ASKING]
    for begin, end in zip(asked, [*asked[1:], len(messages)], strict=True):
        here = [index for index in answers if begin < index < end]
        if here:
            yield here[-1] + 1, here


def _fitting(
    conversation: ConversationRow,
    end: int,
    answers: Sequence[int],
    tokenizer: Tokenizer,
    most_tokens: int,
) -> TrainingSample | None:
    """The sample of the messages before `end`, or of fewer of them where that is too long."""
    per_turn = conversation.thinking and not conversation.has_tools
    for cut in [end, *(index + 1 for index in reversed(answers) if index + 1 < end)]:
        sample = _sample(conversation, cut, answers, tokenizer)
        if len(sample.tokens) <= most_tokens and sample.num_trained:
            return sample
        if per_turn:
            break
    return None


def _sample(
    conversation: ConversationRow, end: int, answers: Sequence[int], tokenizer: Tokenizer
) -> TrainingSample:
    parts = _encode(conversation, conversation.messages[:end])
    tokens, owners = tokenizer.encode_parts([part for part, _ in parts])
    learned = {number for number, (_, answer) in enumerate(parts) if answer in answers}
    return TrainingSample(tokens, [owner in learned for owner in owners], conversation.where)


def _encode(
    conversation: ConversationRow, messages: Sequence[Message]
) -> list[tuple[str, int | None]]:
    try:
        parts = encode_parts(
            messages,
            conversation.mode,
            reasoning_effort=conversation.effort if conversation.thinking else None,
            effort_scheme=conversation.effort_scheme,
        )
    except ValueError as error:
        raise ValueError(f"{conversation.where} cannot be encoded: {error}") from None
    # A prompt that the model continues itself has no transition: nothing opens an answer there.
    return [(part.text, part.answer) for part in parts]
