"""The engine beside the plainest loop there is, alone and in company, cancelled and closed."""

import asyncio
import gc
import threading
import time
from typing import Any

import pytest
import torch

from sounding.engine import engine as engine_module
from sounding.engine.engine import Engine
from sounding.engine.requests import (
    Event,
    Finished,
    GenerationRequest,
    Overloaded,
    Priority,
)
from sounding.engine.scheduler import Scheduler
from sounding.engine.sequence import ActiveSequence
from sounding.engine.settings import EngineSettings
from sounding.model.transformer import Transformer
from tests.engine.running import CONFIG, Gate, collect, naive, request, tokens_of
from tests.networks import NetworkMaker, as_network


@pytest.fixture
def network(network_maker: NetworkMaker) -> Transformer:
    """In float64, where company changes no choice."""
    return network_maker(CONFIG, dtype=torch.float64)


@pytest.fixture
def gate(network: Transformer, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(network, monkeypatch)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_together_as_alone(network: Transformer, gate: Gate, temperature: float) -> None:
    engine = Engine(as_network(network), settings=EngineSettings(width=3, step_tokens=150))
    lengths = (5, 300, 1, 140, 17, 128)
    asked = [
        request(length, seed=length, temperature=temperature, max_tokens=6) for length in lengths
    ]
    streams = [engine.submit(each) for each in asked]
    gate.release()
    answers = [collect(stream) for stream in streams]
    engine.close()
    assert [tokens for tokens, _ in answers] == [list(naive(network, each)) for each in asked]
    assert max(map(len, gate.lengths)) == 3  # they did share steps


def test_long_prompts_and_answers_share_steps(network: Transformer, gate: Gate) -> None:
    """The answer to a short prompt does not wait for a long one to be read, nor the other way."""
    engine = Engine(as_network(network), settings=EngineSettings(step_tokens=128))
    short = engine.submit(request(3, max_tokens=4))
    long = engine.submit(request(300, max_tokens=2))
    gate.release()
    short_tokens, _ = collect(short)
    assert len(short_tokens) == 4
    collect(long)
    engine.close()
    assert gate.lengths[:4] == [[3], [1, 128], [1, 128], [1, 44]]


def test_cancelled_within_a_step(network: Transformer, gate: Gate) -> None:
    engine = Engine(as_network(network), settings=EngineSettings(width=1))
    first = engine.submit(request(400, max_tokens=50))
    second = engine.submit(request(3, max_tokens=2))
    gate.let(1)
    first.cancel()
    first.cancel()
    gate.release()
    _, end = collect(first)
    assert end.reason == "cancelled"
    assert collect(second)[1].reason == "length"
    waiting = [engine.submit(request(3)) for _ in range(3)]
    for stream in waiting:
        stream.cancel()
    assert {collect(stream)[1].reason for stream in waiting} <= {"cancelled", "length"}
    engine.close()
    assert sum(map(sum, gate.lengths[:3])) <= 128 * 2 + 3
    assert engine.stats().state_bytes == 0


def test_an_event_loop_reads_too(network: Transformer) -> None:
    engine = Engine(as_network(network))
    asked = request(7, max_tokens=5)

    async def read() -> list[Event]:
        return [event async for event in engine.submit(asked)]

    *events, last = asyncio.run(read())
    engine.close()
    assert tokens_of(events) == list(naive(network, asked))
    assert isinstance(last, Finished) and last.usage.completion_tokens == 5


def test_somebody_typing_goes_first(network: Transformer, gate: Gate) -> None:
    """Its prompt and its whole answer come before the rest of a long prompt."""
    engine = Engine(as_network(network), settings=EngineSettings(width=2))
    long = engine.submit(request(600, max_tokens=1, priority=Priority.BATCH))
    gate.let(1)
    while not gate.lengths:
        time.sleep(0.001)
    typed = engine.submit(request(20, max_tokens=4, priority=Priority.KEYSTROKE))
    gate.release()
    collect(typed), collect(long)
    engine.close()
    at = gate.lengths.index([20])
    assert at <= 2
    assert gate.lengths[at : at + 5] == [[20], [1], [1], [1], [128]]


def test_it_takes_the_place_of_a_running_one(network: Transformer, gate: Gate) -> None:
    engine = Engine(as_network(network), settings=EngineSettings(width=1))
    asked = request(20, max_tokens=30, priority=Priority.BATCH)
    batch = engine.submit(asked)
    gate.let(5)
    while len(gate.lengths) < 5:
        time.sleep(0.001)
    typed = engine.submit(request(9, max_tokens=3, priority=Priority.KEYSTROKE))
    gate.release()
    collect(typed)
    assert engine.stats().completion_tokens < 20
    assert collect(batch)[0] == list(naive(network, asked))
    engine.close()
    assert [9] in gate.lengths[5:8]


def test_the_lowest_priority_is_served_while_others_keep_coming(
    network: Transformer, gate: Gate
) -> None:
    """However much is typed, a prompt of the lowest priority goes on."""
    engine = Engine(as_network(network), settings=EngineSettings(width=2, patience_steps=4))
    low = engine.submit(request(200, max_tokens=2, priority=Priority.BATCH))
    typing = [
        engine.submit(request(2, max_tokens=25, seed=seed, priority=Priority.KEYSTROKE))
        for seed in range(6)
    ]
    gate.release()
    collect(low)
    done = engine.stats().completion_tokens
    for stream in typing:
        collect(stream)
    engine.close()
    assert done < 6 * 25 * 2 // 3


def test_too_many_are_refused(network: Transformer, gate: Gate) -> None:
    engine = Engine(as_network(network), settings=EngineSettings(width=1, queue=2))
    running = engine.submit(request(3, max_tokens=2))
    while engine.stats().waiting:
        time.sleep(0.001)
    waiting = [engine.submit(request(3, max_tokens=2)) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 requests are waiting already"):
        engine.submit(request(3))
    gate.release()
    for stream in (running, *waiting):
        assert collect(stream)[1].reason == "length"
    engine.close()
    with pytest.raises(Overloaded, match="closing"):
        engine.submit(request(3))


def test_memory_is_waited_for(network: Transformer, gate: Gate) -> None:
    """Where states of two do not fit together, they run one after the other."""
    engine = Engine(as_network(network), settings=EngineSettings(state_limit_bytes=150_000))
    streams = [engine.submit(request(40, seed=seed, max_tokens=3)) for seed in range(3)]
    gate.release()
    for stream in streams:
        assert collect(stream)[1].reason == "length"
    engine.close()
    assert max(map(len, gate.lengths)) == 1
    assert engine.stats().state_bytes == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": []}, "the prompt has no tokens"),
        ({"prompt": [64], "max_tokens": 9}, "token id 64 is outside"),
        ({"prompt": [1], "max_tokens": -1}, "max_tokens = -1"),
        ({"prompt": [1], "max_tokens": 200}, "exceed the 100 positions"),
        ({"prompt": [1], "max_seconds": 0.0}, "max_seconds = 0.0"),
        ({"prompt": [1], "top_logprobs": -1}, "top_logprobs = -1"),
        ({"prompt": [1], "max_tokens": 9, "stop": ["x"]}, "need a tokenizer"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    network: Transformer, wrong: dict[str, Any], message: str
) -> None:
    engine = Engine(as_network(network), settings=EngineSettings(context_tokens=100))
    with pytest.raises(ValueError, match=message):
        engine.submit(GenerationRequest(**wrong))
    engine.close()


def test_requests_end_at_their_limits_of_time_and_tokens(network: Transformer, gate: Gate) -> None:
    engine = Engine(as_network(network), settings=EngineSettings(repetition_tokens=8))
    slow = engine.submit(request(600, max_seconds=1e-6))
    nothing = engine.submit(request(9, max_tokens=0))
    gate.release()
    assert collect(slow)[1].reason == "time"
    tokens, end = collect(nothing)
    assert (tokens, end.reason, end.usage.prompt_tokens) == ([], "length", 9)

    class Only:
        """Nothing but one token, for ever."""

        def allowed(self) -> list[int]:
            return [7]

        def push(self, token: int, logprob: float) -> bool:
            return True

    tokens, end = collect(engine.submit(request(9, max_tokens=50, answer=Only())))
    assert (tokens, end.reason) == ([7] * 9, "repetition")
    free = request(9, max_tokens=50, answer=Only(), guard_repetition=False)
    assert collect(engine.submit(free))[1].reason == "length"
    engine.close()


def test_a_failing_step_ends_its_sequences_and_no_others(
    network: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(as_network(network))
    forward = network.forward

    def failing(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(network, "forward", forward)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(network, "forward", failing)
    _, end = collect(engine.submit(request(5)))
    assert (end.reason, end.error) == ("error", "out of luck")
    assert collect(engine.submit(request(5, max_tokens=2)))[1].reason == "length"
    engine.close()
    assert "a step failed" in caplog.text


def test_a_state_that_cannot_be_made_ends_its_request(
    network: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(as_network(network))

    def failing(*given: Any, **named: Any) -> Any:
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner._model, "new_state", failing)
        _, end = collect(engine.submit(request(5)))
    assert (end.reason, end.error) == ("error", "none left")
    assert collect(engine.submit(request(5, max_tokens=2)))[1].reason == "length"
    engine.close()
    assert engine.stats().state_bytes == 0
    assert "could not be started" in caplog.text


def test_nobody_waits_for_an_engine_that_has_failed(
    network: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(as_network(network))

    def failing(self: Scheduler) -> Any:
        raise AssertionError("a mistake")

    monkeypatch.setattr(Scheduler, "plan", failing)
    _, end = collect(engine.submit(request(5)))
    assert (end.reason, end.error) == ("error", "the engine has failed: a mistake")
    with pytest.raises(Overloaded):
        engine.submit(request(5))
    engine.close()
    assert "the engine has failed" in caplog.text


def test_memory_is_left_for_those_who_type(network: Transformer, gate: Gate) -> None:
    each = as_network(network).state_bytes(43)
    engine = Engine(as_network(network), settings=EngineSettings(state_limit_bytes=2 * each + 1000))
    long = [engine.submit(request(40, seed=seed, max_tokens=3)) for seed in range(2)]
    typed = engine.submit(request(10, max_tokens=3, priority=Priority.KEYSTROKE))
    gate.release()
    for stream in (*long, typed):
        assert collect(stream)[1].reason == "length"
    engine.close()
    assert [40, 40] not in gate.lengths  # though both would fit
    assert [10] in gate.lengths[:2] or [1, 10] in gate.lengths[:3]


def test_an_answered_sequence_is_freed_without_looking_for_cycles(network: Transformer) -> None:
    """They hold prompts and states, and Python looks for cycles seldom."""
    engine = Engine(as_network(network))
    gc.collect()
    gc.disable()
    try:
        streams = [engine.submit(request(20, seed=seed, max_tokens=2)) for seed in range(8)]
        for stream in streams:
            collect(stream)
            stream.cancel()  # too late, and no harm
        engine.close()
        alive = [each for each in gc.get_objects() if type(each) is ActiveSequence]
    finally:
        gc.enable()
    assert len(alive) <= 1  # the engine's own variable for the last


def test_an_idle_engine_gives_memory_back(
    network: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Event()
    monkeypatch.setattr(engine_module, "_TIDY_SECONDS", 0.02)
    monkeypatch.setattr(engine_module, "give_back_free_memory", given_back.set)
    engine = Engine(as_network(network))
    collect(engine.submit(request(5, max_tokens=2)))
    assert given_back.wait(60)
    assert len(collect(engine.submit(request(5, max_tokens=2)))[0]) == 2
    engine.close()


def test_closing_with_and_without_grace(network: Transformer, gate: Gate) -> None:
    engine = Engine(as_network(network), stop_tokens=())
    stream = engine.submit(request(5, max_tokens=10_000, guard_repetition=False))
    gate.let(3)
    threading.Timer(0.05, gate.release).start()
    engine.close()
    assert collect(stream)[1].reason == "cancelled"
    engine = Engine(as_network(network), stop_tokens=())
    stream = engine.submit(request(5, max_tokens=20))
    engine.close(grace_seconds=60.0)
    assert collect(stream)[1].reason == "length"
