"""What is built from a source distribution has native kernels and all data files.

Catches: a header or source that a source distribution lacks, so that compiling fails and, because
kernels are optional, a wheel without any is made in silence; data files that a wheel lacks.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "sounding" / "ops" / "cpu"
BUILT = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "sounding")


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, made from a copy so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in BUILT:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
            shutil.copytree(path, folder / name, ignore=ignored)
        else:
            shutil.copy(path, folder)
    _run(folder, "from setuptools import build_meta; print(build_meta.build_sdist('dist'))")
    return next((folder / "dist").glob("*.tar.gz"))


def _run(folder: Path, code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_source_distribution_has_every_source_and_header(distribution: Path) -> None:
    with tarfile.open(distribution) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    needed = [path for pattern in ("*.cpp", "*.h") for path in KERNELS.rglob(pattern)]
    assert len(needed) > 40
    missing = [path for path in needed if path.relative_to(ROOT).as_posix() not in inside]
    assert not missing


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_a_wheel_from_it_has_native_kernels_that_run(distribution: Path, tmp_path: Path) -> None:
    with tarfile.open(distribution) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(path for path in tmp_path.iterdir() if path.is_dir())
    _run(source, "from setuptools import build_meta; print(build_meta.build_wheel('dist'))")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    look = (
        "import sounding; from sounding.ops import cpu; "
        "print(sounding.__file__, cpu.library() is not None); "
        "print(sounding.load().complete('x = 1 +', '\\n'))"
    )
    found = _run(tmp_path, look, PYTHONPATH=str(installed))
    assert found.startswith(str(installed)) and "True" in found.splitlines()[0]
