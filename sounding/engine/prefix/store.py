"""States of prompts on disk, where they survive restarts.

The same blocks and tails as in memory (`prefixes`), a file each, in a folder for each model. Files
appear whole or not at all; what is damaged is a miss. Writing happens in a thread of its own, and
when it fails that is a warning: a store only ever saves work.

Invariant: `nbytes` is the sum over the files known, within the limit while nothing is written.
"""

import errno
import fcntl
import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import torch

from sounding.engine.prefix.snapshot import Entries, Tail, tensor_bytes
from sounding.engine.prefix.store_files import (
    Damaged,
    TailName,
    block_name,
    chain,
    extend,
    pack_block,
    pack_tail,
    unpack_block,
    unpack_tail,
)
from sounding.engine.settings import BLOCK_TOKENS, EngineSettings
from sounding.files import sync, write_file
from sounding.model.transformer import Transformer
from sounding.ops.cpu import library

_LIMIT_BYTES = 8 << 30
_LOCK = "lock"
_PENDING_BYTES = 256 << 20  # that may wait to be written; what comes beyond is not kept
_PAUSE_SECONDS = 60.0  # after writing has failed
_SAMPLE_BYTES = 1024  # of every weight

_log = logging.getLogger(__name__)
_Loaded = TypeVar("_Loaded")


class Stored(NamedTuple):
    """A state found on disk."""

    tokens: Sequence[int]
    blocks: Sequence[Entries]
    """The last of its whole blocks, as many as were asked for."""
    tail: Tail
    whole: bool


class _Job(NamedTuple):
    tokens: Sequence[int]
    blocks: Sequence[Entries]
    tail: Tail
    whole: bool
    nbytes: int


