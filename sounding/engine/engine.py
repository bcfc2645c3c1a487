"""The engine: one thread that owns a network and runs all requests in shared steps.

Every step is one ragged chunk: the next piece of a prompt, the last token and the drafts of every
answer. Other threads submit and cancel requests through one queue of small messages.
"""

import logging
import threading
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from sounding.engine.adapters import Adapters
from sounding.engine.memory_budget import StatePool
from sounding.engine.network import Network
from sounding.engine.requests import EngineStats, FinishReason, GenerationRequest, Overloaded
from sounding.engine.runner import Runner
from sounding.engine.scheduler import Move, Scheduler
from sounding.engine.sequence import ActiveSequence
from sounding.engine.settings import EngineSettings
from sounding.engine.stream import EventStream
from sounding.engine.token_checks import check_prompt
from sounding.native.expert_store import StepCancelled
from sounding.runtime import give_back_free_memory
from sounding.text.markup import EOS
from sounding.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # imported for the first grammar, and with a prefix store
    from sounding.engine.constrain import Constraints
    from sounding.engine.prefix.store import PrefixStore

_TIDY_SECONDS = 2.0  # without anything to do, before memory is tidied up
_log = logging.getLogger(__name__)


class _Message(NamedTuple):
    """A message from another thread about one request."""

    kind: Literal["submit", "cancel"]
    generation: ActiveSequence


