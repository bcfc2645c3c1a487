"""The file formats of a prefix store, and how damage is detected.

A file is a magic number, the SHA-256 of its name and its contents, and the contents in safetensors
form. Its name is derived from all tokens of its prefix, so a file with that name and checksum is a
hit; any other file is a miss.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy

from sounding.engine.prefix.snapshot import Entries, Tail
from sounding.engine.settings import BLOCK_TOKENS
from sounding.state.rows import StoredRows

_MAGIC = b"SoundingPrefix1\n"
_DIGEST_BYTES = 32
_NAME_DIGITS = 32  # hexadecimal: 128 bits
_DIGITS = f"[0-9a-f]{{{_NAME_DIGITS}}}"
_BLOCK = f"{_DIGITS}\\.block"
_TAIL = f"({_DIGITS})-(0|[1-9][0-9]{{0,8}})-({_DIGITS})-(whole|any)\\.tail"
_UNFINISHED = f"\\.({_BLOCK}|{_TAIL})\\.[0-9a-f]{{8}}"


class Damaged(ValueError):
    """The contents of a file do not match its name."""


def extend(digest: str, tokens: Sequence[int]) -> str:
    """The name of a prefix that extends another by `tokens`."""
    numbers = array("q", tokens)
    return hashlib.sha256(digest.encode() + numbers.tobytes()).hexdigest()[:_NAME_DIGITS]


def chain(identity: str, tokens: Sequence[int]) -> Iterator[str]:
    """The names of a text's prefixes: the empty one, and one per whole block."""
    digest = extend(identity, ())
    yield digest
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        digest = extend(digest, tokens[start : start + BLOCK_TOKENS])
        yield digest


@dataclass(frozen=True)
class TailName:
    """The parsed file name of a tail."""

    blocks: str
    """Name of the prefix of whole blocks before it."""
    rest: int
    """Number of tokens behind those."""
    digest: str
    """Name of the whole prefix."""
    whole: bool
    """True if usable only for a prompt that ends here."""

    def __str__(self) -> str:
        return f"{self.blocks}-{self.rest}-{self.digest}-{'whole' if self.whole else 'any'}.tail"

    @classmethod
    def parse(cls, name: str) -> "TailName | None":
        """Parse a file name; None if it is not a tail's."""
        found = re.fullmatch(_TAIL, name)
        if found is None:
            return None
        blocks, rest, digest, when = found.groups()
        return cls(blocks, int(rest), digest, when == "whole")


def is_kept(name: str) -> bool:
    """True if this is the file name of a block or a tail."""
    return re.fullmatch(f"{_BLOCK}|{_TAIL}", name) is not None


def is_unfinished(name: str) -> bool:
    """True if this is the temporary name `files.write_file` uses for such a file."""
    return re.fullmatch(_UNFINISHED, name) is not None


def block_name(digest: str) -> str:
    """The file of a block, by the name of the text up to its end."""
    return f"{digest}.block"


def pack_block(name: str, entries: Entries) -> bytes:
    """The file of a block's entries."""
    return _seal(name, safetensors.numpy.save(_plain(entries)))


def unpack_block(name: str, data: bytes) -> Entries:
    """The entries of a block. Raises `Damaged`."""
    tensors, _ = _open(name, data)
    return tensors


def pack_tail(name: str, tail: Tail) -> bytes:
    """The file of a tail."""
    arrays = {f"entries/{key}": value for key, value in tail.entries.items()}
    arrays |= {f"rows/{key}": value for key, value in tail.rows.items()}
    arrays["streams"] = tail.streams
    facts = {"length": tail.length, "lengths": dict(tail.lengths), "drafting": tail.drafting}
    return _seal(name, safetensors.numpy.save(_plain(arrays), {"facts": json.dumps(facts)}))


def unpack_tail(name: str, data: bytes) -> Tail:
    """The tail in a file. Raises `Damaged`."""
    tensors, metadata = _open(name, data)
    facts = json.loads(metadata["facts"])
    parts: dict[str, dict[str, StoredRows]] = {"entries": {}, "rows": {}}
    for key, value in tensors.items():
        part, _, rest = key.partition("/")
        if rest:
            parts[part][rest] = value
    return Tail(
        facts["length"],
        parts["entries"],
        parts["rows"],
        facts["lengths"],
        tensors["streams"],
        facts["drafting"],
    )


def _plain(arrays: Mapping[str, StoredRows]) -> dict[str, StoredRows]:
    """In C order, since the NumPy half of safetensors 0.8.0 writes other arrays wrongly."""
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _seal(name: str, contents: bytes) -> bytes:
    return _MAGIC + _checksum(name, contents) + contents


def _open(name: str, data: bytes) -> tuple[dict[str, StoredRows], dict[str, str]]:
    start = len(_MAGIC) + _DIGEST_BYTES
    contents = data[start:]
    if data[:start] != _MAGIC + _checksum(name, contents):
        raise Damaged(f"{name} is damaged: its checksum is another")
    header = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
    return safetensors.numpy.load(contents), header.get("__metadata__", {})


def _checksum(name: str, contents: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + contents).digest()
