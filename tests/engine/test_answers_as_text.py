"""What a reader is shown: text as it becomes certain, stop strings and logprobs."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sounding.engine.engine import Engine
from sounding.engine.exact import splits_are_exact
from sounding.engine.requests import Finished, GenerationRequest, TokenEvent
from sounding.engine.sampling import SamplingParams
from sounding.model.reference_network import ReferenceNetwork
from sounding.ops.cpu import library
from tests.engine.running import (
    CONFIG,
    prompt,
    small_vocabulary_config,
    tokens_of,
)
from tests.engine.scripted import small_tokenizer
from tests.networks import NetworkMaker, as_network, kernel_network, make_network

TOKENIZER = small_tokenizer()
NETWORK = make_network(small_vocabulary_config(TOKENIZER.num_tokens))


class Script:
    """Allows just these tokens, one after the other."""

    def __init__(self, text: str) -> None:
        self.left = TOKENIZER.encode(text)

    def allowed(self) -> list[int]:
        return self.left[:1]

    def push(self, token: int, logprob: float) -> bool:
        del self.left[0]
        return bool(self.left)


def told(text: str, *stop: str, max_tokens: int = 99) -> tuple[list[str], Finished]:
    engine = Engine(as_network(NETWORK), TOKENIZER)
    asked = GenerationRequest(
        prompt=[5], answer=Script(text), stop=stop, max_tokens=max_tokens, guard_repetition=False
    )
    *events, last = engine.submit(asked)
    engine.close()
    assert isinstance(last, Finished)
    return [event.text for event in events], last


@pytest.mark.parametrize("text", ["def f(x):\n    return 'é函😀'\n", "  ", "\n\n"])
def test_pieces_are_the_text(text: str) -> None:
    pieces, end = told(text)
    assert "".join(pieces) + end.text == text
    assert (end.reason, end.stop) == ("stop", None)


def test_stop_strings_over_tokens() -> None:
    pieces, end = told("return x\n\ndef g(): pass", "\n\nde")
    assert "".join(pieces) + end.text == "return x"
    assert (end.reason, end.stop) == ("stop", "\n\nde")
    pieces, end = told("return x\n\nd", "\n\nde")
    assert "".join(pieces) == "return x"
    assert (end.text, end.reason, end.stop) == ("\n\nd", "stop", None)


def test_a_character_cut_short_is_said_to_be() -> None:
    tokens = len(TOKENIZER.encode("😀"))
    assert tokens > 1
    pieces, end = told("😀", max_tokens=tokens - 1)
    assert ("".join(pieces), end.text, end.reason) == ("", "�", "length")


def test_logprobs_are_those_of_the_network(network_maker: NetworkMaker) -> None:
    """Before temperature and limits."""
    network = network_maker(CONFIG, dtype=torch.float64)
    engine = Engine(as_network(network), stop_tokens=())
    asked = GenerationRequest(
        prompt=prompt(9),
        params=SamplingParams(temperature=2.0, top_k=3, seed=1),
        max_tokens=5,
        top_logprobs=2,
    )
    *events, _ = engine.submit(asked)
    engine.close()
    tokens = torch.tensor([*prompt(9), *tokens_of(events)])
    with torch.no_grad():
        logits = network.logits(network.hidden(network(tokens).streams)).float()
    expected = logits.double().log_softmax(-1)[8:]
    for event, row in zip(events, expected, strict=False):
        assert isinstance(event, TokenEvent) and event.logprob is not None
        best = row.topk(2)
        assert abs(event.logprob - float(row[event.token])) < 1e-9
        assert [token for token, _ in event.top_logprobs] == best.indices.tolist()
        assert abs(event.top_logprobs[1][1] - float(best.values[1])) < 1e-9


@pytest.mark.skipif(library() is None, reason="no native kernels were built")
def test_whether_splits_are_exact_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is what happens: no where rounding follows the shape, yes where it does not."""
    model = make_network(CONFIG, dtype=torch.bfloat16)
    assert not splits_are_exact(ReferenceNetwork(model))
    network = kernel_network(model)
    assert splits_are_exact(network)
    predict = network.predict

    def rounded(tokens: Sequence[int], *given: Any) -> Any:
        made = predict(tokens, *given)
        made.streams[0, 0, 0] ^= len(tokens) > 20
        return made

    monkeypatch.setattr(network, "predict", rounded)
    assert not splits_are_exact(network)
