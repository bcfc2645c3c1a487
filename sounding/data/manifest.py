"""The list of public packages a corpus is made of, and their download.

A manifest pins name, version, file and hash, so that a later build gives the same corpus. pip
fetches them, since it knows indexes, proxies and mirrors; we pass the hash and check it again.
Wheels only: for a source archive pip would run that package's own build.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sounding.config_file import refuse_unknown
from sounding.data.licenses import families

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("manifest.toml")
SPLITS = ("train", "heldout")
MAX_PACKAGES = 60
_FETCH_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class Package:
    """One wheel: the requirement for pip, the expected file and hash, and its licence."""

    name: str
    version: str
    file: str
    sha256: str
    license: str
    split: str

    def __post_init__(self) -> None:
        require_split(f"split of {self.name}", self.split)
        if not self.file.endswith(".whl") or "/" in self.file:
            raise ValueError(f"file of {self.name} = {self.file!r} must be the name of a wheel")
        _require_hash(f"sha256 of {self.name}", self.sha256)
        if not families(self.license):
            raise ValueError(f"license of {self.name} = {self.license!r} must be a permissive one")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The platform wheels are chosen for: part of the pin, since each platform has its own file."""

    python: str = "3.14"
    implementation: str = "cp"
    abis: tuple[str, ...] = ("none",)
    platforms: tuple[str, ...] = ("any",)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    packages: tuple[Package, ...]
    target: Target
    standard_library: str  # a split, or "" for none
    left_out: tuple[str, ...] = ()  # SHA-256 of texts that become no documents


def require_split(name: str, value: str) -> None:
    """Raise ValueError unless `value` names a split."""
    if value not in SPLITS:
        raise ValueError(f"{name} = {value!r} must be {' or '.join(SPLITS)}")


def _require_hash(name: str, value: str) -> None:
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{name} = {value!r} must be 64 lower-case hex digits")


def read_manifest(path: Path = SHIPPED) -> Manifest:
    """Read a manifest; raises ValueError naming the file and what is wrong in it."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        known = ("package", "target", "standard_library", "left_out")
        refuse_unknown(raw, known, "the manifest")
        packages = tuple(_package(entry) for entry in raw.get("package", []))
        known_target = [entry.name for entry in fields(Target)]
        refuse_unknown(raw.get("target", {}), known_target, "target")
        target = Target(**{key: _frozen(value) for key, value in raw.get("target", {}).items()})
        standard_library = raw.get("standard_library", "")
        if standard_library:
            require_split("standard_library", standard_library)
        left_out = _left_out(raw.get("left_out", []))
        _require_once("packages", [package.name for package in packages])
        if len(packages) > MAX_PACKAGES:
            raise ValueError(f"{len(packages)} packages; at most {MAX_PACKAGES} are allowed")
    except (ValueError, TypeError) as error:
        raise ValueError(f"manifest {path}: {error}") from error
    return Manifest(
        packages=packages, target=target, standard_library=standard_library, left_out=left_out
    )


def _left_out(hashes: Any) -> tuple[str, ...]:
    if not isinstance(hashes, list) or not all(isinstance(value, str) for value in hashes):
        raise ValueError(f"left_out = {hashes!r} must be a list of SHA-256 hashes of texts")
    for value in hashes:
        _require_hash("left_out", value)
    _require_once("left_out: hashes", hashes)
    return tuple(hashes)


def _require_once(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} listed twice: {', '.join(twice)}")


def _package(entry: Mapping[str, Any]) -> Package:
    known = [field.name for field in fields(Package)]
    refuse_unknown(entry, known, "a package")
    missing = [name for name in known if not isinstance(entry.get(name), str)]
    if missing:
        raise ValueError(f"package {entry.get('name', '?')} lacks {', '.join(missing)}")
    return Package(**entry)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def user_cache_folder() -> Path:
    """The folder of downloads between builds: XDG_CACHE_HOME or ~/.cache, then sounding."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sounding"


def fetch(package: Package, target: Target, folder: Path) -> Path:
    """The package's wheel in `folder`, downloaded by pip unless it is there with the right hash.

    Raises ValueError with pip's last words when it cannot be had.
    """
    path = folder / package.file
    if path.is_file() and file_digest(path) == package.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("fetching %s %s", package.name, package.version)
    # A folder of its own, inside the cache so that the rename is atomic: an interrupted download
    # never looks like a finished one.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        pinned = Path(scratch) / "requirements.txt"
        pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        result = subprocess.run(
            _pip_command(pinned, target, Path(scratch)),
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
        got = Path(scratch) / package.file
        if result.returncode or not got.is_file() or file_digest(got) != package.sha256:
            words = (result.stderr.strip() or result.stdout.strip()).splitlines()
            raise ValueError(
                f"{package.name} {package.version} ({package.file}) could not be fetched; "
                f"pip says: {words[-1] if words else 'nothing'}"
            )
        got.replace(path)
    return path


def _pip_command(requirements: Path, target: Target, destination: Path) -> list[str]:
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    words += ["--no-deps", "--require-hashes", "--only-binary=:all:"]
    words += ["--python-version", target.python, "--implementation", target.implementation]
    for abi in target.abis:
        words += ["--abi", abi]
    for platform in target.platforms:
        words += ["--platform", platform]
    return [*words, "--dest", str(destination), "--requirement", str(requirements)]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
