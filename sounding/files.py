"""Atomic and durable writing of files; reading of JSON that may be damaged."""

import contextlib
import gzip
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Values of a file of JSON lines (.jsonl), with their line numbers; also of a gzipped one.

    A byte-order mark and blank lines are passed over. Raises ValueError naming the file, the line
    and what is wrong with it.
    """
    for number, line in enumerate(_read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not UTF-8: byte {error.start} is {line[error.start]:#x}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        yield number, value


_GZIP = b"\x1f\x8b"
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\x03\x04": "a zip archive"}
_MARKS |= {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PAR1": "Parquet"}


def _read_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from None
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"{path} is {name}; give lines of JSON in UTF-8, plain or gzipped")
    return data.removeprefix(b"\xef\xbb\xbf")


def file_facts(paths: Iterable[Path]) -> str:
    """Metadata that detects changed files: size, times of change, inode.

    Call it before reading the files, so that a later change gives other facts. The time of the
    last change of the inode is among them because no program can set it.
    """
    found = []
    for path in sorted(paths):
        facts = path.stat()
        times = (facts.st_mtime_ns, facts.st_ctime_ns)
        found.append((path.name, facts.st_size, times, facts.st_ino, facts.st_dev))
    return repr(found)


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object from untrusted bytes; raises ValueError for anything else or repeated keys."""
    repeated: list[str] = []

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                repeated.append(key)
            found[key] = value
        return found

    try:
        parsed = json.loads(text.decode("utf-8-sig"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise ValueError(f"{where} is not readable JSON ({error}); download it again") from error
    if repeated:
        raise ValueError(f"{where} names {repeated[0]!r:.80} twice; the file is damaged")
    if not isinstance(parsed, dict):
        raise ValueError(f"{where} must be a JSON object, not {type(parsed).__name__}")
    return parsed
