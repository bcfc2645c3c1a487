"""Who may come in, how much at a time, and how clients and the server itself may leave."""

import http.client
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.server.http.keys import Keys
from sounding.server.http.serve import Server, is_loopback, listen
from sounding.server.options import ServerOptions
from sounding.server.service import Service
from tests.server.live import HANG_SECONDS, Live, get, live, post
from tests.server.scripted import ScriptedEngine

KEY, OTHER = "a-key-of-sixteen-or-more", "another-key-of-the-same-server"
ASK = {"model": "sounding", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"


def engine(server: Live) -> ScriptedEngine:
    assert isinstance(server.engine, ScriptedEngine)
    return server.engine


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does; a hang is the failure."""
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.001)
    raise AssertionError("it did not happen")


# --------------------------------------------------------------------------------------------------
# Keys


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with live(settings=ServerOptions(keys=Keys([KEY, OTHER]))) as running:
        yield running


def test_both_ways_to_send_a_key(locked: Live) -> None:
    for key in (KEY, OTHER):
        for header in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            assert post(locked.url + CHAT, json=ASK, headers=header).status_code == 200


def test_an_empty_or_foreign_key_beside_a_good_one(locked: Live) -> None:
    """Libraries send both headers where both are set."""
    good = {"authorization": f"Bearer {KEY}"}
    for other in ("", "placeholder"):
        headers = good | {"x-api-key": other}
        assert post(locked.url + CHAT, json=ASK, headers=headers).status_code == 200
        headers = {"x-api-key": KEY, "authorization": f"Bearer {other}".strip()}
        assert post(locked.url + CHAT, json=ASK, headers=headers).status_code == 200
    headers = {"x-api-key": "", "authorization": "Bearer"}
    assert post(locked.url + CHAT, json=ASK, headers=headers).status_code == 401


def test_without_a_key_nothing_is_told(locked: Live) -> None:
    begun = len(engine(locked).requests)
    for path in (CHAT, "/v1/messages", "/infill", "/api/generate"):
        for header in ({}, {"x-api-key": KEY[:-1]}, {"authorization": f"Basic {KEY}"}):
            assert post(locked.url + path, json=ASK, headers=header).status_code == 401
    for path in ("/status", "/metrics", "/v1/models", "/api/tags", "/nowhere"):
        assert get(locked.url + path).status_code == 401
    assert get(locked.url + "/health").status_code == 200
    assert len(engine(locked).requests) == begun


def test_the_libraries_know_the_error(locked: Live) -> None:
    with (
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with (
        anthropic.Anthropic(base_url=locked.url, api_key="wrong", max_retries=0) as other,
        pytest.raises(anthropic.AuthenticationError),
    ):
        other.messages.create(
            model="sounding", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
        )


def test_key_files_have_a_key_per_line_and_short_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n{KEY}\n  {OTHER}  \n")
    keys = Keys.from_file(path)
    assert keys.owner(KEY) and keys.owner(OTHER) and keys.owner(KEY) != keys.owner(OTHER)
    assert keys.owner("# ours") is None and keys.owner("") is None
    path.write_text("short\n")
    with pytest.raises(ValueError, match=r"keys: key 1 has 5 characters"):
        Keys.from_file(path)
    path.write_text("# none\n")
    with pytest.raises(ValueError, match="there is no key"):
        Keys.from_file(path)


def test_reasoning_is_restored_to_its_owner_alone(locked: Live) -> None:
    """Whoever asks the same with another key does not get the first one's thoughts."""
    script = engine(locked).script
    engine(locked).script = lambda prompt: "secret.</think>42"
    try:
        mine, theirs = {"x-api-key": KEY}, {"x-api-key": OTHER}
        asked = ASK | {"tools": [{"type": "function", "function": {"name": "f"}}]}
        post(locked.url + CHAT, json=asked, headers=mine)
        more = [{"role": "assistant", "content": "42"}, {"role": "user", "content": "Why?"}]
        asked["messages"] = [*ASK["messages"], *more]
        post(locked.url + CHAT, json=asked, headers=theirs)
        assert "<think></think>42" in engine(locked).prompts[-1]
        post(locked.url + CHAT, json=asked, headers=mine)
        assert "<think>secret.</think>42" in engine(locked).prompts[-1]
    finally:
        engine(locked).script = script


# --------------------------------------------------------------------------------------------------
# Browsers


def test_pages_from_elsewhere_need_an_invitation() -> None:
    with live(settings=ServerOptions(cors_origins=("https://a.example",))) as server:
        stranger, invited = {"origin": "https://b.example"}, {"origin": "https://a.example"}
        own = {"origin": f"http://127.0.0.1:{server.port}"}
        assert post(server.url + CHAT, json=ASK, headers=stranger).status_code == 403
        assert post(server.url + CHAT, json=ASK, headers=own).status_code == 200
        answer = post(server.url + CHAT, json=ASK, headers=invited)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        asks = {"access-control-request-method": "POST"}
        asks["access-control-request-headers"] = "content-type, authorization"
        allowed = httpx.options(server.url + CHAT, headers=invited | asks)
        assert allowed.status_code == 200
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        refused = httpx.options(server.url + CHAT, headers=stranger | asks)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


def test_a_name_that_is_not_ours() -> None:
    """A page whose own name points here (DNS rebinding) is no stranger to its browser."""
    with live(settings=ServerOptions(hosts=("127.0.0.1", "localhost"))) as server:
        assert get(server.url + "/status").status_code == 200
        header = {"host": f"evil.example:{server.port}"}
        assert get(server.url + "/status", headers=header).status_code == 403
        for ours in ("127.0.0.1", f"LOCALHOST:{server.port}", "localhost:"):
            assert get(server.url + "/status", headers={"host": ours}).status_code == 200
        hosts = ("[", "", "evil@127.0.0.1", "evil:pw@localhost", "[::1]evil", "127.0.0.1/x", "[::1")
        for broken in (*({"host": host} for host in hosts), {"origin": "http://["}):
            assert get(server.url + "/status", headers=broken).status_code == 403


# --------------------------------------------------------------------------------------------------
# Limits


def test_a_body_that_is_too_large() -> None:
    with live(settings=ServerOptions(max_body_bytes=1000)) as server:
        long = ASK | {"user": "x" * 2000}
        assert post(server.url + CHAT, json=long).status_code == 413
        pieces = (b" " * 300 for _ in range(5))  # of a length that is not told
        assert post(server.url + CHAT, content=pieces).status_code == 413
        assert post(server.url + CHAT, json=ASK).status_code == 200


def test_a_body_that_does_not_come() -> None:
    with live(settings=ServerOptions(body_seconds=0.05)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_SECONDS)
        connection.putrequest("POST", CHAT)
        connection.putheader("content-length", "100")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert answer.status == 408 and b"request_timeout" in answer.read()
        connection.close()


def test_too_many_at_once() -> None:
    with live(settings=ServerOptions(max_requests=1)) as server:
        engine(server).hold.clear()
        first = threading.Thread(target=post, args=(server.url + CHAT,), kwargs={"json": ASK})
        first.start()
        until(lambda: len(engine(server).requests) == 1)
        answer = post(server.url + CHAT, json=ASK)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert get(server.url + "/health").status_code == 200
        engine(server).hold.set()
        first.join()
        assert post(server.url + CHAT, json=ASK).status_code == 200


def test_an_engine_that_is_full() -> None:
    with live(ScriptedEngine(capacity=0)) as server:
        for path in (CHAT, "/v1/messages"):
            answer = post(server.url + path, json=ASK | {"max_tokens": 5})
            assert answer.status_code == 429 and answer.headers["retry-after"]
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.RateLimitError),
        ):
            client.completions.create(model="sounding", prompt="x")


