"""Sources of documents: a wheel, the standard library, a folder, a git working tree.

A source only lists files and reads them; filters.py decides which ones are used.
Wheels are read as archives: nothing is unpacked, installed or run.
"""

import email
import hashlib
import platform
import subprocess
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from sounding.data.licenses import UNKNOWN, families, metadata_license, text_license
from sounding.data.manifest import Package

_GIT_SECONDS = 120


@dataclass(frozen=True)
class RawFile:
    path: str  # relative to the source, with forward slashes
    num_bytes: int
    read: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class DocumentSource:
    """Files under one name, version and licence, all in the same split."""

    name: str
    version: str
    license: str
    split: str
    fingerprint: str  # changes when the content may have changed
    public: bool  # documents of public sources need a permissive licence
    files: Callable[[], Iterator[RawFile]]


def wheel_source(package: Package, path: Path) -> DocumentSource:
    """A pinned wheel. Raises ValueError if it is no wheel or its metadata names another licence."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            metadata_name = next(
                name
                for name in names
                if name.endswith(".dist-info/METADATA") and name.count("/") == 1
            )
            metadata: Message = email.message_from_bytes(archive.read(metadata_name))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ValueError(f"{path} is not a wheel with metadata") from error
    stated = metadata_license(metadata)
    if not families(stated) & families(package.license):
        raise ValueError(
            f"{package.name} {package.version} says its licence is {stated[:80]!r}, the manifest "
            f"says {package.license!r}: read it again and correct the manifest"
        )
    return DocumentSource(
        name=package.name,
        version=package.version,
        license=str(metadata.get("License-Expression") or package.license),
        split=package.split,
        fingerprint=package.sha256,
        public=True,
        files=lambda: _archive_files(path),
    )


def _archive_files(path: Path) -> Iterator[RawFile]:
    with zipfile.ZipFile(path) as archive:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
            if not entry.is_dir():
                yield RawFile(entry.filename, entry.file_size, lambda e=entry: archive.read(e))  # type: ignore[misc]


def standard_library_source(split: str) -> DocumentSource:
    """The standard library of the Python that is running, its test suite included."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return DocumentSource(
        name="python",
        version=platform.python_version(),
        license="PSF-2.0",
        split=split,
        fingerprint=_listing_digest(_walk(root, ("site-packages", "dist-packages"))),
        public=True,
        files=lambda: _walk(root, ("site-packages", "dist-packages")),
    )


def folder_source(root: Path, split: str) -> DocumentSource:
    """A folder of the user's; in a git working tree, the files git tracks or would add.

    Raises ValueError if it is not a folder, or git cannot list it.
    """
    root = root.resolve()
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the root of a project or a git repository")
    paths = _known_to_git(root)
    if paths is not None:
        version = _git(root, "describe", "--always", "--dirty", "--abbrev=12").strip()

        def files() -> Iterator[RawFile]:
            return _named(root, paths)
    else:
        version = ""

        def files() -> Iterator[RawFile]:
            return _walk(root, ())

    return DocumentSource(
        name=root.name,
        version=version,
        license=_folder_license(root),
        split=split,
        fingerprint=_listing_digest(files(), root),
        public=False,
        files=files,
    )


def _known_to_git(root: Path) -> list[str] | None:
    """Files below a folder of a working tree that git tracks or would add; None outside of one,
    and for a folder inside of one that git ignores."""
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return None
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if not listed and not (root / ".git").exists():
        return None
    return sorted({name for name in listed.split("\0") if name})


def commit_source(root: Path, commit: str, split: str) -> DocumentSource:
    """The files below a folder as they were in a commit of its repository.

    Raises ValueError if there is no such commit.
    """
    root = root.resolve()
    listed = _git(root, "ls-tree", "-r", "-z", "--long", commit, "--", ".")
    version = _git(root, "rev-parse", "--short=12", f"{commit}^{{commit}}").strip()
    entries: list[tuple[str, str, int]] = []  # path, object, bytes
    for row in filter(None, listed.split("\0")):
        facts, _, path = row.partition("\t")
        mode, kind, name, size = facts.split()
        if kind == "blob" and mode != "120000":  # no links
            entries.append((path, name, int(size)))

    def files() -> Iterator[RawFile]:
        for path, name, size in entries:
            yield RawFile(path, size, lambda name=name: _git_blob(root, name))  # type: ignore[misc]

    return DocumentSource(
        name=root.name,
        version=version,
        license=_folder_license(root),
        split=split,
        fingerprint=f"commit {version}",
        public=False,
        files=files,
    )


def _git_blob(root: Path, name: str) -> bytes:
    words = ["git", "-C", str(root), "cat-file", "blob", name]
    return subprocess.run(words, capture_output=True, timeout=_GIT_SECONDS, check=True).stdout


def _git(root: Path, *words: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *words],
        capture_output=True,
        text=True,
        timeout=_GIT_SECONDS,
        check=False,
    )
    if result.returncode:
        if words[0] == "describe":  # a repository without a commit
            return ""
        raise ValueError(f"git cannot list {root}: {result.stderr.strip()}")
    return result.stdout


def _walk(root: Path, excluded: Iterable[str]) -> Iterator[RawFile]:
    """Regular files under a folder in sorted order; hidden folders and symlinks are left out."""
    excluded = {*excluded, "__pycache__"}
    for path in sorted(root.iterdir()):
        hidden = path.name.startswith(".")
        if path.is_symlink() or hidden or path.name in excluded:
            continue
        if path.is_dir():
            for entry in _walk(path, excluded):
                yield RawFile(f"{path.name}/{entry.path}", entry.num_bytes, entry.read)
        elif path.is_file():
            yield RawFile(path.name, path.stat().st_size, path.read_bytes)


def _named(root: Path, names: Iterable[str]) -> Iterator[RawFile]:
    for name in names:
        path = root / name
        if path.is_file() and not path.is_symlink():  # tracked files may be deleted or links
            yield RawFile(name, path.stat().st_size, path.read_bytes)


def _listing_digest(files: Iterable[RawFile], root: Path | None = None) -> str:
    """Digest of the names, sizes and, with a root, modification times of the files."""
    digest = hashlib.sha256(platform.python_version().encode())
    for entry in files:
        stamp = (root / entry.path).stat().st_mtime_ns if root else 0
        digest.update(f"{entry.path}\0{entry.num_bytes}\0{stamp}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def _folder_license(root: Path) -> str:
    """The licence in pyproject.toml, else the class of the licence file, else "unknown"."""
    project = root / "pyproject.toml"
    if project.is_file():
        try:
            raw = tomllib.loads(project.read_text(encoding="utf-8-sig"))
            stated = raw.get("project", {}).get("license")
        except (ValueError, AttributeError):
            stated = None
        if isinstance(stated, dict):
            stated = stated.get("text")
        if isinstance(stated, str) and stated:
            return stated.splitlines()[0][:80]
    for path in sorted(root.glob("LICEN[CS]E*")) + sorted(root.glob("COPYING*")):
        if path.is_file():
            return text_license(path.read_text(encoding="utf-8", errors="replace"))
    return UNKNOWN
