"""The parts of pytest that a test file may use in the sandbox, where pytest is not installed.

These are `raises`, `approx` and `mark.parametrize`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


@contextmanager
def raises(
    wanted: type[BaseException] | tuple[type[BaseException], ...], match: str = ""
) -> Iterator[SimpleNamespace]:
    """Check that a block raises; the object it yields has the exception as `value`."""
    caught = SimpleNamespace(value=None)
    try:
        yield caught
    except wanted as error:
        caught.value, caught.type = error, type(error)
        assert re.search(match, str(error)), f"{str(error)!r} does not match {match!r}"
    else:
        raise AssertionError(f"did not raise {wanted}")


class approx:
    """Equals any number, or sequence of numbers, within the tolerance."""

    def __init__(self, expected: Any, rel: float = 1e-6, abs: float = 1e-12) -> None:
        self._expected, self._rel, self._abs = expected, rel, abs

    def __eq__(self, value: object) -> bool:
        if isinstance(self._expected, list | tuple):
            assert isinstance(value, list | tuple)
            pairs = zip(value, self._expected, strict=False)
            return len(value) == len(self._expected) and all(self._near(a, b) for a, b in pairs)
        return self._near(value, self._expected)

    def _near(self, value: Any, expected: Any) -> bool:
        return abs(value - expected) <= max(self._abs, self._rel * abs(expected))

    def __repr__(self) -> str:
        return f"approx({self._expected!r})"


def _parametrize(
    names: str | Sequence[str], cases: Sequence[Any], ids: Any = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = [dict(zip(keys, case if len(keys) > 1 else [case], strict=True)) for case in cases]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        outer: list[dict[str, Any]] = getattr(function, "cases", [{}])
        function.cases = [before | row for row in rows for before in outer]  # type: ignore[attr-defined]
        return function

    return decorate


mark = SimpleNamespace(parametrize=_parametrize)
