"""The commands that run a model, through their runner, on the golden checkpoint."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from sounding.cli import cli
from sounding.cli.generation import _pieces
from sounding.text.tokenizer import train
from tests.weights.folders import SHARD, TINY


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)), input=stdin)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    golden = load_file(TINY / "golden.safetensors")
    save_file({"input_ids": golden["input_ids"][:, :160].contiguous()}, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


@pytest.mark.parametrize("split", [None, "137,1,1", "random:5", "160"])
def test_logits_match_the_golden_file_however_tokens_are_split(
    tokens: Path, tmp_path: Path, split: str | None
) -> None:
    out = tmp_path / "out.safetensors"
    options = [] if split is None else ["--split", split]
    result = run("logits", TINY, "--tokens", tokens, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    expected = load_file(TINY / "golden.safetensors")["exact.logits"][:, :160]
    assert (load_file(out)["logits"] - expected).abs().max() < 1e-4


def test_simulation_changes_the_logits(tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run("logits", TINY, "--tokens", tokens, "--out", out, "--simulate").exit_code == 0
    golden = load_file(TINY / "golden.safetensors")
    ours, exact = load_file(out)["logits"], golden["exact.logits"][:, :160]
    # Rounding flips make deployed logits chaotic; their distance from exact ones is known: 22 %.
    assert 0.1 < (ours - exact).norm() / exact.norm() < 0.35


def test_split_sizes_add_up_and_random_ones_repeat_by_seed() -> None:
    assert _pieces(None, 9, 0) == [9]
    assert _pieces("4,2", 9, 0) == [4, 2, 2, 1]
    assert _pieces("5,4", 9, 0) == [5, 4]
    first, second, again = (_pieces("random:1", 500, row) for row in (0, 1, 0))
    assert sum(first) == sum(second) == 500
    assert first == again != second


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"ids": torch.zeros(1, 4, dtype=torch.int64)}, "it must hold 'input_ids'"),
        ({"input_ids": torch.zeros(4, dtype=torch.int64)}, "must be I64 [sequences, tokens]"),
        ({"input_ids": torch.zeros(1, 4).bfloat16()}, "is BF16 of shape [1, 4]"),
        ({"input_ids": torch.zeros(1, 4).to(torch.float8_e4m3fn)}, "is F8_E4M3 of shape [1, 4]"),
        ({"input_ids": torch.zeros(1, 4, dtype=torch.int32)}, "is I32 of shape [1, 4]"),
        ({"input_ids": torch.full((1, 4), 512)}, "token id 512 is outside"),
    ],
)
def test_defective_token_files_are_refused_and_nothing_is_written(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    result = run("logits", TINY, "--tokens", tmp_path / "in.safetensors", "--out", out)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert not out.exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("0,1", "must be sizes of at least 1"),
        ("a", "must be sizes of at least 1"),
        ("random:x", "must be sizes of at least 1"),
        ("161", "adds up to 161 tokens; the sequences have 160"),
    ],
)
def test_splits_that_do_not_fit_are_refused(
    tokens: Path, tmp_path: Path, split: str, message: str
) -> None:
    result = run("logits", TINY, "--tokens", tokens, "--out", tmp_path / "o", "--split", split)
    assert message in str(result.exception)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"PK\x03\x04")
    result = run("logits", TINY, "--tokens", tmp_path / "in", "--out", tmp_path / "o")
    assert "is not a readable safetensors file" in str(result.exception)


def test_generate_token_ids() -> None:
    greedy = run("generate", TINY, "--tokens", "1,2,3", "--max-tokens", 5)
    assert greedy.exit_code == 0, greedy.output
    ids = [int(part) for part in greedy.stdout.strip().split(",")]
    assert len(ids) == 5
    more = run("generate", TINY, "--tokens", ",".join(map(str, [1, 2, 3, *ids[:2]])))
    assert more.stdout.startswith(",".join(map(str, ids[2:])))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The golden checkpoint with a tokenizer of its vocabulary beside it."""
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    train(["def f(x):\n    return x + 1\n"] * 20, 310).save(model / "tokenizer.json")
    return model


def test_generate_streams_text_and_ends_at_a_stop_string(folder: Path) -> None:
    whole = run("generate", folder, "--prompt", "def f(x):", "--max-tokens", 12)
    assert whole.exit_code == 0, whole.output
    text = whole.stdout.removesuffix("\n")
    assert text
    piped = run("generate", folder, "--prompt", "-", "--max-tokens", 12, stdin="def f(x):")
    assert piped.stdout == whole.stdout
    stop = text[2:4]
    cut = run("generate", folder, "--prompt", "def f(x):", "--max-tokens", 12, "--stop", stop)
    assert cut.stdout == text[: text.index(stop)] + "\n"


def test_seed_and_temperature_reach_the_sampler(folder: Path) -> None:
    def text(*options: object) -> str:
        return run("generate", folder, "--prompt", "def", "--max-tokens", 8, *options).stdout

    assert text("--temperature", 1, "--seed", 1) == text("--temperature", 1, "--seed", 1)
    assert text("--temperature", 1, "--seed", 1) != text("--temperature", 1, "--seed", 2)
    assert text("--temperature", 1, "--top-p", 1e-9) == text()


def test_a_damaged_model_is_one_line(folder: Path) -> None:
    shard = folder / SHARD
    tensors = load_file(shard)
    tensors["hc_head_base"].fill_(float("nan"))
    save_file(tensors, shard)
    source = folder / "a.py"
    source.write_text("x = 1\n")
    for arguments in (
        ("generate", folder, "--prompt", "def"), ("generate", folder, "--tokens", "5"),
        ("write", "x = ", "--model", folder), ("complete", f"{source}:1", "--model", folder),
        ("eval", "bpb", source, "--model", folder),
    ):  # fmt: skip
        command = [sys.executable, "-m", "sounding", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1, done.stderr
        assert "the model is damaged" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    layout = json.loads(path.read_text())
    layout["model"]["vocab"]["a"] = 2**31
    path.write_text(json.dumps(layout))
    source = folder / "a.py"
    source.write_text("x = 1\n")
    for arguments in (
        ("generate", folder, "--prompt", "def"),
        ("write", "x = ", "--model", folder), ("eval", "bpb", source, "--model", folder),
    ):  # fmt: skip
        assert "tokenizer.json: token 'a' has id 2147483648" in str(run(*arguments).exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --prompt or --tokens"),
        (["--prompt", "a", "--tokens", "1"], "give either --prompt or --tokens"),
        (["--tokens", "1", "--stop", "x"], "--stop requires --prompt"),
        (["--tokens", "1,x"], "must be token ids such as 5,17,3"),
        (["--prompt", "a"], "has no tokenizer.json; give token ids with --tokens"),
        (["--tokens", "1", "--top-p", "2"], "top_p = 2.0 must be above 0"),
    ],
)
def test_generate_refuses_options_that_do_not_go_together(
    arguments: list[str], message: str
) -> None:
    result = run("generate", TINY, *arguments)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)


def test_a_preset_has_no_weights(tokens: Path) -> None:
    result = run("logits", "tiny", "--tokens", tokens, "--out", tokens.parent / "out")
    assert "'tiny' is a preset, a shape without weights" in str(result.exception)
