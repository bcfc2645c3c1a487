"""API keys: read from a file, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

_SHORTEST = 16  # characters; shorter keys can be guessed


class Keys:
    """The API keys of a server. Only their hashes stay in memory."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises ValueError for an empty list, and for a key too short to be safe."""
        self._digests = [_digest(key) for key in _checked(keys)]

    @classmethod
    def from_file(cls, path: Path) -> "Keys":
        """Read a file of one key a line; empty lines and those that begin with # are ignored.

        Raises ValueError naming the file, OSError when it cannot be read.
        """
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        try:
            return cls(line for line in lines if line and not line.startswith("#"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def owner(self, key: str) -> str | None:
        """The owner name of a key; None if it is not valid.

        Every key is compared, so that the time reveals nothing about which one was close.
        """
        digest = _digest(key)
        found = None
        for known in self._digests:
            if hmac.compare_digest(known, digest):
                found = known[:12]
        return found


def _checked(keys: Iterable[str]) -> list[str]:
    found = list(keys)
    if not found:
        raise ValueError("there is no key; write one a line, such as from `openssl rand -hex 24`")
    for number, key in enumerate(found, 1):
        if len(key) < _SHORTEST:
            raise ValueError(f"key {number} has {len(key)} characters; take at least {_SHORTEST}")
    return found


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
