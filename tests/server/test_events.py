"""The events of each protocol, one by one, and that metrics, traces and the page agree."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sounding.engine.requests import DraftCounts, Usage
from sounding.server.options import ServerOptions
from sounding.server.protocols.usage import openai_usage
from tests.server.http.test_middleware import until
from tests.server.live import Live, get, live, post
from tests.server.scripted import ScriptedEngine

SHORT_CALL = (
    "A.</think>B.\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="x" string="true">y</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
ASK: dict[str, Any] = {"model": "sounding", "stream": True, "max_tokens": 100}
HI = [{"role": "user", "content": "Hi"}]
PARAMETERS = {"type": "object", "properties": {"x": {"type": "string"}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine(SHORT_CALL)) as running:
        yield running


def events(server: Live, path: str, asked: dict[str, Any]) -> list[tuple[str | None, Any]]:
    """Name and data of each event, ids and times left out."""
    answer = post(server.url + path, json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = re.fullmatch(r"(?:event: (.*)\n)?data: (.*)", block).groups()  # type: ignore[union-attr]
        found.append((name, data if data == "[DONE]" else json.loads(data)))
    return found


def joined(found: list[Any]) -> list[Any]:
    """Neighbouring equals become one: how text is cut is the tokenizer's affair."""
    return [each for at, each in enumerate(found) if not at or each != found[at - 1]]


