"""The number of drafts follows from their acceptance rate and their measured costs."""

from sounding.engine.drafting.cost_model import STREAMED_ROW, AcceptanceRate, CostModel


def test_costs_of_drafts_are_measured() -> None:
    costs = CostModel({"mtp": 0.25, "lookup": 0.0})
    costs.record_drafting("mtp", 9.0, 1)
    assert costs.draft_costs["mtp"] == 0.25  # there is nothing to compare with yet
    costs.record_step(0.3, 2, 2)  # the first one is slow
    for _ in range(30):
        costs.record_step(0.024, 2, 2)  # two answers: 1.2 of one alone, which then takes 0.02
        costs.record_step(0.036, 1, 3)  # one with two drafts, each of which takes 0.4 more
        costs.record_drafting("mtp", 0.04, 4)
    assert abs(costs.draft_costs["mtp"] - 0.5) < 0.01 and abs(costs.row_cost - 0.4) < 0.01
    assert AcceptanceRate().best_count(4, running=1, draft_cost=costs.draft_costs["mtp"]) < 4
    assert AcceptanceRate().best_count(4, running=1, draft_cost=2.0) == 0
    assert AcceptanceRate().best_count(4, running=1, draft_cost=0.0, row_cost=costs.row_cost) < 4
    costs.record_step(0.2, 1, 2)  # interrupted
    assert AcceptanceRate().best_count(4, running=1, draft_cost=0.0, row_cost=costs.row_cost) == 0
    costs.record_drafting("lookup", 0.1, 1)
    assert costs.draft_costs["lookup"] == 0.0  # what is assumed to be free stays so
    for _ in range(500):
        costs.record_step(0.02, 1, 1)
    assert AcceptanceRate().best_count(4, running=1, draft_cost=0.0, row_cost=costs.row_cost) > 0


def test_drafting_stops_where_it_does_not_pay_and_is_tried_again() -> None:
    acceptance = AcceptanceRate()
    assert acceptance.best_count(4, running=1, draft_cost=0.0) == 4
    while (count := acceptance.best_count(4, running=1, draft_cost=0.1)) > 0:
        acceptance.observe(count, 0)
    pauses = 0
    while acceptance.best_count(4, running=1, draft_cost=0.1) == 0:
        pauses += 1
    assert pauses == 64
    for _ in range(100):
        acceptance.observe(4, 4)
    assert acceptance.best_count(4, running=64, draft_cost=0.1) == 4
    assert acceptance.best_count(0, running=1, draft_cost=0.1) == 0


def test_drafts_stop_where_a_wider_verification_reads_too_many_experts() -> None:
    """Each further row reads nearly as many experts as the first."""
    costs = CostModel({"mtp": 0.25}, STREAMED_ROW)
    for _ in range(8):
        costs.record_step(1.0, sequences=1, rows=1)

    def best() -> int:
        rate = AcceptanceRate()
        return rate.best_count(4, running=1, draft_cost=0.1, row_cost=costs.row_cost)

    assert 0 < best() < AcceptanceRate().best_count(4, running=1, draft_cost=0.1)
    for _ in range(8):
        costs.record_step(2.7, sequences=1, rows=3)
    assert best() == 0
    for _ in range(8):
        costs.record_step(1.1, sequences=1, rows=3)  # hits in memory
    assert best() > 1
