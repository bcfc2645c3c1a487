"""Options of a server: plain values that the command line sets, checked once."""

from dataclasses import dataclass
from pathlib import Path

from sounding.server.http.keys import Keys
from sounding.text.markup import EFFORT_TEXTS


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Raises ValueError for invalid values."""

    model_names: tuple[str, ...] = ("sounding",)
    """Model names that requests may use; the first is the one listed. "*" accepts any name."""
    thinking: bool = True
    """Whether to think before answering where a chat request does not specify it."""
    effort_scheme: str = "april"
    """Which texts request effort; a property of the checkpoint (docs/prompt.md)."""
    infill_context_tokens: int = 1024
    """Prompt and answer of a completion at the cursor; longer text is cut to the nearest lines."""
    max_requests: int = 256
    """Maximum number of requests in progress or waiting; further ones get 429."""
    max_body_bytes: int = 32 * 2**20
    body_seconds: float = 30.0
    """Time limit for receiving a request in full."""
    max_seconds: float | None = None
    """Time limit of an answer, which then ends with the text so far."""
    keep_alive_seconds: float = 10.0
    """Interval of keep-alive frames in a silent stream."""
    keys: Keys | None = None
    cors_origins: tuple[str, ...] = ()
    """Origins of other web pages that may use the server; "*" allows any."""
    hosts: tuple[str, ...] | None = None
    """Accepted names in the Host header; None accepts any. Prevents DNS rebinding, by which a web
    page reaches a server on this machine under a name of its own."""
    trace: Path | None = None
    """A folder for one JSON file per request."""

    def __post_init__(self) -> None:
        if not self.model_names:
            raise ValueError("model_names is empty; a model has at least one name")
        if self.effort_scheme not in EFFORT_TEXTS:
            raise ValueError(
                f"effort_scheme = {self.effort_scheme!r} must be one of {list(EFFORT_TEXTS)}"
            )
        for name in ("max_requests", "max_body_bytes", "infill_context_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in ("body_seconds", "max_seconds", "keep_alive_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} = {value} must be above 0")
