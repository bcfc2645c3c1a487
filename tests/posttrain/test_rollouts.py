"""Rollouts: the trainer and the sampler compute the same, and no answer is begun twice."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sounding.config import ModelConfig
from sounding.engine.sampling import SamplingParams
from sounding.model.transformer import Transformer
from sounding.ops.dispatch import use_backend
from sounding.ops.token_logprobs import token_logprobs
from sounding.posttrain.grpo import read_answers
from sounding.posttrain.rollout_batch import batch_of
from sounding.posttrain.rollout_log import LoggedAnswer, RolloutLog
from sounding.posttrain.rollouts import RolloutSettings, sample_answers
from sounding.posttrain.rounds import Answer, RoundPrompts, Rounds
from sounding.posttrain.sampler import Sampler
from sounding.tasks.task import Grade
from tests.posttrain.conftest import masters

EOS = 1
BF16 = torch.bfloat16
PROMPTS = [[0, 40 + n // 2, 50, 60, 70, 80 + n // 2] for n in range(6)]  # in pairs


def settings(**params: Any) -> RolloutSettings:
    return RolloutSettings(
        params=SamplingParams(**{"temperature": 1.0, "seed": 7, **params}),
        max_tokens=24,
        eos=EOS,
        width=3,
    )


def one_round(folder: Path, sampler: Sampler, model: Transformer, how: RolloutSettings,
              prompts: RoundPrompts | None = None) -> Sequence[Answer]:  # fmt: skip
    rounds = Rounds(folder, model, sampler, lambda number: prompts or RoundPrompts(PROMPTS), how)
    return rounds.open(0, begun=False).answers


def rounded_logprobs(
    model: Transformer, answers: Sequence[Answer], temperature: float = 1.0
) -> torch.Tensor:
    """Of the trainer's forward, with logits in float32 as the engine has them."""
    batch = batch_of(answers, [0.0] * len(answers))
    with torch.no_grad():
        logits = model.logits(read_answers(model, batch).hidden).float().double() / temperature
    if batch.kept is not None:
        logits[~batch.kept.mask(0, len(logits), logits.shape[1])] = -torch.inf
    targets = batch.tokens[batch.sampled]
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].float()


def trainer_logprobs(model: Transformer, answers: Sequence[Answer], **how: float) -> torch.Tensor:
    batch = batch_of(answers, [0.0] * len(answers))
    hidden = read_answers(model, batch).hidden
    targets = batch.tokens[batch.sampled]
    made = token_logprobs(hidden, model.head.weight, targets, kept=batch.kept, **how)
    return made.logprobs.detach().float()


@pytest.mark.parametrize("limits", [{}, {"temperature": 0.8, "top_p": 0.9}])
def test_the_reference_on_both_sides_differs_by_nothing(
    limits: dict[str, float], start: Path, config: ModelConfig, tmp_path: Path
) -> None:
    """Sampled token by token, read at once by the trainer: computed in float64 and rounded to
    float32 they are the same numbers. Through other experts than those of sampling they are not."""
    model = masters(start, config, torch.float64)
    with use_backend("reference"):
        answers = one_round(tmp_path, Sampler(model, width=3), model, settings(**limits))
        sampled = torch.cat([answer.logprobs for answer in answers])
        temperature = limits.get("temperature", 1.0)
        assert len(sampled) > 100
        assert torch.equal(rounded_logprobs(model, answers, temperature), sampled)
        found = trainer_logprobs(model, answers, temperature=temperature)
        torch.testing.assert_close(found, sampled, rtol=0, atol=2e-6)
        rolled = [
            Answer(a.tokens, a.sampled, a.logprobs, a.chosen.roll(1, 2) ^ 1, a.kept_ids,
                   a.kept_counts, {}) for a in answers
        ]  # fmt: skip
        assert (rounded_logprobs(model, rolled, temperature) - sampled).abs().max() > 1e-3


def test_a_cut_distribution_is_normalised_over_what_was_left(
    start: Path, config: ModelConfig, tmp_path: Path
) -> None:
    model = masters(start, config, BF16)
    answers = one_round(tmp_path, Sampler(model), model, settings(top_k=3))
    counts = torch.cat([answer.kept_counts for answer in answers])
    assert int(counts.max()) == 3
    whole = [Answer(a.tokens, a.sampled, a.logprobs, a.chosen, a.kept_ids[:0],
                    torch.zeros_like(a.kept_counts), {}) for a in answers]  # fmt: skip
    sampled = torch.cat([answer.logprobs for answer in answers])
    assert (trainer_logprobs(model, answers) - sampled).abs().mean() < 0.05
    assert (trainer_logprobs(model, whole) - sampled).mean() < -1  # three of 340 tokens are left


def test_weights_that_change_are_sampled_from_at_the_next_hand_over(
    start: Path, config: ModelConfig, tmp_path: Path
) -> None:
    """Every log-probability is checked to the bit against the weights of its round, so that a
    sampler with old weights or old prefixes could not pass."""
    model = masters(start, config, BF16)
    sampler = Sampler(model, width=3)
    before = one_round(tmp_path / "a", sampler, model, settings())
    assert sampler.exact
    again = one_round(tmp_path / "b", sampler, model, settings())
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(before, again, strict=True))
    with torch.no_grad():
        model.layers[1].get_parameter("attn.wkv.weight").mul_(-1)
    after = one_round(tmp_path / "c", sampler, model, settings())
    assert any(not torch.equal(x.logprobs, y.logprobs) for x, y in zip(before, after, strict=True))


