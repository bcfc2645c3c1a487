"""What tests of the engine share: a small network, requests, and a gate before its forwards."""

import dataclasses
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sounding.config import ModelConfig
from sounding.engine.requests import Event, Finished, GenerationRequest, Stream, TokenEvent
from sounding.engine.sampling import SamplingParams, sample
from sounding.model.transformer import Transformer
from sounding.train.runs import copying

CONFIG = copying().model  # a window of 16, groups of 4 and 128


class Gate:
    """Holds the engine before its forwards, and remembers what each was given."""

    def __init__(self, network: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lengths: list[list[int]] = []
        self.open = threading.Event()
        self._steps = threading.Semaphore(0)
        self._forward = network.forward
        monkeypatch.setattr(network, "forward", self._gated)

    def _gated(self, tokens: Any, lengths: Any = None, *given: Any, **named: Any) -> Any:
        if not self.open.is_set():
            self._steps.acquire()
        self.lengths.append(list(lengths or [len(tokens)]))
        return self._forward(tokens, lengths, *given, **named)

    def let(self, steps: int) -> None:
        """Let so many forwards happen."""
        self._steps.release(steps)

    def release(self) -> None:
        """Let all happen."""
        self.open.set()
        self._steps.release(1)


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return torch.randint(2, CONFIG.vocab_size, (length,), generator=generator).tolist()


def request(given: int | Sequence[int], *, seed: int = 0, **how: Any) -> GenerationRequest:
    """For a prompt, or a random one of this length."""
    tokens = prompt(given, seed) if isinstance(given, int) else given
    params = SamplingParams(temperature=how.pop("temperature", 0.0), top_p=0.9, seed=seed)
    return GenerationRequest(prompt=tokens, params=params, **how)


def collect(stream: Stream) -> tuple[list[int], Finished]:
    *events, last = stream
    assert isinstance(last, Finished)
    return tokens_of(events), last


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [event.token for event in events if isinstance(event, TokenEvent)]


def small_vocabulary_config(num_tokens: int) -> ModelConfig:
    """The same network for a vocabulary of text; some ids have no token."""
    return dataclasses.replace(CONFIG, vocab_size=num_tokens + 8)


def naive(
    network: Transformer, asked: GenerationRequest, stop_tokens: Collection[int] = (1,)
) -> Iterator[int]:
    """The whole sequence anew for every token."""
    tokens = list(asked.prompt)
    generator = np.random.default_rng(asked.params.seed)
    for _ in range(asked.max_tokens):
        with torch.no_grad():
            hidden = network.hidden(network(torch.tensor(tokens)).streams[-1:])
            token = sample(network.logits(hidden)[0].float().numpy(), asked.params, generator)
        if token in stop_tokens:
            return
        tokens.append(token)
        yield token
