"""Folders of a prefix store, kept apart from a user's other files.

A store is recognised by a mark, a file that the store makes while the folder is empty. Only folders
with the mark are used, and in them only regular files with names of the caller. A folder is opened
once and its files are reached through that descriptor, so that no symbolic link, whenever it
appears, leads elsewhere; the store's own path alone may contain links.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sounding.files import write_file

MARK_NAME = "sounding-prefix-store"
_MARK = (
    b"This folder was made by sounding, which removes files from it. Nothing else belongs here.\n"
)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_REGULAR = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for


class StoreFolder:
    """A marked folder, open until `close`. Its methods raise OSError."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Owns the descriptor; see `open_root`."""
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def subfolder(self, name: str) -> "StoreFolder | None":
        """Open a marked subfolder; None for anything else of that name."""
        try:
            folder = self._enter(name)
        except OSError:
            return None
        if folder.marked:
            return folder
        folder.close()
        return None

    def make_subfolder(self, name: str) -> "StoreFolder":
        """Open or create a subfolder. Raises ValueError for anything else of that name."""
        if name not in self.names():
            os.mkdir(name, dir_fd=self._descriptor)
        try:
            folder = self._enter(name)
        except OSError:
            raise ValueError(_not_ours(self.path / name)) from None
        folder.claim()
        return folder

    def _enter(self, name: str) -> "StoreFolder":
        descriptor = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._descriptor)
        return StoreFolder(self.path / name, descriptor)

    @property
    def marked(self) -> bool:
        """True if it has the mark of a store."""
        try:
            return self.read(MARK_NAME) == _MARK
        except OSError:
            return False

    def claim(self) -> None:
        """Mark it if it is empty; closes it and raises ValueError if it is not a store's."""
        if self.marked:
            return
        try:
            if not self._unused():
                raise ValueError(_not_ours(self.path))
            flags = os.O_WRONLY | os.O_CREAT | _REGULAR
            mark = os.open(MARK_NAME, flags, 0o666, dir_fd=self._descriptor)
            with os.fdopen(mark, "wb") as file:
                file.write(_MARK)
        except BaseException:
            self.close()
            raise

    def _unused(self) -> bool:
        """True if it is empty, or has only the beginning of a mark, whose writer was killed."""
        names = self.names()
        try:
            return not names or (names == [MARK_NAME] and _MARK.startswith(self.read(MARK_NAME)))
        except OSError:
            return False

    def names(self) -> list[str]:
        """Names of all entries."""
        return sorted(os.listdir(self._descriptor))

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Names and stat results of the regular files in it."""
        for name in self.names():
            facts = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode):
                yield name, facts

    def open(self, name: str, flags: int) -> int:
        """Open an existing regular file; return its descriptor."""
        descriptor = os.open(name, flags | _REGULAR, dir_fd=self._descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(f"{self.path / name} is no regular file")
        return descriptor

    def read(self, name: str) -> bytes:
        """Read a regular file."""
        with os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; its name survives a power cut after `sync`."""
        write_file(Path(name), data, folder=self._descriptor)

    def touch(self, name: str) -> None:
        """Set the file's time of last use to now."""
        os.utime(name, dir_fd=self._descriptor, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        """Remove a regular file, if it exists."""
        try:
            facts = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISREG(facts.st_mode):
            os.unlink(name, dir_fd=self._descriptor)

    def sync(self) -> None:
        """Flush the folder, so that its names survive a power cut."""
        os.fsync(self._descriptor)


def open_root(path: Path) -> StoreFolder:
    """Open the folder of a store, created if missing and marked if empty.

    Raises ValueError for a folder with other contents and without the mark, OSError for one that
    cannot be used.
    """
    path.mkdir(parents=True, exist_ok=True)
    folder = StoreFolder(path, os.open(path, _DIRECTORY))
    folder.claim()
    return folder


def _not_ours(path: Path) -> str:
    return (
        f"{path} is not empty and was not made by a prefix store (it has no file {MARK_NAME!r} "
        "of ours), so nothing in it is touched; name a folder that is new or empty"
    )
