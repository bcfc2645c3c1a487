"""The MTP block drafts as if it had read all of the text at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sounding.engine.drafting.acceptance import AcceptanceRate, Plan
from sounding.engine.drafting.pending_streams import PendingStreams
from sounding.engine.drafting.prompt_lookup import TokenHistory
from sounding.engine.drafting.selection import DraftSelection
from sounding.engine.engine import Engine
from sounding.engine.sequence import ActiveSequence
from sounding.engine.settings import EngineSettings
from sounding.model.state import growing_state
from sounding.model.transformer import Transformer
from tests.engine.running import CONFIG, collect, prompt, request
from tests.networks import NetworkMaker, as_network

EXACT = EngineSettings(exact_splits=True)


@pytest.fixture
def network(network_maker: NetworkMaker) -> Transformer:
    return network_maker(CONFIG, dtype=torch.float64)


def mtp_drafts(network: Transformer, tokens: Sequence[int], count: int) -> list[int]:
    """What the MTP block drafts, having read everything anew."""
    block: Any = network.mtp[0]
    state = growing_state(CONFIG)
    with torch.inference_mode():
        streams = network(torch.tensor(tokens[:-1])).streams
        following = torch.tensor(tokens[1:])
        drafts: list[int] = []
        for _ in range(count):
            streams = network.draft(streams, following, None, [state]).streams[-1:]
            drafts.append(int(network.logits(block.hidden(streams))[0].argmax()))
            following = torch.tensor(drafts[-1:])
    return drafts


def test_the_block_reads_along(network: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its drafts are those of a block that has read all of the text at once: after prompts in
    pieces, rejected drafts, in company, and where a state was found in the cache."""
    monkeypatch.setattr(TokenHistory, "find", lambda *given: [])
    monkeypatch.setattr(AcceptanceRate, "plan", lambda self, most, prices: Plan(most - 1, 9.0))
    made: list[tuple[list[int], list[int]]] = []
    propose = DraftSelection.propose

    def recorded(self: DraftSelection, sequences: Sequence[ActiveSequence]) -> None:
        propose(self, sequences)
        made.extend((list(each.tokens), list(each.drafts)) for each in sequences)

    monkeypatch.setattr(DraftSelection, "propose", recorded)
    engine = Engine(as_network(network), settings=EXACT, stop_tokens=())
    tokens = prompt(150)
    for _ in range(2):
        streams = [engine.submit(request(given, max_tokens=7)) for given in (tokens, prompt(9))]
        (reply, end), _ = (collect(stream) for stream in streams)
        tokens = [*tokens, *reply, *prompt(5)]
    assert end.usage.hit_tokens == 156
    engine.close()
    assert len(made) > 20
    for tokens, drafts in made:
        assert drafts == mtp_drafts(network, tokens, 3)[: len(drafts)]
    assert {len(drafts) for _, drafts in made} == {0, 1, 2, 3}


def test_pending_rows_are_read_in_order_and_once() -> None:
    rows = np.arange(10.0).reshape(10, 1, 1)
    pending = PendingStreams(rows[:4])
    pending.append(rows[4:5])
    assert np.array_equal(pending.take(3), rows[:3])
    pending.append(rows[5:10])
    assert len(pending) == 7
    pending.keep(5)
    assert np.array_equal(pending.take(5), rows[5:10])
    assert len(pending) == 0
