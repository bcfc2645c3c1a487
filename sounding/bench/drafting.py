"""Measure drafters along held-out text: acceptance, costs, and the speed they bring.

Behind many places of a text the network continues greedily for some tokens, once with each drafter
alone and all of its drafts verified, once without, and once as the engine chooses; by turns, since
the speed of a machine drifts. Short continuations, so that drafts are compared with the network's
own choices where the text is not its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from sounding.engine.drafting.selection import drafters_for
from sounding.engine.engine import Engine
from sounding.engine.exact import splits_are_exact
from sounding.engine.network import Network
from sounding.engine.requests import DraftCounts, EngineStats, Finished, GenerationRequest, Usage
from sounding.engine.settings import EngineSettings
from sounding.text.tokenizer import Tokenizer

PLAIN, CHOSEN = "no drafts", "as the engine chooses"


@dataclass(frozen=True)
class DraftingRow:
    """One drafter, or the engine's choice. Costs are in steps without drafts."""

    name: str
    tokens_per_second: float
    tokens_per_step: float
    acceptance: tuple[float, ...]
    """Share of the verified drafts that were accepted, by position."""
    drafts_per_step: float
    draft_cost: float
    """Of making one draft, or a block of them."""
    row_cost: float
    """Of verifying one more draft."""
    in_blocks: bool = False

    @property
    def step_cost(self) -> float:
        """What a step costs with its drafts, by the measured costs: the sum that decides."""
        drafted = 1.0 if self.in_blocks else self.drafts_per_step
        return 1 + drafted * self.draft_cost + self.drafts_per_step * self.row_cost

    @property
    def expected_gain(self) -> float:
        """Speed in that of plain steps, by acceptance and measured costs."""
        return self.tokens_per_step / self.step_cost


@dataclass(frozen=True)
class DraftingReport:
    """All rows, the one without drafts first."""

    places: int
    tokens: int
    """Continued behind each place."""
    rows: tuple[DraftingRow, ...]

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        plain = self.rows[0].tokens_per_second
        return {
            "places": self.places,
            "tokens": self.tokens,
            "rows": [
                {
                    "name": row.name,
                    "tokens_per_second": round(row.tokens_per_second, 1),
                    "gain": round(row.tokens_per_second / plain, 3),
                    "expected_gain": round(row.expected_gain, 3),
                    "tokens_per_step": round(row.tokens_per_step, 3),
                    "drafts_per_step": round(row.drafts_per_step, 3),
                    "acceptance": [round(share, 3) for share in row.acceptance],
                    "draft_cost": round(row.draft_cost, 3),
                    "row_cost": round(row.row_cost, 3),
                    "step_cost": round(row.step_cost, 3),
                }
                for row in self.rows
            ],
        }


def places_in(documents: Sequence[Sequence[int]], count: int, context: int) -> list[list[int]]:
    """`count` prompts of `context` tokens, as evenly spread over the documents as can be.

    Raises ValueError where the text is too short for one.
    """
    windows = [
        list(document[low : low + context])
        for document in documents
        for low in range(0, len(document) - context, context)
    ]
    if not windows:
        raise ValueError(
            f"no document is longer than {context} tokens, after which drafts are measured; give "
            "a longer text, or a smaller --context"
        )
    every = max(1, len(windows) // count)
    return windows[::every][:count]


def measure_drafters(
    network: Network,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    on_place: Callable[[], None] = lambda: None,
) -> DraftingReport:
    """Continue every prompt for `tokens` tokens in every way.

    Raises ValueError for a network that drafts nothing: drafts need the C++ kernels.
    """
    if not splits_are_exact(network):
        raise ValueError(
            "this network's rounding depends on how a sequence is split, so the engine drafts "
            "nothing; drafts need the C++ kernels"
        )
    runs = [_Run(network, tokenizer, name, drafters) for name, drafters in _ways(network)]
    try:
        for number, prompt in enumerate(prompts):
            # Whoever comes first finds the caches cold.
            for place in range(len(runs)):
                runs[(number + place) % len(runs)].take(prompt, tokens)
            on_place()
        rows = tuple(run.row() for run in runs)
    finally:
        for run in runs:
            run.engine.close()
    return DraftingReport(len(prompts), tokens, rows)


def _ways(network: Network) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Name of each way to decode and the drafters it has; None for the engine's choice."""
    yield PLAIN, ()
    for drafter in drafters_for(network, network.config.vocab_size):
        if not drafter.certain:
            yield drafter.name, (drafter.name,)
    yield CHOSEN, None


class _Run:
    """An engine that continues prompts in one way."""

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer | None,
        name: str,
        drafters: tuple[str, ...] | None,
    ) -> None:
        self.name = name
        settings = EngineSettings(
            exact_splits=True,
            width=1,
            prefix_limit_bytes=0,
            drafters=drafters,
            always_draft=drafters is not None,
        )
        self.engine = Engine(network, tokenizer, settings, stop_tokens=())
        self._usages: list[Usage] = []

    def take(self, prompt: Sequence[int], tokens: int) -> None:
        """Continue one prompt."""
        asked = GenerationRequest(prompt=prompt, max_tokens=tokens, guard_repetition=False)
        for event in self.engine.submit(asked):
            if isinstance(event, Finished):
                if event.error is not None:
                    raise RuntimeError(event.error)
                self._usages.append(event.usage)

    def row(self) -> DraftingRow:
        """What all prompts have shown. The first tokens come of prompts, without drafts."""
        usages, stats = self._usages, self.engine.stats()
        made = sum(usage.completion_tokens - 1 for usage in usages)
        seconds = sum(usage.decode_seconds for usage in usages)
        accepted = sum(usage.accepted_tokens for usage in usages)
        steps = max(1, made - accepted)
        counts = sum((usage.drafts for usage in usages), DraftCounts())
        return DraftingRow(
            self.name,
            made / seconds,
            made / steps,
            tuple(a / v for a, v in zip(counts.accepted, counts.verified, strict=True)),
            sum(counts.verified) / steps,
            _draft_cost(stats, self.name),
            stats.row_cost if counts.verified else 0.0,
            in_blocks=self.name == "dspark",
        )


def _draft_cost(stats: EngineStats, name: str) -> float:
    return stats.draft_costs.get(name, 0.0)


def print_drafting(report: DraftingReport) -> None:
    """The rows as a table on stdout."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    columns = ("drafts", "tokens/s", "gain", "by the sum", "tokens/step", "draft", "row", "step")
    for heading in (*columns, "accepted at 1, 2, ..."):
        table.add_column(heading, justify="left" if heading == "drafts" else "right", no_wrap=True)
    plain = report.rows[0].tokens_per_second
    for row in report.rows:
        chosen = row.name == CHOSEN
        table.add_row(
            row.name,
            f"{row.tokens_per_second:,.0f}",
            f"{row.tokens_per_second / plain:.2f}",
            "" if chosen else f"{row.expected_gain:.2f}",
            f"{row.tokens_per_step:.2f}",
            "" if chosen else f"{row.draft_cost:.2f}",
            f"{row.row_cost:.2f}",
            "" if chosen else f"{row.step_cost:.2f}",
            " ".join(f"{share:.2f}" for share in row.acceptance),
        )
    console = Console()
    Console(width=max(110, console.width)).print(table)
    console.print(
        f"{report.tokens} tokens behind each of {report.places} places; costs of a draft (or a "
        "block), of each further row and of a step with its drafts, in steps without drafts"
    )
