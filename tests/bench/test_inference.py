"""What a token costs, counted by hand, and the command's reports.

Catches: experts counted whole, a packed weight counted as one number per byte, keys of the wrong
layers, a report whose fraction is not its own figures' quotient, a measured step that trains
nothing or another phase than asked for, options without effect. No clock is asserted.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sounding.bench import throughput
from sounding.bench.inference import Measurement, between, token_cost
from sounding.cli import cli
from sounding.engine.network import Network
from sounding.model.from_checkpoint import load_model
from sounding.model.reference_network import ReferenceNetwork
from sounding.native.network import KernelNetwork
from sounding.presets import tiny
from sounding.weights.checkpoint import Checkpoint

VECTORS = Path(__file__).parents[1] / "vectors" / "tiny"


@pytest.fixture(params=["kernels", "reference"])
def model(request: pytest.FixtureRequest) -> Network:
    checkpoint = Checkpoint(VECTORS)
    if request.param == "reference":
        return ReferenceNetwork(load_model(checkpoint, dtype=torch.bfloat16))
    return KernelNetwork(checkpoint.config, checkpoint.read_all())


def test_the_first_token_reads_every_weight_it_uses(model: Network) -> None:
    """tiny in its published formats: FP8 linears, FP4 experts, bf16 and float32 for the rest."""
    config = model.config
    c = heads_wide = inner = 128
    heads_wide *= config.num_attention_heads
    rank, low = config.q_lora_rank, config.o_groups * config.o_lora_rank
    fp8 = c * rank + rank * heads_wide + c * 128 + heads_wide // 2 * low + low * c + 3 * c * inner
    tiles = 1 + heads_wide // 128 + 1 + heads_wide // 2 // 128 * (low // 128) + low // 128 + 3
    experts = 2 * 3 * c * inner  # two of eight
    hyper = 2 * (24 * 4 * c + 24 + 3)
    norms_and_sinks = 2 * (4 * 128) + 4 * config.num_attention_heads
    gate = 2 * 8 * c
    common = fp8 + tiles + experts * 17 // 32 + 4 * hyper + norms_and_sinks + gate
    bias = 4 * 8 * 4  # all but the hash layer
    hca = 2 * 2 * c * 128 + 4 * 128 * 128 + 2 * 128
    csa_part = 2 * 2 * c * 256 + 4 * 4 * 256 + 2 * 128
    index = 8 * 128 * rank + 8 * (rank // 128) + 2 * 8 * c
    head = 2 * config.vocab_size * c + 4 * (4 * 4 * c + 4 + 1) + 2 * c
    window = 5 * 2 * 128  # one key per layer
    expected = 5 * common + bias + 2 * hca + 2 * (2 * csa_part + index) + head + window
    assert token_cost(model, 0).bytes == expected


def test_context_costs_the_keys_it_leaves(model: Network) -> None:
    config = model.config
    few, many = token_cost(model, 127), token_cost(model, 127 + 1280)
    entries = 2 * 1280 // 128  # two HCA layers see ten more entries each; windows are full
    scored = 2 * ((127 + 1280) // 4 - 127 // 4)  # two CSA layers; both exceed the top-k
    assert many.bytes - few.bytes == 2 * (entries * 128 + scored * 128)
    attention = 4 * entries * config.num_attention_heads * 128
    assert many.flops - few.flops == attention + 2 * scored * 8 * 128


def test_runs_before_and_after_a_peer_are_averaged() -> None:
    before = Measurement("decode", 8, 0, 100.0, 200.0)
    (mean,) = between([before], [Measurement("decode", 8, 0, 50.0, 200.0)])
    assert (mean.tokens_per_second, mean.fraction) == (75.0, 0.375)


def test_bench_reports_every_row_with_its_limits_in_json() -> None:
    how = ["--prefill", "40,9", "--decode", "3", "--context", "30", "--runs", "1", "--threads", "1"]
    result = CliRunner().invoke(cli, ["bench", str(VECTORS), *how, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["kind"] for row in report["rows"]] == ["prefill", "prefill", "prefill", "decode"]
    assert [row["tokens"] for row in report["rows"]] == [40, 9, 30, 3]
    assert report["state_bytes"] > 0 and report["formula_state_bytes"] > 0
    decode = report["rows"][-1]
    limit = report["read_bytes_per_second"] / decode["bytes_per_token"]
    assert decode["fraction"] == pytest.approx(decode["tokens_per_second"] / limit, abs=2e-3)
    assert report["threads"] == 1 and report["first_token_seconds"] > 0


def test_prompt_lengths_must_be_counts() -> None:
    result = CliRunner().invoke(cli, ["bench", str(VECTORS), "--prefill", "12,x"])
    assert result.exit_code == 2
    assert "'12,x' must be numbers of tokens" in result.output


@pytest.mark.parametrize("sparse", [False, True])
def test_a_measured_step_is_one_of_the_trainer(sparse: bool) -> None:
    """Two steps on the same tokens: the second knows them better, and only sparse has an indexer's
    loss."""
    workload = throughput.Workload(tiny(), 2, 24, sparse=sparse, steps=8)
    with throughput.ours(workload) as step:
        rows = [step() for _ in range(9)]
    assert rows[-1]["tokens"] == 9 * 48
    assert all("event" not in row for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["mtp_loss"] < rows[0]["mtp_loss"]
    assert [row["phase"] for row in rows] == ["sparse" if sparse else "dense"] * 9
    assert ("index_loss" in rows[0]) is sparse


@pytest.mark.parametrize(
    ("sequences", "tokens", "threads", "expected"),
    [
        (4, 1024, 2, 2),
        (16, 1024, 2, 4),
        (16, 1024, 1, 4),
        (6, 1024, 4, 2),
        (3, 1024, 2, 1),
        (4, 8192, 2, 4),
        (7, 1024, 2, 7),
        (1, 2, 2, 1),
    ],
)
def test_a_step_is_cut_into_batches(
    sequences: int, tokens: int, threads: int, expected: int
) -> None:
    """Of at most 4,096 tokens, or one sequence, and an even number of them per thread."""
    workload = throughput.Workload(tiny(), sequences, tokens, sparse=False, steps=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = throughput.run_of(workload)
    finally:
        torch.set_num_threads(before)
    assert run.train.accumulation == expected
    assert run.data.batch_tokens * expected == sequences * tokens


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
@pytest.mark.parametrize("mtp", [True, False])
def test_the_report_on_training(mtp: bool) -> None:
    how = ["--train", "--tokens", "2x12", "--runs", "1", "--threads", "1"]
    how += [] if mtp else ["--no-mtp"]
    result = CliRunner().invoke(
        cli, ["bench", str(VECTORS), *how, "--against", "transformers", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["phase"], report["sequences"], report["sequence_tokens"]) == ("dense", 2, 12)
    assert report["threads"] == report["steps"] == 1  # so a ratio is that of single figures
    for key, ratio in (("tokens_per_second", "ratio"), ("peak_bytes", "memory_ratio")):
        assert report[key] > 0 and report[f"peer_{key}"] > 0
        assert report[ratio] == pytest.approx(report[key] / report[f"peer_{key}"], abs=6e-3)
    assert report["mtp"] is mtp
    assert ("1 MTP block besides" if mtp else "no MTP block either") in report["differences"]


def test_a_process_that_ends_early_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    result = CliRunner().invoke(cli, ["bench", "tiny", "--train", "--tokens", "2x12"])
    assert result.exit_code
    assert "training with 'ours' ended with exit code 1" in f"{result.output}{result.exception}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tiny", "--train", "--tokens", "4096"], "'4096' must be sequences x tokens per sequence"),
        (["tiny", "--train", "--decode", "8"], "--decode cannot be combined with --train"),
        (["tiny", "--tokens", "4x1024"], "--tokens requires --train"),
        (["tiny", "--no-mtp"], "--no-mtp requires --train"),
        (["tiny", "--train", "--phase", "indexer"], "'indexer' is not one of"),
        (["tiny", "--train", "--against", "llama"], "'llama' is not"),
        (["tiny", "--train", "--seed", "1"], "No such option"),
        (["tiny", "--train", "--tokens", "8x1"], "sequence_tokens = 1 must be at least 2"),
        (["tini", "--train"], "did you mean 'tiny'?"),
    ],
)
def test_what_training_is_not_measured_with(options: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["bench", *options])
    assert result.exit_code
    assert message in f"{result.output}{result.exception}"
