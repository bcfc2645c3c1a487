"""Training a DSpark drafter: the blocks of decoding, a frozen network, drafts that get better."""

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional

from sounding.cli import cli
from sounding.config import DSparkConfig
from sounding.data.token_batch import TokenBatch
from sounding.model.from_checkpoint import load_model, save_model
from sounding.model.state import growing_state
from sounding.model.transformer import Transformer
from sounding.ops.loss import IGNORED
from sounding.train.drafter import DrafterObjective, block_sums
from sounding.train.initial_weights import load_initial_weights
from sounding.train.initialise import initialise
from sounding.train.metrics import read_metrics
from sounding.train.run_config import RunConfig
from sounding.train.runs import change, copying, parse_run
from sounding.train.supervised import Supervised
from sounding.weights.checkpoint import Checkpoint
from tests.networks import DSPARK

LENGTHS = [1, 23, 40]
PLAIN = dataclasses.replace(DSPARK, quantization_config=None)
RUN = dataclasses.replace(copying(), model=PLAIN)


def network(run: RunConfig = RUN, scale: float = 0.3) -> Transformer:
    model = Transformer(run.model)
    initialise(model, dataclasses.replace(run.model, initializer_range=scale), seed=1)
    return model


def batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(64, (n,), generator=generator) for n in LENGTHS]
    targets = [functional.pad(tokens[1:], (0, 1), value=IGNORED) for tokens in sequences]
    targets[2][10:14] = IGNORED  # as for a prompt
    return TokenBatch(torch.cat(sequences), torch.cat(targets), LENGTHS)


@torch.no_grad()
def test_blocks_are_those_of_decoding_and_end_where_targets_do() -> None:
    model, given = network(), batch()
    dspark = model.dspark
    assert dspark is not None
    distance, rows = torch.zeros(4), torch.zeros(4)
    agreement = torch.zeros(4)
    for tokens, targets in zip(
        given.tokens.split(LENGTHS), given.targets.split(LENGTHS), strict=True
    ):
        whole = model(tokens)
        assert whole.taps is not None
        wanted = model.logits(model.hidden(whole.streams)).softmax(-1)
        for anchor in range(1, len(tokens)):
            state = growing_state(PLAIN)
            dspark.read(whole.taps[:anchor], [anchor], [state.blocks])
            block = model.draft_block(tokens[anchor : anchor + 1], [state])
            for row in range(4):
                at = anchor + row
                if at >= len(tokens) or targets[at] == IGNORED:
                    break
                bias = dspark.correct(block.hidden[:, row], tokens[at : at + 1]).bias
                drafted = (block.logits[:, row] + bias)[0].softmax(-1)
                distance[row] += (drafted - wanted[at]).abs().sum()
                agreement[row] += drafted.argmax() == wanted[at].argmax()
                rows[row] += 1
    counts = DrafterObjective(RUN).counts(given)
    assert [counts[f"row_{row}"] for row in range(4)] == rows.tolist()
    sums = block_sums(model, given)
    assert torch.allclose(sums["distance"], distance, rtol=1e-4)
    assert torch.equal(sums["agreement"], agreement)
    assert torch.allclose(sums["acceptance"], rows - distance / 2, rtol=1e-4)


def test_the_network_stays_as_it_is_and_drafts_get_better() -> None:
    """What is trained is all of the drafter but its expert biases."""
    model, given, objective = network(), batch(), DrafterObjective(RUN)
    trains = objective.plan(0).trains
    small = dict(network(scale=0.02).named_parameters())
    for name, parameter in model.named_parameters():
        if trains(name):
            parameter.data = small[name].data
        parameter.requires_grad_(parameter.requires_grad and trains(name))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = {name: p.clone() for name, p in model.named_parameters() if not trains(name)}
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    counts = objective.counts(given)
    first = objective.metrics(block_sums(model, given), counts, 0)
    for step in range(25):
        optimizer.zero_grad()
        objective.loss(objective.losses(model, given, step), counts, step).backward()
        if step == 0:
            unmoved = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert unmoved == []
        optimizer.step()
    last = objective.metrics(block_sums(model, given), counts, 0)
    assert last["tokens_per_block"] > 1.4 > 1.1 > first["tokens_per_block"]
    assert last["acceptance"][0] > 3 * first["acceptance"][0]
    assert last["loss"] < 0.7 * first["loss"]
    assert abs(last["confidence_bias"][0]) < 0.1 < abs(first["confidence_bias"][0])
    assert all(
        torch.equal(dict(model.named_parameters())[name], old) for name, old in before.items()
    )


def test_a_drafter_begins_anew_beside_the_weights_of_a_network(tmp_path: Path) -> None:
    """Also where the network has an MTP block, whose parameters have the drafter's names."""
    config = copying().model
    source = network(dataclasses.replace(RUN, model=dataclasses.replace(config)))
    save_model(source, tmp_path / "model")
    model = network(scale=0.1)
    drafter = {n: p.clone() for n, p in model.named_parameters() if n.startswith("mtp.")}
    load_initial_weights(model, tmp_path / "model")
    theirs: dict[str, Tensor] = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        expected = drafter[name] if name.startswith("mtp.") else theirs[name]
        assert torch.equal(parameter, expected), name
    save_model(model, tmp_path / "both")
    again = network(scale=0.2)
    load_initial_weights(again, tmp_path / "both")
    loaded = load_model(Checkpoint(tmp_path / "both"))
    for (name, one), other in zip(again.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_settings_give_a_run_a_drafter_and_the_command_trains_it(tmp_path: Path) -> None:
    settings = [
        *("model.dspark.block_size=3", "model.dspark.noise_token_id=63"),
        *("model.dspark.target_layer_ids=2,3", "model.dspark.markov_rank=4"),
        *("train.steps=2", "train.decay_steps=0", "train.warmup_steps=0"),
        *("sparsity.dense_steps=2", "data.batch_tokens=160"),
    ]
    run = change(copying(), settings)
    assert run.model.dspark == DSparkConfig(
        block_size=3, noise_token_id=63, target_layer_ids=(2, 3), markov_rank=4
    )
    assert parse_run(run.to_dict()) == run
    source = network(copying())
    save_model(source, tmp_path / "model")
    given = [part for setting in settings for part in ("--set", setting)]
    command = ["train", "copying", "--out", str(tmp_path / "run"), *given]
    begin = f"train.initial_weights={tmp_path / 'model'}"
    result = CliRunner().invoke(cli, [*command, "--set", begin])
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "run" / "checkpoints").glob("step-*2/model")
    trained = load_model(Checkpoint(folder))
    theirs = dict(source.named_parameters())
    for name, parameter in trained.named_parameters():
        if not name.startswith("mtp."):
            assert torch.equal(parameter, theirs[name]), name
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows[0]["acceptance"]) == 3 and rows[0]["phase"] == "drafter"


def test_a_drafter_of_which_settings_are_missing_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"is absent; to have it, set model\.dspark\.noise_token_id"
    ):
        change(copying(), ["model.dspark.block_size=3"])
    with pytest.raises(ValueError, match="unknown key 'blok_size'"):
        change(copying(), ["model.dspark.blok_size=3"])


def test_objectives_of_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="would change the network under its DSpark drafter"):
        Supervised(RUN)
    with pytest.raises(ValueError, match="no DSpark drafter to train"):
        DrafterObjective(copying())
