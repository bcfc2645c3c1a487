"""Weights that give no numbers: a request ends with an error that says so, and others go on.

Catches: a token chosen among NaNs, NaN as a log-probability, one damaged step ending the engine.
"""

import logging

import pytest

from sounding.engine.batch import Batch, Request
from sounding.engine.engine import Engine
from sounding.engine.requests import DamagedModel, EngineFault
from sounding.engine.sampling import SamplingParams
from sounding.engine.scoring import split_logits, token_logprobs
from sounding.model.transformer import Transformer
from tests.engine.running import CONFIG, collect, prompt, request
from tests.networks import as_network, make_network


class Whatever:
    def allowed(self) -> None:
        return None

    def push(self, token: int, logprob: float) -> bool:
        return True


def damaged(value: float = float("nan")) -> Transformer:
    network = make_network(CONFIG)
    network.get_parameter("norm.weight").data.fill_(value)
    return network


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_request_ends_with_an_error(
    value: float, temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(as_network(damaged(value)))
    asked = request(20, temperature=temperature, top_logprobs=2, max_tokens=3)
    for _ in range(2):  # the engine lives on
        tokens, end = collect(engine.submit(asked))
        assert (tokens, end.reason) == ([], "error")
        assert "the model is damaged" in (end.error or "")
    engine.close()
    messages = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(messages) == 2 and all(record.exc_info is None for record in messages)


def test_one_weight_of_the_head_is_enough() -> None:
    """Its token may not even be the one that would be chosen."""
    network = make_network(CONFIG)
    network.get_parameter("head.weight").data[7, 3] = float("nan")
    engine = Engine(as_network(network))
    assert collect(engine.submit(request(20, max_tokens=3)))[1].reason == "error"
    engine.close()


def test_a_batch_and_measurements_raise_it() -> None:
    network = as_network(damaged())
    engine = Engine(network)
    with pytest.raises(EngineFault, match="the model is damaged"):
        asked = Request(prompt=prompt(5), answer=Whatever(), params=SamplingParams(), max_tokens=2)
        list(Batch(engine)([asked]))
    engine.close()
    with pytest.raises(DamagedModel, match="not finite"):
        token_logprobs(network, [prompt(5)])
    with pytest.raises(DamagedModel, match="sequence 0"):
        split_logits(network, [prompt(5)], [[5]])
