"""A request of a million parts is refused before it is read, and one fault is enough."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sounding.server.http import wire
from sounding.server.http.errors import Refusal
from sounding.server.http.wire import MOST_COLLECTIONS, read_json, read_model
from sounding.server.protocols.chat_completions import ChatCompletionRequest
from sounding.server.protocols.completions import CompletionRequest
from sounding.server.protocols.fields import check_choice, stop_strings
from sounding.server.protocols.responses import ResponseRequest
from tests.server.live import live, post
from tests.server.scripted import ScriptedEngine

VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a\\",:[{}]é\n'), max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('\\",:[{a', max_size=4), inner),
)


def parts(value: Any) -> dict[str, int]:
    """Commas, colons and opening brackets that JSON needs for a value."""
    if isinstance(value, list | dict):
        inner = list(value.values()) if isinstance(value, dict) else value
        counts = [parts(one) for one in inner]
        found = {mark: sum(count[mark] for count in counts) for mark in ",:[{"}
        found[","] += max(0, len(inner) - 1)
        found[":"] += len(inner) * isinstance(value, dict)
        found["{" if isinstance(value, dict) else "["] += 1
        return found
    return dict.fromkeys(",:[{", 0)


@settings(max_examples=300)
@given(VALUES, st.integers(1, 9), st.booleans())
def test_what_is_outside_of_strings_is_counted(value: Any, page: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    before, wire._PAGE_BYTES = wire._PAGE_BYTES, page
    try:
        counts = wire._count_marks(body)
    finally:
        wire._PAGE_BYTES = before
    assert {mark: counts[ord(mark)] for mark in ",:[{"} == parts(value)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("[" + "1," * 10**6 + "1]", "1000000 values"),
        ("[" + "[]," * 10**5 + "1]", "100001 objects and arrays"),
        ("[" * 10**5, "100000 objects and arrays"),
        ("[" + "{}," * 10**5 + "1]", "100001 objects and arrays"),
        ("{" + ",".join(f'"x{i}":1' for i in range(200_000)) + "}", "200000 names"),
    ],
)
def test_too_many_parts(body: str, what: str) -> None:
    with pytest.raises(Refusal, match=what) as refused:
        read_json(body.encode())
    assert refused.value.status == 400


def test_a_long_text_has_few_parts() -> None:
    text = '{"a": [1, "b\\",\n' * 200_000
    assert read_json(json.dumps([text]).encode()) == [text]


def faults(model: Callable[[Any], Any], given: Any) -> int:
    with pytest.raises(ValidationError) as wrong:
        model(given)
    return wrong.value.error_count()


def test_one_fault_of_a_list_or_object_is_enough() -> None:
    chat = {"model": "m"}
    many = 10_000
    validate = ChatCompletionRequest.model_validate
    assert faults(validate, chat | {"messages": [1] * many}) == 1
    part = {"role": "user", "content": [{"type": "image"}] * many}
    assert faults(validate, chat | {"messages": [part]}) <= 2
    assert faults(validate, chat | {"messages": [{}] * many}) <= 2
    prompt = {"model": "m", "prompt": ["a", *[1] * many]}
    assert faults(CompletionRequest.model_validate, prompt) <= 8
    metadata = {"model": "m", "input": "x", "metadata": {f"{i}": i for i in range(many)}}
    assert faults(ResponseRequest.model_validate, metadata) == 1


@pytest.mark.parametrize("length", [10, 79, 80, 1 << 20])
def test_a_name_of_any_length_is_refused_shortly(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def near(name: str, known: list[str], count: int) -> list[str]:
        compared.append(name)
        return []

    monkeypatch.setattr("difflib.get_close_matches", near)
    name = "m" * length
    with pytest.raises(Refusal) as refused:
        read_model(ChatCompletionRequest, {"model": "m", "messages": [], name: 1})
    assert len(refused.value.message) < 1000
    assert bool(compared) == (length < 80)
    with pytest.raises(Refusal) as refused:
        read_model(ResponseRequest, {"model": "m", "input": "x", "metadata": {name: 1}})
    assert len(refused.value.message) < 1000 and len(refused.value.param or "") < 200


def test_stop_strings_and_tools_have_bounds() -> None:
    assert len(stop_strings(["x"] * 64)) == 64
    for stops in (["x"] * 65, "x" * 1001):
        with pytest.raises(Refusal, match="at most 64 stop strings of at most 1000"):
            stop_strings(stops)
    tools = [{"function": {"name": f"tool_{number}"}} for number in range(1000)]
    with pytest.raises(Refusal) as refused:
        check_choice("required", ("x" * 5000,), tools)
    assert len(refused.value.message) < 1000
    with pytest.raises(Refusal, match="two tools are named 'tool_7'"):
        check_choice("auto", None, [*tools, tools[7]])


def test_a_large_request_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    read = read_model

    def watched(model: Any, given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return read(model, given)

    monkeypatch.setattr("sounding.server.service.read_model", watched)
    with live(ScriptedEngine(context_tokens=4096)) as server:
        for count in (2, MOST_COLLECTIONS - 10):
            messages = [{"role": "user", "content": "x"}] * count
            post(server.url + "/v1/chat/completions", json={"model": "m", "messages": messages})
    assert [name.startswith("large") for name in threads] == [False, True]
