"""`inspect` and `plan`: describe a model, and the resources that it needs."""

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from sounding.cli.model_argument import model_argument
from sounding.cli.sizes import rate_option, size_option
from sounding.config import RATIO_NAMES, ModelConfig
from sounding.loading import SHIPPED_NAME, open_checkpoint
from sounding.presets import PRESETS
from sounding.weights.description import (
    Description,
    StateSize,
    describe_checkpoint,
    describe_config,
)
from sounding.weights.layout import count_parameters
from sounding.weights.machine import this_machine
from sounding.weights.plan import Plan, make_plan
from sounding.weights.units import human_bytes

if TYPE_CHECKING:  # torch takes a second to import, and presets are described without it
    from sounding.weights.checkpoint import Checkpoint

_MILLION = 2**20  # the context the published models are made for
_DEFAULT_CONTEXT = 32_768
_PLAIN: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE}


# --------------------------------------------------------------------------------------------------
# Describing a model


def describe(name: str) -> tuple[Description, "Checkpoint | None"]:
    """Describe a model by name, and open its checkpoint if any: `preset:flash`, `flash`, a folder.

    "nano" is the shipped model with weights; "preset:nano" is its shape alone.
    """
    shape = name.removeprefix("preset:")
    if shape in PRESETS and name != SHIPPED_NAME:
        return describe_config(PRESETS[shape]()), None
    checkpoint = open_checkpoint(name)
    return describe_checkpoint(checkpoint), checkpoint


# --------------------------------------------------------------------------------------------------
# inspect


@click.command()
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def inspect(model: str | None, as_json: bool) -> None:
    """Describe a model: layers, parameters, bytes, state.

    MODEL is a preset (tiny, flash, pro), described without weights, or a folder with config.json
    and safetensors, of which only the headers are read; by default, and as nano, the shipped model.
    For a folder with the name of a preset write ./flash.

    \b
    Examples:
      sounding inspect flash
      sounding inspect ~/models/DeepSeek-V4-Flash --json | jq .state.bytes_per_token

    \b
    Keys of the JSON:
      model, source       the argument; "preset" or "folder"
      dialect             "published" or "transformers": naming of the tensors
      layers              [{layer, attention: window|CSA|HCA, router: hash|scored}]
      parameters          {main, mtp, dspark, active}, counted unpacked
      tensors             number of tensors in the files
      bytes               {total, components: {component: {format: bytes}}}
      state               {bytes_per_token, constant_bytes, bytes_at_1m_tokens,
                          entry_bytes, index_entry_bytes}, packed deploy format
    """
    model = model or SHIPPED_NAME
    description, checkpoint = describe(model)
    answer = _inspection(model, description, checkpoint)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        _print_inspection(description.config, answer)


def _inspection(
    model: str, description: Description, checkpoint: "Checkpoint | None"
) -> dict[str, Any]:
    config = description.config
    state = StateSize(config)
    components: dict[str, dict[str, int]] = {}
    for (component, name), size in description.bytes_by_part.items():
        components.setdefault(str(component), {})[name] = size
    return {
        "model": model,
        "source": "preset" if checkpoint is None else "folder",
        "dialect": "published" if checkpoint is None else checkpoint.dialect,
        "layers": [
            {
                "layer": layer,
                "attention": RATIO_NAMES[ratio],
                "router": "hash" if layer < config.num_hash_layers else "scored",
            }
            for layer, ratio in enumerate(config.ratios)
        ],
        "parameters": dataclasses.asdict(count_parameters(config)),
        "tensors": description.num_tensors,
        "bytes": {"total": description.total_bytes, "components": components},
        "state": {
            "bytes_per_token": state.bytes_per_token,
            "constant_bytes": state.constant_bytes,
            "bytes_at_1m_tokens": state.bytes_at(_MILLION),
            "entry_bytes": state.entry_bytes,
            "index_entry_bytes": state.index_entry_bytes,
        },
    }


