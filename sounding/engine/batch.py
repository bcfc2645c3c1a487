"""Many continuations at once: each step is one ragged chunk of every sequence still going.

A step over sixteen sequences costs little more than a step over one, because its time goes into
reading the weights. Equal prompts are read once and forked. Evaluation and alternatives run on
this; an engine with a scheduler can take its place behind the same call.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sounding.engine.generate import PREFILL_TOKENS, checked_prompt
from sounding.engine.sampling import SamplingParams, sample
from sounding.model.state import SequenceState, growing_state
from sounding.model.transformer import Transformer


@runtime_checkable
class Answer(Protocol):
    """A continuation in the making: it is told each token, and rules over the next."""

    def allowed(self) -> Collection[int] | None:
        """The only tokens that may come next; None when any may."""

    def push(self, token: int) -> bool:
        """Take the next token; whether more are wanted."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to continue."""

    prompt: Sequence[int]
    answer: Answer
    params: SamplingParams
    max_tokens: int


@runtime_checkable
class Generate(Protocol):
    """What continues prompts: an engine, or a script in a test."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        """Feed each request's answer; yield its number after every token, and whether it is over.

        It is over when the answer wants no more, after `max_tokens`, and at the end of the text,
        whose token the answer is not told.
        """


class Batch:
    """`Generate` on one network, `width` sequences at a time."""

    def __init__(
        self,
        model: Transformer,
        *,
        stop_tokens: Collection[int] = (),
        num_tokens: int | None = None,
        width: int = 16,
    ) -> None:
        """Ids from `num_tokens` on are never chosen, as in `generate`."""
        if width < 1:
            raise ValueError(f"width = {width} must be at least 1")
        self._model, self._stop, self._width = model, frozenset(stop_tokens), width
        self._num_tokens = num_tokens

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, bool]]:
        """See `Generate`. Raises ValueError as `generate` does, before anything is computed.

        Rounding depends on which sequences share a step, so where two tokens are as good as
        equally likely the choice may; the same requests give the same answers.
        """
        for request in requests:
            self._check(request)
        waiting = deque(enumerate(requests))
        running: list[_Sequence] = []
        while waiting or running:
            room = min(self._width - len(running), len(waiting))
            fresh = [waiting.popleft() for _ in range(room)]
            running += self._start(fresh)
            logits = self._model.logits(
                self._model.hidden(torch.cat([sequence.streams for sequence in running]))
            ).cpu()
            going = []
            for sequence, row in zip(running, logits, strict=True):
                more = sequence.choose(row[: self._num_tokens], self._stop)
                yield sequence.index, not more
                if more:
                    going.append(sequence)
            running = going
            if running:
                tokens = torch.tensor([sequence.last for sequence in running])
                self._advance(running, tokens, [1] * len(running))

    def _check(self, request: Request) -> None:
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens = {request.max_tokens} must be at least 1")
        checked_prompt(request.prompt, request.max_tokens, self._model.config)

    def _start(self, fresh: Sequence[tuple[int, Request]]) -> list["_Sequence"]:
        """Read prompts, every distinct one once, as many together as make a full chunk."""
        by_prompt: dict[tuple[int, ...], list[_Sequence]] = {}
        for index, request in fresh:
            sequences = by_prompt.setdefault(tuple(request.prompt), [])
            sequences.append(_Sequence(index, request, growing_state(self._model.config)))
        firsts = [sequences[0] for sequences in by_prompt.values()]
        while firsts:
            size, count = 0, 0
            while count < len(firsts) and (not count or size <= PREFILL_TOKENS):
                size += len(firsts[count].request.prompt)
                count += size <= PREFILL_TOKENS or not count
            self._read(firsts[:count])
            firsts = firsts[count:]
        for first, *others in by_prompt.values():
            for other in others:
                other.state, other.streams = first.state.fork(), first.streams
        return [sequence for sequences in by_prompt.values() for sequence in sequences]

    def _read(self, sequences: Sequence["_Sequence"]) -> None:
        """One chunk of several prompts, or one long prompt in several chunks."""
        if len(sequences) > 1:
            tokens = torch.cat([torch.tensor(list(s.request.prompt)) for s in sequences])
            self._advance(sequences, tokens, [len(s.request.prompt) for s in sequences])
        else:
            for piece in torch.tensor(list(sequences[0].request.prompt)).split(PREFILL_TOKENS):
                self._advance(sequences, piece, [len(piece)])

    def _advance(
        self, sequences: Sequence["_Sequence"], tokens: Tensor, lengths: Sequence[int]
    ) -> None:
        device = next(self._model.parameters()).device
        states = [sequence.state for sequence in sequences]
        streams = self._model(tokens.to(device), list(lengths), states).streams
        for sequence, rows in zip(sequences, streams.split(list(lengths)), strict=True):
            sequence.streams = rows[-1:]


class _Sequence:
    """A request on its way: its state, the streams of its last token, its own randomness."""

    def __init__(self, index: int, request: Request, state: SequenceState) -> None:
        self.index, self.request, self.state = index, request, state
        self.streams = torch.empty(0)
        self.last = 0
        self._count = 0
        self._generator = torch.Generator().manual_seed(request.params.seed)

    def choose(self, logits: Float[Tensor, " v"], stop: Collection[int]) -> bool:
        """Choose the next token and tell the answer; whether the sequence goes on."""
        allowed = self.request.answer.allowed()
        if allowed is not None:
            kept = [token for token in allowed if token < len(logits)]
            masked = torch.full_like(logits, float("-inf"))
            masked[kept] = logits[kept]
            logits = masked
        self.last = sample(logits, self.request.params, self._generator)
        if self.last in stop:
            return False
        self._count += 1
        return self.request.answer.push(self.last) and self._count < self.request.max_tokens