class PrefixStore:
    """A folder of states, bounded in bytes; the least recently used go first."""

    def __init__(self, folder: Path, identity: str, limit_bytes: int = _LIMIT_BYTES) -> None:
        """Opens the folder and drops what was being written when its last user ended.

        `identity` is whatever states depend on, see `state_identity`. A folder that cannot be used,
        or is used by another process, is a warning, and then nothing is found or kept.
        """
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._root, self._identity = folder, identity
        self._folder = folder / identity
        self._sizes: dict[Path, int] = {}  # the least recently used first
        self._tails: dict[str, set[TailName]] = {}  # by the blocks before
        self._changed = threading.Lock()
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._pending_bytes = 0
        self._paused_until = 0.0
        self._lock: IO[bytes] | None = None
        try:
            self._open()
        except OSError as error:
            _log.warning("prefixes are not kept on disk: %s", error)
            self._release()
        self._thread = threading.Thread(target=self._write_all, name="prefix-store", daemon=True)
        self._thread.start()

    @property
    def usable(self) -> bool:
        """Whether the folder could be opened."""
        return self._lock is not None

    def __len__(self) -> int:
        """How many prompts of this model can be taken up."""
        with self._changed:
            return sum(map(len, self._tails.values()))

    def find(self, tokens: Sequence[int], *, beyond: int, known_blocks: int) -> Stored | None:
        """The longest state that a prompt begins with, if longer than `beyond` tokens.

        Its first `known_blocks` blocks are at hand already and are not read.
        """
        names = list(chain(self._identity, tokens))
        for tail_name, length in self._candidates(names, tokens, beyond):
            wanted = range(min(known_blocks, length // BLOCK_TOKENS), length // BLOCK_TOKENS)
            tail_path = self._folder / str(tail_name)
            block_paths = [self._folder / block_name(names[1 + number]) for number in wanted]
            try:
                tail = self._load(tail_path, unpack_tail)
                blocks = [self._load(path, unpack_block) for path in block_paths]
            except (Damaged, OSError) as error:
                _log.warning("a kept prefix cannot be used: %s", error)
                self._drop(tail_path)
                continue
            # The tail before the blocks, the last block before the first: what a state needs is
            # never older than the state.
            self._touch([tail_path, *reversed(self._block_paths(names, length))])
            return Stored(tokens[:length], blocks, tail, tail_name.whole)
        return None

    def put(
        self, tokens: Sequence[int], blocks: Sequence[Entries], tail: Tail, *, whole: bool
    ) -> None:
        """Keep a state, given all its blocks; returns at once."""
        if not self.usable or time.monotonic() < self._paused_until:
            return
        size = tail.nbytes + sum(tensor_bytes(t) for block in blocks for t in block.values())
        with self._changed:
            if self._pending_bytes + size > min(_PENDING_BYTES, self.limit_bytes):
                return
            self._pending_bytes += size
        self._jobs.put(_Job(list(tokens), blocks, tail, whole, size))

    def flush(self) -> None:
        """Wait until everything is written."""
        self._jobs.join()

    def close(self) -> None:
        """Write what is waiting, and let another process use the folder."""
        self._jobs.put(None)
        self._thread.join()
        self._release()

    # ----------------------------------------------------------------------------------------------
    # Files

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._root / _LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(
                errno.EBUSY, "another process uses this folder", str(self._root)
            ) from None
        found = []
        for path in self._root.glob("*/*"):
            if path.name.startswith("."):
                path.unlink()  # it was being written
            elif path.suffix in (".block", ".tail"):
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
        for _, path, size in sorted(found):
            self._add(path, size)
        self._shrink()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _candidates(
        self, names: Sequence[str], tokens: Sequence[int], beyond: int
    ) -> list[tuple[TailName, int]]:
        """Tails that may be what a prompt begins with, the longest first."""
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

    def _block_paths(self, names: Sequence[str], length: int) -> list[Path]:
        whole = names[1 : 1 + length // BLOCK_TOKENS]
        return [self._folder / block_name(name) for name in whole]

    def _load(self, path: Path, unpack: Callable[[str, bytes], _Loaded]) -> _Loaded:
        """The contents of a file; one that is of no use is removed."""
        try:
            return unpack(path.name, path.read_bytes())
        except (Damaged, OSError):
            self._drop(path)
            raise

    def _add(self, path: Path, size: int) -> None:
        self._sizes[path] = size
        self.nbytes += size
        tail = TailName.parse(path.name) if path.parent == self._folder else None
        if tail is not None:
            self._tails.setdefault(tail.blocks, set()).add(tail)

    def _drop(self, path: Path) -> None:
        """Forget a file and remove it."""
        with self._changed:
            self._forget(path)
        path.unlink(missing_ok=True)

    def _forget(self, path: Path) -> None:
        self.nbytes -= self._sizes.pop(path, 0)
        tail = TailName.parse(path.name)
        if tail is not None and path.parent == self._folder and tail.blocks in self._tails:
            self._tails[tail.blocks].discard(tail)
            if not self._tails[tail.blocks]:
                del self._tails[tail.blocks]

    def _touch(self, paths: Sequence[Path]) -> None:
        """These were used now, in this order."""
        with self._changed:
            for path in paths:
                if path in self._sizes:
                    self._sizes[path] = self._sizes.pop(path)
        for path in paths:
            try:
                os.utime(path)
            except OSError:
                self._drop(path)

    def _shrink(self) -> None:
        while self.nbytes > self.limit_bytes:
            with self._changed:
                oldest = next(iter(self._sizes))
            self._drop(oldest)

    # ----------------------------------------------------------------------------------------------
    # The thread that writes

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
        paths = self._block_paths(names, len(job.tokens))
        rest = len(job.tokens) % BLOCK_TOKENS
        digest = _name_of(names[-1], job.tokens[len(job.tokens) - rest :])
        tail_path = self._folder / str(TailName(names[-1], rest, digest, job.whole))
        for path, entries in zip(paths, job.blocks, strict=True):
            self._write_one(path, partial(pack_block, entries=entries))
        self._write_one(tail_path, partial(pack_tail, tail=job.tail))
        sync(self._folder)
        self._touch([tail_path, *reversed(paths)])
        self._shrink()

    def _write_one(self, path: Path, pack: Callable[[str], bytes]) -> None:
        if path in self._sizes:
            return
        data = pack(path.name)
        write_file(path, data)
        with self._changed:
            self._add(path, len(data))


def _name_of(blocks: str, rest: Sequence[int]) -> str:
    return extend(blocks, rest) if rest else blocks


@torch.inference_mode()
def state_identity(model: Transformer, settings: EngineSettings) -> str:
    """A name for all that states depend on besides tokens: the network and how it is run.

    Of each weight only the beginning is read, which training changes as it does the rest.
    """
    whole = hashlib.sha256(repr((model.config, model.dtype, torch.__version__)).encode())
    how = (settings.exact_splits, settings.piece_tokens, settings.guessed_tokens)
    whole.update(repr((how, torch.backends.cpu.get_cpu_capability())).encode())
    kernels = library()
    if kernels is not None:  # which may round otherwise than those of another build
        whole.update(Path(kernels._name).read_bytes())
    for name, module in model.named_modules():
        for switch in ("simulate", "simulate_weight", "simulate_kv", "simulate_index"):
            whole.update(f"{name} {switch} {getattr(module, switch, None)}".encode())
    for name, weight in model.state_dict().items():
        first = weight.flatten()[: _SAMPLE_BYTES // weight.element_size()]
        whole.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        whole.update(first.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]
