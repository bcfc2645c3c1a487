"""llama.cpp's /infill. Source: the README of its server, "POST /infill", 2026."""

from functools import partial
from typing import Any

from sounding.bench.conformance.check import Protocol, expect, rule
from sounding.bench.conformance.remote_server import RemoteServer

PATH = "/infill"
says = partial(rule, Protocol.INFILL)


def ask(server: RemoteServer, **more: Any) -> dict[str, Any]:
    """The body of a small request."""
    prefix = "def add(a, b):\n    return "
    return {"input_prefix": prefix, "input_suffix": "\n", "n_predict": 8} | more


@says("an answer has content, stop, tokens_evaluated and tokens_predicted")
def the_object_of_an_answer(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server)).json
    expect(isinstance(found["content"], str), f"content is {found['content']!r}")
    expect(found["stop"] is True, f"stop is {found['stop']!r}")
    expect(isinstance(found["tokens_predicted"], int), "tokens_predicted is missing")
    expect(found["tokens_evaluated"] > 0, "tokens_evaluated is missing")


@says("n_predict limits the generated tokens")
def n_predict_bounds_the_answer(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server, n_predict=2)).json
    expect(
        found["tokens_predicted"] <= 2,
        f"the answer has {found['tokens_predicted']} tokens, 2 are allowed",
    )


@says("prompt is added after the prefix")
def a_prompt_is_taken(server: RemoteServer) -> None:
    server.post(PATH, ask(server, prompt="a + "))


@says("input_extra has parts of other files, each with filename and text")
def other_files_are_taken(server: RemoteServer) -> None:
    extra = [{"filename": "sums.py", "text": "def total(numbers):\n    return sum(numbers)\n"}]
    server.post(PATH, ask(server, input_extra=extra))


@says("every event of a stream has content and stop; stop is true only in the last")
def a_stream(server: RemoteServer) -> None:
    found = [event.json for event in server.post(PATH, ask(server, stream=True)).events]
    stops = [event["stop"] for event in found]
    expect(stops[-1] is True and not any(stops[:-1]), f"stop is {stops}")


@says("a stream contains the same text as the answer without streaming")
def a_stream_says_the_same(server: RemoteServer) -> None:
    body = ask(server, temperature=0, seed=3)
    whole = server.post(PATH, body).json["content"]
    events = server.post(PATH, body | {"stream": True}).events
    streamed = "".join(event.json["content"] for event in events)
    expect(streamed == whole, f"streamed: {streamed!r}, not streamed: {whole!r}")


@says("input_prefix and input_suffix must be strings")
def a_prefix_of_another_type_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, input_prefix=7))


@says("every entry of input_extra must have a text")
def a_file_without_text_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, input_extra=[{"filename": "a.py"}]))


CHECKS = [
    the_object_of_an_answer,
    n_predict_bounds_the_answer,
    a_prompt_is_taken,
    other_files_are_taken,
    a_stream,
    a_stream_says_the_same,
    a_prefix_of_another_type_is_refused,
    a_file_without_text_is_refused,
]
