"""Writing files that are whole or not there, and that stay."""

import contextlib
import os
import secrets
from pathlib import Path

_SUFFIX_BYTES = 4


def write_file(path: Path, data: bytes, *, folder: int | None = None) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    The data goes to a temporary file beside it (`.NAME.` and eight hexadecimal digits), reaches the
    disk, and takes over the name. `folder` is the descriptor of the folder that `path` is relative
    to, where links in the way to it must not be followed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_SUFFIX_BYTES)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise


def sync(path: Path) -> None:
    """Make a file's contents, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
