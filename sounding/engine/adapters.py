"""The adapters that an engine has loaded, by name; any thread may load, drop and look up."""

import difflib
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from sounding.weights.adapters import Adapter


@runtime_checkable
class LoadsAdapters(Protocol):
    """The part of a `Network` that is needed here."""

    def load_adapter(self, adapter: Adapter) -> Any:
        """See `Network`."""


@runtime_checkable
class NamesAdapters(Protocol):
    """What a server needs to list adapters; `Adapters` also loads and drops them."""

    @property
    def names(self) -> Sequence[str]:
        """In the order in which they were loaded first."""


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter in the form of a network, immutable: sequences that use it keep it alive."""

    weights: Any
    """What the states of its sequences carry."""
    identity: str
    """A digest of its numbers: states computed with equal adapters are the same."""
    nbytes: int


class Adapters:
    """Loaded adapters by name."""

    def __init__(self, network: LoadsAdapters) -> None:
        self._network = network
        self._loaded: dict[str, LoadedAdapter] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """In the order in which they were loaded first."""
        with self._lock:
            return list(self._loaded)

    def load(self, name: str, adapter: Adapter) -> None:
        """Load an adapter, or replace the one of this name; requests under way keep the old one.

        Raises ValueError for an empty name and for deltas that fit no weight.
        """
        if not name:
            raise ValueError("an adapter needs a name to be asked for by")
        loaded = LoadedAdapter(
            self._network.load_adapter(adapter), _identity(adapter), adapter.nbytes
        )
        with self._lock:
            self._loaded[name] = loaded

    def drop(self, name: str) -> None:
        """Forget an adapter; requests under way end with it. Raises ValueError for no such name."""
        with self._lock:
            if name not in self._loaded:
                raise ValueError(self._unknown(name))
            del self._loaded[name]

    def find(self, name: str | None) -> LoadedAdapter | None:
        """The adapter of this name; None for None. Raises ValueError for no such name."""
        if name is None:
            return None
        with self._lock:
            if name not in self._loaded:
                raise ValueError(self._unknown(name))
            return self._loaded[name]

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._loaded, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(map(repr, self._loaded)) or "none"
        return f"no adapter {name[:80]!r} is loaded ({known}){hint}"


def _identity(adapter: Adapter) -> str:
    digest = hashlib.sha256(repr(adapter.factor).encode())
    for module in sorted(adapter.deltas):
        for part in adapter.deltas[module]:
            digest.update(f"{module} {part.dtype} {part.shape} ".encode())
            digest.update(part.array.tobytes())
    return digest.hexdigest()
