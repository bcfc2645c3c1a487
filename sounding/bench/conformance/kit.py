"""All checks in the order of the report, and the report's tables."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from sounding.bench.conformance import (
    chat_checks,
    completions_checks,
    infill_checks,
    messages_checks,
    ollama_checks,
    responses_checks,
)
from sounding.bench.conformance.check import TITLES, Check, CheckVerdict, Protocol, Result

CHECKS: list[Check] = [
    *chat_checks.CHECKS,
    *completions_checks.CHECKS,
    *responses_checks.CHECKS,
    *messages_checks.CHECKS,
    *infill_checks.CHECKS,
    *ollama_checks.CHECKS,
]


def checks_of(protocols: Sequence[Protocol]) -> list[Check]:
    """The checks of these protocols."""
    return [check for check in CHECKS if check.protocol in protocols]


def table_of(protocol: Protocol, results: Sequence[Result]) -> Table:
    """One row per check; a deviation is explained below the check's name."""
    mine = [result for result in results if result.check.protocol is protocol]
    table = Table(
        box=box.SIMPLE, title=f"{TITLES[protocol]}: {summary(mine)}", title_justify="left"
    )
    table.add_column("check")
    table.add_column("")
    for result in mine:
        name, verdict = result.check.name, str(result.verdict)
        if result.verdict is CheckVerdict.DEVIATES:
            verdict = "deviates" if result.check.required else "deviates (recommended)"
            name += f"\n  rule: {result.check.rule}\n  found: {result.message}"
        table.add_row(name, verdict)
    return table


def summary(results: Sequence[Result]) -> str:
    """Counts of passed checks, and of deviations from required and recommended rules."""
    passed = sum(result.verdict is CheckVerdict.PASSED for result in results)
    asked = [result for result in results if result.verdict is not CheckVerdict.SKIPPED]
    if not asked:
        return "not supported" if results else "not asked"
    wrong = [result for result in asked if result.verdict is CheckVerdict.DEVIATES]
    required = sum(result.check.required for result in wrong)
    text = f"{passed} of {len(asked)} passed"
    if wrong:
        text += f", deviations: {required} required, {len(wrong) - required} recommended"
    if len(asked) < len(results):
        text += f", {len(results) - len(asked)} not asked"
    return text


def conforms(results: Sequence[Result]) -> bool:
    """True if a check passed and no required check deviates."""
    wrong = [r for r in results if r.verdict is CheckVerdict.DEVIATES and r.check.required]
    return not wrong and any(result.verdict is CheckVerdict.PASSED for result in results)
