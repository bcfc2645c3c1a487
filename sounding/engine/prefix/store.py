"""Prefix store: the states of prompts on disk, where they survive restarts.

The same blocks and tails as in memory (`cache`), a file each, in a folder for each model. Files
appear whole or not at all; what is damaged is a miss. Writing happens in a thread of its own, and
when it fails that is a warning: a store only ever saves work. Only folders that a store has marked
are used, and in them only files with a name that a store gives (`store_folder`, `store_files`).

Invariant: `nbytes` is the sum over the files known, within the limit while nothing is written.
"""

import errno
import fcntl
import hashlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from sounding.engine.network import Network
from sounding.engine.prefix.snapshot import Entries, Tail
from sounding.engine.prefix.store_files import (
    Damaged,
    TailName,
    block_name,
    chain,
    extend,
    is_kept,
    is_unfinished,
    pack_block,
    pack_tail,
    unpack_block,
    unpack_tail,
)
from sounding.engine.prefix.store_folder import MARK_NAME, StoreFolder, open_root
from sounding.engine.prefix.weights_digest import weights_digest
from sounding.engine.settings import BLOCK_TOKENS, EngineSettings

_LIMIT_BYTES = 8 << 30
_IDENTITY = "[0-9a-f]{16}"
_PENDING_BYTES = 256 << 20  # waiting to be written; beyond that states are not stored
_PAUSE_SECONDS = 60.0  # after writing has failed

_log = logging.getLogger(__name__)
_Loaded = TypeVar("_Loaded")


class Stored(NamedTuple):
    """The result of a hit on disk."""

    tokens: Sequence[int]
    blocks: Sequence[Entries]
    """The last whole blocks of it, as many as the caller lacks."""
    tail: Tail
    whole: bool


class _File(NamedTuple):
    """The file of a block or a tail."""

    folder: StoreFolder
    name: str


class _Job(NamedTuple):
    tokens: Sequence[int]
    blocks: Sequence[Entries]
    tail: Tail
    whole: bool
    nbytes: int


