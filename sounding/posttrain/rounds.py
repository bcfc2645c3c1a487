"""Rounds of rollouts: sampled from the weights as they are, checked, and kept on disk.

A round is whole in one file before the first update that it makes: a run that is resumed in the
middle of a round reads it, and neither samples nor grades anything twice.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from sounding.engine.sampling import SamplingParams
from sounding.files import sync
from sounding.model.transformer import Transformer
from sounding.posttrain.rollout_log import LoggedAnswer, RolloutLog
from sounding.posttrain.rollouts import (
    Grader,
    Reply,
    RolloutSettings,
    no_reply,
    sample_answers,
)
from sounding.posttrain.sampler import Sampler, Scored, score
from sounding.weights.digest import weights_digest
from sounding.weights.tensors import from_torch

_log = logging.getLogger(__name__)

FOLDER_NAME = "rollouts"


@dataclass(frozen=True)
class Answer:
    """One sequence of a round: a prompt, and what was sampled behind it."""

    tokens: Tensor
    """Prompt and answer, int64 [t]."""
    sampled: Tensor
    """Which of them were sampled, bool [t]."""
    logprobs: Tensor
    """Of the sampled ones, in the distribution they were sampled from, float32 [n]."""
    chosen: Tensor
    """Experts of every token, int16 [layers, t, k]."""
    kept_ids: Tensor
    """Tokens that the sampler left for each sampled one, laid end to end, int32; empty where it
    left all."""
    kept_counts: Tensor
    """How many for each, int64 [n]."""
    extra: Mapping[str, Tensor]
    """What an objective has added, such as log-probabilities of a reference."""
    score: float = 0.0
    reason: str = ""

    @property
    def num_sampled(self) -> int:
        return len(self.logprobs)


@dataclass(frozen=True)
class Round:
    """The answers of a round, in the order of their prompts, groups together."""

    number: int
    answers: Sequence[Answer]
    digest: str
    """Of the weights they were sampled from."""


@dataclass(frozen=True)
class RoundPrompts:
    """What a round asks: one prompt for every answer."""

    tokens: Sequence[Sequence[int]]
    grade: Grader | None = None
    reply: Reply = no_reply


Enrich = Callable[[Sequence[Answer]], "list[dict[str, Tensor]]"]
"""What an objective adds to the answers of a round, one mapping for each."""


class Rounds:
    """Makes rounds, or reads them."""

    def __init__(
        self,
        folder: Path,
        model: Transformer,
        sampler: Sampler,
        ask: Callable[[int], RoundPrompts],
        settings: RolloutSettings,
        *,
        enrich: Enrich | None = None,
        keep: int = 32,
    ) -> None:
        """`folder` is the run's; `ask` gives the prompts of a round, `settings.params.seed` is the
        run's."""
        self._folder = folder / FOLDER_NAME
        self._model, self._sampler, self._ask = model, sampler, ask
        self._settings, self._enrich, self._keep = settings, enrich, keep

    def open(self, number: int, *, begun: bool) -> Round:
        """Round `number`: from its file, or sampled from the weights as they are now.

        A file of other weights is replaced, unless the round was `begun`: updated from already.
        Raises ValueError where a round that was begun has no file.
        """
        path = self._path(number)
        digest = weights_digest({n: from_torch(p) for n, p in self._model.named_parameters()})
        if path.is_file():
            found = _read(path, number)
            if begun or found.digest == digest:
                return found
            _log.warning("round %d was sampled from other weights; sampling it anew", number)
        elif begun:
            raise ValueError(
                f"{path} is missing, and the checkpoint was taken in the middle of that round: "
                "resume from a copy of the whole run folder, or raise rollouts.keep_rounds"
            )
        made = self._sample(number, digest)
        _write(path, made)
        for old in sorted(self._folder.glob("round-*.safetensors"))[: -self._keep]:
            old.unlink()
        return made

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number:08d}.safetensors"

    def _sample(self, number: int, digest: str) -> Round:
        prompts = self._ask(number)
        params = self._settings.params
        seed = int(np.random.SeedSequence((params.seed, number)).generate_state(1)[0])
        settings = RolloutSettings(
            params=SamplingParams(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                min_p=params.min_p,
                seed=seed,
            ),
            max_tokens=self._settings.max_tokens,
            eos=self._settings.eos,
            width=self._settings.width,
        )
        asked = [list(prompt) for prompt in prompts.tokens]
        header = {"weights": digest, "seed": seed, "prompts": asked}
        log = RolloutLog(self._path(number).with_suffix(".jsonl"), header)
        self._sampler.hand_over()
        try:
            sample_answers(
                self._sampler.engine, asked, log, settings, grade=prompts.grade, reply=prompts.reply
            )
            logged = [log.answer(slot) for slot in range(len(asked))]
            answers = self._score(asked, logged, settings.params)
        finally:
            self._sampler.close()
            log.close()
        if self._enrich is not None:
            added = self._enrich(answers)
            answers = [_with(one, extra) for one, extra in zip(answers, added, strict=True)]
        return Round(number, answers, digest)

    def _score(
        self,
        prompts: Sequence[list[int]],
        logged: Sequence[LoggedAnswer],
        params: SamplingParams,
    ) -> list[Answer]:
        """Read all answers anew: routing, what limits have left, and a check of what was logged."""
        sequences = [[*p, *answer.tokens] for p, answer in zip(prompts, logged, strict=True)]
        begins = [len(prompt) for prompt in prompts]
        scored = score(self._sampler.network, sequences, begins, params)
        if self._sampler.exact:
            for slot, (one, answer) in enumerate(zip(scored, logged, strict=True)):
                _require_same(slot, one, answer)
        return [_answer(*parts) for parts in zip(sequences, begins, logged, scored, strict=True)]


