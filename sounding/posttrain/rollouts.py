"""Rollouts: answers to prompts, sampled by the engine, graded as they end.

Every answer has a seed of its own, so results do not depend on which answers run together or where
a process was killed, given a network whose splits are exact.
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np

from sounding.engine.requests import (
    EngineFault,
    EngineLike,
    Finished,
    GenerationRequest,
    Priority,
)
from sounding.engine.sampling import SamplingParams
from sounding.posttrain.rollout_log import LoggedAnswer, RolloutLog
from sounding.tasks.task import Grade

_AHEAD = 2  # answers under way for each that the engine samples: the others are graded, or wait


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """What sampling needs to know besides prompts."""

    params: SamplingParams
    """The seed in it is that of the round."""
    max_tokens: int
    """Sampled tokens of an answer, over all its turns."""
    eos: int
    width: int


Grader = Callable[[int, LoggedAnswer], Grade]
"""From the number of an answer and what is behind its prompt to its grade; called from several
threads."""
Reply = Callable[[int, LoggedAnswer], "list[int] | None"]
"""What is put behind a turn that has ended, such as the results of tools and the opening of the
next turn; None where the answer is complete."""


def no_reply(slot: int, answer: LoggedAnswer) -> list[int] | None:
    """Of answers of one turn."""
    return None


def sample_answers(
    engine: EngineLike,
    prompts: Sequence[Sequence[int]],
    log: RolloutLog,
    settings: RolloutSettings,
    *,
    grade: Grader | None = None,
    reply: Reply = no_reply,
) -> None:
    """Complete the answers of a log, one for each prompt, and grade those that have no grade.

    Prompts that are equal should be neighbours, so that they share their prefix. Where a process
    that samples is lost, its answers go on elsewhere behind what is logged. Raises EngineFault
    where the engine fails, and what `grade` and `reply` raise.
    """
    rollouts = _Rollouts(engine, log, settings, grade, reply)
    with ThreadPoolExecutor(_AHEAD * settings.width) as pool:
        waiting = [
            pool.submit(rollouts.run, slot, list(prompt)) for slot, prompt in enumerate(prompts)
        ]
        try:
            for answer in wait(waiting, return_when=FIRST_EXCEPTION).done:
                answer.result()
        except BaseException:
            rollouts.stopping = True
            pool.shutdown(cancel_futures=True)
            raise


class _Rollouts:
    """The answers of a round, each run by one thread."""

    def __init__(
        self,
        engine: EngineLike,
        log: RolloutLog,
        settings: RolloutSettings,
        grade: Grader | None,
        reply: Reply,
    ) -> None:
        self._engine, self._log, self._settings = engine, log, settings
        self._grade, self._reply = grade, reply
        self.stopping = False
        """Set when another answer has failed: sampled tokens end at the next one."""

    def run(self, slot: int, prompt: list[int]) -> None:
        """Sample turns until the answer is complete, then grade it."""
        answer = self._log.answer(slot)
        while True:
            self._sample_turn(slot, prompt, answer)
            if self.stopping or answer.num_sampled >= self._settings.max_tokens:
                break
            given = self._reply(slot, answer)
            if given is None:
                break
            self._log.give(slot, given)
        if self._grade is not None and answer.score is None and not self.stopping:
            self._log.grade(slot, *self._grade(slot, answer))

    def _sample_turn(self, slot: int, prompt: list[int], answer: LoggedAnswer) -> None:
        """Sample up to EOS or the limit, behind what the log has of this turn already.

        Every token is logged as it arrives.
        """
        while True:
            before = answer.num_sampled
            ended = self._sample(slot, prompt, answer)
            if ended is None or ended.reason not in ("error", "cancelled") or self.stopping:
                return
            if not ended.lost or answer.num_sampled == before:
                raise EngineFault(f"sampling answer {slot} failed: {ended.error or 'closed'}")

    def _sample(self, slot: int, prompt: list[int], answer: LoggedAnswer) -> Finished | None:
        """Sample what is left of a turn; None where nothing is."""
        settings = self._settings
        turn, drawn = _turn_of(answer)
        left = settings.max_tokens - answer.num_sampled
        if left <= 0 or (drawn and answer.tokens[-1] == settings.eos):
            return None
        request = GenerationRequest(
            prompt=[*prompt, *answer.tokens],
            params=replace(settings.params, seed=_seed(settings.params.seed, slot, turn)),
            max_tokens=left,
            top_logprobs=0,
            answer=EndsAt(settings.eos),
            priority=Priority.BATCH,
            guard_repetition=False,
            drawn_tokens=drawn,
        )
        stream = self._engine.submit(request)
        try:
            for event in stream:
                if isinstance(event, Finished):
                    return event
                assert event.logprob is not None, "asked for by top_logprobs"
                self._log.add(slot, event.token, event.logprob)
                if self.stopping:
                    break
        finally:
            stream.cancel()  # nothing is left to cancel where it has ended
        return None


@dataclass(frozen=True)
class EndsAt:
    """A `StoppingRule` that ends an answer at one token, in whatever process."""

    token: int

    def allowed(self) -> Collection[int] | None:
        return None

    def push(self, token: int, logprob: float) -> bool:
        return token != self.token


def _turn_of(answer: LoggedAnswer) -> tuple[int, int]:
    """The number of the last turn, and how many of its tokens were sampled."""
    drawn = 0
    for sampled in reversed(answer.sampled):
        if not sampled:
            break
        drawn += 1
    before = [False, *answer.sampled]
    begins = sum(now and not last for last, now in zip(before, answer.sampled, strict=False))
    return begins - bool(drawn), drawn


def _seed(round_seed: int, slot: int, turn: int) -> int:
    made = np.random.SeedSequence((round_seed, slot, turn)).generate_state(1, np.uint64)
    return int(made[0] >> np.uint64(1))
