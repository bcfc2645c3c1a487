"""Messages between the server and a replica: a packed request there, batches of items back.

A request may carry a `StoppingRule`, an object of the server's process. The replica runs a copy of
it, and reports each token that it was given, so that the server's own advances alike. Rules refer
to tables of the vocabulary that every process has; those are sent by name.
"""

import io
import pickle
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from sounding.completion.healing import Healer
from sounding.engine.requests import Event, GenerationRequest, StoppingRule
from sounding.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Accepted:
    """The replica's engine has taken the request; the first item of an answer."""

    replica: str


@dataclass(frozen=True)
class Refused:
    """The replica's engine has refused the request; the only item."""

    kind: Literal["value", "overloaded"]
    message: str


@dataclass(frozen=True)
class Pushed:
    """A token that the request's rule was given, with its natural logarithm of probability."""

    token: int
    logprob: float


Item = Accepted | Refused | Pushed | Event

_TOKENIZER, _HEALER = "tokenizer", "healer"


def pack(request: GenerationRequest) -> bytes:
    """The request as bytes, without the vocabulary's tables."""
    buffer = io.BytesIO()
    _Packer(buffer, pickle.HIGHEST_PROTOCOL).dump(request)
    return buffer.getvalue()


def unpack(
    packed: bytes, tokenizer: Tokenizer | None, healer: Callable[[], Healer]
) -> GenerationRequest:
    """The request, with this process's tables in it; `healer` is called where it is needed.

    Only for bytes of `pack` from a process of the same cluster: unpickling can run any code.
    """
    return _Unpacker(packed, tokenizer, healer).load()


class _Packer(pickle.Pickler):
    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, Tokenizer):
            return _TOKENIZER
        return _HEALER if isinstance(obj, Healer) else None


class _Unpacker(pickle.Unpickler):
    def __init__(
        self, packed: bytes, tokenizer: Tokenizer | None, healer: Callable[[], Healer]
    ) -> None:
        super().__init__(io.BytesIO(packed))
        self._tokenizer, self._healer = tokenizer, healer

    def persistent_load(self, pid: Any) -> Any:
        return self._tokenizer if pid == _TOKENIZER else self._healer()


class ReportedRule:
    """A `StoppingRule` that notes what it was given."""

    def __init__(self, rule: StoppingRule, pushed: "list[Item]") -> None:
        """`pushed` is appended to, from the engine's thread."""
        self._rule, self._pushed = rule, pushed

    def allowed(self) -> Collection[int] | None:
        return self._rule.allowed()

    def push(self, token: int, logprob: float) -> bool:
        more = self._rule.push(token, logprob)
        self._pushed.append(Pushed(token, logprob))
        return more