class PrefixStore:
    """A folder of states, bounded in bytes; evicts the least recently used first."""

    def __init__(self, folder: Path, identity: str, limit_bytes: int = _LIMIT_BYTES) -> None:
        """Open the folder and remove files whose writer was killed.

        `identity` stands for whatever states depend on in 16 hexadecimal digits, see
        `state_identity`. A folder that cannot be used, or is used by another process, is a warning,
        and then nothing is found or kept. Raises ValueError for another form of identity and for a
        folder that has contents and was not made by a store.
        """
        if re.fullmatch(_IDENTITY, identity) is None:
            raise ValueError(f"identity = {identity!r} must be 16 hexadecimal digits")
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._identity = identity
        self._folders: list[StoreFolder] = []  # the root first, then this model's
        self._folder: StoreFolder
        self._sizes: dict[_File, int] = {}  # the least recently used first
        self._tails: dict[str, set[TailName]] = {}  # by the blocks before
        self._changed = threading.Lock()
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._pending_bytes = 0
        self._paused_until = 0.0
        self._lock: IO[bytes] | None = None
        try:
            self._open(folder)
        except ValueError:
            self._release()
            raise
        except OSError as error:
            _log.warning("prefixes are not kept on disk: %s", error)
            self._release()
        self._thread = threading.Thread(target=self._write_all, name="prefix-store", daemon=True)
        self._thread.start()

    @property
    def usable(self) -> bool:
        """True if the folder is open."""
        return self._lock is not None

    def __len__(self) -> int:
        """Number of resumable prefixes of this model."""
        with self._changed:
            return sum(map(len, self._tails.values()))

    def find(self, tokens: Sequence[int], *, beyond: int, known_blocks: int) -> Stored | None:
        """Return the longest stored prefix of a prompt, if longer than `beyond` tokens.

        Its first `known_blocks` blocks are at hand already and are not read.
        """
        names = list(chain(self._identity, tokens))
        for tail_name, length in self._candidates(names, tokens, beyond):
            wanted = range(min(known_blocks, length // BLOCK_TOKENS), length // BLOCK_TOKENS)
            tail_file = _File(self._folder, str(tail_name))
            block_files = self._block_files(names, length)
            try:
                tail = self._load(tail_file, unpack_tail)
                blocks = [self._load(block_files[number], unpack_block) for number in wanted]
            except (Damaged, OSError) as error:
                _log.warning("a kept prefix cannot be used: %s", error)
                self._drop(tail_file)
                continue
            # The tail before the blocks, the last block before the first: a state's parts are never
            # older than the state.
            self._touch([tail_file, *reversed(block_files)])
            return Stored(tokens[:length], blocks, tail, tail_name.whole)
        return None

    def put(
        self, tokens: Sequence[int], blocks: Sequence[Entries], tail: Tail, *, whole: bool
    ) -> None:
        """Queue a state with all its blocks to be written; returns at once."""
        if not self.usable or time.monotonic() < self._paused_until:
            return
        size = tail.nbytes + sum(rows.nbytes for block in blocks for rows in block.values())
        with self._changed:
            if self._pending_bytes + size > min(_PENDING_BYTES, self.limit_bytes):
                return
            self._pending_bytes += size
        self._jobs.put(_Job(list(tokens), blocks, tail, whole, size))

    def flush(self) -> None:
        """Wait until everything is written."""
        self._jobs.join()

    def close(self) -> None:
        """Write all queued states and unlock the folder for other processes."""
        self._jobs.put(None)
        self._thread.join()
        self._release()

    # ----------------------------------------------------------------------------------------------
    # Files

    def _open(self, path: Path) -> None:
        root = open_root(path)
        self._folders.append(root)
        self._lock = os.fdopen(root.open(MARK_NAME, os.O_RDWR), "rb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(errno.EBUSY, "another process uses this folder", str(path)) from None
        self._folder = root.make_subfolder(self._identity)
        self._folders.append(self._folder)
        for name in root.names():
            if name != self._identity and re.fullmatch(_IDENTITY, name):
                other = root.subfolder(name)
                self._folders += [] if other is None else [other]
        found = []
        for folder in self._folders[1:]:
            for name, facts in folder.files():
                if is_unfinished(name):
                    folder.unlink(name)  # it was being written
                elif is_kept(name):
                    found.append((facts.st_mtime_ns, _File(folder, name), facts.st_size))
        for _, file, size in sorted(found, key=lambda item: (item[0], item[1].name)):
            self._add(file, size)
        self._shrink()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        with self._changed:
            self._sizes.clear()
            self._tails.clear()
            self.nbytes = 0
        for folder in self._folders:
            folder.close()

    def _candidates(
        self, names: Sequence[str], tokens: Sequence[int], beyond: int
    ) -> list[tuple[TailName, int]]:
        """Tails that may be a prefix of the prompt, the longest first."""
        found = []
        with self._changed:
            for number, name in enumerate(names):
                start = number * BLOCK_TOKENS
                for tail in self._tails.get(name, ()):
                    length = start + tail.rest
                    if length > beyond and (not tail.whole or length == len(tokens)):
                        found.append((tail, length))
        found.sort(key=lambda pair: pair[1], reverse=True)
        return [
            (tail, length)
            for tail, length in found
            if tail.digest == _name_of(tail.blocks, tokens[length - tail.rest : length])
        ]

    def _block_files(self, names: Sequence[str], length: int) -> list[_File]:
        whole = names[1 : 1 + length // BLOCK_TOKENS]
        return [_File(self._folder, block_name(name)) for name in whole]

    def _load(self, file: _File, unpack: Callable[[str, bytes], _Loaded]) -> _Loaded:
        """Read a file; a damaged one is removed."""
        try:
            return unpack(file.name, file.folder.read(file.name))
        except (Damaged, OSError):
            self._drop(file)
            raise

    def _add(self, file: _File, size: int) -> None:
        self._sizes[file] = size
        self.nbytes += size
        tail = self._tail_of(file)
        if tail is not None:
            self._tails.setdefault(tail.blocks, set()).add(tail)

    def _drop(self, file: _File) -> None:
        """Remove a file from the index and the disk."""
        with self._changed:
            self._forget(file)
        file.folder.unlink(file.name)

    def _forget(self, file: _File) -> None:
        self.nbytes -= self._sizes.pop(file, 0)
        tail = self._tail_of(file)
        if tail is not None and tail.blocks in self._tails:
            self._tails[tail.blocks].discard(tail)
            if not self._tails[tail.blocks]:
                del self._tails[tail.blocks]

    def _tail_of(self, file: _File) -> TailName | None:
        """Parse the name of a file, if it is a tail of this model."""
        return TailName.parse(file.name) if file.folder is self._folder else None

    def _touch(self, files: Sequence[_File]) -> None:
        """Mark these files as used now, in this order."""
        with self._changed:
            for file in files:
                if file in self._sizes:
                    self._sizes[file] = self._sizes.pop(file)
        for file in files:
            try:
                file.folder.touch(file.name)
            except OSError:
                self._drop(file)

    def _shrink(self) -> None:
        while self.nbytes > self.limit_bytes:
            with self._changed:
                oldest = next(iter(self._sizes))
            self._drop(oldest)

    # ----------------------------------------------------------------------------------------------
    # The writer thread

    def _write_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if time.monotonic() >= self._paused_until:
                    self._write(job)
            except OSError as error:
                _log.warning("a prefix could not be kept on disk: %s", error)
                self._paused_until = time.monotonic() + _PAUSE_SECONDS
            except Exception:
                _log.exception("a prefix could not be kept on disk")
            finally:
                with self._changed:
                    self._pending_bytes -= job.nbytes
                self._jobs.task_done()
        self._jobs.task_done()

    def _write(self, job: _Job) -> None:
        names = list(chain(self._identity, job.tokens))
        files = self._block_files(names, len(job.tokens))
        rest = len(job.tokens) % BLOCK_TOKENS
        digest = _name_of(names[-1], job.tokens[len(job.tokens) - rest :])
        tail = _File(self._folder, str(TailName(names[-1], rest, digest, job.whole)))
        for file, entries in zip(files, job.blocks, strict=True):
            self._write_one(file, partial(pack_block, entries=entries))
        self._write_one(tail, partial(pack_tail, tail=job.tail))
        self._folder.sync()
        self._touch([tail, *reversed(files)])
        self._shrink()

    def _write_one(self, file: _File, pack: Callable[[str], bytes]) -> None:
        if file in self._sizes:
            return
        data = pack(file.name)
        file.folder.write(file.name, data)
        with self._changed:
            self._add(file, len(data))


def _name_of(blocks: str, rest: Sequence[int]) -> str:
    return extend(blocks, rest) if rest else blocks


def state_identity(network: Network, settings: EngineSettings, weights: str | None = None) -> str:
    """A digest of everything besides tokens that states depend on: the network and its settings.

    `weights` is the digest of all its weights, which is made here where it is not at hand.
    """
    run = (settings.exact_splits, settings.piece_tokens, settings.effective_draft_tokens)
    parts = (network.config, network.dtype_name, network.identity, run)
    whole = hashlib.sha256(repr(parts).encode())
    whole.update((weights or weights_digest(network)).encode())
    return whole.hexdigest()[:16]
