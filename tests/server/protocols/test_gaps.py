"""Texts to be filled in as editors send them: marked gaps, line ends, empty names of models.

Shapes of llama.vim (a1c8e6e, January 2026), llama-vscode 0.0.63, Zed and Continue 1.1.0 (2026).
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sounding.completion.gap import Gap
from sounding.server.options import ServerOptions
from sounding.server.protocols.filling import Newlines, marked_gap
from tests.server.live import Live, get, live, post
from tests.server.protocols.test_absent import prompt
from tests.server.scripted import ScriptedEngine

BOS = "<｜begin▁of▁sentence｜>"
BEGIN, HOLE, END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
BEFORE, AFTER = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
MARKED = BEGIN + BEFORE + HOLE + AFTER + END


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine("a + b\n    # so\n"), ServerOptions(model_names=("nano",))) as running:
        yield running


def ask(server: Live, path: str, **body: Any) -> Any:
    answer = post(server.url + path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def asked_of(server: Live) -> int:
    """How many requests the engine has had."""
    assert isinstance(server.engine, ScriptedEngine)
    return len(server.engine.requests)


def temperature(server: Live, first: int) -> float:
    """That of the client's own request; those of other candidates follow it."""
    assert isinstance(server.engine, ScriptedEngine)
    return server.engine.requests[first].params.temperature


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/v1/completions", {"prompt": MARKED}, lambda done: done["choices"][0]["text"]),
        ("/v1/completions", {"prompt": [MARKED]}, lambda done: done["choices"][0]["text"]),
        ("/v1/completions", {"prompt": BOS + MARKED}, lambda done: done["choices"][0]["text"]),
        (
            "/api/generate",
            {"prompt": MARKED, "raw": True, "stream": False},
            lambda done: done["response"],
        ),
    ],
)
def test_a_marked_gap_is_that_gap(
    server: Live, path: str, body: dict[str, Any], answer: Any
) -> None:
    """Zed (`prompt_format: deepseek_coder`) and Continue's template for DeepSeek."""
    plain = ask(
        server, "/v1/completions", prompt=BEFORE, suffix=AFTER, temperature=0, max_tokens=12
    )
    expected = prompt(server)
    limit = {"options": {"num_predict": 12}} if path == "/api/generate" else {"max_tokens": 12}
    first = asked_of(server)
    done = ask(server, path, **body, **limit)
    assert prompt(server) == expected and answer(done) == plain["choices"][0]["text"]
    assert temperature(server, first) == 0
    warm = {"options": {"num_predict": 12, "temperature": 0.5}}
    first = asked_of(server)
    ask(server, path, **body, **(warm if path == "/api/generate" else {"temperature": 0.5}))
    assert temperature(server, first) == 0.5


DOORS = [
    ("/infill", {"input_prefix": BEFORE, "input_suffix": AFTER}, "content"),
    ("/completion", {"prompt": MARKED}, "content"),
    ("/v1/completions", {"prompt": BEFORE, "suffix": AFTER}, "text"),
    ("/v1/completions", {"prompt": MARKED}, "text"),
    ("/api/generate", {"prompt": BEFORE, "suffix": AFTER, "stream": False}, "response"),
    ("/api/generate", {"prompt": MARKED, "raw": True, "stream": False}, "response"),
]


@pytest.mark.parametrize(("path", "body", "name"), DOORS)
@pytest.mark.parametrize("temperature", [0, 0.5])
def test_every_door_fills_the_line_and_stops_there(
    server: Live, path: str, body: dict[str, Any], name: str, temperature: float
) -> None:
    """The script goes on with a comment; a line is missing."""
    warm = {"temperature": temperature}
    done = ask(server, path, **body, **({"options": warm} if path == "/api/generate" else warm))
    assert (done["choices"][0] if "choices" in done else done)[name] == "a + b"


def test_scored_tokens_are_the_text(server: Live) -> None:
    asked = {"prompt": BEFORE, "suffix": AFTER, "max_tokens": 40, "logprobs": 1}
    choice = ask(server, "/v1/completions", **asked)["choices"][0]
    assert choice["text"] == "a + b\n    # so\n"
    assert "".join(choice["logprobs"]["tokens"]).startswith(choice["text"])


def test_several_prompts_each_as_it_is(server: Live) -> None:
    first = asked_of(server)
    done = ask(server, "/v1/completions", prompt=["x = ", MARKED], max_tokens=3)
    assert len(done["choices"]) == 2
    assert isinstance(server.engine, ScriptedEngine)
    plain, marked = server.engine.requests[first : first + 2]
    assert plain.params.temperature == 1 and marked.params.temperature == 0


@pytest.mark.parametrize(
    ("text", "gap"),
    [
        (MARKED, Gap(BEFORE, AFTER)),
        (BEGIN + HOLE + END, Gap("", "")),
        (BOS + BEGIN + "a" + HOLE + END, Gap("a", "")),
        (MARKED + "a", None),
        ("a" + MARKED, None),
        (BEGIN + BEFORE + END, None),
        (BEGIN + "a" + HOLE + "b" + HOLE + "c" + END, None),
        (MARKED + MARKED, None),
        (BEGIN + "a" + END + HOLE + "b" + END, None),
        (HOLE + "a" + BEGIN + "b" + END, None),
        ("", None),
    ],
)
def test_what_a_marked_gap_is(text: str, gap: Gap | None) -> None:
    assert marked_gap(text) == gap


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("cut", [0, 1])
def test_line_ends_are_the_client_s(server: Live, end: str, cut: int) -> None:
    before, after = (text.replace("\n", end) for text in (BEFORE, AFTER))
    if cut and end == "\r\n":  # the cursor within a line end
        before, after = before + "\r", after[1:]
    for path, body, answer in (
        ("/infill", {"input_prefix": BEFORE, "input_suffix": AFTER}, "content"),
        ("/v1/completions", {"prompt": BEFORE, "suffix": AFTER, "max_tokens": 40}, "text"),
        ("/v1/completions", {"prompt": MARKED, "max_tokens": 40}, "text"),
        ("/api/generate", {"prompt": BEFORE, "suffix": AFTER, "stream": False}, "response"),
    ):
        plain = ask(server, path, **body)
        expected = prompt(server)
        texts = {BEFORE: before, AFTER: after, MARKED: BEGIN + before + HOLE + after + END}
        other = {name: texts.get(value, value) for name, value in body.items()}  # type: ignore[call-overload]
        done = ask(server, path, **other)
        assert prompt(server) == expected
        plain, done = ((d["choices"][0] if "choices" in d else d)[answer] for d in (plain, done))
        assert done == plain.replace("\n", end)


