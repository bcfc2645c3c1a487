"""The loop: learning, resuming to the same bits, skipping, going back, stopping."""

import dataclasses
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from sounding.data.token_batch import StreamState, TokenBatch
from sounding.model.attention import Selection
from sounding.model.from_checkpoint import load_model
from sounding.ops.loss import IGNORED
from sounding.train import run_checkpoint
from sounding.train.build_network import build_network
from sounding.train.guard import Guard
from sounding.train.metrics import METRICS_NAME, MetricsRow, read_metrics
from sounding.train.objective import BatchSource
from sounding.train.plots import draw
from sounding.train.run_config import GuardConfig, RunConfig
from sounding.train.runs import change, copying
from sounding.train.saved_models import CHECKPOINTS_NAME, MILESTONES_NAME, saved_models, steps
from sounding.train.source import HeldOut, open_source
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer
from sounding.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")


def small(*settings: str) -> RunConfig:
    """A run of few, short steps that passes through every phase."""
    return change(
        copying(),
        [
            "model.num_hidden_layers=3",
            "model.hidden_size=32",
            "model.moe_intermediate_size=32",
            "model.compress_ratios=0,4,128,0",
            "data.sequence_tokens=136",
            "data.batch_tokens=272",
            "train.steps=8",
            "train.decay_steps=3",
            "train.warmup_steps=2",
            "sparsity.dense_steps=2",
            "sparsity.indexer_steps=2",
            "log.checkpoint_every=3",
            *settings,
        ],
    )


def trainer(
    run: RunConfig, folder: Path, source: BatchSource[TokenBatch] | None = None, **options: Any
) -> Trainer[TokenBatch]:
    source = source or open_source(run)
    return Trainer(run, folder, source, Supervised(run), device=CPU, **options)


def measured(folder: Path) -> list[MetricsRow]:
    """Metrics without what a clock says."""
    rows = read_metrics(folder / METRICS_NAME)
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    root = folder / CHECKPOINTS_NAME
    return run_checkpoint.load(root, steps(root)[-1]).model


