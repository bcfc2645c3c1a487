"""Python as it is without `sounding[train]`, for processes that have this on their path."""

import sys
from typing import Any

HIDDEN = ("torch", "jaxtyping", "matplotlib")


class Hiding:
    """A finder that does not find these."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in HIDDEN:
            return None
        return self._finder.find_spec(name, path, target)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
