"""Requests with adapters and without in one engine.

Catches: an answer that depends on the adapters beside it, a cached prefix that is used under
another adapter, an adapter that is dropped from under a request.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sounding.engine.engine import Engine
from sounding.engine.network import Network
from sounding.engine.requests import Finished, GenerationRequest
from sounding.engine.sampling import SamplingParams
from sounding.engine.settings import EngineSettings
from sounding.model.from_checkpoint import load_model
from sounding.model.reference_network import ReferenceNetwork
from sounding.native.network import KernelNetwork
from sounding.ops import cpu
from sounding.weights.checkpoint import Checkpoint
from tests.adapters import random_adapter
from tests.engine.running import collect

VECTORS = Path(__file__).parents[1] / "vectors" / "tiny"
CHECKPOINT = Checkpoint(VECTORS)
CONFIG = CHECKPOINT.config
ONE, OTHER = random_adapter(CONFIG, seed=1), random_adapter(CONFIG, seed=2)


@cache
def network() -> Network:
    if cpu.library() is None:
        return ReferenceNetwork(load_model(CHECKPOINT))
    return KernelNetwork(CONFIG, CHECKPOINT.read_all())


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(network(), settings=EngineSettings(exact_splits=cpu.library() is not None))
    made.adapters.load("one", ONE)
    made.adapters.load("other", OTHER)
    yield made
    made.close()


def request(adapter: str | None, length: int = 40, seed: int = 0, **how: int) -> GenerationRequest:
    tokens = np.random.default_rng(seed).integers(5, 500, size=length).tolist()
    how = {"max_tokens": 12, **how}
    params = SamplingParams(temperature=0.0, top_p=1.0, seed=0)
    return GenerationRequest(prompt=tokens, params=params, adapter=adapter, **how)  # type: ignore[arg-type]


def ask(engine: Engine, asked: GenerationRequest) -> tuple[list[int], Finished]:
    return collect(engine.submit(asked))


def test_answers_in_company_are_those_alone(engine: Engine) -> None:
    asked = [request(name, 30 + number) for number, name in enumerate(("one", None, "other") * 3)]
    streams = [engine.submit(each) for each in asked]
    together = [collect(stream)[0] for stream in streams]
    for each, tokens in zip(asked, together, strict=True):
        alone = Engine(network())
        alone.adapters.load("one", ONE)
        alone.adapters.load("other", OTHER)
        assert ask(alone, each)[0] == tokens
        alone.close()


def test_adapters_change_answers(engine: Engine) -> None:
    """Or the other tests here would compare equal things."""
    answers = {tuple(ask(engine, request(name))[0]) for name in (None, "one", "other")}
    assert len(answers) == 3


def test_prefixes_of_other_adapters_are_not_used(engine: Engine) -> None:
    for name in (None, "one", "other"):
        first = ask(engine, request(name, 300))
        again = ask(engine, request(name, 300))
        assert first[1].usage.hit_tokens == 0
        assert again[1].usage.hit_tokens > 250
        assert first[0] == again[0]


def test_an_adapter_that_is_replaced_starts_with_no_prefix(engine: Engine) -> None:
    ask(engine, request("one", 300))
    engine.adapters.load("one", OTHER)
    found, end = ask(engine, request("one", 300))
    assert end.usage.hit_tokens == 0
    assert found == ask(engine, request("other", 300, max_tokens=12))[0]
    assert ask(engine, request("other", 300))[1].usage.hit_tokens > 250  # the same numbers


def test_a_prompt_does_not_wait_for_one_of_another_adapter(engine: Engine) -> None:
    streams = [engine.submit(request(name, 600, max_tokens=1)) for name in (None, "one")]
    assert [collect(stream)[1].usage.hit_tokens for stream in streams] == [0, 0]


def test_a_dropped_adapter_ends_its_requests_well(engine: Engine) -> None:
    asked = request("one", max_tokens=40)
    whole = ask(engine, asked)[0]
    stream = engine.submit(asked)
    engine.adapters.drop("one")
    assert collect(stream)[0] == whole
    with pytest.raises(ValueError, match="'one' is loaded"):
        engine.submit(asked)
    with pytest.raises(ValueError, match="did you mean 'other'"):
        engine.adapters.drop("othr")
