"""Modules that a command imports before it does its work: each makes a cold start longer.

`python -m tests.cli.test_imports` writes the lists anew, in tests/cli/imports/.

Catches: an import, direct or through another module, that the first token does not need.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sounding.ops import cpu

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no native kernels were built")

LISTS = Path(__file__).with_name("imports")
SOURCE = "def area(width, height):\n    return \n"

COMPLETE = """
import sys
from sounding.cli import cli
cli(["complete", sys.argv[1] + ":2:12", "--max-tokens", "2"], standalone_mode=False)
names = sorted(name for name in sys.modules if name.partition(".")[0] == "sounding")
print("", *names, sep="\\n@")
"""
SERVE = """
import os, signal, sys, threading, urllib.request
from sounding.cli import cli, serving

def ask(url):
    urllib.request.urlopen(url + "/health", timeout=60).read()
    names = sorted(name for name in sys.modules if name.partition(".")[0] == "sounding")
    print("", *names, sep="\\n@", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

def announce(settings, address, *_):
    threading.Thread(target=ask, args=(address,), daemon=True).start()

serving._announce = announce
cli(["serve", "--port", "0"], standalone_mode=False)
"""
COMMANDS = {"complete": COMPLETE, "serve": SERVE}


def imported(command: str, source: Path) -> list[str]:
    """The modules, one a line."""
    source.write_text(SOURCE)
    arguments = [sys.executable, "-c", COMMANDS[command], str(source)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line[1:] for line in done.stdout.splitlines() if line.startswith("@")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_only_what_is_listed(command: str, tmp_path: Path) -> None:
    listed = (LISTS / f"{command}.txt").read_text(encoding="utf-8").split()
    assert imported(command, tmp_path / "area.py") == listed


if __name__ == "__main__":
    for name in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            found = imported(name, Path(folder) / "area.py")
        (LISTS / f"{name}.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