class Engine:
    """A loaded model that serves many requests at once: an `EngineLike`."""

    def __init__(
        self,
        model: Network,
        tokenizer: Tokenizer | None = None,
        settings: EngineSettings | None = None,
        *,
        stop_tokens: Collection[int] | None = None,
        store: "PrefixStore | None" = None,
    ) -> None:
        """Starts the thread; `close` ends it, and closes the store.

        Without a tokenizer there is no text: stop strings and grammars are refused, and any token
        may be chosen. The default stop token is the config's EOS.
        """
        self._model, self._tokenizer = model, tokenizer
        settings = (settings or EngineSettings()).resolved(model.block_drafter)
        self._settings = settings
        eos = model.config.eos_token_id
        if eos is None and tokenizer is not None:
            eos = tokenizer.named.get(EOS)
        default = () if eos is None else (eos,)
        self._stop_tokens = frozenset(default if stop_tokens is None else stop_tokens)
        self.adapters = Adapters(model)
        """Loaded and dropped at any time, by any thread."""
        self._constraints: Constraints | None = None
        self._pool = StatePool(settings.state_limit_bytes)
        self._scheduler = Scheduler(settings, self._pool)
        num_tokens = model.config.vocab_size if tokenizer is None else tokenizer.num_tokens
        self._runner = Runner(model, settings, num_tokens, store)
        self._messages: deque[_Message] = deque()
        self._changed = threading.Condition()
        self._queued = 0  # submitted and not yet running
        self._submitted = 0
        self._closing = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # ----------------------------------------------------------------------------------------------
    # For other threads

    @property
    def context_tokens(self) -> int:
        """See `EngineLike`."""
        longest = self._model.config.max_position_embeddings
        return min(longest, self._settings.context_tokens or longest)

    @property
    def running(self) -> bool:
        """False after `close`, and where the engine has failed."""
        return self._thread.is_alive()

    def check(self, request: GenerationRequest) -> int:
        """Return the bytes of the request's state; raises ValueError where `submit` does, except
        for the grammar."""
        config, settings = self._model.config, self._settings
        if request.max_tokens < 0:
            raise ValueError(f"max_tokens = {request.max_tokens} must be at least 0")
        if not 0 <= request.drawn_tokens <= len(request.prompt):
            raise ValueError(
                f"drawn_tokens = {request.drawn_tokens} must be from 0 to the prompt's "
                f"{len(request.prompt)} tokens"
            )
        if request.max_seconds is not None and not request.max_seconds > 0:
            raise ValueError(f"max_seconds = {request.max_seconds} must be above 0")
        if request.top_logprobs is not None and not 0 <= request.top_logprobs <= config.vocab_size:
            raise ValueError(
                f"top_logprobs = {request.top_logprobs} must be from 0 to the vocabulary's size"
            )
        if self._tokenizer is None and (request.stop or request.grammar):
            raise ValueError("stop strings and grammars need a tokenizer, and there is none")
        self.adapters.find(request.adapter)
        if request.scored_from is not None and not 0 < request.scored_from < len(request.prompt):
            raise ValueError(
                f"scored_from = {request.scored_from} must be from 1 to {len(request.prompt) - 1}: "
                "a token of the prompt that others come before"
            )
        check_prompt(request.prompt, request.max_tokens, config, self.context_tokens)
        num_bytes = self._model.state_bytes(
            len(request.prompt) + request.max_tokens,
            rewind_tokens=settings.effective_draft_tokens,
        )
        if num_bytes > settings.state_limit_bytes:
            raise ValueError(
                f"{len(request.prompt)} prompt tokens and max_tokens = {request.max_tokens} need "
                f"{num_bytes} bytes of state where state_limit_bytes = "
                f"{settings.state_limit_bytes}; shorten the prompt or ask for fewer"
            )
        return num_bytes

    def _constraints_over(self, tokenizer: Tokenizer) -> "Constraints":
        """Made for the first grammar, since importing the grammar library takes a while."""
        from sounding.engine.constrain import Constraints

        with self._changed:
            if self._constraints is None:
                self._constraints = Constraints(tokenizer, self._stop_tokens)
            return self._constraints

    def submit(self, request: GenerationRequest) -> EventStream:
        """See `EngineLike`."""
        num_bytes = self.check(request)
        adapter = self.adapters.find(request.adapter)
        constraint = None
        if request.grammar is not None and self._tokenizer is not None:
            constraints = self._constraints_over(self._tokenizer)
            constraint = constraints.start(request.grammar, request.prompt)
        with self._changed:
            if self._closing:
                raise Overloaded("the engine is closing and takes no more requests")
            if self._queued >= self._settings.queue:
                raise Overloaded(f"{self._queued} requests are waiting already; try again later")
            serial = self._submitted + 1
            stream = EventStream(f"r{serial}", lambda: self._send(_Message("cancel", generation)))
            generation = ActiveSequence(
                request,
                stream,
                serial=serial,
                state_bytes=num_bytes,
                tokenizer=self._tokenizer,
                constraint=constraint,
                stop_tokens=self._stop_tokens,
                barred_tokens=self._barred_tokens(request),
                repetition_tokens=self._settings.repetition_tokens,
                adapter=adapter,
            )
            self._submitted = serial
            self._queued += 1
            self._messages.append(_Message("submit", generation))
            self._changed.notify()
        return stream

    def stats(self) -> EngineStats:
        """See `EngineLike`."""
        counters, store = self._runner.counters, self._runner.store
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._queued,
            steps=counters.steps,
            prompt_tokens=counters.prompt_tokens,
            hit_tokens=counters.hit_tokens,
            completion_tokens=counters.completion_tokens,
            drafted_tokens=counters.drafted_tokens,
            accepted_tokens=counters.accepted_tokens,
            drafts=dict(self._runner.drafting.counts),
            draft_costs=dict(self._runner.drafting.costs.draft_costs),
            row_cost=self._runner.drafting.costs.row_cost,
            state_bytes=self._pool.reserved_bytes,
            state_limit_bytes=self._pool.limit_bytes,
            prefix_bytes=self._runner.prefixes.nbytes,
            prefix_limit_bytes=self._runner.prefixes.limit_bytes,
            cached_prefixes=len(self._runner.prefixes),
            stored_prefixes=0 if store is None else len(store),
            stored_bytes=0 if store is None else store.nbytes,
            expert_load=counters.expert_load.tolist(),
            experts=None if self._model.store is None else self._model.store.stats(),
        )

    def close(self, grace_seconds: float = 0.0) -> None:
        """See `EngineLike`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace_seconds)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        if self._runner.store is not None:
            self._runner.store.close()

    def _barred_tokens(self, request: GenerationRequest) -> Collection[int]:
        if self._tokenizer is None:
            return ()
        return self._tokenizer.structural if request.markup else self._tokenizer.named.values()

    def _send(self, message: _Message) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    # ----------------------------------------------------------------------------------------------
    # The engine's own thread

    def _run(self) -> None:
        try:
            while self._receive():
                self._end_those([g for g in self._everyone() if g.late], "time")
                for generation in self._scheduler.admit():
                    self._start(generation)
                self._step()
            self._end_those(self._everyone(), "cancelled")
        except BaseException as error:  # a bug: no client may wait forever
            _log.exception("the engine has failed")
            with self._changed:
                self._closing = True
            self._receive()
            for generation in self._everyone():
                generation.finish("error", f"the engine has failed: {error}")

    def _everyone(self) -> list[ActiveSequence]:
        return [*self._scheduler.waiting, *self._scheduler.running]

    def _start(self, generation: ActiveSequence) -> None:
        with self._changed:
            self._queued -= 1
        try:
            self._runner.start(generation)
        except Exception as error:
            _log.exception("request %s could not be started", generation.stream.request_id)
            self._end_those([generation], "error", str(error))

    def _receive(self) -> bool:
        """Process messages, waiting for one while idle; return False to stop the loop."""
        with self._changed:
            needed = self._changed.wait_for(self._needed, _TIDY_SECONDS)
        if not needed:
            give_back_free_memory()
        with self._changed:
            self._changed.wait_for(self._needed)
            messages = list(self._messages)
            self._messages.clear()
        for kind, generation in messages:
            if kind == "submit":
                self._scheduler.add(generation)
            elif generation.finished is None:
                self._end_those([generation], "cancelled")
        return not self._stopping and not (self._closing and self._scheduler.idle)

    def _needed(self) -> bool:
        """True if there is work."""
        return bool(self._messages) or not self._scheduler.idle or self._closing

    def _step(self) -> None:
        moves = self._scheduler.plan()
        if not moves:
            return
        if self._model.store is not None:
            self._model.store.cancelled = lambda: self._all_cancelled(moves)
        try:
            self._runner.step(moves)
        except StepCancelled:
            for move in moves:
                move.generation.state = None  # it holds a part of the step
                self._end_those([move.generation], "cancelled")
            return
        except Exception as error:  # the states of all sequences in the step are undefined
            _log.exception("a step failed")
            self._end_those([move.generation for move in moves], "error", str(error))
            return
        for move in moves:
            reason = move.generation.finished
            if reason is not None:
                self._end_those([move.generation], reason)

    def _all_cancelled(self, moves: Sequence[Move]) -> bool:
        """True if nobody waits for the results of a step any more."""
        with self._changed:
            gone = {id(each.generation) for each in self._messages if each.kind == "cancel"}
            return self._stopping or all(id(move.generation) in gone for move in moves)

    def _end_those(
        self, generations: list[ActiveSequence], reason: FinishReason, error: str | None = None
    ) -> None:
        for generation in generations:
            waiting = generation in self._scheduler.waiting
            if reason != "error":
                self._runner.keep(generation)
            self._scheduler.remove(generation)
            generation.finish(reason, error)
            generation.state = None
            if waiting:
                with self._changed:
                    self._queued -= 1
