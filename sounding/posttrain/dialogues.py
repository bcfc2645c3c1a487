"""Answers of several turns: calls are carried out, results put behind them as tokens.

What was sampled stays as the ids that were sampled; text is only read from it. A dialogue that a
killed process left is made anew from its tokens: its calls are carried out again, and what they
said at first is what the model has read.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sounding.agent.loop import Tools, results_of, with_ids
from sounding.posttrain.conversations import ConversationRow
from sounding.posttrain.rollout_log import LoggedAnswer
from sounding.posttrain.task_prompts import GradedChats
from sounding.tasks.task import Grade
from sounding.text import Malformed, encode, parse
from sounding.text.encoding import Message
from sounding.text.tokenizer import Tokenizer


@dataclass
class _Dialogue:
    """What was said behind a prompt, as far as it has been read."""

    tools: Tools | None
    said: list[Message] = field(default_factory=list)
    turns: int = 0
    over: bool = False
    """True behind a turn without calls, and behind one that could not be read."""
    wrong: str = ""
    """Why the last turn could not be read."""


class Dialogues:
    """The answers of one round, by their number."""

    def __init__(
        self,
        task: GradedChats,
        examples: Sequence[int],
        conversations: Sequence[ConversationRow],
        prompts: Sequence[Sequence[int]],
        tokenizer: Tokenizer,
        *,
        eos: int,
        most_turns: int,
        most_tokens: int,
        most_sampled: int,
    ) -> None:
        """Answer i is to example examples[i]; a sequence has at most `most_tokens`, of which
        `most_sampled` are sampled behind the prompt."""
        self._task, self._examples = task, examples
        self._conversations, self._prompts = conversations, prompts
        self._tokenizer, self._eos = tokenizer, eos
        self._most_turns, self._most_tokens = most_turns, most_tokens
        self._most_sampled = most_sampled
        self._open: dict[int, _Dialogue] = {}
        self._lock = threading.Lock()

    def reply(self, slot: int, answer: LoggedAnswer) -> list[int] | None:
        """The results of the last turn's calls and the opening of the next turn, as tokens; None
        where it had none, and where there is no room for another turn."""
        dialogue = self._read(slot, answer)
        if dialogue.over or dialogue.turns >= self._most_turns:
            return None
        results: list[Message] = []
        while dialogue.said and dialogue.said[-1]["role"] == "tool":
            results.insert(0, dialogue.said.pop())
        conversation = self._conversations[self._examples[slot]]
        text = encode(
            results,
            conversation.mode,
            [*_asked(conversation), *dialogue.said],
            reasoning_effort=conversation.effort,
            effort_scheme=conversation.effort_scheme,
        )
        dialogue.said += results
        given = self._tokenizer.encode(text)
        held = len(self._prompts[self._examples[slot]]) + len(answer.tokens) + len(given)
        left = self._most_sampled - answer.num_sampled
        return given if held + left <= self._most_tokens else None

    def grade(self, slot: int, answer: LoggedAnswer) -> Grade:
        """The grade of what was said. One turn that could not be read, or has no end, is no answer;
        with tools, what was done before it counts."""
        dialogue = self._read(slot, answer)
        if dialogue.wrong and dialogue.tools is None:
            return Grade(0.0, dialogue.wrong)
        return self._task.grade_conversation(self._examples[slot], dialogue.said)

    def _read(self, slot: int, answer: LoggedAnswer) -> _Dialogue:
        """The dialogue up to the last turn."""
        index = self._examples[slot]
        with self._lock:
            dialogue = self._open.get(slot)
            if dialogue is None:
                dialogue = self._open[slot] = _Dialogue(self._task.open(index))
        turns = list(_turns(answer))
        for tokens in turns[dialogue.turns :]:
            self._take(dialogue, tokens, self._conversations[index].mode)
        return dialogue

    def _take(self, dialogue: _Dialogue, tokens: Sequence[int], mode: str) -> None:
        """Read one more turn, and carry out its calls."""
        number = dialogue.turns
        dialogue.turns += 1
        message, dialogue.wrong = self._message(tokens, mode, dialogue.tools)
        if message is None:
            dialogue.over = True
            return
        message = with_ids(message, number)
        dialogue.said.append(message)
        results = results_of(message, dialogue.tools)
        dialogue.over = results is None
        dialogue.said += results or []

    def _message(
        self, tokens: Sequence[int], mode: str, tools: Tools | None
    ) -> tuple[Message | None, str]:
        """A turn as a message; None, and why, where it cannot be read."""
        if not tokens or tokens[-1] != self._eos:
            return None, "not finished"
        if max(tokens) >= self._tokenizer.num_tokens:
            return None, "a token without text"
        try:
            return parse(self._tokenizer.decode(tokens), mode).message(), ""
        except Malformed as error:
            return None, f"malformed: {error}"


def _turns(answer: LoggedAnswer) -> Iterator[list[int]]:
    """The sampled tokens of each turn."""
    turn: list[int] = []
    for token, sampled in zip(answer.tokens, answer.sampled, strict=True):
        if sampled:
            turn.append(token)
        elif turn:
            yield turn
            turn = []
    if turn:
        yield turn


def _asked(conversation: ConversationRow) -> list[Message]:
    """The messages of a prompt: those in front of the answers at the end."""
    messages = list(conversation.messages)
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()
    return messages