def _print_inspection(config: ModelConfig, answer: dict[str, Any]) -> None:
    counts, state = answer["parameters"], answer["state"]
    facts = _facts(
        ("layers", f"{config.num_hidden_layers}: {_layer_summary(answer['layers'])}"),
        ("hidden size", f"{config.hidden_size:,}"),
        ("experts", f"{config.n_routed_experts}, of which {config.num_experts_per_tok} per token"),
        ("parameters", f"{counts['main']:,}, of which {counts['active']:,} active per token"),
        ("MTP block", f"{counts['mtp']:,} parameters" if counts["mtp"] else "none"),
        *([("DSpark drafter", _drafter(config, counts["dspark"]))] if config.dspark else []),
        ("weights", f"{human_bytes(answer['bytes']['total'])} in {answer['tensors']:,} tensors"),
        ("state", f"{state['bytes_per_token']:,.2f} B per token"),
        ("state at 1M tokens", human_bytes(state["bytes_at_1m_tokens"])),
    )
    table = Table("component", "format", title="weights", **_PLAIN)
    table.add_column("bytes", justify="right")
    for component, formats in answer["bytes"]["components"].items():
        for name, size in formats.items():
            table.add_row(component, name, f"{size:,}")
    layers = Table("attention", "router", "which", title="layers", **_PLAIN)
    for row in _kinds(answer["layers"]):
        layers.add_row(*row)
    Console().print(facts, layers, table)


def _drafter(config: ModelConfig, parameters: int) -> str:
    assert config.dspark is not None
    return (
        f"{parameters:,} parameters in {config.num_dspark_blocks} blocks, "
        f"{config.dspark.block_size} tokens at once"
    )


def _layer_summary(layers: list[dict[str, Any]]) -> str:
    kinds = [layer["attention"] for layer in layers]
    present = [kind for kind in RATIO_NAMES.values() if kind in kinds]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in present)


