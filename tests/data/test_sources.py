"""Where files come from: wheels, folders, git trees, the standard library."""

import subprocess
from pathlib import Path

import pytest

from sounding.data.sources import (
    DocumentSource,
    folder_source,
    standard_library_source,
    wheel_source,
)
from tests.data.conftest import FolderMaker, make_wheel


def paths(source: DocumentSource) -> list[str]:
    return [entry.path for entry in source.files()]


def test_wheels_are_read_in_order_with_their_licence(tmp_path: Path) -> None:
    package, path = make_wheel(tmp_path, {"b.py": "b", "a/c.py": "c"})
    source = wheel_source(package, path)
    assert [name for name in paths(source) if name.endswith(".py")] == ["a/c.py", "b.py"]
    assert {e.path: e.read() for e in source.files()}["b.py"] == b"b"
    assert (source.name, source.version, source.license, source.public) == (
        *("sample", "1.0", "MIT"),
        True,
    )


def test_a_licence_that_differs_from_the_manifest(tmp_path: Path) -> None:
    package, path = make_wheel(tmp_path, {}, license="License-Expression: GPL-3.0-only")
    with pytest.raises(ValueError, match=r"says its licence is 'GPL-3\.0-only', the manifest says"):
        wheel_source(package, path)


def test_what_is_no_wheel(tmp_path: Path) -> None:
    package, path = make_wheel(tmp_path, {})
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="is not a wheel with metadata"):
        wheel_source(package, path)


def test_folders_leave_out_what_is_hidden_or_linked(make_folder: FolderMaker) -> None:
    root = make_folder("mine", {"b.py": "b", "a/c.py": "c", ".venv/d.py": "d", ".e.py": "e"})
    (root / "link.py").symlink_to(root / "b.py")
    (root / "loop").symlink_to(root)
    assert paths(folder_source(root, "train")) == ["a/c.py", "b.py"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"pyproject.toml": '[project]\nlicense = "ISC"\n', "LICENSE": "MIT License"}, "ISC"),
        ({"pyproject.toml": '[project]\nlicense = {text = "MIT\\nmore"}\n'}, "MIT"),
        ({"pyproject.toml": "[[broken\n", "LICENSE": "Apache License"}, "Apache-2.0"),
        ({"COPYING": "GNU General Public License"}, "unknown"),
        ({"a.py": ""}, "unknown"),
    ],
)
def test_licences_of_folders(
    make_folder: FolderMaker, files: dict[str, str | bytes], expected: str
) -> None:
    assert folder_source(make_folder("mine", files), "train").license == expected


def test_git_trees_follow_gits_own_list(make_folder: FolderMaker) -> None:
    root = make_folder("repo", {"a.py": "a", "new.py": "n", "gone.py": "g", "build/x.py": "x"})
    (root / ".gitignore").write_text("build/\n")
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert folder_source(root, "train").version == ""  # no commit yet
    subprocess.run([*git, "add", "a.py", "gone.py", ".gitignore"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    (root / "gone.py").unlink()
    source = folder_source(root, "train")
    assert paths(source) == [".gitignore", "a.py", "new.py"]
    assert len(source.version.removesuffix("-dirty")) == 12
    (root / ".git" / "index").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="git cannot list"):
        folder_source(root, "train")


def test_a_change_changes_the_fingerprint(make_folder: FolderMaker) -> None:
    root = make_folder("mine", {"a.py": "a = 1"})
    before = folder_source(root, "train").fingerprint
    assert folder_source(root, "train").fingerprint == before
    (root / "a.py").write_text("a = 12")
    assert folder_source(root, "train").fingerprint != before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        folder_source(tmp_path / "missing", "train")


def test_the_standard_library() -> None:
    source = standard_library_source("heldout")
    found = set(paths(source))
    assert {"ast.py", "json/decoder.py"} <= found
    assert not any("site-packages" in path or "__pycache__" in path for path in found)
    assert (source.name, source.license, source.split) == ("python", "PSF-2.0", "heldout")
