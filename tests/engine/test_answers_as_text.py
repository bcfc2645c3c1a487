"""What a reader is shown: text as it becomes certain, stop strings, logprobs; and sessions."""

import pytest
import torch

from sounding.engine.engine import Engine
from sounding.engine.exact import splits_are_exact
from sounding.engine.requests import Finished, GenerationRequest, TokenEvent
from sounding.engine.sampling import SamplingParams
from sounding.engine.session import Session
from sounding.engine.settings import EngineSettings
from sounding.model.transformer import Transformer
from tests.conftest import NetworkMaker, make_network
from tests.engine.running import (
    CONFIG,
    collect,
    prompt,
    request,
    small_vocabulary_config,
    tokens_of,
)
from tests.engine.scripted import small_tokenizer

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
    engine = Engine(NETWORK, TOKENIZER)
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
    engine = Engine(network, stop_tokens=())
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
        logits = network.logits(network.hidden(network(tokens).streams))
    expected = logits.log_softmax(-1)[8:]
    for event, row in zip(events, expected, strict=False):
        assert isinstance(event, TokenEvent) and event.logprob is not None
        best = row.topk(2)
        assert abs(event.logprob - float(row[event.token])) < 1e-9
        assert [token for token, _ in event.top_logprobs] == best.indices.tolist()
        assert abs(event.top_logprobs[1][1] - float(best.values[1])) < 1e-9


def test_a_session_is_a_timeline(network_maker: NetworkMaker) -> None:
    network = network_maker(CONFIG, dtype=torch.float64)
    engine = Engine(network, settings=EngineSettings(exact_splits=True), stop_tokens=())
    session = Session(engine)
    assert session.sync(prompt(200)) == 0
    assert session.read().hit_tokens == 0
    *events, last = session.generate(SamplingParams(), max_tokens=6)
    assert isinstance(last, Finished) and last.usage.hit_tokens == 200
    assert session.tokens == [*prompt(200), *tokens_of(events)]
    twin = session.fork()
    session.rewind(203)
    again, _ = collect(engine.submit(request(session.tokens, max_tokens=3)))
    assert again == tokens_of(events)[3:]
    assert twin.sync([*twin.tokens, 9]) == 206
    assert twin.read().hit_tokens == 205  # but for the last one, which was never fed
    for event in session.generate(SamplingParams(), max_tokens=500):
        assert isinstance(event, TokenEvent)
        break
    assert len(session.tokens) == 204
    with pytest.raises(ValueError, match="cannot go back to 300 of 204 tokens"):
        session.rewind(300)
    engine.close()
    assert engine.stats().state_bytes == 0


def test_whether_splits_are_exact_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is what happens: no where rounding follows the shape, yes where it does not."""
    assert not splits_are_exact(make_network(CONFIG, dtype=torch.float64))

    def rounded(self: Transformer, *given: object, **named: object) -> object:
        output = forward(self, *given, **named)  # type: ignore[arg-type]
        return output._replace(streams=(output.streams * 1e6).round() / 1e6)

    forward, logits = Transformer.forward, Transformer.logits
    monkeypatch.setattr(Transformer, "forward", rounded)
    monkeypatch.setattr(Transformer, "logits", lambda self, x: logits(self, x).float())
    assert splits_are_exact(make_network(CONFIG, dtype=torch.float64))
