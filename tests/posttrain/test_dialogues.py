"""Answers of several turns: tokens are those of the encoder, calls are carried out once."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sounding.agent.loop import Tools
from sounding.posttrain.conversations import conversation_of, prompt_of
from sounding.posttrain.dialogues import Dialogues
from sounding.posttrain.rollout_log import LoggedAnswer
from sounding.posttrain.task_prompts import ExactAnswers, drawn
from sounding.tasks.task import Grade
from sounding.text import encode, encode_completion
from sounding.text.encoding import Message
from sounding.text.tokenizer import Tokenizer

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
ROW: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Is tea good?"}],
    "tools": [TOOL],
    "thinking": True,
}


class Counter:
    """A tool that says how often it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @property
    def tools(self) -> Sequence[Message]:
        return [TOOL]

    def call(self, name: str, arguments: str) -> str:
        self.calls.append(arguments)
        return f"call {len(self.calls)}"


class CountingTask:
    """One conversation, whose grade is half for every call."""

    def __init__(self) -> None:
        self.opened: list[Counter] = []

    def __len__(self) -> int:
        return 1

    def row(self, index: int) -> Mapping[str, Any]:
        return ROW

    def open(self, index: int) -> Tools | None:
        self.opened.append(Counter())
        return self.opened[-1]

    def grade_conversation(self, index: int, messages: Sequence[Message]) -> Grade:
        calls = [call for message in messages for call in message.get("tool_calls") or ()]
        return Grade(len(calls) / 2, "calls")


def said(content: str, *calls: str) -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": "f", "arguments": one}} for one in calls]
    return {"role": "assistant", "content": content, "reasoning_content": "r", "tool_calls": made}


def dialogues(task: CountingTask, tokenizer: Tokenizer, **limits: int) -> Dialogues:
    conversation = conversation_of(ROW)
    how = {"most_turns": 4, "most_tokens": 2000, "most_sampled": 500, **limits}
    prompts = [prompt_of(conversation, tokenizer)]
    return Dialogues(task, [0], [conversation], prompts, tokenizer, eos=tokenizer.eos_id, **how)


def sample(answer: LoggedAnswer, message: Message, tokenizer: Tokenizer) -> None:
    for token in tokenizer.encode(encode_completion(message, "thinking")):
        answer.add(token, -1.0)


def test_turns_and_results_are_the_tokens_of_the_whole_conversation(tokenizer: Tokenizer) -> None:
    task = CountingTask()
    made = dialogues(task, tokenizer)
    answer = LoggedAnswer()
    turns = [said("look", '{"x": 1}', '{"x": 2}'), said("again", '{"x": 3}'), said("yes")]
    for turn in turns:
        sample(answer, turn, tokenizer)
        given = made.reply(0, answer)
        if given is not None:
            answer.give(given)
    assert given is None
    assert task.opened[0].calls == ['{"x": 1}', '{"x": 2}', '{"x": 3}']
    whole = [
        {"role": "system", "content": "", "tools": [TOOL]}, *ROW["messages"],
        {**turns[0], "tool_calls": [{"id": "a", **turns[0]["tool_calls"][0]},
                                    {"id": "b", **turns[0]["tool_calls"][1]}]},
        {"role": "tool", "tool_call_id": "a", "content": "call 1"},
        {"role": "tool", "tool_call_id": "b", "content": "call 2"},
        {**turns[1], "tool_calls": [{"id": "c", **turns[1]["tool_calls"][0]}]},
        {"role": "tool", "tool_call_id": "c", "content": "call 3"},
        turns[2],
    ]  # fmt: skip
    prompt = prompt_of(conversation_of(ROW), tokenizer)
    assert [*prompt, *answer.tokens] == tokenizer.encode(encode(whole, "thinking"))
    assert made.grade(0, answer) == Grade(1.5, "calls")
    assert sum(answer.sampled) == answer.num_sampled < len(answer.tokens)


def test_a_dialogue_is_made_anew_from_its_tokens(tokenizer: Tokenizer) -> None:
    """Another process has sampled the first turn: its call is carried out again, on tools that
    were just opened, and the next result follows it."""
    first, second = CountingTask(), CountingTask()
    answer = LoggedAnswer()
    sample(answer, said("look", '{"x": 1}'), tokenizer)
    answer.give(dialogues(first, tokenizer).reply(0, answer) or [])
    sample(answer, said("again", '{"x": 2}'), tokenizer)
    given = dialogues(second, tokenizer).reply(0, answer)
    assert second.opened[0].calls == ['{"x": 1}', '{"x": 2}']
    assert given is not None and "call 2" in tokenizer.decode(given)


@pytest.mark.parametrize("limits", [{"most_turns": 1}, {"most_tokens": 520}])
def test_a_dialogue_ends_at_its_limits(limits: dict[str, int], tokenizer: Tokenizer) -> None:
    made = dialogues(CountingTask(), tokenizer, **limits)
    answer = LoggedAnswer()
    sample(answer, said("look", '{"x": 1}'), tokenizer)
    assert made.reply(0, answer) is None
    assert made.grade(0, answer) == Grade(0.5, "calls")


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [([100, 101], "not finished"), ([350, 1], "a token without text"), ([100, 1], "malformed")],
)
def test_what_is_no_answer_scores_nothing(
    tokens: list[int], reason: str, tokenizer: Tokenizer
) -> None:
    row = {"messages": ROW["messages"], "answer": "yes", "thinking": True}
    conversation = conversation_of(row)
    made = Dialogues(
        ExactAnswers([row]), [0], [conversation], [prompt_of(conversation, tokenizer)], tokenizer,
        eos=tokenizer.eos_id, most_turns=4, most_tokens=99, most_sampled=9,
    )  # fmt: skip
    answer = LoggedAnswer()
    for token in tokens:
        answer.add(token, -1.0)
    assert made.reply(0, answer) is None
    grade = made.grade(0, answer)
    assert grade.score == 0 and grade.reason.startswith(reason)


def test_every_prompt_comes_up_once_before_any_comes_again() -> None:
    found = [index for number in range(6) for index in drawn(9, number, 3, seed=4)]
    assert sorted(found[:9]) == sorted(found[9:]) == list(range(9)) and found[:9] != found[9:]
