"""Pins are read strictly, and pip brings exactly the pinned file or an error says why not."""

from pathlib import Path

import pytest

from sounding.data import manifest as pins
from sounding.data.licenses import families
from tests.data.conftest import make_wheel

PLAIN = pins.Target(python="3.11", abis=("none",), platforms=("any",))


def entry(**changes: str) -> str:
    values = {
        "name": "sample",
        "version": "1.0",
        "file": "sample-1.0-py3-none-any.whl",
        "sha256": "ab" * 32,
        "license": "MIT",
        "split": "train",
        **changes,
    }
    return "[[package]]\n" + "".join(f'{key} = "{value}"\n' for key, value in values.items())


def test_the_shipped_manifest() -> None:
    shipped = pins.read_manifest()
    assert len(shipped.left_out) == 128
    assert 40 <= len(shipped.packages) <= pins.MAX_PACKAGES
    held_out = {package.name for package in shipped.packages if package.split == "heldout"}
    assert held_out == {"boltons", "flask", "httpx", "rich", "scikit-image", "scrapy"}
    assert shipped.standard_library == "train"
    assert all(families(package.license) for package in shipped.packages)
    assert len({package.sha256 for package in shipped.packages}) == len(shipped.packages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (entry(split="test"), "split of sample = 'test' must be train or heldout"),
        (entry(sha256="AB"), "sha256 of sample = 'AB' must be 64 lower-case hex digits"),
        (entry(license="GPL-3.0"), "license of sample = 'GPL-3.0' must be a permissive one"),
        (entry(file="sample-1.0.tar.gz"), "must be the name of a wheel"),
        (entry(file="../x.whl"), "must be the name of a wheel"),
        (entry(versoin="1"), "unknown key 'versoin'; did you mean 'version'"),
        (entry() + entry(), "packages listed twice: sample"),
        ("[[package]]\nname = 'x'\n", "package x lacks version, file"),
        ("[target]\npyhton = '3'\n", "did you mean 'python'"),
        ("standard_library = 'all'\n", "standard_library = 'all' must be train or heldout"),
        ("left_out = ['AB']\n", "left_out = 'AB' must be 64 lower-case hex digits"),
        (f"left_out = '{'ab' * 32}'\n", "must be a list of SHA-256 hashes"),
        ("left_out = [1]\n", "must be a list of SHA-256 hashes"),
        (f"left_out = ['{'ab' * 32}', '{'ab' * 32}']\n", "left_out: hashes listed twice: abab"),
        ("[[package\n", "manifest"),
        ("".join(entry(name=f"p{i}") for i in range(61)), "61 packages; at most 60"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        pins.read_manifest(path)
    assert str(path) in str(caught.value)


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, instead of any network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetching_and_finding_again(tmp_path: Path, local_index: Path) -> None:
    package, wheel = make_wheel(local_index, {"sample/a.py": "x = 1\n"})
    cache = tmp_path / "cache"
    path = pins.fetch(package, PLAIN, cache)
    assert path == cache / package.file and pins.file_digest(path) == package.sha256
    assert [entry.name for entry in cache.iterdir()] == [package.file]
    wheel.unlink()
    assert pins.fetch(package, PLAIN, cache) == path  # without pip


def test_another_file_under_the_same_name(tmp_path: Path, local_index: Path) -> None:
    package, _ = make_wheel(local_index, {"sample/a.py": "x = 1\n"})
    make_wheel(local_index, {"sample/a.py": "x = 2\n"})
    with pytest.raises(ValueError, match=r"sample 1\.0 .* could not be fetched; pip says: "):
        pins.fetch(package, PLAIN, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_download_is_fetched_again(tmp_path: Path, local_index: Path) -> None:
    package, _ = make_wheel(local_index, {"sample/a.py": "x = 1\n"})
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / package.file).write_bytes(b"half")
    assert pins.file_digest(pins.fetch(package, PLAIN, cache)) == package.sha256


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert pins.user_cache_folder() == Path("/somewhere/sounding")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert pins.user_cache_folder() == Path.home() / ".cache" / "sounding"