def test_a_sampler_of_other_weights_is_found_out(
    start: Path, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = masters(start, config, BF16), masters(start, config, BF16)
    with torch.no_grad():
        other.head.weight.mul_(1.01)
    sampler, stale = Sampler(model, width=3), Sampler(other, width=3)
    stale.hand_over()
    monkeypatch.setattr(Sampler, "engine", property(lambda self: stale._engine))
    with pytest.raises(ValueError, match="was not sampled from these weights"):
        one_round(tmp_path, sampler, model, settings())
    stale.close()


class Killed(BaseException):
    """Ends a round as a signal would: nothing after it is written."""


@pytest.mark.parametrize("after", [1, 17, 60])
def test_a_killed_round_goes_on_with_the_same_unfinished_answers(
    after: int, start: Path, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any token; what was graded is not graded again, and all ends in the same bits."""
    graded: list[int] = []
    lock = threading.Lock()

    def grade(slot: int, answer: LoggedAnswer) -> Grade:
        with lock:
            graded.append(slot)
        return Grade(sum(answer.tokens) % 7 / 7, "sum")

    model = masters(start, config, BF16)
    sampler = Sampler(model, width=3)
    asked = RoundPrompts(PROMPTS, grade)
    whole = one_round(tmp_path / "whole", sampler, model, settings(), asked)
    assert sorted(graded) == list(range(6))
    graded.clear()
    write, lines = RolloutLog._write, [0]

    def counted(log: RolloutLog, row: object) -> None:
        lines[0] += 1
        if lines[0] > after:
            raise Killed
        write(log, row)

    monkeypatch.setattr(RolloutLog, "_write", counted)
    with pytest.raises(BaseException):  # noqa: B017 -- of the engine's thread or a grader's
        one_round(tmp_path / "killed", sampler, model, settings(), asked)
    monkeypatch.undo()
    path = tmp_path / "killed/rollouts/round-00000000.jsonl"
    path.write_bytes(path.read_bytes() + b"[3, 12, -0.")  # half a line
    kept = [json.loads(line) for line in path.read_text().splitlines()[1:-1]]
    done = {row["slot"] for row in kept if isinstance(row, dict)}
    graded.clear()
    found = one_round(tmp_path / "killed", sampler, model, settings(), asked)
    assert sorted(graded) == sorted(set(range(6)) - done)
    for row in kept:
        if isinstance(row, list):
            assert row[1] in found[row[0]].tokens[len(PROMPTS[row[0]]) :]
    for one, other in zip(whole, found, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.logprobs, other.logprobs)
        assert (one.score, one.reason) == (other.score, other.reason)
        assert torch.equal(one.chosen, other.chosen)
    assert not path.exists()


def test_a_log_of_other_weights_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    log = RolloutLog(path, {"weights": "a"})
    log.add(0, 5, -1.5)
    log.give(0, [7, 8])
    log.grade(0, 0.5, "half")
    log.close()
    again = RolloutLog(path, {"weights": "a"})
    answer = LoggedAnswer([5, 7, 8], [True, False, False], [-1.5, 0.0, 0.0], 0.5, "half")
    assert again.answers == {0: answer}
    again.close()
    other = RolloutLog(path, {"weights": "b"})
    other.close()
    assert other.answers == {}
    assert "other weights" in caplog.text


def test_turns_go_on_behind_what_a_tool_has_said(
    start: Path, config: ModelConfig, tmp_path: Path
) -> None:
    """What was given is in the sequence, carries no loss, and a killed dialogue goes on."""
    model = masters(start, config, BF16)
    sampler = Sampler(model, width=3)

    def reply(slot: int, answer: LoggedAnswer) -> list[int] | None:
        return [90 + slot, 91] if answer.sampled.count(False) < 4 else None

    asked = RoundPrompts(PROMPTS[:2], reply=reply)
    sampler.hand_over()
    log = RolloutLog(tmp_path / "log.jsonl", {})
    # Turns end at EOS, which random weights hardly ever sample: the rule is put in its place.
    often = RolloutSettings(
        params=settings().params, max_tokens=40, eos=_frequent(start, config), width=3
    )
    sample_answers(sampler.engine, asked.tokens, log, often, reply=reply)
    for slot in range(2):
        answer = log.answer(slot)
        given = [t for t, own in zip(answer.tokens, answer.sampled, strict=True) if not own]
        assert given in ([90 + slot, 91] * 2, [90 + slot, 91], [])
        assert answer.num_sampled <= 40
    log.close()
    sampler.close()


def _frequent(start: Path, config: ModelConfig) -> int:
    """A token that random weights sample soon."""
    model = masters(start, config, BF16)
    sampler = Sampler(model)
    sampler.hand_over()
    made = sampler.network.predict(PROMPTS[0], [5], [6], [sampler.network.new_state()])
    sampler.close()
    return int(made.logits[0].argmax())