def test_chat_completion_chunks(server: Live) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]
    found = events(server, "/v1/chat/completions", ASK | {"messages": HI, "tools": tools})
    assert found[-1] == (None, "[DONE]")
    deltas = [data["choices"][0]["delta"] for _, data in found[:-1]]
    call_id = deltas[-5]["tool_calls"][0]["id"] if "id" in str(deltas[-5]) else None
    kinds = joined([tuple(delta) for delta in deltas])
    assert kinds == [("role", "content"), ("reasoning_content",), ("content",), ("tool_calls",), ()]
    assert deltas[0] == {"role": "assistant", "content": ""}
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert set(calls[0]) == {"index", "id", "type", "function"}
    assert calls[0]["function"] == {"name": "f", "arguments": ""}
    assert all(set(call) == {"index", "function"} for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"x": "y"}'
    assert call_id is None or call_id.startswith("call_")
    reasons = [data["choices"][0]["finish_reason"] for _, data in found[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]


def test_messages_stream_events_in_the_documented_order(server: Live) -> None:
    asked = ASK | {
        "messages": HI,
        "tools": [{"name": "f", "input_schema": PARAMETERS}],
        "thinking": {"type": "adaptive"},
    }
    found = events(server, "/v1/messages", asked)
    assert all(name == data["type"] for name, data in found)
    steps = [
        (name, data.get("index"), data.get("delta", data.get("content_block", {})).get("type"))
        for name, data in found
    ]
    assert joined(steps) == [
        ("message_start", None, None),
        ("content_block_start", 0, "thinking"),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, "text"),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_stop", 1, None),
        ("content_block_start", 2, "tool_use"),
        ("content_block_delta", 2, "input_json_delta"),
        ("content_block_stop", 2, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]
    assert found[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    start, end = found[0][1]["message"]["usage"], found[-2][1]["usage"]
    total = end["input_tokens"] + end["cache_read_input_tokens"]
    assert start["input_tokens"] == total and end["output_tokens"] > 0


def test_responses_stream_events_in_the_documented_order(server: Live) -> None:
    asked = {"model": "sounding", "stream": True, "input": "Hi"}
    asked["tools"] = [{"type": "function", "name": "f", "parameters": PARAMETERS}]
    found = events(server, "/v1/responses", asked)
    assert all(name == data["type"] for name, data in found)
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    steps = [(str(name).removeprefix("response."), d.get("output_index")) for name, d in found]
    assert joined(steps) == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("completed", None),
    ]
    first, last = found[0][1]["response"], found[-1][1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    added = [d["item"] for name, d in found if name == "response.output_item.added"]
    done = [d["item"] for name, d in found if name == "response.output_item.done"]
    assert [item["status"] for item in added] == ["in_progress"] * 3
    assert done == last["output"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert done[2]["arguments"] == '{"x": "y"}'
    assert last["usage"]["output_tokens_details"]["reasoning_tokens"] == 3


def test_completions_stream_chunks_with_usage_last(server: Live) -> None:
    asked = ASK | {"prompt": "x", "stream_options": {"include_usage": True}, "stop": "B"}
    found = events(server, "/v1/completions", asked)
    assert found[-1][1] == "[DONE]" and found[-2][1]["choices"] == []
    assert found[-2][1]["usage"]["prompt_tokens"] == 2
    choices = [data["choices"][0] for _, data in found[:-2]]
    assert "".join(choice["text"] for choice in choices) == "A.</think>"
    assert choices[-1]["finish_reason"] == "stop"


# --------------------------------------------------------------------------------------------------
# One set of numbers


def test_metrics_traces_and_status_agree(tmp_path: Path) -> None:
    with live(ScriptedEngine(SHORT_CALL), ServerOptions(trace=tmp_path / "trace")) as server:
        for number in range(3):
            asked = ASK | {"messages": HI, "stream": number == 1}
            post(server.url + "/v1/chat/completions", json=asked)
        post(server.url + "/infill", json={"input_prefix": "x = ", "n_predict": 2})
        post(server.url + "/v1/chat/completions", json={"model": "sounding"})
        until(lambda: not server.service.ledger.running)
        status = get(server.url + "/status").json()
        metrics = samples(get(server.url + "/metrics").text)
    traces = [json.loads(path.read_text()) for path in (tmp_path / "trace").glob("*.json")]
    assert len(traces) == 4
    for name in ("prompt_tokens", "hit_tokens", "completion_tokens", "drafted_tokens"):
        total = sum(trace["usage"][name] for trace in traces)
        assert total == status["engine"][name] == metrics[f"sounding_{name}_total"] > 0
    assert status["cache"]["hit_tokens"] == status["engine"]["hit_tokens"]
    chat = 'route="/v1/chat/completions"'
    assert metrics[f"sounding_time_to_first_token_seconds_count{{{chat}}}"] == 3
    assert metrics[f"sounding_generation_seconds_count{{{chat}}}"] == 3
    tokens = sum(len(t["completion_token_ids"]) for t in traces if t["route"] == chat[7:-1])
    assert metrics[f"sounding_inter_token_seconds_count{{{chat}}}"] == tokens - 3
    assert metrics[f'sounding_http_requests_total{{{chat},status="400"}}'] == 1
    assert metrics['sounding_generations_total{reason="length",route="/infill"}'] == 1
    load = status["engine"]["expert_load"]
    assert metrics['sounding_expert_choices_total{expert="1",layer="1"}'] == load[1][1] == 4
    for what in ("verified", "accepted"):
        first = sum(trace["usage"]["drafts"][what][0] for trace in traces)
        labels = '{drafter="mtp",position="1"}'
        assert metrics[f"sounding_drafts_{what}_total{labels}"] == first > 0
        assert status["engine"]["drafts"]["mtp"][what][0] == first

    sessions = {session["id"]: session for session in status["sessions"]}
    for trace in traces:
        session = sessions[trace["id"]]
        assert session["completion_tokens"] == trace["usage"]["completion_tokens"]
        assert session["prompt_tokens"] == len(trace["prompt_token_ids"])
        assert session["hit_tokens"] == trace["usage"]["hit_tokens"]
        assert session["state"] == trace["finish_reason"]


def test_usage_counts_drafts_by_position() -> None:
    usages = [Usage(drafts=DraftCounts().plus(3, 1)), Usage(drafts=DraftCounts().plus(1, 1))]
    details = openai_usage(usages)["completion_tokens_details"]
    assert details["draft_positions"] == {"verified": (2, 1, 1), "accepted": (2, 0, 0)}
    assert "draft_positions" not in openai_usage([Usage()])["completion_tokens_details"]


def samples(text: str) -> dict[str, float]:
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def test_a_trace_says_what_happened(tmp_path: Path) -> None:
    with live(ScriptedEngine("</think>" + "word " * 9), ServerOptions(trace=tmp_path)) as server:
        asked = {"messages": HI, "model": "sounding", "stop": "rd w", "seed": 4}
        post(server.url + "/v1/chat/completions", json=asked)
    (path,) = tmp_path.glob("*.json")
    trace = json.loads(path.read_text())
    tokenizer = ScriptedEngine().tokenizer
    assert tokenizer.decode(trace["prompt_token_ids"]).endswith(
        "<｜User｜>Hi<｜Assistant｜><think>"
    )
    assert tokenizer.decode(trace["completion_token_ids"]).startswith("</think>word w")
    assert (trace["finish_reason"], trace["found_stop"]) == ("stop", "rd w")
    assert trace["params"]["seed"] == 4
    assert trace["usage"]["miss_reason"] == "never seen"
    assert 0 <= trace["seconds"]["first_token"] <= trace["seconds"]["total"]


def test_a_trace_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), live(settings=ServerOptions(trace=tmp_path / "file")):
        pass


def test_a_trace_that_fails_costs_no_answer(tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    with live(settings=ServerOptions(trace=folder)) as server:
        folder.rmdir()
        asked = {"messages": HI, "model": "sounding"}
        assert post(server.url + "/v1/chat/completions", json=asked).status_code == 200
