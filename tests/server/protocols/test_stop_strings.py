"""Stop strings end the content, wherever else their text may occur, on every route."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sounding.engine.stop import StopStrings
from sounding.server.content_stops import ContentStops
from sounding.server.trace import record
from sounding.text import ContentDelta, End, ReasoningDelta, coalesce
from sounding.text.dsml.calls import render_block, render_call
from tests.server.live import Live, live, post
from tests.server.scripted import ScriptedEngine

THOUGHT = "I follow\nthe following rules > here.\n"
ANSWER = "One, following two.\nThree > four think."
CALL = render_block([render_call("find", '{"text": "a\\nb", "n": 3}')])
TOOL = {
    "name": "find",
    "parameters": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "n": {"type": "integer"}},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine()) as running:
        yield running


def say(server: Live, text: str) -> None:
    assert isinstance(server.engine, ScriptedEngine)
    server.engine.script = lambda prompt: text


def events(answer: str) -> list[dict[str, Any]]:
    lines = (line.removeprefix("data: ") for line in answer.splitlines())
    return [json.loads(line) for line in lines if line.startswith("{")]


def ask(server: Live, route: str, stop: Sequence[str], stream: bool) -> tuple[str, str, str]:
    """Reasoning, content and the reason to end of an answer that thinks."""
    body: dict[str, Any] = {"model": "sounding", "stream": stream, "max_tokens": 500}
    messages = [{"role": "user", "content": "Count."}]
    if route == "/v1/messages":
        body |= {"messages": messages, "stop_sequences": stop, "thinking": {"type": "adaptive"}}
    elif route == "/api/generate":
        body = {
            "model": "sounding",
            "stream": stream,
            "prompt": "Count.",
            "options": {"stop": stop},
        }
    else:
        body |= {"messages": messages, "stop": stop}
    answer = post(server.url + route, json=body)
    assert answer.status_code == 200, answer.text
    found = events(answer.text) if stream else [answer.json()]
    if route == "/api/generate":
        thought = "".join(part.get("thinking", "") for part in found)
        text = "".join(part["response"] for part in found)
        return thought, text, found[-1]["done_reason"]
    if route == "/v1/messages":
        if stream:
            deltas = [event.get("delta", {}) for event in found]
            thought = "".join(delta.get("thinking", "") for delta in deltas)
            text = "".join(delta.get("text", "") for delta in deltas)
            end = next(delta for delta in deltas if "stop_reason" in delta)
        else:
            end = found[0]
            thought = "".join(block.get("thinking", "") for block in end["content"])
            text = "".join(block.get("text", "") for block in end["content"])
        assert end["stop_sequence"] in (*stop, None)
        assert (end["stop_reason"] == "stop_sequence") == (end["stop_sequence"] is not None)
        return thought, text, "stop"
    choices = [chunk["choices"][0] for chunk in found]
    said = [choice["delta" if stream else "message"] for choice in choices]
    thought = "".join(one.get("reasoning_content") or "" for one in said)
    text = "".join(one.get("content") or "" for one in said)
    return thought, text, choices[-1]["finish_reason"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages", "/api/generate"])
@pytest.mark.parametrize("stop", ["following", "think", ">", "\n", "</", "rules", "I", "nowhere"])
def test_a_thought_and_its_end_are_not_searched(
    server: Live, route: str, stop: str, stream: bool
) -> None:
    say(server, f"{THOUGHT}</think>{ANSWER}")
    thought, text, reason = ask(server, route, [stop], stream)
    assert thought == THOUGHT
    assert text == ANSWER.split(stop)[0]
    assert reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["invoke", "DSML", "\n", "parameter", "find", '"', ">", "a"])
@pytest.mark.parametrize("before", ["", "Well,"])
def test_a_call_is_never_broken_off(server: Live, stop: str, stream: bool, before: str) -> None:
    """Neither its markup nor its arguments, nor the empty line before it."""
    say(server, before + CALL)
    asked: dict[str, Any] = {
        "model": "sounding",
        "messages": [{"role": "user", "content": "Find."}],
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": "required",
        "thinking": {"type": "disabled"},
        "stop": [stop],
        "stream": stream,
    }
    answer = post(server.url + "/v1/chat/completions", json=asked)
    found = events(answer.text) if stream else [answer.json()]
    choices = [chunk["choices"][0] for chunk in found]
    said = [choice["delta" if stream else "message"] for choice in choices]
    calls = [call for one in said for call in one.get("tool_calls", ())]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"text": "a\nb", "n": 3}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_content_before_a_call_is_searched(server: Live) -> None:
    say(server, "Let me see. Now:" + CALL)
    asked: dict[str, Any] = {
        "model": "sounding",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "Find."}],
        "tools": [{"name": "find", "input_schema": TOOL["parameters"]}],
        "stop_sequences": ["see"],
    }
    done = post(server.url + "/v1/messages", json=asked).json()
    assert [block["type"] for block in done["content"]] == ["text"]
    assert done["content"][0]["text"] == "Let me "
    assert (done["stop_reason"], done["stop_sequence"]) == ("stop_sequence", "see")


def test_the_engine_ends_with_the_stop_string(server: Live) -> None:
    """Nothing is generated behind it for nobody."""
    say(server, f"{THOUGHT}</think>One two. " + "more " * 400)
    ask(server, "/v1/chat/completions", ["two"], False)
    assert isinstance(server.engine, ScriptedEngine)
    assert len(server.engine.streams[-1].tokens) < 40


def test_what_is_healed_before_a_cursor_is_not_searched(server: Live) -> None:
    say(server, "lpha_beta = 1\nbeta = 2\n")
    for stop, text in (("a", "lph"), ("alph", "lpha_beta = 1"), ("beta", "lpha_")):
        asked = {"model": "sounding", "prompt": "x = a", "suffix": "\n# end\n", "stop": stop}
        done = post(server.url + "/v1/completions", json=asked | {"max_tokens": 60}).json()
        assert done["choices"][0]["text"].rstrip() == text
    body = {"input_prefix": "x = a", "input_suffix": "", "stop": ["beta"], "n_predict": 60}
    answer = post(server.url + "/infill", json=body).json()
    assert (answer["content"], answer["stop_type"]) == ("lpha_", "word")
    assert answer["stopping_word"] == "beta"


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=6),
    st.lists(st.text("ab\n", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_content_in_pieces_is_cut_as_a_whole_is(pieces: list[str], stops: list[str]) -> None:
    whole = StopStrings(stops)
    expected = whole.feed("".join(pieces))
    expected += whole.flush()
    content = ContentStops(stops)
    thought = ReasoningDelta("".join(stops))
    shown = content.feed([thought])
    for piece in pieces:
        shown += content.feed([ContentDelta(piece)])
    shown += content.feed([End("stop", None)])
    assert content.found == whole.found
    text = [ContentDelta(expected)] if expected else []
    assert coalesce(shown) == [thought, *text, End("stop", None)]


def test_a_trace_names_the_stop_string(server: Live) -> None:
    say(server, "One two three.")
    asked = {"model": "sounding", "messages": [{"role": "user", "content": "x"}]}
    options = {"thinking": {"type": "disabled"}, "stop": "two"}
    post(server.url + "/v1/chat/completions", json=asked | options)
    while server.service.ledger.running:
        time.sleep(0.001)
    kept = record(server.service.ledger.recent[0])
    assert (kept["stop"], kept["found_stop"], kept["finish_reason"]) == (["two"], "two", "stop")
