"""docs/commands.md is what the commands say of themselves."""

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_of_commands_is_up_to_date() -> None:
    """In a process of its own, since other tests import libraries that change how click helps."""
    command = [sys.executable, "-m", "sounding.cli.reference"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    hint = "write it anew: python -m sounding.cli.reference > docs/commands.md"
    assert made == PAGE.read_text(encoding="utf-8"), hint