# --------------------------------------------------------------------------------------------------
# Leaving


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_cancels(stream: bool, begun: bool) -> None:
    """Before the first token, as in a long prefill, and in the middle of the answer."""
    with live(ScriptedEngine("word " * 1000)) as server:
        scripted = engine(server)
        scripted.pace_seconds = 0.001
        if not begun:
            scripted.hold.clear()
        body = json.dumps(ASK | {"stream": stream}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + body)
            until(lambda: len(scripted.streams) == 1)
            if begun:
                until(lambda: len(scripted.streams[0].tokens) > 3)
        until(scripted.streams[0].cancelled.is_set)
        until(lambda: not server.service.ledger.running)
        until(lambda: server.service.in_flight == 0)
        (run,) = server.service.ledger.recent
        assert run.state == "cancelled"


def test_a_stream_is_kept_alive_while_the_prompt_is_read() -> None:
    with live(settings=ServerOptions(keep_alive_seconds=0.01)) as server:
        engine(server).hold.clear()
        asked = ASK | {"stream": True, "max_tokens": 9}
        for path, sign in ((CHAT, b": keep-alive\n\n"), ("/v1/messages", b"event: ping\n")):
            engine(server).hold.clear()
            with httpx.stream(
                "POST", timeout=HANG_SECONDS, url=server.url + path, json=asked
            ) as answer:
                seen = b""
                for piece in answer.iter_raw():
                    seen += piece
                    if seen.count(sign) > 2:
                        engine(server).hold.set()
            assert b"Hello" in seen
            assert seen.rstrip().endswith((b"[DONE]", b'{"type":"message_stop"}'))


