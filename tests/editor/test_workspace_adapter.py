"""The adapter of a workspace, as it comes, changes, goes and is refused.

Catches: an adapter that is used only after a restart, one that is read at every keystroke, one of
another model that breaks completions.
"""

import os
from pathlib import Path
from typing import Any

from sounding.editor.workspace_adapter import WorkspaceAdapter
from sounding.engine.adapters import Adapters
from sounding.weights.adapters import ADAPTER_NAME, Adapter


class Deltas:
    def load_adapter(self, adapter: Adapter) -> Any:
        return adapter


class Watched:
    """Two roots, the second without anything."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "one" / ".sounding" / "adapter" / ADAPTER_NAME
        self.file.parent.mkdir(parents=True)
        self.read: list[Path] = []
        self.told: list[Exception] = []
        self.adapters = Adapters(Deltas())
        roots = [str(folder / "two"), str(folder / "one")]
        self.find = WorkspaceAdapter(self.adapters, self._read, lambda: roots, self.told.append)

    def write(self, text: str) -> None:
        new = self.file.with_name("new")
        new.write_text(text)
        os.replace(new, self.file)

    def _read(self, path: Path) -> Adapter:
        self.read.append(path)
        if path.read_text() == "foreign":
            raise ValueError("made for another base")
        return Adapter({}, 1.0, path.read_text())


def test_it_is_used_as_soon_as_it_is_there(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert watched.find() is None
    watched.write("first")
    name = watched.find()
    assert name is not None and name in watched.adapters.names
    assert watched.find() == name and len(watched.read) == 1
    watched.write("other")
    assert watched.find() == name and len(watched.read) == 2
    found = watched.adapters.find(name)
    assert found is not None and found.weights.base == "other"
    watched.file.unlink()
    assert watched.find() is None


def test_one_of_another_model_is_told_once_and_not_used(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write("foreign")
    assert watched.find() is None and watched.find() is None
    assert [str(error) for error in watched.told] == ["made for another base"]
    watched.write("mine")
    assert watched.find() is not None