def assert_same_bits(one: Path, two: Path) -> None:
    assert measured(one) == measured(two)
    left, right = last_weights(one), last_weights(two)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def always(batch: TokenBatch) -> BatchSource[TokenBatch]:
    def open_stream(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        while True:
            yield batch, {}

    return open_stream


def test_one_batch_is_memorised(tmp_path: Path) -> None:
    run = small(
        "train.steps=60",
        "train.decay_steps=20",
        "train.lr=0.01",
        "train.final_lr=0.001",
        "sparsity.dense_steps=0",
        "sparsity.indexer_steps=0",
        "log.checkpoint_every=1000",
        "optimizer.weight_decay=0",
    )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(run.model.vocab_size, (100,), generator=generator)
    batch = TokenBatch(tokens, tokens.roll(-1), [40, 60])
    trainer(run, tmp_path, always(batch)).train()
    rows = measured(tmp_path)
    assert rows[0]["loss"] == pytest.approx(4.16, abs=0.1)  # ln 64
    assert rows[-1]["loss"] < 0.02
    assert rows[-1]["mtp_loss"] < 0.1


def test_stopped_and_resumed_at_any_step_ends_in_the_same_bits(tmp_path: Path) -> None:
    run = small()
    trainer(run, tmp_path / "whole").train()
    for at in (1, 3, 5):
        folder = tmp_path / str(at)
        first = trainer(run, folder)
        for _ in range(at):
            first._record(first.take_step())  # as if killed: steps after a save are lost
            if first.step % 3 == 0:
                first.save()
        assert trainer(run, folder).step == at // 3 * 3
        assert trainer(run, folder).train()
        assert_same_bits(tmp_path / "whole", folder)


SCRIPT = """
import sys, torch
from pathlib import Path
from sounding.train.runs import parse_run
from sounding.train.source import open_source
from sounding.train.supervised import Supervised
from sounding.train.trainer import Trainer
import json
torch.set_num_threads(1)
run = parse_run(json.loads(Path(sys.argv[1]).read_text()))
source, objective = open_source(run), Supervised(run)
Trainer(run, Path(sys.argv[2]), source, objective, device=torch.device("cpu")).train()
"""


@pytest.mark.slow
def test_killed_at_a_random_moment_and_resumed_ends_in_the_same_bits(tmp_path: Path) -> None:
    run = small("train.steps=12", "log.checkpoint_every=1")
    (tmp_path / "run.json").write_text(json.dumps(run.to_dict()))

    def start(folder: Path) -> "subprocess.Popen[bytes]":
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.json"), str(folder)]
        return subprocess.Popen(arguments, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    folder = tmp_path / "killed"
    process = start(folder)
    metrics = folder / METRICS_NAME
    stop_after = random.Random(os.getpid()).randint(1, 9)
    while not (metrics.exists() and len(metrics.read_bytes().splitlines()) > stop_after):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(folder).wait() == 0
    assert_same_bits(tmp_path / "whole", folder)


def test_an_interrupt_saves_and_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = small("log.checkpoint_every=100")

    def report(row: MetricsRow) -> None:
        if row["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    interrupted = trainer(run, tmp_path / "a", report=report)
    before = signal.getsignal(signal.SIGINT)  # whoever started this may have it ignored
    assert not interrupted.train()
    assert interrupted.step == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert trainer(run, tmp_path / "a").train()
    trainer(run, tmp_path / "b").train()
    assert_same_bits(tmp_path / "a", tmp_path / "b")


def gradients(one: Trainer[TokenBatch]) -> dict[str, torch.Tensor]:
    batches = one._next_batches()
    one._differentiate(batches, one._counts(batches), one.objective.plan(one.step))
    named = one.model.named_parameters()
    return {name: param.grad for name, param in named if param.grad is not None}


def test_accumulated_batches_have_the_gradient_of_one_large_batch(tmp_path: Path) -> None:
    def halves(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        for batch, _ in open_source(small())(state):
            at = batch.lengths[0]
            fewer = batch.targets.clone()
            fewer[:100] = IGNORED  # counts differ, so averages of averages would be wrong
            yield TokenBatch(batch.tokens[:at], fewer[:at], [at]), {}
            yield TokenBatch(batch.tokens[at:], batch.targets[at:], [at]), {}

    def wholes(state: StreamState | None) -> Iterator[tuple[TokenBatch, StreamState]]:
        stream = halves(state)
        while True:
            (one, _), (two, _) = next(stream), next(stream)
            targets = torch.cat((one.targets, two.targets))
            tokens = torch.cat((one.tokens, two.tokens))
            yield TokenBatch(tokens, targets, one.lengths + two.lengths), {}

    run = small("train.dtype=float32")
    whole = gradients(trainer(run, tmp_path / "whole", wholes))
    run = small("train.dtype=float32", "train.accumulation=2", "data.batch_tokens=136")
    split = gradients(trainer(run, tmp_path / "split", halves))
    assert whole.keys() == split.keys()
    for name, gradient in split.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-6, msg=name)


def test_batches_side_by_side_give_the_same_bits_every_time(
    tmp_path: Path, two_threads: None
) -> None:
    run = small("train.accumulation=5", "train.dtype=float32")
    for name in ("a", "b"):
        trainer(run, tmp_path / name).train()
        assert torch.get_num_threads() == 2
    assert_same_bits(tmp_path / "a", tmp_path / "b")
    one, two = (trainer(run, tmp_path / name) for name in ("c", "d"))
    side_by_side = gradients(one)
    torch.set_num_threads(1)
    in_turn = gradients(two)
    for name, gradient in in_turn.items():
        torch.testing.assert_close(side_by_side[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_only_what_is_named_moves(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begins no parameter's name"):
        trainer(small("train.only=nothing"), tmp_path / "none")
    one = trainer(small("train.only=mtp.", "sparsity.dense_steps=8"), tmp_path / "mtp")
    before = {name: param.detach().clone() for name, param in one.model.named_parameters()}
    losses = [one.take_step()["mtp_loss"] for _ in range(8)]
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(name.startswith("mtp.") for name in moved)
    assert any(name.endswith("gate.bias") for name in moved)
    assert losses[-1] < losses[0]


def test_without_weight_the_mtp_blocks_rest_until_the_decay(tmp_path: Path) -> None:
    settings = ["objective.mtp_weight=0", "objective.mtp_weight_in_decay=0.5"]
    one = trainer(small(*settings, "sparsity.dense_steps=8"), tmp_path)
    before = {name: param.detach().clone() for name, param in one.model.named_parameters()}
    resting = [one.take_step() for _ in range(5)]
    assert not any("mtp_loss" in row for row in resting)
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not any(name.startswith("mtp.") for name in moved)
    row = one.take_step()
    assert row["mtp_loss"] > 0
    assert len(row["load_entropy"]) == len(resting[0]["load_entropy"]) + 1
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert any(name.startswith("mtp.") for name in moved)
    for taken in (*resting, row):
        one._record(taken)
    assert all(path.stat().st_size > 0 for path in draw(tmp_path, tmp_path / "plots"))


def test_only_the_indexer_moves_while_only_it_learns(tmp_path: Path) -> None:
    one = trainer(small("sparsity.dense_steps=0", "sparsity.indexer_steps=1"), tmp_path)
    before = {name: param.detach().clone() for name, param in one.model.named_parameters()}
    row = one.take_step()
    assert row["phase"] == "indexer" and row["learning_rate"] == 1e-3 and "loss" not in row
    for name, param in one.model.named_parameters():
        assert torch.equal(param, before[name]) != (".indexer." in name), name
    row = one.take_step()
    assert row["phase"] == "sparse" and row["index_loss"] > 0
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    assert "embed.weight" in moved and "layers.1.ffn.gate.bias" in moved
    assert not any("tid2eid" in name for name in moved)


def test_a_step_that_is_not_a_number_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = trainer(small(), tmp_path)
    one.take_step()
    before = {name: param.detach().clone() for name, param in one.model.named_parameters()}
    with torch.no_grad():
        one.model.get_parameter("norm.weight")[0] = torch.nan
    row = one.take_step()
    assert row["event"] == "skipped" and "nan" in row["reason"]
    with torch.no_grad():
        one.model.get_parameter("norm.weight")[0] = before["norm.weight"][0]
    assert all(torch.equal(p, before[n]) for n, p in one.model.named_parameters())
    assert one.step == 2


def test_the_guard_knows_spikes_from_learning() -> None:
    guard = Guard(GuardConfig(history_steps=4, spike_factor=5.0, patience=2), harmless=3.0)
    assert guard.judge(9.0, 1000.0, "dense") is None  # nothing to compare with yet
    for norm in (0.01, 0.02, 0.1, 0.2, 2.9, 10.0, 40.0):
        assert guard.judge(5.0, norm, "sparse") is None  # tiny, harmless, growing
    reason = guard.judge(5.0, 300.0, "sparse")
    assert reason == "gradient norm 300 is 7.5 times the largest recent one"
    assert not guard.calm and not guard.gives_up
    twin = Guard(guard.config, harmless=3.0)
    twin.restore(json.loads(json.dumps(guard.to_dict())))
    for one in (guard, twin):
        assert one.judge(6.5, 1.0, "sparse") == "loss 6.500 is 1.50 above the recent median"
        assert one.gives_up
    assert guard.judge(float("inf"), 1.0, "sparse") == "loss is inf"
    assert guard.judge(1.0, float("nan"), "sparse") == "gradient norm is nan"
    assert guard.judge(5.9, 1.0, "sparse") is None
    assert guard.calm and not guard.gives_up
    assert guard.judge(50.0, 1.0, "dense") is None  # of another kind


def test_bad_data_leads_back_and_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights damaged after a checkpoint: skips, then the checkpoint's weights with later data."""
    run = small(
        "guard.patience=2",
        "guard.rollbacks=1",
        "log.checkpoint_every=2",
        "sparsity.dense_steps=100",
    )
    rows: list[MetricsRow] = []

    def report(row: MetricsRow) -> None:
        rows.append(row)
        if row["step"] == 3 and not any("event" in row for row in rows):
            with torch.no_grad():
                one.model.get_parameter("norm.weight").fill_(torch.inf)

    one = trainer(run, tmp_path, report=report)
    with caplog.at_level(logging.WARNING):
        assert one.train()
    assert [row["step"] for row in rows if row.get("event") == "skipped"] == [4]
    back = [row for row in rows if row.get("event") == "rolled back"]
    assert [(row["step"], row["reason"][:9]) for row in back] == [(2, "at step 5")]
    assert rows[-1]["step"] == 8 and rows[-1]["loss"] < 5
    assert "back to step" in caplog.text


def test_it_gives_up_when_going_back_does_not_help(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small("guard.patience=1", "guard.rollbacks=0")
    one = trainer(run, tmp_path)
    with torch.no_grad():
        one.model.get_parameter("norm.weight").fill_(torch.nan)
    with pytest.raises(ValueError, match="no checkpoint to go back to"):
        one.train()


def test_a_folder_keeps_one_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(small(), tmp_path)
    with pytest.raises(ValueError, match=r"train\.lr: 0\.005 -> 0\.01"):
        trainer(small("train.lr=0.01"), tmp_path)
    other = small("train.lr=0.01")
    trainer(other, tmp_path, allow_change=True)
    assert json.loads((tmp_path / "run.json").read_text())["train"]["lr"] == 0.01


def test_validation_is_bits_per_byte(tmp_path: Path) -> None:
    run = small("train.steps=1", "train.decay_steps=0", "train.dtype=float32")
    batch = next(open_source(run)(None))[0]
    held_out = HeldOut([TokenBatch(batch.tokens, batch.targets, batch.lengths)] * 2, 100)
    one = Trainer(run, tmp_path, open_source(run), Supervised(run, held_out), device=CPU)
    one.train()
    row = measured(tmp_path)[-1]
    output = one.model(batch.tokens, batch.lengths, selection=Selection(dense=True))
    logits = one.model.logits(one.model.hidden(output.streams))
    counted = batch.targets >= 0
    loss = torch.nn.functional.cross_entropy(logits[counted], batch.targets[counted]).item()
    assert row["validation_loss"] == pytest.approx(loss, rel=1e-5)
    bits = loss / math.log(2) * 2 * int(counted.sum()) / 100
    assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_checkpoints_are_tensors_and_json_and_only_the_last_stay(tmp_path: Path) -> None:
    trainer(small("log.checkpoint_every=1", "train.steps=4"), tmp_path).train()
    root = tmp_path / CHECKPOINTS_NAME
    assert steps(root) == [3, 4]
    names = {path.suffix for path in root.rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}
    loaded = load_model(Checkpoint(root / "step-00000004" / "model"))
    assert torch.equal(loaded.embed.weight, last_weights(tmp_path)["embed.weight"])
    held = safetensors.torch.load_file(root / "step-00000004" / "optimizer.safetensors")
    assert "layers.1.ffn.experts.w1.weight.momentum" in held
    assert "embed.weight.exp_avg_sq" in held


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def gone(path: Path) -> None:
    path.unlink()


def other(path: Path) -> None:
    path.write_text('{"step": 6}')


SHARD = "model/model-00001-of-00001.safetensors"
DAMAGE = [
    (cut, "optimizer.safetensors"), (gone, "optimizer.safetensors"), (cut, "state.json"),
    (other, "state.json"), (gone, "state.json"), (cut, SHARD), (gone, SHARD),
    (gone, "model/config.json"), (other, "optimizer.safetensors"), (other, "model/config.json"),
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps, of which the sixth and the last are saved."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer(small(), folder).train()
    assert steps(folder / CHECKPOINTS_NAME) == [6, 8]
    return folder


@pytest.mark.parametrize(("damage", "name"), DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None],
    name: str,
    finished: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run ends in the same bits, and the damaged one is kept beside."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    root = folder / CHECKPOINTS_NAME
    damage(root / "step-00000008" / name)
    again = trainer(small(), folder)
    assert again.step == 6
    assert "the checkpoint of step 8 cannot be used" in caplog.text
    assert (root / "damaged-1-step-00000008").is_dir() and steps(root) == [6]
    assert again.train()
    assert_same_bits(finished, folder)
    assert [step for step, *_ in saved_models(folder)] == [6, 8]


def test_nothing_is_begun_anew_in_silence(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in folder.rglob("optimizer.safetensors"):
        cut(path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no checkpoint in .* can be used \(.*damaged"):
            trainer(small(), folder)
    assert steps(folder / CHECKPOINTS_NAME) == [6, 8]


def having(free: float) -> Callable[[Path], Any]:
    """`shutil.disk_usage` of a disk with so much room."""
    return lambda path: types.SimpleNamespace(free=int(free))


def test_room_for_what_will_be_saved_is_asked_for_at_the_start(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of checkpoints as many as there are at once, and all milestones."""
    saved = run_checkpoint.load(finished / CHECKPOINTS_NAME, 8)
    size = sum(x.nbytes for x in (*saved.model.values(), *saved.optimizer.values()))
    for settings, sizes in (
        ((), 3),
        (("log.keep_checkpoints=1",), 2),
        (("log.keep_checkpoints=9",), 3),
        (("log.checkpoint_every=1", "log.keep_checkpoints=5"), 6),
    ):
        monkeypatch.setattr(shutil, "disk_usage", having(size * (sizes + 0.1)))
        trainer(small(*settings), tmp_path / f"{sizes}{settings}")
        monkeypatch.setattr(shutil, "disk_usage", having(size * (sizes - 0.1)))
        with pytest.raises(ValueError, match=r"takes [\d,]+ bytes and the disk has .*keep"):
            trainer(small(*settings), tmp_path / f"no {sizes}{settings}")
    run = small("log.milestone_every=1", "log.keep_checkpoints=1")
    monkeypatch.setattr(shutil, "disk_usage", having(size * 2.1))
    with pytest.raises(ValueError, match="milestone"):
        trainer(run, tmp_path / "milestones")


def test_milestones_stay_and_are_models_in_bf16(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    run = small("log.checkpoint_every=2", "train.steps=8", "log.milestone_every=3")
    one = trainer(run, tmp_path, beside=[tokenizer])
    one.train()
    kept = saved_models(tmp_path)
    assert [step for step, _, _ in kept] == [3, 6, 8]  # 6 is a checkpoint too, 2 and 4 are gone
    per_step = one.tokens // 8
    assert [tokens for _, tokens, _ in kept] == [3 * per_step, 6 * per_step, 8 * per_step]
    folder = tmp_path / MILESTONES_NAME / "step-00000006" / "model"
    assert kept[1][2] == folder and (folder / "tokenizer.json").read_text() == "{}"
    exact = load_model(Checkpoint(tmp_path / CHECKPOINTS_NAME / "step-00000006" / "model"))
    rounded = dict(load_model(Checkpoint(folder)).named_parameters())
    assert rounded["embed.weight"].dtype == torch.bfloat16
    for name, param in exact.named_parameters():
        precise = rounded[name].dtype != torch.bfloat16
        assert torch.equal(rounded[name], param if precise else param.bfloat16()), name
    wide = {name.rpartition(".")[2] for name, p in rounded.items() if p.dtype == torch.float32}
    assert {"attn_sink", "bias", "ape", "hc_head_fn"} <= wide


def test_quantization_aware_training_is_on_or_refused(tmp_path: Path) -> None:
    run = small("train.qat=true", "train.steps=4", "train.decay_steps=0")
    assert trainer(run, tmp_path).train()
    plain = dataclasses.replace(run.model, quantization_config=None, expert_dtype=None)
    with pytest.raises(ValueError, match=r"train\.qat = True needs model\.quantization_config"):
        build_network(dataclasses.replace(run, model=plain), CPU)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    trainer(small(), tmp_path).train()
    names = [path.name for path in draw(tmp_path, tmp_path / "plots")]
    assert names == ["loss.png", "expert_load.png", "gradient_norm.png"]
    heads = {path.read_bytes()[:4] for path in (tmp_path / "plots").iterdir()}
    assert heads == {b"\x89PNG"}
    with pytest.raises(ValueError, match="no metrics to draw"):
        draw(tmp_path / "plots", tmp_path / "more")


def test_half_a_row_is_left_out_and_a_broken_one_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / METRICS_NAME
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is no row"):
        read_metrics(path)
