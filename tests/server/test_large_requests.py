"""What is too long is refused before it is tokenized as a whole, on every route."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from sounding.text.tokenizer import Tokenizer
from tests.server.live import Live, live, post
from tests.server.scripted import ScriptedEngine

CONTEXT = 4096
# More bytes than so many tokens of the longest kind, and far more than fit.
LONG = "a b " * 300_000


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine(context_tokens=CONTEXT)) as running:
        yield running


MESSAGES = [{"role": "user", "content": LONG}]
BLOCKS = [{"role": "user", "content": [{"type": "text", "text": LONG}]}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/chat/completions", {"messages": BLOCKS, "stream": True}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 5}),
    ("/v1/messages", {"messages": BLOCKS, "max_tokens": 5, "system": LONG}),
    ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    ("/v1/responses", {"input": LONG}),
    ("/v1/responses", {"input": "x", "instructions": LONG}),
    ("/v1/completions", {"prompt": LONG}),
    ("/v1/completions", {"prompt": ["x", LONG]}),
    ("/v1/completions", {"prompt": [5] * 100_000}),
    ("/v1/completions", {"prompt": LONG, "suffix": "x"}),
    ("/v1/completions", {"prompt": "x", "suffix": LONG}),
    ("/api/generate", {"prompt": LONG}),
    ("/api/generate", {"prompt": LONG, "raw": True}),
    ("/api/generate", {"prompt": LONG, "suffix": "x"}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_what_cannot_fit_is_refused_by_its_size(
    server: Live, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encoding = Tokenizer._encoding

    def watched(self: Tokenizer, text: str, named: bool, most_tokens: int | None) -> Any:
        found = encoding(self, text, named, most_tokens)
        encoded.append(len(text))
        return found

    monkeypatch.setattr(Tokenizer, "_encoding", watched)
    answer = post(server.url + path, json={"model": "sounding", **body})
    assert answer.status_code == 400
    assert "prompt is too long" in answer.text
    assert f"> {CONTEXT - 1} maximum" in answer.text
    assert max(encoded, default=0) < 100


@pytest.mark.parametrize(
    "body",
    [
        {"input_prefix": LONG, "input_suffix": LONG},
        {"input_prefix": "x = ", "input_suffix": "\n" + LONG},
        {"input_prefix": "for x in y:\n    " * 60_000},
        {"input_prefix": "alpha", "input_extra": [{"text": LONG.replace("a", "alpha")}]},
    ],
)
def test_an_infill_looks_near_the_cursor_alone(
    server: Live, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    count = Tokenizer._encoding

    def watched(self: Tokenizer, text: str, named: bool, most_tokens: int | None) -> Any:
        encoded.append(len(text))
        return count(self, text, named, most_tokens)

    monkeypatch.setattr(Tokenizer, "_encoding", watched)
    answer = post(server.url + "/infill", json={**body, "n_predict": 4})
    assert answer.status_code == 200
    assert answer.json()["truncated"] is (
        len(body["input_prefix"]) > 1000 or "input_suffix" in body
    )
    assert max(encoded) <= 400_100


def test_a_refused_text_is_not_kept(server: Live) -> None:
    """An error that has crossed threads stays in a cycle with what it refused."""

    class Marked(str):
        __slots__ = ("__weakref__",)

    made: list[weakref.ref[Marked]] = []
    encode = server.service.tokenizer.encode

    def encode_marked(text: str, **how: Any) -> list[int]:
        marked = Marked(text)
        made.append(weakref.ref(marked))
        return encode(marked, **how)

    server.service.tokenizer.encode = encode_marked  # type: ignore[method-assign]
    try:
        gc.disable()
        asked = {"model": "sounding", "messages": MESSAGES}
        assert post(server.url + "/v1/chat/completions", json=asked).status_code == 400
        for _ in range(1000):
            if made[0]() is None:
                break
            post(server.url + "/v1/chat/completions", json={"model": "other"})
        assert made[0]() is None
    finally:
        gc.enable()
        server.service.tokenizer.encode = encode  # type: ignore[method-assign]


def test_a_prompt_may_have_many_token_ids(server: Live) -> None:
    asked = {"model": "sounding", "prompt": list(range(100, 400)), "max_tokens": 2}
    answer = post(server.url + "/v1/completions", json=asked)
    assert answer.json()["usage"]["prompt_tokens"] == 300
