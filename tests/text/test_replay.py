"""A replayed call is the sampled text, so that a next prompt extends the last one exactly."""

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sounding.text import ParsedCompletion, Replay, encode, parse
from tests.text.test_shapes import ROWS, TOOLS
from tests.text.vectors import rows

EOS = "<｜end▁of▁sentence｜>"
# Everything a call may look like that rendering it anew would not give back.
SAMPLED = (
    "because</think>So:\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">[1,2.50,  1e3]'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n"
    '<｜DSML｜invoke  name="g">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
)
SYSTEM: dict[str, Any] = {"role": "system", "content": "s", "tools": TOOLS}
USER: dict[str, Any] = {"role": "user", "content": "q"}


def answer(completion: ParsedCompletion, ids: list[str]) -> dict[str, Any]:
    message = completion.message()
    for call_id, call in zip(ids, message["tool_calls"], strict=True):
        call["id"] = call_id
    return message


def test_the_next_prompt_extends_the_last() -> None:
    replay, messages = Replay(), [SYSTEM, USER]
    prompt = encode(messages, "thinking")
    completion = parse(SAMPLED + EOS, "thinking")
    replay.keep(["a", "b"], completion)
    messages += [answer(completion, ["a", "b"]), {"role": "tool", "content": "R"}]
    assert encode(messages, "thinking", replay=replay).startswith(prompt + SAMPLED + EOS)
    assert not encode(messages, "thinking").startswith(prompt + SAMPLED + EOS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_malformed_calls_are_replayed_or_rendered_anew(row: list[str]) -> None:
    text, mode, replay = json.loads(row[2].strip("`")), row[1], Replay()
    completion = parse(text, mode, tolerant=True, tools=TOOLS)
    ids = [str(index) for index in range(len(completion.calls))]
    replay.keep(ids, completion)
    if not completion.calls:
        return
    again = encode([USER, answer(completion, ids)], mode, replay=replay)
    sampled = "".join(call.sampled for call in completion.calls) + (completion.tail or "")
    exact = completion.tail is not None and all(call.complete for call in completion.calls)
    assert again.endswith(sampled + EOS) == exact
    # What it says is the same in any case.
    turn = again.rpartition("<｜Assistant｜>")[2].partition("think>")[2]
    read = parse(turn, mode, tolerant=True, tools=TOOLS)
    assert [call.arguments for call in read.calls] == [call.arguments for call in completion.calls]


@given(st.sampled_from(rows("parse.jsonl")))
def test_golden_completions_extend_exactly(row: dict[str, Any]) -> None:
    text, mode = row["text"], row["thinking_mode"]
    completion, replay = parse(text, mode), Replay()
    assume(completion.calls)
    ids = [f"c{index}" for index in range(len(completion.calls))]
    replay.keep(ids, completion)
    prompt = encode([SYSTEM, USER], mode)
    following = [SYSTEM, USER, answer(completion, ids), {"role": "user", "content": "go"}]
    assert encode(following, mode, replay=replay).startswith(prompt + text)


def test_clients_may_reformat_but_not_change() -> None:
    replay = Replay()
    completion = parse(SAMPLED + EOS, "thinking")
    replay.keep(["a", "b"], completion)
    message = answer(completion, ["a", "b"])

    def block(arguments: str, calls: int = 2) -> str:
        message["tool_calls"][0]["function"]["arguments"] = arguments
        return replay.block(message["tool_calls"][:calls])

    assert "1e3]" in block('{"x":[1,2.5,1000]}')
    assert "1e3]" not in block('{"x": [1, 2.5, 999]}')
    assert "true" in block('{"x": [true, 2.5, 1000]}')
    # One call of two still has its own text, in a block of its own.
    assert block('{"x": [1, 2.5, 1000]}', calls=1) == (
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" '
        'string="false">[1,2.50,  1e3]</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜tool_calls>"
    )


def test_the_store_is_bounded_and_keeps_no_broken_call() -> None:
    replay, completion = Replay(capacity=3), parse(SAMPLED + EOS, "thinking")
    for turn in range(5):
        replay.keep([f"{turn}a", f"{turn}b"], completion)
    assert len(replay) == 3
    broken = parse(SAMPLED[:-30], "thinking", tolerant=True)
    assert [call.complete for call in broken.calls] == [True, False]
    fresh = Replay()
    fresh.keep(["a", "b"], broken)
    assert len(fresh) == 0
    with pytest.raises(ValueError, match="1 ids for 2 calls"):
        replay.keep(["a"], completion)
    with pytest.raises(ValueError, match="capacity"):
        Replay(0)
