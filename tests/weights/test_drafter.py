"""A drafter in a file of its own: joined to its model, which stays as it is, or refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sounding.cli import cli
from sounding.config import ModelConfig
from sounding.config_file import parse_config
from sounding.loading import load_network, open_with_drafter
from sounding.model.from_checkpoint import load_model, save_model
from sounding.model.transformer import Transformer
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.drafter import (
    DRAFTER_NAME,
    find_drafter,
    open_drafter,
    write_drafter,
)
from tests.networks import DSPARK, make_network

WITHOUT = dataclasses.replace(DSPARK, dspark=None, compress_ratios=(*DSPARK.ratios, 0))
assert DSPARK.dspark is not None
SMALL = dataclasses.replace(DSPARK.dspark, moe_intermediate_size=32, n_blocks=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with an MTP block."""
    save_model(make_network(WITHOUT, dtype=torch.bfloat16), tmp_path / "model")
    return tmp_path / "model"


def trained_for(model: Path, folder: Path, **changes: Any) -> Path:
    """A checkpoint with the weights of a model and a random drafter in place of its MTP block."""
    dspark = dataclasses.replace(SMALL, **changes)
    ratios = (*DSPARK.ratios, *[0] * (dspark.n_blocks or 0))
    config = dataclasses.replace(DSPARK, dspark=dspark, compress_ratios=ratios)
    network = make_network(config, seed=5, dtype=torch.bfloat16)
    own = dict(load_model(Checkpoint(model)).named_parameters())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("mtp."):
                parameter.copy_(own[name])
    save_model(network, folder)
    return folder


@pytest.fixture
def drafter(model: Path, tmp_path: Path) -> Path:
    trained = trained_for(model, tmp_path / "trained")
    write_drafter(Checkpoint(trained), Checkpoint(model), tmp_path / "drafter")
    return tmp_path / "drafter"


