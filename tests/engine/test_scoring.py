"""Logits of given tokens under any split, and how likely a network finds the tokens."""

import numpy as np
import pytest
import torch

from sounding.engine.batch import Batch, Request
from sounding.engine.engine import Engine
from sounding.engine.network import Network
from sounding.engine.requests import GenerationRequest
from sounding.engine.sampling import SamplingParams
from sounding.engine.scoring import split_logits, token_logprobs
from sounding.engine.settings import EngineSettings
from sounding.presets import tiny
from tests.engine.running import CONFIG, prompt
from tests.networks import NetworkMaker, as_network, make_network


@pytest.fixture(scope="module", params=[torch.float64, torch.bfloat16])
def network(request: pytest.FixtureRequest) -> Network:
    return as_network(make_network(tiny(), dtype=request.param))


def test_pieces_of_each_sequence_may_differ(network: Network) -> None:
    tokens = (np.arange(2 * 140).reshape(2, 140) * 13 % 512).tolist()
    steps: list[int] = []
    ragged = split_logits(network, tokens, [[140], [3, 130, 7]], steps.append)
    whole = split_logits(network, tokens, [[140], [140]])
    assert steps == [143, 130, 7]
    np.testing.assert_allclose(ragged, whole, rtol=1.3e-6, atol=1e-5)


def test_logprobs_are_those_of_the_logits(network_maker: NetworkMaker) -> None:
    network = as_network(network_maker(CONFIG))
    given = [prompt(7), prompt(1), prompt(150)]
    found = token_logprobs(network, given)
    for sequence, logprobs in zip(given, found, strict=True):
        logits = torch.from_numpy(split_logits(network, [sequence], [[len(sequence)]])[0])
        expected = logits.double().log_softmax(-1)
        wanted = expected[
            torch.arange(len(sequence) - 1), torch.tensor(sequence[1:], dtype=torch.long)
        ]
        torch.testing.assert_close(
            torch.tensor(logprobs, dtype=torch.double), wanted, atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ValueError, match="no tokens"):
        token_logprobs(network, [[1], []])


class Scores:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, float]] = []

    def allowed(self) -> None:
        return None

    def push(self, token: int, logprob: float) -> bool:
        self.pairs.append((token, logprob))
        return True


@pytest.mark.parametrize("scored_from", [1, 16, 17, 149])
def test_the_end_of_a_prompt_is_scored(network_maker: NetworkMaker, scored_from: int) -> None:
    """In pieces, behind a cached beginning, beside others: as when all is read at once."""
    network = as_network(network_maker(CONFIG))
    first = prompt(150)
    others = [[*first[:140], *prompt(number, 5)] for number in (1, 10, 30)]
    given = [first, *others, first]
    scores = [Scores() for _ in given]
    batch = Batch(Engine(network, settings=EngineSettings(step_tokens=32), stop_tokens=[]))
    requests = [
        Request(
            prompt=tokens,
            answer=answer,
            params=SamplingParams(),
            max_tokens=0,
            scored_from=min(scored_from, len(tokens) - 1),
        )
        for tokens, answer in zip(given, scores, strict=True)
    ]
    ended = [number for number, over in batch(requests) if over]
    assert sorted(ended) == list(range(len(given)))
    for tokens, answer, logprobs in zip(given, scores, token_logprobs(network, given), strict=True):
        begin = min(scored_from, len(tokens) - 1)
        assert [token for token, _ in answer.pairs] == tokens[begin:]
        found = [logprob for _, logprob in answer.pairs]
        np.testing.assert_allclose(found, logprobs[begin - 1 :], rtol=1e-5, atol=1e-5)


def test_scored_tokens_come_before_generated_ones(network_maker: NetworkMaker) -> None:
    engine = Engine(as_network(network_maker(CONFIG)), stop_tokens=[])
    answer = Scores()
    request = Request(
        prompt=prompt(20), answer=answer, params=SamplingParams(), max_tokens=3, scored_from=18
    )
    assert list(Batch(engine)([request]))[-1] == (0, True)
    assert [token for token, _ in answer.pairs[:2]] == prompt(20)[18:]
    assert len(answer.pairs) == 5
    for wrong in (0, 20):
        with pytest.raises(ValueError, match=f"scored_from = {wrong} must be from 1 to 19"):
            engine.check(GenerationRequest(prompt=prompt(20), answer=answer, scored_from=wrong))


def test_of_a_scored_prompt_only_the_beginning_is_cached(network_maker: NetworkMaker) -> None:
    engine = Engine(as_network(network_maker(CONFIG)), stop_tokens=[])
    for seed in range(3):
        request = Request(
            prompt=[*prompt(20), *prompt(9, seed)],
            answer=Scores(),
            params=SamplingParams(),
            max_tokens=0,
            scored_from=20,
        )
        list(Batch(engine)([request]))
    assert engine.stats().cached_prefixes <= 1
