"""The engine's interface: requests, events and statistics as small typed values.

Server, editor and tests use the engine through these alone. `submit` may be called from any
thread; events of one request arrive in order and end with exactly one `Finished`.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from sounding.engine.faults import DamagedModel, EngineFault
from sounding.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from sounding.native.expert_store import ExpertStats

__all__ = [
    "DamagedModel",
    "DraftCounts",
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
    "StoppingRule",
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
    """Scheduling priority of a request: lower values run first."""

    KEYSTROKE = 0  # a completion while the user is typing
    CHAT = 1
    BATCH = 2  # evaluation, long agents in the background


@runtime_checkable
class StoppingRule(Protocol):
    """A logits processor and stopping criterion over one answer, fed token by token."""

    def allowed(self) -> Collection[int] | None:
        """The only tokens that may come next; None when any may."""

    def push(self, token: int, logprob: float) -> bool:
        """Take the next token and the natural logarithm of its probability under the network;
        return True to continue."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A grammar for the generated text, in a format of the constraint library."""

    kind: Literal["json_object", "json_schema", "lark"]
    text: str = ""
    """The schema as JSON, or the grammar."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A prompt to continue."""

    prompt: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = 256
    """0 only prefills the prompt, so that a later request hits the prefix cache."""
    max_seconds: float | None = None
    """Wall clock from `submit` on."""
    stop: Sequence[str] = ()
    """Strings that end the text; they are not part of it."""
    top_logprobs: int | None = None
    """None: no logprobs; n: those of the chosen token and of the n likeliest."""
    scored_from: int | None = None
    """Score the end of the prompt: `answer` is given its tokens from this one on, each with its
    log probability, before those that are generated. Such a prompt is not cached beyond it."""
    grammar: Grammar | None = None
    answer: StoppingRule | None = None
    """A rule over tokens, in process, such as where a code completion ends."""
    adapter: str | None = None
    """Name of a loaded adapter; None: the base alone."""
    priority: Priority = Priority.CHAT
    speculate: bool = True
    markup: bool = True
    """True if the answer may contain the tokens of thoughts and tool calls, as in conversations.
    Tokens that structure a prompt are never part of an answer."""
    guard_repetition: bool = True
    """End an answer that repeats itself."""
    streamed: bool = True
    """Whether the reader passes events on as they come. An answer that is sent in one piece may be
    begun anew where it is interrupted (`RemoteEngine`)."""
    drawn_tokens: int = 0
    """How many tokens at the end of the prompt were sampled for this answer by an earlier request
    of the same seed: sampling goes on with the random numbers behind theirs, so that an answer that
    was interrupted ends as it would have."""


@dataclass(frozen=True)
class TokenEvent:
    """One token, and the text it completed (often more or less than the token's own)."""

    token: int
    text: str
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class DraftCounts:
    """Drafts that were verified and accepted, by their place among those of one step."""

    verified: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    def plus(self, drafted: int, accepted: int) -> "DraftCounts":
        """With a step that verified `drafted` drafts, of which the first `accepted` were kept."""
        return self + DraftCounts((1,) * drafted, (1,) * accepted + (0,) * (drafted - accepted))

    def __add__(self, other: "DraftCounts") -> "DraftCounts":
        return DraftCounts(
            tuple(a + b for a, b in zip_longest(self.verified, other.verified, fillvalue=0)),
            tuple(a + b for a, b in zip_longest(self.accepted, other.accepted, fillvalue=0)),
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts and times of a request. Seconds are wall clock."""

    prompt_tokens: int = 0
    hit_tokens: int = 0
    """Prompt tokens that hit the prefix cache and were not computed."""
    miss_reason: str = ""
    """Why the hit was not longer: "" when only the last token was computed."""
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafts: DraftCounts = DraftCounts()
    """The same by position."""
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a request."""

    reason: FinishReason
    text: str = ""
    """Text held back until now (it could have begun a stop string)."""
    stop: str | None = None
    """The stop string that was found."""
    error: str | None = None
    """The cause, if `reason` is "error", such as the message of a `DamagedModel`."""
    lost: bool = False
    """True where it is an error because the process that generated has ended: what has arrived is
    right, and a request for the rest (see `drawn_tokens`) may be sent."""
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
    """A snapshot of the engine, for metrics and the web page."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafts: Mapping[str, DraftCounts] = field(default_factory=dict)
    """The same by drafter and position."""
    draft_costs: Mapping[str, float] = field(default_factory=dict)
    """Of making a draft, or a block of them, by drafter, in steps of one sequence."""
    row_cost: float = 0.0
    """Of verifying one more draft, in the same unit."""
    state_bytes: int = 0
    """Bytes reserved for running sequences."""
    state_limit_bytes: int = 0
    prefix_bytes: int = 0
    """Bytes of the prefix cache in memory."""
    prefix_limit_bytes: int = 0
    cached_prefixes: int = 0
    stored_prefixes: int = 0
    stored_bytes: int = 0
    expert_load: Sequence[Sequence[int]] = ()
    """Choices of each expert since start: a row per layer."""
    experts: "ExpertStats | None" = None
    """Hits, misses and reads of experts, if some are on disk."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class EngineLike(Protocol):
    """The interface that the server needs of an engine; tests substitute a script."""

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""

    def check(self, request: GenerationRequest) -> object:
        """Raise ValueError where `submit` does, except for the grammar."""

    def submit(self, request: GenerationRequest) -> Stream:
        """Begin a request.

        Raises ValueError for a prompt that is empty, has unknown tokens or with `max_tokens` more
        than `context_tokens`, for a `scored_from` outside of it, and for a grammar that cannot be
        compiled; Overloaded when too many wait.
        """

    def stats(self) -> EngineStats:
        """Counters and sizes now."""

    def close(self, grace_seconds: float = 0.0) -> None:
        """Refuse new requests, wait for running ones for `grace_seconds`, cancel the rest, stop."""
