"""What editors send while somebody types: `/infill`, `suffix`, and Ollama's generate."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sounding.engine.requests import Priority
from tests.server.live import HANG_SECONDS, Live, live
from tests.server.scripted import ScriptedEngine

PREFIX = "def add(a, b):\n    return "
SUFFIX = "\n\n\nprint(add(1, 2))\n"

# As llama.vim writes it.
VIM = {
    "input_prefix": "def add(a, b):\n",
    "input_suffix": SUFFIX,
    "input_extra": [{"text": "def sub(a, b):\n    return a - b\n", "time": 1, "filename": "s.py"}],
    "prompt": "    return ",
    "n_predict": 64,
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "timings/predicted_n", "truncated"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine("a + b\nnever")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=HANG_SECONDS) as made:
        yield made


def engine(server: Live) -> ScriptedEngine:
    assert isinstance(server.engine, ScriptedEngine)
    return server.engine


def lines(text: str) -> list[Any]:
    """The objects of a stream, of events or of lines."""
    return [
        json.loads(line.removeprefix("data: "))
        for line in text.splitlines()
        if line and line != "data: [DONE]"
    ]


def test_a_request_of_llama_vim_gets_the_rest_of_the_line(
    client: httpx.Client, server: Live
) -> None:
    answer = client.post("/infill", json=VIM)
    assert answer.status_code == 200, answer.text
    done = answer.json()
    assert done["content"] == "a + b"  # the rest of the line, and no more
    assert set(done) == set(VIM["response_fields"])  # type: ignore[call-overload]
    assert done["truncated"] is False
    asked = engine(server).requests
    request = next(one for one in reversed(asked) if one.max_seconds == 1.5)
    assert {one.priority for one in asked[asked.index(request) :]} == {Priority.KEYSTROKE}
    assert (request.params.temperature, request.params.top_k) == (0.0, 40)
    prompt = engine(server).prompts[-1]
    assert prompt.endswith(f"<｜fim▁hole｜>{SUFFIX}<｜fim▁end｜>")
    assert f"# s.py\ndef sub(a, b):\n    return a - b\n\n{PREFIX}<" in prompt


def test_llama_vim_warms_the_cache(client: httpx.Client, server: Live) -> None:
    warm = VIM | {"n_predict": 0, "samplers": [], "prompt": "", "t_max_predict_ms": 1}
    answer = client.post("/infill", json=warm)
    assert answer.status_code == 200 and answer.json()["content"] == ""
    assert engine(server).requests[-1].max_tokens == 0


def test_a_word_is_healed(client: httpx.Client, server: Live) -> None:
    """The cursor is inside of a word: the model chooses its tokens anew, and none is doubled."""
    engine(server).script = lambda prompt: "urn a + b"
    try:
        for stream in (False, True):
            asked = {"input_prefix": "def f(a, b):\n    ret", "input_suffix": "\n\n\n"}
            answer = client.post("/infill", json=asked | {"stream": stream})
            parts = lines(answer.text) if stream else [answer.json()]
            assert "".join(part["content"] for part in parts) == "urn a + b"
            assert "ret<｜fim" not in engine(server).prompts[-1]
    finally:
        engine(server).script = lambda prompt: "a + b\nnever"


def test_infill_streams_what_is_certain(client: httpx.Client) -> None:
    parts = lines(client.post("/infill", json=VIM | {"stream": True, "response_fields": []}).text)
    assert "".join(part["content"] for part in parts) == "a + b"
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]
    last = parts[-1]
    assert last["stop_type"] == "eos" and last["timings"]["predicted_n"] == 4


def test_infill_cuts_a_long_file(client: httpx.Client, server: Live) -> None:
    asked = VIM | {"input_prefix": "x = 1\n" * 2000, "response_fields": []}
    done = client.post("/infill", json=asked).json()
    assert done["truncated"] is True
    assert len(engine(server).requests[-1].prompt) <= 1024


def test_infill_refuses_by_name(client: httpx.Client) -> None:
    answer = client.post("/infill", json=VIM | {"mirostat": 2})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == 400 and "mirostat" in error["message"]
    assert client.post("/infill", json=VIM | {"mirostat": 0}).status_code == 200


def test_a_completion_with_a_suffix_ends_with_what_is_missing(
    client: httpx.Client, server: Live
) -> None:
    asked = {"model": "sounding", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 20}
    done = client.post("/v1/completions", json=asked).json()
    assert done["choices"][0]["text"] == "a + b"  # a line is missing
    assert done["choices"][0]["finish_reason"] == "stop"
    assert engine(server).requests[-1].priority is Priority.KEYSTROKE
    streamed = client.post("/v1/completions", json=asked | {"stream": True, "stop": "+"})
    texts = [part["choices"][0]["text"] for part in lines(streamed.text)]
    assert "".join(texts) == "a "


def test_suffix_that_does_not_fit(client: httpx.Client) -> None:
    asked = {"model": "sounding", "prompt": "x = 1\n" * 4000, "suffix": SUFFIX}
    answer = client.post("/v1/completions", json=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


# --------------------------------------------------------------------------------------------------
# Ollama


def test_ollama_fills_in(client: httpx.Client, server: Live) -> None:
    asked = {"model": "sounding:latest", "prompt": PREFIX, "suffix": SUFFIX}
    parts = lines(client.post("/api/generate", json=asked).text)
    assert "".join(part["response"] for part in parts) == "a + b"
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1]["done_reason"] == "stop" and parts[-1]["eval_count"] == 4
    whole = client.post("/api/generate", json=asked | {"stream": False}).json()
    assert whole["response"] == "a + b" and whole["done"] is True


def test_a_prompt_to_ollama_generate_is_answered_as_a_chat(
    client: httpx.Client, server: Live
) -> None:
    engine(server).script = lambda prompt: "Hm.</think>Yes."
    try:
        asked = {"model": "sounding", "prompt": "Hi", "system": "S", "think": True}
        whole = client.post("/api/generate", json=asked | {"stream": False}).json()
        assert (whole["thinking"], whole["response"]) == ("Hm.", "Yes.")
        assert engine(server).prompts[-1].endswith("S<｜User｜>Hi<｜Assistant｜><think>")
        parts = lines(client.post("/api/generate", json=asked).text)
        assert "".join(part.get("thinking", "") for part in parts) == "Hm."
    finally:
        engine(server).script = lambda prompt: "a + b\nnever"


def test_ollama_raw_and_options(client: httpx.Client, server: Live) -> None:
    options = {"num_predict": 2, "temperature": 0.5, "seed": 3, "stop": ["z"], "num_ctx": 99}
    asked = {"model": "sounding", "prompt": "x =", "raw": True, "options": options}
    parts = lines(client.post("/api/generate", json=asked).text)
    assert parts[-1]["done_reason"] == "length"
    request = engine(server).requests[-1]
    assert engine(server).prompts[-1] == "<｜begin▁of▁sentence｜>x ="
    assert (request.max_tokens, request.params.seed, request.params.temperature) == (2, 3, 0.5)


def test_ollama_tells_of_the_model(client: httpx.Client) -> None:
    (model,) = client.get("/api/tags").json()["models"]
    assert model["name"] == "sounding:latest"
    shown = client.post("/api/show", json={"model": model["name"]}).json()
    assert "insert" in shown["capabilities"]
    assert shown["model_info"]["deepseek4.context_length"] == 4096
    assert client.get("/api/version").json()["version"]
    missing = client.post("/api/show", json={"model": "llama"})
    assert missing.status_code == 404 and isinstance(missing.json()["error"], str)
