"""Loss is on what the assistant wrote, and nothing of a conversation is lost in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from sounding.posttrain.conversations import (
    ConversationRow,
    conversation_of,
    prompt_of,
    read_conversations,
    samples_of,
)
from sounding.text.tokenizer import Tokenizer

EOS = "<｜end▁of▁sentence｜>"
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str, reasoning: str = "", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, **fields}


def calling(content: str, reasoning: str = "") -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    return said(content, reasoning, tool_calls=[call])


def learned(
    conversation: ConversationRow, tokenizer: Tokenizer, most: int = 4096
) -> list[list[str]]:
    """The stretches of text with loss, of each sample."""
    found = []
    for sample in samples_of(conversation, tokenizer, most):
        stretches: list[list[int]] = []
        before = False
        for token, trained in zip(sample.tokens, sample.trained, strict=True):
            if trained and not before:
                stretches.append([])
            if trained:
                stretches[-1].append(token)
            before = trained
        found.append([tokenizer.decode(stretch) for stretch in stretches])
    return found


def of(*messages: dict[str, Any], **row: Any) -> ConversationRow:
    return conversation_of({"messages": list(messages), **row})


CALLS = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="x" string="false">1</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)


def test_answers_carry_loss_and_prompts_do_not(tokenizer: Tokenizer) -> None:
    chat = of(user("a"), said("b"), user("c"), said("d"))
    assert learned(chat, tokenizer) == [["b" + EOS, "d" + EOS]]


def test_a_wrong_answer_may_be_context_only(tokenizer: Tokenizer) -> None:
    chat = of(user("a"), said("wrong", loss=False), user("no"), said("right"))
    assert learned(chat, tokenizer) == [["right" + EOS]]


def test_thinking_without_tools_is_one_sample_per_turn(tokenizer: Tokenizer) -> None:
    """Each as it is generated: without the reasoning of earlier turns."""
    chat = of(user("a"), said("b", "r1"), user("c"), said("d", "r2"), thinking=True)
    assert learned(chat, tokenizer) == [["r1</think>b" + EOS], ["r2</think>d" + EOS]]
    second = samples_of(chat, tokenizer, 4096)[1]
    text = tokenizer.decode(second.tokens)
    assert "r1" not in text and "</think>b" in text and text.endswith("<think>r2</think>d" + EOS)


def test_with_tools_one_sample_has_all_reasoning_and_calls(tokenizer: Tokenizer) -> None:
    result = {"role": "tool", "tool_call_id": "a", "content": "SECRET"}
    messages = user("q"), calling("let me", "r1"), result, said("done", "r2")
    chat = of(*messages, thinking="max", tools=[TOOL])
    assert learned(chat, tokenizer) == [["r1</think>let me" + CALLS + EOS, "r2</think>done" + EOS]]


def test_the_answer_to_a_quick_instruction_carries_loss(tokenizer: Tokenizer) -> None:
    chat = of({**user("q"), "task": "action"}, said("Search"))
    assert learned(chat, tokenizer) == [["Search" + EOS]]


def test_a_long_conversation_is_cut_behind_an_answer(tokenizer: Tokenizer) -> None:
    chat = of(user("a"), said("b"), user("c " * 50), said("d"))
    assert learned(chat, tokenizer, 40) == [["b" + EOS]]
    assert learned(of(user("a " * 50), said("b")), tokenizer, 40) == []


def test_ids_are_those_of_the_whole_text(tokenizer: Tokenizer) -> None:
    """An answer that follows a system message has no special token before it."""
    chat = of({"role": "system", "content": "print"}, said("(f(2))"))
    (sample,) = samples_of(chat, tokenizer, 100)
    assert sample.tokens == tokenizer.encode(tokenizer.decode(sample.tokens))


def test_a_prompt_ends_where_the_answer_begins(tokenizer: Tokenizer) -> None:
    asked = of(user("a"), said("b", "r"), thinking=True)
    text = tokenizer.decode(prompt_of(asked, tokenizer))
    assert text.endswith("<｜User｜>a<｜Assistant｜><think>")
    with pytest.raises(ValueError, match="asks nothing"):
        prompt_of(of(said("b")), tokenizer)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [user("a")]}, "no loss tokens"),
        ({"messages": [user("a"), said("b", loss=False)]}, "no loss tokens"),
        ({"messages": [user("a"), said("b", loss="no")]}, r"loss 'no'; it is false"),
        ({"messages": []}, "a list of at least one"),
        ({"messages": [user("a"), "b"]}, r"messages\[1\] is 'b', not an object"),
        ({"messages": [user("a"), said("b")], "thinking": "low"}, r"one of \['high', 'max'\]"),
        ({"messages": [user("a"), said("b")], "thinkng": True}, "did you mean 'thinking'"),
        ({"messages": [{"role": "who", "content": ""}, said("b")]}, "cannot be encoded.*unknown"),
        ({"messages": [{"role": "system", "content": "", "tools": [TOOL]}, user("a"), said("b")],
          "tools": [TOOL]}, "give one"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_named(
    row: dict[str, Any], reason: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"messages": [user("a"), said("b")], "note": "kept"}
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2.*{reason}"):
        for conversation in read_conversations(path):
            samples_of(conversation, tokenizer, 100)


def test_a_file_without_conversations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no conversations"):
        read_conversations(tmp_path / "rows.jsonl")
