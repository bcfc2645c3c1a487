"""State that all routes share: the engine, its tokenizer, options, metrics, turn memory."""

import asyncio
import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.requests import Request

from sounding.completion.completer import Completer
from sounding.completion.gap import Gap
from sounding.completion.prompt import CompletionSettings as CompletionSettings
from sounding.engine.adapters import NamesAdapters
from sounding.engine.requests import EngineLike, GenerationRequest, Usage
from sounding.runtime import give_back_free_memory
from sounding.server.exchange import EngineRun, Exchange, Ledger, begin
from sounding.server.http.errors import Refusal, context_overflow
from sounding.server.http.wire import (
    MOST_VALUES,
    Json,
    Model,
    Wire,
    read_json,
    read_model,
)
from sounding.server.options import ServerOptions
from sounding.server.prometheus import Metrics
from sounding.server.trace import Trace
from sounding.server.turn_memory import TurnMemory
from sounding.server.work_threads import Threads
from sounding.text.fim_format import FimFormat
from sounding.text.tokenizer import Tokenizer, TooManyTokens
from sounding.weights.adapters import Adapter

log = logging.getLogger(__name__)

_SMALL_BYTES = 1 << 14  # a body up to this size is parsed at once, without a thread
_LARGE_BYTES = 1 << 18  # a body above this size counts as large work (work_threads.py)
_TIDY_SECONDS = 1.0  # after a large request
_is_streamed: ContextVar[bool] = ContextVar("is_streamed", default=True)
_RATE_SECONDS = 10  # window over which tokens per second are measured


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Facts about the model that clients ask for; empty where they were not provided."""

    architecture: str = "deepseek4"
    parameters: int = 0
    size_bytes: int = 0
    quantization: str = ""
    converses: bool = True
    """Whether it has learned to answer, rather than only to continue text."""
    trained_context_tokens: int | None = None
    """Tokens of the longest sequences that it was trained on; the engine accepts longer ones."""


class Service:
    """The state of one server."""

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: Tokenizer,
        settings: ServerOptions,
        card: ModelCard | None = None,
        fim_format: FimFormat | None = None,
        *,
        adapters: NamesAdapters | None = None,
        read_adapter: Callable[[Path], Adapter] | None = None,
    ) -> None:
        """`fim_format` is that of the model's folder, by default the usual one. `adapters` are the
        engine's; with `read_adapter`, for `Adapters` of this process, clients may load others.

        Raises OSError when the trace folder cannot be written to."""
        self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
        self.card = card or ModelCard()
        self.adapters, self.read_adapter = adapters, read_adapter
        self._fim_format = fim_format or FimFormat()
        self.memory = TurnMemory(tokenizer)
        self.ledger = Ledger()
        self.threads = Threads()
        self.metrics = Metrics(engine.stats, self.ledger)
        self.trace = Trace(settings.trace) if settings.trace is not None else None
        if self.trace is not None:
            self.ledger.on_end.append(self.trace.keep)
        self.began = time.time()
        self.in_flight = 0
        self.draining = False
        self._tidying: asyncio.TimerHandle | None = None
        self._generated: deque[float] = deque(maxlen=100_000)
        self.ledger.on_token.append(lambda run: self._generated.append(run.token_times[-1]))

    @cached_property
    def completer(self) -> Completer | None:
        """Completions at a cursor; None for a vocabulary without FIM tokens."""
        try:
            return Completer(self.tokenizer, self._fim_format, _no_generation)
        except ValueError:
            return None

    def warm(self) -> None:
        """Build the tables that the first completion would otherwise wait for."""
        if self.completer is not None:
            self.completer.plan(Gap("x = ", "\n\n"), "line", CompletionSettings())

    def require_completer(self) -> Completer:
        """Completions at a cursor. Raises Refusal for a model without FIM tokens."""
        if self.completer is None:
            raise Refusal(
                400,
                "this model's vocabulary has no FIM tokens; send a prompt without a suffix",
                param="suffix",
            )
        return self.completer

    @property
    def model_name(self) -> str:
        names = self.settings.model_names
        return next((name for name in names if name != "*"), "sounding")

    @property
    def listed_names(self) -> list[str]:
        """What clients are told they may ask for: the model's names, and one per adapter."""
        names = [name for name in self.settings.model_names if name != "*"] or [self.model_name]
        loaded = [] if self.adapters is None else self.adapters.names
        return [*names, *(f"{self.model_name}:{adapter}" for adapter in loaded)]

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that a model's name asks for, as in `nano:mine`; None: the model alone."""
        before, colon, adapter = (name or "").removesuffix(":latest").partition(":")
        named = before in self.settings.model_names or "*" in self.settings.model_names
        if not colon or not named or self.adapters is None:
            return None
        return adapter if adapter in self.adapters.names else None

    def require_model(self, name: str | None) -> str:
        """The model name to report. Raises Refusal for a model that is not served."""
        names = self.settings.model_names
        if name is None or not name.strip():  # llama.vim sends "" if none is set
            return self.model_name
        # Ollama's clients append a tag to the name.
        if name in names or name.removesuffix(":latest") in names or self.adapter_of(name):
            return name
        if "*" in names:
            return name
        known = ", ".join(map(repr, self.listed_names))
        raise Refusal(
            404,
            f"model {name[:80]!r} is not served; use {known} (serve --name adds names, --adapter "
            "adapters)",
            param="model",
            code="model_not_found",
        )

    def raw_prompt(self, text: str) -> list[int]:
        """Tokenize a raw prompt, with a BOS before it.

        Raises Refusal for a prompt longer than the context.
        """
        context, bos = self.engine.context_tokens, self.tokenizer.bos_id
        try:
            ids = self.tokenizer.encode(text, most_tokens=context)
        except TooManyTokens as error:
            raise context_overflow(error.num_tokens, context, "prompt", exact=error.exact) from None
        except ValueError as error:
            raise Refusal(400, f"prompt: {error}", param="prompt", code="invalid_value") from None
        return ids if ids[:1] == [bos] else [bos, *ids]

    def give_back_memory(self) -> None:
        """Schedule the release of memory that a large request left with the allocator.

        To be called in the event loop's thread. The engine does the same when idle, but a refused
        request never reaches it, and one of 32 MB may leave a gigabyte behind.
        """
        if self._tidying is None:
            loop = asyncio.get_running_loop()
            self._tidying = loop.call_later(_TIDY_SECONDS, self._tidy, loop)

    def _tidy(self, loop: asyncio.AbstractEventLoop) -> None:
        self._tidying = None
        loop.run_in_executor(None, _give_back_memory)

    async def read(self, request: Request, model: type[Model]) -> Model:
        """Parse the request's body. Raises Refusal."""
        body = await request.body()
        most = MOST_VALUES + 2 * self.engine.context_tokens  # prompts may be token ids

        def checked() -> Model:
            return read_model(model, read_json(body, most))

        if len(body) > _LARGE_BYTES:
            self.threads.call_large()
        small = len(body) < _SMALL_BYTES
        asked = checked() if small else await self.threads.run(checked)
        _is_streamed.set(isinstance(asked, Wire) and asked.streamed)
        return asked

    async def begin(
        self, route: str, requests: Sequence[GenerationRequest], model: str | None
    ) -> Exchange:
        """Submit requests to the engine, with the adapter that the model's name asks for.

        Raises Refusal if it rejects them.
        """
        adapter, streamed = self.adapter_of(model), _is_streamed.get()
        requests = [
            replace(request, adapter=adapter or request.adapter, streamed=streamed)
            for request in requests
        ]
        if any(request.grammar is not None for request in requests):
            self.threads.call_large()
        return await begin(self.engine, self.ledger, self.threads, route, requests)

    def status(self) -> Json:
        """A snapshot of the server, for `/status` and the page."""
        stats = self.engine.stats()
        runs = list(self.ledger.running.values())
        return {
            "model": self.model_name,
            "converses": self.card.converses,
            "context_tokens": self.engine.context_tokens,
            "trained_context_tokens": self.card.trained_context_tokens,
            "uptime_seconds": time.time() - self.began,
            "draining": self.draining,
            "tokens_per_second": self._rate(),
            "engine": {name: value for name, value in asdict(stats).items()},
            "cache": {
                "prompt_tokens": stats.prompt_tokens,
                "hit_tokens": stats.hit_tokens,
                "hit_rate": stats.hit_tokens / stats.prompt_tokens if stats.prompt_tokens else 0.0,
                "prefixes": stats.cached_prefixes,
                "state_bytes": stats.state_bytes,
                "state_limit_bytes": stats.state_limit_bytes,
                "stored_prefixes": stats.stored_prefixes,
                "stored_bytes": stats.stored_bytes,
            },
            "sessions": [_session(run) for run in (*runs, *self.ledger.recent)],
        }

    def _rate(self) -> float:
        since = time.monotonic() - _RATE_SECONDS
        while self._generated and self._generated[0] < since:
            self._generated.popleft()
        return len(self._generated) / _RATE_SECONDS

    def close(self) -> None:
        if self.trace is not None:
            self.trace.close()


def _give_back_memory() -> None:
    gc.collect()  # an error that crossed threads forms a cycle with frames that hold a text
    give_back_free_memory()


def _no_generation(requests: Sequence[object]) -> Iterator[tuple[int, bool]]:
    raise NotImplementedError("the server's completer only builds prompts; the engine generates")


def owner_of(request: Request) -> str:
    """The owner of a request (the name of its key), "" without keys."""
    return str(request.scope.get("sounding.owner", ""))


def _session(run: EngineRun) -> dict[str, Any]:
    usage = run.finished.usage if run.finished is not None else Usage()
    return {
        "id": run.run_id,
        "route": run.route,
        "state": run.state,
        "priority": run.request.priority.name.lower(),
        "prompt_tokens": len(run.request.prompt),
        "completion_tokens": len(run.tokens),
        "max_tokens": run.request.max_tokens,
        "hit_tokens": usage.hit_tokens,
        "miss_reason": usage.miss_reason,
        "first_token_seconds": run.first_token_seconds,
        "seconds": run.seconds,
    }
