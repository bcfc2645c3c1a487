"""Print a plan on a cluster."""

import dataclasses
import json

import click
from rich.console import Console
from rich.table import Table

from sounding.weights.cluster import (
    Cluster,
    ServingPlan,
    TrainingPlan,
    fits,
    flops_per_link_byte,
    parse_cluster,
    plan_serving,
    plan_training,
)
from sounding.weights.description import Description
from sounding.weights.units import human_bytes

_GIGA = 1e9


def print_cluster_plan(
    model: str,
    description: Description,
    text: str,
    context_tokens: int,
    link: float | None,
    *,
    as_json: bool,
) -> None:
    """Plan serving and training on a cluster such as `8x80GB`; `link` in GB/s."""
    config = description.config
    limit = config.max_position_embeddings
    if not 1 <= context_tokens <= limit:
        raise ValueError(
            f"a context of {context_tokens:,} tokens is outside the model's 1 to {limit:,}"
        )
    cluster = parse_cluster(text, link_bandwidth=None if link is None else link * _GIGA)
    serving = plan_serving(description, cluster, context_tokens)
    training = plan_training(config, cluster, context_tokens)
    if as_json:
        answer = {"model": model, "context_tokens": context_tokens} | {
            name: dataclasses.asdict(part)
            for name, part in (("cluster", cluster), ("serving", serving), ("training", training))
        }
        answer["flops_per_link_byte"] = flops_per_link_byte(config)
        click.echo(json.dumps(answer, indent=2))
        return
    console = Console()
    console.print(_cluster(cluster))
    console.print("\n[bold]to serve[/]", _serving(serving, context_tokens))
    _verdict(console, serving, bool(serving.sequences))
    console.print("\n[bold]to train[/]", _training(training, context_tokens))
    _verdict(console, training, training.free_bytes >= 0)
    console.print(
        f"\nlinks are hidden behind experts while a device computes at most "
        f"{flops_per_link_byte(config):,} FLOP in the time of a byte; these do "
        f"{cluster.flops / cluster.link_bandwidth:,.0f}",
        soft_wrap=True,
    )


def _cluster(cluster: Cluster) -> Table:
    def speed(name: str, unit: str, scale: float) -> tuple[str, str]:
        origin = "stated" if name in cluster.stated else "given"
        words = name.replace("_bandwidth", " speed").replace("flops", "FP8 products")
        return words, f"{getattr(cluster, name) / scale:,.0f} {unit}, {origin}"

    return _table(
        ("devices", f"{cluster.devices} of {human_bytes(cluster.device_bytes)}"),
        speed("memory_bandwidth", "GB/s", _GIGA),
        speed("link_bandwidth", "GB/s in each direction", _GIGA),
        speed("flops", "TFLOP/s", 1e12),
    )


def _serving(plan: ServingPlan, context_tokens: int) -> Table:
    rows = [
        ("on every device", human_bytes(plan.replicated_bytes)),
        (
            "routed experts",
            f"{plan.experts_per_layer} of each layer, {human_bytes(plan.expert_bytes)}",
        ),
        ("a sequence", f"{human_bytes(plan.state_bytes)} at {context_tokens:,} tokens"),
    ]
    if plan.sequences:
        rows += [
            ("read per step", human_bytes(plan.memory_bytes_per_step)),
            ("sent per step", human_bytes(plan.link_bytes_per_step)),
            *_times(plan.seconds),
        ]
    return _table(*rows)


def _training(plan: TrainingPlan, context_tokens: int) -> Table:
    return _table(
        ("parallel", f"expert {plan.expert}, data {plan.data}"),
        ("weights and gradients", human_bytes(plan.parameter_bytes)),
        ("moments", human_bytes(plan.moment_bytes)),
        ("gathered at most", human_bytes(plan.gathered_bytes)),
        ("a step", f"a sequence of {context_tokens:,} tokens on each device"),
        *((f"sent, {name}", human_bytes(size)) for name, size in plan.link_bytes.items()),
        *_times(plan.seconds),
    )


def _times(seconds: dict[str, float]) -> list[tuple[str, str]]:
    return [(f"by {name}", f"{1000 * time:,.2f} ms per step") for name, time in seconds.items()]


def _verdict(console: Console, plan: ServingPlan | TrainingPlan, holds: bool) -> None:
    words = fits(plan)
    if holds:
        words += f"; at most {plan.tokens_per_second:,.0f} tokens per second, bound by {plan.bound}"
    console.print(f"[bold {'green' if holds else 'red'}]{words}[/]", soft_wrap=True)


def _table(*rows: tuple[str, str]) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", value)
    return table
