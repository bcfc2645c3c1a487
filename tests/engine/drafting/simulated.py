"""Decoding without a network: drafters of known acceptance and cost, and a clock of their own."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from sounding.engine.drafting.drafter import CountDrafts, Drafter
from sounding.engine.drafting.selection import DraftSelection
from sounding.engine.sequence import ActiveSequence
from sounding.engine.stream import EventStream
from tests.engine.running import request

STEP = 0.01  # seconds of a step without drafts
MOST = 5


@dataclass(frozen=True)
class Text:
    """How well a text can be guessed: acceptance of a draft if all before it were accepted."""

    lookup: float
    found: float
    """Share of the steps at which prompt lookup finds something."""
    mtp: float
    dspark: float


@dataclass(frozen=True)
class Machine:
    """Costs in steps without drafts."""

    row: float
    mtp: float
    """Of each draft of the MTP block."""
    dspark: float
    """Of a block of the DSpark drafter."""


@dataclass
class World:
    """A text and a machine, and the time that has passed."""

    text: Text
    machine: Machine
    random: random.Random
    now: float = 0.0
    accepted: list[bool] = field(default_factory=list)
    """Whether each of the drafts proposed last will be accepted, if all before it were."""


class Simulated(Drafter):
    """A drafter of a kind of which the world knows acceptance and cost."""

    def __init__(self, name: str, world: World) -> None:
        self.name, self._world = name, world
        self.in_blocks = name == "dspark"
        self.assumed_cost = 0.0 if name == "lookup" else 0.3

    def is_ready(self, sequence: ActiveSequence) -> bool:
        return self.name != "lookup"

    def propose(
        self, sequences: Sequence[ActiveSequence], most: int, worth: CountDrafts
    ) -> list[list[int]]:
        return [self._propose(each, most, worth) for each in sequences]

    def _propose(self, sequence: ActiveSequence, most: int, worth: CountDrafts) -> list[int]:
        world, rate = self._world, getattr(self._world.text, self.name)
        if self.name == "lookup" and world.random.random() > world.text.found:
            return []
        count = worth(sequence, most)
        if not count:
            return []
        # Some places are easier than others, and confidence knows by how much.
        survival = [
            min(1.0, max(0.0, rate + world.random.uniform(-0.3, 0.3))) for _ in range(count)
        ]
        if self.in_blocks:
            world.now += world.machine.dspark * STEP
            count = worth.to_verify(sequence, survival)
        elif self.name == "mtp":
            world.now += count * world.machine.mtp * STEP
        world.accepted = [world.random.random() < chance for chance in survival[:count]]
        return [1] * count


def seconds_per_token(
    names: Sequence[str],
    text: Sequence[Text],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    tokens: int = 2500,
    seed: int = 0,
) -> float:
    """The mean over texts, one answer after the other, with the drafters named."""
    world = World(text[0], machine, random.Random(seed))
    monkeypatch.setattr(time, "perf_counter", lambda: world.now)
    selection = DraftSelection([Simulated(name, world) for name in names], MOST)
    made = 0
    for number, world.text in enumerate(text):
        sequence = active(number)
        end = made + tokens
        while made < end:
            selection.propose([sequence])
            drafted = len(sequence.drafts)
            seconds = STEP * (1 + drafted * machine.row)
            world.now += seconds
            selection.costs.record_step(seconds, 1, 1 + drafted)
            accepted = 0
            if drafted:
                accepted = [*world.accepted, False].index(False)
                selection.verified(sequence, drafted, accepted)
                sequence.drafts = []
            made += 1 + accepted
    return world.now / made


def active(serial: int) -> ActiveSequence:
    """A sequence without end."""
    return ActiveSequence(
        request(5, max_tokens=1 << 30),
        EventStream(f"r{serial}", lambda: None),
        serial=serial,
        state_bytes=0,
        tokenizer=None,
        constraint=None,
        stop_tokens=(),
        barred_tokens=(),
        repetition_tokens=256,
    )
