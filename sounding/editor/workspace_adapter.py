"""The adapter of a workspace, `.sounding/adapter`: found, loaded, and loaded again when it changes.

So completions are better as soon as `sounding tune` has ended, without restarting anything.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sounding.engine.adapters import Adapters
from sounding.files import file_facts
from sounding.weights.adapters import ADAPTER_NAME, Adapter

_PLACE = Path(".sounding") / "adapter" / ADAPTER_NAME
_NAME = "workspace"


class WorkspaceAdapter:
    """The name of the adapter to complete with, looked up at every completion."""

    def __init__(
        self,
        adapters: Adapters,
        read: Callable[[Path], Adapter],
        roots: Callable[[], Sequence[str]],
        tell: Callable[[Exception], object],
    ) -> None:
        """`read` raises ValueError for an adapter of another model, `tell` shows that; `roots` are
        the workspace's folders, the first one that has an adapter decides."""
        self._adapters, self._read, self._roots, self._tell = adapters, read, roots, tell
        self._facts = ""
        self._name: str | None = None
        self._lock = threading.Lock()

    def __call__(self) -> str | None:
        """Its name among the engine's adapters; None without one, and for one that is refused."""
        with self._lock:
            found = [file for root in self._roots() if (file := Path(root) / _PLACE).is_file()]
            try:
                facts = f"{found[0]} {file_facts(found[:1])}" if found else ""
                if facts != self._facts:
                    self._facts, self._name = facts, None
                    if found:
                        self._adapters.load(_NAME, self._read(found[0]))
                        self._name = _NAME
            except (ValueError, OSError) as error:
                self._tell(error)
            return self._name
