"""The engine over experts on disk: the same answers, and requests that fail alone.

Catches: a budget that changes a token, a failed read that ends the server or leaves a damaged state
in the prefix cache, a cancelled prompt that runs to its end.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from sounding.engine.engine import Engine
from sounding.engine.requests import Finished, GenerationRequest, TokenEvent
from sounding.engine.settings import EngineSettings, within_memory
from sounding.loading import load_network, start_engine
from sounding.native.expert_store import ExpertStore
from sounding.native.network import KernelNetwork
from sounding.ops import cpu
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.expert_files import ExpertFiles
from sounding.weights.memory_plan import everything_bytes, floor_bytes
from tests.weights.folders import TINY

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

PROMPT = [number * 7919 % 512 for number in range(200)]


class Disk:
    """The disk that experts are read from, which can fail or stand still."""

    def __init__(self) -> None:
        self.fails = False
        self.goes = threading.Event()
        self.goes.set()
        self.asked = threading.Event()

    def __call__(self, file: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.asked.set()
        self.goes.wait()
        if self.fails:
            raise OSError(5, "Input/output error")
        return os.preadv(file, buffers, offset)


def budgets() -> tuple[int, int]:
    """The least budget of the tiny model, and one that a third of its experts fit in."""
    checkpoint = Checkpoint(TINY)
    names = checkpoint.names(routed_experts=False)
    resident = sum(checkpoint.sources[name].num_bytes for name in names)
    slot = ExpertFiles(checkpoint, ["layers.1"], [8]).slot_bytes
    floor = floor_bytes(checkpoint.config, resident, slot)
    assert floor < everything_bytes(checkpoint.config, checkpoint.num_bytes)
    return floor, floor + 16 * slot


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    original = ExpertFiles.__init__

    def init(self: ExpertFiles, *given: Any, **named: Any) -> None:
        original(self, *given, **{**named, "read": found})

    monkeypatch.setattr(ExpertFiles, "__init__", init)
    return found


@pytest.fixture
def engine(disk: Disk) -> Iterator[Engine]:
    network = load_network(TINY, memory_bytes=budgets()[0])
    engine = start_engine(network, None, draft_tokens=2)
    yield engine
    disk.goes.set()
    engine.close()
    assert isinstance(network.store, ExpertStore)
    network.store.close()


def answer(engine: Engine, prompt: Sequence[int], count: int = 12) -> list[int]:
    stream = engine.submit(GenerationRequest(prompt=list(prompt), max_tokens=count))
    events = list(stream)
    end = events[-1]
    assert isinstance(end, Finished)
    if end.reason == "error":
        raise RuntimeError(end.error)
    return [event.token for event in events if isinstance(event, TokenEvent)]


def in_memory(prompt: Sequence[int]) -> list[int]:
    engine = start_engine(load_network(TINY), None)
    try:
        return answer(engine, prompt)
    finally:
        engine.close()


def test_answers_are_those_of_memory(engine: Engine) -> None:
    for length in (1, 30, 200):
        assert answer(engine, PROMPT[:length]) == in_memory(PROMPT[:length])
    experts = engine.stats().experts
    assert experts is not None
    assert experts.misses > 0 and experts.bytes_read > 0


def test_a_failed_read_ends_its_requests_and_the_next_is_answered(
    engine: Engine, disk: Disk
) -> None:
    disk.fails = True
    with pytest.raises(RuntimeError, match=rf"{TINY}.*Input/output error.*check the disk"):
        answer(engine, PROMPT)
    disk.fails = False
    assert answer(engine, PROMPT) == in_memory(PROMPT)


def test_a_prompt_that_nobody_waits_for_ends_within_its_step(engine: Engine, disk: Disk) -> None:
    answer(engine, PROMPT[:1])
    disk.goes.clear()
    disk.asked.clear()
    stream = engine.submit(GenerationRequest(prompt=PROMPT, max_tokens=4))
    assert disk.asked.wait(30)
    stream.cancel()
    end = list(stream)[-1]
    assert isinstance(end, Finished) and end.reason == "cancelled"
    disk.goes.set()
    assert answer(engine, PROMPT) == in_memory(PROMPT)


def test_a_step_goes_on_while_anybody_waits_for_it(engine: Engine, disk: Disk) -> None:
    answer(engine, PROMPT[:1])
    disk.goes.clear()
    disk.asked.clear()
    kept = engine.submit(GenerationRequest(prompt=PROMPT[:50], max_tokens=12))
    left = engine.submit(GenerationRequest(prompt=PROMPT[100:], max_tokens=12))
    assert disk.asked.wait(30)
    left.cancel()
    disk.goes.set()
    tokens = [event.token for event in kept if isinstance(event, TokenEvent)]
    assert tokens == in_memory(PROMPT[:50])
    assert isinstance(list(left)[-1], Finished)


def test_a_budget_below_the_floor_is_refused_with_the_floor() -> None:
    floor, _ = budgets()
    with pytest.raises(ValueError, match=r"is below .* MiB, the least that this model runs with"):
        load_network(TINY, memory_bytes=floor - 1)


def test_a_budget_for_everything_streams_nothing() -> None:
    network = load_network(TINY, memory_bytes=1 << 40)
    assert network.store is None
    assert within_memory(network, {"width": 3}) == {"width": 3}


def test_limits_of_an_engine_follow_the_budget() -> None:
    network = load_network(TINY, memory_bytes=budgets()[1])
    assert isinstance(network, KernelNetwork) and network.store is not None
    plan = network.store.plan
    assert plan is not None and plan.slots > 8
    settings = EngineSettings(**within_memory(network, {"prefix_limit_bytes": 10 << 30}))
    assert settings.state_limit_bytes == plan.state_bytes
    assert settings.prefix_limit_bytes == plan.prefix_bytes
    assert settings.step_tokens == plan.chunk_tokens
    used = plan.resident_bytes + plan.state_bytes + plan.prefix_bytes + plan.workspace_bytes
    assert used + plan.slots * plan.slot_bytes <= plan.budget_bytes
    network.store.close()


def test_prompts_are_read_in_steps_as_long_as_the_budget_allows() -> None:
    """A state kept a little before the end of a prompt would take a step of its own."""
    plain = EngineSettings(exact_splits=True)
    streamed = EngineSettings(exact_splits=True, keep_inner=False, checkpoint_tokens=4096)
    assert plain.checkpoints(4000, 0, 0) >= {4000, 3968}
    assert streamed.checkpoints(4000, 0, 0) == {4000}