def test_other_files_and_stop_strings_with_them(server: Live) -> None:
    extra = [{"filename": "a.py", "text": "x = 1\ny = 2\n"}]
    body = {"input_prefix": BEFORE, "input_suffix": AFTER, "input_extra": extra, "stop": ["b\n"]}
    plain = ask(server, "/infill", **body)
    expected = prompt(server)
    body = json.loads(json.dumps(body).replace("\\n", "\\r\\n"))
    done = ask(server, "/infill", **body)
    assert prompt(server) == expected
    assert done["content"] == plain["content"]
    assert (plain["stopping_word"], done["stopping_word"]) in ((("b\n"), ("b\r\n")), ("", ""))


def test_line_ends_of_a_streamed_answer(server: Live) -> None:
    before, after = (text.replace("\n", "\r\n") for text in (BEFORE, AFTER))
    body = {"prompt": before, "suffix": after, "max_tokens": 40, "stream": True, "logprobs": 1}
    text = post(server.url + "/v1/completions", json=body).text
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    written = "".join(json.loads(line)["choices"][0]["text"] for line in lines)
    assert written == "a + b\r\n    # so\r\n"


@pytest.mark.parametrize(
    ("text", "written"),
    [("a\r\nb\nc\r\n", "\r\n"), ("a\nb\r\nc\n", "\n"), ("a\rb", "\r"), ("a", "\n"), ("", "\n")],
)
def test_the_line_ends_of_most_lines_count(text: str, written: str) -> None:
    assert Newlines(text).write("\n") == written


FILL = {"input_prefix": "def f(", "input_suffix": "", "n_predict": 4}


@pytest.mark.parametrize("model", ["", " ", None])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/infill", FILL),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
        ("/api/generate", {"prompt": "hi", "stream": False}),
        ("/api/show", {}),
    ],
)
def test_no_model_is_the_one_that_is_served(
    server: Live, path: str, body: dict[str, Any], model: str | None
) -> None:
    """llama.vim sends an empty name where none is set."""
    ask(server, path, **body, model=model)
    done = ask(server, path, **body)
    if path != "/api/show":
        assert done["model"] == "nano"


def test_another_model_is_still_not_found(server: Live) -> None:
    assert post(server.url + "/infill", json={**FILL, "model": "other"}).status_code == 404


def test_llama_vscode_asks_for_several(server: Live) -> None:
    assert "content" in ask(server, "/infill", **FILL, n_cmpl=3)


def test_llama_vim_warms_up(server: Live) -> None:
    """Its instruct mode puts a prompt into the cache before anything is asked."""
    done = ask(
        server,
        "/v1/chat/completions",
        model="",
        messages=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        id_slot=0,
        samplers=[],
        n_predict=0,
        stream=False,
        cache_prompt=True,
        response_fields=[""],
    )
    assert done["usage"]["completion_tokens"] == 0
    assert ask(server, "/infill", **FILL, response_fields=[""]) == {}


@pytest.mark.parametrize(("given", "count"), [({"n_predict": 2}, 2), ({"n_predict": -1}, 9)])
def test_llama_cpp_s_name_of_the_limit(server: Live, given: dict[str, int], count: int) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", {"prompt": "x"})):
        done = ask(server, path, **body, **given)
        assert min(done["usage"]["completion_tokens"], 9) >= min(count, 3)
        if count == 2:
            assert done["usage"]["completion_tokens"] == 2


def test_llama_cpp_s_own_route(server: Live) -> None:
    """Continue's llama.cpp provider posts there."""
    first = asked_of(server)
    done = ask(server, "/completion", prompt="x = ", n_predict=3, stop=["zzz"], top_k=40)
    assert (done["content"], done["tokens_predicted"]) == ("a + b", 3)
    assert prompt(server) == BOS + "x = " and temperature(server, first) == 1
    assert done["stop_type"] == "limit"
    ask(server, "/completion", prompt=MARKED)
    marked = prompt(server)
    ask(server, "/v1/completions", prompt=BEFORE, suffix=AFTER)
    assert prompt(server) == marked
    body = {"prompt": "x = ", "stream": True}
    lines = post(server.url + "/completion", json=body).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert "".join(event["content"] for event in events[:-1]) == "a + b\n    # so\n"
    assert events[-1]["stop"] is True


def test_llama_vscode_asks_for_the_context(server: Live) -> None:
    for path in ("/props", "/v1/props"):
        assert get(server.url + path).json()["default_generation_settings"]["n_ctx"] == 4096


def test_its_errors_are_llama_cpp_s(server: Live) -> None:
    answer = post(server.url + "/completion", json={"prompt": 5})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == 400
