"""Handle SIGINT (Ctrl-C) and SIGTERM while a run is training."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger(__name__)


class Interrupt:
    """Set by the first signal; the training loop reads it between steps."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the first signal in `requested`, and raise KeyboardInterrupt on the second.

        Only the main thread receives signals; in any other thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self.requested:
                raise KeyboardInterrupt
            _log.warning("stopping after this step; interrupt again to stop at once, unsaved")
            self.requested = True

        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
