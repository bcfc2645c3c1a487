"""What completions come from: a model within its time, and a server over HTTP."""

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sounding.completion.gap import Gap
from sounding.completion.prompt import CompletionSettings
from sounding.editor import suggest
from sounding.editor.suggest import Ask, FromModel, FromServer, Stop, Stopped, through
from sounding.engine.batch import Batch, Generate, Request
from sounding.engine.engine import Engine
from sounding.text.fim_format import FimFormat
from sounding.train.runs import copying
from tests.engine.scripted import Author, small_tokenizer
from tests.networks import NetworkMaker, as_network

FIM = FimFormat()


def always(generate: Generate) -> Callable[[Stop], Generate]:
    """What generates by itself, and is stopped between its steps."""
    return lambda stop: generate


class Clock:
    """A time that passes by the token."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class SlowAuthor(Author):
    """Takes a second for the prompt, and one for each token."""

    def __init__(self, clock: Clock, prefix: str, *scripts: str) -> None:
        super().__init__(prefix, *scripts)
        self.clock = clock

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        self.clock.now += 1
        for step in super().__call__(requests):
            self.clock.now += 1
            yield step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(suggest, "time", clock)
    return clock


PREFIX = "def f(x):\n"
BLOCK = "    y = x\n    z = y\n    return z\n"


def test_time_counts_from_the_first_token_and_leaves_whole_lines(clock: Clock) -> None:
    whole = [len(small_tokenizer().encode(line, named=False)) for line in BLOCK.splitlines(True)]
    for seconds, lines in [(0.0, 3), (sum(whole) + 9.0, 3), (whole[0] + 2.0, 1)]:
        author = SlowAuthor(clock, PREFIX, BLOCK)
        model = FromModel(
            small_tokenizer(), FIM, always(author), CompletionSettings(), seconds=seconds
        )
        text = model(Ask(Gap(PREFIX), python=True), Stop())
        assert text == "".join(BLOCK.splitlines(True)[:lines]).rstrip()


def test_no_second_attempt_after_the_time_is_up(clock: Clock) -> None:
    author = SlowAuthor(clock, "x = ", "))))))))))")
    FromModel(small_tokenizer(), FIM, always(author), seconds=3.0)(
        Ask(Gap("x = "), python=True), Stop()
    )
    assert len(author.requests) == 1
    assert author.pushed <= 4


def test_stopping_a_model() -> None:
    stop = Stop()

    def generate(requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        requests[0].answer.push(small_tokenizer().encode(" x")[0], 0.0)
        yield 0, False
        stop.set()
        yield 0, False
        raise AssertionError("it went on")

    with pytest.raises(Stopped):
        FromModel(small_tokenizer(), FIM, always(generate))(Ask(Gap("x")), stop)


@pytest.fixture
def engine(network_maker: NetworkMaker) -> Iterator[Engine]:
    """Of a random network, without an end of sentence."""
    config = dataclasses.replace(
        copying().model, vocab_size=small_tokenizer().num_tokens, max_position_embeddings=8192
    )
    engine = Engine(as_network(network_maker(config)), small_tokenizer(), stop_tokens=())
    yield engine
    engine.close()


def test_an_engine_writes_what_it_always_writes(engine: Engine) -> None:
    settings = CompletionSettings(max_tokens=6, context_tokens=64)
    batch = always(Batch(engine))
    for prefix, python in [("def f(x):\n    return ", False), ("total = 0\nfor x in", True)]:
        ask = Ask(Gap(prefix, "\nprint(total)\n"), python=python)
        answers = [
            FromModel(small_tokenizer(), FIM, generate, settings, seconds=0.0)(ask, Stop())
            for generate in (batch, through(engine))
        ]
        assert answers[0] == answers[1] != ""


def test_stopping_reaches_the_engine(engine: Engine) -> None:
    stop = Stop()
    settings = CompletionSettings(max_tokens=2000, context_tokens=8000)

    def give_up() -> None:
        while not engine.stats().running:
            time.sleep(0.001)
        stop.set()

    thread = threading.Thread(target=give_up)
    thread.start()
    model = FromModel(small_tokenizer(), FIM, through(engine), settings, seconds=0.0)
    with pytest.raises(Stopped):
        model(Ask(Gap("x = 1\n" * 1500)), stop)  # it is still reading
    thread.join()
    assert engine.stats().completion_tokens < 1000
    with pytest.raises(Stopped):
        model(Ask(Gap("y")), stop)


def test_an_engine_that_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(engine._runner, "step", fail)
    with pytest.raises(RuntimeError, match="no room"):
        FromModel(small_tokenizer(), FIM, through(engine))(Ask(Gap("x")), Stop())


class Server:
    """An HTTP server that answers everything in the same way and remembers what it was asked."""

    def __init__(self, status: int, body: Any) -> None:
        asked: list[tuple[str, str | None, Any]] = []
        self.asked = asked
        self.got_it, self.may_answer = threading.Event(), threading.Event()
        got_it, may_answer = self.got_it, self.may_answer
        may_answer.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                read = self.rfile.read(int(self.headers["Content-Length"]))
                asked.append((self.path, self.headers["Authorization"], json.loads(read)))
                got_it.set()
                may_answer.wait(10)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):  # somebody has hung up
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()


def test_asking_a_server() -> None:
    with Server(200, {"content": " + b"}) as server:
        ask = Ask(Gap("x = a", "\n"), [("b.py", "b = 1\n")])
        made = FromServer(server.url + "/", api_key="secret", max_tokens=9, seconds=0.0)(
            ask, Stop()
        )
        assert made == " + b"
        expected = {
            "input_prefix": "x = a",
            "input_suffix": "\n",
            "input_extra": [{"filename": "b.py", "text": "b = 1\n"}],
            "n_predict": 9,
            "stream": False,
        }
        assert server.asked == [("/infill", "Bearer secret", expected)]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"error": {"message": "too long"}}, "answered 400: too long"),
        (401, {"error": "no key"}, "answered 401: no key"),
        (502, "<html>", "answered 502: <html>"),
        (200, [], "answered 200"),
    ],
)
def test_servers_that_refuse(status: int, body: Any, message: str) -> None:
    with Server(status, body) as server, pytest.raises(ValueError, match=message):
        FromServer(server.url)(Ask(Gap("x")), Stop())


def test_stopping_a_request() -> None:
    stop = Stop()
    with Server(200, {"content": ""}) as server:
        server.may_answer.clear()

        def give_up() -> None:
            server.got_it.wait(10)
            stop.set()

        thread = threading.Thread(target=give_up)
        thread.start()
        with pytest.raises(Stopped):
            FromServer(server.url)(Ask(Gap("x")), stop)
        thread.join()
        with pytest.raises(Stopped):
            FromServer(server.url)(Ask(Gap("x")), stop)
        assert len(server.asked) == 1


def test_servers_that_are_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(OSError, match=r"cannot reach http.*is the server running\?"):
            FromServer(url)(Ask(Gap("x")), Stop())
    with pytest.raises(ValueError, match="must be the http"):
        FromServer("localhost:8000")
