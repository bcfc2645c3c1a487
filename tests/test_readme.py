"""What the README shows is what happens.

Catches: an example that fails or prints something else, a figure without a command.
"""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_library_example_prints_what_is_printed_there() -> None:
    code, output = re.findall(
        r"```(?:python)?\n(.*?)```", README.partition("As a library")[2], re.S
    )[:2]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == output


def test_every_claim_has_its_command() -> None:
    table = README.partition("## What is measured")[2].partition("\n\nTwo cores")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")][2:]
    assert 4 <= len(rows) <= 6
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)
    assert all("`" in row[2] or "the same" in row[2] for row in rows)
