"""The libraries over a live server with a network in it: a random one, so that only form is known.

What the words are is another matter; that the same request gives the same words, that a prompt
that comes again is a hit, and that metrics and traces are the engine's own numbers is seen here.
"""

import dataclasses
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from sounding.engine.engine import Engine
from sounding.engine.settings import EngineSettings
from sounding.native.expert_store import ExpertStore
from sounding.native.network import KernelNetwork
from sounding.ops.cpu import library
from sounding.presets import tiny
from sounding.server.options import ServerOptions
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.expert_files import ExpertFiles
from tests.engine.scripted import small_tokenizer
from tests.networks import as_network, make_network
from tests.server.http.test_middleware import until
from tests.server.live import HANG_SECONDS, Live, get, live, post
from tests.server.test_events import samples
from tests.weights.folders import TINY

HI: list[Any] = [{"role": "user", "content": "Say something about the compressor. " * 20}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"mode": {"enum": ["near", "far"]}},
                "required": ["mode"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    tokenizer = small_tokenizer()
    config = dataclasses.replace(
        tiny(),
        quantization_config=None,
        expert_dtype=None,
        num_hidden_layers=2,
        compress_ratios=(128, 4, 0),
        vocab_size=tokenizer.num_tokens + 5,
    )
    engine = Engine(
        as_network(make_network(config)), tokenizer, EngineSettings(context_tokens=1500)
    )
    trace = tmp_path_factory.mktemp("trace")
    with live(engine, ServerOptions(trace=trace, thinking=False), tokenizer=tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[OpenAI]:
    address = f"{server.url}/v1"
    with OpenAI(base_url=address, api_key="x", max_retries=0, timeout=HANG_SECONDS) as made:
        yield made


def chat(client: OpenAI, **how: Any) -> Any:
    create: Any = client.chat.completions.create
    return create(**{"model": "sounding", "messages": HI, "seed": 3, "max_tokens": 12} | how)


def test_the_same_request_gives_the_same_words(client: OpenAI) -> None:
    first = chat(client).choices[0].message.content
    again = chat(client)
    assert again.choices[0].message.content == first
    assert again.usage.prompt_cache_hit_tokens >= 128
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chat(client, stream=True))
    assert streamed == first
    assert chat(client, seed=4).choices[0].message.content != first


def test_a_chat_has_logprobs_of_the_network(client: OpenAI) -> None:
    entries = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert entries and all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.logprob <= 0 for entry in entries)


def test_a_forced_call_is_a_valid_one(client: OpenAI) -> None:
    one = {"parallel_tool_calls": False}  # of several a random network sees no end
    done = chat(client, tools=TOOLS, tool_choice="required", max_tokens=200, **one)
    (choice,) = done.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["mode"] in ("near", "far")


def test_an_answer_that_follows_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    (choice,) = chat(client, response_format=form, max_tokens=60).choices
    assert choice.finish_reason == "stop"
    assert isinstance(json.loads(choice.message.content)["yes"], bool)


