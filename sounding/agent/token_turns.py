"""Conversations as tokens, for rollouts: what is put behind a turn, and the grade of all turns.

Between two turns stand the results of tools and the opening of the next turn; in front of the first
stands the prompt. Nothing is remembered between calls, so a rollout that was killed goes on from
its tokens.
"""

from collections.abc import Sequence
from typing import Any

from sounding.agent.engine_chat import with_tools
from sounding.agent.loop import Message, results_of, with_ids
from sounding.tasks.chat_task import ChatTask
from sounding.tasks.task import Grade
from sounding.text import Malformed, encode, parse
from sounding.text.markup import ASSISTANT, EOS
from sounding.text.tokenizer import Tokenizer


class TokenTurns:
    """Tasks asked in a conversation, with answers as tokens. Safe to call from several threads."""

    def __init__(self, task: ChatTask, tokenizer: Tokenizer) -> None:
        self._task, self._tokenizer = task, tokenizer
        self._eos, self._assistant = (tokenizer.named[name] for name in (EOS, ASSISTANT))

    def prompt(self, index: int) -> list[int]:
        """The tokens that the first turn follows."""
        return self._tokenizer.encode(encode(self._asked(index), self._mode(index)))

    def reply(self, index: int, tokens: Sequence[int]) -> list[int] | None:
        """What is put behind the last turn: results of its calls, and the opening of the next one.

        None where it calls nothing, is not finished, or cannot be read.
        """
        turns, whole = self._turns(index, tokens)
        tools = self._task.open(index, turns[:-1])
        if tools is None or not turns or not whole:
            return None
        results = results_of(turns[-1], tools)
        if results is None:
            return None
        said = [*self._asked(index), turns[-1]]
        return self._tokenizer.encode(encode(results, self._mode(index), context=said))

    def grade(self, index: int, tokens: Sequence[int]) -> Grade:
        """The grade of all that was sampled behind the prompt.

        An answer that is not finished or malformed scores 0; of files the edits count that came
        before.
        """
        turns, whole = self._turns(index, tokens)
        if not whole and not self._task[index].tools:
            ended = bool(tokens) and tokens[-1] == self._eos
            return Grade(0.0, "malformed" if ended else "not finished")
        return self._task.grade_conversation(index, turns)

    def _asked(self, index: int) -> list[dict[str, Any]]:
        problem = self._task[index]
        return with_tools(problem.messages, list(problem.tools))

    def _mode(self, index: int) -> str:
        return "thinking" if self._task[index].thinking else "chat"

    def _turns(self, index: int, tokens: Sequence[int]) -> tuple[list[Message], bool]:
        """The turns that can be read, and whether these are all."""
        turns: list[Message] = []
        for part in self._parts(tokens):
            if not part or part[-1] != self._eos or max(part) >= self._tokenizer.num_tokens:
                return turns, False
            try:
                found = parse(self._tokenizer.decode(part), self._mode(index))
            except Malformed:
                return turns, False
            turns.append(with_ids(found.message(), len(turns)))
        return turns, bool(turns)

    def _parts(self, tokens: Sequence[int]) -> list[list[int]]:
        """The sampled tokens of each turn.

        A turn begins behind the token that opens an assistant's turn and the one that says whether
        it thinks; no answer can contain the first of these.
        """
        parts: list[list[int]] = [[]]
        given, skipped = False, 0
        for token in tokens:
            if skipped:
                skipped -= 1
            elif given:
                given, skipped = token != self._assistant, int(token == self._assistant)
                if not given:
                    parts.append([])
            else:
                parts[-1].append(token)
                given = token == self._eos
        return parts
