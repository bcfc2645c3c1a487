"""Small corpora made on the spot: fake wheels, folders of code, a tokenizer trained on them."""

import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sounding.data.manifest import Package, file_digest
from sounding.text.tokenizer import Tokenizer, train


def code(seed: int, num_functions: int = 6) -> str:
    """A parsable module that shares no long stretch with one of another seed."""
    rng = random.Random(f"code {seed}")

    def word() -> str:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 9)))

    lines = [f'"""About {word()} and {word()}."""', "", f"import {word()}", ""]
    for _ in range(num_functions):
        name, one, two = word(), word(), word()
        lines += ["", f"def {name}({one}, {two}=None):", f'    """Make {word()} {word()}."""']
        lines += [f"    if {two} is None:", f"        {two} = {word()}({one}, '{word()}')"]
        lines += [f"    return [{word()}({one}) for {one} in {two}.{word()}]", ""]
    return "\n".join(lines)


def make_wheel(
    folder: Path,
    files: Mapping[str, bytes | str],
    *,
    name: str = "sample",
    license: str = "License-Expression: MIT",
    split: str = "train",
) -> tuple[Package, Path]:
    """A wheel of the given files, and the pin that fits it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{license}\n"
    wheel = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, content in files.items():
            archive.writestr(inner, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")
    return (
        Package(
            name=name,
            version="1.0",
            file=path.name,
            sha256=file_digest(path),
            license="MIT",
            split=split,
        ),
        path,
    )


FolderMaker = Callable[[str, dict[str, str | bytes]], Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> FolderMaker:
    def make(name: str, files: dict[str, str | bytes]) -> Path:
        root = tmp_path / name
        for inner, content in files.items():
            path = root / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train([code(seed) for seed in range(40)], 512)