def test_draining_finishes_what_runs_and_refuses_what_comes() -> None:
    with live(grace_seconds=5.0) as server:
        engine(server).hold.clear()
        answers: list[httpx.Response] = []
        ask = threading.Thread(target=lambda: answers.append(post(server.url + CHAT, json=ASK)))
        ask.start()
        until(lambda: len(engine(server).requests) == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        until(lambda: server.service.draining)
        late = post(server.url + CHAT, json=ASK)
        assert late.status_code == 503 and late.headers["retry-after"]
        assert get(server.url + "/health").json() == {"status": "draining"}
        engine(server).hold.set()
        ask.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["choices"][0]["finish_reason"] == "stop"
        until(lambda: server.server.should_exit)


def test_the_grace_is_not_endless() -> None:
    with live(grace_seconds=0.05) as server:
        engine(server).hold.clear()
        answers: list[httpx.Response] = []
        ask = threading.Thread(target=lambda: answers.append(post(server.url + CHAT, json=ASK)))
        ask.start()
        until(lambda: len(engine(server).requests) == 1)
        server.server.drain()
        ask.join()
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["code"] == "cancelled"


def test_loopback_addresses_are_told_from_public_ones() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.1", "example.org")))


def test_small_packets_are_sent_at_once() -> None:
    """asyncio turns Nagle's algorithm off only for a socket that names its protocol."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(OSError, match=f"port {taken.getsockname()[1]}"):
            listen("127.0.0.1", taken.getsockname()[1])


# --------------------------------------------------------------------------------------------------
# Noise


@pytest.fixture(scope="module")
def noisy() -> Iterator[Live]:
    with live(settings=ServerOptions(body_seconds=0.2)) as running:
        yield running


PATHS = [CHAT, "/v1/completions", "/v1/messages", "/v1/responses", "/infill", "/api/generate"]
REQUEST = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@settings(max_examples=40)
@given(data=st.data())
def test_bytes_that_are_hardly_http(noisy: Live, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["bytes", "damaged"]))
    if kind == "bytes":
        sent = data.draw(st.binary(max_size=300))
    else:
        at = data.draw(st.integers(0, len(REQUEST)))
        sent = REQUEST[:at] + data.draw(st.binary(max_size=8)) + REQUEST[at:]
    with socket.create_connection(("127.0.0.1", noisy.port), timeout=HANG_SECONDS) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while piece := connection.recv(65536):
            got += piece
    assert not got or got.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4"))
    assert b"Traceback" not in got


BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"",
            b"null",
            b"[]",
            b'"x"',
            b"{" * 5000,
            b"[" * 100_000,
            b'{"model": NaN}',
            b'{"model": "\\ud800"}',
            b'{"model": "sounding", "prompt": "\\u0000", "seed": 1e999}',
            b'{"model": "sounding", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
            b'{"model": "sounding", "prompt": "x", "temperature": ' + b"9" * 400 + b"}",
            b'{"prompt": [[[[]]]], "model": "sounding"}',
            b'{"model": "sounding", "input": [{}], "messages": [{}]}',
            b'\xff\xfe{"model": 1}',
            b'{"a": 1, "a": 2}',
        ]
    ),
)


@settings(max_examples=40)
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_bodies_that_are_hardly_json(noisy: Live, path: str, body: bytes) -> None:
    answer = post(noisy.url + path, content=body)
    assert 200 <= answer.status_code < 500
    error: Any = answer.json()
    assert "Traceback" not in answer.text
    assert answer.status_code < 400 or "error" in error


def test_a_fault_of_ours_is_told_to_the_log_alone(
    noisy: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: object) -> None:
        raise KeyError("the inside of the server")

    monkeypatch.setattr(engine(noisy), "submit", broken)
    with caplog.at_level(logging.ERROR):
        for path in (CHAT, "/v1/messages"):
            answer = post(noisy.url + path, json=ASK | {"max_tokens": 5})
            assert answer.status_code == 500
            assert "inside" not in answer.text and "error" in answer.json()
    assert "the inside of the server" in caplog.text


def test_unknown_places_and_methods(noisy: Live) -> None:
    assert get(noisy.url + "/v1/nothing").json()["error"]["code"] == "not_found"
    assert post(noisy.url + "/v1/messages/batches", json={}).json()["type"] == "error"
    wrong = get(noisy.url + CHAT)
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"


def test_nothing_is_left_open() -> None:
    """After many requests, some of them broken off, no file handle and no task remains."""
    with live(ScriptedEngine("word " * 50)) as server:
        scripted = engine(server)
        post(server.url + CHAT, json=ASK)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            with httpx.stream(
                "POST", timeout=HANG_SECONDS, url=server.url + CHAT, json=ASK | {"stream": True}
            ) as answer:
                for count, _ in enumerate(answer.iter_lines()):
                    if number % 2 and count > 3:
                        break
        until(lambda: not server.service.ledger.running and server.service.in_flight == 0)
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert len(scripted.requests) == 21


def test_sigterm_ends_a_server_in_the_main_thread() -> None:
    scripted = ScriptedEngine()
    service = Service(scripted, scripted.tokenizer, ServerOptions())
    server = Server(service, grace_seconds=1.0)
    listener = listen("127.0.0.1", 0)

    def stop() -> None:
        until(lambda: server.started)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    server.run(sockets=[listener])
    stopper.join()
    assert service.draining
