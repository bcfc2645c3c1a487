"""How a server behaves: plain values, checked once, set by the command line."""

from dataclasses import dataclass
from pathlib import Path

from sounding.server.http.keys import Keys
from sounding.text.markup import EFFORT_TEXTS


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Raises ValueError for values that mean nothing."""

    model_names: tuple[str, ...] = ("sounding",)
    """What clients may call the model, the name it is listed under first; "*" is any name."""
    thinking: bool = True
    """Whether a chat that does not say thinks before it answers."""
    effort_scheme: str = "april"
    """Which texts ask for effort: they belong to the checkpoint (docs/prompt.md)."""
    infill_context_tokens: int = 1024
    """Prompt and answer of a completion at the cursor; more is cut to the nearest lines."""
    max_requests: int = 256
    """Requests in progress, waiting ones included; more are told to come back."""
    max_body_bytes: int = 32 * 2**20
    body_seconds: float = 30.0
    """A request must have arrived in full after this."""
    max_seconds: float | None = None
    """An answer ends after this, with what it has so far."""
    keep_alive_seconds: float = 10.0
    """A stream never says nothing for longer."""
    keys: Keys | None = None
    cors_origins: tuple[str, ...] = ()
    """Web pages elsewhere that may use the server; "*" is any."""
    hosts: tuple[str, ...] | None = None
    """Names in the Host header that are answered, None: any. Keeps a web page from reaching a
    server on this machine under a name of its own."""
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
