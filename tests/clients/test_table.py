"""The table of clients in docs/server.md is that of docs/clients.json; its rows are good ones."""

import datetime

import pytest

from tests.clients.catalogue import CLIENTS
from tests.clients.table import BEGIN, END, PAGE, SCENARIOS, results, table
from tests.server.test_clients import CLIENTS as REQUESTS

_GOOD = ("works", "goes on by itself", "at the next request", "when ended")


def test_the_page_shows_what_was_recorded() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == table(results())


def test_every_client_was_tried_and_works() -> None:
    rows = {(row["name"], row["route"]): row for row in results()["tried"]}
    assert set(rows) == {(client.name, client.route) for client in CLIENTS}
    for client in CLIENTS:
        row = rows[client.name, client.route]
        datetime.date.fromisoformat(row["date"])
        for scenario in SCENARIOS:
            said = client.without.get(scenario)  # type: ignore[call-overload]
            assert row[scenario] == said if said else row[scenario] in _GOOD, row


@pytest.mark.parametrize("row", results()["held"], ids=lambda row: str(row["name"]))
def test_a_client_that_is_held_has_a_request(row: dict[str, str]) -> None:
    path, _ = REQUESTS[row["request"]]
    assert path == row["route"]