def _require_same(slot: int, scored: Scored, logged: LoggedAnswer) -> None:
    """Raise ValueError unless log-probabilities are those of sampling to the bit."""
    sampled = np.array(logged.sampled)
    wrong = np.flatnonzero(sampled & (scored.logprobs != np.array(logged.logprobs)))
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"answer {slot} was not sampled from these weights: token {at} of it had the "
            f"log-probability {logged.logprobs[at]} and has {scored.logprobs[at]}; this is a fault "
            "of the sampler, or the run's folder was changed"
        )


def _answer(tokens: list[int], begin: int, logged: LoggedAnswer, scored: Scored) -> Answer:
    sampled = torch.tensor([False] * begin + logged.sampled)
    here = np.flatnonzero(logged.sampled)
    # Equal to the bit where splits are exact; elsewhere those of sampling are what counts.
    plain = scored.sampled is scored.logprobs
    logprobs = np.array(logged.logprobs) if plain else scored.sampled
    kept = [] if scored.kept is None else [scored.kept[place] for place in here]
    counts = [len(ids) for ids in kept] or [0] * len(here)
    return Answer(
        torch.tensor(tokens),
        sampled,
        torch.from_numpy(logprobs[here].astype(np.float32)),
        torch.from_numpy(np.ascontiguousarray(scored.chosen)),
        torch.from_numpy(np.concatenate([np.empty(0, np.int32), *kept])),
        torch.tensor(counts, dtype=torch.int64),
        {},
        0.0 if logged.score is None else logged.score,
        logged.reason,
    )


def _with(answer: Answer, extra: Mapping[str, Tensor]) -> Answer:
    values = {name: getattr(answer, name) for name in Answer.__dataclass_fields__}
    return Answer(**{**values, "extra": extra})


# --------------------------------------------------------------------------------------------------
# Files

_TENSORS = ("tokens", "sampled", "logprobs", "chosen", "kept_ids", "kept_counts")


def _write(path: Path, made: Round) -> None:
    """Write a round, whole or not at all, and drop its log."""
    tensors: dict[str, Tensor] = {}
    for slot, answer in enumerate(made.answers):
        tensors |= {f"{slot}.{name}": getattr(answer, name) for name in _TENSORS}
        tensors |= {f"{slot}.extra.{name}": value for name, value in answer.extra.items()}
    facts = {
        "digest": made.digest,
        "scores": [answer.score for answer in made.answers],
        "reasons": [answer.reason for answer in made.answers],
    }
    partial = path.with_suffix(".partial")
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        partial,
        metadata={"facts": json.dumps(facts)},
    )
    sync(partial)
    partial.rename(path)
    sync(path.parent)
    path.with_suffix(".jsonl").unlink(missing_ok=True)


def _read(path: Path, number: int) -> Round:
    with safetensors.safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    answers = []
    for slot, (points, reason) in enumerate(zip(facts["scores"], facts["reasons"], strict=True)):
        own: dict[str, Any] = {name: tensors[f"{slot}.{name}"] for name in _TENSORS}
        begin = f"{slot}.extra."
        extra = {n.removeprefix(begin): x for n, x in tensors.items() if n.startswith(begin)}
        answers.append(Answer(**own, extra=extra, score=points, reason=reason))
    return Round(number, answers, facts["digest"])
