"""Mixed traffic over two replicas: hits as of one engine, and no request lost where one is killed.

The short form runs with the suite; the long one with `pytest -m long`.
"""

import logging

import pytest

from sounding.cluster.remote_engine import RemoteEngine
from tests.cluster.traffic import Outcome, run_on_one_engine, run_traffic, wrong_answers

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray meets deprecations of its own
_log = logging.getLogger(__name__)


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_no_request_that_had_not_begun_to_stream(
    two_replicas: RemoteEngine,
) -> None:
    outcome = run_traffic(two_replicas, 12.0, kill_every=4.0)
    assert outcome.killed >= 2
    require_whole(outcome, compared=60)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kill_every", "seconds"), [(None, 600.0), (30.0, 600.0)], ids=["undisturbed", "killed"]
)
def test_ten_minutes_of_traffic(
    two_replicas: RemoteEngine, kill_every: float | None, seconds: float
) -> None:
    outcome = run_traffic(two_replicas, seconds, kill_every=kill_every)
    _log.warning(
        "%d answers, %d broken off, %d left, %d killed, hits %.4f",
        len(outcome.whole), len(outcome.broken), outcome.tally.left, outcome.killed,
        outcome.hit_share,
    )  # fmt: skip
    require_whole(outcome, compared=300)
    if kill_every is None:
        assert outcome.broken == []
        one = run_on_one_engine(seconds)
        _log.warning("of one engine: %d answers, hits %.4f", len(one.whole), one.hit_share)
        assert outcome.hit_share >= 0.9 * one.hit_share


def require_whole(outcome: Outcome, compared: int) -> None:
    """No request failed or hung; those that broke off had begun to stream; none is wrong."""
    assert outcome.tally.errors == []
    assert len(outcome.whole) > 50
    for answer in outcome.broken:
        assert answer.body.get("stream"), "an answer in one piece is begun anew"
        assert "was lost after" in answer.reply.text, "it had not begun"
    wrong = wrong_answers(outcome.whole, compared)
    assert [(one.path, one.body, one.reply.text) for one in wrong] == []
