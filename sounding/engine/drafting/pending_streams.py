"""Streams that a drafting network has not read yet."""

import numpy as np

from sounding.engine.network import Streams


class PendingStreams:
    """Streams of the last tokens, concatenated only when they are read: appending to one array
    at every token would copy all of them each time."""

    def __init__(self, streams: Streams) -> None:
        self._parts, self._rows = [streams], len(streams)

    def __len__(self) -> int:
        return self._rows

    def append(self, streams: Streams) -> None:
        """Append the streams of the next tokens."""
        self._parts.append(streams)
        self._rows += len(streams)

    def take(self, count: int) -> Streams:
        """Remove and return the first `count` rows."""
        whole = np.concatenate(self._parts)
        self._parts, self._rows = [whole[count:]], len(whole) - count
        return whole[:count]

    def keep(self, count: int) -> None:
        """Drop all rows but the last `count`."""
        self.take(self._rows - count)
        self._parts = [part.copy() for part in self._parts]
