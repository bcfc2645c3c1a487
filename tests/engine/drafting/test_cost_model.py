"""The number of drafts follows from their acceptance and their measured costs."""

from sounding.engine.drafting.acceptance import Acceptance, AcceptanceRate, BlockAcceptance
from sounding.engine.drafting.cost_model import STREAMED_ROW, CostModel, Prices


def prices(draft: float, row: float = 0.1, running: int = 1) -> Prices:
    return Prices(0.8 / running + 0.2, draft, row)


def count(costs: CostModel, drafter: str) -> int:
    return AcceptanceRate().plan(4, costs.prices(drafter, 1)).drafts


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
    assert 0 < count(costs, "lookup") < 4
    assert count(costs, "mtp") == 0
    costs.record_drafting("lookup", 0.1, 1)
    assert costs.draft_costs["lookup"] == 0.0  # what is assumed to be free stays so


def test_one_slow_step_changes_little() -> None:
    """As when the process was interrupted, or the machine was busy for a moment."""
    costs = CostModel({"mtp": 0.25})
    for _ in range(30):
        costs.record_step(0.02, 1, 1)
        costs.record_step(0.024, 1, 3)
        costs.record_drafting("mtp", 0.005, 1)
    costs.record_step(2.0, 1, 2)
    costs.record_drafting("mtp", 2.0, 1)
    assert costs.row_cost < 0.2 and costs.draft_costs["mtp"] < 0.5
    for _ in range(30):  # a machine that has become slow is believed
        costs.record_step(0.04, 1, 3)
    assert abs(costs.row_cost - 0.5) < 0.01


def test_the_count_maximises_tokens_per_time() -> None:
    rate = AcceptanceRate()
    assert rate.plan(4, prices(0.0)).drafts == 4
    assert rate.plan(4, prices(2.0)).drafts == 0
    assert 0 < rate.plan(4, prices(0.1, row=0.2)).drafts < 4
    assert rate.plan(0, prices(0.0)).drafts == 0
    for _ in range(100):
        rate.observe(4, 4)
    assert rate.plan(4, prices(0.1, running=64)).drafts == 4
    block = BlockAcceptance()
    assert block.plan(5, prices(0.3)).drafts == 5
    assert block.plan(5, prices(3.0)).drafts == 0


def rounds_until_due(outcomes: Acceptance) -> int:
    rounds = 0
    while not outcomes.is_due:
        outcomes.pass_over()
        rounds += 1
    return rounds


def test_a_source_that_brings_nothing_is_tried_ever_more_rarely() -> None:
    for outcomes in (AcceptanceRate(), BlockAcceptance()):
        while outcomes.plan(4, prices(0.3)).drafts:
            outcomes.observe(4, 0)
        waited = []
        for _ in range(7):
            waited.append(rounds_until_due(outcomes))
            for _ in range(3):  # a trial
                assert outcomes.is_due
                outcomes.take_part()
                outcomes.observe(1, 0)
            assert not outcomes.is_due
        assert waited == [16, 32, 64, 128, 256, 512, 512]
        outcomes.take_part()  # chosen, by what it promises
        assert rounds_until_due(outcomes) == 16


def test_a_trial_can_turn_the_estimate() -> None:
    outcomes = AcceptanceRate()
    for _ in range(200):
        outcomes.observe(1, 0)
    assert outcomes.plan(4, prices(0.0)).drafts == 0
    rounds_until_due(outcomes)
    while outcomes.is_due:
        outcomes.take_part()
        outcomes.observe(1, 1)
    assert outcomes.plan(4, prices(0.0)).drafts > 0


def test_drafts_stop_where_a_wider_verification_reads_too_many_experts() -> None:
    """Each further row reads nearly as many experts as the first."""
    costs = CostModel({"mtp": 0.1}, STREAMED_ROW)
    for _ in range(8):
        costs.record_step(1.0, sequences=1, rows=1)
    assert 0 < count(costs, "mtp") < AcceptanceRate().plan(4, prices(0.1)).drafts
    for _ in range(8):
        costs.record_step(2.7, sequences=1, rows=3)
    assert count(costs, "mtp") == 0
    for _ in range(16):
        costs.record_step(1.1, sequences=1, rows=3)  # hits in memory
    assert count(costs, "mtp") > 1
