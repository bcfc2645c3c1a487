"""The comparison of a GGUF file in llama.cpp counts what is alike; our own network plays llama.cpp.

Catches: a difference that is counted as none, and rounding that is counted as a difference.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from sounding.bench.peers import llama_gguf
from sounding.bench.peers.llama_gguf import LlamaServer, compare
from sounding.engine.scoring import split_logits
from sounding.loading import LoadedModel, open_model


class Twin(LlamaServer):
    """Answers as llama.cpp would with the same weights; with the token of another rank, if told."""

    def __init__(self, model: LoadedModel, rank: int = 0, bias: float = 0.0) -> None:
        self._model, self._rank, self._bias = model, rank, bias

    def tokens(self, text: str) -> list[int]:
        return self._model.tokenizer.encode(text)

    def write(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        logits = split_logits(self._model.network, [prompt], [[len(prompt)]])[0][-1]
        scores = logits - np.logaddexp.reduce(logits)
        token = int(np.argsort(-logits)[self._rank])
        return [token], [float(scores[token]) + self._bias]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedModel]:
    monkeypatch.setattr(llama_gguf, "TEXTS", 3)
    monkeypatch.setattr(llama_gguf, "LINES", 2)
    opened = open_model("nano")
    yield opened
    opened.close()


def test_the_same_network_is_alike(model: LoadedModel) -> None:
    found = compare(model, Twin(model))
    assert (found.same_texts, found.texts) == (3, 3)
    assert (found.same_lines, found.lines, found.near_lines) == (2, 2, 0)
    assert np.abs(found.differences).max() < 1e-3
    assert "2 of 2 alike" in found.report()


def test_another_token_and_another_score_are_told(model: LoadedModel) -> None:
    found = compare(model, Twin(model, rank=5, bias=0.25))
    assert (found.same_lines, found.near_lines) == (0, 0)
    assert found.differences == pytest.approx([-0.25] * 2, abs=1e-3)
