"""Hostile inputs, small, against a scripted server: what comes back, and that others are served."""

from collections.abc import Iterator

import pytest

from sounding.bench.traffic.hostile import AttackRow, Watch
from sounding.bench.traffic.hostile_inputs import Attack, attacks
from sounding.server.http.connections import Connections
from sounding.server.options import ServerOptions
from tests.server.live import Live, live
from tests.server.scripted import ScriptedEngine

SMALL = attacks(scale=0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    settings = ServerOptions(model_names=("*",), hosts=("127.0.0.1",))
    engine = ScriptedEngine(context_tokens=1 << 20)
    with live(engine, settings, connections=Connections(30, head_seconds=0.5)) as running:
        yield running


@pytest.mark.parametrize("attack", SMALL, ids=[attack.name for attack in SMALL])
def test_what_comes_back(server: Live, attack: Attack) -> None:
    assert attack.verdict(attack.run(server.port)) == ""


def test_others_are_served_while_a_long_text_is_tokenized(server: Live) -> None:
    """Nobody was, for as long as it took."""
    (long,) = (one for one in attacks(scale=0.1) if one.name.startswith("count_tokens"))
    with Watch(server.port) as watch:
        assert long.verdict(long.run(server.port)) == ""
    assert watch.answers >= 5 and not watch.faults


def test_a_verdict_names_what_is_wrong() -> None:
    good = AttackRow("a", "400", 1.0, 0.1, 0.1, 300.0, 350.0, 100, ())
    assert good.verdict == "ok"
    bad = AttackRow("a", "500", 1.0, 0.6, 0.7, 300.0, 500.0, 2_000_000, ("500, not 400",))
    for part in ("500, not 400", "/health waited 0.60", "a stream", "kept 200 MB", "logged"):
        assert part in bad.verdict
    assert Attack("a", lambda port: "", "400").verdict("200") == "200, not 400"
    assert Attack("a", lambda port: "", "").verdict("500") == "500"
