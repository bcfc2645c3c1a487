"""Packing and targets of fine-tuning, and a run of it: learned, stopped, resumed."""

import math
from pathlib import Path

import pytest
import torch

from sounding.config import ModelConfig
from sounding.ops.loss import IGNORED
from sounding.posttrain.conversations import TrainingSample
from sounding.posttrain.open_runs import open_sft
from sounding.posttrain.run_configs import SftRun
from sounding.posttrain.sft import batch_of, packed, sample_source
from sounding.train.metrics import MetricsRow
from tests.posttrain.conftest import rows, small, write_rows
from tests.train.test_trainer import assert_same_bits


def sample(*tokens: int, trained: int) -> TrainingSample:
    """The last `trained` tokens carry loss."""
    mask = [at >= len(tokens) - trained for at in range(len(tokens))]
    return TrainingSample(list(tokens), mask, "here")


def test_targets_are_the_trained_tokens_one_place_before() -> None:
    batch = batch_of([sample(5, 6, 7, trained=1), sample(8, 9, trained=2)])
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9]
    assert batch.targets.tolist() == [IGNORED, 7, IGNORED, 9, IGNORED]
    assert batch.lengths == [3, 2]


def test_packing_keeps_every_sample_whole() -> None:
    samples = [sample(*range(n), trained=1) for n in (8, 2, 7, 5, 3, 5)]
    made = packed(samples, 10)
    assert sorted(len(one.tokens) for row in made for one in row) == [2, 3, 5, 5, 7, 8]
    assert max(sum(len(one.tokens) for one in row) for row in made) <= 10 and len(made) == 3


def test_the_stream_resumes_behind_any_batch_and_sees_all_samples_of_an_epoch() -> None:
    samples = [sample(n, n + 1, trained=1) for n in range(0, 40, 2)]
    source = sample_source(samples, 8, seed=3)
    stream = source(None)
    pairs = [next(stream) for _ in range(11)]
    for at in (0, 4, 5):
        again = source(pairs[at][1])
        for batch, _ in pairs[at + 1 :]:
            assert torch.equal(next(again)[0].tokens, batch.tokens)
    seen = sorted(int(token) for batch, _ in pairs[:5] for token in batch.tokens)
    assert seen == list(range(40))


def test_an_answer_is_learned_and_a_resumed_run_ends_in_the_same_bits(
    tmp_path: Path, start: Path, config: ModelConfig
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows(("yes",)))
    seen: list[MetricsRow] = []
    run = small(
        SftRun(name="sft", model=config),
        start,
        f"conversations.path={path}",
        f"conversations.held_out={path}",
        "train.steps=4",
        "log.validate_every=4",
    )
    whole = open_sft(run, tmp_path / "whole", report=seen.append)
    whole.validate()
    whole.train()
    bits = [row["bits_per_byte"] for row in seen if "bits_per_byte" in row]
    assert bits[-1] < bits[0] * 0.7 and math.isfinite(bits[0])
    first = open_sft(run, tmp_path / "parts")
    first.validate()
    for _ in range(3):
        first._record(first.take_step())
        if first.step == 2:
            first.save()  # the third step is lost, as by a kill
    again = open_sft(run, tmp_path / "parts")
    assert again.step == 2 and again.train()
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "parts/checkpoints/step-00000004/model/tokenizer.json").is_file()


def test_what_does_not_fit_is_counted_and_nothing_left_is_refused(
    tmp_path: Path, start: Path, config: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"messages": [{"role": "user", "content": "a " * 90},
                         {"role": "assistant", "content": "b"}]}  # fmt: skip
    run = small(SftRun(name="sft", model=config), start)
    with pytest.raises(ValueError, match="--data"):
        open_sft(run, tmp_path / "none")
    path = write_rows(tmp_path / "rows.jsonl", [*rows(), long])
    open_sft(small(run, start, f"conversations.path={path}"), tmp_path / "some")
    assert "1 conversations of" in caplog.text and "left out" in caplog.text
    path = write_rows(tmp_path / "long.jsonl", [long])
    with pytest.raises(ValueError, match=r"no conversation of .* fits data.sequence_tokens = 64"):
        open_sft(small(run, start, f"conversations.path={path}"), tmp_path / "all")
