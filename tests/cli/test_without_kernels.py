"""Where the C++ kernels are missing, PyTorch computes and a warning says how to build them.

Catches: a network that is silently slow, and a warning that is repeated with every use.
"""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from sounding import loading
from sounding.model.reference_network import ReferenceNetwork
from sounding.ops import cpu

WITHOUT = """
import functools, sys
from sounding.ops import cpu
cpu.library = functools.cache(lambda: None)
from sounding.cli import main
sys.argv = ["sounding", *sys.argv[1:]]
main()
"""


def test_loading_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "library", lambda: None)
    cpu.report_missing.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert isinstance(loading.load_network("nano"), ReferenceNetwork)
    (record,) = caplog.records
    assert "the C++ kernels are missing" in record.getMessage()
    assert "-m pip install" in record.getMessage()


def test_a_command_says_so_once(tmp_path: Path) -> None:
    """Loading and the ops below it both find the kernels missing."""
    source = tmp_path / "area.py"
    source.write_text("def area(width, height):\n    return \n")
    command = (sys.executable, "-c", WITHOUT, "complete", f"{source}:2:12", "--max-tokens", "1")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the C++ kernels are missing") == 1
