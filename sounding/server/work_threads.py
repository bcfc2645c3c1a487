"""Threads for work that would block the event loop: many for small work, two for large.

Large work takes seconds: parsing a body of megabytes, tokenizing a prompt, compiling a grammar.
Several such requests at once must leave threads to the others.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_LARGE_THREADS = 2

_is_large: ContextVar[bool] = ContextVar("is_large", default=False)


class Threads:
    """The thread pools of one server."""

    def __init__(self) -> None:
        self._large = ThreadPoolExecutor(_LARGE_THREADS, "large")

    def call_large(self) -> None:
        """Mark the current request as large: its further work goes to the small pool of threads."""
        _is_large.set(True)

    def begin(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Start a function in a thread."""
        executor = self._large if _is_large.get() else None
        return asyncio.get_running_loop().run_in_executor(executor, work)

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in a thread and return its result."""
        return await self.begin(work)
