"""`scripts/against-llama` refuses what it cannot do before it downloads or builds anything."""

import os
import subprocess
from pathlib import Path
from shutil import which

import pytest
import torch

from sounding.bench.peers.llama_cpp import require_convertible
from sounding.weights.checkpoint import Checkpoint
from sounding.weights.state_dict import read_state, write_state
from tests.weights.folders import TINY

SCRIPT = Path(__file__).parents[2] / "scripts" / "against-llama"
NEEDED = ("bash", "dirname", "readlink", "sed", "cat", "tar", "gzip")


def run(path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it where no other programs are than those in a folder."""
    environment = {"PATH": str(path), "HOME": os.environ.get("HOME", "/")}
    command = [str(path / "bash"), str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        found = which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "scripts/against-llama MODEL"),
        (("--turns", "3"), "scripts/against-llama MODEL"),
        ((TINY, "3", "4"), "scripts/against-llama MODEL"),
        ((TINY, "many"), "many is no number of turns"),
        ((TINY, "0"), "0 is no number of turns"),
        (("/nowhere",), "/nowhere is no checkpoint: it has no config.json"),
        ((TINY,), "llama.cpp is built with cc, which was not found"),
    ],
)
def test_it_refuses_at_once(programs: Path, arguments: tuple[object, ...], message: str) -> None:
    done = run(programs, *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr and "Building" not in done.stderr


def test_a_config_without_weights(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "it has no *.safetensors" in run(programs, tmp_path).stderr


def test_what_llama_does_not_convert(tmp_path: Path) -> None:
    require_convertible(TINY)
    checkpoint = Checkpoint(TINY)
    write_state(read_state(checkpoint, torch.bfloat16), checkpoint.config, tmp_path / "plain")
    with pytest.raises(ValueError, match=r"has bf16 experts, which llama\.cpp does not convert"):
        require_convertible(tmp_path / "plain")
