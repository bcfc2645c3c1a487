"""Large requests at once leave the small ones a thread."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from sounding.engine.requests import GenerationRequest
from sounding.server.http.wire import read_json
from tests.server.live import live, post
from tests.server.scripted import ScriptedEngine, ScriptedStream

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "sounding", "messages": [{"role": "user", "content": "Hi"}]}
MANY = 40  # more than there are threads on any machine of the tests


def at_once(work: Callable[[], Any]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for _ in range(MANY)]
    for thread in threads:
        thread.start()
    return threads


def test_many_large_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    def slow(body: bytes, most: int) -> Any:
        if len(body) > 300_000:
            waiting.release()
            go_on.wait()
        return read_json(body, most)

    monkeypatch.setattr("sounding.server.service.read_json", slow)
    large = ASK | {"user": "x" * 400_000}
    with live(ScriptedEngine()) as server:
        threads = at_once(lambda: post(server.url + CHAT, json=large))
        try:
            assert waiting.acquire(timeout=60) and waiting.acquire(timeout=60)
            assert post(server.url + CHAT, json=ASK).status_code == 200
        finally:
            go_on.set()
            for thread in threads:
                thread.join()


def test_slow_grammars_do_not_block_other_requests() -> None:
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    class Slow(ScriptedEngine):
        def submit(self, request: GenerationRequest) -> ScriptedStream:
            if request.grammar is not None:
                waiting.release()
                go_on.wait()
            return super().submit(request)

    with live(Slow()) as server:
        asked = ASK | {"response_format": {"type": "json_object"}}
        threads = at_once(lambda: post(server.url + CHAT, json=asked))
        try:
            assert waiting.acquire(timeout=60) and waiting.acquire(timeout=60)
            assert post(server.url + CHAT, json=ASK).status_code == 200
        finally:
            go_on.set()
            for thread in threads:
                thread.join()
