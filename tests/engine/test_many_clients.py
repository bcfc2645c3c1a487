"""64 clients at once, agents and completions, some of which leave: everybody is served as if alone,
and in the end everything is as in the beginning."""

import random
import threading
from typing import Any

import torch

from sounding.engine.engine import Engine
from sounding.engine.prefix.store import PrefixStore
from sounding.engine.requests import GenerationRequest, Priority
from sounding.engine.settings import EngineSettings
from tests.engine.running import CONFIG, collect, naive, prompt, request
from tests.networks import NetworkMaker, as_network

CLIENTS = 64


def test_answers_to_many_clients_equal_those_given_alone(
    network_maker: NetworkMaker, tmp_path: Any
) -> None:
    network = network_maker(CONFIG, dtype=torch.float64)
    settings = EngineSettings(
        width=8,
        exact_splits=True,
        prefix_limit_bytes=3_000_000,
        state_limit_bytes=3_000_000,
        patience_steps=10,
    )
    others = set(threading.enumerate())  # of tests before this one
    engine = Engine(
        as_network(network), settings=settings, store=PrefixStore(tmp_path, "a" * 16, 10**7)
    )
    threads = set(threading.enumerate())
    answers: list[tuple[GenerationRequest, list[int]]] = []
    failures: list[object] = []

    def client(number: int) -> None:
        choose = random.Random(number)
        tokens = prompt(choose.choice((5, 40, 150)), number % 4)
        for turn in range(2 if number % 4 == 0 else 1):
            asked = request(
                tokens,
                seed=number,
                temperature=choose.choice((0.0, 0.8)),
                max_tokens=choose.randint(1, 6),
                priority=choose.choice(list(Priority)),
            )
            stream = engine.submit(asked)
            if number % 8 == 3:
                stream.cancel()
            reply, end = collect(stream)
            if end.reason == "cancelled":
                continue
            if end.reason not in ("stop", "length"):
                failures.append(end)
            answers.append((asked, reply))
            tokens = [*tokens, *reply, *prompt(9, turn)]

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not failures and len(answers) >= CLIENTS * 7 // 8
    for asked, reply in answers[::5]:
        assert reply == list(naive(network, asked))
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.state_bytes) == (0, 0, 0)
    assert stats.prefix_bytes <= stats.prefix_limit_bytes
    assert stats.hit_tokens > 0 and stats.completion_tokens >= sum(len(r) for _, r in answers)
    choices = sum(map(sum, stats.expert_load))
    assert choices % (len(CONFIG.ratios) * CONFIG.num_experts_per_tok) == 0
    assert set(threading.enumerate()) == threads
    engine.close()
    left = set(threading.enumerate()) - others
    assert not {thread for thread in left if thread.name in ("engine", "prefix-store")}
