"""The kit against our own server, and against servers that break its rules.

Catches: a check that passes whatever comes, a check that our own server fails, an examination
without end.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import sounding.loading
from sounding.bench.conformance import chat_checks, kit, messages_checks, ollama_checks
from sounding.bench.conformance.check import Check, CheckVerdict, Protocol, Result, run_checks
from sounding.bench.conformance.remote_server import RemoteServer, ServerAnswer
from sounding.server.options import ServerOptions
from tests.server.live import live

Handler = Callable[[str, dict[str, Any]], tuple[int, Any]]


@contextmanager
def serving(handler: Handler) -> Iterator[str]:
    """A server that answers each path and body with a status and JSON, or bytes as they are."""

    class Request(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            try:
                body = json.loads(self.rfile.read(length))
            except ValueError:
                body = {}
            status, value = handler(self.path, body)
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            kind = "text/event-stream" if isinstance(value, bytes) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def examine(handler: Handler, *checks: Check, **limits: Any) -> list[Result]:
    with serving(handler) as url:
        return list(run_checks(RemoteServer(url, "m", **limits), checks))


def test_our_server_conforms() -> None:
    model = sounding.loading.open_model("nano")
    with (
        closing(model),
        live(
            model.engine(),
            ServerOptions(model_names=("nano",), thinking=False),
            tokenizer=model.tokenizer,
        ) as found,
    ):
        results = list(run_checks(RemoteServer(found.url, "nano"), kit.CHECKS))
    wrong = [result for result in results if result.verdict is not CheckVerdict.PASSED]
    assert [(str(r.check.protocol), r.check.name, r.message) for r in wrong] == []
    assert kit.conforms(results)


def completion(content: str = "hello", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    return head | {"choices": [choice], "usage": usage} | more


BROKEN: list[tuple[Check, Any]] = [
    (chat_checks.the_object_of_an_answer, completion(object="completion")),
    (
        chat_checks.usage_adds_up,
        completion(usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 6}),
    ),
    (chat_checks.several_choices, completion()),
    (chat_checks.no_choice_is_refused, completion()),
    (chat_checks.a_required_call, completion()),
    (chat_checks.an_answer_of_a_schema, completion("hello")),
    (chat_checks.a_stream_ends_with_done, b"data: {}\n\n"),
    (chat_checks.usage_of_a_stream, b'data: {"choices": [{}]}\n\ndata: [DONE]\n\n'),
    (chat_checks.a_stream_says_the_same, completion()),
    (messages_checks.the_object_of_an_answer, {"type": "message", "role": "user"}),
    (ollama_checks.an_empty_prompt_loads, {"response": "hi", "done": True, "done_reason": "stop"}),
]


@pytest.mark.parametrize(("check", "answer"), BROKEN, ids=[check.name for check, _ in BROKEN])
def test_what_deviates_is_found(check: Check, answer: Any) -> None:
    [result] = examine(lambda path, body: (200, answer), check)
    assert result.verdict is CheckVerdict.DEVIATES
    assert result.message and result.sent and result.got


def test_a_protocol_that_is_not_spoken_is_skipped() -> None:
    results = examine(lambda path, body: (404, {"error": "no"}), *messages_checks.CHECKS[:3])
    assert {result.verdict for result in results} == {CheckVerdict.SKIPPED}
    assert kit.summary(results) == "not supported"
    assert not kit.conforms(results)


def test_a_missing_feature_of_a_spoken_protocol_deviates() -> None:
    def handler(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (404, {}) if "n" in body else (200, completion())

    results = examine(handler, chat_checks.the_object_of_an_answer, chat_checks.several_choices)
    assert [result.verdict for result in results] == [CheckVerdict.PASSED, CheckVerdict.DEVIATES]


def test_requests_are_bounded() -> None:
    asked = []

    def handler(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(path)
        return 200, completion()

    checks = [chat_checks.the_object_of_an_answer] * 5
    results = examine(handler, *checks, requests=3)
    assert len(asked) == 3
    assert [result.verdict for result in results[3:]] == [CheckVerdict.SKIPPED] * 2


def test_no_server_is_an_error() -> None:
    with serving(lambda path, body: (200, {})) as url:
        gone = url
    with pytest.raises(OSError, match="refused"):
        list(run_checks(RemoteServer(gone, "m"), chat_checks.CHECKS[:1]))


def test_characters_may_not_be_cut_between_events() -> None:
    cut = b'data: {"a": "\xc3\n\ndata: \xa9"}\n\n'
    with pytest.raises(ValueError, match="utf-8"):
        _ = ServerAnswer(200, "text/event-stream", cut).events


def test_every_check_has_a_name_of_its_own_and_a_rule() -> None:
    for protocol in Protocol:
        mine = kit.checks_of([protocol])
        assert len({check.name for check in mine}) == len(mine) >= 8
        assert all(check.rule for check in mine)


def test_every_check_that_is_written_is_run() -> None:
    for module in (chat_checks, messages_checks, ollama_checks):
        written = {value.name for value in vars(module).values() if isinstance(value, Check)}
        assert written == {check.name for check in module.CHECKS}