def _kinds(layers: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """One row per kind of layer: its attention, its router, the layers."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for layer in layers:
        kinds.setdefault((layer["attention"], layer["router"]), []).append(layer["layer"])
    return [(*kind, _span(numbers)) for kind, numbers in kinds.items()]


def _span(numbers: list[int]) -> str:
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    if len(numbers) < 4 or len(steps) > 1:
        return ", ".join(map(str, numbers))
    if steps == {1}:
        return f"{numbers[0]}-{numbers[-1]}"
    return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"


# --------------------------------------------------------------------------------------------------
# plan


@click.command()
@model_argument
@click.option(
    "--context",
    type=int,
    default=_DEFAULT_CONTEXT,
    show_default=True,
    help="Tokens of prompt and answer to allow for.",
)
@click.option(
    "--memory",
    callback=size_option,
    metavar="SIZE",
    help="Memory for the model, such as 64GiB: what serve takes as --memory.  [default: what is "
    "free here]",
)
@click.option(
    "--disk",
    callback=rate_option,
    metavar="RATE",
    help="Speed of the disk, such as 4GB/s.  [default: measured]",
)
@click.option(
    "--bandwidth",
    callback=rate_option,
    metavar="RATE",
    help="Speed of memory, such as 60GB/s.  [default: measured]",
)
@click.option(
    "--cluster",
    metavar="COUNTxMEMORY",
    help="Plan for devices such as 8x80GB instead of this machine.",
)
@click.option("--link", type=float, metavar="GB/S", help="A device's link speed, one direction.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def plan(
    model: str | None,
    context: int,
    memory: int | None,
    disk: int | None,
    bandwidth: int | None,
    cluster: str | None,
    link: float | None,
    as_json: bool,
) -> None:
    """Compare what a model needs with what this machine, or a cluster, has.

    MODEL is a preset (tiny, nano, flash, pro) or a folder, as for inspect. Weights, state and
    workspace of one sequence are compared with free memory and disk, or with those of the machine
    that --memory, --disk and --bandwidth describe. Memory bandwidth is measured; disk bandwidth is
    measured if a shard is large enough, else 2 GB/s are assumed. Tokens per second are those of
    reading alone: one sequence, each byte once per token, first what is missing from disk, then all
    from memory. Arithmetic may take longer on a machine with few cores.

    With --cluster, the model is planned on equal devices: to serve, with routed experts divided
    over them and everything else on each; to train, as `train` shards it under torchrun, one
    sequence of the context on each device in a step. Speeds are then those stated for an H800
    unless given, times are bounds, and the keys of the JSON are model, cluster, serving, training.

    \b
    Examples:
      sounding plan flash --context 131072
      sounding plan flash --memory 64GiB --disk 4GB/s --bandwidth 60GB/s
      sounding plan flash --cluster 8x80GB

    \b
    Keys of the JSON:
      model               the argument
      verdict             "memory": fits in RAM; "stream": experts are read from disk as
                          needed; "none": does not fit; reason says why
      context_tokens, weight_bytes, expert_bytes, state_bytes
      needed_bytes        memory for everything, including 1 GiB of workspace
      streaming_bytes     the least memory, with the routed experts on disk
      dense_bytes_per_token, expert_bytes_per_token, state_bytes_per_token
      cached_experts      share of the experts that fit in memory
      hit_rate, hit_rate_source    share of a token's experts expected there, and by what
      disk_bytes_per_token         expected reads
      chunk_tokens        tokens of a prompt for which each expert is read once
      tokens_per_second   by reading alone; 0 if the model does not fit
      prompt_tokens_per_second     bound of prefill by reading experts; 0 if none is streamed
      machine             {memory_bytes, available_bytes, disk_free_bytes, memory_bandwidth,
                          memory_bandwidth_measured, disk_bandwidth, disk_bandwidth_measured},
                          bandwidths in bytes/s
      stated              the options that describe another machine
    """
    model = model or SHIPPED_NAME
    description, checkpoint = describe(model)
    given = {"memory": memory, "disk": disk, "bandwidth": bandwidth}
    stated = [name for name, value in given.items() if value is not None]
    if cluster is not None:
        if stated:
            raise ValueError(f"--{stated[0]} describes one machine and --cluster many: give one")
        from sounding.cli.cluster_plan import print_cluster_plan

        print_cluster_plan(model, description, cluster, context, link, as_json=as_json)
        return
    if link is not None:
        raise ValueError(f"--link {link:g} is of a cluster's devices: give --cluster too")
    folder = Path.cwd() if checkpoint is None else checkpoint.folder
    machine = this_machine(folder, _largest_shard(checkpoint)).described(memory, disk, bandwidth)
    found = make_plan(description, machine, context, on_disk=checkpoint is not None)
    answer = {
        "model": model,
        **dataclasses.asdict(found),
        "machine": dataclasses.asdict(machine),
        "stated": stated,
    }
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        _print_plan(found, answer["machine"], stated)


def _largest_shard(checkpoint: "Checkpoint | None") -> Path | None:
    if checkpoint is None:
        return None
    files = {source.shard.path for source in checkpoint.sources.values()}
    return max(files, key=os.path.getsize)


def _print_plan(found: Plan, machine: dict[str, Any], stated: list[str]) -> None:
    verdicts = {
        "memory": "[bold green]fits in memory[/]",
        "stream": "[bold yellow]needs streaming from disk[/]",
        "none": "[bold red]does not fit[/]",
    }
    per_token = (
        found.dense_bytes_per_token + found.expert_bytes_per_token + found.state_bytes_per_token
    )
    free = human_bytes(machine["available_bytes"])
    origin = "measured" if machine["disk_bandwidth_measured"] else "assumed"
    disk_origin = "stated" if "disk" in stated else origin
    memory_origin = "stated" if "bandwidth" in stated else "measured"
    share = f"{free} free of {human_bytes(machine['memory_bytes'])}"
    takes = _facts(
        (
            "weights",
            f"{human_bytes(found.weight_bytes)}, routed experts {human_bytes(found.expert_bytes)}",
        ),
        ("state", f"{human_bytes(found.state_bytes)} at {found.context_tokens:,} tokens"),
        ("total", f"{human_bytes(found.needed_bytes)} with workspace"),
        ("read per token", human_bytes(per_token)),
    )
    has = _facts(
        ("memory", f"{free}, stated" if "memory" in stated else share),
        ("memory speed", f"{machine['memory_bandwidth'] / 1e9:.1f} GB/s, {memory_origin}"),
        *([] if stated else [("disk", f"{human_bytes(machine['disk_free_bytes'])} free")]),
        ("disk speed", f"{machine['disk_bandwidth'] / 1e9:.1f} GB/s, {disk_origin}"),
    )
    console = Console()
    console.print("[bold]needed[/]", takes, "[bold]available[/]", has)
    console.print(f"{verdicts[found.verdict]}: {found.reason}", soft_wrap=True)
    if found.verdict == "stream":
        console.print(
            f"{found.cached_experts:.1%} of the experts fit in memory, where {found.hit_rate:.0%} "
            f"of a token's are expected ({found.hit_rate_source}); "
            f"{human_bytes(found.disk_bytes_per_token)} per token from disk",
            soft_wrap=True,
        )
        console.print(
            f"at most {found.prompt_tokens_per_second:,.1f} tokens per second of a prompt, by "
            f"reading experts once per {found.chunk_tokens:,} tokens",
            soft_wrap=True,
        )
    if found.verdict != "none":
        console.print(f"about {found.tokens_per_second:,.2f} tokens per second, by bandwidth")


# --------------------------------------------------------------------------------------------------
# Printing


def _facts(*rows: tuple[str, str]) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", value)
    return table
