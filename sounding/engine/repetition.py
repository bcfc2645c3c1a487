"""Detects an answer that repeats itself."""

from collections import deque

_LONGEST_PIECE = 32  # tokens
# Of one token over and over. Each makes a chunk of its own in a stream, and litellm takes 100 equal
# chunks for a fault of the server and asks again, nine times.
_MOST_OF_ONE = 64


class RepetitionGuard:
    """Detects a short token sequence that repeats up to the end."""

    def __init__(self, limit_tokens: int) -> None:
        """A repetition of `limit_tokens` tokens is reported, of a single token after 64."""
        self._limit = limit_tokens
        self._last: deque[int] = deque(maxlen=_LONGEST_PIECE)
        self._runs = [0] * _LONGEST_PIECE  # by length of piece: tokens that equal the one before

    def push(self, token: int) -> bool:
        """Take the next token; return True if the last tokens only repeat earlier ones."""
        for back, other in enumerate(reversed(self._last)):
            self._runs[back] = self._runs[back] + 1 if other == token else 0
        self._last.append(token)
        return self._runs[0] >= min(_MOST_OF_ONE, self._limit) or max(self._runs) >= self._limit
