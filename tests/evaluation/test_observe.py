"""What is observed of a network, against the network run by hand."""

import dataclasses

import pytest
import torch

from sounding.evaluation.observe import observe
from sounding.model.attention import Selection
from sounding.ops.index_recall import FIELDS
from sounding.presets import tiny
from tests.networks import make_network

CONFIG = dataclasses.replace(
    tiny(),
    quantization_config=None,
    expert_dtype=None,
    num_hidden_layers=3,
    compress_ratios=(0, 4, 4, 0, 0),
    num_nextn_predict_layers=2,
    index_topk=8,
)
TOKENS = torch.randint(512, (90,), generator=torch.Generator().manual_seed(1)).tolist()


def test_drafts_are_compared_with_the_networks_choice_for_the_same_place() -> None:
    network = make_network(CONFIG)
    with torch.no_grad():
        # Both blocks now often say what the network says: all read out nearly the same vector.
        network.get_parameter("head.weight")[3:] *= 0.01
    row = observe(network, TOKENS, [8])
    assert row["tokens"] == 90
    tokens = torch.tensor(TOKENS)
    streams = network(tokens).streams
    own = network.logits(network.hidden(streams)).argmax(-1).tolist()
    for depth in range(2):
        # One position at a time, so that no row can see a token that is not yet known.
        accepted = 0
        following = tokens[1 + depth :]
        drafted = network.draft(streams[: len(following)], following, depth=depth).streams
        block = network.mtp[depth]
        guesses = network.logits(block.hidden(drafted)).argmax(-1).tolist()  # type: ignore[operator]
        for t, guess in enumerate(guesses):
            accepted += guess == own[t + 1 + depth]
        assert row["drafts"][depth] == [accepted, 89 - depth]
        assert 0 < accepted < 89 - depth
        streams = drafted


def test_loads_are_choices_by_layer_and_block() -> None:
    network = make_network(CONFIG)
    row = observe(network, TOKENS, [8])
    picks = CONFIG.num_experts_per_tok
    assert [sum(load) for load in row["loads"]] == [90 * picks] * 3 + [89 * picks, 88 * picks]
    hashed = network.get_parameter("layers.0.ffn.gate.tid2eid")[torch.tensor(TOKENS)]
    assert row["loads"][0] == hashed.flatten().bincount(minlength=8).tolist()


def test_recall_is_there_for_csa_layers_and_changes_nothing() -> None:
    network = make_network(CONFIG)
    row = observe(network, TOKENS, [4, 8, 100])
    assert list(row["recall"]) == ["1", "2"]
    # Of 90 tokens, position t sees (t + 1) // 4 entries.
    queries = [sum((t + 1) // 4 > size for t in range(90)) for size in (4, 8, 100)]
    for sums in row["recall"].values():
        by_name = [dict(zip(FIELDS, values, strict=True)) for values in sums]
        assert [values["queries"] for values in by_name] == queries
        assert 0 < by_name[0]["covered"] <= by_name[0]["coverable"] < queries[0]
        assert by_name[1]["recall"] <= queries[1]
    plain = network(torch.tensor(TOKENS))
    watched = network(torch.tensor(TOKENS), selection=Selection(recall=(4,)))
    assert torch.equal(plain.streams, watched.streams)
    assert all(report.indexer.recall is None for report in plain.reports)


def test_a_token_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="512"):
        observe(make_network(CONFIG), [0, 512], [8])
