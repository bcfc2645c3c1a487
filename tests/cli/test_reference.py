"""docs/commands.md is what the commands say of themselves."""

from pathlib import Path

from sounding.cli.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_of_commands_is_up_to_date() -> None:
    hint = "write it anew: python -m sounding.cli.reference > docs/commands.md"
    assert page() == PAGE.read_text(encoding="utf-8"), hint