def test_a_joined_drafter_has_its_own_blocks_and_the_model_keeps_all_of_its_own(
    model: Path, drafter: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    joined = load_model(open_with_drafter(model, drafter))
    assert len(joined.mtp_blocks) == 1 and joined.dspark is not None
    assert len(joined.dspark.blocks) == 2
    own = dict(load_model(Checkpoint(model)).named_parameters())
    theirs = dict(load_model(Checkpoint(tmp_path / "trained")).named_parameters())
    for name, parameter in joined.named_parameters():
        drafts = name.startswith("drafter.")
        source = theirs["mtp." + name.removeprefix("drafter.")] if drafts else own[name]
        assert torch.equal(parameter, source), name
    assert joined.dspark.blocks[0].ffn.experts.w1.weight.shape[-2] == 32
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_a_drafter_beside_drafts_as_it_did_in_place(
    model: Path, drafter: Path, tmp_path: Path
) -> None:
    """On whatever runs these networks; both read the same taps."""
    tokens = list(range(3, 40))
    blocks = []
    for network in (load_network(tmp_path / "trained"), load_network(model, drafter=drafter)):
        state = network.new_state()
        made = network.predict(tokens, [36], [37], [state])
        assert network.block_drafter is not None
        network.block_drafter.read(made.streams, [37], [state])
        blocks.append(network.block_drafter.draft([5], [state]))
    assert network.num_mtp_blocks == 1
    assert np.array_equal(blocks[0].logits, blocks[1].logits)
    assert np.array_equal(blocks[0].hidden, blocks[1].hidden)


def test_head_and_mtp_blocks_read_the_same_with_a_drafter_beside(
    model: Path, drafter: Path
) -> None:
    tokens = list(range(3, 40))
    read = []
    for asked in ("none", drafter):
        network = load_network(model, drafter=asked)
        state = network.new_state()
        made = network.predict(tokens, [36], [37], [state])
        streams = network.draft(made.streams, [*tokens[1:], 9], [37], [state])
        read.append((network.draft_logits(streams), network.logits(made.streams)))
    for plain, beside in zip(*read, strict=True):
        assert np.array_equal(plain, beside)


def test_it_is_found_in_the_folder_of_its_model(model: Path, drafter: Path) -> None:
    assert find_drafter(model) is None
    drafter.rename(model / "drafter")
    found = find_drafter(model)
    assert found is not None and found.folder == model / "drafter"
    assert open_with_drafter(model).config.dspark is not None
    assert open_with_drafter(model, "none").config.dspark is None
    assert Checkpoint(model).config.dspark is None


def changed(folder: Path, **changes: Any) -> None:
    """Change the config of a model's folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 96),
        ("vocab_size", 80),
        ("head_dim", 64),
        ("hc_mult", 2),
        ("sliding_window", 32),
        ("rope_theta", 500.0),
        ("compress_ratios", [0, 4, 0, 4, 0]),
    ],
)
def test_a_drafter_of_another_shape_is_refused_by_name(
    model: Path, drafter: Path, key: str, value: Any
) -> None:
    changed(drafter, **{key: value})
    with pytest.raises(ValueError, match=rf"drafter\.safetensors was made for .* {key} = "):
        open_with_drafter(model, drafter)


def test_a_drafter_for_other_weights_is_refused(model: Path, drafter: Path) -> None:
    save_model(make_network(WITHOUT, seed=9, dtype=torch.bfloat16), model, overwrite=True)
    with pytest.raises(ValueError, match=r"trained for a model whose weights have the digest"):
        open_with_drafter(model, drafter)


def test_missing_and_unknown_tensors_are_refused(model: Path, drafter: Path) -> None:
    path = drafter / DRAFTER_NAME
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    without = {name: t for name, t in tensors.items() if "confidence" not in name}
    save_file(without, path, metadata)
    with pytest.raises(ValueError, match=r"lacks tensor 'drafter\.1\.confidence_head\.proj\.wei"):
        open_with_drafter(model, drafter)
    save_file(tensors | {"mtp.2.norm.weight": torch.ones(64)}, path, metadata)
    with pytest.raises(ValueError, match=r"drafter\.safetensors holds tensor 'mtp\.2\.norm\.wei"):
        open_with_drafter(model, drafter)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="metadata lacks sounding_drafter"):
        open_with_drafter(model, drafter)
    path.unlink()
    with pytest.raises(ValueError, match=r"holds no drafter \(drafter\.safetensors\)"):
        open_with_drafter(model, drafter)


def test_a_folder_that_describes_no_drafter_is_refused(model: Path, drafter: Path) -> None:
    (drafter / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(ValueError, match="no dspark_"):
        open_drafter(drafter)


def test_only_the_drafter_of_this_network_is_written(model: Path, tmp_path: Path) -> None:
    trained = trained_for(model, tmp_path / "trained")
    save_model(make_network(WITHOUT, seed=9, dtype=torch.bfloat16), tmp_path / "other")
    with pytest.raises(ValueError, match=r"trained with other weights than those of"):
        write_drafter(Checkpoint(trained), Checkpoint(tmp_path / "other"), tmp_path / "out")
    with pytest.raises(ValueError, match="has no DSpark drafter"):
        write_drafter(Checkpoint(model), Checkpoint(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_takes_the_place_of_a_drafter_in_the_checkpoint(
    model: Path, drafter: Path, tmp_path: Path
) -> None:
    """Then the checkpoint's own is not read, and there is no MTP block either."""
    trained = trained_for(model, tmp_path / "again", markov_rank=2)
    write_drafter(Checkpoint(trained), Checkpoint(trained), tmp_path / "second")
    found = find_drafter(trained, tmp_path / "second")
    joined = Checkpoint(trained, found)
    assert joined.config.num_mtp_layers == 0 and joined.config.dspark_prefix == "drafter."
    assert not any(name.startswith("mtp.") for name in joined.sources)


def test_keys_of_a_drafter_beside_survive_the_config(model: Path, drafter: Path) -> None:
    config: ModelConfig = open_drafter(drafter).config
    assert parse_config(config.to_dict()) == config
    assert "dspark_beside" not in DSPARK.to_dict()
    zero = dataclasses.replace(SMALL, noise_token_id=0)  # which equals False
    assert parse_config(dataclasses.replace(config, dspark=zero).to_dict()).dspark == zero
    assert config.dspark == dataclasses.replace(SMALL, beside=True)


def test_the_command_writes_one_and_generates_with_it(model: Path, tmp_path: Path) -> None:
    trained = trained_for(model, tmp_path / "trained")
    made = tmp_path / "made"
    result = CliRunner().invoke(cli, ["drafter", str(trained), str(made), "--model", str(model)])
    assert result.exit_code == 0, result.output
    assert "2 blocks, 4 tokens at once" in result.output
    command = ["generate", str(model), "--tokens", "3,4,5,6", "--max-tokens", "12"]
    plain = CliRunner().invoke(cli, command)
    drafted = CliRunner().invoke(cli, [*command, "--drafter", str(made)])
    assert drafted.exit_code == 0, drafted.output
    assert drafted.stdout == plain.stdout


def test_a_run_trains_a_drafter_beside_the_mtp_block() -> None:
    config = dataclasses.replace(WITHOUT, dspark=dataclasses.replace(SMALL, beside=True))
    network: Transformer = make_network(config)
    names = [name for name, _ in network.named_parameters()]
    assert any(name.startswith("mtp.0.e_proj") for name in names)
    assert any(name.startswith("drafter.1.markov_head") for name in names)
