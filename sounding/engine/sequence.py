"""One request in the engine: its tokens, random generator, text and budgets.

Independent of the network and of other requests: it chooses tokens from rows of logits and sets
`finished` at its end. The scheduler decides when it moves, the runner moves it.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sounding.engine.adapters import LoadedAdapter
from sounding.engine.faults import DamagedModel, EngineFault
from sounding.engine.network import State, Streams
from sounding.engine.repetition import RepetitionGuard
from sounding.engine.requests import (
    Finished,
    FinishReason,
    GenerationRequest,
    TokenEvent,
    Usage,
)
from sounding.engine.sampling import Logits, log_softmax, logprob_of, logsumexp, sample
from sounding.engine.stop import StopStrings
from sounding.engine.stream import EventStream
from sounding.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sounding.engine.constrain import Constraint

_log = logging.getLogger(__name__)


class ActiveSequence:
    """A request between `submit` and `Finished`. Only the engine's thread touches it."""

    def __init__(
        self,
        request: GenerationRequest,
        stream: EventStream,
        *,
        serial: int,
        state_bytes: int,
        tokenizer: Tokenizer | None,
        constraint: "Constraint | None",
        stop_tokens: Collection[int],
        barred_tokens: Collection[int],
        repetition_tokens: int,
        adapter: LoadedAdapter | None = None,
    ) -> None:
        self.request, self.stream = request, stream
        self.adapter = adapter
        """Stays in use until the end, even if it is dropped meanwhile."""
        self.serial = serial
        """Order of arrival."""
        self.state_bytes = state_bytes
        self.tokens = list(request.prompt)
        """The prompt and the tokens chosen so far."""
        self.state: State | None = None
        """The network's state of it; None while it waits."""
        self.streams: Streams = np.empty(0)
        """Streams of the last token that was fed."""
        self.drafts: list[int] = []
        """Draft tokens after the last token."""
        self.checkpoints: set[int] = set()
        """Lengths at which its state is cached."""
        self.paused = False
        self.following = False
        """True if it waits for a prompt with a common prefix."""
        self.waited_steps = 0
        """Steps since it last moved."""
        self.usage = Usage(prompt_tokens=len(request.prompt))
        self.finished: FinishReason | None = None
        self.error: str | None = None
        self._constraint = constraint
        self._stop_tokens = frozenset(stop_tokens)
        self._barred_tokens = frozenset(barred_tokens) - self._stop_tokens
        self._generator = np.random.default_rng(request.params.seed)
        self._generator.random(request.drawn_tokens)  # one number for each
        self._text = None if tokenizer is None else tokenizer.stream()
        self._stops = StopStrings(request.stop)
        self._repetition = RepetitionGuard(repetition_tokens)
        self._submitted = time.monotonic()
        self._started = self._decoded = self._submitted

    # ----------------------------------------------------------------------------------------------
    # Its position

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def adapter_identity(self) -> str:
        """Identity of the adapter that its state depends on, "" for the base alone."""
        return "" if self.adapter is None else self.adapter.identity

    @property
    def fed(self) -> int:
        """Number of tokens in the network's state."""
        return 0 if self.state is None else self.state.length

    @property
    def prefilling(self) -> bool:
        return self.fed < self.prompt_length

    @property
    def answered(self) -> int:
        """Number of tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def unscored(self) -> Sequence[int]:
        """The part of the prompt whose state may come from the cache: it ends before the token
        whose logits score the first scored one."""
        scored_from = self.request.scored_from
        prompt = self.request.prompt
        return prompt if scored_from is None else prompt[: scored_from - 1]

    def count_rows(self, count: int) -> int:
        """Number of its next `count` tokens whose logits are needed, which are the last ones."""
        end = self.fed + count
        if self.answered:
            return count
        rows = int(end >= self.prompt_length)
        if self.request.scored_from is not None:
            rows = max(rows, min(count, end - self.request.scored_from + 1))
        return rows

    def urgency(self, patience_steps: int) -> int:
        """Its priority, lower is more urgent, less one per `patience_steps` waited steps: in the
        end it is the most urgent of all."""
        return self.request.priority - self.waited_steps // patience_steps

    @property
    def late(self) -> bool:
        """True if `max_seconds` have passed."""
        limit = self.request.max_seconds
        return limit is not None and time.monotonic() - self._submitted >= limit

    # ----------------------------------------------------------------------------------------------
    # Its events

    def started(self, hit_tokens: int, miss_reason: str) -> None:
        """Record its admission, with the number of prompt tokens that hit the cache."""
        self._started = time.monotonic()
        self.usage = replace(
            self.usage,
            hit_tokens=hit_tokens,
            miss_reason=miss_reason,
            queue_seconds=self._started - self._submitted,
        )

    def prefilled(self) -> None:
        """Record the end of prefill."""
        self._decoded = time.monotonic()

    def choose(self, logits: Logits) -> int | None:
        """Choose the next token and put its event on the stream; None at a stop token.

        Sets `finished` where it is the last one. Where a rule over tokens fails, only this request
        ends with an error.
        """
        try:
            return self._choose(logits)
        except EngineFault as fault:
            _log.error("request %s failed: %s", self.stream.request_id, fault)
            self.finished, self.error = "error", str(fault)
            return None
        except Exception as error:
            _log.exception("request %s failed", self.stream.request_id)
            self.finished, self.error = "error", str(error)
            return None

    def score(self, logits: NDArray[np.float32]) -> None:
        """Pass tokens of the prompt to its answer; `logits` are those of the last tokens fed."""
        answer, scored_from = self.request.answer, self.request.scored_from
        if answer is None or scored_from is None or not len(logits):
            return
        first = self.fed - len(logits) + 1
        tokens = self.request.prompt[first : self.fed + 1]
        logits = logits[: len(tokens)]
        if not np.isfinite(logits).all():
            self.finished, self.error = "error", str(DamagedModel(f"behind token {first}"))
            return
        logprobs = log_softmax(logits)[np.arange(len(tokens)), tokens].tolist()
        for token, logprob in zip(tokens, logprobs, strict=True):
            answer.push(token, logprob)

    def count_drafts(self, drafted: int, accepted: int) -> None:
        """Count draft tokens that were verified, and those of them that were accepted."""
        self.usage = replace(
            self.usage,
            drafted_tokens=self.usage.drafted_tokens + drafted,
            accepted_tokens=self.usage.accepted_tokens + accepted,
            drafts=self.usage.drafts.plus(drafted, accepted),
        )

    def cut_drafts(self) -> None:
        """Drop drafts that cannot be accepted: too many, or against the constraint."""
        left = self.request.max_tokens - self.answered - 1
        self.drafts = self.drafts[: max(0, left)]
        if self._constraint is not None:
            self.drafts = self.drafts[: self._constraint.count_valid(self.drafts)]

    def preview(self) -> Callable[[Logits], int]:
        """Chooses the next tokens from scores that are only expected, with the random numbers that
        `choose` will use, and without using them up: equal scores give equal tokens."""
        params, generator = self.request.params, copy.deepcopy(self._generator)
        return lambda logits: sample(logits, params, generator)

    def forced(self, most: int) -> list[int]:
        """Up to `most` tokens that the constraint forces next."""
        return [] if self._constraint is None else self._constraint.forced()[:most]

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Put the `Finished` event on the stream."""
        self.finished = reason
        self.error = error or self.error
        rest = ""
        if self._text is not None:
            rest = self._stops.feed(self._text.finish()) + self._stops.flush()
        now = time.monotonic()
        if self.state is None:
            self._started = self._decoded = now
        elif self.prefilling:
            self._decoded = now
        self.usage = replace(
            self.usage,
            completion_tokens=self.answered,
            queue_seconds=self._started - self._submitted,
            prefill_seconds=self._decoded - self._started,
            decode_seconds=now - self._decoded,
        )
        self.stream.put(
            Finished(
                reason=reason, text=rest, stop=self._stops.found, error=self.error, usage=self.usage
            )
        )

    # ----------------------------------------------------------------------------------------------

    def _choose(self, logits: Logits) -> int | None:
        if not math.isfinite(float(logits.sum())) and not np.isfinite(logits).all():
            raise DamagedModel(f"behind token {len(self.tokens)}")
        token = self._sample(self._allowed(logits))
        if token is None or token in self._stop_tokens:
            self.finished = "stop"
            return None
        self.tokens.append(token)
        self._decide(token, logits, self._tell(token, logits))
        return token

    def _sample(self, logits: Logits) -> int | None:
        """Sample a token that may be part of an answer; None if there is none.

        A barred token is drawn again without the barred ones: the same distribution as masking
        them beforehand, at no cost as long as none is drawn.
        """
        token = sample(logits, self.request.params, self._generator)
        if token not in self._barred_tokens:
            return token
        logits = logits.copy()
        logits[[other for other in self._barred_tokens if other < len(logits)]] = -np.inf
        if not np.isfinite(logits).any():
            return None
        return sample(logits, self.request.params, self._generator)

    def _allowed(self, logits: Logits) -> Logits:
        """Apply the logits processors: tokens that are not allowed are set to -inf."""
        answer = self.request.answer
        allowed = answer.allowed() if answer is not None else None
        if allowed is not None:
            kept = [token for token in allowed if token < len(logits)]
            masked = np.full_like(logits, -np.inf)
            masked[kept] = logits[kept]
            logits = masked
        if self._constraint is not None:
            logits = self._constraint.mask(logits)
        return logits

    def _tell(self, token: int, logits: Logits) -> float | None:
        """Put the token's event on the stream; returns its logprob, if one was asked for."""
        top = self.request.top_logprobs
        logprob, best = (None, []) if top is None else logprob_of(logits, token, top)
        text = ""
        if self._text is not None:
            text = self._stops.feed(self._text.push(token))
        self.stream.put(TokenEvent(token, text, logprob, best))
        return logprob

    def _decide(self, token: int, logits: Logits, logprob: float | None) -> None:
        """Set `finished` if a stopping criterion holds after this token."""
        answer, more = self.request.answer, True
        if answer is not None:
            if logprob is None:  # float32 is enough for a rule, and faster
                logprob = float(logits[token]) - logsumexp(logits)
            more = answer.push(token, logprob)
        if self._constraint is not None:
            more = self._constraint.push(token) and more
        if not more or self._stops.found is not None:
            self.finished = "stop"
        elif self.answered >= self.request.max_tokens:
            self.finished = "length"
        elif self._repetition.push(token) and self.request.guard_repetition:
            self.finished = "repetition"