def test_a_schema_that_cannot_be_followed(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        chat(client, response_format=form)


def test_a_thought_is_ended_by_its_budget(server: Live) -> None:
    with Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        done = client.messages.create(
            model="sounding",
            max_tokens=30,
            messages=HI,
            # Sampled, a random network may end its thought at once.
            extra_body={"temperature": 0.0},
            thinking={"type": "enabled", "budget_tokens": 6},
        )
        assert done.content[0].type == "thinking"
        details = done.usage.output_tokens_details
        assert details is not None and details.thinking_tokens == 7  # the end is one too
        counted = client.messages.count_tokens(
            model="sounding", messages=HI, thinking={"type": "enabled", "budget_tokens": 6}
        )
    usage = done.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_completions_at_a_cursor(server: Live, client: OpenAI) -> None:
    asked = {"input_prefix": "def add(a, b):\n    ret", "input_suffix": "\n\nadd(1, 2)\n"}
    first = post(server.url + "/infill", json=asked | {"n_predict": 12}).json()
    again = post(server.url + "/infill", json=asked | {"n_predict": 12}).json()
    assert first["content"] == again["content"] and "\n" not in first["content"]
    done = client.completions.create(
        model="sounding", prompt="x = ", suffix="\n\n", max_tokens=8, temperature=0, logprobs=0
    )
    assert done.choices[0].finish_reason in ("stop", "length")


def test_a_response_ends_incomplete_at_its_token_limit(client: OpenAI) -> None:
    done = client.responses.create(model="sounding", input="Hi", max_output_tokens=5, temperature=0)
    assert done.status == "incomplete" and done.output_text


def test_a_prompt_without_room(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert refused.value.code == "context_length_exceeded"


def test_a_client_that_leaves_frees_its_place(server: Live) -> None:
    asked = {"model": "sounding", "messages": HI, "stream": True, "max_tokens": 1000}
    url = server.url + "/v1/chat/completions"
    with httpx.stream("POST", url, json=asked, timeout=HANG_SECONDS) as answer:
        next(answer.iter_lines())
    until(lambda: not server.service.ledger.running)
    until(lambda: server.engine.stats().running == 0)
    assert server.service.ledger.recent[0].state in ("cancelled", "repetition")


def test_all_tell_the_engine_s_own_numbers(server: Live) -> None:
    """Last of the file: over everything above."""
    until(lambda: not server.service.ledger.running)
    status = get(server.url + "/status").json()
    metrics = samples(get(server.url + "/metrics").text)
    server.service.close()
    folder = server.service.settings.trace
    assert isinstance(folder, Path)
    traces = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    for name in ("prompt_tokens", "hit_tokens", "completion_tokens", "drafted_tokens"):
        total = sum(trace["usage"][name] for trace in traces)
        assert total == status["engine"][name] == metrics[f"sounding_{name}_total"], name
    load = status["engine"]["expert_load"]
    assert metrics['sounding_expert_choices_total{expert="0",layer="1"}'] == load[1][0]


def test_a_damaged_model_is_a_500_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = small_tokenizer()
    config = dataclasses.replace(tiny(), vocab_size=tokenizer.num_tokens)
    network = make_network(config)
    network.get_parameter("norm.weight").data.fill_(float("nan"))
    engine = Engine(as_network(network), tokenizer, EngineSettings(context_tokens=1500))
    with live(engine, ServerOptions(), tokenizer=tokenizer) as running:
        for route, body in (
            ("/v1/completions", {"model": "sounding", "prompt": "x", "logprobs": 2}),
            (
                "/v1/chat/completions",
                {"model": "sounding", "messages": HI, "logprobs": True, "top_logprobs": 2},
            ),
            ("/infill", {"input_prefix": "x = "}),
        ):
            done = httpx.post(running.url + route, json=body, timeout=HANG_SECONDS)
            assert done.status_code == 500 and "the model is damaged" in done.text
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len([line for line in lines if "the model is damaged" in line]) == 3


@pytest.mark.skipif(library() is None, reason="no native kernels were built")
def test_a_disk_that_fails_is_a_500_that_names_the_file_and_the_server_goes_on() -> None:
    tokenizer = small_tokenizer()
    checkpoint = Checkpoint(TINY)
    config = checkpoint.config
    names = [*(f"layers.{n}" for n in range(5)), "mtp.0"]
    fails = threading.Event()

    def read(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        if fails.is_set():
            raise OSError(5, "Input/output error")
        return os.preadv(file, buffers, offset)

    files = ExpertFiles(checkpoint, names, [config.n_routed_experts] * len(names), read=read)
    store = ExpertStore(files, slots=9)
    network = KernelNetwork(config, checkpoint.read_all(), store=store)
    engine = Engine(network, tokenizer, EngineSettings(context_tokens=1500))
    asked = {"model": "sounding", "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}
    with live(engine, ServerOptions(), tokenizer=tokenizer) as running:

        def ask() -> httpx.Response:
            return httpx.post(running.url + "/v1/completions", json=asked, timeout=HANG_SECONDS)

        before = ask()
        assert before.status_code == 200, before.text
        fails.set()
        failed = ask()
        assert failed.status_code == 500
        assert str(TINY) in failed.text and "check the disk" in failed.text
        fails.clear()
        assert ask().json()["choices"] == before.json()["choices"]
        metrics = samples(get(running.url + "/metrics").text)
        experts = get(running.url + "/status").json()["engine"]["experts"]
        assert experts["misses"] > 0 and experts["failed_reads"] > 0
        for name in ("hits", "ahead", "misses", "bytes_read", "failed_reads"):
            assert metrics[f"sounding_expert_{name}_total"] == experts[name]
        assert metrics["sounding_expert_slots"] == 9
    store.close()
