"""Prometheus metrics: the engine's counters, and latencies as clients see them.

Totals are read from the engine at each scrape, so that `/metrics`, `/status` and the sum of all
traces agree.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sounding.engine.requests import EngineStats
from sounding.server.exchange import EngineRun, Ledger

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1, 2.5, 5, 10, 30, 60, 300)
_TOTALS = {
    "steps": "Forward passes.",
    "prompt_tokens": "Tokens of prompts.",
    "hit_tokens": "Tokens of prompts found in a prefix cache.",
    "completion_tokens": "Tokens generated.",
    "drafted_tokens": "Tokens drafted by speculation.",
    "accepted_tokens": "Drafted tokens that were accepted.",
}
_GAUGES = {
    "running": "Sequences in the batch.",
    "waiting": "Requests in the queue.",
    "state_bytes": "Bytes reserved for the states of running sequences.",
    "state_limit_bytes": "Limit of state_bytes.",
    "prefix_bytes": "Bytes of cached prefixes in memory.",
    "prefix_limit_bytes": "Limit of prefix_bytes.",
    "cached_prefixes": "Prefixes in memory.",
    "stored_prefixes": "Prefixes on disk.",
    "stored_bytes": "Bytes of prefixes on disk.",
}

_EXPERT_TOTALS = {
    "hits": "Experts that a step needed and found in memory, from earlier steps.",
    "ahead": "Experts that a step needed and that were read ahead.",
    "misses": "Experts that began to be read when a step needed them.",
    "bytes_read": "Bytes of experts read from disk.",
    "waited_seconds": "Time in which steps had nothing to compute.",
    "read_seconds": "Time of all reads, which overlap.",
    "failed_reads": "Reads of experts that failed.",
}
_EXPERT_GAUGES = {
    "slots": "Experts that memory has room for.",
    "slot_bytes": "Memory of one of them.",
}


class Metrics:
    """The registry of one server."""

    def __init__(self, stats: Callable[[], EngineStats], ledger: Ledger) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats))
        ProcessCollector(registry=self._registry)  # memory, open files
        ledger.on_token.append(self._token)
        ledger.on_end.append(self._end)
        self.answers = Counter(
            "sounding_http_requests",
            "Requests answered, by route and HTTP status.",
            ["route", "status"],
            registry=self._registry,
        )
        self._ends = Counter(
            "sounding_generations",
            "Generations that ended, by route and reason.",
            ["route", "reason"],
            registry=self._registry,
        )
        self._first = self._histogram("time_to_first_token", "From request to first token.")
        self._between = self._histogram("inter_token", "Between two tokens of an answer.")
        self._whole = self._histogram("generation", "From request to the end of the answer.")

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(
            f"sounding_{name}_seconds", what, ["route"], buckets=_LATENCIES, registry=self._registry
        )

    def _token(self, run: EngineRun) -> None:
        times = run.token_times
        if len(times) == 1:
            self._first.labels(run.route).observe(times[0] - run.began_at)
        else:
            self._between.labels(run.route).observe(times[-1] - times[-2])

    def _end(self, run: EngineRun) -> None:
        self._ends.labels(run.route, run.state).inc()
        self._whole.labels(run.route).observe(run.seconds)


class _EngineCollector(Collector):
    """The engine's statistics as metrics."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = asdict(self._stats())
        for name, what in _TOTALS.items():
            yield CounterMetricFamily(f"sounding_{name}", what, value=stats[name])
        for name, what in _GAUGES.items():
            yield GaugeMetricFamily(f"sounding_{name}", what, value=stats[name])
        yield from _drafts(stats["drafts"])
        for name, what in _EXPERT_TOTALS.items() if stats["experts"] else ():
            yield CounterMetricFamily(f"sounding_expert_{name}", what, value=stats["experts"][name])
        for name, what in _EXPERT_GAUGES.items() if stats["experts"] else ():
            yield GaugeMetricFamily(f"sounding_expert_{name}", what, value=stats["experts"][name])
        replicas = stats["extra"].get("replicas")
        if replicas is not None:
            what = "Engines that run, in processes of their own."
            yield GaugeMetricFamily("sounding_replicas", what, value=len(replicas))
        load = CounterMetricFamily(
            "sounding_expert_choices",
            "Tokens routed to each expert.",
            labels=["layer", "expert"],
        )
        for layer, counts in enumerate(stats["expert_load"]):
            for expert, count in enumerate(counts):
                load.add_metric([str(layer), str(expert)], count)
        yield load


def _drafts(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> Iterable[Metric]:
    """Drafts by drafter and by their place among those of a step, from 1 on."""
    for what, help in (
        ("verified", "Drafts that were verified, by drafter and place in the step."),
        ("accepted", "Drafts that were accepted, by drafter and place in the step."),
    ):
        family = CounterMetricFamily(
            f"sounding_drafts_{what}", help, labels=["drafter", "position"]
        )
        for drafter, by_position in counts.items():
            for position, count in enumerate(by_position[what], 1):
                family.add_metric([drafter, str(position)], count)
        yield family
