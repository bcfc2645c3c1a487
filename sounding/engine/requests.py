"""What goes into the engine and what comes out: small typed messages, nothing but plain values.

A server, an editor or a test talks to the engine in these alone. `submit` may be called from any
thread; events of one request arrive in order and end with exactly one `Finished`.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol, runtime_checkable

from sounding.engine.faults import DamagedModel, EngineFault
from sounding.engine.sampling import SamplingParams

__all__ = [
    "Answer",
    "DamagedModel",
    "EngineFault",
    "EngineLike",
    "EngineStats",
    "Event",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "Grammar",
    "Overloaded",
    "Priority",
    "Stream",
    "TokenEvent",
    "Usage",
]

FinishReason = Literal[
    "stop",  # the model's own end, or a stop string
    "length",  # the budget of tokens
    "time",  # the budget of seconds
    "repetition",  # the same few tokens over and over
    "cancelled",
    "error",
]


class Priority(IntEnum):
    """Who goes first when not all can: lower values before higher ones."""

    KEYSTROKE = 0  # a completion somebody waits for while typing
    CHAT = 1
    BATCH = 2  # evaluation, long agents in the background


@runtime_checkable
class Answer(Protocol):
    """A continuation in the making: it is told each token, and rules over the next."""

    def allowed(self) -> Collection[int] | None:
        """The only tokens that may come next; None when any may."""

    def push(self, token: int, logprob: float) -> bool:
        """Take the next token, and the natural logarithm of the probability that the network gave
        it; whether more are wanted."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What the generated text must be, in one of the forms that the constraint library reads."""

    kind: Literal["json_object", "json_schema", "lark"]
    text: str = ""
    """The schema as JSON, or the grammar."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A prompt to continue."""

    prompt: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = 256
    """0 only reads the prompt, so that it is found in the cache when it comes again."""
    max_seconds: float | None = None
    """Wall clock from `submit` on."""
    stop: Sequence[str] = ()
    """Strings that end the text; they are not part of it."""
    top_logprobs: int | None = None
    """None: no logprobs; n: the chosen token's and the n likeliest."""
    grammar: Grammar | None = None
    answer: Answer | None = None
    """A rule over tokens in process, such as where a completion of code ends."""
    priority: Priority = Priority.CHAT
    speculate: bool = True
    markup: bool = True
    """Whether the answer may hold the tokens of thoughts and tool calls, as those of conversations
    do. Tokens that structure a prompt are never part of an answer."""
    guard_repetition: bool = True
    """End an answer that goes round in circles."""


@dataclass(frozen=True)
class TokenEvent:
    """One token, and the text that became certain with it (often more or less than its own)."""

    token: int
    text: str
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a request took. Seconds are wall clock."""

    prompt_tokens: int = 0
    hit_tokens: int = 0
    """Prompt tokens whose state was found in a prefix cache and not computed."""
    miss_reason: str = ""
    """Why the hit was not longer: "" when only the last token was computed."""
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a request."""

    reason: FinishReason
    text: str = ""
    """Text that was held back until now (a beginning of a stop string that was none)."""
    stop: str | None = None
    """The stop string that was found."""
    error: str | None = None
    """Why, where the reason is "error"; that of a `DamagedModel` among others."""
    usage: Usage = field(default_factory=Usage)


Event = TokenEvent | Finished


@runtime_checkable
class Stream(Protocol):
    """The events of one request, for one reader, in a thread or in an event loop."""

    request_id: str

    def __iter__(self) -> Iterator[Event]: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def cancel(self) -> None:
        """End it within one step; `Finished("cancelled")` still arrives. Safe to call twice."""


class Overloaded(RuntimeError):
    """The queue is full: try again later."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A moment of the engine, for metrics and the page."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    state_bytes: int = 0
    """Reserved for running sequences."""
    state_limit_bytes: int = 0
    prefix_bytes: int = 0
    """Held by the prefix cache in memory."""
    prefix_limit_bytes: int = 0
    cached_prefixes: int = 0
    stored_prefixes: int = 0
    stored_bytes: int = 0
    expert_load: Sequence[Sequence[int]] = ()
    """Choices of each expert since start: a row per layer."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class EngineLike(Protocol):
    """What the server needs of an engine; tests put a script in its place."""

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""

    def submit(self, request: GenerationRequest) -> Stream:
        """Begin a request.

        Raises ValueError for a prompt that is empty, has unknown tokens or with `max_tokens` more
        than `context_tokens`, and for a grammar that cannot be compiled; Overloaded when too many
        wait.
        """

    def stats(self) -> EngineStats:
        """Counters and sizes now."""

    def close(self, grace_seconds: float = 0.0) -> None:
        """Refuse new requests, let running ones end within the grace, cancel the rest, stop."""
