"""What was tried of each client, as docs/clients.json records it and docs/server.md shows it."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "clients.json"
PAGE = ROOT / "docs" / "server.md"
BEGIN, END = "<!-- clients -->\n", "<!-- end of clients -->"
SCENARIOS = ("conversation", "tool", "cancel", "reconnect")


def results() -> dict[str, Any]:
    """`tried`: rows of name, version, route, date and an outcome per scenario; `held`: rows of
    name, version, route, date, why it was not installed, and the test that has its request."""
    loaded: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return loaded


def table(found: dict[str, Any]) -> str:
    """Markdown of both."""
    head = "| Client | Version | Route | Conversation | Tool | Cancel | Server lost | Date |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in found["tried"]:
        cells = [row["name"], row["version"], f"`{row['route']}`"]
        cells += [row[scenario] for scenario in SCENARIOS]
        lines.append(_line([*cells, row["date"]]))
    lines += ["", "| Client | Version | Route | Held by | Date |", "|---|---|---|---|---|"]
    for row in found["held"]:
        cells = [row["name"], row["version"], f"`{row['route']}`"]
        lines.append(_line([*cells, f"its recorded request: {row['why']}", row["date"]]))
    return "\n".join(lines) + "\n"


def write_page(found: dict[str, Any]) -> None:
    """Put the tables where docs/server.md shows them."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + table(found) + END + after, encoding="utf-8")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
