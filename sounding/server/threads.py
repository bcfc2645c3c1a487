"""Threads for what would keep the event loop waiting: many for small work, two for large.

What is large takes seconds: reading a body of megabytes, tokenizing a prompt, compiling a grammar.
Several such requests at once must not leave the others without a thread.
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
    """The threads of one server."""

    def __init__(self) -> None:
        self._large = ThreadPoolExecutor(_LARGE_THREADS, "large")

    def call_large(self) -> None:
        """From here on, what the current request needs a thread for is large."""
        _is_large.set(True)

    def begin(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Start work in a thread."""
        executor = self._large if _is_large.get() else None
        return asyncio.get_running_loop().run_in_executor(executor, work)

    async def run(self, work: Callable[[], T]) -> T:
        """Do work in a thread."""
        return await self.begin(work)
