"""OpenAI's completions of plain text. Source: the API reference, "Create completion", 2026."""

from functools import partial
from typing import Any

from sounding.bench.conformance.chat_checks import chunks
from sounding.bench.conformance.check import Protocol, expect, rule
from sounding.bench.conformance.remote_server import RemoteServer

PATH = "/v1/completions"
says = partial(rule, Protocol.COMPLETIONS)


def ask(server: RemoteServer, **more: Any) -> dict[str, Any]:
    """The body of a small request."""
    return {"model": server.model, "prompt": "def add(a, b):\n    ", "max_tokens": 6} | more


@says("an answer is a text_completion with choices and usage")
def the_object_of_an_answer(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server)).json
    expect(found["object"] == "text_completion", f"object is {found['object']!r}")
    choice = found["choices"][0]
    expect(isinstance(choice["text"], str), f"text is {choice['text']!r}")
    expect(
        choice["finish_reason"] in ("stop", "length"),
        f"finish_reason is {choice['finish_reason']!r}",
    )
    usage = found["usage"]
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    expect(total == usage["total_tokens"], f"usage does not add up: {usage}")


@says("max_tokens is 16 by default")
def sixteen_tokens_unless_asked(server: RemoteServer) -> None:
    body = ask(server)
    del body["max_tokens"]
    used = server.post(PATH, body).json["usage"]["completion_tokens"]
    expect(used <= 16, f"the answer has {used} tokens")


@says("a list of prompts gets one choice each, in order")
def several_prompts(server: RemoteServer) -> None:
    choices = server.post(PATH, ask(server, prompt=["a = ", "b = "], max_tokens=3)).json["choices"]
    expect(
        [choice["index"] for choice in choices] == [0, 1],
        "the indices of the choices are not 0, 1, ... in order",
    )


@says("a prompt may be a list of token ids")
def token_ids_are_taken(server: RemoteServer) -> None:
    server.post(PATH, ask(server, prompt=[40, 41, 42], max_tokens=2))


@says("with echo the text starts with the prompt")
def echo_repeats_the_prompt(server: RemoteServer) -> None:
    body = ask(server, echo=True)
    text = server.post(PATH, body).json["choices"][0]["text"]
    expect(text.startswith(body["prompt"]), f"the text starts with {text[:40]!r}")


@says("logprobs has lists of tokens, logprobs, alternatives and offsets of equal length")
def logprobs_are_parallel(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server, logprobs=2)).json["choices"][0]["logprobs"]
    lengths = {key: len(found[key]) for key in ("tokens", "token_logprobs", "text_offset")}
    expect(len(set(lengths.values())) == 1, f"the lengths are {lengths}")
    expect(all(value <= 1e-6 for value in found["token_logprobs"]), "a logprob is above 0")
    expect(len(found["top_logprobs"]) == lengths["tokens"], "alternatives are missing")


@says("logprobs must be at most 5", required=False)
def too_many_logprobs_are_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, logprobs=100))


@says("the text of a stop sequence is not part of the answer")
def stop_sequences_are_left_out(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server, stop="\n", max_tokens=40)).json["choices"][0]
    expect("\n" not in found["text"], f"the text is {found['text']!r}")


@says("choices has n entries")
def several_choices(server: RemoteServer) -> None:
    choices = server.post(PATH, ask(server, n=2, max_tokens=3)).json["choices"]
    expect(len(choices) == 2, f"there are {len(choices)}")


@says("best_of must be at least n", required=False)
def best_of_below_n_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, n=3, best_of=2))


@says("a stream contains text_completion objects and ends with data: [DONE]")
def a_stream(server: RemoteServer) -> None:
    answer = server.post(PATH, ask(server, stream=True))
    expect(answer.events[-1].data == "[DONE]", f"it ends with {answer.events[-1].data[:80]!r}")
    found = chunks(answer)
    kinds = {chunk["object"] for chunk in found}
    expect(kinds == {"text_completion"}, f"objects are {kinds}")
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in found if chunk["choices"]]
    expect(reasons[-1] in ("stop", "length"), f"the last finish_reason is {reasons[-1]!r}")


@says("a stream contains the same text as the answer without streaming")
def a_stream_says_the_same(server: RemoteServer) -> None:
    body = ask(server, temperature=0, max_tokens=12)
    whole = server.post(PATH, body).json["choices"][0]["text"]
    found = chunks(server.post(PATH, body | {"stream": True}))
    streamed = "".join(chunk["choices"][0]["text"] for chunk in found if chunk["choices"])
    expect(streamed == whole, f"streamed: {streamed!r}, not streamed: {whole!r}")


@says("temperature must be from 0 to 2")
def a_temperature_out_of_range_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, temperature=-1))


@says("max_tokens must not be negative")
def a_negative_length_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, max_tokens=-5))


@says("a prompt must be a string, a list of strings, a list of tokens or a list of token lists")
def another_prompt_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, prompt={"text": "a"}))


@says("a prompt longer than the context is refused, not truncated silently")
def a_prompt_that_is_too_long_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, prompt=[[40] * 1_200_000]))


CHECKS = [
    the_object_of_an_answer,
    sixteen_tokens_unless_asked,
    several_prompts,
    token_ids_are_taken,
    echo_repeats_the_prompt,
    logprobs_are_parallel,
    too_many_logprobs_are_refused,
    stop_sequences_are_left_out,
    several_choices,
    best_of_below_n_is_refused,
    a_stream,
    a_stream_says_the_same,
    a_temperature_out_of_range_is_refused,
    a_negative_length_is_refused,
    another_prompt_is_refused,
    a_prompt_that_is_too_long_is_refused,
]
