"""Several datasets as one stream of rows, mixed by weights that may change during a run.

Every row is of one dataset, chosen by the row's number alone: fractional parts of multiples of the
golden ratio are even in every stretch, so each dataset gets its share of any few hundred rows and
not only in the long run. Each dataset is read repeatedly, in its own order.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

from sounding.data.data_rows import DataRows, Row
from sounding.data.shares import Share, require_mixture
from sounding.data.token_batch import StreamState

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


class Mixture:
    """A stream of the rows of several datasets, whose order depends on weights and seed alone.

    A state has each dataset's settings and position, so a mixture can resume with other weights,
    or with one dataset more or less.
    """

    def __init__(
        self, parts: Sequence[tuple[Share, DataRows]], *, seed: int, span_rows: int | None = None
    ) -> None:
        """`span_rows` is how many rows it takes from the first weights to the final ones."""
        self._shares = [share for share, _ in parts]
        require_mixture(self._shares)
        if not parts:
            raise ValueError("a mixture needs at least one dataset")
        moves = any(share.final_weight is not None for share in self._shares)
        if moves and (span_rows is None or span_rows < 1):
            raise ValueError(f"span_rows = {span_rows} must be at least 1 where weights change")
        self._rows = {share.name: rows for share, rows in parts}
        first, *others = self._rows.values()
        for rows in others:
            if rows.dataset.tokenizer.core.to_str() != first.dataset.tokenizer.core.to_str():
                raise ValueError("the datasets have different tokenizers; tokenize all with one")
        self._span = span_rows if moves else None
        digest = hashlib.sha256(f"mixture {seed}".encode()).digest()
        self._offset = int.from_bytes(digest[:8], "little")

    def follow(
        self, state: StreamState | None = None, *, epochs: int | None = None
    ) -> Iterator[tuple[Row, StreamState]]:
        """DataRows without end, each with the state that resumes after it.

        Raises ValueError for a number of epochs, and for a state of no mixture, or of other
        datasets or settings.
        """
        if epochs is not None:
            raise ValueError("a mixture has no epochs: its datasets are read over and over")
        if state is not None and "parts" not in state:
            raise ValueError(
                "this loader state belongs to a single dataset and not to a mixture; begin a new "
                "run with the weights, or resume without the mixture"
            )
        saved = state["parts"] if state else {}
        places: dict[str, StreamState | None] = {name: saved.get(name) for name in self._rows}
        try:
            streams = {name: rows.follow(places[name]) for name, rows in self._rows.items()}
        except ValueError as error:
            raise ValueError(f"mixture: {error}") from error
        return self._follow(state["row"] if state else 0, places, streams)

    def _follow(
        self,
        start: int,
        places: dict[str, StreamState | None],
        streams: dict[str, Iterator[tuple[Row, StreamState]]],
    ) -> Iterator[tuple[Row, StreamState]]:
        for number in itertools.count(start):
            name = self._chosen(number)
            row, places[name] = next(streams[name])
            parts = {part: place for part, place in places.items() if place is not None}
            yield row, {"row": number + 1, "parts": parts}

    def _chosen(self, number: int) -> str:
        """The dataset that row `number` is taken from."""
        progress = min(1.0, number / self._span) if self._span else 0.0
        weights = [share.at(progress) for share in self._shares]
        fraction = ((number * _GOLDEN + self._offset) & (2**64 - 1)) / 2**64
        at = fraction * sum(weights)
        for share, weight in zip(self._shares, weights, strict=True):
            at -= weight
            if at < 0:
                return share.name
        # Rounding left nothing over: the last one that is read at all.
        return next(s.name for s, w in zip(self._shares[::-1], weights[::-1], strict=True) if w)
