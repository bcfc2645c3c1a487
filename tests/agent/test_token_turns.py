"""Rollouts with tools see the tokens that a conversation would be encoded to."""

import json
from typing import Any

import pytest

from sounding.agent.loop import results_of
from sounding.agent.token_turns import TokenTurns
from sounding.tasks.chat_task import ChatProblem, ChatTask
from sounding.tasks.checks import FilesCheck
from sounding.tasks.workspace import TOOLS
from sounding.text import encode, encode_completion
from sounding.text.tokenizer import Tokenizer
from tests.engine.scripted import small_tokenizer
from tests.evaluation.test_chats import looked, problem

RIGHT = ("return 2", "return 1")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def turn(content: str, *edits: tuple[str, str]) -> dict[str, Any]:
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {
                "name": "edit",
                "arguments": json.dumps({"path": "solution.py", "old": old, "new": new}),
            },
        }
        for number, (old, new) in enumerate(edits)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def spoken(tokenizer: Tokenizer, message: dict[str, Any], mode: str = "chat") -> list[int]:
    return tokenizer.encode(encode_completion(message, mode))


def repair(*, thinking: bool = False) -> ChatProblem:
    return problem("tools", thinking=thinking)


@pytest.mark.parametrize("thinking", [False, True])
def test_tokens_of_a_rollout_are_those_of_the_conversation(
    tokenizer: Tokenizer, *, thinking: bool
) -> None:
    task = ChatTask([repair(thinking=thinking)], looked)
    rollout, mode = TokenTurns(task, tokenizer), "thinking" if thinking else "chat"
    thought = {"reasoning_content": "Look."} if thinking else {}
    turns = [
        {**turn("First.", ("return 2", "return 3"), ("no", "yes")), **thought},
        {**turn("", ("return 3", "return 1")), **thought},
        {**turn("Done."), **thought},
    ]
    check = task[0].check
    assert isinstance(check, FilesCheck)
    tools = task.open(0)
    messages: list[Any] = [{"role": "system", "content": "", "tools": list(TOOLS)}]
    messages += task[0].messages
    prompt, tokens = rollout.prompt(0), list[int]()
    for said in turns:
        tokens += spoken(tokenizer, said, mode)
        messages.append(said)
        given, results = rollout.reply(0, tokens), results_of(said, tools)
        assert (given is None) == (results is None)
        tokens += given or []
        messages += results or []
    assert tokenizer.decode(prompt + tokens) == encode(messages, mode)
    assert rollout.grade(0, tokens) == (1, "passed")


def test_an_answer_without_tools_is_graded_when_it_is_finished(tokenizer: Tokenizer) -> None:
    rollout = TokenTurns(ChatTask([problem("write")], looked), tokenizer)
    tokens = spoken(tokenizer, turn("def f():\n    return 1"))
    assert rollout.reply(0, tokens) is None
    assert rollout.grade(0, tokens) == (1, "passed")
    assert rollout.grade(0, tokens[:-1]) == (0, "not finished")
    assert rollout.grade(0, []) == (0, "not finished")
    broken = tokenizer.encode("x<｜DSML｜invoke<｜end▁of▁sentence｜>")
    assert rollout.grade(0, broken).score == 0
    unknown = [*tokens[:-1], 9999, tokens[-1]]
    assert rollout.grade(0, unknown) == (0, "malformed")


def test_files_count_as_the_turns_before_a_broken_one_left_them(tokenizer: Tokenizer) -> None:
    rollout = TokenTurns(ChatTask([repair()], looked), tokenizer)
    first = spoken(tokenizer, turn("", RIGHT))
    given = rollout.reply(0, first)
    assert given is not None
    cut = [*first, *given, *spoken(tokenizer, turn("", ("return 1", "return 4")))[:-1]]
    assert rollout.reply(0, cut) is None
    assert rollout.grade(0, cut) == (1, "passed")
    assert rollout.grade(0, first[:-1]).score == 0
