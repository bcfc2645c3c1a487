"""Replicas as one engine: answers as of one, and what becomes of requests whose replica is lost.

The replicas run in this process; `test_ray.py` has the same over processes of Ray.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial

import pytest
import torch

import sounding.cluster.remote_engine as remote_engine
from sounding.cluster.messages import pack, unpack
from sounding.cluster.remote_engine import AdapterNames, RemoteEngine
from sounding.cluster.replica import EngineReplica
from sounding.completion.completer import Completer
from sounding.completion.gap import Gap
from sounding.completion.healing import Healer
from sounding.completion.prompt import CompletionSettings
from sounding.engine.batch import Batch
from sounding.engine.engine import Engine
from sounding.engine.exact import splits_are_exact
from sounding.engine.requests import (
    DraftCounts,
    EngineLike,
    Event,
    Finished,
    GenerationRequest,
    Grammar,
    Overloaded,
    TokenEvent,
)
from sounding.engine.sampling import SamplingParams
from sounding.engine.settings import EngineSettings
from sounding.presets import tiny
from sounding.server.content_stops import ContentRule
from sounding.text import parser
from sounding.text.fim_format import FimFormat
from sounding.text.tokenizer import Tokenizer
from tests.cluster.local_replicas import LocalReplicas, never, tokens_of
from tests.engine.scripted import small_tokenizer
from tests.networks import as_network, make_network

PROMPT = small_tokenizer().encode("def encode(text: str) -> list[int]:\n    ") * 4
LONG = 60
DONE = ("stop", "length")


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    """Three engines on the same weights; the last one is what the others are compared with."""
    tokenizer = small_tokenizer()
    config = dataclasses.replace(
        tiny(),
        quantization_config=None,
        expert_dtype=None,
        num_hidden_layers=2,
        compress_ratios=(128, 4, 0),
        vocab_size=tokenizer.num_tokens + 5,
    )
    network = as_network(make_network(config, dtype=torch.bfloat16))
    settings = EngineSettings(context_tokens=1500, exact_splits=splits_are_exact(network))
    made = [Engine(network, tokenizer, settings) for _ in range(3)]
    yield made
    for engine in made:
        engine.close()


class KeptReplica(EngineReplica):
    """One whose engine goes on to be used."""

    def __del__(self) -> None:
        pass


def opened(engine: Engine) -> tuple[Engine, Tokenizer]:
    return engine, small_tokenizer()


@pytest.fixture
def replicas(engines: list[Engine]) -> LocalReplicas:
    named = zip(engines[:2], "ab", strict=True)
    return LocalReplicas([KeptReplica(partial(opened, engine), name) for engine, name in named])


@pytest.fixture
def remote(replicas: LocalReplicas) -> Iterator[RemoteEngine]:
    made = RemoteEngine(replicas, 1500)
    yield made
    made.close()


def request(**how: object) -> GenerationRequest:
    asked = {
        "prompt": PROMPT,
        "params": SamplingParams(temperature=1.0, seed=5),
        "max_tokens": LONG,
        "guard_repetition": False,
    }
    return GenerationRequest(**(asked | how))  # type: ignore[arg-type]


def events(engine: EngineLike, asked: GenerationRequest) -> list[Event]:
    return list(engine.submit(asked))


def ended(found: list[Event]) -> Finished:
    assert isinstance(found[-1], Finished)
    return found[-1]


def test_it_is_an_engine(remote: RemoteEngine) -> None:
    assert isinstance(remote, EngineLike)
    assert remote.context_tokens == 1500
    assert AdapterNames(["mine"]).names == ["mine"]


def test_answers_are_those_of_one_engine(remote: RemoteEngine, engines: list[Engine]) -> None:
    for seed in range(4):
        asked = request(params=SamplingParams(temperature=1.0, seed=seed), top_logprobs=2)
        here, there = events(engines[2], asked), events(remote, asked)
        assert here[:-1] == there[:-1]
        assert ended(here).reason == ended(there).reason


def test_bad_requests_are_refused_as_by_one_engine(remote: RemoteEngine) -> None:
    for asked, fault in [
        (request(prompt=[]), "no tokens"),
        (request(max_tokens=-1), "at least 0"),
        (request(adapter="none"), "no adapter 'none'"),
    ]:
        with pytest.raises(ValueError, match=fault):
            remote.submit(asked)
        with pytest.raises(ValueError, match=fault):
            remote.check(asked)
    with pytest.raises(ValueError):
        remote.submit(request(grammar=Grammar(kind="lark", text="start: (")))


def test_a_request_whose_replica_is_lost_before_its_answer_goes_to_another(
    replicas: LocalReplicas, remote: RemoteEngine, engines: list[Engine]
) -> None:
    for before in (0, 1):  # not even accepted; accepted, without a token
        replicas.calls, replicas.lose = 0, {0: before}.get
        assert tokens_of(remote, request()) == tokens_of(engines[2], request())  # type: ignore[arg-type]
        assert replicas.calls == 2


def test_an_answer_that_has_begun_to_stream_ends_with_an_error(
    replicas: LocalReplicas, remote: RemoteEngine, engines: list[Engine]
) -> None:
    replicas.lose = lambda call: 5
    found = events(remote, request())
    assert found[:-1] == events(engines[2], request())[:4]
    assert ended(found).reason == "error"
    assert "was lost after 4 tokens; send the request again" in (ended(found).error or "")
    assert ended(found).usage.completion_tokens == 4
    assert replicas.calls == 1


def test_an_answer_that_is_sent_in_one_piece_is_begun_anew(
    replicas: LocalReplicas, remote: RemoteEngine, engines: list[Engine]
) -> None:
    replicas.lose = lambda call: (5, 9, None)[call]
    whole = events(engines[2], request())
    found = events(remote, request(streamed=False))
    assert found[:-1] == whole[:-1]
    assert ended(found).reason in DONE
    assert replicas.calls == 3


def test_an_answer_that_begins_differently_the_second_time_is_not_mixed(
    replicas: LocalReplicas, remote: RemoteEngine
) -> None:
    def of_another_seed(call: int, packed: bytes) -> bytes:
        return pack(request(params=SamplingParams(temperature=1.0, seed=call)))

    replicas.lose = lambda call: 5 if call == 0 else None
    replicas.altered = of_another_seed
    found = events(remote, request(streamed=False))
    assert ended(found).reason == "error"
    assert "began it differently" in (ended(found).error or "")
    assert len(found) <= 5


def test_a_request_that_takes_every_replica_with_it_is_given_up(
    replicas: LocalReplicas, remote: RemoteEngine
) -> None:
    replicas.lose = lambda call: 1
    found = events(remote, request())
    assert ended(found).reason == "error"
    assert "it may be the cause" in (ended(found).error or "")
    assert replicas.calls == remote_engine._MOST_LOSSES


def test_replicas_that_are_dead_already_are_not_held_against_a_request(
    replicas: LocalReplicas, remote: RemoteEngine
) -> None:
    replicas.lose = lambda call: 0 if call < 2 * remote_engine._MOST_LOSSES else None
    assert ended(events(remote, request())).reason in DONE


def test_cancelling_reaches_the_replica(
    replicas: LocalReplicas, remote: RemoteEngine, engines: list[Engine]
) -> None:
    stream = remote.submit(request(max_tokens=1000))
    found = iter(stream)
    assert isinstance(next(found), TokenEvent)
    stream.cancel()
    stream.cancel()
    assert ended(list(found)).reason == "cancelled"
    until(lambda: replicas.ended == [0])
    until(lambda: not any(engine.stats().running for engine in engines))


def test_without_a_replica_requests_are_refused_after_a_while(
    replicas: LocalReplicas, remote: RemoteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "_START_SECONDS", 0.05)
    monkeypatch.setattr(replicas, "generate", never)
    with pytest.raises(Overloaded, match="no replica took the request"):
        remote.submit(request())


def test_the_time_limit_counts_from_the_first_attempt(
    replicas: LocalReplicas, remote: RemoteEngine
) -> None:
    def lose(call: int) -> int:
        time.sleep(0.06)
        return 0

    replicas.lose = lose
    assert ended(events(remote, request(max_seconds=0.05))).reason == "time"
    assert replicas.calls == 1


def test_rules_advance_here_as_in_the_replica(remote: RemoteEngine, engines: list[Engine]) -> None:
    tokenizer = small_tokenizer()
    whole = "".join(e.text for e in events(engines[2], request()) if isinstance(e, TokenEvent))
    stop = whole[20:23]
    rules = [ContentRule([stop], parser("chat"), tokenizer.stream()) for _ in range(2)]
    found = events(remote, request(answer=rules[0]))
    assert found[:-1] == events(engines[2], request(answer=rules[1]))[:-1]
    assert rules[0].found == rules[1].found == stop


def test_completions_at_a_cursor_are_those_of_one_engine(
    remote: RemoteEngine, engines: list[Engine]
) -> None:
    """With healing, candidates, and lines scored by the network: rules that are given tokens of
    prompts, and that limit what may come."""
    tokenizer = small_tokenizer()
    gap = Gap("def first(x):\n    return x + 1\n\ndef second(y):\n    retu", "\n\n")
    found = []
    for engine in (engines[2], remote):
        completer = Completer(tokenizer, FimFormat(), Batch(engine))
        plan = completer.plan(gap, "line", CompletionSettings(max_tokens=16, context_tokens=200))
        assert plan.competes
        found.append(completer.complete(plan, SamplingParams(), alternatives=3))
    assert found[0] == found[1]
    assert found[0]


def test_a_packed_request_has_no_tables_in_it() -> None:
    tokenizer = small_tokenizer()
    completer = Completer(tokenizer, FimFormat(), lambda requests: iter(()))
    plan = completer.plan(
        Gap("def f(x):\n    retu", "\n"),
        "line",
        CompletionSettings(max_tokens=16, context_tokens=99),
    )
    packed = pack(request(answer=completer.decoder(plan), prompt=[1, 2]))
    assert len(packed) < 4000
    rule = unpack(packed, tokenizer, lambda: Healer(tokenizer)).answer
    assert rule is not None
    assert allowed(rule.allowed()) == allowed(completer.decoder(plan).allowed())


def allowed(tokens: Collection[int] | None) -> list[int]:
    assert tokens
    return sorted(tokens)


def test_a_rule_that_cannot_be_sent_fails_its_request_alone(remote: RemoteEngine) -> None:
    class Local:
        def allowed(self) -> None:
            return None

        def push(self, token: int, logprob: float) -> bool:
            return True

    found = events(remote, request(answer=Local()))
    assert ended(found).reason == "error"
    assert ended(events(remote, request())).reason in DONE


def test_statistics_are_sums(remote: RemoteEngine, engines: list[Engine]) -> None:
    for seed in range(2):
        events(remote, request(params=SamplingParams(temperature=1.0, seed=seed)))

    def sums() -> int:
        return sum(engine.stats().completion_tokens for engine in engines[:2])

    until(lambda: remote.stats().completion_tokens == sums())
    stats = remote.stats()
    assert set(stats.extra["replicas"]) == {"a", "b"}
    assert sum(p["completion_tokens"] for p in stats.extra["replicas"].values()) == sums()
    loads = [engine.stats().expert_load for engine in engines[:2]]
    assert stats.expert_load == [
        [x + y for x, y in zip(*rows, strict=True)] for rows in zip(*loads, strict=True)
    ]
    by_drafter = [engine.stats().drafts for engine in engines[:2]]
    for name, counts in stats.drafts.items():
        assert counts == sum((each[name] for each in by_drafter), DraftCounts())
    assert sum(sum(c.verified) for c in stats.drafts.values()) == stats.drafted_tokens


def test_totals_do_not_fall_where_a_replica_is_gone(
    replicas: LocalReplicas, remote: RemoteEngine
) -> None:
    events(remote, request())
    until(lambda: len(remote.stats().extra["replicas"]) == 2)
    until(lambda: remote.stats().completion_tokens > 0)
    before = remote.stats().completion_tokens
    replicas.replicas = replicas.replicas[1:]
    until(lambda: len(remote.stats().extra["replicas"]) == 1)
    assert remote.stats().completion_tokens == before


def test_closing_waits_for_answers_then_stops_the_replicas(replicas: LocalReplicas) -> None:
    engine = RemoteEngine(replicas, 1500)
    stream = engine.submit(request())
    closing = threading.Thread(target=engine.close, args=(60.0,))
    closing.start()
    assert ended(list(stream)).reason in DONE
    closing.join()
    assert replicas.closed == 1
    with pytest.raises(Overloaded, match="closing"):
        engine.submit(request())
    engine.close()
    assert replicas.closed == 1


def test_closing_again_cuts_the_grace_period_short(replicas: LocalReplicas) -> None:
    engine = RemoteEngine(replicas, 1500)
    stream = engine.submit(request(max_tokens=1200))
    closing = threading.Thread(target=engine.close, args=(600.0,))
    closing.start()
    until(lambda: engine._closing)
    engine.close()
    closing.join()
    assert ended(list(stream)).reason == "cancelled"
    assert replicas.closed == 1


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition; only a hang takes long."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
